//! XDP links.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::error::link_failed;
use crate::kernel::bpf::{self, BpfLink, BpfLinkTarget};
use crate::kernel::host::journal::Change;
use crate::kernel::host::{Host, HostError};
use crate::kernel::netlink::Attached;

/// A pinned link on the XDP hook of interfaces. Targets are interface names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpLink {
    /// The directory of the pins, on a BPF file system.
    pub directory: PathBuf,
    /// Where the program runs.
    pub mode: XdpMode,
}

/// Where an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before the kernel allocates a socket buffer.
    Native,
    /// In the kernel's receive path, on every device.
    Generic,
}

impl XdpMode {
    /// `XDP_FLAGS_DRV_MODE`, `XDP_FLAGS_SKB_MODE`.
    const fn flags(self) -> u32 {
        match self {
            Self::Native => aya_obj::generated::XDP_FLAGS_DRV_MODE,
            Self::Generic => aya_obj::generated::XDP_FLAGS_SKB_MODE,
        }
    }
}

impl XdpLink {
    /// The pin for an interface. An index stays the same when the interface is renamed.
    fn pin(&self, index: u32) -> PathBuf {
        self.directory.join(format!("xdp-{index}"))
    }

    /// The pinned link of an interface, if it is attached.
    fn link(&self, index: u32) -> Result<Option<(BpfLink, u32)>, HostError> {
        let pin = self.pin(index);
        let failed = link_failed("read", &pin);
        let Some(link) = BpfLink::open(&pin).map_err(&failed)? else { return Ok(None) };
        let info = link.info().map_err(&failed)?;
        Ok((info.target == BpfLinkTarget::Xdp(index)).then_some((link, info.program_id)))
    }

    pub(super) async fn program_id(
        &self,
        host: &Host,
        interface: &str,
    ) -> Result<Option<u32>, HostError> {
        let index = host.netlink().interface(interface).await?.index;
        Ok(self.link(index)?.map(|(_, program_id)| program_id))
    }

    pub(super) async fn attach(
        &self,
        host: &mut Host,
        interface: &str,
        program: BorrowedFd<'_>,
    ) -> Result<Attached, HostError> {
        let interface = host.netlink().interface(interface).await?;
        let pin = self.pin(interface.index);
        if let Some((link, _)) = self.link(interface.index)? {
            link.replace(program).map_err(link_failed("replace the program of", &pin))?;
            return Ok(Attached::Replaced);
        }
        // The pin of an interface that had this index earlier.
        bpf::remove_pinned_link(&pin).map_err(link_failed("remove", &pin))?;
        let change =
            Change::XdpLink { interface: interface.name, index: interface.index, pin: pin.clone() };
        host.record(change.clone())?;
        let attached = BpfLink::attach_xdp(program, interface.index, self.mode.flags())
            .and_then(|link| link.pin(&pin));
        if let Err(error) = attached {
            host.forget(&change)?;
            return Err(link_failed("attach", &pin)(error));
        }
        Ok(Attached::Created)
    }

    pub(super) async fn targets(&self, host: &Host) -> Result<Vec<String>, HostError> {
        let mut names = Vec::new();
        for change in host.journal().changes() {
            let Change::XdpLink { index, pin, .. } = change else { continue };
            if *pin == self.pin(*index)
                && self.link(*index)?.is_some()
                && let Some(interface) = host.netlink().interface_at(*index).await?
            {
                names.push(interface.name);
            }
        }
        Ok(names)
    }

    pub(super) async fn detach_except(
        &self,
        host: &mut Host,
        keep: &[String],
    ) -> Result<Vec<String>, HostError> {
        let mut detached = Vec::new();
        for change in host.journal().changes().to_vec() {
            let Change::XdpLink { index, pin, .. } = &change else { continue };
            if *pin != self.pin(*index) {
                continue;
            }
            let interface = host.netlink().interface_at(*index).await?;
            if interface.as_ref().is_some_and(|interface| keep.contains(&interface.name)) {
                continue;
            }
            bpf::remove_pinned_link(pin).map_err(link_failed("remove", pin))?;
            host.forget(&change)?;
            detached.extend(interface.map(|interface| interface.name));
        }
        Ok(detached)
    }
}

impl fmt::Display for XdpLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.mode {
            XdpMode::Native => "link at XDP",
            XdpMode::Generic => "link at generic XDP",
        })
    }
}
