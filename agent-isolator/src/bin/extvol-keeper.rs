//! `extvol-keeper`: owns the leases and mounts of external volumes on one Mesos agent host.

#[path = "extvol-keeper/guarded.rs"]
mod guarded;

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use agent_isolator::keeper::checkpoint::{Checkpoint, Owner, lock, machine};
use agent_isolator::keeper::deadman::Guard;
use agent_isolator::keeper::driver::DockerPlugins;
use agent_isolator::keeper::fence::{HELPER_MODE, run_helper};
use agent_isolator::keeper::leases::{Identity, Leases, sentence};
use agent_isolator::keeper::log::BoundedLog;
use agent_isolator::keeper::{Keeper, random_id, server};
use agent_isolator::parameters::KeeperParameters;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::keys::Keys;

/// A detached keeper's log, in its run directory.
const LOG: &str = "keeper.log";

/// So many volumes may hang before those that do not have to wait.
const BLOCKING_THREADS: usize = 24;

const USAGE: &str = "\
usage: extvol-keeper [--detach] [--config FILE] [--NAME=VALUE ...]

  --config FILE   a JSON object of parameters, names and values as strings
  --NAME=VALUE    one parameter; etcd_endpoints is required, README.md lists all
  --detach        go on in the background, away from the caller's session and cgroups
";

fn main() -> ExitCode {
    let mut given = std::env::args().skip(1);
    match given.next().as_deref() {
        Some(HELPER_MODE) => {
            return run_helper(given.next().and_then(|parent| parent.parse().ok()).unwrap_or_default());
        }
        Some("deadman") => return ended(guarded::deadman(given.collect())),
        Some("worker") => return ended(guarded::worker(given.collect())),
        _ => {}
    }
    let run = || -> Result<(), String> {
        let (detach, pairs) = arguments(std::env::args().skip(1))?;
        let parameters = KeeperParameters::read(&pairs).map_err(|error| error.to_string())?;
        if detach {
            return start_detached(&parameters);
        }
        run(parameters, None)
    };
    ended(run())
}

fn ended(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Nothing can be done about a standard error that is closed.
            let _ = writeln!(std::io::stderr(), "extvol-keeper: {why}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(given: impl Iterator<Item = String>) -> Result<(bool, Vec<(String, String)>), String> {
    let (mut detach, mut pairs, mut given) = (false, Vec::new(), given);
    while let Some(argument) = given.next() {
        match (argument.as_str(), argument.strip_prefix("--").and_then(|rest| rest.split_once('='))) {
            ("--detach", _) => detach = true,
            ("--config", _) => {
                let file = given.next().ok_or("--config needs a file")?;
                pairs.extend(config(&file)?);
            }
            (_, Some((name, value))) => pairs.push((name.to_owned(), value.to_owned())),
            ("--help" | "-h", _) => return Err(USAGE.to_owned()),
            (other, _) => return Err(format!("{other:?} is not understood\n{USAGE}")),
        }
    }
    Ok((detach, pairs))
}

fn config(file: &str) -> Result<Vec<(String, String)>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let pairs: std::collections::BTreeMap<String, String> =
        serde_json::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
    Ok(pairs.into_iter().collect())
}

/// Starts this program again as a child that nobody waits for: it leaves the caller's session and
/// cgroups, so that what ends the agent does not end the keeper.
fn start_detached(parameters: &KeeperParameters) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    // The lock makes the directory too, and tells at once when another keeper runs.
    drop(lock(&parameters.run_directory).map_err(|error| sentence(&error))?);
    let path = parameters.run_directory.join(LOG);
    let log = std::fs::File::options().create(true).append(true).open(&path);
    let log = log.map_err(|error| format!("{}: {error}", path.display()))?;
    let mut command = Command::new(own);
    command.args(parameters.given.iter().map(|(name, value)| format!("--{name}={value}")));
    // What is said before the log is open, or by a panic.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // One heap in place of one for each thread that ever ran: nothing here is in a hurry to allocate.
    command.env("MALLOC_ARENA_MAX", "1");
    command.env("EXTVOL_DETACHED", "1").spawn().map_err(|error| error.to_string())?;
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

fn run(parameters: KeeperParameters, guard: Option<Guard>) -> Result<(), String> {
    let detached = std::env::var_os("EXTVOL_DETACHED").is_some();
    let filter = std::env::var("EXTVOL_LOG").unwrap_or_else(|_| "info".into());
    // A log that cannot be written is no reason to end.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false);
    match BoundedLog::open(&parameters.run_directory.join(LOG)).ok().filter(|_| detached) {
        Some(bounded) => log.with_writer(bounded).init(),
        None => log.with_writer(std::io::stderr).init(),
    }
    // A keeper with a part missing would go on half: better none, until it is started again.
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "extvol-keeper: a bug: {panic}");
        std::process::abort();
    }));
    if detached {
        rustix::process::setsid().map_err(|error| format!("setsid: {error}"))?;
        leave_cgroups();
    }
    let _locks = [&parameters.run_directory, &parameters.state_directory]
        .map(|directory| lock(directory).map_err(|error| sentence(&error)))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let machine = machine(&parameters.state_directory).map_err(|error| sentence(&error))?;
    let owner = Owner {
        holder: parameters.holder.clone(),
        etcd_prefix: parameters.etcd_prefix.clone(),
        cluster: None,
    };
    let checkpoint = Checkpoint::new(&parameters.run_directory, &machine.boot_id, owner);
    let config = EtcdConfig {
        request_timeout: parameters.request_timeout,
        // Hosts begin with different members, and so share the load.
        first_member: parameters.holder.as_str().bytes().map(usize::from).sum(),
        ..EtcdConfig::new(parameters.etcd_endpoints.clone())
    };
    let store = EtcdStore::new(config).map_err(|error| sentence(&error))?;
    let identity = Identity {
        holder: parameters.holder.clone(),
        machine,
        instance: random_id(),
        naming: parameters.naming.clone(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For looks at mounts and devices, any of which may hang: each that does takes one of these for good. Each
        // costs memory when many launches come at once.
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|error| format!("the runtime could not be made: {error}"))?;
    runtime.block_on(async {
        if let Some(guard) = guard {
            tokio::spawn(guarded::keep_ticking(guard));
        }
        let listener = server::listen(&parameters.socket())
            .map_err(|error| format!("{}: {error}", parameters.socket().display()))?;
        tracing::info!("keeper of holder {} listens at {}", parameters.holder, parameters.socket().display());
        for root in &parameters.mount_roots {
            if let Err(why) = agent_isolator::keeper::mounts::check_root(root) {
                tracing::error!("{why}");
            }
        }
        let keys = Keys::new(&parameters.etcd_prefix);
        let leases = Leases::new(store, keys, identity);
        let plugins = DockerPlugins::new(parameters.naming.driver_aliases.clone());
        let keeper =
            Keeper::start(parameters, checkpoint, leases, plugins).map_err(|error| sentence(&error))?;
        tokio::spawn(server::serve(listener, keeper.events()));
        keeper.run().await;
        Ok(())
    })
}
