//! Which agents are inactive to the core, who waits for whom, and what presses.

use shared::event::Answering;

use super::*;
use crate::agents::Answer;

/// All of these are listed as inactive, and the rest as active.
fn disconnected(view: &mut View, records: usize, inactive: &[usize]) {
    let registration = |n| if inactive.contains(&n) { Registration::Inactive } else { Registration::Active };
    let listed = (1..=records).map(|n| agent(&format!("S{n}"), &format!("agent-{n}"), n, registration(n)));
    view.listed(listed.collect());
    let _ = view.polled(None);
}

fn inactive(view: &View) -> Vec<String> {
    view.agents_for_the_core(true).0.inactive.iter().map(|id| id.to_string()).collect()
}

fn write(view: &mut View, n: usize, at: i64, change: impl FnOnce(&mut Value)) {
    let mut record = session(n, &format!("S{n}"));
    change(&mut record);
    let key = format!("/extvol/v1/sessions/agent-{n}");
    let _ = view.changed(&[Change::Put { key, entry: entry(at, &record) }]);
}

fn want(view: &mut View, n: usize, at: i64, wants: &[&str]) {
    let volumes: Vec<_> = wants.iter().map(|name| json!({"driver": "ebs", "name": name})).collect();
    write(view, n, at, |record| record["wants"] = volumes.into());
}

fn holder(n: usize) -> Holder {
    Holder::new(format!("agent-{n}")).unwrap()
}

#[test]
fn inactive_is_who_is_listed_as_that_and_whose_host_has_no_other_agent() {
    let mut view = view_of(9);
    disconnected(&mut view, 9, &[1, 2]);
    assert_eq!(inactive(&view), ["S1", "S2"]);
    assert!(view.agents_for_the_core(false).0.inactive.is_empty(), "without a list nobody knows");
    for (hostname, n, registration, expected) in [
        ("agent-1", 77, Registration::Active, ["S2"].as_slice()),
        ("agent-1", 77, Registration::Recovered, &["S2"]),
        ("agent-1", 77, Registration::Inactive, &["S1", "S2"]),
        ("other", 1, Registration::Active, &["S2"]),
        ("other", 1, Registration::Inactive, &["S1", "S2"]),
    ] {
        for is_first in [true, false] {
            let mut agents: Vec<_> = (1..=2)
                .map(|n| agent(&format!("S{n}"), &format!("agent-{n}"), n, Registration::Inactive))
                .collect();
            let place = if is_first { 0 } else { agents.len() };
            agents.insert(place, agent("S11", hostname, n, registration));
            view.listed(agents);
            let _ = view.polled(None);
            assert_eq!(inactive(&view), expected, "{hostname} {registration:?} {is_first}");
        }
    }
}

#[test]
fn one_that_an_operator_has_deactivated_may_be_connected() {
    let mut view = view_of(1);
    view.listed(vec![agent("S1", "agent-1", 1, Registration::Deactivated)]);
    let _ = view.polled(None);
    let (core, _) = view.agents_for_the_core(true);
    assert_eq!((core.connected.len(), core.inactive.len(), core.given_up.len()), (1, 0, 0));
    assert!(view.may_be_connected("S1") && view.pressing().is_empty());
}

#[test]
fn one_that_is_admitted_and_in_no_list_is_inactive_when_the_next_list_does_not_have_it_either() {
    let mut view = view_of(9);
    list(&mut view, 9, &[1]);
    assert!(view.has_new_unlisted());
    registry(&mut view, &["S1"], &[], &[]);
    assert!(inactive(&view).is_empty(), "it may just be registering");
    assert!(!view.has_new_unlisted());
    list(&mut view, 9, &[1]);
    assert_eq!((inactive(&view), given_up(&view).len()), (vec!["S1".to_owned()], 0));
    // It is back for a moment.
    list(&mut view, 9, &[]);
    list(&mut view, 9, &[1]);
    assert!(inactive(&view).is_empty());
    registry(&mut view, &["S1"], &[], &[]);
    list(&mut view, 9, &[1]);
    registry(&mut view, &[], &["S1"], &[]);
    assert_eq!((inactive(&view).len(), given_up(&view)), (0, vec!["S1".to_owned()]));
}

