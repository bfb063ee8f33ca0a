//! What a fence does at once, whatever tenants do: nobody's mounts are looked at, no process is started, and nobody of the host's is
//! harmed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agent_isolator::keeper::fence::{FenceRunner, Known, Policy, Pool, Progress, can_be_shut_down, who_pins};
use rustix::io::Errno;
use shared::clock::holder_now;
use shared::protocol::Now;
use shared::protocol::holder::{MountedVolume, Table};

use crate::alone::{Alone, FREEZER, alone};
use crate::host::{Host, Volume, eventually, run};

fn known(table: Table) -> Known {
    Known::Table(Box::new(table))
}

/// A process that runs a shell script in a namespace of its own, says `up` when it is there, and ends with its standard input.
struct Tenant(Child);

impl Tenant {
    /// `cgroup`: a freezer cgroup, or none, for a process of the host's.
    fn start(cgroup: Option<&str>, propagation: &str, environment: &[(&str, &Path)], script: &str) -> Self {
        let at = cgroup.map(|cgroup| Path::new(FREEZER).join(&cgroup[1..]));
        if let Some(at) = &at {
            fs::create_dir_all(at).unwrap();
        }
        let enter = "[ -z \"$AT\" ] || echo 0 >$AT/cgroup.procs; exec unshare --mount --propagation $KEEP sh -ec \"$DO\"";
        let mut child = Command::new("sh")
            .args(["-c", enter])
            .env("AT", at.unwrap_or_default())
            .envs([("KEEP", propagation), ("DO", &format!("{script}\necho up; read end"))])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        Self(child)
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn signal(mut self) -> Option<i32> {
        self.0.wait().unwrap().signal()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Sixteen thousand mounts, by recursive binds, each of which doubles them.
const MANY: &str = "mount -t tmpfs many $MANY
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do mkdir $MANY/$i; mount --rbind $MANY $MANY/$i; done";

/// A pool whose helpers stand by for this table, and which has looked at the host's mounts.
fn pool(host: &Host<'_>, table: &Table) -> Pool {
    pool_of(&host.policy(), &host.alone.directory, table)
}

fn pool_of(policy: &Policy, directory: &Path, table: &Table) -> Pool {
    let path = directory.join("table.json");
    fs::write(&path, serde_json::json!({ "table": table }).to_string()).unwrap();
    let mut pool = Pool::new(policy.program.clone());
    let wanted = table.volumes.len().min(16) + 3;
    let began = holder_now();
    while pool.standby() < wanted || !pool.knows_the_host() {
        pool.tend(holder_now(), &path, policy);
        assert!(holder_now() < began + Now::from_secs(20), "{} of {wanted} stand by", pool.standby());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    pool
}

/// How much these processes have read so far.
fn read_by(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let counted = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        counted.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok()).unwrap_or_default()
    };
    pids.iter().map(of).sum()
}

fn strike(runner: &mut FenceRunner) {
    let began = holder_now();
    while !runner.has_struck() {
        assert_eq!(runner.poll(holder_now()), Progress::Running);
        assert!(holder_now() < began + Now::from_secs(20), "not struck");
    }
}

fn is_shut_down(volume: &Volume) -> bool {
    let written = fs::write(volume.point.join("after"), "x");
    written.is_err_and(|error| error.raw_os_error() == Some(Errno::IO.raw_os_error()))
}

#[test]
fn root_file_systems_are_shut_down_before_anybody_is_killed_and_without_a_look_at_hostile_namespaces() {
    let name = "strike::root_file_systems_are_shut_down_before_anybody_is_killed_and_without_a_look_at_hostile_namespaces";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volumes = [host.volume("ext4", "vol1"), host.volume("xfs", "vol2")];
        let container = host.container("task1", &volumes[0], false);
        let many = alone.directory.join("many");
        fs::create_dir(&many).unwrap();
        let hostile = |n: u32| {
            let cgroup = host.cgroup(&format!("hostile{n}"));
            Tenant::start(Some(&cgroup), "private", &[("MANY", &many)], MANY)
        };
        let mut hostile: Vec<_> = (0..3).map(hostile).collect();
        let table = Host::table(&[&container], &[&volumes[0], &volumes[1]]);
        let pool = pool(&host, &table);
        let pids = pool.pids();
        let before = read_by(&pids);
        let mut runner = FenceRunner::strike(&known(table.clone()), host.policy(), pool);
        strike(&mut runner);
        let read = read_by(&pids) - before;
        assert!(volumes.iter().all(is_shut_down));
        assert!(!container.processes().is_empty(), "who is killed before the shutdown may delay it");
        let state = Path::new(FREEZER).join(&container.cgroup[1..]).join("freezer.state");
        assert_ne!(fs::read_to_string(state).unwrap().trim(), "THAWED");
        // Each hostile table is more than a megabyte, and the host's own some kilobytes.
        assert!(read < 100_000, "{read} bytes were read before the last shutdown");
        assert!(runner.helpers().iter().all(|pid| pids.contains(pid)), "a process was started for the fence");
        let pool = runner.into_pool();
        let mut runner = FenceRunner::with_pool(&known(table), None, None, host.policy(), pool);
        // They pin both by their copies: the shutdown is the proof.
        runner.run_until_proved(holder_now() + Now::from_secs(20)).unwrap();
        assert_eq!(container.processes(), [].into());
        assert!(hostile.iter_mut().all(Tenant::lives), "containers without a volume were killed");
        volumes.iter().for_each(Volume::assert_no_writes);
    });
}

