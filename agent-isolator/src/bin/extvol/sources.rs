//! Where the parameters come from: the command line before a file before the keeper that runs here.
//!
//! All are the keeper's own names, and are checked as the keeper checks them. The environment is not
//! read: a forgotten ETCDCTL_ENDPOINTS must not lead a revoke to another cluster.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use agent_isolator::parameters::{self, KeeperParameters};
use serde_json::Value;
use shared::parameters::ParameterError;

use crate::arguments::Arguments;
use crate::failure::Failure;

/// The unit's file (`extvol-keeper.service`).
const KEEPER_FILE: &str = "/etc/extvol/keeper.json";
/// The default of the parameter `run_directory`.
const RUN_DIRECTORY: &str = "/run/extvol";

/// The module that holds the parameters of a modules JSON, the agent's before the master's.
const MODULES: [&str; 2] = ["org_extvol_VolumeIsolator", "org_extvol_VolumeLeaseMaster"];

/// The parameters, and where they were found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) parameters: KeeperParameters,
    /// For people.
    pub(crate) from: String,
}

type Pairs = Vec<(String, String)>;

/// Finds the parameters.
///
/// # Errors
/// [`Failure::Usage`].
pub(crate) fn parameters(arguments: &Arguments) -> Result<Found, Failure> {
    let given = &arguments.parameters;
    let has_endpoints = given.iter().any(|(name, _)| name == "etcd_endpoints");
    let (base, from) = match &arguments.config {
        Some(file) => (read_file(Path::new(file)).map_err(Failure::Usage)?, format!("the file {file}")),
        None if has_endpoints => (Pairs::new(), "the command line".to_owned()),
        None => on_this_host(given).map_err(Failure::Usage)?,
    };
    merged(base, given)
        .map(|parameters| Found { parameters, from })
        .map_err(|error| Failure::Usage(error.to_string()))
}

/// What a file gives, overridden by what the command line gives.
fn merged(mut base: Pairs, given: &Pairs) -> Result<KeeperParameters, ParameterError> {
    base.retain(|(name, _)| given.iter().all(|(other, _)| other != name));
    base.extend(given.iter().cloned());
    KeeperParameters::read(&base)
}

fn on_this_host(given: &Pairs) -> Result<(Pairs, String), String> {
    let directory = given.iter().find(|(name, _)| name == "run_directory").map(|(_, value)| value.as_str());
    let socket = Path::new(directory.unwrap_or(RUN_DIRECTORY)).join("keeper.sock");
    if let Some((pid, pairs)) = running_keeper(&socket) {
        return Ok((pairs, format!("the keeper that runs here, process {pid}")));
    }
    let file = Path::new(KEEPER_FILE);
    if file.exists() {
        return Ok((read_file(file)?, format!("the file {KEEPER_FILE}")));
    }
    Err(format!(
        "etcd's endpoints are not known: no keeper answers at {}, and there is no {KEEPER_FILE}; give \
         --endpoints host:port,... or --config FILE",
        socket.display()
    ))
}

/// The parameters of the keeper that listens at `socket`: those of its command line.
fn running_keeper(socket: &Path) -> Option<(i32, Pairs)> {
    let stream = UnixStream::connect(socket).ok()?;
    let pid = rustix::net::sockopt::socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get();
    let process = PathBuf::from(format!("/proc/{pid}"));
    let command_line = std::fs::read(process.join("cmdline")).ok()?;
    let words = command_line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let directory = std::fs::read_link(process.join("cwd")).ok()?;
    of_command_line(words, &directory).map(|pairs| (pid, pairs))
}

/// The keeper's own reading of its command line; a later pair wins nothing, for it refuses two.
fn of_command_line(words: impl Iterator<Item = String>, directory: &Path) -> Option<Pairs> {
    let (mut pairs, mut words) = (Pairs::new(), words.skip(1));
    while let Some(word) = words.next() {
        if word == "--config" {
            pairs.extend(read_file(&directory.join(words.next()?)).ok()?);
        } else if let Some((name, value)) = word.strip_prefix("--").and_then(|rest| rest.split_once('=')) {
            pairs.push((name.to_owned(), value.to_owned()));
        }
    }
    pairs.iter().any(|(name, _)| name == "etcd_endpoints").then_some(pairs)
}

