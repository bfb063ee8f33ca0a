//! What the scheduler decides. Pure: no clock, socket or thread; it is told what happened and when, and answers with
//! what to do. Ordered maps only, so that a run replays.
//!
//! Each app is in one phase: *waiting* (for its delay, then for an offer that fits), *active* (one task that counts),
//! or *ended* (its restart policy wants no more). A task that is lost stops counting at once and a replacement is
//! sought; should the lost one return, it is killed, as Marathon does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};

use super::{
    SchedulerConfig,
    app::{App, AppId},
    entry::{Active, Entry, Phase},
    executor::Started,
    history::{TaskEvent, TaskState},
    offer::Offer,
    protocol::{Caller, Event, Failure, Id, TaskStatus},
};

/// A kill may be lost with the agent's connection; it is repeated until the task has ended.
const KILL_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Heartbeats that may be missed before the connection counts as dead: a partition closes no socket.
const HEARTBEATS_MISSED: f64 = 3.0;

/// While nothing is wanted offers are suppressed; one that was under way is declined for this long, in seconds.
const REFUSE_UNWANTED_SECONDS: f64 = 3600.0;

/// An app cannot be run or stopped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunError {
    /// There is an app of this id; stop it first, and wait until its task has ended.
    #[error("app {id} is already there")]
    AlreadyThere {
        /// The app.
        id: AppId,
    },
    /// There is no app of this id.
    #[error("there is no app {id:?}")]
    NotThere {
        /// The app.
        id: String,
    },
    /// No executor of this id runs.
    #[error("no executor {id:?} runs")]
    NoExecutor {
        /// The executor.
        id: String,
    },
}

/// When something happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) instant: Instant,
    pub(super) wall: SystemTime,
}

/// What to do, in this order.
#[derive(Debug)]
pub(super) enum Output {
    Call(Value),
    Record(TaskEvent),
    /// The master is subscribed to under this framework id.
    Subscribed(String),
    /// Give the connection up and subscribe again.
    Reconnect,
    /// The master does not want this framework any more.
    Rejected(String),
}

/// What is remembered of every task, so that repeated and late updates are understood.
#[derive(Debug)]
struct Known {
    app_id: AppId,
    hostname: Option<String>,
    last: TaskState,
    last_uuid: Option<String>,
}

/// What is launched by one offer together.
struct Fit {
    /// Each with its resources.
    tasks: Vec<(AppId, Vec<Value>)>,
    executor: Option<(String, Started)>,
}

pub(super) struct Core {
    config: SchedulerConfig,
    caller: Caller,
    /// Distinguishes this run's task ids from those of other runs.
    run_id: String,
    launches: u64,
    apps: BTreeMap<AppId, Entry>,
    tasks: BTreeMap<String, Known>,
    executors: BTreeMap<String, Started>,
    subscribed: bool,
    suppressed: bool,
    reconcile_at: Option<Instant>,
    heartbeat: Option<Duration>,
    silent_at: Option<Instant>,
    tearing_down: bool,
}

impl Core {
    pub(super) fn new(config: SchedulerConfig, run_id: String) -> Self {
        Self {
            config,
            caller: Caller::default(),
            run_id,
            launches: 0,
            apps: BTreeMap::new(),
            tasks: BTreeMap::new(),
            executors: BTreeMap::new(),
            subscribed: false,
            suppressed: false,
            reconcile_at: None,
            heartbeat: None,
            silent_at: None,
            tearing_down: false,
        }
    }

    /// The `SUBSCRIBE` call for a new connection.
    #[must_use]
    pub(super) fn subscribe_call(&self) -> Value {
        self.caller.subscribe(&self.config)
    }

