//! Probes for kernel features. The kernel version is not reliable, because features are backported
//! or disabled in a build.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::Error;
use super::signals::uninterrupted;
use super::syscall::create_array;
use super::table::TABLE_FLAGS;

/// The first feature that the programs need and this kernel lacks, as a phrase; `None` if it has
/// all of them.
///
/// Requires the privileges for loading a program.
pub fn missing_feature() -> Result<Option<&'static str>, Error> {
    uninterrupted(find_missing_feature)
}

fn find_missing_feature() -> Result<Option<&'static str>, Error> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Error::System {
        what: format!("determine whether this kernel has {what}"),
        source: io::Error::other(error.to_string()),
    };
    let classifier = "programs at TC (CONFIG_BPF_SYSCALL, BPF_PROG_TYPE_SCHED_CLS)";
    if !is_program_supported(ProgramType::SchedClassifier)
        .map_err(|error| failed(classifier, &error))?
    {
        return Ok(Some(classifier));
    }
    for (helper, name) in [
        (BpfHelper::BPF_FUNC_skb_adjust_room, "the helper bpf_skb_adjust_room"),
        (
            BpfHelper::BPF_FUNC_redirect_neigh,
            "the helper bpf_redirect_neigh (Linux 5.10, CONFIG_NET)",
        ),
    ] {
        if !is_helper_supported(ProgramType::SchedClassifier, helper)
            .map_err(|error| failed(name, &error))?
        {
            return Ok(Some(name));
        }
    }
    for (map, name) in [
        (MapType::LruHash, "connection tables (BPF_MAP_TYPE_LRU_HASH)"),
        (MapType::ArrayOfMaps, "maps of maps (BPF_MAP_TYPE_ARRAY_OF_MAPS)"),
        (MapType::LpmTrie, "prefixes (BPF_MAP_TYPE_LPM_TRIE)"),
        (MapType::RingBuf, "ring buffers for captures (BPF_MAP_TYPE_RINGBUF, Linux 5.8)"),
    ] {
        if !is_map_supported(map).map_err(|error| failed(name, &error))? {
            return Ok(Some(name));
        }
    }
    let tables = "lookup tables of different sizes in one map (BPF_F_INNER_MAP, Linux 5.10)";
    match lookup_table() {
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Some(tables)),
        Err(error) => Err(failed(tables, &error)),
    }
}

/// Whether a program at TC can remove an outer header of another family than the inner one's (the
/// flags `BPF_F_ADJ_ROOM_DECAP_L3_*` of `bpf_skb_adjust_room`, Linux 6.3). No system call reports
/// this, so the flags are searched in the kernel's type information.
pub fn decapsulates_across_families() -> bool {
    const FLAG: &[u8] = b"\0BPF_F_ADJ_ROOM_DECAP_L3_IPV4\0";
    // Read once: it has some megabytes and does not change.
    static FOUND: LazyLock<bool> = LazyLock::new(|| {
        std::fs::read("/sys/kernel/btf/vmlinux")
            .is_ok_and(|types| types.windows(FLAG.len()).any(|name| name == FLAG))
    });

    *FOUND
}

/// Creates the smallest array with the flags of a lookup table.
fn lookup_table() -> io::Result<OwnedFd> {
    create_array(8, 1, TABLE_FLAGS)
}
