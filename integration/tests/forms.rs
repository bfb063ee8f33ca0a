//! Every form in which a task names a volume, on real Mesos: which kinds of containers are served by it, where the volume appears, and
//! that nothing is left.

use std::path::Path;
use std::time::Duration;

use integration::cluster::{Cluster, ClusterConfig};
use integration::scheduler::{App, SchedulerConfig, TaskState};
use integration::trial::{Result, SOON, Trial, TrialError, app_with, once};
use serde_json::{Value, json};

#[path = "support/image.rs"]
mod image;

/// A volume of a job as Marathon and others send it: source DOCKER_VOLUME.
fn docker_volume(name: &str, path: &str, mode: &str) -> Value {
    json!({
        "container_path": path, "mode": mode,
        "docker_volume": { "driver": "ebs", "name": name, "options": { "sizeMiB": "32" } },
    })
}

fn job(id: &str, cmd: &str, container: &Value) -> Result<App> {
    let job = json!({
        "id": id, "cmd": cmd, "restart": "never", "constraints": { "hostnames": ["agent-1"] }, "container": container,
    });
    Ok(App::from_json(&job.to_string())?)
}

fn finishes(trial: &Trial, app: App) -> Result<()> {
    let ended = trial.run_to_end(app)?;
    assert_eq!(ended.state, TaskState::Finished, "{:?}", ended.message);
    Ok(())
}

fn nothing_is_left(trial: &Trial, volumes: &[&str]) -> Result<()> {
    for volume in volumes {
        trial.wait_free(volume)?;
    }
    trial.nothing_is_left()
}

#[test]
fn mesos_a_docker_volume_of_containerinfo_is_leased_mounted_and_given_back() -> Result<()> {
    let trial = Trial::start()?;
    // It does not exist, and is made with the options.
    let both =
        json!({ "volumes": [docker_volume("vol-1", "data", "RW"), docker_volume("vol-2", "./more/", "RW")] });
    let write =
        "mountpoint data && mountpoint more && echo kept >data/file && echo kept >more/file && sleep 1000";
    trial.run(job("writer", write, &both)?)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| lease.and_then(|lease| lease.held()).is_some())?;
    assert_eq!(trial.attached()?.len(), 2);
    // Another host waits for it, whichever form names it, and has it when it is free.
    let reader = once(app_with("reader", "agent-2", "vol-1", "grep -x kept data/file")?);
    trial.scheduler.run(reader)?;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(trial.held("ebs/vol-1")?.map(|held| held.holder.to_string()).as_deref(), Some("agent-1"));
    trial.stop("writer")?;
    assert_eq!(trial.wait_ended("reader", 0)?.state, TaskState::Finished);
    nothing_is_left(&trial, &["ebs/vol-1", "ebs/vol-2"])?;

    let only_reads = json!({ "volumes": [docker_volume("vol-1", "data", "RO")] });
    let look = "grep -x kept data/file && ! touch data/other && grep ' [^ ]*/data ro,nosuid,nodev' /proc/self/mountinfo";
    finishes(&trial, job("only-reads", look, &only_reads)?)?;

    // Beside a label that says the same, the volume is one; beside one that does not, it is refused with both forms.
    let mut twice =
        job("twice", "mountpoint data", &json!({ "volumes": [docker_volume("vol-1", "data", "RW")] }))?;
    for (key, value) in
        [("name", "vol-1"), ("driver", "ebs"), ("container_path", "data"), ("options", "sizeMiB=32")]
    {
        twice.labels.insert(format!("extvol.{key}"), value.into());
    }
    let mut contradicts = twice.clone();
    contradicts.id = App::from_json(r#"{ "id": "contradicts", "cmd": "true" }"#)?.id;
    finishes(&trial, twice)?;
    contradicts.labels.insert("extvol.container_path".into(), "other".into());
    let message = trial.run_to_end(contradicts)?.message.unwrap_or_default();
    assert!(
        message.contains("labels and DOCKER_VOLUMEs name volume ebs/vol-1 with different settings"),
        "{message}"
    );
    nothing_is_left(&trial, &["ebs/vol-1"])
}

