//! The transactions that may change etcd: this file is the whole list.
//!
//! Each compares the installation's record, each compares what it rewrites, and each that a holder
//! sends compares the holder's own session: whatever is still in flight when the session is
//! rewritten can never commit (the barrier, docs/lease-protocol.md).

use crate::event::{EventRecord, StandingRecord, TrimmedRecord};
use crate::keys::Keys;
use crate::record::{LeaseRecord, SessionRecord, encode};
use crate::store::{Compare, KeyRange, Revision, Transaction};
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

/// What every transaction of the event log needs to know. None of them touches a lease or a session.
#[derive(Clone, Debug)]
pub struct EventWriter {
    /// The key layout.
    pub keys: Keys,
    /// The installation's record, byte for byte as it was read.
    pub cluster: Vec<u8>,
    /// The revision at which the record of what was trimmed was read.
    pub trimmed_at: Revision,
}

/// The most events of one transaction. An event about an agent takes two compares and two writes.
pub const EVENTS_MAX: usize = 40;

impl EventWriter {
    fn transaction(&self) -> Transaction {
        Transaction::new().when(Compare::Value { key: self.keys.cluster(), value: self.cluster.clone() })
    }

    /// Creates events, keys with values, that do not exist yet, unless events were trimmed since that
    /// was read: an event that is late for its own trimming is not written any more. `standings` are
    /// the agents' standings that the events tell, each with the revision at which it was read.
    ///
    /// With `rewritten` the record of what was trimmed is rewritten as it was, so that of two writers
    /// that found the same thing by different reads one has to read again.
    #[must_use]
    pub fn write(
        &self,
        events: &[(String, EventRecord)],
        standings: &[(Holder, Revision, StandingRecord)],
        rewritten: Option<&TrimmedRecord>,
    ) -> Transaction {
        let mut transaction = self.transaction();
        let trimmed = self.keys.events_trimmed();
        transaction = match rewritten {
            None => transaction.unchanged(&trimmed, self.trimmed_at),
            Some(record) => transaction.put(&trimmed, self.trimmed_at, encode(record)),
        };
        for (key, event) in events {
            transaction = transaction.put(key, Revision::ABSENT, encode(event));
        }
        for (holder, at, standing) in standings {
            transaction = transaction.put(&self.keys.standing(holder), *at, encode(standing));
        }
        transaction
    }

    /// Deletes all events up to `trimmed.through`, if nobody else has trimmed since that was read.
    #[must_use]
    pub fn trim(&self, trimmed: &TrimmedRecord) -> Transaction {
        let from = self.keys.events();
        // The least key above it.
        let to = format!("{from}{}\0", trimmed.through);
        self.transaction()
            .put(&self.keys.events_trimmed(), self.trimmed_at, encode(trimmed))
            .delete_range(KeyRange { from, to })
    }
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

    #[test]
    fn events_compare_the_cluster_and_the_trimming_and_no_more_than_fits_is_written() {
        let writer = EventWriter { keys: Keys::new("/x"), cluster: b"c".to_vec(), trimmed_at: Revision(5) };
        let trim =
            writer.trim(&TrimmedRecord { through: "0000000000000000007/a".into(), revision: Revision(7) });
        let guard = [
            Compare::Value { key: "/x/cluster".into(), value: b"c".to_vec() },
            Compare::Unchanged { key: "/x/eventlog/trimmed".into(), at: Revision(5) },
        ];
        assert_eq!(trim.compares(), guard);
        let range = KeyRange { from: "/x/events/".into(), to: "/x/events/0000000000000000007/a\0".into() };
        assert_eq!(trim.deletions(), [range]);
        let write = writer.write(&[], &[], None);
        assert_eq!((write.compares(), write.puts().len()), (&guard[..], 0));
        let write = writer.write(&[], &[], Some(&TrimmedRecord::default()));
        assert_eq!((write.compares(), write.puts().len()), (&guard[..], 1));
        const { assert!(2 + 2 * EVENTS_MAX <= crate::store::OPERATIONS_MAX) };
    }
}
