//! What a task is told on real Mesos that names a volume in a way which nobody serves, or would see or cover what is not
//! its own; and that it sees no more.

use std::path::Path;

use integration::cluster::{Cluster, ClusterConfig, Ended};
use integration::scheduler::{App, TaskState};
use integration::trial::{Result, SOON, Trial, app, app_with, once};
use serde_json::json;

/// What the first agent has said.
fn agent_log(cluster: &Cluster) -> String {
    let log = cluster.logs().join(format!("{}-agent.log", cluster.host(0).name()));
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

fn refused(trial: &Trial, app: App) -> Result<String> {
    let ended = trial.run_to_end(app)?;
    assert_eq!(ended.state, TaskState::Failed, "{:?}", ended.message);
    Ok(ended.message.unwrap_or_default())
}

fn declaring(id: &str, volume: &serde_json::Value) -> Result<App> {
    let job = json!({
        "id": id, "cmd": "echo lost >data/log", "restart": "never", "constraints": { "hostnames": ["agent-1"] },
        "container": volume,
    });
    Ok(App::from_json(&job.to_string())?)
}

#[test]
fn mesos_a_volume_that_nobody_would_mount_is_refused_by_name() -> Result<()> {
    let trial = Trial::start()?;
    let docker = |driver: &str| {
        let volume = json!({ "driver": driver, "name": "vol-1" });
        json!({ "volumes": [{ "container_path": "data", "docker_volume": volume }] })
    };
    let message = refused(&trial, declaring("theirs", &docker("pxd"))?)?;
    assert!(
        message.contains("DOCKER_VOLUME pxd/vol-1 is not mounted: nobody on this agent mounts it"),
        "{message}"
    );

    // A label's key and value forge no line of the agent's log, and no message shows a password.
    let forging = "extvol.a\nE1130 00:00:00.000000     1 slave.cpp:1] forged";
    let message = refused(&trial, once(app("forging", "agent-1", "true", &[(forging, "")])?))?;
    assert!(message.contains("label extvol.a\\nE1130 ") && !message.contains('\n'), "{message}");
    let mut secret = once(app_with("secret", "agent-1", "vol-1", "true")?);
    secret.labels.insert("extvol.options".into(), "password=hunter2,oops".into());
    let message = refused(&trial, secret)?;
    assert!(message.contains("label extvol.options: option 2 is not of the form key=value"), "{message}");
    assert!(!message.contains("hunter2") && !message.contains("oops"), "{message}");
    let log = agent_log(&trial.cluster);
    assert!(!log.lines().any(|line| line.starts_with("E1130 00:00:00.000000")), "{log}");
    assert_eq!(trial.held("ebs/vol-1")?, None);
    trial.nothing_is_left()
}

#[test]
fn mesos_a_task_sees_its_own_volumes_alone_and_without_set_user_id() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    trial.run(app_with("owner", "agent-1", "vol-1", "echo secret >data/file; sleep 1000")?)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| lease.is_some())?;
    let roots = "/var/lib/rexray/volumes";
    // Nor the sockets by which they are mounted: it is root.
    let sockets = "/run/extvol /run/docker/plugins";
    let look = format!(
        "set -e; for one in {roots} {sockets}; do test -d $one; test -z \"$(ls -A $one)\"; ! touch $one/x; done"
    );
    let bystander = trial.run_to_end(once(app("bystander", "agent-1", &look, &[])?))?;
    assert_eq!(bystander.state, TaskState::Finished, "{:?}", bystander.message);

    // With a volume of its own it sees that one.
    let options = ("extvol.options", "sizeMiB=32");
    let own = format!(
        "test -z \"$(ls -A {roots} {sockets} | grep -v :)\" && mountpoint data && grep ' /.*/data ' /proc/self/mountinfo"
    );
    let mut with_path = once(app_with("with-path", "agent-1", "vol-2", &own)?);
    with_path.labels.insert(options.0.into(), options.1.into());
    let ended = trial.run_to_end(with_path)?;
    assert_eq!(ended.state, TaskState::Finished, "{:?}", ended.message);
    // The flags of a read-only bind are those of the host's mount, and read-only.
    let flags = "grep ' [^ ]*/data ro,nosuid,nodev' /proc/self/mountinfo";
    let mut only_reads = once(app_with("only-reads", "agent-1", "vol-2", flags)?);
    only_reads.labels.insert("extvol.mode".into(), "ro".into());
    let ended = trial.run_to_end(only_reads)?;
    assert_eq!(ended.state, TaskState::Finished, "{:?}", ended.message);

    // A path of the host leads to none.
    let path =
        json!({ "host_paths": [{ "container_path": "data", "host_path": format!("{roots}/vol-1/data") }] });
    let message = refused(&trial, declaring("around", &path)?)?;
    assert!(
        message.contains("is not mounted: below /var/lib/rexray/volumes volumes are mounted"),
        "{message}"
    );
    trial.stop("owner")?;
    for volume in ["ebs/vol-1", "ebs/vol-2"] {
        trial.wait_free(volume)?;
    }
    trial.nothing_is_left()
}

