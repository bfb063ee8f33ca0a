//! What the harness says to a cluster's guardian and to a host's init, and what they answer.
//!
//! One JSON object a line, one answer for each request, in order. The guardian listens on its standard
//! input, an init on a unix socket in its host's directory.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A request to the guardian.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GuardianRequest {
    /// Start a host: new namespaces with an init in them.
    Start {
        /// The host's name within the cluster.
        host: String,
        /// The file with its [`HostSetup`].
        setup: PathBuf,
    },
    /// Kill a host and everything in it; answered when its pid namespace is empty.
    Kill {
        /// The host's name within the cluster.
        host: String,
    },
    /// The cluster ends in good order: the end of input that follows leaves nothing behind.
    Finish {
        /// Keep the log files, because something failed.
        keep_logs: bool,
    },
}

/// The guardian's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GuardianReply {
    /// The host runs; this is its init's process id outside of the host.
    Started {
        /// As the guardian's own pid namespace numbers it.
        pid: u32,
    },
    /// Done.
    Done,
    /// Not done.
    Failed {
        /// Why.
        message: String,
    },
}

/// What makes a host out of fresh namespaces; read by its init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HostSetup {
    /// The host name.
    pub(super) name: String,
    /// Files and directories of the host's own, each with the path that it covers.
    pub(super) binds: Vec<(PathBuf, PathBuf)>,
    /// Where the init listens.
    pub(super) socket: PathBuf,
    /// Where services log, one file each: `<host>-<service>.log`.
    pub(super) logs: PathBuf,
}

/// A request to a host's init.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum HostRequest {
    /// Run a program to its end and hand back what it wrote.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Added to the plain environment of every program here.
        env: BTreeMap<String, String>,
        /// After this long the program is killed.
        timeout_ms: u64,
    },
    /// Start a service, which logs to its file.
    Start {
        /// The name by which later requests mean it.
        name: String,
        /// The program and its arguments.
        argv: Vec<String>,
        /// Added to the plain environment of every program here.
        env: BTreeMap<String, String>,
    },
    /// Send a signal to a service's process, and to nothing else.
    Signal {
        /// The service.
        name: String,
        /// The signal's number.
        signal: i32,
    },
    /// Wait for a service's end.
    Wait {
        /// The service.
        name: String,
        /// How long to wait.
        timeout_ms: u64,
    },
}

/// An init's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum HostReply {
    /// What a program did.
    Output(Output),
    /// The service's process id inside the host.
    Started {
        /// As the host numbers it.
        pid: u32,
    },
    /// The signal was sent, or not, because the service had ended.
    Signalled {
        /// False: it had ended.
        running: bool,
    },
    /// How the service ended; `None` while it runs.
    State(Option<Ended>),
    /// Not done.
    Failed {
        /// Why.
        message: String,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// What a program run inside a host wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Whether the program exited with code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.ended == Ended::Code(0)
    }
}

/// Writes one message as a line.
pub(super) fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one message; `None` at the end of input.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}
