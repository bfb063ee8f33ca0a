//! The guardian: the process that owns a cluster's hosts and ends them, whatever becomes of the harness.
//!
//! It is a child of the harness in a session of its own, so that a Ctrl-C does not reach it, and the
//! parent of every host. Its input is a pipe of which the harness holds the only other end: the end of
//! input means that the harness is done or dead, and everything that belongs to the cluster ends. It only
//! ever kills inits that it started, by process id, while it has not waited for them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::protocol::{GuardianReply, GuardianRequest, receive, send};
use super::{leftovers, machine};

/// How often the guardian looks again while it waits for the kernel.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// A host dies within 50 ms; one that is still there after this is stuck in the kernel.
const DEATH: Duration = Duration::from_secs(20);

struct Guardian {
    /// The cluster's directory; its last component is the cluster's id.
    directory: PathBuf,
    id: String,
    hosts: BTreeMap<String, Running>,
}

struct Running {
    /// `unshare`, which waits for the init and so for the end of its pid namespace.
    unshare: Child,
    init: Pid,
}

/// Serves one cluster until the end of input, then leaves nothing of it.
pub fn run(directory: &Path) -> io::Result<()> {
    // Out of the terminal's reach; fails only for the leader of a process group, which a child is not.
    rustix::process::setsid()?;
    machine::prepare()?;
    let id = directory.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let mut guardian =
        Guardian { directory: directory.to_path_buf(), id: id.to_owned(), hosts: BTreeMap::new() };
    // A harness that dies without a word leaves its logs to whoever asks why.
    let mut keep_logs = true;
    let mut requests = BufReader::new(io::stdin());
    // A message cut off by the harness's death is an end of input, too.
    while let Ok(Some(request)) = receive(&mut requests) {
        let reply = match request {
            GuardianRequest::Start { host, setup } => guardian.start(host, &setup),
            GuardianRequest::Kill { host } => guardian.kill(&host).map(|()| GuardianReply::Done),
            GuardianRequest::Finish { keep_logs: keep } => {
                keep_logs = keep;
                Ok(GuardianReply::Done)
            }
        };
        let reply = reply.unwrap_or_else(|error| GuardianReply::Failed { message: error.to_string() });
        if send(io::stdout(), &reply).is_err() {
            break;
        }
    }
    guardian.end(keep_logs)
}

impl Guardian {
    fn start(&mut self, host: String, setup: &Path) -> io::Result<GuardianReply> {
        if self.hosts.contains_key(&host) {
            return Err(io::Error::other(format!("host {host} runs already")));
        }
        let log = self.directory.join("logs").join(format!("{host}-init.log"));
        let log = File::options().create(true).append(true).open(log)?;
        let mut unshare = Command::new("setpriv")
            // Nobody is left to end the host when the guardian is killed: it goes along.
            .args(["--pdeathsig", "KILL", "unshare", "--kill-child", "--fork", "--propagation", "private"])
            .args(["--mount", "--mount-proc", "--pid", "--net", "--uts", "--ipc"])
            .arg(std::env::current_exe()?)
            .arg("init")
            .arg(setup)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let init = loop {
            if let Some(status) = unshare.try_wait()? {
                return Err(io::Error::other(format!("unshare ended with {status}; see {host}-init.log")));
            }
            if let Some(init) = only_child(unshare.id()) {
                break init;
            }
            thread::sleep(LOOK_AGAIN);
        };
        self.hosts.insert(host, Running { unshare, init });
        Ok(GuardianReply::Started { pid: init.as_raw_nonzero().get().unsigned_abs() })
    }

    fn kill(&mut self, host: &str) -> io::Result<()> {
        let Some(mut running) = self.hosts.remove(host) else {
            return Err(io::Error::other(format!("host {host} is not running")));
        };
        running.kill();
        let cgroups = leftovers::Cgroups::of_host(&self.id, host);
        let dead = running.wait_until_empty(&cgroups);
        if dead.is_err() {
            self.hosts.insert(host.to_owned(), running);
        }
        dead.and_then(|()| cgroups.remove())
    }

    fn end(mut self, keep_logs: bool) -> io::Result<()> {
        for running in self.hosts.values_mut() {
            running.kill();
        }
        let cgroups = leftovers::Cgroups::of_cluster(&self.id);
        for (host, mut running) in std::mem::take(&mut self.hosts) {
            if let Err(error) = running.wait_until_empty(&cgroups) {
                eprintln!("guardian: host {host}: {error}");
            }
        }
        let mut outcome = cgroups.remove();
        outcome = outcome.and(leftovers::detach_loop_devices(&self.directory));
        outcome.and(remove_directory(&self.directory, keep_logs))
    }
}

impl Running {
    /// Kills the init; the kernel then kills whatever is in its pid namespace.
    fn kill(&mut self) {
        // `unshare` has not been waited for, so the init's number is still the init's, unless both ended.
        if matches!(self.unshare.try_wait(), Ok(None)) {
            let _gone_already = kill_process(self.init, Signal::KILL);
        }
    }

    /// An init ends only after every process of its namespace.
    fn wait_until_empty(&mut self, cgroups: &leftovers::Cgroups) -> io::Result<()> {
        let deadline = Instant::now() + DEATH;
        while self.unshare.try_wait()?.is_none() {
            // A frozen process does not die before it is thawed.
            cgroups.thaw();
            if Instant::now() > deadline {
                let init = self.init;
                return Err(io::Error::other(format!(
                    "process {init} is still there {DEATH:?} after its kill"
                )));
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

fn only_child(parent: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}

fn remove_directory(directory: &Path, keep_logs: bool) -> io::Result<()> {
    if !keep_logs {
        return fs::remove_dir_all(directory);
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == "logs" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
