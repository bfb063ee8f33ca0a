//! A volume is one thing, by whatever name; and one that can be written no more is left.

use protocol::exchange::Stage;
use protocol::holder::{Input, MountFault, MountedVolume, Phase, Sight};

use crate::host::{Host, PAUSE, SETTLE, Step, acquire, container, mount, place, record, release, volume};

fn not_its_own() -> MountFault {
    MountFault::NotItsOwn("it is the device of ebs/b".into())
}

/// A host on which a container has volume `b`, and another waits for the Mount of `a`.
fn mounting_beside_b() -> (Host, u64) {
    let mut host = Host::new();
    host.prepared("c1", &["b"]);
    let request = host.prepare("c2", &["a"]);
    assert_eq!(host.steps(), [acquire(&["a"]), Step::Mount("a".into())]);
    (host, request)
}

#[test]
fn a_name_whose_storage_is_another_volumes_is_given_back_and_its_driver_is_never_asked_to_unmount() {
    let (mut host, request) = mounting_beside_b();
    host.mounts("a", Err(not_its_own()));
    assert!(host.refusal(request).contains("it is the device of ebs/b"));
    host.later(PAUSE);
    assert!(!host.core.volumes().contains_key(&volume("a")));
    let steps = host.until_quiet();
    assert!(!steps.iter().any(|step| matches!(step, Step::Unmount(_))), "{steps:#?}");
    assert!(host.core.volumes().contains_key(&volume("b")));
    // Else whoever takes this name next would have the storage take the volume away from here.
    assert_eq!(host.etcd.owed("a"), None);
}

#[test]
fn a_restarted_worker_does_not_ask_either() {
    let (mut host, _) = mounting_beside_b();
    host.held_back = Some(|step| matches!(step, Step::Release(_)));
    host.mounts("a", Err(not_its_own()));
    host.steps();
    host.held_back = None;
    host.restart();
    let steps = host.until_quiet();
    place(&steps, |step| *step == release("a"));
    let undone = |step: &Step| matches!(step, Step::Unmount(_)) || *step == Step::Mount("a".into());
    assert!(!steps.iter().any(undone), "{steps:#?}");
}

#[test]
fn that_a_name_is_anothers_counts_only_once_an_unanswered_mount_has_settled() {
    let (mut host, _) = mounting_beside_b();
    let since = host.now;
    host.mounts("a", Err(MountFault::Unresolved("no answer".into())));
    for _ in 0..20 {
        let Some(row) = host.core.volumes().get(&volume("a")) else { break };
        if !matches!(row.phase, Phase::Mounting { .. }) {
            break;
        }
        host.later(PAUSE);
        host.mounts("a", Err(not_its_own()));
    }
    assert!(host.now >= since + SETTLE, "{:?}", host.now - since);
}

#[test]
fn two_names_that_are_mounted_at_once_are_seen_to_be_one_volume() {
    let (mut host, request) = mounting_beside_b();
    host.mounts("a", Ok(MountedVolume { mount_point: "/mnt/a/data".into(), ..mount("b") }));
    let why = host.refusal(request);
    assert!(why.contains("it is the device of ebs/b, which this host holds under another name"), "{why}");
    // Looked at again, it is undone; what is in doubt is never handed out.
    host.later(PAUSE);
    assert_eq!(host.steps(), [record("a", Stage::Attaching, &[]), Step::Mount("a".into())]);
    host.mounts("a", Err(not_its_own()));
    assert_eq!(host.steps(), [release("a")]);
}

#[test]
fn a_mount_says_whether_it_may_have_been_done_before() {
    let (mut host, _) = mounting_beside_b();
    assert_eq!(host.again, Some(false));
    host.mounts("a", Err(MountFault::Unresolved("no answer".into())));
    host.later(PAUSE);
    assert_eq!(host.again, Some(true));
    host.again = None;
    host.restart();
    host.later(PAUSE);
    assert_eq!(host.again, Some(true));
}

