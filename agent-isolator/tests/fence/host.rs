//! A host with volumes and containers, as a keeper finds it: a shared mount root, file systems on loop devices, writing
//! processes in freezer cgroups and mount namespaces of their own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_isolator::keeper::fence::{FenceRunner, Known, Policy, Progress};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use shared::clock::holder_now;
use shared::protocol::holder::Table;

use crate::alone::{Alone, FREEZER};

pub(crate) const KEEPER: &str = env!("CARGO_BIN_EXE_extvol-keeper");

/// For what happens at once on a machine that is not overloaded.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Waits until it holds.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A host.
pub(crate) struct Host<'a> {
    pub(crate) alone: &'a Alone,
    pub(crate) root: PathBuf,
}

/// A volume, mounted below the root.
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) device: String,
    pub(crate) image: PathBuf,
    pub(crate) point: PathBuf,
    number: String,
    disk_sequence: u64,
    /// Its path in the host's own file system, where it is a directory of that.
    directory: Option<String>,
}

impl<'a> Host<'a> {
    pub(crate) fn new(alone: &'a Alone) -> Self {
        let root = alone.directory.join("volumes");
        fs::create_dir(&root).unwrap();
        let path = root.to_str().unwrap();
        run("mount", &["--bind", path, path]);
        run("mount", &["--make-shared", path]);
        Self { alone, root }
    }

    pub(crate) fn volume(&self, kind: &str, name: &str) -> Volume {
        let image = self.alone.directory.join(format!("{name}.image"));
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", image.to_str().unwrap()]);
        let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
        let point = self.root.join(name);
        fs::create_dir(&point).unwrap();
        run("mount", &[&device, point.to_str().unwrap()]);
        let number = run("mountpoint", &["--fs-devno", point.to_str().unwrap()]);
        let shown = run("findmnt", &["--noheadings", "--output", "MAJ:MIN", point.to_str().unwrap()]);
        let disk = Path::new(&device).file_name().unwrap().to_str().unwrap();
        let sequence = fs::read_to_string(format!("/sys/block/{disk}/diskseq")).unwrap();
        assert!(kind == "btrfs" || number == shown);
        let disk_sequence = sequence.trim().parse().unwrap();
        Volume { name: name.into(), device, image, point, number: shown, disk_sequence, directory: None }
    }

    pub(crate) fn cgroup(&self, name: &str) -> String {
        format!("/{}/{name}", self.alone.cgroup)
    }

    /// A volume on a file system without a device.
    pub(crate) fn memory(&self, name: &str) -> Volume {
        let point = self.root.join(name);
        fs::create_dir(&point).unwrap();
        run("mount", &["-t", "tmpfs", "extvol-test", point.to_str().unwrap()]);
        let number = run("findmnt", &["--noheadings", "--output", "MAJ:MIN", point.to_str().unwrap()]);
        Volume {
            name: name.into(),
            device: String::new(),
            image: PathBuf::new(),
            point,
            number,
            disk_sequence: 0,
            directory: None,
        }
    }

    /// A volume that is a directory of the host's own file system, by the keeper's own mount of it.
    pub(crate) fn directory(&self, name: &str) -> Volume {
        let (plain, point) = (self.root.join(name), self.root.join(".extvol").join(name));
        fs::create_dir(&plain).unwrap();
        fs::create_dir_all(&point).unwrap();
        run("mount", &["--bind", plain.to_str().unwrap(), point.to_str().unwrap()]);
        let shown = |column: &str| {
            run("findmnt", &["--noheadings", "--output", column, "--mountpoint", point.to_str().unwrap()])
        };
        let (number, directory) = (shown("MAJ:MIN"), shown("FSROOT"));
        Volume {
            name: name.into(),
            device: String::new(),
            image: PathBuf::new(),
            point,
            number,
            disk_sequence: 0,
            directory: Some(directory),
        }
    }

