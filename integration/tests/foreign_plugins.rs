//! Docker volume plugins that others wrote, on real Mesos: volumes of a network file system (easyfuse, which mounts sshfs from a real
//! server), and volumes that are plain directories (buttervolume). See plugins/README.md.

use std::path::{Path, PathBuf};

use integration::cluster::{ClusterConfig, ServiceSpec};
use integration::scheduler::{App, SchedulerConfig, TaskState};
use integration::trial::{Result, SOON, Trial, TrialError, app, once};
use serde_json::{Value, json};

/// Where the server of the network file system listens on the hub.
const SFTP_PORT: u16 = 7022;

fn script(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins").join(name).display().to_string()
}

/// The plugin on each agent's host.
fn plugin(name: &str) -> ServiceSpec {
    let socket = format!("/run/docker/plugins/{name}.sock");
    let ready = ["curl", "-sf", "--unix-socket", &socket, "-X", "POST", "http://plugin/Plugin.Activate"];
    ServiceSpec::new(name, [script(&format!("run-{name}")), format!("{{dir}}/{name}")]).ready_when(ready)
}

fn docker_volume(driver: &str, name: &str, options: &Value) -> Value {
    json!({ "volumes": [{
        "container_path": "data", "mode": "RW",
        "docker_volume": { "driver": driver, "name": name, "options": options },
    }] })
}

fn job(id: &str, host: &str, cmd: &str, container: &Value) -> Result<App> {
    let job = json!({
        "id": id, "cmd": cmd, "restart": "never", "constraints": { "hostnames": [host] }, "container": container,
    });
    Ok(App::from_json(&job.to_string())?)
}

fn finishes(trial: &Trial, app: App) -> Result<()> {
    let ended = trial.run_to_end(app)?;
    assert_eq!(ended.state, TaskState::Finished, "{:?}", ended.message);
    Ok(())
}

/// The host's session as etcd has it.
fn session(trial: &Trial, host: &str) -> Result<Value> {
    let text =
        trial.cluster.etcdctl(&["get", "--print-value-only", &format!("/extvol/v1/sessions/{host}")])?;
    serde_json::from_str(&text).map_err(|error| TrialError::Unexpected(format!("{text:?}: {error}")))
}

/// As a user has it mounted: `data`, through the server that the hub runs.
fn sftp(trial: &Trial, name: &str) -> Result<Value> {
    let directory = trial.cluster.directory().join("sftp");
    let export = directory.join("export").join(name);
    trial.cluster.hub().run(&["mkdir", "-p", &export.display().to_string()])?;
    let file = |name: &str| directory.join(name).display().to_string();
    Ok(json!({
        "device": format!("sshfs#root@{}:{}", trial.cluster.hub().address(), export.display()),
        "o": format!(
            "IdentityFile={},UserKnownHostsFile={},StrictHostKeyChecking=yes,port={SFTP_PORT}",
            file("client"), file("known_hosts"),
        ),
    }))
}

