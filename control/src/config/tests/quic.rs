//! QUIC server IDs.

use super::*;

fn config(rotation: u8, length: u8, ids: Value) -> Value {
    json!({ "rotation": rotation, "server_id_length": length, "server_ids": ids })
}

fn one(backend: &str, id: &str) -> Value {
    json!([{ "backend": backend, "id": id }])
}

#[test]
fn server_ids_of_a_configuration_have_one_length() {
    let ids =
        json!([{ "backend": "web-1", "id": "c4605e" }, { "backend": "web-2", "id": "C4605F" }]);
    let longest = "00112233445566778899aabbccddee";
    let text =
        with("/services/0/quic", json!([config(0, 3, ids), config(6, 15, one("web-2", longest))]));
    let config = parse(&text).unwrap();
    let ids: Vec<_> =
        config.services()[0].quic().iter().flat_map(|quic| quic.server_ids()).collect();
    let octets: Vec<u8> = (0..15).map(|i| i * 0x11).collect();
    assert_eq!(
        ids,
        [(0, vec![0xc4, 0x60, 0x5e], 0), (0, vec![0xc4, 0x60, 0x5f], 1), (6, octets, 1)]
    );
    assert!(config.services()[1].quic().is_empty());
}

#[test]
fn a_backend_may_have_several_ids_and_an_id_may_be_in_several_configurations() {
    let ids = json!([{ "backend": "web-1", "id": "01" }, { "backend": "web-1", "id": "02" }]);
    assert!(
        parse(&with("/services/0/quic", json!([config(0, 1, ids.clone()), config(1, 1, ids)])))
            .is_ok()
    );
}

#[test]
fn wrong_quic_configurations_are_refused() {
    let refused = |quic: Value, location: &str, words: &str| {
        super::refused(
            &with("/services/0/quic", quic),
            Some(&format!("services[0].quic{location}")),
            words,
        );
    };
    let id = || one("web-1", "c4605e");
    refused(json!([config(7, 3, id())]), "[0].rotation", "a whole number from 0 to 6");
    refused(json!([config(0, 0, id())]), "[0].server_id_length", "a whole number from 1 to 15");
    refused(json!([config(0, 16, id())]), "[0].server_id_length", "a whole number from 1 to 15");
    refused(json!([config(0, 3, json!([]))]), "[0].server_ids", "at least one backend");
    refused(
        json!([{ "rotation": 0, "server_ids": id() }]),
        "[0]",
        "missing field `server_id_length`",
    );
    refused(json!([config(0, 3, json!(["c4605e"]))]), "[0].server_ids[0]", "\"id\": \"c4605e\"");
    refused(json!([3]), "[0]", "\"rotation\": 0");
    for wrong in ["c4605", "c4605g", "0xc460", "c4 60 5e", "é"] {
        refused(
            json!([config(0, 3, one("web-1", wrong))]),
            "[0].server_ids[0].id",
            "two hexadecimal digits",
        );
    }
    for wrong in ["", "c460", "c4605e00"] {
        refused(
            json!([config(0, 3, one("web-1", wrong))]),
            "[0].server_ids[0].id",
            "server_id_length is 3",
        );
    }
    let twice =
        json!([{ "backend": "web-1", "id": "c4605e" }, { "backend": "web-2", "id": "C4605E" }]);
    refused(
        json!([config(0, 3, twice)]),
        "[0].server_ids[1].id",
        "already at services[0].quic[0].server_ids[0].id",
    );
    let twice = json!([config(2, 3, id()), config(2, 3, id())]);
    refused(twice, "[1].rotation", "rotation 2 is already at services[0].quic[0].rotation");
}

#[test]
fn the_backend_of_a_server_id_is_a_backend_of_the_service() {
    let quic = |backend: &str| json!([config(0, 3, one(backend, "c4605e"))]);
    let refused = |service: usize, backend: &str, words: &str| {
        let text = with(&format!("/services/{service}/quic"), quic(backend));
        super::refused(
            &text,
            Some(&format!("services[{service}].quic[0].server_ids[0].backend")),
            words,
        );
    };
    refused(0, "web1", "did you mean \"web-1\"?");
    refused(0, "elsewhere", "with a weight of 0");
    // The backend exists, but not in this service.
    refused(1, "web-1", "the service has no backend \"web-1\"; did you mean \"web-2\"?");
}

#[test]
fn the_number_of_server_ids_is_limited_by_the_capacity_of_backends() {
    let ids = json!([{ "backend": "web-1", "id": "01" }, { "backend": "web-1", "id": "02" }]);
    let mut document = valid();
    document["limits"] = json!({ "backends": 2 });
    document["services"][0]["quic"] = json!([config(0, 1, ids)]);
    assert!(parse(&document.to_string()).is_ok());
    document["services"][1]["quic"] = json!([config(0, 1, one("web-2", "03"))]);
    refused(
        &document.to_string(),
        Some("services"),
        "3 QUIC server IDs are more than limits.backends, 2",
    );
}
