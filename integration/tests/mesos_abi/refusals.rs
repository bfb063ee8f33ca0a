//! A library that does not fit is refused at load: Mesos exits, and its log has the sentence that says why. The agent
//! (or the master) then starts with the product itself, so it was the defect that was refused and nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::cluster::{Cluster, ClusterConfig, Ended, Host, target_directory};
use integration::trial::{Result, SOON};
use serde_json::{Value, json};

use crate::library::{Library, broken, glue};

/// A host of a cluster, and the service there that loads the module.
pub(crate) struct Loader<'a> {
    cluster: &'a Cluster,
    host: &'a Host,
    service: &'static str,
}

impl<'a> Loader<'a> {
    /// The agent of the first host, not running.
    pub(crate) fn agent(cluster: &'a Cluster) -> Result<Self> {
        cluster.host(0).kill_agent()?;
        Ok(Self { cluster, host: cluster.host(0), service: "agent" })
    }

    /// The master, not running.
    fn master(cluster: &'a Cluster) -> Result<Self> {
        cluster.hub().kill_service("master")?;
        Ok(Self { cluster, host: cluster.hub(), service: "master" })
    }

    /// Starts the service with another library and, if any, one more parameter; it must end by itself. What it said.
    pub(crate) fn starts_in_vain(&self, library: &Path, parameter: Option<(&str, &str)>) -> Result<String> {
        let log = self.cluster.logs().join(format!("{}-{}.log", self.host.name(), self.service));
        let read = || String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        let before = read().len();
        let good = self.replace(library, parameter);
        self.host.start_service(self.service)?;
        let ended = self.host.wait(self.service, SOON)?;
        fs::write(self.modules(), good).expect("the modules as they were");
        let said = read().split_off(before);
        assert!(matches!(ended, Some(Ended::Code(code)) if code != 0), "{ended:?}: {said}");
        Ok(said)
    }

    fn refuses(&self, library: &Path, parameter: Option<(&str, &str)>, sentences: &[&str]) -> Result<()> {
        let said = self.starts_in_vain(library, parameter)?;
        for sentence in sentences {
            assert!(said.contains(sentence), "{sentence:?} is not in: {said}");
        }
        Ok(())
    }

    fn modules(&self) -> std::path::PathBuf {
        self.host.directory().join("modules.json")
    }

    /// Puts another library, and one more parameter, into the modules JSON; what was there.
    fn replace(&self, library: &Path, parameter: Option<(&str, &str)>) -> String {
        let good = fs::read_to_string(self.modules()).expect("the modules");
        let mut json: Value = serde_json::from_str(&good).expect("JSON");
        json["libraries"][0]["file"] = json!(library);
        let parameters = json["libraries"][0]["modules"][0]["parameters"].as_array_mut().expect("parameters");
        parameters.extend(parameter.map(|(key, value)| json!({ "key": key, "value": value })));
        fs::write(self.modules(), json.to_string()).expect("other modules");
        good
    }
}

fn cluster() -> Result<Cluster> {
    Ok(Cluster::start(ClusterConfig::complete(1, &[])?)?)
}

fn product() -> std::path::PathBuf {
    target_directory().join("extvol/libextvol.so")
}

/// An expectation of `host_expectations_shim.hpp` made wrong, and the sentence with which the agent's module is refused.
/// The two tables have all of them.
type Wrong = (&'static str, &'static str);

const FUTURES: [Wrong; 8] = [
    ("expected.futureState = 0", "default-made Future<Nothing>: expected state 0, discard 0"),
    (
        "expected.futureDiscard = 10",
        "default-made Future<Nothing>: expected state 0, discard 0, associated 0, abandoned 1, found state 0, discard 1",
    ),
    ("expected.futureAssociated = 10", "abandoned 1, found state 0, discard 0, associated 1"),
    ("expected.futureAbandoned = 9", "abandoned 1, found state 0, discard 0, associated 0, abandoned 0"),
    ("expected.pending = 1", "default-made Future<Nothing>: expected state 1"),
    ("expected.ready = 2", "Future<Nothing> after set(): expected state 2"),
    ("expected.failed = 3", "Future<Nothing> after fail(): expected state 3"),
    ("expected.sharedPtrUseCount = 12", "owners in the shared_ptr of Future<Nothing>: expected 2, found 1"),
];

const RELEASE_FUNCTIONS_AND_SIZES: [Wrong; 7] = [
    ("expected.testedVersions = {\"1.9.0\"}", "Mesos version: expected one of 1.9.0, found 1.11.0"),
    (
        "std::swap(expected.isolatorFunctions[3], expected.isolatorFunctions[4])",
        "virtual function 3 of Isolator: expected isolate, found prepare",
    ),
    (
        "expected.isolatorFunctions.insert(expected.isolatorFunctions.begin() + 9, \"pause\")",
        "virtual function 9 of Isolator: expected pause, found cleanup",
    ),
    ("expected.launchInfoRoom = 8", "size of ContainerLaunchInfo: expected 1 to 8 bytes, found "),
    ("expected.limitationRoom = 8", "size of ContainerLimitation: expected 1 to 8 bytes, found "),
    ("expected.statisticsRoom = 8", "size of ResourceStatistics: expected 1 to 8 bytes, found "),
    ("expected.statusRoom = 8", "size of ContainerStatus: expected 1 to 8 bytes, found "),
];

