//! What the master's module costs: CPU time and resident memory of a process with nothing else in
//! it, over rounds of polling, against a real etcd full of leases and a stand-in for the leading
//! master and its agents.
//!
//! ```text
//! extvol-bench-master [--short]     fewer rounds
//! ```
//!
//! The stand-in gives what Mesos 1.11 gives: some 4.5 kB for each agent in `/master/slaves`, some 1.2 kB
//! in the registry. Each agent has an address of its own (in 127.0.0.0/8), as hosts have. One holder in
//! two hundred has an agent that is not listed and stands in the registry as unreachable, so that each
//! round reads the registry, too. A round is from one question for the list to the next; it counts only
//! when every agent that can be asked was asked for its health in it. Meanwhile the module reads all sessions and
//! heartbeats twice a second, as it does to act; nobody falls silent. (When the module begins it asks
//! each once for its state, which is dearer.)

use std::error::Error;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use integration::bench::{Goal, Report, directory};
use master_module::MasterModule;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::store::{LeaseStore, OPERATIONS_MAX, Revision, Transaction};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

type Failure = Box<dyn Error + Send + Sync>;

/// Of so many holders one has an agent that is not listed.
const UNLISTED_OF: usize = 200;

const CORE_SECONDS_GOAL: f64 = 1.0;
const MEBIBYTES_GOAL: f64 = 150.0;

/// How long anything may take that this waits for.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<(), Failure> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--module", etcd, master] => module(etcd, master),
        [] => measure(12),
        ["--short"] => measure(3),
        _ => Err("usage: extvol-bench-master [--short]".into()),
    }
}

