//! What can go wrong with a cluster, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a cluster, or something asked of one, failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Namespaces, mounts and cgroups are root's.
    #[error("a cluster of hosts needs root; run as root")]
    NotRoot,
    /// A file that a build or the setup makes is not there.
    #[error("{what} is missing at {}; {advice}", path.display())]
    Missing {
        /// What is missing.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// What makes it.
        advice: &'static str,
    },
    /// An operation of the operating system failed.
    #[error("could not {doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program run by the harness failed.
    #[error("`{command}` failed with {ended}: {stderr}")]
    Program {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        ended: String,
        /// What it said.
        stderr: String,
    },
    /// A host's init or the guardian refused.
    #[error("{who}: {message}")]
    Refused {
        /// The host's name, or `guardian`.
        who: String,
        /// The reason.
        message: String,
    },
    /// The program `extvol-cluster` cannot do what it was asked.
    #[error("{message}")]
    Session {
        /// Why, and what to do instead.
        message: String,
    },
    /// The host was killed and not started again.
    #[error("host {host} is down; start it first")]
    HostDown {
        /// The host.
        host: String,
    },
    /// A condition did not come about in time.
    #[error("{what} did not come about within {after:?} (last seen: {last}); logs are in {}", logs.display())]
    TimedOut {
        /// The condition.
        what: String,
        /// The deadline that passed.
        after: Duration,
        /// What was seen instead.
        last: String,
        /// Where to look.
        logs: PathBuf,
    },
}

/// The result of an operation on a cluster.
pub type Result<T> = std::result::Result<T, ClusterError>;

/// Says what was tried when the operating system refused.
pub(super) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;

    /// The common case: an operation on one file.
    fn doing_with(self, verb: &str, path: &Path) -> Result<T>
    where
        Self: Sized,
    {
        self.doing(|| format!("{verb} {}", path.display()))
    }
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| ClusterError::Io { doing: what(), source: error.into() })
    }
}
