//! The core, with a daemon that records the calls.

use std::cell::RefCell;
use std::time::Duration;

use super::*;
use crate::roles;

/// A daemon that records what the core calls.
#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<&'static str>>,
    /// The next calls of `apply` fail.
    failures: usize,
    pending: bool,
    /// The next lookup lasts until it is interrupted.
    looks_up: bool,
}

impl RoleDaemon for Recorder {
    /// Called by `read`.
    type Args = fn();
    type Files = ();
    type Prepared = ();

    const ROLE: &'static RoleSpec = &roles::LB;

    fn read(work: &fn()) -> Result<(), CliError> {
        work();
        Ok(())
    }

    fn digest((): &()) -> u64 {
        0
    }

    fn instance((): &()) -> &str {
        "edge"
    }

    fn wait(_: &fn()) -> &WaitArgs {
        unreachable!("the recorder is not started")
    }

    async fn missing(_: &fn(), (): &(), _: &Netlink) -> Result<Vec<Missing>, CliError> {
        Ok(Vec::new())
    }

    async fn prepare(_: &fn(), (): (), _: &Netlink) -> Result<(), CliError> {
        Ok(())
    }

    async fn start((): (), _: StartContext) -> Result<Self, CliError> {
        Ok(Self::default())
    }

    async fn reload(&mut self, _: &fn(), (): ()) -> Result<(), CliError> {
        self.calls.borrow_mut().push("reload");
        Ok(())
    }

    async fn take(&mut self, input: Input) -> Result<(), CliError> {
        self.calls.borrow_mut().push(input.name());
        match input {
            Input::PathErrors(_) => Err(CliError::operation(anyhow!("refused"))),
            _ => Ok(()),
        }
    }

    async fn look_up(&mut self) {
        if std::mem::take(&mut self.looks_up) {
            self.calls.borrow_mut().push("lookup");
            std::future::pending().await
        }
    }

    fn inspect(&mut self) -> Result<(), CliError> {
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), CliError> {
        self.calls.borrow_mut().push("apply");
        self.pending = self.failures > 0;
        match self.failures.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.failures = left;
                Err(CliError::operation(anyhow!("not now")))
            }
        }
    }

    fn is_pending(&self) -> bool {
        self.pending
    }

    fn log_ready(&self) {
        self.calls.borrow_mut().push("ready");
    }

    fn report(&self) -> RoleReport {
        RoleReport::default()
    }

    fn is_ephemeral(_: &fn()) -> bool {
        false
    }

    fn config_file(_: &fn()) -> &Path {
        Path::new("edge.json")
    }
}

fn no_work() {}

/// A reload by a signal.
fn reload() -> Input {
    Input::Reload(Reloads::default().signal().unwrap())
}

/// The calls that inputs lead to.
fn calls(recorder: Recorder, given: Vec<Input>) -> Vec<&'static str> {
    let looks_up = recorder.looks_up;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let netlink = Netlink::connect().unwrap();
        let (sender, inputs) = input::channel();
        let state = StatePublisher::new(Path::new("edge.json"));
        let mut reader = state.reader();
        let source = tokio::spawn(async move {
            let reloads = given.iter().any(|input| matches!(input, Input::Reload(_)));
            for input in given {
                if matches!(input, Input::Stop) && reloads {
                    // A stop would interrupt the reload.
                    reader.wait_for(|state| state.last_reload.is_some()).await.unwrap();
                }
                if matches!(input, Input::Stop) || looks_up {
                    sender.wait_until_taken().await;
                }
                sender.send(input).await.map_err(|_| "the core is gone").unwrap();
            }
        });
        let (daemon, ended) = handle_inputs(
            recorder,
            &(no_work as fn()),
            "edge",
            || Ok(()),
            inputs,
            &netlink,
            &state,
        )
        .await;
        ended.unwrap();
        source.await.unwrap();
        daemon.calls.into_inner()
    })
}

#[test]
fn every_input_is_taken_and_then_applied_and_a_command_first() {
    assert_eq!(
        calls(
            Recorder::default(),
            vec![
                Input::Refresh,
                reload(),
                Input::HostChanged(HostChanges::everything()),
                Input::Stop
            ]
        ),
        ["reload", "apply", "ready", "refresh", "apply", "update of routes", "apply"]
    );
}

#[test]
fn a_refused_input_is_not_applied() {
    assert_eq!(
        calls(
            Recorder::default(),
            vec![Input::PathErrors(Vec::new()), Input::Refresh, Input::Stop]
        ),
        ["update of path MTUs", "refresh", "apply"]
    );
}

#[test]
fn a_failed_reload_is_not_ready_and_is_applied_again() {
    assert_eq!(
        calls(
            Recorder { failures: 1, ..Recorder::default() },
            vec![reload(), Input::Refresh, Input::Stop]
        ),
        ["reload", "apply", "refresh", "apply"]
    );
}

#[test]
fn a_reload_interrupts_a_lookup_which_is_continued() {
    let changes = Input::HostChanged(HostChanges::everything());
    assert_eq!(
        calls(
            Recorder { looks_up: true, ..Recorder::default() },
            vec![changes, reload(), Input::Stop]
        ),
        ["update of routes", "lookup", "reload", "apply", "ready", "update of routes", "apply"]
    );
}

#[test]
fn a_stop_does_not_wait_for_a_reload_that_hangs() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let calls = runtime.block_on(async {
        let netlink = Netlink::connect().unwrap();
        let (sender, inputs) = input::channel();
        let state = StatePublisher::new(Path::new("edge.json"));
        let hang: fn() = || thread::sleep(Duration::from_secs(3_600));
        let core =
            handle_inputs(Recorder::default(), &hang, "edge", || Ok(()), inputs, &netlink, &state);
        let source = async {
            for input in [reload(), Input::Refresh, Input::Stop] {
                sender.send(input).await.map_err(|_| "the core is gone").unwrap();
            }
        };
        let limited = tokio::time::timeout(Duration::from_secs(60), core);
        let (daemon, ()) = tokio::join!(limited, source);
        daemon.expect("the core stops").0.calls.into_inner()
    });
    assert_eq!(calls, [""; 0]);
}
