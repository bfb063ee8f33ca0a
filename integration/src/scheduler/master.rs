//! The connection to the leading master: the only file here that knows HTTP.
//!
//! One link is one subscription and the calls made while it lives. A failed call ends the link: the next subscription
//! begins with a reconciliation, which finds out what became of it.

use std::{pin::pin, time::Duration};

use reqwest::{
    Client, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
    redirect::Policy,
};
use serde_json::Value;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use super::protocol::Event;
use crate::recordio::{Decoder, RecordError};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The scheduler API by its full name: the short one exists only where the process's main actor is the master.
const API: &str = "/master/api/v1/scheduler";

/// Names a subscription; every call must carry it.
const STREAM_ID: &str = "Mesos-Stream-Id";

/// A master that does not answer within this is tried again, or another one is.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// For the answer to a call that was under way when the master closed the stream.
const LAST_ANSWER_LIMIT: Duration = Duration::from_millis(200);

/// A connection on a healthy network is there at once.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Redirects followed before masters are taken to disagree about their leader.
const MAX_REDIRECTS: usize = 3;

/// Why a link ended; for the log only, as the reaction is always to subscribe again.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the master cannot be reached")]
    Http(#[from] reqwest::Error),
    #[error("the master does not answer within {} s", ANSWER_LIMIT.as_secs())]
    Silent,
    #[error("the master answers {status}: {body}")]
    Refused { status: StatusCode, body: String },
    #[error("masters redirect to each other")]
    Redirects,
    #[error("the master's stream is broken")]
    Record(#[from] RecordError),
    #[error("the master sent an event that is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("the master closed the subscription")]
    Closed,
}

/// What comes out of a link.
#[derive(Debug)]
pub(super) enum Received {
    Event(Event),
    /// The master accepted the `TEARDOWN` call.
    TornDown,
}

/// The masters, any of which may lead.
pub(super) struct Masters {
    client: Client,
    urls: Vec<String>,
    next: usize,
}

impl Masters {
    /// `urls` may name several masters, separated by commas.
    pub(super) fn new(urls: &str) -> Result<Self, reqwest::Error> {
        let headers = HeaderMap::from_iter([(ACCEPT, JSON), (CONTENT_TYPE, JSON)]);
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_LIMIT)
            .default_headers(headers)
            .build()?;
        let urls = urls.split(',').map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        Ok(Self { client, urls, next: 0 })
    }

    /// Begins a link with a `SUBSCRIBE` call; each try begins with the next master.
    pub(super) fn subscribe(&mut self, call: &Value) -> Link {
        let (received_tx, received) = unbounded_channel();
        let (calls, calls_rx) = unbounded_channel();
        let base = self.urls[self.next % self.urls.len()].clone();
        self.next += 1;
        let (client, body) = (self.client.clone(), call.to_string());
        let task = tokio::spawn(async move {
            let error = live(&client, base, body, calls_rx, &received_tx).await.err();
            let _ = received_tx.send(Err(error.unwrap_or(LinkError::Closed)));
        });
        Link { received, calls, task }
    }
}

/// A subscription; dropping it closes its connections.
pub(super) struct Link {
    received: UnboundedReceiver<Result<Received, LinkError>>,
    calls: UnboundedSender<Value>,
    task: JoinHandle<()>,
}

impl Link {
    /// What comes next, or the end of the link.
    pub(super) async fn next(&mut self) -> Result<Received, LinkError> {
        self.received.recv().await.unwrap_or(Err(LinkError::Closed))
    }

    /// Queues a call; calls go out one after the other.
    pub(super) fn send(&self, call: Value) {
        // The link's task ends only after it has reported why.
        let _ = self.calls.send(call);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn live(
    client: &Client,
    base: String,
    body: String,
    calls: UnboundedReceiver<Value>,
    received: &UnboundedSender<Result<Received, LinkError>>,
) -> Result<(), LinkError> {
    let (url, response) = subscribe(client, base, body).await?;
    let stream = response.headers().get(STREAM_ID).cloned();
    let mut writing = pin!(write(client, &url, stream, calls, received));
    tokio::select! {
        ended = &mut writing => ended,
        ended = read(response, received) => {
            // A teardown closes the stream, perhaps before its own answer has come.
            let _ = tokio::time::timeout(LAST_ANSWER_LIMIT, writing).await;
            ended
        }
    }
}

/// Subscribes at the leader, to whom other masters point with a redirect.
async fn subscribe(client: &Client, base: String, body: String) -> Result<(String, Response), LinkError> {
    let mut url = format!("{base}{API}");
    for _ in 0..=MAX_REDIRECTS {
        let request = client.post(&url).body(body.clone());
        let response =
            tokio::time::timeout(ANSWER_LIMIT, request.send()).await.map_err(|_| LinkError::Silent)??;
        if response.status() == StatusCode::OK {
            return Ok((url, response));
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        match location {
            Some(location) if response.status() == StatusCode::TEMPORARY_REDIRECT => {
                url = leader_url(location).ok_or(LinkError::Redirects)?;
            }
            _ => return Err(refused(response).await),
        }
    }
    Err(LinkError::Redirects)
}

/// Mesos redirects to `//host:port` with or without a path, and without a scheme. Only the host matters.
fn leader_url(location: &str) -> Option<String> {
    let authority = location.split_once("//")?.1.split('/').next()?;
    (!authority.is_empty()).then(|| format!("http://{authority}{API}"))
}

async fn read(
    mut response: Response,
    received: &UnboundedSender<Result<Received, LinkError>>,
) -> Result<(), LinkError> {
    let mut decoder = Decoder::new();
    while let Some(chunk) = response.chunk().await? {
        decoder.push(&chunk);
        while let Some(record) = decoder.next_record()? {
            let _ = received.send(Ok(Received::Event(serde_json::from_slice(&record)?)));
        }
    }
    Ok(())
}

async fn write(
    client: &Client,
    url: &str,
    stream: Option<HeaderValue>,
    mut calls: UnboundedReceiver<Value>,
    received: &UnboundedSender<Result<Received, LinkError>>,
) -> Result<(), LinkError> {
    while let Some(call) = calls.recv().await {
        let mut request = client.post(url).timeout(ANSWER_LIMIT).body(call.to_string());
        if let Some(stream) = &stream {
            request = request.header(STREAM_ID, stream);
        }
        let response = request.send().await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(refused(response).await);
        }
        if call["type"] == "TEARDOWN" {
            let _ = received.send(Ok(Received::TornDown));
        }
    }
    Ok(())
}

async fn refused(response: Response) -> LinkError {
    LinkError::Refused { status: response.status(), body: response.text().await.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_read_out_of_a_redirect() {
        let expected = Some("http://10.0.0.1:5050/master/api/v1/scheduler".to_owned());
        assert_eq!(leader_url("//10.0.0.1:5050/master/api/v1/scheduler"), expected);
        assert_eq!(leader_url("http://10.0.0.1:5050"), expected);
        assert_eq!(leader_url("/elsewhere"), None);
        assert_eq!(leader_url("//"), None);
    }
}