fn refuses_each(agent: &Loader, table: &[Wrong]) -> Result<()> {
    for (defect, sentence) in table {
        let library = Library::with("expectation.cpp", &[&format!("-DDEFECT={defect}")]);
        agent.refuses(
            &library.path(),
            None,
            &["extvol: org_extvol_VolumeIsolator does not fit this Mesos: ", sentence],
        )?;
    }
    Ok(())
}

#[test]
fn mesos_an_agent_with_other_futures_is_refused_by_what_differs() -> Result<()> {
    let cluster = cluster()?;
    let agent = Loader::agent(&cluster)?;
    refuses_each(&agent, &FUTURES)?;
    // An Option with its states the other way round, compiled into the look at the host.
    let flag = format!("-I{}", broken("").display());
    let library = Library::recompiled("host_check_shim.cpp", &[&flag]);
    agent.refuses(
        &library.path(),
        None,
        &["Future<Option<ContainerLaunchInfo>> after set(): expected the value set, found another value"],
    )?;
    cluster.host(0).start_agent()?;
    cluster.wait_agent_registered(0, SOON)?;
    Ok(())
}

#[test]
fn mesos_an_agent_of_another_release_interface_or_size_is_refused_by_what_differs() -> Result<()> {
    let cluster = cluster()?;
    refuses_each(&Loader::agent(&cluster)?, &RELEASE_FUNCTIONS_AND_SIZES)?;
    cluster.host(0).start_agent()?;
    cluster.wait_agent_registered(0, SOON)?;
    Ok(())
}

#[test]
fn mesos_a_library_of_another_release_or_for_another_libmesos_is_refused() -> Result<()> {
    let cluster = cluster()?;
    let manifest = "-DDEFECT=expected.testedVersions = {expected.mesosVersion = \"1.10.0\"}";
    let of_another_release = Library::with("expectation.cpp", &[manifest]);
    let lacks_a_symbol = Library::with("symbol.cpp", &[]);
    for loader in [Loader::agent(&cluster)?, Loader::master(&cluster)?] {
        loader.refuses(&of_another_release.path(), None, &["1.10.0", "1.11.0"])?;
        loader.refuses(
            &lacks_a_symbol.path(),
            None,
            &["undefined symbol: _ZN7process17addressOfTomorrowEv"],
        )?;
    }
    cluster.hub().start_service("master")?;
    cluster.wait_master_leading()?;
    cluster.host(0).start_agent()?;
    cluster.wait_agent_registered(0, SOON)?;
    Ok(())
}

#[test]
fn mesos_a_module_that_does_not_start_is_refused_with_its_reason() -> Result<()> {
    let cluster = cluster()?;
    let panicking = Library::panicking();
    let agent = Loader::agent(&cluster)?;
    let master = Loader::master(&cluster)?;
    let place = "cxx-glue/tests/panicking";
    for (loader, module) in [(agent, "the isolator"), (master, "the master's module")] {
        let start = format!("extvol: {module} does not start: ");
        // Given twice; unknown.
        loader.refuses(
            &product(),
            Some(("etcd_endpoints", "http://192.0.2.1:1")),
            &[&start, "etcd_endpoints"],
        )?;
        loader.refuses(&product(), Some(("etcd_endpoint", "x")), &[&start, "etcd_endpoint"])?;
        let panicked = format!("{start}bug: start panicked at {place}");
        loader.refuses(
            &panicking.path(),
            Some(("panic", "")),
            &[&panicked, "start panics as it was told", "extvol: bug: panic at "],
        )?;
    }
    cluster.hub().start_service("master")?;
    cluster.wait_master_leading()?;
    cluster.host(0).start_agent()?;
    cluster.wait_agent_registered(0, SOON)?;
    Ok(())
}

/// A library that would be refused is not even made when it is linked for a libmesos.
#[test]
fn a_library_for_another_libmesos_is_not_linked() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let object = folder.path().join("symbol.o");
    let compiled = Command::new(glue().join("compile")).arg(broken("symbol.cpp")).arg(&object).status();
    assert!(compiled.expect("it starts").success());
    let output = folder.path().join("libextvol.so");
    let linked = Command::new(glue().join("link"))
        .arg("--mesos")
        .arg(target_directory().join("mesos/libmesos.so"))
        .arg("--object")
        .arg(&object)
        .arg(target_directory().join("release/libcxx_glue.a"))
        .arg(&output)
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&linked.stderr);
    assert!(!linked.status.success());
    assert!(said.contains("does not export _ZN7process17addressOfTomorrowEv"), "{said}");
    assert!(!output.exists());
}
