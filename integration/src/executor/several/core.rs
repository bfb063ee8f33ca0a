//! What an executor of several tasks decides. Pure, as the command executor's core is, and with the same rules for updates.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::Kind;
use crate::executor::{
    FAILURE,
    core::{DEFAULT_KILL_GRACE, LAST_ACKNOWLEDGEMENT_LIMIT, Moment, SHUTDOWN_RESERVE, grace},
    protocol::{Caller, Event, Status, TaskInfo},
};

/// How a task ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct End {
    /// Whether all went well, as far as the process tells.
    pub(super) well: bool,
    /// The agent's word, which counts more.
    pub(super) state: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) message: String,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    Event(Event),
    /// The connection to the agent was lost or could not be made.
    Disconnected,
    /// A task's process runs.
    Started(String),
    Ended(String, End),
    /// The time of [`Core::next_deadline`] has come.
    Tick,
}

/// What to do, in this order.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Send(Value),
    /// Start this `TaskInfo`.
    Start(Value),
    /// SIGTERM to a task.
    Terminate(String),
    /// SIGKILL to a task.
    Kill(String),
    Exit(i32),
}

#[derive(Debug)]
struct Task {
    raw: Value,
    /// Those of one group share it.
    group: u64,
    grace: Option<Duration>,
    running: bool,
    acknowledged: bool,
    killed: bool,
    /// When SIGKILL follows.
    kill_at: Option<Instant>,
}

#[derive(Debug)]
struct Update {
    task: String,
    uuid: String,
    status: Value,
    sent: bool,
}

pub(super) struct Core {
    kind: Kind,
    caller: Caller,
    recovery_timeout: Option<Duration>,
    shutdown_grace: Duration,
    new_uuid: Box<dyn FnMut() -> String>,
    subscribed: bool,
    groups: u64,
    tasks: BTreeMap<String, Task>,
    unacknowledged: Vec<Update>,
    recovery_until: Option<Instant>,
    /// It ends with its tasks, and then with the last acknowledgement.
    leaving: bool,
    leave_at: Option<Instant>,
}

impl Core {
    pub(super) fn new(
        kind: Kind,
        caller: Caller,
        recovery_timeout: Option<Duration>,
        shutdown_grace: Duration,
        new_uuid: Box<dyn FnMut() -> String>,
    ) -> Self {
        Self {
            kind,
            caller,
            recovery_timeout,
            shutdown_grace,
            new_uuid,
            subscribed: false,
            groups: 0,
            tasks: BTreeMap::new(),
            unacknowledged: Vec::new(),
            recovery_until: None,
            leaving: false,
            leave_at: None,
        }
    }

    /// The `SUBSCRIBE` call for a new connection.
    #[must_use]
    pub(super) fn subscribe_call(&mut self) -> Value {
        let running = self.tasks.values().filter(|task| task.running && !task.acknowledged);
        let tasks = running.map(|task| task.raw.clone()).collect();
        let sent = |update: &mut Update| {
            update.sent = true;
            update.status.clone()
        };
        self.caller.subscribe(tasks, self.unacknowledged.iter_mut().map(sent).collect())
    }