    /// A process in a freezer cgroup of its own and in its own mount and pid namespaces, which has the volume at another place
    /// than the host and writes to it without end; and another such process nested in it. `keep`: its namespace keeps copies
    /// of mounts that the host unmounts.
    pub(crate) fn container(&self, name: &str, volume: &Volume, keep: bool) -> Container {
        let cgroup = self.cgroup(name);
        let nested = format!("{cgroup}/mesos/inner");
        fs::create_dir_all(Path::new(FREEZER).join(&nested[1..])).unwrap();
        let place = self.alone.directory.join(format!("{name}-sees"));
        fs::create_dir(&place).unwrap();
        let writes = "while :; do dd if=/dev/urandom of=$PLACE/$WHO bs=4k count=4 conv=notrunc,fsync 2>/dev/null \
                      || sleep 0.01; done";
        let script = "\
            mount --bind $VOLUME $PLACE
            sh -c 'echo 0 >$NESTED/cgroup.procs; WHO=inner exec unshare --mount --propagation slave sh -c \"$WRITES\"' &
            sh -c \"$WRITES\"";
        let propagation = if keep { "private" } else { "slave" };
        let enter = "echo 0 >$OUTER/cgroup.procs; exec unshare --mount --pid --fork --propagation $KEEP sh -c \"$SCRIPT\"";
        let at = |cgroup: &str| Path::new(FREEZER).join(&cgroup[1..]);
        let child = Command::new("sh")
            .args(["-c", enter])
            .envs([("SCRIPT", script), ("WRITES", writes), ("KEEP", propagation), ("WHO", "outer")])
            .envs([
                ("OUTER", at(&cgroup)),
                ("NESTED", at(&nested)),
                ("PLACE", place),
                ("VOLUME", volume.point.clone()),
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        for who in ["outer", "inner"] {
            let file = volume.point.join(who);
            eventually("the container writes", || fs::metadata(&file).is_ok_and(|file| file.len() > 0));
        }
        Container { name: name.into(), cgroup, _child: child }
    }

    /// The keeper's table of these.
    pub(crate) fn table(containers: &[&Container], volumes: &[&Volume]) -> Table {
        let id = |volume: &Volume| json!({"driver": "ebs", "name": volume.name});
        let wanted = |volume: &Volume| json!({"volume": id(volume), "asked": id(volume), "create": null});
        let container = |container: &&Container| {
            let stored = json!({
                "agent": "slave(1)@h", "agent_id": null, "volumes": [], "pid": null,
                "cgroup": container.cgroup, "prepared": true,
            });
            (container.name.clone(), stored)
        };
        let row = |volume: &&Volume| {
            json!({
                "wanted": wanted(volume), "users": [], "phase": "attached", "token": 1,
                "mounted": volume.mounted(),
            })
        };
        let containers: serde_json::Map<_, _> = containers.iter().map(container).collect();
        let volumes: Vec<_> = volumes.iter().map(row).collect();
        let table = json!({"open": null, "refused": null, "containers": containers, "volumes": volumes});
        serde_json::from_value(table).unwrap()
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy {
            roots: vec![self.root.clone()],
            hosts_own: vec![self.alone.directory.clone()],
            cgroup_root: Some(format!("/{}", self.alone.cgroup)),
            program: KEEPER.into(),
            reset: None,
        }
    }

    /// Fences, and tells how long it took.
    pub(crate) fn fence(&self, known: &Known) -> Duration {
        let began = Instant::now();
        let mut runner = FenceRunner::new(known, None, None, self.policy());
        runner.run_until_proved(holder_now() + SOON).unwrap();
        let took = began.elapsed();
        eprintln!("fenced in {took:?}");
        took
    }

    /// What a fence says whose time is over.
    pub(crate) fn fence_in_vain(&self, known: &Known) -> String {
        let mut runner =
            FenceRunner::new(known, Some(holder_now() + Duration::from_secs(2)), None, self.policy());
        let began = Instant::now();
        loop {
            match runner.poll(holder_now()) {
                Progress::Running => {}
                Progress::Proved => panic!("called proved"),
                Progress::NotProved(why) => return why.to_string(),
            }
            assert!(began.elapsed() < SOON, "neither proved nor given up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Volume {
    pub(crate) fn mounted(&self) -> Value {
        let device = (!self.device.is_empty()).then(|| {
            let found = rustix::fs::stat(&self.device).unwrap().st_rdev;
            let number = format!("{}:{}", rustix::fs::major(found), rustix::fs::minor(found));
            json!({ "path": self.device, "number": number, "disk_sequence": self.disk_sequence })
        });
        if let Some(path) = &self.directory {
            return json!({
                "mount_point": self.root_path(), "pin": self.point, "device_number": format!("{} {path}", self.number),
                "source": "", "device": null,
                "directory": { "file_system": self.number, "files": self.number, "path": path },
            });
        }
        let source = if self.device.is_empty() { "extvol-test" } else { &self.device };
        json!({
            "mount_point": self.point, "device_number": self.number, "source": source, "device": device,
        })
    }

    /// Of a directory: where it is on the host.
    pub(crate) fn root_path(&self) -> PathBuf {
        self.point.parent().and_then(Path::parent).unwrap().join(&self.name)
    }

    /// Whether the kernel lets the device be claimed as a whole.
    pub(crate) fn is_idle(&self) -> bool {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::open(&self.device, flags, Mode::empty()).is_ok()
    }

    pub(crate) fn is_mounted_on_host(&self) -> bool {
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(self.point.to_str().unwrap())
    }

    /// Asserts that nothing reaches the storage any more.
    pub(crate) fn assert_no_writes(&self) {
        let before = fs::read(&self.image).unwrap();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            assert!(fs::read(&self.image).unwrap() == before, "written to after the fence");
        }
    }
}

/// A container.
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) cgroup: String,
    _child: Child,
}

impl Container {
    /// Its processes, nested ones too, that are not zombies.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        let outer = Path::new(FREEZER).join(&self.cgroup[1..]);
        let cgroups = [outer.clone(), outer.join("mesos"), outer.join("mesos/inner")];
        let listed = cgroups.map(|cgroup| fs::read_to_string(cgroup.join("cgroup.procs")).unwrap());
        listed.join("").lines().map(|pid| pid.parse().unwrap()).collect()
    }
}
