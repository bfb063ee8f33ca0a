//! What the masters' modules record of leases and agents, on real Mesos with a leading and a standby master.

use std::time::{Duration, Instant};

use integration::cluster::ClusterConfig;
use integration::scheduler::SchedulerConfig;
use integration::trial::{Result, SOON, Trial, TrialError, app_with};
use serde_json::Value;

/// The events in etcd, in their order: key and value.
fn events(trial: &Trial) -> Result<Vec<(String, Value)>> {
    let text = trial.cluster.etcdctl(&["get", "--prefix", "/extvol/v1/events/"])?;
    let lines: Vec<_> = text.lines().collect();
    let event = |pair: &[&str]| {
        let value =
            serde_json::from_str(pair[1]).map_err(|error| TrialError::Unexpected(error.to_string()))?;
        Ok((pair[0].to_owned(), value))
    };
    lines.chunks_exact(2).map(event).collect()
}

/// What the events tell, in their order, of this kind of thing.
fn told(trial: &Trial, kinds: &[&str]) -> Result<Vec<String>> {
    let told = events(trial)?.into_iter().filter_map(|(_, value)| value["what"].as_str().map(str::to_owned));
    Ok(told.filter(|what| kinds.iter().any(|kind| what.starts_with(kind))).collect())
}

/// Waits until the events tell this, and nothing more of those kinds.
fn wait_told(trial: &Trial, kinds: &[&str], expected: &[&str]) -> Result<()> {
    Ok(trial.cluster.wait_for(&format!("the events {expected:?}"), SOON, || {
        let told = told(trial, kinds).map_err(|error| error.to_string())?;
        if told == expected { Ok(()) } else { Err(format!("{told:?}")) }
    })?)
}

const OF_LEASES: [&str; 5] = ["granted", "attached", "detaching", "released", "changed"];

#[test]
fn mesos_each_change_of_a_lease_and_of_its_agent_is_an_event_once_and_in_order() -> Result<()> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.standby_master = true;
    let trial = Trial::with(config, SchedulerConfig::default())?;
    trial.create_volume("vol-1")?;
    let running = trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    wait_told(&trial, &OF_LEASES, &["granted", "attached"])?;
    let granted =
        events(&trial)?.into_iter().find(|(_, value)| value["what"] == "granted").expect("it was told");
    assert_eq!(granted.1["volume"], "ebs/vol-1");
    assert_eq!(granted.1["holder"], "agent-1");
    assert_eq!(granted.1["agent_id"].as_str(), running.agent_id.as_deref());
    let token = granted.1["token"].as_i64().expect("a token");
    assert_eq!(
        granted.0,
        format!("/extvol/v1/events/{token:019}/leases/ebs/vol-1"),
        "its place is its revision"
    );

    // The agent dies: its connection, then its own answers, then the masters' patience.
    trial.cluster.host(0).kill_agent()?;
    trial.cluster.wait_for("the agent's loss in the events", SOON, || {
        let told = told(&trial, &["agent-"]).map_err(|error| error.to_string())?;
        let all = ["agent-inactive", "agent-silent", "agent-unreachable"];
        if all.iter().all(|what| told.iter().filter(|told| told == what).count() == 1) {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })?;
    trial.cluster.host(0).start_agent()?;
    trial.cluster.wait_for("the agent's return in the events", SOON, || {
        let told = told(&trial, &["agent-"]).map_err(|error| error.to_string())?;
        let back = ["agent-active", "agent-answers"];
        if back.iter().all(|what| told.iter().any(|told| told == what)) {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })?;

    // Neither a master's restart nor a standby tells anything twice.
    trial.cluster.hub().kill_service("master")?;
    trial.cluster.hub().start_service("master")?;
    trial.cluster.wait_master_leading()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    trial.scheduler.wait_until_running("writer", Instant::now() + SOON)?;
    trial.stop("writer")?;
    trial.wait_free("ebs/vol-1")?;
    let mut seen = Vec::new();
    trial.cluster.wait_for("the release in the events", SOON, || {
        seen = told(&trial, &OF_LEASES).map_err(|error| error.to_string())?;
        if seen.last().is_some_and(|what| what == "released") { Ok(()) } else { Err(format!("{seen:?}")) }
    })?;
    // The task was given up with its agent, and begun anew: on the same host, whose volume it shared for a moment, or
    // on the other one. Each lease's life is whole.
    for life in seen.split(|what| what == "released").filter(|life| !life.is_empty()) {
        let rest: Vec<_> = life.iter().filter(|what| *what != "changed").collect();
        assert_eq!(rest, ["granted", "attached", "detaching"], "{seen:?}");
    }
    let keys: Vec<_> = events(&trial)?.into_iter().map(|(key, _)| key).collect();
    let mut sorted = keys.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(keys, sorted);
    trial.nothing_is_left()
}

#[test]
fn mesos_events_of_an_outage_of_etcd_are_told_once_it_is_back() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    wait_told(&trial, &OF_LEASES, &["granted", "attached"])?;
    let hub = trial.cluster.hub();
    hub.kill_service("etcd-1")?;
    trial.stop("writer")?;
    trial.cluster.host(0).kill_agent()?;
    trial.cluster.wait_agent_gone(0, SOON)?;
    hub.start_service("etcd-1")?;
    trial.cluster.wait_etcd_healthy()?;
    // The keeper gives the volume back; the agent's loss was seen before or after, by what the master says.
    trial.wait_free("ebs/vol-1")?;
    trial.cluster.wait_for("the release in the events", SOON, || {
        let told = told(&trial, &OF_LEASES).map_err(|error| error.to_string())?;
        if told.last().is_some_and(|what| what == "released") { Ok(()) } else { Err(format!("{told:?}")) }
    })?;
    let told = told(&trial, &["released"])?;
    assert_eq!(told.len(), 1, "once");
    Ok(())
}

#[test]
fn mesos_an_agent_without_leases_makes_no_events() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.cluster.host(1).kill_agent()?;
    trial.cluster.wait_agent_gone(1, SOON)?;
    // A change of the other agent, seen after that: so the first one was passed over.
    trial.cluster.host(0).kill_agent()?;
    trial.cluster.wait_for("the other agent's loss", Duration::from_secs(30), || {
        let all = events(&trial).map_err(|error| error.to_string())?;
        let of = |holder: &str| {
            let about = |value: &Value| {
                value["what"].as_str().is_some_and(|what| what.starts_with("agent-"))
                    && value["holder"] == holder
            };
            all.iter().any(|(_, value)| about(value))
        };
        if of("agent-2") {
            return Err("an event about agent-2".into());
        }
        if of("agent-1") { Ok(()) } else { Err("none yet".into()) }
    })?;
    Ok(())
}
