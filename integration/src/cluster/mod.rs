//! A cluster of hosts on one machine: namespaces, etcd, a Mesos master and agents; started, and taken down again.
//!
//! ```text
//!                      hub 192.0.2.1                      agent-1 192.0.2.11      agent-2 192.0.2.12 ...
//!   etcd-1 (etcd-2, etcd-3), master (standby-master),     agent, its services     agent, its services
//!   further services such as the storage's control plane  keeper, containers      keeper, containers
//!                          |                                     |                        |
//!                         br0 -----------------------------------+------------------------+
//! ```
//!
//! A host is a set of namespaces (network, mounts, pids, name, ipc) around an init, `extvol-host-init`.
//! Killing the init is a power loss; killing the agent alone leaves its containers; taking the cable out
//! is a partition. Hosts belong to a guardian process that ends them when the harness ends, by whatever
//! death. A cluster's files are in `target/clusters/<id>`; they go with it, but for the logs of a failure.
//!
//! The thread that starts a cluster moves into the hub's network namespace, and back when the cluster is
//! dropped there: HTTP clients and runtimes made by it in between reach every address of the cluster. Make
//! them after [`Cluster::start`] and drop them before the cluster.

mod binaries;
mod config;
mod error;
pub mod guard;
mod guardian;
mod host;
pub mod init;
mod leftovers;
mod machine;
mod network;
mod protocol;
mod ready;
mod services;
pub mod session;
mod wait;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};

pub use binaries::{Binaries, target_directory};
pub use config::{
    ClusterConfig, ISOLATOR_MODULE, MASTER_MODULE, Module, ModulesConfig, Parameters, STORAGE_PORT,
    ServiceSpec,
};
pub use error::{ClusterError, Result};
pub use host::{Host, Server, Signal};
pub use network::{HUB, agent_address};
pub use protocol::{Ended, Output};
pub use wait::until;

use config::Place;
use error::Doing;
use guardian::Guardian;
use host::{HostParts, random_uuid, write};
use network::Namespace;

/// A running cluster. Dropping it leaves nothing behind, but for the logs after a panic or a wait in vain.
#[derive(Debug)]
pub struct Cluster {
    id: String,
    directory: PathBuf,
    config: ClusterConfig,
    guardian: Arc<Guardian>,
    hub: Host,
    agents: Vec<Host>,
    network: Option<Namespace>,
    /// Something did not come about in time: somebody will want the logs.
    failed: AtomicBool,
    /// Where the starting thread was before, and which thread that is.
    before: (ThreadId, Namespace),
}

impl Cluster {
    /// Starts a cluster; back when etcd is healthy, the master leads and every agent is registered.
    ///
    /// # Errors
    /// Any [`ClusterError`]; nothing runs then, and the logs are kept.
    pub fn start(config: ClusterConfig) -> Result<Self> {
        let mut cluster = Self::create(config)?;
        if let Err(error) = cluster.bring_up() {
            cluster.end(true);
            return Err(error);
        }
        Ok(cluster)
    }

