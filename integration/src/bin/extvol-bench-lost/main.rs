//! What a lost agent, a lost host, and a keeper's or an agent's restart cost a task with a volume, on real Mesos, etcd
//! and file systems.
//!
//! ```text
//! extvol-bench-lost [--short|--samples N] [PART...]     3 or N samples instead of 30; of agent, host, release, leases, pauses, opening
//! ```
//!
//! Both modules have the times of the profile `fast`; the master's detection is as short as the harness has it (three
//! pings of 1 s), so that what is measured is the product's part. A sample that fails ends the run: none is left out.
//!
//! What is in etcd is timed by when this program's own watch of etcd told it, and not by the time in an event, which is
//! that of the writing of a whole batch of events. What a task does is timed by the task, just before it writes: all
//! hosts here have this machine's clock.

mod agent;
mod changes;
mod host;
mod leases;
mod opening;
mod pauses;
mod release;
mod writer;

use std::error::Error;

use integration::bench::{Report, directory};
use integration::cluster::ClusterConfig;
use integration::scheduler::SchedulerConfig;
use integration::trial::{SOON, Trial};
use shared::keys::Keys;
use shared::record::decode;
use shared::volume::Holder;

use crate::changes::{Change, Changes, Session};

type Failure = Box<dyn Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

/// The one volume, and how its lease is called.
const NAME: &str = "vol-1";
const VOLUME: &str = "ebs/vol-1";

type Measure = fn(usize) -> Result<Vec<Option<Report>>>;

const PARTS: [(&str, Measure); 6] = [
    ("agent", agent::measure),
    ("host", host::measure),
    ("release", release::measure),
    ("leases", leases::measure),
    ("pauses", pauses::measure),
    ("opening", opening::measure),
];

fn main() -> Result<()> {
    let mut wanted: Vec<_> = std::env::args().skip(1).collect();
    let usage =
        "usage: extvol-bench-lost [--short|--samples N] [agent|host|release|leases|pauses|opening]...";
    let samples = match wanted.first().map(String::as_str) {
        Some("--short") => wanted.drain(..1).map(|_| 3).next(),
        Some("--samples") => wanted.drain(..wanted.len().min(2)).next_back().and_then(|n| n.parse().ok()),
        _ => Some(30),
    };
    let samples = samples.filter(|samples| *samples > 0).ok_or(usage)?;
    if wanted.iter().any(|name| !PARTS.iter().any(|(part, _)| part == name)) {
        return Err(usage.into());
    }
    println!("{}", Report::head());
    let (mut missed, mut goals) = (Vec::new(), 0);
    for (part, measure) in PARTS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == part) {
            continue;
        }
        let before = load()?;
        let reports = measure(samples).map_err(|error| format!("{part}: {error}"))?;
        for report in reports.into_iter().flatten() {
            println!("{report}");
            report.write(&directory())?;
            goals += usize::from(report.met.is_some());
            if report.met == Some(false) {
                missed.push(report.name);
            }
        }
        println!("{part}: the machine's load was {before} before, and {} after", load()?);
    }
    // A finding, no failure: machines are noisy, and differ.
    match missed.as_slice() {
        [] => println!("lost agents and hosts: all {goals} goals are met"),
        missed => {
            println!("lost agents and hosts: missed {} of {goals} goals: {}", missed.len(), missed.join(", "))
        }
    }
    Ok(())
}

/// Of the last minute: processes that run or want to.
fn load() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// A cluster of so many agent hosts with quick times, and the volume.
fn trial(agents: u8) -> Result<Trial> {
    let mut config = ClusterConfig::complete(agents, &["ebs"])?;
    config.set_quick_times();
    config.set_agent_parameter("wait_timeout", "40secs");
    let trial = Trial::with(config, SchedulerConfig::default())?;
    trial.create_volume(NAME)?;
    Ok(trial)
}

/// Ends a trial that went well.
fn end(trial: Trial) -> Result<()> {
    trial.nothing_is_left()?;
    let Trial { scheduler, cluster } = trial;
    scheduler.teardown()?;
    Ok(cluster.stop()?)
}

/// What the keepers say of a sample that failed; they go with their hosts.
fn tell_keepers(trial: &Trial) {
    for host in trial.cluster.hosts() {
        let log = host.run(&["sh", "-c", "tail -n 100 /run/extvol/*.log"]);
        eprintln!("{}:\n{}", host.name(), log.unwrap_or_else(|error| error.to_string()));
    }
    let events = trial.cluster.etcdctl(&["get", "--prefix", "--print-value-only", "/extvol/v1/events/"]);
    eprintln!("{}", events.unwrap_or_else(|error| error.to_string()));
}

/// The name of a host, as a holder.
fn holder(trial: &Trial, host: usize) -> Result<Holder> {
    Ok(Holder::new(trial.cluster.host(host).name())?)
}

/// Waits until the host has an agent and a session that may take leases, and nothing of a task is left there.
fn wait_clean(trial: &Trial, host: usize) -> Result<()> {
    trial.cluster.wait_agent_registered(host, SOON)?;
    let key = Keys::default().session(&holder(trial, host)?);
    let cgroups = trial.cgroup_of(host, "");
    trial.cluster.wait_for("a clean host", SOON, || {
        let text = trial.cluster.etcdctl(&["get", "--print-value-only", &key]);
        let text = text.map_err(|error| error.to_string())?;
        let session: Session = decode(text.trim().as_bytes()).map_err(|error| error.to_string())?;
        if session.revoking || session.proof.is_some() {
            return Err(text);
        }
        let mounted = trial.mounted(host).map_err(|error| error.to_string())?;
        let containers = trial.cluster.host(host).run(&["find", &cgroups, "-mindepth", "1", "-type", "d"]);
        let containers = containers.map_err(|error| error.to_string())?;
        if mounted.is_empty() && containers.trim().is_empty() {
            return Ok(());
        }
        Err(format!("{mounted:?} {containers}"))
    })?;
    Ok(())
}

/// Waits until a session of this host says that a container there waits for the volume.
fn wait_wanted(changes: &Changes, trial: &Trial, after: usize, host: usize) -> Result<()> {
    let key = Keys::default().session(&holder(trial, host)?);
    changes.wait("a task that waits for the volume", after, |change: &Change| {
        (change.key == key && change.session()?.wants.iter().any(|volume| volume.to_string() == VOLUME))
            .then_some(())
    })
}

fn milliseconds(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
