//! Reading, writing and the schema of documents agree.

use std::sync::LazyLock;

use jsonschema::Validator;

use super::*;
use crate::config::Document;
use crate::config::document::schema;

const REFERENCE: &str = include_str!("../../../../docs/configuration.md");

static SCHEMA: LazyLock<Value> = LazyLock::new(|| schema().to_value());

static VALIDATOR: LazyLock<Validator> =
    LazyLock::new(|| jsonschema::validator_for(&SCHEMA).expect("a JSON schema"));

/// Parses a document, writes it, and parses the result; both must give the same configuration, and
/// the schema must accept both texts. Returns the error of a document that is not valid.
fn round_trip(text: &str) -> Result<Config, ConfigError> {
    let config = parse(text)?;
    accepted(&serde_json::from_str(text).unwrap());
    let document = Document::parse(text, Path::new("edge.json")).unwrap();
    let written = serde_json::to_value(&document).unwrap();
    accepted(&written);
    assert_eq!(parse(&written.to_string()).as_ref(), Ok(&config), "{written:#}");
    Ok(config)
}

fn accepted(document: &Value) {
    let errors: Vec<_> = VALIDATOR.iter_errors(document).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "the schema refuses {document:#}: {errors:?}");
}

/// Valid values of optional fields and of fields with several forms.
fn valid_values() -> Vec<(&'static str, Value)> {
    let server_ids = json!([{ "backend": "web-1", "id": "C4605e" }]);
    vec![
        ("/instance", json!("edge-2")),
        ("/interfaces", json!(["eth0", "eth1"])),
        ("/priority", json!({})),
        ("/priority", json!({ "lb": 200 })),
        ("/priority", json!({ "lb": 1, "backend": 65_535 })),
        ("/underlay/gue_port", json!(5555)),
        ("/underlay/mtu", json!(1600)),
        ("/underlay/min_path_mtu", json!(596)),
        ("/underlay/path_mtu_routers", json!(["10.0.0.254", "2001:db8::/64"])),
        ("/underlay/balancers", json!(["192.0.2.0/24", "2001:db8::1"])),
        ("/underlay/v4_sources", json!("10.9.1.0/24")),
        ("/underlay/v6_sources", json!("2001:db8:9::/64")),
        ("/clamp_mss", json!(false)),
        ("/limits", json!({ "services": 7, "connections": 1024 })),
        ("/deny_file", json!("deny.txt")),
        ("/allow_file", json!("/etc/sluice/allow.txt")),
        (
            "/addresses",
            json!([{ "address": "203.0.113.10", "ping": "forward", "unlisted": "drop" }]),
        ),
        ("/addresses", json!([{ "address": "203.0.113.10/32", "allow_host_address": true }])),
        ("/addresses", json!([{ "address": "203.0.113.10", "allow_as_source": true }])),
        ("/backends/0/address", json!("2001:db8:1::11")),
        ("/backends/0/address", json!({ "v4": "10.0.1.11" })),
        ("/backends/0/draining", json!(true)),
        ("/services/0/table_size", json!(251)),
        ("/services/0/tracking", json!("always")),
        ("/services/0/hash", json!("source")),
        ("/services/0/encapsulation", json!("gue")),
        ("/services/0/udp_zero_checksum", json!(true)),
        (
            "/services/0/rate",
            json!({ "packets": 5, "source_new_connections": { "per_second": 5, "burst": 9 } }),
        ),
        ("/services/0/rate", json!({ "new_connections": 5, "source_packets": 6 })),
        ("/services/0/too_big", json!("jumbo")),
        ("/services/0/fragments", json!("drop")),
        (
            "/services/0/routes",
            json!([{ "sources": ["198.51.100.7", "2001:db8:99::/48"], "service": "six" }]),
        ),
        (
            "/services/0/quic",
            json!([{ "rotation": 6, "server_id_length": 3, "server_ids": server_ids }]),
        ),
        ("/services/0/deny_file", json!("deny.txt")),
        ("/services/0/allow_file", json!("allow.txt")),
        ("/services/0/vips", json!(["203.0.113.10:0/tcp", "[2001:db8:7::/48]:443/udp"])),
        ("/services/0/backends/1/weight", json!(0)),
        ("/services/1/too_big", json!("resegment")),
    ]
}

fn set(document: &mut Value, pointer: &str, value: Value) {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    match document.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[field.parse::<usize>().unwrap()] = value,
        object => object[field] = value,
    }
}

proptest! {
    #[test]
    fn valid_documents_survive_writing(values in prop::sample::subsequence(valid_values(), 0..12)) {
        let mut document = valid();
        for (pointer, value) in values {
            set(&mut document, pointer, value);
        }
        // Some values depend on others: an error is a document that is not valid.
        let _ = round_trip(&document.to_string());
    }

    #[test]
    fn the_schema_accepts_every_document_that_parses(which in any::<prop::sample::Index>(), value in any_json()) {
        let mut document = valid();
        let mut all = Vec::new();
        pointers(&document, String::new(), &mut all);
        *document.pointer_mut(&all[which.index(all.len())]).unwrap() = value;
        let _ = round_trip(&document.to_string());
    }
}

#[test]
fn each_valid_value_survives_writing() {
    for (pointer, value) in valid_values() {
        let mut document = valid();
        match pointer {
            "/services/0/udp_zero_checksum" => {
                set(&mut document, "/services/0/encapsulation", json!("gue"));
            }
            "/services/0/too_big" => set(&mut document, "/underlay/mtu", json!(1540)),
            _ => {}
        }
        set(&mut document, pointer, value);
        let config = round_trip(&document.to_string());
        assert!(config.is_ok(), "{pointer}: {config:?}");
    }
}

