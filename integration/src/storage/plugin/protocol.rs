//! The Docker volume plugin protocol: requests in, answers out, spelt as RexRay spells them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::faults::{Answer, Failure, Fault, Faults, Method, Switchboard};
use super::volumes::{VolumeError, Volumes};
use crate::storage::control::Volume;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");

/// Between the half of an answer and the end of its connection: long enough that the half is really sent.
const HALF_SENT: Duration = Duration::from_millis(20);

/// One daemon.
#[derive(Debug)]
pub(super) struct Plugin {
    faults: Mutex<Switchboard>,
    volumes: Volumes,
}

impl Plugin {
    pub(super) fn new(faults: Option<PathBuf>, volumes: Volumes) -> Self {
        Self { faults: Mutex::new(Switchboard::new(faults)), volumes }
    }
}

/// What any request may hold. `ID` goes to the storage's journal, and nobody decides anything by it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(rename = "Opts", deserialize_with = "null_is_empty")]
    options: BTreeMap<String, Value>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(input: D) -> Result<BTreeMap<String, Value>, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// The protocol, and `POST /faults`.
pub(super) fn router(plugin: Arc<Plugin>) -> Router {
    Router::new().route("/faults", post(set_faults)).fallback(handle).with_state(plugin)
}

async fn set_faults(State(plugin): State<Arc<Plugin>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Faults>(&body) {
        Ok(faults) => {
            plugin.faults.lock().unwrap_or_else(PoisonError::into_inner).set(faults);
            answer(StatusCode::OK, &json!({}))
        }
        Err(error) => answer(StatusCode::BAD_REQUEST, &json!({ "Err": error.to_string() })),
    }
}

async fn handle(State(plugin): State<Arc<Plugin>>, uri: Uri, body: Bytes) -> Response {
    let Some(method) = method(uri.path()) else {
        return response(
            StatusCode::NOT_FOUND,
            HeaderValue::from_static("text/plain; charset=utf-8"),
            "404 page not found\n".into(),
        );
    };
    let ((fault, forget), patience) = {
        let mut faults = plugin.faults.lock().unwrap_or_else(PoisonError::into_inner);
        (faults.next(method), faults.task_timeout())
    };
    if forget {
        plugin.volumes.forget_counts();
    }
    let how = fault.answer;
    let name = serde_json::from_slice::<Request>(&body).unwrap_or_default().name;
    // In a task of its own: a caller that hangs up, or is answered without the end, ends the request and never the work.
    let work = tokio::spawn(async move { run(&plugin, method, &body, &fault).await });
    let (status, body) = match tokio::time::timeout(patience, work).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, json!({ "Err": error.to_string() })),
        // What went wrong is nothing yet, and so has no words.
        Err(_) => {
            let sentence = format!("docker-legacy: {method:?}: {name}: failed: ");
            (StatusCode::INTERNAL_SERVER_ERROR, json!({ "Err": sentence }))
        }
    };
    match how {
        Answer::Normal => answer(status, &body),
        Answer::Garbage => response(StatusCode::OK, CONTENT_TYPE, "\u{1}<this is no JSON".into()),
        Answer::Half => half(status, &body),
        Answer::Never => std::future::pending().await,
    }
}

fn method(path: &str) -> Option<Method> {
    Some(match path {
        "/Plugin.Activate" => Method::Activate,
        "/VolumeDriver.Create" => Method::Create,
        "/VolumeDriver.Remove" => Method::Remove,
        "/VolumeDriver.Mount" => Method::Mount,
        "/VolumeDriver.Unmount" => Method::Unmount,
        "/VolumeDriver.Path" => Method::Path,
        "/VolumeDriver.Get" => Method::Get,
        "/VolumeDriver.List" => Method::List,
        "/VolumeDriver.Capabilities" => Method::Capabilities,
        _ => return None,
    })
}

