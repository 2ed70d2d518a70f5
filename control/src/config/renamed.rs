//! Names of earlier releases, which are refused with an error that has the new name.

/// A field that was renamed.
struct RenamedField {
    /// The object, by its name in the schema.
    object: &'static str,
    old: &'static str,
    new: &'static str,
}

/// All fields that were renamed.
const RENAMED_FIELDS: &[RenamedField] = &[
    RenamedField { object: "Address", old: "force", new: "allow_host_address" },
    RenamedField { object: "Rates", old: "new_flows", new: "new_connections" },
    RenamedField { object: "Rates", old: "source_new_flows", new: "source_new_connections" },
];

/// The present name of a field that was renamed.
pub(super) fn new_name(object: &str, old: &str) -> Option<&'static str> {
    let found = RENAMED_FIELDS.iter().find(|field| field.object == object && field.old == old);
    found.map(|field| field.new)
}

/// The error message for a word that another release of the document may support.
pub(super) fn unsupported_value(keyword: &str, word: &str) -> Option<&'static str> {
    match (keyword, word) {
        ("Tracking", "transitions") => Some(
            "tracking \"transitions\" is not supported; write \"always\" to keep flows in place while backends change, or \"never\"",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::config::Config;

    /// The smallest configuration with the field of an object set to `value`, and the field's path.
    fn with_field(object: &str, field: &str, value: Value) -> (String, String) {
        let mut document = json!({
            "version": 1, "interfaces": ["eth0"], "underlay": { "v4": "192.0.2.1" },
            "hash_key_file": "hash.key",
            "backends": [{ "name": "web-1", "address": "10.0.1.11" }],
            "services": [{ "name": "web", "vips": ["203.0.113.10:443/tcp"],
                           "backends": [{ "name": "web-1" }] }]
        });
        let (pointer, path) = match object {
            "Address" => {
                document["addresses"] = json!([{ "address": "203.0.113.10" }]);
                ("/addresses/0", "addresses[0]")
            }
            "Rates" => {
                document["services"][0]["rate"] = json!({});
                ("/services/0/rate", "services[0].rate")
            }
            other => panic!("no path for {other}"),
        };
        document.pointer_mut(pointer).unwrap()[field] = value;
        (document.to_string(), format!("{path}.{field}"))
    }

    #[test]
    fn every_old_field_name_is_refused_with_the_new_one() {
        for RenamedField { object, old, new } in RENAMED_FIELDS {
            let (text, path) = with_field(object, old, json!(true));
            let error = Config::parse(&text, Path::new("edge.json")).unwrap_err();
            assert_eq!(error.location(), Some(&*path));
            let message = format!("the field `{old}` was renamed; write `{new}`");
            assert_eq!(error.message(), message);
        }
    }

    #[test]
    fn every_new_field_name_is_accepted() {
        for RenamedField { object, new, .. } in RENAMED_FIELDS {
            let value = if *object == "Rates" { json!(50) } else { json!(true) };
            let (text, _) = with_field(object, new, value);
            assert!(Config::parse(&text, Path::new("edge.json")).is_ok(), "{object}.{new}");
        }
    }
}
