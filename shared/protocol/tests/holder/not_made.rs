//! Driver calls that the last look stopped, in an epoch that went on all the same.

use protocol::exchange::Stage;

use crate::host::{Host, PAUSE, Step, record};

/// What comes after a call was not made, once its pause is over.
fn after(host: &mut Host) -> Vec<Step> {
    host.steps();
    host.not_made("a");
    assert_eq!(host.steps(), [], "not at once");
    host.later(PAUSE);
    host.steps()
}

#[test]
fn a_mount_is_made_later_under_a_lease_that_was_confirmed_again() {
    let mut host = Host::new();
    host.prepare("c1", &["a"]);
    assert_eq!(after(&mut host), [record("a", Stage::Attaching, &["c1"]), Step::Mount("a".into())]);
    host.until_quiet();
    assert!(host.core.volumes().values().all(|volume| volume.mounted().is_some()));
}

#[test]
fn an_unmount_is_announced_again_and_then_made() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.cleanup("c1");
    assert_eq!(after(&mut host), [record("a", Stage::Detaching, &[]), Step::Unmount("a".into())]);
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_removal_is_made_later_under_a_lease_that_was_confirmed_again() {
    let mut host = Host::new();
    host.removes = true;
    host.prepared("c1", &["a"]);
    host.isolate("c1");
    host.cleanup("c1");
    host.steps();
    host.unmounts("a", Ok(()));
    host.finds("a", protocol::holder::Idleness::Proved);
    assert_eq!(after(&mut host), [record("a", Stage::Detaching, &[]), Step::Remove("a".into())]);
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn of_a_call_that_was_not_made_no_answer_is_waited_for() {
    let mut host = Host::new();
    host.prepare("c1", &["a"]);
    host.not_made("a");
    host.cleanup("c1");
    // No Mount is under way: the driver undoes what it may have, at once.
    host.later(PAUSE);
    let steps = host.until_quiet();
    assert!(steps.contains(&Step::Unmount("a".into())) && host.is_bare(), "{steps:#?}");
}
