//! What a user writes: an app, in JSON. Examples are in `integration/apps/`.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{backoff::Backoff, container::Container, executor::Executor};

/// An app cannot be run as it is written.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The text is not the JSON of an app.
    #[error("app definition is not valid")]
    Json(#[from] serde_json::Error),
    /// The id could not be part of a task id.
    #[error("app id {id:?} must be 1 to 64 of a-z, 0-9, '-' and '/'")]
    BadId {
        /// The id as it was written.
        id: String,
    },
    /// Nothing says what to run.
    #[error("app {id} has no cmd, no args, and no container whose image could have an entry point")]
    NothingToRun {
        /// The app.
        id: AppId,
    },
    /// Two things say what to run.
    #[error("app {id} has both cmd and args")]
    CmdAndArgs {
        /// The app.
        id: AppId,
    },
    /// It does not go together with its executor.
    #[error("app {id}: {why}")]
    Executor {
        /// The app.
        id: AppId,
        /// What does not.
        why: &'static str,
    },
    /// A number makes no sense.
    #[error("app {id} asks for {name} = {value}; expected a number above zero")]
    BadAmount {
        /// The app.
        id: AppId,
        /// The field.
        name: &'static str,
        /// Its value.
        value: f64,
    },
}

/// The name of an app; the first part of its tasks' ids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppId(String);

impl AppId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How the id begins task ids, where Mesos allows no `/`. Neither `_` nor the dot that ends it may be in an id, so
    /// that [`AppId::of_task`] can read it back.
    pub(super) fn in_task_id(&self) -> String {
        self.0.replace('/', "_")
    }

    /// Whose task it is.
    pub(super) fn of_task(task_id: &str) -> Option<Self> {
        Self::try_from(task_id.split('.').next()?.replace('_', "/")).ok()
    }
}

impl TryFrom<String> for AppId {
    type Error = AppError;

    fn try_from(id: String) -> Result<Self, AppError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-/".contains(c);
        if (1..=64).contains(&id.len()) && id.chars().all(allowed) {
            Ok(Self(id))
        } else {
            Err(AppError::BadId { id })
        }
    }
}

impl From<AppId> for String {
    fn from(id: AppId) -> Self {
        id.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One app: a command that should be running once in the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct App {
    /// Its name, unique within the scheduler: `a-z`, `0-9`, `-`, `/`.
    pub id: AppId,
    /// A shell command. With an image it may be left out: then the image's entry point runs.
    #[serde(default)]
    pub cmd: Option<String>,
    /// In place of `cmd`: an executable and its arguments, without a shell.
    #[serde(default)]
    pub args: Vec<String>,
    /// Shares of a processor.
    #[serde(default = "default_cpus")]
    pub cpus: f64,
    /// Memory in MiB.
    #[serde(default = "default_mem")]
    pub mem: f64,
    /// Disk in MiB; 0 asks for none.
    #[serde(default)]
    pub disk: f64,
    /// Extra set resources that agents offer, for example `{"ebsvolumes": ["vol-7bca078f"]}`.
    #[serde(default)]
    pub resources: BTreeMap<String, Vec<String>>,
    /// Environment variables of the task.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Labels of the task, which isolators can read.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The user whom the task runs as; by default the scheduler's.
    #[serde(default)]
    pub user: Option<String>,
    /// Image and volumes, for the Mesos containerizer.
    #[serde(default)]
    pub container: Option<Container>,
    /// Who runs the task; by default Mesos's command executor. Apps whose executors have one id run in one, which must
    /// be described the same way.
    #[serde(default)]
    pub executor: Option<Executor>,
    /// The name of a task group: its apps are to be run together, and its executor is Mesos's default one.
    #[serde(default)]
    pub group: Option<String>,
    /// Which agents are good enough.
    #[serde(default)]
    pub constraints: Constraints,
    /// What happens when the task ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Seconds between SIGTERM and SIGKILL when the task is killed.
    #[serde(default = "default_kill_grace")]
    pub kill_grace_seconds: f64,
    /// Delays between attempts; by default the scheduler's.
    #[serde(default)]
    pub backoff: Option<Backoff>,
}

fn default_cpus() -> f64 {
    0.1
}

fn default_mem() -> f64 {
    32.0
}

fn default_kill_grace() -> f64 {
    3.0
}

/// What happens when a task ends or is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Start it again.
    #[default]
    Always,
    /// Start it again unless it finished with status 0.
    OnFailure,
    /// Leave it, even if its agent was lost.
    Never,
}

/// Which agents an app may run on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraints {
    /// Only these agents, by host name; empty means any.
    #[serde(default)]
    pub hostnames: Vec<String>,
    /// None of these agents.
    #[serde(default)]
    pub avoid_hostnames: Vec<String>,
}