    /// Lays out the directory and starts the guardian.
    fn create(config: ClusterConfig) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(ClusterError::NotRoot);
        }
        let id = random_uuid()?[..8].to_owned();
        let directory = target_directory().join("clusters").join(&id);
        let logs = directory.join("logs");
        fs::create_dir_all(&logs).doing_with("create", &logs)?;
        make_launcher_directory(&config.binaries, &directory.join("launcher"))?;
        let hosts_file = directory.join("hosts-file");
        write(&hosts_file, &hosts_text(config.agents))?;
        let guardian = Arc::new(Guardian::start(&config.binaries.host_init, &directory)?);

        let make = |name: &str, number: u8, services: Vec<ServiceSpec>| {
            let own = directory.join("hosts").join(name);
            let place = place(&config, &directory, &own, name, number);
            Host::create(HostParts {
                name: name.to_owned(),
                number,
                directory: own,
                logs: logs.clone(),
                hosts_file: hosts_file.clone(),
                place,
                services,
                guardian: Arc::clone(&guardian),
            })
        };
        let mut of_hub = services::etcd(&config);
        of_hub.extend(config.hub_services.iter().cloned());
        of_hub.extend(services::masters(&config));
        let hub = make("hub", 0, of_hub)?;
        let mut of_agent = config.host_services.clone();
        of_agent.push(services::agent(&config, &id));
        let agents = (1..=config.agents)
            .map(|number| make(&format!("agent-{number}"), number, of_agent.clone()))
            .collect::<Result<Vec<_>>>()?;
        let before = (thread::current().id(), Namespace::current()?);
        Ok(Self {
            id,
            directory,
            config,
            guardian,
            hub,
            agents,
            network: None,
            failed: AtomicBool::new(false),
            before,
        })
    }

    fn bring_up(&mut self) -> Result<()> {
        self.write_modules()?;
        let hub = self.hub.boot()?;
        network::make_hub(hub)?;
        let network = Namespace::of(hub)?;
        network.enter()?;
        self.network = Some(network);
        self.hub.start_services()?;
        for host in &self.agents {
            host.know_hub(hub);
            host.boot()?;
            host.connect()?;
        }
        self.wait_etcd_healthy()?;
        self.wait_master_leading()?;
        for host in &self.agents {
            host.start_services()?;
        }
        self.wait_agents_registered()
    }

    fn write_modules(&self) -> Result<()> {
        let Some(modules) = &self.config.modules else { return Ok(()) };
        let of_hub = std::iter::once((&self.hub, &modules.master));
        let of_agents = self.agents.iter().map(|host| (host, &modules.isolator));
        for (host, module) in of_hub.chain(of_agents) {
            let Some(mut module) = module.clone() else { continue };
            if module.name == ISOLATOR_MODULE {
                let root = leftovers::cgroup_root(&self.id, "{host}");
                module.parameters.push(("cgroup_root".to_owned(), root));
            }
            let json = services::modules_json(&modules.library, &module, host.place());
            write(&host.directory().join("modules.json"), &json.to_string())?;
        }
        Ok(())
    }

    /// What it consists of.
    #[must_use]
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// The cluster's name on this machine, part of the names of its cgroups.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The cluster's directory; the same path on every host. Backing files of volumes belong here, so that
    /// their loop devices are found when the cluster ends.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One log file for each service: `<host>-<service>.log`.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// The host of etcd and the masters.
    #[must_use]
    pub fn hub(&self) -> &Host {
        &self.hub
    }

    /// An agent host; 0 is `agent-1`.
    ///
    /// # Panics
    /// When the cluster has no such host.
    #[must_use]
    pub fn host(&self, index: usize) -> &Host {
        &self.agents[index]
    }

    /// All agent hosts.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.agents
    }

    /// The leading master's URL.
    #[must_use]
    pub fn master_url(&self) -> String {
        format!("http://{}", services::MASTER)
    }

    /// An agent's URL; 0 is `agent-1`'s.
    #[must_use]
    pub fn agent_url(&self, index: usize) -> String {
        format!("http://{}:{}", self.agents[index].address(), services::AGENT_PORT)
    }

    /// The client URLs of etcd's members.
    #[must_use]
    pub fn etcd_endpoints(&self) -> Vec<String> {
        services::etcd_clients(&self.config).iter().map(|address| format!("http://{address}")).collect()
    }

    /// Runs `etcdctl` (API 3) against all members; its standard output.
    ///
    /// # Errors
    /// [`ClusterError::Program`] when it fails.
    pub fn etcdctl(&self, arguments: &[&str]) -> Result<String> {
        let endpoints = format!("--endpoints={}", self.etcd_endpoints().join(","));
        let mut argv = vec!["env", "ETCDCTL_API=3", "etcdctl", &endpoints];
        argv.extend(arguments);
        self.hub.run(&argv)
    }

    /// Runs something on a thread in the hub's network, for a caller on a thread that is elsewhere.
    ///
    /// # Errors
    /// [`ClusterError::HostDown`] when the hub never started, else what `what` says.
    pub fn on_hub_network<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.network {
            Some(network) => network.run(what),
            None => Err(ClusterError::HostDown { host: "hub".to_owned() }),
        }
    }

    /// The last lines of every log, for a failure's report.
    #[must_use]
    pub fn log_tails(&self, lines: usize) -> String {
        let mut files: Vec<_> =
            fs::read_dir(self.logs()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        let mut tails = String::new();
        for file in files {
            let text = fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let skip = text.lines().count().saturating_sub(lines);
            let _infallible = writeln!(tails, "== {}", file.display());
            for line in text.lines().skip(skip) {
                let _infallible = writeln!(tails, "{line}");
            }
        }
        tails
    }

    /// Keeps the logs after the cluster's end: something went wrong that the cluster cannot know of.
    pub fn keep_logs(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Ends the cluster and says whether anything was left; dropping it does the same and only prints.
    ///
    /// # Errors
    /// When the guardian could not remove everything.
    pub fn stop(mut self) -> Result<()> {
        self.finish(false)
    }

    fn finish(&mut self, keep_logs: bool) -> Result<()> {
        if self.before.0 == thread::current().id() {
            self.before.1.enter()?;
        }
        self.network = None;
        self.guardian.finish(keep_logs)
    }

    fn end(&mut self, keep_logs: bool) {
        let logs = self.logs();
        if let Err(error) = self.finish(keep_logs) {
            eprintln!("cluster {}: {error}", self.id);
        }
        if keep_logs {
            eprintln!("cluster {}: logs are kept in {}", self.id, logs.display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.guardian.has_ended() {
            self.end(thread::panicking() || self.failed.load(Ordering::Relaxed));
        }
    }
}

/// What an agent looks for under its launcher directory.
fn make_launcher_directory(binaries: &Binaries, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).doing_with("create", directory)?;
    let nothing = Path::new("/bin/false");
    let executor = binaries.executor.as_deref().unwrap_or(nothing);
    let default_executor = binaries.default_executor.as_deref().unwrap_or(nothing);
    let node = binaries.mesos.join("mesos-node");
    // Nothing is fetched by URI here.
    for (name, program) in [
        ("mesos-containerizer", node.as_path()),
        ("mesos-executor", executor),
        ("mesos-default-executor", default_executor),
        ("mesos-fetcher", nothing),
    ] {
        symlink(program, directory.join(name)).doing_with("link", program)?;
    }
    Ok(())
}

fn hosts_text(agents: u8) -> String {
    let mut text = format!("127.0.0.1 localhost\n{HUB} hub\n");
    for number in 1..=agents {
        let _infallible = writeln!(text, "{} agent-{number}", agent_address(number));
    }
    text
}

fn place(config: &ClusterConfig, cluster: &Path, own: &Path, name: &str, number: u8) -> Place {
    let address = if number == 0 { HUB } else { agent_address(number) };
    let etcd: Vec<_> =
        services::etcd_clients(config).iter().map(|address| format!("http://{address}")).collect();
    let values = BTreeMap::from([
        ("{host}", name.to_owned()),
        ("{address}", address.to_string()),
        ("{hub}", HUB.to_string()),
        ("{etcd}", etcd.join(",")),
        ("{master}", services::MASTER.to_string()),
        ("{cluster}", cluster.display().to_string()),
        ("{dir}", own.display().to_string()),
    ]);
    Place(values.into_iter().collect())
}
