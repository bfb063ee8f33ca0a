//! The keeper's processes: what happens when one of them is killed, stopped or hung. What the guard is for is in `guards.rs`.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent_isolator::keeper::deadman::DEADLINE;
use agent_isolator::keeper::fence::HELPER_MODE;
use agent_isolator::keeper::process::ProcessId;
use agent_isolator::keeper::shared_memory::SharedMemory;
use agent_isolator::keeper::stored_table::TABLE;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use shared::clock::holder_now;
use shared::protocol::holder::Table;

use crate::alone::{Alone, FREEZER, alone};
use crate::host::{Host, KEEPER, eventually};

/// A keeper: deadman and worker. The worker finds no etcd, and is none the worse for that.
pub(crate) struct Keeper<'a> {
    pub(crate) host: &'a Host<'a>,
    pub(crate) run: PathBuf,
    pub(crate) process: Child,
    pub(crate) shared: SharedMemory,
}

pub(crate) fn command(host: &Host<'_>, options: &[&str]) -> Command {
    let alone: &Alone = host.alone;
    let at = |name: &str, path: PathBuf| format!("--{name}={}", path.display());
    let mut command = Command::new(KEEPER);
    command
        .args(["--etcd_endpoints=127.0.0.1:1", "--holder=h", &format!("--cgroup_root={}", alone.cgroup)])
        .args(options)
        .arg(at("run_directory", alone.directory.join("run")))
        .arg(at("state_directory", alone.directory.join("state")))
        .arg(at("mount_roots", host.root.clone()))
        .stdin(Stdio::null());
    command
}

/// A table as a worker of this boot stores it.
fn stored(table: &Table) -> Vec<u8> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let owner = json!({ "holder": "h", "etcd_prefix": "/extvol/v1" });
    let stored = json!({ "version": 2, "boot_id": boot_id.trim(), "owner": owner, "table": table });
    stored.to_string().into_bytes()
}

pub(crate) fn kill(process: ProcessId, signal: Signal) {
    kill_process(Pid::from_raw(process.pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

impl<'a> Keeper<'a> {
    pub(crate) fn start(host: &'a Host<'a>, options: &[&str]) -> Self {
        Self::started(host, command(host, options).spawn().unwrap())
    }

    /// That of a process which was started otherwise.
    pub(crate) fn started(host: &'a Host<'a>, process: Child) -> Self {
        let run = host.alone.directory.join("run");
        let path = run.join(DEADLINE);
        eventually("the keeper starts", || path.exists());
        let shared = SharedMemory::open(&path).unwrap();
        Self { host, run, process, shared }
    }

    /// The running worker, once it ticks.
    pub(crate) fn worker(&self) -> ProcessId {
        let ticks = || {
            let worker = self.shared.worker().filter(|worker| worker.runs())?;
            (holder_now() < self.shared.worker_tick() + Duration::from_millis(300)).then_some(worker)
        };
        eventually("a worker ticks", || ticks().is_some());
        self.shared.worker().unwrap()
    }

    pub(crate) fn deadman(&self) -> ProcessId {
        let ticks = || {
            let lately = holder_now() < self.shared.deadman_tick() + Duration::from_millis(300);
            lately && self.shared.deadman().is_some_and(ProcessId::runs)
        };
        eventually("a deadman ticks", ticks);
        self.shared.deadman().unwrap()
    }

    /// The running guard, once it ticks.
    pub(crate) fn guard(&self) -> ProcessId {
        let ticks = || {
            let lately = holder_now() < self.shared.guard_tick() + Duration::from_millis(300);
            lately && self.shared.guard().is_some_and(ProcessId::runs)
        };
        eventually("a guard ticks", ticks);
        self.shared.guard().unwrap()
    }

    pub(crate) fn store(&self, table: &Table) {
        fs::write(self.run.join(TABLE), stored(table)).unwrap();
    }

    pub(crate) fn fence_in(&self, time: Duration) {
        self.shared.extend(Some(holder_now() + time)).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.run.join("deadman.log")).unwrap()
    }

    pub(crate) fn fences_proved(&self) -> usize {
        self.log().matches("this host is fenced: nothing").count()
    }

    /// All processes of the keeper's program that run in this test's namespace, but for those that stand by for a fence.
    pub(crate) fn processes(&self) -> Vec<ProcessId> {
        running(|arguments| !arguments.iter().any(|argument| argument == HELPER_MODE))
    }
}

/// The helpers of a process that stand by for a fence.
pub(crate) fn helpers_of(process: ProcessId) -> Vec<ProcessId> {
    let of = [HELPER_MODE.to_owned(), process.pid.to_string()];
    running(|arguments| arguments.windows(2).any(|pair| pair == of))
}

/// All processes of the keeper's program that run in this test's namespace and have such arguments.
fn running(have: impl Fn(&[String]) -> bool) -> Vec<ProcessId> {
    let is_one = |pid: &u32| {
        let is_keeper =
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == Path::new(KEEPER));
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_keeper && have(&line.split('\0').map(str::to_owned).collect::<Vec<_>>())
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_one).filter_map(ProcessId::of).collect()
}

/// Its nice value, its real-time priority and its scheduling policy.
fn scheduling(process: ProcessId) -> (i32, u32, u32) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    (fields[16].parse().unwrap(), fields[37].parse().unwrap(), fields[38].parse().unwrap())
}

