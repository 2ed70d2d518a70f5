//! The checksums of echo replies.

use anyhow::ensure;

use crate::packets::bindings::BalancerBinding;
use crate::packets::fixture::Fixture;
use crate::packets::frames::icmp::{EchoRequest, sum};
use crate::packets::frames::{Client, ETHERNET};

/// Sends echo requests with every value of a 16-bit word in an otherwise zero message, and verifies
/// the checksum of each reply like a receiver: the sum over the message with its checksum is all
/// ones (RFC 1071), which excludes an all-zero message.
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
                // Pseudo-header (RFC 8200 section 8.1): the addresses, then length and next header.
                true => {
                    sum(packet[8..].iter().chain(&[0, 10, 0, 58])) == 0xffff && packet[40] == 129
                }
                false => {
                    sum(&packet[20..]) == 0xffff && sum(&packet[..20]) == 0xffff && packet[20] == 0
                }
            };
            ensure!(valid, "the reply to {word:#06x} is {answer:02x?}");
        }
    }
    Ok(())
}