/// This process's tasks and those of its children cannot become more, until it is dropped.
struct FullTable(PathBuf);

impl FullTable {
    fn new(alone: &Alone) -> Self {
        let root = Path::new("/sys/fs/cgroup/pids");
        let full = root.join(&alone.cgroup);
        fs::create_dir(&full).unwrap();
        let it = Self(full.clone());
        fs::write(full.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let tasks = fs::read_to_string(full.join("pids.current")).unwrap();
        fs::write(full.join("pids.max"), tasks.trim()).unwrap();
        it
    }
}

impl Drop for FullTable {
    fn drop(&mut self) {
        let all = Path::new("/sys/fs/cgroup/pids/cgroup.procs");
        let _left = fs::write(all, std::process::id().to_string());
        let _removed = fs::remove_dir(&self.0);
    }
}

#[test]
fn root_a_whole_fence_is_proved_by_helpers_that_stand_by_while_no_process_can_be_started() {
    let name =
        "strike::root_a_whole_fence_is_proved_by_helpers_that_stand_by_while_no_process_can_be_started";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volumes = [host.volume("ext4", "vol1"), host.volume("btrfs", "vol2")];
        let containers =
            [host.container("task1", &volumes[0], false), host.container("task2", &volumes[1], false)];
        let table = Host::table(&[&containers[0], &containers[1]], &[&volumes[0], &volumes[1]]);
        let pool = pool(&host, &table);
        let full = FullTable::new(alone);
        let refused = Command::new("true").spawn().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::AGAIN.raw_os_error()));
        let mut runner = FenceRunner::with_pool(&known(table.clone()), None, None, host.policy(), pool);
        runner.run_until_proved(holder_now() + Now::from_secs(20)).unwrap();
        assert!(volumes.iter().all(Volume::is_idle));
        assert!(containers.iter().all(|container| container.processes().is_empty()));
        // Without those that stand by there is no fence.
        let mut without = FenceRunner::new(&known(table), None, None, host.policy());
        let why = without.run_until_proved(holder_now() + Now::from_secs(2)).unwrap_err();
        assert!(why.contains("no helper process could be started"), "{why}");
        drop(full);
    });
}

