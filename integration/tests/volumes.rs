//! The product on real Mesos, etcd and file systems: what a task with volumes gets, and that nothing is left of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::cluster::ClusterConfig;
use integration::scheduler::{App, SchedulerConfig, TaskState};
use integration::storage::journal::Event;
use integration::trial::{Result, SOON, Trial, app, app_with, check_counting, once};
use serde_json::json;
use shared::record::LeaseRecord;

#[path = "support/image.rs"]
mod image;

/// Nothing of these volumes is left anywhere: no lease, no mount, no attachment; and no host ever had one beside another.
fn nothing_is_left(trial: &Trial, volumes: &[&str]) -> Result<()> {
    trial.nothing_is_left()?;
    for volume in volumes {
        assert_eq!(trial.held(volume)?, None, "the lease of {volume}");
    }
    Ok(())
}

fn attachments(trial: &Trial) -> Result<usize> {
    Ok(trial.journal()?.iter().filter(|entry| entry.event == Event::Attach).count())
}

#[test]
fn mesos_a_volume_named_by_labels_is_mounted_under_a_lease_and_given_back() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let running = trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let held = trial.held("ebs/vol-1")?.expect("it is attached");
    assert_eq!(held.holder.as_str(), "agent-1");
    assert_eq!(held.agent_id, running.agent_id);
    assert_eq!(held.containers.len(), 1);
    assert_eq!(held.mount_point.as_deref(), Some("/var/lib/rexray/volumes/vol-1/data"));
    assert!(held.token.is_some());
    assert_eq!(trial.attached()?, [("vol-1".to_owned(), "agent-1".to_owned())]);
    assert_eq!(trial.stop("writer")?.state, TaskState::Killed);
    nothing_is_left(&trial, &["ebs/vol-1"])?;

    // Another host finds what the first one wrote, and a later grant has a larger token.
    trial.run(app_with("other", "agent-2", "vol-1", &trial.writer("vol-1")?)?)?;
    let text = trial.wait_written(1, "vol-1", 0)?;
    assert!(
        text.lines().next().is_some_and(|line| line.starts_with("1 ") && line.ends_with(" agent-1")),
        "{text}"
    );
    trial.wait_lease("ebs/vol-1", "has its token", |lease| {
        let token = lease.and_then(|lease| lease.held()?.token);
        token.is_some_and(|token| Some(token) > held.token)
    })?;
    check_counting(&trial.wait_written(1, "vol-1", text.len())?)?;
    trial.stop("other")?;
    nothing_is_left(&trial, &["ebs/vol-1"])
}

#[test]
fn mesos_the_variables_of_mesos_module_dvdi_work_as_they_are() -> Result<()> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.set_agent_parameter("host_paths", "/run");
    let trial = Trial::with(config, SchedulerConfig::default())?;
    // The volume does not exist: that module has the driver create it. The path is absolute and on the host, and is made.
    let job = json!({
        "id": "dvdi", "cmd": "mountpoint /run/on-host && echo old >/run/on-host/log && cat", "restart": "never",
        "constraints": { "hostnames": ["agent-1"] },
        "env": {
            "DVDI_VOLUME_NAME": "Old-Job", "DVDI_VOLUME_DRIVER": "ebs", "DVDI_VOLUME_OPTS": "sizeMiB=32",
            "DVDI_VOLUME_CONTAINERPATH": "/run/on-host", "DVDI_VOLUME_DVDCLI": "/usr/bin/dvdcli",
            "DVDI_VOLUME_NAME3": "second", "DVDI_VOLUME_DRIVER3": "ebs",
        },
    });
    let ended = trial.run_to_end(App::from_json(&job.to_string())?)?;
    assert_eq!(ended.state, TaskState::Finished, "{:?}", ended.message);
    nothing_is_left(&trial, &["ebs/old-job", "ebs/second"])?;
    assert!(!trial.cluster.host(0).exec(&["test", "-e", "/run/on-host/log"])?.success());
    // One name, however it is spelt.
    let reader = once(app_with("reader", "agent-2", "OLD-JOB", "grep -x old data/log")?);
    assert_eq!(trial.run_to_end(reader)?.state, TaskState::Finished);
    // A name that must exist.
    let mut job = job;
    job["id"] = "dvdi-existing".into();
    job["env"]["DVDI_VOLUME_NAME"] = "missing".into();
    job["env"]["DVDI_VOLUME_EXPLICITCREATE"] = "true".into();
    let ended = trial.run_to_end(App::from_json(&job.to_string())?)?;
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("volume ebs/missing could not be mounted"), "{message}");
    nothing_is_left(&trial, &["ebs/missing", "ebs/second"])
}

