//! Writing events against a store whose answers go wrong on demand.

use std::sync::Arc;

use shared::event::{Answering, Listed};
use shared::memory::{CommitFault, MemoryStore};
use shared::protocol::exchange::SessionState;
use shared::record::Epoch;
use shared::transaction::EVENTS_MAX;
use shared::volume::{Driver, VolumeId, VolumeName};
use tokio::time::Instant;

use super::*;
use crate::event::{Told, Whose};
use crate::queue::Queue;

fn founded() -> (MemoryStore, Keys) {
    let (store, keys) = (MemoryStore::new(), Keys::default());
    store.plant(&keys.cluster(), r#"{"version":1,"id":"c"}"#);
    (store, keys)
}

fn recorder<'s>(store: &'s MemoryStore, keys: &'s Keys) -> Recorder<'s, MemoryStore> {
    Recorder::new(store, keys)
}

fn holder(n: usize) -> Holder {
    Holder::new(format!("agent-{n}")).unwrap()
}

fn session(n: usize, at: i64) -> Told {
    let event = Event::Session {
        holder: holder(n),
        epoch: Epoch(1),
        state: SessionState::Live,
        agent_id: None,
        reason: None,
        ttl: None,
    };
    Told { event, place: Place::Written { at: Revision(at), seen: Seen::AtOnce }, logged: true }
}

fn session_deleted(n: usize, at: i64, written: i64, seen: Seen) -> Told {
    let event = Event::SessionDeleted { holder: holder(n), epoch: Some(Epoch(1)) };
    Told { event, place: Place::Deleted { at: Revision(at), written: Revision(written), seen }, logged: true }
}

fn whose(n: usize) -> Whose {
    let volume = VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("v").unwrap() };
    Whose { holder: holder(n), epoch: None, volume: Arc::new(volume), more: 0, agent_id: Some("S0".into()) }
}

fn listed(n: usize, listed: Listed) -> Told {
    let event = Event::Listed { whose: whose(n), listed, before: None };
    Told { event, place: Place::Outside, logged: true }
}

fn answering(n: usize, answering: Answering) -> Told {
    let event = Event::Answering { whose: whose(n), answering, why: "w".to_owned() };
    Told { event, place: Place::Outside, logged: true }
}

fn batch(told: &[Told]) -> Vec<Pending> {
    queue(told).batch(Instant::now(), true)
}

fn queue(told: &[Told]) -> Queue {
    let mut queue = Queue::new(10_000);
    for one in told {
        queue.push(one.clone(), Instant::now(), Revision(1));
    }
    queue
}

async fn events(store: &MemoryStore, keys: &Keys) -> Vec<(String, EventKind)> {
    let snapshot = store.another_client().get_prefix(&keys.events()).await.unwrap();
    let kind = |(key, entry): (&String, &shared::store::Entry)| {
        let event: EventRecord = decode(&entry.value).unwrap();
        (key.strip_prefix(&keys.events()).unwrap().to_owned(), event.what)
    };
    snapshot.entries.iter().map(kind).collect()
}

#[tokio::test]
async fn an_event_is_written_once_however_the_outcomes_of_its_writes_are_lost() {
    use CommitFault::{Unavailable, UnknownDone, UnknownDoneAfter, UnknownNotDone};
    for fault in [Unavailable, UnknownDone, UnknownNotDone, UnknownDoneAfter(1), UnknownDoneAfter(2)] {
        let (store, keys) = founded();
        let (one, other) = (recorder(&store, &keys), recorder(&store, &keys));
        let told = [session(1, 2), listed(1, Listed::Inactive), listed(2, Listed::Gone)];
        store.fail_next_commit(fault);
        assert!(one.write(&batch(&told)).await.is_err(), "{fault:?}");
        for recorder in [&one, &other, &one] {
            assert_eq!(recorder.write(&batch(&told)).await.unwrap(), 3, "{fault:?}");
        }
        // What is late is done now, if ever.
        for _ in 0..3 {
            let _ = store.get_prefix("/").await;
        }
        let kinds: Vec<_> = events(&store, &keys).await.into_iter().map(|(_, kind)| kind).collect();
        let expected = [EventKind::SessionOpened, EventKind::AgentInactive, EventKind::AgentGone];
        assert_eq!(kinds, expected, "{fault:?}");
    }
}

