//! Workers that are restarted, and hosts that are rebooted.

use protocol::exchange::Stage;
use protocol::holder::MountFault;
use protocol::ids::Epoch;

use crate::host::{AGENT, BEAT, Host, ME, PAUSE, PREPARE, SETTLE, Step, acquire, place, record, release};

#[test]
fn a_restarted_worker_goes_on_with_what_it_had() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let table = host.stored();
    host.restart();
    // It is looked at; no driver call is made, and nothing is written, for nothing has changed.
    assert_eq!(host.steps(), [Step::Look("a".into())]);
    host.succeed("a");
    assert_eq!(host.until_quiet(), []);
    assert_eq!(host.stored(), table);
    host.cleanup("c1");
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_standalone_container_which_knows_no_agents_id_takes_none_out_of_the_session() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    let id = |host: &Host| host.etcd.session(ME).agent.clone().and_then(|agent| agent.id);
    assert_eq!(id(&host).as_deref(), Some("S0"));
    host.ask("c2", AGENT, None, &["b"]);
    host.until_quiet();
    assert_eq!(id(&host).as_deref(), Some("S0"));
    // Of another agent nothing is known.
    host.ask("c3", "slave(1)@10.0.0.9:5051", None, &["c"]);
    host.until_quiet();
    assert_eq!(id(&host), None);
}

#[test]
fn a_prepare_that_a_restart_interrupted_is_taken_up_when_it_is_asked_again() {
    let mut host = Host::new();
    host.prepare("c1", &["a"]);
    host.restart();
    let request = host.prepare("c1", &["a"]);
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn an_acquire_that_nobody_heard_of_before_a_restart_is_given_back() {
    let mut host = Host::new();
    host.held_back = Some(|step| matches!(step, Step::Acquire(_)));
    host.prepare("c1", &["a"]);
    host.restart();
    host.held_back = None;
    host.cleanup("c1");
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_lease_that_the_table_does_not_know_is_mounted_once_more_and_released() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.reboot();
    assert_eq!(host.core.epoch(), Some(Epoch(2)));
    let steps = host.until_quiet();
    assert_eq!(steps[..3], [acquire(&["a"]), record("a", Stage::Attaching, &[]), Step::Mount("a".into())]);
    let prove = place(&steps, |step| matches!(step, Step::Prove(_)));
    assert!(prove < place(&steps, |step| *step == release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn after_a_reboot_a_lease_is_kept_until_its_driver_can_be_asked() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.reboot();
    for _ in 0..3 {
        host.mounts("a", Err(MountFault::Unreachable("no socket yet".into())));
        host.later(PAUSE);
        assert_eq!(host.etcd.lease("a").map(|held| held.holder.as_str()), Some(ME));
    }
    host.until_quiet();
    assert!(host.is_bare());
}

#[test]
fn a_driver_call_from_before_a_reboot_may_still_happen() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.cleanup("c1");
    assert!(host.steps().contains(&Step::Unmount("a".into())));
    // The storage has been asked to detach; nothing but the lease's `detaching` tells so now.
    host.reboot();
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Mount(_)));
    // Another Unmount beside it would be a second call under way.
    let early = |step: &Step| matches!(step, Step::Unmount(_) | Step::Release(_));
    assert!(!steps.iter().any(early), "{steps:#?}");
    // And a reboot in between does not make it forgotten.
    host.reboot();
    assert!(!host.until_quiet().iter().any(early));
    host.later(SETTLE);
    let steps = host.until_quiet();
    let prove = place(&steps, |step| matches!(step, Step::Prove(_)));
    assert!(prove < place(&steps, |step| *step == release("a")), "{steps:#?}");
    assert!(host.is_bare());
}

#[test]
fn a_host_whose_name_was_taken_opens_an_epoch_once_the_other_is_silent_and_the_next_worker_adopts_that() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.etcd.open_elsewhere(ME, &[]);
    host.later(BEAT);
    let taken = |why: &str| why.contains("somebody else uses the holder name agent-1");
    place(&host.steps(), |step| matches!(step, Step::Fence(why) if taken(why)));
    host.restart();
    for _ in 0..60 {
        host.etcd.beat_elsewhere(ME);
        host.later(BEAT);
        assert_eq!(host.core.epoch(), None, "the other lives");
    }
    host.later(PREPARE);
    assert_eq!(host.core.epoch(), Some(Epoch(2)));
    host.later(SETTLE);
    host.until_quiet();
    host.prepared("c2", &["b"]);
    host.restart();
    // An upgrade of the keeper ends no task.
    assert_eq!(host.core.epoch(), Some(Epoch(2)));
    assert_eq!(host.steps(), [Step::Look("b".into())]);
}
