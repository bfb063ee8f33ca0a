//! A host of a cluster, as the harness sees it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub use rustix::process::Signal;

mod power;

pub use power::Server;

use super::config::{Place, ServiceSpec};
use super::error::{ClusterError, Doing, Result};
use super::guardian::Guardian;
use super::network;
use super::protocol::{Ended, HostReply, HostRequest, HostSetup, Output, receive, send};
use super::wait::until;

/// How long [`Host::exec`] lets a program run.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone.
const DEATH: Duration = Duration::from_secs(20);

/// A host: its own network, mounts, processes, name, boot id, machine id, `/run` (empty after a start) and
/// `/var/lib/extvol` (kept). [`Cluster::host`](super::Cluster::host) hands them out.
#[derive(Debug)]
pub struct Host {
    name: String,
    /// 0 is the hub, which has no cable.
    number: u8,
    directory: PathBuf,
    logs: PathBuf,
    place: Place,
    services: Vec<ServiceSpec>,
    guardian: Arc<Guardian>,
    /// The init's process id while the host is up.
    init: Mutex<Option<u32>>,
    /// The hub's init, whose network the cable goes to; known once the hub is up.
    hub: OnceLock<u32>,
}

/// What makes a [`Host`].
pub(super) struct HostParts {
    pub(super) name: String,
    pub(super) number: u8,
    pub(super) directory: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) hosts_file: PathBuf,
    pub(super) place: Place,
    pub(super) services: Vec<ServiceSpec>,
    pub(super) guardian: Arc<Guardian>,
}

