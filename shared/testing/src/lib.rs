//! Real etcd for tests: processes of this test alone, on 127.0.0.1, in a directory of their own.
//!
//! Nothing stays behind, whatever becomes of the test's process. The kernel kills the etcd processes
//! with the thread that started them (`setpriv --pdeathsig`), and a small shell that waits for the
//! end of a pipe from here removes the directory. So a cluster must stay on the thread that made it.
//!
//! Whatever fails here panics: there is no test to go on with.

use std::io::{Read, Write};
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a condition may take that should hold soon, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not hold within [`SOON`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody listens on, below those that the kernel gives to outgoing connections: so it is
/// still free when an etcd is started on it again.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    const FIRST: u32 = 15_000;
    const COUNT: u32 = 17_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Processes begin far from each other.
        let step = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(97));
        let port = u16::try_from(FIRST + step % COUNT).expect("below 32,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1");
}

/// A directory that is removed when this value is dropped, or when this process ends in any way.
#[derive(Debug)]
struct Lair {
    path: PathBuf,
    /// Removes the directory when its standard input ends.
    janitor: Child,
}

impl Lair {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("extvol-etcd-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a new directory for etcd");
        // An etcd that is being killed may still write a file beneath the first removal.
        let script = r#"trap '' HUP INT TERM; cat >/dev/null; rm -rf "$1" || { sleep 1; rm -rf "$1"; }"#;
        let janitor = Command::new("/bin/sh")
            .args(["-c", script, "extvol-test-janitor"])
            .arg(&path)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("/bin/sh starts");
        Self { path, janitor }
    }
}

impl Drop for Lair {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// One member of a cluster.
#[derive(Debug)]
struct EtcdMember {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

/// An etcd cluster of this test.
#[derive(Debug)]
pub struct EtcdCluster {
    // Dropped, and so killed, before the directory.
    members: Vec<EtcdMember>,
    flags: Vec<String>,
    lair: Lair,
    /// Not to be sent to another thread: see the head of this module.
    thread: PhantomData<*const ()>,
}

impl EtcdCluster {
    /// A cluster of `size` members, all of which answer.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(size: usize) -> Self {
        Self::start_with(size, &[])
    }

    /// A cluster whose members get more command line flags.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_with(size: usize, flags: &[&str]) -> Self {
        let member = |index| EtcdMember {
            name: format!("m{index}"),
            client_port: free_port(),
            peer_port: free_port(),
            process: None,
        };
        let mut cluster = Self {
            members: (0..size).map(member).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            lair: Lair::new(),
            thread: PhantomData,
        };
        for index in 0..size {
            cluster.spawn(index);
        }
        for index in 0..size {
            cluster.wait_healthy(index);
        }
        cluster
    }

