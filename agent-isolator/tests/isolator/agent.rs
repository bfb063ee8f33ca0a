//! An isolator, called as Mesos calls it.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use agent_isolator::isolator::{Done, Isolator};
use agent_isolator::mesos::{
    CommandInfo, ContainerConfig, ContainerId, ContainerLaunchInfo, ContainerLimitation, ContainerState,
    Environment, Label, Labels, TaskInfo, environment::Variable,
};
use prost::Message;
use tempfile::TempDir;

use crate::stand_in::{DEADLINE, StandIn};

/// Where the agent under test says that it is. Each test has a process of its own.
static ADDRESS: OnceLock<String> = OnceLock::new();

/// As [`Agent::start`] is told it from now on.
pub(crate) fn set_address(address: String) {
    ADDRESS.set(address).expect("it is set once");
}

fn address() -> Option<String> {
    Some(ADDRESS.get().cloned().unwrap_or_else(|| "127.0.0.1:5051".into()))
}

pub(crate) struct Agent {
    isolator: Isolator,
    /// Holds the socket, and what else a test puts there.
    pub(crate) directory: TempDir,
}

/// What Mesos waits for.
pub(crate) struct Waiting<T> {
    told: Receiver<Result<T, String>>,
    since: Instant,
}

impl<T> Waiting<T> {
    /// The answer, and after how long it came.
    pub(crate) fn ended(&self) -> (Result<T, String>, Duration) {
        let answer = self.told.recv_timeout(DEADLINE).expect("an answer within the deadline");
        (answer, self.since.elapsed())
    }

    pub(crate) fn answer(&self) -> Result<T, String> {
        self.ended().0
    }

    /// Still nothing, and whoever would tell has not given it up.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.told.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout))
    }
}

fn waiting<T: Send + 'static>() -> (Done<T>, Waiting<T>) {
    let (sender, told) = channel();
    let done = move |answer| {
        // A test may have seen enough.
        let _ = sender.send(answer);
    };
    (Box::new(done), Waiting { told, since: Instant::now() })
}

/// A container's id, nested where there is a dot, as Mesos gives it.
pub(crate) fn id(name: &str) -> Vec<u8> {
    raw_id(name.split('.').map(str::as_bytes)).encode_to_vec()
}

pub(crate) fn raw_id<'a>(parts: impl Iterator<Item = &'a [u8]>) -> ContainerId {
    let nest = |parent: Option<ContainerId>, part: &[u8]| {
        Some(ContainerId { value: part.to_vec(), parent: parent.map(Box::new) })
    };
    parts.fold(None, nest).unwrap()
}

pub(crate) fn config(labels: &[(&str, &str)], variables: &[(&str, &[u8])]) -> ContainerConfig {
    let label = |(key, value): &(&str, &str)| Label { key: (*key).into(), value: Some((*value).into()) };
    let variable =
        |(name, value): &(&str, &[u8])| Variable { name: (*name).into(), value: Some(value.to_vec()) };
    let environment = Environment { variables: variables.iter().map(variable).collect() };
    let task = TaskInfo {
        command: Some(CommandInfo { environment: Some(environment), ..Default::default() }),
        labels: Some(Labels { labels: labels.iter().map(label).collect() }),
        ..TaskInfo::default()
    };
    ContainerConfig { task_info: Some(task), ..Default::default() }
}

impl Agent {
    /// An agent whose keeper, if there is one, listens in a directory of the test's own.
    pub(crate) fn start(more: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), more)
    }

    pub(crate) fn start_in(directory: TempDir, more: &[(&str, &str)]) -> Self {
        let run_directory = directory.path().to_str().unwrap();
        let own = [
            ("etcd_endpoints", "127.0.0.1:1"),
            ("holder", "h"),
            ("drivers", "ebs,rexray"),
            ("run_directory", run_directory),
            ("host_paths", run_directory),
        ];
        let parameters = own.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let parameters: Vec<_> = parameters.collect();
        let isolator = Isolator::start(&parameters, address).unwrap();
        Self { isolator, directory }
    }

    /// An agent, and the keeper that it will connect to.
    pub(crate) fn with_keeper(more: &[(&str, &str)]) -> (Self, StandIn) {
        let directory = tempfile::tempdir().unwrap();
        let keeper = StandIn::listen(directory.path());
        (Self::start_in(directory, more), keeper)
    }

    pub(crate) fn recover(&self, known: &[ContainerId], orphans: &[ContainerId]) -> Waiting<()> {
        let (done, waiting) = waiting();
        let state = |id: &ContainerId| ContainerState { container_id: id.clone() }.encode_to_vec();
        let orphans = orphans.iter().map(Message::encode_to_vec).collect();
        self.isolator.recover(known.iter().map(state).collect(), orphans, done);
        waiting
    }

    pub(crate) fn prepare(
        &self,
        container: &[u8],
        config: &ContainerConfig,
    ) -> Waiting<Option<ContainerLaunchInfo>> {
        let (sender, told) = channel();
        let decode = |bytes: Vec<u8>| ContainerLaunchInfo::decode(bytes.as_slice()).unwrap();
        let done = move |answer: Result<Option<Vec<u8>>, String>| {
            let _ = sender.send(answer.map(|info| info.map(decode)));
        };
        let since = Instant::now();
        self.isolator.prepare(container, &config.encode_to_vec(), Box::new(done));
        Waiting { told, since }
    }

    pub(crate) fn update(&self, container: &[u8]) -> Waiting<()> {
        let (done, waiting) = waiting();
        self.isolator.update(container, done);
        waiting
    }

    pub(crate) fn isolate(&self, container: &[u8]) -> Waiting<()> {
        let (done, waiting) = waiting();
        self.isolator.isolate(container, 1, done);
        waiting
    }

    /// Answers the limitation's message.
    pub(crate) fn watch(&self, container: &[u8]) -> Waiting<String> {
        let (sender, told) = channel();
        let message =
            |bytes: Vec<u8>| ContainerLimitation::decode(bytes.as_slice()).unwrap().message.unwrap();
        let done = move |answer: Result<Vec<u8>, String>| {
            let _ = sender.send(answer.map(message));
        };
        self.isolator.watch(container, Box::new(done));
        Waiting { told, since: Instant::now() }
    }

    pub(crate) fn cleanup(&self, container: &[u8]) -> Waiting<()> {
        let (done, waiting) = waiting();
        self.isolator.cleanup(container, done);
        waiting
    }

    /// A call whose answer panics where it is told.
    pub(crate) fn cleanup_that_panics(&self, container: &[u8]) {
        self.isolator.cleanup(container, Box::new(|_| panic!("on purpose")));
    }
}
