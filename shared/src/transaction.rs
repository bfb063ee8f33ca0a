//! The transactions that may change etcd: this file is the whole list.
//!
//! Each compares the installation's record, each compares what it rewrites, and each that a holder
//! sends compares the holder's own session: whatever is still in flight when the session is
//! rewritten can never commit (the barrier, docs/lease-protocol.md).

use crate::keys::Keys;
use crate::record::{LeaseRecord, SessionRecord, encode};
use crate::store::{Compare, Revision, Transaction};
use crate::volume::{Holder, VolumeId};

/// The most volumes that one container may name: etcd allows 128 operations in a transaction by
/// default, and a lease takes up to three of them (its compare, its put, its old session's compare).
pub const VOLUMES_MAX: usize = 40;

/// What every transaction of a holder needs to know.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The key layout.
    pub keys: Keys,
    /// The installation's record, byte for byte as it was read.
    pub cluster: Vec<u8>,
    /// The holder's name.
    pub holder: Holder,
}

/// A lease that a transaction rewrites.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// The volume's canonical name.
    pub volume: VolumeId,
    /// The revision at which its lease was read.
    pub at: Revision,
    /// What it is to say.
    pub record: LeaseRecord,
    /// When it is taken from another holder: that holder's session and the revision at which it was
    /// read as dead, or of a later epoch.
    pub taken_from: Option<(Holder, Revision)>,
}

/// Makes the installation's record, if there is none.
#[must_use]
pub fn found(keys: &Keys, record: Vec<u8>) -> Transaction {
    Transaction::new().put(&keys.cluster(), Revision::ABSENT, record)
}

impl Writer {
    fn transaction(&self) -> Transaction {
        Transaction::new().when(Compare::Value { key: self.keys.cluster(), value: self.cluster.clone() })
    }

    /// Writes this holder's session, if it is unchanged since it was read: a new epoch, or the same
    /// one as a barrier.
    #[must_use]
    pub fn session(&self, at: Revision, record: &SessionRecord) -> Transaction {
        self.transaction().put(&self.keys.session(&self.holder), at, encode(record))
    }

    /// Rewrites leases, if they and this holder's session are unchanged: acquire, take over, update
    /// and release.
    #[must_use]
    pub fn leases(&self, session_at: Revision, rewrites: &[Rewrite]) -> Transaction {
        let mut transaction = self.transaction().unchanged(&self.keys.session(&self.holder), session_at);
        for rewrite in rewrites {
            transaction =
                transaction.put(&self.keys.lease(&rewrite.volume), rewrite.at, encode(&rewrite.record));
            if let Some((holder, at)) = &rewrite.taken_from {
                transaction = transaction.unchanged(&self.keys.session(holder), *at);
            }
        }
        transaction
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{Driver, VolumeName};

    #[test]
    fn every_write_compares_the_cluster_the_session_and_what_it_rewrites() {
        let writer =
            Writer { keys: Keys::new("/x"), cluster: b"c".to_vec(), holder: Holder::new("me").unwrap() };
        let volume = VolumeId { driver: Driver::new("d").unwrap(), name: VolumeName::new("v").unwrap() };
        let record = LeaseRecord::Free { last_holder: None, since: "now".into() };
        let other = Holder::new("other").unwrap();
        let rewrite = Rewrite { volume, at: Revision(7), record, taken_from: Some((other, Revision(5))) };
        let transaction = writer.leases(Revision(9), &[rewrite]);
        let unchanged = |key: &str, at| Compare::Unchanged { key: key.into(), at: Revision(at) };
        assert_eq!(
            transaction.compares(),
            [
                Compare::Value { key: "/x/cluster".into(), value: b"c".to_vec() },
                unchanged("/x/sessions/me", 9),
                unchanged("/x/leases/d/v", 7),
                unchanged("/x/sessions/other", 5),
            ]
        );
        assert_eq!(transaction.puts().len(), 1);
    }

    #[test]
    fn a_container_with_the_most_volumes_fits_etcds_default_limit() {
        const { assert!(2 + 3 * VOLUMES_MAX <= 128) };
    }
}
