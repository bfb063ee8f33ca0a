//! Whether a host can prove its fence, and what its session says of silence.

use protocol::exchange::{ByTime, Means, Outcome};
use protocol::holder::{Input, MountedVolume};
use protocol::volume::Driver;

use crate::etcd::Etcd;
use crate::host::{Host, ME, Step, mount, place};

/// On a file system that cannot be shut down.
fn nfs(name: &str) -> MountedVolume {
    MountedVolume { can_be_shut_down: false, device: None, source: "server:/export".into(), ..mount(name) }
}

fn found(means: &[Means]) -> Input {
    let lacking = (!means.contains(&Means::Guard)).then(|| "the guard does not tick".into());
    Input::Means { means: means.iter().copied().collect(), lacking }
}

fn says(host: &Host) -> (ByTime, Option<&str>) {
    let session = host.etcd.session(ME);
    (session.by_time, session.unproved.as_deref())
}

fn ready(steps: &[Step], request: u64) -> bool {
    steps.iter().any(|step| matches!(step, Step::Ready(number, _) if *number == request))
}

fn is_session(step: &Step) -> bool {
    matches!(step, Step::Session(_))
}

/// Container `c1` has `a`, which is on NFS, with what came.
fn on_nfs(host: &mut Host) -> Vec<Step> {
    let request = host.prepare("c1", &["a"]);
    host.all_steps();
    host.mounts("a", Ok(nfs("a")));
    let steps = host.all_steps();
    assert!(ready(&steps, request), "{steps:#?}");
    host.until_quiet();
    steps
}

#[test]
fn a_host_whose_keeper_nothing_outlives_says_so_until_something_does() {
    let mut host = Host::with(Etcd::new(), |settings| settings.means = [Means::Storage].into());
    let (by_time, why) = says(&host);
    assert!(by_time == ByTime::Unproved && why.unwrap().contains("nothing outlives"), "{by_time:?} {why:?}");
    assert_eq!(host.etcd.session(ME).means, [Means::Storage].into());
    for means in [Means::Guard, Means::Supervisor, Means::Watchdog] {
        host.give(found(&[means]));
        assert_eq!((says(&host), &host.etcd.session(ME).means), ((ByTime::Allowed, None), &[means].into()));
        host.give(found(&[]));
        let (by_time, why) = says(&host);
        assert!(by_time == ByTime::Unproved && why.unwrap().contains("does not tick"), "{why:?}");
    }
}

#[test]
fn an_adopted_epoch_says_what_is_true_now() {
    let mut host = Host::new();
    host.prepared("c1", &["a"]);
    host.give(found(&[]));
    assert_eq!(says(&host).0, ByTime::Unproved);
    // The worker that is started now has the guard from its beginning.
    host.restart();
    host.until_quiet();
    assert_eq!((says(&host), host.etcd.session(ME).epoch.0), ((ByTime::Allowed, None), 1));
}

#[test]
fn etcd_knows_of_a_file_system_that_cannot_be_shut_down_before_a_container_has_it() {
    let mut host = Host::new();
    assert_eq!(says(&host), (ByTime::Allowed, None));
    host.held_back = Some(is_session);
    let request = host.prepare("c1", &["a"]);
    host.let_through();
    host.held_back = Some(is_session);
    host.mounts("a", Ok(nfs("a")));
    assert!(!ready(&host.all_steps(), request));
    assert_eq!(says(&host), (ByTime::Allowed, None));
    host.let_through();
    let steps = host.all_steps();
    let told = place(&steps, is_session);
    assert!(told < place(&steps, |step| matches!(step, Step::Ready(number, _) if *number == request)));
    let (by_time, why) = says(&host);
    assert_eq!(by_time, ByTime::Unproved);
    assert!(why.unwrap().contains("ebs/a") && why.unwrap().contains("server:/export"), "{why:?}");
    // It is so until the volume is released.
    host.cleanup("c1");
    host.until_quiet();
    assert!(host.is_bare());
    assert_eq!(says(&host), (ByTime::Allowed, None));
}

