//! The guard: what is left when the other processes of a keeper are killed together, by whatever kills whole cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_isolator::keeper::cgroups;
use agent_isolator::keeper::deadman::{DEADLINE, GUARD_LOG};
use agent_isolator::keeper::means::MeansWatch;
use agent_isolator::keeper::process::{ProcessId, session_of};
use agent_isolator::keeper::shared_memory::SharedMemory;
use agent_isolator::parameters::KeeperParameters;
use rustix::process::Signal;
use shared::clock::holder_now;
use shared::protocol::exchange::Means;

use crate::alone::{Alone, alone, cgroups as cgroups_of};
use crate::host::{Host, KEEPER, eventually};
use crate::keeper::{Keeper, command, helpers_of, kill};

/// Time enough to break things before the fence.
const TIME: Duration = Duration::from_secs(3);

fn guards_log(keeper: &Keeper<'_>) -> String {
    fs::read_to_string(keeper.run.join(GUARD_LOG)).unwrap_or_default()
}

fn guard_fenced(keeper: &Keeper<'_>) -> bool {
    guards_log(keeper).contains("this host is fenced: nothing")
}

/// Kills deadman and worker at once. Neither has the time to start the other again.
fn kill_keeper(keeper: &Keeper<'_>) {
    let (deadman, worker) = (keeper.deadman(), keeper.worker());
    kill(deadman, Signal::STOP);
    kill(worker, Signal::KILL);
    kill(deadman, Signal::KILL);
    eventually("both are gone", || !deadman.runs() && !worker.runs());
}

/// A volume that a container writes to; after `break_it` nobody but the guard is left to fence.
fn guard_fences(test: &str, break_it: impl FnOnce(&Keeper<'_>)) {
    alone(test, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let keeper = Keeper::start(&host, &[]);
        keeper.worker();
        let guard = keeper.guard();
        keeper.store(&Host::table(&[&container], &[&volume]));
        keeper.fence_in(TIME);
        let due = Instant::now() + TIME;
        break_it(&keeper);
        assert!(Instant::now() < due, "this machine is too slow for this test");
        assert!(!keeper.shared.read().fenced && container.processes().len() >= 4, "not before its time");
        eventually("the guard fences the host", || guard_fenced(&keeper));
        eprintln!("fenced {:?} after its time", due.elapsed());
        let log = guards_log(&keeper);
        let said =
            |what: &str| log.find(what).unwrap_or_else(|| panic!("{what:?} is not in the log:\n{log}"));
        // Also where the worker has ended already: it is not looked for first.
        let struck = said("the fence has struck: 1 of 1 volumes' file systems are shut down");
        assert!(struck < said("this host is fenced: nothing"));
        assert!(keeper.shared.read().fenced);
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle());
        volume.assert_no_writes();
        // It steps back: it starts no worker, and stands in no keeper's way.
        eventually("it lets the lock go", || keeper.shared.deadman().is_none());
        assert_eq!((keeper.guard(), keeper.shared.worker().filter(|worker| worker.runs())), (guard, None));
        let next = Keeper::start(&host, &[]);
        next.worker();
        eventually("the next keeper has a guard of its own", || next.guard() != guard);
        assert_eq!(guards_log(&keeper).matches("the guard does").count(), 1, "one fence");
    });
}

#[test]
fn root_the_guard_fences_when_deadman_and_worker_are_killed_together() {
    guard_fences("guards::root_the_guard_fences_when_deadman_and_worker_are_killed_together", kill_keeper);
}

#[test]
fn root_the_guard_fences_while_no_process_can_be_started() {
    guard_fences("guards::root_the_guard_fences_while_no_process_can_be_started", |keeper| {
        let guard = keeper.guard();
        eventually("its helpers stand by", || helpers_of(guard).len() == 4);
        let cgroup = format!("/sys/fs/cgroup/pids/extvol-guard.{}", keeper.host.alone.cgroup);
        let tasks = fs::read_to_string(format!("{cgroup}/pids.current")).unwrap();
        assert!(tasks.trim().parse::<usize>().unwrap() >= 5, "guard and helpers are in it");
        fs::write(format!("{cgroup}/pids.max"), tasks.trim()).unwrap();
        kill_keeper(keeper);
    });
}

