//! What the agent tells the executor at its start: `MESOS_*` variables, and flags for a task with an image.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, time::Duration};

use super::protocol::{Caller, CommandInfo, Environment};

/// Mesos's own default of the agent flag `executor_shutdown_grace_period`.
const DEFAULT_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Mesos's own default of the agent flag `recovery_timeout`.
const DEFAULT_RECOVERY_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The agent started the executor in a way that it does not understand.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A variable that the agent always sets is missing.
    #[error("expected {name} in the environment")]
    Missing {
        /// The variable's name.
        name: &'static str,
    },
    /// A variable or flag has a value of the wrong form.
    #[error("cannot read {name}={value}")]
    Unreadable {
        /// The variable or flag.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A flag with a JSON value could not be parsed.
    #[error("flag --{name} is not the JSON that was expected")]
    Json {
        /// The flag's name, without dashes.
        name: &'static str,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

/// Where the task's image is and how to enter it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) rootfs: PathBuf,
    /// Inside the image.
    pub(super) working_directory: PathBuf,
    pub(super) user: Option<String>,
    pub(super) groups: Vec<u32>,
}

/// Everything that is known before the task is.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) caller: Caller,
    /// The executor API of the agent.
    pub(super) url: String,
    /// The agent's own API.
    pub(super) agent_url: String,
    /// The agent's domain socket, when it wants executors to use that.
    pub(super) socket: Option<PathBuf>,
    pub(super) token: Option<String>,
    /// With checkpointing the executor waits this long for an agent that went away; without, not at all.
    pub(super) recovery_timeout: Option<Duration>,
    pub(super) shutdown_grace: Duration,
    pub(super) image: Option<Image>,
    /// Stands in for the task's own command (an image's entry point).
    pub(super) task_command: Option<CommandInfo>,
    /// What the task inherits: the executor's environment, overlaid with what isolators asked for.
    pub(super) environment: BTreeMap<String, String>,
}

impl Setup {
    /// Flags that are not known are ignored, as later Mesos versions may add some.
    pub(super) fn read(
        arguments: &[OsString],
        mut environment: BTreeMap<String, String>,
    ) -> Result<Self, SetupError> {
        let flags = flags(arguments);
        let caller = Caller {
            framework_id: required(&environment, "MESOS_FRAMEWORK_ID")?,
            executor_id: required(&environment, "MESOS_EXECUTOR_ID")?,
        };
        let agent_url = agent_url(&required(&environment, "MESOS_SLAVE_PID")?)?;
        let url = format!("{agent_url}/executor");
        let checkpoint = environment.get("MESOS_CHECKPOINT").is_some_and(|value| value == "1");
        let recovery_timeout =
            duration(&environment, "MESOS_RECOVERY_TIMEOUT")?.unwrap_or(DEFAULT_RECOVERY_TIMEOUT);
        let shutdown_grace =
            duration(&environment, "MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD")?.unwrap_or(DEFAULT_SHUTDOWN_GRACE);
        let socket = environment.get("MESOS_DOMAIN_SOCKET").map(PathBuf::from);
        // The task must not learn the token that lets it speak as the executor.
        let token = environment.remove("MESOS_EXECUTOR_AUTHENTICATION_TOKEN");
        let isolators: Environment = json(&flags, "task_environment")?.unwrap_or_default();
        for (name, value) in isolators.pairs() {
            environment.insert(name.clone(), value.clone());
        }
        Ok(Self {
            caller,
            url,
            agent_url,
            socket,
            token,
            recovery_timeout: checkpoint.then_some(recovery_timeout),
            shutdown_grace,
            image: image(&flags)?,
            task_command: json(&flags, "task_command")?,
            environment,
        })
    }
}

