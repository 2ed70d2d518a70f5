//! The `bpf` system call, for map operations that aya does not offer: maps that no program's object
//! declares, values as bytes, batches.
#![expect(unsafe_code, reason = "calls bpf(2)")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use aya_obj::generated::{
    BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_attr, bpf_attr__bindgen_ty_2__bindgen_ty_1, bpf_cmd,
    bpf_map_type, bpf_prog_info,
};

/// The `batch` member of `union bpf_attr`.
pub(super) use aya_obj::generated::bpf_attr__bindgen_ty_3 as Batch;

/// `BPF_NOEXIST`: fail with `EEXIST` where the map has the key.
pub(super) const NO_EXIST: u64 = BPF_NOEXIST as u64;

/// `union bpf_attr`, zeroed.
pub(super) fn zeroed() -> bpf_attr {
    // SAFETY: the members of the union are integers and arrays of integers, valid when zero.
    unsafe { std::mem::zeroed() }
}

/// Calls `bpf`; returns its result when that is no error.
///
/// # Safety
///
/// The command's member of `attributes` is set, and its pointers are to as many bytes as the
/// command reads or writes there.
pub(super) unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<libc::c_long> {
    let attributes = std::ptr::from_mut(attributes);
    // SAFETY: the caller vouches for the pointers in the attributes.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, attributes, size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The name of the loaded program with an ID; empty if it has none.
pub fn program_name(id: u32) -> io::Result<String> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    // SAFETY: the member for this command holds no pointers.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us; descriptors fit an i32.
    let program = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    // SAFETY: the members of the structure are integers and arrays of them, valid when zero.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    attributes.info.bpf_fd = program.as_raw_fd() as u32;
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    attributes.info.info = std::ptr::from_mut(&mut info) as u64;
    // SAFETY: `info` has `info_len` bytes, no pointers, and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    let name: Vec<u8> = info.name.iter().map(|byte| *byte as u8).collect();
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
}

/// Creates an array.
pub(super) fn create_array(value_size: u32, max_entries: u32, flags: u32) -> io::Result<OwnedFd> {
    create(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, value_size, max_entries, flags, None)
}

/// Creates an array of one map, with `inner` as the prototype of what it may hold.
pub(super) fn create_array_of_maps(inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    create(bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, 4, 1, 0, Some(inner))
}

