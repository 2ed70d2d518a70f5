use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> Result<Vec<(IpNet, AclVerdict)>, String> {
    let mut to = Vec::new();
    parse(text.as_bytes(), Path::new("deny.txt"), AclVerdict::DENIED, &mut to)
        .map_err(|error| error.to_string())?;
    Ok(to)
}

/// The verdict of a trie of these entries on a source.
fn verdict(entries: &AclEntries, source: &str) -> AclVerdict {
    let key = PrefixKey::address(&source.parse::<IpAddr>().unwrap().into());
    let holding = entries.as_slice().iter().filter(|(prefix, _)| prefix.holds(&key));
    holding
        .max_by_key(|(prefix, _)| prefix.length)
        .map_or(AclVerdict::ALLOWED, |(_, verdict)| *verdict)
}

fn entries(deny: &[&str], allow: Option<&[&str]>) -> AclEntries {
    let typed = |prefixes: &[&str], says| {
        prefixes.iter().map(|text| (prefix(text).unwrap(), says)).collect::<Vec<_>>()
    };
    let allowed = typed(allow.unwrap_or_default(), AclVerdict::ALLOWED);
    AclEntries::new([typed(deny, AclVerdict::DENIED), allowed].concat(), allow.is_some())
}

#[test]
fn a_file_holds_prefixes_addresses_comments_and_empty_lines() {
    let text = "# scanners\n192.0.2.0/24\r\n\n 198.51.100.7 # one host\n2001:db8::/32\n2001:db8::1";
    let prefixes: Vec<_> =
        parsed(text).unwrap().iter().map(|(prefix, _)| prefix.to_string()).collect();
    assert_eq!(prefixes, ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32", "2001:db8::1/128"]);
}

#[test]
fn an_error_names_the_file_and_the_line_and_what_would_be_right() {
    for (line, remedy) in [
        ("example.net", "such as 192.0.2.0/24"),
        ("192.0.2.0/33", "such as 192.0.2.0/24"),
        ("192.0.2.1/24", "write 192.0.2.0/24"),
        ("2001:db8::1/32", "write 2001:db8::/32"),
        ("::ffff:192.0.2.0/120", "write the IPv4 prefix"),
        ("192.0.2.1 192.0.2.2", "one a line"),
    ] {
        let error = parsed(&format!("# first\n{line}\n192.0.2.0/24")).unwrap_err();
        assert!(error.starts_with("deny.txt:2: ") && error.contains(remedy), "{error}");
    }
    let error =
        parse(b"\xff\xfe", Path::new("deny.txt"), AclVerdict::DENIED, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("deny.txt:1: not text"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let files = AclFiles { deny: Some("/nonexistent/deny.txt".into()), allow: None };
    let error = AclEntries::read(&files).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/deny.txt: cannot read it"), "{error}");
}

#[test]
fn the_two_files_of_a_scope_have_at_most_4194304_prefixes() {
    assert_eq!(MAX_ACL_PREFIXES, 4_194_304);
    let mut typed =
        vec![(prefix("192.0.2.0/24").unwrap(), AclVerdict::DENIED); MAX_ACL_PREFIXES - 1];
    let mut more = |text: &str| {
        parse(text.as_bytes(), Path::new("allow.txt"), AclVerdict::ALLOWED, &mut typed)
    };
    more("# the last one\n198.51.100.7\n").unwrap();
    let error = more("\n# one too many\n2001:db8::/32\n").unwrap_err().to_string();
    assert!(error.starts_with("allow.txt:3: more than 4194304 prefixes"), "{error}");
    assert!(error.contains("merge some"), "{error}");
}

#[test]
fn a_file_has_at_most_256_mib() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deny.txt");
    let file = std::fs::File::create(&path).unwrap();
    let size = |bytes: u64| {
        file.set_len(bytes).unwrap();
        text(&path).map(|bytes| bytes.len() as u64)
    };
    assert_eq!(size(MAX_ACL_BYTES).unwrap(), 256 << 20);
    let error = size(MAX_ACL_BYTES + 1).unwrap_err().to_string();
    assert!(
        error.starts_with(&path.display().to_string())
            && error.contains("larger than 256 MiB; name a file"),
        "{error}"
    );
}

#[test]
fn without_an_allow_file_other_sources_are_allowed() {
    let entries = entries(&["192.0.2.0/24", "2001:db8::/32"], None);
    assert_eq!(
        (verdict(&entries, "192.0.2.9"), verdict(&entries, "192.0.3.9")),
        (AclVerdict::DENIED, AclVerdict::ALLOWED)
    );
    assert_eq!(
        (verdict(&entries, "2001:db8::9"), verdict(&entries, "2001:db9::9")),
        (AclVerdict::DENIED, AclVerdict::ALLOWED)
    );
}

#[test]
fn with_an_allow_file_other_sources_are_not_allowed_even_if_it_is_empty() {
    let one = entries(&[], Some(&["192.0.2.0/24"]));
    assert_eq!(
        (verdict(&one, "192.0.2.9"), verdict(&one, "192.0.3.9")),
        (AclVerdict::ALLOWED, AclVerdict::NOT_ALLOWED)
    );
    assert_eq!(verdict(&one, "2001:db8::9"), AclVerdict::NOT_ALLOWED);
    let none = entries(&[], Some(&[]));
    assert_eq!(
        (verdict(&none, "192.0.2.9"), verdict(&none, "::1")),
        (AclVerdict::NOT_ALLOWED, AclVerdict::NOT_ALLOWED)
    );
}

#[test]
fn the_longest_prefix_decides_and_deny_wins_between_equals() {
    let entries =
        entries(&["10.0.0.0/8", "10.1.2.0/24"], Some(&["10.1.0.0/16", "10.1.2.0/24", "10.1.2.3"]));
    for (source, expected) in [
        ("10.9.9.9", AclVerdict::DENIED),
        ("10.1.9.9", AclVerdict::ALLOWED),
        ("10.1.2.9", AclVerdict::DENIED),
        ("10.1.2.3", AclVerdict::ALLOWED),
        ("11.0.0.1", AclVerdict::NOT_ALLOWED),
    ] {
        assert_eq!(verdict(&entries, source), expected, "{source}");
    }
    assert_eq!(entries.prefixes(), 4, "duplicates are counted once");
}

#[test]
fn a_prefix_applies_to_its_own_family_only() {
    let v6 = entries(&["::/0"], None);
    assert_eq!(
        (verdict(&v6, "2001:db8::1"), verdict(&v6, "192.0.2.1")),
        (AclVerdict::DENIED, AclVerdict::ALLOWED)
    );
    let v4 = entries(&["0.0.0.0/0"], None);
    assert_eq!(
        (verdict(&v4, "2001:db8::1"), verdict(&v4, "192.0.2.1")),
        (AclVerdict::ALLOWED, AclVerdict::DENIED)
    );
    let allowed = entries(&[], Some(&["::/0"]));
    assert_eq!(
        (verdict(&allowed, "::1"), verdict(&allowed, "192.0.2.1")),
        (AclVerdict::ALLOWED, AclVerdict::NOT_ALLOWED)
    );
}

fn any_entries() -> impl Strategy<Value = AclEntries> {
    let line = (0..40u32, prop::sample::select(vec![8u8, 16, 24, 32]), any::<bool>());
    (prop::collection::vec(line, 0..30), any::<bool>()).prop_map(|(lines, only_allowed)| {
        let typed = lines.into_iter().map(|(number, length, denied)| {
            let address = Ipv4Addr::from(number.wrapping_mul(0x0101_0101));
            let prefix = IpNet::new(address.into(), length).unwrap().trunc();
            (prefix, if denied { AclVerdict::DENIED } else { AclVerdict::ALLOWED })
        });
        AclEntries::new(typed.collect(), only_allowed)
    })
}

proptest! {
    #[test]
    fn the_changes_from_one_acl_to_another_produce_the_other(old in any_entries(), new in any_entries()) {
        let mut map: BTreeMap<_, _> = old.as_slice().iter().copied().collect();
        let (put, remove) = old.changes(&new);
        for (key, listing) in &put {
            prop_assert_ne!(map.insert(*key, *listing), Some(*listing), "nothing is written twice");
        }
        for key in &remove {
            prop_assert!(map.remove(key).is_some(), "only what is there is removed");
        }
        prop_assert_eq!(map, new.as_slice().iter().copied().collect::<BTreeMap<_, _>>());
        prop_assert_eq!(old.changes(&old), (vec![], vec![]));
    }

    #[test]
    fn during_a_change_in_place_each_source_gets_the_old_or_the_new_verdict(old in any_entries(), new in any_entries(), source: u32) {
        // Changes of the default entries are not made in place.
        let (put, remove) = loader::in_order(old.changes(&new));
        let is_default = |key: &PrefixKey| default_keys().contains(key);
        prop_assume!(!put.iter().map(|(key, _)| key).chain(&remove).any(is_default));
        let source = Ipv4Addr::from(source % 40 * 0x0101_0101).to_string();
        let allowed = [verdict(&old, &source), verdict(&new, &source)];
        let mut map: BTreeMap<_, _> = old.as_slice().iter().copied().collect();
        let steps = put.into_iter().map(|(key, listing)| (key, Some(listing))).chain(remove.into_iter().map(|key| (key, None)));
        for (key, step) in steps {
            match step {
                Some(listing) => _ = map.insert(key, listing),
                None => _ = map.remove(&key),
            }
            let now = AclEntries { entries: map.iter().map(|(key, verdict)| (*key, *verdict)).collect(), prefixes: 0 };
            prop_assert!(allowed.contains(&verdict(&now, &source)), "{} of {:?}", source, allowed);
        }
    }
}
