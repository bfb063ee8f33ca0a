//! The leading master's list of agents and its registry, by HTTP. A master that does not lead sends us on to the one
//! that does, so it does not matter which one is asked first.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, StatusCode, redirect};
use serde::Deserialize;
use shared::retry::Retry;
use tokio::time::{Instant, sleep};

use crate::agents::AgentAddress;
use crate::elements::{Elements, Path, ScanError};

/// The largest answer that is taken: several times that of 10,000 busy agents.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Redirections followed: one leads to the leader, and a second one if it has just changed.
const REDIRECTS_MAX: usize = 3;

/// What is encoded of an agent's id in a query.
const IN_A_QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

const FIRST_ADDRESS_DELAY: Duration = Duration::from_millis(50);
const LONGEST_ADDRESS_DELAY: Duration = Duration::from_secs(1);

/// How the leading master sees an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// Connected.
    Active,
    /// Known, and its connection is gone.
    Inactive,
    /// Known, and an operator lets nothing new run there. Whether it is connected is not said: what runs there may
    /// run on undisturbed.
    Deactivated,
    /// Known from before the last change of the leader, and not heard of since.
    Recovered,
}

impl Registration {
    /// Whether the leading master may still reach such an agent.
    pub(crate) fn may_be_connected(self) -> bool {
        match self {
            Self::Active | Self::Deactivated | Self::Recovered => true,
            Self::Inactive => false,
        }
    }
}

/// An agent, as far as this module cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) registration: Registration,
    /// Where its own process listens; unknown of a recovered one.
    pub(crate) address: Option<AgentAddress>,
}

/// The answer of the leading master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentList {
    pub(crate) agents: Vec<Agent>,
    /// `http://<host>:<port>` of the leading master.
    pub(crate) leader: String,
    /// Whether that is the master that was asked, and did not send us on.
    pub(crate) leading: bool,
}

/// What the leading master's registry says of agents that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registry {
    pub(crate) asked: BTreeSet<Arc<str>>,
    /// Those that the masters have not given up.
    pub(crate) admitted: BTreeSet<String>,
    pub(crate) unreachable: BTreeSet<String>,
    pub(crate) gone: BTreeSet<String>,
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
    #[error("the answer of {url} is not what was asked for")]
    Malformed { url: String, source: MalformedAnswer },
}

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MalformedAnswer {
    #[error(transparent)]
    Document(#[from] ScanError),
    #[error(transparent)]
    Agent(#[from] serde_json::Error),
    #[error("it has no list of agents")]
    NoList,
    #[error("it is empty, as that of a master that does not lead")]
    Empty,
}

#[derive(Deserialize)]
struct Slave<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    hostname: Cow<'a, str>,
    active: bool,
    /// Since Mesos 1.9. Such an agent is never active.
    #[serde(default)]
    deactivated: bool,
    #[serde(borrow, default)]
    pid: Cow<'a, str>,
}

#[derive(Deserialize)]
struct RecoveredSlave<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    hostname: Cow<'a, str>,
}

/// An agent that the registry gave up, as protobuf's JSON has it.
#[derive(Deserialize)]
struct Former<'a> {
    #[serde(borrow)]
    id: Value<'a>,
}

/// An agent that it has not given up.
#[derive(Deserialize)]
struct Admitted<'a> {
    #[serde(borrow)]
    info: Former<'a>,
}

#[derive(Deserialize)]
struct Value<'a> {
    #[serde(borrow)]
    value: Cow<'a, str>,
}

/// Absent before Mesos 1.2: the second.
pub(crate) const LISTS: &[Path] = &[&["slaves"], &["recovered_slaves"]];

const REGISTRY_LISTS: &[Path] = &[&["unreachable", "slaves"], &["gone", "slaves"]];

/// By far the longest of its lists.
const ADMITTED_LIST: &[Path] = &[&["slaves", "slaves"]];

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
    pub(crate) async fn agents(&mut self) -> Result<AgentList, PollError> {
        let base = self.base().await?;
        let mut agents = Vec::new();
        let sink = |list: usize, element: &[u8]| {
            agents.push(agent(list, element)?);
            Ok(())
        };
        let url = format!("{base}/master/slaves");
        let (url, document) = elements(&self.client, url, LISTS, sink).await?;
        if !document.found(0) {
            return Err(PollError::Malformed { url, source: MalformedAnswer::NoList });
        }
        let leader = url.strip_suffix("/master/slaves").unwrap_or(&url).to_owned();
        Ok(AgentList { agents, leading: leader == base, leader })
    }

    /// How the leading master lists one agent; `None` when it does not. Cheap for a master since Mesos 1.3; an older
    /// one answers with the whole list.
    pub(crate) async fn agent(&self, id: &str) -> Result<Option<Registration>, PollError> {
        let Some(base) = &self.base else { return Err(PollError::NoAddress) };
        let mut registration = None;
        let sink = |list: usize, element: &[u8]| {
            let agent = agent(list, element)?;
            if agent.id == id {
                registration = Some(agent.registration);
            }
            Ok(())
        };
        let id = utf8_percent_encode(id, IN_A_QUERY);
        elements(&self.client, format!("{base}/master/slaves?slave_id={id}"), LISTS, sink).await?;
        Ok(registration)
    }

    /// The registry, to be asked beside the list.
    pub(crate) fn registrar(&self) -> Registrar {
        Registrar { client: self.client.clone() }
    }

    /// What speaks to masters.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
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

/// The leading master's registry: the only list of agents that are unreachable or gone.
#[derive(Clone, Debug)]
pub(crate) struct Registrar {
    client: Client,
}

