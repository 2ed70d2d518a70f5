//! Reads lists and builds their tries beside the daemon's own work, on a thread that nobody waits
//! for.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use sluice_control::config::AclFiles;
use sluice_datapath::abi::{AclVerdict, PrefixKey};
use tokio::sync::mpsc;

use super::{Entries, Scope, rest};
use crate::kernel::bpf::AclTrie;

/// Up to this many changed prefixes are changed in the trie that is in place; more are a new trie,
/// which is swapped in.
const IN_PLACE: usize = 64;

/// A list that packets meet, or are about to.
pub(crate) struct List {
    entries: Entries,
    trie: AclTrie,
}

impl List {
    /// Its trie, to be put in place.
    pub(crate) fn trie(&self) -> &AclTrie {
        &self.trie
    }

    /// How many prefixes its files have.
    pub(crate) fn prefixes(&self) -> usize {
        self.entries.prefixes()
    }
}

/// What became of a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The files say what they said before.
    Nothing,
    /// So many prefixes were changed in the trie that is in place.
    InPlace(usize),
    /// The trie is new, and to be put in place.
    New,
}

/// What came of reading a scope's files.
pub(crate) struct Loaded {
    /// Whose list it is.
    pub(crate) scope: Scope,
    /// The list: the new one, else the one in place.
    pub(crate) list: Option<List>,
    /// What changed, or why nothing did.
    pub(crate) outcome: Result<Change, anyhow::Error>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Loads lists, one run after the other.
pub(crate) struct Loader {
    /// What is in place, as far as this daemon put it there; lent to the thread while it runs.
    in_place: BTreeMap<Scope, List>,
    running: Option<mpsc::UnboundedReceiver<Vec<Loaded>>>,
    /// What was asked for while a run was going on.
    next: Option<Vec<(Scope, AclFiles)>>,
}

impl Loader {
    pub(crate) const fn new() -> Self {
        Self { in_place: BTreeMap::new(), running: None, next: None }
    }

    /// Starts to read the lists of these scopes, or does so when the run that is going on ends;
    /// forgets all other scopes.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub(crate) fn start(&mut self, wanted: Vec<(Scope, AclFiles)>) -> io::Result<()> {
        if self.running.is_some() {
            self.next = Some(wanted);
            return Ok(());
        }
        let mut in_place = std::mem::take(&mut self.in_place);
        if wanted.is_empty() {
            return Ok(());
        }
        let (done, running) = mpsc::unbounded_channel();
        // Not one of tokio's threads: those are waited for when the daemon ends.
        thread::Builder::new().name("lists".to_owned()).spawn(move || {
            let all = wanted.into_iter().map(|(scope, files)| {
                let in_place = in_place.remove(&scope);
                load(scope, &files, in_place)
            });
            // Nobody listens when the daemon ends.
            let _ = done.send(all.collect());
        })?;
        self.running = Some(running);
        Ok(())
    }

    /// Waits until a run ends; forever when none is going on. Dropping the future loses nothing.
    pub(crate) async fn loaded(&mut self) -> Vec<Loaded> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let loaded = running.recv().await;
        self.running = None;
        loaded.unwrap_or_default()
    }

    /// Says which list is in place from now on.
    pub(crate) fn put(&mut self, scope: Scope, list: List) {
        self.in_place.insert(scope, list);
    }

    /// Starts what was asked for during the last run.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub(crate) fn start_next(&mut self) -> io::Result<()> {
        self.next.take().map_or(Ok(()), |wanted| self.start(wanted))
    }
}

/// Reads a scope's files and makes its trie say the same.
fn load(scope: Scope, files: &AclFiles, in_place: Option<List>) -> Loaded {
    let begin = Instant::now();
    let (list, outcome) = match Entries::read(files) {
        Ok(entries) => change(in_place, entries),
        Err(error) => (in_place, Err(error.into())),
    };
    Loaded { scope, list, outcome, took: begin.elapsed() }
}

fn change(
    in_place: Option<List>,
    entries: Entries,
) -> (Option<List>, Result<Change, anyhow::Error>) {
    let Some(mut list) = in_place else { return new(None, entries) };
    let (put, remove) = list.entries.changes(&entries);
    let changed = put.len() + remove.len();
    if changed == 0 {
        return (Some(list), Ok(Change::Nothing));
    }
    // What counts for everybody else never changes before the rest of the list does.
    let for_others = put.iter().map(|(key, _)| key).chain(&remove).any(|key| rest().contains(key));
    if changed > IN_PLACE || for_others {
        return new(Some(list), entries);
    }
    let (put, remove) = in_order((put, remove));
    let written = put.iter().try_for_each(|(key, says)| list.trie.put(key, *says));
    match written.and_then(|()| remove.iter().try_for_each(|key| list.trie.remove(key))) {
        Ok(()) => (Some(List { entries, ..list }), Ok(Change::InPlace(changed))),
        // There is no room left, say; the trie holds a part of the change, all of which was wanted.
        Err(_) => new(Some(list), entries),
    }
}

/// Changes in the order in which each source always meets what the old list or the new one says of
/// it: what comes, the longest prefix first; then what goes, the shortest first.
pub(super) fn in_order(
    (mut put, mut remove): (Vec<(PrefixKey, AclVerdict)>, Vec<PrefixKey>),
) -> (Vec<(PrefixKey, AclVerdict)>, Vec<PrefixKey>) {
    put.sort_unstable_by_key(|(key, _)| Reverse(key.length));
    remove.sort_unstable_by_key(|key| key.length);
    (put, remove)
}

fn new(in_place: Option<List>, entries: Entries) -> (Option<List>, Result<Change, anyhow::Error>) {
    match AclTrie::new(entries.as_slice()) {
        Ok(trie) => (Some(List { entries, trie }), Ok(Change::New)),
        Err(error) => (in_place, Err(error.into())),
    }
}