/// Creates an LPM trie. The kernel accepts only tries that allocate entries on insertion
/// (`BPF_F_NO_PREALLOC`).
pub(super) fn create_lpm_trie(
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> io::Result<OwnedFd> {
    let kind = bpf_map_type::BPF_MAP_TYPE_LPM_TRIE;
    create(kind, key_size, value_size, max_entries, BPF_F_NO_PREALLOC, None)
}

fn create(
    kind: bpf_map_type,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    // SAFETY: all members of the union are zeroed integers, so a reference to one is valid.
    let map = unsafe { &mut attributes.__bindgen_anon_1 };
    map.map_type = kind as u32;
    map.key_size = key_size;
    map.value_size = value_size;
    map.max_entries = max_entries;
    map.map_flags = flags;
    map.inner_map_fd = inner.map_or(0, |inner| inner.as_raw_fd() as u32);
    // SAFETY: the member for this command holds no pointers.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us; descriptors fit an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

/// Reads the value of a key into `value`.
///
/// # Safety
///
/// `key` and `value` are to as many bytes as the map's keys and values have; a value of a per-CPU
/// map is that of all possible CPUs, each padded to 8 bytes.
pub(super) unsafe fn lookup(map: BorrowedFd<'_>, key: *const u8, value: *mut u8) -> io::Result<()> {
    let value = bpf_attr__bindgen_ty_2__bindgen_ty_1 { value: value as u64 };
    // SAFETY: the caller vouches for the pointers.
    unsafe { element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, map, key, value, 0) }
}

/// Writes the value of a key.
///
/// # Safety
///
/// As for [`lookup`].
pub(super) unsafe fn update(
    map: BorrowedFd<'_>,
    key: *const u8,
    value: *const u8,
    flags: u64,
) -> io::Result<()> {
    let value = bpf_attr__bindgen_ty_2__bindgen_ty_1 { value: value as u64 };
    // SAFETY: the caller vouches for the pointers.
    unsafe { element(bpf_cmd::BPF_MAP_UPDATE_ELEM, map, key, value, flags) }
}

/// Removes a key.
///
/// # Safety
///
/// `key` is to as many bytes as the map's keys have.
pub(super) unsafe fn delete(map: BorrowedFd<'_>, key: *const u8) -> io::Result<()> {
    let value = bpf_attr__bindgen_ty_2__bindgen_ty_1 { value: 0 };
    // SAFETY: the caller vouches for the pointer.
    unsafe { element(bpf_cmd::BPF_MAP_DELETE_ELEM, map, key, value, 0) }
}

/// Reads the key after `key` into `next`; the first one when `key` is null or not in the map.
///
/// # Safety
///
/// `key`, where not null, and `next` are to as many bytes as the map's keys have.
pub(super) unsafe fn next_key(
    map: BorrowedFd<'_>,
    key: *const u8,
    next: *mut u8,
) -> io::Result<()> {
    let next = bpf_attr__bindgen_ty_2__bindgen_ty_1 { next_key: next as u64 };
    // SAFETY: the caller vouches for the pointers.
    unsafe { element(bpf_cmd::BPF_MAP_GET_NEXT_KEY, map, key, next, 0) }
}

/// # Safety
///
/// As for [`bpf`].
unsafe fn element(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    key: *const u8,
    value: bpf_attr__bindgen_ty_2__bindgen_ty_1,
    flags: u64,
) -> io::Result<()> {
    let mut attributes = zeroed();
    // SAFETY: all members of the union are zeroed integers, so a reference to one is valid.
    let request = unsafe { &mut attributes.__bindgen_anon_2 };
    request.map_fd = map.as_raw_fd() as u32;
    request.key = key as u64;
    request.__bindgen_anon_1 = value;
    request.flags = flags;
    // SAFETY: the caller vouches for the pointers.
    unsafe { bpf(command, &mut attributes) }.map(drop)
}

/// Writes `count` entries; `count` is then the number of those that were written.
///
/// # Safety
///
/// `keys` and `values` are to `count` keys and values of the map's sizes, see [`lookup`].
pub(super) unsafe fn update_batch(batch: &mut Batch) -> io::Result<()> {
    // SAFETY: the caller vouches for the pointers.
    unsafe { batched(bpf_cmd::BPF_MAP_UPDATE_BATCH, batch) }
}

/// Reads at most `count` entries from the position `in_batch` (0 for the start); `count` is then
/// their number, and the position after them is written to `out_batch`.
///
/// # Safety
///
/// `keys` and `values` are to room for `count` keys and values of the map's sizes, see [`lookup`];
/// `in_batch`, where not 0, and `out_batch` are to the larger of a key's size and 8 bytes.
pub(super) unsafe fn lookup_batch(batch: &mut Batch) -> io::Result<()> {
    // SAFETY: the caller vouches for the pointers.
    unsafe { batched(bpf_cmd::BPF_MAP_LOOKUP_BATCH, batch) }
}

/// # Safety
///
/// As for [`bpf`].
unsafe fn batched(command: bpf_cmd, batch: &mut Batch) -> io::Result<()> {
    let mut attributes = zeroed();
    attributes.batch = *batch;
    // SAFETY: the caller vouches for the pointers.
    let result = unsafe { bpf(command, &mut attributes) };
    // SAFETY: `batch` is the member that was set; the kernel changes its count alone.
    *batch = unsafe { attributes.batch };
    result.map(drop)
}
