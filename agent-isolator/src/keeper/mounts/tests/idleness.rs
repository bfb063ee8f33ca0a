//! The proof that a volume is not in use.

use std::fs;
use std::process::Command;

use shared::protocol::holder::{BlockDevice, Idleness, Sight};

use super::super::*;
use super::disks::{Disk, Waiting, World, run, volume};

fn pinned(idleness: Idleness, words: &str) {
    let Idleness::Pinned(why) = &idleness else { panic!("{words}: {idleness:?}") };
    assert!(why.contains(words), "{words}: {why}");
}

#[test]
fn root_a_device_is_idle_when_nothing_holds_it_and_gone_when_it_is_another_disk() {
    let (world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("v"), &[]);
    let mounted = world.identify("v", &data).unwrap();
    let device = mounted.device.clone().unwrap();
    assert_eq!(*device.path, *disk.device);
    // The driver's mount is the driver's to take away; the keeper's own goes.
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::Mounted);
    assert!(world.is_mounted(&world.root.join("v")) && !world.is_mounted(Path::new(&**mounted.given())));
    // Lazily unmounted, with a file open: no table shows it, and writes go on.
    let file = fs::File::create(data.join("file")).unwrap();
    run("umount", &["--lazy", world.root.join("v").to_str().unwrap()]);
    // This process does not look at its own files.
    pinned(world.prove("v", Some(&mounted)), "is busy");
    drop(file);
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::ProvedAttached);
    run("losetup", &["-d", &disk.device]);
    let other =
        MountedVolume { device: Some(BlockDevice { disk_sequence: Some(0), ..device }), ..mounted.clone() };
    assert_eq!(world.prove("v", Some(&other)), Idleness::Proved);
}

#[test]
fn root_a_device_whose_node_is_gone_or_another_one_is_never_proved_idle_by_that() {
    let (world, disk) = (World::new(), Disk::new());
    let data = world.mount(&disk.device, &world.root.join("v"), &[]);
    let mounted = world.identify("v", &data).unwrap();
    world.umount(&mounted);
    let device = mounted.device.clone().unwrap();
    for path in ["/dev/no-such-node", "/dev/null"] {
        let device = Some(BlockDevice { path: path.into(), ..device.clone() });
        let proof = world.prove("v", Some(&MountedVolume { device, ..mounted.clone() }));
        assert!(matches!(proof, Idleness::Unknown(_)), "{path}: {proof:?}");
    }
    assert_eq!(storage::block_device("/dev/null"), None, "a character device has no O_EXCL");
    assert_eq!(storage::block_device("tmpfs"), None);
}

#[test]
fn root_a_file_system_without_a_device_is_idle_only_when_no_process_has_anything_of_it() {
    let world = World::new();
    let data = world.tmpfs("v");
    let mounted = world.identify("v", &data).unwrap();
    assert_eq!(mounted.device, None);
    let program = data.join("wait");
    fs::copy("/bin/cat", &program).unwrap();
    let at = data.display();
    let start = |script: &str| Waiting::shell(script);
    let open = start(&format!("exec 3>{at}/file"));
    let cwd = start(&format!("cd {at}"));
    let mut mapped = Command::new(&program);
    // It echoes what it reads: nothing is to be waited for but its start.
    let mut mapped = mapped.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let exe = format!("/proc/{}/exe", mapped.id());
    while !fs::read_link(&exe).is_ok_and(|link| link.starts_with(&world.root)) {}
    unpin(&mounted).unwrap();
    run("umount", &["--lazy", world.root.join("v").to_str().unwrap()]);
    pinned(world.prove("v", Some(&mounted)), " still holds it");
    drop(open);
    pinned(world.prove("v", Some(&mounted)), " still holds it");
    drop(cwd);
    let proof = world.prove("v", Some(&mounted));
    pinned(proof.clone(), "its program");
    pinned(proof, &format!("process {} (wait)", mapped.id()));
    mapped.kill().unwrap();
    mapped.wait().unwrap();
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::Proved);
}

