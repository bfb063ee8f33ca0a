//! What the agents' own processes answer, by HTTP. Only agents that hold leases are asked.
//!
//! `/health` is cheap for an agent and says no id; `/state` says the id, and that it is recovering,
//! and can be megabytes. So the state is asked for only where it may tell something: see
//! [`Target::verified`]. Of it no more is read than is needed to find the id, which stands near its
//! beginning.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use reqwest::{Client, StatusCode, redirect};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use shared::event::Answering;
use shared::volume::Holder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::reach::chain;

/// Agents asked at once. A hung one takes a place for one time-out: a thousand hung ones hold up a
/// round for eight.
const ASKED_AT_ONCE: usize = 128;

/// Answers that are handed on together, when many come at once.
const ANSWERS_AT_ONCE: usize = 256;

/// What is read of a state at most: its id stands within the first kilobyte.
const STATE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a reason that are kept.
const REASON_BYTES: usize = 300;

/// Where an agent's process listens, as the master has it in `pid`: `slave(1)@10.0.0.1:5051`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AgentAddress {
    process: Box<str>,
    socket: SocketAddr,
}

impl AgentAddress {
    /// The address in a `pid`; `None` when there is none in it.
    pub(crate) fn of_pid(pid: &str) -> Option<Self> {
        let (process, socket) = pid.split_once('@')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '(' | ')' | '-' | '_');
        if process.is_empty() || process.len() > 64 || !process.chars().all(plain) {
            return None;
        }
        Some(Self { process: process.into(), socket: socket.parse().ok()? })
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> SocketAddr {
        self.socket
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}/{}", self.socket, self.process)
    }
}

/// An agent to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) holder: Holder,
    pub(crate) agent_id: Arc<str>,
    pub(crate) address: AgentAddress,
    /// Whether it was found under its id at this address, has answered since, and the leading master
    /// lists it as connected: then its health is enough.
    pub(crate) verified: bool,
}

/// What it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) holder: Holder,
    /// The agent and the address that were asked.
    pub(crate) agent_id: Arc<str>,
    pub(crate) address: AgentAddress,
    pub(crate) answering: Answering,
    /// Why it is not [`Answering::Answers`].
    pub(crate) why: String,
}

/// The agents, as clients reach them.
#[derive(Clone, Debug)]
pub(crate) struct Agents {
    client: Client,
    timeout: Duration,
}

impl Agents {
    pub(crate) fn new(timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .timeout(timeout)
            // Ten thousand open connections are memory; a new one for each question is cheap.
            .pool_max_idle_per_host(0)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { client, timeout })
    }

    /// Asks all, some at once, and answers in the order in which they do.
    pub(crate) fn ask(&self, targets: Vec<Target>) -> impl Stream<Item = Vec<Answer>> + use<> {
        let agents = self.clone();
        stream::iter(targets)
            .map(move |target| {
                let agents = agents.clone();
                async move { agents.ask_one(target).await }
            })
            .buffer_unordered(ASKED_AT_ONCE)
            .ready_chunks(ANSWERS_AT_ONCE)
    }

    async fn ask_one(&self, target: Target) -> Answer {
        let (answering, mut why) =
            if target.verified { self.health(&target).await } else { self.state(&target).await };
        why.truncate(why.floor_char_boundary(REASON_BYTES));
        let Target { holder, agent_id, address, .. } = target;
        Answer { holder, agent_id, address, answering, why }
    }

    /// Asks in the fewest possible steps, for this is done for each agent in each round: a client that
    /// can do more takes several times the time.
    async fn health(&self, target: &Target) -> (Answering, String) {
        match timeout(self.timeout, health_status(&target.address)).await {
            Err(_) => (Answering::Silent, format!("no answer within {:?}", self.timeout)),
            Ok(Err(error)) => (Answering::Silent, error.to_string()),
            Ok(Ok(status)) if status == StatusCode::OK.as_u16() => (Answering::Answers, String::new()),
            Ok(Ok(status)) => (Answering::Unclear, format!("its health is {status}")),
        }
    }

    async fn state(&self, target: &Target) -> (Answering, String) {
        let mut response = match self.client.get(format!("{}/state", target.address)).send().await {
            Err(error) => return silent(error),
            Ok(response) => response,
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE => return (Answering::Recovering, "503".to_owned()),
            status => return (Answering::Unclear, format!("its state is {status}")),
        }
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Err(error) => return silent(error),
                Ok(None) => return (Answering::Unclear, "its state has no id".to_owned()),
                Ok(Some(chunk)) => {
                    let room = STATE_BYTES_MAX - body.len();
                    body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                }
            }
            match id_in(&body) {
                Some(id) if *id == *target.agent_id => return (Answering::Answers, String::new()),
                Some(id) => return (Answering::OtherId, format!("agent {id} answers there")),
                None if body.len() == STATE_BYTES_MAX => {
                    let why = format!("there is no id in the first {STATE_BYTES_MAX} bytes of its state");
                    return (Answering::Unclear, why);
                }
                None => {}
            }
        }
    }
}

