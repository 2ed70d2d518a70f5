//! Sends a frame through the program and converts the result to the form of the cases.

use anyhow::{bail, ensure};

use super::link::{Arrived, IN, NEXT_HOP, OUT, VethLink};
use super::offload::{ADDRESSES, merged, offload};
use super::socket::{Captured, Offload};
use crate::packets::expectation::Action;
use crate::packets::frames::{self, Frame};

/// The VLAN tag of frames with a tag in metadata: 802.1Q, VLAN 5.
const TAG: (u16, u16) = (0x8100, 5);

/// Sends a frame through the program and returns the verdict and the resulting bytes. The link
/// addresses of the interfaces are checked and then replaced by those of the cases. With `narrow`,
/// an MTU, segments that exceed it with the outer header must have become shorter by the outer
/// header.
pub(super) fn exchange(
    link: &mut VethLink,
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
        (None, None, Some(captured)) => (Action::TransmitBack, captured),
        several => {
            bail!(
                "the frame was passed, redirected and transmitted, not only one of these: {several:02x?}"
            )
        }
    };
    let more = [passed, left, returned].concat();
    ensure!(more.is_empty(), "one frame became several: {more:02x?}");
    if action == Action::TransmitBack {
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

/// A frame that was transmitted through the receiving interface, in the form of the cases. It keeps
/// the position of a partial checksum.
fn returned_frame(
    frame: &Frame,
    offload: &Offload,
    sent: &[u8],
    captured: &Captured,
) -> anyhow::Result<Vec<u8>> {
    let bytes = bytes_of(frame, Action::TransmitBack, sent, captured)?;
    let shortened = frame.bytes.len() > bytes.len();
    // An ICMP error has new headers before the quoted packet, and is not merged.
    let headers = if frame.bytes.get(ADDRESSES) == Some(&0x86) { 48 } else { 28 };
    let kept_offload =
        if shortened { Offload { kind: 0, segment_size: 0, ..*offload } } else { *offload };
    kept(&kept_offload, &captured.offload, if shortened { headers } else { 0 })?;
    let [to, from] = [&frame.bytes[..ADDRESSES / 2], &frame.bytes[ADDRESSES / 2..ADDRESSES]];
    Ok([from, to, &bytes[ADDRESSES..]].concat())
}

/// The captured frame in the form of the cases: with the VLAN tag in the bytes, unless the case has
/// it in metadata, where it must be unchanged.
fn bytes_of(
    frame: &Frame,
    action: Action,
    sent: &[u8],
    captured: &Captured,
) -> anyhow::Result<Vec<u8>> {
    let expected = match action {
        Action::Redirect => [NEXT_HOP, OUT].concat(),
        Action::TransmitBack => [&sent[ADDRESSES / 2..ADDRESSES], &sent[..ADDRESSES / 2]].concat(),
        _ => sent[..ADDRESSES].to_vec(),
    };
    ensure!(
        captured.bytes.starts_with(&expected),
        "link addresses are {:02x?} instead of {expected:02x?}",
        captured.bytes.get(..ADDRESSES)
    );
    match captured.tag {
        Some(tag) if frame.vlan => {
            ensure!(tag == TAG, "the VLAN tag in metadata is {tag:04x?} instead of {TAG:04x?}");
            Ok(captured.bytes.clone())
        }
        Some(tag) => Ok(tagged(&captured.bytes, tag)),
        None => {
            ensure!(
                !frame.vlan || action == Action::Redirect,
                "the frame lost its VLAN tag in metadata"
            );
            Ok(captured.bytes.clone())
        }
    }
}

/// Checks that the offloads stayed with the frame, with offsets moved by the growth of the frame.
fn kept(sent: &Offload, captured: &Offload, grown: i64) -> anyhow::Result<()> {
    let start =
        if sent.flags & Offload::PARTIAL == 0 { 0 } else { i64::from(sent.checksum_start) + grown };
    let expected = Offload {
        flags: sent.flags,
        kind: sent.kind,
        // The kernel chooses the length of the linear part.
        linear: captured.linear,
        segment_size: sent.segment_size,
        checksum_start: u16::try_from(start)?,
        checksum_offset: sent.checksum_offset,
    };
    ensure!(*captured == expected, "offloads became {captured:?} instead of {expected:?}");
    Ok(())
}

/// The frame with a VLAN tag after its link addresses.
fn tagged(bytes: &[u8], (kind, content): (u16, u16)) -> Vec<u8> {
    let (addresses, rest) = bytes.split_at(ADDRESSES);
    [addresses, &kind.to_be_bytes(), &content.to_be_bytes(), rest].concat()
}
