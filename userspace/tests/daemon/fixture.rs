//! The fixture: a host for `sluice`, its daemons, and the state of the host.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sluice::kernel::netlink::{Detached, Direction, FilterSpec, Netlink};
use tempfile::TempDir;

use crate::named_namespace::NamedNamespace;
use crate::support::{add_address, program, run, snapshot, spec, try_run, veth};

/// The binary under test: the environment variable `SLUICE`, by default the one built with the
/// tests.
pub(crate) static SLUICE: LazyLock<String> = LazyLock::new(|| {
    std::env::var("SLUICE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sluice").to_owned())
});
/// Limit of every wait, long enough for emulated machines.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The private BPF file system.
const BPFFS: &str = "/sys/fs/bpf";
/// The directory of the instance's pins.
pub(crate) const PINS: &str = "/sys/fs/bpf/sluice/edge";
/// The instance's directory under `/run`.
pub(crate) const STATE: &str = "/run/sluice/edge";

/// Gives this thread and its children private mounts.
pub(crate) fn own_mounts() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare(CLONE_NEWNS)");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("mount on /run");
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
        .expect("mount of the BPF file system");
}

/// Unmounts every BPF file system of this thread's namespace: below the private one, that of the
/// host may be mounted.
pub(crate) fn unmount_bpffs() {
    let mounts = || fs::read_to_string("/proc/thread-self/mounts").unwrap();
    while let Some(mount) = mounts().lines().find(|line| line.split(' ').nth(2) == Some("bpf")) {
        run(&format!("umount {}", mount.split(' ').nth(1).unwrap()));
    }
}

/// A host with one interface `eth0` in 10.0.0.0/16, a key and a configuration.
pub(crate) struct DaemonFixture {
    directory: TempDir,
    pub(crate) config: Value,
}

impl DaemonFixture {
    pub(crate) fn new() -> Self {
        veth("eth0", "far");
        add_address("10.0.0.1/16", "eth0");
        Self::of_eth0()
    }

    /// As [`Self::new`], with `eth0` in another network namespace.
    pub(crate) fn inside(_: &NamedNamespace) -> Self {
        Self::of_eth0()
    }

    fn of_eth0() -> Self {
        let config = json!({
            "version": 1, "instance": "edge", "interfaces": ["eth0"], "underlay": { "v4": "10.0.0.1" },
            "hash_key_file": "hash.key",
            "limits": { "services": 4, "backends": 16, "vips": 8, "connections": 1024 },
            "backends": [{ "name": "a", "address": "10.0.1.1" }, { "name": "b", "address": "10.0.1.2" }],
            "services": [{
                "name": "web", "vips": ["203.0.113.10:80/tcp", "203.0.113.11:53/udp"], "table_size": 251,
                "backends": [{ "name": "a", "weight": 2 }, { "name": "b", "weight": 1 }]
            }]
        });
        Self::with_config(config)
    }

    /// Another instance on the same host, with the same configuration.
    pub(crate) fn beside(&self, instance: &str) -> Self {
        let mut config = self.config.clone();
        config["instance"] = json!(instance);
        Self::with_config(config)
    }

