//! The start of a keeper: as the deadman, in a session of its own, maybe detached from who started it.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::sync::Arc;

use agent_isolator::keeper::cgroups;
use agent_isolator::keeper::checkpoint::private_directory;
use agent_isolator::keeper::deadman::{self, GUARD_LOG, Settings, check_watchdog, watchdog_timeout};
use agent_isolator::keeper::limits::raise_descriptors;
use agent_isolator::keeper::log::{BoundedLog, OneLine};
use agent_isolator::keeper::sentence;
use agent_isolator::parameters::KeeperParameters;

/// The first argument of a worker.
pub(crate) const WORKER: &str = "worker";

/// The first argument of a deadman that a worker starts.
pub(crate) const DEADMAN: &str = "deadman";

/// The first argument of a guard.
pub(crate) const GUARD: &str = "guard";

/// A detached keeper's log, in its run directory.
pub(crate) const LOG: &str = "keeper.log";

pub(crate) const DEADMAN_LOG: &str = "deadman.log";

/// Says to a keeper that it was detached.
pub(crate) const DETACHED: &str = "EXTVOL_DETACHED";

/// Arguments that give another process of this keeper the same parameters.
pub(crate) fn arguments(role: &str, parameters: &KeeperParameters) -> Vec<OsString> {
    let parameter = |(name, value): (&String, &String)| OsString::from(format!("--{name}={value}"));
    std::iter::once(role.into()).chain(parameters.given.iter().map(parameter)).collect()
}

pub(crate) fn settings(parameters: &KeeperParameters) -> Settings {
    Settings {
        directory: parameters.run_directory.clone(),
        worker: arguments(WORKER, parameters),
        guard: arguments(GUARD, parameters),
        cgroup: parameters.guard_cgroup(),
        policy: parameters.policy(),
        kill: parameters.timing.kill,
        watchdog: parameters.watchdog.clone(),
    }
}

/// Starts this program again as a child that nobody waits for: it leaves the caller's session and
/// cgroups, so that what ends the agent does not end the keeper.
pub(crate) fn detached(parameters: &KeeperParameters) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    private_directory(&parameters.run_directory).map_err(|error| sentence(&error))?;
    let path = parameters.run_directory.join(LOG);
    let log = std::fs::File::options().create(true).append(true).open(&path);
    let log = log.map_err(|error| format!("{}: {error}", path.display()))?;
    let mut command = Command::new(own);
    command.args(parameters.given.iter().map(|(name, value)| format!("--{name}={value}")));
    // What is said before the log is open, or by a panic.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // One heap in place of one for each thread that ever ran: nothing here is in a hurry to allocate.
    command.env("MALLOC_ARENA_MAX", "1");
    command.env(DETACHED, "1").spawn().map_err(|error| error.to_string())?;
    Ok(())
}

/// The whole life of a guard.
pub(crate) fn guard(parameters: &KeeperParameters) -> Result<(), String> {
    let _name_is_for_people = rustix::thread::set_name(c"extvol-guard");
    // A keeper's processes are found, and killed, by their session: it is not one of them.
    let session = rustix::process::setsid();
    log(parameters, GUARD_LOG)?;
    if let Err(error) = session {
        tracing::error!("the guard has no session of its own: {error}");
    }
    deadman::run_guard(settings(parameters))
        .map_err(|error| sentence(&error))
        .inspect_err(|why| tracing::error!("{why}"))
}

/// So that people, and `pgrep`, tell it from the worker.
pub(crate) fn name_deadman() {
    let _name_is_for_people = rustix::thread::set_name(c"extvol-deadman");
}

/// The whole life of a keeper's first process.
pub(crate) fn deadman(parameters: &KeeperParameters) -> Result<(), String> {
    name_deadman();
    raise_descriptors();
    if let Some(path) = &parameters.watchdog
        && let Some(timeout) = watchdog_timeout(path)
    {
        check_watchdog(&parameters.timing, timeout)?;
    }
    // All processes of a keeper are found by their session.
    if rustix::process::setsid().is_err() && !is_session_leader() {
        // A shell's job leads a process group, and cannot open a session: a child of it can.
        let again = std::env::args_os().skip(1);
        let status =
            Command::new("/proc/self/exe").args(again).status().map_err(|error| error.to_string())?;
        return if status.success() { Ok(()) } else { Err(format!("the keeper ended with {status}")) };
    }
    // Before anything that takes its time: what ends the agent's cgroup is not to end this.
    let left = if std::env::var_os(DETACHED).is_some() { cgroups::leave() } else { Ok(()) };
    log(parameters, DEADMAN_LOG)?;
    if let Err(why) = left {
        tracing::error!("what ends the agent may end this keeper, too: {why}");
    }
    deadman::run(settings(parameters))
        .map_err(|error| sentence(&error))
        .inspect_err(|why| tracing::error!("{why}"))
}

fn is_session_leader() -> bool {
    rustix::process::getsid(None).is_ok_and(|session| session == rustix::process::getpid())
}

/// To a file in memory: whoever reads a pipe could stop reading, and the deadman must not wait for that.
pub(crate) fn log(parameters: &KeeperParameters, name: &str) -> Result<(), String> {
    private_directory(&parameters.run_directory).map_err(|error| sentence(&error))?;
    let path = parameters.run_directory.join(name);
    let log = BoundedLog::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    tracing_subscriber::fmt()
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(OneLine(Arc::new(log)))
        .init();
    Ok(())
}
