//! What each member says of itself: for a person who wants to know whether etcd is well. Nothing of
//! the protocol rests on it.
//!
//! Members are asked one by one, unlike everywhere else in this module: a member that is down is an
//! answer here, not a reason to ask the next one.

use std::time::Duration;

use etcd_client::WatchOptions;
use futures::future::join_all;
use tokio::time::timeout;

use super::fault::EtcdFault;
use super::read::is_compacted;
use super::{EtcdStore, Member};
use crate::store::Revision;

/// What one member says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// etcd's version, such as `3.4.23`.
    pub version: String,
    /// Its cluster's id: the same for all members.
    pub cluster: u64,
    /// Its own id.
    pub member: u64,
    /// The id of the member that leads; 0 when it knows none.
    pub leader: u64,
    /// Whether it only learns, and has no vote.
    pub learner: bool,
    /// The size of its data base file, in bytes.
    pub db_bytes: u64,
    /// As much of that is in use; the rest comes back by a defragmentation.
    pub db_bytes_used: u64,
    /// The newest revision that it had when it was asked.
    pub revision: Revision,
    /// Alarms that are raised in its cluster.
    pub alarms: Vec<Alarm>,
    /// Whether a linearizable read through this member was answered, and so whether there is a quorum.
    pub linearizable: Result<(), String>,
}

/// An alarm of etcd. While one is raised, writes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A member's data base has reached its quota.
    NoSpace,
    /// A member found its data to differ from the others'.
    Corrupt,
}

/// A member of the cluster, as the cluster lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMember {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Where clients reach it; empty for a member that has not started yet.
    pub client_urls: Vec<String>,
    /// Whether it only learns, and has no vote.
    pub learner: bool,
}

impl EtcdStore {
    /// Asks each endpoint for its member's status, all at once, each within a request's time-out.
    pub async fn members_status(&self) -> Vec<(String, Result<MemberStatus, EtcdFault>)> {
        let asked = self.members.iter().map(|member| async move {
            let status = timeout(self.request_timeout * 3, self.status_of(member)).await;
            let silent =
                || EtcdFault::TimedOut { member: member.endpoint.clone(), after: self.request_timeout * 3 };
            (member.endpoint.clone(), status.unwrap_or_else(|_| Err(silent())))
        });
        join_all(asked).await
    }

    async fn status_of(&self, member: &Member) -> Result<MemberStatus, EtcdFault> {
        let fault = |error| EtcdFault::of(&member.endpoint, error);
        let mut clients = member.clients();
        let status = clients.maintenance.status().await.map_err(fault)?;
        let header = status.header();
        let bytes = |size: i64| u64::try_from(size).unwrap_or_default();
        // The request that lists alarms goes through raft: it has no answer just when one is wanted. A member's status
        // names those that it knows.
        let alarms = status.errors().iter().filter_map(|error| match error {
            error if error.contains("NOSPACE") => Some(Alarm::NoSpace),
            error if error.contains("CORRUPT") => Some(Alarm::Corrupt),
            _ => None,
        });
        let alarms = alarms.collect();
        // Any key: without a quorum there is no answer, or one that says so.
        let read = timeout(self.request_timeout, clients.kv.get("/", None)).await;
        let linearizable = match read {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(fault(error).to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.request_timeout)),
        };
        Ok(MemberStatus {
            version: status.version().to_owned(),
            cluster: header.map_or(0, |header| header.cluster_id()),
            member: header.map_or(0, |header| header.member_id()),
            leader: status.leader(),
            learner: status.is_learner(),
            db_bytes: bytes(status.db_size()),
            db_bytes_used: bytes(status.raft_used_db_size()),
            revision: Revision(header.map_or(0, |header| header.revision())),
            alarms,
            linearizable,
        })
    }

    /// All members of the cluster, whether or not they are among the endpoints.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn members_listed(&self) -> Result<Vec<ListedMember>, EtcdFault> {
        let (answer, _, _) =
            self.ask(|mut clients| async move { clients.cluster.member_list().await }).await?;
        let listed = answer.members().iter().map(|member| ListedMember {
            id: member.id(),
            name: member.name().to_owned(),
            client_urls: member.client_urls().to_vec(),
            learner: member.is_learner(),
        });
        Ok(listed.collect())
    }

    /// The revision at which history begins, which is that of the last compaction; `None` when there
    /// never was one.
    ///
    /// # Errors
    /// When no member answers, or etcd does not say.
    pub async fn history_begins(&self) -> Result<Option<Revision>, EtcdFault> {
        let first = etcd_client::GetOptions::new().with_revision(1).with_count_only();
        let asked = self
            .ask(|mut clients| {
                let first = first.clone();
                async move { clients.kv.get("/", Some(first)).await }
            })
            .await;
        match asked {
            Ok(_) => return Ok(None),
            Err(EtcdFault::Failed { reason, .. }) if is_compacted(&reason) => {}
            Err(fault) => return Err(fault),
        }
        // Now a watch from there is cancelled at once, with the revision.
        let options = WatchOptions::new().with_start_revision(1);
        let (mut stream, chosen, _) = self
            .ask(|mut clients| {
                let options = options.clone();
                async move { clients.watch.watch("/", Some(options)).await }
            })
            .await?;
        let patience: Duration = self.request_timeout;
        let member = || chosen.member.endpoint.clone();
        loop {
            let message = timeout(patience, stream.message()).await;
            let message = message.map_err(|_| EtcdFault::TimedOut { member: member(), after: patience })?;
            match message.map_err(|error| EtcdFault::of(&member(), error))? {
                Some(answer) if answer.compact_revision() > 0 => {
                    return Ok(Some(Revision(answer.compact_revision())));
                }
                Some(_) => {}
                None => {
                    let reason = "the watch was closed".to_owned();
                    return Err(EtcdFault::Failed { member: member(), reason });
                }
            }
        }
    }
}
