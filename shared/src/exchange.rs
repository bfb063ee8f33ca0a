//! The protocol core's records as the bytes that are stored, and its commits as transactions.
//!
//! The JSON is that of [`crate::record`] with further fields, which older readers leave alone. A revoked session
//! says `state: live` and has a field `revoking`: for an older reader it is what it has to be, a session whose
//! leases are not to be taken.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::keys::Keys;
use crate::protocol::Text;
use crate::protocol::exchange::{
    Agent, ByTime, Commit, Held, Instance, Key, Lease, Means, Owed, Proof, Record, Session, SessionState,
    Stage, Storm,
};
use crate::protocol::timing::{Profile, Timing};
use crate::record::{self, Epoch, HeldLease, LeaseRecord, RecordError, SessionRecord, decode, encode};
use crate::store::{Compare, KeyRange, Transaction};
use crate::volume::VolumeId;

#[derive(Serialize, Deserialize)]
struct StoredSession {
    #[serde(flatten)]
    record: SessionRecord,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    revoking: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof: Option<Proof>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent_address: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timing: Option<Timing>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by_time: Option<ByTime>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    means: BTreeSet<Means>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unproved: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unsettled_through: Option<Epoch>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    wants: BTreeSet<VolumeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<Text>,
}

#[derive(Serialize, Deserialize)]
struct StoredLease {
    #[serde(flatten)]
    record: LeaseRecord,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unsettled: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    calls: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owed: Option<Owed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<Text>,
}

#[derive(Serialize)]
struct StoredIndex {}

#[derive(Serialize)]
struct StoredBeat {
    at: String,
}

#[derive(Serialize, Deserialize)]
struct StoredStorm {
    state: Storm,
    since: String,
}

/// The name of a key.
#[must_use]
pub fn key(keys: &Keys, key: &Key) -> String {
    match key {
        Key::Lease(volume) => keys.lease(volume),
        Key::Held(holder, volume) => keys.held(holder, volume),
        Key::Session(holder) => keys.session(holder),
        Key::Beat(holder) => keys.beat(holder),
        Key::Storm => keys.storm(),
    }
}

/// A record's bytes. `now` is the wall clock, for people.
#[must_use]
pub fn to_bytes(record: &Record, now: &str) -> Vec<u8> {
    match record {
        Record::Lease(lease) => encode(&stored_lease(lease, now)),
        Record::Held => encode(&StoredIndex {}),
        Record::Session(session) => encode(&stored_session(session, now)),
        Record::Beat => encode(&StoredBeat { at: now.to_owned() }),
        Record::Storm(state) => encode(&StoredStorm { state: *state, since: now.to_owned() }),
    }
}

/// The record that `key` holds in `bytes`.
///
/// # Errors
/// When they hold no such record, or one of a later version.
pub fn from_bytes(key: &Key, bytes: &[u8]) -> Result<Record, RecordError> {
    Ok(match key {
        Key::Lease(_) => Record::Lease(lease(decode(bytes)?)),
        // That it is there counts, or its revision, whatever it says.
        Key::Held(..) => Record::Held,
        Key::Beat(_) => Record::Beat,
        Key::Session(_) => Record::Session(session(decode(bytes)?)),
        Key::Storm => Record::Storm(decode::<StoredStorm>(bytes)?.state),
    })
}

/// The transaction of a commit. `cluster` is the installation's record, byte for byte as it was read.
#[must_use]
pub fn transaction(keys: &Keys, cluster: &[u8], commit: &Commit, now: &str) -> Transaction {
    let value = cluster.to_vec();
    let mut transaction = Transaction::new().when(Compare::Value { key: keys.cluster(), value });
    for (compared, at) in &commit.compares {
        transaction = transaction.unchanged(&key(keys, compared), *at);
    }
    // Each put of the core stands with its own compare, but a beat's and an index's, which its holder's session guards.
    for (put, record) in &commit.puts {
        transaction = transaction.overwrite(&key(keys, put), to_bytes(record, now));
    }
    for deleted in &commit.deletes {
        transaction = transaction.delete_range(KeyRange::of(&key(keys, deleted)));
    }
    if commit.otherwise.is_empty() {
        return transaction;
    }
    // Whose installation it is tells whether the rest means anything.
    let reads = commit.otherwise.iter().map(|wanted| key(keys, wanted));
    transaction.or_read([keys.cluster()].into_iter().chain(reads))
}

fn since(since: Option<&Text>, now: &str) -> String {
    since.map_or_else(|| now.to_owned(), |since| since.to_string())
}