#[test]
fn mesos_the_mode_ro_lets_the_container_read_only() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let write = once(app_with("write", "agent-1", "vol-1", "echo here >data/file")?);
    assert_eq!(trial.run_to_end(write)?.state, TaskState::Finished);
    trial.wait_free("ebs/vol-1")?;
    let mut read = once(app_with(
        "read",
        "agent-1",
        "vol-1",
        "grep -x here data/file && ! touch data/other && ! rm data/file && ! mount -o remount,rw data/file",
    )?);
    read.labels.insert("extvol.mode".into(), "ro".into());
    let ended = trial.run_to_end(read)?;
    assert_eq!(ended.state, TaskState::Finished, "{:?}", ended.message);
    nothing_is_left(&trial, &["ebs/vol-1"])
}

#[test]
fn mesos_a_container_with_an_image_finds_its_volumes() -> Result<()> {
    let images = tempfile::tempdir().expect("a temporary directory");
    image::make(images.path());
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.docker_registry = Some(images.path().to_path_buf());
    let trial = Trial::with(config, SchedulerConfig::default())?;
    for (id, path, file) in
        [("absolute", "/srv/data", "/srv/data/file"), ("relative", "data", "/mnt/mesos/sandbox/data/file")]
    {
        let job = json!({
            "id": id, "args": ["/bin/busy", file], "restart": "never",
            "container": { "image": "busy" }, "constraints": { "hostnames": ["agent-1"] },
            "labels": {
                "extvol.name": id, "extvol.driver": "ebs", "extvol.container_path": path,
                "extvol.options": "sizeMiB=32",
            },
        });
        let ended = trial.run_to_end(App::from_json(&job.to_string())?)?;
        assert_eq!(ended.state, TaskState::Finished, "{id}: {:?}", ended.message);
        trial.wait_free(&format!("ebs/{id}"))?;
        let check = once(app_with(&format!("check-{id}"), "agent-2", id, "test -f data/file")?);
        assert_eq!(trial.run_to_end(check)?.state, TaskState::Finished, "{id}: the file is on the volume");
    }
    nothing_is_left(&trial, &["ebs/absolute", "ebs/relative"])
}

#[test]
fn mesos_of_two_volumes_the_second_fails_and_nothing_is_left_of_the_first() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("good")?;
    let labels = [
        ("extvol.name", "good"),
        ("extvol.driver", "ebs"),
        ("extvol.container_path", "good"),
        ("extvol.1.name", "missing"),
        ("extvol.1.driver", "ebs"),
        ("extvol.1.container_path", "missing"),
    ];
    let ended = trial.run_to_end(once(app("two", "agent-1", "true", &labels)?))?;
    assert_eq!(ended.state, TaskState::Failed);
    assert_eq!(ended.reason.as_deref(), Some("REASON_CONTAINER_LAUNCH_FAILED"));
    let message = ended.message.unwrap_or_default();
    let expected = "volume ebs/missing could not be mounted: the plugin ebs refused Mount: \
                    docker-legacy: Mount: missing: failed: resource not found";
    assert!(message.contains(expected), "{message}");
    nothing_is_left(&trial, &["ebs/good", "ebs/missing"])?;

    // Of two leases, the second held elsewhere, none is taken.
    trial.run(app_with("holder", "agent-2", "held", "cat /dev/null; sleep 1000")?.with_options())?;
    let labels: Vec<_> =
        labels.iter().map(|(key, value)| (*key, if *value == "missing" { "held" } else { *value })).collect();
    let ended = trial.run_to_end(once(app("two-leases", "agent-1", "true", &labels)?))?;
    let message = ended.message.unwrap_or_default();
    assert!(message.contains("volume ebs/held is held by agent-2"), "{message}");
    trial.wait_free("ebs/good")?;
    assert_eq!(trial.attached()?, [("held".to_owned(), "agent-2".to_owned())]);
    trial.stop("holder")?;
    nothing_is_left(&trial, &["ebs/good", "ebs/held"])
}

