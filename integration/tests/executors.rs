//! Tasks of a framework's own executor, and of task groups, on real Mesos: in which form their volumes are served, and what
//! they are told where Mesos shows the isolator nothing of them.

use std::path::PathBuf;
use std::time::Instant;

use integration::cluster::ClusterConfig;
use integration::scheduler::{App, SchedulerConfig, TaskEvent, TaskState};
use integration::trial::{Result, SOON, Trial, app_with, lease_key, once};
use serde_json::{Value, json};

/// Two hosts; the first offers the volumes as resources too.
fn trial(volumes: &[&str]) -> Result<Trial> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.resources.push_str(&format!(";ebsvolumes:{{{}}}", volumes.join(",")));
    config.set_agent_parameter("resources", "ebsvolumes:ebs");
    let trial = Trial::with(config, SchedulerConfig::default())?;
    volumes.iter().try_for_each(|name| trial.create_volume(name))?;
    Ok(trial)
}

/// The forms in which `name` is said to be at `data`, as parts of an executor or a task.
fn labels(name: &str) -> Value {
    json!({ "labels": { "extvol.name": name, "extvol.driver": "ebs", "extvol.container_path": "data" } })
}

fn variables(name: &str) -> Value {
    json!({ "env": {
        "DVDI_VOLUME_NAME": name, "DVDI_VOLUME_DRIVER": "ebs", "DVDI_VOLUME_CONTAINERPATH": "data",
    }})
}

fn docker_volume(name: &str) -> Value {
    let volume = json!({ "container_path": "data", "docker_volume": { "driver": "ebs", "name": name } });
    json!({ "container": { "volumes": [volume] } })
}

/// It is at `ebsvolumes/<name>`.
fn resource(name: &str) -> Value {
    json!({ "resources": { "ebsvolumes": [name] } })
}

fn nothing() -> Value {
    json!({})
}

fn merged(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}

/// An app of the first host, that is run once.
fn app(id: &str, cmd: &str, executor: &Value, more: Value) -> Result<App> {
    let app = json!({
        "id": id, "cmd": cmd, "restart": "never", "constraints": { "hostnames": ["agent-1"] }, "executor": executor,
    });
    Ok(App::from_json(&merged(app, more).to_string())?)
}

/// An app of a task group, whose executor's id is the group's.
fn member(group: &str, id: &str, cmd: &str, more: Value) -> Result<App> {
    app(id, cmd, &json!({ "id": group }), merged(json!({ "group": group }), more))
}

/// A custom executor.
fn executor(trial: &Trial, id: &str, more: Value) -> Value {
    let program =
        trial.cluster.config().binaries.task_executor.as_ref().expect("extvol-task-executor was built");
    merged(json!({ "id": id, "cmd": format!("exec {}", program.display()) }), more)
}

fn finishes(trial: &Trial, app: App) -> Result<()> {
    let ended = trial.run_to_end(app)?;
    assert_eq!(ended.state, TaskState::Finished, "{}: {:?}", ended.task_id, ended.message);
    Ok(())
}

/// Waits until a task runs, or gives up at once when it has ended.
fn runs(trial: &Trial, app: &str) -> Result<TaskEvent> {
    let history = trial.scheduler.wait_for(app, Instant::now() + SOON, |history| {
        history.last().is_some_and(|last| last.state == TaskState::Running || !last.state.is_live())
    })?;
    let last = history.last().cloned().expect("an event");
    assert_eq!(last.state, TaskState::Running, "{app}: {:?}", last.message);
    Ok(last)
}

/// Waits until a task was lost or has failed without volumes: state, reason and text.
fn refused(trial: &Trial, app: &str) -> Result<(TaskState, String, String)> {
    let ended = trial.wait_ended(app, 0)?;
    Ok((ended.state, ended.reason.unwrap_or_default(), ended.message.unwrap_or_default()))
}

/// The lease as it is in etcd, if it is held by the first host.
fn held(trial: &Trial, volume: &str) -> Result<String> {
    let holder = trial.held(volume)?.map(|held| held.holder.to_string());
    assert_eq!(holder.as_deref(), Some("agent-1"), "{volume}");
    Ok(trial.cluster.etcdctl(&["get", &lease_key(volume)?])?)
}

