//! The executor's loop: waits for the agent, the task and the clock, asks the core, and does what it says.

use std::{
    collections::VecDeque,
    error::Error,
    future::pending,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use tokio::time::sleep_until;

use super::{
    agent::{Agent, Link},
    core::{Action, Core, Input, Moment},
    setup::Setup,
    task::Task,
};

/// Between two tries to subscribe. The agent waits 2 s for its executors after a restart
/// (`executor_reregistration_timeout`), and answers 503 before: several tries must fit in.
pub(super) const SUBSCRIBE_AGAIN_AFTER: Duration = Duration::from_millis(200);

pub(super) async fn run(setup: Setup) -> i32 {
    let agent = match Agent::new(&setup) {
        Ok(agent) => agent,
        Err(error) => {
            eprintln!("mesos-executor: no HTTP client: {error}");
            return super::FAILURE;
        }
    };
    let core = Core::new(
        setup.caller.clone(),
        setup.recovery_timeout,
        setup.shutdown_grace,
        setup.task_command.clone(),
        Box::new(random_uuid),
    );
    Shell { setup, agent, core, link: None, task: None, subscribe_at: Some(Instant::now()), last_error: None }
        .run()
        .await
}

struct Shell {
    setup: Setup,
    agent: Agent,
    core: Core,
    link: Option<Link>,
    task: Option<Task>,
    /// When to try the next link; `None` while there is one.
    subscribe_at: Option<Instant>,
    last_error: Option<String>,
}

impl Shell {
    async fn run(mut self) -> i32 {
        loop {
            let input = self.wait().await;
            if let Some(input) = input
                && let Some(status) = self.apply(input)
            {
                return status;
            }
        }
    }

    /// What happens next; `None` if the core need not know.
    async fn wait(&mut self) -> Option<Input> {
        let deadline = self.core.next_deadline();
        tokio::select! {
            event = next_event(self.link.as_mut()) => Some(match event {
                Ok(event) => Input::Event(event),
                Err(error) => {
                    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                    self.complain(format!("{error}{cause}"));
                    self.link = None;
                    self.subscribe_at = Some(Instant::now() + SUBSCRIBE_AGAIN_AFTER);
                    Input::Disconnected
                }
            }),
            ended = task_ended(self.task.as_mut()) => {
                self.task = None;
                Some(Input::Ended(ended))
            }
            () = until(self.subscribe_at) => {
                self.subscribe_at = None;
                self.link = Some(self.agent.subscribe(&self.core.subscribe_call()));
                None
            }
            () = until(deadline) => Some(Input::Tick),
        }
    }

    /// The agent may be away for minutes: the same complaint is made once.
    fn complain(&mut self, error: String) {
        if self.last_error.as_ref() != Some(&error) {
            eprintln!("mesos-executor: {error}; subscribing again");
            self.last_error = Some(error);
        }
    }

    /// Does what the core says; the exit status once it says that this is the end.
    fn apply(&mut self, input: Input) -> Option<i32> {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            for action in self.core.handle(now(), input) {
                match action {
                    Action::Send(call) => {
                        if let Some(link) = &self.link {
                            link.send(self.agent.request(&call));
                        }
                    }
                    Action::Launch(command) => inputs.push_back(match Task::start(&self.setup, &command) {
                        Ok(task) => {
                            self.task = Some(task);
                            Input::Launched
                        }
                        Err(error) => Input::LaunchFailed(format!("Failed to launch command: {error}")),
                    }),
                    Action::Terminate => self.signal(Signal::TERM),
                    Action::Kill => self.signal(Signal::KILL),
                    Action::Exit(status) => return Some(status),
                }
            }
        }
        None
    }

    fn signal(&self, signal: Signal) {
        if let Some(task) = &self.task {
            task.signal(signal);
        }
    }
}

pub(super) async fn next_event(
    link: Option<&mut Link>,
) -> Result<super::protocol::Event, super::agent::LinkError> {
    match link {
        Some(link) => link.next().await,
        None => pending().await,
    }
}

async fn task_ended(task: Option<&mut Task>) -> super::ended::Ended {
    match task {
        Some(task) => task.ended().await,
        None => pending().await,
    }
}

pub(super) async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant.into()).await,
        None => pending().await,
    }
}

pub(super) fn now() -> Moment {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Moment { instant: Instant::now(), unix }
}

/// A random (version 4) UUID in the canonical base64 form of its 16 bytes: 21 letters of 6 bits, one that carries the
/// last 2 bits, and padding. The protocol carries an update's id in this form, and nothing here ever needs the bytes.
/// Version and variant must be right: an agent that reads an id without them aborts.
pub(super) fn random_uuid() -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut random = [0_u8; 22];
    // Without randomness two updates could share an id, and the agent would drop the second: better no executor.
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut random))
        .expect("/dev/urandom is there and never ends");
    random[8] = (random[8] & 0b11) | 0b01_0000; // bits 48 to 53 begin byte 6: version 4
    random[10] = (random[10] & 0b11_1100) | 0b10; // bits 64 and 65 begin byte 8: the variant
    let mut text: String =
        random[..21].iter().map(|byte| char::from(LETTERS[usize::from(byte & 63)])).collect();
    text.push(char::from(LETTERS[usize::from(random[21] & 3) << 4]));
    text.push_str("==");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_id_is_canonical_base64_of_sixteen_bytes() {
        let id = random_uuid();
        assert_eq!(id.len(), 24);
        let letters = id.as_bytes();
        assert!(id.ends_with("==") && matches!(letters[21], b'A' | b'Q' | b'g' | b'w'), "{id}");
        assert!(matches!(letters[8], b'Q'..=b'T'), "version 4: {id}");
        assert!(b"CGKOSWaeimquy26+".contains(&letters[10]), "variant 1: {id}");
        assert_ne!(id, random_uuid());
    }
}
