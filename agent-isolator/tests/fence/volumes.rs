//! What a fence does to volumes and containers.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent_isolator::keeper::fence::{FenceRunner, Known, Policy, Progress, Reset};
use serde_json::json;
use shared::clock::holder_now;
use shared::protocol::holder::Table;

use crate::alone::{FREEZER, alone};
use crate::host::{Host, eventually, run};

fn known(table: Table) -> Known {
    Known::Table(Box::new(table))
}

/// A container and one nested in it write to the volume; after the fence nothing runs, nothing writes, and the device is idle.
fn fences_a_writing_container(test: &str, kind: &str, keep: bool) {
    alone(test, |alone| {
        let host = Host::new(alone);
        let volume = host.volume(kind, "vol1");
        let container = host.container("task1", &volume, keep);
        assert!(container.processes().len() >= 4, "{:?}", container.processes());
        assert!(!volume.is_idle());
        host.fence(&known(Host::table(&[&container], &[&volume])));
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle() && !volume.is_mounted_on_host());
        volume.assert_no_writes();
        // What was synced is there after the journal is replayed.
        run("mount", &[&volume.device, volume.point.to_str().unwrap()]);
        assert!(fs::read(volume.point.join("outer")).unwrap().len() == 4 * 4096);
    });
}

#[test]
fn root_a_writing_container_on_ext4_is_fenced() {
    fences_a_writing_container("volumes::root_a_writing_container_on_ext4_is_fenced", "ext4", false);
}

#[test]
fn root_a_writing_container_on_xfs_is_fenced() {
    fences_a_writing_container("volumes::root_a_writing_container_on_xfs_is_fenced", "xfs", false);
}

#[test]
fn root_a_writing_container_on_btrfs_is_fenced() {
    fences_a_writing_container("volumes::root_a_writing_container_on_btrfs_is_fenced", "btrfs", false);
}

#[test]
fn root_a_container_that_keeps_copies_of_the_hosts_mounts_is_fenced() {
    let name = "volumes::root_a_container_that_keeps_copies_of_the_hosts_mounts_is_fenced";
    fences_a_writing_container(name, "btrfs", true);
}

/// Whether a file of a container is written to.
fn is_written(file: &Path) -> bool {
    let before = fs::read(file).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    fs::read(file).unwrap() != before
}

#[test]
fn root_who_writes_to_a_directory_is_fenced_and_its_file_system_goes_on() {
    alone("volumes::root_who_writes_to_a_directory_is_fenced_and_its_file_system_goes_on", |alone| {
        for lost in [false, true] {
            let host = Host::new(alone);
            let (volume, beside) = (host.directory("vol1"), host.directory("vol2"));
            let container = host.container("task1", &volume, true);
            let file = volume.root_path().join("outer");
            assert!(is_written(&file));
            let table = Host::table(&[&container], &[&volume]);
            host.fence(&if lost { Known::Lost } else { known(table) });
            assert_eq!(container.processes(), [].into());
            assert!(!volume.is_mounted_on_host() && !is_written(&file));
            assert!(!beside.is_mounted_on_host(), "what no table tells of is made idle as well");
            // It was the host's own file system, and lives.
            fs::write(volume.root_path().join("after"), "the fence").unwrap();
            let _gone = run("umount", &["-R", host.root.to_str().unwrap()]);
            fs::remove_dir_all(&host.root).unwrap();
            fs::remove_dir_all(alone.directory.join("task1-sees")).unwrap();
        }
    });
}

#[test]
fn root_who_holds_a_directory_and_is_no_container_is_named_and_left_alone() {
    alone("volumes::root_who_holds_a_directory_and_is_no_container_is_named_and_left_alone", |alone| {
        let host = Host::new(alone);
        let volume = host.directory("vol1");
        let plain = volume.root_path();
        let holds = format!("exec 3>>{}/file && exec sleep 1000", plain.display());
        let mut holder = Command::new("sh").args(["-c", &holds]).spawn().unwrap();
        eventually("it has the file", || plain.join("file").exists());
        let why = host.fence_in_vain(&known(Host::table(&[], &[&volume])));
        assert!(why.contains(&format!("by open files of process {}", holder.id())), "{why}");
        assert!(holder.try_wait().unwrap().is_none());
        holder.kill().unwrap();
        holder.wait().unwrap();
        host.fence(&known(Host::table(&[], &[&volume])));
    });
}

#[test]
fn root_a_frozen_container_is_killed() {
    alone("volumes::root_a_frozen_container_is_killed", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        let outer = Path::new(FREEZER).join(&container.cgroup[1..]);
        // Both by itself and by what it is in.
        for cgroup in [outer.join("mesos/inner"), outer.clone(), outer.parent().unwrap().to_owned()] {
            fs::write(cgroup.join("freezer.state"), "FROZEN").unwrap();
        }
        host.fence(&known(Host::table(&[&container], &[&volume])));
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle());
    });
}

