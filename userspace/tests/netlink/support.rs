//! Network namespaces, programs and snapshots for the privileged tests.
#![expect(unsafe_code, reason = "calls bpf(2)")]

use std::fs;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use sluice::kernel::host::journal::Journal;
use sluice::kernel::host::{BackendSetup, Host, TUNNEL_V4, TUNNEL_V6, TUNNEL_V6_IN_V4};
use sluice::kernel::netlink::{FilterSpec, Netlink};
use sluice::role::Role;

/// Limit of one test, long enough for emulated machines with shared CPUs.
const TEST_TIMEOUT: Duration = Duration::from_secs(1200);

/// The result of a test: completed, or ignored because this kernel lacks something.
pub(crate) struct TestOutcome(Completion);

impl From<()> for TestOutcome {
    fn from((): ()) -> Self {
        Self(Completion::Completed)
    }
}

impl From<Completion> for TestOutcome {
    fn from(completion: Completion) -> Self {
        Self(completion)
    }
}

/// Runs a test on a new thread in a new network namespace, which ends with the thread.
pub(crate) fn in_namespace<F, R>(test: F) -> Result<Completion, Failed>
where
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = TestOutcome>,
{
    let (done, result) = mpsc::channel();
    thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET)");
            run("ip link set lo up");
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().expect("a runtime").block_on(test())
        }));
        let _ = done.send(outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default()
        }));
    });
    match result.recv_timeout(TEST_TIMEOUT) {
        Ok(Ok(verdict)) => Ok(verdict.0),
        Ok(Err(text)) => Err(text.into()),
        Err(_) => Err(format!("not done within {} s", TEST_TIMEOUT.as_secs()).into()),
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A second network namespace with a thread.
pub(crate) struct Peer {
    jobs: mpsc::Sender<Job>,
    thread_id: i32,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare(CLONE_NEWNET)");
            run("ip link set lo up");
            let _ = ready.send(nix::unistd::gettid().as_raw());
            inbox.into_iter().for_each(|job| job());
        });
        Self { jobs, thread_id: is_ready.recv().expect("the namespace is ready") }
    }

    /// Runs a job in the namespace and waits for its result.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs
            .send(Box::new(move || drop(done.send(job()))))
            .expect("the namespace's thread runs");
        result.recv_timeout(TEST_TIMEOUT).expect("the job in the other namespace succeeds")
    }

    /// Connects both namespaces by a veth pair: `here` in this one, `there` in the peer's.
    pub(crate) fn connect(&self, here: &str, there: &str) {
        run(&format!("ip link add {here} type veth peer name {there} netns {}", self.thread_id));
        up(here);
        let there = there.to_owned();
        self.run(move || up(&there));
    }
}

/// Runs a command that must succeed; returns its output.
pub(crate) fn run(command: &str) -> String {
    let (good, text) = try_run(command);
    assert!(good, "`{command}` failed: {text}");
    text
}

/// Runs a command; returns whether it succeeded, and its output.
pub(crate) fn try_run(command: &str) -> (bool, String) {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a command");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let text = String::from_utf8_lossy(if output.status.success() {
        &output.stdout
    } else {
        &output.stderr
    })
    .into_owned();
    (output.status.success(), text)
}

/// Creates a veth pair in this namespace, both ends up and without link-local addresses, which the
/// kernel would add later.
pub(crate) fn veth(one: &str, other: &str) {
    run(&format!("ip link add {one} type veth peer name {other}"));
    [one, other].into_iter().for_each(up);
}

/// Sets an interface up without a link-local address.
///
/// Two requests: old kernels execute one request with both in the other order and add the address.
fn up(interface: &str) {
    run(&format!("ip link set {interface} addrgenmode none"));
    run(&format!("ip link set {interface} up"));
}

/// Adds an address and waits until it is usable: the kernel adds the routes of IPv6 addresses
/// later.
pub(crate) fn add_address(prefix: &str, interface: &str) {
    let address = prefix.split('/').next().expect("an address");
    let v6 = address.contains(':');
    run(&format!("ip addr add {prefix} dev {interface} {}", if v6 { "nodad" } else { "" }));
    let family = if v6 { "-6" } else { "-4" };
    for _ in 0..600 {
        if run(&format!("ip {family} route show table local"))
            .contains(&format!("local {address} "))
        {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{prefix} on {interface} does not become usable");
}

pub(crate) fn spec(name: &str, priority: u16) -> FilterSpec {
    FilterSpec { name: name.into(), priority }
}

/// A host with a new journal below a directory.
pub(crate) fn host(base: &Path) -> Host {
    let journal = Journal::open(base, "edge", Role::Backend).expect("the journal opens");
    Host::new(Netlink::connect().expect("netlink connects"), journal)
}

pub(crate) fn setup<'a>(
    interfaces: &'a [String],
    local: &'a [std::net::IpAddr],
    vips: &'a [ipnet::IpNet],
) -> BackendSetup<'a> {
    BackendSetup {
        interfaces,
        local,
        vips,
        tunnels: true,
        gue: false,
        keep_rp_filter: false,
        tunnel_v4: TUNNEL_V4,
        tunnel_v6: TUNNEL_V6,
        tunnel_v6_in_v4: TUNNEL_V6_IN_V4,
    }
}

