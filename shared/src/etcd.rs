//! The store on a real etcd. This module and its parts are the only place that names the etcd client.
//!
//! - One connection for each member. A request goes to one of them, the current one; whatever makes
//!   that member look dead or hung makes the next request go to the next member. (A channel that
//!   balances over all members keeps choosing a hung one.)
//! - Nothing is retried here that may have been done. What was certainly never sent goes to the next
//!   member at once, within the same time-out.
//! - An answer below the highest revision that was seen when its request was sent is
//!   [`StoreError::Corrupt`]: etcd was restored from a backup. That lasts until the restored etcd
//!   passes that revision, so the first one must be taken seriously. A new store starts without a
//!   memory, on purpose: it is how a caller goes on that has dealt with it.
//!
//! A store belongs to the tokio runtime in which it is first used.

mod fault;
mod history;
mod member;
mod read;
mod status;
mod watch;

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Compare as EtcdCompare, CompareOp, DeleteOptions, Error as ClientError, Txn, TxnOp};
use futures::Stream;
use tokio::time::{Instant, timeout_at};

pub use self::fault::EtcdFault;
use self::history::{History, SeenAtSend};
use self::member::{Clients, Member};
pub use self::status::{Alarm, ListedMember, MemberStatus};
use crate::parameters;
use crate::store::{Change, Compare, KeyRange, LeaseStore, Revision, Snapshot, StoreError, Transaction};

/// Silence after which an open watch asks its member for a sign of life, and so the sooner half of
/// the time in which a hung one is noticed. Short enough for etcd's rule on keep-alive pings
/// (see `member.rs`).
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How to reach etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// The members, as `http://<host>:<port>` or `<host>:<port>`.
    pub endpoints: Vec<String>,
    /// How long a request may take before its outcome is given up.
    pub request_timeout: Duration,
    /// Which of the endpoints to begin with, modulo their number: clients that begin with different
    /// ones share the load.
    pub first_member: usize,
}

impl EtcdConfig {
    /// The members, with the default time-out of one second.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, request_timeout: Duration::from_secs(1), first_member: 0 }
    }
}

/// Why an [`EtcdConfig`] is refused.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// There is no endpoint.
    #[error("no etcd endpoint is given")]
    NoEndpoint,
    /// An endpoint cannot be one.
    #[error("the etcd endpoint `{endpoint}` {reason}")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it, as the end of the sentence.
        reason: String,
    },
    /// No request can be answered in no time.
    #[error("the time-out of a request to etcd is zero")]
    NoTime,
}

/// etcd.
pub struct EtcdStore {
    members: Vec<Member>,
    current: AtomicUsize,
    history: History,
    request_timeout: Duration,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").field("current", &self.current_endpoint()).finish_non_exhaustive()
    }
}

/// A member with its place in the list, so that only the member that failed is given up.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    index: usize,
    member: &'a Member,
}