#[test]
fn root_more_volumes_than_helpers_are_shut_down_while_no_process_can_be_started() {
    alone("strike::root_more_volumes_than_helpers_are_shut_down_while_no_process_can_be_started", |alone| {
        let host = Host::new(alone);
        let volumes = [host.volume("ext4", "vol1"), host.volume("xfs", "vol2")];
        // Sixty volumes, on two file systems.
        let mut stored = serde_json::to_value(Host::table(&[], &[&volumes[0], &volumes[1]])).unwrap();
        let rows = stored["volumes"].as_array_mut().unwrap();
        for n in 2..60 {
            let mut row = rows[n % 2].clone();
            row["wanted"]["volume"]["name"] = format!("vol{}", n + 1).into();
            row["wanted"]["asked"] = row["wanted"]["volume"].clone();
            rows.push(row);
        }
        let table: Table = serde_json::from_value(stored).unwrap();
        let pool = pool(&host, &table);
        let pids = pool.pids();
        assert_eq!(pids.len(), 19);
        let full = FullTable::new(alone);
        let mut runner = FenceRunner::strike(&known(table), host.policy(), pool);
        strike(&mut runner);
        assert_eq!(runner.what_was_struck(), "60 of 60 volumes' file systems are shut down");
        assert!(volumes.iter().all(is_shut_down));
        assert!(runner.helpers().iter().all(|pid| pids.contains(pid)), "a process was started for the fence");
        drop(full);
    });
}

#[test]
fn root_a_process_that_a_strike_could_not_start_is_tried_again() {
    alone("strike::root_a_process_that_a_strike_could_not_start_is_tried_again", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let table = known(Host::table(&[&container], &[&volume]));
        let full = FullTable::new(alone);
        let strike_now = || FenceRunner::strike(&table, host.policy(), Pool::new(host.policy().program));
        let mut in_vain = strike_now();
        strike(&mut in_vain);
        let why = in_vain.what_was_struck();
        assert!(
            why.starts_with("0 of 1 ") && why.contains("volume ebs/vol1: no helper process could be"),
            "{why}"
        );
        assert!(!is_shut_down(&volume));
        let mut runner = strike_now();
        // The same moment, however long the second takes: nothing is given up between the two.
        let now = holder_now();
        assert_eq!((runner.poll(now), runner.has_struck()), (Progress::Running, false));
        drop(full);
        assert_eq!((runner.poll(now), runner.has_struck()), (Progress::Running, false));
        strike(&mut runner);
        assert!(is_shut_down(&volume), "{}", runner.what_was_struck());
        // Who is frozen would not end with this test.
        host.fence(&table);
    });
}

#[test]
fn root_helpers_that_died_while_they_stood_by_are_replaced_before_and_in_a_fence() {
    let name = "strike::root_helpers_that_died_while_they_stood_by_are_replaced_before_and_in_a_fence";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let table = Host::table(&[], &[&volume]);
        let mut pool = pool(&host, &table);
        let kill = |pids: &[u32]| {
            for pid in pids {
                run("kill", &["-KILL", &pid.to_string()]);
                let state = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                eventually("it ends", || !state().contains("(extvol-fence)") || state().contains(") Z "));
            }
        };
        let first = pool.pids();
        kill(&first[..2]);
        for _ in 0..2 {
            pool.tend(holder_now(), &alone.directory.join("table.json"), &host.policy());
        }
        assert!(pool.standby() >= 4 && !pool.pids().contains(&first[0]));
        kill(&pool.pids());
        let mut runner = FenceRunner::with_pool(&known(table), None, None, host.policy(), pool);
        runner.run_until_proved(holder_now() + Now::from_secs(20)).unwrap();
        assert!(volume.is_idle());
        assert!(runner.into_pool().standby() > 0, "helpers are used again");
    });
}

#[test]
fn root_monitors_with_slave_copies_of_the_whole_host_survive_a_fence() {
    alone("strike::root_monitors_with_slave_copies_of_the_whole_host_survive_a_fence", |alone| {
        let host = Host::new(alone);
        let volumes = [host.volume("ext4", "vol1"), host.volume("btrfs", "vol2")];
        let containers =
            [host.container("task1", &volumes[0], false), host.container("task2", &volumes[1], true)];
        let place = alone.directory.join("host");
        fs::create_dir(&place).unwrap();
        let all = [("ROOT", host.root.as_path()), ("PLACE", &place)];
        let mut monitor = Tenant::start(None, "slave", &all, "mount --rbind --make-rslave $ROOT $PLACE");
        let seen = format!("/proc/{}/root{}/vol2", monitor.0.id(), place.display());
        assert!(Path::new(&seen).join("outer").exists(), "it sees the volume elsewhere");
        host.fence(&known(Host::table(&[&containers[0], &containers[1]], &[&volumes[0], &volumes[1]])));
        assert!(monitor.lives(), "a process of the host's was killed");
        assert!(volumes.iter().all(Volume::is_idle), "its copies go with the host's mounts");
        assert!(containers.iter().all(|container| container.processes().is_empty()));
    });
}

