//! The flags of the agent that this module's parameters must fit: a prepare counts in `executor_registration_timeout`,
//! behind which Mesos kills the container; below `cgroups_root` are the containers that a fence ends, of which only
//! the launcher `linux` knows; and the isolators and containerizers that run beside this one.
//!
//! The module is part of the agent's process, whose arguments and environment are the flags.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use shared::parameters::{ParameterError, duration};

use crate::keeper::alive;
use crate::parameters::{IsolatorParameters, KeeperParameters};
use crate::rules::invalid;

const TIMEOUT: &str = "executor_registration_timeout";
const CGROUPS: &str = "cgroups_root";

/// The agent's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// What a launch needs beside its volumes: fetching and starting its executor.
const REST: Duration = Duration::from_secs(15);

/// The agent's default.
const DEFAULT_CGROUPS: &str = "mesos";

/// Mesos's own isolator of Docker volumes, which leases nothing.
const DOCKER_VOLUME: &str = "docker/volume";

/// What runs in this agent beside the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beside {
    /// Mesos's own isolator of Docker volumes.
    pub(crate) docker_volume: bool,
    /// The one that gives each container a mount namespace.
    pub(crate) filesystem_linux: bool,
}

/// Checks that a prepare ends before Mesos gives the launch up, that a fence finds the containers, and that nobody
/// beside this module mounts what it leases.
///
/// # Errors
/// A sentence to refuse loading with.
pub(crate) fn check(parameters: &IsolatorParameters) -> Result<Beside, String> {
    let arguments = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let environment = |flag: &str| std::env::var(format!("MESOS_{}", flag.to_uppercase())).ok();
    let flag = |name: &str| given(name, &arguments, environment(name).as_deref()).map(Cow::into_owned);
    let sentence = |error: ParameterError| error.to_string();
    check_times(registration_timeout(flag(TIMEOUT).as_deref()), &parameters.keeper).map_err(sentence)?;
    check_cgroups(flag(CGROUPS).as_deref(), &parameters.keeper).map_err(sentence)?;
    check_launcher(flag("launcher").as_deref(), alive::has_freezer())?;
    if listed(flag("containerizers").as_deref(), "docker") {
        tracing::warn!(
            "this agent's --containerizers list docker: tasks of the Docker containerizer never come to an isolator, \
             their extvol labels and DVDI_ variables are not seen, and what they mount themselves has no lease"
        );
    }
    if parameters.keeper.volume_rules.is_some()
        && flag("authenticate_http_readwrite").as_deref() != Some("true")
    {
        tracing::warn!(
            "this host has volume rules, and the agent has no --authenticate_http_readwrite: whoever reaches its API may launch \
             containers in any framework's, with that framework's volumes"
        );
    }
    let isolation = flag("isolation");
    let beside = Beside {
        docker_volume: listed(isolation.as_deref(), DOCKER_VOLUME),
        filesystem_linux: listed(isolation.as_deref(), "filesystem/linux"),
    };
    check_docker_volume(beside, parameters)?;
    if parameters.rules.hide_volumes && !beside.filesystem_linux {
        tracing::warn!(
            "this agent's --isolation does not list filesystem/linux: its containers share the host's mounts, and see \
             all volumes of the host"
        );
    }
    Ok(beside)
}

fn check_launcher(launcher: Option<&str>, freezer: bool) -> Result<(), String> {
    let needs = "a fence could not find the containers of this host, and they would go on to write";
    match launcher {
        Some(other) if other != "linux" => Err(format!(
            "the agent's --launcher is {other}; extvol needs --launcher=linux: with another one {needs}"
        )),
        _ if !freezer => Err(format!(
            "this host has no cgroup v1 freezer hierarchy at {}; extvol needs it: without it {needs}",
            alive::FREEZER
        )),
        _ => Ok(()),
    }
}