#[test]
fn root_each_way_to_hold_a_file_system_without_a_device_is_named() {
    let world = World::new();
    let data = world.tmpfs("v");
    let mounted = world.identify("v", &data).unwrap();
    let holds =
        |waiting: &Waiting| Scan::new(&mounted, None).holds(waiting.0.id()).map(files::Hold::in_words);
    let at = data.display();
    assert_eq!(holds(&Waiting::shell(&format!("exec 3>{at}/file"))).unwrap(), "an open file");
    assert_eq!(holds(&Waiting::shell(&format!("cd {at}"))).unwrap(), "its working directory");
    assert_eq!(holds(&Waiting::shell("cd /")), None);
    // A map whose descriptor is closed.
    let map = format!(
        "import mmap,os\nfd=os.open('{at}/map',os.O_RDWR|os.O_CREAT)\nos.ftruncate(fd,4096)\n\
         m=mmap.mmap(fd,4096)\nos.close(fd)\nprint('ready',flush=True)\ninput()"
    );
    // Python's map keeps a descriptor of its own; a process made by fork without it does not.
    let map = map.replace("print(", "[os.close(n) for n in range(3,64) if os.path.realpath(f'/proc/self/fd/{n}').startswith('/tmp')]\nprint(");
    let mapped = Waiting::start(Command::new("python3").args(["-c", &map]));
    assert_eq!(holds(&mapped).unwrap(), "a mapped file");
}

#[test]
fn root_of_several_mounts_of_one_server_each_is_held_by_its_own_files() {
    // They share a device number and differ in their source: here by a record that says so.
    let world = World::new();
    let data = world.tmpfs("other");
    let other = world.identify("other", &data).unwrap();
    let mounted = MountedVolume { source: "server:/volume".into(), ..other };
    let open = Waiting::shell(&format!("exec 3>{}/file", data.display()));
    assert_eq!(Scan::new(&mounted, None).holds(open.0.id()), None);
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::Proved);
}

#[test]
fn root_what_a_refused_mount_has_mounted_under_another_name_is_taken_away() {
    let (mut world, disk, foreign) = (World::new(), Disk::new(), Disk::new());
    // Another volume's, and one that was there before.
    let other = world.tmpfs("other");
    world.attach("other", &other);
    world.mount(&foreign.device, &world.root.join("foreign"), &[]);
    world.before = Some(Before::now().unwrap());
    assert_eq!(world.prove("vol1", None), Idleness::Proved);
    let data = world.mount(&disk.device, &world.root.join("tmp-4711"), &[]);
    // Another Mount is under way, and it may be of that.
    world.others.mounting = vec![volume("vol2")];
    let proof = world.prove("vol1", None);
    assert!(matches!(&proof, Idleness::Unknown(why) if why.contains("tmp-4711")), "{proof:?}");
    assert!(world.is_mounted(&world.root.join("tmp-4711")));
    world.others.mounting.clear();
    let inside = Waiting::shell(&format!("cd {}", data.display()));
    assert_eq!(world.prove("vol1", None), Idleness::Mounted);
    drop(inside);
    // Gone from the host, and yet held: the device is remembered.
    let file = Waiting::start(Command::new("unshare").args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        "echo ready; read end",
    ]));
    let call = world.proof("vol1", None);
    let proof = world.prove_again(call.clone());
    pinned(proof.idleness, "in its own mount namespace, still holds it");
    drop(file);
    let proof = prove_idle(&ProofCall { strays: proof.strays, ..call }, &world.places);
    assert_eq!(proof.idleness, Idleness::ProvedAttached);
    assert!(world.is_mounted(&world.root.join("other")) && world.is_mounted(&world.root.join("foreign")));
}

#[test]
fn root_a_mount_that_bears_the_volumes_name_is_its_own_whoever_else_mounts() {
    let (mut world, disk) = (World::new(), Disk::new());
    world.others.mounting = vec![volume("vol2")];
    world.mount(&disk.device, &world.root.join("VOL1"), &[]);
    assert_eq!(world.prove("vol1", None), Idleness::ProvedAttached);
    assert!(!world.is_mounted(&world.root.join("VOL1")));
}

