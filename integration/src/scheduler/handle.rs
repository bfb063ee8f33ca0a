//! The handle that tests and demonstrations hold. Its methods block, with deadlines; call them from ordinary threads.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{
    SchedulerConfig,
    app::{App, AppError},
    core::{Core, RunError},
    history::{TaskEvent, TaskState},
    master::Masters,
    run::{Command, Shell},
};

/// The loop answers a command within microseconds; a longer silence means that it is gone.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// Long enough for a master to fail over.
const TEARDOWN_LIMIT: Duration = Duration::from_secs(20);

/// The scheduler cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The HTTP client could not be made.
    #[error("no HTTP client")]
    Client(#[source] reqwest::Error),
    /// The thread or its runtime could not be made.
    #[error("no thread for the scheduler")]
    Thread(#[source] std::io::Error),
    /// The app is not valid.
    #[error("app refused")]
    App(#[from] AppError),
    /// The app is there already, or is not.
    #[error("app refused")]
    Run(#[from] RunError),
    /// The scheduler has ended: torn down, or rejected by the master.
    #[error("the scheduler has ended: {reason}")]
    Ended {
        /// The master's words, if it was the master.
        reason: String,
    },
    /// No master accepted the teardown in time; the tasks live on until the failover timeout.
    #[error("no master accepted the teardown within {} s", TEARDOWN_LIMIT.as_secs())]
    TeardownTimeout,
}

/// What was waited for did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The deadline passed.
    #[error("deadline passed; seen so far: {}", brief(seen))]
    Deadline {
        /// What happened until then.
        seen: Vec<TaskEvent>,
    },
    /// The scheduler has ended, so nothing more will happen.
    #[error("the scheduler has ended ({reason}); seen so far: {}", brief(seen))]
    Ended {
        /// Why it ended.
        reason: String,
        /// What happened until then.
        seen: Vec<TaskEvent>,
    },
}

fn brief(seen: &[TaskEvent]) -> String {
    let line = |event: &TaskEvent| {
        let message = event.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default();
        format!("{} {}{message}", event.task_id, event.state)
    };
    if seen.is_empty() { "nothing".into() } else { seen.iter().map(line).collect::<Vec<_>>().join(", ") }
}

/// What the loop tells and waiters read.
#[derive(Debug, Default)]
pub(super) struct Board {
    state: Mutex<BoardState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct BoardState {
    events: Vec<TaskEvent>,
    framework_id: Option<String>,
    ended: Option<String>,
}

impl Board {
    pub(super) fn record(&self, event: TaskEvent) {
        self.change(|state| state.events.push(event));
    }

    pub(super) fn subscribed(&self, framework_id: String) {
        self.change(|state| state.framework_id = Some(framework_id));
    }

    pub(super) fn fail(&self, reason: String) {
        self.change(|state| {
            state.ended.get_or_insert(reason);
        });
    }

    fn change(&self, change: impl FnOnce(&mut BoardState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// No code that holds the lock can leave the state half changed, so poison means nothing here.
    fn lock(&self) -> MutexGuard<'_, BoardState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` gives something. Gives up at the deadline, or when the scheduler has ended.
    fn wait<T>(
        &self,
        deadline: Instant,
        mut ready: impl FnMut(&BoardState) -> Option<T>,
    ) -> Result<T, Option<String>> {
        let mut state = self.lock();
        loop {
            if let Some(found) = ready(&state) {
                return Ok(found);
            }
            if let Some(reason) = &state.ended {
                return Err(Some(reason.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(None);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl BoardState {
    fn history(&self, app_id: &str) -> Vec<TaskEvent> {
        self.events.iter().filter(|event| event.app_id.as_str() == app_id).cloned().collect()
    }
}

/// A running scheduler. Dropping it disconnects and leaves the tasks to the failover timeout; see
/// [`Scheduler::teardown`].
#[derive(Debug)]
pub struct Scheduler {
    commands: Option<UnboundedSender<Command>>,
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts a scheduler on a thread of its own, which the calling thread starts, so that it is in the caller's
    /// network namespace. `master_url` is `http://host:port`; several, separated by commas, are tried in turn, and a
    /// master that does not lead points to the one that does. Returns before it is subscribed, and keeps trying.
    ///
    /// # Errors
    /// The thread or the HTTP client could not be made.
    pub fn start(master_url: &str, config: SchedulerConfig) -> Result<Self, SchedulerError> {
        let masters = Masters::new(master_url).map_err(SchedulerError::Client)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SchedulerError::Thread)?;
        let board = Arc::new(Board::default());
        let (commands, receiver) = unbounded_channel();
        let shell = Shell::new(Core::new(config, run_id()), masters, receiver, Arc::clone(&board));
        let thread = std::thread::Builder::new()
            .name("scheduler".into())
            .spawn({
                let board = Arc::clone(&board);
                move || {
                    runtime.block_on(shell.run());
                    board.fail("torn down".into());
                }
            })
            .map_err(SchedulerError::Thread)?;
        Ok(Self { commands: Some(commands), board, thread: Some(thread) })
    }

    /// Keeps `app` running from now on.
    ///
    /// # Errors
    /// The app is not valid, its id is taken, or the scheduler has ended.
    pub fn run(&self, app: App) -> Result<(), SchedulerError> {
        self.run_together(vec![app])
    }

    /// Keeps apps running from now on that are told of at once, as those of a task group have to be.
    ///
    /// # Errors
    /// As [`Scheduler::run`]; then none is run.
    pub fn run_together(&self, apps: Vec<App>) -> Result<(), SchedulerError> {
        apps.iter().try_for_each(App::validate)?;
        self.ask(|answer| Command::Run(apps, answer))
    }

    /// Has an executor end that apps named; returns at once.
    ///
    /// # Errors
    /// None of this id runs, or the scheduler has ended.
    pub fn shutdown_executor(&self, id: &str) -> Result<(), SchedulerError> {
        self.ask(|answer| Command::Shutdown(id.to_owned(), answer))
    }

    /// Kills the app's task, with its grace, and forgets the app once the task has ended; its history stays. Returns
    /// at once: wait for `TASK_KILLED` with [`Scheduler::wait_for`].
    ///
    /// # Errors
    /// There is no such app, or the scheduler has ended.
    pub fn stop(&self, app_id: &str) -> Result<(), SchedulerError> {
        self.ask(|answer| Command::Stop(app_id.to_owned(), answer))
    }

    /// Waits until `predicate` holds for the history of an app, and returns that history.
    ///
    /// # Errors
    /// The deadline passed, or the scheduler ended; both say what was seen.
    pub fn wait_for(
        &self,
        app_id: &str,
        deadline: Instant,
        mut predicate: impl FnMut(&[TaskEvent]) -> bool,
    ) -> Result<Vec<TaskEvent>, WaitError> {
        let found = self.board.wait(deadline, |state| {
            let history = state.history(app_id);
            predicate(&history).then_some(history)
        });
        found.map_err(|ended| self.not_seen(app_id, ended))
    }

    /// Waits until the last thing that happened to an app is that a task runs, and returns that event.
    ///
    /// # Errors
    /// As [`Scheduler::wait_for`].
    pub fn wait_until_running(&self, app_id: &str, deadline: Instant) -> Result<TaskEvent, WaitError> {
        let found = self.board.wait(deadline, |state| {
            let last = state.events.iter().rev().find(|event| event.app_id.as_str() == app_id)?;
            (last.state == TaskState::Running).then(|| last.clone())
        });
        found.map_err(|ended| self.not_seen(app_id, ended))
    }

    /// Waits for the next event of any app after the first `seen` ones; returns all of those.
    ///
    /// # Errors
    /// As [`Scheduler::wait_for`].
    pub fn events_after(&self, seen: usize, deadline: Instant) -> Result<Vec<TaskEvent>, WaitError> {
        let found = self.board.wait(deadline, |state| {
            state.events.get(seen..).filter(|events| !events.is_empty()).map(<[TaskEvent]>::to_vec)
        });
        found.map_err(|ended| WaitError::from_parts(ended, Vec::new()))
    }

    /// Waits until the master knows this framework; returns its id.
    ///
    /// # Errors
    /// As [`Scheduler::wait_for`].
    pub fn wait_until_subscribed(&self, deadline: Instant) -> Result<String, WaitError> {
        let found = self.board.wait(deadline, |state| state.framework_id.clone());
        found.map_err(|ended| WaitError::from_parts(ended, Vec::new()))
    }

    /// Everything that has happened to an app so far, oldest first; empty for an app that never was.
    #[must_use]
    pub fn history(&self, app_id: &str) -> Vec<TaskEvent> {
        self.board.lock().history(app_id)
    }

    /// Ends the framework at the master, which kills all of its tasks.
    ///
    /// # Errors
    /// No master accepted it in time, or the scheduler had ended before.
    pub fn teardown(mut self) -> Result<(), SchedulerError> {
        let (answer, answered) = mpsc::channel();
        self.command(Command::Teardown(answer))?;
        match answered.recv_timeout(TEARDOWN_LIMIT) {
            Ok(()) => {
                self.end();
                Ok(())
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Err(SchedulerError::TeardownTimeout),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    fn ask(
        &self,
        command: impl FnOnce(mpsc::Sender<Result<(), RunError>>) -> Command,
    ) -> Result<(), SchedulerError> {
        let (answer, answered) = mpsc::channel();
        self.command(command(answer))?;
        Ok(answered.recv_timeout(COMMAND_LIMIT).map_err(|_| self.ended())??)
    }

    fn command(&self, command: Command) -> Result<(), SchedulerError> {
        let commands = self.commands.as_ref().ok_or_else(|| self.ended())?;
        commands.send(command).map_err(|_| self.ended())
    }

    fn ended(&self) -> SchedulerError {
        let reason = self.board.lock().ended.clone().unwrap_or_else(|| "it does not answer".into());
        SchedulerError::Ended { reason }
    }

    fn not_seen(&self, app_id: &str, ended: Option<String>) -> WaitError {
        WaitError::from_parts(ended, self.history(app_id))
    }

    /// The loop ends when nobody can command it any more.
    fn end(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been printed where it happened.
            let _ = thread.join();
        }
    }
}

impl WaitError {
    fn from_parts(ended: Option<String>, seen: Vec<TaskEvent>) -> Self {
        match ended {
            Some(reason) => Self::Ended { reason, seen },
            None => Self::Deadline { seen },
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.end();
    }
}

/// Milliseconds since the epoch, in hexadecimal: two runs that share a framework id differ.
fn run_id() -> String {
    format!("{:x}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scheduler whose master does not exist: port 9 of the loopback refuses connections.
    fn without_master() -> Scheduler {
        Scheduler::start("http://127.0.0.1:9", SchedulerConfig::default()).unwrap()
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_says_what_was_seen() {
        let scheduler = without_master();
        scheduler.run(App::shell("a", "true").unwrap()).unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = scheduler.wait_until_running("a", deadline).unwrap_err();
        assert!(Instant::now() >= deadline);
        assert_eq!(error.to_string(), "deadline passed; seen so far: nothing");
    }

    #[test]
    fn an_app_runs_once_and_can_be_stopped_once() {
        let scheduler = without_master();
        scheduler.run(App::shell("a", "true").unwrap()).unwrap();
        let again = scheduler.run(App::shell("a", "true").unwrap());
        assert!(matches!(again, Err(SchedulerError::Run(RunError::AlreadyThere { .. }))), "{again:?}");
        scheduler.stop("a").unwrap();
        assert!(matches!(scheduler.stop("a"), Err(SchedulerError::Run(RunError::NotThere { .. }))));
    }

    #[test]
    fn waiters_of_a_scheduler_that_ended_are_told_why() {
        let board = Board::default();
        board.fail("Framework has been removed".into());
        let waited = board.wait(Instant::now() + Duration::from_secs(60), |_| None::<()>);
        assert_eq!(waited, Err(Some("Framework has been removed".into())));
    }
}
