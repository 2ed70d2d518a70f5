//! Syntax of names. Errors are messages that describe the syntax.

use super::limits::{MAX_INSTANCE_NAME, MAX_INTERFACE_NAME, MAX_NAME};

/// The default instance name.
pub const DEFAULT_INSTANCE: &str = "edge";

/// Checks an instance name: 1 to 32 characters of `a-z0-9-`, because it becomes a directory name.
pub fn instance_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if (1..=MAX_INSTANCE_NAME).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not an instance name; use 1 to {MAX_INSTANCE_NAME} characters of a-z, 0-9 and '-'"
        ))
    }
}

/// Checks the name of a network interface by the kernel's rules (`dev_valid_name`). The interface
/// need not exist.
pub fn interface_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| !matches!(byte, b'/' | b':' | 0 | 0xA0) && !is_space(byte);
    if (1..=MAX_INTERFACE_NAME).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(allowed)
    {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not an interface name; use 1 to {MAX_INTERFACE_NAME} bytes without spaces, '/' and ':', such as \"eth0\""
        ))
    }
}

/// C's `isspace`. It includes the vertical tab, unlike `is_ascii_whitespace`.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0B
}

/// Checks the name of a backend or service.
pub(super) fn name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not a name; use 1 to {MAX_NAME} characters of A-Z, a-z, 0-9, '.', '_' and '-'"
        ))
    }
}

/// The element of `known` that `name` may be a misspelling of.
pub(super) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The comparison takes time in proportion to the length.
    if name.len() > 4 * MAX_NAME {
        return None;
    }
    // A third of the characters may differ, at least one: "web1" is close to "web-1", "db" is not
    // close to "web".
    let most = (name.chars().count() / 3).max(1);
    known
        .map(|candidate| (strsim::osa_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_name_is_a_safe_directory_name() {
        for good in ["edge", "edge-2", "0", &"a".repeat(32)] {
            assert_eq!(instance_name(good), Ok(good.to_owned()));
        }
        for bad in ["", ".", "..", "a/b", "Edge", "a b", "é", "a_b", &"a".repeat(33)] {
            assert!(instance_name(bad).unwrap_err().contains("1 to 32 characters"), "{bad}");
        }
    }

    #[test]
    fn an_interface_name_follows_the_rules_of_the_kernel() {
        for good in ["eth0", "enp0s31f6", "br-lan.100", "a@b", "123456789012345"] {
            assert_eq!(interface_name(good), Ok(good.to_owned()));
        }
        for bad in
            ["", ".", "..", "a/b", "eth0:1", "a b", "a\tb", "a\u{b}b", "a\0", "1234567890123456"]
        {
            assert!(interface_name(bad).unwrap_err().contains("1 to 15 bytes"), "{bad:?}");
        }
    }

    #[test]
    fn a_misspelling_is_recognised_and_an_unrelated_name_is_not() {
        let known = ["web-1", "web-2", "db"];
        let closest = |name| closest(name, known.into_iter());
        assert_eq!(closest("web1"), Some("web-1"));
        assert_eq!(closest("wbe-2"), Some("web-2"));
        assert_eq!(closest("cache"), None);
    }
}
