//! A cluster that stays up without a test around it: `extvol-cluster up` leaves one behind, and the program's
//! other commands talk to it.
//!
//! The process that holds the cluster listens on `target/clusters/control.sock`; a request is one line of
//! words, the answer a line `ok` or `failed` and text up to the end. There is one such cluster at a time: its
//! holder has locked `target/clusters/control.lock`. Killing the holder ends the cluster, as for a test.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use super::binaries::target_directory;
use super::error::{ClusterError, Doing, Result};
use super::{Cluster, ClusterConfig, Host};

fn file(name: &str) -> PathBuf {
    target_directory().join("clusters").join(name)
}

/// Where the holder of the cluster says what happens to it.
#[must_use]
pub fn holder_log() -> PathBuf {
    file("control.log")
}

/// Starts a cluster and serves requests about it until one says `down`.
///
/// # Errors
/// When there is such a cluster already, or this one does not start.
pub fn hold(config: ClusterConfig) -> Result<()> {
    let clusters = file("");
    fs::create_dir_all(&clusters).doing_with("create", &clusters)?;
    let lock = file("control.lock");
    let lock_file = File::create(&lock).doing_with("open", &lock)?;
    flock(&lock_file, FlockOperation::NonBlockingLockExclusive).map_err(|_held| ClusterError::Session {
        message: "a cluster is up already; `extvol-cluster down` ends it".to_owned(),
    })?;
    let cluster = Cluster::start(config)?;
    let socket = file("control.sock");
    // A holder that was killed leaves its socket; the lock says that it is nobody's.
    let _nothing_there = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).doing_with("listen on", &socket)?;
    for connection in listener.incoming() {
        let connection = connection.doing_with("accept on", &socket)?;
        match serve(&cluster, &connection) {
            Ok(Next::Serve) => {}
            Ok(Next::End) => {
                // Answered when all is gone.
                let ended = cluster.stop();
                let removed = fs::remove_file(&socket).doing_with("remove", &socket);
                let _client_left = answer(&connection, ended.map(|()| String::new()));
                return removed;
            }
            Err(error) => eprintln!("a client left: {error}"),
        }
    }
    Ok(())
}

enum Next {
    Serve,
    End,
}

fn serve(cluster: &Cluster, connection: &UnixStream) -> io::Result<Next> {
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    let words: Vec<_> = line.split_whitespace().collect();
    if words == ["down"] {
        return Ok(Next::End);
    }
    answer(connection, handle(cluster, &words))?;
    Ok(Next::Serve)
}

fn answer(mut connection: &UnixStream, outcome: Result<String>) -> io::Result<()> {
    match outcome {
        Ok(text) => write!(connection, "ok\n{text}"),
        Err(error) => write!(connection, "failed\n{}", with_causes(&error)),
    }
}

fn handle(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let host = |name: &str| -> Result<&Host> {
        let all = || std::iter::once(cluster.hub()).chain(cluster.hosts());
        let names = || all().map(Host::name).collect::<Vec<_>>().join(", ");
        all()
            .find(|host| host.name() == name)
            .ok_or_else(|| refused(format!("no host {name}, only {}", names())))
    };
    let agent_host = |name: &str| {
        host(name).and_then(|host| match host.name() {
            "hub" => Err(refused("the hub has neither power switch nor cable".to_owned())),
            _ => Ok(host),
        })
    };
    let done = |()| String::new();
    match *words {
        ["describe"] => Ok(describe(cluster)),
        ["init", name] => host(name)?.init_pid().map(|pid| pid.to_string()),
        ["kill-host", name] => agent_host(name)?.kill().map(done),
        ["start-host", name] => agent_host(name)?.start().map(done),
        ["cable", name, "out"] => agent_host(name)?.set_link(false).map(done),
        ["cable", name, "in"] => agent_host(name)?.set_link(true).map(done),
        ["kill", name, service] => host(name)?.kill_service(service).map(done),
        ["start", name, service] => host(name)?.start_service(service).map(|pid| pid.to_string()),
        _ => Err(refused(format!("unknown request {words:?}"))),
    }
}

fn describe(cluster: &Cluster) -> String {
    let hosts: Vec<_> =
        cluster.hosts().iter().map(|host| format!("{} ({})", host.name(), host.address())).collect();
    let first = cluster.hosts().first().map_or("hub", Host::name);
    let (own, beside) = programs();
    let mut text = format!(
        "The cluster {id} is up: hub ({hub}) with etcd and the master; {hosts}. Play with it:

  {own} exec {first} bash                        # a shell on a host
  {own} exec hub curl -s {master}/master/slaves
  {own} kill {first} agent                       # start {first} agent
  {own} kill-host {first}                        # start-host {first}
  {own} cable {first} out                        # cable {first} in
  {own} down                                     # or: make cluster-down
",
        id = cluster.id(),
        hub = cluster.hub().address(),
        hosts = hosts.join(", "),
        master = cluster.master_url(),
    );
    if cluster.config.modules.is_some() {
        let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/counter.json");
        let _infallible = write!(
            text,
            "
A task with a volume (in a terminal of its own; Ctrl-C ends it), its lease, and the keeper's log:

  {own} exec hub {scheduler} --master {master} {example}
  {own} exec hub env ETCDCTL_API=3 etcdctl --endpoints={etcd} get --prefix /extvol/v1/
  {own} exec {first} tail -f /run/extvol/keeper.log
",
            scheduler = beside.join("extvol-scheduler").display(),
            master = cluster.master_url(),
            example = example.display(),
            etcd = cluster.etcd_endpoints().join(","),
        );
    }
    let _infallible = write!(text, "\nLogs of all services: {}\n", cluster.logs().display());
    text
}

/// How a person calls `extvol-cluster` from where it was started, and where the other programs are.
fn programs() -> (String, PathBuf) {
    let own = std::env::current_exe().unwrap_or_else(|_| "extvol-cluster".into());
    let beside = own.parent().map(PathBuf::from).unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_default();
    (own.strip_prefix(&here).unwrap_or(&own).display().to_string(), beside)
}

fn refused(message: String) -> ClusterError {
    ClusterError::Session { message }
}

/// Asks the cluster that is up.
///
/// # Errors
/// When none is up, or it cannot do what was asked.
pub fn ask(words: &[&str]) -> Result<String> {
    let none = |_| refused("no cluster is up; `extvol-cluster up` starts one".to_owned());
    let mut connection = UnixStream::connect(file("control.sock")).map_err(none)?;
    let mut talk = || {
        writeln!(connection, "{}", words.join(" "))?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok::<_, io::Error>(answer)
    };
    let answer = talk().doing(|| "talk to the cluster's holder".to_owned())?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(text.to_owned()),
        Some((_, text)) => Err(refused(text.to_owned())),
        None => Err(refused("the cluster's holder ended without an answer".to_owned())),
    }
}

/// An error with what caused it, on one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