#[tokio::test]
async fn each_turn_of_an_agent_has_its_place_and_what_is_told_is_not_told_again() {
    let (store, keys) = founded();
    let (one, other) = (recorder(&store, &keys), recorder(&store, &keys));
    let turns = vec![
        listed(1, Listed::Inactive),
        answering(1, Answering::Silent),
        listed(1, Listed::Active),
        listed(1, Listed::Inactive),
    ];
    let mut rounds = 0;
    let mut turns = queue(&turns);
    while turns.len() > 0 {
        assert!(go_on(&one, &mut turns).await > 0);
        rounds += 1;
    }
    assert_eq!(rounds, 4, "two turns of one agent need two places");
    // The other one has seen the last turn alone.
    other.write(&batch(&[listed(1, Listed::Inactive)])).await.unwrap();
    let written = events(&store, &keys).await;
    let kinds: Vec<_> = written.iter().map(|(_, kind)| *kind).collect();
    let expected =
        [EventKind::AgentInactive, EventKind::AgentSilent, EventKind::AgentActive, EventKind::AgentInactive];
    assert_eq!(kinds, expected);
    let standing = store.get(&[keys.standing(&holder(1))]).await.unwrap();
    let standing: StandingRecord = decode(&standing.entries[&keys.standing(&holder(1))].value).unwrap();
    let expected =
        StandingRecord { listed: Listed::Inactive, answering: Answering::Silent, by: one.name(), turn: 4 };
    assert_eq!(standing, expected);
}

/// Writes what is left of the turns, once; answers how many are dealt with.
async fn go_on(recorder: &Recorder<'_, MemoryStore>, turns: &mut Queue) -> usize {
    let count = match turns.batch(Instant::now(), true) {
        batch if batch.is_empty() => 0,
        batch => recorder.write(&batch).await.unwrap_or_default(),
    };
    turns.written(count);
    count
}

#[tokio::test]
async fn two_that_have_the_same_turns_to_tell_tell_them_once_in_whatever_order_they_write() {
    // In each order of their first eight writes, and with each one's outcome lost.
    for order in 0..256_u32 {
        for lost in 0..8 {
            let (store, keys) = founded();
            let recorders = [recorder(&store, &keys), recorder(&store, &keys)];
            let turns =
                vec![listed(1, Listed::Inactive), listed(1, Listed::Active), answering(1, Answering::Silent)];
            let mut left = [queue(&turns), queue(&turns)];
            for step in 0..20 {
                let one = usize::from(order >> (step % 8) & 1 == 1);
                let one = if step >= 8 { step % 2 } else { one };
                if step == lost {
                    store.fail_next_commit(CommitFault::UnknownDone);
                }
                go_on(&recorders[one], &mut left[one]).await;
            }
            assert!(left.iter().all(|turns| turns.len() == 0));
            let mut kinds: Vec<_> = events(&store, &keys).await.into_iter().map(|(_, kind)| kind).collect();
            let silent = kinds.iter().position(|kind| *kind == EventKind::AgentSilent).unwrap();
            kinds.remove(silent);
            assert_eq!(kinds, [EventKind::AgentInactive, EventKind::AgentActive], "{order:08b}, {lost}");
        }
    }
}

#[tokio::test]
async fn a_turn_whose_outcome_is_lost_costs_none_that_comes_behind_it() {
    for fault in [CommitFault::UnknownDone, CommitFault::UnknownNotDone, CommitFault::UnknownDoneAfter(1)] {
        let (store, keys) = founded();
        let recorder = recorder(&store, &keys);
        let mut turns =
            queue(&[listed(1, Listed::Inactive), listed(1, Listed::Active), listed(1, Listed::Inactive)]);
        store.fail_next_commit(fault);
        for _ in 0..5 {
            go_on(&recorder, &mut turns).await;
        }
        let kinds: Vec<_> = events(&store, &keys).await.into_iter().map(|(_, kind)| kind).collect();
        let expected = [EventKind::AgentInactive, EventKind::AgentActive, EventKind::AgentInactive];
        assert_eq!(kinds, expected, "{fault:?}");
    }
}

