//! Replaces generated blocks of a Markdown page.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// Replaces the block of `page` between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`. A
/// missing block is an error.
pub fn replace(page: &Path, name: &str, block: &str) -> anyhow::Result<()> {
    let text =
        fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = replaced(&text, name, block).with_context(|| {
        format!(
            "{} lacks the markers <!-- begin {name} --> and <!-- end {name} -->",
            page.display()
        )
    })?;
    fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

/// The block between the markers.
pub fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<!-- begin {name} -->\n"))?;
    rest.split_once(&format!("<!-- end {name} -->\n")).map(|(block, _)| block)
}

fn replaced(text: &str, name: &str, new: &str) -> Option<String> {
    let old = block(text, name)?;
    let start = old.as_ptr() as usize - text.as_ptr() as usize;
    Some(format!("{}\n{}\n\n{}", &text[..start], new.trim(), &text[start + old.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_block_is_replaced() {
        let page = "# Page\n<!-- begin a -->\nold\n<!-- end a -->\nbetween\n\
                    <!-- begin b -->\n<!-- end b -->\n";
        let page = replaced(page, "a", "new\n").unwrap();
        assert_eq!(
            page,
            "# Page\n<!-- begin a -->\n\nnew\n\n<!-- end a -->\nbetween\n\
             <!-- begin b -->\n<!-- end b -->\n"
        );
        assert_eq!(replaced(&page, "a", "new").as_deref(), Some(page.as_str()));
        assert_eq!(block(&page, "b"), Some(""));
        assert_eq!(replaced(&page, "c", "new"), None);
    }
}