    /// All members' endpoints.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.members.len()).map(|index| self.endpoint(index)).collect()
    }

    /// A member's endpoint.
    #[must_use]
    pub fn endpoint(&self, index: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[index].client_port)
    }

    /// The member with this endpoint.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn index_of(&self, endpoint: &str) -> usize {
        self.endpoints().iter().position(|known| known == endpoint).expect("a member's endpoint")
    }

    /// The member that leads.
    ///
    /// # Panics
    /// When there is none within [`SOON`].
    #[must_use]
    pub fn leader(&self) -> usize {
        let mut leader = None;
        wait_until("etcd has a leader", || {
            leader = (0..self.members.len()).find(|index| self.is_leader(*index));
            leader.is_some()
        });
        leader.expect("it was waited for")
    }

    fn is_leader(&self, index: usize) -> bool {
        let metrics = self.http_get(index, "/metrics").unwrap_or_default();
        metrics.lines().any(|line| line == "etcd_server_is_leader 1")
    }

    /// Kills a member (SIGKILL) and waits for its end.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts a killed member again, on its data and ports, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn restart(&mut self, index: usize) {
        self.kill(index);
        self.spawn(index);
        self.wait_healthy(index);
    }

    /// Stops a member (SIGSTOP): it keeps its connections and answers nothing.
    ///
    /// # Panics
    /// When it is not running.
    pub fn stop(&self, index: usize) {
        self.signal(index, "STOP");
        let status = format!("/proc/{}/stat", self.pid(index));
        wait_until("etcd is stopped", || {
            let stat = std::fs::read_to_string(&status).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        });
    }

    /// Lets a stopped member go on (SIGCONT).
    ///
    /// # Panics
    /// When it is not running.
    pub fn resume(&self, index: usize) {
        self.signal(index, "CONT");
    }

    /// A member's process id.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn pid(&self, index: usize) -> u32 {
        self.members[index].process.as_ref().expect("the member runs").id()
    }

    /// The directory with all that this cluster writes.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.lair.path
    }

    /// Runs `etcdctl` against all members that are expected to run.
    ///
    /// # Panics
    /// When it fails.
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let running = (0..self.members.len()).filter(|index| self.members[*index].process.is_some());
        let endpoints: Vec<_> = running.map(|index| self.endpoint(index)).collect();
        etcdctl(&endpoints.join(","), arguments)
    }

    /// Saves a snapshot of the first member's data under `name`.
    ///
    /// # Panics
    /// When `etcdctl` fails.
    pub fn save_snapshot(&self, name: &str) {
        let file = self.lair.path.join(name);
        etcdctl(&self.endpoint(0), &["snapshot", "save", &file.to_string_lossy()]);
    }

    /// Kills all members, gives each the data of a saved snapshot, and starts them on the same ports.
    ///
    /// # Panics
    /// When it fails.
    pub fn restore_snapshot(&mut self, name: &str) {
        let file = self.lair.path.join(name).to_string_lossy().into_owned();
        for index in 0..self.members.len() {
            self.kill(index);
            let data = self.data_dir(index);
            std::fs::remove_dir_all(&data).expect("the old data can be removed");
            let member = &self.members[index];
            self.etcdctl(&[
                "snapshot",
                "restore",
                &file,
                "--name",
                &member.name,
                "--data-dir",
                &data.to_string_lossy(),
                "--initial-cluster",
                &self.initial_cluster(),
                "--initial-advertise-peer-urls",
                &format!("http://127.0.0.1:{}", member.peer_port),
            ]);
        }
        for index in 0..self.members.len() {
            self.spawn(index);
        }
        for index in 0..self.members.len() {
            self.wait_healthy(index);
        }
    }

    fn data_dir(&self, index: usize) -> PathBuf {
        self.lair.path.join(&self.members[index].name)
    }

    fn initial_cluster(&self) -> String {
        let url = |m: &EtcdMember| format!("{}=http://127.0.0.1:{}", m.name, m.peer_port);
        self.members.iter().map(url).collect::<Vec<_>>().join(",")
    }

    fn spawn(&mut self, index: usize) {
        let member = &self.members[index];
        let client = self.endpoint(index);
        let peer = format!("http://127.0.0.1:{}", member.peer_port);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.lair.path.join(format!("{}.log", member.name)))
            .expect("etcd's log can be written");
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--name", &member.name])
            .arg("--data-dir")
            .arg(self.data_dir(index))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.initial_cluster()])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("a file can be opened twice")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("setpriv (util-linux) and etcd are installed");
        self.members[index].process = Some(process);
    }

    fn wait_healthy(&mut self, index: usize) {
        let deadline = Instant::now() + SOON;
        while !self.http_get(index, "/health").is_some_and(|body| body.contains(r#""health":"true""#)) {
            let process = self.members[index].process.as_mut().expect("it was started");
            let ended = process.try_wait().expect("a child can be asked");
            if ended.is_some() || Instant::now() > deadline {
                let log = self.lair.path.join(format!("{}.log", self.members[index].name));
                let log = std::fs::read_to_string(log).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(15).collect();
                panic!("etcd does not answer (ended: {ended:?}); newest lines first: {tail:#?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn http_get(&self, index: usize, path: &str) -> Option<String> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.members[index].client_port));
        let patience = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn signal(&self, index: usize, signal: &str) {
        let status =
            Command::new("kill").args([&format!("-{signal}"), &self.pid(index).to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{signal} of etcd");
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill(index);
        }
    }
}

fn etcdctl(endpoints: &str, arguments: &[&str]) -> String {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", endpoints])
        .args(arguments)
        .output()
        .expect("etcdctl starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdctl {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
