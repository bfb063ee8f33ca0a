//! Marking an agent gone. The master kills all that it still runs, and the agent can never come back under its id;
//! so it is done last, if at all (parameter `mark_gone`), and looked at once more right before:
//!
//! - the core asks for it only after a full wait in which the master never listed the agent as connected;
//! - the master still does not (the loop looks);
//! - the session is still that epoch, dead by time, in a linearizable read;
//! - nothing answers at the agent's address, not even a refusal. A host that refuses a connection is alive: its agent
//!   is down and its keeper cut off from etcd, has fenced itself, and will be back. One whose address is not
//!   known cannot be looked at, and is not marked.
//!
//! One at a time: the master does no two at once, and answers 503 meanwhile.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use shared::exchange_io::Exchange;
use shared::protocol::Text;
use shared::protocol::exchange::{Key, Proof, Reading, Session, SessionState};
use shared::record::Epoch;
use shared::store::{LeaseStore, Revision};
use shared::volume::Holder;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::agents::AgentAddress;
use crate::reach::chain;

/// The pause before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Tries in which the master was busy or did not answer: some minutes.
const TRIES_MAX: u32 = 120;

/// An agent to mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) agent_id: Text,
    pub(crate) holder: Holder,
    pub(crate) epoch: Epoch,
    /// Where it listened, as its session says.
    pub(crate) address: Option<AgentAddress>,
}

impl Mark {
    pub(crate) fn new(agent_id: Text, holder: &Holder, session: &Session) -> Self {
        let address = session.agent.as_ref().and_then(|agent| AgentAddress::of_pid(&agent.address));
        Self { agent_id, holder: holder.clone(), epoch: session.epoch, address }
    }
}

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// The master has marked it. With the revision that wrote its session as dead.
    Marked(Revision),
    /// The master does not know the agent: nothing is left to mark.
    NotKnown,
    /// The master is marking another one, or nobody leads.
    Busy,
    /// The master wants credentials, or others.
    Forbidden(StatusCode),
    /// The session is not that dead epoch any more.
    Back,
    /// The host shows a sign of life, or cannot be asked for one.
    Alive(String),
    /// No clear answer.
    Failed(String),
}

/// Tries once, after a last look.
pub(crate) async fn try_to_mark<S: LeaseStore>(
    exchange: &Exchange<S>,
    client: &Client,
    leader: &str,
    patience: Duration,
    mark: &Mark,
) -> Tried {
    if let Some(sign) = sign_of_life(mark.address.as_ref(), patience).await {
        return Tried::Alive(sign);
    }
    // The look at etcd is the last one: it takes no longer than one request.
    let at = match exchange.read(&Reading::Keys(vec![Key::Session(mark.holder.clone())])).await {
        Err(why) => return Tried::Failed(why.to_string()),
        Ok(view) => match view.session(&mark.holder) {
            Some((session, at))
                if session.epoch == mark.epoch && session.state == SessionState::Dead(Proof::Time) =>
            {
                at
            }
            _ => return Tried::Back,
        },
    };
    let call = serde_json::json!({
        "type": "MARK_AGENT_GONE",
        "mark_agent_gone": {"agent_id": {"value": &*mark.agent_id}},
    });
    match client.post(format!("{leader}/api/v1")).json(&call).send().await {
        Err(error) => Tried::Failed(chain(&error.without_url())),
        Ok(response) => match response.status() {
            StatusCode::OK => Tried::Marked(at),
            StatusCode::NOT_FOUND => Tried::NotKnown,
            StatusCode::SERVICE_UNAVAILABLE => Tried::Busy,
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Tried::Forbidden(status),
            status => Tried::Failed(format!("it answered {status}")),
        },
    }
}

/// What tells that the host lives, or that this cannot be told. `None` when nothing answered.
async fn sign_of_life(address: Option<&AgentAddress>, patience: Duration) -> Option<String> {
    let Some(address) = address else { return Some("its address is not known".to_owned()) };
    match timeout(patience, TcpStream::connect(address.socket())).await {
        // No route, no answer.
        Err(_) => None,
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                None
            }
            _ => Some(format!("its host answers: {error}")),
        },
        Ok(Ok(_)) => Some("its process answers".to_owned()),
    }
}

/// The agents that wait to be marked.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    waiting: VecDeque<(Mark, u32)>,
    not_before: Option<Instant>,
    under_way: bool,
}

impl Marks {
    pub(crate) fn add(&mut self, marks: Vec<Mark>) {
        for mark in marks {
            if self.waiting.iter().all(|(waiting, _)| waiting.agent_id != mark.agent_id) {
                self.waiting.push_back((mark, 0));
            }
        }
    }

    /// The next one to try, if it is time and none is under way. `is_connected` tells of an agent whether the
    /// leading master may still reach it: then it is dropped.
    pub(crate) fn next(&mut self, now: Instant, is_connected: impl Fn(&str) -> bool) -> Option<Mark> {
        if self.under_way || self.not_before.is_some_and(|due| now < due) {
            return None;
        }
        while let Some((mark, _)) = self.waiting.front() {
            if !is_connected(&mark.agent_id) {
                self.under_way = true;
                return Some(mark.clone());
            }
            info!("agent {} is not marked gone: the leading master lists it again", mark.agent_id);
            self.waiting.pop_front();
        }
        None
    }

    /// When [`Marks::next`] has something; `None` without any, or while one is under way.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        (!self.under_way && !self.waiting.is_empty()).then(|| self.not_before.unwrap_or(now))
    }

    /// The one under way was tried; the mark that is to be told as an event, with its revision.
    pub(crate) fn tried(&mut self, tried: Tried, now: Instant) -> Option<(Mark, Revision)> {
        self.under_way = false;
        self.not_before = None;
        let (mark, tries) = self.waiting.pop_front()?;
        let Mark { agent_id, holder, .. } = &mark;
        let again = match tried {
            Tried::Marked(at) => return Some((mark, at)),
            Tried::NotKnown => {
                info!(
                    "agent {agent_id} of {holder} is not marked gone: the leading master does not know it (404)"
                );
                return None;
            }
            Tried::Back => {
                info!("agent {agent_id} of {holder} is not marked gone: its host has another session since");
                return None;
            }
            Tried::Alive(sign) => {
                warn!(
                    "agent {agent_id} of {holder} is not marked gone, for its host may only be cut off from etcd: {sign}"
                );
                return None;
            }
            Tried::Forbidden(status) => {
                warn!(
                    "agent {agent_id} of {holder} cannot be marked gone: the leading master answered {status}; this \
                     module has no credentials, so allow MARK_AGENT_GONE without, or set mark_gone=false"
                );
                return None;
            }
            Tried::Busy => "the leading master is marking another agent, or none leads (503)".to_owned(),
            Tried::Failed(why) => why,
        };
        if tries + 1 >= TRIES_MAX {
            warn!("agent {agent_id} of {holder} is not marked gone, after {TRIES_MAX} tries: {again}");
            return None;
        }
        if tries == 0 {
            info!("agent {agent_id} of {holder} is not marked gone yet, asking again: {again}");
        }
        // Behind the others: one that fails again and again holds up nobody.
        self.waiting.push_back((mark, tries + 1));
        self.not_before = Some(now + PAUSE);
        None
    }
}

#[cfg(test)]
#[path = "gone_tests.rs"]
mod tests;
