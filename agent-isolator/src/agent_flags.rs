//! The flags of the agent that this module's parameters must fit: a prepare counts in `executor_registration_timeout`,
//! behind which Mesos kills the container; and below `cgroups_root` are the containers that a fence ends.
//!
//! The module is part of the agent's process, whose arguments and environment are the flags.

use std::time::Duration;

use shared::parameters::{ParameterError, duration};

use crate::parameters::KeeperParameters;

const TIMEOUT: &str = "executor_registration_timeout";
const CGROUPS: &str = "cgroups_root";

/// The agent's default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// What a launch needs beside its volumes: fetching and starting its executor.
const REST: Duration = Duration::from_secs(15);

/// The agent's default.
const DEFAULT_CGROUPS: &str = "mesos";

/// Checks that a prepare ends before Mesos gives the launch up, and that a fence finds the containers.
///
/// # Errors
/// Names the parameter and its value.
pub(crate) fn check(parameters: &KeeperParameters) -> Result<(), ParameterError> {
    let arguments = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let environment = |flag: &str| std::env::var(format!("MESOS_{}", flag.to_uppercase())).ok();
    check_times(registration_timeout(&arguments, environment(TIMEOUT).as_deref()), parameters)?;
    check_cgroups(given(CGROUPS, &arguments, environment(CGROUPS).as_deref()), parameters)
}

fn check_cgroups(agents: Option<&str>, parameters: &KeeperParameters) -> Result<(), ParameterError> {
    let agents = agents.unwrap_or(DEFAULT_CGROUPS);
    // A value in a file cannot be read here.
    if agents.starts_with("file://") || agents.trim_matches('/') == parameters.cgroup_root.trim_matches('/') {
        return Ok(());
    }
    Err(ParameterError::Invalid {
        name: "cgroup_root".to_owned(),
        value: parameters.cgroup_root.clone(),
        reason: format!(
            "is not the agent's {CGROUPS}, {agents}: the containers of this agent would not be found when the host is fenced"
        ),
    })
}

fn check_times(given_up: Duration, parameters: &KeeperParameters) -> Result<(), ParameterError> {
    let longest = given_up.saturating_sub(REST);
    for (name, value) in
        [("wait_timeout", parameters.wait_timeout), ("prepare_timeout", parameters.prepare_timeout)]
    {
        if value > longest {
            return Err(ParameterError::Invalid {
                name: name.to_owned(),
                value: format!("{}ms", value.as_millis()),
                reason: format!(
                    "is more than {} ms: the agent's {TIMEOUT} ({} ms), less 15 s for the rest of a launch",
                    longest.as_millis(),
                    given_up.as_millis()
                ),
            });
        }
    }
    Ok(())
}

/// A value that cannot be read here (one in a file) is taken for the default.
pub(crate) fn registration_timeout(arguments: &[u8], environment: Option<&str>) -> Duration {
    given(TIMEOUT, arguments, environment).and_then(|text| duration(text).ok()).unwrap_or(DEFAULT_TIMEOUT)
}

/// As the agent reads a flag: an argument before the environment.
fn given<'a>(flag: &str, arguments: &'a [u8], environment: Option<&'a str>) -> Option<&'a str> {
    let argument =
        arguments.split(|byte| *byte == 0).filter_map(|argument| std::str::from_utf8(argument).ok());
    let mut value =
        argument.filter_map(|text| text.strip_prefix("--")?.strip_prefix(flag)?.strip_prefix('='));
    value.next_back().or(environment)
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
        let of = |arguments: &str, environment| registration_timeout(arguments.as_bytes(), environment);
        assert_eq!(of("mesos-agent\0--port=5051\0", None), seconds(60));
        assert_eq!(of("mesos-agent\0", Some("5mins")), seconds(300));
        let both = "mesos-agent\0--executor_registration_timeout=90secs\0--port=5051\0";
        assert_eq!(of(both, Some("5mins")), seconds(90));
        assert_eq!(of("mesos-agent\0--executor_registration_timeout=file:///t\0", None), seconds(60));
    }

    #[test]
    fn a_cgroup_root_that_is_not_the_agents_is_refused() {
        let default = parameters(&[]);
        for agents in [None, Some("mesos"), Some("/mesos/"), Some("file:///etc/root")] {
            assert_eq!(check_cgroups(agents, &default), Ok(()));
        }
        let arguments = b"mesos-agent\0--cgroups_root=batch/mesos\0";
        let agents = given(CGROUPS, arguments, Some("other"));
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
}
