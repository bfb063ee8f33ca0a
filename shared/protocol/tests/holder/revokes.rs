//! Revokes: a message, after the grace a kill, and after the kill's time the fence.

use std::time::Duration;

use protocol::exchange::{Key, WAITED_FOR};
use protocol::holder::{Idleness, Input, Sight, UnmountFault};
use protocol::ids::Epoch;
use protocol::timing::Profile;

use crate::etcd::holder;
use crate::host::{GRACE, Host, ME, SETTLE, Step, WAIT, place, release, volume};

const SECOND: Duration = Duration::from_secs(1);

/// A host with two containers that run: `c1` has `a` and `b`, `c2` has `c`.
fn running() -> Host {
    let mut host = Host::new();
    host.prepared("c1", &["a", "b"]);
    host.prepared("c2", &["c"]);
    host.isolate("c1");
    host.isolate("c2");
    host.steps();
    host
}

fn limits(steps: &[Step]) -> Vec<(&str, &str)> {
    let mut limits = Vec::new();
    for step in steps {
        if let Step::Limit(name, why) = step {
            limits.push((name.as_str(), why.as_str()));
        }
    }
    limits
}

#[test]
fn a_container_whose_volume_is_revoked_is_told_which_and_why() {
    let mut host = running();
    host.etcd.revoke_volume("b", "the disk is to be replaced");
    host.later(SECOND * 2);
    let steps = host.steps();
    let told = limits(&steps);
    let [("c1", why)] = told[..] else { panic!("{told:?}") };
    assert!(why.contains("volume ebs/b was revoked") && why.contains("the disk is to be replaced"), "{why}");
    assert!(!why.contains("ebs/a"), "{why}");
}

#[test]
fn a_revoke_is_noticed_by_the_watch_of_this_holders_session_and_not_only_by_the_next_beat() {
    for revoke in [
        |host: &mut Host| host.etcd.revoke_session(ME, "drained"),
        |host: &mut Host| host.etcd.revoke_volume("a", "maintenance"),
    ] {
        let mut host = running();
        let own = Key::Session(holder(ME));
        assert_eq!(host.core.watching().keys().collect::<Vec<_>>(), [&own]);
        let read = host.core.watching()[&own];
        revoke(&mut host);
        host.give(Input::Changed(own.clone()));
        assert_eq!(limits(&host.steps()).first().map(|(name, _)| *name), Some("c1"));
        assert!(host.core.watching()[&own] > read);
    }
}

#[test]
fn a_revoke_that_is_told_while_the_session_is_being_read_is_not_lost() {
    let mut host = running();
    let own = Key::Session(holder(ME));
    host.readings_are_late = true;
    host.give(Input::Changed(own.clone()));
    // What is on its way was read before.
    host.etcd.revoke_session(ME, "drained");
    host.give(Input::Changed(own));
    host.readings_arrive();
    assert_eq!(limits(&host.steps()).first().map(|(name, _)| *name), Some("c1"));
}

#[test]
fn a_container_that_stays_after_a_revoke_of_its_volume_is_killed_after_the_grace_and_then_the_host_fences() {
    let mut host = running();
    host.etcd.revoke_volume("a", "maintenance");
    host.later(SECOND * 2);
    assert_eq!(limits(&host.steps()).len(), 1);
    host.later(GRACE - SECOND * 2);
    assert_eq!(host.steps(), []);
    host.later(SECOND * 2);
    assert_eq!(host.steps(), [Step::Kill("c1".into())]);
    host.later(Profile::Default.timing().kill + SECOND);
    let steps = host.steps();
    place(&steps, |step| matches!(step, Step::Fence(why) if why.contains("did not end after a revoke")));
}

/// Its agent may be back in a moment, and the others' tasks outlive that.
#[test]
fn for_a_volume_that_another_host_waits_for_no_host_is_fenced_and_its_container_killed_again_and_again() {
    let mut host = running();
    host.etcd.revoke_volume("a", WAITED_FOR);
    host.later(SECOND * 2);
    assert_eq!(limits(&host.steps()).len(), 1);
    let round = GRACE + Profile::Default.timing().kill + SECOND * 2;
    for _ in 0..20 {
        host.later(round);
        assert!(host.steps().contains(&Step::Kill("c1".into())));
    }
    assert!(host.core.is_open());
    // Nor when the driver does not give it back.
    host.cleanup("c1");
    for _ in 0..40 {
        host.later(SECOND * 30);
        let called: Vec<_> = host.calls().into_iter().map(|(name, _)| name).collect();
        called.into_iter().filter(|name| name != "a").for_each(|name| host.succeed(&name));
    }
    assert!(host.core.is_open() && host.core.volumes().contains_key(&volume("a")));
}

