//! A volume follows its task when its agent or its host is lost, on real Mesos, etcd and file systems; and there are never
//! two writers.

use std::time::{Duration, Instant};

use integration::cluster::{ClusterConfig, STORAGE_PORT, target_directory};
use integration::scheduler::{SchedulerConfig, TaskEvent, TaskState};
use integration::storage::journal::{Entry, Event};
use integration::trial::{Result, SOON, Trial, TrialError, app, app_with, check_counting, lease_key, once};
use shared::record::LeaseRecord;

const VOLUME: &str = "ebs/vol-1";

/// Two agent hosts, with quick times.
fn trial(scheduler: SchedulerConfig, adapt: impl FnOnce(&mut ClusterConfig)) -> Result<Trial> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.set_quick_times();
    adapt(&mut config);
    Trial::with(config, scheduler)
}

/// A task that writes on the volume, on whichever host; that host.
fn writing(trial: &Trial) -> Result<usize> {
    trial.create_volume("vol-1")?;
    trial.run(app_with("writer", "", "vol-1", &trial.writer("vol-1")?)?)?;
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

/// The task goes on writing on the other host, where it ended; how long that took.
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
    trial.run(app_with("again", trial.cluster.host(from).name(), "vol-1", &trial.writer("vol-1")?)?)?;
    trial.stop("again")?;
    trial.nothing_is_left()
}

/// The storage refuses what it has attached elsewhere, and nothing takes it away.
#[test]
fn mesos_without_a_preempting_plugin_a_dead_hosts_volume_is_refused_with_the_way_out_and_then_follows()
-> Result<()> {
    let trial = trial(SchedulerConfig::default(), |config| config.set_agent_parameter("drivers", "ebs"))?;
    let from = writing(&trial)?;
    let (dead, other) = (trial.cluster.host(from).name().to_owned(), trial.cluster.host(1 - from).name());
    trial.cluster.host(from).kill()?;
    let way_out = format!("run `extvol free {VOLUME} --detached {dead}`");
    let refused = |event: &TaskEvent| {
        let message = event.message.as_deref().unwrap_or_default();
        message.contains("resource not found") && message.contains(&way_out)
    };
    // More than once: what is owed outlives those who tried.
    trial.scheduler.wait_for("writer", Instant::now() + SOON, |history| {
        history.iter().filter(|event| refused(event)).count() >= 2
    })?;
    // Between two tries nothing runs that could end.
    trial.scheduler.stop("writer")?;
    trial.wait_free(VOLUME)?;
    let free = |arguments: &[&str]| {
        let extvol = target_directory().join("release/extvol").display().to_string();
        let endpoints = trial.cluster.etcd_endpoints().join(",");
        let mut argv = vec![&*extvol, "--endpoints", &endpoints];
        argv.extend(arguments);
        trial.cluster.hub().run(&argv)
    };
    let listed = free(&["leases"])?;
    assert!(listed.contains(&format!("may still be attached to {dead}")), "{listed}");
    // What a person does.
    let detach =
        format!("http://{}:{STORAGE_PORT}/volumes/vol-1/force-detach", trial.cluster.hub().address());
    trial.cluster.hub().run(&["curl", "-sSf", "-X", "POST", &detach])?;
    free(&["free", VOLUME, "--detached", &dead])?;
    let listed = free(&["leases", "--all"])?;
    assert!(!listed.contains("may still be attached"), "{listed}");
    trial.run(app_with("again", other, "vol-1", &trial.writer("vol-1")?)?)?;
    trial.wait_written(1 - from, "vol-1", 0)?;
    trial.stop("again")?;
    trial.nothing_is_left()
}

