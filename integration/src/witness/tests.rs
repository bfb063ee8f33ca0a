//! The checker against journals made by hand: clean ones, and for each rule one in which it alone is broken.

use std::collections::BTreeSet;

use shared::exchange::to_bytes;
use shared::keys::Keys;
use shared::protocol::exchange::{
    Agent, ByTime, Held, Instance, Lease, Proof, Record, Session, SessionState, Stage,
};
use shared::protocol::timing::Profile;
use shared::record::{Epoch, Token};
use shared::store::Revision;
use shared::volume::{Driver, Holder, VolumeId, VolumeName};

use super::attempt::{Attempt, Outcome, WriterJournal};
use super::history::Line;
use super::record::{Reading, Run};
use super::{Journals, LastReading, Moment, Verdict, Violation, WriterId, check};
use crate::storage::journal::{Entry, Event};

const MS: u64 = 1_000_000;
const FOREVER: u64 = 1_000_000;

fn ms(at: u64) -> Moment {
    Moment(at * MS)
}

fn holder(name: &str) -> Holder {
    Holder::new(name).unwrap()
}

fn writer_id(host: &str) -> WriterId {
    WriterId { host: host.into(), container: format!("c-{host}"), pid: 1 }
}

/// Builds journals; all times in milliseconds.
struct Story {
    journals: Journals,
    revision: i64,
}

impl Story {
    fn new() -> Self {
        let journals = Journals { until: ms(FOREVER), ..Journals::default() };
        Self { journals, revision: 10 }
    }

    /// Something written to etcd in the millisecond before `at`; its revision.
    fn etcd(&mut self, at: u64, key: String, record: &Record) -> i64 {
        let (before, at) = (ms(at - 1), ms(at));
        self.journals.leases.push(Line::Read {
            revision: Revision(self.revision),
            sent: before,
            returned: before,
        });
        self.revision += 1;
        let revision = Revision(self.revision);
        let value = String::from_utf8(to_bytes(record, "now")).unwrap();
        self.journals.leases.push(Line::Written { key, value, revision, seen: at });
        revision.0
    }

    fn session(&mut self, at: u64, host: &str, epoch: u64, state: SessionState) {
        let session = Session {
            epoch: Epoch(epoch),
            instance: Instance("i".into()),
            state,
            machine: "m".into(),
            boot: "b".into(),
            agent: Some(Agent { id: None, address: "a".into() }),
            timing: Profile::Fast.timing(),
            by_time: ByTime::Allowed,
            means: Default::default(),
            unproved: None,
            unsettled_through: Epoch(0),
            wants: BTreeSet::new(),
            reason: None,
            since: None,
        };
        self.etcd(at, Keys::default().session(&holder(host)), &Record::Session(session));
    }

