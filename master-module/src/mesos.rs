//! The leading master's list of agents, by HTTP. A master that does not lead sends us on to the one
//! that does, so it does not matter which one is asked first.

use std::time::Duration;

use reqwest::{Client, StatusCode, redirect};
use serde::Deserialize;
use shared::retry::Retry;
use tokio::time::{Instant, sleep};

/// The largest answer that is taken: several times that of 10,000 busy agents.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Redirections followed: one leads to the leader, and a second one if it has just changed.
const REDIRECTS_MAX: usize = 3;

const FIRST_ADDRESS_DELAY: Duration = Duration::from_millis(50);
const LONGEST_ADDRESS_DELAY: Duration = Duration::from_secs(1);

/// How the leading master sees an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// Connected.
    Active,
    /// Known, and its connection is gone.
    Inactive,
    /// Known from before the last change of the leader, and not heard of since.
    Recovered,
}

/// An agent, as far as this module cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) registration: Registration,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PollError {
    #[error("the address of this master is not known yet")]
    NoAddress,
    #[error("no master is leading, says {url}")]
    NoLeader { url: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} cannot be asked")]
    Unreachable { url: String, source: reqwest::Error },
    #[error("the answer of {url} has more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge { url: String },
    #[error("the answer of {url} is not a list of agents")]
    Malformed { url: String, source: serde_json::Error },
}

#[derive(Deserialize)]
struct Answer {
    slaves: Vec<Slave>,
    /// Absent before Mesos 1.2.
    #[serde(default)]
    recovered_slaves: Vec<RecoveredSlave>,
}

#[derive(Deserialize)]
struct Slave {
    id: String,
    hostname: String,
    active: bool,
}

#[derive(Deserialize)]
struct RecoveredSlave {
    id: String,
    hostname: String,
}

/// The Mesos masters, reached through one of them.
#[derive(Debug)]
pub(crate) struct Mesos {
    client: Client,
    own_address: fn() -> Option<String>,
    /// `http://<host>:<port>`, once it is known.
    base: Option<String>,
    timeout: Duration,
}

impl Mesos {
    /// Asks the master at `url`, or, without one, the process that this module is loaded in.
    pub(crate) fn new(
        url: Option<String>,
        own_address: fn() -> Option<String>,
        timeout: Duration,
    ) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .timeout(timeout)
            .redirect(redirect::Policy::limited(REDIRECTS_MAX))
            // The masters are this cluster's own: never through a proxy of the environment.
            .no_proxy()
            .build()?;
        Ok(Self { client, own_address, base: url, timeout })
    }

    /// All agents that the leading master knows.
    pub(crate) async fn agents(&mut self) -> Result<Vec<Agent>, PollError> {
        let url = format!("{}/master/slaves", self.base().await?);
        let unreachable = |source: reqwest::Error| {
            let url = source.url().map_or_else(|| url.clone(), ToString::to_string);
            PollError::Unreachable { url, source: source.without_url() }
        };
        let mut response = self.client.get(&url).send().await.map_err(&unreachable)?;
        // That of the leader, if we were sent on.
        let url = response.url().to_string();
        match response.status() {
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE => return Err(PollError::NoLeader { url }),
            status => return Err(PollError::Status { url, status }),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(&unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(PollError::TooLarge { url });
            }
            body.extend_from_slice(&chunk);
        }
        parse(&body).map_err(|source| PollError::Malformed { url, source })
    }

    /// The master to ask. This process's own address is known only once the process begins to serve,
    /// which is soon after the module is loaded.
    async fn base(&mut self) -> Result<String, PollError> {
        let deadline = Instant::now() + self.timeout;
        let mut retry = Retry::new(FIRST_ADDRESS_DELAY, LONGEST_ADDRESS_DELAY);
        loop {
            if let Some(base) = &self.base {
                return Ok(base.clone());
            }
            self.base = (self.own_address)()
                .map(|address| if address.contains("://") { address } else { format!("http://{address}") });
            if self.base.is_none() {
                if Instant::now() >= deadline {
                    return Err(PollError::NoAddress);
                }
                sleep(retry.next_delay()).await;
            }
        }
    }
}

fn parse(body: &[u8]) -> Result<Vec<Agent>, serde_json::Error> {
    let Answer { slaves, recovered_slaves } = serde_json::from_slice(body)?;
    let registered = slaves.into_iter().map(|Slave { id, hostname, active }| {
        let registration = if active { Registration::Active } else { Registration::Inactive };
        Agent { id, hostname, registration }
    });
    let recovered = recovered_slaves.into_iter().map(|RecoveredSlave { id, hostname }| Agent {
        id,
        hostname,
        registration: Registration::Recovered,
    });
    Ok(registered.chain(recovered).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_of_an_agent_is_read() {
        let body = br#"{"slaves":[
            {"id":"S0","hostname":"agent-1","port":5051,"pid":"slave(1)@10.0.0.1:5051","active":true,
             "attributes":{"rack":"a"},"resources":{"cpus":4.0,"ports":"[1-2]"},"deactivated":false},
            {"id":"S1","hostname":"agent-2","active":false}],
            "recovered_slaves":[{"id":"S2","hostname":"agent-3","port":5051,"resources":[]}]}"#;
        let agents = parse(body).unwrap();
        let seen: Vec<_> =
            agents.iter().map(|a| (a.id.as_str(), a.hostname.as_str(), a.registration)).collect();
        let expected = [
            ("S0", "agent-1", Registration::Active),
            ("S1", "agent-2", Registration::Inactive),
            ("S2", "agent-3", Registration::Recovered),
        ];
        assert_eq!(seen, expected);
        assert!(parse(b"<html>").is_err());
        assert!(parse(br#"{"slaves":[{"id":"S0"}]}"#).is_err());
    }

    #[test]
    fn ten_thousand_agents_as_mesos_describes_them_are_read_quickly() {
        let resources = r#"{"cpus":16.0,"disk":100000.0,"gpus":0.0,"mem":64000.0,"ports":"[31000-32000]"}"#;
        let kinds = ["resources", "used_resources", "offered_resources", "unreserved_resources"];
        let kinds: Vec<_> = kinds.iter().map(|kind| format!(r#""{kind}":{resources}"#)).collect();
        let full = r#"{"name":"cpus","type":"SCALAR","scalar":{"value":16.0},"role":"*"}"#;
        let full = vec![full; 20].join(",");
        let agent = |n: usize| {
            format!(
                r#"{{"id":"S{n}","hostname":"agent-{n}","active":true,{},"used_resources_full":[{full}]}}"#,
                kinds.join(",")
            )
        };
        let agents: Vec<_> = (0..10_000).map(agent).collect();
        let body = format!(r#"{{"slaves":[{}],"recovered_slaves":[]}}"#, agents.join(","));
        let begin = std::time::Instant::now();
        let agents = parse(body.as_bytes()).unwrap();
        let took = begin.elapsed();
        eprintln!("{} agents in {} bytes: read in {took:?}", agents.len(), body.len());
        assert!(agents.len() == 10_000 && took.as_secs() < 5, "{took:?}");
    }
}
