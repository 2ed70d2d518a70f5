//! The cost of a source ACL of a million prefixes: time to read the file, time to build the trie,
//! memory of the trie.
//!
//! Run by `make bench-acl`, as root. The prefixes are scattered over all addresses, the worst case
//! for a trie.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use sluice::daemon::acl::AclEntries;
use sluice::kernel::bpf::AclTrie;
use sluice_control::config::AclFiles;

const PREFIXES: u64 = 1_000_000;

/// Scatters numbers without repetition: odd multiples modulo a power of two.
fn spread(number: u64, bits: u32) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)
}

fn main() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("acl: skipped, because creating maps needs root (CAP_BPF)");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let address = |number| Ipv4Addr::from(spread(number, 32) as u32).to_string();
    let network = |number| format!("{}/24", Ipv4Addr::from((spread(number, 24) as u32) << 8));
    let v6_network =
        |number| format!("{}/48", Ipv6Addr::from(u128::from(spread(number, 48)) << 80));
    let kinds: [(&str, &dyn Fn(u64) -> String); 3] =
        [("IPv4 addresses", &address), ("IPv4 /24", &network), ("IPv6 /48", &v6_network)];
    println!(
        "{:<16} {:>10} {:>10} {:>10} {:>10} {:>12}",
        "kind", "prefixes", "read", "build", "free", "bytes each"
    );
    for (kind, line) in kinds {
        let mut text = String::new();
        for number in 0..PREFIXES {
            writeln!(text, "{}", line(number))?;
        }
        let file = directory.path().join("deny.txt");
        std::fs::write(&file, text)?;
        let start = Instant::now();
        let entries = AclEntries::read(&AclFiles { deny: Some(file), allow: None })?;
        let read = start.elapsed();
        let before = available()?;
        let start = Instant::now();
        let trie = AclTrie::new(entries.as_slice())?;
        let build = start.elapsed();
        let taken = before.saturating_sub(available()?);
        let start = Instant::now();
        drop(trie);
        let (prefixes, free) = (entries.prefixes() as u64, start.elapsed());
        println!(
            "{kind:<16} {prefixes:>10} {:>8.2} s {:>8.2} s {:>7.0} µs {:>12}",
            read.as_secs_f64(),
            build.as_secs_f64(),
            free.as_secs_f64() * 1e6,
            taken / prefixes
        );
        // The kernel frees a trie with a delay.
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    Ok(())
}

/// Available memory in bytes.
fn available() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    number
        .map(|kibibytes| kibibytes * 1024)
        .ok_or_else(|| anyhow::anyhow!("/proc/meminfo has no MemAvailable"))
}
