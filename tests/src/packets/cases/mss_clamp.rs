//! MSS clamping on packets that leave a backend: the MSS option of SYNs and SYN-ACKs from VIPs is
//! lowered so that segments fit with an outer header. Nothing else changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, ensure};
use etherparse::{EtherType, IpNumber, TcpHeader};
use ipnet::IpNet;

use super::expect::patched;
use crate::packets::addresses::{self, VIP_V4, VIP_V6};
use crate::packets::bindings::ClampBinding;
use crate::packets::frames::{self, Client, ETHERNET, Frame, SHORTEST};
use crate::packets::oracle::clamp::clamped;

/// The largest MSS of IPv4 and IPv6 in most cases: with outer headers, segments fit 1500 bytes.
pub const LARGEST: [u32; 2] = [1440, 1400];
/// Offset of the TCP header in the frames of both families.
const TCP: [usize; 2] = [ETHERNET + 20, ETHERNET + 40];

/// Frames that leave a backend, with the expected frame for each.
#[derive(Debug, Clone)]
pub struct ClampCase {
    /// A sentence that states the expected behaviour.
    pub name: &'static str,
    /// VIP addresses and prefixes of the backend.
    pub vips: Vec<IpNet>,
    /// The largest MSS of IPv4 and IPv6.
    pub largest: [u32; 2],
    /// Frames and the expected bytes after the program; `None` if the frame stays unchanged.
    pub frames: Vec<(Frame, Option<Vec<u8>>)>,
}

impl ClampCase {
    /// The same with only the frames that the binding accepts; `None` if no frame is left.
    #[must_use]
    pub fn only(mut self, accepts: impl Fn(&Frame) -> bool) -> Option<Self> {
        self.frames.retain(|(frame, _)| accepts(frame));
        (!self.frames.is_empty()).then_some(self)
    }

    /// Runs the case: verdict, bytes and counter after each frame.
    pub fn run(&self, clamper: &mut dyn ClampBinding) -> anyhow::Result<()> {
        clamper.configure(&self.vips, self.largest)?;
        let mut count = clamper.clamped()?;
        for (number, (frame, expected)) in self.frames.iter().enumerate() {
            count += u64::from(expected.is_some());
            let left = clamper.send(frame).with_context(|| format!("frame {number}"))?;
            let expected = expected.as_ref().unwrap_or(&frame.bytes);
            ensure!(
                left == *expected,
                "frame {number}, {:02x?}, became {left:02x?} instead of {expected:02x?}",
                frame.bytes
            );
            let counted = clamper.clamped()?;
            ensure!(
                counted == count,
                "frame {number}: the counter is {counted} instead of {count}"
            );
        }
        ensure!(!self.frames.is_empty(), "the case sends no frames");
        Ok(())
    }

    /// Checks that the oracle's expectations equal those of this case.
    pub fn agrees_with_oracle(&self) -> anyhow::Result<()> {
        for (number, (frame, expected)) in self.frames.iter().enumerate() {
            let judged = clamped(frame, &self.vips, self.largest);
            ensure!(
                judged == *expected,
                "{}: frame {number}: the case expects {expected:02x?}, the oracle {judged:02x?}",
                self.name
            );
        }
        Ok(())
    }
}

