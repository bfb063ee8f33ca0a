//! The harness's side of the guardian process (`guard.rs`).

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use super::error::{ClusterError, Doing, Result};
use super::protocol::{GuardianReply, GuardianRequest, receive, send};

/// A running guardian. When this value goes, so does the cluster.
#[derive(Debug)]
pub(super) struct Guardian {
    process: Mutex<Option<Child>>,
    pipes: Mutex<Option<Pipes>>,
}

#[derive(Debug)]
struct Pipes {
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Guardian {
    /// Starts a guardian for the cluster in `directory`, which must exist with its `logs`.
    pub(super) fn start(program: &Path, directory: &Path) -> Result<Self> {
        let log = directory.join("logs/guardian.log");
        let log = File::create(&log).doing_with("create", &log)?;
        // "slave": what the machine unmounts goes away here, too, and nothing goes the other way.
        let mut process = Command::new("unshare")
            .args(["--mount", "--propagation", "slave"])
            .arg(program)
            .arg("guard")
            .arg(directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .doing_with("start", program)?;
        let pipes = process
            .stdin
            .take()
            .zip(process.stdout.take())
            .map(|(requests, replies)| Pipes { requests, replies: BufReader::new(replies) });
        Ok(Self { process: Mutex::new(Some(process)), pipes: Mutex::new(pipes) })
    }

    /// Starts a host; the process id of its init.
    pub(super) fn start_host(&self, host: &str, setup: &Path) -> Result<u32> {
        match self.ask(&GuardianRequest::Start { host: host.to_owned(), setup: setup.to_owned() })? {
            GuardianReply::Started { pid } => Ok(pid),
            other => Err(refused(format!("unexpected answer {other:?}"))),
        }
    }

    /// Kills a host; back when nothing of it runs.
    pub(super) fn kill_host(&self, host: &str) -> Result<()> {
        self.ask(&GuardianRequest::Kill { host: host.to_owned() }).map(drop)
    }

    /// Whether [`Guardian::finish`] was called.
    pub(super) fn has_ended(&self) -> bool {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Ends the cluster; back when nothing is left of it.
    pub(super) fn finish(&self, keep_logs: bool) -> Result<()> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut process) = process else { return Ok(()) };
        let asked = self.ask(&GuardianRequest::Finish { keep_logs });
        // The end of its input is what the guardian waits for.
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner).take();
        let status = process.wait().doing(|| "wait for the guardian".to_owned())?;
        asked?;
        if status.success() {
            return Ok(());
        }
        Err(refused(format!("ended with {status}: something of the cluster is left; see guardian.log")))
    }

    fn ask(&self, request: &GuardianRequest) -> Result<GuardianReply> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        let Pipes { requests, replies } = pipes.as_mut().ok_or_else(|| refused("has ended".to_owned()))?;
        send(requests, request).doing(|| "ask the guardian".to_owned())?;
        match receive(replies).doing(|| "hear from the guardian".to_owned())? {
            Some(GuardianReply::Failed { message }) => Err(refused(message)),
            Some(reply) => Ok(reply),
            None => Err(refused("ended early".to_owned())),
        }
    }
}

fn refused(message: String) -> ClusterError {
    ClusterError::Refused { who: "guardian".to_owned(), message }
}
