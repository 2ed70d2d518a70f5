//! Every case of `make bench-program` has the expected result, for IPv4 and IPv6, at TC and XDP.
//! Run times are not checked.

use std::process::ExitCode;

use anyhow::Context as _;
use libtest_mimic::{Arguments, Trial};
use sluice::kernel::bpf;
use sluice_tests::bench::program::cases::CASES;
use sluice_tests::bench::program::{self, Effort};
use sluice_tests::packets::bindings::test_run::BalancerHook;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for case in CASES {
        for (hook, v6) in [
            (BalancerHook::Tc, false),
            (BalancerHook::Tc, true),
            (BalancerHook::Xdp, false),
            (BalancerHook::Xdp, true),
        ] {
            let name = format!("{hook:?}, {}: {}", if v6 { "IPv6" } else { "IPv4" }, case.name);
            let trial = Trial::test(name, move || {
                let thread = std::thread::spawn(move || {
                    program::isolated(|interface| {
                        program::measure(&case, v6, hook, interface, Effort::TRIAL)
                    })
                });
                let outcome = thread.join().map_err(|_| "the measurement panicked")?;
                outcome.map(drop).map_err(|error| format!("{error:#}").into())
            });
            trials.push(match missing() {
                None => trial,
                Some(why) => trial.with_kind(&why).with_ignored_flag(true),
            });
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Why programs cannot be run here, in the kernel's terms.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root: CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN".to_owned());
    }
    bpf::bpffs().context("no BPF file system").err().map(|error| format!("{error:#}"))
}
