//! What a driver mounted, and what is refused.

use std::fs;
use std::os::unix::fs::symlink;

use shared::protocol::holder::{Idleness, Sight};

use super::super::*;
use super::disks::{Disk, Waiting, World, run};
use crate::parameters::Storage;

fn refusal(answer: Result<MountedVolume, Refusal>, words: &str) -> Refusal {
    let refusal = answer.unwrap_err();
    assert!(refusal.why.contains(words), "{}", refusal.why);
    refusal
}

#[test]
fn root_a_volume_is_handed_out_by_a_mount_of_the_keepers_own_without_suid_and_devices() {
    let (world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("vol1"), &["-o", "noexec"]);
    let mounted = world.identify("vol1", &data).unwrap();
    let pin = mounted.pin.clone().unwrap();
    assert_eq!(mounted.given(), &pin);
    for at in [&world.root.join("vol1"), Path::new(&*pin)] {
        let options = mount_table::showing(at).unwrap().options;
        let all: Vec<_> = options.split(',').collect();
        assert!(["nosuid", "nodev", "noexec", "rw"].iter().all(|one| all.contains(one)), "{options}");
    }
    assert_eq!(*mounted.file_system, *"ext4");
    assert_eq!(mounted.uuid.as_ref().unwrap().len(), 32);
    assert!(mounted.identity.as_ref().unwrap().starts_with("file /"), "{mounted:?}");
    // A driver that is asked again mounts nothing new, and the pin is made anew.
    assert_eq!(world.identify("vol1", &data).unwrap(), mounted);
    world.umount(&mounted);
    assert_eq!(world.prove("vol1", Some(&mounted)), Idleness::ProvedAttached);
}

#[test]
fn root_a_volume_whose_driver_answers_the_mount_itself_has_no_pin_and_may_keep_suid() {
    let (world, disk) = (World::new(), Disk::new());
    world.mount(&disk.device, &world.root.join("vol1"), &[]);
    let call = MountCall { suid_dev: true, ..world.call("vol1", &world.root.join("vol1")) };
    let mounted = identify(&call, &world.places).unwrap();
    assert_eq!((mounted.pin.as_ref(), mounted.given()), (None, &mounted.mount_point));
    let options = mount_table::showing(&world.root.join("vol1")).unwrap().options;
    assert!(!options.contains("nosuid") && !options.contains("nodev"), "{options}");
}

/// sshfs and easyfuse answer so when they take it for mounted, and an Unmount more would have them do it again.
#[test]
fn root_a_mount_that_mounted_nothing_is_undone_only_where_something_may_be_attached() {
    let world = World::new();
    fs::create_dir(world.root.join("vol1")).unwrap();
    let call = world.call("vol1", &world.root.join("vol1"));
    for (storage, undo) in [(Storage::Attached, Undo::ByDriver(None)), (Storage::Shared, Undo::Nothing)] {
        let refused = identify(&MountCall { storage, ..call.clone() }, &world.places);
        assert_eq!(refusal(refused, "where nothing is mounted").undo, undo);
    }
}

#[test]
fn root_a_link_in_a_volume_leads_nowhere() {
    let (mut world, disk) = (World::new(), Disk::new());
    let victim = world.tmpfs("victim");
    world.attach("victim", &victim);
    let data = world.mount(&disk.device, &world.root.join("vol1"), &[]);
    fs::remove_dir(&data).unwrap();
    symlink("../victim/data", &data).unwrap();
    let refused = refusal(world.identify("vol1", &data), "is a symbolic link");
    assert_eq!(refused.undo, Undo::ByDriver(None));
    refusal(world.identify("vol1", &data.join("deeper")), "is a symbolic link");
    // The victim's mount is not this volume's to undo; its own is.
    assert_eq!(world.prove("vol1", None), Idleness::ProvedAttached);
    assert!(world.is_mounted(&world.root.join("victim")) && !world.is_mounted(&world.root.join("vol1")));
}

