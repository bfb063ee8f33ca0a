//! What a cluster consists of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::binaries::Binaries;
use super::error::Result;

/// Describes a cluster; [`ClusterConfig::plain`] is where to start.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// How many agent hosts: `agent-1`, `agent-2`, ...
    pub agents: u8,
    /// How many etcd members: 1 or 3.
    pub etcd_members: u8,
    /// A second master process, which follows the leader and never takes over; it creates the anonymous
    /// modules, as a standby does.
    pub standby_master: bool,
    /// How often the master pings an agent. Mesos's own default is 15 s.
    pub agent_ping_timeout: Duration,
    /// How many pings without an answer make an agent unreachable. Mesos's own default is 5.
    pub max_agent_ping_timeouts: u32,
    /// The modules to load, if any.
    pub modules: Option<ModulesConfig>,
    /// Isolators besides `filesystem/linux` and those of the modules.
    pub isolation: Vec<String>,
    /// What each agent offers, in Mesos's notation.
    pub resources: String,
    /// What each agent says about itself, in Mesos's notation.
    pub attributes: String,
    /// A directory of image archives, which turns Docker images on.
    pub docker_registry: Option<PathBuf>,
    /// Added to the environment of every master; goes before what the harness sets.
    pub master_env: BTreeMap<String, String>,
    /// Added to the environment of every agent; goes before what the harness sets.
    pub agent_env: BTreeMap<String, String>,
    /// Services of the hub, started after etcd and before the master.
    pub hub_services: Vec<ServiceSpec>,
    /// Services of each agent host, started before the agent.
    pub host_services: Vec<ServiceSpec>,
    /// The programs to run.
    pub binaries: Binaries,
    /// How long each part may take to become ready.
    pub ready_within: Duration,
}

impl ClusterConfig {
    /// Plain Mesos and etcd: no module, no storage.
    ///
    /// # Errors
    /// [`ClusterError::Missing`](super::ClusterError::Missing) when the runtime or the hosts' init was not built.
    pub fn plain(agents: u8) -> Result<Self> {
        Ok(Self {
            agents,
            etcd_members: 1,
            standby_master: false,
            agent_ping_timeout: Duration::from_secs(1),
            max_agent_ping_timeouts: 3,
            modules: None,
            isolation: Vec::new(),
            resources: "cpus:4;mem:2048;disk:4096;ports:[31000-32000]".to_owned(),
            attributes: String::new(),
            docker_registry: None,
            master_env: BTreeMap::new(),
            agent_env: BTreeMap::new(),
            hub_services: Vec::new(),
            host_services: Vec::new(),
            binaries: Binaries::find()?,
            ready_within: Duration::from_secs(60),
        })
    }

    /// The whole product on two or more agent hosts: storage with these drivers, both modules, and the keeper
    /// that the isolator starts.
    ///
    /// # Errors
    /// [`ClusterError::Missing`](super::ClusterError::Missing) when a part was not built.
    pub fn complete(agents: u8, drivers: &[&str]) -> Result<Self> {
        let mut config = Self::plain(agents)?;
        config.add_storage(drivers)?;
        config.record_leases()?;
        // Quick to see an agent come and go.
        config.load_modules(vec![("poll_interval".into(), "1secs".into())], Vec::new())?;
        config.serve(drivers);
        Ok(config)
    }

    /// Loads the modules of `libextvol.so` into master and agents, with these parameters; `etcd_endpoints` and
    /// `keeper` are this cluster's own unless they are given.
    ///
    /// # Errors
    /// [`ClusterError::Missing`](super::ClusterError::Missing) when the library or the keeper was not built.
    pub fn load_modules(&mut self, mut master: Parameters, mut isolator: Parameters) -> Result<()> {
        let keeper = self.binaries.keeper()?.display().to_string();
        let default = |parameters: &mut Parameters, name: &str, value: &str| {
            if !parameters.iter().any(|(given, _)| given == name) {
                parameters.push((name.to_owned(), value.to_owned()));
            }
        };
        default(&mut master, "etcd_endpoints", "{etcd}");
        default(&mut isolator, "etcd_endpoints", "{etcd}");
        default(&mut isolator, "keeper", &keeper);
        self.modules = Some(ModulesConfig {
            library: self.binaries.library()?,
            master: Some(Module { name: MASTER_MODULE.to_owned(), parameters: master }),
            isolator: Some(Module { name: ISOLATOR_MODULE.to_owned(), parameters: isolator }),
        });
        Ok(())
    }