pub(crate) fn sysctl(interface: &str, setting: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{setting}");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

pub(crate) fn set_sysctl(interface: &str, setting: &str, value: &str) {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{setting}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// The state of the host as text. It is read until two reads are equal, because link states settle
/// after a change.
pub(crate) fn snapshot() -> String {
    let mut last = snapshot_now();
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(30));
        let next = snapshot_now();
        if next == last {
            return last;
        }
        last = next;
    }
    panic!("the state of the host does not settle:\n{last}");
}

fn snapshot_now() -> String {
    let mut text = String::new();
    for command in
        ["ip -d addr", "ip route show table all", "ip -6 route show table all", "tc qdisc show"]
    {
        text += &format!("$ {command}\n{}", run(command));
    }
    let mut names: Vec<_> = fs::read_dir("/proc/sys/net/ipv4/conf")
        .expect("sysctls")
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    for interface in names {
        let name = interface.file_name().unwrap().to_string_lossy().into_owned();
        for side in
            ["ingress", "egress"].iter().filter(|_| !matches!(name.as_str(), "all" | "default"))
        {
            // Fails without a qdisc, which is also a state.
            text += &format!(
                "$ filters {name} {side}\n{}",
                try_run(&format!("tc filter show dev {name} {side}")).1
            );
        }
        for setting in ["arp_ignore", "arp_announce", "rp_filter"] {
            text += &format!("{name}.{setting}={}\n", sysctl(&name, setting));
        }
    }
    text
}

/// The type of a program for tests.
#[derive(Clone, Copy)]
pub(crate) enum ProgramType {
    /// A classifier at TC.
    Tc,
    /// At XDP.
    Xdp,
    /// At the egress hook of cgroups.
    CgroupEgress,
}

impl ProgramType {
    /// The number in `enum bpf_prog_type`, the expected attach type, and the return value that lets
    /// every packet pass.
    fn numbers(self) -> (u32, u32, i32) {
        match self {
            // TC_ACT_UNSPEC
            Self::Tc => (3, 0, -1),
            // XDP_PASS
            Self::Xdp => (6, 0, 2),
            // BPF_CGROUP_INET_EGRESS
            Self::CgroupEgress => (8, 1, 1),
        }
    }
}

/// Loads a classifier that lets every packet pass: its descriptor and its ID.
pub(crate) fn program() -> (OwnedFd, u32) {
    load_program(ProgramType::Tc)
}

/// Loads a program that lets every packet pass: its descriptor and its ID.
pub(crate) fn load_program(kind: ProgramType) -> (OwnedFd, u32) {
    // Before Linux 5.11 programs count as locked memory, together with those of the daemons. On
    // later kernels an error has no effect.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        program: u64,
        license: u64,
        log: [u32; 2],
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        expected_attach_type: u32,
    }
    #[repr(C)]
    struct Info {
        descriptor: u32,
        len: u32,
        info: u64,
    }
    let (kind, expected_attach_type, passes) = kind.numbers();
    // r0 = passes; exit
    let instructions: [u64; 2] = [u64::from(passes as u32) << 32 | 0xb7, 0x95];
    let license = c"GPL";
    let load = Load {
        kind,
        instructions: instructions.len() as u32,
        program: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"other\0\0\0\0\0\0\0\0\0\0\0",
        interface: 0,
        expected_attach_type,
    };
    // SAFETY: `load` has the layout of `union bpf_attr` for this command, and the memory that it
    // refers to outlives the call.
    let descriptor =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, size_of::<Load>()) };
    assert!(descriptor >= 0, "cannot load a program: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and not owned elsewhere.
    let program = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    // struct bpf_prog_info: type, id, ...
    let mut words = [0u32; 2];
    let ask = Info {
        descriptor: program.as_raw_fd() as u32,
        len: size_of_val(&words) as u32,
        info: words.as_mut_ptr() as u64,
    };
    // SAFETY: as above; the kernel writes at most `len` bytes to `words`.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &ask, size_of::<Info>()) };
    assert_eq!(result, 0, "cannot read the program's ID: {}", std::io::Error::last_os_error());
    (program, std::hint::black_box(words)[1])
}

/// Whether `address` resolves to a MAC address in this namespace.
pub(crate) fn is_resolved(address: std::net::IpAddr) -> bool {
    let any: SocketAddr = match address {
        std::net::IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        std::net::IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).expect("a socket");
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        // Later sends to an unreachable neighbour fail; the neighbour table has the result.
        let _ = socket.send_to(b"who has it?", (address, 9));
        thread::sleep(Duration::from_millis(100));
        let state = run(&format!("ip neigh show {address}"));
        match state.contains("lladdr") {
            true => return true,
            false if state.contains("FAILED") => return false,
            false => {}
        }
    }
    panic!("no result for {address}: {}", run("ip neigh show"));
}
