//! The packet path on the wire: the program attached to an interface at TC ingress, frames injected
//! at the other end of it.
//!
//! Unlike `BPF_PROG_TEST_RUN` this makes merged packets that the kernel recognises as such, packets
//! whose bytes lie outside the linear part of their buffer, VLAN tags beside the bytes, and frames
//! that end anywhere; and redirects happen.

mod link;
mod redirect;
mod socket;

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use etherparse::{SlicedPacket, TransportSlice};
use ipnet::IpNet;
use link::{Arrived, IN, NEXT_HOP, OUT};
use sluice_datapath::Reason;
use sluice_datapath::abi::VipOptions;
use socket::{Captured, Offload};

use super::test_run::{BalancerHook, TestRunBackend, TestRunBalancer, pool};
use crate::packets::bindings::{BalancerBinding, ClampBinding, DecapBinding};
use crate::packets::expectation::{Action, BalancerCounters, DecapCounters};
use crate::packets::fixture::{Fixture, HostFixture};
use crate::packets::frames::{self, Frame};

pub use link::Link;

/// The tag of frames that have one beside their bytes: 802.1Q, VLAN 5.
const TAG: (u16, u16) = (0x8100, 5);
/// Bytes of the two link addresses.
const ADDRESSES: usize = 12;

/// The balancer's program at TC, on the wire.
pub struct WireBalancer<'a> {
    loaded: &'a mut TestRunBalancer,
    link: &'a mut Link,
    /// Bytes of a frame's head that are asked to be in the linear part of its buffer, the rest
    /// behind it; `None` for all of it. The kernel keeps frames below a memory page in one piece.
    pub linear: Option<u16>,
    /// Whether frames have a transport checksum that is still to be completed, as those of a
    /// virtual machine or a local sender do. Merged ones always have.
    pub partial: bool,
    /// The MTU towards backends, where some service has merged segments cut smaller.
    resegments: Option<u32>,
}

impl WireBalancer<'_> {
    /// Lends a program to a test, attached to the link while it runs.
    ///
    /// # Errors
    ///
    /// The test's own, or what the kernel refused.
    pub fn lend<T>(
        link: &mut Link,
        test: impl FnOnce(WireBalancer<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        pool::lend(BalancerHook::Tc, |loaded| {
            link.attach(loaded.program())?;
            let outcome = test(WireBalancer {
                loaded,
                link,
                linear: None,
                partial: false,
                resegments: None,
            })?;
            // Before another link gets the program: it would count what comes to this one, too.
            link.detach()?;
            Ok(outcome)
        })
    }

    /// As [`Link::refuses`].
    pub fn refuses(&self, frame: &Frame) -> Option<&'static str> {
        self.link.refuses(frame)
    }
}

impl BalancerBinding for WireBalancer<'_> {
    fn configure(&mut self, fixture: &Fixture) -> anyhow::Result<()> {
        let mtus =
            fixture.backends.values().filter_map(|backend| backend.next_hop).map(|(_, mtu)| mtu);
        let asked = fixture.vip_options.values().any(|options| options.has(VipOptions::RESEGMENT));
        self.resegments = mtus.min().filter(|_| asked);
        self.loaded.configure(fixture)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        exchange(self.link, frame, self.linear, self.partial, self.resegments)
    }

    fn counters(&self) -> anyhow::Result<BalancerCounters> {
        let mut counters = self.loaded.counters()?;
        without_markers(&mut counters.reasons, self.link.markers())?;
        Ok(counters)
    }

    fn accepts(&self, frame: &Frame) -> bool {
        can_carry(frame)
    }

    fn forward_action(&self) -> Action {
        Action::Redirect
    }

    fn reply_action(&self) -> Action {
        Action::SendBack
    }

    fn refuses_merged(&self) -> bool {
        false
    }
}

/// The backend's program, on the wire.
pub struct WireBackend<'a> {
    loaded: TestRunBackend,
    link: &'a mut Link,
}

