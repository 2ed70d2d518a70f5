//! `sluice check`: validates a configuration and its hash key, and prints a summary.

use std::fmt::Write as _;
use std::path::Path;

use sluice_control::config::Config;

use crate::args::CheckArgs;
use crate::cli::output::print;
use crate::config_file;
use crate::daemon::acl::{self, AclScope};
use crate::daemon::log;
use crate::error::CliError;
use crate::key::HashKey;
use crate::text::escape;

/// Bytes of a slot in the lookup table's map.
const SLOT_BYTES: u64 = 4;

/// Runs `sluice check`.
pub(super) fn run(args: &CheckArgs) -> Result<(), CliError> {
    log::start()?;
    let config = config_file::load(&args.file)?.config;
    let key = HashKey::load(config.hash_key_file())?;
    let acls = acl::check(&config).map_err(CliError::bad_input)?;
    let summary = summary(&config, &key, &acls);
    print(&format!("{}: good\n{summary}", path(&args.file)))
}

/// A path as a part of a line.
fn path(path: &Path) -> String {
    escape(&path.display().to_string()).into_owned()
}

fn summary(config: &Config, key: &HashKey, acls: &[(AclScope, usize)]) -> String {
    let limits = config.capacities();
    let vips: usize = config.services().iter().map(|service| service.vips().len()).sum();
    let draining = config.backends().iter().filter(|backend| backend.draining()).count();
    let slots: u64 =
        config.services().iter().map(|service| u64::from(service.table_size().get())).sum();
    // New tables are filled while the old ones are in use.
    let kibibytes = (slots * SLOT_BYTES).div_ceil(1024);
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<14} {value}");
    };
    line("instance", config.instance().to_owned());
    line("interfaces", config.interfaces().join(", "));
    line("services", format!("{} of at most {}", config.services().len(), limits.services));
    line("VIPs", format!("{vips} of at most {}", limits.vips));
    line(
        "backends",
        format!("{} of at most {}, {draining} draining", config.backends().len(), limits.backends),
    );
    line("lookup tables", format!("{slots} slots, {kibibytes} KiB (twice that while they change)"));
    line("connections", format!("{} at most", limits.connections));
    for (scope, prefixes) in acls {
        line("source ACL", format!("{prefixes} prefixes for {scope}"));
    }
    line(
        "hash key",
        format!("{} (fingerprint {})", path(config.hash_key_file()), key.fingerprint()),
    );
    text
}
