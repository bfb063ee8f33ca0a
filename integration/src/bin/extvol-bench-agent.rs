//! What the isolator costs an agent, on real Mesos and etcd: time in PREPARING, launches at once, memory.
//!
//! ```text
//! extvol-bench-agent [--short]     fewer samples
//! ```
//!
//! The plugin here answers at once: a volume is a tmpfs. So what is measured is the product's own part: a lease taken
//! in etcd, the way to the keeper and back, and the checks of what is mounted. Containers are standalone ones: no
//! scheduler and no executor add to the times, which are the agent's own (its log says how long each container was in
//! PREPARING).

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::response::Json;
use futures::future::{join_all, try_join_all};
use integration::bench::{Goal, Report, directory};
use integration::cluster::{Cluster, ClusterConfig, ServiceSpec, target_directory};
use integration::scheduler::{SchedulerConfig, TaskState};
use integration::trial::{Trial, app, once};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::store::{LeaseStore, Revision, Transaction};

type Failure = Box<dyn Error + Send + Sync>;

/// The plugin's name.
const QUICK: &str = "quick";

/// Launched at once.
const AT_ONCE: usize = 64;

/// How long anything may take that this waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the difference may be, beside three transactions.
const OWN_MILLISECONDS: f64 = 5.0;
const MODULE_MEBIBYTES: f64 = 1.0;
const KEEPER_MEBIBYTES: f64 = 10.0;

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--plugin"] => plugin(),
        [] => measure(&Amounts { pairs: 250, waves: 5, starts: 7 }),
        ["--short"] => measure(&Amounts { pairs: 30, waves: 1, starts: 2 }),
        _ => Err("usage: extvol-bench-agent [--short]".into()),
    }
}

/// How often what is measured.
struct Amounts {
    pairs: usize,
    waves: usize,
    starts: usize,
}

fn measure(amounts: &Amounts) -> Result<(), Failure> {
    println!("{}", Report::head());
    let mut missed = Vec::new();
    let mut tell = |reports: Vec<Option<Report>>| -> Result<(), Failure> {
        for report in reports.into_iter().flatten() {
            println!("{report}");
            report.write(&directory())?;
            if report.met == Some(false) {
                missed.push(report.name);
            }
        }
        Ok(())
    };
    tell(times(amounts)?)?;
    tell(memory(amounts)?)?;
    // A finding, no failure: machines are noisy, and differ.
    if !missed.is_empty() {
        println!("missed: {}", missed.join(", "));
    }
    Ok(())
}

