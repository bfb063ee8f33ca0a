//! Scenes about agents and about what is found by a read: what is learned, and what is told.

use serde_json::{Value, json};
use shared::event::EventKind;

use super::*;
use crate::agents::{Answer, Target};
use crate::mesos::Agent;

fn lease() -> Value {
    json!({"version": 1, "state": "attached", "holder": "agent-1", "epoch": 3, "token": 42, "since": "x",
        "agent_id": "S0", "containers": []})
}

fn snapshot(revision: i64, records: &[(&str, i64, Value)]) -> Snapshot {
    let entry = |(key, at, value): &(&str, i64, Value)| {
        let entry = Entry { value: value.to_string().into_bytes(), mod_revision: Revision(*at) };
        (format!("/extvol/v1/{key}"), entry)
    };
    Snapshot { entries: records.iter().map(entry).collect(), revision: Revision(revision) }
}

fn agent(id: &str, port: u16, registration: Registration) -> Agent {
    let address = AgentAddress::of_pid(&format!("slave(1)@10.0.0.1:{port}"));
    Agent { id: id.to_owned(), hostname: "agent-1".to_owned(), registration, address }
}

/// A view of one lease, whose agent S0 was listed as active at port 5051.
fn begun() -> View {
    let mut view = View::new(Keys::default(), 100);
    view.listed(vec![agent("S0", 5051, Registration::Active)]);
    assert!(view.polled(None).is_empty());
    assert!(view.read_sessions(&snapshot(1, &[])).is_empty());
    let told = view.read_leases(&snapshot(9, &[("leases/ebs/v", 7, lease())]));
    assert_eq!(told.len(), 2, "{told:?}");
    view
}

fn kinds(told: &[Told]) -> Vec<EventKind> {
    told.iter().filter_map(|one| Some(one.event.record(Seen::AtOnce, "")?.what)).collect()
}

/// Whoever is asked answers so.
fn answer(view: &mut View, answering: Answering) -> Vec<EventKind> {
    let answers = view.targets().into_iter().map(|target| {
        let Target { holder, agent_id, address, .. } = target;
        Answer { holder, agent_id, address, answering, why: "w".to_owned() }
    });
    let answers = answers.collect();
    kinds(&view.answered(answers))
}

fn registry(view: &View, unreachable: &[&str], gone: &[&str]) -> Registry {
    let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    Registry {
        asked: view.unlisted(),
        admitted: BTreeSet::new(),
        unreachable: set(unreachable),
        gone: set(gone),
    }
}

#[test]
fn an_agent_is_silent_after_two_failures_and_answers_again_after_one_answer() {
    let mut view = begun();
    let nothing: [EventKind; 0] = [];
    assert_eq!(answer(&mut view, Answering::Answers), nothing, "as it should be");
    assert_eq!(answer(&mut view, Answering::Silent), nothing, "once is no news");
    assert_eq!(answer(&mut view, Answering::Answers), nothing);
    assert_eq!(answer(&mut view, Answering::Silent), nothing, "counted from anew");
    assert_eq!(answer(&mut view, Answering::Silent), [EventKind::AgentSilent]);
    assert_eq!(answer(&mut view, Answering::Silent), nothing, "told once");
    assert_eq!(answer(&mut view, Answering::Answers), [EventKind::AgentAnswers]);
    assert_eq!(answer(&mut view, Answering::OtherId), [EventKind::AgentOtherId]);
}

#[test]
fn an_agents_id_is_asked_for_until_it_is_known_and_whenever_it_is_in_doubt() {
    let mut view = begun();
    let verified = |view: &View| view.targets()[0].verified;
    assert!(!verified(&view), "at the beginning");
    answer(&mut view, Answering::Answers);
    assert!(verified(&view));
    answer(&mut view, Answering::Silent);
    assert!(!verified(&view), "after a failure");
    answer(&mut view, Answering::Answers);
    view.listed(vec![agent("S0", 5052, Registration::Active)]);
    assert!(view.polled(None).is_empty());
    assert!(!verified(&view), "at another address");
    answer(&mut view, Answering::Answers);
    view.listed(vec![agent("S0", 5052, Registration::Inactive)]);
    assert_eq!(kinds(&view.polled(None)), [EventKind::AgentInactive]);
    assert!(!verified(&view), "while the master does not list it as active");
}

#[test]
fn an_agent_that_is_not_listed_is_asked_where_it_was_and_told_by_the_registry_alone() {
    let mut view = begun();
    view.listed(vec![]);
    assert!(view.polled(None).is_empty(), "the registry is to be asked first");
    assert_eq!(view.unlisted().iter().map(|id| &**id).collect::<Vec<_>>(), ["S0"]);
    assert_eq!(view.targets()[0].address.to_string(), "http://10.0.0.1:5051/slave(1)");
    let known = registry(&view, &["S0"], &[]);
    assert_eq!(kinds(&view.polled(Some(known))), [EventKind::AgentUnreachable]);
    view.listed(vec![]);
    assert!(view.polled(None).is_empty(), "it stays what it was until the registry says otherwise");
    let known = registry(&view, &["S0"], &["S0"]);
    assert_eq!(kinds(&view.polled(Some(known))), [EventKind::AgentGone]);
    let known = registry(&view, &[], &[]);
    assert_eq!(kinds(&view.polled(Some(known))), [EventKind::AgentUnknown]);
    // It was not asked about this one.
    let mut other = lease();
    (other["holder"], other["agent_id"]) = ("agent-2".into(), "S2".into());
    let entry = Entry { value: other.to_string().into_bytes(), mod_revision: Revision(20) };
    let put = Change::Put { key: "/extvol/v1/leases/ebs/w".to_owned(), entry };
    assert_eq!(kinds(&view.changed(&[put])), [EventKind::Attached]);
    // And the first is back under another id.
    view.listed(vec![agent("S9", 5051, Registration::Active)]);
    let told = view.polled(None);
    assert_eq!(kinds(&told), [EventKind::AgentActive]);
    assert_eq!(told[0].event.record(Seen::AtOnce, "").unwrap().agent_id.as_deref(), Some("S9"));
}

