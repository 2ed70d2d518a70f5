//! Text tables.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// Formats a table with a header row. Columns are separated by spaces; those in `numbers` are
/// right-aligned.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    numbers: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head);
    for row in rows {
        table.add_row(row);
    }
    for number in numbers {
        if let Some(column) = table.column_mut(*number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_numbers_to_the_right() {
        let rows =
            [["web".to_owned(), "5".to_owned()], ["dns-long".to_owned(), "12345".to_owned()]];
        assert_eq!(
            table(["name", "packets"], &[1], rows),
            " name      packets\n web             5\n dns-long    12345\n"
        );
    }
}