#[test]
fn root_a_directory_that_becomes_a_link_after_it_was_looked_at_is_still_the_directory() {
    let (mut world, disk) = (World::new(), Disk::new());
    let victim = world.tmpfs("victim");
    world.attach("victim", &victim);
    let data = world.mount(&disk.device, &world.root.join("vol1"), &[]);
    let mounted = world.identify("vol1", &data).unwrap();
    fs::rename(&data, data.with_file_name("away")).unwrap();
    symlink("../victim/data", &data).unwrap();
    fs::write(Path::new(&**mounted.given()).join("file"), "mine").unwrap();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert_eq!(fs::read(data.with_file_name("away").join("file")).unwrap(), b"mine");
}

#[test]
fn root_a_root_may_be_reached_by_a_link_above_it() {
    let (world, disk) = (World::new(), Disk::new());
    let link = world.outside.join("link");
    symlink(&world.root, &link).unwrap();
    world.mount(&disk.device, &world.root.join("vol1"), &[]);
    world.identify("vol1", &link.join("vol1/data")).unwrap();
    // Not past it.
    let call = world.call("vol1", &world.root.join("vol1/../vol1/data"));
    assert!(identify(&call, &world.places).is_err());
}

#[test]
fn root_what_was_mounted_before_the_call_is_not_this_volumes_and_stays() {
    let (mut world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("vol1"), &[]);
    world.before = Some(Before::now().unwrap());
    let refused = refusal(world.identify("vol1", &data), "was mounted at");
    assert_eq!(refused.undo, Undo::Nothing);
    assert_eq!(world.prove("vol1", None), Idleness::Proved);
    assert!(world.is_mounted(&world.root.join("vol1")));
    // A call of an earlier life may have mounted it.
    world.before = None;
    world.identify("vol1", &data).unwrap();
}

#[test]
fn root_a_second_name_for_a_mount_is_refused_and_leaves_the_first_alone() {
    let (mut world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("ab"), &[]);
    let first = world.attach("ab", &data);
    for before in [Some(Before::now().unwrap()), None] {
        world.before = before;
        let refused =
            refusal(world.identify("a_b", &data), "it is the device of ebs/ab, which this host holds");
        assert_eq!(refused.undo, Undo::Nothing);
        assert_eq!(world.prove("a_b", None), Idleness::Proved);
        assert!(matches!(look(&first, true, &world.places), Sight::Mounted { .. }));
    }
}

#[test]
fn root_the_number_of_a_file_system_that_is_gone_is_no_second_name_for_it() {
    let mut world = World::new();
    let tmpfs = |world: &World, name: &str| world.mount("s3fs", &world.root.join(name), &["-t", "tmpfs"]);
    let data = tmpfs(&world, "ab");
    let first = world.attach("ab", &data);
    world.before = Some(Before::now().unwrap());
    let again = refusal(world.identify("a_b", &data), "the device of ebs/ab");
    assert_eq!(again.undo, Undo::Nothing, "while it is there");
    world.umount(&first);
    world.before = Some(Before::now().unwrap());
    let data = tmpfs(&world, "other");
    let second = world.identify("other", &data).unwrap();
    // What makes this a test: the kernel gives the lowest number that is free.
    assert_eq!(second.device_number, first.device_number);
}

#[test]
fn root_a_second_mount_of_a_volumes_device_is_undone_and_the_first_stays() {
    let (mut world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("ab"), &[]);
    let first = world.attach("ab", &data);
    world.before = Some(Before::now().unwrap());
    let second = world.root.join("a_b");
    let data = world.mount(&disk.device, &second, &[]);
    // While somebody is in it, it cannot be undone, and is tried again.
    let inside = Waiting::shell(&format!("cd {}", data.display()));
    assert_eq!(refusal(world.identify("a_b", &data), "could not be unmounted").undo, Undo::Later);
    drop(inside);
    assert_eq!(refusal(world.identify("a_b", &data), "the device of ebs/ab").undo, Undo::Nothing);
    assert!(!world.is_mounted(&second));
    assert!(matches!(look(&first, true, &world.places), Sight::Mounted { .. }));
}

