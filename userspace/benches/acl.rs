//! What a list of a million sources costs: time to read its file, time to build its trie, memory
//! that the trie takes.
//!
//! `make bench-lists`, as root. Prefixes are spread over all addresses, which is the worst case:
//! none is near another.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use sluice::daemon::acl::AclEntries;
use sluice::kernel::bpf::AclTrie;
use sluice_control::config::AclFiles;

const PREFIXES: u64 = 1_000_000;

/// Numbers apart from each other, each once: odd multiples modulo a power of two.
fn spread(number: u64, bits: u32) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)
}

fn main() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("lists: skipped: making maps needs root (CAP_BPF)");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let address = |number| Ipv4Addr::from(spread(number, 32) as u32).to_string();
    let network = |number| format!("{}/24", Ipv4Addr::from((spread(number, 24) as u32) << 8));
    let site = |number| format!("{}/48", Ipv6Addr::from(u128::from(spread(number, 48)) << 80));
    let kinds: [(&str, &dyn Fn(u64) -> String); 3] =
        [("IPv4 addresses", &address), ("IPv4 /24", &network), ("IPv6 /48", &site)];
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
        let begin = Instant::now();
        let entries = AclEntries::read(&AclFiles { deny: Some(file), allow: None })?;
        let read = begin.elapsed();
        let before = available()?;
        let begin = Instant::now();
        let trie = AclTrie::new(entries.as_slice())?;
        let build = begin.elapsed();
        let taken = before.saturating_sub(available()?);
        let begin = Instant::now();
        drop(trie);
        let (prefixes, free) = (entries.prefixes() as u64, begin.elapsed());
        println!(
            "{kind:<16} {prefixes:>10} {:>8.2} s {:>8.2} s {:>7.0} µs {:>12}",
            read.as_secs_f64(),
            build.as_secs_f64(),
            free.as_secs_f64() * 1e6,
            taken / prefixes
        );
        // The kernel frees a trie a while later.
        std::thread::sleep(std::time::Duration::from_secs(2));
    }
    Ok(())
}

/// Bytes of memory that are free for use.
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