#[test]
fn mesos_a_docker_volume_appears_where_mesos_s_own_isolator_puts_it() -> Result<()> {
    let images = tempfile::tempdir().expect("a temporary directory");
    image::make(images.path());
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.docker_registry = Some(images.path().to_path_buf());
    config.set_agent_parameter("host_paths", "/run");
    let trial = Trial::with(config, SchedulerConfig::default())?;
    for (id, path, file) in
        [("absolute", "/srv/data", "/srv/data/file"), ("relative", "data", "/mnt/mesos/sandbox/data/file")]
    {
        let job = json!({
            "id": id, "args": ["/bin/busy", file], "restart": "never", "constraints": { "hostnames": ["agent-1"] },
            "container": { "image": "busy", "volumes": [docker_volume(id, path, "RW")] },
        });
        finishes(&trial, App::from_json(&job.to_string())?)?;
        trial.wait_free(&format!("ebs/{id}"))?;
        finishes(&trial, once(app_with(&format!("check-{id}"), "agent-2", id, "test -f data/file")?))?;
    }
    // Without an image an absolute path is one of the host, which its operator has to allow.
    let on_host = |path: &str| json!({ "volumes": [docker_volume("on-host", path, "RW")] });
    finishes(
        &trial,
        job("on-host", "mountpoint /run/on-host && touch /run/on-host/file", &on_host("/run/on-host"))?,
    )?;
    assert!(!trial.cluster.host(0).exec(&["test", "-e", "/run/on-host/file"])?.success());
    let message = trial.run_to_end(job("covers", "true", &on_host("/etc"))?)?.message.unwrap_or_default();
    assert!(message.contains("without an image it would cover a path of the host"), "{message}");
    nothing_is_left(&trial, &["ebs/absolute", "ebs/relative", "ebs/on-host"])
}

/// A call of the agent's own API.
fn agent_call(cluster: &Cluster, call: &Value) -> Result<String> {
    let url = format!("{}/api/v1", cluster.agent_url(0));
    let (body, accept) = (call.to_string(), "Accept: application/json");
    let command = [
        "curl",
        "-sS",
        "-f",
        "-X",
        "POST",
        "-H",
        "Content-Type: application/json",
        "-H",
        accept,
        "-d",
        &body,
        &url,
    ];
    Ok(cluster.hub().run(&command)?)
}

/// What became of a container that the agent was told to launch: whether it ended well.
fn container_ends_well(cluster: &Cluster, id: &Value, command: &str, container: &Value) -> Result<bool> {
    let launch = json!({ "container_id": id, "command": { "value": command }, "container": container });
    agent_call(cluster, &json!({ "type": "LAUNCH_CONTAINER", "launch_container": launch }))?;
    let answer =
        agent_call(cluster, &json!({ "type": "WAIT_CONTAINER", "wait_container": { "container_id": id } }))?;
    let answer: Value =
        serde_json::from_str(&answer).map_err(|error| TrialError::Unexpected(error.to_string()))?;
    Ok(answer["wait_container"]["exit_status"] == 0)
}

#[test]
fn mesos_a_docker_volume_of_a_standalone_or_nested_container_is_served() -> Result<()> {
    let trial = Trial::start()?;
    let declares = |name: &str| {
        let parameters = json!({ "parameter": [{ "key": "sizeMiB", "value": "32" }] });
        let docker = json!({ "driver": "ebs", "name": name, "driver_options": parameters });
        let source = json!({ "type": "DOCKER_VOLUME", "docker_volume": docker });
        json!({ "type": "MESOS", "volumes": [{ "container_path": "data", "mode": "RW", "source": source }] })
    };
    let look = "mountpoint data && echo kept >data/file";
    let alone = json!({ "value": "alone" });
    assert!(container_ends_well(&trial.cluster, &alone, look, &declares("vol-1"))?);
    trial.wait_free("ebs/vol-1")?;

    trial.run(once(integration::trial::app("parent", "agent-1", "sleep 1000", &[])?))?;
    let containers = agent_call(&trial.cluster, &json!({ "type": "GET_CONTAINERS" }))?;
    let containers: Value =
        serde_json::from_str(&containers).map_err(|error| TrialError::Unexpected(error.to_string()))?;
    let parent = &containers["get_containers"]["containers"][0]["container_id"];
    let nested = json!({ "value": "nested", "parent": parent });
    assert!(container_ends_well(&trial.cluster, &nested, look, &declares("vol-2"))?);
    trial.wait_free("ebs/vol-2")?;
    trial.stop("parent")?;
    for name in ["vol-1", "vol-2"] {
        let check = format!("check-{name}");
        finishes(&trial, once(app_with(&check, "agent-2", name, "grep -x kept data/file")?))?;
    }
    nothing_is_left(&trial, &["ebs/vol-1", "ebs/vol-2"])
}