    fn lease(&mut self, at: u64, lease: Lease) -> i64 {
        let volume = VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("v").unwrap() };
        self.etcd(at, Keys::default().lease(&volume), &Record::Lease(lease))
    }

    fn held(host: &str, stage: Stage, token: Option<i64>) -> Lease {
        Lease::Held(Held {
            stage,
            holder: holder(host),
            epoch: Epoch(1),
            token: token.map(|token| Token(Revision(token))),
            agent_id: None,
            containers: BTreeSet::new(),
            tasks: Default::default(),
            mount_point: None,
            unsettled: false,
            calls: false,
            owed: None,
            revoked: None,
            since: None,
        })
    }

    fn storage(&mut self, at: u64, event: Event, host: &str, by: &str, mount_id: Option<i64>) {
        let seq = self.journals.storage.len() as u64 + 1;
        self.journals.storage.push(Entry {
            seq,
            at: "2026-01-01T00:00:00.000000Z".into(),
            raw_ns: ms(at).0,
            event,
            volume: "v".into(),
            host: Some(host.into()),
            device: None,
            attachment: (event != Event::Refused).then(|| format!("att-{host}")),
            by: Some(by.into()),
            mount_id: mount_id.map(|token| format!("extvol-{token}")),
        });
    }

    /// Grants the lease and mounts it: done 5 ms after `at`; the token.
    fn takes(&mut self, at: u64, host: &str) -> i64 {
        let token = self.lease(at, Self::held(host, Stage::Attaching, None));
        self.storage(at + 2, Event::Attach, host, host, Some(token));
        self.lease(at + 5, Self::held(host, Stage::Attached, Some(token)));
        token
    }

    /// Gives it back: done 5 ms after `at`.
    fn gives_back(&mut self, at: u64, host: &str, token: i64) {
        self.lease(at, Self::held(host, Stage::Detaching, Some(token)));
        self.storage(at + 2, Event::Detach, host, host, None);
        self.lease(at + 5, Lease::Free { last_holder: Some(holder(host)), owed: None });
    }

    /// A writer that writes these records, each tried at its time and acknowledged 2 ms later.
    fn writes(&mut self, host: &str, found: &[(&str, u64, u64)], began: u64, writes: &[(u64, u64)]) {
        let attempt = |(number, at): &(u64, u64)| Attempt {
            number: *number,
            tried: ms(*at),
            outcome: Outcome::Acknowledged(ms(at + 2)),
        };
        self.journals.writers.push(WriterJournal {
            writer: writer_id(host),
            volume: "v".into(),
            file: "log".into(),
            found: vec![(ms(began), reading(found))],
            attempts: writes.iter().map(attempt).collect(),
        });
    }

    fn at_last(&mut self, reading: Reading) {
        self.journals.last.push(LastReading {
            volume: "v".into(),
            file: "log".into(),
            at: ms(9_000),
            reading,
        });
    }

    fn verdict(&self) -> Verdict {
        check(&self.journals, &Keys::default())
    }

    /// The one violation, and nothing beside it.
    fn only(&self) -> Violation {
        let verdict = self.verdict();
        assert_eq!(verdict.violations.len(), 1, "{verdict}");
        assert!(verdict.breaches.is_empty() && verdict.incomplete.is_empty(), "{verdict}");
        verdict.violations.into_iter().next().unwrap()
    }
}

fn reading(runs: &[(&str, u64, u64)]) -> Reading {
    let run = |(host, from, to): &(&str, u64, u64)| Run { writer: writer_id(host), from: *from, to: *to };
    Reading { runs: runs.iter().map(run).collect(), ..Reading::default() }
}

/// Two hosts, one after the other, as it should be.
fn clean() -> Story {
    let mut story = Story::new();
    story.session(10, "a", 1, SessionState::Live);
    story.session(20, "b", 1, SessionState::Live);
    let token = story.takes(100, "a");
    story.writes("a", &[], 110, &[(1, 120), (2, 140), (3, 160)]);
    story.gives_back(200, "a", token);
    story.takes(300, "b");
    story.writes("b", &[("a", 1, 3)], 310, &[(4, 320), (5, 340)]);
    story.at_last(reading(&[("a", 1, 3), ("b", 4, 5)]));
    story
}

#[test]
fn a_clean_move_is_sound_and_counted() {
    let verdict = clean().verdict();
    assert!(verdict.is_sound(), "{verdict}");
    assert_eq!(
        verdict.to_string(),
        "witness: 5 acknowledged writes to 1 volume(s) by 2 writer(s) on 2 host(s), 1 move(s), 0 failed write(s); \
         longest gap 0.16 s at 0.2 s (v, a to b); no violation"
    );
}

#[test]
fn a_take_over_from_a_dead_session_is_sound() {
    let mut story = Story::new();
    story.session(10, "a", 1, SessionState::Live);
    story.takes(100, "a");
    story.writes("a", &[], 110, &[(1, 120), (2, 140)]);
    story.session(200, "a", 1, SessionState::Dead(Proof::Time));
    let token = story.lease(300, Story::held("b", Stage::Attaching, None));
    story.storage(310, Event::ForceDetach, "a", "b", Some(token));
    story.storage(311, Event::Attach, "b", "b", Some(token));
    story.lease(320, Story::held("b", Stage::Attached, Some(token)));
    story.writes("b", &[("a", 1, 2)], 330, &[(3, 340)]);
    // It was on its way when the host was cut off, and nobody was told.
    story.journals.writers[0].attempts.push(Attempt { number: 3, tried: ms(150), outcome: Outcome::Unknown });
    let verdict = story.verdict();
    assert!(verdict.is_sound(), "{verdict}");
}

