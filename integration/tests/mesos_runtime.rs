//! The cluster itself: real Mesos agents on hosts that can be killed and started, and nothing left at the end.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::cluster::{Cluster, ClusterConfig, ClusterError, Result, Signal, target_directory, until};

#[path = "support/image.rs"]
mod image;

const SOON: Duration = Duration::from_secs(60);

#[test]
fn mesos_two_plain_agents_register() -> Result<()> {
    let began = Instant::now();
    let cluster = Cluster::start(ClusterConfig::plain(2)?)?;
    println!("a cluster of 2 started in {:?}", began.elapsed());

    let ids: BTreeSet<_> = [cluster.agent_id(0)?, cluster.agent_id(1)?].into_iter().flatten().collect();
    assert_eq!(ids.len(), 2, "each agent has an id of its own");
    cluster.etcdctl(&["put", "/greeting", "hello"])?;
    assert_eq!(cluster.etcdctl(&["get", "--print-value-only", "/greeting"])?, "hello\n");
    cluster.stop()
}

#[test]
fn mesos_a_host_is_a_machine_of_its_own() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::plain(2)?)?;
    let ask = |index: usize, argv: &[&str]| cluster.host(index).run(argv);
    for question in [
        &["hostname"][..],
        &["cat", "/proc/sys/kernel/random/boot_id"],
        &["cat", "/etc/machine-id"],
        &["ip", "-brief", "address", "show", "eth0"],
    ] {
        assert_ne!(ask(0, question)?, ask(1, question)?, "{question:?}");
    }
    assert_eq!(ask(0, &["hostname"])?, "agent-1\n");
    assert_eq!(ask(0, &["ip", "route", "show", "default"])?, "");
    assert_eq!(ask(0, &["findmnt", "-no", "PROPAGATION", "/var/lib/rexray/volumes"])?, "shared\n");

    let boot = ask(0, &["cat", "/proc/sys/kernel/random/boot_id"])?;
    let machine = ask(0, &["cat", "/etc/machine-id"])?;
    ask(0, &["touch", "/run/gone", "/var/lib/extvol/kept"])?;
    cluster.host(0).kill()?;
    assert!(matches!(ask(0, &["true"]), Err(ClusterError::HostDown { .. })));
    cluster.host(0).start()?;
    assert_ne!(ask(0, &["cat", "/proc/sys/kernel/random/boot_id"])?, boot);
    assert_eq!(ask(0, &["cat", "/etc/machine-id"])?, machine);
    assert_eq!(ask(0, &["ls", "/var/lib/extvol"])?, "kept\n");
    assert!(!cluster.host(0).exec(&["test", "-e", "/run/gone"])?.success());
    assert!(!cluster.host(1).exec(&["test", "-e", "/var/lib/extvol/kept"])?.success());
    cluster.stop()
}

#[test]
fn mesos_an_agent_keeps_its_id_over_a_kill() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::plain(2)?)?;
    let id = cluster.wait_agent_registered(0, SOON)?;
    cluster.host(0).kill_agent()?;
    cluster.wait_agent_gone(0, SOON)?;
    cluster.host(0).start_agent()?;
    assert_eq!(cluster.wait_agent_registered(0, SOON)?, id);

    // A stopped agent says nothing, and the master finds out by its pings.
    cluster.host(1).signal("agent", Signal::STOP)?;
    cluster.wait_agent_gone(1, SOON)?;
    assert!(cluster.agent_id(0)?.is_some(), "the other agent is not concerned");
    cluster.stop()
}

#[test]
fn mesos_a_killed_host_is_dead_and_starts_again() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::plain(2)?)?;
    let id = cluster.wait_agent_registered(0, SOON)?;
    let host = cluster.host(0);
    let pids = fs::read_link(format!("/proc/{}/ns/pid", host.init_pid()?)).expect("the init runs");
    host.run(&["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])?;
    assert!(!processes_in(&pids).is_empty());

    let began = Instant::now();
    host.kill()?;
    println!("a host died in {:?}", began.elapsed());
    assert!(processes_in(&pids).is_empty(), "nothing runs on a dead host");
    cluster.wait_agent_gone(0, SOON)?;
    host.start()?;
    assert_eq!(cluster.wait_agent_registered(0, SOON)?, id);
    cluster.stop()
}

#[test]
fn mesos_a_host_without_its_cable_is_lost_and_comes_back() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::plain(2)?)?;
    cluster.host(1).set_link(false)?;
    cluster.wait_agent_gone(1, SOON)?;
    cluster.host(1).set_link(true)?;
    cluster.wait_agent_registered(1, SOON)?;
    cluster.stop()
}