    /// When [`Core::tick`] is due.
    #[must_use]
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let of_apps = self.apps.values().filter_map(|entry| match &entry.phase {
            Phase::Waiting { until, revived: false } if self.subscribed => Some(*until),
            Phase::Active(active) if self.subscribed => active.kill_at,
            _ => None,
        });
        of_apps.chain(self.reconcile_at).chain(self.silent_at).min()
    }

    /// Adds apps, to be started as soon as an offer fits. Those of a task group come together.
    pub(super) fn run(&mut self, now: Moment, apps: Vec<App>) -> Result<Vec<Output>, RunError> {
        let there =
            |app: &&App| self.apps.get(&app.id).is_some_and(|entry| !matches!(entry.phase, Phase::Ended));
        if let Some(app) = apps.iter().find(there) {
            return Err(RunError::AlreadyThere { id: app.id.clone() });
        }
        for app in apps {
            let phase = Phase::Waiting { until: now.instant, revived: false };
            self.apps.insert(app.id.clone(), Entry { app, phase, failures: 0 });
        }
        let mut out = Vec::new();
        self.settle(now, &mut out);
        Ok(out)
    }

    /// Kills an app's task and forgets the app once that has ended.
    pub(super) fn stop(&mut self, now: Moment, id: &str) -> Result<Vec<Output>, RunError> {
        let found = self.apps.iter_mut().find(|(app_id, _)| app_id.as_str() == id);
        let (app_id, entry) = found.ok_or_else(|| RunError::NotThere { id: id.to_owned() })?;
        if let Phase::Active(active) = &mut entry.phase {
            active.kill_at.get_or_insert(now.instant);
        } else {
            let app_id = app_id.clone();
            self.apps.remove(&app_id);
        }
        let mut out = Vec::new();
        self.settle(now, &mut out);
        Ok(out)
    }

    /// Has an executor end, with its tasks.
    pub(super) fn shutdown(&mut self, id: &str) -> Result<Vec<Output>, RunError> {
        let started = self.executors.get(id).ok_or_else(|| RunError::NoExecutor { id: id.to_owned() })?;
        Ok(vec![Output::Call(self.caller.shutdown(id, &started.agent_id))])
    }

    /// Ends the framework and all of its tasks.
    pub(super) fn teardown(&mut self) -> Vec<Output> {
        self.tearing_down = true;
        if self.subscribed { vec![Output::Call(self.caller.bare("TEARDOWN"))] } else { Vec::new() }
    }

    /// The connection to the master was lost or could not be made.
    pub(super) fn disconnected(&mut self) {
        self.subscribed = false;
        self.reconcile_at = None;
        self.silent_at = None;
    }

    pub(super) fn event(&mut self, now: Moment, event: Event) -> Vec<Output> {
        let mut out = Vec::new();
        match event {
            Event::Subscribed { subscribed } => {
                let id = subscribed.framework_id.value;
                self.caller.framework_id = Some(id.clone());
                self.subscribed = true;
                self.suppressed = false;
                self.heartbeat = subscribed
                    .heartbeat_interval_seconds
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds * HEARTBEATS_MISSED).ok());
                out.push(Output::Subscribed(id));
                if self.tearing_down {
                    out.push(Output::Call(self.caller.bare("TEARDOWN")));
                    return out;
                }
                // A new subscription is offered everything at once: nobody need ask.
                for entry in self.apps.values_mut() {
                    if let Phase::Waiting { until, revived } = &mut entry.phase {
                        *revived = *until <= now.instant;
                    }
                }
                // Both kinds: ours by name, to learn of those that the master forgot; all, to learn of those that we
                // did not start.
                self.reconcile(now, &mut out);
                out.push(Output::Call(self.caller.reconcile(std::iter::empty())));
            }
            Event::Offers { offers } => self.offers(now, &offers.offers, &mut out),
            Event::Update { update } => self.update(now, update.status, &mut out),
            Event::Failure { failure: Failure { agent_id, executor_id } } => {
                let of = |known: &str, said: &Option<Id>| said.as_ref().is_none_or(|id| id.value == known);
                self.executors
                    .retain(|id, started| !(of(&started.agent_id, &agent_id) && of(id, &executor_id)));
            }
            Event::Error { error } => out.push(Output::Rejected(error.message)),
            Event::Other => {}
        }
        self.silent_at = self.heartbeat.map(|limit| now.instant + limit);
        self.settle(now, &mut out);
        out
    }

    /// The time of [`Core::next_deadline`] has come.
    pub(super) fn tick(&mut self, now: Moment) -> Vec<Output> {
        let mut out = Vec::new();
        if self.silent_at.is_some_and(|at| at <= now.instant) {
            self.silent_at = None;
            out.push(Output::Reconnect);
            return out;
        }
        if self.reconcile_at.is_some_and(|at| at <= now.instant) {
            self.reconcile(now, &mut out);
        }
        self.settle(now, &mut out);
        out
    }

    fn reconcile(&mut self, now: Moment, out: &mut Vec<Output>) {
        self.reconcile_at = Some(now.instant + self.config.reconcile_every);
        let active: Vec<_> = self.apps.values().filter_map(Entry::active).collect();
        if !active.is_empty() {
            let tasks = active.iter().map(|active| (active.task_id.as_str(), Some(active.agent_id.as_str())));
            out.push(Output::Call(self.caller.reconcile(tasks)));
        }
    }

    /// Sends the kills that are due, and tells the master whether offers are wanted.
    fn settle(&mut self, now: Moment, out: &mut Vec<Output>) {
        if !self.subscribed || self.tearing_down {
            return;
        }
        let (mut wanted, mut revive) = (false, false);
        for entry in self.apps.values_mut() {
            match &mut entry.phase {
                Phase::Active(active) if active.kill_at.is_some_and(|at| at <= now.instant) => {
                    active.kill_at = Some(now.instant + KILL_AGAIN_AFTER);
                    out.push(Output::Call(self.caller.kill(&active.task_id, Some(&active.agent_id))));
                }
                Phase::Waiting { until, revived } if *until <= now.instant => {
                    wanted = true;
                    revive |= !*revived;
                    *revived = true;
                }
                _ => {}
            }
        }
        if revive {
            self.suppressed = false;
            out.push(Output::Call(self.caller.bare("REVIVE")));
        } else if !wanted && !self.suppressed {
            self.suppressed = true;
            out.push(Output::Call(self.caller.bare("SUPPRESS")));
        }
    }

    /// Answers every offer at once: none is kept, so none can be rescinded.
    fn offers(&mut self, now: Moment, offers: &[Value], out: &mut Vec<Output>) {
        let refuse = self.config.refuse.as_secs_f64();
        let mut declined = Vec::new();
        for mut offer in offers.iter().filter_map(Offer::read) {
            let mut operations = Vec::new();
            let mut launches = Vec::new();
            let (mut tasks, mut groups) = (Vec::new(), BTreeSet::new());
            for app_id in self.apps.keys().cloned().collect::<Vec<_>>() {
                match self.apps.get(&app_id).and_then(|entry| entry.app.group.clone()) {
                    None => {
                        let Some(launch) = self.fit(now, &mut offer, &[app_id]) else { continue };
                        tasks.extend(self.launch(now, &offer, launch, &mut launches).0);
                    }
                    Some(group) if groups.insert(group.clone()) => {
                        let members =
                            self.apps.values().filter(|entry| entry.app.group.as_ref() == Some(&group));
                        let members: Vec<_> = members.map(|entry| entry.app.id.clone()).collect();
                        let Some(launch) = self.fit(now, &mut offer, &members) else { continue };
                        let (tasks, executor) = self.launch(now, &offer, launch, &mut launches);
                        let launch = json!({ "executor": executor, "task_group": { "tasks": tasks } });
                        operations.push(json!({ "type": "LAUNCH_GROUP", "launch_group": launch }));
                    }
                    Some(_) => {}
                }
            }
            if !tasks.is_empty() {
                operations.push(json!({ "type": "LAUNCH", "launch": { "task_infos": tasks } }));
            }
            if operations.is_empty() {
                declined.push(offer.id);
            } else {
                out.append(&mut launches);
                out.push(Output::Call(self.caller.accept(&offer.id, &operations, refuse)));
            }
        }
        if !declined.is_empty() {
            let waiting = self.apps.values().any(|entry| matches!(entry.phase, Phase::Waiting { .. }));
            let refuse = if waiting { refuse } else { REFUSE_UNWANTED_SECONDS };
            out.push(Output::Call(self.caller.decline(&declined, refuse)));
        }
    }

    /// Takes what these apps ask for out of an offer, with that of their executor if it does not run yet: for all of
    /// them or for none.
    fn fit(&self, now: Moment, offer: &mut Offer, apps: &[AppId]) -> Option<Fit> {
        let mut left = offer.clone();
        let (mut tasks, mut executor) = (Vec::new(), None);
        for id in apps {
            let entry = self.apps.get(id)?;
            match entry.phase {
                Phase::Waiting { until, .. } if until <= now.instant && !self.tearing_down => {}
                _ => return None,
            }
            if let (Some(of), None) = (&entry.app.executor, &executor) {
                let started = match self.executors.get(&of.id) {
                    Some(started) if started.agent_id == offer.agent_id => started.clone(),
                    Some(_) => return None,
                    None => {
                        let info = of.info(self.caller.framework_id.as_deref(), &left.take_executor(of)?);
                        Started { agent_id: offer.agent_id.clone(), info }
                    }
                };
                executor = Some((of.id.clone(), started));
            }
            tasks.push((id.clone(), left.take(&entry.app)?));
        }
        *offer = left;
        Some(Fit { tasks, executor })
    }

    /// The tasks of apps that an offer fits, and their executor.
    fn launch(
        &mut self,
        now: Moment,
        offer: &Offer,
        fit: Fit,
        records: &mut Vec<Output>,
    ) -> (Vec<Value>, Option<Value>) {
        let mut tasks = Vec::new();
        let executor = fit.executor.as_ref().map(|(_, started)| started.info.clone());
        self.executors.extend(fit.executor);
        for (app_id, resources) in fit.tasks {
            let Some(entry) = self.apps.get_mut(&app_id) else { continue };
            self.launches += 1;
            let task_id = format!("{}.{}.{}", app_id.in_task_id(), self.run_id, self.launches);
            let mut task = entry.app.task_info(&task_id, &offer.agent_id, &resources);
            if let (Some(executor), None) = (&executor, &entry.app.group) {
                task["executor"] = executor.clone();
            }
            tasks.push(task);
            let known = Known {
                app_id,
                hostname: Some(offer.hostname.clone()),
                last: TaskState::Staging,
                last_uuid: None,
            };
            records.push(Output::Record(known.note(now, &task_id, &offer.agent_id)));
            self.tasks.insert(task_id.clone(), known);
            entry.phase = Phase::Active(Active {
                task_id,
                agent_id: offer.agent_id.clone(),
                running_since: None,
                kill_at: None,
            });
        }
        (tasks, executor)
    }

    fn update(&mut self, now: Moment, status: TaskStatus, out: &mut Vec<Output>) {
        let task_id = status.task_id.value.clone();
        let agent_id = status.agent_id.as_ref().map(|id| id.value.clone());
        if let (Some(uuid), Some(agent_id)) = (&status.uuid, &agent_id) {
            out.push(Output::Call(self.caller.acknowledge(agent_id, &task_id, uuid)));
        }
        let state = status.state;
        let Some(changed) = self.note(now, status, out) else { return };
        let owner = self
            .apps
            .iter_mut()
            .find(|(_, entry)| matches!(&entry.phase, Phase::Active(active) if active.task_id == task_id));
        let Some((app_id, entry)) = owner else {
            // Given up, or never ours: it must not run beside its replacement.
            if state.is_live() && state != TaskState::Killing && self.config.kill_returning_tasks {
                out.push(Output::Call(self.caller.kill(&task_id, agent_id.as_deref())));
            }
            return;
        };
        let Phase::Active(active) = &mut entry.phase else { return };
        if state.is_live() {
            if state == TaskState::Running && changed {
                active.running_since.get_or_insert(now.instant);
            }
        } else if active.kill_at.is_some() {
            let app_id = app_id.clone();
            self.apps.remove(&app_id);
        } else {
            entry.ended(now.instant, state, self.config.backoff);
        }
    }

    /// Notes an update in the history, unless it only repeats what is known. Whether it was new; `None` if it names a
    /// task that no app of ours can have had.
    fn note(&mut self, now: Moment, status: TaskStatus, out: &mut Vec<Output>) -> Option<bool> {
        let task_id = status.task_id.value;
        if !self.tasks.contains_key(&task_id) {
            let known = Known {
                app_id: AppId::of_task(&task_id)?,
                hostname: None,
                last: TaskState::Staging,
                last_uuid: None,
            };
            self.tasks.insert(task_id.clone(), known);
        }
        let known = self.tasks.get_mut(&task_id)?;
        let retried = status.uuid.is_some() && status.uuid == known.last_uuid;
        let answered = status.reason.as_deref() == Some("REASON_RECONCILIATION");
        if known.last == status.state && (retried || answered) {
            return Some(false);
        }
        known.last = status.state;
        known.last_uuid = status.uuid;
        out.push(Output::Record(TaskEvent {
            app_id: known.app_id.clone(),
            task_id,
            agent_id: status.agent_id.map(|id| id.value),
            hostname: known.hostname.clone(),
            state: status.state,
            reason: status.reason,
            source: status.source,
            message: status.message,
            at: now.instant,
            wall: now.wall,
        }));
        Some(true)
    }
}

impl Known {
    /// The scheduler's own note that a launch was sent.
    fn note(&self, now: Moment, task_id: &str, agent_id: &str) -> TaskEvent {
        TaskEvent {
            app_id: self.app_id.clone(),
            task_id: task_id.to_owned(),
            agent_id: Some(agent_id.to_owned()),
            hostname: self.hostname.clone(),
            state: TaskState::Staging,
            reason: None,
            source: None,
            message: None,
            at: now.instant,
            wall: now.wall,
        }
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