impl EtcdStore {
    /// A store that connects when it is first used: an unreachable etcd is no reason to refuse.
    ///
    /// # Errors
    /// When an endpoint is malformed, by its value; or there is none.
    pub fn new(config: EtcdConfig) -> Result<Self, EtcdConfigError> {
        if config.endpoints.is_empty() {
            return Err(EtcdConfigError::NoEndpoint);
        }
        if config.request_timeout.is_zero() {
            return Err(EtcdConfigError::NoTime);
        }
        let member = |endpoint: &String| {
            let refused = |reason| EtcdConfigError::Endpoint { endpoint: endpoint.clone(), reason };
            let url = parameters::endpoint(endpoint).map_err(refused)?;
            Member::new(url, config.request_timeout).map_err(|error| refused(format!("is no URL: {error}")))
        };
        let members = config.endpoints.iter().map(member).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            current: AtomicUsize::new(config.first_member % members.len()),
            members,
            history: History::default(),
            request_timeout: config.request_timeout,
        })
    }

    /// The endpoint of the member that the next request goes to.
    #[must_use]
    pub fn current_endpoint(&self) -> &str {
        &self.chosen().member.endpoint
    }

    fn chosen(&self) -> Chosen<'_> {
        let index = self.current.load(Ordering::Relaxed);
        Chosen { index, member: &self.members[index] }
    }

    /// Makes the next request go to the next member, unless another request's failure has done so.
    fn give_up(&self, chosen: Chosen<'_>) {
        let next = (chosen.index + 1) % self.members.len();
        let _ = self.current.compare_exchange(chosen.index, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks the current member, and, as long as the request was certainly never sent, the next ones:
    /// all within one time-out. Gives up a member that looks dead or hung.
    async fn ask<'s, T, F>(
        &'s self,
        request: impl Fn(Clients) -> F,
    ) -> Result<(T, Chosen<'s>, SeenAtSend), EtcdFault>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let deadline = Instant::now() + self.request_timeout;
        let mut tried = 0;
        loop {
            let chosen = self.chosen();
            let at_send = self.history.at_send();
            let answer = timeout_at(deadline, request(chosen.member.clients())).await;
            let member = &chosen.member.endpoint;
            let fault = match answer {
                Ok(Ok(answer)) => return Ok((answer, chosen, at_send)),
                Ok(Err(error)) => EtcdFault::of(member, error),
                Err(_) => EtcdFault::TimedOut { member: member.clone(), after: self.request_timeout },
            };
            if fault.blames_member() {
                self.give_up(chosen);
            }
            tried += 1;
            if !fault.never_sent() || tried >= self.members.len() || Instant::now() >= deadline {
                return Err(fault);
            }
        }
    }

    async fn try_commit(&self, transaction: Transaction) -> Result<Result<Revision, Snapshot>, EtcdFault> {
        transaction.check_size()?;
        let txn = etcd_txn(&transaction);
        let (answer, chosen, at_send) = self
            .ask(|mut clients| {
                let txn = txn.clone();
                async move { clients.kv.txn(txn).await }
            })
            .await?;
        let revision = self.history.check(&chosen.member.endpoint, at_send, answer.header())?;
        if answer.succeeded() {
            return Ok(Ok(revision));
        }
        Ok(Err(read::of_transaction(revision, &answer)))
    }
}

fn etcd_txn(transaction: &Transaction) -> Txn {
    let compare = |compare: &Compare| match compare {
        Compare::Unchanged { key, at } => EtcdCompare::mod_revision(key.as_str(), CompareOp::Equal, at.0),
        Compare::Value { key, value } => EtcdCompare::value(key.as_str(), CompareOp::Equal, value.as_slice()),
    };
    let compares: Vec<_> = transaction.compares().iter().map(compare).collect();
    let put = |(key, value): &(String, Vec<u8>)| TxnOp::put(key.as_str(), value.as_slice(), None);
    let delete = |KeyRange { from, to }: &KeyRange| {
        TxnOp::delete(from.as_str(), Some(DeleteOptions::new().with_range(to.as_str())))
    };
    let puts = transaction.puts().iter().map(put);
    let writes: Vec<_> = puts.chain(transaction.deletions().iter().map(delete)).collect();
    let reads: Vec<_> = transaction.reads().iter().map(|key| TxnOp::get(key.as_str(), None)).collect();
    Txn::new().when(compares).and_then(writes).or_else(reads)
}

impl LeaseStore for EtcdStore {
    async fn get(&self, keys: &[String]) -> Result<Snapshot, StoreError> {
        self.read_keys(keys).await.map_err(EtcdFault::of_read)
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, StoreError> {
        self.read_prefix(prefix).await.map_err(EtcdFault::of_read)
    }

    async fn get_all(&self, keys: &[String], prefixes: &[String]) -> Result<Snapshot, StoreError> {
        self.read_all(keys, prefixes).await.map_err(EtcdFault::of_read)
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        match self.try_commit(transaction).await {
            Ok(done) => done.map_err(StoreError::Conflict),
            Err(fault) => Err(fault.of_write()),
        }
    }

    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Stream<Item = Result<Vec<Change>, StoreError>> + Send + Unpin {
        self.follow(prefix, after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_endpoint_is_refused_by_its_value_and_an_unreachable_one_is_not() {
        let new = |endpoints: &[&str]| {
            EtcdStore::new(EtcdConfig::new(endpoints.iter().map(|e| (*e).to_owned()).collect()))
        };
        assert!(new(&["127.0.0.1:1", "http://nowhere.invalid:2379"]).is_ok());
        let error = new(&["127.0.0.1:1", "https://e:1"]).unwrap_err().to_string();
        assert!(error.contains("`https://e:1`") && error.contains("scheme"), "{error}");
        assert!(matches!(new(&[]), Err(EtcdConfigError::NoEndpoint)));
    }
}
