//! The loop: waits for the agent, the tasks and the clock, asks the core, and does what it says.

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    time::Instant,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    Kind,
    core::{Action, Core, End, Input},
    nested::Containers,
};
use crate::executor::{
    FAILURE,
    agent::{Agent, Link},
    ended::Ended,
    protocol::{CommandInfo, Environment, Event},
    run::{SUBSCRIBE_AGAIN_AFTER, next_event, now, random_uuid, until},
    setup::Setup,
    task::Task,
};

pub(super) async fn run(kind: Kind, setup: Setup) -> i32 {
    let (agent, containers) = match (Agent::new(&setup), Containers::new(&setup)) {
        (Ok(agent), Ok(containers)) => (agent, containers),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("executor: no HTTP client: {error}");
            return FAILURE;
        }
    };
    let (caller, recovery) = (setup.caller.clone(), setup.recovery_timeout);
    let core = Core::new(kind, caller, recovery, setup.shutdown_grace, Box::new(random_uuid));
    let (inputs, received) = unbounded_channel();
    let shell = Shell {
        kind,
        setup,
        agent,
        containers,
        core,
        link: None,
        own_container: Value::Null,
        tasks: BTreeMap::new(),
        inputs,
        received,
        subscribe_at: Some(Instant::now()),
    };
    shell.run().await
}

struct Shell {
    kind: Kind,
    setup: Setup,
    agent: Agent,
    containers: Containers,
    core: Core,
    link: Option<Link>,
    own_container: Value,
    /// Whom a signal reaches.
    tasks: BTreeMap<String, Running>,
    /// What becomes of tasks.
    inputs: UnboundedSender<Input>,
    received: UnboundedReceiver<Input>,
    subscribe_at: Option<Instant>,
}

enum Running {
    Process(UnboundedSender<Signal>),
    Container(Value),
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

    async fn wait(&mut self) -> Option<Input> {
        let deadline = self.core.next_deadline();
        tokio::select! {
            event = next_event(self.link.as_mut()) => Some(match event {
                Ok(event) => Input::Event(event),
                Err(error) => {
                    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                    eprintln!("executor: {error}{cause}; subscribing again");
                    self.link = None;
                    self.subscribe_at = Some(Instant::now() + SUBSCRIBE_AGAIN_AFTER);
                    Input::Disconnected
                }
            }),
            input = self.received.recv() => input,
            () = until(self.subscribe_at) => {
                self.subscribe_at = None;
                self.link = Some(self.agent.subscribe(&self.core.subscribe_call()));
                None
            }
            () = until(deadline) => Some(Input::Tick),
        }
    }

    /// Does what the core says; the exit status once it says that this is the end.
    fn apply(&mut self, input: Input) -> Option<i32> {
        if let Input::Event(Event::Subscribed { subscribed }) = &input
            && let Some(own) = &subscribed.container_id
        {
            self.own_container = own.clone();
        }
        if let Input::Ended(id, _) = &input {
            self.tasks.remove(id);
        }
        let mut actions = VecDeque::from(self.core.handle(now(), input));
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(call) => {
                    if let Some(link) = &self.link {
                        link.send(self.agent.request(&call));
                    }
                }
                Action::Start(task) => self.start(task),
                Action::Terminate(id) => self.signal(&id, Signal::TERM),
                Action::Kill(id) => self.signal(&id, Signal::KILL),
                Action::Exit(status) => return Some(status),
            }
        }
        None
    }

    fn start(&mut self, task: Value) {
        let id = task["task_id"]["value"].as_str().unwrap_or_default().to_owned();
        let running = match self.kind {
            Kind::Custom => self.start_process(&id, &task),
            Kind::Default => self.start_container(&id, task),
        };
        match running {
            Ok(running) => {
                self.tasks.insert(id, running);
            }
            Err(error) => {
                let message = format!("Failed to launch command: {error}");
                let _ = self.inputs.send(Input::Ended(id, End { message, ..End::default() }));
            }
        }
    }

    fn start_process(&self, id: &str, task: &Value) -> std::io::Result<Running> {
        let labels = task["labels"]["labels"].as_array();
        let command = labels.and_then(|labels| labels.iter().find(|label| label["key"] == "command"));
        let command = CommandInfo {
            shell: true,
            value: command.and_then(|label| label["value"].as_str()).map(str::to_owned),
            arguments: Vec::new(),
            environment: Environment::default(),
        };
        let mut process = Task::start(&self.setup, &command)?;
        let (signals, mut signalled) = unbounded_channel();
        let (inputs, id) = (self.inputs.clone(), id.to_owned());
        let _ = inputs.send(Input::Started(id.clone()));
        tokio::spawn(async move {
            let ended = loop {
                tokio::select! {
                    ended = process.ended() => break ended,
                    Some(signal) = signalled.recv() => process.signal(signal),
                }
            };
            let end = End { well: ended == Ended::Exited(0), message: ended.describe(), ..End::default() };
            let _ = inputs.send(Input::Ended(id, end));
        });
        Ok(Running::Process(signals))
    }

    fn start_container(&self, id: &str, task: Value) -> std::io::Result<Running> {
        let own = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let container = json!({ "value": own.trim(), "parent": self.own_container });
        let (inputs, id) = (self.inputs.clone(), id.to_owned());
        let (containers, of_task) = (self.containers.clone(), container.clone());
        tokio::spawn(async move {
            let launched = containers.launch(&of_task, &task).await;
            if launched.is_ok() {
                let _ = inputs.send(Input::Started(id.clone()));
            }
            let end = containers.wait(&of_task, launched.err()).await;
            let _ = inputs.send(Input::Ended(id, end));
        });
        Ok(Running::Container(container))
    }

    fn signal(&self, id: &str, signal: Signal) {
        match self.tasks.get(id) {
            Some(Running::Process(signals)) => {
                // One that has ended needs none.
                let _ = signals.send(signal);
            }
            Some(Running::Container(container)) => {
                let (containers, container) = (self.containers.clone(), container.clone());
                tokio::spawn(async move { containers.kill(&container, signal.as_raw()).await });
            }
            None => {}
        }
    }
}