/// The status of an agent's health: no more of the answer is read.
async fn health_status(address: &AgentAddress) -> io::Result<u16> {
    let AgentAddress { process, socket } = address;
    let mut stream = TcpStream::connect(socket).await?;
    let request = format!("GET /{process}/health HTTP/1.1\r\nHost: {socket}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut line = [0; STATUS_LINE];
    stream.read_exact(&mut line).await?;
    status_of(&line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP"))
}

/// Of a status line as far as its code: `HTTP/1.1 200`.
const STATUS_LINE: usize = 12;

fn status_of(line: &[u8; STATUS_LINE]) -> Option<u16> {
    let text = std::str::from_utf8(line).ok()?;
    text.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok().filter(|status| (100..600).contains(status))
}

fn silent(error: reqwest::Error) -> (Answering, String) {
    (Answering::Silent, chain(&error.without_url()))
}

/// The outermost `id` of a JSON object of which only the beginning may be there.
fn id_in(beginning: &[u8]) -> Option<String> {
    struct Find<'a>(&'a mut Option<String>);
    impl<'de> DeserializeSeed<'de> for Find<'_> {
        type Value = ();
        fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_map(self)
        }
    }
    impl<'de> Visitor<'de> for Find<'_> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an agent's state")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while let Some(key) = map.next_key::<String>()? {
                if key == "id" {
                    *self.0 = Some(map.next_value()?);
                    return Err(A::Error::custom("found"));
                }
                map.next_value::<IgnoredAny>()?;
            }
            Ok(())
        }
    }
    let mut id = None;
    // Whether it ends well does not matter: it has mostly not come to its end.
    let _ = Find(&mut id).deserialize(&mut serde_json::Deserializer::from_slice(beginning));
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_from_a_pid_and_nothing_else() {
        let address = AgentAddress::of_pid("slave(1)@10.0.0.1:5051").unwrap();
        assert_eq!(address.to_string(), "http://10.0.0.1:5051/slave(1)");
        assert_eq!(
            AgentAddress::of_pid("slave(1)@[::1]:5051").unwrap().to_string(),
            "http://[::1]:5051/slave(1)"
        );
        for pid in ["", "slave(1)", "@10.0.0.1:5051", "slave(1)@agent:5051", "a/../b@10.0.0.1:1", "a@1.2.3.4"]
        {
            assert_eq!(AgentAddress::of_pid(pid), None, "{pid}");
        }
    }

    #[test]
    fn a_status_is_taken_from_its_line_and_nothing_else() {
        assert_eq!(status_of(b"HTTP/1.1 200"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 503"), Some(503));
        for line in [b"HTTP/2.0 200", b"HTTP/1.1 2x0", b"HTTP/1.1 999", b"SSH-2.0-Open", b"HTTP/1.1\xff200"] {
            assert_eq!(status_of(line), None);
        }
    }

    #[test]
    fn the_outermost_id_is_found_as_soon_as_it_is_there() {
        let state = r#"{"version":"1.11.0","domain":{"id":"no"},"list":[{"id":1}],"id":"S0","frameworks":[{"#;
        let end = state.find(r#""S0""#).unwrap() + 4;
        for cut in 0..end {
            assert_eq!(id_in(&state.as_bytes()[..cut]), None, "{cut}");
        }
        for cut in end..=state.len() {
            assert_eq!(id_in(&state.as_bytes()[..cut]).as_deref(), Some("S0"));
        }
        for other in ["[]", "<html>", r#"{"id":7}"#, r#"{"a":{"id":"S0"}}"#] {
            assert_eq!(id_in(other.as_bytes()), None, "{other}");
        }
    }
}