async fn run(plugin: &Plugin, method: Method, body: &[u8], fault: &Fault) -> (StatusCode, Value) {
    let began = Instant::now();
    let request: Request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(_) if body.is_empty() => Request::default(),
        Err(error) => return (StatusCode::BAD_REQUEST, json!({ "Err": error.to_string() })),
    };
    tokio::time::sleep(fault.before()).await;
    let outcome = match &fault.fail {
        Some(Failure { status, err }) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return (status, json!({ "Err": err }));
        }
        None if fault.busy => Err(VolumeError::Busy),
        None => work(&plugin.volumes, method, &request, fault).await,
    };
    let done = match outcome {
        Ok(value) => (StatusCode::OK, value),
        Err(error) => {
            let sentence = format!("docker-legacy: {method:?}: {}: failed: {error}", request.name);
            (StatusCode::INTERNAL_SERVER_ERROR, json!({ "Err": sentence }))
        }
    };
    tracing::info!(?method, volume = request.name, status = %done.0, answer = %done.1, took = ?began.elapsed(), "call");
    tokio::time::sleep(fault.after()).await;
    done
}

async fn work(
    volumes: &Volumes,
    method: Method,
    request: &Request,
    fault: &Fault,
) -> Result<Value, VolumeError> {
    let name = request.name.as_str();
    Ok(match method {
        Method::Activate => json!({ "Implements": ["VolumeDriver"] }),
        Method::Capabilities => json!({ "Capabilities": { "Scope": "global" } }),
        Method::Create => volumes.create(name, size(&request.options)).await.map(|()| json!({}))?,
        Method::Remove => volumes.remove(name).await.map(|()| json!({}))?,
        Method::Mount => {
            json!({ "Mountpoint": volumes.mount(name, request.id.clone(), fault.stuck).await? })
        }
        Method::Unmount => volumes.unmount(name, fault.stale, fault.midway()).await.map(|()| json!({}))?,
        Method::Path => volumes.get(name).await.map(|_| json!({ "Mountpoint": "" }))?,
        Method::Get => json!({ "Volume": described(&volumes.get(name).await?) }),
        Method::List => {
            json!({ "Volumes": volumes.list().await?.iter().map(described).collect::<Vec<_>>() })
        }
    })
}

fn described(volume: &Volume) -> Value {
    json!({ "Name": volume.name, "Mountpoint": "", "Status": {} })
}

/// RexRay's `size` is in GB; a test wants less. Values come as strings, or as numbers from careless callers.
fn size(options: &BTreeMap<String, Value>) -> Option<u64> {
    let number = |name: &str| match options.get(name)? {
        Value::String(text) => text.parse::<u64>().ok(),
        value => value.as_u64(),
    };
    let unit = |name: &str, shift: u32| number(name)?.checked_mul(1 << shift);
    unit("sizeMiB", 20).or_else(|| unit("size", 30))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    response(status, CONTENT_TYPE, body.to_string().into())
}

fn half(status: StatusCode, body: &Value) -> Response {
    let text = body.to_string();
    let length = text.len();
    let first = Bytes::from(text).slice(..length / 2);
    let sent = futures::stream::once(async { Ok(first) });
    let cut = futures::stream::once(async {
        tokio::time::sleep(HALF_SENT).await;
        Err(std::io::Error::other("answer cut in half by a fault"))
    });
    let mut response = response(status, CONTENT_TYPE, Body::from_stream(sent.chain(cut)));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn response(status: StatusCode, content_type: HeaderValue, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Request, size};

    #[test]
    fn sizes_are_read_as_gigabytes_or_mebibytes() {
        for (options, bytes) in [
            (json!({ "size": "2" }), Some(2 << 30)),
            (json!({ "sizeMiB": "64" }), Some(64 << 20)),
            (json!({ "size": 1, "sizeMiB": 32 }), Some(32 << 20)),
            (json!({ "size": "large" }), None),
            (json!(null), None),
        ] {
            let request: Request = serde_json::from_value(json!({ "Name": "v", "Opts": options })).unwrap();
            assert_eq!(size(&request.options), bytes, "{options}");
        }
    }
}
