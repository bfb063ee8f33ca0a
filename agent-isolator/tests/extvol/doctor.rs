//! `extvol doctor` against what is well, and what is not.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;

use serde_json::Value;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::protocol::exchange::{Key, Record, Storm};
use shared::store::{LeaseStore, Transaction};
use testing::{EtcdCluster, SOON, wait_until};

use crate::parameters::Keeper;
use crate::program::{Answer, Installation, holder, run, session};

/// Writes until etcd is full.
pub(crate) async fn fill(installation: &Installation) {
    let store = EtcdStore::new(EtcdConfig::new(installation.etcd.endpoints())).unwrap();
    let begin = std::time::Instant::now();
    loop {
        assert!(begin.elapsed() < SOON, "the quota is never reached");
        let write = Transaction::new().overwrite("/fill", vec![b'x'; 400_000]);
        if store.commit(write).await.is_err() {
            break;
        }
    }
    wait_until("the alarm is raised", || installation.etcd.etcdctl(&["alarm", "list"]).contains("NOSPACE"));
}

/// All lines of a level.
fn lines(answer: &Answer, level: &str) -> Vec<String> {
    let wanted = format!("{level:<8} ");
    answer.out.lines().filter_map(|line| line.strip_prefix(&wanted)).map(str::to_owned).collect()
}

#[track_caller]
fn assert_line(answer: &Answer, level: &str, words: &str) {
    assert!(lines(answer, level).iter().any(|line| line.contains(words)), "{words}: {answer:#?}");
}

#[tokio::test]
async fn etcd_of_three_members_is_well_and_one_that_is_killed_is_named() {
    let mut installation = Installation::found_in(EtcdCluster::start(3));
    installation.put(&Key::Session(holder("new-1")), &Record::Session(session())).await;
    let doctor = |installation: &Installation| {
        installation.run(&["doctor", "--run_directory=/nonexistent", "--state_directory=/nonexistent"])
    };
    let answer = doctor(&installation);
    assert_eq!((answer.code, answer.error.as_str()), (0, ""), "{answer:#?}");
    assert_eq!(lines(&answer, "FAIL").len() + lines(&answer, "warning").len(), 0, "{answer:#?}");
    for words in
        ["answers a linearizable read", ", the leader", "no alarm", "bears the loss of 1", "installation c1"]
    {
        assert_line(&answer, "ok", words);
    }
    assert_line(&answer, "ok", "of 2048 MiB, ");
    assert_line(&answer, "note", "was never compacted, and with");
    assert_line(&answer, "note", "--election-timeout of every member of etcd is at most 1500 ms");
    assert_line(&answer, "note", "no keeper was ever started on this host");
    let revision = installation.all().await.revision;
    installation.etcd.etcdctl(&["compact", &revision.to_string()]);
    assert_line(
        &doctor(&installation),
        "ok",
        &format!("history begins at revision {revision}, 0 revisions ago"),
    );

    let gone = installation.etcd.endpoint(1);
    installation.etcd.kill(1);
    // A leader that was killed is followed by another one first.
    let left = [installation.etcd.endpoint(0), installation.etcd.endpoint(2)];
    wait_until("there is a leader again", || {
        let words = ["--endpoints", &left.join(","), "sessions"];
        run(&words).code == 0
    });
    let answer = doctor(&installation);
    assert_eq!(answer.code, 1, "{answer:#?}");
    assert_line(&answer, "FAIL", &format!("etcd at {gone} does not answer: "));
    assert_line(&answer, "warning", "answered at none of etcd_endpoints: m1");
    assert_line(&answer, "ok", "installation c1");
    assert!(answer.error.contains("1 checks failed, and 1 are warnings"), "{answer:#?}");

    installation.etcd.kill(2);
    let answer = doctor(&installation);
    assert_eq!(answer.code, 1, "{answer:#?}");
    assert_line(&answer, "FAIL", "the records cannot be read: ");
    // The one that is left answers, and is told apart from those that are not there.
    let absent = lines(&answer, "FAIL").iter().filter(|line| line.contains(" does not answer: ")).count();
    let left = installation.etcd.endpoint(0);
    let alone = lines(&answer, "FAIL").iter().filter(|line| line.contains(&format!("at {left} "))).count();
    assert_eq!((absent, alone), (2, 1), "{answer:#?}");
}

