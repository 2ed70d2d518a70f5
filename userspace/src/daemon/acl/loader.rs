//! Reads source ACLs and builds their tries on a thread, while the daemon core goes on.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use sluice_control::config::AclFiles;
use sluice_datapath::abi::{AclVerdict, PrefixKey};
use tokio::sync::oneshot;

use super::{AclEntries, AclScope, default_keys};
use crate::files::input::no_thread;
use crate::kernel::bpf::AclTrie;

/// Up to this many changed prefixes are written to the trie in place. For more, a new trie is built
/// and swapped in.
const MAX_CHANGES_IN_PLACE: usize = 64;

/// An ACL and its trie, in the map or about to be.
pub(crate) struct Acl {
    entries: AclEntries,
    trie: AclTrie,
}

impl Acl {
    /// The trie.
    pub(crate) fn trie(&self) -> &AclTrie {
        &self.trie
    }

    /// The number of prefixes in the files.
    pub(crate) fn prefixes(&self) -> usize {
        self.entries.prefixes()
    }
}

/// The change that a load made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AclChange {
    /// Nothing: the files have the same entries as before.
    Unchanged,
    /// This many prefixes, in the trie in place.
    InPlace(usize),
    /// A new trie was built, and must be put in place.
    New,
}

/// The result of loading the ACL of a scope.
pub(crate) struct LoadedAcl {
    /// The scope.
    pub(crate) scope: AclScope,
    /// The new ACL, or the one in place if nothing changed or loading failed.
    pub(crate) acl: Option<Acl>,
    /// The change, or the error.
    pub(crate) outcome: Result<AclChange, anyhow::Error>,
    /// Duration of the load.
    pub(crate) took: Duration,
}

/// The files of several scopes.
type Files = Vec<(AclScope, AclFiles)>;

/// Loads ACLs, one run at a time.
pub(crate) struct AclLoader {
    /// The ACLs that this daemon put in place; moved to the thread while it runs.
    in_place: BTreeMap<AclScope, Acl>,
    running: bool,
    /// Requested during a run.
    next: Option<Files>,
    /// Called on the thread with the result of a run.
    deliver: Arc<dyn Fn(Vec<LoadedAcl>) + Send + Sync>,
}

impl AclLoader {
    /// A loader that delivers its results by `deliver`.
    pub(crate) fn new(deliver: impl Fn(Vec<LoadedAcl>) + Send + Sync + 'static) -> Self {
        Self { in_place: BTreeMap::new(), running: false, next: None, deliver: Arc::new(deliver) }
    }

    /// Starts to load the ACLs of these scopes, after the run in progress if there is one. Other
    /// scopes are dropped. Fails if no thread can be created.
    pub(crate) fn start(&mut self, files: Files) -> io::Result<()> {
        if self.running {
            self.next = Some(files);
            return Ok(());
        }
        if files.is_empty() {
            self.in_place.clear();
            return Ok(());
        }
        let deliver = self.deliver.clone();
        spawn(files, &mut self.in_place, move |loaded| deliver(loaded))?;
        self.running = true;
        Ok(())
    }

    /// Loads the ACLs of these scopes and waits for them. There must be no run in progress.
    pub(crate) async fn load(&mut self, files: Files) -> io::Result<Vec<LoadedAcl>> {
        let (sender, loaded) = oneshot::channel();
        spawn(files, &mut self.in_place, |loaded| drop(sender.send(loaded)))?;
        loaded.await.map_err(io::Error::other)
    }

    /// Whether the result of a run was not taken yet.
    pub(crate) fn is_running(&self) -> bool {
        self.running
    }

    /// Records that the result of a run was taken.
    pub(crate) fn finish(&mut self) {
        self.running = false;
    }

    /// Records an ACL that is in place.
    pub(crate) fn put(&mut self, scope: AclScope, acl: Acl) {
        self.in_place.insert(scope, acl);
    }

    /// Starts the run that was requested during the last one.
    pub(crate) fn start_next(&mut self) -> io::Result<()> {
        self.next.take().map_or(Ok(()), |files| self.start(files))
    }
}

/// Loads on a thread, to which the ACLs in place are moved. It is not one of tokio's, because the
/// runtime waits for those when the daemon ends.
fn spawn(
    files: Files,
    in_place: &mut BTreeMap<AclScope, Acl>,
    deliver: impl FnOnce(Vec<LoadedAcl>) + Send + 'static,
) -> io::Result<()> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let run = move || {
        let Ok(mut in_place): Result<BTreeMap<AclScope, Acl>, _> = receiver.recv() else { return };
        let loaded = files.into_iter().map(|(scope, files)| {
            let in_place = in_place.remove(&scope);
            load(scope, &files, in_place)
        });
        deliver(loaded.collect());
    };
    thread::Builder::new().name("acl".to_owned()).spawn(run).map_err(no_thread)?;
    // The thread waits for it.
    let _ = sender.send(std::mem::take(in_place));
    Ok(())
}

/// Reads the files of a scope, and changes its trie accordingly.
fn load(scope: AclScope, files: &AclFiles, in_place: Option<Acl>) -> LoadedAcl {
    let begin = Instant::now();
    let (acl, outcome) = match AclEntries::read(files) {
        Ok(entries) => change(in_place, entries),
        Err(error) => (in_place, Err(error.into())),
    };
    LoadedAcl { scope, acl, outcome, took: begin.elapsed() }
}

fn change(
    in_place: Option<Acl>,
    entries: AclEntries,
) -> (Option<Acl>, Result<AclChange, anyhow::Error>) {
    let Some(mut acl) = in_place else { return new(None, entries) };
    let (put, remove) = acl.entries.changes(&entries);
    let changed = put.len() + remove.len();
    if changed == 0 {
        return (Some(acl), Ok(AclChange::Unchanged));
    }
    // The default entries must not change before the rest of the ACL does.
    let changes_default =
        put.iter().map(|(key, _)| key).chain(&remove).any(|key| default_keys().contains(key));
    if changed > MAX_CHANGES_IN_PLACE || changes_default {
        return new(Some(acl), entries);
    }
    let (put, remove) = in_order((put, remove));
    let written = put.iter().try_for_each(|(key, verdict)| acl.trie.put(key, *verdict));
    match written.and_then(|()| remove.iter().try_for_each(|key| acl.trie.remove(key))) {
        Ok(()) => (Some(Acl { entries, ..acl }), Ok(AclChange::InPlace(changed))),
        // The trie may be full. It holds a part of the change, all of which is wanted.
        Err(_) => new(Some(acl), entries),
    }
}

/// Orders changes so that each source always gets the verdict of the old ACL or of the new one:
/// additions with the longest prefix first, then removals with the shortest prefix first.
pub(super) fn in_order(
    (mut put, mut remove): (Vec<(PrefixKey, AclVerdict)>, Vec<PrefixKey>),
) -> (Vec<(PrefixKey, AclVerdict)>, Vec<PrefixKey>) {
    put.sort_unstable_by_key(|(key, _)| Reverse(key.length));
    remove.sort_unstable_by_key(|key| key.length);
    (put, remove)
}

fn new(
    in_place: Option<Acl>,
    entries: AclEntries,
) -> (Option<Acl>, Result<AclChange, anyhow::Error>) {
    match AclTrie::new(entries.as_slice()) {
        Ok(trie) => (Some(Acl { entries, trie }), Ok(AclChange::New)),
        Err(error) => (in_place, Err(error.into())),
    }
}