#[test]
fn a_copy_is_served_and_told_of() {
    let (mut host, request) = mounting_beside_b();
    let uuid = Some("0011".into());
    let copy = |name: &str| MountedVolume { uuid: uuid.clone(), ..mount(name) };
    host.mounts("a", Ok(copy("a")));
    let steps = host.until_quiet();
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
    host.prepare("c3", &["c"]);
    host.steps();
    host.mounts("c", Ok(copy("c")));
    let steps = host.all_steps();
    place(&steps, |step| matches!(step, Step::Warn(line) if line.contains("has the file system of ebs/a")));
    place(&steps, |step| matches!(step, Step::Ready(..)));
}

#[test]
fn a_container_gets_the_keepers_own_mount_and_the_lease_names_the_drivers() {
    let (mut host, request) = mounting_beside_b();
    host.mounts("a", Ok(MountedVolume { pin: Some("/mnt/.extvol/a".into()), ..mount("a") }));
    let steps = host.steps();
    place(&steps, |step| *step == Step::Ready(request, vec!["/mnt/.extvol/a".to_owned()]));
    assert_eq!(
        host.etcd.lease("a").and_then(|held| held.mount_point.clone()).as_deref(),
        Some("/mnt/a/data")
    );
}

#[test]
fn a_volume_that_can_be_written_no_more_ends_its_users_and_is_had_anew() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.give(Input::Suspect { volume: volume("a") });
    assert_eq!(host.steps(), [Step::Look("a".into())]);
    host.sees("a", Sight::Broken("its disk is gone".into()));
    let steps = host.steps();
    place(&steps, |step| {
        matches!(step, Step::Limit(name, why)
            if name == "c1" && why.contains("volume ebs/a can be written no more: its disk is gone"))
    });
    // Told once, and nobody joins until it is released.
    host.give(Input::Suspect { volume: volume("a") });
    let request = host.prepare("c2", &["a"]);
    assert_eq!(host.until_quiet(), []);
    host.cleanup("c1");
    let steps = host.until_quiet();
    let unmount = place(&steps, |step| matches!(step, Step::Unmount(_)));
    assert!(unmount < place(&steps, |step| *step == acquire(&["a"])), "{steps:#?}");
    place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
}

#[test]
fn a_broken_volume_in_doubt_is_released_like_another() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.isolate("c1");
    host.give(Input::Ended { container: container("c1") });
    host.steps();
    assert_eq!(host.doubted, Some(true));
    host.sees("a", Sight::Broken("its disk is gone".into()));
    let steps = host.until_quiet();
    let prove = place(&steps, |step| matches!(step, Step::Prove(_)));
    assert!(prove < place(&steps, |step| *step == release("a")), "{steps:#?}");
}

#[test]
fn a_suspicion_that_proves_false_changes_nothing() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.give(Input::Suspect { volume: volume("a") });
    host.give(Input::Suspect { volume: volume("b") });
    assert_eq!(host.until_quiet(), [Step::Look("a".into())]);
    assert_eq!(host.doubted, Some(false), "its user is known");
    assert!(host.core.containers().contains_key(&container("c1")));
}

#[test]
fn who_wants_to_write_does_not_join_a_volume_that_is_mounted_read_only() {
    let mut host = Host::new();
    let ready = |steps: &[Step], request: u64| {
        place(steps, |step| matches!(step, Step::Ready(number, _) if *number == request));
    };
    let first = host.prepare_read_only("c1", "a");
    host.steps();
    host.mounts("a", Ok(MountedVolume { read_only: true, ..mount("a") }));
    ready(&host.steps(), first);
    let second = host.prepare("c2", &["a"]);
    let why = host.refusal(second);
    assert!(why.contains("volume ebs/a: its driver has mounted it read-only here"), "{why}");
    let third = host.prepare_read_only("c3", "a");
    ready(&host.until_quiet(), third);
}
