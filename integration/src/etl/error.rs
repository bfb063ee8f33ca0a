//! What can go wrong in a run.

use std::io;
use std::path::PathBuf;

use super::verify::VerifyError;
use crate::cluster::ClusterError;
use crate::scheduler::{AppError, SchedulerError, WaitError};
use crate::trial::TrialError;
use crate::witness::collect::CollectError;

/// A run did not come to a good end.
#[derive(Debug, thiserror::Error)]
pub enum EtlError {
    /// The cluster, the scheduler, a lease, the witness.
    #[error(transparent)]
    Trial(#[from] TrialError),
    /// The source cannot be filled or asked.
    #[error("the source does not answer")]
    Source(#[from] postgres::Error),
    /// The target is not what it has to be.
    #[error("the target is not what it has to be")]
    Verify(#[from] VerifyError),
    /// A file cannot be read or written.
    #[error("{} failed", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part is not there.
    #[error("{} is missing: run make build", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// The old side has written behind the new one.
    #[error("batches were committed by these hosts, one after the other: {}", hosts.join(", "))]
    Hosts {
        /// Whose batches follow one another.
        hosts: Vec<String>,
    },
    /// The job ended otherwise than it should.
    #[error("the job has {what}; it said: {said}")]
    Job {
        /// What it did.
        what: String,
        /// The end of its output.
        said: String,
    },
}

/// `Result` of this module.
pub type Result<T> = std::result::Result<T, EtlError>;

impl From<ClusterError> for EtlError {
    fn from(error: ClusterError) -> Self {
        Self::Trial(error.into())
    }
}

impl From<SchedulerError> for EtlError {
    fn from(error: SchedulerError) -> Self {
        Self::Trial(error.into())
    }
}

impl From<AppError> for EtlError {
    fn from(error: AppError) -> Self {
        Self::Trial(error.into())
    }
}

impl From<WaitError> for EtlError {
    fn from(error: WaitError) -> Self {
        Self::Trial(error.into())
    }
}

impl From<CollectError> for EtlError {
    fn from(error: CollectError) -> Self {
        Self::Trial(error.into())
    }
}
