//! The scheduler's loop: waits for commands, the master and the clock, asks the core, and does what it says.

use std::{
    error::Error,
    future::pending,
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::mpsc::UnboundedReceiver, time::sleep_until};

use super::{
    app::App,
    core::{Core, Moment, Output, RunError},
    handle::Board,
    master::{Link, LinkError, Masters, Received},
};

/// Between two tries to subscribe: a master that is being started is found soon, and a missing one is no load.
const SUBSCRIBE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What the handle asks for. Answers go to a thread that waits for them.
pub(super) enum Command {
    Run(Vec<App>, Sender<Result<(), RunError>>),
    Stop(String, Sender<Result<(), RunError>>),
    /// An executor.
    Shutdown(String, Sender<Result<(), RunError>>),
    /// Answered when the master has accepted it; the loop ends then.
    Teardown(Sender<()>),
}

pub(super) struct Shell {
    core: Core,
    masters: Masters,
    commands: UnboundedReceiver<Command>,
    board: Arc<Board>,
    link: Option<Link>,
    /// When to try the next link; `None` while there is one.
    subscribe_at: Option<Instant>,
    torn_down: Option<Sender<()>>,
    /// The last reason for which a link ended, so that a master that stays away is logged once.
    last_error: Option<String>,
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Continue,
    End,
}

impl Shell {
    pub(super) fn new(
        core: Core,
        masters: Masters,
        commands: UnboundedReceiver<Command>,
        board: Arc<Board>,
    ) -> Self {
        let subscribe_at = Some(Instant::now());
        Self { core, masters, commands, board, link: None, subscribe_at, torn_down: None, last_error: None }
    }

    /// Runs until torn down, until the master rejects the framework, or until the handle is gone.
    pub(super) async fn run(mut self) {
        while self.step().await == Next::Continue {}
    }

    async fn step(&mut self) -> Next {
        let deadline = self.core.next_deadline();
        let outputs = tokio::select! {
            command = self.commands.recv() => match command {
                Some(command) => self.command(command),
                None => return Next::End,
            },
            received = receive(self.link.as_mut()) => match received {
                Ok(Received::Event(event)) => self.core.event(now(), event),
                Ok(Received::TornDown) => {
                    if let Some(answer) = self.torn_down.take() {
                        let _ = answer.send(());
                    }
                    return Next::End;
                }
                Err(error) => {
                    self.lost(&error);
                    Vec::new()
                }
            },
            () = until(self.subscribe_at) => {
                self.subscribe_at = None;
                self.link = Some(self.masters.subscribe(&self.core.subscribe_call()));
                Vec::new()
            }
            () = until(deadline) => self.core.tick(now()),
        };
        self.apply(outputs)
    }

    fn command(&mut self, command: Command) -> Vec<Output> {
        let (result, answer) = match command {
            Command::Run(apps, answer) => (self.core.run(now(), apps), answer),
            Command::Stop(id, answer) => (self.core.stop(now(), &id), answer),
            Command::Shutdown(id, answer) => (self.core.shutdown(&id), answer),
            Command::Teardown(answer) => {
                self.torn_down = Some(answer);
                return self.core.teardown();
            }
        };
        let (outputs, result) = match result {
            Ok(outputs) => (outputs, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        // The asker may have given up waiting.
        let _ = answer.send(result);
        outputs
    }

    fn lost(&mut self, error: &LinkError) {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let text = format!("{error}{cause}");
        if self.last_error.as_ref() != Some(&text) {
            tracing::warn!("{text}; subscribing again");
            self.last_error = Some(text);
        }
        self.drop_link();
    }

    fn drop_link(&mut self) {
        self.link = None;
        self.subscribe_at = Some(Instant::now() + SUBSCRIBE_AGAIN_AFTER);
        self.core.disconnected();
    }

    fn apply(&mut self, outputs: Vec<Output>) -> Next {
        for output in outputs {
            match output {
                Output::Call(call) => {
                    if let Some(link) = &self.link {
                        link.send(call);
                    }
                }
                Output::Record(event) => self.board.record(event),
                Output::Subscribed(id) => {
                    self.last_error = None;
                    self.board.subscribed(id);
                }
                Output::Reconnect => {
                    tracing::warn!("the master is silent; subscribing again");
                    self.drop_link();
                }
                Output::Rejected(message) => {
                    // After a teardown whose answer was lost, this is the answer: the framework is gone.
                    if let Some(answer) = self.torn_down.take() {
                        let _ = answer.send(());
                    }
                    self.board.fail(message);
                    return Next::End;
                }
            }
        }
        Next::Continue
    }
}

async fn receive(link: Option<&mut Link>) -> Result<Received, LinkError> {
    match link {
        Some(link) => link.next().await,
        None => pending().await,
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => pending().await,
    }
}

fn now() -> Moment {
    Moment { instant: Instant::now(), wall: SystemTime::now() }
}
