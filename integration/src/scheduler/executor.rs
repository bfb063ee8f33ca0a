//! Executors that apps name, as Mesos wants them, and those that run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{app::key_values, container::Container};

/// An executor of tasks of one or several apps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executor {
    /// Its id, unique within the framework.
    pub id: String,
    /// The shell command that starts a custom executor; Mesos's default executor has none.
    #[serde(default)]
    pub cmd: Option<String>,
    /// Its own labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Image and volumes of its own container.
    #[serde(default)]
    pub container: Option<Container>,
    /// Set resources of its own.
    #[serde(default)]
    pub resources: BTreeMap<String, Vec<String>>,
}

impl Executor {
    /// Its share of a processor, its memory and its disk in MiB; Mesos wants some of each for a default executor.
    pub(super) const SCALARS: [(&'static str, f64); 3] = [("cpus", 0.1), ("mem", 32.0), ("disk", 1.0)];

    pub(super) fn info(&self, framework_id: Option<&str>, resources: &[Value]) -> Value {
        let mut info = json!({
            "type": if self.cmd.is_some() { "CUSTOM" } else { "DEFAULT" },
            "executor_id": { "value": self.id },
            "framework_id": { "value": framework_id },
            "labels": { "labels": key_values(&self.labels) },
            "resources": resources,
        });
        if let Some(cmd) = &self.cmd {
            let variables = self.env.iter().map(|(name, value)| json!({ "name": name, "value": value }));
            let variables: Vec<_> = variables.collect();
            info["command"] = json!({ "value": cmd, "environment": { "variables": variables } });
        }
        if let Some(container) = &self.container {
            info["container"] = container.container_info();
        }
        info
    }
}

/// An executor that was started, as far as is known.
#[derive(Debug, Clone)]
pub(super) struct Started {
    pub(super) agent_id: String,
    /// Mesos wants the same with each further task.
    pub(super) info: Value,
}
