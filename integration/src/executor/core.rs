//! What the executor decides: which updates to send, when to signal the task, when to end. Pure: no clock, process or
//! socket; [`Core::handle`] is told what happened and when, and answers with what to do.
//!
//! An update stays in `unacknowledged` until the agent acknowledged it, so that a restarted agent gets it again with
//! the next `SUBSCRIBE`. The order of updates is the order in which they were made.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    ended::Ended,
    protocol::{Caller, CommandInfo, Event, Kill, KillPolicy, Status, TaskInfo},
};

/// Mesos's command executor's own default when neither the kill nor the task says how long to wait.
pub(super) const DEFAULT_KILL_GRACE: Duration = Duration::from_secs(3);

/// Of the agent's patience after SHUTDOWN, kept back for SIGKILL and the last update.
pub(super) const SHUTDOWN_RESERVE: Duration = Duration::from_millis(1100);

/// How long the last update may stay unacknowledged before the executor ends anyway.
pub(super) const LAST_ACKNOWLEDGEMENT_LIMIT: Duration = Duration::from_secs(60);

/// When something happened: for deadlines, and for the update's timestamp.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    /// Seconds since the Unix epoch.
    pub(super) unix: f64,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    Event(Event),
    /// The connection to the agent was lost or could not be made.
    Disconnected,
    /// The answer to [`Action::Launch`] when no process could be started.
    LaunchFailed(String),
    /// The answer to [`Action::Launch`].
    Launched,
    Ended(Ended),
    /// The time of [`Core::next_deadline`] has come.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Send(Value),
    Launch(CommandInfo),
    /// SIGTERM to the task's process group.
    Terminate,
    /// SIGKILL to the task's process group.
    Kill,
    Exit(i32),
}

#[derive(Debug)]
struct Update {
    uuid: String,
    status: Value,
    /// Whether the current connection has seen it.
    sent: bool,
    terminal: bool,
}

#[derive(Debug)]
struct Task {
    id: String,
    raw: Value,
    /// Whether any update was acknowledged: the agent then has the task on disk.
    acknowledged: bool,
    grace: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
struct Killing {
    since: Instant,
    /// When SIGKILL follows; `None` once it was sent.
    escalate_at: Option<Instant>,
}

pub(super) struct Core {
    caller: Caller,
    recovery_timeout: Option<Duration>,
    shutdown_grace: Duration,
    task_command: Option<CommandInfo>,
    /// Makes the base64 form of 16 random bytes; injected so that tests replay.
    new_uuid: Box<dyn FnMut() -> String>,
    subscribed: bool,
    reports_killing: bool,
    unacknowledged: Vec<Update>,
    task: Option<Task>,
    running: bool,
    ended: bool,
    killing: Option<Killing>,
    completion_at: Option<Instant>,
    out_of_time: bool,
    recovery_until: Option<Instant>,
    leave_at: Option<Instant>,
}

impl Core {
    pub(super) fn new(
        caller: Caller,
        recovery_timeout: Option<Duration>,
        shutdown_grace: Duration,
        task_command: Option<CommandInfo>,
        new_uuid: Box<dyn FnMut() -> String>,
    ) -> Self {
        Self {
            caller,
            recovery_timeout,
            shutdown_grace,
            task_command,
            new_uuid,
            subscribed: false,
            reports_killing: false,
            unacknowledged: Vec::new(),
            task: None,
            running: false,
            ended: false,
            killing: None,
            completion_at: None,
            out_of_time: false,
            recovery_until: None,
            leave_at: None,
        }
    }

    /// The `SUBSCRIBE` call for a new connection.
    #[must_use]
    pub(super) fn subscribe_call(&mut self) -> Value {
        let tasks = self.task.iter().filter(|task| !task.acknowledged).map(|task| task.raw.clone()).collect();
        let statuses = self
            .unacknowledged
            .iter_mut()
            .map(|update| {
                update.sent = true;
                update.status.clone()
            })
            .collect();
        self.caller.subscribe(tasks, statuses)
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let escalate_at = self.killing.and_then(|killing| killing.escalate_at);
        [escalate_at, self.completion_at, self.recovery_until, self.leave_at].into_iter().flatten().min()
    }