#[test]
fn mesos_the_master_remembers_its_agents_over_a_kill() -> Result<()> {
    let mut config = ClusterConfig::plain(1)?;
    config.etcd_members = 3;
    config.standby_master = true;
    let cluster = Cluster::start(config)?;
    let id = cluster.wait_agent_registered(0, SOON)?;
    cluster.hub().kill_service("master")?;
    cluster.hub().start_service("master")?;
    cluster.wait_master_leading()?;
    assert_eq!(cluster.wait_agent_registered(0, SOON)?, id);
    let standby = cluster.hub().run(&[
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "http://192.0.2.1:5060/master/slaves",
    ])?;
    assert_eq!(standby, "307");
    cluster.stop()
}

#[test]
fn mesos_nothing_is_left_of_a_dropped_cluster() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::plain(2)?)?;
    let id = cluster.id().to_owned();
    leave_a_mounted_volume(&cluster)?;
    assert!(!traces(&id).is_empty());
    drop(cluster);
    assert_eq!(traces(&id), Vec::<String>::new());
    Ok(())
}

#[test]
fn mesos_nothing_is_left_of_a_cluster_whose_harness_panics() -> Result<()> {
    let config = ClusterConfig::plain(1)?;
    let (tell, told) = std::sync::mpsc::channel();
    let harness = std::thread::spawn(move || {
        let cluster = Cluster::start(config).expect("a cluster starts");
        leave_a_mounted_volume(&cluster).expect("a volume mounts");
        tell.send((cluster.id().to_owned(), cluster.logs())).expect("the test listens");
        panic!("a test fails");
    });
    assert!(harness.join().is_err());
    let (id, logs) = told.recv().expect("the cluster started");
    assert!(logs.join("hub-master.log").exists(), "a failure's logs are kept");
    fs::remove_dir_all(logs.parent().expect("logs are in the cluster's directory")).expect("they are ours");
    assert_eq!(traces(&id), Vec::<String>::new());
    Ok(())
}

