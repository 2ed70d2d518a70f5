//! The daemon core, common to all roles: takes one input at a time, changes the state, and applies
//! the state.

use std::path::Path;
use std::thread;

use anyhow::{Context as _, anyhow};
use sd_notify::NotifyState;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::guard::InstanceGuard;
use super::input::{self, Input, InputSender, Inputs};
use super::predecessors::PredecessorLog;
use super::presence::{self, Missing};
use super::reloads::{Clients, Reloads};
use super::requests::Requests;
use super::signals::Signals;
use super::state::StatePublisher;
use super::teardown::{self, Scope};
use super::{log, service_manager, sources};
use crate::args::WaitArgs;
use crate::config_file;
use crate::daemon::preflight;
use crate::error::CliError;
use crate::files::input::no_thread;
use crate::kernel::bpf::Pins;
use crate::kernel::host::Host;
use crate::kernel::host::journal::{Journal, STATE_DIRECTORY};
use crate::kernel::netlink::{HostChanges, Netlink};
use crate::role::Role;
use crate::roles::RoleSpec;
use crate::runtime;
use crate::serve;
use crate::serve::protocol::{ReloadOutcome, RoleReport};
use crate::serve::server::ControlSocket;

/// The behaviour of a role: its state, how inputs change it, and how it is applied.
pub(super) trait RoleDaemon: Sized {
    /// The arguments of the command.
    type Args: Clone + Send + 'static;
    /// The files that the arguments name, read and validated.
    type Files: Send + 'static;
    /// The files, checked against the host.
    type Prepared;

    /// The row of the role.
    const ROLE: &'static RoleSpec;

    /// Reads the files. Changes nothing. Called on a thread during a reload.
    fn read(args: &Self::Args) -> Result<Self::Files, CliError>;

    /// Checks the files that a start needs and a reload reads later. Changes nothing.
    fn check_at_start(files: &Self::Files) -> Result<(), CliError> {
        let _ = files;
        Ok(())
    }

    /// Digest of the configuration's text.
    fn digest(files: &Self::Files) -> u64;

    /// The instance that the files name.
    fn instance(files: &Self::Files) -> &str;

    /// How long a first start waits for interfaces and addresses.
    fn wait(args: &Self::Args) -> &WaitArgs;

    /// The interfaces and addresses that the files need and this host lacks.
    async fn missing(
        args: &Self::Args,
        files: &Self::Files,
        netlink: &Netlink,
    ) -> Result<Vec<Missing>, CliError>;

    /// Checks the files against the host, as far as it has the interfaces and addresses. Changes
    /// nothing.
    async fn prepare(
        args: &Self::Args,
        files: Self::Files,
        netlink: &Netlink,
    ) -> Result<Self::Prepared, CliError>;

    /// Adopts or creates the maps, and applies the configuration for the first time.
    async fn start(prepared: Self::Prepared, context: StartContext) -> Result<Self, CliError>;

    /// Changes the state to files that were read again. A reload that is refused leaves the state
    /// as it was.
    async fn reload(&mut self, args: &Self::Args, files: Self::Files) -> Result<(), CliError>;

    /// Changes the state by another input.
    async fn take(&mut self, input: Input) -> Result<(), CliError>;

    /// Looks up on the host what [`Self::take`] has found to be out of date. It may be interrupted
    /// at any time and called again.
    async fn look_up(&mut self) {}

    /// Restores what changes without a notification: pins and sysctls. An error ends the daemon, so
    /// that its supervisor restarts it.
    fn inspect(&mut self) -> Result<(), CliError>;

    /// Applies the state where it differs from the maps and the host. A failed change stays pending
    /// until the next [`Input::Refresh`], [`Input::HostChanged`] or [`Input::Reload`].
    async fn apply(&mut self) -> Result<(), CliError>;

    /// Whether a failed change is still pending.
    fn is_pending(&self) -> bool;

    /// Whether the files that a reload reads after it was applied are in force, or why not; `None`
    /// while they are being read.
    fn loaded(&self) -> Option<Result<(), String>> {
        Some(Ok(()))
    }