    #[must_use]
    pub(super) fn handle(&mut self, now: Moment, input: Input) -> Vec<Action> {
        match input {
            Input::Event(event) => self.event(now, event),
            Input::Disconnected => self.disconnected(now),
            Input::Launched => {
                self.running = true;
                self.update(now, "TASK_RUNNING", None, None)
            }
            Input::LaunchFailed(message) => self.finish(now, "TASK_FAILED", None, &message),
            Input::Ended(ended) => self.task_ended(now, ended),
            Input::Tick => self.tick(now),
        }
    }

    fn event(&mut self, now: Moment, event: Event) -> Vec<Action> {
        match event {
            Event::Subscribed { subscribed } => {
                self.subscribed = true;
                self.recovery_until = None;
                self.reports_killing = subscribed
                    .framework_info
                    .capabilities
                    .iter()
                    .any(|capability| capability.kind == "TASK_KILLING_STATE");
                let Self { caller, unacknowledged, .. } = self;
                unacknowledged
                    .iter_mut()
                    .filter(|update| !update.sent)
                    .map(|update| send(caller, update))
                    .collect()
            }
            Event::Launch { launch } => self.launch(now, launch.task),
            Event::Kill { kill: Kill { kill_policy, .. } } => {
                let Some(task) = &self.task else {
                    return vec![Action::Exit(super::FAILURE)];
                };
                let grace = grace(kill_policy.as_ref()).or(task.grace).unwrap_or(DEFAULT_KILL_GRACE);
                self.kill(now, grace)
            }
            Event::Acknowledged { acknowledged } => self.acknowledged(&acknowledged.uuid),
            Event::Shutdown => self.shutdown(now),
            Event::Error { error } => {
                eprintln!("mesos-executor: the agent says: {}", error.message);
                Vec::new()
            }
            Event::LaunchGroup { .. } | Event::Other => Vec::new(),
        }
    }

    fn launch(&mut self, now: Moment, raw: Value) -> Vec<Action> {
        // A command executor has one task; the agent sends a second only by mistake.
        if self.task.is_some() {
            return Vec::new();
        }
        let Ok(info) = serde_json::from_value::<TaskInfo>(raw.clone()) else {
            eprintln!("mesos-executor: cannot read the task that the agent sent");
            return vec![Action::Exit(super::FAILURE)];
        };
        self.task = Some(Task {
            id: info.task_id.value,
            raw,
            acknowledged: false,
            grace: grace(info.kill_policy.as_ref()),
        });
        let mut actions = self.update(now, "TASK_STARTING", None, None);
        let Some(mut command) = self.task_command.clone().or(info.command) else {
            actions.extend(self.finish(now, "TASK_FAILED", None, "The task has no command"));
            return actions;
        };
        let role = info.resources.iter().find_map(|resource| resource.allocation_info.as_ref()?.role.clone());
        command.environment.variables.push(super::protocol::Variable {
            name: "MESOS_ALLOCATION_ROLE".into(),
            value: Some(role.unwrap_or_else(|| "*".into())),
        });
        self.completion_at = info
            .max_completion_time
            .map(|limit| limit.duration())
            .filter(|limit| !limit.is_zero())
            .map(|limit| now.instant + limit);
        actions.push(Action::Launch(command));
        actions
    }

    /// A second kill may only shorten the grace, as with Mesos's own executor.
    fn kill(&mut self, now: Moment, grace: Duration) -> Vec<Action> {
        self.completion_at = None;
        if self.ended || !self.running {
            return Vec::new();
        }
        if let Some(killing) = &mut self.killing {
            killing.escalate_at =
                killing.escalate_at.map(|at| at.min((killing.since + grace).max(now.instant)));
            return Vec::new();
        }
        self.killing = Some(Killing { since: now.instant, escalate_at: Some(now.instant + grace) });
        let mut actions = Vec::new();
        if self.reports_killing && !self.out_of_time {
            actions.extend(self.update(now, "TASK_KILLING", None, None));
        }
        actions.push(Action::Terminate);
        actions
    }