#[test]
fn root_containers_whose_cgroups_are_not_recorded_are_found_by_their_names_and_killed() {
    let name = "volumes::root_containers_whose_cgroups_are_not_recorded_are_found_by_their_names_and_killed";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let containers = [host.container("task1", &volume, false), host.container("task2", &volume, false)];
        let mut table =
            serde_json::to_value(Host::table(&[&containers[0], &containers[1]], &[&volume])).unwrap();
        let stored = table["containers"].as_object_mut().unwrap();
        stored["task1"]["cgroup"] = json!(null);
        let mut nested = stored.remove("task2").unwrap();
        nested["cgroup"] = json!(null);
        stored.insert("task2.inner".into(), nested);
        stored.insert("never-isolated".into(), stored["task1"].clone());
        host.fence(&known(serde_json::from_value(table).unwrap()));
        assert_eq!(containers[0].processes(), [].into());
        let inner = format!("{FREEZER}{}/mesos/inner/cgroup.procs", containers[1].cgroup);
        assert_eq!(fs::read_to_string(inner).unwrap(), "");
    });
}

#[test]
fn root_an_orphan_outside_the_cgroup_and_a_volume_held_by_an_open_file_alone_are_fenced() {
    let name =
        "volumes::root_an_orphan_outside_the_cgroup_and_a_volume_held_by_an_open_file_alone_are_fenced";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let container = host.container("task1", &volume, false);
        // The first lives as long as the container; others are writes that come and go.
        let outer = *container.processes().iter().next().unwrap();
        // In no cgroup and no pid namespace of the container, but in its mount namespace.
        let mut orphan = Command::new("nsenter")
            .args([&format!("--mount=/proc/{outer}/ns/mnt"), "sh", "-c", "echo up; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = std::io::BufReader::new(orphan.stdout.as_mut().unwrap());
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert!(line == "up\n" && !container.processes().contains(&orphan.id()));
        // The host's own process holds a file, and is not killed for that: the file system is shut down under it.
        let file = fs::File::create(volume.point.join("held")).unwrap();
        host.fence(&known(Host::table(&[&container], &[&volume])));
        assert_eq!(orphan.wait().unwrap().signal(), Some(9));
        assert!(!volume.is_idle(), "the open file still pins the device: the proof is the shutdown");
        let error = std::io::Write::write_all(&mut &file, b"x").and_then(|()| file.sync_all()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        volume.assert_no_writes();
    });
}

#[test]
fn root_a_volume_that_was_lazily_unmounted_before_is_shut_down_by_the_file_that_holds_it() {
    let name =
        "volumes::root_a_volume_that_was_lazily_unmounted_before_is_shut_down_by_the_file_that_holds_it";
    alone(name, |alone| {
        let host = Host::new(alone);
        for kind in ["ext4", "xfs"] {
            let volume = host.volume(kind, kind);
            let file = fs::File::create(volume.point.join("held")).unwrap();
            run("umount", &["--lazy", volume.point.to_str().unwrap()]);
            assert!(!volume.is_idle() && !volume.is_mounted_on_host());
            host.fence(&known(Host::table(&[], &[&volume])));
            // A worker that is started after the deadman's fence has to prove it once more.
            host.fence(&known(Host::table(&[], &[&volume])));
            let written = std::io::Write::write_all(&mut &file, b"x").and_then(|()| file.sync_all());
            assert!(written.is_err(), "{kind} was called fenced and takes writes");
        }
    });
}

#[test]
fn root_a_pinned_btrfs_is_not_called_proved_and_who_pins_it_is_named() {
    alone("volumes::root_a_pinned_btrfs_is_not_called_proved_and_who_pins_it_is_named", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("btrfs", "vol1");
        let held = volume.point.join("held");
        // A process of the host's own namespace: it is never killed.
        let mut pin = Command::new("sh")
            .args(["-c", "exec 3>\"$HELD\"; echo held; read end"])
            .env("HELD", &held)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("the file is there", || held.exists());
        let why = host.fence_in_vain(&known(Host::table(&[], &[&volume])));
        assert!(why.contains("volume ebs/vol1") && why.contains(&volume.device), "{why}");
        assert!(!volume.is_idle() && !volume.is_mounted_on_host(), "a lazy unmount alone is no proof");
        assert!(pin.try_wait().unwrap().is_none(), "the host's own process was killed");
        drop(pin.stdin.take());
        pin.wait().unwrap();
        host.fence(&known(Host::table(&[], &[&volume])));
        assert!(volume.is_idle());
    });
}