#[tokio::test]
async fn a_deletion_is_told_once_by_who_saw_it_and_who_missed_it() {
    for seen_first in [true, false] {
        let (store, keys) = founded();
        let (one, other) = (recorder(&store, &keys), recorder(&store, &keys));
        one.write(&batch(&[session(1, 20)])).await.unwrap();
        let seen = session_deleted(1, 30, 20, Seen::AtOnce);
        let missed = session_deleted(1, 37, 20, Seen::ByALaterRead);
        let (first, second) = if seen_first { (seen, missed) } else { (missed, seen) };
        one.write(&batch(&[first])).await.unwrap();
        other.write(&batch(&[second])).await.unwrap();
        let kinds: Vec<_> = events(&store, &keys).await.into_iter().map(|(_, kind)| kind).collect();
        assert_eq!(kinds, [EventKind::SessionOpened, EventKind::SessionDeleted], "{seen_first}");
        // It is opened and deleted again: that is another event.
        let again = [session(1, 40), session_deleted(1, 50, 40, Seen::AtOnce)];
        other.write(&batch(&again)).await.unwrap();
        assert_eq!(events(&store, &keys).await.len(), 4);
    }
}

#[tokio::test]
async fn nothing_is_written_without_the_installations_record_or_over_another() {
    let (store, keys) = (MemoryStore::new(), Keys::default());
    let recorder = recorder(&store, &keys);
    let told = batch(&[session(1, 2)]);
    assert!(matches!(recorder.write(&told).await, Err(RecordingError::NotFounded)));
    store.plant(&keys.cluster(), r#"{"version":1,"id":"c"}"#);
    assert_eq!(recorder.write(&told).await.unwrap(), 1);
    // A record of a later release is left alone.
    store.plant(&keys.standing(&holder(1)), r#"{"version":9}"#);
    let error = recorder.write(&batch(&[listed(1, Listed::Gone)])).await.unwrap_err();
    assert!(matches!(error, RecordingError::Unreadable { .. }), "{error:?}");
}

#[tokio::test]
async fn of_two_that_trim_at_once_one_does_and_no_event_that_is_kept_is_lost() {
    let (store, keys) = founded();
    let recorder = recorder(&store, &keys);
    let told: Vec<_> = (1..=EVENTS_MAX).map(|n| session(n, 10 * i64::try_from(n).unwrap())).collect();
    recorder.write(&batch(&told)).await.unwrap();
    let mut recorded = Recorded::new(keys.clone());
    recorded.read(&store.get_prefix(&keys.events()).await.unwrap());
    assert_eq!(recorded.excess(EVENTS_MAX, EVENTS_MAX), None);
    assert_eq!(recorded.excess(10, EVENTS_MAX), None, "tolerated");
    let excess = recorded.excess(10, 20).unwrap();
    assert_eq!(excess.revision, Revision(300));

    // The first one's outcome is lost; the second trims the same; the first tries again.
    store.fail_next_commit(CommitFault::UnknownDoneAfter(2));
    assert!(recorder.trim(excess.clone()).await.is_err());
    let outcomes = [recorder.trim(excess.clone()).await, recorder.trim(excess.clone()).await];
    let trimmed = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Some(_)))).count();
    assert!(trimmed <= 1, "{outcomes:?}");
    recorded.trimmed(&excess);
    let left: Vec<_> = events(&store, &keys).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(left.len(), 10);
    assert!(left.iter().all(|key| recorded.contains(&format!("{}{key}", keys.events()))));

    // One whose knowledge is older trims less, and does nothing.
    let older = TrimmedRecord { through: "0000000000000000200/".to_owned(), revision: Revision(200) };
    assert!(recorder.trim(older).await.unwrap().is_none());
    // An event that is late for its own trimming is not written any more; a younger one is.
    assert_eq!(recorder.write(&batch(&[session(3, 30), session(77, 305)])).await.unwrap(), 2);
    let now: Vec<_> = events(&store, &keys).await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(now.len(), 11);
    assert_eq!(now[0], "0000000000000000305/sessions/agent-77");
}

#[tokio::test]
async fn a_write_that_is_late_does_not_bring_back_what_was_trimmed() {
    let (store, keys) = founded();
    let recorder = recorder(&store, &keys);
    recorder.write(&batch(&[session(2, 20)])).await.unwrap();
    let told = batch(&[session(1, 10)]);
    // On its way until the trimming is done: four operations later.
    store.fail_next_commit(CommitFault::UnknownDoneAfter(4));
    assert!(recorder.write(&told).await.is_err());
    let through = "0000000000000000020/sessions/agent-2".to_owned();
    recorder.trim(TrimmedRecord { through, revision: Revision(20) }).await.unwrap().unwrap();
    for _ in 0..4 {
        let _ = store.get_prefix("/").await;
    }
    assert_eq!(recorder.write(&told).await.unwrap(), 1, "it is dealt with");
    assert!(events(&store, &keys).await.is_empty());
}