#[test]
fn mesos_a_network_file_system_of_a_foreign_plugin_follows_its_task_and_no_host_shares_it() -> Result<()> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.set_quick_times();
    config.set_agent_parameter("wait_timeout", "2secs");
    config.set_agent_parameter("drivers", r#"{"ebs": {}, "easyfuse": {"storage": "shared"}}"#);
    let serve = [script("run-sshd"), "{cluster}/sftp".into(), "{hub}".into(), SFTP_PORT.to_string()];
    let ready = format!("ssh-keyscan -T 2 -p {SFTP_PORT} {{hub}} 2>/dev/null | grep -q ed25519");
    config.hub_services.push(ServiceSpec::new("sshd", serve).ready_when(["sh", "-c", &ready]));
    config.host_services.push(plugin("easyfuse"));
    let trial = Trial::with(config, SchedulerConfig::default())?;
    let volume = docker_volume("easyfuse", "remote", &sftp(&trial, "remote")?);
    let log: PathBuf = trial.cluster.directory().join("sftp/export/remote/log");

    let writes =
        "trap '' TERM; mountpoint data || exit 1; while :; do date +%s%N >>data/log; sleep 0.1; done";
    trial.run(job("writer", "agent-1", writes, &volume)?)?;
    trial.wait_lease("easyfuse/remote", "is attached", |lease| {
        lease.is_some_and(|l| l.state() == "attached")
    })?;
    // It cannot be shut down, so that silence is no proof against this host.
    let told = session(&trial, "agent-1")?;
    assert!(told["unproved"].as_str().is_some_and(|why| why.contains("easyfuse/remote")), "{told}");
    let refused = trial.run_to_end(job("early", "agent-2", "true", &volume)?)?;
    let message = refused.message.unwrap_or_default();
    assert!(
        message.contains("easyfuse/remote is held by agent-1 (live, since ")
            && message.contains("task writer"),
        "{message}"
    );
    let written = || std::fs::read_to_string(&log).unwrap_or_default();
    trial.cluster.wait_for("the server has what the task wrote", SOON, || {
        match written().lines().count() {
            0..10 => Err(written()),
            _ => Ok(()),
        }
    })?;
    // Its task takes no notice of the revoke: it is killed, the server has all that it wrote, and the lease is free.
    let extvol = integration::cluster::target_directory().join("release/extvol").display().to_string();
    let endpoints = trial.cluster.etcd_endpoints().join(",");
    trial.cluster.hub().run(&[&extvol, "--endpoints", &endpoints, "revoke", "easyfuse/remote", "--yes"])?;
    let ended = trial.wait_ended("writer", 0)?;
    assert_eq!(ended.state, TaskState::Failed, "{:?}", ended.message);
    trial.wait_free("easyfuse/remote")?;
    let before = written();
    finishes(
        &trial,
        job("reader", "agent-2", "mountpoint data && cat data/log >seen && cmp seen data/log", &volume)?,
    )?;
    assert_eq!(written(), before, "nobody writes any more");
    trial.wait_free("easyfuse/remote")?;

    // The plugin says that it has mounted, and the mount is gone: a database is no proof. Who comes finds it out.
    trial.run(job("first", "agent-1", "sleep 1000", &volume)?)?;
    trial.cluster.host(0).run(&["umount", "-l", "/var/lib/rexray/volumes/remote"])?;
    let refused = trial.run_to_end(job("second", "agent-1", "true", &volume)?)?;
    let message = refused.message.unwrap_or_default();
    assert!(message.contains("unmounted behind the keeper's back"), "{message}");
    trial.wait_ended("first", 0)?;
    trial.wait_free("easyfuse/remote")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_directories_of_a_foreign_plugin_are_volumes_by_declaration_and_removed_on_request() -> Result<()> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let rules = directory.path().join("rules.json");
    let all = r#"{"rules": [{"name": "all", "allow": ["use", "create", "remove"], "volumes": ["**"]}]}"#;
    std::fs::write(&rules, all).expect("it is written");
    let start = |drivers: &str| {
        let mut config = ClusterConfig::complete(2, &["ebs"])?;
        config.set_quick_times();
        config.set_agent_parameter("wait_timeout", "2secs");
        config.set_agent_parameter("drivers", drivers);
        let roots = "/var/lib/rexray/volumes,{dir}/buttervolume/pool/volumes";
        config.set_agent_parameter("mount_roots", roots);
        config.set_agent_parameter("volume_rules", &rules.display().to_string());
        config.host_services.push(plugin("buttervolume"));
        Trial::with(config, SchedulerConfig::default())
    };
    // Undeclared they are refused: nothing would be proved of them.
    let trial = start("ebs,buttervolume")?;
    let volume = docker_volume("buttervolume", "vol-1", &json!({}));
    let message =
        trial.run_to_end(job("undeclared", "agent-1", "true", &volume)?)?.message.unwrap_or_default();
    assert!(message.contains("where nothing is mounted; it is the host's own file system"), "{message}");
    trial.wait_free("buttervolume/vol-1")?;
    trial.nothing_is_left()?;
    drop(trial);

    let trial = start(r#"{"ebs": {}, "buttervolume": {"storage": "directory", "remove": true}}"#)?;
    let pool = trial.cluster.host(0).directory().join("buttervolume/pool/volumes").display().to_string();
    let file = format!("{pool}/vol-1/file");
    let look =
        "mountpoint data && grep ' [^ ]*/data rw,nosuid,nodev' /proc/self/mountinfo && echo kept >data/file";
    trial.run(job("writer", "agent-1", &format!("{look} && sleep 1000"), &volume)?)?;
    trial.wait_lease("buttervolume/vol-1", "is attached", |lease| {
        lease.is_some_and(|lease| lease.state() == "attached")
    })?;
    // Beside it, another one of the same pool comes and goes.
    let other = docker_volume("buttervolume", "vol-2", &json!({}));
    finishes(&trial, job("beside", "agent-1", "mountpoint data && touch data/file", &other)?)?;
    trial.wait_free("buttervolume/vol-2")?;
    let message = trial.run_to_end(job("early", "agent-2", "true", &volume)?)?.message.unwrap_or_default();
    assert!(message.contains("is held by agent-1"), "{message}");
    trial.stop("writer")?;
    trial.wait_free("buttervolume/vol-1")?;
    assert_eq!(trial.cluster.host(0).run(&["cat", &file])?, "kept\n");
    finishes(&trial, job("reader", "agent-1", "grep -x kept data/file", &volume)?)?;
    trial.wait_free("buttervolume/vol-1")?;

    // What the keeper knows is lost, and it is killed: who wrote is ended before anybody has the volume again.
    trial.run(job("lost", "agent-1", "while :; do date >>data/log; sleep 0.1; done", &volume)?)?;
    trial.cluster.host(0).kill_agent()?;
    trial.kill_keeper(0)?;
    trial.cluster.host(0).run(&["sh", "-c", "echo broken >/run/extvol/table.json"])?;
    trial.cluster.host(0).start_agent()?;
    trial.wait_ended("lost", 0)?;
    trial.wait_free("buttervolume/vol-1")?;
    let log = format!("{pool}/vol-1/log");
    let read = || trial.cluster.host(0).run(&["cat", &log]);
    let before = read()?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(read()?, before, "nobody writes any more");

    // This plugin removes what is in use: it is asked when nobody is left, and only where the task said so.
    let labels = [
        ("extvol.name", "vol-1"),
        ("extvol.driver", "buttervolume"),
        ("extvol.container_path", "data"),
        ("extvol.remove", "on_exit"),
    ];
    finishes(&trial, once(app("last", "agent-1", "grep -x kept data/file", &labels)?))?;
    trial.wait_free("buttervolume/vol-1")?;
    assert!(!trial.cluster.host(0).exec(&["test", "-e", &format!("{pool}/vol-1")])?.success());
    assert!(trial.cluster.host(0).exec(&["test", "-e", &format!("{pool}/vol-2/file")])?.success());
    trial.nothing_is_left()
}