    /// When [`Input::Tick`] is due.
    #[must_use]
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let kills = self.tasks.values().filter_map(|task| task.kill_at);
        kills.chain(self.recovery_until).chain(self.leave_at).min()
    }

    #[must_use]
    pub(super) fn handle(&mut self, now: Moment, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Event(event) => self.event(now, event, &mut actions),
            Input::Disconnected => {
                self.subscribed = false;
                match self.recovery_timeout {
                    Some(timeout) => {
                        self.recovery_until.get_or_insert(now.instant + timeout);
                    }
                    None => actions.push(Action::Exit(FAILURE)),
                }
            }
            Input::Started(id) => {
                let Some(task) = self.tasks.get_mut(&id) else { return actions };
                task.running = true;
                self.update(now, &id, Status { state: "TASK_RUNNING", ..Status::default() }, &mut actions);
            }
            Input::Ended(id, end) => self.task_ended(now, &id, &end, &mut actions),
            Input::Tick => self.tick(now, &mut actions),
        }
        if self.leaving && self.tasks.is_empty() {
            if self.unacknowledged.is_empty() {
                actions.push(Action::Exit(0));
            } else {
                self.leave_at.get_or_insert(now.instant + LAST_ACKNOWLEDGEMENT_LIMIT);
            }
        }
        actions
    }

    fn event(&mut self, now: Moment, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Subscribed { .. } => {
                self.subscribed = true;
                self.recovery_until = None;
                let Self { caller, unacknowledged, .. } = self;
                for update in unacknowledged.iter_mut().filter(|update| !update.sent) {
                    update.sent = true;
                    actions.push(Action::Send(caller.update(&update.status)));
                }
            }
            Event::Launch { launch } => self.launch(now, vec![launch.task], actions),
            Event::LaunchGroup { launch_group } => {
                self.launch(now, launch_group.task_group.tasks, actions);
            }
            Event::Kill { kill } => {
                let asked = grace(kill.kill_policy.as_ref());
                self.kill(now, &kill.task_id.value, asked, actions);
            }
            Event::Acknowledged { acknowledged } => {
                let of_uuid = |update: &Update| update.uuid == acknowledged.uuid;
                if let Some(position) = self.unacknowledged.iter().position(of_uuid) {
                    let update = self.unacknowledged.remove(position);
                    if let Some(task) = self.tasks.get_mut(&update.task) {
                        task.acknowledged = true;
                    }
                }
            }
            Event::Shutdown => self.shutdown(now, actions),
            Event::Error { error } => eprintln!("executor: the agent says: {}", error.message),
            Event::Other => {}
        }
    }

    fn launch(&mut self, now: Moment, tasks: Vec<Value>, actions: &mut Vec<Action>) {
        self.groups += 1;
        for raw in tasks {
            let Ok(info) = serde_json::from_value::<TaskInfo>(raw.clone()) else {
                eprintln!("executor: cannot read the task that the agent sent");
                actions.push(Action::Exit(FAILURE));
                return;
            };
            let task = Task {
                raw: raw.clone(),
                group: self.groups,
                grace: grace(info.kill_policy.as_ref()),
                running: false,
                acknowledged: false,
                killed: false,
                kill_at: None,
            };
            let id = info.task_id.value;
            self.tasks.insert(id.clone(), task);
            self.update(now, &id, Status { state: "TASK_STARTING", ..Status::default() }, actions);
            actions.push(Action::Start(raw));
        }
    }

    /// A task that is being killed is left to that.
    fn kill(&mut self, now: Moment, id: &str, asked: Option<Duration>, actions: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(id).filter(|task| !task.killed) else { return };
        task.killed = true;
        task.kill_at = Some(now.instant + asked.or(task.grace).unwrap_or(DEFAULT_KILL_GRACE));
        actions.push(Action::Terminate(id.to_owned()));
    }

    fn shutdown(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.leaving = true;
        let within = self.shutdown_grace.saturating_sub(SHUTDOWN_RESERVE);
        for id in self.tasks.keys().cloned().collect::<Vec<_>>() {
            self.kill(now, &id, Some(within), actions);
        }
    }

    fn task_ended(&mut self, now: Moment, id: &str, end: &End, actions: &mut Vec<Action>) {
        let Some(task) = self.tasks.remove(id) else { return };
        let own = match (task.killed, end.well) {
            (true, _) => "TASK_KILLED",
            (false, true) => "TASK_FINISHED",
            (false, false) => "TASK_FAILED",
        };
        let state = end.state.as_deref().unwrap_or(own);
        let status = Status { state, reason: end.reason.as_deref(), message: Some(&end.message) };
        self.update(now, id, status, actions);
        if self.kind == Kind::Custom {
            return;
        }
        if state != "TASK_FINISHED" {
            let others = self.tasks.iter().filter(|(_, other)| other.group == task.group);
            for id in others.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                self.kill(now, &id, None, actions);
            }
        }
        self.leaving |= self.tasks.is_empty();
    }

    fn tick(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now.instant);
        if due(self.leave_at) || due(self.recovery_until) {
            actions.push(Action::Exit(FAILURE));
            return;
        }
        for (id, task) in self.tasks.iter_mut().filter(|(_, task)| due(task.kill_at)) {
            task.kill_at = None;
            actions.push(Action::Kill(id.clone()));
        }
    }

    fn update(&mut self, now: Moment, task: &str, status: Status<'_>, actions: &mut Vec<Action>) {
        let uuid = (self.new_uuid)();
        let status = self.caller.status(task, &uuid, now.unix, &status);
        if self.subscribed {
            actions.push(Action::Send(self.caller.update(&status)));
        }
        self.unacknowledged.push(Update { task: task.to_owned(), uuid, status, sent: self.subscribed });
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
