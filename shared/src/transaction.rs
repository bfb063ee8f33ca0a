//! The transactions beside those of the protocol core (`protocol::exchange::Commit`): the installation's record, and the
//! event log. Each compares the installation's record and what it rewrites.

pub use protocol::VOLUMES_MAX;

use crate::event::{EventRecord, StandingRecord, TrimmedRecord};
use crate::keys::Keys;
use crate::record::encode;
use crate::store::{Compare, KeyRange, Revision, Transaction};
use crate::volume::Holder;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_with_the_most_volumes_fits_etcds_default_limit() {
        // Beside the leases: cluster, session and beat.
        const { assert!(3 + 2 * VOLUMES_MAX <= crate::store::OPERATIONS_MAX) };
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