fn stored_lease(lease: &Lease, now: &str) -> StoredLease {
    let held = match lease {
        Lease::Free { last_holder, owed } => {
            let record = LeaseRecord::Free { last_holder: last_holder.clone(), since: now.to_owned() };
            return StoredLease { record, unsettled: false, calls: false, owed: owed.clone(), revoked: None };
        }
        Lease::Held(held) => held,
    };
    let record = HeldLease {
        holder: held.holder.clone(),
        epoch: held.epoch,
        token: held.token,
        since: since(held.since.as_ref(), now),
        agent_id: held.agent_id.as_deref().map(str::to_owned),
        containers: held.containers.clone(),
        tasks: held.tasks.clone(),
        mount_point: held.mount_point.as_deref().map(str::to_owned),
    };
    let record = match held.stage {
        Stage::Attaching => LeaseRecord::Attaching(record),
        Stage::Attached => LeaseRecord::Attached(record),
        Stage::Detaching => LeaseRecord::Detaching(record),
    };
    let (owed, revoked) = (held.owed.clone(), held.revoked.clone());
    StoredLease { record, unsettled: held.unsettled, calls: held.calls, owed, revoked }
}

fn lease(stored: StoredLease) -> Lease {
    let StoredLease { record, unsettled, calls, owed, revoked } = stored;
    let (stage, held) = match record {
        LeaseRecord::Free { last_holder, .. } => return Lease::Free { last_holder, owed },
        LeaseRecord::Attaching(held) => (Stage::Attaching, held),
        LeaseRecord::Attached(held) => (Stage::Attached, held),
        LeaseRecord::Detaching(held) => (Stage::Detaching, held),
    };
    Lease::Held(Held {
        stage,
        holder: held.holder,
        epoch: held.epoch,
        token: held.token,
        agent_id: held.agent_id.map(Text::from),
        containers: held.containers,
        tasks: held.tasks,
        mount_point: held.mount_point.map(Text::from),
        unsettled,
        calls,
        owed,
        revoked,
        since: Some(held.since.into()),
    })
}

fn stored_session(session: &Session, now: &str) -> StoredSession {
    let proof = if let SessionState::Dead(proof) = session.state { Some(proof) } else { None };
    let state = if proof.is_some() { record::SessionState::Dead } else { record::SessionState::Live };
    let agent = session.agent.as_ref();
    StoredSession {
        record: SessionRecord {
            epoch: session.epoch,
            instance: session.instance.0.to_string(),
            state,
            machine_id: session.machine.to_string(),
            boot_id: session.boot.to_string(),
            agent_id: agent.and_then(|agent| agent.id.as_deref()).map(str::to_owned),
            since: since(session.since.as_ref(), now),
        },
        revoking: session.state == SessionState::Revoking,
        proof,
        agent_address: agent.map(|agent| agent.address.clone()),
        timing: Some(session.timing),
        by_time: Some(session.by_time),
        means: session.means.clone(),
        unproved: session.unproved.clone(),
        unsettled_through: Some(session.unsettled_through),
        wants: session.wants.clone(),
        reason: session.reason.clone(),
    }
}

