//! Explicit congestion notification across a tunnel (RFC 6040).

use crate::abi::Reason;

/// The two ECN bits of a traffic class.
const MASK: u8 = 0b11;
/// Codepoint CE: congestion experienced.
const CE: u8 = 0b11;
/// Codepoint ECT(1).
const ECT_1: u8 = 0b01;
/// Codepoint ECT(0).
const ECT_0: u8 = 0b10;
/// Codepoint Not-ECT.
const NOT_ECT: u8 = 0b00;

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
/// [`Reason::EcnForbidden`] for an outer CE and an inner Not-ECT, which RFC 6040 requires to drop.
#[inline(always)]
pub const fn decapsulate(outer: u8, inner: u8) -> Result<u8, Reason> {
    match (outer & MASK, inner & MASK) {
        (CE, NOT_ECT) => Err(Reason::EcnForbidden),
        (CE, _) => Ok(inner | CE),
        (ECT_1, ECT_0) => Ok((inner & !MASK) | ECT_1),
        _ => Ok(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6040, figure 4. Rows: inner codepoint; columns: outer codepoint (Not-ECT, ECT(0),
    /// ECT(1), CE).
    #[test]
    fn decapsulation_follows_figure_4_of_rfc_6040() {
        let table = [
            (NOT_ECT, [Ok(NOT_ECT), Ok(NOT_ECT), Ok(NOT_ECT), Err(Reason::EcnForbidden)]),
            (ECT_0, [Ok(ECT_0), Ok(ECT_0), Ok(ECT_1), Ok(CE)]),
            (ECT_1, [Ok(ECT_1), Ok(ECT_1), Ok(ECT_1), Ok(CE)]),
            (CE, [Ok(CE), Ok(CE), Ok(CE), Ok(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
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