#[test]
fn when_most_are_lost_at_once_none_is_inactive() {
    let mut view = view_of(9);
    disconnected(&mut view, 9, &[1, 2, 3, 4]);
    assert_eq!(inactive(&view).len(), 4);
    disconnected(&mut view, 9, &[1, 2, 3, 4, 5]);
    let (core, not_believed) = view.agents_for_the_core(true);
    assert_eq!((core.inactive.len(), not_believed), (0, NotBelieved { given_up: 0, inactive: 5 }));
    // Three were given up and two are inactive: those three are believed.
    let rest = (4..=9).map(|n| {
        let registration = if n < 6 { Registration::Inactive } else { Registration::Active };
        agent(&format!("S{n}"), &format!("agent-{n}"), n, registration)
    });
    view.listed(rest.collect());
    registry(&mut view, &[], &["S1", "S2", "S3"], &[]);
    let (core, not_believed) = view.agents_for_the_core(true);
    assert_eq!((core.given_up.len(), core.inactive.len()), (3, 0));
    assert_eq!(not_believed, NotBelieved { given_up: 0, inactive: 2 });
}

#[test]
fn a_lease_is_wanted_while_a_live_session_of_another_host_says_so() {
    let mut view = view_of(3);
    let wanted = |view: &View| {
        let wanted = view.wanted();
        let one = |(volume, lease): (&Arc<VolumeId>, &crate::acting::holdings::Followed)| {
            (volume.to_string(), lease.holder.to_string(), lease.epoch.0, lease.written.0)
        };
        wanted.iter().map(one).collect::<Vec<_>>()
    };
    let v1 = [("ebs/v1".to_owned(), "agent-1".to_owned(), 3, 7)];
    assert!(!view.wants_changed());
    // It holds nothing itself.
    want(&mut view, 20, 10, &["v1", "nobodys"]);
    assert_eq!((wanted(&view), view.wants_changed(), view.wants_changed()), (v1.to_vec(), true, false));
    want(&mut view, 1, 11, &["v1"]);
    assert_eq!(wanted(&view), v1, "its own");
    want(&mut view, 20, 12, &[]);
    assert!(wanted(&view).is_empty() && view.wants_changed());
    want(&mut view, 2, 13, &["v1"]);
    assert_eq!(wanted(&view), v1);
    write(&mut view, 2, 14, |record| {
        record["wants"] = json!([{"driver": "ebs", "name": "v1"}]);
        record["revoking"] = true.into();
    });
    assert!(wanted(&view).is_empty(), "a session that is revoked takes nothing any more");
    want(&mut view, 2, 15, &["v1"]);
    assert_eq!(wanted(&view), v1);
    let key = "/extvol/v1/sessions/agent-2".to_owned();
    let _ = view.changed(&[Change::Delete { key, at: Revision(16) }]);
    assert!(wanted(&view).is_empty());
}

#[test]
fn what_presses_is_whoever_may_have_to_be_revoked_soon() {
    let mut view = view_of(9);
    let active = Some(Registration::Active);
    let pressing = |view: &View| {
        let one = |(why, (id, registration)): (Pressing, (Arc<str>, _))| (why, id.to_string(), registration);
        view.pressing().into_iter().map(one).collect::<Vec<_>>()
    };
    let of = |why: fn(Holder) -> Pressing, n: usize, registration| {
        vec![(why(holder(n)), format!("S{n}"), registration)]
    };
    disconnected(&mut view, 9, &[]);
    assert!(pressing(&view).is_empty());
    want(&mut view, 2, 10, &["v1"]);
    assert_eq!(pressing(&view), of(Pressing::Wanted, 1, active));
    want(&mut view, 2, 11, &[]);
    disconnected(&mut view, 9, &[3]);
    assert_eq!(pressing(&view), of(Pressing::Inactive, 3, Some(Registration::Inactive)));
    disconnected(&mut view, 9, &[]);
    for _ in 0..2 {
        let target = view.targets().into_iter().find(|target| target.holder == holder(4)).unwrap();
        let (holder, agent_id, address) = (target.holder, target.agent_id, target.address);
        let why = "w".to_owned();
        let _ = view.answered(vec![Answer { holder, agent_id, address, answering: Answering::Silent, why }]);
    }
    assert_eq!(pressing(&view), of(Pressing::Silent, 4, active));
    // Whoever is revoked, or given up, is being dealt with.
    write(&mut view, 4, 12, |record| record["revoking"] = true.into());
    list(&mut view, 9, &[5]);
    assert_eq!(pressing(&view), of(Pressing::Unlisted, 5, None));
    registry(&mut view, &[], &["S5"], &[]);
    assert!(pressing(&view).is_empty());
}
