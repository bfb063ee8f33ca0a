//! The control plane over HTTP with JSON.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /volumes` | | all volumes |
//! | `GET /volumes/{name}` | | `{name, size, attachment: {id, host, device} or null}` |
//! | `POST /volumes/{name}` | `{"size": bytes}` or nothing | `{"created": "new"}`, `{"created": "already_there"}` |
//! | `DELETE /volumes/{name}` | | `{}`; 409 while attached |
//! | `POST /volumes/{name}/attach` | `{"host": ...}` | `{id, host, device}`; 409 while another host has it |
//! | `POST /volumes/{name}/detach` | `{"host": ...}` or nothing | `{}`; 409 while busy, or not attached |
//! | `POST /volumes/{name}/force-detach` | | `{}` once the old host is cut off; 409 if not attached |
//! | `POST /switches` | `{"multi_attach": bool, "detach_busy": bool}` | `{}`; for tests: replaces both |
//! | `GET /journal` | | all entries, oldest first |
//!
//! The headers `x-host` and `x-mount-id` say who asks, and for which Mount: for the journal alone, and for whoever has
//! a volume beside others.
//!
//! A refusal is `{"error", "kind", "host"}`; 400, 404, 409 or 500.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ControlError, ControlPlane, Switches};
use crate::storage::journal::Caller;

/// The control plane, shared by the requests. One at a time: its order is the journal's order.
pub type Shared = Arc<Mutex<ControlPlane>>;

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A sentence, causes included.
    pub error: String,
    /// One word to decide by.
    pub kind: RefusalKind,
    /// Who has the volume, where that is the reason.
    pub host: Option<String>,
}

/// The reasons of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// 404.
    NotFound,
    /// 409: another host has it.
    AttachedElsewhere,
    /// 409: mounted or held open.
    Busy,
    /// 409: nothing to detach.
    NotAttached,
    /// 400.
    Invalid,
    /// 500.
    Failed,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Size {
    size: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Host {
    host: Option<String>,
}

/// The routes above.
pub fn router(plane: Shared) -> Router {
    Router::new()
        .route(
            "/volumes",
            get(async |State(plane): State<Shared>| {
                ask(plane, |plane| Ok(plane.volumes().cloned().collect::<Vec<_>>())).await
            }),
        )
        .route(
            "/volumes/{name}",
            get(async |State(plane): State<Shared>, Path(name): Path<String>| {
                ask(plane, move |plane| plane.volume(&name).cloned()).await
            })
            .post(create)
            .delete(async |State(plane): State<Shared>, Path(name): Path<String>| {
                ask(plane, move |plane| plane.delete(&name).map(|()| empty())).await
            }),
        )
        .route("/volumes/{name}/attach", post(attach))
        .route("/volumes/{name}/detach", post(detach))
        .route(
            "/volumes/{name}/force-detach",
            post(async |State(plane): State<Shared>, Path(name): Path<String>, headers: HeaderMap| {
                ask(plane, move |plane| plane.force_detach(&name, &caller(&headers)).map(|()| empty())).await
            }),
        )
        .route("/switches", post(switch))
        .route(
            "/journal",
            get(async |State(plane): State<Shared>| ask(plane, |plane| Ok(plane.journal().to_vec())).await),
        )
        .with_state(plane)
}

async fn create(State(plane): State<Shared>, Path(name): Path<String>, body: Bytes) -> Response {
    match parse::<Size>(&body) {
        Ok(Size { size }) => {
            ask(plane, move |plane| Ok(serde_json::json!({ "created": plane.create(&name, size)? }))).await
        }
        Err(refusal) => refuse(&refusal),
    }
}

async fn attach(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match parse::<Host>(&body) {
        Ok(Host { host }) => {
            ask(plane, move |plane| plane.attach(&name, &host.unwrap_or_default(), &caller(&headers))).await
        }
        Err(refusal) => refuse(&refusal),
    }
}

async fn detach(
    State(plane): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match parse::<Host>(&body) {
        Ok(Host { host }) => {
            ask(plane, move |plane| plane.detach(&name, host.as_deref(), &caller(&headers)).map(|()| empty()))
                .await
        }
        Err(refusal) => refuse(&refusal),
    }
}

async fn switch(State(plane): State<Shared>, body: Bytes) -> Response {
    match parse::<Switches>(&body) {
        Ok(switches) => {
            ask(plane, move |plane| {
                plane.switch(switches);
                Ok(empty())
            })
            .await
        }
        Err(refusal) => refuse(&refusal),
    }
}

/// Says who asks.
pub(super) const HOST: &str = "x-host";

/// Says for which Mount.
pub(super) const MOUNT_ID: &str = "x-mount-id";

fn caller(headers: &HeaderMap) -> Caller {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Caller { host: text(HOST), mount_id: text(MOUNT_ID) }
}

/// Runs `work` under the lock, on a thread that may block.
async fn ask<T, W>(plane: Shared, work: W) -> Response
where
    T: Serialize + Send + 'static,
    W: FnOnce(&mut ControlPlane) -> Result<T, ControlError> + Send + 'static,
{
    let done = tokio::task::spawn_blocking(move || {
        // A panic of an earlier request left kernel, state and journal in the order of the module's head, which a
        // later request can stand on.
        work(&mut plane.lock().unwrap_or_else(PoisonError::into_inner))
    })
    .await;
    match done {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(error)) => refuse(&error),
        Err(error) => refuse(&ControlError::io("answering")(std::io::Error::other(error))),
    }
}

fn parse<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, ControlError> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|_| ControlError::Invalid {
        what: "body",
        value: String::from_utf8_lossy(body).into_owned(),
        rule: "a JSON object with the fields of this request",
    })
}

fn empty() -> serde_json::Value {
    serde_json::json!({})
}

fn refuse(error: &ControlError) -> Response {
    let (status, kind) = match error {
        ControlError::NotFound { .. } => (StatusCode::NOT_FOUND, RefusalKind::NotFound),
        ControlError::AttachedElsewhere { .. } => (StatusCode::CONFLICT, RefusalKind::AttachedElsewhere),
        ControlError::Busy { .. } => (StatusCode::CONFLICT, RefusalKind::Busy),
        ControlError::NotAttached { .. } => (StatusCode::CONFLICT, RefusalKind::NotAttached),
        ControlError::Invalid { .. } => (StatusCode::BAD_REQUEST, RefusalKind::Invalid),
        ControlError::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, RefusalKind::Failed),
    };
    let host = match error {
        ControlError::AttachedElsewhere { host, .. } | ControlError::Busy { host, .. } => Some(host.clone()),
        _ => None,
    };
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence.push_str(": ");
        sentence.push_str(&error.to_string());
        cause = error.source();
    }
    (status, Json(Refusal { error: sentence, kind, host })).into_response()
}