#[test]
fn a_write_that_may_have_been_made_in_time_is_not_judged() {
    let mut story = clean();
    // Tried while the lease was its, acknowledged when it was free.
    story.journals.writers[0].attempts.push(Attempt {
        number: 3,
        tried: ms(199),
        outcome: Outcome::Acknowledged(ms(210)),
    });
    assert!(story.verdict().violations.is_empty(), "{}", story.verdict());
    // The recorder was late: nobody knows when the lease was freed.
    let mut story = clean();
    story.journals.until = ms(100);
    story.journals.storage.clear();
    story.journals.writers[0].attempts.push(Attempt {
        number: 3,
        tried: ms(250),
        outcome: Outcome::Acknowledged(ms(251)),
    });
    assert!(story.verdict().breaches.is_empty(), "{}", story.verdict());
}

#[test]
fn a_write_while_another_session_has_it_mounted_is_a_second_writer() {
    let mut story = clean();
    // After the last write of b, so that nothing is interleaved; the storage attaches to both.
    story.storage(306, Event::MultiAttach, "a", "a", None);
    let late = Attempt { number: 6, tried: ms(400), outcome: Outcome::Acknowledged(ms(402)) };
    story.journals.writers[0].attempts = vec![late];
    story.journals.writers[1].attempts.clear();
    story.journals.writers[1].found[0].1 = Reading::default();
    story.journals.last.clear();
    let violation = story.only();
    assert!(matches!(violation, Violation::SecondWriter { .. }));
    assert_eq!(
        violation.to_string(),
        "two writers to volume v: 1 writes of a (container c-a, process 1), records 6 to 6, from 0.391 s to 0.393 s, \
         were acknowledged while b (epoch 1) had it mounted"
    );
}

#[test]
fn a_write_in_the_middle_of_another_hosts_writes_is_found_without_leases_and_storage() {
    let mut story = clean();
    story.journals.leases.clear();
    story.journals.storage.clear();
    story.journals.last.clear();
    story.journals.writers[0].attempts.push(Attempt {
        number: 4,
        tried: ms(360),
        outcome: Outcome::Acknowledged(ms(362)),
    });
    assert!(matches!(story.only(), Violation::Interleaved { other, .. } if other.writes == 2));
}

#[test]
fn a_write_acknowledged_after_the_detach_is_found() {
    let mut story = clean();
    // The lease is a's until 200.
    story.journals.storage[1].raw_ns = ms(150).0;
    assert!(matches!(story.only(), Violation::Unattached { span, .. } if span.from == 3));
}

#[test]
fn an_attachment_beside_another_is_found() {
    let mut story = clean();
    story.journals.storage.remove(1);
    story.journals.storage[1].seq = 2;
    assert!(matches!(story.only(), Violation::Storage(_)));
    // Allowed, it is no violation by itself.
    story.journals.storage[1].event = Event::MultiAttach;
    assert!(story.verdict().is_sound(), "{}", story.verdict());
}

#[test]
fn a_volume_that_is_taken_from_its_owner_is_found() {
    let mut story = clean();
    story.storage(400, Event::Detach, "b", "a", None);
    let violation = story.only();
    assert!(matches!(&violation, Violation::TakenFromOwner { victim, by, .. } if victim == "b" && by == "a"));
    // Whoever lets go of his own hurts nobody.
    let mut story = clean();
    story.storage(400, Event::Detach, "b", "b", None);
    assert!(story.verdict().is_sound(), "{}", story.verdict());
}

#[test]
fn a_token_that_goes_back_or_changes_is_found() {
    let back = |change: fn(&mut Story)| {
        let mut story = clean();
        change(&mut story);
        story.only()
    };
    let violation = back(|story| _ = story.lease(400, Story::held("a", Stage::Attaching, Some(3))));
    assert!(matches!(violation, Violation::TokenWentBack { token: 3, .. }), "{violation}");
    let violation = back(|story| _ = story.lease(400, Story::held("b", Stage::Attached, Some(3))));
    assert!(matches!(violation, Violation::TokenWentBack { token: 3, .. }), "{violation}");
}

#[test]
fn a_second_holder_under_the_token_of_the_first_is_found() {
    let mut story = clean();
    let token = story.takes(400, "a");
    // Not the same session: the same token is too small.
    story.journals.storage.pop();
    story.lease(500, Story::held("b", Stage::Attached, Some(token)));
    assert!(matches!(story.only(), Violation::TokenWentBack { .. }));
}

