//! Whether a volume is still there, and who else sees it.

use std::fs;
use std::process::Command;

use shared::protocol::holder::{BlockDevice, Idleness, Sight};

use super::super::*;
use super::disks::{Disk, Waiting, World, run};

fn broken(sight: &Sight, words: &str) {
    assert!(matches!(sight, Sight::Broken(why) if why.contains(words)), "{words}: {sight:?}");
}

#[test]
fn root_a_file_system_that_turned_read_only_and_a_disk_that_is_gone_are_seen() {
    let (world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("v"), &["-o", "errors=remount-ro"]);
    let mounted = world.identify("v", &data).unwrap();
    let ailing = |mounted: &MountedVolume| ailing([("v", mounted)].into_iter()).unwrap();
    assert_eq!(look(&mounted, true, &world.places), Sight::Mounted { elsewhere: None });
    assert_eq!(ailing(&mounted), [] as [&str; 0]);
    // As an error does it.
    let name = disk.device.rsplit('/').next().unwrap();
    fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").unwrap();
    broken(&look(&mounted, true, &world.places), "has turned read-only");
    assert_eq!(ailing(&mounted), ["v"]);
    let device = BlockDevice { disk_sequence: Some(0), ..mounted.device.clone().unwrap() };
    let gone = MountedVolume { device: Some(device), ..mounted.clone() };
    broken(&look(&gone, true, &world.places), "is gone from this host");
    // One that was mounted so is as it was.
    let read_only = MountedVolume { read_only: true, ..mounted };
    assert!(matches!(look(&read_only, true, &world.places), Sight::Mounted { .. }));
}

#[test]
fn root_a_volume_whose_mount_or_pin_somebody_took_away_is_gone() {
    let (world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("v"), &[]);
    let mounted = world.identify("v", &data).unwrap();
    run("umount", &[&**mounted.given()]);
    assert!(matches!(look(&mounted, true, &world.places), Sight::Gone(why) if why.contains("keeper's own")));
    let mounted = world.identify("v", &data).unwrap();
    world.umount(&mounted);
    assert!(matches!(look(&mounted, true, &world.places), Sight::Gone(_)));
}

#[test]
fn root_a_monitor_whose_copy_goes_with_the_hosts_mount_is_no_user_and_who_keeps_one_is() {
    let (world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("v"), &[]);
    let mounted = world.identify("v", &data).unwrap();
    let see = |propagation: &str| {
        let host = world.outside.join(propagation);
        fs::create_dir_all(&host).unwrap();
        let script = format!(
            "mount --rbind {root} {host} && mount --make-r{propagation} {host} && echo ready; read end",
            root = world.root.display(),
            host = host.display()
        );
        Waiting::start(Command::new("unshare").args([
            "--mount",
            "--propagation",
            "slave",
            "sh",
            "-c",
            &script,
        ]))
    };
    let monitor = see("slave");
    assert_eq!(look(&mounted, true, &world.places), Sight::Mounted { elsewhere: None });
    let keeps = see("private");
    let Sight::Mounted { elsewhere: Some(who) } = look(&mounted, true, &world.places) else { panic!() };
    assert!(who.contains(&format!("process {}", keeps.0.id())), "{who}");
    // Who has a container that uses it need not know who else sees it.
    assert_eq!(look(&mounted, false, &world.places), Sight::Mounted { elsewhere: None });
    drop(keeps);
    world.umount(&mounted);
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::ProvedAttached, "its copy went along");
    drop(monitor);
}

#[test]
fn root_of_stacked_mounts_the_one_on_top_counts() {
    let (world, below, above) = (World::new(), Disk::new(), Disk::new());
    world.mount(&below.device, &world.root.join("v"), &[]);
    let data = world.mount(&above.device, &world.root.join("v"), &[]);
    let mounted = world.identify("v", &data).unwrap();
    assert_eq!(mounted.device.unwrap().path, above.device.as_str().into());
}
