//! What can go wrong with a request to etcd, and what the caller may conclude from it.
//!
//! The one question that matters for a write is: can it still be done? Only what certainly never
//! left this process, and what etcd itself says that it refused, counts as not done.

use std::error::Error as StdError;
use std::time::Duration;

use etcd_client::Error as ClientError;
use tonic::{Code, ConnectError, Status};

use crate::store::{Revision, StoreError, TooManyOperations};

/// The cause of a [`StoreError`] of etcd.
#[derive(Debug, thiserror::Error)]
pub enum EtcdFault {
    /// No connection: the request was certainly never sent.
    #[error("no connection to {member}: {reason}")]
    NotConnected {
        /// The member's endpoint.
        member: String,
        /// The operating system's words, not those of the layers above.
        reason: String,
    },
    /// No answer in time.
    #[error("{member} did not answer within {after:?}")]
    TimedOut {
        /// The member's endpoint.
        member: String,
        /// The request's time-out.
        after: Duration,
    },
    /// The connection broke, or the member answered that it does not know what became of it.
    #[error("{member} failed: {reason}")]
    Failed {
        /// The member's endpoint.
        member: String,
        /// gRPC's code and message.
        reason: String,
    },
    /// etcd is overloaded and refused the request, undone. Another try may succeed.
    #[error("{member} has too much to do: {reason}")]
    Busy {
        /// The member's endpoint.
        member: String,
        /// etcd's words.
        reason: String,
    },
    /// etcd's data base is full, and takes no writes until somebody makes room. Of several writes that crossed the quota together, one
    /// may be refused in these words and be done (3.4.23): the refusal comes from before the proposal or from behind it.
    #[error(
        "the data base of {member} is full: {reason}; compact and defragment it, then `etcdctl alarm disarm`"
    )]
    Full {
        /// The member's endpoint.
        member: String,
        /// etcd's words.
        reason: String,
    },
    /// etcd refused the request, undone, and will refuse it again until somebody changes something:
    /// the user may not, the request is too large.
    #[error("refused by {member}, as it will be again: {reason}")]
    Refused {
        /// The member's endpoint.
        member: String,
        /// etcd's words.
        reason: String,
    },
    /// etcd wants to know who asks, or has forbidden it to whoever did: nothing was done, nor will be until somebody
    /// changes users, roles or this client's name and password.
    #[error(
        "{member} does not let this client read or write: {reason}; its authentication is on, and this client has no user \
         there that may use its keys (`etcdctl auth disable`)"
    )]
    Denied {
        /// The member's endpoint.
        member: String,
        /// etcd's words.
        reason: String,
    },
    /// Refused here, before it was sent.
    #[error(transparent)]
    TooManyOperations(#[from] TooManyOperations),
    /// The history that a watch, or a read in pages, asked for is no longer there.
    #[error("{member} no longer has the history at revision {at}")]
    Compacted {
        /// The member's endpoint.
        member: String,
        /// The revision that was asked for.
        at: Revision,
    },
    /// A revision below one that this client had seen when it asked, or another cluster: etcd was
    /// restored from a backup, or the endpoints lead elsewhere now.
    #[error("{member} answered from another history: {reason}")]
    AnotherHistory {
        /// The member's endpoint.
        member: String,
        /// What differs.
        reason: String,
    },
    /// etcd found its own data damaged.
    #[error("{member} reports damaged data: {reason}")]
    Damaged {
        /// The member's endpoint.
        member: String,
        /// etcd's words.
        reason: String,
    },
}

impl EtcdFault {
    /// What `error` of a request to `member` means.
    pub(super) fn of(member: &str, error: ClientError) -> Self {
        match error {
            ClientError::GRpcStatus(status) => Self::of_status(member, status),
            other => Self::Failed { member: member.to_owned(), reason: other.to_string() },
        }
    }

    fn of_status(member: &str, status: Status) -> Self {
        let member = member.to_owned();
        if is_connect_error(&status) {
            return Self::NotConnected { member, reason: innermost(&status).to_string() };
        }
        let reason = format!("{} ({:?})", status.message(), status.code());
        // A status that was made on this side says nothing about what etcd did: the HTTP/2 layer
        // reports a torn connection as ResourceExhausted, too.
        let said_by_etcd = status.source().is_none()
            && ["etcdserver: ", "auth: ", "grpc: received message larger"]
                .iter()
                .any(|prefix| status.message().starts_with(prefix));
        if !said_by_etcd {
            return Self::Failed { member, reason };
        }
        match status.code() {
            Code::ResourceExhausted if status.message().contains("too many requests") => {
                Self::Busy { member, reason }
            }
            Code::ResourceExhausted if status.message().contains("space exceeded") => {
                Self::Full { member, reason }
            }
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied { member, reason },
            Code::InvalidArgument | Code::FailedPrecondition if speaks_of_users(status.message()) => {
                Self::Denied { member, reason }
            }
            Code::ResourceExhausted
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::Unimplemented => Self::Refused { member, reason },
            Code::DataLoss => Self::Damaged { member, reason },
            // Unavailable above all: "request timed out", "leader changed", "server stopped" leave
            // the proposal in the log.
            _ => Self::Failed { member, reason },
        }
    }

