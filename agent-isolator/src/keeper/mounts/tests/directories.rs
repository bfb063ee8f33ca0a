//! Volumes that are directories.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::process::Command;

use shared::protocol::holder::{Idleness, Sight};

use super::super::*;
use super::disks::{Disk, Waiting, World, run};
use crate::parameters::Storage;

/// What a driver's Mount of `name` answers: a directory below the root, with a file in it.
fn directory(world: &World, name: &str) -> PathBuf {
    let at = world.root.join(name);
    fs::create_dir_all(&at).unwrap();
    fs::write(at.join("file"), "kept").unwrap();
    at
}

fn call(world: &World, name: &str, at: &Path) -> MountCall {
    MountCall { storage: Storage::Directory, ..world.call(name, at) }
}

fn mounted(world: &World, name: &str) -> MountedVolume {
    identify(&call(world, name, &directory(world, name)), &world.places).unwrap()
}

fn refused(world: &World, call: &MountCall, words: &str) -> Undo {
    let refusal = identify(call, &world.places).unwrap_err();
    assert!(refusal.why.contains(words), "{}", refusal.why);
    refusal.undo
}

/// A process of a mount namespace of its own, as a container's.
fn contained(script: &str) -> Waiting {
    let script = format!("{script} && echo ready && read end");
    Waiting::start(Command::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &script]))
}

#[test]
fn root_a_directory_is_handed_out_by_a_mount_of_the_keepers_own_and_idle_when_that_is_gone() {
    let world = World::new();
    let volume = mounted(&world, "vol1");
    let pin = Path::new(&**volume.given());
    assert!(pin.starts_with(world.root.join(PINS)) && fs::read(pin.join("file")).unwrap() == b"kept");
    let options = mount_table::showing(pin).unwrap().options;
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
    assert!(!volume.can_be_shut_down && volume.device.is_none());
    assert!(matches!(look(&volume, true, &world.places), Sight::Mounted { elsewhere: None }));
    assert_eq!(world.prove("vol1", Some(&volume)), Idleness::Proved, "its pin is taken away");
    assert!(matches!(look(&volume, false, &world.places), Sight::Gone(_)));
    // Another one of the same file system never counts for it.
    let (first, second) = (mounted(&world, "vol1"), mounted(&world, "vol2"));
    assert!(!first.is_same_storage(&second));
    let pinned = |volume: &MountedVolume| world.is_mounted(Path::new(&**volume.given()));
    assert_eq!(world.prove("vol1", Some(&first)), Idleness::Proved);
    assert!(!pinned(&first) && pinned(&second));
    let file = fs::File::open(world.root.join("vol2/file")).unwrap();
    assert_eq!(world.prove("vol1", Some(&first)), Idleness::Proved);
    drop(file);
    assert!(fs::read(world.root.join("vol1/file")).is_ok(), "nothing in it was touched");
}

#[test]
fn root_who_has_something_of_a_directory_keeps_it_from_being_idle() {
    let world = World::new();
    let volume = mounted(&world, "vol1");
    let pin = volume.given().to_string();
    fs::create_dir(world.root.join("vol1/deep")).unwrap();
    let pinned = |how: &str| match world.prove("vol1", Some(&volume)) {
        Idleness::Pinned(why) => assert!(why.contains(how), "{why}"),
        other => panic!("{other:?}, and not {how}"),
    };
    let host = world.root.join("vol1").display().to_string();
    // By the host's own path, which no mount table tells of.
    let mut by_file = Waiting::shell(&format!("exec 3>>{host}/file"));
    pinned("by an open file,");
    assert!(by_file.runs());
    drop(by_file);
    let by_directory = Waiting::shell(&format!("cd {host}/deep"));
    pinned("by its working directory,");
    drop(by_directory);
    // By a copy of the pin in a namespace of its own, and by a bind of a part of it.
    let _pin = mounted(&world, "vol1");
    let by_copy = contained(&format!("test -f {pin}/file"));
    pinned("in its own mount namespace");
    drop(by_copy);
    let _pin = mounted(&world, "vol1");
    let by_part = contained(&format!("mount --bind {pin}/deep /mnt && umount -l {pin}"));
    pinned("which has it at /mnt");
    drop(by_part);
    let _pin = mounted(&world, "vol1");
    let by_detached = contained(&format!("exec 3>{pin}/new && umount -l {pin}"));
    pinned("by an open file,");
    drop(by_detached);
    // Beside it nothing counts.
    let _beside = Waiting::shell(&format!("cd {}", world.root.display()));
    assert_eq!(world.prove("vol1", Some(&volume)), Idleness::Proved);
}