    /// Has the agents' module serve these drivers of [`Self::add_storage`], and take volumes away by the second plugin of
    /// each; what it was given is left as it is.
    pub fn serve(&mut self, drivers: &[&str]) {
        if drivers.is_empty() {
            return;
        }
        let described = |driver: &&str| {
            ((*driver).to_owned(), serde_json::json!({ "preempt_plugin": format!("{driver}-preempt") }))
        };
        let described: serde_json::Map<_, _> = drivers.iter().map(described).collect();
        let isolator = self.modules.as_mut().and_then(|modules| modules.isolator.as_mut());
        if let Some(isolator) = isolator
            && isolator.parameters.iter().all(|(given, _)| given != "drivers")
        {
            isolator.parameters.push(("drivers".to_owned(), serde_json::Value::from(described).to_string()));
        }
    }

    /// The profile `fast` on both sides, and short spans beside it, so that a lost agent or host is over in seconds.
    pub fn set_quick_times(&mut self) {
        for (name, value) in [("profile", "fast"), ("settle_time", "5secs"), ("grace", "1secs")] {
            self.set_agent_parameter(name, value);
        }
        self.set_master_parameter("profile", "fast");
        self.set_master_parameter("poll_interval", "500ms");
    }

    /// Adds a parameter to the agents' module, in place of one of that name.
    pub fn set_agent_parameter(&mut self, name: &str, value: &str) {
        set(self.modules.as_mut().and_then(|modules| modules.isolator.as_mut()), name, value);
    }

    /// Adds a parameter to the master's module, in place of one of that name.
    pub fn set_master_parameter(&mut self, name: &str, value: &str) {
        set(self.modules.as_mut().and_then(|modules| modules.master.as_mut()), name, value);
    }

    /// The recorder of leases and sessions on the hub ([`crate::witness`]).
    ///
    /// # Errors
    /// [`ClusterError::Missing`](super::ClusterError::Missing) when its programs were not built.
    pub fn record_leases(&mut self) -> Result<()> {
        let (_, recorder) = self.binaries.witness()?;
        let recorder = recorder.display().to_string();
        let argv = [&recorder, "--etcd", "{etcd}", "--out", "{cluster}/logs/witness/leases.jsonl"];
        let ready = ["test", "-s", "{cluster}/logs/witness/leases.jsonl"];
        self.hub_services.push(ServiceSpec::new("recorder", argv).ready_when(ready));
        Ok(())
    }

    /// The storage stand-in: its control plane on the hub, port [`STORAGE_PORT`], with its volumes in the
    /// cluster's directory, and for each of these drivers two plugin daemons on each agent host: one of its name, and
    /// one called `<driver>-preempt`, which takes a volume away from another host.
    ///
    /// # Errors
    /// [`ClusterError::Missing`](super::ClusterError::Missing) when its programs were not built.
    pub fn add_storage(&mut self, drivers: &[&str]) -> Result<()> {
        let (storage, plugin) = self.binaries.storage()?;
        let (storage, plugin) = (storage.display().to_string(), plugin.display().to_string());
        let listen = format!("{{hub}}:{STORAGE_PORT}");
        let control = format!("http://{listen}");
        let argv = [&storage, "--listen", &listen, "--dir", "{cluster}/storage"];
        let ready = ["curl", "-s", "-o", "/dev/null", &control];
        self.hub_services.push(ServiceSpec::new("storage", argv).ready_when(ready));
        let preempting = drivers.iter().map(|driver| (format!("{driver}-preempt"), true));
        for (driver, preempt) in drivers.iter().map(|driver| ((*driver).to_owned(), false)).chain(preempting)
        {
            let mut argv = vec![&*plugin, "--driver", &driver, "--control", &control, "--host", "{host}"];
            argv.extend(preempt.then_some("--preempt"));
            let socket = format!("/run/docker/plugins/{driver}.sock");
            let ready =
                ["curl", "-sf", "--unix-socket", &socket, "-X", "POST", "http://plugin/Plugin.Activate"];
            let plugin = ServiceSpec::new(format!("plugin-{driver}"), argv).ready_when(ready);
            self.host_services.push(plugin);
        }
        Ok(())
    }
}