fn check_docker_volume(beside: Beside, parameters: &IsolatorParameters) -> Result<(), String> {
    if !beside.docker_volume {
        return Ok(());
    }
    if !parameters.rules.allow_docker_volume_isolator {
        return Err(format!(
            "the agent's --isolation lists {DOCKER_VOLUME}, which mounts volumes of every driver without a lease, also \
             those that are leased here: take it out; or, where no task can name a leased volume by a DOCKER_VOLUME, \
             set the parameter `docker_volume_isolator` to `allow`"
        ));
    }
    if !parameters.rules.lease_docker_volumes {
        let why = format!(
            "cannot be beside the agent's isolator {DOCKER_VOLUME}, which would mount leased volumes"
        );
        return Err(invalid("docker_volumes", "ignore", why).to_string());
    }
    tracing::warn!(
        "{DOCKER_VOLUME} runs beside this module: it comes first, so a DOCKER_VOLUME of a leased driver is mounted, and \
         unmounted again when this module refuses the container"
    );
    Ok(())
}

fn check_cgroups(agents: Option<&str>, parameters: &KeeperParameters) -> Result<(), ParameterError> {
    let agents = agents.unwrap_or(DEFAULT_CGROUPS);
    if agents.trim_matches('/') == parameters.cgroup_root.trim_matches('/') {
        return Ok(());
    }
    let why = format!(
        "is not the agent's {CGROUPS}, {agents}: the containers of this agent would not be found when the host is fenced"
    );
    Err(invalid("cgroup_root", &parameters.cgroup_root, why))
}

fn check_times(given_up: Duration, parameters: &KeeperParameters) -> Result<(), ParameterError> {
    let longest = given_up.saturating_sub(REST);
    for (name, value) in
        [("wait_timeout", parameters.wait_timeout), ("prepare_timeout", parameters.prepare_timeout)]
    {
        if value > longest {
            let why = format!(
                "is more than {} ms: the agent's {TIMEOUT} ({} ms), less 15 s for the rest of a launch",
                longest.as_millis(),
                given_up.as_millis()
            );
            return Err(invalid(name, format_args!("{}ms", value.as_millis()), why));
        }
    }
    Ok(())
}

/// A value that cannot be read here is taken for the default.
fn registration_timeout(flag: Option<&str>) -> Duration {
    flag.and_then(|text| duration(text).ok()).unwrap_or(DEFAULT_TIMEOUT)
}

/// Whether a comma list has this entry.
fn listed(list: Option<&str>, entry: &str) -> bool {
    list.is_some_and(|list| list.split(',').any(|part| part.trim() == entry))
}