#[test]
fn one_revoked_volume_is_released_when_its_container_has_ended_and_the_others_stay() {
    let mut host = running();
    host.etcd.revoke_volume("a", "maintenance");
    host.later(SECOND * 2);
    host.steps();
    // Nobody may join it now.
    let request = host.prepare("c3", &["a"]);
    assert!(host.refusal(request).contains("revoked from this host"));
    host.cleanup("c1");
    let steps = host.until_quiet();
    assert!(steps.contains(&release("a")) && steps.contains(&release("b")), "{steps:#?}");
    host.later(GRACE * 2);
    assert!(host.core.volumes().contains_key(&volume("c")) && host.core.is_open());
}

#[test]
fn a_revoked_session_tells_every_container_which_volumes_and_why() {
    let mut host = running();
    host.etcd.revoke_session("agent-1", "the host is drained");
    host.later(SECOND * 2);
    let steps = host.steps();
    let told = limits(&steps);
    let [("c1", first), ("c2", second)] = told[..] else { panic!("{told:?}") };
    assert!(first.contains("ebs/a, ebs/b") && first.contains("the host is drained"), "{first}");
    assert!(second.contains("ebs/c") && second.contains("the host is drained"), "{second}");
}

#[test]
fn a_revoked_session_kills_after_the_grace_and_fences_when_that_did_not_help() {
    let mut host = running();
    host.etcd.revoke_session("agent-1", "drained");
    host.later(SECOND * 2);
    host.steps();
    host.later(GRACE - SECOND * 2);
    assert_eq!(host.steps(), []);
    host.later(SECOND * 2);
    assert_eq!(host.steps(), [Step::Kill("c1".into()), Step::Kill("c2".into())]);
    host.later(Profile::Default.timing().kill + SECOND);
    place(&host.steps(), |step| matches!(step, Step::Fence(_)));
}

/// What a driver call may take, and what it may do when it gave no answer.
const CALLS: Duration = SETTLE.saturating_add(SECOND.saturating_mul(120));

fn is_fence(step: &Step) -> bool {
    matches!(step, Step::Fence(_))
}

#[test]
fn a_host_whose_driver_does_not_give_back_what_was_revoked_is_fenced() {
    for (alone, calls) in [(false, Duration::ZERO), (true, CALLS)] {
        let mut host = running();
        match alone {
            true => host.etcd.revoke_volume("c", "maintenance"),
            false => host.etcd.revoke_session(ME, "drained"),
        }
        host.later(SECOND * 2);
        host.cleanup("c1");
        host.cleanup("c2");
        // The others go well, of which the session's end waits no longer.
        for name in ["a", "b"] {
            host.succeed(name);
            host.succeed(name);
        }
        let until = host.now + GRACE + Profile::Default.timing().kill + calls;
        while host.now + SECOND * 3 < until {
            for (name, step) in host.calls() {
                match step {
                    Step::Unmount(_) => host.unmounts(&name, Err(UnmountFault::Refused("busy".into()))),
                    _ => host.finds(&name, Idleness::Mounted),
                }
            }
            host.later(SECOND);
        }
        let steps = host.steps();
        assert!(!steps.iter().any(is_fence), "{steps:#?}");
        host.later(SECOND * 4);
        place(
            &host.steps(),
            |step| matches!(step, Step::Fence(why) if why.contains("not given back in time")),
        );
    }
}

#[test]
fn a_host_that_gives_back_one_volume_after_the_other_is_not_fenced_in_the_midst_of_it() {
    let mut host = running();
    host.etcd.revoke_session(ME, "drained");
    host.later(SECOND * 2);
    host.cleanup("c1");
    host.cleanup("c2");
    for name in ["a", "b", "c"] {
        host.later(GRACE - SECOND);
        host.succeed(name);
        host.succeed(name);
    }
    let steps = host.steps();
    assert!(!steps.iter().any(is_fence), "{steps:#?}");
    host.later(SECOND * 2);
    assert!(host.is_bare());
    assert_eq!(host.core.epoch(), Some(Epoch(2)));
}

