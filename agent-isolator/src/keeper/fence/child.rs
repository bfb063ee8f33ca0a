//! A helper process of a fence: started, given jobs, looked at and never waited for.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::io::ioctl_fionbio;

use super::job::{Job, Report};
use super::scheduling::started_before_all_others;

/// The hidden mode of the keeper's program that [`super::run_helper`] is.
pub const HELPER_MODE: &str = "fence-helper";

/// A helper process: one line in is a job, one line out its report. Neither pipe is waited for on this side.
pub(super) struct Helper {
    child: Child,
    jobs: ChildStdin,
    reports: ChildStdout,
    /// What the pipe has not taken yet of the job.
    to_tell: Vec<u8>,
    said: Vec<u8>,
    busy: bool,
}

impl Helper {
    /// Starts `program` as a helper. When that is `/proc/self/exe`, which the deadman has locked in memory, starting it reads
    /// nothing from a disk.
    pub(super) fn start(program: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command
            .arg0("extvol-keeper")
            .args([HELPER_MODE, &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = started_before_all_others(|| command.spawn())?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (jobs, reports) = pipes.ok_or_else(|| io::Error::other("the helper has no pipes"))?;
        let helper = Self { child, jobs, reports, to_tell: Vec::new(), said: Vec::new(), busy: false };
        ioctl_fionbio(&helper.jobs, true)?;
        ioctl_fionbio(&helper.reports, true)?;
        Ok(helper)
    }

    /// Gives it a job; it has none.
    pub(super) fn give(&mut self, job: &Job) -> io::Result<()> {
        self.busy = true;
        self.to_tell = serde_json::to_vec(job)?;
        self.to_tell.push(b'\n');
        self.said.clear();
        self.tell()
    }

    fn tell(&mut self) -> io::Result<()> {
        while !self.to_tell.is_empty() {
            match self.jobs.write(&self.to_tell) {
                Ok(taken) => drop(self.to_tell.drain(..taken)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What it says of its job, once that is done.
    pub(super) fn poll(&mut self) -> Option<Report> {
        let report = self.hear();
        self.busy = report.is_none();
        report
    }

    fn hear(&mut self) -> Option<Report> {
        if let Err(error) = self.tell() {
            return Some(Report::Failed(format!("the helper was lost: {error}")));
        }
        let mut piece = [0; 4096];
        loop {
            match self.reports.read(&mut piece) {
                Ok(0) => return Some(Report::Failed(self.last_word())),
                Ok(length) => self.said.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Report::Failed(format!("the helper was lost: {error}"))),
            }
            if self.said.ends_with(b"\n") {
                let report = serde_json::from_slice(&self.said);
                return Some(
                    report.unwrap_or_else(|error| Report::Failed(format!("the helper's word: {error}"))),
                );
            }
        }
    }

    fn last_word(&mut self) -> String {
        match self.child.try_wait() {
            Ok(Some(status)) => format!("the helper ended with {status} and no word"),
            _ => "the helper ended without a word".to_owned(),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is there no more; then it is reaped.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(super) fn kill(&mut self) {
        let _ended = self.child.kill();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.kill();
        // One that hangs in the kernel ends when it comes back from there. One without a job does not hang.
        let _reaped = if self.busy { self.child.try_wait() } else { self.child.wait().map(Some) };
    }
}
