//! A helper process of a fence: started, looked at and never waited for.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};

use super::job::{Job, Report};

/// The hidden mode of the keeper's program that [`super::run_helper`] is.
pub const HELPER_MODE: &str = "fence-helper";

/// A helper that runs.
pub(super) struct Running {
    child: Child,
    said: File,
}

fn memory(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

impl Running {
    /// Starts `program` as a helper. When that is `/proc/self/exe`, which the deadman has locked in memory, starting it reads
    /// nothing from a disk.
    pub(super) fn start(program: &Path, job: &Job) -> io::Result<Self> {
        let mut told = memory("extvol-job")?;
        told.write_all(&serde_json::to_vec(job)?)?;
        told.rewind()?;
        let said = memory("extvol-report")?;
        let child = Command::new(program)
            .arg0("extvol-keeper")
            .args([HELPER_MODE, &std::process::id().to_string()])
            .stdin(told)
            .stdout(said.try_clone()?)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, said })
    }

    /// What it said, once it has ended.
    pub(super) fn poll(&mut self) -> Option<Report> {
        let status = match self.child.try_wait() {
            Ok(None) => return None,
            Ok(Some(status)) => status,
            Err(error) => return Some(Report::Failed(format!("the helper was lost: {error}"))),
        };
        let mut text = String::new();
        let read = self.said.rewind().and_then(|()| self.said.read_to_string(&mut text));
        Some(match read.map(|_| serde_json::from_str(&text)) {
            Ok(Ok(report)) => report,
            _ => Report::Failed(format!("the helper ended with {status} and no word")),
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    /// One that hangs in the kernel ends when it comes back from there: it is not waited for.
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _hangs = self.child.try_wait();
    }
}