#[test]
fn mesos_nothing_is_left_when_the_harness_is_killed() -> Result<()> {
    const ROLE: &str = "EXTVOL_TEST_HARNESS";
    if std::env::var_os(ROLE).is_some() {
        let cluster = Cluster::start(ClusterConfig::plain(1)?)?;
        leave_a_mounted_volume(&cluster)?;
        println!("\ncluster {}", cluster.id());
        loop {
            std::thread::park();
        }
    }
    let mut harness = Command::new(std::env::current_exe().expect("a test is a program"))
        .args(["--exact", "mesos_nothing_is_left_when_the_harness_is_killed", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test runs once more");
    let output = BufReader::new(harness.stdout.take().expect("it is piped"));
    let id = output
        .lines()
        .map_while(std::result::Result::ok)
        .find_map(|line| line.strip_prefix("cluster ").map(str::to_owned));
    let id = id.expect("the cluster started");
    harness.kill().expect("it is our child");
    harness.wait().expect("it is our child");

    let directory = target_directory().join("clusters").join(&id);
    until("the end of the cluster", SOON, &directory.join("logs"), || {
        let left: Vec<_> = traces(&id).into_iter().filter(|trace| !trace.starts_with("file")).collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    })?;
    let left: Vec<_> =
        fs::read_dir(&directory).expect("logs are kept").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["logs"]);
    fs::remove_dir_all(&directory).expect("it is ours");
    Ok(())
}

#[test]
fn mesos_a_container_outlives_its_agent_but_not_its_host() -> Result<()> {
    let cluster = Cluster::start(ClusterConfig::plain(1)?)?;
    let host = cluster.host(0);
    let cgroup = format!("/sys/fs/cgroup/freezer/extvol_{}_agent-1/one", cluster.id());
    let running = || host.exec(&["cat", &format!("{cgroup}/cgroup.procs")]).map(|output| output.stdout);
    launch(&cluster, r#"{"container_id":{"value":"one"},"command":{"value":"sleep 1000"}}"#)?;
    assert_ne!(running()?, "");
    host.kill_agent()?;
    assert_ne!(running()?, "");

    // A frozen container dies with its host, too.
    host.run(&["sh", "-c", &format!("echo FROZEN >{cgroup}/freezer.state")])?;
    host.kill()?;
    host.start()?;
    assert_eq!(running()?, "");
    assert!(!host.exec(&["test", "-e", &cgroup])?.success());
    cluster.stop()
}

#[test]
fn mesos_a_container_with_an_image_runs() -> Result<()> {
    let images = tempfile::tempdir().expect("a temporary directory");
    image::make(images.path());
    let mut config = ClusterConfig::plain(1)?;
    config.docker_registry = Some(images.path().to_path_buf());
    let cluster = Cluster::start(config)?;
    let written = cluster.directory().join("written");
    fs::create_dir(&written).expect("the cluster's directory");
    let container = format!(
        r#"{{"container_id":{{"value":"two"}},
             "command":{{"shell":false,"value":"/bin/busy","arguments":["busy","/out/file"]}},
             "container":{{"type":"MESOS",
               "mesos":{{"image":{{"type":"DOCKER","docker":{{"name":"busy"}}}}}},
               "volumes":[{{"mode":"RW","container_path":"/out","host_path":"{}"}}]}}}}"#,
        written.display()
    );
    launch(&cluster, &container)?;
    cluster.wait_for("the container's file", SOON, || {
        if written.join("file").exists() { Ok(()) } else { Err(cluster.log_tails(20)) }
    })?;
    cluster.stop()
}

/// Starts a standalone container on the first agent.
fn launch(cluster: &Cluster, container: &str) -> Result<()> {
    let call = format!(r#"{{"type":"LAUNCH_CONTAINER","launch_container":{container}}}"#);
    let url = format!("{}/api/v1", cluster.agent_url(0));
    let type_of = "Content-Type: application/json";
    cluster.hub().run(&["curl", "-sS", "--fail-with-body", "-H", type_of, "-d", &call, &url]).map(drop)
}

/// A volume as the plugin would leave it on a host that dies: mounted, from a loop device, held open.
fn leave_a_mounted_volume(cluster: &Cluster) -> Result<()> {
    let image = cluster.directory().join("volume.img");
    let script = format!(
        "truncate -s 64M {image} && mkfs.ext4 -q {image} && mkdir /var/lib/rexray/volumes/v &&
         mount -o loop {image} /var/lib/rexray/volumes/v &&
         (setsid sleep 1000 >/var/lib/rexray/volumes/v/open 2>&1 &)",
        image = image.display()
    );
    cluster.host(0).run(&["sh", "-c", &script]).map(drop)
}

/// Everything on this machine that names the cluster: processes, mounts, loop devices, cgroups, files.
fn traces(id: &str) -> Vec<String> {
    let mut traces = Vec::new();
    let mut lines = |what: &str, text: &str| {
        traces.extend(text.lines().filter(|line| line.contains(id)).map(|line| format!("{what}: {line}")));
    };
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("a Debian program");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    lines("process", &output("ps", &["-eo", "pid,args"]));
    lines("namespace", &output("lsns", &["--output", "NS,TYPE,NPROCS,PID,COMMAND", "--notruncate"]));
    lines("loop device", &output("losetup", &["--all"]));
    lines("mount", &fs::read_to_string("/proc/self/mounts").expect("procfs"));
    lines("cgroup", &output("find", &["/sys/fs/cgroup", "-type", "d"]));
    let clusters = target_directory().join("clusters");
    lines("file", &output("find", &[&clusters.display().to_string(), "-maxdepth", "1"]));
    traces
}

fn processes_in(pid_namespace: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("procfs").flatten();
    let inside = entries.filter(|entry| {
        fs::read_link(entry.path().join("ns/pid")).is_ok_and(|namespace| namespace == pid_namespace)
    });
    inside.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
