//! What the product does, for a person to watch, on real Mesos hosts on this machine:
//!
//! ```text
//! extvol-demo             the main job: a lease, a clean move, and the move after the agent was killed
//! extvol-demo FAULT       one fault under a writing task: agent, host, partition, restart
//! ```

mod faults;
mod lease;

use std::error::Error;
use std::process::ExitCode;

use integration::cluster::ClusterConfig;
use integration::cluster::session::with_causes;
use integration::scheduler::SchedulerConfig;
use integration::timeline::Timeline;
use integration::trial::{Result, Trial, lease_key};

use crate::faults::Fault;

const VOLUME: &str = "ebs/vol-7bca078f";
const NAME: &str = "vol-7bca078f";

fn main() -> ExitCode {
    let fault = match std::env::args().nth(1).as_deref().map(Fault::named) {
        None => None,
        Some(Some(fault)) => Some(fault),
        Some(None) => {
            eprintln!("usage: extvol-demo [agent|host|partition|restart]");
            return ExitCode::from(2);
        }
    };
    let time = Timeline::begin();
    match play(&time, fault) {
        Ok(verdict) => {
            println!(
                "\ndemo: passed in {:.0} s. {verdict}; one host at a time had the volume; nothing is left on this \
                 machine.",
                time.seconds()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("\ndemo: FAILED: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn play(time: &Timeline, fault: Option<Fault>) -> std::result::Result<String, Box<dyn Error>> {
    time.line("starting etcd, a Mesos 1.11.0 master and two agents, each a host of its own on this machine");
    let trial = Trial::with(config()?, SchedulerConfig::default())?;
    time.line("agent-1 and agent-2 have registered; libextvol.so is loaded in the master and in both");
    trial.create_volume(NAME)?;
    time.line(format_args!("the storage has made an empty volume, {VOLUME}"));
    if fault.is_none() {
        lease::play(time, &trial)?;
    }
    let verdict = faults::play(time, &trial, fault.unwrap_or(Fault::Agent))?;
    trial.attached()?;
    time.line("one checker reads the journals of storage, leases and writers together:");
    time.more(trial.witness()?);
    let Trial { scheduler, cluster } = trial;
    scheduler.teardown()?;
    cluster.stop()?;
    Ok(verdict)
}

/// With the times of the profile `fast`, on both sides.
fn config() -> Result<ClusterConfig> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.set_quick_times();
    Ok(config)
}

fn show_lease(time: &Timeline, trial: &Trial) -> Result<()> {
    let key = lease_key(VOLUME)?;
    let value = trial.cluster.etcdctl(&["get", "--print-value-only", &key])?;
    time.command(format_args!("etcdctl get --print-value-only {key}"), value.trim());
    Ok(())
}