/// Nor is it taken from a host that was fenced and lives: that gives it back through its driver.
#[test]
fn mesos_without_a_preempting_plugin_a_host_that_was_fenced_gives_its_volume_back_through_the_driver()
-> Result<()> {
    let trial = trial(SchedulerConfig::default(), |config| config.set_agent_parameter("drivers", "ebs"))?;
    let from = writing(&trial)?;
    // Nobody else can hear of it: etcd is away until the host was fenced.
    trial.cluster.hub().kill_service("etcd-1")?;
    trial.cluster.wait_for("a fenced host", SOON, || match trial.mounted(from) {
        Ok(mounted) if mounted.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    trial.scheduler.stop("writer")?;
    trial.cluster.hub().start_service("etcd-1")?;
    trial.cluster.wait_etcd_healthy()?;
    let detached = |entry: &Entry| {
        entry.event == Event::Detach && entry.host.as_deref() == Some(trial.cluster.host(from).name())
    };
    trial.cluster.wait_for("a volume that was given back", SOON, || {
        let journal = trial.journal().map_err(|error| error.to_string())?;
        if journal.iter().any(detached) { Ok(()) } else { Err(format!("{journal:?}")) }
    })?;
    trial.cluster.wait_for("a volume that nobody has, and nobody owes", SOON, || {
        let key = lease_key(VOLUME).map_err(|error| error.to_string())?;
        let text = trial.cluster.etcdctl(&["get", "--print-value-only", &key]).map_err(|e| e.to_string())?;
        if text.is_empty() { Ok(()) } else { Err(text) }
    })?;
    let other = trial.cluster.host(1 - from).name();
    trial.run(app_with("again", other, "vol-1", &trial.writer("vol-1")?)?)?;
    check_counting(&trial.wait_written(1 - from, "vol-1", 0)?)?;
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
    trial.run(app_with("again", trial.cluster.host(from).name(), "vol-1", &trial.writer("vol-1")?)?)?;
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

/// The task goes on under the same lease, on the same host.
fn nobody_notices(trial: &Trial, host: usize, break_it: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = trial.held(VOLUME)?.ok_or_else(|| TrialError::Unexpected("nobody has the volume".into()))?;
    let seen = trial.scheduler.history("writer").len();
    break_it()?;
    // Longer than any deadline that runs now.
    let until = Instant::now() + Duration::from_secs(6);
    let mut written = 0;
    while Instant::now() < until {
        written = trial.wait_written(host, "vol-1", written)?.len();
    }
    check_counting(&trial.wait_written(host, "vol-1", written)?)?;
    let history = trial.scheduler.history("writer");
    assert!(history.iter().skip(seen).all(|event| event.state == TaskState::Running), "{history:?}");
    let after = trial.held(VOLUME)?;
    assert_eq!(after.as_ref().map(|held| (held.token, held.epoch)), Some((before.token, before.epoch)));
    Ok(())
}

#[test]
fn mesos_a_worker_deadman_or_guard_that_is_killed_or_stopped_is_replaced_and_nobody_notices() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |_| {})?;
    let host = writing(&trial)?;
    for name in ["extvol-worker", "extvol-deadman", "extvol-guard"] {
        for signal in ["KILL", "STOP"] {
            let before = trial.processes(host, name)?;
            nobody_notices(&trial, host, || {
                trial.cluster.host(host).run(&["pkill", &format!("-{signal}"), "-x", name])?;
                Ok(trial.cluster.wait_for(&format!("another {name} after {signal}"), SOON, || match trial
                    .processes(host, name)
                {
                    Ok(now) if now.len() == 1 && now != before => Ok(()),
                    other => Err(format!("{before:?}, {other:?}")),
                })?)
            })?;
        }
    }
    trial.stop("writer")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_the_end_of_etcds_leader_fences_nobody() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |config| config.etcd_members = 3)?;
    let host = writing(&trial)?;
    let leader = leader(&trial)?;
    nobody_notices(&trial, host, || Ok(trial.cluster.hub().kill_service(&leader)?))?;
    trial.cluster.hub().start_service(&leader)?;
    trial.stop("writer")?;
    trial.nothing_is_left()
}

