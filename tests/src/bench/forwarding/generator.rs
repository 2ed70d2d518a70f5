//! Sends packets as a network card's driver receives them: frames that no socket buffer holds yet.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use etherparse::PacketBuilder;

use super::site::{BALANCER_LINK, PORT, SOURCE, VIP, enter, index};
use crate::bench::baseline::{Baseline, Loaded, Way};
use crate::kernel::run_live;

/// Bytes of each frame, from the Ethernet header to the end of the payload.
pub(super) const FRAME: usize = 128;

/// UDP datagrams to the VIP from a number of source ports, which take turns.
pub(super) struct Generator {
    program: Loaded,
    frame: Vec<u8>,
}

impl Generator {
    /// A generator on the source.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub(super) fn new(flows: u16) -> anyhow::Result<Self> {
        const HEADERS: usize = 14 + 20 + 8;

        let client = Ipv4Addr::new(198, 51, 100, 1);
        let builder = PacketBuilder::ethernet2([0x02, 0, 0, 0, 0xbb, 0], BALANCER_LINK);
        let builder = builder.ipv4(client.octets(), VIP.octets(), 64).udp(0, PORT);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; FRAME - HEADERS])?;
        // The port changes, the checksum does not: RFC 768 lets a sender leave it out.
        frame[HEADERS - 2..HEADERS].fill(0);
        let headers = frame.first_chunk().copied().context("the frame holds its headers")?;
        let way = Way {
            interface: index(SOURCE, "out")?,
            headers,
            flows: flows.into(),
            ..Way::default()
        };
        Ok(Self { program: Loaded::new(Baseline::SendXdp, &way)?, frame })
    }

    /// Sends packets; nanoseconds of each, until the last one has been dropped somewhere, on a
    /// machine with one CPU.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub(super) fn send(&self, packets: u32) -> anyhow::Result<u32> {
        enter(SOURCE, || {
            run_live(self.program.descriptor(), &self.frame, packets)
                .context("the kernel refuses a live run")
        })
    }
}