#[test]
fn root_the_helpers_of_a_living_guard_outlive_workers_deadmen_and_keepers() {
    alone("guards::root_the_helpers_of_a_living_guard_outlive_workers_deadmen_and_keepers", |alone| {
        let host = Host::new(alone);
        let keeper = Keeper::start(&host, &[]);
        let (worker, guard) = (keeper.worker(), keeper.guard());
        eventually("three stand by", || helpers_of(guard).len() == 3);
        let helpers = helpers_of(guard);
        kill(worker, Signal::KILL);
        eventually("another worker", || keeper.worker() != worker);
        let deadman = keeper.deadman();
        kill(deadman, Signal::KILL);
        eventually("another deadman", || keeper.deadman() != deadman);
        assert_eq!(helpers_of(guard), helpers);
        // The next keeper's guard takes over, and nothing of this one is left.
        kill_keeper(&keeper);
        let next = Keeper::start(&host, &[]);
        next.worker();
        eventually("another guard", || next.guard() != guard);
        eventually("the old one's helpers end", || !helpers.iter().any(|helper| helper.runs()));
        eventually("the new one's stand by", || helpers_of(next.guard()).len() == 3);
    });
}

#[test]
fn root_a_guard_of_another_cgroup_root_takes_its_cgroups_down_before_it_ends() {
    alone("guards::root_a_guard_of_another_cgroup_root_takes_its_cgroups_down_before_it_ends", |alone| {
        let host = Host::new(alone);
        let keeper = Keeper::start(&host, &[]);
        keeper.worker();
        let guard = keeper.guard();
        let own = format!("extvol-guard.{}", alone.cgroup);
        let left = || cgroups_of(&own).into_iter().filter(|path| path.ends_with(&own)).count();
        assert!(left() >= 2);
        kill_keeper(&keeper);
        let old = format!("--cgroup_root={}", alone.cgroup);
        let mut other = Command::new(KEEPER);
        let arguments = command(&host, &[]);
        other.args(arguments.get_args().filter(|argument| **argument != *old));
        other.arg(format!("{old}-other")).stdin(Stdio::null());
        let next = Keeper::started(&host, other.spawn().unwrap());
        next.worker();
        eventually("another guard", || next.guard() != guard && !guard.runs());
        assert_eq!(left(), 0);
        assert!(!cgroups_of(&format!("{own}-other")).is_empty());
    });
}

#[test]
fn root_a_guard_that_does_not_begin_is_told_of() {
    alone("guards::root_a_guard_that_does_not_begin_is_told_of", |alone| {
        let host = Host::new(alone);
        // It cannot write its log.
        fs::create_dir_all(alone.directory.join("run").join(GUARD_LOG)).unwrap();
        let keeper = Keeper::start(&host, &[]);
        keeper.worker();
        eventually("it is said", || keeper.log().contains("this keeper's guard has not begun within 3s"));
        assert_eq!(keeper.log().matches("has not begun").count(), 1);
        fs::remove_dir(keeper.run.join(GUARD_LOG)).unwrap();
        keeper.guard();
        eventually("so is its end", || keeper.log().contains("a guard runs again"));
    });
}

#[test]
fn root_the_guard_fences_beside_a_stopped_deadman_whose_worker_was_killed() {
    guard_fences(
        "guards::root_the_guard_fences_beside_a_stopped_deadman_whose_worker_was_killed",
        |keeper| {
            let worker = keeper.worker();
            kill(keeper.deadman(), Signal::STOP);
            kill(worker, Signal::KILL);
        },
    );
}

#[test]
fn root_the_guard_fences_beside_new_keepers_that_are_refused_or_broken() {
    guard_fences("guards::root_the_guard_fences_beside_new_keepers_that_are_refused_or_broken", |keeper| {
        kill_keeper(keeper);
        let refused = command(keeper.host, &["--ttl=5"]).stderr(Stdio::null()).status().unwrap();
        assert!(!refused.success());
        // As `/proc/self/exe` of a keeper that was not installed whole.
        assert!(!Command::new("/bin/false").status().unwrap().success());
    });
}

#[test]
fn root_a_new_keeper_whose_worker_cannot_run_fences_in_time() {
    alone("guards::root_a_new_keeper_whose_worker_cannot_run_fences_in_time", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let keeper = Keeper::start(&host, &[]);
        keeper.worker();
        keeper.guard();
        keeper.store(&Host::table(&[&container], &[&volume]));
        keeper.fence_in(TIME * 2);
        kill_keeper(&keeper);
        // No directory any more: no worker gets as far as its first beat.
        fs::remove_dir_all(alone.directory.join("state")).unwrap();
        fs::write(alone.directory.join("state"), "").unwrap();
        let next = Keeper::start(&host, &[]);
        eventually("the host is fenced", || next.fences_proved() == 1);
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle());
        assert!(!guard_fenced(&next), "one fence");
    });
}

