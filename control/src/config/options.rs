//! Options that are one word of a fixed set.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a service's flows are kept in the connection table.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Tracking {
    /// Yes: a flow keeps its backend on this balancer when the lookup table changes.
    Always,
    /// No: the lookup table alone selects the backend.
    #[default]
    Never,
}

/// The part of a packet's 5-tuple that is hashed to select the slot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case", rename = "Hash")]
pub enum HashInput {
    /// The 5-tuple: each connection is placed independently.
    #[default]
    Flow,
    /// The 5-tuple without the client's port: a client's connections to one VIP share a backend.
    Client,
    /// The client's address: a client has one backend for all VIPs of the service.
    Source,
}

/// The treatment of packets that exceed the path MTU to their backend with the outer header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case", rename = "TooBig")]
pub enum TooBigPolicy {
    /// Dropped. An ICMP error reports the largest size that fits to the sender.
    #[default]
    Reject,
    /// Dropped without an ICMP error.
    Drop,
    /// Not expected, because the underlay's stated MTU holds every packet of clients with an outer
    /// header. Otherwise as `reject`.
    Jumbo,
    /// Merged (GRO) TCP segments are cut to smaller segments. Otherwise as `reject`.
    Resegment,
}

/// The treatment of fragments of a service's packets.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case", rename = "Fragments")]
pub enum FragmentPolicy {
    /// Forwarded, the others to the backend of the first.
    #[default]
    Forward,
    /// Dropped.
    Drop,
}

/// The treatment of ICMP echo requests to a VIP address.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case", rename = "Ping")]
pub enum PingPolicy {
    /// The balancer replies.
    #[default]
    Answer,
    /// Forwarded to a backend of the service that has the address's lowest port (TCP before UDP),
    /// selected by the hash of source and destination address.
    Forward,
    /// Passed to the host.
    Host,
}

/// The treatment of TCP and UDP to a port of a VIP address that no VIP has.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case", rename = "Unlisted")]
pub enum UnlistedPolicy {
    /// Passed to the host.
    #[default]
    Pass,
    /// Dropped.
    Drop,
}
