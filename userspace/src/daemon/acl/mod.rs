//! Lists of sources: what an operator writes into deny- and allow-files, and what packets meet of
//! it.
//!
//! A scope (all VIPs, or one service) has one list made of its two files. The longest prefix that
//! holds a source decides; a prefix that both files name is denied. What no prefix holds may come,
//! unless there is an allow-file.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sluice_control::config::limits::{MAX_LIST_BYTES, MAX_LIST_PREFIXES};
use sluice_control::config::{AclFiles, Config};
use sluice_datapath::abi::{AclVerdict, PrefixKey};

mod loader;

pub(crate) use loader::{Change, List, Loaded, Loader};

/// Whose list it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// It counts for every VIP.
    All,
    /// It counts for the VIPs of the service of this name.
    Service(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("the list of sources for all VIPs"),
            Self::Service(name) => write!(f, "the list of sources of service {name}"),
        }
    }
}

/// What is wrong with a list's file.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file as a whole.
    #[error("{}: {problem}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// One line.
    #[error("{}:{line}: {problem}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// The scopes that a configuration has lists for, and their files.
pub fn wanted(config: &Config) -> Vec<(Scope, AclFiles)> {
    let services = config
        .services()
        .iter()
        .map(|s| (Scope::Service(s.name().to_owned()), s.acl_files().clone()));
    let all = [(Scope::All, config.acl_files().clone())].into_iter().chain(services);
    all.filter(|(_, files)| !files.is_empty()).collect()
}

/// Reads every list of a configuration: the number of prefixes of each.
///
/// # Errors
///
/// The first thing that is wrong with a file.
pub fn check(config: &Config) -> Result<Vec<(Scope, usize)>, ListError> {
    wanted(config)
        .into_iter()
        .map(|(scope, files)| Ok((scope, Entries::read(&files)?.prefixes)))
        .collect()
}

/// A list as its trie should hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entries {
    /// Prefixes and what is said of them, in the order of addresses, none twice.
    entries: Vec<(PrefixKey, AclVerdict)>,
    /// How many of them are from the files.
    prefixes: usize,
}

impl Entries {
    /// Reads the files of a scope.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with a file.
    pub fn read(files: &AclFiles) -> Result<Self, ListError> {
        let mut typed = Vec::new();
        for (file, says) in [(&files.deny, AclVerdict::DENIED), (&files.allow, AclVerdict::ALLOWED)]
        {
            if let Some(file) = file {
                parse(&text(file)?, file, says, &mut typed)?;
            }
        }
        Ok(Self::new(typed, files.allow.is_some()))
    }

    /// The list of these prefixes; with an allow-list, all others are not allowed.
    fn new(typed: Vec<(IpNet, AclVerdict)>, only_allowed: bool) -> Self {
        let key =
            |prefix: IpNet| PrefixKey::prefix(prefix.addr().into(), prefix.prefix_len().into());
        let mut entries: Vec<_> =
            typed.into_iter().map(|(prefix, says)| (key(prefix), says)).collect();
        // In the order of addresses, near each other in the trie, which is filled much faster so. A
        // prefix that is named twice is denied.
        entries.sort_unstable_by_key(|(key, says)| (order(key), *says != AclVerdict::DENIED));
        entries.dedup_by_key(|(key, _)| *key);
        let prefixes = entries.len();
        // Both families have an entry of their own, because the trie has IPv4 inside of IPv6:
        // `::/0` in a file is about IPv6.
        let others = if only_allowed { AclVerdict::NOT_ALLOWED } else { AclVerdict::ALLOWED };
        for rest in rest() {
            if let Err(place) = entries.binary_search_by_key(&order(&rest), |(key, _)| order(key)) {
                entries.insert(place, (rest, others));
            }
        }
        Self { entries, prefixes }
    }

    /// How many prefixes the files have.
    pub fn prefixes(&self) -> usize {
        self.prefixes
    }

    /// Everything that the trie holds.
    pub fn as_slice(&self) -> &[(PrefixKey, AclVerdict)] {
        &self.entries
    }

    /// What changes from this list to `other`: entries to be written, and keys to be removed.
    fn changes(&self, other: &Self) -> (Vec<(PrefixKey, AclVerdict)>, Vec<PrefixKey>) {
        let (mut put, mut remove) = (Vec::new(), Vec::new());
        let (mut old, mut new) = (self.entries.iter().peekable(), other.entries.iter().peekable());
        loop {
            match (old.peek(), new.peek()) {
                (Some((was, _)), Some((is, _))) if order(was) < order(is) => {
                    remove.extend(old.next().map(|(key, _)| *key))
                }
                (Some((was, _)), Some((is, _))) if order(was) > order(is) => put.extend(new.next()),
                (Some(was), Some(is)) => {
                    if was.1 != is.1 {
                        put.push(**is);
                    }
                    old.next();
                    new.next();
                }
                (Some(_), None) => remove.extend(old.next().map(|(key, _)| *key)),
                (None, Some(_)) => put.extend(new.next()),
                (None, None) => return (put, remove),
            }
        }
    }
}

/// The keys of no bits, one for each family.
fn rest() -> [PrefixKey; 2] {
    [
        PrefixKey::prefix(Ipv6Addr::UNSPECIFIED.into(), 0),
        PrefixKey::prefix(Ipv4Addr::UNSPECIFIED.into(), 0),
    ]
}

/// Addresses as numbers, then short prefixes before long ones.
fn order(key: &PrefixKey) -> ([u32; 4], u32) {
    (key.words().map(u32::from_be), key.length)
}

/// The bytes of a list's file.
fn text(file: &Path) -> Result<Vec<u8>, ListError> {
    let whole = |problem: String| ListError::File { file: file.to_owned(), problem };
    let unreadable = |error: std::io::Error| whole(format!("cannot read it: {error}"));
    let mut bytes = Vec::new();
    File::open(file)
        .map_err(unreadable)?
        .take(MAX_LIST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_LIST_BYTES {
        return Err(whole(format!(
            "larger than {} MiB; name a file of prefixes, one a line",
            MAX_LIST_BYTES >> 20
        )));
    }
    Ok(bytes)
}

/// Adds the prefixes of a file to those that were read before.
fn parse(
    text: &[u8],
    file: &Path,
    says: AclVerdict,
    to: &mut Vec<(IpNet, AclVerdict)>,
) -> Result<(), ListError> {
    for (line, text) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let problem = |problem| ListError::Line { file: file.to_owned(), line, problem };
        let text = std::str::from_utf8(text)
            .map_err(|_| problem("not text; write one prefix a line".to_owned()))?;
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            to.push((prefix(text).map_err(problem)?, says));
        }
        if to.len() > MAX_LIST_PREFIXES {
            let most = MAX_LIST_PREFIXES;
            return Err(problem(format!(
                "more than {most} prefixes in the deny- and allow-list together; merge some"
            )));
        }
    }
    Ok(())
}

/// The prefix, or the single address, that a line says.
fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let prefix = parsed.map_err(|_| {
        format!("{text:?} is neither a prefix nor an address; write one a line, such as 192.0.2.0/24 or 2001:db8::1")
    })?;
    if prefix != prefix.trunc() {
        return Err(format!("{prefix} has bits beyond its prefix; write {}", prefix.trunc()));
    }
    match prefix.addr() {
        IpAddr::V6(v6) if prefix.prefix_len() >= 96 && v6.to_ipv4_mapped().is_some() => {
            Err(format!("{prefix} is an IPv4-mapped prefix; write the IPv4 prefix"))
        }
        _ => Ok(prefix),
    }
}

#[cfg(test)]
mod tests;