    fn with_config(config: Value) -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap(), config };
        let made = fixture.sluice(&["key", "new", "--out", "hash.key"]);
        assert!(made.status.success(), "{made:?}");
        fixture.write();
        fixture
    }

    fn instance(&self) -> &str {
        self.config["instance"].as_str().unwrap()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Writes the configuration to its file.
    pub(crate) fn write(&self) {
        self.write_text(&self.config.to_string());
    }

    pub(crate) fn write_text(&self, text: &str) {
        fs::write(self.directory().join("edge.json"), text).unwrap();
    }

    /// Runs the binary to its end. After the timeout the exit code is 124.
    pub(crate) fn sluice(&self, args: &[&str]) -> Output {
        self.command(&[&[SLUICE.as_str()], args].concat())
    }

    pub(crate) fn command(&self, words: &[&str]) -> Output {
        let within = TIMEOUT.as_secs().to_string();
        let mut command = Command::new("timeout");
        command
            .arg(within)
            .args(words)
            .current_dir(self.directory())
            .env_remove("SLUICE_LOG")
            .output()
            .unwrap()
    }

    /// Runs the binary through a wrapper command.
    pub(crate) fn wrapped(&self, wrapper: &[&str], args: &[&str]) -> Output {
        self.command(&[wrapper, &[SLUICE.as_str()], args].concat())
    }

    /// Starts a daemon and waits until it is ready.
    pub(crate) fn start(&self, args: &[&str]) -> DaemonProcess {
        self.start_wrapped(&[], args)
    }

    /// Like [`Self::start`], through a wrapper command that executes the daemon.
    pub(crate) fn start_wrapped(&self, wrapper: &[&str], args: &[&str]) -> DaemonProcess {
        let mut daemon = self.spawn(wrapper, args);
        daemon.wait_for_log("ready: ", 1);
        daemon
    }

    /// Like [`Self::start_wrapped`], without waiting.
    pub(crate) fn spawn(&self, wrapper: &[&str], args: &[&str]) -> DaemonProcess {
        let log = self
            .directory()
            .join(format!("log-{}", fs::read_dir(self.directory()).unwrap().count()));
        let child = self.spawn_process(wrapper, args, File::create(&log).unwrap().into());
        DaemonProcess { child, log }
    }

    /// Like [`Self::spawn`], stopped before the daemon is executed.
    pub(crate) fn spawn_stopped(&self, args: &[&str]) -> DaemonProcess {
        let daemon = self.spawn(&["sh", "-c", r#"kill -STOP $$; exec "$@""#, "sh"], args);
        let state = format!("/proc/{}/status", daemon.id());
        wait_until("the shell stops", || fs::read_to_string(&state).unwrap().contains("State:\tT"));
        daemon
    }

    /// Like [`Self::spawn`], with another standard output and standard error, so that there is no
    /// log to read.
    pub(crate) fn spawn_without_log(&self, args: &[&str], output: OwnedFd) -> DaemonProcess {
        let child = self.spawn_process(&[], args, output);
        DaemonProcess { child, log: "/dev/null".into() }
    }

    fn spawn_process(&self, wrapper: &[&str], args: &[&str], output: OwnedFd) -> Child {
        // The daemon also ends if the test process is killed.
        let words =
            [&["setpriv", "--pdeathsig", "KILL"][..], wrapper, &[SLUICE.as_str()], args].concat();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["--config", "edge.json"])
            .current_dir(self.directory())
            .env_remove("SLUICE_LOG");
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        command.spawn().unwrap()
    }

    pub(crate) fn down(&self) -> String {
        let output = self.sluice(&["down", "--instance", self.instance()]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, what: &str) -> Value {
        let output = self.sluice(&[what, "--json", "--instance", self.instance()]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.json("status")["lb"].clone()
    }

    /// The document of `sluice status --json`, whose exit code is 1 where packets are lost.
    pub(crate) fn failing_status(&self) -> Value {
        serde_json::from_slice(&self.sluice(&["status", "--json"]).stdout).unwrap()
    }

    /// The status without that of the daemon.
    pub(crate) fn applied_status(&self) -> Value {
        let mut status = self.status();
        status["daemon"].take();
        status
    }
}

/// A running daemon; dropping it kills the process.
pub(crate) struct DaemonProcess {
    child: Child,
    log: std::path::PathBuf,
}

impl DaemonProcess {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Occurrences of a text in the log.
    pub(crate) fn log_count(&self, words: &str) -> usize {
        self.log().matches(words).count()
    }

    /// Waits until a text is in the log this many times.
    pub(crate) fn wait_for_log(&mut self, words: &str, times: usize) {
        let deadline = Instant::now() + TIMEOUT;
        while self.log_count(words) < times {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "no {words:?} ({ended:?}) in:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Sends SIGHUP and waits until the reload has succeeded or failed.
    pub(crate) fn reload(&mut self) {
        let outcomes =
            |daemon: &Self| daemon.log_count("ready: ") + daemon.log_count("reload failed");
        let before = outcomes(self);
        self.signal(Signal::SIGHUP);
        wait_until("the reload ends", || outcomes(self) > before);
    }

    /// Sends a signal and waits for the end; returns the exit code, if there is one.
    pub(crate) fn end(self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.wait()
    }

    /// Waits for the end; returns the exit code, if there is one.
    pub(crate) fn wait(mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        // Fails if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A service manager, for a daemon with its variable in the environment.
pub(crate) struct ServiceManager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl ServiceManager {
    pub(crate) fn new(fixture: &DaemonFixture) -> Self {
        let path = fixture.directory().join("notify");
        Self { socket: UnixDatagram::bind(&path).unwrap(), path }
    }

    /// The variable, as an argument of env(1).
    pub(crate) fn variable(&self) -> String {
        format!("NOTIFY_SOCKET={}", self.path.display())
    }

    /// The next message.
    pub(crate) fn receive(&self) -> String {
        self.receive_within(Duration::from_secs(60)).expect("a message within 60 s")
    }

    /// The next message, if there is one in time.
    pub(crate) fn receive_within(&self, time: Duration) -> Option<String> {
        let mut bytes = [0; 4096];
        self.socket.set_read_timeout(Some(time)).unwrap();
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn wait_until(condition: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "timeout after {} s: {condition}", TIMEOUT.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The state of the host as text: the output of `ip` and `tc`, every pin, and every file under
/// `/run`.
pub(crate) fn host_state() -> String {
    let mut text = snapshot();
    for root in [BPFFS, "/run"] {
        list(Path::new(root), &mut text);
    }
    text
}

fn list(directory: &Path, text: &mut String) {
    let mut entries: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        *text += &format!("{}\n", path.display());
        if path.is_dir() && !path.is_symlink() {
            list(&path, text);
        }
    }
}

/// Every pin with its inode, which identifies the pinned map.
pub(crate) fn pins() -> Vec<(String, u64)> {
    let directory = fs::read_dir(PINS).unwrap().next().unwrap().unwrap().path().join("lb");
    let mut pins: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), entry.metadata().unwrap().ino())
        })
        .collect();
    pins.sort();
    pins
}

/// The lines of `tc filter show` about a filter; empty if there is none.
pub(crate) fn tc_filter(interface: &str, name: &str) -> String {
    let filters = try_run(&format!("tc filter show dev {interface} ingress")).1;
    filters.lines().filter(|line| line.contains(name)).collect()
}

/// Creates an interface with a foreign filter at the priority of Sluice's.
pub(crate) fn attach_foreign_filter(interface: &str, peer: &str) -> ForeignFilter {
    veth(interface, peer);
    run(&format!("tc qdisc add dev {interface} clsact"));
    attach_filter(interface, 100)
}

/// Attaches a foreign filter to an interface with a clsact qdisc.
pub(crate) fn attach_filter(interface: &str, priority: u16) -> ForeignFilter {
    let (program, _) = program();
    let foreign = spec("foreign", priority);
    let index = block_on(async {
        let netlink = Netlink::connect().unwrap();
        let index = netlink.interface(interface).await.unwrap().index;
        netlink.put_filter(index, Direction::Ingress, &foreign, program.as_fd()).await.unwrap();
        index
    });
    ForeignFilter { index, spec: foreign }
}

/// A foreign filter.
pub(crate) struct ForeignFilter {
    index: u32,
    spec: FilterSpec,
}

impl ForeignFilter {
    /// Removes the filter.
    pub(crate) fn remove(self) {
        let removed = block_on(async {
            Netlink::connect()
                .unwrap()
                .remove_filter(self.index, Direction::Ingress, &self.spec)
                .await
                .unwrap()
        });
        assert_eq!(removed, Detached::Removed);
    }
}

/// Checks the exit code and the single error line of a failed command.
#[track_caller]
pub(crate) fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let errors: Vec<_> =
        stderr.lines().filter(|line| line.starts_with("sluice: error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for words in words {
        assert!(errors[0].contains(words), "{words:?} is not in: {stderr}");
    }
}

/// Runs netlink requests on a new thread in the same namespaces.
pub(crate) fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    thread::scope(|scope| {
        let job = scope.spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(future)
        });
        job.join().expect("the thread has not panicked")
    })
}
