//! Checks `addresses`.

use super::checks::check_limit;
use crate::capacities::{Capacities, Limit};
use crate::config::document::RawAddress;
use crate::config::model::{AddressPolicy, ServiceConfig};
use crate::config::options::PingPolicy;
use crate::config::prefix::AddressOrPrefix;
use crate::config::problem::{Problem, Unique};
use crate::config::syntax::{JsonObject, Text};
use crate::config::vip::Vip;

pub(super) fn validate(
    raw: &[JsonObject<RawAddress>],
    services: &[ServiceConfig],
    capacities: Capacities,
) -> Result<Vec<AddressPolicy>, Problem> {
    let mut unique = Unique::new();
    let mut policies = Vec::with_capacity(raw.len());
    for (index, JsonObject(raw)) in raw.iter().enumerate() {
        let location = format!("addresses[{index}].address");
        let Text(address) = raw.address;
        let AddressOrPrefix(prefix) = address;
        let mut prefixes = services.iter().flat_map(ServiceConfig::vips).map(Vip::prefix);
        if !prefixes.any(|vip| vip == prefix) {
            return Err(Problem::new(
                location,
                format!(
                    "no VIP has the address {address}; write an address or prefix as in a service's \"vips\""
                ),
            ));
        }
        unique.insert(prefix, location, |prefix| format!("{prefix}"))?;
        policies.push(AddressPolicy {
            prefix,
            ping: raw.ping,
            unlisted: raw.unlisted,
            allow_host_address: raw.allow_host_address,
            allow_as_source: raw.allow_as_source,
        });
    }
    // A VIP address that forwards pings needs an entry in the map of VIPs.
    let vips: usize = services.iter().map(|service| service.vips.len()).sum();
    let forwarded = policies.iter().filter(|policy| policy.ping == PingPolicy::Forward).count();
    check_limit(vips + forwarded, Limit::Vips, capacities.vips)?;
    Ok(policies)
}
