//! The kernel's packet generator (`Documentation/networking/pktgen.rst`), in the namespace of the thread that uses it.

use std::fs;

use anyhow::{Context as _, bail};

use super::site::{BALANCER_LINK, PORT, VIP, write};

/// Bytes of each frame, from the Ethernet header to the end of the payload.
pub(super) const FRAME: u64 = 128;

const DIRECTORY: &str = "/proc/thread-self/net/pktgen";

/// Sends UDP datagrams to the VIP, from as many source ports as there are flows, in turn, and waits until all are sent; the
/// microseconds that took. On a machine with one CPU, what becomes of each packet is over before the next one is made.
///
/// # Errors
///
/// What the kernel refused.
pub(super) fn send(packets: u64, flows: u16) -> anyhow::Result<u64> {
    const FIRST_PORT: u16 = 10_000;

    let thread = format!("{DIRECTORY}/kpktgend_0");
    set(&thread, "rem_device_all")?;
    set(&thread, "add_device out")?;
    let device = format!("{DIRECTORY}/out");
    for setting in [
        format!("count {packets}"),
        "clone_skb 0".to_owned(),
        "delay 0".to_owned(),
        format!("pkt_size {FRAME}"),
        "src_min 198.51.100.1".to_owned(),
        "src_max 198.51.100.1".to_owned(),
        format!("dst {VIP}"),
        format!("dst_mac {BALANCER_LINK}"),
        format!("udp_src_min {FIRST_PORT}"),
        // The end is not among them.
        format!("udp_src_max {}", FIRST_PORT + flows),
        format!("udp_dst_min {PORT}"),
        format!("udp_dst_max {PORT}"),
        "flag NO_TIMESTAMP".to_owned(),
    ] {
        set(&device, &setting)?;
    }
    set(&format!("{DIRECTORY}/pgctrl"), "start")?;
    let result = fs::read_to_string(&device).with_context(|| format!("cannot read {device}"))?;
    set(&thread, "rem_device_all")?;
    match sent(&result) {
        Some((microseconds, count)) if count == packets => Ok(microseconds),
        _ => bail!("the generator did not send {packets} packets: {result}"),
    }
}

/// The generator reads on behind what is written until it finds a line feed.
fn set(file: &str, value: &str) -> anyhow::Result<()> {
    write(file, &format!("{value}\n"))
}

/// Microseconds and packets from `Result: OK: 5000000(c4999000+d1000) usec, 100000 (128byte,0frags)`.
fn sent(result: &str) -> Option<(u64, u64)> {
    let (_, figures) = result.split_once("Result: OK: ")?;
    let (microseconds, rest) = figures.split_once('(')?;
    let (_, rest) = rest.split_once("usec, ")?;
    let (packets, _) = rest.split_once(' ')?;
    Some((microseconds.parse().ok()?, packets.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_result_of_a_run_is_read() {
        let text =
            "Params: count 100000\nResult: OK: 1020304(c1020000+d304) usec, 100000 (128byte,0frags)\n  96000pps\n";
        assert_eq!(super::sent(text), Some((1_020_304, 100_000)));
        assert_eq!(super::sent("Result: Idle"), None);
    }
}
