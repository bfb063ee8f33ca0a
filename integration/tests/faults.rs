//! What the product does when something breaks, on real Mesos, etcd and file systems, with a plugin that can be made to
//! fail. Two writers never come of it, and whatever breaks is whole again once the fault is over.

use std::time::{Duration, Instant};

use integration::cluster::{ClusterConfig, Ended, until};
use integration::scheduler::{SchedulerConfig, TaskState};
use integration::trial::{Result, SOON, Trial, TrialError, app, app_with, check_counting, once};
use serde_json::json;
use shared::record::LeaseRecord;

/// With these parameters of the agents' module.
fn trial(parameters: &[(&str, &str)]) -> Result<Trial> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.set_agent_parameter("settle_time", "5secs");
    for (name, value) in parameters {
        config.set_agent_parameter(name, value);
    }
    Trial::with(config, SchedulerConfig::default())
}

/// A task on agent-1 that writes to `vol-1`, its lease written.
fn writing(trial: &Trial) -> Result<()> {
    trial.create_volume("vol-1")?;
    trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))
}

/// The volume is as good as ever: another host has it, and nothing that was written is missing.
fn another_host_goes_on(trial: &Trial) -> Result<()> {
    trial.run(app_with("next", "agent-2", "vol-1", &trial.writer("vol-1")?)?)?;
    check_counting(&trial.wait_written(1, "vol-1", 0)?)?;
    trial.stop("next")?;
    trial.nothing_is_left()
}

/// The one container that uses `vol-1`.
fn container(trial: &Trial) -> Result<String> {
    let held = trial.held("ebs/vol-1")?;
    let container = held.and_then(|held| held.containers.first().map(|id| id.as_str().to_owned()));
    container.ok_or_else(|| TrialError::Unexpected("no container has vol-1".into()))
}

fn wait_log(trial: &Trial, host: usize, words: &str) -> Result<()> {
    Ok(trial.cluster.wait_for(&format!("{words:?} in the keeper's log"), SOON, || {
        let log = trial.keeper_log(trial.cluster.host(host));
        if log.contains(words) { Ok(()) } else { Err(log) }
    })?)
}

/// Starts a service with this modules JSON, which it must refuse; the last lines of its log.
fn refused(trial: &Trial, host: &integration::cluster::Host, service: &str, modules: &str) -> Result<String> {
    let log = trial.cluster.logs().join(format!("{}-{service}.log", host.name()));
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    let before = read().len();
    std::fs::write(host.directory().join("modules.json"), modules).expect("the host's directory");
    host.start_service(service)?;
    match host.wait(service, SOON)? {
        Some(Ended::Code(0)) | None => {
            host.kill_service(service)?;
            Err(TrialError::Unexpected(format!("{service} did not refuse {modules}")))
        }
        Some(_) => Ok(read()[before..].to_owned()),
    }
}

fn modules(library: &str, name: &str, parameters: &[(&str, &str)]) -> String {
    let parameters: Vec<_> = parameters.iter().map(|(k, v)| json!({ "key": k, "value": v })).collect();
    let module = json!({ "name": name, "parameters": parameters });
    json!({ "libraries": [{ "file": library, "modules": [module] }] }).to_string()
}

