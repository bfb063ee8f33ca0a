//! How a command fails, and with which exit code.

use std::io;

use agent_isolator::keeper::sentence;
use shared::etcd::EtcdFault;
use shared::store::StoreError;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It may not be done, or something is not well.
    #[error("{0}")]
    Refused(String),
    /// The command line or a parameter is wrong.
    #[error("{0}")]
    Usage(String),
    /// etcd did not answer.
    #[error("{0}")]
    Unreachable(String),
    /// What was to be said could not be written.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// 1 refused or failed, 2 usage, 3 etcd out of reach.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
        }
    }

    /// What an error of the store means to a person who asked for something.
    pub(crate) fn of_store(error: &StoreError) -> Self {
        let refused_by_etcd = match error {
            StoreError::Unavailable(cause) | StoreError::Unknown(cause) => {
                cause.downcast_ref::<EtcdFault>().is_some_and(EtcdFault::is_final)
            }
            StoreError::Conflict(_) | StoreError::Compacted { .. } | StoreError::Corrupt { .. } => true,
        };
        match refused_by_etcd {
            true => Self::Refused(sentence(error)),
            false => Self::Unreachable(format!(
                "{}; see that etcd runs, and that etcd_endpoints names its members (`extvol doctor`)",
                sentence(error)
            )),
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    sentence(error)
}
