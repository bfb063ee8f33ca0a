//! Removal of a volume that its task asked for.

use protocol::exchange::{Key, Stage};
use protocol::holder::{Idleness, Input, MountFault, Sight, UnmountFault};

use crate::host::{AGENT, Host, ME, PAUSE, SETTLE, Step, acquire, place, record, release};

/// A host whose container has a volume that is to be removed.
fn using() -> Host {
    let mut host = Host::new();
    host.removes = true;
    host.prepared("c1", &["a"]);
    host.isolate("c1");
    host
}

/// Its container has ended, and its device is idle.
fn condemned() -> Host {
    let mut host = using();
    host.cleanup("c1");
    assert_eq!(host.steps(), [record("a", Stage::Detaching, &[]), Step::Unmount("a".into())]);
    host.unmounts("a", Ok(()));
    assert_eq!(host.steps(), [Step::Prove("a".into())]);
    host.finds("a", Idleness::Proved);
    host
}

fn is_remove(step: &Step) -> bool {
    matches!(step, Step::Remove(_))
}

#[test]
fn a_volume_is_removed_when_it_is_idle_and_its_lease_was_confirmed_once_more() {
    let mut host = condemned();
    assert_eq!(host.steps(), [record("a", Stage::Detaching, &[]), Step::Remove("a".into())]);
    // Nobody joins it, and nobody else has it.
    let request = host.prepare("c2", &["a"]);
    assert_eq!(host.steps(), []);
    host.removed("a", Ok(()));
    assert_eq!(host.steps(), [release("a"), acquire(&["a"]), Step::Mount("a".into())]);
    host.mounts("a", Err(MountFault::Refused("not found".into())));
    place(&host.steps(), |step| matches!(step, Step::Refused(number, _) if *number == request));
}

#[test]
fn a_volume_whose_lease_is_lost_is_not_removed() {
    let mut host = using();
    host.cleanup("c1");
    host.steps();
    host.unmounts("a", Ok(()));
    host.steps();
    host.etcd.hold_elsewhere("agent-2", "a");
    host.finds("a", Idleness::Proved);
    let steps = host.until_quiet();
    assert!(steps.iter().any(|step| matches!(step, Step::Fence(_))), "{steps:#?}");
    assert!(!steps.iter().any(is_remove), "{steps:#?}");
}

