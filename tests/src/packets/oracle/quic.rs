//! The backend of a QUIC connection ID, by RFC 8999, RFC 9000, RFC 9369 and the QUIC-LB draft.

use super::Oracle;

impl Oracle {
    /// The backend of the server ID in a service's datagram, if the ID is known and the backend
    /// exists.
    pub(super) fn quic_backend(&self, service: u32, datagram: &[u8]) -> Option<u16> {
        let (id, room) = match datagram {
            // A long header: version, length of the destination connection ID, and the ID (RFC 8999
            // section 5.1).
            [first @ 0x80..=0xff, v0, v1, v2, v3, length, rest @ ..] => {
                let kind = (first & 0x30) >> 4;
                match (u32::from_be_bytes([*v0, *v1, *v2, *v3]), kind) {
                    // Initial and 0-RTT packets have an ID that the client chose (RFC 9000 section
                    // 17.2, RFC 9369 section 3.2).
                    (0x0000_0001, 0 | 1) | (0x6b33_43cf, 1 | 2) => return None,
                    _ => (rest, usize::from(*length)),
                }
            }
            // A short header: the ID follows the first octet (RFC 8999 section 5.2), at most 20
            // octets in version 1.
            [0..=0x7f, rest @ ..] => (rest, 20),
            _ => return None,
        };
        // A datagram with fewer bytes from the start of the ID is not a QUIC packet.
        let (rotation, rest) = id.get(..16)?.split_first()?;
        let (length, servers) = self.fixture.server_ids.get(&(service, rotation >> 5))?;
        let (backend, epoch) = servers.get(rest.get(..*length)?).filter(|_| room > *length)?;
        (self.epoch(*backend) == *epoch).then_some(*backend)
    }
}