#[test]
fn root_who_pins_a_btrfs_is_killed_if_it_is_of_the_agents_containers_and_only_named_otherwise() {
    let name =
        "strike::root_who_pins_a_btrfs_is_killed_if_it_is_of_the_agents_containers_and_only_named_otherwise";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("btrfs", "vol1");
        let mounted: MountedVolume = serde_json::from_value(volume.mounted()).unwrap();
        let cgroup_root = format!("/{}", alone.cgroup);
        let mut tenant = Tenant::start(Some(&host.cgroup("other")), "private", &[], ":");
        let mut hosts = Tenant::start(None, "private", &[], ":");
        let (pins, all) = who_pins(&mounted, Some(&cgroup_root)).unwrap();
        let found: Vec<_> =
            pins.iter().map(|pin| (pin.pid, pin.cgroup.clone(), pin.mount_point.clone())).collect();
        let other = Some(host.cgroup("other"));
        assert_eq!(
            found,
            [(tenant.0.id(), other, volume.point.clone()), (hosts.0.id(), None, volume.point.clone())]
        );
        assert!(all);
        let why = host.fence_in_vain(&known(Host::table(&[], &[&volume])));
        assert!(
            why.contains(&format!("process {}", hosts.0.id())) && why.contains("in its own mount namespace"),
            "{why}"
        );
        assert!(!why.contains(&format!("process {}", tenant.0.id())), "{why}");
        assert!(hosts.lives() && !tenant.lives());
        assert_eq!(tenant.signal(), Some(9));
        drop(hosts);
        host.fence(&known(Host::table(&[], &[&volume])));
        assert!(volume.is_idle());
    });
}

#[test]
fn root_a_tenant_whose_mounts_are_too_many_to_be_seen_through_cannot_hide_a_volume_there() {
    let name =
        "strike::root_a_tenant_whose_mounts_are_too_many_to_be_seen_through_cannot_hide_a_volume_there";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("btrfs", "vol1");
        let many = alone.directory.join("many");
        fs::create_dir(&many).unwrap();
        let hidden = alone.directory.join("hidden");
        fs::create_dir(&hidden).unwrap();
        let hide = format!("{MANY}\nmount --bind $VOLUME $HIDDEN; umount $VOLUME");
        let places = [("MANY", many.as_path()), ("VOLUME", &volume.point), ("HIDDEN", &hidden)];
        let tenant = Tenant::start(Some(&host.cgroup("other")), "private", &places, &hide);
        host.fence(&known(Host::table(&[], &[&volume])));
        assert!(volume.is_idle());
        assert_eq!(tenant.signal(), Some(9));
    });
}

#[test]
fn root_what_is_mounted_outside_the_roots_as_well_is_not_shut_down_and_the_fence_says_why() {
    let name =
        "strike::root_what_is_mounted_outside_the_roots_as_well_is_not_shut_down_and_the_fence_says_why";
    alone(name, |alone| {
        let host = Host::new(alone);
        // The host's data disk, of which a plugin has bound a directory below the root.
        let disk = host.volume("ext4", "vol1");
        let data = alone.directory.join("data");
        fs::create_dir(&data).unwrap();
        fs::create_dir(disk.point.join("sub")).unwrap();
        run("umount", &[disk.point.to_str().unwrap()]);
        run("mount", &[&disk.device, data.to_str().unwrap()]);
        let sub = data.join("sub");
        run("mount", &["--bind", sub.to_str().unwrap(), disk.point.to_str().unwrap()]);
        let table = Host::table(&[], &[&disk]);
        // With and without what a pool knows of the host.
        for pool in [pool(&host, &table), Pool::new(host.policy().program)] {
            let mut runner = FenceRunner::with_pool(&known(table.clone()), None, None, host.policy(), pool);
            strike(&mut runner);
            let why = runner.run_until_proved(holder_now() + Now::from_secs(1)).unwrap_err();
            assert!(why.contains("outside mount_roots") && why.contains("volume ebs/vol1"), "{why}");
        }
        fs::write(data.join("still"), "writable").unwrap();
        assert!(disk.is_mounted_on_host());
        // Nor what a record of an older keeper names outside the roots alone.
        run("umount", &[disk.point.to_str().unwrap()]);
        let mut stored = serde_json::to_value(&table).unwrap();
        stored["volumes"][0]["mounted"]["mount_point"] = data.to_str().unwrap().into();
        let why = host.fence_in_vain(&known(serde_json::from_value(stored).unwrap()));
        assert!(why.contains("outside mount_roots"), "{why}");
        // Nor by a sweep.
        host.fence(&known(Table::default()));
        host.fence(&Known::Lost);
        fs::write(data.join("still"), "writable").unwrap();
    });
}