/// The IP packet of a segment from a VIP address, with valid checksums.
fn segment(source: IpAddr, options: &[u8], flags: impl Fn(&mut TcpHeader)) -> Vec<u8> {
    let mut header = TcpHeader::new(443, 40_001, 0x1122_3344, 64_000);
    (header.syn, header.ack) = (true, true);
    flags(&mut header);
    header.set_options_raw(options).expect("at most 40 bytes");
    let client: IpAddr = match source {
        IpAddr::V4(_) => Client::tcp4().source.ip(),
        IpAddr::V6(_) => Client::tcp6().source.ip(),
    };
    match (source, client) {
        (IpAddr::V4(source), IpAddr::V4(client)) => {
            let mut ip = frames::ipv4(source, client, 0, 64, IpNumber::TCP);
            ip.set_payload_len(header.header_len()).expect("it is short");
            ip.header_checksum = ip.calc_header_checksum();
            header.checksum = header.calc_checksum_ipv4(&ip, &[]).expect("it is short");
            [&ip.to_bytes()[..], &header.to_bytes()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(client)) => {
            let ip = frames::ipv6(source, client, 0, 0, 64, IpNumber::TCP, header.header_len());
            header.checksum = header.calc_checksum_ipv6(&ip, &[]).expect("it is short");
            [&ip.to_bytes()[..], &header.to_bytes()].concat()
        }
        _ => unreachable!("both addresses are of one family"),
    }
}

/// The frame of a segment with these options from the VIP address of a family, or from the address
/// next to it; with or without SYN.
pub fn handshake(v6: bool, vip: bool, syn: bool, options: &[u8]) -> Vec<u8> {
    let neighbour: [IpAddr; 2] = [
        Ipv4Addr::new(203, 0, 113, 11).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11).into(),
    ];
    let source = if vip { VIPS } else { neighbour }[usize::from(v6)];
    framed(&segment(source, options, |header| header.syn = syn))
}

/// The link address of frames that leave is that of another host.
fn framed(packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 6 { EtherType::IPV6 } else { EtherType::IPV4 };
    patched(frames::ethernet(ether_type, packet), 0, &addresses::OTHERS[0])
}

/// The frame of a SYN-ACK from the VIP address of a family, 0 for IPv4.
fn syn_ack(family: usize, options: &[u8]) -> Vec<u8> {
    framed(&segment(VIPS[family], options, |_| {}))
}

const VIPS: [IpAddr; 2] = [IpAddr::V4(VIP_V4), IpAddr::V6(VIP_V6)];

/// The MSS option.
fn mss(size: u32) -> [u8; 4] {
    let [high, low] = (size as u16).to_be_bytes();
    [2, 4, high, low]
}

/// A frame that the program changes.
fn becomes(frame: Vec<u8>, expected: Vec<u8>) -> (Frame, Option<Vec<u8>>) {
    (frame.into(), Some(expected))
}

/// A frame that stays unchanged.
fn stays(frame: Vec<u8>) -> (Frame, Option<Vec<u8>>) {
    (frame.into(), None)
}

/// SYN-ACKs of a family with options before and after an MSS option that is lowered.
fn around(family: usize, before: &[u8], after: &[u8]) -> (Frame, Option<Vec<u8>>) {
    let options = |size| [before, &mss(size), after].concat();
    becomes(syn_ack(family, &options(8960)), syn_ack(family, &options(LARGEST[family])))
}

fn both<T>(each: impl Fn(usize) -> Vec<T>) -> Vec<T> {
    [0, 1].into_iter().flat_map(each).collect()
}

/// A SYN-ACK with too large an MSS, and the expected frame.
fn plain(family: usize) -> (Vec<u8>, Vec<u8>) {
    (syn_ack(family, &mss(8960)), syn_ack(family, &mss(LARGEST[family])))
}