    /// Logs that the configuration is applied.
    fn log_ready(&self);

    /// The role's part of `sluice status`.
    fn report(&self) -> RoleReport;

    /// Whether the host is restored at the end.
    fn is_ephemeral(args: &Self::Args) -> bool;

    /// The configuration file.
    fn config_file(args: &Self::Args) -> &Path;
}

/// The parameters of a role's start.
pub(super) struct StartContext {
    /// The host, with the journal of the role.
    pub(super) host: Host,
    /// The pins of the role.
    pub(super) pins: Pins,
    /// The channel to the core.
    pub(super) inputs: InputSender,
}

/// Runs a daemon until a signal stops it. Fails with [`CliError::BadInput`] before anything on the
/// host is changed.
pub(super) fn run<D: RoleDaemon>(args: &D::Args) -> Result<(), CliError> {
    runtime::block_on(async {
        // First: a SIGHUP without a handler ends the process.
        let reloads = Reloads::default();
        let signals = Signals::listen(reloads.clone())?;
        let (sender, mut inputs) = input::channel();
        let _signals = sources::signals(signals, sender.clone());
        log::start()?;
        let files = on_thread(args, |args| {
            let files = D::read(args)?;
            D::check_at_start(&files)?;
            Ok(files)
        });
        let Some(files) = inputs.wait_for(files).await else {
            info!("stopping before the configuration was read");
            return Ok(());
        };
        let files = files?;
        preflight::check()?;
        serve::<D>(args, files, sender, reloads, inputs).await
    })
}

async fn serve<D: RoleDaemon>(
    args: &D::Args,
    files: D::Files,
    sender: InputSender,
    reloads: Reloads,
    mut inputs: Inputs,
) -> Result<(), CliError> {
    let netlink = Netlink::connect().map_err(CliError::operation)?;
    let instance = D::instance(&files).to_owned();
    if InstanceGuard::is_first_start(&instance, D::ROLE.role)? {
        let missing = || D::missing(args, &files, &netlink);
        match inputs.wait_for(presence::wait(D::wait(args).timeout(), missing)).await {
            Some(waited) => waited?,
            None => return inputs.end().await,
        }
    }
    let Some(prepared) = inputs.wait_for(D::prepare(args, files, &netlink)).await else {
        return inputs.end().await;
    };
    let prepared = prepared?;
    let changes = netlink.changes().map_err(CliError::operation)?;

    let guard = InstanceGuard::take(&instance, D::ROLE.role)?;
    let state = StatePublisher::new(D::config_file(args));
    let requests = Requests { inputs: sender.clone(), reloads, state: state.reader() };
    let socket = match listen(&instance, D::ROLE.role) {
        Ok(socket) => socket,
        Err(error) => return Err(guard.give_up(error).await),
    };
    let _requests = sources::requests(socket, requests);
    let start = start::<D>(prepared, netlink.clone(), &guard, sender.clone());
    let daemon = match inputs.finish(start).await {
        Some(Ok(daemon)) => daemon,
        Some(Err(error)) => return Err(guard.give_up(error).await),
        None => {
            info!(%instance, "stopping before the configuration was applied");
            guard.undo_first_start().await;
            return inputs.end().await;
        }
    };
    state.ready(daemon.report());
    service_manager::start_watchdog()?;
    daemon.log_ready();
    let _changes = sources::host_changes(changes, netlink.clone(), sender.clone());
    let _inspect = sources::inspect(sender.clone());
    let _refresh = sources::refresh(sender);

    let check_files = || guard.check_files();
    let (daemon, ended) =
        handle_inputs(daemon, args, &instance, check_files, inputs, &netlink, &state).await;
    service_manager::notify_last(NotifyState::Stopping);
    // Descriptors of programs and maps are closed before teardown.
    drop(daemon);
    if D::is_ephemeral(args) {
        info!(%instance, "stopping and restoring the host (--ephemeral)");
        teardown::role(&instance, D::ROLE.role, guard.lock, Scope::Host).await?;
    } else {
        info!(%instance, "stopping; packets are handled until `sluice down`");
    }
    ended
}