fn session(stored: StoredSession) -> Session {
    let record = stored.record;
    let state = match record.state {
        // One that was written before there were proofs was ended by hand: nothing is known of its host.
        record::SessionState::Dead => SessionState::Dead(stored.proof.unwrap_or(Proof::Time)),
        record::SessionState::Live if stored.revoking => SessionState::Revoking,
        record::SessionState::Live => SessionState::Live,
    };
    let id = record.agent_id.map(Text::from);
    Session {
        epoch: record.epoch,
        instance: Instance(record.instance.into()),
        state,
        machine: record.machine_id.into(),
        boot: record.boot_id.into(),
        agent: stored.agent_address.map(|address| Agent { id, address }),
        timing: stored.timing.unwrap_or(Profile::Calm.timing()),
        // A keeper without a heartbeat cannot be judged by silence.
        by_time: stored.by_time.unwrap_or(ByTime::Never),
        means: stored.means,
        unproved: stored.unproved,
        unsettled_through: stored.unsettled_through.unwrap_or(Epoch(0)),
        wants: stored.wants,
        reason: stored.reason,
        since: Some(record.since.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::exchange::ClusterId;
    use crate::record::Token;
    use crate::store::Revision;
    use crate::volume::{ContainerId, Driver, Holder, VolumeName};

    fn me() -> Holder {
        Holder::new("agent-1").unwrap()
    }

    fn revoked() -> Session {
        Session {
            epoch: Epoch(3),
            instance: Instance("i1".into()),
            state: SessionState::Revoking,
            machine: "m1".into(),
            boot: "b1".into(),
            agent: Some(Agent { id: Some("S0".into()), address: "slave(1)@10.0.0.1:5051".into() }),
            timing: Profile::Default.timing(),
            by_time: ByTime::Unproved,
            means: BTreeSet::from([Means::Guard, Means::Storage]),
            unproved: Some("volume ebs/w is on nfs".into()),
            wants: BTreeSet::from([VolumeId {
                driver: Driver::new("ebs").unwrap(),
                name: VolumeName::new("w").unwrap(),
            }]),
            unsettled_through: Epoch(1),
            reason: Some("asked for".into()),
            since: Some("then".into()),
        }
    }

    fn held() -> Held {
        Held {
            stage: Stage::Attaching,
            holder: me(),
            epoch: Epoch(3),
            token: Some(Token(Revision(9))),
            agent_id: Some("S0".into()),
            containers: BTreeSet::from([ContainerId::new("c1").unwrap()]),
            tasks: Default::default(),
            mount_point: Some("/m".into()),
            unsettled: true,
            calls: true,
            owed: Some(owed()),
            revoked: Some("asked for".into()),
            since: Some("then".into()),
        }
    }

    fn owed() -> Owed {
        let from = BTreeSet::from([Holder::new("agent-0").unwrap()]);
        Owed { from, since: Some("before".into()), by_time: true }
    }

    fn volume() -> Key {
        let (driver, name) = (Driver::new("ebs").unwrap(), VolumeName::new("v").unwrap());
        Key::Lease(VolumeId { driver, name })
    }

    fn index() -> Key {
        let Key::Lease(volume) = volume() else { panic!() };
        Key::Held(me(), volume)
    }

    #[test]
    fn every_record_comes_back_as_it_was_written() {
        let dead = Session { state: SessionState::Dead(Proof::Fenced), ..revoked() };
        for (key, record) in [
            (Key::Session(me()), Record::Session(revoked())),
            (Key::Session(me()), Record::Session(dead)),
            (volume(), Record::Lease(Lease::Held(held()))),
            (volume(), Record::Lease(Lease::Held(Held { stage: Stage::Detaching, revoked: None, ..held() }))),
            (volume(), Record::Lease(Lease::Free { last_holder: Some(me()), owed: None })),
            (volume(), Record::Lease(Lease::Free { last_holder: Some(me()), owed: Some(owed()) })),
            (index(), Record::Held),
            (Key::Beat(me()), Record::Beat),
            (Key::Storm, Record::Storm(Storm::Raised)),
        ] {
            assert_eq!(from_bytes(&key, &to_bytes(&record, "now")).unwrap(), record);
        }
    }

    #[test]
    fn an_older_reader_takes_a_revoked_session_for_one_whose_leases_it_must_not_take() {
        let old: SessionRecord = decode(&to_bytes(&Record::Session(revoked()), "now")).unwrap();
        assert_eq!((old.state, old.epoch), (record::SessionState::Live, Epoch(3)));
        let old: LeaseRecord = decode(&to_bytes(&Record::Lease(Lease::Held(held())), "now")).unwrap();
        assert_eq!((old.state(), old.held().unwrap().token), ("attaching", Some(Token(Revision(9)))));
    }

    #[test]
    fn a_session_of_a_keeper_without_a_heartbeat_is_never_ended_by_silence() {
        let old = br#"{"version":1,"epoch":2,"instance":"i","state":"live","machine_id":"m","boot_id":"b","since":"x"}"#;
        let Record::Session(session) = from_bytes(&Key::Session(me()), old).unwrap() else { panic!() };
        assert_eq!((session.state, session.by_time), (SessionState::Live, ByTime::Never));
        let dead = br#"{"version":1,"epoch":2,"instance":"i","state":"dead","machine_id":"m","boot_id":"b","since":"x"}"#;
        let Record::Session(session) = from_bytes(&Key::Session(me()), dead).unwrap() else { panic!() };
        assert_eq!(session.state, SessionState::Dead(Proof::Time));
    }

    #[test]
    fn a_beat_compares_cluster_and_session_and_everything_else_its_own_key_too() {
        let keys = Keys::new("/x");
        let cluster = ClusterId("c".into());
        let beat = transaction(&keys, b"c", &Commit::beat(&cluster, &me(), Revision(4)), "now");
        let unchanged = |key: &str, at| Compare::Unchanged { key: key.into(), at: Revision(at) };
        let whole = Compare::Value { key: "/x/cluster".into(), value: b"c".to_vec() };
        assert_eq!(beat.compares(), [whole.clone(), unchanged("/x/sessions/agent-1", 4)]);
        assert_eq!(beat.puts()[0].0, "/x/beats/agent-1");
        let commit = Commit::new(&cluster).put(Key::Storm, Revision(7), Record::Storm(Storm::Over));
        assert_eq!(
            transaction(&keys, b"c", &commit, "now").compares(),
            [whole.clone(), unchanged("/x/storm", 7)]
        );
        // What a holder has in its index goes and comes with what is compared beside it.
        let Key::Held(_, volume) = index() else { panic!() };
        let commit = Commit::new(&cluster).index(&me(), &volume);
        let indexed = transaction(&keys, b"c", &commit, "now");
        assert_eq!(indexed.puts(), [("/x/held/agent-1/ebs/v".to_owned(), br#"{"version":1}"#.to_vec())]);
        let commit = Commit::new(&cluster).unindex(&me(), &volume);
        let unindexed = transaction(&keys, b"c", &commit, "now");
        assert_eq!(unindexed.deletions(), [KeyRange::of("/x/held/agent-1/ebs/v")]);
        assert_eq!((indexed.compares(), unindexed.compares()), (&[whole.clone()][..], &[whole][..]));
    }
}
