//! The table of maps in the documentation is that of the list in `sluice_datapath::abi::maps`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use sluice_datapath::LAYOUT_VERSION;
use sluice_datapath::abi::maps::{BACKEND, BALANCER, Limit, MapKind, MapSize, MapSpec, Writer};

const PAGE: &str = "../docs/decisions/0003-map-layout.md";
const START: &str = "<!-- map table: generated, see datapath/tests/map_table.rs -->\n";
const END: &str = "<!-- end of the map table -->\n";

#[test]
fn documentation_has_the_table_of_maps() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(START).expect("the page has the table's first marker");
    let (_, after) = rest.split_once(END).expect("the page has the table's last marker");
    let expected = format!("{before}{START}\n{}\n{END}{after}", tables());
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, expected).unwrap();
    } else {
        assert!(
            page == expected,
            "the map table in {PAGE} is out of date; regenerate it with \
             `UPDATE_DOCS=1 cargo test -p sluice-datapath --test map_table`"
        );
    }
}

/// A daemon adopts pinned maps of its own layout version, so that version has one set of maps.
///
/// If this fails because an existing map changed, increment `LAYOUT_VERSION`. A new map alone is
/// created by the next daemon. In both cases replace the digest.
#[test]
fn the_layout_version_has_these_maps() {
    const DIGEST: u64 = 2_041_104_087_152_172_921;

    let pinned = BALANCER.iter().chain(BACKEND).filter(|spec| spec.pinned);
    let layout: Vec<_> = pinned
        .map(|spec| (spec.name, spec.kind.name(), spec.key_size, spec.value_size, spec.size))
        .collect();
    // FNV-1a.
    let digest = format!("{layout:?}").bytes().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    assert_eq!((LAYOUT_VERSION, digest), (8, DIGEST), "{layout:#?}");
}

fn tables() -> String {
    let mut text = String::new();
    for (of, specs) in [("balancer", BALANCER), ("backend", BACKEND)] {
        let title = format!("| maps of the {of} | kind | content | entries | written by | |\n");
        text.push_str(&title);
        text.push_str("| --- | --- | --- | --- | --- | --- |\n");
        for spec in specs {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} | {} |",
                spec.name,
                spec.kind.name(),
                content(spec),
                entries(spec),
                writer(spec.writer),
                spec.doc.trim(),
            );
        }
        if of == "balancer" {
            text.push('\n');
        }
    }
    text
}

fn content(spec: &MapSpec) -> String {
    match (spec.kind, spec.types) {
        (MapKind::ArrayOfMaps, [key, value]) => format!("index → trie (`{key}` → `{value}`)"),
        (MapKind::ArrayOfMaps, [value]) => format!("index → array of `{value}`"),
        (MapKind::RingBuffer, [record]) => format!("`{record}`"),
        (_, [key, value]) => format!("`{key}` → `{value}`"),
        (_, types) => format!("index → `{}`", types.join(" ")),
    }
}

fn entries(spec: &MapSpec) -> String {
    let limit = |limit: Limit| format!("`limits.{}`", limit.name());
    let size = match spec.size {
        MapSize::Fixed(bytes) if spec.kind == MapKind::RingBuffer => {
            format!("{} KiB", bytes >> 10)
        }
        MapSize::Fixed(entries) | MapSize::Exactly(entries) => entries.to_string(),
        MapSize::AtCreation => "set at creation".to_owned(),
        MapSize::Per(of) => limit(of),
        MapSize::Indexed(of, 1) => format!("{} + 1", limit(of)),
        MapSize::Indexed(of, each) => format!("{each} × ({} + 1)", limit(of)),
    };
    if spec.pinned { size } else { format!("{size}, not pinned") }
}

fn writer(writer: Writer) -> &'static str {
    match writer {
        Writer::Daemon => "daemon",
        Writer::Program => "program",
        Writer::Capture => "`sluice capture`, program",
    }
}
