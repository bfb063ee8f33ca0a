//! The isolator's thread: one connection to the keeper, and the calls that wait for answers.
//!
//! The connection may break at any time, for the keeper may be killed or upgraded. Then it is made
//! again, and every call without an answer is sent again: all are idempotent. A call ends with its
//! answer or with its deadline; one that only tells the keeper something ([`Command::Notify`]) lets
//! Mesos go on at its deadline, and is still sent until the keeper has it.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use shared::retry::Retry;
use shared::volume::ContainerId;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Done, Targets, launch_info, starter};
use crate::mesos::ContainerLimitation;
use crate::parameters::IsolatorParameters;
use crate::wire::{self, Answer, Call, CallLine, KeeperLine, Limit, line, read_line};

/// The keeper's own deadline comes first; this one is for a keeper that is not there.
const PREPARE_GRACE: Duration = Duration::from_secs(2);
/// The keeper answers at once; this covers its restart.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long Mesos is held up by a keeper that does not answer what it is only told.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// For the first words over a new connection.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// A keeper is not started more often than this.
const START_AGAIN: Duration = Duration::from_secs(2);

type Begin = Box<dyn FnOnce() -> Result<(Call, Targets), String> + Send>;

/// What Mesos's thread hands over.
pub(super) enum Command {
    /// Make the targets, then ask the keeper.
    Prepare { begin: Begin, done: Done<Option<Vec<u8>>> },
    /// A call whose refusal counts.
    Ask { call: Call, done: Done<()> },
    /// Something the keeper is told: until it has it, whatever Mesos was answered.
    Notify { call: Call, done: Done<()> },
    /// Complete when the container must end.
    Watch { container: ContainerId, done: Done<Vec<u8>> },
    /// The container is gone.
    Unwatch { container: ContainerId },
}

type Finish = Box<dyn FnOnce(Result<Answer, String>) + Send>;

/// A call that the keeper has not answered.
struct Pending {
    line: String,
    deadline: Instant,
    /// None once the deadline of a notice has passed.
    finish: Option<Finish>,
    notice: bool,
}

struct Connection {
    parameters: IsolatorParameters,
    next_id: u64,
    pending: BTreeMap<u64, Pending>,
    watches: BTreeMap<ContainerId, Done<Vec<u8>>>,
    /// Limits that came before anybody watched.
    limits: BTreeMap<ContainerId, String>,
    /// Why there is no connection, for the texts of refusals.
    trouble: Option<String>,
    started_at: Option<Instant>,
}

/// Starts the thread.
pub(super) fn start(parameters: IsolatorParameters) -> Result<mpsc::UnboundedSender<Command>, String> {
    let (sender, commands) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(|error| format!("the isolator's runtime could not be made: {error}"))?;
    let connection = Connection {
        parameters,
        next_id: 0,
        pending: BTreeMap::new(),
        watches: BTreeMap::new(),
        limits: BTreeMap::new(),
        trouble: None,
        started_at: None,
    };
    std::thread::Builder::new()
        .name("extvol-isolator".into())
        .spawn(move || runtime.block_on(connection.run(commands)))
        .map_err(|error| format!("the isolator's thread could not be started: {error}"))?;
    Ok(sender)
}

