//! The control plane as its callers see it: the plugin daemon, the demonstrations, the tests.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::http::{HOST, MOUNT_ID, Refusal, RefusalKind};
use super::{Attachment, Created, Volume};
use crate::storage::journal::{Caller, Entry};

/// Longer than the slowest request under test load (a force-detach flushes a device first), shorter than a test's patience.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request to the control plane brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It said no.
    #[error("{}", .0.error)]
    Refused(Refusal),
    /// It could not be reached, or its answer was lost: the request may have been done.
    #[error("control plane did not answer")]
    NoAnswer(#[source] reqwest::Error),
    /// It answered something else.
    #[error("control plane answered {status} with {text:?}")]
    NotUnderstood {
        /// The HTTP status.
        status: u16,
        /// The body.
        text: String,
    },
}

impl ClientError {
    /// The reason, if this is a refusal.
    #[must_use]
    pub fn kind(&self) -> Option<RefusalKind> {
        match self {
            Self::Refused(refusal) => Some(refusal.kind),
            _ => None,
        }
    }
}

/// A client of one control plane.
#[derive(Debug, Clone)]
pub struct ControlClient {
    base: String,
    http: reqwest::Client,
    caller: Caller,
}

impl ControlClient {
    /// For the control plane at `base`, `http://ADDR:PORT`.
    ///
    /// # Errors
    /// The HTTP client could not be made.
    pub fn new(base: &str) -> Result<Self, ClientError> {
        let http =
            reqwest::Client::builder().timeout(TIMEOUT).no_proxy().build().map_err(ClientError::NoAnswer)?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), http, caller: Caller::default() })
    }

    /// The same, saying in each request who asks, for the journal.
    #[must_use]
    pub fn by(&self, caller: Caller) -> Self {
        Self { caller, ..self.clone() }
    }

    /// Makes a volume, of the default size if none is named.
    ///
    /// # Errors
    /// Refused, or no answer; likewise below.
    pub async fn create(&self, volume: &str, size: Option<u64>) -> Result<Created, ClientError> {
        #[derive(serde::Deserialize)]
        struct Answer {
            created: Created,
        }
        Ok(self.post::<Answer>(&format!("volumes/{volume}"), &json!({ "size": size })).await?.created)
    }

    /// Attaches a volume to a host.
    ///
    /// # Errors
    /// [`RefusalKind::AttachedElsewhere`] above all.
    pub async fn attach(&self, volume: &str, host: &str) -> Result<Attachment, ClientError> {
        self.post(&format!("volumes/{volume}/attach"), &json!({ "host": host })).await
    }

    /// Detaches an idle volume, from whichever host has it if none is named.
    ///
    /// # Errors
    /// [`RefusalKind::Busy`] above all.
    pub async fn detach(&self, volume: &str, host: Option<&str>) -> Result<(), ClientError> {
        self.post::<Value>(&format!("volumes/{volume}/detach"), &json!({ "host": host })).await.map(|_| ())
    }

    /// Cuts the host off that has the volume.
    ///
    /// # Errors
    /// [`RefusalKind::NotAttached`] above all.
    pub async fn force_detach(&self, volume: &str) -> Result<(), ClientError> {
        self.post::<Value>(&format!("volumes/{volume}/force-detach"), &json!({})).await.map(|_| ())
    }

    /// Deletes a volume and its data.
    ///
    /// # Errors
    /// It is attached.
    pub async fn delete(&self, volume: &str) -> Result<(), ClientError> {
        let request = self.http.delete(format!("{}/volumes/{volume}", self.base));
        Self::send::<Value>(request).await.map(|_| ())
    }

    /// One volume.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`] above all.
    pub async fn volume(&self, volume: &str) -> Result<Volume, ClientError> {
        self.get(&format!("volumes/{volume}")).await
    }

    /// All volumes.
    ///
    /// # Errors
    /// No answer.
    pub async fn volumes(&self) -> Result<Vec<Volume>, ClientError> {
        self.get("volumes").await
    }

    /// The journal, from its first entry on.
    ///
    /// # Errors
    /// No answer.
    pub async fn journal(&self) -> Result<Vec<Entry>, ClientError> {
        self.get("journal").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        Self::send(self.http.get(format!("{}/{path}", self.base))).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let mut request = self.http.post(format!("{}/{path}", self.base)).json(body);
        for (name, value) in [(HOST, &self.caller.host), (MOUNT_ID, &self.caller.mount_id)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        Self::send(request).await
    }

    async fn send<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, ClientError> {
        let answer = request.send().await.map_err(ClientError::NoAnswer)?;
        let status = answer.status();
        let text = answer.text().await.map_err(ClientError::NoAnswer)?;
        if status.is_success()
            && let Ok(value) = serde_json::from_str(&text)
        {
            return Ok(value);
        }
        match serde_json::from_str(&text) {
            Ok(refusal) => Err(ClientError::Refused(refusal)),
            Err(_) => Err(ClientError::NotUnderstood { status: status.as_u16(), text }),
        }
    }
}
