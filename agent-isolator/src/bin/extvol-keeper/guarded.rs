//! The keeper as two processes: a deadman, and the worker that it starts (docs/decisions/0012-fencing.md). Both are given the same
//! arguments, for either starts the other.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use agent_isolator::keeper::deadman::{self, DEADLINE, DeadmanError, Guard, Settings};
use agent_isolator::keeper::fence::{Policy, Reset};
use agent_isolator::keeper::leases::sentence;
use agent_isolator::keeper::log::BoundedLog;
use agent_isolator::keeper::shared_memory::SharedMemory;
use agent_isolator::parameters::KeeperParameters;
use shared::clock::holder_now;
use shared::protocol::timing::Profile;

const USAGE: &str = "\
usage: extvol-keeper deadman|worker [options] -- [what else the keeper is given]

  --beside              in place of a deadman that died, beside the worker that runs
  --cgroup-root PATH    the freezer cgroup of the agent's containers; /mesos
  --hosts-own PATH      on a file system that is the host's own; may be repeated
  --reset sysrq|reboot  how the host is reset when a fence is not proved in time; not at all
  --kill-ms N           how long a fence may take, where the table does not tell
  --watchdog PATH       a watchdog device
";

struct Arguments {
    beside: bool,
    cgroup_root: String,
    hosts_own: Vec<PathBuf>,
    reset: Option<Reset>,
    kill: Duration,
    watchdog: Option<PathBuf>,
    /// As given, but for `--beside`.
    common: Vec<String>,
    parameters: KeeperParameters,
}

fn read(given: Vec<String>) -> Result<Arguments, String> {
    let mut options = given.iter().take_while(|argument| *argument != "--").cloned();
    let keepers = given.iter().skip_while(|argument| *argument != "--").skip(1).cloned();
    let (_, pairs) = super::arguments(keepers)?;
    let parameters = KeeperParameters::read(&pairs).map_err(|error| error.to_string())?;
    let mut read = Arguments {
        beside: false,
        cgroup_root: "/mesos".to_owned(),
        hosts_own: vec![parameters.run_directory.clone(), parameters.state_directory.clone()],
        reset: None,
        kill: Profile::Default.timing().kill,
        watchdog: None,
        common: given.iter().filter(|argument| *argument != "--beside").cloned().collect(),
        parameters,
    };
    while let Some(option) = options.next() {
        if option == "--beside" {
            read.beside = true;
            continue;
        }
        let value = options.next().ok_or_else(|| format!("{option} needs a value\n{USAGE}"))?;
        match option.as_str() {
            "--cgroup-root" => read.cgroup_root = value,
            "--hosts-own" => read.hosts_own.push(value.into()),
            "--watchdog" => read.watchdog = Some(value.into()),
            "--kill-ms" => {
                let milliseconds = value.parse().map_err(|_| format!("{value:?} is no number"))?;
                read.kill = Duration::from_millis(milliseconds);
            }
            "--reset" if value == "sysrq" => read.reset = Some(Reset::Sysrq("/proc/sysrq-trigger".into())),
            "--reset" if value == "reboot" => read.reset = Some(Reset::Reboot),
            _ => return Err(format!("{option} {value} is not understood\n{USAGE}")),
        }
    }
    Ok(read)
}

impl Arguments {
    fn arguments_of(&self, mode: &[&str]) -> Vec<OsString> {
        mode.iter().map(OsString::from).chain(self.common.iter().map(OsString::from)).collect()
    }

    fn settings(&self) -> Settings {
        Settings {
            directory: self.parameters.run_directory.clone(),
            worker: self.arguments_of(&["worker"]),
            policy: Policy {
                roots: self.parameters.mount_roots.clone(),
                hosts_own: self.hosts_own.clone(),
                cgroup_root: Some(self.cgroup_root.clone()),
                program: "/proc/self/exe".into(),
                reset: self.reset.clone(),
            },
            kill: self.kill,
            watchdog: self.watchdog.clone(),
        }
    }
}

/// A deadman's whole life.
pub(crate) fn deadman(given: Vec<String>) -> Result<(), String> {
    let _name_is_for_people = rustix::thread::set_name(c"extvol-deadman");
    let arguments = read(given)?;
    if arguments.beside {
        log(&arguments)?;
        return deadman::run_beside(arguments.settings()).map_err(|error| sentence(&error));
    }
    if rustix::process::setsid().is_err() && !is_session_leader() {
        // A shell's job leads a process group, and cannot open a session: a child of it can.
        let again = std::env::args_os().skip(1);
        let status =
            Command::new("/proc/self/exe").args(again).status().map_err(|error| error.to_string())?;
        return if status.success() { Ok(()) } else { Err(format!("the deadman ended with {status}")) };
    }
    let run = || {
        log(&arguments)?;
        deadman::run(arguments.settings()).map_err(|error: DeadmanError| sentence(&error))
    };
    run().inspect_err(|why| tracing::error!("{why}"))
}

fn is_session_leader() -> bool {
    rustix::process::getsid(None).is_ok_and(|session| session == rustix::process::getpid())
}

/// To a file in memory: whoever reads a pipe could stop reading, and the deadman must not wait for that.
fn log(arguments: &Arguments) -> Result<(), String> {
    use std::os::unix::fs::DirBuilderExt;
    let directory = &arguments.parameters.run_directory;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let path = directory.join("deadman.log");
    let log = BoundedLog::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    tracing_subscriber::fmt().with_ansi(false).log_internal_errors(false).with_writer(log).init();
    Ok(())
}

/// A worker's whole life, beside the deadman that started it.
pub(crate) fn worker(given: Vec<String>) -> Result<(), String> {
    let _name_is_for_people = rustix::thread::set_name(c"extvol-worker");
    let arguments = read(given)?;
    let shared = SharedMemory::open(&arguments.parameters.run_directory.join(DEADLINE));
    let shared = Arc::new(shared.map_err(|error| sentence(&error))?);
    // Before anything that takes its time: the deadman counts.
    shared.tick_worker(holder_now());
    let guard = Guard::new(shared, arguments.arguments_of(&["deadman", "--beside"]));
    super::run(arguments.parameters, Some(guard))
}

/// The worker's ticks, on its one thread: when that hangs, they end.
pub(crate) async fn keep_ticking(mut guard: Guard) {
    loop {
        if let Err(error) = guard.tick(holder_now()) {
            tracing::error!("no deadman could be started: {error}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