impl<'a> WireBackend<'a> {
    /// Loads the program over maps of its own and attaches it.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new(link: &'a mut Link) -> anyhow::Result<Self> {
        let loaded = TestRunBackend::new()?;
        link.attach(loaded.program())?;
        Ok(Self { loaded, link })
    }
}

impl DecapBinding for WireBackend<'_> {
    fn configure(&mut self, host: &HostFixture) -> anyhow::Result<()> {
        DecapBinding::configure(&mut self.loaded, host)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<(Action, Vec<u8>)> {
        exchange(self.link, frame, None, false, None)
    }

    fn counters(&self) -> anyhow::Result<DecapCounters> {
        let (total, mut reasons) = self.loaded.counters()?;
        without_markers(&mut reasons, self.link.markers())?;
        Ok((total, reasons))
    }

    fn refuses_merged(&self) -> bool {
        false
    }
}

/// The backend's program that clamps, on the wire: what it does to a packet does not depend on the
/// side of an interface on which it is.
pub struct WireClamp<'a> {
    loaded: TestRunBackend,
    link: &'a mut Link,
    /// As [`WireBalancer::linear`].
    pub linear: Option<u16>,
    /// As [`WireBalancer::partial`].
    pub partial: bool,
}

impl<'a> WireClamp<'a> {
    /// As [`WireBackend::new`].
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn new(link: &'a mut Link) -> anyhow::Result<Self> {
        let loaded = TestRunBackend::new()?;
        link.attach(loaded.clamp())?;
        Ok(Self { loaded, link, linear: None, partial: false })
    }
}

impl ClampBinding for WireClamp<'_> {
    fn configure(&mut self, vips: &[IpNet], largest: [u32; 2]) -> anyhow::Result<()> {
        ClampBinding::configure(&mut self.loaded, vips, largest)
    }

    fn send(&mut self, frame: &Frame) -> anyhow::Result<Vec<u8>> {
        let (action, bytes) = exchange(self.link, frame, self.linear, self.partial, None)?;
        ensure!(action == Action::Pass, "{action:?} instead of {:?}", Action::Pass);
        Ok(bytes)
    }

    fn clamped(&self) -> anyhow::Result<u64> {
        self.loaded.clamped()
    }
}

fn without_markers(reasons: &mut BTreeMap<Reason, u64>, markers: u64) -> anyhow::Result<()> {
    if markers == 0 {
        return Ok(());
    }
    let counted = reasons.entry(Reason::NotIp).or_default();
    ensure!(
        *counted >= markers,
        "only {counted} of {markers} markers are counted as {}",
        Reason::NotIp
    );
    *counted -= markers;
    reasons.retain(|_, count| *count != 0);
    Ok(())
}

/// Whether the kernel can be made to hold exactly this frame: it counts segments itself, and takes
/// the first tag out of the bytes, for which it wants two bytes behind it.
pub fn can_carry(frame: &Frame) -> bool {
    let tagged =
        matches!(frame.bytes.get(ADDRESSES..ADDRESSES + 2), Some([0x81, 0x00] | [0x88, 0xa8]));
    if tagged && !frame.vlan || frame.vlan && frame.bytes.len() < ADDRESSES + 4 {
        return false;
    }
    if frame.segment_size == 0 {
        return frame.segments <= 1;
    }
    !frame.vlan
        && merged(&frame.bytes).is_some_and(|merged| {
            /// Bytes of an Ethernet and an IPv6 header.
            const BEHIND_IPV6: usize = 14 + 40;

            let size = frame.segment_size as usize;
            // The kernel takes no merged datagrams from a packet socket whose headers it cannot
            // skip: those with extension headers.
            let skipped = merged.kind != Offload::UDP || merged.transport <= BEHIND_IPV6;
            skipped
                && merged.payload > size
                && merged.payload.div_ceil(size) == frame.segments as usize
        })
}

