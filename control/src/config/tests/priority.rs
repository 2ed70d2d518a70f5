//! Priorities of filters.

use serde_json::json;

use super::{parse, refused, valid, with};
use crate::config::Priority;

#[test]
fn the_priority_of_backends_follows_that_of_the_balancer() {
    let priority = |text: &str| parse(text).unwrap().priority();
    assert_eq!(priority(&valid().to_string()), Priority { lb: 100, backend: 101 });
    for (written, lb, backend) in [
        (json!({}), 100, 101),
        (json!({ "lb": 200 }), 200, 201),
        (json!({ "backend": 300 }), 100, 300),
        (json!({ "lb": 1, "backend": 65_535 }), 1, 65_535),
        (json!({ "lb": 65_534 }), 65_534, 65_535),
    ] {
        assert_eq!(priority(&with("/priority", written)), Priority { lb, backend });
    }
}

#[test]
fn a_priority_that_no_filter_can_have_is_refused() {
    for (written, field, words) in [
        (json!(100), "priority", "{ \"lb\": 100, \"backend\": 101 }"),
        (json!({ "lb": 0 }), "priority.lb", "a whole number from 1 to 65535"),
        (json!({ "backend": 65_536 }), "priority.backend", "a whole number from 1 to 65535"),
        (json!({ "lb": 65_535 }), "priority.lb", "write at most 65534"),
        (json!({ "lb": 7, "backend": 7 }), "priority.backend", "not larger than"),
        (json!({ "backend": 50 }), "priority.backend", "the balancer's priority, 100"),
    ] {
        refused(&with("/priority", written), Some(field), words);
    }
}