/// The fetcher's part, here played by another task of the same user: something else is put in the target's place
/// between the moment it was made and the mount.
#[test]
fn mesos_a_link_in_the_place_of_a_target_covers_nothing() -> Result<()> {
    let trial = Trial::start()?;
    trial.create_volume("vol-1")?;
    // The launch waits for the mount; meanwhile the link comes to where the target is made.
    trial.set_faults(0, &json!({ "methods": { "Mount": { "delay_before_ms": 3000 } } }))?;
    trial.scheduler.run(once(app_with("linked", "agent-1", "vol-1", "touch started")?))?;
    let sandboxes = trial.cluster.host(0).directory().join("mesos/agents/0/work/slaves");
    trial.cluster.wait_for("the target", SOON, || {
        let found = find(&sandboxes, "data");
        let Some(target) = found.first() else { return Err("no target yet".into()) };
        // As tar does it: the empty directory goes, the link comes.
        std::fs::remove_dir(target).map_err(|error| error.to_string())?;
        std::os::unix::fs::symlink("/etc", target).map_err(|error| error.to_string())
    })?;
    let ended = trial.wait_ended("linked", 0)?;
    assert_eq!(ended.state, TaskState::Failed, "{:?}", ended.message);
    assert!(find(&sandboxes, "started").is_empty());
    trial.wait_free("ebs/vol-1")?;
    trial.nothing_is_left()
}

fn find(below: &Path, name: &str) -> Vec<std::path::PathBuf> {
    let output = std::process::Command::new("find").arg(below).args(["-name", name]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(Into::into).collect()
}

/// The flags are in files, as they may be for any agent.
#[test]
fn mesos_an_agent_with_another_launcher_is_refused() -> Result<()> {
    let flags = tempfile::tempdir().expect("a temporary directory");
    let write = |flag: &str, value: &str| std::fs::write(flags.path().join(flag), value).expect("a flag");
    let good = "filesystem/linux,org_extvol_VolumeIsolator";
    write("isolation", good);
    write("launcher", "linux");
    let mut config = ClusterConfig::complete(1, &["ebs"])?;
    for flag in ["isolation", "launcher"] {
        let file = format!("file://{}", flags.path().join(flag).display());
        config.agent_env.insert(format!("MESOS_{}", flag.to_uppercase()), file);
    }
    let cluster = Cluster::start(config)?;
    let host = cluster.host(0);
    host.kill_agent()?;
    write("isolation", "org_extvol_VolumeIsolator");
    write("launcher", "posix");
    let before = agent_log(&cluster).len();
    host.start_service("agent")?;
    let ended = host.wait("agent", SOON)?;
    let said = agent_log(&cluster).split_off(before);
    assert!(matches!(ended, Some(Ended::Code(code)) if code != 0), "{ended:?}: {said}");
    assert!(said.contains("the agent's --launcher is posix; extvol needs --launcher=linux"), "{said}");
    write("isolation", good);
    write("launcher", "linux");
    host.start_agent()?;
    cluster.wait_agent_registered(0, SOON)?;
    Ok(())
}

#[test]
fn mesos_a_volume_is_had_by_the_framework_and_user_that_the_hosts_rules_allow() -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("rules.json");
    let rules = json!({ "rules": [
        { "name": "secret", "deny": ["use"], "volumes": ["ebs/secret-*"] },
        { "name": "ours", "allow": ["use", "create"], "volumes": ["ebs/*"], "frameworks": ["extvol-*"], "roles": ["*"] },
    ] });
    std::fs::write(&file, rules.to_string()).expect("the rules");
    let mut config = ClusterConfig::complete(1, &["ebs"])?;
    config.set_agent_parameter("volume_rules", &file.display().to_string());
    let trial = Trial::with(config, integration::scheduler::SchedulerConfig::default())?;
    trial.create_volume("vol-1")?;
    trial.create_volume("secret-1")?;
    let allowed = trial.run_to_end(once(app_with("allowed", "agent-1", "vol-1", "mountpoint data")?))?;
    assert_eq!(allowed.state, TaskState::Finished, "{:?}", allowed.message);
    let message = refused(&trial, once(app_with("denied", "agent-1", "secret-1", "true")?))?;
    assert!(message.contains("framework \"extvol-scheduler\" ("), "{message}");
    assert!(
        message.contains("may not use volume ebs/secret-1: this host's volume rule \"secret\" denies it"),
        "{message}"
    );
    // They are read again at each launch.
    let others = json!({ "rules": [{ "name": "others", "allow": ["use"], "volumes": ["**"], "frameworks": ["marathon"] }] });
    std::fs::write(&file, others.to_string()).expect("the rules");
    let message = refused(&trial, once(app_with("later", "agent-1", "vol-1", "true")?))?;
    assert!(message.contains("none of this host's volume rules allows it"), "{message}");
    assert_eq!(trial.held("ebs/secret-1")?, None);
    trial.wait_free("ebs/vol-1")?;
    trial.nothing_is_left()
}