#[test]
fn etcd_that_was_never_there_fails_in_each_line_and_ends() {
    let endpoint = format!("127.0.0.1:{}", testing::free_port());
    let nowhere = ["--run_directory=/nonexistent", "--state_directory=/nonexistent"];
    let answer = run(&["--endpoints", &endpoint, nowhere[0], nowhere[1], "doctor", "-o", "json"]);
    assert_eq!(answer.code, 1);
    let checks: Value = serde_json::from_str(&answer.out).unwrap();
    let failed = checks.as_array().unwrap().iter().filter(|check| check["level"] == "fail").count();
    assert_eq!(failed, 2, "{checks:#}");
}

#[tokio::test]
async fn etcd_that_is_full_and_a_raised_storm_fail() {
    let etcd = EtcdCluster::start_with(1, &["--quota-backend-bytes", "2000000"]);
    let installation = Installation::found_in(etcd);
    installation.put(&Key::Storm, &Record::Storm(Storm::Raised)).await;
    fill(&installation).await;
    let answer =
        installation.run(&["doctor", "--run_directory=/nonexistent", "--state_directory=/nonexistent"]);
    assert_eq!(answer.code, 1);
    assert_line(&answer, "FAIL", "the alarm NOSPACE is raised");
    assert_line(&answer, "FAIL", "the storm guard is raised since 2026-01-02T03:05:06Z");
    assert_line(&answer, "warning", "etcd has a single member");
    assert_line(&answer, "warning", "MiB of 2 MiB, ");
}

#[test]
fn etcd_whose_authentication_is_on_is_not_taken_for_one_without_a_quorum() {
    let installation = Installation::found();
    let etcd = &installation.etcd;
    etcd.etcdctl(&["user", "add", "root:secret"]);
    etcd.etcdctl(&["user", "grant-role", "root", "root"]);
    etcd.etcdctl(&["auth", "enable"]);
    let answer =
        installation.run(&["doctor", "--run_directory=/nonexistent", "--state_directory=/nonexistent"]);
    assert_eq!(answer.code, 1, "{answer:#?}");
    assert_line(&answer, "FAIL", "answers, and does not let this program read: ");
    assert_line(&answer, "FAIL", "`etcdctl auth disable`");
    assert!(!answer.out.contains("quorum"), "{answer:#?}");
}

/// Runs the doctor in a mount namespace of its own, where all mounts are private or shared.
fn in_namespace(propagation: &str, installation: &Installation, more: &[&str]) -> Answer {
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", propagation, env!("CARGO_BIN_EXE_extvol")])
        .args(["--endpoints", &installation.etcd.endpoint(0), "doctor", "--agent"])
        .args(more)
        .output()
        .unwrap();
    output.into()
}

