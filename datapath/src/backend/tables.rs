//! What the backend's path needs from its maps.

use crate::abi::{Address, Family, Port, PrefixKey, Reason};

/// The maps of the backend's programs.
pub trait BackendTables {
    /// Whether encapsulated packets may come to this address of the host.
    fn is_local(&self, address: &Address) -> bool;
    /// Whether the kernel can take off an outer header of another family than the inner one's; a
    /// constant.
    fn cross_family(&self) -> bool;
    /// The port of GUE, a constant; number 0 where none is taken off.
    fn gue_port(&self) -> Port;
    /// Whether the address is one that this backend serves, alone or in a prefix.
    fn is_vip(&self, key: &PrefixKey) -> bool;
    /// The largest maximum segment size that a VIP of a family may tell; 0 where any may be told.
    fn largest_segment(&self, family: Family) -> u32;
    /// Accounts a segment whose maximum segment size was made smaller.
    fn count_clamped(&self);
    /// Accounts a decapsulated packet.
    fn count_decapsulated(&self, packets: u64, bytes: u64);
    /// Accounts a packet that was not decapsulated.
    fn count_refused(&self, reason: Reason);
}