/// As the agent reads a flag: an argument before the environment, and either may name a file that has the value.
pub(crate) fn given<'a>(
    flag: &str,
    arguments: &'a [u8],
    environment: Option<&'a str>,
) -> Option<Cow<'a, str>> {
    let argument =
        arguments.split(|byte| *byte == 0).filter_map(|argument| std::str::from_utf8(argument).ok());
    let mut value =
        argument.filter_map(|text| text.strip_prefix("--")?.strip_prefix(flag)?.strip_prefix('='));
    let value = value.next_back().or(environment)?;
    let Some(file) = value.strip_prefix("file://") else { return Some(value.into()) };
    match std::fs::read_to_string(Path::new(file)) {
        Ok(text) => Some(text.trim().to_owned().into()),
        Err(error) => {
            tracing::warn!("the agent's flag {flag} is in {file:?}, which cannot be read here: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> KeeperParameters {
        let given = [("etcd_endpoints", "h:1")].iter().chain(pairs);
        let pairs: Vec<_> = given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        KeeperParameters::read(&pairs).unwrap()
    }

    #[test]
    fn the_agents_own_flag_is_read_as_the_agent_does() {
        let seconds = Duration::from_secs;
        let of = |arguments: &str, environment| {
            registration_timeout(given(TIMEOUT, arguments.as_bytes(), environment).as_deref())
        };
        assert_eq!(of("mesos-agent\0--port=5051\0", None), seconds(60));
        assert_eq!(of("mesos-agent\0", Some("5mins")), seconds(300));
        let both = "mesos-agent\0--executor_registration_timeout=90secs\0--port=5051\0";
        assert_eq!(of(both, Some("5mins")), seconds(90));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "2mins\n").unwrap();
        let in_file = format!("file://{}", file.path().display());
        assert_eq!(of("mesos-agent\0", Some(&in_file)), seconds(120));
        assert_eq!(
            of(&format!("mesos-agent\0--executor_registration_timeout={in_file}\0"), None),
            seconds(120)
        );
        assert_eq!(of("mesos-agent\0--executor_registration_timeout=file:///nowhere/t\0", None), seconds(60));
    }

    #[test]
    fn a_cgroup_root_that_is_not_the_agents_is_refused() {
        let default = parameters(&[]);
        for agents in [None, Some("mesos"), Some("/mesos/")] {
            assert_eq!(check_cgroups(agents, &default), Ok(()));
        }
        let arguments = b"mesos-agent\0--cgroups_root=batch/mesos\0";
        let agents = given(CGROUPS, arguments, Some("other"));
        let agents = agents.as_deref();
        assert_eq!(check_cgroups(agents, &parameters(&[("cgroup_root", "/batch/mesos")])), Ok(()));
        let error = check_cgroups(agents, &default).unwrap_err().to_string();
        assert!(
            error.contains("`cgroup_root` has the value `mesos`") && error.contains("batch/mesos"),
            "{error}"
        );
    }

    #[test]
    fn a_wait_that_mesos_would_not_wait_for_is_refused_by_name_and_value() {
        let seconds = Duration::from_secs;
        assert_eq!(check_times(seconds(60), &parameters(&[])), Ok(()));
        let long = parameters(&[("wait_timeout", "50secs"), ("prepare_timeout", "50secs")]);
        let error = check_times(seconds(60), &long).unwrap_err().to_string();
        assert!(
            error.contains("`wait_timeout` has the value `50000ms`") && error.contains("45000 ms"),
            "{error}"
        );
        let error = check_times(seconds(59), &parameters(&[])).unwrap_err().to_string();
        assert!(error.contains("`prepare_timeout`"), "{error}");
        assert_eq!(check_times(seconds(90), &long), Ok(()));
    }

    fn module(pairs: &[(&str, &str)]) -> IsolatorParameters {
        let given = [("etcd_endpoints", "h:1")].iter().chain(pairs);
        let pairs: Vec<_> = given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        IsolatorParameters::read(&pairs).unwrap()
    }

    #[test]
    fn a_host_whose_containers_a_fence_would_not_find_is_refused() {
        assert_eq!(check_launcher(None, true), Ok(()));
        assert_eq!(check_launcher(Some("linux"), true), Ok(()));
        let posix = check_launcher(Some("posix"), true).unwrap_err();
        assert!(
            posix.starts_with("the agent's --launcher is posix; extvol needs --launcher=linux"),
            "{posix}"
        );
        for launcher in [None, Some("linux")] {
            let missing = check_launcher(launcher, false).unwrap_err();
            assert!(
                missing.starts_with("this host has no cgroup v1 freezer hierarchy at /sys/fs/cgroup/freezer")
            );
        }
    }

    #[test]
    fn mesos_s_own_isolator_of_docker_volumes_is_refused_beside_this_one_unless_allowed() {
        let beside = |docker_volume| Beside { docker_volume, filesystem_linux: true };
        assert_eq!(check_docker_volume(beside(false), &module(&[])), Ok(()));
        let refused = check_docker_volume(beside(true), &module(&[])).unwrap_err();
        assert!(
            refused.starts_with("the agent's --isolation lists docker/volume, which mounts"),
            "{refused}"
        );
        let allow = ("docker_volume_isolator", "allow");
        assert_eq!(check_docker_volume(beside(true), &module(&[allow])), Ok(()));
        let both = check_docker_volume(beside(true), &module(&[allow, ("docker_volumes", "ignore")]));
        assert!(both.unwrap_err().contains("`docker_volumes` has the value `ignore`"));
    }

    #[test]
    fn a_list_has_an_entry_or_has_not() {
        let list = Some("filesystem/linux, docker/volume,org_extvol_VolumeIsolator");
        assert!(listed(list, DOCKER_VOLUME) && listed(list, "filesystem/linux"));
        assert!(!listed(list, "docker") && !listed(None, "docker") && listed(Some("docker,mesos"), "docker"));
    }
}