impl Constraints {
    pub(super) fn admit(&self, hostname: &str) -> bool {
        let names = |list: &[String]| list.iter().any(|name| name == hostname);
        (self.hostnames.is_empty() || names(&self.hostnames)) && !names(&self.avoid_hostnames)
    }
}

impl App {
    /// An app with a shell command and otherwise defaults.
    ///
    /// # Errors
    /// The id has characters that it may not have.
    pub fn shell(id: &str, cmd: &str) -> Result<Self, AppError> {
        Self::from_json(&json!({ "id": id, "cmd": cmd }).to_string())
    }

    /// Reads and checks an app.
    ///
    /// # Errors
    /// The text is no app, or one that could never run.
    pub fn from_json(text: &str) -> Result<Self, AppError> {
        let app: Self = serde_json::from_str(text)?;
        app.validate()?;
        Ok(app)
    }

    /// Checks what types cannot: that there is something to run, and that amounts make sense.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), AppError> {
        let id = || self.id.clone();
        if let Some(why) = self.executor_fault() {
            return Err(AppError::Executor { id: id(), why });
        }
        let has_image = self.container.as_ref().is_some_and(|container| container.image.is_some());
        if self.cmd.is_some() && !self.args.is_empty() {
            return Err(AppError::CmdAndArgs { id: id() });
        }
        if self.cmd.is_none() && self.args.is_empty() && !has_image {
            return Err(AppError::NothingToRun { id: id() });
        }
        let amounts = [("cpus", self.cpus, 0.001), ("mem", self.mem, 0.001), ("disk", self.disk, 0.0)];
        for (name, value, least) in amounts {
            if !value.is_finite() || value < least {
                return Err(AppError::BadAmount { id: id(), name, value });
            }
        }
        if std::time::Duration::try_from_secs_f64(self.kill_grace_seconds).is_err() {
            return Err(AppError::BadAmount {
                id: id(),
                name: "kill_grace_seconds",
                value: self.kill_grace_seconds,
            });
        }
        Ok(())
    }

    fn executor_fault(&self) -> Option<&'static str> {
        match (&self.executor, &self.group) {
            (Some(executor), Some(_)) if executor.cmd.is_some() => Some("a group's executor has no cmd"),
            (None, Some(_)) => Some("a group needs an executor"),
            (_, Some(_)) if self.restart != RestartPolicy::Never => Some("a group is not restarted"),
            (Some(executor), None) if executor.cmd.is_none() => Some("its executor has no cmd"),
            (Some(_), None) if self.cmd.is_none() || !self.env.is_empty() => {
                Some("a task of an executor of its own has a cmd, and no environment")
            }
            _ => None,
        }
    }

    /// The `TaskInfo` that runs this app on an agent.
    pub(super) fn task_info(&self, task_id: &str, agent_id: &str, resources: &[Value]) -> Value {
        let mut task = json!({
            "name": self.id,
            "task_id": { "value": task_id },
            "agent_id": { "value": agent_id },
            "resources": resources,
            "labels": { "labels": key_values(&self.labels) },
            "kill_policy": { "grace_period": { "nanoseconds": self.kill_grace_nanoseconds() } },
        });
        // Mesos wants either a command or an executor, which `extvol-task-executor` has as its task's label.
        if self.executor.is_some() && self.group.is_none() {
            if let Some(labels) = task["labels"]["labels"].as_array_mut() {
                labels.push(json!({ "key": "command", "value": self.cmd }));
            }
        } else {
            task["command"] = self.command_info();
        }
        if let Some(container) = &self.container {
            task["container"] = container.container_info();
        }
        task
    }

    fn kill_grace_nanoseconds(&self) -> u64 {
        let grace = std::time::Duration::try_from_secs_f64(self.kill_grace_seconds).unwrap_or_default();
        u64::try_from(grace.as_nanos()).unwrap_or(0)
    }

    fn command_info(&self) -> Value {
        let variables: Vec<Value> =
            self.env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        let mut command = json!({ "shell": self.cmd.is_some(), "environment": { "variables": variables } });
        if let Some(cmd) = &self.cmd {
            command["value"] = json!(cmd);
        }
        if let Some(executable) = self.args.first() {
            command["value"] = json!(executable);
            command["arguments"] = json!(self.args);
        }
        if let Some(user) = &self.user {
            command["user"] = json!(user);
        }
        command
    }
}