#[test]
fn mesos_two_containers_of_an_agent_share_one_mount_until_the_last_ends() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    trial.run(app_with("one", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.run(app_with("two", "agent-1", "vol-1", "touch data/two; sleep 1000")?)?;
    trial.wait_lease("ebs/vol-1", "names both", |lease| {
        lease.and_then(LeaseRecord::held).is_some_and(|held| held.containers.len() == 2)
    })?;
    assert_eq!((attachments(&trial)?, trial.mounted(0)?.len()), (1, 1));
    let token = trial.held("ebs/vol-1")?.expect("it is attached").token;

    trial.stop("two")?;
    trial.wait_lease("ebs/vol-1", "names one", |lease| {
        lease.and_then(LeaseRecord::held).is_some_and(|held| held.containers.len() == 1)
    })?;
    let before = trial.read(0, "vol-1", "log")?;
    check_counting(&trial.wait_written(0, "vol-1", before.len())?)?;
    assert_eq!(trial.held("ebs/vol-1")?.expect("it is attached").token, token, "it is the same lease");
    trial.stop("one")?;
    nothing_is_left(&trial, &["ebs/vol-1"])?;
    assert_eq!(attachments(&trial)?, 1);
    Ok(())
}

#[test]
fn mesos_a_volume_held_elsewhere_is_refused_and_had_once_it_is_free() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let first = trial.run(app_with("first", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.scheduler.run(app_with("second", "agent-2", "vol-1", &trial.writer("vol-1")?)?)?;
    let refused = trial.wait_ended("second", 0)?;
    assert_eq!(refused.state, TaskState::Failed);
    let held = trial.held("ebs/vol-1")?.expect("it is held");
    let container = held.containers.first().expect("by a container");
    let task = &held.tasks[container];
    assert_eq!(task.task_id.as_deref(), Some(first.task_id.as_str()), "{task:?}");
    assert_eq!(task.framework.as_deref(), Some(&*SchedulerConfig::default().name), "{task:?}");
    let task = task.in_words().expect("Mesos said it");
    let message = refused.message.unwrap_or_default();
    assert_eq!(
        message,
        format!(
            "Failed to launch container: volume ebs/vol-1 is held by agent-1 (live, since {}, agent {}, container \
             {container}, which is {task}); it is free when that container ends, or after `extvol revoke ebs/vol-1`; it was waited for 15 s",
            held.since,
            first.agent_id.unwrap_or_default(),
        )
    );
    trial.stop("first")?;
    trial
        .scheduler
        .wait_until_running("second", std::time::Instant::now() + SOON)
        .expect("it has the volume");
    let text = trial.wait_written(1, "vol-1", 0)?;
    check_counting(&text)?;
    trial.stop("second")?;
    nothing_is_left(&trial, &["ebs/vol-1"])
}

#[test]
fn mesos_a_task_does_not_notice_that_its_agent_is_killed_and_started() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let running = trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    let before = trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let lease = trial.lease("ebs/vol-1")?;
    trial.cluster.host(0).kill_agent()?;
    trial.cluster.wait_agent_gone(0, SOON)?;
    let during = trial.wait_written(0, "vol-1", before.len())?;
    trial.cluster.host(0).start_agent()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    let after = trial.wait_written(0, "vol-1", during.len())?;
    check_counting(&after)?;
    assert_eq!(trial.lease("ebs/vol-1")?, lease, "the lease is untouched");
    assert_eq!(attachments(&trial)?, 1);
    let ended = trial.stop("writer")?;
    assert_eq!((ended.state, &ended.task_id), (TaskState::Killed, &running.task_id));
    nothing_is_left(&trial, &["ebs/vol-1"])
}

#[test]
fn mesos_a_task_does_not_notice_that_its_keeper_is_killed_and_started() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let running = trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    let before = trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let held = trial.held("ebs/vol-1")?.expect("it is attached");
    let keeper = trial.processes(0, "extvol-worker")?;
    trial.kill_keeper(0)?;
    trial.cluster.wait_for("another keeper", SOON, || {
        let log = trial.keeper_log(trial.cluster.host(0));
        let opened = log.matches("the session of holder agent-1 is open, epoch 1").count();
        if opened == 2 { Ok(()) } else { Err(log) }
    })?;
    assert_ne!(trial.processes(0, "extvol-worker")?, keeper);
    check_counting(&trial.wait_written(0, "vol-1", before.len())?)?;
    let after = trial.held("ebs/vol-1")?.expect("it is attached");
    assert_eq!((after.token, after.epoch, &after.containers), (held.token, held.epoch, &held.containers));
    assert_eq!(attachments(&trial)?, 1);
    let ended = trial.stop("writer")?;
    assert_eq!((ended.state, &ended.task_id), (TaskState::Killed, &running.task_id));
    nothing_is_left(&trial, &["ebs/vol-1"])
}