/// Every case of MSS clamping.
pub fn cases() -> Vec<ClampCase> {
    /// Other options of a SYN: SACK permitted, timestamps, window scale, and one of an unassigned
    /// kind.
    const OTHERS: [&[u8]; 4] =
        [&[4, 2], &[8, 10, 1, 2, 3, 4, 0, 0, 0, 0], &[3, 3, 7], &[254, 5, 2, 4, 9]];

    let case = |name, frames| ClampCase {
        name,
        vips: VIPS.map(IpNet::from).to_vec(),
        largest: LARGEST,
        frames,
    };
    vec![
        case("the MSS of a SYN-ACK from a VIP is lowered to the limit", {
            let sizes = |family| [LARGEST[family] + 1, 1460, 8960, 65_535];
            both(|family| {
                let expected = || syn_ack(family, &mss(LARGEST[family]));
                sizes(family).map(|size| becomes(syn_ack(family, &mss(size)), expected())).to_vec()
            })
        }),
        case("the MSS of a SYN from a VIP is lowered to the limit", {
            both(|family| {
                let syn =
                    |size| framed(&segment(VIPS[family], &mss(size), |header| header.ack = false));
                vec![becomes(syn(8960), syn(LARGEST[family]))]
            })
        }),
        case("an MSS below the limit is not raised", {
            both(|family| {
                [0, 1, 536, 1220, LARGEST[family] - 1, LARGEST[family]]
                    .map(|size| stays(syn_ack(family, &mss(size))))
                    .to_vec()
            })
        }),
        case(
            "the MSS option is found at every offset, also across the 16-bit words of the checksum",
            {
                both(|family| {
                    (0..=36).map(|before| around(family, &[1; 36][..before], &[])).collect()
                })
            },
        ),
        case("the MSS option is found among other options", {
            both(|family| {
                let one = OTHERS
                    .iter()
                    .flat_map(|other| [around(family, other, &[]), around(family, &[], other)]);
                let all = OTHERS.concat();
                one.chain([
                    around(family, &all, &[]),
                    around(family, &[], &all),
                    around(family, &all, &[1, 4, 2]),
                ])
                .collect()
            })
        }),
        case("only the first of several MSS options is lowered", {
            both(|family| {
                let options = |first| [mss(first), mss(8960)].concat();
                vec![becomes(
                    syn_ack(family, &options(8960)),
                    syn_ack(family, &options(LARGEST[family])),
                )]
            })
        }),
        case("a SYN-ACK without an MSS option stays unchanged", {
            both(|family| {
                let without = OTHERS.iter().map(|other| stays(syn_ack(family, other)));
                without
                    .chain([stays(syn_ack(family, &[])), stays(syn_ack(family, &[1; 40]))])
                    .collect()
            })
        }),
        case("segments without SYN stay unchanged", {
            both(|family| {
                let flags: [fn(&mut TcpHeader); 4] = [
                    |_| {},
                    |header| header.psh = true,
                    |header| header.fin = true,
                    |header| header.rst = true,
                ];
                let other = |flag: fn(&mut TcpHeader)| {
                    segment(VIPS[family], &mss(8960), |header| {
                        header.syn = false;
                        flag(header);
                    })
                };
                flags.map(|flag| stays(framed(&other(flag)))).to_vec()
            })
        }),
        case(
            "a packet from an address that is not a VIP address stays unchanged, also if it is to a VIP",
            {
                let others: [IpAddr; 4] = [
                    Ipv4Addr::new(203, 0, 113, 11).into(),
                    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11).into(),
                    VIP_V4.to_ipv6_mapped().into(),
                    Ipv4Addr::new(10, 0, 1, 3).into(),
                ];
                let from = others.map(|source| stays(framed(&segment(source, &mss(8960), |_| {}))));
                let to = both(|family| {
                    let (mut frame, _) = plain(family);
                    let (start, length) =
                        if family == 0 { (ETHERNET + 12, 4) } else { (ETHERNET + 8, 16) };
                    let (source, destination) = (start, start + length);
                    for byte in 0..length {
                        frame.swap(source + byte, destination + byte);
                    }
                    vec![stays(frame)]
                });
                from.into_iter().chain(to).collect()
            },
        ),
        ClampCase {
            name: "packets from every address of a VIP prefix are clamped",
            vips: ["198.18.4.0/22", "2001:db8:5::/48"]
                .map(|prefix| prefix.parse().expect("a prefix"))
                .to_vec(),
            largest: LARGEST,
            frames: {
                let from = |source: IpAddr, family: usize| {
                    let frame = |size| framed(&segment(source, &mss(size), |_| {}));
                    becomes(frame(8960), frame(LARGEST[family]))
                };
                let outside = |source: IpAddr| stays(framed(&segment(source, &mss(8960), |_| {})));
                vec![
                    from(Ipv4Addr::new(198, 18, 7, 255).into(), 0),
                    from(Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 9).into(), 1),
                    outside(Ipv4Addr::new(198, 18, 8, 0).into()),
                    outside(Ipv6Addr::new(0x2001, 0xdb8, 6, 0, 0, 0, 0, 9).into()),
                ]
            },
        },
        ClampCase {
            name: "packets of a family without a limit stay unchanged",
            vips: VIPS.map(IpNet::from).to_vec(),
            largest: [0, LARGEST[1]],
            frames: vec![stays(plain(0).0), becomes(plain(1).0, plain(1).1)],
        },
        case("an option with an invalid length ends the search", {
            both(|family| {
                let lengths = [0, 1, 2, 3, 5, 40, 255]
                    .map(|length| stays(syn_ack(family, &[2, length, 0x23, 0, 1, 1, 1, 1])));
                let before = [0, 1].map(|length| {
                    stays(syn_ack(family, &[&[8, length, 1, 1][..], &mss(8960)].concat()))
                });
                let beyond = [5, 9, 40, 255].map(|length| {
                    stays(syn_ack(family, &[&[8, length, 1, 1][..], &mss(8960)].concat()))
                });
                let ended = stays(syn_ack(family, &[&[0, 1, 1, 1][..], &mss(8960)].concat()));
                // The last byte of the header is the kind of an option without length.
                let cut = [&[1, 1, 1, 2][..], &[1, 1, 2, 4], &[1, 2, 4, 35]]
                    .map(|end| stays(syn_ack(family, end)));
                lengths.into_iter().chain(before).chain(beyond).chain([ended]).chain(cut).collect()
            })
        }),
        case("an MSS option that extends beyond the packet's length stays unchanged", {
            both(|family| {
                let options = |length: u8, size| {
                    [&[254, length, 1, 1, 1, 1][..], &mss(size), &[1, 1]].concat()
                };
                vec![
                    stays(syn_ack(family, &options(7, 8960))),
                    stays(syn_ack(family, &options(8, 8960))),
                    becomes(
                        syn_ack(family, &options(6, 8960)),
                        syn_ack(family, &options(6, LARGEST[family])),
                    ),
                    becomes(
                        syn_ack(family, &options(2, 8960)),
                        syn_ack(family, &options(2, LARGEST[family])),
                    ),
                ]
            })
        }),
        case("a frame truncated anywhere in its headers stays unchanged", {
            both(|family| {
                let frame = syn_ack(family, &[&[1; 12][..], &mss(8960), &[1; 8]].concat());
                (SHORTEST..frame.len()).map(|length| stays(frame[..length].to_vec())).collect()
            })
        }),
        case(
            "a packet with a TCP data offset beyond the packet or below 20 bytes stays unchanged",
            {
                both(|family| {
                    let at = TCP[family] + 12;
                    [0, 1, 4, 5, 7, 15]
                        .map(|words| stays(patched(plain(family).0, at, &[words << 4])))
                        .to_vec()
                })
            },
        ),
        case("a packet with an IP length that ends inside the TCP header stays unchanged", {
            let v4 = (0..44)
                .map(|length: u16| stays(patched(plain(0).0, ETHERNET + 2, &length.to_be_bytes())));
            let v6 = (0..24)
                .map(|length: u16| stays(patched(plain(1).0, ETHERNET + 4, &length.to_be_bytes())));
            v4.chain(v6).collect()
        }),
        case("a padded frame is clamped", {
            both(|family| {
                let padded = |bytes: Vec<u8>| [bytes, vec![0; 8]].concat();
                let (frame, expected) = plain(family);
                vec![becomes(padded(frame), padded(expected))]
            })
        }),
        case("a packet with IPv4 options is clamped", {
            let long = |size, options: usize| {
                let packet = segment(VIPS[0], &mss(size), |_| {});
                let mut header = etherparse::Ipv4Header::from_slice(&packet).expect("a header").0;
                header.options = vec![1; options].as_slice().try_into().expect("a valid length");
                header.set_payload_len(packet.len() - 20).expect("it is short");
                header.header_checksum = header.calc_header_checksum();
                framed(&[&header.to_bytes()[..], &packet[20..]].concat())
            };
            (4..=40)
                .step_by(4)
                .map(|options| becomes(long(8960, options), long(LARGEST[0], options)))
                .collect()
        }),
        case("a packet with IPv6 extension headers stays unchanged", {
            let with_header = |kind: u8| {
                let packet = segment(VIPS[1], &mss(8960), |_| {});
                let length = (packet.len() - 40 + 8) as u16;
                let head =
                    patched(patched(packet[..40].to_vec(), 4, &length.to_be_bytes()), 6, &[kind]);
                framed(&[&head[..], &[6, 0, 1, 4, 0, 0, 0, 0], &packet[40..]].concat())
            };
            [0, 43, 44, 60].map(|kind| stays(with_header(kind))).to_vec()
        }),
        case("a fragment stays unchanged", {
            let fragment = |flags: u16| {
                let mut packet = segment(VIPS[0], &mss(8960), |_| {});
                packet[6..8].copy_from_slice(&flags.to_be_bytes());
                packet[10..12].fill(0);
                let header = etherparse::Ipv4Header::from_slice(&packet).expect("a header").0;
                packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
                framed(&packet)
            };
            [0x2000, 1, 0x2001, 0x1fff].map(|flags| stays(fragment(flags))).to_vec()
        }),
        case("a packet with up to two VLAN tags is clamped, with or without a tag in metadata", {
            let tags = [(0x88a8, 7), (0x8100, 5), (0x8100, 6)];
            both(|family| {
                let (frame, expected) = plain(family);
                let in_metadata = |bytes: Vec<u8>| Frame { vlan: true, ..bytes.into() };
                vec![
                    becomes(
                        frames::tagged(&frame, &tags[1..2]),
                        frames::tagged(&expected, &tags[1..2]),
                    ),
                    becomes(
                        frames::tagged(&frame, &tags[..2]),
                        frames::tagged(&expected, &tags[..2]),
                    ),
                    stays(frames::tagged(&frame, &tags)),
                    (in_metadata(frame.clone()), Some(expected.clone())),
                    (
                        in_metadata(frames::tagged(&frame, &tags[1..2])),
                        Some(frames::tagged(&expected, &tags[1..2])),
                    ),
                ]
            })
        }),
        case("a packet other than TCP stays unchanged", {
            let udp = [Client::udp4(), Client::udp6()].map(|client| {
                let client =
                    Client { source: client.destination, destination: client.source, ..client };
                stays(framed(&client.packet()))
            });
            let protocol = [
                stays(patched(plain(0).0, ETHERNET + 9, &[17])),
                stays(patched(plain(1).0, ETHERNET + 6, &[17])),
            ];
            let arp = stays(patched(
                frames::ethernet(EtherType::ARP, &[1; 46]),
                0,
                &addresses::OTHERS[1],
            ));
            udp.into_iter().chain(protocol).chain([arp]).collect()
        }),
        case("clamping keeps the error of a wrong TCP checksum", {
            both(|family| {
                let wrong = |frame: Vec<u8>| {
                    let at = TCP[family] + 16;
                    let checksum = u16::from_be_bytes([frame[at], frame[at + 1]]);
                    // In ones' complement, adding 256 to the sum and to the result is the same.
                    let (sum, carry) = checksum.overflowing_add(0x0100);
                    patched(frame, at, &(sum + u16::from(carry)).to_be_bytes())
                };
                let (frame, expected) = plain(family);
                vec![becomes(wrong(frame), wrong(expected))]
            })
        }),
    ]
}