#[test]
fn root_a_name_that_is_in_the_path_of_another_volumes_mount_takes_nothing_away() {
    let (mut world, disk) = (World::new(), Disk::new());
    world.others.mounting = vec![volume("victim")];
    world.mount(&disk.device, &world.root.join("victim"), &[]);
    // The root's own name, and the neighbour's under another driver.
    let root = world.root.file_name().unwrap().to_str().unwrap().to_owned();
    for name in [root.as_str(), "victim"] {
        let proof = world.prove(name, None);
        assert!(matches!(&proof, Idleness::Unknown(why) if why.contains("victim")), "{name}: {proof:?}");
    }
    assert!(world.is_mounted(&world.root.join("victim")));
}

#[test]
fn root_what_was_mounted_since_the_other_volumes_were_asked_about_is_looked_at_once_more() {
    let (mut world, disk) = (World::new(), Disk::new());
    let call = world.proof("vol1", None);
    let (at, data) = (world.root.join("vol2"), world.mount(&disk.device, &world.root.join("vol2"), &[]));
    let proof = prove_idle(&call, &world.places);
    assert!(matches!(&proof.idleness, Idleness::Unknown(_)) && world.is_mounted(&at), "{proof:?}");
    world.attach("vol2", &data);
    let again = ProofCall { found: proof.found, ..world.proof("vol1", None) };
    assert_eq!(prove_idle(&again, &world.places).idleness, Idleness::Proved);
    assert!(world.is_mounted(&at));
}

#[test]
fn root_a_disk_that_a_repeated_mount_attached_and_never_mounted_is_told() {
    let world = World::new();
    let disk = Disk::new();
    let call = ProofCall { repeated: true, ..world.proof("vol1", None) };
    assert_eq!(prove_idle(&call, &world.places).idleness, Idleness::ProvedAttached);
    drop(disk);
}

/// A freezer cgroup of the test's own; removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let path = Path::new("/sys/fs/cgroup/freezer").join(format!("extvol-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("container")).unwrap();
        Self(path)
    }

    fn root(&self) -> Option<String> {
        Some(format!("/{}", self.0.file_name().unwrap().to_str().unwrap()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(5);
        for path in [self.0.join("container"), self.0.clone()] {
            while fs::remove_dir(&path).is_err() && std::time::Instant::now() < until {}
        }
    }
}

#[test]
fn root_a_tasks_private_copy_of_the_hosts_mount_is_named_and_ended_after_a_while() {
    let (mut world, disk, cgroup) = (World::new(), Disk::new(), Cgroup::new("copy"));
    let data = world.mount(&disk.device, &world.root.join("v"), &[]);
    let mounted = world.identify("v", &data).unwrap();
    let enter = format!("echo $$ > {}/container/cgroup.procs", cgroup.0.display());
    let script = format!("{enter}; exec unshare -rm --propagation private sh -c 'echo ready; read end'");
    let mut copy = Waiting::start(Command::new("sh").args(["-c", &script]));
    // The same outside the agent's containers is another's.
    let mut foreign = Waiting::start(Command::new("unshare").args([
        "-rm",
        "--propagation",
        "private",
        "sh",
        "-c",
        "echo ready; read end",
    ]));
    world.umount(&mounted);
    world.places.cgroup_root = cgroup.root();
    let mut call = world.proof("v", Some(&mounted));
    let proof = prove_idle(&call, &world.places);
    pinned(proof.idleness, "still holds it; no container here uses it");
    assert!(copy.runs() && foreign.runs() && proof.killed.is_empty());
    call.end = true;
    let proof = prove_idle(&call, &world.places);
    assert!(proof.killed.iter().any(|who| who.contains(&cgroup.root().unwrap())), "{proof:?}");
    copy.0.wait().unwrap();
    assert!(foreign.runs());
    pinned(prove_idle(&call, &world.places).idleness, &format!("process {}", foreign.0.id()));
    drop(foreign);
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::ProvedAttached);
}

