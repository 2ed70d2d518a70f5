//! Explicit congestion notification across a tunnel (RFC 6040).

use crate::abi::Reason;

/// The two ECN bits of a traffic class.
const MASK: u8 = 0b11;
/// Congestion experienced.
const CE: u8 = 0b11;
/// ECN-capable transport, codepoint 1.
const ECT_1: u8 = 0b01;

/// The traffic class of the outer header at encapsulation: DSCP and ECN copied (RFC 6040 section
/// 4.1, normal mode).
#[inline(always)]
pub const fn encapsulate(inner: u8) -> u8 {
    inner
}

/// The traffic class of the inner header after decapsulation (RFC 6040 section 4.2, figure 4).
///
/// # Errors
///
/// [`Reason::EcnForbidden`] when the tunnel marked congestion on a packet whose transport cannot
/// tell its sender.
#[inline(always)]
pub const fn decapsulate(outer: u8, inner: u8) -> Result<u8, Reason> {
    match (outer & MASK, inner & MASK) {
        (CE, 0) => Err(Reason::EcnForbidden),
        (CE, _) => Ok(inner | CE),
        (ECT_1, 0b10) => Ok((inner & !MASK) | ECT_1),
        _ => Ok(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040, figure 4: rows are the inner field, columns the outer one (Not-ECT, ECT(0),
    /// ECT(1), CE).
    #[test]
    fn decapsulation_follows_the_table_of_rfc_6040() {
        const NOT: u8 = 0;
        const ECT0: u8 = 2;
        const ECT1: u8 = 1;
        let table = [
            (NOT, [Ok(NOT), Ok(NOT), Ok(NOT), Err(Reason::EcnForbidden)]),
            (ECT0, [Ok(ECT0), Ok(ECT0), Ok(ECT1), Ok(CE)]),
            (ECT1, [Ok(ECT1), Ok(ECT1), Ok(ECT1), Ok(CE)]),
            (CE, [Ok(CE), Ok(CE), Ok(CE), Ok(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT, ECT0, ECT1, CE].into_iter().zip(row) {
                for dscp in [0, 0b1011_1000] {
                    assert_eq!(
                        decapsulate(outer, dscp | inner),
                        expected.map(|ecn| dscp | ecn),
                        "outer {outer} inner {inner}"
                    );
                }
            }
        }
    }
}