#[test]
fn a_revoke_is_over_with_the_epoch_that_it_was_of() {
    let mut host = running();
    host.etcd.revoke_volume("a", "maintenance");
    host.later(SECOND * 2);
    host.give(Input::Flagged);
    host.fence_is_proved();
    host.later(SECOND * 2);
    assert_eq!(host.core.epoch(), Some(Epoch(2)));
    // Its driver does not answer: that alone ends no host again and again.
    host.steps();
    host.give(Input::Changed(Key::Session(holder(ME))));
    host.later(CALLS * 3);
    let steps = host.steps();
    assert!(!steps.iter().any(is_fence), "{steps:#?}");
}

#[test]
fn a_revoked_session_whose_containers_end_dies_when_everything_is_released_and_another_one_follows() {
    let mut host = running();
    host.etcd.revoke_session("agent-1", "drained");
    host.later(SECOND * 2);
    for container in ["c1", "c2"] {
        // A process that has ended is enough.
        host.give(Input::Ended { container: crate::host::container(container) });
    }
    let steps = host.until_quiet();
    let fenced = |step: &Step| matches!(step, Step::Fence(_));
    assert!(!steps.iter().any(fenced), "{steps:#?}");
    host.later(SECOND * 2);
    assert!(host.is_bare());
    assert_eq!(host.core.epoch(), Some(Epoch(2)));
}

#[test]
fn a_revoke_ends_the_doubt_about_a_container_that_ended_before_it() {
    for revoke in [
        |host: &mut Host| host.etcd.revoke_session(ME, "drained"),
        |host: &mut Host| host.etcd.revoke_volume("c", "maintenance"),
    ] {
        let mut host = running();
        host.give(Input::Ended { container: crate::host::container("c2") });
        assert_eq!(host.steps(), [Step::Look("c".into())]);
        host.sees("c", Sight::Mounted { elsewhere: Some("process 77 (sh)".into()) });
        revoke(&mut host);
        host.later(SECOND * 2);
        place(&host.steps(), |step| *step == Step::Unmount("c".into()));
    }
}

#[test]
fn beats_go_on_while_the_session_cannot_be_read() {
    let mut host = running();
    host.etcd.down = Some("a record of a later version");
    host.give(Input::Changed(Key::Session(holder(ME))));
    host.later(SECOND * 30);
    let steps = host.all_steps();
    assert!(!steps.iter().any(|step| matches!(step, Step::Fence(_))), "{steps:#?}");
    assert!(steps.iter().filter(|step| **step == Step::Beat).count() >= 29);
}

#[test]
fn a_beat_that_is_refused_while_its_session_ends_wakes_nobody_for_ever() {
    let mut host = running();
    host.etcd.revoke_session(ME, "drained");
    host.later(SECOND * 2);
    host.held_back = Some(|step| matches!(step, Step::Beat | Step::Release(_) | Step::Session(_)));
    host.later(SECOND * 2);
    for container in ["c1", "c2"] {
        host.give(Input::Ended { container: crate::host::container(container) });
    }
    host.until_quiet();
    // The releases get through, and so the session's end is written; the beat is on its way all the while.
    host.hold_back_only(Some(|step| matches!(step, Step::Beat | Step::Session(_))));
    host.etcd.revoke_session(ME, "drained again");
    host.let_through();
    host.later(SECOND * 2);
    assert_eq!(host.core.epoch(), Some(Epoch(2)));
}

#[test]
fn a_prepare_that_waits_while_its_host_is_revoked_is_refused() {
    let mut host = running();
    host.etcd.hold_elsewhere("agent-2", "d");
    let request = host.prepare("c3", &["d"]);
    host.etcd.revoke_session("agent-1", "drained");
    host.later(SECOND * 2);
    let steps = host.steps();
    let revoked = |why: &String| why.contains("revoked from this host");
    place(&steps, |step| matches!(step, Step::Refused(number, why) if *number == request && revoked(why)));
    host.etcd.free("d");
    host.give(Input::Changed(Key::Lease(volume("d"))));
    host.later(WAIT);
    assert!(host.etcd.lease("d").is_none());
}

#[test]
fn a_worker_that_is_started_after_the_revoke_of_one_volume_gives_that_back() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.isolate("c1");
    host.until_quiet();
    host.etcd.revoke_volume("a", "asked for");
    host.restart();
    host.later(SECOND);
    let steps = host.steps();
    place(&steps, |step| matches!(step, Step::Limit(_, why) if why.contains("alone: asked for")));
}
