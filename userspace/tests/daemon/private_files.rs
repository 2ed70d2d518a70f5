//! Files and directories of root: no other user can read, lock, plant or replace them.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;

use crate::fixture::{
    DaemonFixture, PINS, STATE, assert_fails, host_state, tc_filter, unmount_bpffs,
};
use crate::support::run;

const LB: [&str; 3] = ["lb", "--config", "edge.json"];

/// Runs a command without any of the daemon's restrictions on modes.
const WITHOUT_UMASK: [&str; 4] = ["sh", "-c", "umask 000; exec \"$@\"", "sh"];

/// A wrapper that runs a command as an unprivileged user.
const AS_NOBODY: [&str; 6] =
    ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", "sh"];

/// Runs a shell command as an unprivileged user; returns whether it succeeded.
fn unprivileged(fixture: &DaemonFixture, command: &str) -> bool {
    fixture.command(&[&AS_NOBODY[..], &["-c", command]].concat()).status.success()
}

/// Every place below a directory, and the directory itself.
fn places(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(places(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}

/// Checks that only root has access to everything that Sluice has created.
#[track_caller]
fn assert_private() {
    let all = ["/run/sluice", "/sys/fs/bpf/sluice"].map(|root| places(Path::new(root))).concat();
    for path in all {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        let found = (metadata.uid(), metadata.mode() & 0o7777);
        assert_eq!(found, (0, expected), "{}: {:o}", path.display(), found.1);
    }
}

pub(crate) fn files_and_directories_are_private_whatever_the_umask() {
    let mut fixture = DaemonFixture::new();
    let before = host_state();
    let mut daemon = fixture.start_wrapped(&WITHOUT_UMASK, &["lb"]);
    assert_private();
    // Maps that are created during a reload.
    fixture.config["limits"]["services"] = 9.into();
    fixture.write();
    daemon.reload();
    assert_private();
    for (out, args) in [
        ("out.pcapng", &["capture", "--duration", "1", "--out", "out.pcapng"][..]),
        ("new.key", &["key", "new", "--out", "new.key"]),
    ] {
        let output = fixture.wrapped(&WITHOUT_UMASK, args);
        assert!(output.status.success(), "{output:?}");
        let mode = fs::metadata(fixture.directory().join(out)).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{out}: {mode:o}");
    }
    drop(daemon);
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn what_an_earlier_version_left_readable_is_made_private() {
    let fixture = DaemonFixture::new();
    assert_eq!(fixture.start(&["lb"]).end(Signal::SIGKILL), None);
    let all = [STATE, PINS].map(|root| places(Path::new(root))).concat();
    for path in all.iter().map(PathBuf::as_path).chain([Path::new("/run/sluice")]) {
        let is_pin = path.starts_with(PINS) && !path.is_dir();
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        if !is_pin {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    assert!(unprivileged(&fixture, &format!("cat {STATE}/lb.lock")));
    let _daemon = fixture.start(&["lb"]);
    assert_private();
    assert!(!unprivileged(&fixture, &format!("cat {STATE}/lb.lock")));
}

/// A process that is killed at the end.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Locks a file as a daemon does, for reading or writing.
fn lock(file: &File, kind: libc::c_int) {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
}

pub(crate) fn a_shared_lock_of_another_process_is_not_a_daemon() {
    let fixture = DaemonFixture::new();
    assert_eq!(fixture.start(&["lb"]).end(Signal::SIGKILL), None);
    let file = File::open(format!("{STATE}/lb.lock")).unwrap();
    lock(&file, libc::F_RDLCK);
    for args in [&LB[..], &["down"]] {
        let words = ["another process has locked", "fuser /run/sluice/edge/lb.lock"];
        assert_fails(&fixture.sluice(args), 1, &words);
    }
    assert!(fixture.status()["daemon"].is_null());
    drop(file);
    fixture.down();
}

/// Another user can have a file of this path in a mount namespace, and lock it.
pub(crate) fn a_hidden_lock_of_another_user_is_not_a_daemon() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    fs::create_dir_all(STATE).unwrap();
    let path = format!("{STATE}/lb.lock");
    fs::write(&path, "1\n").unwrap();
    std::os::unix::fs::chown(&path, Some(65_534), Some(65_534)).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    lock(&file, libc::F_WRLCK);
    // A process of this network namespace.
    let holder = Command::new("sleep").arg("600").stdin(file).spawn().unwrap();
    let _holder = Killed(holder);
    fs::remove_dir_all("/run/sluice").unwrap();
    let daemon = fixture.start(&["lb"]);
    assert_eq!(fixture.status()["daemon"]["process"], daemon.id());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    fixture.down();
    assert_eq!(host_state(), before);
}

pub(crate) fn the_bpf_file_system_is_mounted_for_root_only() {
    let fixture = DaemonFixture::new();
    unmount_bpffs();
    let _daemon = fixture.start_wrapped(&WITHOUT_UMASK, &["lb"]);
    assert_eq!(fs::metadata("/sys/fs/bpf").unwrap().mode() & 0o777, 0o700);
    assert!(!unprivileged(&fixture, "mkdir /sys/fs/bpf/theirs || ls /sys/fs/bpf"));
}

/// Commands by which another user plants pins before Sluice creates them, on a BPF file system that
/// is writable by everyone; the place that the error names, and the reason.
const PLANTED: [(&str, &str, &str); 4] = [
    ("ln -s victim sluice", "/sys/fs/bpf/sluice", "is a symbolic link"),
    ("mkdir sluice", "/sys/fs/bpf/sluice", "belongs to user 65534"),
    ("mkdir sluice; ln -s ../victim/edge sluice/edge", "/sys/fs/bpf/sluice", "65534"),
    (
        "mkdir -p sluice/edge; ln -s ../../victim/edge/1 sluice/edge/1",
        "/sys/fs/bpf/sluice",
        "65534",
    ),
];

pub(crate) fn pins_that_another_user_planted_are_refused_and_never_followed() {
    let fixture = DaemonFixture::new();
    // Directories of root, which another program may have created.
    let victim = Path::new("/sys/fs/bpf/victim/edge/1/lb");
    fs::create_dir_all(victim).unwrap();
    for (command, place, words) in PLANTED {
        assert!(unprivileged(&fixture, &format!("cd /sys/fs/bpf; {command}")), "{command}");
        let planted = host_state();
        for args in [&["down"][..], &LB, &["status"], &["counters"]] {
            assert_fails(&fixture.sluice(args), 1, &[place, words, "remove it"]);
            assert_eq!(host_state(), planted, "{command}: {args:?}");
        }
        assert!(victim.is_dir());
        run("rm -r /sys/fs/bpf/sluice");
    }
    // Inside a directory of Sluice that others could write at some time.
    for (command, words) in [
        ("ln -s ../../victim/edge/1 1", "edge/1 is a symbolic link"),
        ("mkdir -p 1/lb", "edge/1 belongs to user 65534"),
    ] {
        fs::create_dir_all(PINS).unwrap();
        run(&format!("chmod 777 {PINS}"));
        assert!(unprivileged(&fixture, &format!("cd {PINS}; {command}")), "{command}");
        let mode = ["mode 0777", "chmod go-w /sys/fs/bpf/sluice/edge"];
        assert_fails(&fixture.sluice(&["down"]), 1, &mode);
        run(&format!("chmod 755 {PINS}"));
        for args in [&["down"][..], &LB, &["status"]] {
            assert_fails(&fixture.sluice(args), 1, &[words]);
        }
        assert!(victim.is_dir());
        run("rm -r /sys/fs/bpf/sluice");
    }
    let _daemon = fixture.start(&["lb"]);
    assert_ne!(tc_filter("eth0", "sluice_lb:edge"), "");
}

pub(crate) fn state_that_another_user_planted_is_refused() {
    let fixture = DaemonFixture::new();
    let before = host_state();
    let journal = r#"{"version":1}
{"did":{"sysctl":{"key":"net/ipv4/conf/all/rp_filter","old":"2","new":"0"}}}"#;
    for (command, words) in [
        (format!("mkdir -p {STATE}; echo '{journal}' > {STATE}/lb.journal"), "user 65534"),
        ("ln -s /tmp /run/sluice".to_owned(), "/run/sluice is a symbolic link"),
        ("mkdir /run/sluice; ln -s /tmp /run/sluice/edge".to_owned(), "user 65534"),
    ] {
        // `/run` is writable by everyone here.
        assert!(unprivileged(&fixture, &command), "{command}");
        let planted = host_state();
        assert_fails(&fixture.sluice(&LB), 1, &["/run/sluice", words, "remove it"]);
        // One error for each role.
        let reload = fixture.sluice(&["reload"]);
        let errors = String::from_utf8_lossy(&reload.stderr);
        assert!(reload.status.code() == Some(1) && errors.contains(words), "{errors}");
        if Path::new(STATE).join("lb.journal").exists() {
            assert_fails(&fixture.sluice(&["down"]), 1, &["/run/sluice", words, "remove it"]);
        }
        assert_eq!(host_state(), planted, "{command}");
        run("rm -r /run/sluice");
        assert_eq!(host_state(), before);
    }
    for (path, target) in [("lb.lock", "/etc/passwd"), ("lb.journal", "/etc/passwd")] {
        fs::create_dir_all(STATE).unwrap();
        std::os::unix::fs::symlink(target, format!("{STATE}/{path}")).unwrap();
        assert_fails(&fixture.sluice(&LB), 1, &[path, "is a symbolic link", "remove it"]);
        run("rm -r /run/sluice");
    }
}

/// In a directory that was removed and is still mounted, no file can be created.
pub(crate) fn a_state_directory_without_room_for_a_lock_is_an_error() {
    let fixture = DaemonFixture::new();
    run("mkdir /run/removed /run/sluice");
    run("mount --bind /run/removed /run/sluice");
    run("rmdir /run/removed");
    let output = fixture.wrapped(&["timeout", "--signal=KILL", "60"], &LB);
    assert_fails(&output, 1, &["cannot lock /run/sluice/edge/lb.lock", "removed"]);
}