#[test]
fn a_late_answer_of_an_address_that_is_no_longer_the_agents_is_not_taken() {
    let mut view = begun();
    let late: Vec<_> = view.targets();
    view.listed(vec![agent("S0", 5052, Registration::Active)]);
    assert!(view.polled(None).is_empty());
    for _ in 0..3 {
        let answers = late.clone().into_iter().map(|Target { holder, agent_id, address, .. }| Answer {
            holder,
            agent_id,
            address,
            answering: Answering::Silent,
            why: String::new(),
        });
        assert!(view.answered(answers.collect()).is_empty());
    }
}

#[test]
fn how_an_agent_stood_when_it_was_last_told_is_not_told_again_after_a_restart() {
    for (recorded, expected) in [("inactive", vec![EventKind::AgentActive]), ("active", vec![])] {
        let mut view = View::new(Keys::default(), 100);
        let record = json!({"version": 1, "listed": recorded, "answering": "silent", "by": "x", "turn": 1});
        view.remember_standings(&snapshot(9, &[("eventlog/agents/agent-1", 8, record)]));
        view.listed(vec![agent("S0", 5051, Registration::Active)]);
        let _ = view.polled(None);
        let _ = view.read_sessions(&snapshot(9, &[]));
        let mut told = kinds(&view.read_leases(&snapshot(9, &[("leases/ebs/v", 7, lease())])));
        assert_eq!(told.remove(0), EventKind::Attached);
        assert_eq!(told, expected, "{recorded}");
        assert!(answer(&mut view, Answering::Silent).is_empty());
        assert!(answer(&mut view, Answering::Silent).is_empty(), "that is told already");
        assert_eq!(answer(&mut view, Answering::Answers), [EventKind::AgentAnswers]);
    }
}

#[test]
fn what_events_told_and_the_first_read_does_not_show_was_deleted_meanwhile() {
    let event = |what: &str| {
        json!({"version": 1, "what": what, "seen": "at-once", "volume": "ebs/v", "holder": "agent-1",
            "epoch": 3, "token": 42, "text": "x", "time": "x"})
    };
    let mut view = View::new(Keys::default(), 100);
    view.remember(&snapshot(
        60,
        &[
            ("events/0000000000000000010/leases/ebs/v", 11, event("granted")),
            ("events/0000000000000000020/leases/ebs/v", 21, event("attached")),
            ("events/0000000000000000030/leases/ebs/w", 31, event("attached")),
            ("events/0000000000000000040/leases/ebs/w", 41, event("released")),
            ("events/0000000000000000050/sessions/agent-1", 51, event("session-opened")),
            ("events/0000000000000000050/then/holders/agent-1", 52, event("agent-inactive")),
            ("events/0000000000000000055/leases/ebs/x", 56, json!({"version": 9})),
        ],
    ));
    let told = view.read_sessions(&snapshot(60, &[]));
    assert_eq!(kinds(&told), [EventKind::SessionDeleted]);
    let told = view.read_leases(&snapshot(61, &[]));
    assert_eq!(kinds(&told), [EventKind::Released]);
    let deleted = &told[1];
    let place = Place::Deleted { at: Revision(61), written: Revision(20), seen: Seen::ByALaterRead };
    assert_eq!(deleted.place, place);
    let record = deleted.event.record(Seen::ByALaterRead, "").unwrap();
    assert_eq!((record.epoch, record.token), (Some(Epoch(3)), Some(Token(Revision(42)))));
    assert!(view.read_leases(&snapshot(70, &[])).is_empty(), "told once");
}

#[test]
fn of_a_read_only_the_newest_changes_become_events() {
    let records: Vec<_> = (0..300).map(|n| (format!("leases/ebs/v{n:03}"), 1_000 - n)).collect();
    let records: Vec<_> = records.iter().map(|(key, at)| (key.as_str(), *at, lease())).collect();
    let mut view = View::new(Keys::default(), 100);
    let _ = view.read_sessions(&snapshot(1, &[]));
    let told = view.read_leases(&snapshot(2_000, &records));
    let places: Vec<_> = told
        .iter()
        .filter_map(|one| match one.place {
            Place::Written { at, seen: Seen::ByALaterRead } => Some(at.0),
            _ => None,
        })
        .collect();
    assert_eq!(places, (901..=1_000).rev().collect::<Vec<_>>());
    assert_eq!(told.iter().filter(|one| one.logged).count(), 301, "the log names them all");
}

#[test]
fn a_lease_that_goes_over_to_another_session_says_whose_it_was() {
    let mut view = begun();
    let mut taken = lease();
    (taken["state"], taken["holder"], taken["token"]) = ("attaching".into(), "agent-2".into(), Value::Null);
    let entry = Entry { value: taken.to_string().into_bytes(), mod_revision: Revision(20) };
    let told = view.changed(&[Change::Put { key: "/extvol/v1/leases/ebs/v".to_owned(), entry }]);
    assert_eq!(kinds(&told)[0], EventKind::Granted);
    let text = told[0].event.to_string();
    assert!(text.ends_with("token 20; no container; taken over from agent-1, epoch 3)"), "{text}");
    assert_eq!(told[0].event.record(Seen::AtOnce, "").unwrap().token, Some(Token(Revision(20))));
}