#[test]
fn root_helpers_stand_by_for_each_volume_run_before_all_others_and_end_with_their_deadman() {
    let name =
        "keeper::root_helpers_stand_by_for_each_volume_run_before_all_others_and_end_with_their_deadman";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volumes = [host.volume("ext4", "vol1"), host.volume("xfs", "vol2")];
        let keeper = Keeper::start(&host, &[]);
        let (worker, deadman, guard) = (keeper.worker(), keeper.deadman(), keeper.guard());
        let each = |count| [deadman, guard].iter().all(|process| helpers_of(*process).len() == count);
        eventually("three stand by of each", || each(3));
        keeper.store(&Host::table(&[], &[&volumes[0], &volumes[1]]));
        eventually("two more", || each(5));
        let locked = |process: &ProcessId| {
            let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap();
            let size = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
            };
            size("VmLck:") > 1024
        };
        // SCHED_RR; or the greatest weight, where the kernel's cgroups refuse that.
        let first = |process: &ProcessId, priority: u32| match scheduling(*process) {
            (_, found, 2) => found == priority,
            (nice, _, policy) => (nice, policy) == (-20, 0),
        };
        let prepared = |helper: &ProcessId| locked(helper) && first(helper, 1);
        let helpers = helpers_of(deadman);
        let all: Vec<_> = helpers.iter().copied().chain(helpers_of(guard)).collect();
        eventually("they are prepared", || all.iter().all(prepared));
        assert!([deadman, guard].iter().all(|process| first(process, 2)), "they run before their helpers");
        assert_eq!(scheduling(worker), (0, 0, 0), "the worker is a usual process");
        kill(deadman, Signal::KILL);
        eventually("its helpers end with it", || !helpers.iter().any(|helper| helper.runs()));
        eventually("another deadman has its own", || helpers_of(keeper.deadman()).len() == 5);
        assert_eq!(keeper.worker(), worker, "whose helpers it does not kill");
        keeper.store(&Table::default());
        keeper.fence_in(Duration::from_millis(100));
        eventually("the host is fenced", || keeper.fences_proved() == 1);
    });
}

/// A volume that a container writes to, guarded by a keeper; the deadline passes after `break_it`.
fn fences(test: &str, break_it: impl FnOnce(&Keeper<'_>)) {
    alone(test, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let keeper = Keeper::start(&host, &[]);
        let worker = keeper.worker();
        keeper.store(&Host::table(&[&container], &[&volume]));
        let time = Duration::from_millis(700);
        keeper.fence_in(time);
        let began = Instant::now();
        break_it(&keeper);
        eventually("the host is fenced", || keeper.fences_proved() == 1);
        eprintln!("fenced {:?} after its time", began.elapsed() - time);
        assert!(keeper.shared.read().fenced);
        let log = keeper.log();
        let said =
            |what: &str| log.find(what).unwrap_or_else(|| panic!("{what:?} is not in the log:\n{log}"));
        let struck = said("the fence has struck: 1 of 1 volumes' file systems are shut down");
        assert!(struck < said("this host is fenced: nothing"));
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle());
        volume.assert_no_writes();
        eventually("another worker runs", || keeper.worker() != worker);
        assert!(!worker.runs());
        // The flag stands, and the same fence is not begun again for it.
        keeper.worker();
        assert_eq!(keeper.fences_proved(), 1);
    });
}

#[test]
fn root_a_deadline_passes_with_a_healthy_worker_and_the_host_is_fenced() {
    fences("keeper::root_a_deadline_passes_with_a_healthy_worker_and_the_host_is_fenced", |_| {});
}

#[test]
fn root_a_stopped_worker_does_not_stop_the_clock() {
    fences("keeper::root_a_stopped_worker_does_not_stop_the_clock", |keeper| {
        kill(keeper.worker(), Signal::STOP);
    });
}