#[test]
fn root_two_devices_of_one_storage_are_one_volume() {
    let (mut world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("ab"), &[]);
    world.attach("ab", &data);
    let again = disk.again();
    world.before = Some(Before::now().unwrap());
    let second = world.mount(&again, &world.root.join("a_b"), &[]);
    let refused = refusal(world.identify("a_b", &second), "the device of ebs/ab");
    run("losetup", &["-d", &again]);
    assert_eq!(refused.undo, Undo::Nothing);
    assert!(!world.is_mounted(&world.root.join("a_b")));
}

#[test]
fn root_directories_of_a_file_system_of_the_host_are_no_volumes() {
    let (world, disk) = (World::new(), Disk::new());
    // Of the disk that / is on.
    let bound = world.mount(world.outside.to_str().unwrap(), &world.root.join("local"), &["--bind"]);
    let refused =
        refusal(world.identify("local", &bound), "and no file system of its own. Where that is how");
    assert_eq!((refused.undo, refused.stray), (Undo::ByDriver(None), None));
    // Of a data disk of the host.
    let pool = world.mount(&disk.device, &world.outside.join("pool"), &[]);
    let bound = world.mount(pool.to_str().unwrap(), &world.root.join("convoy"), &["--bind"]);
    refusal(world.identify("convoy", &bound), "outside/pool, and no file system of its own.");
    // Both binds are undone, and what they are of stays.
    assert_eq!(world.prove("convoy", None), Idleness::Proved);
    assert!(!world.is_mounted(&world.root.join("convoy")) && !world.is_mounted(&world.root.join("local")));
    assert!(world.is_mounted(&world.outside.join("pool")));
    // Of a disk that is mounted nowhere else any more.
    let bound = world.mount(pool.to_str().unwrap(), &world.root.join("part"), &["--bind"]);
    run("umount", &[world.outside.join("pool").to_str().unwrap()]);
    refusal(world.identify("part", &bound.join("..")), "mount_roots");
    refusal(world.identify("part", &world.root.join("part")), "(/data) of the file system");
}

#[test]
fn root_what_is_mounted_outside_the_roots_is_refused_and_only_what_is_new_is_undone() {
    let (world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.outside.join("vol1"), &[]);
    let refused = refusal(world.identify("vol1", &data), "is not below mount_roots");
    assert_eq!(refused.undo, Undo::ByDriver(None), "it is never fenced");
    let stray = *refused.stray.unwrap();
    // Beside a mount that is gone, what is still there counts.
    let volume = world.identify("vol2", &world.tmpfs("vol2")).unwrap();
    let with = |strays| ProofCall { strays, ..world.proof("vol2", Some(&volume)) };
    world.umount(&volume);
    assert_eq!(prove_idle(&with(vec![]), &world.places).idleness, Idleness::Proved);
    assert_eq!(prove_idle(&with(vec![stray.clone()]), &world.places).idleness, Idleness::Mounted);
    let call = ProofCall { strays: vec![stray], ..world.proof("vol1", None) };
    let inside = Waiting::shell(&format!("cd {}", data.display()));
    assert_eq!(prove_idle(&call, &world.places).idleness, Idleness::Mounted);
    drop(inside);
    assert_eq!(prove_idle(&call, &world.places).idleness, Idleness::ProvedAttached);
    assert!(!world.is_mounted(&world.outside.join("vol1")));
    // A disk of the host that was there: nothing of it is this volume's.
    let mut world = world;
    let data = world.mount(&disk.device, &world.outside.join("hd"), &[]);
    world.before = Some(Before::now().unwrap());
    let refused = refusal(world.identify("vol1", &data), "mount_roots");
    assert_eq!((refused.undo, refused.stray), (Undo::ByDriver(None), None));
    assert_eq!(world.prove("vol1", None), Idleness::Proved);
    assert!(world.is_mounted(&world.outside.join("hd")));
}