impl Host {
    /// Lays out the host's directory; nothing runs yet.
    ///
    /// ```text
    /// hosts/<name>/
    ///   setup.json   what the init reads       init.sock    where it listens
    ///   boot_id      new at each start         machine-id   kept
    ///   extvol/      /var/lib/extvol, kept     volumes/     /var/lib/rexray/volumes
    ///   mesos/       the agent's work directory
    /// ```
    pub(super) fn create(parts: HostParts) -> Result<Self> {
        let HostParts { name, number, directory, logs, hosts_file, place, services, guardian } = parts;
        for part in ["extvol", "volumes"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).doing_with("create", &part)?;
        }
        // Mount points on the machine itself; integration/setup makes them, too.
        let covered = ["/var/lib/extvol", "/var/lib/rexray/volumes"];
        for place in covered.map(Path::new) {
            fs::create_dir_all(place).doing_with("create", place)?;
        }
        write(&directory.join("machine-id"), &format!("{}\n", random_uuid()?.replace('-', "")))?;
        let own = |part: &str, covered: &str| (directory.join(part), PathBuf::from(covered));
        let binds = vec![
            own("boot_id", "/proc/sys/kernel/random/boot_id"),
            own("machine-id", "/etc/machine-id"),
            own("extvol", covered[0]),
            own("volumes", covered[1]),
            (hosts_file, PathBuf::from("/etc/hosts")),
        ];
        let setup =
            HostSetup { name: name.clone(), binds, socket: directory.join("init.sock"), logs: logs.clone() };
        let setup = serde_json::to_string(&setup).doing(|| "write a host's setup".to_owned())?;
        write(&directory.join("setup.json"), &setup)?;
        let services = services.iter().map(|service| service.at(&place)).collect();
        Ok(Self {
            name,
            number,
            directory,
            logs,
            place,
            services,
            guardian,
            init: Mutex::new(None),
            hub: OnceLock::new(),
        })
    }

    /// The host name: `hub`, `agent-1`, ...
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's address on the cluster's network.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        if self.number == 0 { network::HUB } else { network::agent_address(self.number) }
    }

    /// The host's directory on the machine, kept over its restarts.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What placeholders stand for here.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The process id of the host's init outside of the host; `/proc/<pid>/ns` are the host's namespaces.
    ///
    /// # Errors
    /// [`ClusterError::HostDown`].
    pub fn init_pid(&self) -> Result<u32> {
        let init = *self.init.lock().unwrap_or_else(PoisonError::into_inner);
        init.ok_or_else(|| ClusterError::HostDown { host: self.name.clone() })
    }

    /// Whether the host was started and not killed since.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.init_pid().is_ok()
    }

    /// Runs a program on the host, as root and to its end, which must come within a minute.
    ///
    /// # Errors
    /// When the host is down or the program cannot be started. A program that fails is an answer.
    pub fn exec<A: AsRef<str>>(&self, argv: &[A]) -> Result<Output> {
        self.exec_with(argv, &BTreeMap::new(), EXEC_TIMEOUT)
    }

    /// Runs a program on the host with an environment and a time limit, at which it is killed.
    ///
    /// # Errors
    /// As for [`Host::exec`].
    pub fn exec_with<A: AsRef<str>>(
        &self,
        argv: &[A],
        env: &BTreeMap<String, String>,
        timeout: Duration,
    ) -> Result<Output> {
        let argv = argv.iter().map(|argument| argument.as_ref().to_owned()).collect();
        match self.ask(&HostRequest::Exec { argv, env: env.clone(), timeout_ms: millis(timeout) })? {
            HostReply::Output(output) => Ok(output),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Runs a program on the host that must succeed; its standard output.
    ///
    /// # Errors
    /// As for [`Host::exec`], and [`ClusterError::Program`] when it fails.
    pub fn run<A: AsRef<str>>(&self, argv: &[A]) -> Result<String> {
        let output = self.exec(argv)?;
        if output.success() {
            return Ok(output.stdout);
        }
        let command = argv.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
        Err(ClusterError::Program { command, ended: format!("{:?}", output.ended), stderr: output.stderr })
    }

    /// Starts one of the host's configured services; its process id inside the host.
    ///
    /// # Errors
    /// When the host is down, does not know the service, or it runs already.
    pub fn start_service(&self, name: &str) -> Result<u32> {
        self.start_filled(self.configured(name)?)
    }

    /// Starts a service that was not configured. It does not come back with the host.
    ///
    /// # Errors
    /// When the host is down, or a service of that name runs.
    pub fn start_also(&self, service: &ServiceSpec) -> Result<u32> {
        self.start_filled(&service.at(&self.place))
    }

    /// Waits until a configured service says that it is ready.
    ///
    /// # Errors
    /// When the host is down, does not know the service, or [`ClusterError::TimedOut`].
    pub fn wait_service_ready(&self, name: &str, within: Duration) -> Result<()> {
        let service = self.configured(name)?;
        if service.ready.is_empty() {
            return Ok(());
        }
        until(&format!("{name} on {}", self.name), within, &self.logs, || match self.exec(&service.ready) {
            Ok(output) if output.success() => Ok(()),
            Ok(output) => Err(format!("{:?} {}", output.ended, output.stderr.trim())),
            Err(error) => Err(error.to_string()),
        })
    }

    fn configured(&self, name: &str) -> Result<&ServiceSpec> {
        let service = self.services.iter().find(|service| service.name == name);
        service.ok_or_else(|| self.refused(&format!("has no service {name}")))
    }

    fn start_filled(&self, service: &ServiceSpec) -> Result<u32> {
        let ServiceSpec { name, argv, env, ready: _ } = service.clone();
        match self.ask(&HostRequest::Start { name, argv, env })? {
            HostReply::Started { pid } => Ok(pid),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Sends a signal to a service's process and to nothing else; whether it was still there.
    ///
    /// # Errors
    /// When the host is down, or the service was never started.
    pub fn signal(&self, service: &str, signal: Signal) -> Result<bool> {
        let name = service.to_owned();
        match self.ask(&HostRequest::Signal { name, signal: signal.as_raw() })? {
            HostReply::Signalled { running } => Ok(running),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Waits for a service's end; `None` when it still runs after `timeout`.
    ///
    /// # Errors
    /// When the host is down, or the service was never started.
    pub fn wait(&self, service: &str, timeout: Duration) -> Result<Option<Ended>> {
        match self.ask(&HostRequest::Wait { name: service.to_owned(), timeout_ms: millis(timeout) })? {
            HostReply::State(state) => Ok(state),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Kills a service's process (`SIGKILL`), and nothing that it started; back when it is gone.
    ///
    /// # Errors
    /// When the host is down, or the service was never started or does not die.
    pub fn kill_service(&self, service: &str) -> Result<()> {
        self.signal(service, Signal::KILL)?;
        match self.wait(service, DEATH)? {
            Some(_) => Ok(()),
            None => Err(self.refused(&format!("service {service} does not die"))),
        }
    }

    /// `kill -9` of the agent: its containers run on.
    ///
    /// # Errors
    /// As for [`Host::kill_service`].
    pub fn kill_agent(&self) -> Result<()> {
        self.kill_service("agent")
    }

    /// Starts the agent again, with the work directory it had.
    ///
    /// # Errors
    /// As for [`Host::start_service`].
    pub fn start_agent(&self) -> Result<u32> {
        self.start_service("agent")
    }

    fn ask(&self, request: &HostRequest) -> Result<HostReply> {
        self.init_pid()?;
        let talk = || -> io::Result<_> {
            let connection = UnixStream::connect(self.directory.join("init.sock"))?;
            send(&connection, request)?;
            receive(&mut BufReader::new(&connection))
        };
        match talk().doing(|| format!("talk to the init of {}", self.name))? {
            Some(HostReply::Failed { message }) => Err(self.refused(&message)),
            Some(reply) => Ok(reply),
            None => Err(self.refused("the init closed the connection")),
        }
    }

    fn unexpected(&self, reply: &HostReply) -> ClusterError {
        self.refused(&format!("unexpected answer {reply:?}"))
    }

    fn refused(&self, message: &str) -> ClusterError {
        ClusterError::Refused { who: self.name.clone(), message: message.to_owned() }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).doing_with("write", path)
}

pub(super) fn random_uuid() -> Result<String> {
    let file = Path::new("/proc/sys/kernel/random/uuid");
    Ok(fs::read_to_string(file).doing_with("read", file)?.trim().to_owned())
}
