//! Hosts that reach some servers and not others, and hosts whose silence tells nothing, on real Mesos, etcd and file systems.

use std::time::{Duration, Instant};

use integration::cluster::{ClusterConfig, Server};
use integration::scheduler::{SchedulerConfig, TaskState};
use integration::trial::{Result, SOON, Trial, app_with, once};
use shared::record::LeaseRecord;

const VOLUME: &str = "ebs/vol-1";

/// Two agent hosts, with quick times, and a writer on agent-1.
fn written(adapt: impl FnOnce(&mut ClusterConfig)) -> Result<Trial> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.set_quick_times();
    adapt(&mut config);
    let trial = Trial::with(config, SchedulerConfig::default())?;
    trial.create_volume("vol-1")?;
    writer(&trial, "writer", 0)?;
    Ok(trial)
}

/// Runs a writer on a host, and waits for its first record there.
fn writer(trial: &Trial, app: &str, host: usize) -> Result<()> {
    let name = trial.cluster.host(host).name();
    trial.scheduler.run(app_with(app, name, "vol-1", &trial.writer("vol-1")?)?)?;
    trial.scheduler.wait_until_running(app, Instant::now() + SOON)?;
    trial.wait_lease(
        VOLUME,
        "is attached",
        |lease| matches!(lease, Some(LeaseRecord::Attached(held)) if held.holder.as_str() == name),
    )?;
    let last = format!(" {name}\n");
    Ok(trial.cluster.wait_for("a record of this host", SOON, || {
        let text = trial.read(host, "vol-1", "log").map_err(|error| error.to_string())?;
        if text.ends_with(&last) { Ok(()) } else { Err(text) }
    })?)
}

fn nothing_mounted(trial: &Trial, host: usize, within: Duration) -> Result<()> {
    Ok(trial.cluster.wait_for("a host without volumes", within, || match trial.mounted(host) {
        Ok(mounted) if mounted.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?)
}

/// A task on agent-2 that tries once, and does not get the volume; what it is told.
fn refused(trial: &Trial, app: &str) -> Result<String> {
    let ended = trial.run_to_end(once(app_with(app, "agent-2", "vol-1", &trial.writer("vol-1")?)?))?;
    assert_eq!(ended.state, TaskState::Failed, "{ended:?}");
    Ok(ended.message.unwrap_or_default())
}

#[test]
fn mesos_a_host_that_is_cut_off_from_etcd_alone_tells_its_task_and_fences_itself() -> Result<()> {
    let trial = written(|_| {})?;
    let seen = trial.scheduler.history("writer").len();
    trial.cluster.host(0).cut_off_from(&[Server::Etcd])?;
    let ended = trial.wait_ended("writer", seen)?;
    let message = ended.message.clone().unwrap_or_default();
    assert!(message.contains("no heartbeat got through to etcd in time"), "{ended:?}");
    nothing_mounted(&trial, 0, SOON)?;
    trial.scheduler.stop("writer")?;
    writer(&trial, "other", 1)?;
    trial.cluster.host(0).cut_off_from(&[])?;
    trial.stop("other")?;
    writer(&trial, "again", 0)?;
    trial.stop("again")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_a_host_that_is_cut_off_from_the_masters_alone_is_revoked_and_gives_its_volume_up_clean() -> Result<()>
{
    let trial = written(|_| {})?;
    trial.cluster.host(0).cut_off_from(&[Server::Masters])?;
    writer(&trial, "other", 1)?;
    nothing_mounted(&trial, 0, SOON)?;
    // It was asked, and not fenced: its session ended by its own word.
    let log = trial.keeper_log(trial.cluster.host(0));
    assert!(!log.contains("is fenced"), "{log}");
    trial.cluster.host(0).cut_off_from(&[])?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    trial.scheduler.stop("writer")?;
    trial.stop("other")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_a_host_whose_silence_ends_nothing_keeps_its_volumes_until_it_is_back() -> Result<()> {
    let trial = written(|config| config.set_agent_parameter("by_time", "never"))?;
    trial.cluster.host(0).kill()?;
    trial.scheduler.stop("writer")?;
    let message = refused(&trial, "taker")?;
    assert!(message.contains("is held by agent-1"), "{message}");
    trial.cluster.host(0).start()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    writer(&trial, "other", 1)?;
    trial.stop("other")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_where_fencing_is_required_a_dead_hosts_volume_waits_for_a_person() -> Result<()> {
    let trial = written(|config| {
        config.set_agent_parameter("fencing", "required");
        config.set_agent_parameter("drivers", "ebs");
    })?;
    trial.cluster.host(0).kill()?;
    trial.scheduler.stop("writer")?;
    let message = refused(&trial, "taker")?;
    assert!(message.contains("fencing is required"), "{message}");
    // Its own host may have it again.
    trial.cluster.host(0).start()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    writer(&trial, "again", 0)?;
    trial.stop("again")?;
    trial.nothing_is_left()
}