#[test]
fn root_what_is_not_proved_in_time_resets_the_host_once_where_that_is_allowed() {
    alone("volumes::root_what_is_not_proved_in_time_resets_the_host_once_where_that_is_allowed", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("btrfs", "vol1");
        let held = fs::File::create(volume.point.join("held")).unwrap();
        // A file in place of the kernel's trigger.
        let trigger = alone.directory.join("trigger");
        let policy = Policy { reset: Some(Reset::Sysrq(trigger.clone())), ..host.policy() };
        let known = known(Host::table(&[], &[&volume]));
        let give_up = holder_now() + Duration::from_millis(300);
        let mut runner = FenceRunner::new(&known, Some(give_up), None, policy);
        while runner.poll(holder_now()) == Progress::Running {
            assert!(!trigger.exists(), "reset before its time");
            assert!(holder_now() < give_up + Duration::from_secs(20));
        }
        assert_eq!(fs::read(&trigger).unwrap(), b"b");
        fs::remove_file(&trigger).unwrap();
        // A reset that did not come about does not end the fence.
        drop(held);
        runner.run_until_proved(holder_now() + Duration::from_secs(20)).unwrap();
        assert!(volume.is_idle() && !trigger.exists());
    });
}

#[test]
fn root_a_driver_call_under_way_is_waited_for_and_what_it_mounted_is_swept() {
    alone("volumes::root_a_driver_call_under_way_is_waited_for_and_what_it_mounted_is_swept", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let point = volume.point.to_str().unwrap();
        run("umount", &[point]);
        let mounting: Table = {
            let mut stored = serde_json::to_value(Host::table(&[], &[&volume])).unwrap();
            let row = stored["volumes"][0].as_object_mut().unwrap();
            row.insert("phase".into(), json!("mounting"));
            row.remove("mounted");
            serde_json::from_value(stored).unwrap()
        };
        let settled = holder_now() + Duration::from_millis(800);
        let mut runner = FenceRunner::new(&known(mounting), None, Some(settled), host.policy());
        // The first sweep finds nothing; then the driver's call comes about.
        while holder_now() < settled - Duration::from_millis(300) {
            assert_eq!(runner.poll(holder_now()), Progress::Running);
        }
        run("mount", &[&volume.device, point]);
        runner.run_until_proved(holder_now() + Duration::from_secs(20)).unwrap();
        assert!(holder_now() >= settled && volume.is_idle() && !volume.is_mounted_on_host());
    });
}

#[test]
fn root_a_disk_that_is_gone_is_proved_and_another_one_under_its_number_is_left_alone() {
    alone(
        "volumes::root_a_disk_that_is_gone_is_proved_and_another_one_under_its_number_is_left_alone",
        |alone| {
            let host = Host::new(alone);
            for kind in ["ext4", "btrfs"] {
                let gone = host.volume(kind, &format!("{kind}-gone"));
                run("umount", &[gone.point.to_str().unwrap()]);
                run("losetup", &["-d", &gone.device]);
                // The same loop device, and outside the roots: nothing to sweep.
                run("losetup", &[&gone.device, gone.image.to_str().unwrap()]);
                let elsewhere = alone.directory.join(format!("{kind}-elsewhere"));
                fs::create_dir(&elsewhere).unwrap();
                run("mount", &[&gone.device, elsewhere.to_str().unwrap()]);
                host.fence(&known(Host::table(&[], &[&gone])));
                fs::write(elsewhere.join("file"), "still writable").unwrap();
                run("umount", &[elsewhere.to_str().unwrap()]);
            }
        },
    );
}

#[test]
fn root_a_file_system_without_a_device_is_proved_by_the_mount_tables_and_never_unmounted_lazily() {
    let name = "volumes::root_a_file_system_without_a_device_is_proved_by_the_mount_tables_and_never_unmounted_lazily";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.memory("vol1");
        let container = host.container("task1", &volume, true);
        let held = fs::File::create(volume.point.join("held")).unwrap();
        let why = host.fence_in_vain(&known(Host::table(&[&container], &[&volume])));
        assert!(why.contains("by the host's mount at"), "{why}");
        assert!(volume.is_mounted_on_host(), "unmounted while somebody could write to it unseen");
        assert_eq!(container.processes(), [].into());
        drop(held);
        host.fence(&known(Host::table(&[&container], &[&volume])));
        assert!(!volume.is_mounted_on_host());
    });
}