    /// Whether etcd answered, and refused this client itself.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. })
    }

    /// Whether it was certainly never sent, so that it may be sent to another member at once.
    pub(super) fn never_sent(&self) -> bool {
        matches!(self, Self::NotConnected { .. })
    }

    /// Whether the next request had better go to another member.
    pub(super) fn blames_member(&self) -> bool {
        matches!(self, Self::NotConnected { .. } | Self::TimedOut { .. } | Self::Failed { .. })
    }

    /// Whether another try is in vain until somebody changes something.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Full { .. } | Self::Refused { .. } | Self::Denied { .. } | Self::TooManyOperations(_)
        )
    }

    /// What a read's caller learns.
    pub(super) fn of_read(self) -> StoreError {
        match self {
            Self::AnotherHistory { .. } | Self::Damaged { .. } => corrupt(self),
            Self::Compacted { at, .. } => StoreError::Compacted { after: at },
            other => StoreError::Unavailable(Box::new(other)),
        }
    }

    /// What a write's caller learns.
    pub(super) fn of_write(self) -> StoreError {
        match self {
            Self::AnotherHistory { .. } | Self::Damaged { .. } => corrupt(self),
            Self::TimedOut { .. } | Self::Failed { .. } | Self::Full { .. } => {
                StoreError::Unknown(Box::new(self))
            }
            Self::NotConnected { .. }
            | Self::Busy { .. }
            | Self::Refused { .. }
            | Self::Denied { .. }
            | Self::TooManyOperations(_)
            // Of reads and watches alone.
            | Self::Compacted { .. } => StoreError::Unavailable(Box::new(self)),
        }
    }
}

/// Whether etcd's words are about who asks. It has no code of its own for that: "user name is empty" is an
/// InvalidArgument, like a request that is too large.
fn speaks_of_users(message: &str) -> bool {
    ["user name is empty", "user name not found", "authentication", "auth token", "role name", "root user"]
        .iter()
        .any(|words| message.contains(words))
}

fn corrupt(fault: EtcdFault) -> StoreError {
    StoreError::Corrupt {
        what: "its answer is not of the history seen before".to_owned(),
        source: Some(Box::new(fault)),
    }
}

fn innermost<'a>(mut error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

fn is_connect_error(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(status: Status) -> StoreError {
        EtcdFault::of("m", ClientError::GRpcStatus(status)).of_write()
    }

    #[test]
    fn only_what_etcd_itself_refused_is_not_done() {
        let refused = [
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::ResourceExhausted, "etcdserver: too many requests"),
            (Code::ResourceExhausted, "grpc: received message larger than max (3 vs. 2)"),
        ];
        for (code, message) in refused {
            let error = write(Status::new(code, message));
            assert!(matches!(error, StoreError::Unavailable(_)), "{message}: {error:?}");
        }
        let unknown = [
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "transport is closing"),
            (Code::ResourceExhausted, "h2 protocol error: too many pings"),
            (Code::Unknown, "etcdserver: something new"),
            (Code::Internal, "x"),
            (Code::Cancelled, "x"),
        ];
        for (code, message) in unknown {
            let error = write(Status::new(code, message));
            assert!(matches!(error, StoreError::Unknown(_)), "{message}: {error:?}");
        }
        let damaged = write(Status::new(Code::DataLoss, "etcdserver: corrupt cluster"));
        assert!(matches!(damaged, StoreError::Corrupt { .. }));
    }

    #[test]
    fn a_refusal_that_will_come_again_is_told_from_one_that_may_pass() {
        let full = Status::new(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        let full = EtcdFault::of("m", ClientError::GRpcStatus(full));
        assert!(full.is_final() && full.to_string().contains("the data base of m is full"), "{full}");
        let large = Status::new(Code::InvalidArgument, "etcdserver: request is too large");
        let large = EtcdFault::of("m", ClientError::GRpcStatus(large));
        assert!(large.is_final() && large.to_string().contains("as it will be again"), "{large}");
        let busy = Status::new(Code::ResourceExhausted, "etcdserver: too many requests");
        assert!(!EtcdFault::of("m", ClientError::GRpcStatus(busy)).is_final());
    }

    #[test]
    fn a_client_that_etcd_does_not_know_is_told_from_a_request_that_it_refuses() {
        let denied = [
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
            (Code::Unauthenticated, "etcdserver: invalid auth token"),
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::FailedPrecondition, "etcdserver: user name not found"),
        ];
        for (code, message) in denied {
            let fault = EtcdFault::of("m", ClientError::GRpcStatus(Status::new(code, message)));
            assert!(fault.is_denied() && fault.is_final() && !fault.blames_member(), "{message}: {fault}");
            assert!(fault.to_string().contains("its authentication is on"), "{fault}");
            assert!(matches!(fault.of_write(), StoreError::Unavailable(_)));
        }
        let large = Status::new(Code::InvalidArgument, "etcdserver: request is too large");
        assert!(!EtcdFault::of("m", ClientError::GRpcStatus(large)).is_denied());
    }

    #[test]
    fn a_connection_that_never_was_leaves_nothing_unknown() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
        let fault = EtcdFault::of("m", ClientError::GRpcStatus(status));
        assert_eq!(fault.to_string(), "no connection to m: connection refused");
        assert!(matches!(fault.of_write(), StoreError::Unavailable(_)));
        let torn = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(matches!(write(torn), StoreError::Unknown(_)));
    }
}
