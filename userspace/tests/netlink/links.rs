//! XDP links and cgroup links: attached, replaced, detached and undone, by the journal.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;

use libtest_mimic::Completion;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use sluice::kernel::attach::{AttachPoint, CgroupLink, XdpLink, XdpMode};
use sluice::kernel::bpf::{BpfLink, BpfLinkTarget};
use sluice::kernel::host::journal::Change;
use sluice::kernel::netlink::Attached;

use crate::support::{ProgramType, host, load_program, run, snapshot, try_run, veth};

/// `BPF_CGROUP_INET_EGRESS`.
pub(crate) const EGRESS: u32 = 1;

/// `XDP_FLAGS_SKB_MODE`.
pub(crate) const XDP_FLAGS_SKB_MODE: u32 = 2;

/// A mount point of this test alone, unmounted when dropped.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn new(parent: &Path, kind: &str) -> Self {
        let path = parent.join(kind);
        fs::create_dir(&path).unwrap();
        mount(Some(kind), &path, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Gives this thread mounts of its own.
pub(crate) fn own_mounts() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace can be made");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .expect("mounts can be made private");
}

/// A cgroup, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(parent: &Mount, name: &str) -> Self {
        let path = parent.0.join(format!("sluice-test-{}-{name}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The ID of the XDP program on an interface, as `ip` shows it.
fn xdp_program(interface: &str) -> Option<u32> {
    let text = run(&format!("ip -d link show dev {interface}"));
    let (_, rest) = text.split_once("prog/xdp id ")?;
    rest.split_whitespace().next()?.parse().ok()
}

pub(crate) async fn an_xdp_link_is_attached_replaced_and_detached() {
    own_mounts();
    let base = tempfile::tempdir().unwrap();
    let bpffs = Mount::new(base.path(), "bpf");
    veth("one", "two");
    let before = snapshot();
    let mut host = host(base.path());
    let point = AttachPoint::Xdp(XdpLink {
        directory: bpffs.0.join("sluice/edge/links"),
        mode: XdpMode::Generic,
    });
    let (first, first_id) = load_program(ProgramType::Xdp);
    let (second, second_id) = load_program(ProgramType::Xdp);
    for target in ["one", "two"] {
        assert_eq!(point.program_id(&host, target).await.unwrap(), None);
        assert_eq!(
            point.attach(&mut host, target, first.as_fd()).await.unwrap(),
            Attached::Created
        );
        assert_eq!(xdp_program(target), Some(first_id));
    }
    assert_eq!(point.attach(&mut host, "one", second.as_fd()).await.unwrap(), Attached::Replaced);
    assert_eq!(xdp_program("one"), Some(second_id));
    assert_eq!(point.program_id(&host, "one").await.unwrap(), Some(second_id));
    // The pin belongs to the index.
    run("ip link set one down");
    run("ip link set one name renamed");
    run("ip link set renamed up");
    assert_eq!(point.targets(&host).await.unwrap(), ["renamed", "two"]);
    let detached = point.detach_except(&mut host, &["renamed".to_owned()]).await.unwrap();
    assert_eq!(detached, ["two"]);
    assert_eq!((xdp_program("two"), xdp_program("renamed")), (None, Some(second_id)));
    assert_eq!(point.detach_except(&mut host, &[]).await.unwrap(), ["renamed"]);
    assert_eq!(host.journal().changes(), []);
    assert!(!bpffs.0.join("sluice/edge/links").exists());
    run("ip link set renamed down");
    run("ip link set renamed name one");
    run("ip link set one up");
    assert_eq!(snapshot(), before);
}

pub(crate) async fn an_xdp_link_outlives_the_daemon_and_is_undone() {
    own_mounts();
    let base = tempfile::tempdir().unwrap();
    let bpffs = Mount::new(base.path(), "bpf");
    veth("two", "far");
    let before = snapshot();
    veth("one", "peer");
    let point = AttachPoint::Xdp(XdpLink {
        directory: bpffs.0.join("sluice/edge/links"),
        mode: XdpMode::Generic,
    });
    let (program, id) = load_program(ProgramType::Xdp);
    let mut killed = host(base.path());
    for target in ["one", "two"] {
        point.attach(&mut killed, target, program.as_fd()).await.unwrap();
    }
    // The daemon is killed: its descriptors are closed, and no destructor writes to the journal.
    drop(killed);
    drop(program);
    assert_eq!((xdp_program("one"), xdp_program("two")), (Some(id), Some(id)));
    let next = host(base.path());
    assert_eq!(point.program_id(&next, "one").await.unwrap(), Some(id));
    // The interface that is removed takes its link along, but not the pin.
    run("ip link del one");
    let report = next.undo_all().await.unwrap();
    assert_eq!((report.undone.len(), &report.left[..], &report.failed[..]), (2, &[][..], &[][..]));
    assert!(!bpffs.0.join("sluice/edge/links").exists());
    assert_eq!((xdp_program("two"), snapshot()), (None, before));
}

pub(crate) async fn a_kill_around_the_attachment_of_a_link_is_undone() {
    own_mounts();
    let base = tempfile::tempdir().unwrap();
    let bpffs = Mount::new(base.path(), "bpf");
    veth("one", "two");
    let before = snapshot();
    let pin = bpffs.0.join("sluice/edge/links/xdp-1");
    // Killed after the entry in the journal, and before the link was pinned.
    let mut killed = host(base.path());
    let change = Change::XdpLink { interface: "one".to_owned(), index: 1, pin };
    killed.record(change.clone()).unwrap();
    drop(killed);
    let report = host(base.path()).undo_all().await.unwrap();
    assert_eq!(report.gone, [change]);
    assert_eq!(snapshot(), before);
}

pub(crate) async fn the_xdp_hook_of_another_program_is_refused_and_left_alone() {
    own_mounts();
    let base = tempfile::tempdir().unwrap();
    let bpffs = Mount::new(base.path(), "bpf");
    veth("one", "two");
    let (theirs, their_id) = load_program(ProgramType::Xdp);
    let index = nix::net::if_::if_nametoindex("one").unwrap();
    let _their_link = BpfLink::attach_xdp(theirs.as_fd(), index, XDP_FLAGS_SKB_MODE)
        .expect("a generic XDP link can be made");
    let point = AttachPoint::Xdp(XdpLink {
        directory: bpffs.0.join("sluice/edge/links"),
        mode: XdpMode::Generic,
    });
    let mut host = host(base.path());
    let (program, _) = load_program(ProgramType::Xdp);
    let error = point.attach(&mut host, "one", program.as_fd()).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot attach the BPF link "), "{error}");
    assert_eq!((xdp_program("one"), host.journal().changes()), (Some(their_id), &[][..]));
    assert_eq!(point.targets(&host).await.unwrap(), Vec::<String>::new());
}

pub(crate) async fn a_cgroup_link_is_attached_replaced_and_undone() -> Completion {
    own_mounts();
    let base = tempfile::tempdir().unwrap();
    let bpffs = Mount::new(base.path(), "bpf");
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("cgroup2") {
        return Completion::ignored_with("this kernel has no cgroup2");
    }
    let cgroups = Mount::new(base.path(), "cgroup2");
    let (one, two) = (Cgroup::new(&cgroups, "one"), Cgroup::new(&cgroups, "two"));
    let directory = bpffs.0.join("sluice/edge/links");
    let point =
        AttachPoint::Cgroup(CgroupLink { directory: directory.clone(), attach_type: EGRESS });
    let (first, first_id) = load_program(ProgramType::CgroupEgress);
    let (second, second_id) = load_program(ProgramType::CgroupEgress);
    let mut daemon = host(base.path());
    for cgroup in [&one, &two] {
        assert_eq!(point.program_id(&daemon, &cgroup.name()).await.unwrap(), None);
        assert_eq!(
            point.attach(&mut daemon, &cgroup.name(), first.as_fd()).await.unwrap(),
            Attached::Created
        );
        assert_eq!(point.program_id(&daemon, &cgroup.name()).await.unwrap(), Some(first_id));
    }
    assert_eq!(
        point.attach(&mut daemon, &one.name(), second.as_fd()).await.unwrap(),
        Attached::Replaced
    );
    let pin = directory.join(format!("cgroup-{EGRESS}-{}", one.id()));
    let info = BpfLink::open(&pin).unwrap().expect("the link is pinned").info().unwrap();
    assert_eq!(
        (info.program_id, info.target),
        (second_id, BpfLinkTarget::Cgroup { id: one.id(), attach_type: EGRESS })
    );
    assert_eq!(point.targets(&daemon).await.unwrap(), [one.name(), two.name()]);
    assert_eq!(point.detach_except(&mut daemon, &[one.name()]).await.unwrap(), [two.name()]);

    // The daemon is killed. The link stays, and the next daemon finds it.
    drop(daemon);
    drop(second);
    let mut daemon = host(base.path());
    assert_eq!(point.program_id(&daemon, &one.name()).await.unwrap(), Some(second_id));
    // A cgroup that is removed takes its link along, but not the pin.
    assert_eq!(
        point.attach(&mut daemon, &two.name(), first.as_fd()).await.unwrap(),
        Attached::Created
    );
    let gone = two.name();
    drop(two);
    assert_eq!(point.detach_except(&mut daemon, &[one.name(), gone]).await.unwrap(), [""; 0]);
    assert_eq!(daemon.journal().changes().len(), 1);
    let report = daemon.undo_all().await.unwrap();
    assert_eq!((report.undone.len(), &report.left[..], &report.failed[..]), (1, &[][..], &[][..]));
    assert!(!directory.exists());
    assert!(try_run(&format!("rmdir {}", one.name())).0, "the cgroup is free");
    Completion::Completed
}