#[test]
fn root_a_directory_leads_to_one_volume_alone() {
    let mut world = World::new();
    let at = directory(&world, "vol1");
    // The name alone tells which directory it is.
    assert_eq!(refused(&world, &call(&world, "vol2", &at), "which is not below "), Undo::ByDriver(None));
    let by_driver = Undo::ByDriver(None);
    assert_eq!(refused(&world, &call(&world, "vol1", &world.root), "which is not below "), by_driver);
    // A link in its place, to the host's own or to another one.
    directory(&world, "victim");
    for (name, to) in [("link", "victim"), ("host", "/etc")] {
        symlink(to, world.root.join(name)).unwrap();
        refused(&world, &call(&world, name, &world.root.join(name)), "is a symbolic link");
    }
    // Nor whatever the driver binds there: the host's own root, a neighbour's.
    for (name, bound) in [("etc", Path::new("/etc")), ("all", Path::new("/")), ("vol3", &at)] {
        let place = directory(&world, name);
        run("mount", &["--bind", bound.to_str().unwrap(), place.to_str().unwrap()]);
        refused(&world, &call(&world, name, &place), "such a volume is no directory below the root");
    }
    // Two spellings that the plugin takes for one.
    let held = identify(&call(&world, "vol1", &at), &world.places).unwrap();
    world.others.mounted.push((super::disks::volume("vol1"), held));
    let other = MountCall { volume: super::disks::volume("vol9"), ..call(&world, "vol1", &at) };
    assert_eq!(refused(&world, &other, "it is the device of ebs/vol1"), Undo::Nothing);
    // A disk of its own is none.
    let disk = Disk::new();
    let data = world.mount(&disk.device, &world.root.join("disk"), &[]);
    refused(&world, &call(&world, "disk", &data), "take the storage `directory` from this");
    // Below a mount that is private, an unmount here would leave copies in containers.
    let below = world.root.join("below");
    directory(&world, "below");
    run("mount", &["--bind", below.to_str().unwrap(), below.to_str().unwrap()]);
    run("mount", &["--make-private", below.to_str().unwrap()]);
    world.places.roots = vec![below.clone()];
    fs::create_dir(below.join("vol5")).unwrap();
    refused(&world, &call(&world, "vol5", &below.join("vol5")), "is private");
}

#[test]
fn root_a_btrfs_subvolume_is_told_by_its_path_though_its_files_have_a_number_of_their_own() {
    let world = World::new();
    let image = world.outside.join("image");
    fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    run("mkfs.btrfs", &["-q", image.to_str().unwrap()]);
    let pool = world.root.to_str().unwrap();
    run("mount", &["-o", "loop", image.to_str().unwrap(), pool]);
    run("mount", &["--make-shared", pool]);
    for name in ["vol1", "vol2"] {
        run("btrfs", &["-q", "subvolume", "create", world.root.join(name).to_str().unwrap()]);
    }
    let volume = mounted(&world, "vol1");
    let told = volume.directory.as_ref().unwrap();
    assert_ne!(told.file_system, told.files);
    assert_eq!(&*told.path, "/vol1");
    let host = world.root.join("vol1/file").display().to_string();
    let by_file = Waiting::shell(&format!("exec 3>>{host}"));
    assert!(matches!(world.prove("vol1", Some(&volume)), Idleness::Pinned(_)));
    drop(by_file);
    let _other = Waiting::shell(&format!("cd {}", world.root.join("vol2").display()));
    assert_eq!(world.prove("vol1", Some(&volume)), Idleness::Proved);
}