/// The service that is etcd's leader.
fn leader(trial: &Trial) -> Result<String> {
    let unclear = |text: &str| TrialError::Unexpected(format!("etcd's members: {text}"));
    let status = trial.cluster.etcdctl(&["endpoint", "status", "--write-out", "json"])?;
    let members = trial.cluster.etcdctl(&["member", "list", "--write-out", "json"])?;
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).map_err(|_| unclear(text));
    let (status, members) = (read(&status)?, read(&members)?);
    let id = status[0]["Status"]["leader"].as_u64().ok_or_else(|| unclear(&status.to_string()))?;
    let all = members["members"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|member| member["ID"].as_u64() == Some(id));
    let name =
        found.and_then(|member| member["name"].as_str()).ok_or_else(|| unclear(&members.to_string()))?;
    Ok(name.to_owned())
}

#[test]
fn mesos_without_etcd_for_longer_than_the_ttl_hosts_are_fenced_and_tasks_go_on_afterwards() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |_| {})?;
    let from = writing(&trial)?;
    let seen = trial.scheduler.history("writer").len();
    trial.cluster.hub().kill_service("etcd-1")?;
    let ended = trial.wait_ended("writer", seen)?;
    let message = ended.message.clone().unwrap_or_default();
    assert!(message.contains("no heartbeat got through to etcd in time"), "{ended:?}");
    trial.cluster.wait_for("a fenced host", SOON, || match trial.mounted(from) {
        Ok(mounted) if mounted.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let seen = trial.scheduler.history("writer").len();
    trial.cluster.hub().start_service("etcd-1")?;
    trial.cluster.wait_etcd_healthy()?;
    trial.scheduler.wait_for("writer", Instant::now() + SOON, |history| {
        history.iter().skip(seen).any(|event| event.state == TaskState::Running)
    })?;
    trial.wait_lease(VOLUME, "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let now = holder(&trial)?.ok_or_else(|| TrialError::Unexpected("nobody has the volume".into()))?;
    check_counting(&trial.wait_written(now, "vol-1", 0)?)?;
    trial.stop("writer")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_of_two_hosts_with_one_name_one_is_refused_by_that_name() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |config| config.set_agent_parameter("holder", "twin"))?;
    for (app, host, volume) in [("one", "agent-1", "vol-1"), ("two", "agent-2", "vol-2")] {
        trial.create_volume(volume)?;
        trial.scheduler.run(once(app_with(app, host, volume, &trial.writer(volume)?)?))?;
    }
    let decided = |history: &[TaskEvent]| {
        history.iter().any(|event| event.state == TaskState::Running || !event.state.is_live())
    };
    let until = Instant::now() + SOON;
    let histories =
        [trial.scheduler.wait_for("one", until, decided)?, trial.scheduler.wait_for("two", until, decided)?];
    let refused: Vec<_> = histories.iter().flatten().filter(|event| !event.state.is_live()).collect();
    let told = |event: &&&TaskEvent| {
        event.message.as_ref().is_some_and(|message| message.contains("holder name twin"))
    };
    assert!(!refused.is_empty() && refused.iter().all(|event| told(&event)), "{histories:?}");
    // The witness takes a holder's name for its host's.
    trial.attached().map(drop)
}

/// A container that was started before sees the volume's mount by propagation: that is no use of it.
#[test]
fn mesos_a_neighbour_without_volumes_does_not_keep_the_volume_of_a_lost_agent() -> Result<()> {
    let trial = trial(SchedulerConfig::default(), |_| {})?;
    for host in ["agent-1", "agent-2"] {
        trial.run(app(&format!("neighbour-of-{host}"), host, "sleep 1000", &[])?)?;
    }
    let from = writing(&trial)?;
    let began = Instant::now();
    trial.cluster.host(from).kill_agent()?;
    goes_on(&trial, from, began)?;
    trial.cluster.host(from).start_agent()?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    trial.stop("writer")?;
    trial.nothing_is_left()
}