#[test]
fn root_a_killed_worker_does_not_stop_the_clock() {
    fences("keeper::root_a_killed_worker_does_not_stop_the_clock", |keeper| {
        kill(keeper.worker(), Signal::KILL);
    });
}

#[test]
fn root_a_worker_out_of_descriptors_does_not_stop_the_clock() {
    fences("keeper::root_a_worker_out_of_descriptors_does_not_stop_the_clock", |keeper| {
        let pid = keeper.worker().pid.to_string();
        crate::host::run("prlimit", &["--pid", &pid, "--nofile=1:1"]);
    });
}

#[test]
fn root_another_deadman_fences_in_place_of_one_that_was_killed() {
    alone("keeper::root_another_deadman_fences_in_place_of_one_that_was_killed", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let mut keeper = Keeper::start(&host, &[]);
        let (worker, first) = (keeper.worker(), keeper.deadman());
        keeper.store(&Host::table(&[&container], &[&volume]));
        keeper.fence_in(Duration::from_secs(60));
        keeper.process.kill().unwrap();
        keeper.process.wait().unwrap();
        eventually("another deadman", || keeper.deadman() != first);
        let second = keeper.deadman();
        // One that is stopped has its lock taken from it by its end.
        kill(second, Signal::STOP);
        eventually("a third deadman", || keeper.shared.deadman() != Some(second));
        assert_ne!(keeper.deadman(), second);
        assert!(!second.runs());
        assert_eq!((keeper.worker(), keeper.shared.read().fenced), (worker, false), "no failover");
        assert!(container.processes().len() >= 4);
        keeper.fence_in(Duration::from_millis(100));
        eventually("the host is fenced", || keeper.fences_proved() == 1);
        assert!(volume.is_idle());
        eventually("it starts a worker of its own", || keeper.worker() != worker);
    });
}

#[test]
fn root_a_killed_or_hung_worker_is_started_again_and_nobody_is_fenced() {
    alone("keeper::root_a_killed_or_hung_worker_is_started_again_and_nobody_is_fenced", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let keeper = Keeper::start(&host, &[]);
        keeper.store(&Host::table(&[&container], &[&volume]));
        keeper.fence_in(Duration::from_secs(60));
        let deadman = keeper.deadman();
        for signal in [Signal::KILL, Signal::STOP] {
            let worker = keeper.worker();
            let began = Instant::now();
            kill(worker, signal);
            eventually("another worker", || keeper.worker() != worker);
            eprintln!("another worker ticks {:?} after {signal:?}", began.elapsed());
            assert!(!worker.runs());
        }
        assert_eq!(keeper.deadman(), deadman);
        assert_eq!((keeper.shared.read().fenced, keeper.fences_proved()), (false, 0));
        assert!(container.processes().len() >= 4 && volume.is_mounted_on_host());
    });
}

#[test]
fn root_a_worker_that_cannot_be_killed_is_named_and_another_one_is_started_when_it_has_ended() {
    let name =
        "keeper::root_a_worker_that_cannot_be_killed_is_named_and_another_one_is_started_when_it_has_ended";
    alone(name, |alone| {
        let host = Host::new(alone);
        let keeper = Keeper::start(&host, &[]);
        let worker = keeper.worker();
        // What is frozen ends when it is thawed, as what hangs in the kernel does when it comes back from there.
        let frozen = Path::new(FREEZER).join(&alone.cgroup).join("hangs");
        fs::create_dir(&frozen).unwrap();
        fs::write(frozen.join("cgroup.procs"), worker.pid.to_string()).unwrap();
        fs::write(frozen.join("freezer.state"), "FROZEN").unwrap();
        let said = format!("process {} (", worker.pid);
        eventually("it is named", || {
            let log = keeper.log();
            log.lines().any(|line| line.contains(&said) && line.contains("hangs in the kernel; no worker"))
        });
        assert!(worker.runs() && keeper.shared.worker() == Some(worker));
        fs::write(frozen.join("freezer.state"), "THAWED").unwrap();
        eventually("another worker", || keeper.worker() != worker);
        assert_eq!(keeper.log().matches("hangs in the kernel").count(), 1, "said once");
    });
}

#[test]
fn root_a_keeper_that_is_started_too_late_fences_before_it_starts_a_worker() {
    alone("keeper::root_a_keeper_that_is_started_too_late_fences_before_it_starts_a_worker", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let run = alone.directory.join("run");
        fs::create_dir(&run).unwrap();
        let shared = SharedMemory::create(&run.join(DEADLINE)).unwrap();
        shared.extend(Some(holder_now())).unwrap();
        let table = Host::table(&[&container], &[&volume]);
        fs::write(run.join(TABLE), stored(&table)).unwrap();
        let keeper = Keeper::start(&host, &[]);
        eventually("a worker", || {
            let started = keeper.shared.worker().is_some();
            assert!(!started || volume.is_idle(), "a worker was started before the fence was proved");
            started
        });
        assert_eq!((keeper.fences_proved(), container.processes()), (1, [].into()));
    });
}