#[test]
fn mesos_broken_modules_json_and_parameters_are_refused_by_name_and_value() -> Result<()> {
    let trial = trial(&[])?;
    let (hub, host) = (trial.cluster.hub(), trial.cluster.host(0));
    let library = integration::cluster::target_directory().join("extvol/libextvol.so").display().to_string();
    let (etcd, program) = (("etcd_endpoints", "192.0.2.1:2379"), ("keeper", "/bin/true"));
    let cgroups = format!("extvol_{}_{}", trial.cluster.id(), host.name());
    let cgroups = ("cgroup_root", cgroups.as_str());
    let isolator = |parameters: &[(&str, &str)]| modules(&library, "org_extvol_VolumeIsolator", parameters);
    let table = [
        ("{".to_owned(), "modules"),
        (modules("/nowhere/libextvol.so", "org_extvol_VolumeIsolator", &[etcd]), "/nowhere/libextvol.so"),
        (modules(&library, "org_extvol_Nothing", &[etcd]), "org_extvol_Nothing"),
        (isolator(&[]), "the parameter `etcd_endpoints` is missing"),
        (isolator(&[("etcd_endpoints", "etcd")]), "`etcd_endpoints` has the value `etcd`"),
        (isolator(&[etcd, ("etcd_endpoint", "h:1")]), "no parameter `etcd_endpoint`"),
        (isolator(&[etcd, etcd]), "`etcd_endpoints`"),
        (isolator(&[etcd, program, ("holder", "a/b")]), "`holder` has the value `a/b`"),
        (isolator(&[etcd, program, ("prepare_timeout", "45")]), "`prepare_timeout` has the value `45`"),
        (isolator(&[etcd, program, ("mount_roots", "volumes")]), "`mount_roots` has the value `volumes`"),
        (isolator(&[etcd, program, ("drivers", "rexray,RexRay")]), "which differ by case alone"),
        (isolator(&[etcd, program]), "`cgroup_root` has the value `mesos`"),
        (isolator(&[etcd, cgroups, ("keeper", "/no/keeper")]), "`keeper` has the value `/no/keeper`"),
    ];
    let kept = std::fs::read_to_string(host.directory().join("modules.json")).expect("it was written");
    host.kill_agent()?;
    for (json, expected) in table {
        let log = refused(&trial, host, "agent", &json)?;
        assert!(log.contains(expected), "{json}: {log}");
    }
    std::fs::write(host.directory().join("modules.json"), kept).expect("the host's directory");
    host.start_agent()?;
    trial.cluster.wait_agent_registered(0, SOON)?;

    let master = |parameters: &[(&str, &str)]| modules(&library, "org_extvol_VolumeLeaseMaster", parameters);
    hub.kill_service("master")?;
    for (json, expected) in [
        (master(&[]), "the parameter `etcd_endpoints` is missing"),
        (master(&[etcd, ("poll_interval", "5")]), "`poll_interval` has the value `5`"),
        (master(&[etcd, ("colour", "red")]), "no parameter `colour`"),
    ] {
        let log = refused(&trial, hub, "master", &json)?;
        assert!(log.contains(expected), "{json}: {log}");
    }
    Ok(())
}

#[test]
fn mesos_a_container_that_was_never_prepared_is_cleaned_up() -> Result<()> {
    let images = tempfile::tempdir().expect("a temporary directory");
    let mut config = ClusterConfig::complete(1, &["ebs"])?;
    config.docker_registry = Some(images.path().to_path_buf());
    let trial = Trial::with(config, SchedulerConfig::default())?;
    trial.create_volume("vol-1")?;
    // The image cannot be had: the container ends before any isolator has seen it.
    let mut job = once(app_with("no-image", "agent-1", "vol-1", "true")?);
    job.container =
        Some(integration::scheduler::Container { image: Some("nothing".into()), ..Default::default() });
    let ended = trial.run_to_end(job)?;
    assert_eq!(ended.state, TaskState::Failed);
    assert!(!ended.message.clone().unwrap_or_default().contains("extvol"), "{:?}", ended.message);
    let good = once(app_with("good", "agent-1", "vol-1", "touch data/file")?);
    assert_eq!(trial.run_to_end(good)?.state, TaskState::Finished);
    trial.nothing_is_left()
}