#[test]
fn root_programs_of_the_same_file_system_and_of_containers_with_images_hold_no_directory() {
    let world = World::new();
    // At a fixed address, whose range the kernel writes in two ways: Debian's own Python is such a program.
    let fixed = "print('ready', flush=True); input()";
    let _fixed = Waiting::start(Command::new("/usr/bin/python3").args(["-c", fixed]));
    // Its program is on a root that was left behind, in no table any more.
    let image =
        "mount --rbind / /mnt && cd /mnt && pivot_root . mnt && umount -l /mnt && echo ready && read end";
    let _image =
        Waiting::start(Command::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", image]));
    // In no namespace of theirs is it mounted.
    let volume = mounted(&world, "vol1");
    assert_eq!(world.prove("vol1", Some(&volume)), Idleness::Proved);
}

/// csi-vfs, RexRay's vfs, keeps directories in one place and binds them to another.
#[test]
fn root_a_directory_that_its_plugin_binds_is_the_one_of_its_name() {
    let world = World::new();
    let kept = world.outside.join("vol");
    fs::create_dir_all(kept.join("vol1")).unwrap();
    fs::create_dir_all(kept.join("vol2")).unwrap();
    fs::write(kept.join("vol1/file"), "kept").unwrap();
    let bind = |from: &Path, name: &str| {
        let at = world.root.join(name);
        fs::create_dir_all(&at).unwrap();
        run("mount", &["--bind", from.to_str().unwrap(), at.to_str().unwrap()]);
        MountCall { directories: Some(kept.clone()), ..call(&world, name, &at) }
    };
    let called = bind(&kept.join("vol1"), "vol1");
    let volume = identify(&called, &world.places).unwrap();
    assert_eq!(fs::read(Path::new(&**volume.given()).join("file")).unwrap(), b"kept");
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o7777, 0o700, "nobody else reads there");
    // Idle it is when the plugin has taken its own mount away as well, and nobody has a file by the plugin's path.
    assert_eq!(world.prove("vol1", Some(&volume)), Idleness::Mounted);
    run("umount", &[world.root.join("vol1").to_str().unwrap()]);
    let by_file = Waiting::shell(&format!("exec 3>>{}/vol1/file", kept.display()));
    assert!(matches!(world.prove("vol1", Some(&volume)), Idleness::Pinned(_)));
    drop(by_file);
    assert_eq!(world.prove("vol1", Some(&volume)), Idleness::Proved);
    // A neighbour's under this name, a part of it, the host's own, a link to one.
    symlink("vol1", kept.join("linked")).unwrap();
    fs::create_dir_all(kept.join("vol2/part")).unwrap();
    for (name, from) in [
        ("vol2", kept.join("vol1")),
        ("vol3", kept.join("vol2/part")),
        ("vol4", PathBuf::from("/etc")),
        ("linked", kept.join("linked")),
    ] {
        let called = bind(&from, name);
        let undo = refused(&world, &called, "where something else is bound than ");
        assert_eq!(undo, Undo::ByDriver(None));
    }
}

/// A file on a mount that is in no table may be the directory's: it is not idle, and nobody is killed for it.
#[test]
fn root_what_cannot_be_told_keeps_a_directory_from_being_idle_and_ends_nobody() {
    let world = World::new();
    let volume = mounted(&world, "vol1");
    let left =
        format!("mount --bind {} /mnt && exec 3>>/mnt/beside && umount -l /mnt", world.outside.display());
    let mut holder = contained(&left);
    let call = ProofCall { end: true, ..world.proof("vol1", Some(&volume)) };
    let places = Places { cgroup_root: Some("/".into()), ..world.places.clone() };
    let proof = prove_idle(&call, &places);
    assert!(matches!(proof.idleness, Idleness::Pinned(_)), "{:?}", proof.idleness);
    assert_eq!(proof.killed, Vec::<String>::new());
    assert!(holder.runs());
}
