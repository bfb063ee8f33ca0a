//! The executors of this machine's agents, over the v1 executor HTTP API. Those of several tasks are in `several`. The
//! command executor runs one command task.
//!
//! The agent starts it as `mesos-executor` from its launcher directory, once per command task, inside the task's
//! container. It does what Mesos's own command executor does for tasks of any framework, with these differences: no
//! checks and health checks, no capabilities, no TTY, and for a task with an image a plain `chroot` without a mount
//! namespace of the task's own (the image's mounts are already in the container's namespace).
//!
//! One thread. The decisions are pure and live in `core.rs`; `run.rs` is the shell
//! that receives, asks the core and does what it says; `agent.rs` alone knows HTTP; `task.rs` alone starts processes.

mod agent;
mod core;
mod ended;
mod protocol;
mod rootfs;
mod run;
mod setup;
mod several;
mod task;

use std::{collections::BTreeMap, ffi::OsString};

pub use self::{setup::SetupError, several::Kind, several::main as main_of_several};

/// Exit status when the executor was started wrongly or could not do its part; the agent reports the task as failed.
const FAILURE: i32 = 1;

/// Runs the executor to its end; the return value is the process's exit status.
///
/// `arguments` are those after the program's name, `environment` is what the agent set. Must be called from a process
/// with a single thread: for a task with an image the program starts itself again to enter the image as that process.
pub fn main(arguments: Vec<OsString>, environment: BTreeMap<String, String>) -> i32 {
    if arguments.first().is_some_and(|first| first == rootfs::SUBCOMMAND) {
        let failed = rootfs::enter_and_exec(arguments.get(1));
        eprintln!("mesos-executor: {failed}");
        return FAILURE;
    }
    let setup = match setup::Setup::read(&arguments, environment) {
        Ok(setup) => setup,
        Err(error) => {
            eprintln!("mesos-executor: {error}");
            return FAILURE;
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run::run(setup)),
        Err(error) => {
            eprintln!("mesos-executor: no runtime: {error}");
            FAILURE
        }
    }
}