impl Registrar {
    /// What the registry of the master at `leader` says of the agents in `asked`. Of those in `given_up` it is
    /// known already that it has not admitted them.
    pub(crate) async fn registry(
        &self,
        leader: &str,
        asked: BTreeSet<Arc<str>>,
        given_up: &BTreeSet<Arc<str>>,
    ) -> Result<Registry, PollError> {
        let url = format!("{leader}/registrar(1)/registry");
        let [mut unreachable, mut gone, mut admitted] = [const { BTreeSet::new() }; 3];
        let sink = |list: usize, element: &[u8]| {
            let Former { id: Value { value } } = serde_json::from_slice(element)?;
            if asked.contains(&*value) {
                let list = if list == 0 { &mut unreachable } else { &mut gone };
                list.insert(value.into_owned());
            }
            Ok(())
        };
        elements(&self.client, url.clone(), REGISTRY_LISTS, sink).await?;
        let is_former = |id: &str| unreachable.contains(id) || gone.contains(id);
        // That an agent is in neither means that it was removed, or that it has registered since the list was
        // asked for, or that the leading master has only now read the registry.
        if asked.iter().any(|id| !is_former(id) && !given_up.contains(id)) {
            let sink = |_, element: &[u8]| {
                let Admitted { info: Former { id: Value { value } } } = serde_json::from_slice(element)?;
                if asked.contains(&*value) {
                    admitted.insert(value.into_owned());
                }
                Ok(())
            };
            elements(&self.client, url, ADMITTED_LIST, sink).await?;
        }
        Ok(Registry { asked, admitted, unreachable, gone })
    }
}

/// Takes the wanted elements of an answer, which is never in memory as a whole; answers the URL
/// that gave it, after redirections, and what was found in it.
async fn elements(
    client: &Client,
    url: String,
    wanted: &'static [Path],
    mut sink: impl FnMut(usize, &[u8]) -> Result<(), MalformedAnswer>,
) -> Result<(String, Elements), PollError> {
    let unreachable = |source: reqwest::Error| {
        let url = source.url().map_or_else(|| url.clone(), ToString::to_string);
        PollError::Unreachable { url, source: source.without_url() }
    };
    let mut response = client.get(&url).send().await.map_err(&unreachable)?;
    // That of the leader, if we were sent on.
    let url = response.url().to_string();
    match response.status() {
        StatusCode::OK => {}
        StatusCode::SERVICE_UNAVAILABLE => return Err(PollError::NoLeader { url }),
        status => return Err(PollError::Status { url, status }),
    }
    let malformed = |source| PollError::Malformed { url: url.clone(), source };
    let mut elements = Elements::new(wanted);
    let mut bytes = 0;
    while let Some(chunk) = response.chunk().await.map_err(&unreachable)? {
        bytes += chunk.len();
        if bytes > ANSWER_BYTES_MAX {
            return Err(PollError::TooLarge { url });
        }
        elements.feed(&chunk, &mut sink).map_err(malformed)?;
    }
    elements.finish().map_err(|error| malformed(error.into()))?;
    // What a registrar says that has not read the registry, as on a standby.
    if bytes <= "{}".len() {
        return Err(malformed(MalformedAnswer::Empty));
    }
    Ok((url, elements))
}

/// An element of the leading master's list, or of its list of recovered agents.
pub(crate) fn agent(list: usize, element: &[u8]) -> Result<Agent, MalformedAnswer> {
    if list == 1 {
        let RecoveredSlave { id, hostname } = serde_json::from_slice(element)?;
        let (id, hostname) = (id.into_owned(), hostname.into_owned());
        return Ok(Agent { id, hostname, registration: Registration::Recovered, address: None });
    }
    let Slave { id, hostname, active, deactivated, pid } = serde_json::from_slice(element)?;
    let registration = match (active, deactivated) {
        (true, _) => Registration::Active,
        (false, true) => Registration::Deactivated,
        (false, false) => Registration::Inactive,
    };
    let (id, hostname, address) = (id.into_owned(), hostname.into_owned(), AgentAddress::of_pid(&pid));
    Ok(Agent { id, hostname, registration, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<Vec<Agent>, MalformedAnswer> {
        let mut elements = Elements::new(LISTS);
        let mut agents = Vec::new();
        elements.feed(body, |list, element| {
            agents.push(agent(list, element)?);
            Ok::<_, MalformedAnswer>(())
        })?;
        elements.finish()?;
        Ok(agents)
    }

    #[test]
    fn only_what_is_needed_of_an_agent_is_read() {
        let body = br#"{"slaves":[
            {"id":"S0","hostname":"agent-1","port":5051,"pid":"slave(1)@10.0.0.1:5051","active":true,
             "attributes":{"rack":"a"},"resources":{"cpus":4.0,"ports":"[1-2]"},"deactivated":false},
            {"id":"S\u0031","hostname":"agent-2","active":false},
            {"id":"S3","hostname":"agent-4","active":false,"deactivated":true}],
            "recovered_slaves":[{"id":"S2","hostname":"agent-3","port":5051,"resources":[]}]}"#;
        let agents = parse(body).unwrap();
        let seen: Vec<_> =
            agents.iter().map(|a| (a.id.as_str(), a.hostname.as_str(), a.registration)).collect();
        let expected = [
            ("S0", "agent-1", Registration::Active),
            ("S1", "agent-2", Registration::Inactive),
            ("S3", "agent-4", Registration::Deactivated),
            ("S2", "agent-3", Registration::Recovered),
        ];
        assert_eq!(seen, expected);
        assert_eq!(agents[0].address, AgentAddress::of_pid("slave(1)@10.0.0.1:5051"));
        assert_eq!(agents[1].address, None);
        assert!(parse(b"<html>").is_err());
        assert!(parse(br#"{"slaves":[{"id":"S0"}]}"#).is_err());
    }
}