#[test]
fn root_a_killed_or_stopped_guard_is_replaced_and_nobody_is_fenced() {
    alone("guards::root_a_killed_or_stopped_guard_is_replaced_and_nobody_is_fenced", |alone| {
        let host = Host::new(alone);
        let keeper = Keeper::start(&host, &[]);
        keeper.fence_in(Duration::from_secs(60));
        let (worker, deadman) = (keeper.worker(), keeper.deadman());
        for signal in [Signal::KILL, Signal::STOP] {
            let guard = keeper.guard();
            kill(guard, signal);
            eventually("another guard", || keeper.guard() != guard);
            assert!(!guard.runs());
        }
        assert_eq!((keeper.worker(), keeper.deadman()), (worker, deadman));
        // Guard and deadman at once: the worker starts one of them, and that the other.
        let guard = keeper.guard();
        kill(guard, Signal::KILL);
        kill(deadman, Signal::KILL);
        eventually("another guard and deadman", || keeper.guard() != guard && keeper.deadman() != deadman);
        assert_eq!((keeper.worker(), keeper.shared.read().fenced), (worker, false));
        // A deadman that a worker started goes on with the guard that is there.
        let (guard, deadman) = (keeper.guard(), keeper.deadman());
        kill(deadman, Signal::KILL);
        eventually("another deadman", || keeper.deadman() != deadman);
        eventually("three processes", || keeper.processes().len() == 3);
        assert_eq!(keeper.guard(), guard);
    });
}

#[test]
fn root_a_clean_end_of_the_keeper_ends_the_guard_and_takes_its_cgroups_down() {
    alone("guards::root_a_clean_end_of_the_keeper_ends_the_guard_and_takes_its_cgroups_down", |alone| {
        let host = Host::new(alone);
        let mut keeper = Keeper::start(&host, &[]);
        keeper.worker();
        let guard = keeper.guard();
        let own = format!("extvol-guard.{}", alone.cgroup);
        assert!(cgroups_of(&own).len() >= 2, "{:?}", cgroups::of(guard.pid));
        // Another guard's end does not take them from it.
        kill(guard, Signal::STOP);
        eventually("another guard", || keeper.guard() != guard);
        assert!(cgroups_of(&own).len() >= 2, "{:?}", cgroups::of(keeper.guard().pid));
        keeper.shared.set_stop(true);
        assert!(keeper.process.wait().unwrap().success());
        assert_eq!((keeper.processes(), cgroups_of(&own)), (vec![], vec![]));
    });
}

#[test]
fn root_a_hung_deadman_without_a_worker_does_not_keep_the_next_keeper_out() {
    alone("guards::root_a_hung_deadman_without_a_worker_does_not_keep_the_next_keeper_out", |alone| {
        let host = Host::new(alone);
        let mut keeper = Keeper::start(&host, &[]);
        let (worker, deadman) = (keeper.worker(), keeper.deadman());
        keeper.guard();
        kill(deadman, Signal::STOP);
        kill(worker, Signal::KILL);
        let out = command(&host, &[]).stderr(Stdio::null()).status().unwrap();
        assert!(!out.success(), "the lock is held");
        eventually("the guard ends it", || !deadman.runs());
        keeper.process.wait().unwrap();
        Keeper::start(&host, &[]).worker();
    });
}

/// The agent's cgroups, one in each hierarchy.
fn agents_cgroups(alone: &Alone) -> Vec<PathBuf> {
    let hierarchies = ["freezer", "pids", "memory"].map(|name| Path::new("/sys/fs/cgroup").join(name));
    let cgroups = hierarchies.map(|hierarchy| hierarchy.join(format!("{}-agent", alone.cgroup)));
    cgroups.iter().for_each(|cgroup| fs::create_dir(cgroup).unwrap());
    cgroups.into()
}

/// Has a keeper started by somebody who is in these cgroups.
fn start_inside<'a>(host: &'a Host<'a>, cgroups: &[PathBuf], options: &[&str]) -> Keeper<'a> {
    let mut inside = Command::new("sh");
    let script =
        "for cgroup in $CGROUPS; do echo 0 >$cgroup/cgroup.procs || exit 1; done; exec \"$0\" \"$@\"";
    let keeper = command(host, options);
    let all: Vec<_> = cgroups.iter().map(|cgroup| cgroup.to_str().unwrap()).collect();
    inside.args(["-c", script]).arg(KEEPER).args(keeper.get_args()).env("CGROUPS", all.join(" "));
    Keeper::started(host, inside.stdin(Stdio::null()).spawn().unwrap())
}

/// Kills all that is in these cgroups, as `systemctl stop` and the kernel for want of memory do.
fn kill_all_in(cgroups: &[PathBuf]) -> usize {
    let pids = |cgroup: &PathBuf| {
        let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        listed.lines().filter_map(|pid| ProcessId::of(pid.parse().unwrap())).collect::<Vec<_>>()
    };
    let all: BTreeMap<_, _> = cgroups.iter().flat_map(pids).map(|process| (process, ())).collect();
    // One that is stopped starts nobody.
    all.keys().for_each(|process| kill(*process, Signal::STOP));
    all.keys().for_each(|process| process.kill());
    eventually("all are gone", || !all.keys().any(|process| process.runs()));
    all.len()
}