#[test]
fn root_the_hosts_own_file_system_is_never_shut_down() {
    alone("volumes::root_the_hosts_own_file_system_is_never_shut_down", |alone| {
        let host = Host::new(alone);
        let number = run("mountpoint", &["--fs-devno", "/"]);
        let number = if number.is_empty() { run("stat", &["--format", "%Hd:%Ld", "/"]) } else { number };
        // A record that names a plain directory below the root, and one of a bind mount of the host's.
        let plain = host.root.join("plain");
        fs::create_dir(&plain).unwrap();
        let bound = host.root.join("bound");
        fs::create_dir(&bound).unwrap();
        run("mount", &["--bind", alone.directory.to_str().unwrap(), bound.to_str().unwrap()]);
        for point in [plain, bound] {
            let volume = json!({"driver": "ebs", "name": "vol1"});
            let wanted = json!({"volume": volume, "asked": volume, "create": null});
            let mounted = json!({
                "mount_point": point, "device_number": number, "source": "none", "device": null,
            });
            let row = json!({
                "wanted": wanted, "users": [], "phase": "attached", "token": 1, "mounted": mounted,
            });
            let table = json!({"open": null, "refused": null, "containers": {}, "volumes": [row]});
            let why = host.fence_in_vain(&known(serde_json::from_value(table).unwrap()));
            assert!(why.contains("never shut down"), "{why}");
        }
        fs::write(alone.directory.join("still"), "writable").unwrap();
        // Nor by a sweep.
        host.fence(&known(Table::default()));
        host.fence(&Known::Lost);
        fs::write(alone.directory.join("still"), "writable").unwrap();
    });
}

#[test]
fn root_what_no_table_tells_of_is_swept() {
    alone("volumes::root_what_no_table_tells_of_is_swept", |alone| {
        let host = Host::new(alone);
        let (first, second) = (host.volume("ext4", "vol1"), host.volume("xfs", "vol2"));
        host.fence(&known(Table::default()));
        assert!(first.is_idle() && second.is_idle());
        assert!(!first.is_mounted_on_host() && !second.is_mounted_on_host());
    });
}

#[test]
fn root_without_a_table_the_containers_that_see_a_volume_are_killed() {
    alone("volumes::root_without_a_table_the_containers_that_see_a_volume_are_killed", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("btrfs", "vol1");
        let container = host.container("task1", &volume, true);
        host.fence(&Known::Lost);
        assert_eq!(container.processes(), [].into());
        assert!(volume.is_idle());
    });
}

#[test]
fn root_a_container_without_a_volume_lives_on() {
    alone("volumes::root_a_container_without_a_volume_lives_on", |alone| {
        let host = Host::new(alone);
        let volume = host.volume("ext4", "vol1");
        let cgroup = host.cgroup("other");
        let at = Path::new(FREEZER).join(&cgroup[1..]);
        fs::create_dir_all(&at).unwrap();
        // Its namespace has a copy of the volume's mount, at the host's own place.
        let mut other = Command::new("sh")
            .args(["-c", "echo 0 >$AT/cgroup.procs; exec unshare --mount --propagation slave sh -c 'echo up; read end'"])
            .env("AT", &at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.as_mut().unwrap()), &mut line)
            .unwrap();
        let container = host.container("task1", &volume, false);
        host.fence(&known(Host::table(&[&container], &[&volume])));
        assert!(volume.is_idle());
        assert!(other.try_wait().unwrap().is_none(), "a container without volumes was killed");
        drop(other.stdin.take());
        other.wait().unwrap();
    });
}

#[test]
fn root_a_file_system_without_a_device_that_was_lazily_unmounted_is_not_proved_while_a_file_is_open_or_mapped()
 {
    let name = "volumes::root_a_file_system_without_a_device_that_was_lazily_unmounted_is_not_proved_while_a_file_is_open_or_mapped";
    alone(name, |alone| {
        let host = Host::new(alone);
        let volume = host.memory("vol1");
        let program = volume.point.join("cat");
        fs::copy("/usr/bin/cat", &program).unwrap();
        let held = fs::File::create(volume.point.join("held")).unwrap();
        // Its program is mapped from the volume, of which it has no file open.
        let mut mapped = Command::new(&program).stdin(Stdio::piped()).spawn().unwrap();
        run("umount", &["--lazy", volume.point.to_str().unwrap()]);
        let table = known(Host::table(&[], &[&volume]));
        let why = host.fence_in_vain(&table);
        assert!(why.contains(&format!("by open files of process {}", mapped.id())), "{why}");
        assert!(why.contains(&format!("by open files of process {}", std::process::id())), "{why}");
        drop(held);
        let why = host.fence_in_vain(&table);
        assert!(why.contains("(cat)"), "{why}");
        drop(mapped.stdin.take());
        mapped.wait().unwrap();
        host.fence(&table);
    });
}
