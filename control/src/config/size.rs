//! What becomes of packets that do not fit the way to their backend.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Unexpected};

use super::{Encapsulation, Underlay, limits};

/// What becomes of packets that do not fit the way to their backend with an outer header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TooBig {
    /// They are dropped, and their sender is told by ICMP what fits.
    #[default]
    Reject,
    /// They are dropped, and nobody is told.
    Drop,
    /// There are none, because the underlay carries more than clients send, which [`Underlay::mtu`]
    /// states; else as [`Self::Reject`].
    Jumbo,
    /// Merged TCP segments are cut smaller; else as [`Self::Reject`].
    Resegment,
}

impl<'de> Deserialize<'de> for TooBig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = TooBig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"reject\", \"drop\", \"jumbo\" or \"resegment\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TooBig, E> {
                match text {
                    "reject" => Ok(TooBig::Reject),
                    "drop" => Ok(TooBig::Drop),
                    "jumbo" => Ok(TooBig::Jumbo),
                    "resegment" => Ok(TooBig::Resegment),
                    other => Err(E::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// Who says that an underlay is larger than what clients send says how large it is, so that the
/// daemons can look. The error is the problem without its place.
pub(super) fn check(
    policy: TooBig,
    underlay: Underlay,
    encapsulation: Encapsulation,
) -> Result<(), String> {
    let least = limits::MIN_JUMBO_MTU + encapsulation.overhead();
    if policy != TooBig::Jumbo || underlay.mtu.is_some_and(|mtu| mtu >= least) {
        return Ok(());
    }
    let said =
        underlay.mtu.map_or_else(|| "it is not written".to_owned(), |mtu| format!("it is {mtu}"));
    Err(format!(
        "\"jumbo\" needs an underlay that carries clients' 1500 bytes with an outer header, so \"underlay\" must have an \"mtu\" of {least} or more, and \
         {said}; state it, or write \"reject\""
    ))
}
