//! Why the journal cannot be read or written.

use std::io;
use std::path::PathBuf;

use crate::kernel::namespace::NetworkNamespace;

/// The version of the journal's format. Version 1 has no network namespace.
pub(super) const VERSION: u32 = 2;

/// Why the journal cannot be read or written. The host must not be changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file or its directory cannot be created, read or written.
    #[error("cannot {doing} the journal {}: {source}", .path.display())]
    Io {
        /// "create", "read", "write", "remove" or "read the network namespace for".
        doing: &'static str,
        /// The journal.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A complete line is invalid.
    #[error("{}:{line}: {source}; `sluice down` undoes the other lines; undo the change of this line by hand \
     and remove the file", .path.display())]
    Corrupt {
        /// The journal.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
        /// The parse error.
        source: serde_json::Error,
    },
    /// A complete line holds a change that Sluice does not make.
    #[error("{}:{line}: {problem}, which Sluice never records; find out who wrote it; `sluice down` undoes \
     the other lines; remove the file afterwards", .path.display())]
    Foreign {
        /// The journal.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
        /// The unexpected value.
        problem: String,
    },
    /// Another version of Sluice wrote it.
    #[error("{}: the journal has version {found}, this sluice supports version {}; run `sluice down` of the version that wrote it", .path.display(), VERSION)]
    Version {
        /// The journal.
        path: PathBuf,
        /// The version; 0 if the first line has none.
        found: u32,
    },
    /// Its changes were made in another network namespace, where they must be undone.
    #[error("{}: its changes were made in another network namespace, {namespace}, and nothing was changed; \
     {}", .path.display(), .command.as_ref().map_or_else(
        || "no name in /run/netns and no process has it: if it was deleted, its changes are gone, too; \
            remove the file then".to_owned(),
        |command| format!("undo them there: `{command}`")
    ))]
    Elsewhere {
        /// The journal.
        path: PathBuf,
        /// The network namespace of the changes.
        namespace: NetworkNamespace,
        /// The command that undoes them; `None` if the namespace cannot be found.
        command: Option<String>,
    },
}
