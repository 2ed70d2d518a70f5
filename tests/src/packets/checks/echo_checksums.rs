//! The checksums of echo replies.

use anyhow::ensure;

use crate::packets::bindings::BalancerBinding;
use crate::packets::fixture::Fixture;
use crate::packets::frames::icmp::{EchoRequest, sum};
use crate::packets::frames::{Client, ETHERNET};

/// Sends pings with every value of a 16-bit word, in messages that are zero but for that and their
/// type, and judges each answer as its receiver does: all of it, checksum included, sums to all
/// ones (RFC 1071). That is not so for a message of nothing but zeros.
///
/// # Errors
///
/// The first answer that its receiver would drop.
pub fn every_answer_is_valid(balancer: &mut dyn BalancerBinding) -> anyhow::Result<()> {
    balancer.configure(&Fixture::new())?;
    for client in [Client::tcp4(), Client::tcp6()] {
        let ping = EchoRequest { rest: [0; 4], ..EchoRequest::new(&client) };
        for word in 0..=u16::MAX {
            let payload = word.to_be_bytes().to_vec();
            let (_, answer) =
                balancer.send(&EchoRequest { payload, ..ping.clone() }.frame().into())?;
            let packet = &answer[ETHERNET..];
            let valid = match client.is_v6() {
                // Of the pseudo-header (RFC 8200 section 8.1): the addresses, then length and next
                // header.
                true => {
                    sum(packet[8..].iter().chain(&[0, 10, 0, 58])) == 0xffff && packet[40] == 129
                }
                false => {
                    sum(&packet[20..]) == 0xffff && sum(&packet[..20]) == 0xffff && packet[20] == 0
                }
            };
            ensure!(valid, "to {word:#06x} the answer is {answer:02x?}");
        }
    }
    Ok(())
}