/// Where a host's mount is private, the bystander's copy of it would keep the device mounted behind a clean unmount:
/// the way to two writers.
#[test]
fn mesos_a_container_started_in_between_does_not_keep_the_volume() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.wait_written(0, "vol-1", 0)?;
    let seen = "grep -q /var/lib/rexray/volumes/vol-1 /proc/self/mountinfo && touch seen; sleep 1000";
    let bystander = trial.run(app("bystander", "agent-1", seen, &[])?)?;
    trial.cluster.wait_for("the bystander's copy of the mount", SOON, || {
        let sandboxes = trial.cluster.host(0).directory().join("mesos/agents/0/work/slaves");
        let found = Command::new("find").arg(&sandboxes).args(["-name", "seen"]).output();
        let found = found.map_err(|error| error.to_string())?;
        if found.stdout.is_empty() { Err("no sandbox has `seen`".into()) } else { Ok(()) }
    })?;
    trial.stop("writer")?;
    nothing_is_left(&trial, &["ebs/vol-1"])?;
    trial.run(app_with("next", "agent-2", "vol-1", &trial.writer("vol-1")?)?)?;
    check_counting(&trial.wait_written(1, "vol-1", 0)?)?;
    // The bystander was there all the time, and the journal knows of one host at a time.
    let last = trial.scheduler.history("bystander").pop().expect("it was started");
    assert_eq!((last.state, last.task_id), (TaskState::Running, bystander.task_id));
    trial.stop("next")?;
    trial.stop("bystander")?;
    nothing_is_left(&trial, &["ebs/vol-1"])
}