impl Connection {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut retry = Retry::new(Duration::from_millis(20), Duration::from_secs(1));
        loop {
            match self.connect().await {
                Ok((mut reader, mut writer)) => {
                    retry.reset();
                    if self.trouble.take().is_some() {
                        tracing::info!("connected to the keeper");
                    }
                    match self.talk(&mut reader, &mut writer, &mut commands).await {
                        Ok(()) => return,
                        Err(error) => self.note_trouble(format!("the connection to it broke: {error}")),
                    }
                }
                Err(why) => self.note_trouble(why),
            }
            // Calls are taken in, and end at their deadlines, also while there is no connection.
            let again = Instant::now() + retry.next_delay();
            while Instant::now() < again {
                let wake = self.deadline().map_or(again, |deadline| deadline.min(again));
                tokio::select! {
                    command = commands.recv() => match command {
                        Some(command) => drop(self.take(command)),
                        None => return,
                    },
                    () = sleep_until(wake) => self.expire(),
                }
            }
        }
    }

    fn note_trouble(&mut self, why: String) {
        if self.trouble.as_ref() != Some(&why) {
            tracing::warn!("no keeper answers at {}: {why}", self.parameters.keeper.socket().display());
        }
        self.trouble = Some(why);
    }

    async fn connect(&mut self) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), String> {
        let socket = self.parameters.keeper.socket();
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(error) => {
                let nobody =
                    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
                let lately = self.started_at.is_some_and(|at| at.elapsed() < START_AGAIN);
                if nobody && !lately {
                    self.started_at = Some(Instant::now());
                    let parameters = self.parameters.clone();
                    let started = tokio::task::spawn_blocking(move || starter::start(&parameters)).await;
                    started.map_err(|error| error.to_string())??;
                }
                return match (&self.trouble, nobody && lately) {
                    // What the start said is worth more than "connection refused".
                    (Some(trouble), true) => Err(trouble.clone()),
                    _ => Err(error.to_string()),
                };
            }
        };
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let hello = self.hello(&mut reader, &mut writer);
        match timeout(HELLO_TIMEOUT, hello).await {
            Ok(Ok(())) => Ok((reader, writer)),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("it does not answer".into()),
        }
    }

    async fn hello(
        &mut self,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
    ) -> Result<(), String> {
        self.next_id += 1;
        let id = self.next_id;
        let parameters = self.parameters.keeper.given.clone();
        let hello = CallLine { id, call: Call::Hello { version: wire::VERSION, parameters } };
        writer.write_all(line(&hello).as_bytes()).await.map_err(|error| error.to_string())?;
        loop {
            let text = read_line(reader).await.map_err(|error| error.to_string())?;
            let text = text.ok_or("it closed the connection")?;
            match serde_json::from_str(&text).map_err(|error| format!("it speaks otherwise: {error}"))? {
                KeeperLine::Answer { id: answered, .. } if answered == id => return Ok(()),
                KeeperLine::Refused { id: answered, refused } if answered == id => return Err(refused),
                other => self.receive(other),
            }
        }
    }

    /// Sends and receives until the connection breaks; good only when the isolator is gone.
    async fn talk(
        &mut self,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> io::Result<()> {
        let lines = self.pending.values().map(|pending| pending.line.as_str()).collect::<String>();
        writer.write_all(lines.as_bytes()).await?;
        // Lines are read by a task of their own: a read that is given up half-way would lose its part.
        let (line_sender, mut line_receiver) = mpsc::channel(16);
        let read = async {
            loop {
                let text = match read_line(reader).await {
                    Ok(Some(text)) => text,
                    Ok(None) => return io::Error::from(io::ErrorKind::UnexpectedEof),
                    Err(error) => return error,
                };
                if line_sender.send(text).await.is_err() {
                    return io::ErrorKind::BrokenPipe.into();
                }
            }
        };
        tokio::pin!(read);
        loop {
            let wake = self.deadline();
            let expiry = async {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(text) = line_receiver.recv() => {
                    self.receive(serde_json::from_str(&text).map_err(io::Error::other)?);
                }
                error = &mut read => return Err(error),
                command = commands.recv() => {
                    let Some(command) = command else { return Ok(()) };
                    if let Some(text) = self.take(command) {
                        writer.write_all(text.as_bytes()).await?;
                    }
                }
                () = expiry => self.expire(),
            }
        }
    }

    /// Takes a command in; answers the line to send, if there is one.
    fn take(&mut self, command: Command) -> Option<String> {
        let (call, within, notice, finish): (_, _, _, Finish) = match command {
            Command::Prepare { begin, done } => match begin() {
                Err(fault) => {
                    done(Err(fault));
                    return None;
                }
                Ok((call, targets)) => {
                    let within = self.parameters.keeper.prepare_timeout + PREPARE_GRACE;
                    let finish = |answer: Result<Answer, String>| {
                        done(answer.and_then(|answer| launch_info(answer, targets)));
                    };
                    (call, within, false, Box::new(finish))
                }
            },
            Command::Ask { call, done } => {
                (call, ASK_TIMEOUT, false, Box::new(|answer| done(answer.map(drop))))
            }
            Command::Notify { call, done } => {
                (call, NOTIFY_TIMEOUT, true, Box::new(|answer| done(answer.map(drop))))
            }
            Command::Watch { container, done } => {
                match self.limits.remove(&container) {
                    Some(message) => limit(message, done),
                    None => drop(self.watches.insert(container, done)),
                }
                return None;
            }
            Command::Unwatch { container } => {
                self.watches.remove(&container);
                self.limits.remove(&container);
                return None;
            }
        };
        self.next_id += 1;
        let text = line(&CallLine { id: self.next_id, call });
        let deadline = Instant::now() + within;
        let pending = Pending { line: text.clone(), deadline, finish: Some(finish), notice };
        self.pending.insert(self.next_id, pending);
        Some(text)
    }

    fn receive(&mut self, line: KeeperLine) {
        let (id, answer) = match line {
            KeeperLine::Answer { id, answer } => (id, Ok(answer)),
            KeeperLine::Refused { id, refused } => (id, Err(refused)),
            KeeperLine::Limit { limit: Limit { container, message } } => {
                match self.watches.remove(&container) {
                    Some(done) => limit(message, done),
                    None => drop(self.limits.insert(container, message)),
                }
                return;
            }
        };
        if let Some(finish) = self.pending.remove(&id).and_then(|pending| pending.finish) {
            finish(answer);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.pending.values().filter(|p| p.finish.is_some()).map(|p| p.deadline).min()
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let late = |(id, p): (&u64, &Pending)| (p.finish.is_some() && p.deadline <= now).then_some(*id);
        for id in self.pending.iter().filter_map(late).collect::<Vec<_>>() {
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            let finish = pending.finish.take();
            let notice = pending.notice;
            if !notice {
                self.pending.remove(&id);
            }
            let why = self.trouble.as_deref().unwrap_or("it has the call");
            if let Some(finish) = finish {
                finish(if notice {
                    Ok(Answer::Done)
                } else {
                    Err(format!("extvol-keeper on this host gave no answer in time: {why}"))
                });
            }
        }
    }
}

fn limit(message: String, done: Done<Vec<u8>>) {
    use prost::Message;
    done(Ok(ContainerLimitation { message: Some(message) }.encode_to_vec()));
}