    fn shutdown(&mut self, now: Moment) -> Vec<Action> {
        if self.running {
            return self.kill(now, self.shutdown_grace.saturating_sub(SHUTDOWN_RESERVE));
        }
        // A task that has ended waits for its last acknowledgement; `leave_at` bounds that.
        if self.ended { Vec::new() } else { vec![Action::Exit(0)] }
    }

    fn disconnected(&mut self, now: Moment) -> Vec<Action> {
        self.subscribed = false;
        match self.recovery_timeout {
            Some(timeout) => {
                self.recovery_until.get_or_insert(now.instant + timeout);
                Vec::new()
            }
            // Without checkpointing a lost agent means a lost task: nobody will ask for it again.
            None if self.ended => vec![Action::Exit(super::FAILURE)],
            None => self.shutdown(now),
        }
    }

    fn task_ended(&mut self, now: Moment, ended: Ended) -> Vec<Action> {
        let (state, reason) = if self.out_of_time {
            ("TASK_FAILED", Some("REASON_MAX_COMPLETION_TIME_REACHED"))
        } else if self.killing.is_some() {
            ("TASK_KILLED", None)
        } else if ended == Ended::Exited(0) {
            ("TASK_FINISHED", None)
        } else {
            ("TASK_FAILED", None)
        };
        self.finish(now, state, reason, &ended.describe())
    }

    fn finish(&mut self, now: Moment, state: &str, reason: Option<&str>, message: &str) -> Vec<Action> {
        self.ended = true;
        self.running = false;
        self.completion_at = None;
        if let Some(killing) = &mut self.killing {
            killing.escalate_at = None;
        }
        self.leave_at = Some(now.instant + LAST_ACKNOWLEDGEMENT_LIMIT);
        let mut actions = self.update(now, state, reason, Some(message));
        if let Some(last) = self.unacknowledged.last_mut() {
            last.terminal = true;
        }
        if !self.subscribed && self.recovery_timeout.is_none() {
            actions.push(Action::Exit(super::FAILURE));
        }
        actions
    }

    fn acknowledged(&mut self, uuid: &str) -> Vec<Action> {
        let Some(position) = self.unacknowledged.iter().position(|update| update.uuid == uuid) else {
            return Vec::new();
        };
        if let Some(task) = &mut self.task {
            task.acknowledged = true;
        }
        if self.unacknowledged.remove(position).terminal { vec![Action::Exit(0)] } else { Vec::new() }
    }

    fn tick(&mut self, now: Moment) -> Vec<Action> {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now.instant);
        let mut actions = Vec::new();
        if due(self.leave_at) {
            eprintln!("mesos-executor: the last update was not acknowledged");
            return vec![Action::Exit(super::FAILURE)];
        }
        if due(self.recovery_until) {
            // The agent did not return. Nothing brings it back for this executor: end as on SHUTDOWN.
            self.recovery_until = None;
            self.recovery_timeout = None;
            actions.extend(self.disconnected(now));
        }
        if due(self.completion_at) {
            self.out_of_time = true;
            actions.extend(self.kill(now, Duration::ZERO));
        }
        if let Some(killing) = &mut self.killing
            && due(killing.escalate_at)
        {
            killing.escalate_at = None;
            actions.push(Action::Kill);
        }
        actions
    }

    fn update(
        &mut self,
        now: Moment,
        state: &str,
        reason: Option<&str>,
        message: Option<&str>,
    ) -> Vec<Action> {
        let Some(task) = &self.task else { return Vec::new() };
        let uuid = (self.new_uuid)();
        let status = self.caller.status(&task.id, &uuid, now.unix, &Status { state, reason, message });
        let mut update = Update { uuid, status, sent: false, terminal: false };
        let actions = if self.subscribed { vec![send(&self.caller, &mut update)] } else { Vec::new() };
        self.unacknowledged.push(update);
        actions
    }
}

fn send(caller: &Caller, update: &mut Update) -> Action {
    update.sent = true;
    Action::Send(caller.update(&update.status))
}

pub(super) fn grace(policy: Option<&KillPolicy>) -> Option<Duration> {
    Some(policy?.grace_period?.duration())
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
