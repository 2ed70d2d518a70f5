//! Many route changes while a balancer runs.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::{DaemonFixture, DaemonProcess, wait_until};
use crate::support::{run, veth};

/// Backends per service.
const SERVICE: usize = 16;

/// The number of backends: with `SLUICE_LARGEST` (`make test-largest`) so many that a lookup of all
/// next hops takes seconds, else fewer.
fn backends() -> usize {
    if std::env::var_os("SLUICE_LARGEST").is_some() { 40_000 } else { 3_000 }
}

/// Replaces routes twenty times a second until it is dropped.
struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    fn start(command: impl Fn(usize) -> String + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            for round in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                run(&command(round));
                thread::sleep(Duration::from_millis(50));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The CPU time that a process has used.
fn cpu_time(process: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().map(|field| fields[*field].parse::<u64>().unwrap()).sum();
    // USER_HZ is 100.
    Duration::from_millis(ticks * 10)
}

/// Waits until a process uses little CPU time: lookups that commands have interrupted have ended.
fn wait_until_idle(process: u32) {
    wait_until("the daemon is idle", || {
        let before = cpu_time(process);
        thread::sleep(Duration::from_millis(500));
        cpu_time(process) - before <= Duration::from_millis(20)
    });
}

/// Drains one backend after another.
struct Drains {
    fixture: DaemonFixture,
    daemon: DaemonProcess,
    done: usize,
}

impl Drains {
    /// The time of a drain: the median of three, because other tests run at the same time.
    fn time(&mut self, what: &str) -> Duration {
        let mut times: [Duration; 3] = std::array::from_fn(|_| {
            self.fixture.config["backends"][self.done]["draining"] = json!(true);
            self.done += 1;
            self.fixture.write();
            let start = Instant::now();
            self.daemon.reload();
            start.elapsed()
        });
        assert_eq!(self.daemon.log_count("failed"), 0, "{}", self.daemon.log());
        println!("{} backends, {what}: drains take {times:.1?}", backends());
        times.sort();
        times[1]
    }
}

pub(crate) fn route_changes_delay_no_drain_and_cost_nothing_without_a_backend() {
    /// Below the mean time that a lookup still takes when a drain begins, with `SLUICE_LARGEST`.
    /// Not checked on emulated machines (`SLUICE_EMULATED`).
    const DELAY: Duration = Duration::from_millis(700);

    let mut fixture = DaemonFixture::new();
    veth("eth1", "far1");
    run("ip route add 10.1.0.0/16 dev eth0");
    let services = backends() / SERVICE;
    fixture.config["limits"] = json!({
        "services": services, "backends": backends(), "vips": services, "connections": 1024
    });
    fixture.config["backends"] = (0..backends())
        .map(|number| json!({ "name": format!("b{number}"), "address": format!("10.1.{}.{}", number / 250, number % 250 + 1) }))
        .collect();
    fixture.config["services"] = (0..services)
        .map(|number| {
            let backends = (0..SERVICE).map(|backend| json!({ "name": format!("b{}", number * SERVICE + backend) }));
            json!({ "name": format!("s{number}"), "vips": [format!("203.0.113.10:{}/tcp", 1000 + number)],
                    "table_size": 251, "backends": backends.collect::<Vec<_>>() })
        })
        .collect();
    fixture.write();
    let daemon = fixture.start(&["lb"]);
    let process = daemon.id();
    let mut drains = Drains { fixture, daemon, done: 0 };
    let undisturbed = drains.time("no route changes");
    let assert_prompt = |drain: Duration| {
        let emulated = std::env::var_os("SLUICE_EMULATED").is_some();
        assert!(emulated || drain < undisturbed + DELAY, "{drain:.1?}, {undisturbed:.1?}");
    };

    // A change of the route to all backends.
    wait_until_idle(process);
    let written = drains.daemon.log_count("next hops written");
    let (before, start) = (cpu_time(process), Instant::now());
    run("ip route replace 10.1.0.0/16 dev eth0 mtu 1450");
    drains.daemon.wait_for_log("next hops written", written + 1);
    let taken = start.elapsed();
    wait_until_idle(process);
    let lookup = cpu_time(process) - before;
    {
        let _churn =
            Churn::start(|round| format!("ip route replace 198.18.{}.0/24 dev eth1", round % 250));
        let before = cpu_time(process);
        // Long enough for eight lookups. One may be that of the daemon's refresh.
        thread::sleep(Duration::from_secs(3).max(8 * taken));
        let used = cpu_time(process) - before;
        println!(
            "CPU time of 20 unrelated route changes a second: {used:.1?}; a lookup: {lookup:.1?}"
        );
        assert!(used < 4 * lookup, "{used:.1?}, {lookup:.1?}");
        assert_prompt(drains.time("20 unrelated route changes a second"));
    }
    {
        let _churn = Churn::start(|round| {
            format!("ip route replace 10.1.0.0/16 dev eth0 mtu {}", 1400 + round % 2)
        });
        thread::sleep(Duration::from_secs(1));
        assert_prompt(drains.time("20 changes a second of the route to all of them"));
    }
    assert_eq!(drains.daemon.end(Signal::SIGTERM), Some(0));
}
