//! QUIC-LB server IDs (draft-ietf-quic-load-balancers-21, plaintext connection IDs).

use crate::abi::pod::pod;

/// Lengths of the server IDs of each QUIC-LB configuration: value of the array `QUIC_ID_LENGTHS`,
/// by service. Four bits per configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct QuicIdLengths(u32);
pod!(QuicIdLengths, 4);

impl QuicIdLengths {
    /// No configurations.
    pub const NONE: Self = Self(0);
    /// Maximum length of a server ID in octets. A longer ID would leave too few octets for the
    /// server's nonce in a connection ID of 20 octets.
    pub const MAX_LEN: u8 = 15;
    /// Number of configurations. The value 7 of the rotation bits marks connection IDs without a
    /// server ID.
    pub const ROTATIONS: u8 = 7;

    /// Adds a configuration. `rotation` is below [`Self::ROTATIONS`], `octets` is 1 to
    /// [`Self::MAX_LEN`].
    #[must_use]
    pub const fn with(self, rotation: u8, octets: u8) -> Self {
        Self(self.0 | ((octets as u32 & 0xf) << ((rotation as u32 & 7) << 2)))
    }

    /// Length in octets of a configuration's server IDs; 0 if the configuration does not exist.
    #[inline(always)]
    const fn get(self, rotation: u32) -> u32 {
        (self.0 >> (rotation << 2)) & 0xf
    }
}

/// A server ID of a service: key of the map `QUIC_SERVERS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct QuicServerKey {
    /// The service.
    pub service: u32,
    /// One octet with the rotation in the upper three bits and the length in the lower five, then
    /// the server ID, zero-padded.
    id: [u32; 4],
}
pod!(QuicServerKey, 20);

impl QuicServerKey {
    /// The key of a server ID; `None` unless the ID has 1 to [`QuicIdLengths::MAX_LEN`] octets.
    pub fn new(service: u32, rotation: u8, id: &[u8]) -> Option<Self> {
        let length = u8::try_from(id.len())
            .ok()
            .filter(|length| (1..=QuicIdLengths::MAX_LEN).contains(length))?;
        let mut octets = [0; 16];
        octets[0] = rotation << 5;
        octets[1..=id.len()].copy_from_slice(id);
        let first = [0, 8].map(|at| u64::from_ne_bytes(core::array::from_fn(|i| octets[at + i])));
        Self::from_connection_id(service, QuicIdLengths::NONE.with(rotation, length), first)
            .map(|(key, _)| key)
    }

    /// The rotation, the server ID, zero-padded, and its length in octets.
    pub fn server_id(&self) -> (u8, [u8; 15], usize) {
        let mut octets = [0; 16];
        for (four, word) in octets.chunks_exact_mut(4).zip(self.id) {
            four.copy_from_slice(&word.to_ne_bytes());
        }
        let [head, id @ ..] = octets;
        (head >> 5, id, usize::from(head & 0xf))
    }

    /// The key of the server ID in a connection ID, and the length of the server ID in octets.
    /// `octets` holds the first 16 octets of the connection ID in memory order.
    #[inline(always)]
    pub(crate) fn from_connection_id(
        service: u32,
        lengths: QuicIdLengths,
        octets: [u64; 2],
    ) -> Option<(Self, u32)> {
        let (high, low) = (u64::from_be(octets[0]), u64::from_be(octets[1]));
        let rotation = (high >> 61) as u32;
        let length = lengths.get(rotation);
        if length == 0 {
            return None;
        }
        // Bits after the server ID, at most 112.
        let spare = 15_u32.wrapping_sub(length).wrapping_mul(8);
        let (keep_high, keep_low) =
            if spare < 64 { (u64::MAX, u64::MAX << spare) } else { (u64::MAX << (spare & 63), 0) };
        let head = u64::from((rotation << 5) | length) << 56;
        let high = ((high & keep_high & (u64::MAX >> 8)) | head).to_be();
        let low = (low & keep_low).to_be();
        // In memory order.
        let id = if cfg!(target_endian = "big") {
            [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32]
        } else {
            [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32]
        };
        Some((Self { service, id }, length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first_octets(octets: &[u8]) -> [u64; 2] {
        let mut padded = [0xa5; 16];
        padded[..octets.len()].copy_from_slice(octets);
        let (high, low) = padded.split_at(8);
        [high, low].map(|half| u64::from_ne_bytes(half.try_into().expect("eight octets")))
    }

    #[test]
    fn server_ids_of_the_drafts_plaintext_connection_ids_are_found() {
        let ids: [(u8, &[u8], &[u8]); 2] = [
            (0, &[0xc4, 0x60, 0x5e], &[0x07, 0xc4, 0x60, 0x5e, 0x45, 0x04, 0xcc, 0x4f]),
            (
                1,
                &[0x35, 0x0d, 0x28, 0xb4, 0x20],
                &[0x2a, 0x35, 0x0d, 0x28, 0xb4, 0x20, 0x03, 0x48, 0x7d, 0x97, 0x0b],
            ),
        ];
        let lengths = ids.iter().fold(QuicIdLengths::NONE, |all, (rotation, id, _)| {
            all.with(*rotation, id.len() as u8)
        });
        for (rotation, id, connection_id) in ids {
            let (key, length) =
                QuicServerKey::from_connection_id(9, lengths, first_octets(connection_id))
                    .expect("a configured rotation");
            assert_eq!((Some(key), length), (QuicServerKey::new(9, rotation, id), id.len() as u32));
        }
        assert_eq!(
            QuicServerKey::from_connection_id(9, lengths, first_octets(&[0xe7, 0xc4, 0x60, 0x5e])),
            None,
            "no server ID"
        );
        assert_eq!(
            QuicServerKey::from_connection_id(9, lengths, first_octets(&[0x47, 0xc4, 0x60, 0x5e])),
            None,
            "no such configuration"
        );
    }

    proptest! {
        #[test]
        fn a_key_depends_on_the_rotation_and_the_server_id_only(
            rotation in 0..7u8, id in prop::collection::vec(any::<u8>(), 1..=15), random: u8, padding: [u8; 15], other in 1..=15u8,
        ) {
            let key = QuicServerKey::new(3, rotation, &id).expect("a valid length");
            let (of, octets, length) = key.server_id();
            prop_assert_eq!((of, &octets[..length]), (rotation, &id[..]));
            prop_assert!(octets[length..].iter().all(|octet| *octet == 0));

            let mut connection_id = vec![(rotation << 5) | (random & 0x1f)];
            connection_id.extend(&id);
            connection_id.extend(&padding[id.len()..]);
            let lengths = QuicIdLengths::NONE.with(rotation, id.len() as u8).with((rotation + 1) % 7, other);
            prop_assert_eq!(QuicServerKey::from_connection_id(3, lengths, first_octets(&connection_id)), Some((key, id.len() as u32)));
            // With another length, the same octets are another server ID.
            let lengths = QuicIdLengths::NONE.with(rotation, other);
            let found = QuicServerKey::from_connection_id(3, lengths, first_octets(&connection_id)).expect("a configured rotation").0;
            prop_assert_eq!(found == key, usize::from(other) == id.len());
        }
    }

    #[test]
    fn an_empty_or_too_long_server_id_has_no_key() {
        assert_eq!(
            (QuicServerKey::new(1, 0, &[]), QuicServerKey::new(1, 0, &[0; 16])),
            (None, None)
        );
    }
}
