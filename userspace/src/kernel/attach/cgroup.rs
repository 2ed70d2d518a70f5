//! Cgroup links.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::link_failed;
use crate::kernel::bpf::{self, BpfLink, BpfLinkTarget};
use crate::kernel::host::journal::Change;
use crate::kernel::host::{Host, HostError};
use crate::kernel::netlink::Attached;

/// A pinned link on a hook of cgroups. Targets are directories of the cgroup file system
/// (version 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLink {
    /// The directory of the pins, on a BPF file system.
    pub directory: PathBuf,
    /// The hook, as `enum bpf_attach_type` numbers it.
    pub attach_type: u32,
}

impl CgroupLink {
    /// The pin for a cgroup. The kernel does not reuse IDs of cgroups.
    fn pin(&self, id: u64) -> PathBuf {
        self.directory.join(format!("cgroup-{}-{id}", self.attach_type))
    }

    /// The pinned link of a cgroup, if it is attached.
    fn link(&self, id: u64) -> Result<Option<(BpfLink, u32)>, HostError> {
        let pin = self.pin(id);
        let failed = link_failed("read", &pin);
        let Some(link) = BpfLink::open(&pin).map_err(&failed)? else { return Ok(None) };
        let info = link.info().map_err(&failed)?;
        let target = BpfLinkTarget::Cgroup { id, attach_type: self.attach_type };
        Ok((info.target == target).then_some((link, info.program_id)))
    }

    pub(super) fn program_id(&self, cgroup: &str) -> Result<Option<u32>, HostError> {
        match id(Path::new(cgroup))? {
            Some(id) => Ok(self.link(id)?.map(|(_, program_id)| program_id)),
            None => Ok(None),
        }
    }

    pub(super) fn attach(
        &self,
        host: &mut Host,
        cgroup: &str,
        program: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        let path = Path::new(cgroup);
        let directory = File::open(path).map_err(link_failed("attach to", path))?;
        let id = directory.metadata().map_err(link_failed("attach to", path))?.ino();
        let pin = self.pin(id);
        if let Some((link, _)) = self.link(id)? {
            link.replace(program).map_err(link_failed("replace the program of", &pin))?;
            return Ok(Attached::Replaced);
        }
        bpf::remove_pinned_link(&pin).map_err(link_failed("remove", &pin))?;
        let change = Change::CgroupLink { cgroup: path.to_owned(), id, pin: pin.clone() };
        host.record(change.clone())?;
        let attached = BpfLink::attach_cgroup(program, directory.as_fd(), self.attach_type)
            .and_then(|link| link.pin(&pin));
        if let Err(error) = attached {
            host.forget(&change)?;
            return Err(link_failed("attach", &pin)(error));
        }
        Ok(Attached::Created)
    }

    pub(super) fn targets(&self, host: &Host) -> Result<Vec<String>, HostError> {
        let mut cgroups = Vec::new();
        for change in host.journal().changes() {
            let Change::CgroupLink { cgroup, id, pin } = change else { continue };
            if *pin == self.pin(*id) && self.link(*id)?.is_some() {
                cgroups.push(cgroup.display().to_string());
            }
        }
        Ok(cgroups)
    }

    pub(super) fn detach_except(
        &self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<Vec<String>, HostError> {
        let mut detached = Vec::new();
        for change in host.journal().changes().to_vec() {
            let Change::CgroupLink { cgroup, id, pin } = &change else { continue };
            let name = cgroup.display().to_string();
            let is_gone = self::id(cgroup)? != Some(*id);
            if *pin != self.pin(*id) || (keep.contains(&name) && !is_gone) {
                continue;
            }
            bpf::remove_pinned_link(pin).map_err(link_failed("remove", pin))?;
            host.forget(&change)?;
            if !is_gone {
                detached.push(name);
            }
        }
        Ok(detached)
    }
}

/// The ID of a cgroup: the inode of its directory. `None` if there is no such directory.
fn id(cgroup: &Path) -> Result<Option<u64>, HostError> {
    match fs::metadata(cgroup) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(link_failed("look up", cgroup)(error)),
    }
}

impl fmt::Display for CgroupLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cgroup link, attach type {}", self.attach_type)
    }
}