fn read_file(file: &Path) -> Result<Pairs, String> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("{shown}: {error}"))?;
    let json: Value = serde_json::from_str(&text).map_err(|error| format!("{shown}: {error}"))?;
    of_json(&json).map_err(|why| format!("{shown}: {why}"))
}

/// The pairs of a keeper's file, or of a modules JSON.
fn of_json(json: &Value) -> Result<Pairs, String> {
    if let Some(libraries) = json.get("libraries") {
        return of_modules(libraries);
    }
    parameters::pairs_of(json)
        .map_err(|why| format!("neither an object of parameters nor a modules JSON: {why}"))
}

fn of_modules(libraries: &Value) -> Result<Pairs, String> {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let modules: Vec<Value> =
        list(Some(libraries)).iter().flat_map(|library| list(library.get("modules"))).collect();
    let module = MODULES
        .iter()
        .find_map(|name| modules.iter().find(|module| module.get("name").is_some_and(|n| n == *name)));
    let module = module.ok_or_else(|| format!("it has no module {}", MODULES.join(" or ")))?;
    let pairs = list(module.get("parameters")).into_iter().map(|parameter| {
        let text = |key| parameter.get(key).and_then(Value::as_str).map(str::to_owned);
        text("key").zip(text("value")).ok_or_else(|| format!("{parameter} is no pair of key and value"))
    });
    Ok(only_the_keepers(pairs.collect::<Result<_, _>>()?))
}

/// Modules have parameters of their own beside the keeper's, of which nothing is said here.
fn only_the_keepers(mut pairs: Pairs) -> Pairs {
    while let Err(ParameterError::Unknown { name, .. }) = KeeperParameters::read(&pairs) {
        pairs.retain(|(other, _)| *other != name);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn a_keepers_file_and_the_modules_files_of_agent_and_master_are_read() {
        let keeper = json!({ "etcd_endpoints": "h:1", "holder": "a" });
        assert_eq!(of_json(&keeper).unwrap(), [pair("etcd_endpoints", "h:1"), pair("holder", "a")]);
        let modules = |name: &str, own: &str| {
            json!({ "libraries": [{ "file": "/l.so", "modules": [
                { "name": "org_other", "parameters": [{ "key": "etcd_endpoints", "value": "wrong:1" }] },
                { "name": name, "parameters": [
                    { "key": own, "value": "x" }, { "key": "etcd_endpoints", "value": "h:1" }
                ] },
            ] }] })
        };
        for (name, own) in [(MODULES[0], "sandbox_directory"), (MODULES[1], "poll_interval")] {
            assert_eq!(of_json(&modules(name, own)).unwrap(), [pair("etcd_endpoints", "h:1")], "{name}");
        }
        let error = of_json(&modules("org_another", "x")).unwrap_err();
        assert!(error.contains("no module org_extvol_VolumeIsolator or"), "{error}");
        assert!(of_json(&json!({ "etcd_endpoints": 1 })).unwrap_err().contains("is no string"));
    }

    #[test]
    fn the_command_line_overrides_a_file_and_is_checked_as_the_keeper_checks_it() {
        let base = vec![pair("etcd_endpoints", "h:1"), pair("etcd_prefix", "/a")];
        let read = merged(base.clone(), &vec![pair("etcd_prefix", "/b")]).unwrap();
        assert_eq!((read.etcd_prefix.as_str(), &read.etcd_endpoints[..]), ("/b", &["http://h:1".into()][..]));
        let error = merged(base, &vec![pair("colour", "red")]).unwrap_err().to_string();
        assert!(error.contains("no parameter `colour`"), "{error}");
    }

    #[test]
    fn a_running_keepers_command_line_tells_its_parameters() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("k.json"), r#"{"etcd_endpoints":"h:1"}"#).unwrap();
        let of = |line: &str| of_command_line(line.split(' ').map(str::to_owned), directory.path());
        assert_eq!(
            of("keeper --config k.json --holder=a"),
            Some(vec![pair("etcd_endpoints", "h:1"), pair("holder", "a")])
        );
        assert_eq!(of("keeper --etcd_endpoints=h:2"), Some(vec![pair("etcd_endpoints", "h:2")]));
        assert_eq!(of("another-program --holder=a"), None);
    }
}
