//! The connection to the agent: the only file here that knows HTTP.
//!
//! One link is one subscription and the calls made while it lives. Whatever goes wrong on either ends the link as a
//! whole: the next `SUBSCRIBE` carries everything that was not acknowledged, so a call that was lost needs no retry.

use reqwest::{
    Client, RequestBuilder, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde_json::Value;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use super::{protocol::Event, setup::Setup};
use crate::recordio::{Decoder, RecordError};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Why a link ended; for the log only, as the reaction is always to subscribe again.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("the agent cannot be reached")]
    Http(#[from] reqwest::Error),
    #[error("the agent answers {status}: {body}")]
    Refused { status: StatusCode, body: String },
    #[error("the agent's stream is broken")]
    Record(#[from] RecordError),
    #[error("the agent sent an event that is not JSON")]
    Json(#[from] serde_json::Error),
    #[error("the agent closed the subscription")]
    Closed,
}

/// Where the agent is and how to speak to it.
pub(super) struct Agent {
    client: Client,
    url: String,
}

impl Agent {
    pub(super) fn new(setup: &Setup) -> Result<Self, reqwest::Error> {
        let mut headers = HeaderMap::from_iter([(ACCEPT, JSON), (CONTENT_TYPE, JSON)]);
        let bearer = setup.token.as_ref().map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        if let Some(Ok(bearer)) = bearer {
            headers.insert(reqwest::header::AUTHORIZATION, bearer);
        }
        let mut builder = Client::builder().no_proxy().tcp_nodelay(true).default_headers(headers);
        if let Some(socket) = &setup.socket {
            builder = builder.unix_socket(socket.clone());
        }
        Ok(Self { client: builder.build()?, url: setup.url.clone() })
    }

    /// Begins a link with a `SUBSCRIBE` call.
    pub(super) fn subscribe(&self, call: &Value) -> Link {
        let (events_tx, events) = unbounded_channel();
        let (calls, calls_rx) = unbounded_channel();
        let request = self.request(call);
        let reader = tokio::spawn({
            let events = events_tx.clone();
            async move {
                let error = read(request, &events).await.err().unwrap_or(LinkError::Closed);
                let _ = events.send(Err(error));
            }
        });
        let writer = tokio::spawn(write(calls_rx, events_tx));
        Link { events, calls, tasks: [reader, writer] }
    }

    /// A call as a request that is ready to go.
    pub(super) fn request(&self, call: &Value) -> RequestBuilder {
        self.client.post(&self.url).body(call.to_string())
    }
}

/// A subscription; dropping it closes its connections.
pub(super) struct Link {
    events: UnboundedReceiver<Result<Event, LinkError>>,
    calls: UnboundedSender<RequestBuilder>,
    tasks: [JoinHandle<()>; 2],
}

impl Link {
    /// The next event, or the end of the link.
    pub(super) async fn next(&mut self) -> Result<Event, LinkError> {
        self.events.recv().await.unwrap_or(Err(LinkError::Closed))
    }

    /// Queues a call; calls go out one after the other.
    pub(super) fn send(&self, request: RequestBuilder) {
        // The writer ends only after it has reported why, and the link with it.
        let _ = self.calls.send(request);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn read(
    request: RequestBuilder,
    events: &UnboundedSender<Result<Event, LinkError>>,
) -> Result<(), LinkError> {
    let mut response = accepted(request, StatusCode::OK).await?;
    let mut decoder = Decoder::new();
    while let Some(chunk) = response.chunk().await? {
        decoder.push(&chunk);
        while let Some(record) = decoder.next_record()? {
            let _ = events.send(Ok(serde_json::from_slice(&record)?));
        }
    }
    Ok(())
}

async fn write(
    mut calls: UnboundedReceiver<RequestBuilder>,
    events: UnboundedSender<Result<Event, LinkError>>,
) {
    while let Some(request) = calls.recv().await {
        if let Err(error) = accepted(request, StatusCode::ACCEPTED).await {
            let _ = events.send(Err(error));
            return;
        }
    }
}

async fn accepted(request: RequestBuilder, expected: StatusCode) -> Result<reqwest::Response, LinkError> {
    let response = request.send().await?;
    let status = response.status();
    if status == expected {
        return Ok(response);
    }
    Err(LinkError::Refused { status, body: response.text().await.unwrap_or_default() })
}