/// The control socket of a role, whose lock this process holds.
fn listen(instance: &str, role: Role) -> Result<ControlSocket, CliError> {
    let path = serve::socket_path(instance, role);
    ControlSocket::listen(&path)
        .with_context(|| format!("cannot listen on the control socket {}", path.display()))
        .map_err(CliError::Operation)
}

async fn start<D: RoleDaemon>(
    prepared: D::Prepared,
    netlink: Netlink,
    guard: &InstanceGuard,
    inputs: InputSender,
) -> Result<D, CliError> {
    let journal = Journal::open(Path::new(STATE_DIRECTORY), &guard.instance, D::ROLE.role)
        .map_err(CliError::operation)?;
    let host = Host::new(netlink, journal);
    D::start(prepared, StartContext { host, pins: guard.pins.clone(), inputs }).await
}

/// Why an input was not applied.
enum CoreError {
    /// A reload was refused before the state changed.
    Refused(CliError),
    /// The state has changed in part.
    Incomplete(CliError),
}

/// Takes inputs until [`Input::Stop`], or until the daemon cannot follow the host any more: then it
/// fails, so that a supervisor restarts it. This is the one place where inputs change the state and
/// the state is applied.
async fn handle_inputs<D: RoleDaemon>(
    mut daemon: D,
    args: &D::Args,
    instance: &str,
    check_files: impl Fn() -> Result<(), CliError>,
    mut inputs: Inputs,
    netlink: &Netlink,
    state: &StatePublisher,
) -> (D, Result<(), CliError>) {
    let mut lost = netlink.lost_connections();
    let mut predecessors = PredecessorLog::new(D::ROLE.ingress_filter(instance));
    let mut loading = None;
    while let Some(input) = inputs.next().await {
        // A reload opens the pinned maps.
        if matches!(input, Input::Inspect | Input::Reload(_))
            && let Err(error) = check_files().and_then(|()| daemon.inspect())
        {
            return (daemon, Err(error));
        }
        let may_have_predecessors = match &input {
            Input::HostChanged(changes) => changes.links || changes.filters,
            input => matches!(input, Input::Reload(_) | Input::Inspect),
        };
        match input {
            Input::Stop => break,
            Input::Failed(error) => return (daemon, Err(error)),
            Input::Inspect => state.applied(None, daemon.is_pending(), daemon.report()),
            input => handle(&mut daemon, args, input, &mut inputs, state, &mut loading).await,
        }
        report_loaded(&daemon, state, &mut loading);
        if may_have_predecessors {
            let interfaces = state.interfaces();
            // After a command, the next inspection looks again.
            let _ = inputs.unless_command(predecessors.look(netlink, &interfaces)).await;
        }
        if let Err(error) =
            resynchronise(&mut daemon, args, netlink, &mut inputs, state, &mut lost).await
        {
            return (daemon, Err(error));
        }
    }
    (daemon, Ok(()))
}

/// After a lost netlink connection, compares everything with the host again; `lost` is the number
/// of connections for which this was done. Fails if there is no connection, or none that lasts.
async fn resynchronise<D: RoleDaemon>(
    daemon: &mut D,
    args: &D::Args,
    netlink: &Netlink,
    inputs: &mut Inputs,
    state: &StatePublisher,
    lost: &mut u64,
) -> Result<(), CliError> {
    const ATTEMPTS: usize = 5;

    for _ in 0..ATTEMPTS {
        if netlink.is_closed() {
            break;
        }
        if netlink.lost_connections() == *lost {
            return Ok(());
        }
        *lost = netlink.lost_connections();
        let changed = Input::HostChanged(HostChanges::everything());
        handle(daemon, args, changed, inputs, state, &mut None).await;
    }
    Err(CliError::operation(anyhow!(
        "the netlink connection is lost and cannot be replaced, so the host cannot be followed; \
         restart the daemon"
    )))
}

