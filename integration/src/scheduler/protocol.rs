//! The part of Mesos's v1 scheduler protocol that is used here, in its JSON form. Unknown fields are skipped.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{SchedulerConfig, history::TaskState};

/// An event from the master.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Event {
    Subscribed {
        subscribed: Subscribed,
    },
    Offers {
        offers: Offers,
    },
    Update {
        update: Update,
    },
    Failure {
        failure: Failure,
    },
    Error {
        error: ErrorEvent,
    },
    /// `HEARTBEAT` and `RESCIND` (offers are answered at once, so none is ever kept), `MESSAGE`, inverse
    /// offers, and what a later Mesos may add.
    #[serde(other)]
    Other,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Subscribed {
    pub(super) framework_id: Id,
    #[serde(default)]
    pub(super) heartbeat_interval_seconds: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Offers {
    #[serde(default)]
    pub(super) offers: Vec<Value>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Update {
    pub(super) status: TaskStatus,
}

/// An executor has ended, or without one an agent is lost.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Failure {
    #[serde(default)]
    pub(super) agent_id: Option<Id>,
    #[serde(default)]
    pub(super) executor_id: Option<Id>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct ErrorEvent {
    #[serde(default)]
    pub(super) message: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Id {
    pub(super) value: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct TaskStatus {
    pub(super) task_id: Id,
    pub(super) state: TaskState,
    #[serde(default)]
    pub(super) agent_id: Option<Id>,
    #[serde(default)]
    pub(super) reason: Option<String>,
    #[serde(default)]
    pub(super) source: Option<String>,
    #[serde(default)]
    pub(super) message: Option<String>,
    /// Only updates with one want to be acknowledged.
    #[serde(default)]
    pub(super) uuid: Option<String>,
}

/// Makes calls in the name of a framework.
#[derive(Debug, Default)]
pub(super) struct Caller {
    pub(super) framework_id: Option<String>,
}

impl Caller {
    pub(super) fn subscribe(&self, config: &SchedulerConfig) -> Value {
        let mut capabilities = vec![json!({ "type": "TASK_KILLING_STATE" })];
        if config.partition_aware {
            capabilities.push(json!({ "type": "PARTITION_AWARE" }));
        }
        let mut info = json!({
            "name": config.name,
            "user": config.user,
            "role": config.role,
            "checkpoint": config.checkpoint,
            "failover_timeout": config.failover_timeout.as_secs_f64(),
            "capabilities": capabilities,
        });
        if let Some(id) = &self.framework_id {
            info["id"] = json!({ "value": id });
        }
        self.call("SUBSCRIBE", json!({ "framework_info": info }))
    }

    pub(super) fn accept(&self, offer_id: &str, operations: &[Value], refuse_seconds: f64) -> Value {
        let body = json!({
            "offer_ids": [{ "value": offer_id }],
            "operations": operations,
            "filters": { "refuse_seconds": refuse_seconds },
        });
        self.call("ACCEPT", body)
    }

    pub(super) fn decline(&self, offer_ids: &[String], refuse_seconds: f64) -> Value {
        let ids: Vec<Value> = offer_ids.iter().map(|id| json!({ "value": id })).collect();
        self.call("DECLINE", json!({ "offer_ids": ids, "filters": { "refuse_seconds": refuse_seconds } }))
    }

    pub(super) fn acknowledge(&self, agent_id: &str, task_id: &str, uuid: &str) -> Value {
        let body =
            json!({ "agent_id": { "value": agent_id }, "task_id": { "value": task_id }, "uuid": uuid });
        self.call("ACKNOWLEDGE", body)
    }

    pub(super) fn kill(&self, task_id: &str, agent_id: Option<&str>) -> Value {
        self.call("KILL", task_and_agent(task_id, agent_id))
    }

    pub(super) fn shutdown(&self, executor_id: &str, agent_id: &str) -> Value {
        let body = json!({ "executor_id": { "value": executor_id }, "agent_id": { "value": agent_id } });
        self.call("SHUTDOWN", body)
    }

    /// No tasks: the master tells of all that it knows.
    pub(super) fn reconcile<'a>(&self, tasks: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Value {
        let tasks: Vec<Value> = tasks.map(|(task_id, agent_id)| task_and_agent(task_id, agent_id)).collect();
        self.call("RECONCILE", json!({ "tasks": tasks }))
    }

    pub(super) fn bare(&self, kind: &str) -> Value {
        self.call(kind, Value::Null)
    }

    fn call(&self, kind: &str, body: Value) -> Value {
        let mut call = json!({ "type": kind });
        if let Some(id) = &self.framework_id {
            call["framework_id"] = json!({ "value": id });
        }
        if !body.is_null() {
            call[kind.to_ascii_lowercase()] = body;
        }
        call
    }
}

fn task_and_agent(task_id: &str, agent_id: Option<&str>) -> Value {
    let mut task = json!({ "task_id": { "value": task_id } });
    if let Some(agent_id) = agent_id {
        task["agent_id"] = json!({ "value": agent_id });
    }
    task
}
