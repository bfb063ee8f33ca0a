//! One call over one connection of its own: HTTP/1.1 to a socket or an address, with TLS or without.
//!
//! Not by reqwest: with its TLS each client in a process, also those that never speak it, wants a provider of cryptography that is
//! installed for the whole process, and the agent's and the master's are not ours.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;

use super::endpoint::{Address, Endpoint, Managed};
use super::tls::{self, Tls};
use crate::keeper::sentence;

const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    /// How long it took to begin.
    pub(super) after: Duration,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Fault {
    /// The plugin did not get the call.
    Unreachable(io::Error),
    /// It may have got it; a sentence about the answer.
    Nothing(String),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Calls. A plugin is who its socket or specification names: neither a proxy of the environment nor who it would send us on to.
///
/// # Errors
/// See [`Fault`].
pub(super) async fn call(
    endpoint: &Endpoint,
    tls: Option<Result<ClientConfig, String>>,
    method: &str,
    body: String,
    timeout: Duration,
    answer_bytes_max: usize,
) -> Result<Answer, Fault> {
    let began = Instant::now();
    let end = tokio::time::Instant::from_std(began + timeout);
    let late = || format!("none within {} s", timeout.as_secs());
    let unreachable = |why: String| Fault::Unreachable(io::Error::other(why));
    let (stream, host) = timeout_at(end, connected(endpoint, tls))
        .await
        .map_err(|_| unreachable(format!("no connection within {} s", timeout.as_secs())))?
        .map_err(Fault::Unreachable)?;
    let request = Request::post(format!("/{method}"))
        .header(HOST, host)
        .header(ACCEPT, MEDIA_TYPE)
        .header(CONTENT_TYPE, MEDIA_TYPE)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| unreachable(error.to_string()))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(sentence(&error)))?;
    // It ends with this call.
    let mut driven = JoinSet::new();
    driven.spawn(connection);
    let response = timeout_at(end, sender.send_request(request)).await.map_err(|_| Fault::Nothing(late()))?;
    let response = response.map_err(|error| match (tls::refusal(&error), endpoint) {
        (Some(refusal), Endpoint::Tls(_, tls)) => unreachable(tls.why(refusal)),
        _ => Fault::Nothing(format!("the connection broke ({})", sentence(&error))),
    })?;
    let (status, after) = (response.status(), began.elapsed());
    let (mut incoming, mut answer) = (response.into_body(), Vec::new());
    loop {
        match timeout_at(end, incoming.frame()).await {
            Ok(None) => return Ok(Answer { status, body: answer, after }),
            Ok(Some(Ok(frame))) => {
                // Trailers are of no interest.
                let chunk = frame.into_data().unwrap_or_default();
                if answer.len() + chunk.len() > answer_bytes_max {
                    return Err(Fault::Nothing(format!("it is longer than {} MiB", answer_bytes_max >> 20)));
                }
                answer.extend(chunk);
            }
            Ok(Some(Err(error))) => {
                return Err(Fault::Nothing(format!("it broke off ({})", sentence(&error))));
            }
            Err(_) => {
                return Err(Fault::Nothing(format!(
                    "it broke off (not whole within {} s)",
                    timeout.as_secs()
                )));
            }
        }
    }
}

/// A connection, and what the call's Host header says.
async fn connected(
    endpoint: &Endpoint,
    config: Option<Result<ClientConfig, String>>,
) -> io::Result<(Box<dyn Stream>, String)> {
    match endpoint {
        Endpoint::Unix(socket) | Endpoint::Managed(Managed { socket, .. }) => {
            Ok((Box::new(UnixStream::connect(socket).await?), "plugin".into()))
        }
        Endpoint::Tcp(address) => Ok((Box::new(tcp(address).await?), address.to_string())),
        Endpoint::Tls(address, tls) => {
            let config = config.unwrap_or_else(|| Err("a bug: nobody says whom to believe".into()));
            Ok((encrypted(address, tls, config.map_err(io::Error::other)?).await?, address.to_string()))
        }
    }
}

async fn tcp(address: &Address) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((address.host(), address.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn encrypted(address: &Address, tls: &Tls, config: ClientConfig) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(address.host().to_owned()).map_err(io::Error::other)?;
    let stream = tcp(address).await?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(io::Error::new(error.kind(), tls.why(&error))),
    }
}