#[test]
fn root_a_task_that_sits_in_a_volume_which_it_does_not_use_is_ended_and_one_that_only_sees_it_is_not() {
    let (mut world, disk, cgroup) = (World::new(), Disk::new(), Cgroup::new("cwd"));
    let data = world.mount(&disk.device, &world.root.join("v"), &[]);
    let mounted = world.identify("v", &data).unwrap();
    world.places.cgroup_root = cgroup.root();
    let enter = format!("echo $$ > {}/container/cgroup.procs", cgroup.0.display());
    let mut sits = Waiting::shell(&format!("{enter}; cd {}", data.display()));
    let script = format!("{enter}; exec unshare -m --propagation slave sh -c 'echo ready; read end'");
    let mut sees = Waiting::start(Command::new("sh").args(["-c", &script]));
    // While it is in doubt whether a container uses it, one that sees it may.
    assert!(matches!(look(&mounted, true, &world.places), Sight::Mounted { elsewhere: Some(_) }));
    assert_eq!(look(&mounted, true, &Places::default()), Sight::Mounted { elsewhere: None });
    let mut call = world.proof("v", Some(&mounted));
    assert_eq!(prove_idle(&call, &world.places).idleness, Idleness::Mounted, "the driver could not unmount");
    assert!(sits.runs() && sees.runs());
    call.end = true;
    let proof = prove_idle(&call, &world.places);
    assert_eq!((proof.idleness, proof.killed.len()), (Idleness::Mounted, 1));
    sits.0.wait().unwrap();
    assert!(sees.runs());
    world.umount(&mounted);
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::ProvedAttached);
}

#[test]
fn root_a_mount_namespace_that_a_descriptor_alone_keeps_may_have_a_volume_without_a_device() {
    let world = World::new();
    let data = world.tmpfs("v");
    let mounted = world.identify("v", &data).unwrap();
    let mut inside = Waiting::start(Command::new("unshare").args([
        "-m",
        "--propagation",
        "private",
        "sh",
        "-c",
        "echo ready && read end",
    ]));
    let keeper = Waiting::shell(&format!("exec 3</proc/{}/ns/mnt", inside.0.id()));
    assert!(inside.runs());
    drop(inside);
    world.umount(&mounted);
    match world.prove("v", Some(&mounted)) {
        Idleness::Pinned(why) => assert!(why.contains("by a mount namespace that nobody lives in"), "{why}"),
        other => panic!("{other:?}"),
    }
    drop(keeper);
    assert_eq!(world.prove("v", Some(&mounted)), Idleness::Proved);
}

/// The kernel's list of FUSE connections, which is not mounted on every machine.
struct Connections(bool);

impl Connections {
    fn mounted() -> Self {
        let is_there = run("stat", &["-f", "-c", "%t", "/sys/fs/fuse/connections"]) == "65735543";
        if !is_there {
            run("mount", &["-t", "fusectl", "none", "/sys/fs/fuse/connections"]);
        }
        Self(!is_there)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if self.0 {
            run("umount", &["/sys/fs/fuse/connections"]);
        }
    }
}

#[test]
fn root_a_fuse_file_system_that_lives_is_not_idle_though_no_process_shows_it() {
    use rustix::fs::{Mode, OFlags};
    use rustix::mount::{MountFlags, OpenTreeFlags, open_tree};
    use std::os::fd::AsRawFd;
    let (world, _connections) = (World::new(), Connections::mounted());
    let at = world.root.join("remote");
    fs::create_dir(&at).unwrap();
    let server = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("extvol-test", &at, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
    let table = mount_table::own().unwrap();
    let mount = table.iter().find(|mount| mount.mount_point == at).unwrap();
    let mounted = of(mount, at.to_str().unwrap());
    // A copy that is mounted nowhere: what a descriptor in a socket's queue is, too.
    let copy =
        open_tree(rustix::fs::CWD, &at, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .unwrap();
    unmount(&at, UnmountFlags::DETACH).unwrap();
    match world.prove("remote", Some(&mounted)) {
        Idleness::Pinned(why) => assert!(why.contains("its FUSE connection lives"), "{why}"),
        other => panic!("{other:?}"),
    }
    drop(copy);
    assert_eq!(world.prove("remote", Some(&mounted)), Idleness::Proved);
}