#[test]
fn root_a_volume_that_is_mounted_read_only_is_refused_to_who_wants_to_write() {
    let (world, disk) = (World::new(), Disk::new());
    world.mount(&disk.device, &world.root.join("vol1"), &[]);
    run("umount", &[world.root.join("vol1").to_str().unwrap()]);
    let data = world.mount(&disk.device, &world.root.join("vol1"), &["-o", "ro"]);
    let refused =
        refusal(world.identify("vol1", &data), "mounted it read-only here, and the task asked to write");
    let Undo::ByDriver(Some(mounted)) = refused.undo else { panic!("{refused:?}") };
    assert!(mounted.read_only && mounted.device.is_some());
    let call = MountCall { read_only: true, ..world.call("vol1", &data) };
    let mounted = identify(&call, &world.places).unwrap();
    assert!(mounted.read_only);
    let options = mount_table::showing(Path::new(&**mounted.given())).unwrap().options;
    assert!(options.contains("ro") && options.contains("nosuid"), "{options}");
}

#[test]
fn root_a_mount_that_a_preempting_plugin_left_elsewhere_is_taken_away() {
    let (world, disk) = (World::new(), Disk::new());
    let elsewhere = world.root.join("preempt/vol1");
    world.mount(&disk.device, &elsewhere, &[]);
    let data = world.mount(&disk.device, &world.root.join("vol1"), &[]);
    let mounted = world.identify("vol1", &data).unwrap();
    assert!(!world.is_mounted(&elsewhere));
    world.umount(&mounted);
    assert_eq!(world.prove("vol1", Some(&mounted)), Idleness::ProvedAttached);
}

#[test]
fn root_a_mount_point_without_a_mount_of_its_own_or_that_is_no_directory_is_refused() {
    let (world, disk) = (World::new(), Disk::new());
    let inside = world.root.join("vol1");
    fs::create_dir(&inside).unwrap();
    refusal(world.identify("vol1", &inside), "nothing is mounted");
    refusal(world.identify("vol1", &world.root), "nothing is mounted");
    refusal(world.identify("vol1", &world.root.join("vol2")), "cannot be opened");
    let data = world.mount(&disk.device, &inside, &[]);
    fs::write(data.join("file"), "").unwrap();
    refusal(world.identify("vol1", &data.join("file")), "is no directory");
}

#[test]
fn root_a_volume_below_a_private_mount_is_unusable() {
    let (world, disk) = (World::new(), Disk::new());
    run("mount", &["--make-private", world.root.to_str().unwrap()]);
    let data = world.mount(&disk.device, &world.root.join("vol1"), &[]);
    let refused = refusal(world.identify("vol1", &data), "mount --make-shared");
    assert!(matches!(refused.undo, Undo::ByDriver(Some(_))));
}

#[test]
fn a_private_root_is_refused_with_the_command_that_mends_it() {
    let mount = |shared| Mount { mount_point: "/run".into(), shared, ..Mount::default() };
    assert_eq!(check_shared(&mount(true), Path::new("/run/volumes")), Ok(()));
    let error = check_shared(&mount(false), Path::new("/run/volumes")).unwrap_err();
    assert!(error.contains("`mount --make-shared /run`"), "{error}");
}

#[test]
fn root_a_mount_root_is_closed_to_other_users() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("volumes");
    assert_eq!(close_root(&root), Ok(false), "it is the driver's to make");
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::chown(&root, Some(1), Some(1)).unwrap();
    assert_eq!((close_root(&root), close_root(&root)), (Ok(true), Ok(false)));
    let found = fs::metadata(&root).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (0, 0, 0o700));
}
