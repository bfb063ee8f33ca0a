//! Starting a keeper where none answers.
//!
//! Under systemd the keeper must be its own unit: systemd ends a service's children with it, and a
//! keeper that ends with the agent would leave the host's mounts unfenced.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::keeper::deadman::{DEADLINE, LOCK};
use crate::keeper::flock::holder_of;
use crate::keeper::shared_memory::SharedMemory;
use crate::parameters::IsolatorParameters;

/// A keeper is not started more often than this.
const START_AGAIN: Duration = Duration::from_secs(2);
/// A keeper that detaches itself does so at once; this covers a host that is busy.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether systemd runs this host (sd_booted(3)).
fn under_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Checks at load that a keeper can be had.
///
/// # Errors
/// A sentence to refuse loading with.
pub(super) fn check(parameters: &IsolatorParameters) -> Result<(), String> {
    match &parameters.program {
        Some(program) if !under_systemd() => match program.metadata() {
            Ok(found) if found.is_file() => Ok(()),
            Ok(_) => {
                Err(format!("the parameter `keeper` has the value `{}`, which is no file", program.display()))
            }
            Err(error) => Err(format!(
                "the parameter `keeper` has the value `{}`, which cannot be used: {error}",
                program.display()
            )),
        },
        Some(program) => {
            tracing::info!(
                "this host runs systemd: the unit extvol-keeper.service is required, and the parameter \
                 `keeper` ({}) is not used",
                program.display()
            );
            Ok(())
        }
        None => Ok(()),
    }
}

/// What to say where a keeper runs, or its guard fences in its place, and nobody answers for now.
fn runs_already(directory: &Path) -> Option<String> {
    let process = holder_of(&directory.join(LOCK))?;
    let fenced = SharedMemory::open(&directory.join(DEADLINE)).is_ok_and(|shared| shared.read().fenced);
    Some(match fenced {
        true => format!(
            "this host is being fenced by its keeper, process {process}, which answers once that is done; see \
             deadman.log and guard.log in {}",
            directory.display()
        ),
        false => format!("the keeper on this host, process {process}, has not begun to listen"),
    })
}

/// Starts keepers, one at a time, each from a thread of its own: a program that hangs, or lies on a
/// file system that does, holds nobody up.
pub(super) struct Starter {
    parameters: IsolatorParameters,
    /// The start that is under way.
    running: Option<oneshot::Receiver<Result<(), String>>>,
    began: Option<Instant>,
    /// Why the last start failed.
    failure: Option<String>,
}

impl Starter {
    pub(super) fn new(parameters: IsolatorParameters) -> Self {
        Self { parameters, running: None, began: None, failure: None }
    }

    /// No keeper answers, as `error` says: starts one, if that is this module's business and its
    /// time. Answers what an operator should know.
    pub(super) fn nobody_answers(&mut self, error: &io::Error) -> String {
        // Another one would only say that there is one.
        if let Some(why) =
            runs_already(&self.parameters.keeper.run_directory).filter(|_| self.running.is_none())
        {
            return why;
        }
        if under_systemd() {
            return "start the unit extvol-keeper.service".into();
        }
        let Some(program) = self.parameters.program.clone() else {
            return "start extvol-keeper, or give its path with the parameter `keeper`".into();
        };
        if self.running.is_none() && self.began.is_none_or(|at| at.elapsed() >= START_AGAIN) {
            self.began = Some(Instant::now());
            let (sender, result) = oneshot::channel();
            let command = command(&self.parameters, &program);
            let run = move || {
                // Nobody waits any more when the isolator is gone.
                let _ = sender.send(run(command, START_TIMEOUT));
            };
            match std::thread::Builder::new().name("extvol-start".into()).spawn(run) {
                Ok(_) => self.running = Some(result),
                Err(error) => self.failure = Some(format!("a thread to start it could not be made: {error}")),
            }
        }
        let program = program.display();
        match (&self.failure, &self.running) {
            // What the start said is worth more than "connection refused".
            (Some(why), _) => format!("{program} could not be started: {why}"),
            (None, Some(_)) => format!("{program} was called to start one, and has not ended yet"),
            (None, None) => error.to_string(),
        }
    }

    /// A keeper answers, whoever started it.
    pub(super) fn answered(&mut self) {
        self.failure = None;
    }

    /// Waits for the end of the start that is under way; answers whether a keeper was started.
    pub(super) async fn ended(&mut self) -> bool {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let result = running.await.unwrap_or_else(|_| Err("a bug: the start panicked".into()));
        self.running = None;
        if result.is_ok() {
            tracing::info!("started a keeper");
        }
        self.failure = result.err();
        self.failure.is_none()
    }
}

fn command(parameters: &IsolatorParameters, program: &Path) -> Command {
    let mut command = Command::new(program);
    // Its environment is its own: the agent's may name libraries for the agent alone.
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if let Ok(filter) = std::env::var("EXTVOL_LOG") {
        command.env("EXTVOL_LOG", filter);
    }
    command.arg("--detach");
    command.args(parameters.keeper.given.iter().map(|(name, value)| format!("--{name}={value}")));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).current_dir("/");
    command
}

/// Runs a program to its end, and ends it when it does not end by itself.
fn run(mut command: Command, within: Duration) -> Result<(), String> {
    let mut child = command.spawn().map_err(|error| format!("it could not be run: {error}"))?;
    let ended = ends(&child, within);
    if !matches!(ended, Ok(true)) {
        // It may have ended just now; `wait` tells.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let said = child.stderr.take().map(said).unwrap_or_default();
    match ended {
        Ok(true) if status.success() => Ok(()),
        Ok(true) => Err(format!("{status}: {said}")),
        Ok(false) => Err(format!("it did not end within {within:?}, and was killed; it said: {said}")),
        Err(error) => Err(format!("it could not be waited for: {error}")),
    }
}

fn ends(child: &Child, within: Duration) -> io::Result<bool> {
    let pid = Pid::from_child(child);
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let until = std::time::Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// The beginning of what a program that has ended wrote; a child of it may still hold the other end.
fn said(mut pipe: ChildStderr) -> String {
    let mut text = vec![0; 4096];
    let read = rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK).map_err(io::Error::from);
    let read = read.and_then(|()| pipe.read(&mut text)).unwrap_or(0);
    String::from_utf8_lossy(&text[..read]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        assert_eq!(run(shell("exit 0"), START_TIMEOUT), Ok(()));
        let error = run(shell("echo no lock >&2; exit 3"), START_TIMEOUT).unwrap_err();
        assert_eq!(error, "exit status: 3: no lock");
        let error = run(Command::new("/nonexistent"), START_TIMEOUT).unwrap_err();
        assert!(error.starts_with("it could not be run: No such file"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let began = std::time::Instant::now();
        let error = run(shell("echo $$ >&2; exec sleep 60"), Duration::from_millis(500)).unwrap_err();
        assert!(began.elapsed() < START_TIMEOUT, "{:?}", began.elapsed());
        let (text, pid) = error.split_once("; it said: ").unwrap();
        assert_eq!(text, "it did not end within 500ms, and was killed");
        assert!(!Path::new("/proc").join(pid).exists(), "{pid}");
    }

    #[test]
    fn a_child_that_lives_on_with_the_pipe_holds_nothing_up() {
        let began = std::time::Instant::now();
        let error = run(shell("sleep 20 & echo $! >&2; exit 1"), START_TIMEOUT).unwrap_err();
        let pid = error.rsplit(' ').next().unwrap().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
        assert!(began.elapsed() < START_TIMEOUT, "{:?}", began.elapsed());
    }
}