#[test]
fn mesos_bad_input_is_refused_by_name_and_value_and_leaves_nothing() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let good = [("extvol.name", "vol-1"), ("extvol.driver", "ebs"), ("extvol.container_path", "data")];
    let table = [
        (
            "extvol.name",
            "../etc",
            "label extvol.name=\"../etc\": the volume name must not be or contain the path segment \"..\"",
        ),
        (
            "extvol.name",
            "vol%2d1",
            "the volume name \"vol%2d1\" has '%' at a place where the names of the driver ebs",
        ),
        ("extvol.name", "pool/image", "the volume name \"pool/image\" has '/' at a place where"),
        ("extvol.name", "", "label extvol.name=\"\": the volume name is empty"),
        ("extvol.driver", "../ebs", "label extvol.driver=\"../ebs\": the driver name must not be or contain"),
        ("extvol.driver", "zfs", "driver zfs is not served here: this host's parameter `drivers` lists ebs"),
        ("extvol.driver", "EBS", "driver EBS is not served here"),
        ("extvol.driver", "plugins/ebs", "driver plugins/ebs is not served here"),
        ("extvol.mode", "rx", "label extvol.mode=\"rx\": the mode is rw or ro"),
        (
            "extvol.container_path",
            "a/../../b",
            "label extvol.container_path=\"a/../../b\": the container path must",
        ),
        (
            "extvol.container_path",
            "/run/nowhere",
            "container path \"/run/nowhere\": without an image it would cover a path of the host, and the agent's \
             parameter host_paths lists none",
        ),
        ("extvol.container_path", "/sys/fs", "the container path lies in /sys, which is the kernel's own"),
        ("extvol.options", "size", "label extvol.options: option 1 is not of the form key=value"),
        ("extvol.size", "1", "label extvol.size is unknown"),
        ("extvol.1.driver", "ebs", "label extvol.1.name is missing"),
        ("extvol.10.name", "b", "label extvol.10.name is unknown"),
    ];
    for (number, (key, value, expected)) in table.into_iter().enumerate() {
        let labels: Vec<_> = good.into_iter().filter(|(k, _)| *k != key).chain([(key, value)]).collect();
        let ended = trial.run_to_end(once(app(&format!("bad-{number}"), "agent-1", "true", &labels)?))?;
        let message = ended.message.unwrap_or_default();
        assert_eq!(ended.state, TaskState::Failed, "{key}={value}");
        assert!(message.contains(expected), "{key}={value}: {message}");
    }
    // What is refused by its name leaves no record behind, however many names there are.
    let leases = trial.cluster.etcdctl(&["get", "--prefix", "--keys-only", "/extvol/v1/leases/"])?;
    for name in leases.split_whitespace() {
        assert_eq!(name, "/extvol/v1/leases/ebs/vol-1", "{leases}");
    }
    nothing_is_left(&trial, &["ebs/vol-1"])
}

/// One label would do it: the plugin takes each volume that it mounts away from whoever has it.
#[test]
fn mesos_a_task_that_names_the_preempting_plugin_is_refused_and_the_live_holder_keeps_its_volume()
-> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    let before = trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let lease = trial.lease("ebs/vol-1")?;
    for (number, driver) in ["ebs-preempt", "EBS-preempt"].into_iter().enumerate() {
        let labels = [("extvol.name", "vol-1"), ("extvol.driver", driver), ("extvol.container_path", "data")];
        let thief = once(app(&format!("thief-{number}"), "agent-2", &trial.writer("vol-1")?, &labels)?);
        let ended = trial.run_to_end(thief)?;
        let message = ended.message.unwrap_or_default();
        let expected =
            format!("driver {driver} is not served here: this host's parameter `drivers` lists ebs");
        assert!(ended.state == TaskState::Failed && message.contains(&expected), "{message}");
    }
    check_counting(&trial.wait_written(0, "vol-1", before.len())?)?;
    assert_eq!(trial.lease("ebs/vol-1")?, lease, "the lease is untouched");
    assert_eq!(trial.attached()?, [("vol-1".to_owned(), "agent-1".to_owned())]);
    assert_eq!(trial.lease("ebs-preempt/vol-1")?, None);

    // The plugin becomes a driver of one host: by then the installation knows what it is.
    let config = trial.cluster.host(1).directory().join("modules.json");
    let text = fs::read_to_string(&config).expect("it was written");
    let mut modules: serde_json::Value = serde_json::from_str(&text).expect("modules JSON");
    let parameters =
        modules.pointer_mut("/libraries/0/modules/0/parameters").and_then(serde_json::Value::as_array_mut);
    let parameters = parameters.expect("the isolator's parameters");
    parameters.retain(|pair| pair["key"] != "drivers");
    parameters.push(json!({ "key": "drivers", "value": "ebs,ebs-preempt" }));
    trial.cluster.host(1).kill_agent()?;
    trial.kill_keeper(1)?;
    fs::write(&config, modules.to_string()).expect("the host's directory");
    trial.cluster.host(1).start_agent()?;
    trial.cluster.wait_agent_registered(1, SOON)?;
    let labels =
        [("extvol.name", "vol-1"), ("extvol.driver", "ebs-preempt"), ("extvol.container_path", "data")];
    let thief = once(app("thief-again", "agent-2", &trial.writer("vol-1")?, &labels)?);
    let ended = trial.run_to_end(thief)?;
    let message = ended.message.unwrap_or_default();
    assert!(
        message.contains("the driver ebs-preempt, which this host serves, is a plugin that takes"),
        "{message}"
    );
    check_counting(&trial.wait_written(0, "vol-1", before.len())?)?;
    assert_eq!(trial.lease("ebs/vol-1")?, lease, "the lease is untouched");
    assert_eq!(trial.attached()?, [("vol-1".to_owned(), "agent-1".to_owned())]);

    // Given back its own parameters, so that it is clean at the end.
    trial.cluster.host(1).kill_agent()?;
    trial.kill_keeper(1)?;
    fs::write(&config, text).expect("the host's directory");
    trial.cluster.host(1).start_agent()?;
    trial.cluster.wait_agent_registered(1, SOON)?;
    trial.stop("writer")?;
    nothing_is_left(&trial, &["ebs/vol-1"])
}