fn flags(arguments: &[OsString]) -> BTreeMap<String, String> {
    arguments
        .iter()
        .filter_map(|argument| argument.to_str()?.strip_prefix("--")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn required(environment: &BTreeMap<String, String>, name: &'static str) -> Result<String, SetupError> {
    environment.get(name).cloned().ok_or(SetupError::Missing { name })
}

fn json<T: serde::de::DeserializeOwned>(
    flags: &BTreeMap<String, String>,
    name: &'static str,
) -> Result<Option<T>, SetupError> {
    flags
        .get(name)
        .map(|text| serde_json::from_str(text).map_err(|source| SetupError::Json { name, source }))
        .transpose()
}

fn image(flags: &BTreeMap<String, String>) -> Result<Option<Image>, SetupError> {
    let Some(rootfs) = flags.get("rootfs") else { return Ok(None) };
    let name = "task_supplementary_groups";
    let groups = flags.get(name).map_or("", String::as_str);
    let unreadable = || SetupError::Unreadable { name, value: groups.to_owned() };
    Ok(Some(Image {
        rootfs: rootfs.into(),
        working_directory: flags
            .get("working_directory")
            .or_else(|| flags.get("sandbox_directory"))
            .map_or_else(|| "/".into(), PathBuf::from),
        user: flags.get("user").cloned(),
        groups: groups
            .split(',')
            .filter(|group| !group.is_empty())
            .map(|group| group.parse().map_err(|_| unreadable()))
            .collect::<Result<_, _>>()?,
    }))
}

/// `slave(1)@127.0.0.1:5051` is the actor `slave(1)`, whose routes begin with its name.
fn agent_url(pid: &str) -> Result<String, SetupError> {
    let (actor, address) = pid
        .split_once('@')
        .ok_or_else(|| SetupError::Unreadable { name: "MESOS_SLAVE_PID", value: pid.to_owned() })?;
    Ok(format!("http://{address}/{actor}/api/v1"))
}

fn duration(
    environment: &BTreeMap<String, String>,
    name: &'static str,
) -> Result<Option<Duration>, SetupError> {
    environment
        .get(name)
        .map(|text| parse_duration(text).ok_or_else(|| SetupError::Unreadable { name, value: text.clone() }))
        .transpose()
}

/// A duration as Mesos writes it: `15mins`, `1.5secs`, `100ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let seconds = match &text[unit..] {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "secs" => 1.0,
        "mins" => 60.0,
        "hrs" => 3600.0,
        "days" => 86_400.0,
        "weeks" => 604_800.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(text[..unit].parse::<f64>().ok()? * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(more: &[(&str, &str)]) -> BTreeMap<String, String> {
        [
            ("MESOS_FRAMEWORK_ID", "f"),
            ("MESOS_EXECUTOR_ID", "t"),
            ("MESOS_SLAVE_PID", "slave(1)@127.0.0.1:5051"),
        ]
        .iter()
        .chain(more)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
    }

    #[test]
    fn durations_are_read_as_mesos_writes_them() {
        assert_eq!(parse_duration("15mins"), Some(Duration::from_secs(900)));
        assert_eq!(parse_duration("1.5secs"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        for wrong in ["", "5", "secs", "-1secs", "3 fortnights"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_plain_task_needs_only_the_environment() {
        let setup = Setup::read(
            &["--launcher_dir=/usr/libexec/mesos".into()],
            environment(&[("MESOS_EXECUTOR_AUTHENTICATION_TOKEN", "secret")]),
        )
        .unwrap();
        assert_eq!(setup.url, "http://127.0.0.1:5051/slave(1)/api/v1/executor");
        assert_eq!(setup.recovery_timeout, None);
        assert_eq!(setup.image, None);
        assert_eq!(setup.token.as_deref(), Some("secret"));
        assert!(!setup.environment.contains_key("MESOS_EXECUTOR_AUTHENTICATION_TOKEN"));
    }

    #[test]
    fn an_image_comes_with_flags_and_unknown_flags_are_ignored() {
        let arguments = [
            "--rootfs=/r",
            "--sandbox_directory=/mnt/mesos/sandbox",
            "--user=nobody",
            "--task_supplementary_groups=4,5",
            "--task_environment={\"variables\":[{\"name\":\"A\",\"value\":\"b=c\"},{\"name\":\"S\",\"type\":\"SECRET\"}]}",
            "--task_command={\"shell\":false,\"value\":\"/bin/x\",\"arguments\":[\"x\",\"y\"]}",
            "--runtime_directory=/x",
            "--unknown",
        ]
        .map(OsString::from);
        let setup = Setup::read(&arguments, environment(&[("MESOS_CHECKPOINT", "1")])).unwrap();
        let image = setup.image.unwrap();
        assert_eq!(image.working_directory, PathBuf::from("/mnt/mesos/sandbox"));
        assert_eq!((image.user.as_deref(), image.groups), (Some("nobody"), vec![4, 5]));
        assert_eq!(setup.environment["A"], "b=c");
        assert!(!setup.environment.contains_key("S"));
        assert_eq!(setup.task_command.unwrap().arguments, ["x", "y"]);
        assert_eq!(setup.recovery_timeout, Some(DEFAULT_RECOVERY_TIMEOUT));
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = Setup::read(&[], BTreeMap::new()).unwrap_err();
        assert_eq!(error.to_string(), "expected MESOS_FRAMEWORK_ID in the environment");
    }
}
