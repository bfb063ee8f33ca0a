//! Tasks of a group: nested containers, by the agent's own API.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::core::End;
use crate::executor::{ended::Ended, run::SUBSCRIBE_AGAIN_AFTER, setup::Setup, task};

/// The agent, as one of its executors asks it for containers.
#[derive(Clone)]
pub(super) struct Containers {
    client: Client,
    url: String,
    token: Option<String>,
}

impl Containers {
    pub(super) fn new(setup: &Setup) -> Result<Self, reqwest::Error> {
        let client = Client::builder().no_proxy().build()?;
        Ok(Self { client, url: setup.agent_url.clone(), token: setup.token.clone() })
    }

    async fn call(&self, call: &Value) -> Result<(StatusCode, String), String> {
        let json = "application/json";
        let request = self.client.post(&self.url).header("Accept", json).header("Content-Type", json);
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let answer = request.body(call.to_string()).send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        Ok((status, answer.text().await.map_err(|error| error.to_string())?))
    }

    /// # Errors
    /// The agent's words.
    pub(super) async fn launch(&self, id: &Value, task: &Value) -> Result<(), String> {
        match self.call(&launch_call(id, task)).await? {
            (StatusCode::OK, _) => Ok(()),
            (_, body) => Err(body),
        }
    }

    /// Waits for the container's end, also across restarts of the agent; `launch_error` is what its launch was told.
    pub(super) async fn wait(&self, id: &Value, launch_error: Option<String>) -> End {
        let wait =
            json!({ "type": "WAIT_NESTED_CONTAINER", "wait_nested_container": { "container_id": id } });
        loop {
            match self.call(&wait).await {
                Ok((StatusCode::OK, body)) => return end(&body, launch_error),
                Ok((StatusCode::NOT_FOUND, _)) => {
                    let unknown = || "Unable to retrieve command's termination information".into();
                    return End { message: launch_error.unwrap_or_else(unknown), ..End::default() };
                }
                // The agent is away, or has not recovered yet.
                Ok(_) | Err(_) => tokio::time::sleep(SUBSCRIBE_AGAIN_AFTER).await,
            }
        }
    }

    /// An end that was on its way needs no signal.
    pub(super) async fn kill(&self, id: &Value, signal: i32) {
        let kill = json!({ "container_id": id, "signal": signal });
        let _ = self.call(&json!({ "type": "KILL_NESTED_CONTAINER", "kill_nested_container": kill })).await;
    }
}

/// As Mesos's default executor calls.
fn launch_call(id: &Value, task: &Value) -> Value {
    let mut launch = json!({ "container_id": id, "resources": task["resources"] });
    for key in ["command", "container", "limits"] {
        if let Some(value) = task.get(key) {
            launch[key] = value.clone();
        }
    }
    let role = task["resources"][0]["allocation_info"]["role"].as_str().unwrap_or("*");
    let variable = json!({ "name": "MESOS_ALLOCATION_ROLE", "value": role });
    let variables = &mut launch["command"]["environment"]["variables"];
    match variables.as_array_mut() {
        Some(variables) => variables.push(variable),
        None => *variables = json!([variable]),
    }
    json!({ "type": "LAUNCH_CONTAINER", "launch_container": launch })
}

/// What the agent says of a container that has ended.
fn end(body: &str, launch_error: Option<String>) -> End {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let said = &answer["wait_nested_container"];
    let text = |key: &str| said[key].as_str().map(str::to_owned);
    let status = said["exit_status"].as_i64().and_then(|status| i32::try_from(status).ok());
    let ended = status.map(|status| task::ended(ExitStatus::from_raw(status)));
    let unknown = || launch_error.unwrap_or_else(|| "Command terminated with unknown status".into());
    let message = ended.map_or_else(unknown, Ended::describe);
    End {
        well: ended == Some(Ended::Exited(0)),
        state: text("state"),
        reason: text("reason"),
        message: match text("message") {
            Some(more) => format!("{message}: {more}"),
            None => message,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_carries_what_mesos_s_own_executor_sends() {
        let id = json!({ "value": "u", "parent": { "value": "e" } });
        let mut task = json!({
            "task_id": { "value": "t" }, "labels": {}, "container": { "type": "MESOS" },
            "resources": [{ "name": "cpus", "allocation_info": { "role": "r" } }],
            "command": { "value": "true", "environment": { "variables": [{ "name": "A", "value": "b" }] } },
        });
        let launch = launch_call(&id, &task)["launch_container"].clone();
        assert_eq!((&launch["container_id"], &launch["container"]), (&id, &task["container"]));
        assert_eq!((&launch["resources"], launch.get("labels")), (&task["resources"], None));
        let variables = &launch["command"]["environment"]["variables"];
        assert_eq!((&variables[0]["name"], &variables[1]["value"]), (&json!("A"), &json!("r")));
        task["command"] = json!({ "value": "true" });
        let launch = launch_call(&id, &task);
        let variables = &launch["launch_container"]["command"]["environment"]["variables"];
        assert_eq!(variables, &json!([{ "name": "MESOS_ALLOCATION_ROLE", "value": "r" }]));
    }

    #[test]
    fn the_agents_word_on_a_refused_launch_reaches_the_task() {
        let body = json!({ "wait_nested_container": {
            "state": "TASK_FAILED", "reason": "REASON_CONTAINER_LAUNCH_FAILED", "message": "refused",
        }});
        let told = end(&body.to_string(), Some("launch".into()));
        assert_eq!((told.message.as_str(), told.well), ("launch: refused", false));
        assert_eq!(told.reason.as_deref(), Some("REASON_CONTAINER_LAUNCH_FAILED"));
        let well = end(r#"{"wait_nested_container": {"exit_status": 0}}"#, None);
        assert!(well.well && well.message == "Command exited with status 0");
        let badly = end(r#"{"wait_nested_container": {"exit_status": 256}}"#, None);
        assert!(!badly.well && badly.message == "Command exited with status 1");
    }
}
