//! Text for terminals and logs.

use std::borrow::Cow;
use std::error::Error;

/// Escapes control characters and characters that reorder or hide text, which file names and names
/// in the kernel may contain: they would break a line, or control the terminal.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    escape_if(text, is_harmful)
}

/// As [`escape`], for a text of several lines.
pub(crate) fn escape_lines(text: &str) -> Cow<'_, str> {
    escape_if(text, |character| character != '\n' && is_harmful(character))
}

fn escape_if(text: &str, condition: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&condition) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if condition(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Control characters, and the invisible format characters that change the order or the width of
/// others (Unicode Technical Report 36, section 2.5.1).
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
}

/// A digest as text: 16 hexadecimal digits.
pub(crate) fn digest(digest: u64) -> String {
    format!("{digest:016x}")
}

/// An error and its causes in one line. A cause that a message contains already is left out: many
/// errors name their cause and have it as source, too.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if text != next && !text.contains(&format!(": {next}")) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn harmful_characters_are_escaped_and_others_stay() {
        assert_eq!(escape("a\n\u{1b}[31m\u{9b}\u{202e}b"), "a\\n\\u{1b}[31m\\u{9b}\\u{202e}b");
        assert_eq!(escape_lines("a\r\n\u{1b}b\n"), "a\\r\n\\u{1b}b\n");
        assert!(matches!(escape("größe 1 µs, \u{4f60}"), Cow::Borrowed(_)));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the map: {source}")]
    struct Named {
        source: io::Error,
    }

    #[test]
    fn each_cause_is_in_the_chain_once() {
        let error = || Named { source: io::Error::other("too many open files") };
        assert_eq!(chain(&error()), "cannot open the map: too many open files");
        let with_context = Err::<(), _>(error()).context("cannot start").unwrap_err();
        assert_eq!(
            chain(with_context.as_ref()),
            "cannot start: cannot open the map: too many open files"
        );
        let plain = Err::<(), _>(io::Error::other("no")).context("cannot attach").unwrap_err();
        assert_eq!(chain(plain.as_ref()), "cannot attach: no");
    }
}