/// Nobody knows any more what is mounted here, and by whom it is used: all of it is ended, and then begun anew.
#[test]
fn mesos_a_table_that_cannot_be_read_ends_the_tasks_of_a_host_and_nothing_is_lost() -> Result<()> {
    for (number, broken) in
        ["", "{\"version\":2,\"boot_id", r#"{"version":99,"tables":[]}"#].iter().enumerate()
    {
        let trial = trial(&[])?;
        writing(&trial)?;
        let before = trial.held("ebs/vol-1")?.expect("it is held");
        let host = trial.cluster.host(0);
        host.kill_agent()?;
        trial.kill_keeper(0)?;
        host.run(&["sh", "-c", "printf %s \"$1\" >/run/extvol/table.json", "sh", broken])?;
        host.start_agent()?;
        trial.cluster.wait_agent_registered(0, SOON)?;
        wait_log(&trial, 0, "cannot be read")?;
        assert_eq!(host.run(&["cat", "/run/extvol/table.json.broken"])?, *broken, "{number}");
        trial.wait_lease("ebs/vol-1", "is attached anew", |lease| {
            lease.is_some_and(|lease| {
                lease.state() == "attached" && lease.held().is_some_and(|held| held.token != before.token)
            })
        })?;
        check_counting(&trial.wait_written(0, "vol-1", 0)?)?;
        trial.stop("writer")?;
        trial.nothing_is_left()?;
        another_host_goes_on(&trial)?;
    }
    Ok(())
}

#[test]
fn mesos_a_host_that_was_rebooted_gives_its_leases_back() -> Result<()> {
    let trial = trial(&[("profile", "calm")])?;
    writing(&trial)?;
    trial.scheduler.stop("writer")?;
    trial.cluster.host(0).kill()?;
    trial.cluster.host(0).start()?;
    trial.wait_free("ebs/vol-1")?;
    let sessions = trial.cluster.etcdctl(&["get", "--print-value-only", "/extvol/v1/sessions/agent-1"])?;
    assert!(sessions.contains(r#""epoch":2"#), "{sessions}");
    another_host_goes_on(&trial)
}

#[test]
fn mesos_a_keeper_killed_while_the_driver_mounts_goes_on_with_it() -> Result<()> {
    let trial = trial(&[("settle_time", "2secs")])?;
    trial.create_volume("vol-1")?;
    trial.set_faults(0, &json!({ "methods": { "Mount": { "delay_before_ms": 1500 } } }))?;
    trial.scheduler.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial
        .wait_lease("ebs/vol-1", "is attaching", |lease| matches!(lease, Some(LeaseRecord::Attaching(_))))?;
    trial.kill_keeper(0)?;
    trial.scheduler.wait_until_running("writer", Instant::now() + SOON)?;
    trial.wait_written(0, "vol-1", 0)?;
    assert_eq!(trial.scheduler.history("writer").iter().filter(|e| e.state == TaskState::Failed).count(), 0);
    trial.set_faults(0, &json!({}))?;
    trial.stop("writer")?;
    // The driver counts two mounts: one Unmount is not enough, and is not believed.
    trial.nothing_is_left()?;
    another_host_goes_on(&trial)
}

#[test]
fn mesos_a_container_that_ends_while_its_agent_is_down_gives_its_volume_back() -> Result<()> {
    let trial = trial(&[])?;
    trial.create_volume("vol-1")?;
    trial.run(once(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?))?;
    trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let host = trial.cluster.host(0);
    let container = container(&trial)?;
    host.kill_agent()?;
    trial.kill_container(0, &container)?;
    trial.wait_free("ebs/vol-1")?;
    another_host_goes_on(&trial)?;
    host.start_agent()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    trial.wait_ended("writer", 0)?;
    trial.nothing_is_left()
}

/// Agent, keeper, container and the keeper's table are gone at once; the mount is left.
#[test]
fn mesos_a_mount_that_a_crashed_life_left_is_cleaned_up() -> Result<()> {
    let trial = trial(&[])?;
    trial.create_volume("vol-1")?;
    trial.run(once(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?))?;
    trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let host = trial.cluster.host(0);
    let container = container(&trial)?;
    host.kill_agent()?;
    trial.kill_keeper(0)?;
    trial.kill_container(0, &container)?;
    host.run(&["rm", "/run/extvol/table.json"])?;
    assert_eq!(trial.mounted(0)?, ["/var/lib/rexray/volumes/vol-1"]);
    host.start_agent()?;
    trial.wait_free("ebs/vol-1")?;
    trial.nothing_is_left()?;
    another_host_goes_on(&trial)
}

/// Without checkpointing a killed agent means TASK_LOST and a replacement at once. The executor ends itself when its agent
/// is gone, if it can: here it cannot, for it is frozen.
#[test]
fn mesos_without_checkpointing_the_replacement_waits_until_the_orphan_is_ended() -> Result<()> {
    let config = ClusterConfig::complete(2, &["ebs"])?;
    let trial = Trial::with(config, SchedulerConfig { checkpoint: false, ..SchedulerConfig::default() })?;
    trial.create_volume("vol-1")?;
    let original = trial.run(app_with("writer", "", "vol-1", &trial.writer("vol-1")?)?)?;
    let name = original.hostname.clone().unwrap_or_default();
    let first = usize::from(name == "agent-2");
    let text = trial.wait_written(first, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let host = trial.cluster.host(first);
    let cgroup = trial.cgroup_of(first, &container(&trial)?);
    host.run(&["sh", "-c", "echo FROZEN >\"$1/freezer.state\"", "sh", &cgroup])?;
    host.kill_agent()?;
    // Somebody wants the volume, and its agent is away: the keeper ends the orphan, and the replacement has the volume.
    let mut running = None;
    trial.scheduler.wait_for("writer", Instant::now() + SOON, |history| {
        let last = history.last().filter(|event| event.state == TaskState::Running);
        running = last.filter(|event| event.task_id != original.task_id).cloned();
        running.is_some()
    })?;
    let holder = usize::from(running.and_then(|event| event.hostname).as_deref() == Some("agent-2"));
    check_counting(&trial.wait_written(holder, "vol-1", text.len())?)?;
    host.start_agent()?;
    trial.cluster.wait_agent_registered(first, SOON)?;
    trial.stop("writer")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_while_etcd_is_away_tasks_fail_clearly_and_ends_are_made_up_for() -> Result<()> {
    // As long as this profile lets hosts go on without etcd.
    let trial = trial(&[("prepare_timeout", "5secs"), ("profile", "calm")])?;
    writing(&trial)?;
    trial.create_volume("vol-2")?;
    let hub = trial.cluster.hub();
    hub.kill_service("etcd-1")?;
    let began = Instant::now();
    let ended = trial.run_to_end(once(app_with("early", "agent-2", "vol-2", "true")?))?;
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("no connection to http://192.0.2.1:2379"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // The writer goes on, and ends; its volume stays where it is until etcd can be told.
    let text = trial.read(0, "vol-1", "log")?;
    trial.wait_written(0, "vol-1", text.len())?;
    assert_eq!(trial.stop("writer")?.state, TaskState::Killed);
    wait_log(&trial, 0, "etcd does not answer")?;
    assert_eq!(trial.mounted(0)?.len(), 1);
    hub.start_service("etcd-1")?;
    trial.cluster.wait_etcd_healthy()?;
    trial.wait_free("ebs/vol-1")?;
    another_host_goes_on(&trial)
}

/// Mesos gives a container up that it cannot kill within a minute, and never calls cleanup for it.
#[test]
fn mesos_a_container_that_mesos_could_not_kill_gives_its_volume_back_when_it_is_dead() -> Result<()> {
    let trial = trial(&[])?;
    writing(&trial)?;
    let host = trial.cluster.host(0);
    let point = "/var/lib/rexray/volumes/vol-1";
    host.run(&["fsfreeze", "--freeze", point])?;
    trial.scheduler.stop("writer")?;
    // The executor cannot end its task either, and is ended itself.
    let executor = trial.processes(0, "mesos-executor")?;
    host.run(&[&["kill".to_owned(), "-KILL".to_owned()][..], &executor].concat())?;
    let log = trial.cluster.logs().join("agent-1-agent.log");
    let given_up =
        until("Mesos giving the container up", Duration::from_secs(150), &trial.cluster.logs(), || {
            let text = std::fs::read_to_string(&log).map_err(|error| error.to_string())?;
            let words = "Failed to kill all processes in the container";
            if text.contains(words) { Ok(()) } else { Err("not yet".into()) }
        });
    assert!(trial.held("ebs/vol-1")?.is_some(), "it still has the volume");
    host.run(&["fsfreeze", "--unfreeze", point])?;
    given_up?;
    trial.wait_free("ebs/vol-1")?;
    another_host_goes_on(&trial)
}

#[test]
fn mesos_a_private_mount_root_is_refused_with_the_command_that_mends_it() -> Result<()> {
    let trial = trial(&[])?;
    trial.create_volume("vol-1")?;
    let host = trial.cluster.host(0);
    host.run(&["mount", "--make-private", "/var/lib/rexray/volumes"])?;
    let ended = trial.run_to_end(once(app_with("early", "agent-1", "vol-1", "true")?))?;
    let message = ended.message.unwrap_or_default();
    let command = message.split('`').nth(1).unwrap_or_default();
    assert_eq!(command, "mount --make-shared /var/lib/rexray/volumes", "{message}");
    assert_eq!(trial.lease("ebs/vol-1")?, None, "nothing was leased");
    host.run(&command.split(' ').collect::<Vec<_>>())?;
    let good = once(app_with("good", "agent-1", "vol-1", "touch data/file")?);
    assert_eq!(trial.run_to_end(good)?.state, TaskState::Finished);
    trial.nothing_is_left()
}

#[test]
fn mesos_a_driver_that_answers_wrongly_or_late_or_not_at_all_is_made_to_settle() -> Result<()> {
    let trial = trial(&[("prepare_timeout", "3secs"), ("settle_time", "1secs")])?;
    trial.create_volume("vol-1")?;
    let table = [
        (json!({ "answer": "garbage", "times": 1 }), "gave no proper answer to Mount"),
        (json!({ "answer": "half", "times": 1 }), "gave no proper answer to Mount"),
        (
            json!({ "fail": { "err": "" , "status": 500 }, "times": 1 }),
            "it may go on behind the error status 500",
        ),
        (json!({ "fail": { "err": "throttled" }, "times": 1 }), "refused Mount: throttled"),
        (json!({ "delay_after_ms": 4500, "times": 1 }), "the driver has not yet mounted volume ebs/vol-1"),
    ];
    for (number, (fault, expected)) in table.into_iter().enumerate() {
        trial.set_faults(0, &json!({ "methods": { "Mount": fault } }))?;
        let ended =
            trial.run_to_end(once(app_with(&format!("early-{number}"), "agent-1", "vol-1", "true")?))?;
        let message = ended.message.unwrap_or_default();
        assert!(message.contains(expected), "{fault}: {message}");
        trial.nothing_is_left()?;
        another_host_goes_on(&trial)?;
    }
    // It never answers; then its daemon dies.
    trial.set_faults(0, &json!({ "methods": { "Mount": { "answer": "never" } } }))?;
    let ended = trial.run_to_end(once(app_with("never", "agent-1", "vol-1", "true")?))?;
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("its volumes were not ready within 3 s"), "{message}");
    assert!(trial.held("ebs/vol-1")?.is_some(), "nobody knows whether it is mounted");
    let host = trial.cluster.host(0);
    host.kill_service("plugin-ebs")?;
    wait_log(&trial, 0, "could not be reached")?;
    assert!(trial.held("ebs/vol-1")?.is_some(), "nobody knows whether it is mounted");
    host.start_service("plugin-ebs")?;
    trial.nothing_is_left()?;
    another_host_goes_on(&trial)
}

#[test]
fn mesos_an_unmount_that_stays_busy_fails_or_hangs_is_tried_again_and_the_lease_kept() -> Result<()> {
    let trial = trial(&[("settle_time", "1secs")])?;
    writing(&trial)?;
    let table = [
        json!({ "busy": true, "times": 4 }),
        json!({ "answer": "half", "times": 1 }),
        json!({ "fail": { "err": "throttled" }, "times": 2 }),
    ];
    for fault in table {
        trial.set_faults(0, &json!({ "methods": { "Unmount": fault } }))?;
        trial.stop("writer")?;
        trial.nothing_is_left()?;
        another_host_goes_on(&trial)?;
        trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
        trial.wait_written(0, "vol-1", 0)?;
    }
    trial.stop("writer")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_without_room_for_the_table_nothing_is_mounted_or_unmounted() -> Result<()> {
    let trial = trial(&[])?;
    let host = trial.cluster.host(0);
    host.kill_agent()?;
    trial.kill_keeper(0)?;
    host.run(&["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", "/run/extvol"])?;
    host.start_agent()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    writing(&trial)?;
    trial.create_volume("vol-2")?;
    host.exec(&["sh", "-c", "cat /dev/zero >/run/extvol/full 2>/dev/null"])?;
    let ended = trial.run_to_end(once(app_with("early", "agent-1", "vol-2", "true")?))?;
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("cannot store its table in /run/extvol/table.json: No space left"), "{message}");
    // The writer goes on and ends all the same.
    let text = trial.read(0, "vol-1", "log")?;
    trial.wait_written(0, "vol-1", text.len())?;
    trial.stop("writer")?;
    // As long as a change found room in what the table's file has of it, the other volume may have been mounted, too.
    assert!(!trial.mounted(0)?.is_empty(), "they wait for room");
    host.run(&["rm", "/run/extvol/full"])?;
    trial.nothing_is_left()?;
    another_host_goes_on(&trial)
}

#[test]
fn mesos_a_volume_unmounted_behind_the_keepers_back_ends_its_task_with_the_reason() -> Result<()> {
    let trial = trial(&[])?;
    trial.create_volume("vol-1")?;
    trial.run(once(app_with("idle", "agent-1", "vol-1", "sleep 1000")?))?;
    trial.cluster.host(0).run(&["umount", "/var/lib/rexray/volumes/vol-1"])?;
    // Somebody joins, and so it is noticed.
    let joins = trial.run_to_end(once(app_with("joins", "agent-1", "vol-1", "true")?))?;
    let words = "volume ebs/vol-1 was unmounted behind the keeper's back";
    assert!(joins.message.clone().unwrap_or_default().contains(words), "{joins:?}");
    let ended = trial.wait_ended("idle", 0)?;
    assert_eq!(ended.state, TaskState::Failed);
    assert!(ended.message.clone().unwrap_or_default().contains(words), "{ended:?}");
    trial.nothing_is_left()?;
    another_host_goes_on(&trial)
}

#[test]
fn mesos_a_task_without_volumes_is_no_business_of_a_broken_keeper() -> Result<()> {
    let trial = trial(&[("prepare_timeout", "3secs")])?;
    let host = trial.cluster.host(0);
    trial.create_volume("vol-1")?;
    // No keeper can start any more: its program is gone for this host.
    host.run(&["mount", "--bind", "/bin/false", &keeper_program(&trial)?])?;
    trial.kill_keeper(0)?;
    assert_eq!(trial.run_to_end(once(app("plain", "agent-1", "true", &[])?))?.state, TaskState::Finished);
    let ended = trial.run_to_end(once(app_with("early", "agent-1", "vol-1", "true")?))?;
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("extvol-keeper"), "{message}");
    host.run(&["umount", &keeper_program(&trial)?])?;
    let good = once(app_with("good", "agent-1", "vol-1", "touch data/file")?);
    assert_eq!(trial.run_to_end(good)?.state, TaskState::Finished);
    trial.nothing_is_left()
}

fn keeper_program(trial: &Trial) -> Result<String> {
    let json = std::fs::read_to_string(trial.cluster.host(0).directory().join("modules.json"));
    let json: serde_json::Value = serde_json::from_str(&json.unwrap_or_default()).unwrap_or_default();
    let parameters = &json["libraries"][0]["modules"][0]["parameters"];
    let keeper = parameters.as_array().into_iter().flatten().find(|p| p["key"] == "keeper");
    let program = keeper.and_then(|parameter| parameter["value"].as_str().map(str::to_owned));
    program.ok_or_else(|| TrialError::Unexpected("the module has no parameter `keeper`".into()))
}
