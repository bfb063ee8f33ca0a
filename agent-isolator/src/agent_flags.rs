//! The one flag of the agent that this module's parameters must fit: a prepare counts in
//! `executor_registration_timeout`, behind which Mesos kills the container.
//!
//! The module is part of the agent's process, whose arguments and environment are the flags.

use std::time::Duration;

use shared::parameters::{ParameterError, duration};

use crate::parameters::KeeperParameters;

const FLAG: &str = "executor_registration_timeout";

/// The agent's default.
const DEFAULT: Duration = Duration::from_secs(60);

/// What a launch needs beside its volumes: fetching and starting its executor.
const REST: Duration = Duration::from_secs(15);

/// Checks that a prepare ends before Mesos gives the launch up.
///
/// # Errors
/// Names the parameter and its value.
pub(crate) fn check(parameters: &KeeperParameters) -> Result<(), ParameterError> {
    let arguments = std::fs::read("/proc/self/cmdline").unwrap_or_default();
    let environment = std::env::var(format!("MESOS_{}", FLAG.to_uppercase())).ok();
    check_against(registration_timeout(&arguments, environment.as_deref()), parameters)
}

fn check_against(given_up: Duration, parameters: &KeeperParameters) -> Result<(), ParameterError> {
    let longest = given_up.saturating_sub(REST);
    for (name, value) in
        [("wait_timeout", parameters.wait_timeout), ("prepare_timeout", parameters.prepare_timeout)]
    {
        if value > longest {
            return Err(ParameterError::Invalid {
                name: name.to_owned(),
                value: format!("{}ms", value.as_millis()),
                reason: format!(
                    "is more than {} ms: the agent's {FLAG} ({} ms), less 15 s for the rest of a launch",
                    longest.as_millis(),
                    given_up.as_millis()
                ),
            });
        }
    }
    Ok(())
}

/// As the agent reads it: an argument before the environment. A value that cannot be read here (one in a file) is taken
/// for the default.
fn registration_timeout(arguments: &[u8], environment: Option<&str>) -> Duration {
    let prefix = format!("--{FLAG}=");
    let argument =
        arguments.split(|byte| *byte == 0).filter_map(|argument| std::str::from_utf8(argument).ok());
    let given = argument.filter_map(|argument| argument.strip_prefix(&prefix)).next_back();
    given.or(environment).and_then(|text| duration(text).ok()).unwrap_or(DEFAULT)
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
    fn a_wait_that_mesos_would_not_wait_for_is_refused_by_name_and_value() {
        let seconds = Duration::from_secs;
        assert_eq!(check_against(seconds(60), &parameters(&[])), Ok(()));
        let long = parameters(&[("wait_timeout", "50secs"), ("prepare_timeout", "50secs")]);
        let error = check_against(seconds(60), &long).unwrap_err().to_string();
        assert!(
            error.contains("`wait_timeout` has the value `50000ms`") && error.contains("45000 ms"),
            "{error}"
        );
        let error = check_against(seconds(59), &parameters(&[])).unwrap_err().to_string();
        assert!(error.contains("`prepare_timeout`"), "{error}");
        assert_eq!(check_against(seconds(90), &long), Ok(()));
    }
}
