//! Starts the task's process and signals it. The process leads its own group, so that what it starts dies with it.

use std::{collections::BTreeMap, io, os::unix::process::ExitStatusExt, process::ExitStatus};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};

use super::{
    ended::Ended,
    protocol::CommandInfo,
    rootfs,
    setup::{Image, Setup},
};

/// The running task.
pub(super) struct Task {
    child: Child,
    group: Option<Pid>,
}

impl Task {
    /// Working directory and standard streams are the executor's own: the agent started it in the sandbox.
    pub(super) fn start(setup: &Setup, command: &CommandInfo) -> io::Result<Self> {
        let mut environment = setup.environment.clone();
        for (name, value) in command.environment.pairs() {
            environment.insert(name.clone(), value.clone());
        }
        let child = match &setup.image {
            None => start_here(command, &environment)?,
            Some(image) => start_in_image(command, &environment, image)?,
        };
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { child, group })
    }

    pub(super) async fn ended(&mut self) -> Ended {
        self.child.wait().await.map_or(Ended::Unknown, ended)
    }

    pub(super) fn signal(&self, signal: Signal) {
        // A group that is gone needs no signal; its end is on the way to the core.
        if let Some(group) = self.group
            && let Err(error) = rustix::process::kill_process_group(group, signal)
            && error != rustix::io::Errno::SRCH
        {
            eprintln!("mesos-executor: cannot signal the task: {error}");
        }
    }
}

fn start_here(command: &CommandInfo, environment: &BTreeMap<String, String>) -> io::Result<Child> {
    let mut process: Command = rootfs::process(command)?.into();
    process.env_clear().envs(environment).process_group(0).spawn()
}

fn start_in_image(
    command: &CommandInfo,
    environment: &BTreeMap<String, String>,
    image: &Image,
) -> io::Result<Child> {
    let entry = rootfs::Entry::new(command, image)?;
    Command::new(std::env::current_exe()?)
        .arg(rootfs::SUBCOMMAND)
        .arg(serde_json::to_string(&entry)?)
        .env_clear()
        .envs(environment)
        .process_group(0)
        .spawn()
}

pub(super) fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Exited(code),
        (None, Some(signal)) => Ended::Signalled { signal, core_dumped: status.core_dumped() },
        (None, None) => Ended::Unknown,
    }
}