#[test]
fn a_mount_under_an_older_token_is_found() {
    let mut story = clean();
    story.journals.storage[2].mount_id = Some("extvol-3".into());
    let violation = story.only();
    assert!(matches!(violation, Violation::TokenWentBackAtStorage { seq: 3, .. }), "{violation}");
}

#[test]
fn an_acknowledged_record_that_the_next_host_does_not_find_is_lost() {
    let mut story = clean();
    story.journals.writers[1].found[0].1 = reading(&[("a", 1, 2)]);
    story.journals.writers[1].attempts.clear();
    story.journals.last.clear();
    assert!(matches!(story.only(), Violation::Lost { span, .. } if (span.from, span.to) == (3, 3)));
    // Found by who looked first, and told once.
    story.at_last(reading(&[("a", 1, 2)]));
    assert!(matches!(story.only(), Violation::Lost { .. }));
}

#[test]
fn a_record_that_is_lost_later_is_found_at_the_end() {
    let mut story = clean();
    story.journals.last[0].reading = reading(&[("a", 1, 3), ("b", 4, 4)]);
    assert!(matches!(story.only(), Violation::Lost { span, .. } if span.writer.host == "b"));
}

#[test]
fn records_that_do_not_follow_are_found() {
    let mut story = clean();
    story.journals.last[0].reading.fault = Some("record 7 follows".into());
    assert!(matches!(story.only(), Violation::Broken { .. }));
}

#[test]
fn a_record_that_nobody_tried_is_found() {
    let mut story = clean();
    story.journals.last[0].reading = reading(&[("a", 1, 3), ("b", 4, 6)]);
    assert!(matches!(story.only(), Violation::Unexplained { number: 6, .. }));
}

#[test]
fn a_write_without_the_right_that_meets_nobody_is_a_breach_and_not_sound() {
    let late = Attempt { number: 4, tried: ms(250), outcome: Outcome::Acknowledged(ms(252)) };
    let without_right = |mut story: Story| {
        // Still attached, as for a session that was declared dead.
        story.journals.storage.truncate(1);
        story.journals.writers.truncate(1);
        story.journals.last.clear();
        story.journals.writers[0].attempts.push(late.clone());
        story.verdict()
    };
    let mut dead = Story::new();
    dead.session(10, "a", 1, SessionState::Live);
    dead.takes(100, "a");
    dead.writes("a", &[], 110, &[(1, 120)]);
    dead.session(200, "a", 1, SessionState::Dead(Proof::Time));
    let mut over = Story::new();
    over.session(10, "a", 1, SessionState::Live);
    over.takes(100, "a");
    over.writes("a", &[], 110, &[(1, 120)]);
    over.session(200, "a", 2, SessionState::Live);
    for (story, words) in [
        (clean(), "nobody held its lease"),
        (dead, "whose session was declared dead"),
        (over, "whose session was over"),
    ] {
        let verdict = without_right(story);
        assert!(verdict.violations.is_empty() && !verdict.is_sound(), "{verdict}");
        let [breach] = verdict.breaches.as_slice() else { panic!("{verdict}") };
        assert_eq!((breach.span.from, breach.span.writes), (4, 1));
        assert!(breach.to_string().contains(words), "{breach}");
    }
}

#[test]
fn a_refusal_of_the_storage_is_counted_and_no_violation() {
    let mut story = clean();
    story.storage(400, Event::Refused, "a", "a", None);
    let verdict = story.verdict();
    assert!(verdict.is_sound() && verdict.to_string().contains("the storage refused 1 call(s)"), "{verdict}");
}

#[test]
fn a_hole_in_the_history_is_not_sound() {
    let mut story = clean();
    story.journals.leases.push(Line::Gap { why: "compacted".into() });
    let verdict = story.verdict();
    assert!(!verdict.is_sound() && verdict.violations.is_empty(), "{verdict}");
    let mut story = clean();
    let key = Keys::default().session(&holder("c"));
    let (revision, seen) = (Revision(99), ms(500));
    story.journals.leases.push(Line::Written { key, value: "{}".into(), revision, seen });
    assert!(!story.verdict().is_sound());
}
