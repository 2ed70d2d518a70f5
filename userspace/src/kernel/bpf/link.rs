//! BPF links: attachments that live as long as a descriptor or a pin refers to them.

#![expect(unsafe_code, reason = "calls bpf(2)")]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_info, bpf_link_type};

use super::syscall::{bpf, zeroed};
use crate::files::private;

/// A link.
#[derive(Debug)]
pub struct BpfLink {
    descriptor: OwnedFd,
}

/// The target of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BpfLinkTarget {
    /// The XDP hook of the interface with this index; 0 after the interface was removed.
    Xdp(u32),
    /// The hook `attach_type` of the cgroup with this ID (the inode of its directory); ID 0 after
    /// the cgroup was removed.
    Cgroup {
        /// The ID.
        id: u64,
        /// The hook, as `enum bpf_attach_type` numbers it.
        attach_type: u32,
    },
    /// Another kind of link.
    Other,
}

/// The kernel's information about a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfLinkInfo {
    /// The ID of the attached program.
    pub program_id: u32,
    /// The target.
    pub target: BpfLinkTarget,
}

impl BpfLink {
    /// Attaches a program to the XDP hook of an interface. `flags` select the mode
    /// (`XDP_FLAGS_*`); 0 leaves it to the kernel. Linux 5.9.
    pub fn attach_xdp(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<Self> {
        Self::create(program, interface, bpf_attach_type::BPF_XDP as u32, flags)
    }

    /// Attaches a program to a hook of a cgroup, together with programs that others attach there.
    pub fn attach_cgroup(
        program: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
        attach_type: u32,
    ) -> io::Result<Self> {
        Self::create(program, cgroup.as_raw_fd() as u32, attach_type, 0)
    }

    fn create(
        program: BorrowedFd<'_>,
        target: u32,
        attach_type: u32,
        flags: u32,
    ) -> io::Result<Self> {
        let mut attributes = zeroed();
        attributes.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        attributes.link_create.__bindgen_anon_2.target_fd = target;
        attributes.link_create.attach_type = attach_type;
        attributes.link_create.flags = flags;
        // SAFETY: the member for this command holds no pointers.
        let descriptor = unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }?;
        // SAFETY: the kernel has just made this descriptor for us; descriptors fit an i32.
        Ok(Self { descriptor: unsafe { OwnedFd::from_raw_fd(descriptor as i32) } })
    }

    /// Opens a pinned link; `None` if nothing is pinned there.
    pub fn open(pin: &Path) -> io::Result<Option<Self>> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut attributes = zeroed();
        attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        // SAFETY: the path is a C string that outlives the call.
        match unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes) } {
            Ok(found) => {
                // SAFETY: the kernel has just created this descriptor for us; descriptors fit an
                // i32.
                let descriptor = unsafe { OwnedFd::from_raw_fd(found as i32) };
                Ok(Some(Self { descriptor }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pins the link, so that it outlives this process.
    pub fn pin(&self, pin: &Path) -> io::Result<()> {
        if let Some(directory) = pin.parent() {
            private::create_directory(directory)?;
        }
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut attributes = zeroed();
        attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
        attributes.__bindgen_anon_4.bpf_fd = self.descriptor.as_raw_fd() as u32;
        // SAFETY: the path is a C string that outlives the call.
        unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes) }.map(|_| ())
    }

    /// Replaces the program atomically.
    pub fn replace(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attributes = zeroed();
        attributes.link_update.link_fd = self.descriptor.as_raw_fd() as u32;
        attributes.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
        // SAFETY: the member for this command holds no pointers.
        unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes) }.map(|_| ())
    }

    /// Detaches the program at once. Without this, the kernel detaches in a worker after the last
    /// reference is dropped. Linux 5.9.
    pub fn detach(&self) -> io::Result<()> {
        let mut attributes = zeroed();
        attributes.link_detach.link_fd = self.descriptor.as_raw_fd() as u32;
        // SAFETY: the member for this command holds no pointers.
        unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes) }.map(|_| ())
    }

    /// The program and the target of the link.
    pub fn info(&self) -> io::Result<BpfLinkInfo> {
        // SAFETY: the members of the structure are integers, valid when zero.
        let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
        let mut attributes = zeroed();
        attributes.info.bpf_fd = self.descriptor.as_raw_fd() as u32;
        attributes.info.info_len = size_of::<bpf_link_info>() as u32;
        attributes.info.info = std::ptr::from_mut(&mut info) as u64;
        // SAFETY: `info` has `info_len` bytes, and outlives the call.
        unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        let target = if info.type_ == bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
            // SAFETY: the kernel filled the member of this type; all members are integers.
            BpfLinkTarget::Xdp(unsafe { info.__bindgen_anon_1.xdp.ifindex })
        } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
            // SAFETY: as above.
            let cgroup = unsafe { info.__bindgen_anon_1.cgroup };
            BpfLinkTarget::Cgroup { id: cgroup.cgroup_id, attach_type: cgroup.attach_type }
        } else {
            BpfLinkTarget::Other
        };
        Ok(BpfLinkInfo { program_id: info.prog_id, target })
    }
}

/// Detaches a pinned link and removes its pin, and the directory if that leaves it empty. Returns
/// whether there was one.
pub fn remove_pinned(pin: &Path) -> io::Result<bool> {
    if !pin.parent().map_or(Ok(false), private::check_directory)? {
        return Ok(false);
    }
    let Some(link) = BpfLink::open(pin)? else { return Ok(false) };
    match link.detach() {
        // The target is gone, and the link with it.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
        detached => detached?,
    }
    fs::remove_file(pin)?;
    if let Some(directory) = pin.parent() {
        // Fails if other links are pinned there.
        let _ = fs::remove_dir(directory);
    }
    Ok(true)
}