/// As docs/operating.md has an operator do it before the hosts are told of the plugin, one after the other.
#[test]
fn mesos_a_preempting_plugin_is_added_to_the_installation_under_running_tasks() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let running = trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    let before = trial.wait_written(0, "vol-1", 0)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let held = trial.held("ebs/vol-1")?.expect("it is attached");
    let record = trial.cluster.etcdctl(&["get", "--print-value-only", "/extvol/v1/cluster"])?;
    let grown = record.trim().replace(r#""preempting":["#, r#""preempting":["another","#);
    assert_ne!(grown, record.trim());
    trial.cluster.etcdctl(&["put", "/extvol/v1/cluster", &grown])?;
    // A host that reads it, and one that beats.
    let other = once(app_with("other", "agent-2", "vol-2", "touch data/file")?.with_options());
    assert_eq!(trial.run_to_end(other)?.state, TaskState::Finished);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(15);
    let mut written = before.len();
    while std::time::Instant::now() < until {
        written = trial.wait_written(0, "vol-1", written)?.len();
    }
    let after = trial.held("ebs/vol-1")?.expect("it is attached");
    assert_eq!((after.token, after.epoch), (held.token, held.epoch));
    let last = trial.scheduler.history("writer").pop().expect("it was started");
    assert_eq!((last.state, last.task_id), (TaskState::Running, running.task_id));
    trial.stop("writer")?;
    nothing_is_left(&trial, &["ebs/vol-1", "ebs/vol-2"])
}

#[test]
fn mesos_master_and_agent_start_without_etcd_and_work_once_it_is_there() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    let (hub, host) = (trial.cluster.hub(), trial.cluster.host(0));
    host.kill_agent()?;
    hub.kill_service("master")?;
    trial.kill_keeper(0)?;
    hub.kill_service("etcd-1")?;
    hub.start_service("master")?;
    trial.cluster.wait_master_leading()?;
    host.start_agent()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    // A task without a volume is not concerned.
    trial.run(app("plain", "agent-1", "sleep 1000", &[])?)?;
    hub.start_service("etcd-1")?;
    trial.cluster.wait_etcd_healthy()?;
    trial.run(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.wait_written(0, "vol-1", 0)?;
    trial.stop("writer")?;
    nothing_is_left(&trial, &["ebs/vol-1"])
}

/// For a volume that is to be made.
trait WithOptions {
    fn with_options(self) -> Self;
}

impl WithOptions for App {
    fn with_options(mut self) -> Self {
        self.labels.insert("extvol.options".into(), "sizeMiB=32".into());
        self
    }
}

#[test]
fn every_example_app_names_its_volume_by_labels_that_are_known() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps");
    let known = ["name", "driver", "container_path", "mode", "options"];
    for entry in fs::read_dir(folder).expect("the examples").flatten() {
        let text = fs::read_to_string(entry.path()).expect("an example");
        let app = App::from_json(&text).expect("an app");
        for label in app.labels.keys().filter_map(|label| label.strip_prefix("extvol.")) {
            // Further volumes have a number.
            let label =
                label.split_once('.').filter(|(n, _)| n.parse::<u8>().is_ok()).map_or(label, |(_, of)| of);
            assert!(known.contains(&label), "{}: extvol label {label}", entry.path().display());
        }
    }
}