/// PREPARING in interleaved pairs, then waves of launches at once, then the keeper's memory.
fn times(amounts: &Amounts) -> Result<Vec<Option<Report>>, Failure> {
    let mut config = ClusterConfig::complete(1, &["ebs"])?;
    let drivers = json!({ "ebs": { "preempt_plugin": "ebs-preempt" }, QUICK: {} });
    config.set_agent_parameter("drivers", &drivers.to_string());
    config.agent_env.insert("EXTVOL_LOG".into(), "info,agent_isolator::isolator=debug".into());
    let cluster = Cluster::start(config)?;
    start_plugin(&cluster)?;
    let keeper = memory_of(&cluster, "extvol-worker")?.resident;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let agent = Agent { url: format!("{}/api/v1", cluster.agent_url(0)), client: client()? };
    let log = cluster.logs().join("agent-1-agent.log");

    let (transactions, waves) = runtime.block_on(async {
        let store = EtcdStore::new(EtcdConfig::new(cluster.etcd_endpoints()))?;
        let mut transactions = Transactions { store, at: Revision::ABSENT, samples: Vec::new() };
        // The first of each kind find cold caches.
        for n in 0..amounts.pairs + 3 {
            let (first, second) = if n % 2 == 0 { ("with", "without") } else { ("without", "with") };
            for kind in [first, second] {
                agent.run(&format!("{kind}-{n}"), kind == "with").await?;
            }
            transactions.one().await?;
        }
        let mut waves = [Vec::new(), Vec::new()];
        for wave in 0..amounts.waves {
            for (times, with) in waves.iter_mut().zip([false, true]) {
                times.push(agent.wave(&format!("wave-{wave}-{with}"), with).await?);
            }
        }
        Ok::<_, Failure>((transactions.samples, waves))
    })?;
    let text = std::fs::read_to_string(&log)?;
    let preparing = |kind: &str| -> Result<Vec<f64>, Failure> {
        (3..amounts.pairs + 3).map(|n| preparing(&text, &format!("{kind}-{n}"))).collect()
    };
    let (with, without) = (preparing("with")?, preparing("without")?);
    let differences = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    let inside = text.lines().filter_map(|line| line.split_once("prepared in ")?.1.strip_suffix(" us"));
    let inside = inside.skip(3).take(amounts.pairs).filter_map(|us| Some(us.parse::<f64>().ok()? / 1e3));
    let inside = inside.collect();
    let transaction = Report::new("etcd-transaction", "ms", transactions[3..].to_vec(), None);
    let goal = transaction.as_ref().map(|report| Goal::Median(3.0 * report.p50 + OWN_MILLISECONDS));
    let after = memory_of(&cluster, "extvol-worker")?.resident;
    let [waves_without, waves_with] = waves;
    drop((agent, runtime));
    cluster.stop()?;
    Ok(vec![
        transaction,
        Report::new("agent-preparing-without-volume", "ms", without, None),
        Report::new("agent-preparing-with-volume", "ms", with, None),
        Report::new("agent-preparing-difference", "ms", differences, goal),
        Report::new("agent-inside-prepare", "ms", inside, None),
        Report::new("agent-64-launches-without-volumes", "ms", waves_without, None),
        Report::new("agent-64-launches-with-volumes", "ms", waves_with, None),
        Report::new("keeper-resident-at-start", "MiB", vec![keeper], Some(Goal::Worst(KEEPER_MEBIBYTES))),
        Report::new(
            "keeper-resident-after-launches",
            "MiB",
            vec![after],
            Some(Goal::Worst(KEEPER_MEBIBYTES)),
        ),
    ])
}

