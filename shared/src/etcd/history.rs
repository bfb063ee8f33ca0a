//! The history that a client has seen of etcd: revisions only grow, and the cluster stays the same.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use etcd_client::ResponseHeader;

use super::fault::EtcdFault;
use crate::store::Revision;

/// What a client has seen. Linearizable answers can never fall behind what was seen before their
/// request was sent; if one does, etcd was restored from a backup.
#[derive(Debug, Default)]
pub(super) struct History {
    highest: AtomicI64,
    /// 0 until the first answer.
    cluster: AtomicU64,
}

/// The highest revision seen when a request was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeenAtSend(i64);

impl History {
    /// To be called right before a request is sent.
    pub(super) fn at_send(&self) -> SeenAtSend {
        SeenAtSend(self.highest.load(Ordering::SeqCst))
    }

    /// The revision of a linearizable answer.
    pub(super) fn check(
        &self,
        member: &str,
        at_send: SeenAtSend,
        header: Option<&ResponseHeader>,
    ) -> Result<Revision, EtcdFault> {
        let member = || member.to_owned();
        let Some(header) = header else {
            return Err(EtcdFault::Failed {
                member: member(),
                reason: "an answer without a header".to_owned(),
            });
        };
        let (revision, cluster) = (header.revision(), header.cluster_id());
        if let Err(seen) = self.cluster.compare_exchange(0, cluster, Ordering::SeqCst, Ordering::SeqCst)
            && seen != cluster
        {
            let reason = format!("its cluster is {cluster:x}, and it was {seen:x}");
            return Err(EtcdFault::AnotherHistory { member: member(), reason });
        }
        if revision < at_send.0 {
            let reason = format!("its revision is {revision}, and it was {} before", at_send.0);
            return Err(EtcdFault::AnotherHistory { member: member(), reason });
        }
        self.highest.fetch_max(revision, Ordering::SeqCst);
        Ok(Revision(revision))
    }
}
