//! Two executors that run several tasks. [`Kind::Custom`] is a framework's own executor, `extvol-task-executor`: its
//! tasks are processes in its own container, one after the other or at once, and it ends when it is told to.
//! [`Kind::Default`] stands in for `mesos-default-executor`: each task of a group is a nested container, which it has the
//! agent launch, and it ends with its last task.
//!
//! As Mesos's own default executor does, the stand-in calls LAUNCH_CONTAINER with the task's command, container,
//! resources and limits, for a container `<the executor's>.<uuid>`; waits by WAIT_NESTED_CONTAINER; prefers the agent's
//! state, reason and message to its own; and kills the rest of a group when one task has failed or was killed. Where it
//! differs: each task is launched and told by itself, and not when the whole group is launched; a launch whose
//! connection breaks fails its task alone; it asks again after a moment where a wait breaks, subscribed or not; its
//! tasks have no `MESOS_CONTAINER_IP` and no link below `tasks`; no disk resources, completion times, checks or health
//! checks; no reports of TASK_KILLING.
//!
//! A task of the custom executor has no CommandInfo (Mesos allows that or an executor): its command is its label
//! `command`.

mod core;
mod nested;
mod run;

use std::{collections::BTreeMap, ffi::OsString};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A framework's own.
    Custom,
    /// In place of Mesos's.
    Default,
}

/// Runs the executor to its end; the return value is the process's exit status. As [`super::main`].
#[must_use]
pub fn main(kind: Kind, arguments: &[OsString], environment: BTreeMap<String, String>) -> i32 {
    let setup = match super::setup::Setup::read(arguments, environment) {
        Ok(setup) => setup,
        Err(error) => {
            eprintln!("executor: {error}");
            return super::FAILURE;
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run::run(kind, setup)),
        Err(error) => {
            eprintln!("executor: no runtime: {error}");
            super::FAILURE
        }
    }
}