#[test]
fn the_example_file_survives_writing() {
    round_trip(EXAMPLE).unwrap();
}

/// The reference's examples are fields of the document or of a service.
#[test]
fn the_examples_of_the_reference_survive_writing() {
    let blocks = REFERENCE.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let mut count = 0;
    for block in blocks {
        let text = format!("{{ {} }}", block.replace("[ ... ]", "[{ \"name\": \"web-1\" }]"));
        let fields: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let mut document = valid();
        for (name, value) in fields.as_object().unwrap() {
            let parent = if ["rate", "quic"].contains(&name.as_str()) { "/services/0" } else { "" };
            set(&mut document, &format!("{parent}/{name}"), value.clone());
        }
        if document["underlay"].get("v6").is_none() {
            // No IPv6 packet can be sent, and the service "six" needs none.
            document["underlay"]["v6"] = json!("2001:db8::1");
        }
        round_trip(&document.to_string()).unwrap_or_else(|error| panic!("{error}: {text}"));
        count += 1;
    }
    assert!(count >= 4, "{count} examples found");
}

#[test]
#[rustfmt::skip] // One case a line reads as a table.
fn the_schema_refuses_wrong_forms() {
    for (pointer, value) in [
        ("/version", json!(2)),
        ("/instance", json!("Edge")),
        ("/interfaces", json!([])),
        ("/underlay", json!(["192.0.2.1"])),
        ("/underlay/mtu", json!(1279)),
        ("/underlay/v5", json!("192.0.2.1")),
        ("/limits", json!({ "services": 0 })),
        ("/backends/0/name", json!("web 1")),
        ("/backends/0/address", json!({})),
        ("/backends/0/address", json!(1)),
        ("/services/0/hash", json!("port")),
        ("/services/0/tracking", json!("transitions")),
        ("/services/0/table_size", json!(13)),
        ("/services/0/rate", json!({ "new_flows": 5 })),
        ("/services/0/rate", json!({ "packets": { "per_second": 5 } })),
        ("/services/0/backends/0/weight", json!(65_536)),
        ("/addresses", json!([{ "address": "203.0.113.10", "force": true }])),
    ] {
        let mut document = valid();
        set(&mut document, pointer, value);
        assert!(parse(&document.to_string()).is_err(), "{pointer}");
        assert!(!VALIDATOR.is_valid(&document), "the schema accepts {document:#}");
    }
}

/// The schema's objects, each with its path.
fn objects() -> Vec<(String, &'static Value)> {
    let definitions = SCHEMA["$defs"].as_object().unwrap();
    let definitions = definitions.iter().map(|(name, schema)| (name.clone(), schema));
    let objects = definitions.filter(|(_, schema)| schema.get("properties").is_some());
    objects.chain([("Document".to_owned(), &*SCHEMA)]).collect()
}

#[test]
fn every_field_and_object_of_the_schema_has_a_description() {
    for (object, schema) in objects() {
        assert!(schema["description"].is_string(), "{object}");
        assert_eq!(schema["additionalProperties"], json!(false), "{object}");
        for (field, schema) in schema["properties"].as_object().unwrap() {
            assert!(schema["description"].is_string(), "{object}.{field}");
        }
    }
    assert!(objects().len() >= 12, "{}", objects().len());
    let mut pointers = Vec::new();
    super::pointers(&SCHEMA, String::new(), &mut pointers);
    for pointer in pointers.iter().filter(|pointer| pointer.ends_with("/description")) {
        if let Some(text) = SCHEMA.pointer(pointer).unwrap().as_str() {
            // Documentation of wrapper types would have them.
            assert!(!text.contains(['\n', '[']), "{pointer}: {text}");
        }
    }
}

/// Adds the defaults that the schema names to `value`.
fn fill_defaults(schema: &Value, value: &mut Value) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").unwrap();
        return fill_defaults(&SCHEMA["$defs"][name], value);
    }
    if let Some(schema) = schema["anyOf"].get(0) {
        return fill_defaults(schema, value);
    }
    match value {
        Value::Array(items) => {
            items.iter_mut().for_each(|item| fill_defaults(&schema["items"], item));
        }
        Value::Object(fields) => {
            let Some(properties) = schema["properties"].as_object() else { return };
            for (name, schema) in properties {
                if let Some(default) = schema.get("default") {
                    fields.entry(name).or_insert(default.clone());
                }
                if let Some(value) = fields.get_mut(name) {
                    fill_defaults(schema, value);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_parser() {
    let mut document = valid();
    document["addresses"] = json!([{ "address": "203.0.113.10" }]);
    let expected = parse(&document.to_string()).unwrap();
    let mut filled = document.clone();
    filled["limits"] = json!({});
    fill_defaults(&SCHEMA, &mut filled);
    assert_eq!(parse(&filled.to_string()).unwrap(), expected);
    assert_eq!(filled["instance"], json!("edge"));
    assert_eq!(filled["limits"]["backends"], json!(4096));
    assert_eq!(filled["services"][0]["backends"][0]["weight"], json!(100));
    assert_eq!(filled["services"][0]["hash"], json!("flow"));
    assert_eq!(filled["addresses"][0]["ping"], json!("answer"));
}

#[test]
fn a_byte_order_mark_is_named() {
    let error = parse("\u{feff}{ \"version\": 1 }").unwrap_err().to_string();
    assert!(error.starts_with("conf/edge.json: it starts with a byte order mark (BOM)"), "{error}");
    assert!(error.ends_with("save it as UTF-8 without BOM"), "{error}");
}