/// Takes one input and applies the state. A reload that is being checked is abandoned when the
/// daemon has to end, and so is a change that does not end soon.
async fn handle<D: RoleDaemon>(
    daemon: &mut D,
    args: &D::Args,
    input: Input,
    inputs: &mut Inputs,
    state: &StatePublisher,
    loading: &mut Option<Clients>,
) {
    let name = input.name();
    let clients = match &input {
        Input::Reload(reload) => match reload.start() {
            None => return,
            clients => clients,
        },
        _ => None,
    };
    let is_reload = clients.is_some();
    let had_failed = daemon.is_pending();
    state.applying(is_reload);
    let mut digest = None;
    let taken = if is_reload {
        let read = on_thread(args, |args| {
            let files = D::read(args);
            let digest = match &files {
                Ok(files) => Some(D::digest(files)),
                Err(_) => config_file::digest(D::config_file(args)).ok(),
            };
            Ok((files, digest))
        });
        let Some(read) = inputs.wait_for(read).await else { return };
        let reload = async {
            let (files, read) = read?;
            digest = read;
            daemon.reload(args, files?).await
        };
        let Some(reloaded) = inputs.wait_for(reload).await else { return };
        reloaded
    } else {
        let taken = daemon.take(input).await;
        if taken.is_ok() && inputs.unless_command(daemon.look_up()).await.is_none() {
            // Continued after the command.
            inputs.defer(Input::HostChanged(HostChanges::default()));
            return;
        }
        taken
    };
    let applied = match taken {
        Ok(()) => match inputs.finish(daemon.apply()).await {
            Some(applied) => applied.map_err(CoreError::Incomplete),
            None => {
                warn!("{name} abandoned at a stop; the next start completes it");
                return;
            }
        },
        Err(error) if is_reload => Err(CoreError::Refused(error)),
        Err(error) => Err(CoreError::Incomplete(error)),
    };
    let outcome = match applied {
        Ok(()) => {
            if is_reload {
                daemon.log_ready();
            } else if had_failed && !daemon.is_pending() {
                info!("completed the change that had failed");
            }
            ReloadOutcome::Applied
        }
        Err(CoreError::Refused(error)) => {
            warn!(%error, "{name} failed; nothing was changed");
            ReloadOutcome::Refused(error.to_string())
        }
        Err(CoreError::Incomplete(error)) => {
            warn!(%error, "{name} failed; changes logged above were applied, the rest were not");
            ReloadOutcome::Incomplete(error.to_string())
        }
    };
    state.applied(outcome.error(), daemon.is_pending(), daemon.report());
    if let Some(clients) = clients {
        state.reloaded(outcome.clone(), digest);
        match outcome {
            ReloadOutcome::Applied => loading.get_or_insert_default().extend(clients),
            outcome => clients.send(&outcome),
        }
    }
}

/// Sends the result of reloads whose files are all loaded, and the applied configuration with them.
fn report_loaded<D: RoleDaemon>(daemon: &D, state: &StatePublisher, loading: &mut Option<Clients>) {
    if loading.is_none() {
        return;
    }
    let Some(loaded) = daemon.loaded() else { return };
    let outcome = match (loaded, state.failing()) {
        (Err(error), _) => ReloadOutcome::Stale(error),
        (Ok(()), Some(error)) => ReloadOutcome::Incomplete(error),
        (Ok(()), None) => ReloadOutcome::Applied,
    };
    if outcome != ReloadOutcome::Applied {
        state.loaded(outcome.clone());
    }
    loading.take().unwrap_or_default().send(&outcome);
}

/// Reads the files on a thread. It is not one of tokio's, because the runtime waits for those when
/// the daemon ends.
async fn on_thread<A: Clone + Send + 'static, T: Send + 'static>(
    args: &A,
    read: fn(&A) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let (sender, files) = oneshot::channel();
    let args = args.clone();
    let run = move || drop(sender.send(read(&args)));
    let spawned = thread::Builder::new().name("files".to_owned()).spawn(run);
    spawned.map_err(no_thread).map_err(CliError::operation)?;
    files.await.context("the reading thread ended").map_err(CliError::Operation)?
}

#[cfg(test)]
mod tests;
