use super::*;

fn spec() -> FilterSpec {
    FilterSpec { name: "sluice/edge/lb".into(), priority: 10 }
}

fn ours() -> Filter {
    Filter {
        priority: 10,
        handle: 1,
        protocol: ETH_P_ALL,
        chain: 0,
        kind: "bpf".into(),
        bpf_name: Some("sluice/edge/lb".into()),
        program_id: Some(7),
    }
}

#[test]
fn a_filter_is_ours_by_name_priority_and_handle() {
    assert!(spec().owns(&ours()));
    for other in [
        Filter { bpf_name: Some("sluice/other/lb".into()), ..ours() },
        Filter { bpf_name: None, ..ours() },
        Filter { kind: "flower".into(), ..ours() },
        Filter { handle: 2, ..ours() },
        Filter { protocol: 0x0800, ..ours() },
    ] {
        assert!(!spec().owns(&other), "{other:?}");
        assert!(spec().collides(&other), "{other:?}");
    }
}

#[test]
fn a_filter_of_another_priority_or_chain_does_not_collide() {
    for other in [Filter { priority: 11, ..ours() }, Filter { chain: 3, ..ours() }] {
        assert!(!spec().owns(&other) && !spec().collides(&other), "{other:?}");
    }
}

#[test]
fn a_classifier_without_elements_occupies_its_priority() {
    let head = Filter { handle: 0, bpf_name: None, program_id: None, ..ours() };
    assert_eq!(without_heads(vec![head.clone(), ours()]), [ours()]);
    assert_eq!(without_heads(vec![head.clone()]), std::slice::from_ref(&head));
    assert!(spec().collides(&head));
}

#[test]
fn priority_and_protocol_share_one_word_of_mixed_byte_order() {
    let message = filter_message(4, Direction::Egress, &spec());
    assert_eq!(
        message.header.info.to_ne_bytes(),
        (10u32 << 16 | u32::from(3u16.to_be())).to_ne_bytes()
    );
    let parsed = filter(&message);
    assert_eq!((parsed.priority, parsed.protocol, parsed.handle), (10, ETH_P_ALL, 1));
    assert_eq!(u32::from(message.header.parent), 0xffff_fff3);
}

#[test]
fn a_filter_is_displayed_with_kind_name_handle_and_protocol() {
    assert_eq!(ours().to_string(), "bpf filter \"sluice/edge/lb\" (handle 0x1, protocol 0x0003)");
}