/// What a worker finds of this keeper.
fn found(keeper: &Keeper<'_>) -> (bool, String) {
    let given = [("etcd_endpoints".to_owned(), "h:1".to_owned())];
    let shared = SharedMemory::open(&keeper.run.join(DEADLINE)).unwrap();
    let mut watch = MeansWatch::new(&KeeperParameters::read(&given).unwrap(), Arc::new(shared));
    let mut found = watch.look(holder_now()).unwrap();
    let began = Instant::now();
    while !found.means.contains(&Means::Guard) && found.lacking.is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "{found:?}");
        std::thread::sleep(Duration::from_millis(10));
        found = watch.look(holder_now()).unwrap_or(found);
    }
    (found.means.contains(&Means::Guard), found.lacking.map(|why| why.to_string()).unwrap_or_default())
}

#[test]
fn root_what_kills_the_cgroups_of_a_keepers_unit_leaves_the_guard_which_fences() {
    alone("guards::root_what_kills_the_cgroups_of_a_keepers_unit_leaves_the_guard_which_fences", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let cgroups = agents_cgroups(alone);
        let keeper = start_inside(&host, &cgroups, &[]);
        let (worker, deadman, guard) = (keeper.worker(), keeper.deadman(), keeper.guard());
        assert_eq!(session_of(guard.pid), Some(guard.pid));
        assert_eq!(found(&keeper), (true, String::new()));
        keeper.store(&Host::table(&[&container], &[&volume]));
        keeper.fence_in(TIME);
        assert!(kill_all_in(&cgroups) >= 2, "deadman and worker, with what stands by for the deadman");
        assert!(!worker.runs() && !deadman.runs() && guard.runs());
        eventually("the guard fences the host", || guard_fenced(&keeper));
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle());
    });
}

#[test]
fn root_a_detached_keeper_is_in_no_cgroup_of_who_started_it() {
    alone("guards::root_a_detached_keeper_is_in_no_cgroup_of_who_started_it", |alone| {
        let host = Host::new(alone);
        let cgroups = agents_cgroups(alone);
        let keeper = start_inside(&host, &cgroups, &["--detach"]);
        let all = [keeper.worker(), keeper.deadman(), keeper.guard()];
        assert_eq!((kill_all_in(&cgroups), found(&keeper)), (0, (true, String::new())));
        assert!(all.iter().all(|process| process.runs()));
        keeper.shared.set_stop(true);
        eventually("it ends", || keeper.processes().is_empty());
    });
}

#[test]
fn root_a_guard_that_cannot_leave_the_keepers_cgroups_is_none_and_says_why() {
    alone("guards::root_a_guard_that_cannot_leave_the_keepers_cgroups_is_none_and_says_why", |alone| {
        let host = Host::new(alone);
        let cgroups = agents_cgroups(alone);
        let mut keeper = start_inside(&host, &cgroups, &[]);
        keeper.worker();
        assert!(found(&keeper).0);
        kill_all_in(&cgroups);
        keeper.process.wait().unwrap();
        // In this test's own namespace.
        for hierarchy in cgroups.iter().filter_map(|cgroup| cgroup.parent()) {
            let mounted = hierarchy.to_str().unwrap();
            crate::host::run("mount", &["--bind", mounted, mounted]);
        }
        let before = keeper.guard();
        let script = "for cgroup in $CGROUPS; do echo 0 >$cgroup/cgroup.procs || exit 1; done; \
                      for root in $ROOTS; do mount -o remount,bind,ro $root || exit 1; done; exec \"$0\" \"$@\"";
        let all: Vec<_> = cgroups.iter().map(|cgroup| cgroup.to_str().unwrap()).collect();
        let roots: Vec<_> = cgroups.iter().map(|cgroup| cgroup.parent().unwrap().to_str().unwrap()).collect();
        let mut inside = Command::new("sh");
        inside.args(["-c", script]).arg(KEEPER).args(command(&host, &[]).get_args());
        inside.env("CGROUPS", all.join(" ")).env("ROOTS", roots.join(" "));
        let next = Keeper::started(&host, inside.stdin(Stdio::null()).spawn().unwrap());
        next.worker();
        eventually("its guard", || next.guard() != before);
        let (is_guard, why) = found(&next);
        assert!(!is_guard && why.contains(&format!("/{}-agent", alone.cgroup)), "{why}");
        let log = guards_log(&next);
        assert!(log.contains("could not be left") && log.contains("Read-only"), "{log}");
    });
}
