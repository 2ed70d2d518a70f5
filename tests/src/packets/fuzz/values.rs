//! Random addresses, ports and link addresses, mostly ones that the fixtures contain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use crate::packets::addresses::{
    BACKEND_V4, BACKEND_V6, ECHO_VIP_V4, ECHO_VIP_V6, OTHERS, RECEIVER, SENDER, UNDERLAY_V4,
    UNDERLAY_V6, VIP_V4, VIP_V6,
};

/// The VIP address of a family.
pub(super) fn vip(v6: bool) -> IpAddr {
    if v6 { VIP_V6.into() } else { VIP_V4.into() }
}

/// The VIP address of a family that forwards echo requests in some fixtures.
pub(super) fn echo_vip(v6: bool) -> IpAddr {
    if v6 { ECHO_VIP_V6.into() } else { ECHO_VIP_V4.into() }
}

/// The backend's address of a family.
pub(super) fn backend(v6: bool) -> IpAddr {
    if v6 { BACKEND_V6.into() } else { BACKEND_V4.into() }
}

/// An address that a faulty lookup could match as a VIP address.
pub(super) fn near_vip(rng: &mut Rng, v6: bool) -> IpAddr {
    if !v6 {
        return Ipv4Addr::from_bits(VIP_V4.to_bits() ^ 1 << rng.u32(..32)).into();
    }
    match rng.u8(..3) {
        0 => VIP_V4.to_ipv6_mapped().into(),
        1 => Ipv6Addr::from_bits(VIP_V4.to_bits().into()).into(),
        _ => Ipv6Addr::from_bits(VIP_V6.to_bits() ^ 1 << rng.u32(..128)).into(),
    }
}

/// One of 17 clients: few, so that flows occur again. ACLs and routes of the fixtures hold some of
/// them; the last one is outside the prefix of the others.
pub(super) fn client(rng: &mut Rng, v6: bool) -> IpAddr {
    match (rng.u16(..17), v6) {
        (16, true) => Ipv6Addr::new(0x2001, 0xdb8, 0x98, 0, 0, 0, 0, 7).into(),
        (16, false) => Ipv4Addr::new(198, 51, 99, 7).into(),
        (number, true) => Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, number).into(),
        (number, false) => Ipv4Addr::new(198, 51, 100, number as u8).into(),
    }
}

/// Special addresses, underlay addresses and random ones.
pub(super) fn any(rng: &mut Rng, v6: bool) -> IpAddr {
    if v6 {
        match rng.u8(..8) {
            0 => Ipv6Addr::UNSPECIFIED,
            1 => Ipv6Addr::LOCALHOST,
            2 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            3 => UNDERLAY_V6,
            4 => Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, rng.u16(..9)),
            5 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, rng.u16(..9)),
            6 => VIP_V6,
            _ => Ipv6Addr::from_bits(rng.u128(..)),
        }
        .into()
    } else {
        match rng.u8(..8) {
            0 => Ipv4Addr::UNSPECIFIED,
            1 => Ipv4Addr::LOCALHOST,
            2 => Ipv4Addr::new(224, 0, 0, 1),
            3 => UNDERLAY_V4,
            4 => Ipv4Addr::new(10, 0, 1, rng.u8(..9)),
            5 => Ipv4Addr::BROADCAST,
            6 => VIP_V4,
            _ => Ipv4Addr::from_bits(rng.u32(..)),
        }
        .into()
    }
}

/// A destination port, mostly that of a service.
pub(super) fn port(rng: &mut Rng) -> u16 {
    match rng.u8(..20) {
        0..=7 => 443,
        8..=14 => 53,
        15 => 80,
        16 => 22,
        17 => [0, 22, 6080, 4789, 0xbb01, 0x3500, 65_535][rng.usize(..7)],
        18 => 443 ^ 1 << rng.u16(..16),
        _ => rng.u16(..),
    }
}

/// The link addresses of a frame.
pub(super) fn link(rng: &mut Rng) -> [u8; 12] {
    let receiver = match rng.u8(..40) {
        0 => OTHERS[rng.usize(..OTHERS.len())],
        1 => [rng.u8(..), rng.u8(..), 0, 0, 0, rng.u8(..)],
        _ => RECEIVER,
    };
    let mut both = [0; 12];
    both[..6].copy_from_slice(&receiver);
    both[6..].copy_from_slice(&SENDER);
    both
}

/// A boundary value.
pub(super) fn extreme8(rng: &mut Rng) -> u8 {
    [0, 1, 4, 5, 6, 7, 8, 0x0f, 0x10, 0x3f, 0x40, 0x45, 0x46, 0x4f, 0x60, 0x7f, 0x80, 0xfe, 0xff]
        [rng.usize(..19)]
}

/// A boundary value of two bytes.
pub(super) fn extreme16(rng: &mut Rng) -> u16 {
    [
        0, 1, 7, 8, 19, 20, 27, 28, 39, 40, 41, 0x7f, 0xff, 0x100, 1500, 0x7fff, 0x8000, 0xfff0,
        0xfffe, 0xffff,
    ][rng.usize(..20)]
}