#[test]
fn root_a_volume_behind_a_link_or_under_another_mount_is_shut_down_by_what_the_table_of_mounts_tells() {
    let name = "strike::root_a_volume_behind_a_link_or_under_another_mount_is_shut_down_by_what_the_table_of_mounts_tells";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        // The driver's answer is a directory on the volume, which a task replaced by a link to the host's.
        let inside = volume.point.join("data");
        std::os::unix::fs::symlink(&alone.directory, &inside).unwrap();
        let linked = alone.directory.join("linked");
        std::os::unix::fs::symlink(&host.root, &linked).unwrap();
        let mut stored = serde_json::to_value(Host::table(&[], &[&volume])).unwrap();
        for (point, roots) in [(inside, host.root.clone()), (linked.join("vol1"), linked)] {
            stored["volumes"][0]["mounted"]["mount_point"] = point.to_str().unwrap().into();
            let table: Table = serde_json::from_value(stored.clone()).unwrap();
            let policy = Policy { roots: vec![roots], ..host.policy() };
            let pool = pool(&host, &table);
            let mut runner = FenceRunner::strike(&known(table), policy, pool);
            strike(&mut runner);
            assert!(is_shut_down(&volume), "{}", point.display());
            run("umount", &[volume.point.to_str().unwrap()]);
            run("mount", &[&volume.device, volume.point.to_str().unwrap()]);
            assert!(!is_shut_down(&volume));
        }
        fs::write(alone.directory.join("still"), "writable").unwrap();
    });
}

#[test]
fn root_the_kinds_that_are_said_to_have_a_shutdown_have_it_and_others_have_not() {
    alone("strike::root_the_kinds_that_are_said_to_have_a_shutdown_have_it_and_others_have_not", |alone| {
        let host = Host::new(alone);
        for kind in ["ext3", "ext4", "xfs", "btrfs"] {
            let volume = host.volume(kind, kind);
            let table = Host::table(&[], &[&volume]);
            let pool = pool(&host, &table);
            let mut runner = FenceRunner::strike(&known(table), host.policy(), pool);
            strike(&mut runner);
            assert_eq!(is_shut_down(&volume), can_be_shut_down(kind), "{kind}");
        }
    });
}

/// A program in the place of the keeper's helpers, which does nothing to this host: it notes each volume that it is to shut down, and
/// never answers for those whose mount points begin with `/hung`. To make one idle it waits for the file `go`.
const HELPER: &str = r#"#!/bin/sh
while read -r job; do
    case $job in
    *Shutdown*/hung*) echo hung >>"$NOTES/shutdowns"; exec sleep 1000 ;;
    *Shutdown*) echo shut >>"$NOTES/shutdowns"; echo '{"Shut":{"Ok":true}}' ;;
    *Look*) echo '{"Hosts":{}}' ;;
    *Kill*) echo '{"Killed":{}}' ;;
    *MakeIdle*)
        echo idle >>"$NOTES/idle"
        while [ ! -e "$NOTES/go" ]; do sleep 0.01; done
        echo '{"Idle":{"Ok":null}}' ;;
    *Sweep*) echo '{"Swept":[]}' ;;
    esac
done
"#;

