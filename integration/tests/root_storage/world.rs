//! One test's storage: a control plane, plugins, folders, all in a directory of its own, and all gone at the end of the
//! test, however it ends: processes killed, mounts under the directory unmounted, its loop devices unbound.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as BlockingCommand, Stdio};
use std::time::{Duration, Instant};

use integration::storage::control::client::ControlClient;
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long a condition may take to come true on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct World {
    directory: TempDir,
    storage: Option<Child>,
    address: String,
    pub(crate) control: ControlClient,
}

impl World {
    pub(crate) async fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "loop devices and mounts need root");
        enter_own_mount_namespace();
        let directory = tempfile::tempdir().unwrap();
        let (storage, address) = start_storage(directory.path(), "127.0.0.1:0").await;
        let control = ControlClient::new(&format!("http://{address}")).unwrap();
        Self { directory, storage: Some(storage), address, control }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub(crate) fn backing(&self, volume: &str) -> PathBuf {
        self.path("storage").join("volumes").join(format!("{volume}.img"))
    }

    /// Makes a volume, attaches it to `host` and puts an ext4 on it.
    pub(crate) async fn formatted(&self, volume: &str, host: &str) -> PathBuf {
        self.control.create(volume, None).await.unwrap();
        let device = PathBuf::from(self.control.attach(volume, host).await.unwrap().device);
        let made =
            BlockingCommand::new("/sbin/mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&device).status();
        assert!(made.unwrap().success());
        device
    }

    pub(crate) async fn kill_storage(&mut self) {
        self.storage.take().unwrap().kill().await.unwrap();
    }

    /// The orderly end.
    pub(crate) async fn stop_storage(&mut self) {
        let mut storage = self.storage.take().unwrap();
        let pid = rustix::process::Pid::from_raw(storage.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(storage.wait().await.unwrap().success());
    }

    pub(crate) async fn start_storage(&mut self) {
        self.storage = Some(start_storage(self.directory.path(), &self.address).await.0);
    }

    pub(crate) fn second_storage_is_refused(&self) -> bool {
        let second = BlockingCommand::new(env!("CARGO_BIN_EXE_extvol-storage"))
            .args(["--listen", "127.0.0.1:0", "--dir"])
            .arg(self.path("storage"))
            .stderr(Stdio::null())
            .status();
        !second.unwrap().success()
    }

    pub(crate) async fn plugin(&self, host: &str, more: &[&str]) -> Plugin {
        let socket = self.path(&format!("{host}.sock"));
        let mount_root = self.path(&format!("{host}-volumes"));
        let mut arguments: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        let faults = self.path("faults.json");
        let control = format!("http://{}", self.address);
        for (name, value) in [
            ("driver", "rexray"),
            ("host", host),
            ("control", &control),
            ("socket", socket.to_str().unwrap()),
            ("mount-root", mount_root.to_str().unwrap()),
            ("faults", faults.to_str().unwrap()),
        ] {
            arguments.extend([format!("--{name}"), value.to_owned()]);
        }
        let daemon = start_plugin(&arguments).await;
        let http = reqwest::Client::builder().unix_socket(socket).build().unwrap();
        Plugin { daemon, arguments, http, mount_root }
    }

    /// How many loop devices are bound to a file of this test.
    pub(crate) fn bound_devices(&self) -> usize {
        bound_under(self.directory.path()).len()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Killed when dropped; those plugins that the test still holds were dropped before or end with the test.
        drop(self.storage.take());
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let here: Vec<_> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|mount| Path::new(mount).starts_with(self.directory.path()))
            .collect();
        for mount in here.iter().rev() {
            // Lazily: a panicking test may still hold a file in it, and closes it right after.
            if let Err(error) = rustix::mount::unmount(*mount, UnmountFlags::DETACH) {
                tracing::error!(mount, %error, "not unmounted");
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && self.bound_devices() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = bound_under(self.directory.path());
        assert!(left.is_empty() || std::thread::panicking(), "loop devices left behind: {left:?}");
    }
}

/// A plugin daemon and its client.
pub(crate) struct Plugin {
    daemon: Child,
    arguments: Vec<String>,
    http: reqwest::Client,
    pub(crate) mount_root: PathBuf,
}

impl Plugin {
    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Result<reqwest::Response> {
        self.http.post(format!("http://plugin/{path}")).body(body.to_string()).send().await
    }

    /// A request of the volume driver that must succeed.
    pub(crate) async fn ok(&self, method: &str, body: Value) -> Value {
        let answer = self.post(&format!("VolumeDriver.{method}"), &body).await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{method} {body}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// A request of the volume driver that must fail; its sentence.
    pub(crate) async fn refusal(&self, method: &str, volume: &str) -> String {
        let answer = self.post(&format!("VolumeDriver.{method}"), &json!({ "Name": volume })).await.unwrap();
        assert_eq!(answer.status().as_u16(), 500, "{method} {volume}");
        answer.json::<Value>().await.unwrap()["Err"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn mount(&self, volume: &str) -> PathBuf {
        self.ok("Mount", json!({ "Name": volume })).await["Mountpoint"].as_str().unwrap().into()
    }

    pub(crate) async fn faults(&self, faults: Value) {
        assert!(self.post("faults", &faults).await.unwrap().status().is_success(), "{faults}");
    }

    pub(crate) async fn kill_and_restart(&mut self) {
        self.daemon.kill().await.unwrap();
        self.daemon = start_plugin(&self.arguments).await;
    }
}

/// A page in memory, aligned as `O_DIRECT` wants it.
#[repr(align(4096))]
pub(crate) struct Page(pub(crate) [u8; 4096]);

pub(crate) fn open_with(path: &Path, flags: OFlags) -> std::io::Result<File> {
    let flags = flags.bits().try_into().unwrap();
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

pub(crate) fn mount_ext4(device: &Path, target: &Path) {
    rustix::mount::mount(device, target, "ext4", MountFlags::empty(), Some(c"noinit_itable")).unwrap();
}

pub(crate) fn unmount(target: &Path) {
    rustix::mount::unmount(target, UnmountFlags::empty()).unwrap();
}

/// Whether a full check finds nothing to mend.
pub(crate) fn is_sound(device: &Path) -> bool {
    BlockingCommand::new("/sbin/e2fsck").args(["-f", "-n"]).arg(device).output().unwrap().status.success()
}

pub(crate) fn is_bound(device: &Path) -> bool {
    let name = device.file_name().unwrap();
    Path::new("/sys/block").join(name).join("loop/backing_file").exists()
}

fn bound_under(directory: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap();
    devices
        .filter_map(|device| fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok())
        .filter(|backing| Path::new(backing).starts_with(directory))
        .collect()
}

/// Gives this thread, and what it starts from now on, a mount namespace of its own. Otherwise any `unshare -m` on the
/// machine copies a mount of this test, and the device stays busy after the test's umount; seen with other tests
/// running beside this one. A test that is killed takes its mounts with it, too.
#[expect(
    unsafe_code,
    reason = "rustix marks every unshare as unsafe, for the sake of file descriptor tables"
)]
fn enter_own_mount_namespace() {
    // SAFETY: descriptors are not unshared, so no other thread's descriptor changes its meaning. What does change is the
    // root of path names for this one thread, and no path was opened relative to the old one.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", everything).unwrap();
}

/// Waits for `condition`, and fails the test if it does not come.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn start_storage(directory: &Path, listen: &str) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_extvol-storage"));
    command.args(["--listen", listen, "--dir"]).arg(directory.join("storage"));
    started(command).await
}

async fn start_plugin(arguments: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_extvol-plugin"));
    command.args(arguments);
    started(command).await.0
}

/// Starts a program and waits until it says where it listens.
async fn started(mut command: Command) -> (Child, String) {
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
    let line = line.expect("the program ended at once; its stderr says why");
    (child, line.strip_prefix("listening on ").unwrap().to_owned())
}