/// A map in the form of Mesos's labels and parameters.
pub(super) fn key_values(map: &BTreeMap<String, String>) -> Vec<Value> {
    map.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_an_app() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/apps");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            App::from_json(&std::fs::read_to_string(&path).unwrap())
                .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
            seen += 1;
        }
        assert!(seen > 0);
    }

    #[test]
    fn a_task_carries_labels_environment_volumes_and_grace() {
        let app = App::from_json(
            r#"{"id": "db/one", "cmd": "run", "env": {"A": "b"}, "labels": {"L": "v"}, "kill_grace_seconds": 1.5,
                "container": {"volumes": [{"container_path": "data", "docker_volume":
                    {"driver": "ebs", "name": "vol-1", "options": {"size": "2"}}}],
                    "host_paths": [{"container_path": "/logs", "host_path": "/var/log", "mode": "RO"}]}}"#,
        )
        .unwrap();
        let task = app.task_info("db_one.x.1", "a1", &[]);
        assert_eq!(task["command"]["value"], "run");
        assert_eq!(task["command"]["environment"]["variables"][0], json!({ "name": "A", "value": "b" }));
        assert_eq!(task["labels"]["labels"], json!([{ "key": "L", "value": "v" }]));
        assert_eq!(task["kill_policy"]["grace_period"]["nanoseconds"], 1_500_000_000_u64);
        let volume = &task["container"]["volumes"][0];
        assert_eq!(volume["mode"], "RW");
        assert_eq!(volume["source"]["type"], "DOCKER_VOLUME");
        assert_eq!(
            volume["source"]["docker_volume"]["driver_options"]["parameter"],
            json!([{ "key": "size", "value": "2" }])
        );
        let host_path = json!({ "container_path": "/logs", "mode": "RO", "host_path": "/var/log" });
        assert_eq!(task["container"]["volumes"][1], host_path);
    }

    #[test]
    fn what_could_never_run_is_refused() {
        for text in [
            r#"{"id": "a"}"#,
            r#"{"id": "A", "cmd": "x"}"#,
            r#"{"id": "", "cmd": "x"}"#,
            r#"{"id": "a.b", "cmd": "x"}"#,
            r#"{"id": "a", "cmd": "x", "args": ["y"]}"#,
            r#"{"id": "a", "cmd": "x", "cpus": 0}"#,
            r#"{"id": "a", "cmd": "x", "kill_grace_seconds": -1}"#,
            r#"{"id": "a", "cmd": "x", "cmds": "misspelt"}"#,
            r#"{"id": "a", "cmd": "x", "group": "g"}"#,
            r#"{"id": "a", "cmd": "x", "group": "g", "executor": {"id": "e"}}"#,
            r#"{"id": "a", "cmd": "x", "executor": {"id": "e"}}"#,
            r#"{"id": "a", "cmd": "x", "env": {"A": "b"}, "executor": {"id": "e", "cmd": "y"}}"#,
        ] {
            assert!(App::from_json(text).is_err(), "{text}");
        }
        assert!(App::from_json(r#"{"id": "a", "container": {"image": "busybox"}}"#).is_ok());
    }
}
