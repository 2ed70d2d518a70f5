//! Many route changes while a balancer runs.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::fixture::DaemonFixture;
use crate::support::{run, veth};

const BACKENDS: usize = 3_000;

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

pub(crate) fn route_changes_that_concern_no_backend_cost_nothing() {
    /// A lookup of all next hops takes more than this.
    const LIMIT: Duration = Duration::from_millis(300);
    const SERVICE: usize = 16;

    let mut fixture = DaemonFixture::new();
    veth("eth1", "far1");
    run("ip route add 10.1.0.0/16 dev eth0");
    fixture.config["limits"] =
        json!({ "services": 256, "backends": 4096, "vips": 256, "connections": 1024 });
    fixture.config["backends"] = (0..BACKENDS)
        .map(|number| json!({ "name": format!("b{number}"), "address": format!("10.1.{}.{}", number / 250, number % 250 + 1) }))
        .collect();
    fixture.config["services"] = (0..BACKENDS / SERVICE)
        .map(|number| {
            let backends = (0..SERVICE).map(|backend| json!({ "name": format!("b{}", number * SERVICE + backend) }));
            json!({ "name": format!("s{number}"), "vips": [format!("203.0.113.10:{}/tcp", 1000 + number)],
                    "table_size": 251, "backends": backends.collect::<Vec<_>>() })
        })
        .collect();
    fixture.write();
    let mut daemon = fixture.start(&["lb"]);
    let mut drains = 0;
    let mut timed_drain = |what: &str| {
        fixture.config["backends"][drains]["draining"] = json!(true);
        drains += 1;
        fixture.write();
        let start = Instant::now();
        daemon.reload();
        println!("{BACKENDS} backends, {what}: a drain takes {:.1?}", start.elapsed());
        assert_eq!(daemon.log_count("failed"), 0, "{}", daemon.log());
        daemon.id()
    };
    let process = timed_drain("no route changes");
    {
        let _churn =
            Churn::start(|round| format!("ip route replace 198.18.{}.0/24 dev eth1", round % 250));
        let before = cpu_time(process);
        thread::sleep(Duration::from_secs(3));
        let used = cpu_time(process) - before;
        println!("{BACKENDS} backends, 20 unrelated route changes a second for 3 s: {used:.1?}");
        timed_drain("20 unrelated route changes a second");
        let emulated = std::env::var_os("SLUICE_EMULATED").is_some();
        assert!(emulated || used < LIMIT, "{used:.1?}");
    }
    {
        let _churn = Churn::start(|round| {
            format!("ip route replace 10.1.0.0/16 dev eth0 mtu {}", 1400 + round % 2)
        });
        thread::sleep(Duration::from_secs(1));
        timed_drain("20 changes a second of the route to all of them");
    }
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
}
