//! Expected outer headers of a packet to a backend.

use std::net::IpAddr;

use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;

use super::gue;
use super::ip::{Fragmentation, Ip};
use super::lookup::Oracle;
use crate::packets::expectation::{Expectation, Forwarded};
use crate::packets::frames::{self, Frame};

/// The backend of a packet and how it is encapsulated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) service: u32,
    pub(super) backend: u16,
    pub(super) hint: u16,
    pub(super) options: VipOptions,
    /// The hash of the flow.
    pub(super) hash: u64,
}

impl Oracle {
    /// The frame with its outer header. `length` is that of the packet, `largest` that of its
    /// largest segment. An error is the MTU less the outer header for a packet that is too long, or
    /// another reason.
    pub(super) fn encapsulated(
        &self,
        frame: &Frame,
        ip: &Ip,
        Path { service, backend: chosen, hint, options, hash }: Path,
        (length, largest): (usize, usize),
        is_syn: bool,
    ) -> Result<Expectation, Result<usize, Reason>> {
        let backend = self.fixture.backends.get(&chosen);
        let (v4, v6) = backend.map_or((None, None), |backend| (backend.v4, backend.v6));
        if v4.is_none() && v6.is_none() {
            return Err(Err(Reason::BackendWithoutAddress));
        }
        let (_, mtu) = backend.and_then(|backend| backend.next_hop).ok_or(Err(Reason::NoRoute))?;
        let mut outer = match (ip.source, v4, v6) {
            (IpAddr::V4(_), Some(v4), _) => frames::outer_v4(v4, ip.tos, hint, length),
            (IpAddr::V6(_), _, Some(v6)) => frames::outer_v6(v6, ip.tos, hint, length),
            (IpAddr::V4(_), None, Some(v6)) => frames::outer_v6_of_v4(v6, ip.tos, hint, length),
            (IpAddr::V6(_), Some(v4), None) => frames::outer_v4_of_v6(v4, ip.tos, hint, length),
            (_, None, None) => return Err(Err(Reason::BackendWithoutAddress)),
        };
        if options.has(VipOptions::GUE) {
            outer = gue::headers(
                &outer,
                &frame.bytes[ip.start..][..length],
                ip,
                frame.segment_size != 0,
                hash,
            );
        }
        // A TCP stream can be resegmented: each segment becomes shorter by the outer header.
        // Fragments are never merged.
        let smaller = self.has_option(service, VipOptions::RESEGMENT)
            && ip.protocol == 6
            && ip.fragmentation == Fragmentation::Whole
            && !frame.vlan
            && ip.start == 14
            && ip.header == if ip.source.is_ipv4() { 20 } else { 40 }
            && frame.segment_size as usize > outer.len() + 64
            && largest <= mtu as usize;
        if largest + outer.len() > mtu as usize && !smaller {
            return Err(Ok((mtu as usize).saturating_sub(outer.len())));
        }
        if options.has(VipOptions::GUE) {
            gue::check(&outer, options).map_err(Err)?;
        }
        Ok(Expectation::Forward(Forwarded {
            bytes: frames::encapsulated_from(&frame.bytes, ip.start, &outer),
            service,
            backend: chosen,
            packets: frame.segments.max(1).into(),
            length: length as u64,
            is_syn,
        }))
    }
}

/// The reason for a drop without an ICMP error.
pub(super) fn drop_reason(room: Result<usize, Reason>) -> Reason {
    room.map_or_else(|reason| reason, |_| Reason::TooBig)
}