fn set(module: Option<&mut Module>, name: &str, value: &str) {
    if let Some(module) = module {
        module.parameters.retain(|(given, _)| given != name);
        module.parameters.push((name.to_owned(), value.to_owned()));
    }
}

/// Where the storage's control plane listens on the hub.
pub const STORAGE_PORT: u16 = 7000;

/// The master's module in `libextvol.so`.
pub const MASTER_MODULE: &str = "org_extvol_VolumeLeaseMaster";
/// The agent's module in `libextvol.so`.
pub const ISOLATOR_MODULE: &str = "org_extvol_VolumeIsolator";

/// A module's parameters. Values may hold the placeholders of [`ServiceSpec`].
pub type Parameters = Vec<(String, String)>;

/// The modules of a cluster.
#[derive(Debug, Clone)]
pub struct ModulesConfig {
    /// The shared object that holds them.
    pub library: PathBuf,
    /// Loaded by masters: an anonymous module.
    pub master: Option<Module>,
    /// Loaded by agents, and named last in their isolation flag.
    pub isolator: Option<Module>,
}

/// One module.
#[derive(Debug, Clone)]
pub struct Module {
    /// The name of its manifest.
    pub name: String,
    /// What it is told.
    pub parameters: Parameters,
}

/// A program that runs on a host for as long as the host does.
///
/// Arguments and values may hold `{host}` (the host's name), `{address}` (its IP address), `{hub}` (the
/// hub's), `{etcd}` (etcd's client URLs, comma separated), `{master}` (the leading master's `ip:port`),
/// `{cluster}` (the cluster's directory, the same on every host) and `{dir}` (the host's own directory,
/// kept over its restarts).
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// The name by which the harness starts and ends it; also names its log.
    pub name: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its environment, besides `PATH`, `HOME` and `LANG`.
    pub env: BTreeMap<String, String>,
    /// A program that succeeds on the host once the service is ready; none: it is ready at once. A host's next
    /// service starts after that.
    pub ready: Vec<String>,
}

impl ServiceSpec {
    /// A service without an environment of its own, ready at once.
    pub fn new<A: Into<String>>(name: impl Into<String>, argv: impl IntoIterator<Item = A>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self { name: name.into(), argv, env: BTreeMap::new(), ready: Vec::new() }
    }

    /// Says which program succeeds on the host once the service is ready.
    #[must_use]
    pub fn ready_when<A: Into<String>>(mut self, argv: impl IntoIterator<Item = A>) -> Self {
        self.ready = argv.into_iter().map(Into::into).collect();
        self
    }

    /// Adds one environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Puts a host's values in place of the placeholders.
    pub(super) fn at(&self, place: &Place) -> Self {
        Self {
            name: self.name.clone(),
            argv: self.argv.iter().map(|argument| place.fill(argument)).collect(),
            env: self.env.iter().map(|(name, value)| (name.clone(), place.fill(value))).collect(),
            ready: self.ready.iter().map(|argument| place.fill(argument)).collect(),
        }
    }
}

/// What the placeholders of a [`ServiceSpec`] stand for on one host.
#[derive(Debug, Clone)]
pub(super) struct Place(pub(super) Vec<(&'static str, String)>);

impl Place {
    pub(super) fn fill(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}