/// What a packet is made of that the kernel takes for a merged one.
struct Merged {
    kind: u8,
    transport: usize,
    checksum: u16,
    payload: usize,
}

fn merged(bytes: &[u8]) -> Option<Merged> {
    let packet = SlicedPacket::from_ethernet(bytes).ok()?;
    let v4 = bytes.get(ADDRESSES..ADDRESSES + 2) == Some(&[0x08, 0x00]);
    let (kind, slice, checksum, payload) = match packet.transport? {
        TransportSlice::Tcp(tcp) => {
            (if v4 { Offload::TCP4 } else { Offload::TCP6 }, tcp.slice(), 16, tcp.payload().len())
        }
        TransportSlice::Udp(udp) => (Offload::UDP, udp.slice(), 6, udp.payload().len()),
        _ => return None,
    };
    let transport = slice.as_ptr() as usize - bytes.as_ptr() as usize;
    (transport + slice.len() == bytes.len()).then_some(Merged {
        kind,
        transport,
        checksum,
        payload,
    })
}

fn offload(frame: &Frame, linear: Option<u16>, partial: bool) -> anyhow::Result<Offload> {
    let linear = linear.unwrap_or(0).min(frame.bytes.len() as u16);
    let mut offload = Offload { linear, ..Offload::default() };
    if partial || frame.segment_size != 0 {
        let Some(merged) = merged(&frame.bytes) else {
            bail!("the frame has no transport header that ends with it")
        };
        offload.flags = Offload::PARTIAL;
        offload.checksum_start = merged.transport as u16;
        offload.checksum_offset = merged.checksum;
        if frame.segment_size != 0 {
            offload.kind = merged.kind;
            offload.segment_size = frame.segment_size as u16;
        }
    }
    Ok(offload)
}

/// Sends a frame through a program, and says what that did and what the frame became.
///
/// The link addresses are those of the table of cases again: that of the receiving device, and
/// after a redirect those that the frame came with, once it is clear that it left with those of the
/// route.
///
/// With `narrow`, an MTU, segments that do not fit it with the outer header must have become
/// smaller by that.
fn exchange(
    link: &mut Link,
    frame: &Frame,
    linear: Option<u16>,
    partial: bool,
    narrow: Option<u32>,
) -> anyhow::Result<(Action, Vec<u8>)> {
    let addresses = &frame.bytes[..ADDRESSES];
    let mut sent = frame.bytes.clone();
    if !frame.is_for_other_host() {
        sent[..IN.len()].copy_from_slice(&IN);
    }
    if frame.vlan {
        sent = tagged(&sent, TAG);
    }
    let offload = offload(frame, linear, partial)?;
    let Arrived { mut passed, mut left, mut returned } = link.send(offload, &sent)?;
    let (action, captured) = match (passed.pop(), left.pop(), returned.pop()) {
        (None, None, None) => return Ok((Action::Drop, frame.bytes.clone())),
        (Some(captured), None, None) => (Action::Pass, captured),
        (None, Some(captured), None) => (Action::Redirect, captured),
        (None, None, Some(captured)) => (Action::SendBack, captured),
        several => {
            bail!("the frame passed, left or came back, and not one of these alone: {several:02x?}")
        }
    };
    let more = [passed, left, returned].concat();
    ensure!(more.is_empty(), "one frame became several: {more:02x?}");
    if action == Action::SendBack {
        return returned_frame(frame, &offload, &sent, &captured).map(|bytes| (action, bytes));
    }
    let grown = captured.bytes.len() as i64 - frame.bytes.len() as i64;
    let bytes = bytes_of(frame, action, &sent, &captured)?;
    let mut offload = offload;
    if let (Some(mtu), Some(merged)) =
        (narrow.filter(|_| frame.segment_size != 0), merged(&frame.bytes))
    {
        let segment =
            frame.bytes.len() - frames::ETHERNET - merged.payload + frame.segment_size as usize;
        if segment as i64 + grown > i64::from(mtu) {
            offload.segment_size -= u16::try_from(grown)?;
        }
    }
    kept(
        &offload,
        &captured.offload,
        if captured.tag.is_some() && !frame.vlan { grown + 4 } else { grown },
    )?;
    Ok((action, [addresses, &bytes[ADDRESSES..]].concat()))
}