/// The policy of a host with those helpers, and a table of volumes with these names, each mounted at its own.
fn pretended(alone: &Alone, names: impl Iterator<Item = String>) -> (Policy, Table) {
    let program = alone.directory.join("helper");
    fs::write(&program, HELPER.replace("$NOTES", alone.directory.to_str().unwrap())).unwrap();
    run("chmod", &["+x", program.to_str().unwrap()]);
    let row = |name: String| {
        let id = serde_json::json!({ "driver": "ebs", "name": name });
        serde_json::json!({
            "wanted": { "volume": id, "asked": id, "create": null }, "users": [], "phase": "attached", "token": 1,
            "mounted": {
                "mount_point": format!("/{name}"), "device_number": "7:1", "source": "/dev/none", "device": null,
            },
        })
    };
    let rows: Vec<_> = names.map(row).collect();
    let table = serde_json::json!({ "open": null, "refused": null, "containers": {}, "volumes": rows });
    let policy = Policy { roots: vec![], hosts_own: vec![], cgroup_root: None, program, reset: None };
    (policy, serde_json::from_value(table).unwrap())
}

fn noted(alone: &Alone, what: &str, word: &str) -> usize {
    let notes = fs::read_to_string(alone.directory.join(what)).unwrap_or_default();
    notes.lines().filter(|line| *line == word).count()
}

/// Polls at this time, however long it takes, until that is so; and some more.
fn poll_at(runner: &mut FenceRunner, now: Now, what: &str, is_so: impl Fn() -> bool) {
    let began = holder_now();
    let mut since = 0;
    while since < 20 {
        assert!(holder_now() < began + Now::from_secs(20), "{what}: {}", runner.what_was_struck());
        let _progress = runner.poll(now);
        since += u32::from(is_so());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn root_volumes_that_hang_do_not_hold_up_the_shutdown_of_those_that_sort_behind_them() {
    let name = "strike::root_volumes_that_hang_do_not_hold_up_the_shutdown_of_those_that_sort_behind_them";
    alone(name, |alone| {
        let hung = (10..50).map(|n| format!("hung{n}"));
        let (policy, table) = pretended(alone, hung.chain((10..30).map(|n| format!("well{n}"))));
        let pool = pool_of(&policy, &alone.directory, &table);
        let (first, table) = (pool.standby(), known(table));
        let mut strike = FenceRunner::strike(&table, policy.clone(), pool);
        let now = holder_now();
        let came_to = |hung| move || noted(alone, "shutdowns", "hung") == hung;
        poll_at(&mut strike, now, "all that stand by", came_to(first));
        // These are given up, and processes are started in their place: as many as usually stand by, and no more.
        let now = now + Now::from_millis(150);
        poll_at(&mut strike, now, "others", came_to(first + 16));
        let mut fence = FenceRunner::with_pool(&table, None, None, policy, strike.into_pool());
        // First come the last few of those, with which nobody has tried; beside them there is room for the others.
        let now = now + Now::from_millis(1);
        let all_well = || noted(alone, "shutdowns", "shut") == 20;
        poll_at(&mut fence, now, "those that are well", all_well);
        assert!(fence.what_was_struck().starts_with("20 of 60 "), "{}", fence.what_was_struck());
    });
}

#[test]
fn root_a_fence_makes_sixteen_volumes_idle_at_once_and_then_the_others() {
    alone("strike::root_a_fence_makes_sixteen_volumes_idle_at_once_and_then_the_others", |alone| {
        let (policy, table) = pretended(alone, (10..50).map(|n| format!("well{n}")));
        let pool = pool_of(&policy, &alone.directory, &table);
        let stand_by = pool.standby();
        let mut fence = FenceRunner::with_pool(&known(table), None, None, policy, pool);
        let begun = |idle| move || noted(alone, "idle", "idle") == idle;
        poll_at(&mut fence, holder_now(), "sixteen", begun(16));
        assert_eq!(fence.helpers().len(), stand_by);
        fs::write(alone.directory.join("go"), "").unwrap();
        fence.run_until_proved(holder_now() + Now::from_secs(20)).unwrap();
        assert!(begun(40)());
    });
}