/// The time that a container was in PREPARING, in milliseconds, from the agent's log.
fn preparing(log: &str, container: &str) -> Result<f64, Failure> {
    let words = format!("Transitioning the state of container {container} from PREPARING to ");
    let line = log.lines().find(|line| line.contains(&words)).ok_or("a container was not in PREPARING")?;
    let took = line.rsplit_once(" after ").ok_or("a state without its time")?.1.trim();
    let units = [("ms", 1.0), ("us", 1e-3), ("ns", 1e-6), ("secs", 1e3)];
    let parsed =
        units.iter().find_map(|(unit, factor)| Some(took.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    parsed.ok_or_else(|| format!("a time that is none: {took}").into())
}

/// Writes of one key of their own, each compared with the one before, as the keeper's are.
struct Transactions {
    store: EtcdStore,
    at: Revision,
    samples: Vec<f64>,
}

impl Transactions {
    async fn one(&mut self) -> Result<(), Failure> {
        let value = vec![b'x'; 300];
        let began = Instant::now();
        self.at = self.store.commit(Transaction::new().put("/bench", self.at, value)).await?;
        self.samples.push(began.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }
}

fn client() -> Result<reqwest::Client, Failure> {
    Ok(reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?)
}

/// The agent's own API.
struct Agent {
    url: String,
    client: reqwest::Client,
}

impl Agent {
    async fn call(&self, call: Value) -> Result<(), Failure> {
        let answer = self.client.post(&self.url).json(&call).send().await?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(format!("{status}: {}", answer.text().await?).into()) }
    }

    async fn launch(&self, id: &str, volume: bool) -> Result<(), Failure> {
        let variables = json!([
            { "name": "DVDI_VOLUME_NAME", "value": id },
            { "name": "DVDI_VOLUME_DRIVER", "value": QUICK },
            { "name": "DVDI_VOLUME_CONTAINERPATH", "value": "data" },
            { "name": "DVDI_VOLUME_EXPLICITCREATE", "value": "true" },
        ]);
        let variables = if volume { variables } else { json!([]) };
        let command = json!({ "value": "true", "environment": { "variables": variables } });
        let launch = json!({ "container_id": { "value": id }, "command": command });
        self.call(json!({ "type": "LAUNCH_CONTAINER", "launch_container": launch })).await
    }

    async fn wait(&self, id: &str) -> Result<(), Failure> {
        let container = json!({ "container_id": { "value": id } });
        self.call(json!({ "type": "WAIT_CONTAINER", "wait_container": container })).await
    }

    /// A container's whole life.
    async fn run(&self, id: &str, volume: bool) -> Result<(), Failure> {
        self.launch(id, volume).await?;
        self.wait(id).await
    }

    /// Launches many at once; the milliseconds until all are launched.
    async fn wave(&self, name: &str, volume: bool) -> Result<f64, Failure> {
        let ids: Vec<_> = (0..AT_ONCE).map(|n| format!("{name}-{n}")).collect();
        let began = Instant::now();
        try_join_all(ids.iter().map(|id| self.launch(id, volume))).await?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        // Ended long ago, most of them: one that cannot be waited for any more is not missed.
        join_all(ids.iter().map(|id| self.wait(id))).await;
        Ok(took)
    }
}

/// What the module adds to an agent: pairs of agents started with and without it, and after a panic of its own.
fn memory(amounts: &Amounts) -> Result<Vec<Option<Report>>, Failure> {
    let folder = tempfile::tempdir()?;
    let panicking = folder.path().join("libextvol.so");
    link_panicking(&panicking)?;
    let (mut added, mut after_panic) = (Vec::<Memory>::new(), Vec::<Memory>::new());
    for _ in 0..amounts.starts {
        let plain = {
            let mut config = ClusterConfig::complete(1, &["ebs"])?;
            config.modules.as_mut().ok_or("no modules")?.isolator = None;
            let trial = Trial::with(config, SchedulerConfig::default())?;
            used(&trial, false)?
        };
        let with = {
            let trial = Trial::with(ClusterConfig::complete(1, &["ebs"])?, SchedulerConfig::default())?;
            used(&trial, false)?
        };
        let after = {
            let mut config = ClusterConfig::complete(1, &["ebs"])?;
            config.modules.as_mut().ok_or("no modules")?.library = panicking.clone();
            config.agent_env.insert("RUST_BACKTRACE".into(), "1".into());
            let trial = Trial::with(config, SchedulerConfig::default())?;
            used(&trial, true)?
        };
        added.push(with.above(plain));
        after_panic.push(after.above(plain));
    }
    let goal = Some(Goal::Median(MODULE_MEBIBYTES));
    let of = |samples: &[Memory], which: fn(&Memory) -> f64| samples.iter().map(which).collect::<Vec<_>>();
    Ok(vec![
        Report::new("agent-module-private", "MiB", of(&added, |m| m.private), goal),
        Report::new("agent-module-private-after-panic", "MiB", of(&after_panic, |m| m.private), goal),
        Report::new("agent-module-resident", "MiB", of(&added, |m| m.resident), None),
        Report::new("agent-module-resident-after-panic", "MiB", of(&after_panic, |m| m.resident), None),
    ])
}

/// A process's memory, in MiB.
#[derive(Clone, Copy)]
struct Memory {
    /// What no other process can share, and only swap could take: anonymous pages.
    private: f64,
    /// With the pages of mapped files. The kernel maps 64 kB of code for each byte that is touched, as long as it is in
    /// its cache anyhow: this number says how scattered code is, not what it costs.
    resident: f64,
}

impl Memory {
    fn above(self, other: Self) -> Self {
        Self { private: self.private - other.private, resident: self.resident - other.resident }
    }
}

/// The resident memory of an agent that has run a few tasks.
fn used(trial: &Trial, panics: bool) -> Result<Memory, Failure> {
    for n in 0..3 {
        // Without a volume: the agent does the same in all three cases.
        let bug: &[_] = if panics && n == 2 { &[("example.bug", "panic-in-prepare")] } else { &[] };
        let ended = trial.run_to_end(once(app(&format!("job-{n}"), "agent-1", "true", bug)?))?;
        if (ended.state == TaskState::Failed) == bug.is_empty() {
            return Err(format!("job-{n} ended {}: {:?}", ended.state, ended.message).into());
        }
    }
    memory_of(&trial.cluster, "mesos-node")
}

fn link_panicking(output: &Path) -> Result<(), Failure> {
    let link = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cxx-glue/link");
    let archive = target_directory().join("release/libpanicking_glue.a");
    let done = Command::new(link).arg(archive).arg(output).output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.status.success() { Ok(()) } else { Err(said.into()) }
}

/// The memory of the oldest program of this name on the agent's host.
fn memory_of(cluster: &Cluster, program: &str) -> Result<Memory, Failure> {
    let script = "cat /proc/$(pgrep -o -x \"$1\")/status";
    let status = cluster.host(0).run(&["sh", "-c", script, "sh", program])?;
    let mebibytes = |field: &str| -> Result<f64, Failure> {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kilobytes.ok_or_else(|| format!("no {field} in the status of {program}"))? / 1024.0)
    };
    Ok(Memory { private: mebibytes("RssAnon:")?, resident: mebibytes("VmRSS:")? })
}

fn start_plugin(cluster: &Cluster) -> Result<(), Failure> {
    let own = std::env::current_exe()?.display().to_string();
    cluster.host(0).start_also(&ServiceSpec::new("plugin-quick", [own.as_str(), "--plugin"]))?;
    cluster.wait_for("the quick plugin", PATIENCE, || {
        let socket = socket().display().to_string();
        let argv = ["curl", "-sf", "--unix-socket", &socket, "-X", "POST", "http://plugin/Plugin.Activate"];
        cluster.host(0).run(&argv).map(drop).map_err(|error| error.to_string())
    })?;
    Ok(())
}

fn socket() -> PathBuf {
    Path::new("/run/docker/plugins").join(format!("{QUICK}.sock"))
}

/// The plugin: a volume is a tmpfs, mounted and unmounted at once.
fn plugin() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        std::fs::create_dir_all("/run/docker/plugins")?;
        let listener = tokio::net::UnixListener::bind(socket())?;
        let router = Router::new().fallback(|request: Request| async { Json(answer(request).await) });
        axum::serve(listener, router).await?;
        Ok(())
    })
}

async fn answer(request: Request) -> Value {
    let method = request.uri().path().to_owned();
    let body = axum::body::to_bytes(request.into_body(), 1 << 16).await.unwrap_or_default();
    let name =
        serde_json::from_slice::<Value>(&body).unwrap_or_default()["Name"].as_str().unwrap_or("").to_owned();
    let point = Path::new("/var/lib/rexray/volumes").join(&name);
    let done = match method.as_str() {
        "/VolumeDriver.Mount" => std::fs::create_dir_all(&point)
            .and_then(|()| Ok(rustix::mount::mount("tmpfs", &point, "tmpfs", MountFlags::empty(), None)?)),
        "/VolumeDriver.Unmount" => rustix::mount::unmount(&point, UnmountFlags::empty()).map_err(Into::into),
        _ => Ok(()),
    };
    match done {
        Ok(()) => json!({ "Mountpoint": point, "Implements": ["VolumeDriver"] }),
        Err(error) => json!({ "Err": error.to_string() }),
    }
}
