//! The isolator's thread: one loop, which takes in Mesos's calls, the keeper's lines and deadlines,
//! and never waits for anything else. What may take long is elsewhere: the connection itself
//! (`link`), starting a keeper (`starter`), making mount targets (`targets`).
//!
//! The connection may break at any time, for the keeper may be killed or upgraded. Every call without
//! an answer is sent again over the next one, in order: all are idempotent.

use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use shared::volume::ContainerId;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::calls::{CallId, Calls, Finish, Wait};
use super::executors::{Looked, Looks, Prepared};
use super::link::{self, News, Queue};
use super::looks::{self, Paths, Threads};
use super::mounts::ToHide;
use super::targets::{Made, Make, Makers};
use super::watches::Watches;
use super::{Done, mounts};
use crate::parameters::IsolatorParameters;
use crate::wire::{Call, KeeperLine, Limit};

/// The keeper's own deadline comes first; this one is for a keeper that is not there.
const PREPARE_GRACE: Duration = Duration::from_secs(2);
/// The keeper answers at once; this covers its restart.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long Mesos is held up by a keeper that does not answer what it is only told.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// A file system that answers makes a directory in milliseconds; this covers a busy one.
const TARGETS_TIMEOUT: Duration = Duration::from_secs(10);
/// Between a bug and the next try: a thread that fails at once must not use up a processor.
const AFTER_A_BUG: Duration = Duration::from_millis(100);

/// What Mesos's thread hands over.
pub(super) enum Command {
    /// Make the targets that `what` describes, if there are any, then ask the keeper.
    Prepare { call: Call, targets: Option<(String, Make)>, done: Done<Option<Vec<u8>>> },
    /// A container without volumes: it is to see these directories empty, and may show these paths or not.
    Hide { container: String, hidden: ToHide, paths: Paths, done: Done<Option<Vec<u8>>> },
    /// The tasks of an executor, before it has them.
    Look { agent: String, container: String, prepared: Prepared, done: Done<()> },
    /// A call whose refusal counts.
    Ask { call: Call, done: Done<()> },
    /// Something the keeper is told: until it has it. Never fails.
    Notify { call: Call, done: Done<()> },
    /// Complete when the container must end.
    Watch { container: ContainerId, done: Done<Vec<u8>> },
    /// The container is gone.
    Unwatch { container: ContainerId },
}

/// The connection, as the link told last.
enum State {
    Up(Queue),
    Refused(String),
    Down(String),
}

struct Connection {
    parameters: IsolatorParameters,
    commands: mpsc::UnboundedReceiver<Command>,
    news: mpsc::Receiver<News>,
    made: mpsc::UnboundedReceiver<Made>,
    looked: mpsc::UnboundedReceiver<Looked>,
    state: State,
    calls: Calls,
    watches: Watches,
    makers: Makers,
    looks: Looks,
    threads: Arc<Threads>,
}

/// Starts the thread.
pub(super) fn start(
    parameters: IsolatorParameters,
    docker_volume_isolator: bool,
) -> Result<mpsc::UnboundedSender<Command>, String> {
    let (sender, commands) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| format!("the isolator's runtime could not be made: {error}"))?;
    let news = runtime.block_on(async { link::start(&parameters) });
    let (makers, made) = Makers::new();
    let (looks, looked) = Looks::new(parameters.clone(), docker_volume_isolator);
    let connection = Connection {
        parameters,
        commands,
        news,
        made,
        looked,
        state: State::Down("it has not been reached yet".into()),
        calls: Calls::default(),
        watches: Watches::default(),
        makers,
        looks,
        threads: Arc::new(Threads::new()),
    };
    std::thread::Builder::new()
        .name("extvol-isolator".into())
        .spawn(move || run(&runtime, connection))
        .map_err(|error| format!("the isolator's thread could not be started: {error}"))?;
    Ok(sender)
}

/// Runs the loop to its end. A panic ends what was being done, a call at most, and not the watches of
/// all containers: Mesos would kill each of them.
fn run(runtime: &Runtime, mut connection: Connection) {
    // Every step leaves the maps whole: what is ended was taken out before.
    while catch_unwind(AssertUnwindSafe(|| runtime.block_on(connection.run()))).is_err() {
        tracing::error!("a bug: the isolator's thread panicked; it goes on without what it was doing");
        std::thread::sleep(AFTER_A_BUG);
    }
}

