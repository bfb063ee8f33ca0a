//! `extvol-keeper`: owns the leases and mounts of external volumes on one Mesos agent host.
//!
//! It is three processes: the deadman, which this program is when it is started, the worker, which that starts, and the guard, which is
//! left when those two are killed together. Deadman and worker start each other again, the deadman the guard, and all
//! start helpers for what may hang.

mod start;
mod worker;

use std::io::Write;
use std::process::ExitCode;

use agent_isolator::keeper::deadman;
use agent_isolator::keeper::fence::{HELPER_MODE, run_helper};
use agent_isolator::keeper::limits::raise_descriptors;
use agent_isolator::keeper::probe::{PROBE_MODE, run_probe};
use agent_isolator::keeper::sentence;
use agent_isolator::parameters::{self, KeeperParameters};

const USAGE: &str = "\
usage: extvol-keeper [--detach] [--config FILE] [--NAME=VALUE ...]

  --config FILE   a JSON object of parameters: names, and values as strings; `drivers` may be an object
  --NAME=VALUE    one parameter; etcd_endpoints is required, README.md lists all
  --detach        go on in the background, away from the caller's session and cgroups
";

/// What this process is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Started by a person, systemd or the agent.
    Keeper,
    /// Started by the deadman.
    Worker,
    /// Started by the worker, in place of one that died.
    DeadmanBeside,
    /// Started by the deadman, and left when all others are killed.
    Guard,
}

fn main() -> ExitCode {
    let mut given: Vec<_> = std::env::args().skip(1).collect();
    let role = match given.first().map(String::as_str) {
        Some(HELPER_MODE) => {
            return run_helper(given.get(1).and_then(|parent| parent.parse().ok()).unwrap_or_default());
        }
        Some(PROBE_MODE) => return run_probe(),
        Some(start::WORKER) => Role::Worker,
        Some(start::DEADMAN) => Role::DeadmanBeside,
        Some(start::GUARD) => Role::Guard,
        _ => Role::Keeper,
    };
    if role != Role::Keeper {
        given.remove(0);
    }
    match run(role, given) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Nothing can be done about a standard error that is closed.
            // The usage has lines of its own; what is quoted of the command line is escaped there.
            let _ = writeln!(std::io::stderr(), "extvol-keeper: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role, given: Vec<String>) -> Result<(), String> {
    let (detach, pairs) = arguments(given.into_iter())?;
    let parameters = KeeperParameters::read(&pairs).map_err(|error| error.to_string())?;
    match role {
        Role::Keeper if detach => start::detached(&parameters),
        Role::Keeper => start::deadman(&parameters),
        Role::Worker => worker::run(parameters),
        Role::Guard => start::guard(&parameters),
        Role::DeadmanBeside => {
            start::name_deadman();
            raise_descriptors();
            start::log(&parameters, start::DEADMAN_LOG)?;
            deadman::run_beside(start::settings(&parameters)).map_err(|error| sentence(&error))
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
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{file}: {error}"))?;
    parameters::pairs_of(&json).map_err(|why| format!("{file}: {why}"))
}
