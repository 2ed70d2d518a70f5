//! Writes figures into a page, where the last ones are.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// Replaces what stands in `page` between the lines `<!-- NAME -->` and `<!-- end NAME -->` by
/// `figures`.
///
/// # Errors
///
/// When the page cannot be read or written, or has no such place.
pub fn replace(page: &Path, name: &str, figures: &str) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = replaced(&text, name, figures).with_context(|| {
        format!(
            "{} has no place for figures: <!-- {name} --> and <!-- end {name} -->",
            page.display()
        )
    })?;
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// What stands between the two lines.
pub fn found<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<!-- {name} -->\n"))?;
    rest.split_once(&format!("<!-- end {name} -->\n")).map(|(figures, _)| figures)
}

fn replaced(text: &str, name: &str, figures: &str) -> Option<String> {
    let old = found(text, name)?;
    let start = old.as_ptr() as usize - text.as_ptr() as usize;
    Some(format!("{}\n{}\n\n{}", &text[..start], figures.trim(), &text[start + old.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_replaced_where_they_are_and_nothing_else_is() {
        let page = "# Page\n<!-- a -->\nold\n<!-- end a -->\nbetween\n<!-- b -->\n<!-- end b -->\n";
        let page = replaced(page, "a", "new\n").unwrap();
        assert_eq!(
            page,
            "# Page\n<!-- a -->\n\nnew\n\n<!-- end a -->\nbetween\n<!-- b -->\n<!-- end b -->\n"
        );
        assert_eq!(replaced(&page, "a", "new").as_deref(), Some(page.as_str()));
        assert_eq!(found(&page, "b"), Some(""));
        assert_eq!(replaced(&page, "c", "new"), None);
    }
}