#[test]
fn who_uses_it_with_that_wish_has_it_removed_and_the_last_who_uses_it_sees_it_go() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.removes = true;
    host.prepared("c2", &["a"]);
    host.isolate("c2");
    host.cleanup("c2");
    let steps = host.until_quiet();
    assert!(!steps.iter().any(|step| is_remove(step) || matches!(step, Step::Unmount(_))), "{steps:#?}");
    host.cleanup("c1");
    let steps = host.until_quiet();
    let at = |step: &Step| steps.iter().position(|found| found == step);
    assert!(at(&Step::Prove("a".into())) < at(&Step::Remove("a".into())), "{steps:#?}");
    assert!(at(&Step::Remove("a".into())) < at(&release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn what_was_never_mounted_here_and_what_was_revoked_is_not_removed() {
    let mut host = Host::new();
    host.removes = true;
    host.prepare("c1", &["a"]);
    host.steps();
    host.mounts("a", Err(MountFault::Refused("attached elsewhere".into())));
    let steps = host.until_quiet();
    assert!(!steps.iter().any(is_remove) && host.is_bare(), "{steps:#?}");

    let mut host = using();
    host.etcd.revoke_volume("a", "moved");
    host.later(PAUSE);
    let steps = host.until_quiet();
    host.cleanup("c1");
    let steps = [steps, host.until_quiet()].concat();
    assert!(!steps.iter().any(is_remove) && host.is_bare(), "{steps:#?}");

    let mut host = using();
    host.etcd.revoke_session(ME, "drained");
    host.later(PAUSE);
    let steps = host.until_quiet();
    host.cleanup("c1");
    let steps = [steps, host.until_quiet()].concat();
    assert!(!steps.iter().any(is_remove), "{steps:#?}");
}

#[test]
fn what_nobody_used_is_not_removed() {
    // Prepared and never started; beside a volume that cannot be had; by one who joined and never started.
    let mut host = Host::new();
    host.removes = true;
    host.prepared("c1", &["a"]);
    host.cleanup("c1");
    assert!(!host.until_quiet().iter().any(is_remove) && host.is_bare());

    host.prepare("c2", &["a", "b"]);
    host.steps();
    host.mounts("a", Ok(crate::host::mount("a")));
    host.mounts("b", Err(MountFault::Refused("no such volume".into())));
    assert!(!host.until_quiet().iter().any(is_remove) && host.is_bare());

    host.removes = false;
    host.prepared("c3", &["a"]);
    host.isolate("c3");
    host.removes = true;
    host.prepared("c4", &["a"]);
    host.cleanup("c4");
    host.cleanup("c3");
    assert!(!host.until_quiet().iter().any(is_remove) && host.is_bare());
}

#[test]
fn what_failed_under_its_task_is_kept() {
    let mut host = using();
    host.give(Input::Suspect { volume: crate::host::volume("a") });
    host.steps();
    host.sees("a", Sight::Broken("read-only".into()));
    host.cleanup("c1");
    assert!(!host.until_quiet().iter().any(is_remove) && host.is_bare());
}

#[test]
fn a_revoke_between_the_proof_and_the_call_comes_in_time() {
    let mut host = condemned();
    assert!(host.steps().iter().any(is_remove));
    let op = host.op("a");
    host.etcd.revoke_session(ME, "keep it");
    host.give(Input::Changed(Key::Session(crate::etcd::holder(ME))));
    host.steps();
    assert!(!host.core.may_call_driver(host.now, op), "it waited for its turn");
    host.not_made("a");
    host.later(PAUSE);
    assert!(host.steps().contains(&release("a")));

    let mut host = using();
    host.cleanup("c1");
    host.steps();
    host.unmounts("a", Ok(()));
    host.steps();
    host.held_back = Some(|step| matches!(step, Step::Record(..)));
    host.finds("a", Idleness::Proved);
    host.etcd.revoke_session(ME, "keep it");
    host.give(Input::Changed(Key::Session(crate::etcd::holder(ME))));
    host.hold_back_only(None);
    host.let_through();
    let steps = host.until_quiet();
    assert!(!steps.iter().any(is_remove) && host.is_bare(), "{steps:#?}");
}

#[test]
fn a_removal_that_is_refused_leaves_the_volume_free_and_is_told() {
    for fault in [UnmountFault::Refused("in use".into()), UnmountFault::Unreachable("nobody".into())] {
        let mut host = condemned();
        host.steps();
        host.removed("a", Err(fault));
        let steps = host.all_steps();
        place(&steps, |step| matches!(step, Step::Warn(line) if line.contains("ebs/a was not removed")));
        assert!(host.is_bare());
    }
}

#[test]
fn a_removal_without_an_answer_is_waited_for_before_anybody_may_have_the_name() {
    let mut host = condemned();
    host.steps();
    host.removed("a", Err(UnmountFault::Unresolved("no answer".into())));
    host.later(SETTLE - PAUSE);
    let early = host.until_quiet();
    assert!(!early.iter().any(|step| is_remove(step) || matches!(step, Step::Release(_))), "{early:#?}");
    assert!(host.etcd.lease("a").is_some());
    host.later(PAUSE * 2);
    let steps = host.until_quiet();
    let at = |step: &Step| steps.iter().position(|found| found == step);
    assert!(at(&Step::Unmount("a".into())) < at(&Step::Remove("a".into())), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn a_worker_that_dies_in_between_goes_on_with_it() {
    let mut host = condemned();
    assert!(host.steps().iter().any(is_remove));
    host.restart();
    host.recover(AGENT, &[], &[]);
    host.later(SETTLE + PAUSE);
    let steps = host.until_quiet();
    place(&steps, is_remove);
    assert!(host.is_bare());
}