/// See jobs/README.md for where each comes from.
#[test]
fn mesos_jobs_as_frameworks_send_them_have_their_volumes() -> Result<()> {
    let mut config = ClusterConfig::complete(1, &["ebs"])?;
    config.set_agent_parameter("drivers", r#"{"ebs": {"aliases": ["rexray"]}}"#);
    let trial = Trial::with(config, SchedulerConfig::default())?;
    // Marathon's is made with its options.
    for name in ["compose-data", "airflow_dags", "airflow_logs"] {
        trial.create_volume(name)?;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/jobs");
    for (job, volumes) in [
        ("marathon", &["marathon-db"][..]),
        ("mesos-compose", &["compose-data"]),
        ("airflow", &["airflow_dags", "airflow_logs"]),
    ] {
        let container = std::fs::read_to_string(folder.join(format!("{job}.json"))).expect("a job");
        let container: Value = serde_json::from_str(&container).expect("JSON");
        let paths = container["volumes"].as_array().expect("volumes").iter();
        let paths = paths.map(|volume| volume["container_path"].as_str().expect("a path"));
        let look: Vec<_> = paths.map(|path| format!("mountpoint {path} && touch {path}/{job}")).collect();
        assert!(
            container_ends_well(&trial.cluster, &json!({ "value": job }), &look.join(" && "), &container)?,
            "{job}"
        );
        for volume in volumes {
            trial.wait_free(&format!("ebs/{volume}"))?;
        }
    }
    trial.nothing_is_left()
}

#[test]
fn mesos_a_set_resource_names_volumes_without_a_label() -> Result<()> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.resources.push_str(";ebsvolumes:{vol-1,vol-2,missing}");
    config.set_agent_parameter("resources", "ebsvolumes:ebs");
    config.set_agent_parameter("link_directory", "/run/foo/rexray");
    let trial = Trial::with(config, SchedulerConfig::default())?;
    for name in ["vol-1", "vol-2"] {
        trial.create_volume(name)?;
    }
    let with = |id: &str, cmd: &str, items: &[&str], labels: Value| -> Result<App> {
        let job = json!({
            "id": id, "cmd": cmd, "restart": "never", "constraints": { "hostnames": ["agent-1"] },
            "resources": { "ebsvolumes": items }, "labels": labels,
        });
        Ok(App::from_json(&job.to_string())?)
    };
    let both = "mountpoint ebsvolumes/vol-1 && mountpoint ebsvolumes/vol-2 && touch ebsvolumes/vol-1/file && sleep 1000";
    trial.run(with("both", both, &["vol-1", "vol-2"], json!({}))?)?;
    trial.wait_lease("ebs/vol-2", "is attached", |lease| {
        lease.is_some_and(|lease| lease.state() == "attached")
    })?;
    // The host has them by name as well, for as long as they are mounted.
    let link = "/run/foo/rexray/ebs/vol-1";
    let host = trial.cluster.host(0);
    trial.cluster.wait_for("the volume's link", SOON, || {
        let found = host.exec(&["test", "-e", &format!("{link}/file")]).map_err(|error| error.to_string())?;
        if found.success() { Ok(()) } else { Err("not there".to_owned()) }
    })?;
    trial.stop("both")?;
    nothing_is_left(&trial, &["ebs/vol-1", "ebs/vol-2"])?;
    trial.cluster.wait_for("the link's end", SOON, || {
        let found = host.exec(&["readlink", link]).map_err(|error| error.to_string())?;
        if found.success() { Err("it is there".to_owned()) } else { Ok(()) }
    })?;
    // A label says where it is to be seen, and need not name the driver again.
    let label = json!({ "extvol.name": "vol-1", "extvol.container_path": "data", "extvol.mode": "ro" });
    finishes(&trial, with("placed", "test -f data/file && ! touch data/other", &["vol-1"], label)?)?;
    let message =
        trial.run_to_end(with("missing", "true", &["missing"], json!({}))?)?.message.unwrap_or_default();
    assert!(message.contains("volume ebs/missing could not be mounted"), "{message}");
    nothing_is_left(&trial, &["ebs/vol-1", "ebs/missing"])
}

#[test]
fn mesos_a_new_volume_is_its_users_where_the_task_asks_for_that() -> Result<()> {
    let trial = Trial::start()?;
    let with = |id: &str, volume: &str, owner: &[(&str, &str)], cmd: &str| -> Result<App> {
        let mut labels = serde_json::Map::new();
        for (key, value) in
            [("name", volume), ("driver", "ebs"), ("container_path", "data")].iter().chain(owner)
        {
            labels.insert(format!("extvol.{key}"), json!(value));
        }
        labels.insert("extvol.options".into(), json!("sizeMiB=32"));
        let job = json!({
            "id": id, "cmd": cmd, "user": "nobody", "restart": "never", "labels": labels,
            "constraints": { "hostnames": ["agent-1"] },
        });
        Ok(App::from_json(&job.to_string())?)
    };
    finishes(
        &trial,
        with("owner", "own", &[("owner", "task")], "id -un | grep -x nobody && touch data/file")?,
    )?;
    trial.wait_free("ebs/own")?;
    // It stays so, also for a task that does not ask.
    finishes(&trial, with("later", "own", &[], "touch data/more")?)?;
    trial.wait_free("ebs/own")?;
    finishes(&trial, with("guest", "roots", &[], "! touch data/file")?)?;
    nothing_is_left(&trial, &["ebs/own", "ebs/roots"])
}
