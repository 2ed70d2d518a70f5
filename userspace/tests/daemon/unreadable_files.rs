//! Files that cannot be read during a reload: pipes, and files of a file system that hangs.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use libtest_mimic::Completion;
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::fixture::{DaemonFixture, assert_fails};

/// Replaces a file by a pipe without a writer; returns its content.
fn replace_by_pipe(path: &Path) -> Vec<u8> {
    let content = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    content
}

pub(crate) fn a_reload_of_a_pipe_is_refused_at_once() {
    let fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    for (number, name) in [(1, "edge.json"), (2, "hash.key")] {
        let path = fixture.directory().join(name);
        let content = replace_by_pipe(&path);
        daemon.reload();
        daemon.wait_for_log("reload failed; nothing was changed", number);
        assert_eq!(daemon.log_count(&format!("{name}: not a regular file; name a")), 1);
        assert_fails(&fixture.sluice(&["check", "edge.json"]), 2, &[name, "not a regular file"]);
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
    daemon.reload();
    daemon.wait_for_log("ready: ", 2);
    replace_by_pipe(&fixture.directory().join("edge.json"));
    daemon.signal(Signal::SIGHUP);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

pub(crate) fn a_source_acl_that_cannot_be_read_again_is_stale() {
    let mut fixture = DaemonFixture::new();
    fixture.config["services"][0]["deny_file"] = json!("deny.txt");
    fixture.write();
    let acl = fixture.directory().join("deny.txt");
    fs::write(&acl, "192.0.2.0/24\n").unwrap();
    let mut daemon = fixture.start(&["lb"]);
    let content = replace_by_pipe(&acl);
    daemon.reload();
    daemon.wait_for_log("the one in force is stale until a reload succeeds scope=service web", 1);
    assert_eq!(daemon.log_count("deny.txt: not a regular file; name a file of prefixes"), 1);
    fs::remove_file(&acl).unwrap();
    fs::write(&acl, content).unwrap();
    daemon.reload();
    daemon.wait_for_log("source ACL is no longer stale scope=service web", 1);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}

/// Makes a file hang when it is opened, until the group is dropped; `None` if the kernel cannot.
fn hang(path: &Path) -> Option<Fanotify> {
    // Without an answer to the permission event, the file cannot be opened.
    let hanging = Fanotify::init(InitFlags::FAN_CLASS_CONTENT, EventFFlags::O_RDONLY).unwrap();
    let mask = MaskFlags::FAN_OPEN_PERM;
    match hanging.mark(MarkFlags::FAN_MARK_ADD, mask, nix::fcntl::AT_FDCWD, Some(path)) {
        Err(Errno::EINVAL) => None,
        marked => {
            marked.unwrap();
            Some(hanging)
        }
    }
}

/// The reason for a test that is skipped without [`hang`].
fn no_permission_events() -> Completion {
    Completion::ignored_with("this kernel has no permission events of fanotify")
}

pub(crate) fn a_stop_does_not_wait_for_a_file_that_hangs() -> Completion {
    let mut fixture = DaemonFixture::new();
    fixture.config["deny_file"] = json!("deny.txt");
    fixture.write();
    fs::write(fixture.directory().join("deny.txt"), "").unwrap();
    for name in ["edge.json", "hash.key", "deny.txt"] {
        let daemon = fixture.start(&["lb"]);
        let Some(hanging) = hang(&fixture.directory().join(name)) else {
            return no_permission_events();
        };
        daemon.signal(Signal::SIGHUP);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0), "{name}");
        let starting = fixture.spawn(&[], &["lb"]);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(starting.end(Signal::SIGTERM), Some(0), "{name}, during a start");
        drop(hanging);
    }
    Completion::Completed
}

pub(crate) fn signals_while_a_file_hangs_are_one_reload() -> Completion {
    let fixture = DaemonFixture::new();
    let mut daemon = fixture.start(&["lb"]);
    let Some(hanging) = hang(&fixture.directory().join("hash.key")) else {
        return no_permission_events();
    };
    for _ in 0..20 {
        daemon.signal(Signal::SIGHUP);
        thread::sleep(Duration::from_millis(30));
    }
    drop(hanging);
    daemon.wait_for_log("ready: ", 3);
    assert!(fixture.sluice(&["reload"]).status.success());
    assert_eq!(daemon.log_count("ready: "), 4, "{}", daemon.log());
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    Completion::Completed
}