/// A frame that came back, as a case writes it: from the link address that it went to. Of what
/// stands beside its bytes, it keeps where a checksum is still to be completed.
fn returned_frame(
    frame: &Frame,
    offload: &Offload,
    sent: &[u8],
    captured: &Captured,
) -> anyhow::Result<Vec<u8>> {
    let bytes = bytes_of(frame, Action::SendBack, sent, captured)?;
    let came_longer = frame.bytes.len() > bytes.len();
    // Then it is an error with headers of its own in front of the quoted packet, and no longer
    // merged.
    let headers = if frame.bytes.get(ADDRESSES) == Some(&0x86) { 48 } else { 28 };
    let kept_offload =
        if came_longer { Offload { kind: 0, segment_size: 0, ..*offload } } else { *offload };
    kept(&kept_offload, &captured.offload, if came_longer { headers } else { 0 })?;
    let [to, from] = [&frame.bytes[..ADDRESSES / 2], &frame.bytes[ADDRESSES / 2..ADDRESSES]];
    Ok([from, to, &bytes[ADDRESSES..]].concat())
}

/// The captured frame as a case writes it: a tag is in the bytes unless the case holds it beside
/// them, where it must be the same.
fn bytes_of(
    frame: &Frame,
    action: Action,
    sent: &[u8],
    captured: &Captured,
) -> anyhow::Result<Vec<u8>> {
    let expected = match action {
        Action::Redirect => [NEXT_HOP, OUT].concat(),
        Action::SendBack => [&sent[ADDRESSES / 2..ADDRESSES], &sent[..ADDRESSES / 2]].concat(),
        _ => sent[..ADDRESSES].to_vec(),
    };
    ensure!(
        captured.bytes.starts_with(&expected),
        "link addresses are {:02x?} instead of {expected:02x?}",
        captured.bytes.get(..ADDRESSES)
    );
    match captured.tag {
        Some(tag) if frame.vlan => {
            ensure!(tag == TAG, "the tag beside the bytes is {tag:04x?} instead of {TAG:04x?}");
            Ok(captured.bytes.clone())
        }
        Some(tag) => Ok(tagged(&captured.bytes, tag)),
        None => {
            ensure!(
                !frame.vlan || action == Action::Redirect,
                "the frame lost the tag beside its bytes"
            );
            Ok(captured.bytes.clone())
        }
    }
}

/// What stands beside a frame's bytes must have gone with it; what starts somewhere must start as
/// much later as the frame grew.
fn kept(sent: &Offload, captured: &Offload, grown: i64) -> anyhow::Result<()> {
    let start =
        if sent.flags & Offload::PARTIAL == 0 { 0 } else { i64::from(sent.checksum_start) + grown };
    let expected = Offload {
        flags: sent.flags,
        kind: sent.kind,
        // How much is in the linear part is the kernel's affair.
        linear: captured.linear,
        segment_size: sent.segment_size,
        checksum_start: u16::try_from(start)?,
        checksum_offset: sent.checksum_offset,
    };
    ensure!(*captured == expected, "offloads became {captured:?} instead of {expected:?}");
    Ok(())
}

/// The frame with a tag behind its link addresses.
fn tagged(bytes: &[u8], (kind, content): (u16, u16)) -> Vec<u8> {
    let (addresses, rest) = bytes.split_at(ADDRESSES);
    [addresses, &kind.to_be_bytes(), &content.to_be_bytes(), rest].concat()
}
