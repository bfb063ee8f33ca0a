//! What the tests are made of.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use shared::protocol::holder::Idleness;
use shared::volume::{Driver, VolumeName};

use super::super::*;
use crate::parameters::Storage;

pub(super) fn volume(name: &str) -> VolumeId {
    VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() }
}

pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device with a file system on it; detached when dropped, unless something holds it.
pub(super) struct Disk {
    directory: tempfile::TempDir,
    pub(super) device: String,
}

impl Disk {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let image = image.to_str().unwrap();
        run("mkfs.ext4", &["-q", image]);
        Self { device: run("losetup", &["--find", "--show", image]), directory }
    }

    /// Another device of the same storage.
    pub(super) fn again(&self) -> String {
        let image = self.directory.path().join("image");
        run("losetup", &["--find", "--show", image.to_str().unwrap()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _detached_already = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// A shared mount root, a directory outside it, and what is known of volumes.
pub(super) struct World {
    directory: tempfile::TempDir,
    pub(super) root: PathBuf,
    pub(super) outside: PathBuf,
    pub(super) places: Places,
    pub(super) others: Others,
    pub(super) before: Option<Before>,
}

impl World {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        let (root, outside) = (real.join("root"), real.join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        run("mount", &["--bind", root.to_str().unwrap(), root.to_str().unwrap()]);
        run("mount", &["--make-shared", root.to_str().unwrap()]);
        let places = Places { roots: vec![root.clone()], ..Places::default() };
        let before = Some(Before::now().unwrap());
        Self { directory, root, outside, places, others: Others::default(), before }
    }

    /// What a driver mounts, with RexRay's directory in it.
    pub(super) fn mount(&self, source: &str, at: &Path, options: &[&str]) -> PathBuf {
        fs::create_dir_all(at).unwrap();
        run("mount", &[options, &[source, at.to_str().unwrap()]].concat());
        // On a read-only one it is there from before.
        let _there = fs::create_dir(at.join("data"));
        at.join("data")
    }

    pub(super) fn tmpfs(&self, name: &str) -> PathBuf {
        self.mount(&format!("extvol-{name}"), &self.root.join(name), &["-t", "tmpfs"])
    }

    pub(super) fn call(&self, name: &str, mount_point: &Path) -> MountCall {
        MountCall {
            volume: volume(name),
            asked: volume(name).name,
            storage: Storage::Attached,
            directories: None,
            owner: None,
            mount_point: mount_point.to_str().unwrap().to_owned(),
            read_only: false,
            suid_dev: false,
            before: self.before.clone(),
            others: self.others.clone(),
        }
    }

    pub(super) fn identify(&self, name: &str, mount_point: &Path) -> Result<MountedVolume, Refusal> {
        identify(&self.call(name, mount_point), &self.places)
    }

    /// Mounted and known to this host.
    pub(super) fn attach(&mut self, name: &str, mount_point: &Path) -> MountedVolume {
        let mounted = self.identify(name, mount_point).unwrap();
        self.others.mounted.push((volume(name), mounted.clone()));
        mounted
    }

    pub(super) fn proof(&self, name: &str, mounted: Option<&MountedVolume>) -> ProofCall {
        let others = self.others.mounted.iter().filter(|(id, _)| *id != volume(name)).cloned().collect();
        ProofCall {
            asked: volume(name),
            mounted: mounted.cloned(),
            before: self.before.clone(),
            repeated: false,
            strays: vec![],
            others: Others { mounted: others, mounting: self.others.mounting.clone() },
            found: vec![],
            end: false,
        }
    }

    pub(super) fn prove(&self, name: &str, mounted: Option<&MountedVolume>) -> Idleness {
        self.prove_again(self.proof(name, mounted)).idleness
    }

    /// As a keeper asks: once more for what was nobody's.
    pub(super) fn prove_again(&self, call: ProofCall) -> Proof {
        let proof = prove_idle(&call, &self.places);
        if proof.found.is_empty() {
            return proof;
        }
        prove_idle(&ProofCall { found: proof.found, ..call }, &self.places)
    }

    /// As a driver unmounts.
    pub(super) fn umount(&self, mounted: &MountedVolume) {
        unpin(mounted).unwrap();
        let at = mount_table::showing(Path::new(&*mounted.mount_point)).unwrap().mount_point;
        run("umount", &[at.to_str().unwrap()]);
    }

    pub(super) fn is_mounted(&self, at: &Path) -> bool {
        mount_table::own().unwrap().iter().any(|mount| mount.mount_point == at)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let mut below: Vec<_> = mount_table::own().unwrap_or_default();
        below.retain(|mount| mount.is_below(self.directory.path()));
        below.sort_by_key(|mount| std::cmp::Reverse(mount.id));
        for mount in below {
            let _gone = unmount(&mount.mount_point, UnmountFlags::DETACH);
        }
    }
}

/// A shell command that says `ready` and waits; killed when dropped.
pub(super) struct Waiting(pub(super) Child);

impl Waiting {
    pub(super) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    pub(super) fn shell(script: &str) -> Self {
        Self::start(Command::new("sh").args(["-c", &format!("{script}; echo ready; read end")]))
    }

    pub(super) fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}