impl Connection {
    /// Good only when the isolator is gone.
    async fn run(&mut self) {
        loop {
            let wake = self.calls.deadline();
            let expiry = async {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = expiry => self.expire(),
                Some(news) = self.news.recv() => self.hear(news),
                Some(Made { id, targets }) = self.made.recv() => {
                    self.makers.ended(|id| self.calls.is_pending(id));
                    self.calls.made(id, targets);
                    self.send(id);
                }
                Some(looked) = self.looked.recv() => self.looks.ended(looked),
                command = self.commands.recv() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Prepare { call, targets, done } => {
                if let Call::Prepare { container, .. } = &call {
                    self.watches.prepare(container);
                }
                let answer_by = Instant::now() + self.parameters.keeper.prepare_timeout + PREPARE_GRACE;
                let finish: Finish = Box::new(|answer| {
                    done(answer.and_then(|(answer, targets)| mounts::with_volumes(answer, targets)));
                });
                match targets {
                    None => self.add(call, Wait::Answer { by: answer_by }, finish),
                    Some((what, make)) => {
                        let by = answer_by.min(Instant::now() + TARGETS_TIMEOUT);
                        if let Some(id) = self.ask(call, Wait::Targets { what, by, answer_by }, finish) {
                            self.makers.make(id, make);
                        }
                    }
                }
            }
            Command::Hide { container, hidden, paths, done } => {
                let threads = Arc::clone(&self.threads);
                tokio::spawn(async move { done(looks::answer(&threads, &container, hidden, paths).await) });
            }
            Command::Look { agent, container, prepared, done } => {
                self.looks.look(agent, container, prepared, done)
            }
            Command::Ask { call, done } => {
                let by = Instant::now() + ASK_TIMEOUT;
                self.add(call, Wait::Answer { by }, Box::new(|answer| done(answer.map(drop))));
            }
            Command::Notify { call, done } => {
                match &call {
                    Call::Recover { known, .. } => self.watches.recover(known),
                    Call::Cleanup { container, .. } => self.calls.forget(container),
                    _ => {}
                }
                let by = Instant::now() + NOTIFY_TIMEOUT;
                let finish: Finish = Box::new(|answer| {
                    // A failed recover would stop the agent, a failed cleanup keep the container for ever.
                    if let Err(refused) = answer {
                        tracing::error!("the keeper refuses what it is told: {refused}");
                    }
                    done(Ok(()));
                });
                self.add(call, Wait::Delivery { by }, finish);
            }
            Command::Watch { container, done } => self.watches.watch(container, done),
            Command::Unwatch { container } => self.watches.forget(&container),
        }
    }

    fn add(&mut self, call: Call, wait: Wait, finish: Finish) {
        if let Some(id) = self.ask(call, wait, finish) {
            self.send(id);
        }
    }

    /// Takes a call in; None when it ended at once.
    fn ask(&mut self, call: Call, wait: Wait, finish: Finish) -> Option<CallId> {
        match (&self.state, &wait) {
            (State::Refused(_), Wait::Delivery { .. }) | (State::Up(_) | State::Down(_), _) => {
                self.calls.add(call, wait, finish)
            }
            (State::Refused(why), _) => {
                finish(Err(why.clone()));
                None
            }
        }
    }

    fn send(&self, id: CallId) {
        if let (State::Up(queue), Some(line)) = (&self.state, self.calls.line(id)) {
            // A connection that has just broken: the call is sent over the next one.
            let _ = queue.send(line);
        }
    }

    fn hear(&mut self, news: News) {
        let socket = self.parameters.keeper.socket();
        let socket = socket.display();
        match news {
            News::Line(KeeperLine::Answer { id, answer }) => self.calls.end(CallId(id), Ok(answer)),
            News::Line(KeeperLine::Refused { id, refused }) => self.calls.end(CallId(id), Err(refused)),
            News::Line(KeeperLine::Limit { limit: Limit { container, message } }) => {
                self.watches.limit(container, message);
            }
            News::Up(queue) => {
                tracing::info!("connected to the keeper at {socket}");
                for line in self.calls.lines() {
                    let _ = queue.send(line);
                }
                self.state = State::Up(queue);
            }
            News::Refused(refused) => {
                let why = format!("extvol-keeper on this host refuses the agent's module: {refused}");
                if !matches!(&self.state, State::Refused(known) if *known == why) {
                    tracing::error!("{why} (at {socket})");
                }
                self.state = State::Refused(why.clone());
                self.calls.refuse(&why);
            }
            News::Down(why) => {
                if !matches!(&self.state, State::Down(known) if *known == why) {
                    tracing::warn!("no keeper answers at {socket}: {why}");
                }
                self.state = State::Down(why);
            }
        }
    }

    fn expire(&mut self) {
        let why = match &self.state {
            State::Up(_) => "it has the call, or reads nothing",
            State::Refused(why) | State::Down(why) => why,
        };
        self.calls.expire(Instant::now(), why);
    }
}