/// The process that is measured: the module, as a master has it, until standard input ends.
fn module(etcd: &str, master: &str) -> Result<(), Failure> {
    let parameters = [("etcd_endpoints", etcd), ("master", master)];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let _module = MasterModule::start(&parameters, || None)?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn measure(rounds: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{}", Report::head());
    let mut missed = false;
    for (agents, leases) in [(1_000, 10_000), (10_000, 100_000)] {
        let goals = agents == 10_000;
        for report in runtime.block_on(scale(agents, leases, rounds, goals))? {
            println!("{report}");
            missed |= report.met == Some(false);
            report.write(&directory())?;
        }
    }
    // A finding, no failure: machines are noisy, and differ.
    if missed {
        println!("a goal is missed");
    }
    Ok(())
}

async fn scale(agents: usize, leases: usize, rounds: usize, goals: bool) -> Result<Vec<Report>, Failure> {
    let etcd = Etcd::start()?;
    etcd.fill(agents, leases).await?;
    let mut stand_in = StandIn::start(agents).await?;
    let mut module = Process::start(&etcd.endpoint, &stand_in.address)?;

    let asked_per_round = agents - agents / UNLISTED_OF;
    let (mut cpu, mut resident) = (Vec::new(), Vec::new());
    let mut before: Option<(f64, usize)> = None;
    while cpu.len() < rounds {
        timeout(PATIENCE, stand_in.rounds.recv()).await?.ok_or("the stand-in has ended")?;
        let (now, asked) = (module.cpu_seconds()?, stand_in.asked.load(Ordering::SeqCst));
        // The first rounds read the leases and find the agents, by their states.
        let whole = before.is_some_and(|(_, asked_before)| asked - asked_before >= asked_per_round);
        if let Some((cpu_before, _)) = before.filter(|_| whole) {
            cpu.push(now - cpu_before);
            resident.push(module.mebibytes("VmRSS")?);
        }
        before = Some((now, asked));
    }
    let peak = module.mebibytes("VmHWM")?;
    module.stop()?;

    let name = |what: &str| format!("master-{what}-{agents}-agents-{leases}-leases");
    let goal = |goal: f64| goals.then_some(Goal::Worst(goal));
    let reports = [
        Report::new(&name("cpu"), "core-s a round", cpu, goal(CORE_SECONDS_GOAL)),
        Report::new(&name("resident"), "MiB", resident, goal(MEBIBYTES_GOAL)),
        Report::new(&name("peak"), "MiB", vec![peak], goal(MEBIBYTES_GOAL)),
    ];
    Ok(reports.into_iter().flatten().collect())
}

/// The module's process.
struct Process(Child);

impl Process {
    fn start(etcd: &str, master: &str) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let child = Command::new(program).args(["--module", etcd, master]).stdin(Stdio::piped()).spawn()?;
        Ok(Self(child))
    }

    /// CPU time of all its threads.
    fn cpu_seconds(&self) -> Result<f64, Failure> {
        let mut nanoseconds = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
            let running: f64 = text.split(' ').next().ok_or("an empty schedstat")?.parse()?;
            nanoseconds += running;
        }
        Ok(nanoseconds / 1e9)
    }

    fn mebibytes(&self, field: &str) -> Result<f64, Failure> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = status.lines().find(|line| line.starts_with(field)).ok_or("no such field")?;
        let kibibytes: f64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
        Ok(kibibytes / 1024.0)
    }

    fn stop(&mut self) -> Result<(), Failure> {
        drop(self.0.stdin.take());
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An etcd of its own.
struct Etcd {
    process: Child,
    endpoint: String,
    _data: TempDir,
}

impl Etcd {
    fn start() -> Result<Self, Failure> {
        let data = tempfile::tempdir()?;
        let port = || -> Result<u16, Failure> { Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
        let (endpoint, peer) =
            (format!("http://127.0.0.1:{}", port()?), format!("http://127.0.0.1:{}", port()?));
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--unsafe-no-fsync", "--data-dir"])
            .arg(data.path())
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { process, endpoint, _data: data })
    }

    /// Writes the leases, ten for each agent's host, and each host's session and heartbeat.
    async fn fill(&self, agents: usize, leases: usize) -> Result<(), Failure> {
        let config = EtcdConfig {
            request_timeout: Duration::from_secs(10),
            ..EtcdConfig::new(vec![self.endpoint.clone()])
        };
        let store = EtcdStore::new(config)?;
        let begin = Instant::now();
        while store.get_prefix("/extvol/v1/").await.is_err() {
            if begin.elapsed() > PATIENCE {
                return Err("etcd does not answer".into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let cluster = ("/extvol/v1/cluster".to_owned(), r#"{"version":1,"id":"bench"}"#.to_owned());
        let lease = |n: usize| {
            let host = n % agents;
            let record = format!(
                r#"{{"version":1,"state":"attached","holder":"agent-{host}.example.com","epoch":3,"token":{n},"since":"2026-01-01T00:00:00Z","agent_id":"{}","containers":["{n:08x}-7f65-4a1c-9d3e-0a5b7c2d9e1f"],"mount_point":"/var/lib/rexray/volumes/vol-{n:017x}/data"}}"#,
                agent_id(host)
            );
            (format!("/extvol/v1/leases/ebs/vol-{n:017x}"), record)
        };
        // The times are the longest that there are: nobody is silent for so long in a run.
        let session = |host: usize| {
            let record = format!(
                r#"{{"version":1,"epoch":3,"instance":"4f6d1c7a0b9e4c52","state":"live","machine_id":"4c4c4544-0042-4a10-8054-{host:012x}","boot_id":"7b1c2d3e-4f50-4617-8293-{host:012x}","agent_id":"{}","since":"2026-01-01T00:00:00Z","agent_address":"slave({host})@127.{}.{}.{}:5051","timing":{{"ttl":{{"secs":60,"nanos":0}},"beat":{{"secs":1,"nanos":0}},"request":{{"secs":1,"nanos":0}},"election":{{"secs":3,"nanos":0}},"fence":{{"secs":40,"nanos":0}},"kill":{{"secs":9,"nanos":0}}}},"by_time":"allowed","unsettled_through":0}}"#,
                agent_id(host),
                1 + host / 62_500,
                host / 250 % 250,
                1 + host % 250,
            );
            (format!("/extvol/v1/sessions/agent-{host}.example.com"), record)
        };
        let beat = |host: usize| {
            let key = format!("/extvol/v1/beats/agent-{host}.example.com");
            (key, r#"{"version":1,"at":"2026-01-01T00:00:00.000Z"}"#.to_owned())
        };
        let hosts = (0..agents).map(session).chain((0..agents).map(beat));
        let records: Vec<_> = std::iter::once(cluster).chain((0..leases).map(lease)).chain(hosts).collect();
        for chunk in records.chunks(OPERATIONS_MAX) {
            let transaction = chunk.iter().fold(Transaction::new(), |transaction, (key, value)| {
                transaction.put(key, Revision::ABSENT, value.clone().into_bytes())
            });
            store.commit(transaction).await?;
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn agent_id(n: usize) -> String {
    format!("5f1d7a52-3c0e-4a53-9b43-8f6f0e6c1a77-S{n}")
}

/// The leading master and all agents.
struct StandIn {
    address: String,
    /// One item for each question for the list of agents.
    rounds: mpsc::UnboundedReceiver<()>,
    /// Questions to agents for their health.
    asked: Arc<AtomicUsize>,
}

struct Served {
    slaves: Bytes,
    registry: Bytes,
    rounds: mpsc::UnboundedSender<()>,
    asked: Arc<AtomicUsize>,
}

impl StandIn {
    async fn start(agents: usize) -> Result<Self, Failure> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        let port = listener.local_addr()?.port();
        let (sender, rounds) = mpsc::unbounded_channel();
        let asked = Arc::new(AtomicUsize::new(0));
        let served = Arc::new(Served {
            slaves: slaves(agents, port)?.into(),
            registry: registry(agents)?.into(),
            rounds: sender,
            asked: Arc::clone(&asked),
        });
        let app = Router::new()
            .route("/master/slaves", get(list))
            .route(
                "/registrar(1)/registry",
                get(|State(s): State<Arc<Served>>| async move { s.registry.clone() }),
            )
            .route("/{agent}/health", get(health))
            .route("/{agent}/state", get(state))
            .with_state(served);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { address: format!("http://127.0.0.1:{port}"), rounds, asked })
    }
}

async fn list(State(served): State<Arc<Served>>) -> Bytes {
    let _ = served.rounds.send(());
    served.slaves.clone()
}

async fn health(State(served): State<Arc<Served>>) -> StatusCode {
    served.asked.fetch_add(1, Ordering::SeqCst);
    StatusCode::OK
}

/// Of an agent with fifty tasks: some 100 kB, of which the id is near the beginning.
async fn state(Path(agent): Path<String>) -> Result<String, StatusCode> {
    let number = agent.strip_prefix("slave(").and_then(|rest| rest.strip_suffix(')'));
    let number: usize = number.and_then(|number| number.parse().ok()).ok_or(StatusCode::NOT_FOUND)?;
    let id = agent_id(number);
    let tasks = vec![format!("{:2000}", ' '); 50].join(r#"","#);
    Ok(format!(
        r#"{{"version":"1.11.0","build_time":1.0,"start_time":1.0,"id":"{id}","frameworks":["{tasks}"]}}"#
    ))
}

/// `/master/slaves` of Mesos 1.11.
fn slaves(agents: usize, port: u16) -> Result<String, Failure> {
    let amounts = r#"{"cpus":16.0,"disk":100000.0,"gpus":0.0,"mem":64000.0,"ports":"[31000-32000]"}"#;
    let scalar = |name: &str, role: &str| {
        format!(
            r#"{{"allocation_info":{{"role":"{role}"}},"name":"{name}","reservations":[{{"principal":"marathon","role":"{role}","type":"DYNAMIC"}}],"role":"{role}","scalar":{{"value":1.5}},"type":"SCALAR"}}"#
        )
    };
    let full: Vec<_> = ["a", "b", "c"]
        .iter()
        .flat_map(|role| ["cpus", "mem", "disk"].map(|name| scalar(name, role)))
        .collect();
    let full = full.join(",");
    let mut text = r#"{"recovered_slaves":[],"slaves":["#.to_owned();
    for n in (0..agents).filter(|n| n % UNLISTED_OF != 0) {
        let separator = if text.ends_with('[') { "" } else { "," };
        // Hosts have addresses of their own.
        let host = format!("127.{}.{}.{}", 1 + n / 62_500, n / 250 % 250, 1 + n % 250);
        write!(
            text,
            r#"{separator}{{"active":true,"attributes":{{"rack":"r{}","zone":"eu-1a"}},"capabilities":["MULTI_ROLE","HIERARCHICAL_ROLE","RESERVATION_REFINEMENT","RESOURCE_PROVIDER","RESIZE_VOLUME","AGENT_OPERATION_FEEDBACK","AGENT_DRAINING","TASK_RESOURCE_LIMITS"],"deactivated":false,"hostname":"agent-{n}.example.com","id":"{}","offered_resources":{amounts},"offered_resources_full":[],"pid":"slave({n})@{host}:{port}","port":{port},"registered_time":1700000000.123,"reserved_resources":{{"a":{amounts},"b":{amounts}}},"reserved_resources_full":{{"a":[{full}]}},"resources":{amounts},"unreserved_resources":{amounts},"unreserved_resources_full":[{}],"used_resources":{amounts},"used_resources_full":[{full}],"version":"1.11.0"}}"#,
            n / 40,
            agent_id(n),
            scalar("cpus", "*"),
        )?;
    }
    text.push_str("]}");
    Ok(text)
}

/// `/registrar(1)/registry`: protobuf's JSON.
fn registry(agents: usize) -> Result<String, Failure> {
    let scalar = |name: &str| {
        format!(
            r#"{{"name":"{name}","role":"*","scalar":{{"value":16.0}},"type":"SCALAR","reservations":[]}}"#
        )
    };
    let resources: Vec<_> = ["cpus", "mem", "disk", "gpus", "ports", "ebsvolumes"].map(scalar).into();
    let resources = resources.join(",");
    let mut text = r#"{"gone":{"slaves":[]},"master":{"info":{"id":"m"}},"slaves":{"slaves":["#.to_owned();
    for n in (0..agents).filter(|n| n % UNLISTED_OF != 0) {
        let separator = if text.ends_with('[') { "" } else { "," };
        write!(
            text,
            r#"{separator}{{"info":{{"attributes":[{{"name":"rack","text":{{"value":"r{}"}},"type":"TEXT"}}],"checkpoint":true,"hostname":"agent-{n}.example.com","id":{{"value":"{}"}},"port":5051,"resources":[{resources}]}}}}"#,
            n / 40,
            agent_id(n)
        )?;
    }
    text.push_str(r#"]},"unreachable":{"slaves":["#);
    for n in (0..agents).filter(|n| n % UNLISTED_OF == 0) {
        let separator = if text.ends_with('[') { "" } else { "," };
        write!(
            text,
            r#"{separator}{{"id":{{"value":"{}"}},"timestamp":{{"nanoseconds":1700000000000000000}}}}"#,
            agent_id(n)
        )?;
    }
    text.push_str("]}}");
    Ok(text)
}