#[test]
fn a_container_that_waits_for_that_word_in_vain_is_told() {
    let mut host = Host::new();
    let request = host.prepare("c1", &["a"]);
    host.etcd.down = Some("no etcd");
    host.mounts("a", Ok(nfs("a")));
    host.held_back = Some(|step| *step == Step::Beat);
    host.later(crate::host::PREPARE);
    let steps = host.all_steps();
    assert!(!ready(&steps, request), "{steps:#?}");
    assert!(steps.iter().any(|step| matches!(step, Step::Refused(number, _) if *number == request)));
}

#[test]
fn without_that_word_a_container_that_is_there_does_not_start() {
    let mut host = Host::new();
    on_nfs(&mut host);
    // The worker before may have sent a rewrite of which nobody knows what it says.
    host.held_back = Some(is_session);
    host.restart();
    let request = host.isolate("c1");
    let why = host.refusal(request);
    assert!(why.contains("etcd has not confirmed yet") && why.contains("ebs/a"), "{why}");
    host.let_through();
    host.until_quiet();
    let request = host.isolate("c1");
    assert!(host.all_steps().contains(&Step::Done(request)));
}

#[test]
fn a_rewrite_that_says_the_same_of_silence_keeps_no_container_waiting() {
    let mut host = Host::new();
    on_nfs(&mut host);
    host.held_back = Some(is_session);
    host.give(found(&[Means::Guard, Means::Watchdog]));
    let request = host.isolate("c1");
    assert!(host.all_steps().contains(&Step::Done(request)));
    host.let_through();
    host.until_quiet();
    // Which of two volumes it names makes no difference either.
    let request = host.prepare("c2", &["b"]);
    host.held_back = Some(is_session);
    host.mounts("b", Ok(nfs("b")));
    assert!(ready(&host.all_steps(), request));
}

#[test]
fn a_rewrite_that_was_given_up_cannot_take_the_word_back_once_a_container_has_the_volume() {
    let mut host = Host::new();
    on_nfs(&mut host);
    let request = host.prepare("c2", &["b"]);
    host.held_back = Some(is_session);
    host.cleanup("c1");
    for _ in 0..3 {
        host.later(crate::host::BEAT);
        let name = "a";
        if host.calls().iter().any(|(called, _)| called == name) {
            host.succeed(name);
        }
    }
    assert!(host.etcd.lease("a").is_none(), "{:#?}", host.all_steps());
    // The session is being written as `allowed`: what etcd says now is not what it may say in a moment.
    assert_eq!(says(&host).0, ByTime::Unproved);
    host.all_steps();
    host.mounts("b", Ok(nfs("b")));
    assert!(!ready(&host.all_steps(), request));
    host.give_up_held_back();
    host.later(crate::host::PAUSE);
    assert!(ready(&host.all_steps(), request));
    for late in std::mem::take(&mut host.etcd.late) {
        assert!(matches!(host.etcd.commit(&late), Outcome::Conflict(_)));
    }
    assert_eq!(says(&host).0, ByTime::Unproved);
}

#[test]
fn where_the_storage_fences_a_file_system_that_cannot_be_shut_down_is_no_matter() {
    let mut host = Host::with(Etcd::new(), |settings| {
        settings.storage_fencing = [Driver::new("ebs").unwrap()].into();
        settings.fencing_required = true;
    });
    on_nfs(&mut host);
    assert_eq!(says(&host), (ByTime::Allowed, None));
    // That it could be taken away is not enough: another host may mount it otherwise.
    let mut host = Host::with(Etcd::new(), |settings| {
        settings.storage_fencing = [Driver::new("ebs").unwrap()].into();
    });
    on_nfs(&mut host);
    assert_eq!(says(&host).0, ByTime::Unproved);
}

#[test]
fn a_session_that_was_opened_to_end_never_stays_so() {
    let mut host = Host::with(Etcd::new(), |settings| settings.by_time = ByTime::Never);
    on_nfs(&mut host);
    host.give(found(&[]));
    assert_eq!((says(&host), host.etcd.session(ME).means.len()), ((ByTime::Never, None), 0));
}
