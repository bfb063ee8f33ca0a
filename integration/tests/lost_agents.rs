//! A volume follows its task when its agent or its host is lost, on real Mesos, etcd and file systems; and there are never
//! two writers.

use std::time::{Duration, Instant};

use integration::cluster::ClusterConfig;
use integration::scheduler::{SchedulerConfig, TaskState};
use integration::trial::{Result, SOON, Trial, TrialError, app_with, check_counting, counting};
use shared::record::LeaseRecord;

const VOLUME: &str = "ebs/vol-1";

/// Two agent hosts, with quick times.
fn trial(scheduler: SchedulerConfig, adapt: impl FnOnce(&mut ClusterConfig)) -> Result<Trial> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    for (name, value) in [("profile", "fast"), ("settle_time", "5secs"), ("grace", "1secs")] {
        config.set_agent_parameter(name, value);
    }
    config.set_master_parameter("profile", "fast");
    config.set_master_parameter("poll_interval", "500ms");
    adapt(&mut config);
    Trial::with(config, scheduler)
}

/// A task that counts on the volume, on whichever host; that host.
fn writing(trial: &Trial) -> Result<usize> {
    trial.create_volume("vol-1")?;
    trial.run(app_with("writer", "", "vol-1", &counting("data", "0.02"))?)?;
    trial.wait_lease(VOLUME, "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let host = holder(trial)?.ok_or_else(|| TrialError::Unexpected("nobody has the volume".into()))?;
    trial.wait_written(host, "vol-1", 0)?;
    Ok(host)
}

/// Who holds the volume.
fn holder(trial: &Trial) -> Result<Option<usize>> {
    let held = trial.held(VOLUME)?;
    let of = |name: &str| trial.cluster.hosts().iter().position(|host| host.name() == name);
    Ok(held.and_then(|held| of(held.holder.as_str())))
}

/// The task goes on counting on the other host, where it ended; how long that took.
fn goes_on(trial: &Trial, from: usize, began: Instant) -> Result<()> {
    let to = 1 - from;
    let before = began.elapsed();
    trial.cluster.wait_for("the volume on the other host", SOON, || match holder(trial) {
        Ok(Some(now)) if now == to => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let name = trial.cluster.host(to).name().to_owned();
    let text = trial.cluster.wait_for("lines of the other host", SOON, || {
        let text = trial.read(to, "vol-1", "log").map_err(|error| error.to_string())?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]).to_owned();
        if whole.lines().any(|line| line.ends_with(&name)) { Ok(whole) } else { Err(whole) }
    })?;
    eprintln!("noticed after {before:?}, writing on the other host after {:?}", began.elapsed());
    check_counting(&text)?;
    trial.attached().map(drop)
}

#[test]
fn mesos_a_killed_agents_volume_follows_its_task() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |_| {})?;
    let from = writing(&trial)?;
    let began = Instant::now();
    trial.cluster.host(from).kill_agent()?;
    goes_on(&trial, from, began)?;
    // The old side is clean, though its agent is still away.
    trial.cluster.wait_for("a clean host", SOON, || match trial.mounted(from) {
        Ok(mounted) if mounted.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    // It comes back, and can be used again.
    trial.cluster.host(from).start_agent()?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    trial.stop("writer")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_without_checkpoints_the_replacement_waits_until_the_old_container_is_gone() -> Result<()> {
    let scheduler = SchedulerConfig { checkpoint: false, ..SchedulerConfig::default() };
    let trial = trial(scheduler, |_| {})?;
    let from = writing(&trial)?;
    let began = Instant::now();
    trial.cluster.host(from).kill_agent()?;
    goes_on(&trial, from, began)?;
    trial.cluster.host(from).start_agent()?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    trial.stop("writer")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_a_dead_hosts_volume_follows_its_task() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |_| {})?;
    let from = writing(&trial)?;
    let began = Instant::now();
    trial.cluster.host(from).kill()?;
    goes_on(&trial, from, began)?;
    trial.stop("writer")?;
    trial.nothing_is_left()?;
    trial.cluster.host(from).start()?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    trial.run(app_with("again", trial.cluster.host(from).name(), "vol-1", &counting("data", "0.02"))?)?;
    trial.stop("again")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_a_host_that_is_cut_off_fences_itself_and_comes_back_clean() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |_| {})?;
    let from = writing(&trial)?;
    let began = Instant::now();
    trial.cluster.host(from).set_link(false)?;
    // By itself, before anybody else may write.
    trial.cluster.wait_for("the cut-off host to be fenced", Duration::from_secs(10), || {
        match trial.mounted(from) {
            Ok(mounted) if mounted.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    eprintln!("fenced after {:?}", began.elapsed());
    goes_on(&trial, from, began)?;
    trial.cluster.host(from).set_link(true)?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    trial.stop("writer")?;
    trial.nothing_is_left()?;
    trial.run(app_with("again", trial.cluster.host(from).name(), "vol-1", &counting("data", "0.02"))?)?;
    trial.stop("again")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_a_task_does_not_notice_that_its_agent_was_restarted() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |_| {})?;
    let from = writing(&trial)?;
    let seen = trial.scheduler.history("writer").len();
    trial.cluster.host(from).kill_agent()?;
    let written = trial.wait_written(from, "vol-1", 0)?.len();
    trial.cluster.host(from).start_agent()?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    let text = trial.wait_written(from, "vol-1", written)?;
    check_counting(&text)?;
    let history = trial.scheduler.history("writer");
    assert!(history.iter().skip(seen).all(|event| event.state == TaskState::Running), "{history:?}");
    assert_eq!(holder(&trial)?, Some(from));
    trial.stop("writer")?;
    trial.nothing_is_left()
}