#[test]
fn root_a_private_mount_root_fails_with_the_command_that_mends_it() {
    let installation = Installation::found();
    let root = tempfile::tempdir().unwrap();
    let mode = |mode| {
        std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(0o700);
    let parameter = format!("--mount_roots={}", root.path().display());
    let answer = in_namespace("private", &installation, &[&parameter]);
    assert_line(&answer, "FAIL", "is private: an unmount on this host would leave copies");
    assert_line(&answer, "FAIL", "mend it with `mount --make-shared /");
    let answer = in_namespace("shared", &installation, &[&parameter]);
    assert_line(
        &answer,
        "ok",
        &format!("the mount root {} is shared, and root's alone", root.path().display()),
    );
    mode(0o755);
    let answer = in_namespace("shared", &installation, &[&parameter]);
    assert_line(&answer, "warning", "is shared, and open to others (mode 0755) - `chmod 0700 ");
    let answer = in_namespace("shared", &installation, &["--mount_roots=/nonexistent/a"]);
    assert_line(&answer, "warning", "the mount root /nonexistent/a does not exist yet");
}

fn with_plugins(sockets: &Path, installation: &Installation, more: &[&str]) -> Answer {
    run_with_plugins(sockets, installation, &[&["doctor"], more].concat())
}

/// Runs the program where `sockets` is the directory of the plugins' sockets, and nothing of the host is touched.
pub(crate) fn run_with_plugins(sockets: &Path, installation: &Installation, words: &[&str]) -> Answer {
    let script = "mount -t tmpfs none /run && mkdir -p /run/docker/plugins \
                  && mount --bind \"$1\" /run/docker/plugins && shift && exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(sockets)
        .args([env!("CARGO_BIN_EXE_extvol"), "--endpoints", &installation.etcd.endpoint(0)])
        .args(["--run_directory=/nonexistent", "--state_directory=/nonexistent"])
        .args(words)
        .output()
        .unwrap();
    output.into()
}

/// Answers each call, by its last word, with the next of these; the request lines.
pub(crate) fn plugin(socket: &Path, answers: Vec<(&'static str, &'static str)>) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for (call, body) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            assert!(first.starts_with("POST /") && first.ends_with(&format!(".{call} HTTP/1.1")), "{first}");
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
        }
    })
}