#[test]
fn root_with_a_broken_table_everything_below_the_roots_is_fenced() {
    alone("keeper::root_with_a_broken_table_everything_below_the_roots_is_fenced", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let keeper = Keeper::start(&host, &[]);
        keeper.worker();
        fs::write(keeper.run.join(TABLE), "{\"containers\"").unwrap();
        keeper.fence_in(Duration::from_millis(100));
        eventually("the host is fenced", || keeper.fences_proved() == 1);
        // Whoever read it first has said so; a worker that has just started keeps it aside.
        let kept = keeper.run.join(TABLE).with_extension("json.broken").exists();
        assert!(kept || keeper.log().contains("the table cannot be read"));
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle());
    });
}

#[test]
fn root_a_directory_has_one_keeper_and_a_new_one_ends_all_processes_of_a_dead_one() {
    alone(
        "keeper::root_a_directory_has_one_keeper_and_a_new_one_ends_all_processes_of_a_dead_one",
        |alone| {
            let host = Host::new(alone);
            let mut keeper = Keeper::start(&host, &[]);
            let (worker, deadman) = (keeper.worker(), keeper.deadman());
            let Output { status, stderr, .. } = command(&host, &[]).output().unwrap();
            let said = String::from_utf8(stderr).unwrap();
            assert!(!status.success() && said.contains("another keeper runs here"), "{status} {said}");
            assert_eq!((keeper.worker(), keeper.deadman()), (worker, deadman));
            keeper.process.kill().unwrap();
            assert_eq!(keeper.process.wait().unwrap().signal(), Some(9));
            let next = Keeper::start(keeper.host, &[]);
            eventually("the next keeper's worker", || {
                next.shared.worker().is_some_and(|found| found != worker && found.runs())
            });
            assert!(!worker.runs() && !deadman.runs());
            next.worker();
            eventually("three processes, and no more", || {
                let mut expected = [next.worker(), next.deadman(), next.guard()];
                expected.sort_unstable();
                let mut found = next.processes();
                found.sort_unstable();
                found == expected
            });
        },
    );
}

#[test]
fn root_a_watchdog_is_petted_until_the_fence_begins_and_again_once_it_is_proved() {
    alone("keeper::root_a_watchdog_is_petted_until_the_fence_begins_and_again_once_it_is_proved", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("btrfs", "vol1");
        let held = volume.point.join("held");
        // The fence cannot be proved while this holds a file.
        let mut pin = Command::new("sh")
            .args(["-c", "exec 3>\"$HELD\"; read end"])
            .env("HELD", &held)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("the file is there", || held.exists());
        // A pipe with a name in place of the device.
        let device = alone.directory.join("watchdog");
        crate::host::run("mkfifo", &[device.to_str().unwrap()]);
        let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        let mut pets = fs::File::options().read(true).custom_flags(nonblock).open(&device).unwrap();
        let mut keeper = Keeper::start(&host, &[&format!("--watchdog={}", device.display())]);
        keeper.worker();
        keeper.store(&Host::table(&[], &[&volume]));
        let mut petted = || {
            let mut bytes = [0; 4096];
            std::io::Read::read(&mut pets, &mut bytes)
                .map_or_else(|_| Vec::new(), |length| bytes[..length].to_vec())
        };
        let until = Instant::now() + Duration::from_secs(20);
        while petted().is_empty() {
            assert!(Instant::now() < until, "never petted");
        }
        keeper.fence_in(Duration::from_millis(100));
        eventually("the fence begins", || keeper.shared.read().fenced);
        eventually("it is not proved in time", || {
            keeper.log().contains("it is not proved that this host does not write")
        });
        petted();
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            assert_eq!(petted(), b"", "petted while the fence is not proved");
        }
        assert_eq!(keeper.fences_proved(), 0);
        drop(pin.stdin.take());
        pin.wait().unwrap();
        eventually("the host is fenced", || keeper.fences_proved() == 1);
        let until = Instant::now() + Duration::from_secs(20);
        while petted().is_empty() {
            assert!(Instant::now() < until, "not petted again");
        }
        // The worker opens the next epoch, holds nothing, and asks for the end.
        keeper.shared.reset();
        keeper.shared.set_stop(true);
        assert!(keeper.process.wait().unwrap().success());
        assert_eq!(petted().last(), Some(&b'V'), "the magic close");
        assert_eq!(keeper.processes(), []);
    });
}
