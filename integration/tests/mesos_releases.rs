//! One library for every Mesos release that it names: the same task on each.

use integration::cluster::{ClusterConfig, target_directory};
use integration::scheduler::{SchedulerConfig, TaskState};
use integration::trial::{Result, Trial, app_with};

fn a_task_has_its_volume_on(release: &str) -> Result<()> {
    let mut config = ClusterConfig::complete(1, &["ebs"])?;
    config.binaries.mesos = target_directory().join(format!("mesos-{release}"));
    let trial = Trial::with(config, SchedulerConfig::default())?;
    let version = trial.cluster.master_json("/master/state")?.expect("the master answers");
    assert_eq!(version["version"], release);
    trial.create_volume("vol-1")?;
    let running = trial.run(app_with("writer", "agent-1", "vol-1", "echo here >data/log; sleep 1000")?)?;
    trial.cluster.wait_for("what the task writes", integration::trial::SOON, || {
        match trial.read(0, "vol-1", "log") {
            Ok(text) if text == "here\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    assert_eq!(trial.held("ebs/vol-1")?.expect("it is held").agent_id, running.agent_id);
    assert_eq!(trial.stop("writer")?.state, TaskState::Killed);
    trial.wait_free("ebs/vol-1")?;
    assert_eq!(trial.attached()?, []);
    Ok(())
}

#[test]
fn mesos_1_8_1_runs_a_task_with_a_volume() -> Result<()> {
    a_task_has_its_volume_on("1.8.1")
}

#[test]
fn mesos_1_9_0_runs_a_task_with_a_volume() -> Result<()> {
    a_task_has_its_volume_on("1.9.0")
}

#[test]
fn mesos_1_10_0_runs_a_task_with_a_volume() -> Result<()> {
    a_task_has_its_volume_on("1.10.0")
}