const DRIVER: (&str, &str) = ("Activate", r#"{"Implements":["VolumeDriver"]}"#);
const GLOBAL: (&str, &str) = ("Capabilities", r#"{"Capabilities":{"Scope":"global"}}"#);

#[test]
fn root_a_plugin_that_is_dead_missing_or_no_volume_driver_fails_and_one_that_answers_does_not() {
    let installation = Installation::found();
    let (directory, name) = (tempfile::tempdir().unwrap(), "a-plugin");
    let doctor = || with_plugins(directory.path(), &installation, &["--plugins", name]);
    assert_line(&doctor(), "FAIL", &format!("no Docker volume plugin named {name} was found"));
    let socket = directory.path().join(format!("{name}.sock"));
    for (answer, level, words) in [
        (DRIVER, "ok", "the volume plugin a-plugin answers"),
        (("Activate", r#"{"Implements":["NetworkDriver"]}"#), "FAIL", "does not implement VolumeDriver"),
    ] {
        let served = plugin(&socket, vec![answer]);
        assert_line(&doctor(), level, words);
        served.join().unwrap();
        std::fs::remove_file(&socket).unwrap();
    }
    // Nobody listens any more.
    drop(UnixListener::bind(&socket).unwrap());
    let answer = doctor();
    assert_line(&answer, "FAIL", "could not be reached");
    assert_line(&answer, "FAIL", "which was asked for - start it");
}

#[test]
fn root_each_driver_of_an_agents_host_is_asked_whether_it_takes_volumes_away() {
    let installation = Installation::found();
    let directory = tempfile::tempdir().unwrap();
    let socket = |name: &str| directory.path().join(format!("{name}.sock"));
    let doctor = |more: &[&str]| {
        let more = if more.is_empty() { &["--drivers=ebs"] } else { more };
        with_plugins(directory.path(), &installation, &[&["--agent"][..], more].concat())
    };
    let taken = "scope global), and no preempt_plugin takes them away";
    // Its storage attaches, and nobody takes volumes away.
    let served = plugin(&socket("ebs"), vec![DRIVER, GLOBAL, DRIVER, DRIVER, DRIVER]);
    let answer = doctor(&[]);
    assert_line(&answer, "ok", "the volume plugin ebs answers");
    assert_line(&answer, "warning", taken);
    // It does not attach; it has a plugin that takes away, which does not answer, and then does.
    let answer = doctor(&[r#"--drivers={"ebs": {"storage": "shared"}}"#]);
    assert!(!answer.out.contains(taken), "{answer:#?}");
    let answer = doctor(&[r#"--drivers={"ebs": {"preempt_plugin": "ebs-p"}}"#]);
    assert_line(
        &answer,
        "FAIL",
        "no volume of ebs follows from a host that is lost - start it, or see its log",
    );
    let second = plugin(&socket("ebs-p"), vec![DRIVER]);
    let answer = doctor(&[r#"--drivers={"ebs": {"preempt_plugin": "ebs-p"}}"#]);
    assert_line(
        &answer,
        "ok",
        "the plugin ebs-p, which takes volumes of ebs away from hosts that are lost, answers",
    );
    for served in [served, second] {
        served.join().unwrap();
    }
    // The driver is where its preempting plugin is: every mount would take a volume away.
    std::fs::remove_file(socket("ebs-p")).unwrap();
    std::os::unix::fs::symlink("ebs.sock", socket("ebs-p")).unwrap();
    let answer = doctor(&[r#"--drivers={"ebs": {"preempt_plugin": "ebs-p"}}"#]);
    assert_line(
        &answer,
        "FAIL",
        "the plugin ebs at /run/docker/plugins/ebs.sock is the plugin ebs-p as well",
    );
    assert_line(&answer, "FAIL", "a plugin that takes volumes away needs a socket of its own");
}

#[test]
fn etcd_a_keeper_that_runs_is_well_and_other_parameters_than_its_own_are_found() {
    let installation = Installation::found();
    let keeper = Keeper::start(&installation);
    let config = keeper.directory.path().join("keeper.json").display().to_string();
    let answer = run(&["--config", &config, "doctor"]);
    assert_line(&answer, "ok", "the keeper answers at ");
    assert_line(&answer, "warning", "does not say which plugins take volumes away");
    assert_line(&answer, "ok", "this host's session (k-1, epoch 1) is live");
    assert_line(&answer, "ok", "the names of drivers and volumes here are those of the installation");
    assert_line(&answer, "ok", "the times of 1 sessions keep the rules");
    // Given other parameters than it runs with.
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("}", r#","drivers":{"ebs":{"aliases":["rexray"]}}}"#)).unwrap();
    let answer = run(&["--config", &config, "doctor"]);
    assert_line(
        &answer,
        "FAIL",
        "refuses: the module's parameter `drivers` is `{\"ebs\":{\"aliases\":[\"rexray\"]}}`",
    );
    assert_line(&answer, "FAIL", "differ from those that etcd has for all hosts");
    // It changes nothing.
    let before = installation.etcd.etcdctl(&["get", "", "--prefix", "-w", "json"]);
    let _ = run(&[&keeper.run_directory(), "doctor"]);
    let values = |text: &str| serde_json::from_str::<Value>(text).unwrap()["kvs"].clone();
    let after = installation.etcd.etcdctl(&["get", "", "--prefix", "-w", "json"]);
    assert_eq!(values(&before), values(&after));
}

#[test]
fn etcd_a_keeper_says_when_it_starts_which_of_its_drivers_do_not_work() {
    let installation = Installation::found();
    let keeper = Keeper::start(&installation);
    let said = "no Docker volume plugin named rexray was found";
    wait_until("it has asked the plugin", || keeper.log().contains(said));
    let log = keeper.log();
    assert!(log.contains("and this host serves the driver rexray; start it, or see its log"), "{log}");
}

#[test]
fn etcd_a_keeper_that_ended_is_missed() {
    let installation = Installation::found();
    let mut keeper = Keeper::start(&installation);
    keeper.kill();
    let config = keeper.directory.path().join("keeper.json").display().to_string();
    let answer = run(&["--config", &config, "doctor"]);
    assert_eq!(answer.code, 1);
    assert_line(&answer, "FAIL", "and none holds ");
    assert_line(&answer, "FAIL", "`systemctl start extvol-keeper`");
}
