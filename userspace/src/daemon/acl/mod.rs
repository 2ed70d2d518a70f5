//! Source ACLs: reads the deny and allow files, and computes the entries of the trie that the
//! program looks sources up in.
//!
//! A scope (all VIPs, or one service) has one ACL, made of its two files. The longest prefix that
//! contains the source decides; a prefix in both files is denied. A source outside all prefixes is
//! allowed, unless the scope has an allow file.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sluice_control::config::limits::{MAX_ACL_BYTES, MAX_ACL_PREFIXES};
use sluice_control::config::{AclFiles, Config, shorten};
use sluice_datapath::abi::{AclVerdict, PrefixKey};

use crate::files::input;

mod loader;

pub(crate) use loader::{Acl, AclChange, AclLoader, LoadedAcl};

/// The VIPs that an ACL applies to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AclScope {
    /// All VIPs.
    All,
    /// The VIPs of the service with this name.
    Service(String),
}

impl fmt::Display for AclScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all VIPs"),
            Self::Service(name) => write!(f, "service {name}"),
        }
    }
}

/// An error in an ACL file.
#[derive(Debug, thiserror::Error)]
pub enum AclError {
    /// The whole file.
    #[error("{}: {problem}", file.display())]
    File {
        /// Which file.
        file: PathBuf,
        /// The problem and the remedy.
        problem: String,
    },
    /// One line of the file.
    #[error("{}:{line}: {problem}", file.display())]
    Line {
        /// Which file.
        file: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The problem and the remedy.
        problem: String,
    },
}

/// The scopes that have an ACL in a configuration, and their files.
pub fn acl_files(config: &Config) -> Vec<(AclScope, AclFiles)> {
    let services = config
        .services()
        .iter()
        .map(|s| (AclScope::Service(s.name().to_owned()), s.acl_files().clone()));
    let all = [(AclScope::All, config.acl_files().clone())].into_iter().chain(services);
    all.filter(|(_, files)| !files.is_empty()).collect()
}

/// Reads every ACL of a configuration and returns the number of prefixes of each. Fails with the
/// first error in a file, and logs a warning about files that other users can change.
pub fn check(config: &Config) -> Result<Vec<(AclScope, usize)>, AclError> {
    acl_files(config)
        .into_iter()
        .map(|(scope, files)| {
            let entries = AclEntries::read(&files)?;
            files.deny.iter().chain(&files.allow).for_each(|file| input::warn_if_shared(file));
            Ok((scope, entries.prefixes))
        })
        .collect()
}

/// The entries of an ACL's trie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclEntries {
    /// Prefixes and their verdicts, ordered by address, without duplicates.
    entries: Vec<(PrefixKey, AclVerdict)>,
    /// The number of prefixes in the files.
    prefixes: usize,
}

impl AclEntries {
    /// Reads the files of a scope. Fails with the first error in a file.
    pub fn read(files: &AclFiles) -> Result<Self, AclError> {
        let mut prefixes = Vec::new();
        for (file, verdict) in
            [(&files.deny, AclVerdict::DENIED), (&files.allow, AclVerdict::ALLOWED)]
        {
            if let Some(file) = file {
                parse(&text(file)?, file, verdict, &mut prefixes)?;
            }
        }
        Ok(Self::new(prefixes, files.allow.is_some()))
    }

    /// The ACL of these prefixes. With an allow file, all other sources are not allowed.
    fn new(listed: Vec<(IpNet, AclVerdict)>, only_allowed: bool) -> Self {
        let key =
            |prefix: IpNet| PrefixKey::prefix(prefix.addr().into(), prefix.prefix_len().into());
        let mut entries: Vec<_> =
            listed.into_iter().map(|(prefix, verdict)| (key(prefix), verdict)).collect();
        // Ordered by address, because the kernel inserts neighbouring trie nodes much faster. Of
        // duplicates, DENIED sorts first and is kept.
        entries.sort_unstable_by_key(|(key, verdict)| (order(key), *verdict != AclVerdict::DENIED));
        entries.dedup_by_key(|(key, _)| *key);
        let prefixes = entries.len();
        // Each family has a default entry of its own, because the trie holds IPv4 as mapped IPv6
        // addresses: `::/0` in a file applies to IPv6 only.
        let others = if only_allowed { AclVerdict::NOT_ALLOWED } else { AclVerdict::ALLOWED };
        for default in default_keys() {
            if let Err(place) =
                entries.binary_search_by_key(&order(&default), |(key, _)| order(key))
            {
                entries.insert(place, (default, others));
            }
        }
        Self { entries, prefixes }
    }

    /// The number of prefixes in the files.
    pub fn prefixes(&self) -> usize {
        self.prefixes
    }

    /// All entries of the trie, the default entries included.
    pub fn as_slice(&self) -> &[(PrefixKey, AclVerdict)] {
        &self.entries
    }

    /// The difference from this ACL to `other`: entries to write and keys to remove.
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

/// The keys of the default entries, one for each family.
fn default_keys() -> [PrefixKey; 2] {
    [
        PrefixKey::prefix(Ipv6Addr::UNSPECIFIED.into(), 0),
        PrefixKey::prefix(Ipv4Addr::UNSPECIFIED.into(), 0),
    ]
}

/// The sort key of a prefix: by address, then short prefixes before long ones.
fn order(key: &PrefixKey) -> ([u32; 4], u32) {
    (key.words().map(u32::from_be), key.length)
}

/// Reads an ACL file.
fn text(file: &Path) -> Result<Vec<u8>, AclError> {
    match input::read(file, MAX_ACL_BYTES) {
        Ok(file) => Ok(file.bytes),
        Err(error) => {
            let remedy = "name a file of prefixes, one a line";
            let problem = match error.kind() {
                ErrorKind::FileTooLarge => {
                    format!("larger than {} MiB; {remedy}", MAX_ACL_BYTES >> 20)
                }
                ErrorKind::InvalidInput => format!("{error}; {remedy}"),
                _ => format!("cannot read it: {error}"),
            };
            Err(AclError::File { file: file.to_owned(), problem })
        }
    }
}

/// Appends the prefixes of a file.
fn parse(
    text: &[u8],
    file: &Path,
    verdict: AclVerdict,
    to: &mut Vec<(IpNet, AclVerdict)>,
) -> Result<(), AclError> {
    for (line, text) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let problem =
            |problem| AclError::Line { file: file.to_owned(), line, problem: shorten(problem) };
        let text = std::str::from_utf8(text)
            .map_err(|_| problem("not text; write one prefix a line".to_owned()))?;
        let text = text.split('#').next().unwrap_or_default().trim();
        if !text.is_empty() {
            to.push((prefix(text).map_err(problem)?, verdict));
        }
        if to.len() > MAX_ACL_PREFIXES {
            let most = MAX_ACL_PREFIXES;
            return Err(problem(format!(
                "more than {most} prefixes in the deny and allow files together; merge some"
            )));
        }
    }
    Ok(())
}

/// Parses a line: a prefix or a single address.
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