/// The files of this name in the sandboxes of the first host.
fn in_sandboxes(trial: &Trial, name: &str) -> Vec<PathBuf> {
    let below = trial.cluster.host(0).directory().join("mesos/agents/0/work/slaves");
    let output = std::process::Command::new("find").arg(below).args(["-name", name]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(Into::into).collect()
}

fn nothing_is_left(trial: &Trial, volumes: &[&str]) -> Result<()> {
    for volume in volumes {
        trial.wait_free(&format!("ebs/{volume}"))?;
    }
    trial.nothing_is_left()
}

#[test]
fn mesos_an_executors_volume_is_there_for_all_its_tasks_and_given_back_with_it() -> Result<()> {
    let volumes = ["by-labels", "by-variables", "by-docker", "by-own-resource", "by-first-resource"];
    let trial = trial(&volumes)?;
    for (volume, of_executor, of_first, path) in [
        ("by-labels", labels("by-labels"), nothing(), "data"),
        ("by-variables", variables("by-variables"), nothing(), "data"),
        ("by-docker", docker_volume("by-docker"), nothing(), "data"),
        ("by-own-resource", resource("by-own-resource"), nothing(), "ebsvolumes/by-own-resource"),
        // Mesos shows the isolator the resources of the first task with those of the executor.
        ("by-first-resource", nothing(), resource("by-first-resource"), "ebsvolumes/by-first-resource"),
    ] {
        let of = executor(&trial, volume, of_executor);
        let write = format!("mountpoint {path} && echo kept >{path}/file");
        finishes(&trial, app(&format!("{volume}-1"), &write, &of, of_first)?)?;
        // No task of it runs; the executor has the volume.
        let lease = held(&trial, &format!("ebs/{volume}"))?;
        let read = format!("mountpoint {path} && grep -x kept {path}/file");
        finishes(&trial, app(&format!("{volume}-2"), &read, &of, nothing())?)?;
        assert_eq!(held(&trial, &format!("ebs/{volume}"))?, lease);
        trial.scheduler.shutdown_executor(volume)?;
        trial.wait_free(&format!("ebs/{volume}"))?;
        assert!(in_sandboxes(&trial, "file").is_empty());
    }
    let look = "grep -x kept data/file";
    finishes(&trial, once(app_with("check", "agent-2", "by-variables", look)?))?;
    nothing_is_left(&trial, &volumes)
}

#[test]
fn mesos_a_later_task_that_names_a_volume_ends_its_executor_and_starts_nothing() -> Result<()> {
    let trial = trial(&["own", "other"])?;
    for (form, of_task, sentence) in [
        ("label", labels("other"), "has the label extvol.name, which Mesos does not hand to the isolator"),
        (
            "docker",
            docker_volume("other"),
            "DOCKER_VOLUME ebs/other is not mounted: Mesos does not hand the ContainerInfo",
        ),
        (
            "resource",
            resource("other"),
            "brings volume ebs/other by its resources, and its executor's container was started",
        ),
    ] {
        let of = executor(&trial, form, labels("own"));
        let (first, later) = (format!("{form}-first"), format!("{form}-later"));
        trial.run(app(&first, "mountpoint data && touch data/running; exec sleep 1000", &of, nothing())?)?;
        held(&trial, "ebs/own")?;
        trial.scheduler.run(app(&later, &format!("touch {later}"), &of, of_task)?)?;
        for task in [&first, &later] {
            let (state, reason, message) = refused(&trial, task)?;
            println!("{task}: {state} {reason} {message}");
            assert_eq!(
                (state, reason.as_str()),
                (TaskState::Gone, "REASON_CONTAINER_UPDATE_FAILED"),
                "{message}"
            );
            assert!(
                message.starts_with("Failed to update resources for container: Collect failed: task "),
                "{message}"
            );
            assert!(message.contains(sentence), "{message}");
        }
        trial.wait_free("ebs/own")?;
        assert_eq!(in_sandboxes(&trial, &later), Vec::<PathBuf>::new());
        assert_eq!(trial.lease("ebs/other")?, None);
    }
    nothing_is_left(&trial, &["own", "other"])
}

#[test]
fn mesos_a_task_of_a_group_has_its_volume_until_it_ends() -> Result<()> {
    let trial = trial(&["vol-1", "vol-2", "vol-3"])?;
    let long = |id: &str| member("group", id, "exec sleep 1000", nothing());
    let look = "mountpoint data && echo kept >data/file";
    let one = member("group", "variables", look, variables("vol-1"))?;
    let two = member("group", "docker", look, docker_volume("vol-2"))?;
    // They see nothing of each other's.
    let blind = member("group", "blind", "test ! -e data", nothing())?;
    trial.scheduler.run_together(vec![long("long")?, one, two, blind])?;
    for id in ["variables", "docker", "blind"] {
        let ended = trial.wait_ended(id, 0)?;
        assert_eq!(ended.state, TaskState::Finished, "{id}: {:?}", ended.message);
    }
    for volume in ["vol-1", "vol-2"] {
        trial.wait_free(&format!("ebs/{volume}"))?;
    }
    runs(&trial, "long")?;
    assert!(in_sandboxes(&trial, "file").is_empty());
    // A further group of the same executor, and one that its agent refuses.
    let hold = "mountpoint data && touch data/holds && exec sleep 1000";
    let of_group = |id: &str, cmd: &str, more: Value| {
        app(id, cmd, &json!({ "id": "group" }), merged(json!({ "group": id }), more))
    };
    trial.scheduler.run_together(vec![of_group("further", hold, variables("vol-3"))?])?;
    runs(&trial, "further")?;
    held(&trial, "ebs/vol-3")?;
    trial.stop("further")?;
    trial.wait_free("ebs/vol-3")?;
    let labelled = of_group("labelled", "touch labelled", labels("vol-3"))?;
    trial.scheduler.run_together(vec![labelled])?;
    let (state, reason, message) = refused(&trial, "labelled")?;
    assert_eq!((state, reason.as_str()), (TaskState::Gone, "REASON_CONTAINER_UPDATE_FAILED"), "{message}");
    assert!(message.contains("name the volume by the task's variables DVDI_VOLUME_NAME"), "{message}");
    // Its executor may still tell that the container was killed, before it is itself.
    let (state, _, message) = refused(&trial, "long")?;
    assert!(matches!(state, TaskState::Gone | TaskState::Failed), "{state}: {message}");
    assert!(in_sandboxes(&trial, "labelled").is_empty());
    for volume in ["vol-1", "vol-2"] {
        let check = once(app_with(&format!("check-{volume}"), "agent-2", volume, "grep -x kept data/file")?);
        finishes(&trial, check)?;
    }
    nothing_is_left(&trial, &["vol-1", "vol-2", "vol-3"])
}

#[test]
fn mesos_a_group_that_names_a_volume_where_its_tasks_would_not_see_it_is_refused() -> Result<()> {
    let trial = trial(&["vol-1"])?;
    let of_default = "a default executor name volume ebs/vol-1, and its tasks would not see it";
    for (id, of_executor, of_task, sentence) in [
        (
            "task-label",
            nothing(),
            labels("vol-1"),
            "which Mesos does not hand to the isolator for a task of an executor",
        ),
        ("task-resource", nothing(), resource("vol-1"), "vol-1"),
        ("executor-label", labels("vol-1"), nothing(), of_default),
        ("executor-docker", docker_volume("vol-1"), nothing(), of_default),
        ("executor-resource", resource("vol-1"), nothing(), of_default),
    ] {
        let of = merged(json!({ "id": id }), of_executor);
        let started = format!("touch started-{id}");
        let group = json!({ "group": id });
        let beside = format!("{id}-beside");
        let named = app(id, &started, &of, merged(group.clone(), of_task))?;
        trial.scheduler.run_together(vec![named, app(&beside, &started, &of, group)?])?;
        for task in [id, &beside] {
            let (state, reason, message) = refused(&trial, task)?;
            println!("{task}: {state} {reason} {message}");
            assert!(!matches!(state, TaskState::Finished), "{task}: {message}");
            assert!(message.contains(sentence), "{message}");
        }
        assert_eq!(in_sandboxes(&trial, &format!("started-{id}")), Vec::<PathBuf>::new());
        assert_eq!(trial.lease("ebs/vol-1")?, None);
    }
    // A task whose own container is refused is told why, and its group ends.
    let refuses = member(
        "driver",
        "driver",
        "touch started-driver",
        json!({ "env": {
            "DVDI_VOLUME_NAME": "vol-1", "DVDI_VOLUME_DRIVER": "zfs", "DVDI_VOLUME_CONTAINERPATH": "data",
        }}),
    )?;
    trial.scheduler.run_together(vec![member("driver", "beside", "exec sleep 1000", nothing())?, refuses])?;
    let (state, reason, message) = refused(&trial, "driver")?;
    assert_eq!((state, reason.as_str()), (TaskState::Failed, ""), "{message}");
    assert!(message.contains("driver zfs is not served here"), "{message}");
    assert_eq!(trial.wait_ended("beside", 0)?.state, TaskState::Killed);
    assert!(in_sandboxes(&trial, "started-driver").is_empty());
    nothing_is_left(&trial, &["vol-1"])
}

#[test]
fn mesos_tasks_of_a_group_that_share_a_volume_have_one_mount_until_the_last_ends() -> Result<()> {
    let trial = trial(&["vol-1"])?;
    let waits = |n: u32| {
        let cmd = format!(
            "mountpoint data && touch data/here-{n} && until test -e data/end-{n}; do sleep 0.1; done"
        );
        let form = if n == 1 { variables("vol-1") } else { docker_volume("vol-1") };
        member("group", &format!("task-{n}"), &cmd, form)
    };
    trial.scheduler.run_together(vec![waits(1)?, waits(2)?])?;
    for n in [1, 2] {
        runs(&trial, &format!("task-{n}"))?;
        let here = || trial.read(0, "vol-1", &format!("here-{n}")).map_err(|error| error.to_string());
        trial.cluster.wait_for("a task's file on the volume", SOON, here)?;
    }
    let lease = held(&trial, "ebs/vol-1")?;
    assert_eq!(trial.mounted(0)?.len(), 1);
    let end = |n: u32| {
        trial.cluster.host(0).run(&["touch", &format!("/var/lib/rexray/volumes/vol-1/data/end-{n}")])
    };
    end(1)?;
    assert_eq!(trial.wait_ended("task-1", 0)?.state, TaskState::Finished);
    println!("{lease}\n{}", held(&trial, "ebs/vol-1")?);
    assert_eq!(trial.mounted(0)?.len(), 1);
    end(2)?;
    assert_eq!(trial.wait_ended("task-2", 0)?.state, TaskState::Finished);
    nothing_is_left(&trial, &["vol-1"])
}

#[test]
fn mesos_executors_and_their_volumes_outlive_the_agent_and_are_looked_at_again() -> Result<()> {
    let trial = trial(&["own", "away", "stays", "command", "other"])?;
    let of = executor(&trial, "custom", labels("own"));
    trial.run(app("first", "mountpoint data && exec sleep 1000", &of, nothing())?)?;
    let ends = "mountpoint data && until test -e data/end; do sleep 0.1; done";
    let stays = "mountpoint data && exec sleep 1000";
    trial.scheduler.run_together(vec![
        member("group", "away", ends, variables("away"))?,
        member("group", "stays", stays, docker_volume("stays"))?,
    ])?;
    for task in ["away", "stays"] {
        runs(&trial, task)?;
    }
    // Mesos calls the executor of a command task like the task: that is no custom executor.
    let command = merged(
        docker_volume("command"),
        json!({
            "id": "command", "cmd": stays, "restart": "never", "constraints": { "hostnames": ["agent-1"] },
        }),
    );
    trial.run(App::from_json(&command.to_string())?)?;
    let held_now = || ["ebs/own", "ebs/stays", "ebs/command"].map(|volume| held(&trial, volume));
    let leases = held_now().into_iter().collect::<Result<Vec<_>>>()?;
    let host = trial.cluster.host(0);
    host.kill_agent()?;
    // One task ends while nobody looks.
    host.run(&["touch", "/var/lib/rexray/volumes/away/data/end"])?;
    host.start_agent()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    // With what state is its executor's matter: the agent that came back may not be able to tell it how the container ended.
    trial.wait_ended("away", 0)?;
    trial.wait_free("ebs/away")?;
    assert_eq!(held_now().into_iter().collect::<Result<Vec<_>>>()?, leases);
    for task in ["first", "stays", "command"] {
        runs(&trial, task)?;
    }
    // The executor goes on with what it has, and gets no more.
    finishes(&trial, app("second", "mountpoint data", &of, nothing())?)?;
    trial.scheduler.run(app("later", "touch later", &of, resource("other"))?)?;
    for task in ["first", "later"] {
        let (state, reason, message) = refused(&trial, task)?;
        assert_eq!(
            (state, reason.as_str()),
            (TaskState::Gone, "REASON_CONTAINER_UPDATE_FAILED"),
            "{message}"
        );
        assert!(message.contains("brings volume ebs/other by its resources"), "{message}");
    }
    trial.wait_free("ebs/own")?;
    assert!(in_sandboxes(&trial, "later").is_empty());
    for task in ["stays", "command"] {
        runs(&trial, task)?;
        trial.stop(task)?;
    }
    nothing_is_left(&trial, &["own", "away", "stays", "command", "other"])
}
