//! The start of a keeper: as the deadman, in a session of its own, maybe detached from who started it.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use agent_isolator::keeper::checkpoint::private_directory;
use agent_isolator::keeper::deadman::{self, Settings, check_watchdog, watchdog_timeout};
use agent_isolator::keeper::limits::raise_descriptors;
use agent_isolator::keeper::log::{BoundedLog, OneLine};
use agent_isolator::keeper::sentence;
use agent_isolator::parameters::KeeperParameters;

/// The first argument of a worker.
pub(crate) const WORKER: &str = "worker";

/// The first argument of a deadman that a worker starts.
pub(crate) const DEADMAN: &str = "deadman";

/// A detached keeper's log, in its run directory.
pub(crate) const LOG: &str = "keeper.log";

const DEADMAN_LOG: &str = "deadman.log";

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
    if std::env::var_os(DETACHED).is_some() {
        leave_cgroups();
    }
    log(parameters)?;
    deadman::run(settings(parameters))
        .map_err(|error| sentence(&error))
        .inspect_err(|why| tracing::error!("{why}"))
}

fn is_session_leader() -> bool {
    rustix::process::getsid(None).is_ok_and(|session| session == rustix::process::getpid())
}

/// To a file in memory: whoever reads a pipe could stop reading, and the deadman must not wait for that.
pub(crate) fn log(parameters: &KeeperParameters) -> Result<(), String> {
    private_directory(&parameters.run_directory).map_err(|error| sentence(&error))?;
    let path = parameters.run_directory.join(DEADMAN_LOG);
    let log = BoundedLog::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    tracing_subscriber::fmt()
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(OneLine(Arc::new(log)))
        .init();
    Ok(())
}

/// Moves this process to the root of each cgroup hierarchy that it is below of.
fn leave_cgroups() {
    let table = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for line in table.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if path == "/" {
            continue;
        }
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let root = Path::new("/sys/fs/cgroup").join(name).join("cgroup.procs");
        if let Err(error) = std::fs::write(&root, std::process::id().to_string()) {
            tracing::warn!("the cgroup {controllers}:{path} could not be left: {error}");
        }
    }
}
