//! Tasks of executors. Mesos tells an isolator of the executor's container alone: the labels of a task that a custom or
//! default executor runs are in no call, nor is the ContainerInfo of a custom executor's task. Such a task would run
//! without its volume, and write where nothing is kept.
//!
//! But the agent calls `update` each time before it hands tasks to an executor, waits for the answer, and ends the
//! executor, with our sentence, when that is a refusal. By then the agent itself tells of the tasks. So `update`
//! is answered after a look at it, over HTTP, as anybody may: a task that names a volume which its executor's container
//! has not is refused. Two answers are needed: `/state` has the executors with their containers, but of tasks that wait
//! neither labels nor ContainerInfo, and GET_TASKS of the agent's API has these, but no containers.
//!
//! One look at a time; a container that comes while one is under way waits for the next. The agent writes its whole state for
//! each: the next one waits for four times as long as the last has taken, so that many launches do not make the agent do
//! nothing else. What cannot be looked at
//! (an agent that wants authentication, TLS, or hides tasks) is let through and logged: the agent's other tasks are not
//! to suffer for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Deserialize;
use shared::quote;
use shared::volume::{Driver, VolumeId};
use tokio::sync::mpsc;

use super::Done;
use crate::agent_state::{self, RECOVERING};
use crate::parameters::IsolatorParameters;
use crate::rules::Declared;
use crate::task::{ResourceDrivers, named_by_resource, shown};

/// For both of the agent's answers, which come within milliseconds unless it is very busy; so long does it wait for this look. A task
/// that is let through unseen may be one without its volume.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// After a look, by how long it took, and at most.
const PAUSE: (u32, Duration) = (4, Duration::from_secs(10));
/// How often the same fault is logged.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The volumes that a container was prepared with; unknown for one that is older than this process.
pub(super) type Prepared = Option<BTreeSet<VolumeId>>;

/// Who waits for a look: the outermost id of a container.
type Waiting = Vec<(String, Prepared, Done<()>)>;

/// By container, what its tasks bring; or why nothing was seen.
type Seen = Result<BTreeMap<String, Verdict>, String>;

/// What is said of an executor's tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Why the container must end.
    refused: Option<String>,
    /// Volumes among the resources of tasks that wait, each with its task.
    brought: Vec<(String, VolumeId)>,
    /// Those of tasks that run.
    running: BTreeSet<VolumeId>,
}

impl Verdict {
    /// Whether the container may go on with its tasks, with the volumes that it was prepared with: Mesos shows the isolator the
    /// resources of the first task alone before the container starts.
    fn judge(&self, prepared: &Prepared) -> Result<(), String> {
        if let Some(why) = &self.refused {
            return Err(why.clone());
        }
        let has = prepared.as_ref().unwrap_or(&self.running);
        match self.brought.iter().find(|(_, volume)| !has.contains(volume)) {
            Some((task, volume)) => Err(format!(
                "task {task} brings volume {volume} by its resources, and its executor's container was started without it; a \
                 running container gets no further volume: run the task without an executor of its own, or in a container \
                 of its own"
            )),
            None => Ok(()),
        }
    }
}

/// What comes of a look.
pub(super) enum Looked {
    /// It has ended.
    Seen(Waiting, Seen),
    /// So has the pause after it.
    Rested,
}

/// The looks.
pub(super) struct Looks {
    parameters: IsolatorParameters,
    docker_volume_isolator: bool,
    next: Waiting,
    /// A look is under way, or the pause after it.
    running: bool,
    /// Where the agent is, as the last container was told.
    agent: String,
    looked: mpsc::UnboundedSender<Looked>,
    /// What was logged last, and when.
    fault: Option<(String, Instant)>,
}

impl Looks {
    pub(super) fn new(
        parameters: IsolatorParameters,
        docker_volume_isolator: bool,
    ) -> (Self, mpsc::UnboundedReceiver<Looked>) {
        let (looked, receiver) = mpsc::unbounded_channel();
        let looks = Self {
            parameters,
            docker_volume_isolator,
            next: Waiting::new(),
            running: false,
            agent: String::new(),
            looked,
            fault: None,
        };
        (looks, receiver)
    }

    /// Has the tasks of an executor looked at, by a look that begins from now on.
    pub(super) fn look(&mut self, agent: String, container: String, prepared: Prepared, done: Done<()>) {
        self.agent = agent;
        self.next.push((container, prepared, done));
        self.start();
    }

    fn start(&mut self) {
        if self.running || self.next.is_empty() {
            return;
        }
        self.running = true;
        let rest = Rest(self.looked.clone());
        let end = End { looked: self.looked.clone(), waiting: std::mem::take(&mut self.next), seen: None };
        let (agent, parameters) = (self.agent.clone(), self.parameters.clone());
        let docker_volume_isolator = self.docker_volume_isolator;
        tokio::spawn(async move {
            let _rest = rest;
            let began = Instant::now();
            let look = look(&agent, parameters, docker_volume_isolator);
            let seen = tokio::time::timeout(LOOK_TIMEOUT, look).await;
            end.tell(seen.unwrap_or_else(|_| Err("it did not answer in time".into())));
            tokio::time::sleep(pause(began.elapsed())).await;
        });
    }

    /// A look has ended, or the pause after it.
    pub(super) fn ended(&mut self, looked: Looked) {
        match looked {
            Looked::Seen(waiting, seen) => self.answer(waiting, &seen),
            Looked::Rested => {
                self.running = false;
                self.start();
            }
        }
    }

    fn answer(&mut self, waiting: Waiting, seen: &Seen) {
        for (container, prepared, done) in waiting {
            let verdict = match seen {
                Ok(seen) => {
                    let verdict = seen.get(&container).map(|verdict| verdict.judge(&prepared));
                    verdict.ok_or_else(|| "it does not show this executor".to_owned())
                }
                Err(why) => Err(why.clone()),
            };
            match verdict {
                Ok(Err(refused)) => {
                    tracing::warn!("container {} is to end: {refused}", quote::line(&container));
                    done(Err(refused));
                }
                Ok(Ok(())) => {
                    self.fault = None;
                    done(Ok(()));
                }
                Err(why) => {
                    let said = |(fault, at): &(String, Instant)| *fault == why && at.elapsed() < SAY_AGAIN;
                    if !self.fault.as_ref().is_some_and(said) && why != RECOVERING {
                        tracing::error!(
                            "the tasks of the executor in container {} could not be looked at in the agent's state: {}; \
                             they start, and if one names a volume by labels, it has none",
                            quote::line(&container),
                            quote::line(&why)
                        );
                        self.fault = Some((why, Instant::now()));
                    }
                    done(Ok(()));
                }
            }
        }
    }
}

/// How long the agent is left alone after a look that took so long.
fn pause(took: Duration) -> Duration {
    (took * PAUSE.0).min(PAUSE.1)
}

/// Tells the end of the pause, also after a look that panicked.
struct Rest(mpsc::UnboundedSender<Looked>);

impl Drop for Rest {
    fn drop(&mut self) {
        let _ = self.0.send(Looked::Rested);
    }
}

/// Tells the end of a look, also of one that panicked.
struct End {
    looked: mpsc::UnboundedSender<Looked>,
    waiting: Waiting,
    seen: Option<Seen>,
}

impl End {
    fn tell(mut self, seen: Seen) {
        self.seen = Some(seen);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let seen = self.seen.take().unwrap_or_else(|| Err("a bug: the look panicked".into()));
        // Nobody waits any more when the isolator is gone.
        let _ = self.looked.send(Looked::Seen(std::mem::take(&mut self.waiting), seen));
    }
}

async fn look(agent: &str, parameters: IsolatorParameters, docker_volume_isolator: bool) -> Seen {
    // A task that waits does so until we answer: it is in both.
    let tasks = agent_state::tasks(agent).await?;
    let state = agent_state::read(agent).await?;
    let judge = move || {
        let declared =
            Declared { rules: &parameters.rules, keeper: &parameters.keeper, docker_volume_isolator };
        judge(&agent_state::text(state), &agent_state::text(tasks), &declared)
    };
    tokio::task::spawn_blocking(judge).await.unwrap_or_else(|_| Err("a bug: it was read with a panic".into()))
}

/// The part of the agent's state that is looked at.
#[derive(Deserialize)]
struct State {
    #[serde(default)]
    frameworks: Vec<Framework>,
}

#[derive(Deserialize)]
struct Framework {
    #[serde(default)]
    id: String,
    #[serde(default)]
    executors: Vec<Executor>,
}

#[derive(Deserialize)]
struct Executor {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
    container: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    tasks: Vec<Task>,
    /// They are in the other answer.
    #[serde(skip)]
    queued_tasks: Vec<Task>,
}

/// The part of the answer to GET_TASKS that is looked at.
#[derive(Deserialize)]
struct Tasks {
    get_tasks: Queued,
}

#[derive(Deserialize)]
struct Queued {
    #[serde(default)]
    queued_tasks: Vec<QueuedTask>,
}

#[derive(Deserialize)]
struct QueuedTask {
    framework_id: TaskId,
    /// That of a command task is the task's.
    #[serde(default)]
    executor_id: Option<TaskId>,
    #[serde(flatten)]
    task: Task,
}

impl Executor {
    /// Mesos calls the executor of a command task like the task; but so may a framework call its own, whose type the state
    /// has only where the framework gave one.
    fn is_of_command_task(&self, task: &str) -> bool {
        let named = self.name.strip_prefix("Command Executor (Task: ");
        self.id == task && named.is_some_and(|rest| rest.starts_with(task))
    }
}

/// A launched task as Mesos models it, or a queued one as the message that it is.
#[derive(Deserialize)]
struct Task {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    task_id: Option<TaskId>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    container: Option<Container>,
    #[serde(default)]
    resources: Resources,
}

/// Either form once more. A set is written `{a, b}` in the first.
#[derive(Deserialize)]
#[serde(untagged)]
enum Resources {
    Plain(BTreeMap<String, serde_json::Value>),
    Message(Vec<Resource>),
}

impl Default for Resources {
    fn default() -> Self {
        Self::Message(Vec::new())
    }
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    #[serde(default)]
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    item: Vec<String>,
}

impl Resources {
    /// The volumes that they name. What is no volume's name was refused, or will be, when its container is prepared.
    fn volumes(&self, drivers: &ResourceDrivers) -> Vec<VolumeId> {
        let items = |name: &str| -> Vec<String> {
            match self {
                Self::Plain(all) => {
                    let text = all.get(name).and_then(|value| value.as_str()).unwrap_or_default();
                    text.trim_matches(['{', '}']).split(", ").map(str::to_owned).collect()
                }
                Self::Message(all) => {
                    let sets = all.iter().filter(|resource| resource.name == name);
                    sets.flat_map(|resource| resource.set.iter().flat_map(|set| set.item.clone())).collect()
                }
            }
        };
        let named = |(name, driver): (&String, &Driver)| {
            items(name)
                .into_iter()
                .filter_map(|item| named_by_resource(name, driver, &item).ok())
                .collect::<Vec<_>>()
        };
        drivers.iter().flat_map(named).collect()
    }
}

#[derive(Deserialize)]
struct TaskId {
    value: String,
}

/// Either form, again.
#[derive(Deserialize)]
#[serde(untagged)]
enum Labels {
    Plain(Vec<Label>),
    Message {
        #[serde(default)]
        labels: Vec<Label>,
    },
}

impl Default for Labels {
    fn default() -> Self {
        Self::Plain(Vec::new())
    }
}

impl Labels {
    fn ours(&self) -> impl Iterator<Item = &Label> {
        let (Self::Plain(labels) | Self::Message { labels }) = self;
        labels.iter().filter(|label| label.key.starts_with("extvol."))
    }
}

#[derive(Deserialize, PartialEq, Eq)]
struct Label {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
struct Volume {
    #[serde(default)]
    source: Option<Source>,
}

#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    docker_volume: Option<DockerVolume>,
}

#[derive(Deserialize)]
struct DockerVolume {
    #[serde(default)]
    driver: Option<String>,
    #[serde(default)]
    name: String,
}

/// Whether each executor of the agent's state may go on with its tasks.
fn judge(state: &str, tasks: &str, declared: &Declared<'_>) -> Seen {
    let unread = |error| format!("it cannot be read: {error}");
    let state: State = serde_json::from_str(state).map_err(unread)?;
    let tasks: Tasks = serde_json::from_str(tasks).map_err(unread)?;
    let mut queued = BTreeMap::<_, Vec<Task>>::new();
    for QueuedTask { framework_id, executor_id, task } in tasks.get_tasks.queued_tasks {
        let executor = executor_id.map(|id| id.value).or_else(|| task.raw_id().map(str::to_owned));
        queued.entry((framework_id.value, executor.unwrap_or_default())).or_default().push(task);
    }
    let mut seen = BTreeMap::new();
    for Framework { id, executors } in state.frameworks {
        for mut executor in executors {
            executor.queued_tasks = queued.remove(&(id.clone(), executor.id.clone())).unwrap_or_default();
            seen.insert(executor.container.clone(), judge_executor(&executor, declared));
        }
    }
    Ok(seen)
}

/// Of how many executors in the agent's state that could be said.
pub(crate) fn judged(state: &str, tasks: &str, declared: &Declared<'_>) -> Result<usize, String> {
    judge(state, tasks, declared).map(|seen| seen.len())
}

fn judge_executor(executor: &Executor, declared: &Declared<'_>) -> Verdict {
    // Each task of a default executor has a container of its own, which the isolator sees.
    let is_default = executor.kind.as_deref() == Some("DEFAULT");
    let canonical = |volume: VolumeId| declared.keeper.drivers.canonical(&volume).unwrap_or(volume);
    let volumes = |task: &Task| {
        let named = task.resources.volumes(&declared.rules.resources);
        named.into_iter().map(canonical).collect::<Vec<_>>()
    };
    let tasks = || executor.queued_tasks.iter().chain(&executor.tasks);
    let brought = executor.queued_tasks.iter();
    Verdict {
        refused: tasks().find_map(|task| {
            let in_group =
                || volumes(task).first().filter(|_| is_default).map(|volume| in_a_group(task, volume));
            unseen(task, executor, is_default, declared).or_else(in_group)
        }),
        brought: brought
            .flat_map(|task| volumes(task).into_iter().map(|volume| (id(task), volume)))
            .collect(),
        running: executor.tasks.iter().flat_map(volumes).collect(),
    }
}

/// Before Mesos 1.10 the container of such a task has no resources of its own, so that the isolator would not see it.
fn in_a_group(task: &Task, volume: &VolumeId) -> String {
    format!(
        "task {} of a task group names volume {volume} by its resources, which its container does not show in each release of \
         Mesos; name it by the task's variables DVDI_VOLUME_NAME, DVDI_VOLUME_DRIVER and DVDI_VOLUME_CONTAINERPATH, or by a \
         DOCKER_VOLUME of its ContainerInfo, and leave it out of the resources",
        id(task)
    )
}

/// What of a task names a volume and reaches no isolator, in a sentence.
fn unseen(task: &Task, executor: &Executor, is_default: bool, declared: &Declared<'_>) -> Option<String> {
    // The executor of a command task has the task's labels, and its volumes.
    let unseen = |label: &&Label| is_default || !executor.labels.ours().any(|known| known == *label);
    if let Some(label) = task.labels.ours().find(unseen) {
        return Some(refused(task, label, is_default));
    }
    // The container of a command task is its task's.
    let is_command = task.raw_id().is_some_and(|id| executor.is_of_command_task(id));
    let volumes = task.container.iter().flat_map(|container| &container.volumes);
    let volumes = volumes.filter(|_| !is_default && !is_command);
    let mut docker = volumes.filter_map(|volume| volume.source.as_ref()?.docker_volume.as_ref());
    let leased = |docker: &&DockerVolume| {
        declared.rules.lease_docker_volumes && declared.serves(docker.driver.as_deref().map(str::as_bytes))
    };
    docker.find(leased).map(|DockerVolume { driver, name }| {
        format!(
            "task {}: DOCKER_VOLUME {}/{} is not mounted: Mesos does not hand the ContainerInfo of a custom executor's task \
             to the isolator; declare the volume for the executor, or run the task without an executor of its own",
            id(task),
            quote::line(&shown(driver.as_deref().unwrap_or_default())),
            quote::line(&shown(name)),
        )
    })
}

fn refused(task: &Task, label: &Label, is_default: bool) -> String {
    let what_to_do = match is_default {
        true => {
            "name the volume by the task's variables DVDI_VOLUME_NAME, DVDI_VOLUME_DRIVER and \
             DVDI_VOLUME_CONTAINERPATH, or by a DOCKER_VOLUME of its ContainerInfo"
        }
        false => "give the labels to the executor, or run the task without an executor of its own",
    };
    let key = shown(&label.key);
    format!(
        "task {} has the label {}, which Mesos does not hand to the isolator for a task of an executor: it would run \
         without its volume; {what_to_do}",
        id(task),
        quote::line(&key),
    )
}

impl Task {
    fn raw_id(&self) -> Option<&str> {
        self.id.as_deref().or(self.task_id.as_ref().map(|id| id.value.as_str()))
    }
}

fn id(task: &Task) -> String {
    quote::line(&shown(task.raw_id().unwrap_or_default())).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn verdict(executor: &Value) -> String {
        verdict_of(executor, Some(BTreeSet::new()))
    }

    fn verdict_of(executor: &Value, prepared: Prepared) -> String {
        let pairs = [("etcd_endpoints", "h:1"), ("resources", "volumes:rexray")];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let parameters = IsolatorParameters::read(&pairs).unwrap();
        let declared =
            Declared { rules: &parameters.rules, keeper: &parameters.keeper, docker_volume_isolator: false };
        // Tasks that wait are in the state as Mesos writes them there, and whole in the other answer.
        let (mut executor, id) = (executor.clone(), executor["id"].as_str().unwrap_or("e"));
        executor["id"] = json!(id);
        let mut queued = executor["queued_tasks"].as_array().cloned().unwrap_or_default();
        let bare =
            |task: &Value| json!({ "id": task["task_id"]["value"], "slave_id": "S0", "resources": {} });
        executor["queued_tasks"] = queued.iter().map(bare).collect();
        for task in &mut queued {
            task["framework_id"] = json!({ "value": "f" });
            task["executor_id"] = json!({ "value": id });
        }
        let stranger = json!({
            "framework_id": { "value": "other" }, "executor_id": { "value": id }, "task_id": { "value": "t9" },
            "labels": { "labels": [{ "key": "extvol.name", "value": "v" }] },
        });
        queued.push(stranger);
        let tasks = json!({ "type": "GET_TASKS", "get_tasks": { "queued_tasks": queued } });
        let state = json!({ "id": "S0", "frameworks": [
            { "id": "other" },
            { "id": "f", "executors": [{ "container": "bystander" }, executor], "completed_executors": [{}] },
        ] });
        let seen = judge(&state.to_string(), &tasks.to_string(), &declared).unwrap();
        assert_eq!(seen["bystander"], Verdict::default());
        seen["c"].judge(&prepared).err().unwrap_or_default()
    }

    /// As Mesos writes a launched task, and one that is queued.
    fn both(task: &str, key: &str, value: &str) -> [Value; 2] {
        let labels = json!([{ "key": "app", "value": "x" }, { "key": key, "value": value }]);
        let launched = json!({ "id": task, "state": "TASK_RUNNING", "labels": labels });
        let queued = json!({ "task_id": { "value": task }, "labels": { "labels": labels } });
        [
            json!({ "container": "c", "tasks": [launched], "queued_tasks": [] }),
            json!({ "container": "c", "tasks": [], "queued_tasks": [queued] }),
        ]
    }

    #[test]
    fn a_task_whose_labels_reach_nobody_ends_its_executor_with_a_sentence() {
        for mut executor in both("t1", "extvol.name", "vol-1") {
            let said = verdict(&executor);
            assert!(
                said.starts_with("task t1 has the label extvol.name, which Mesos does not hand to"),
                "{said}"
            );
            assert!(said.ends_with(
                "give the labels to the executor, or run the task without an executor of its own"
            ));
            executor["type"] = json!("DEFAULT");
            let said = verdict(&executor);
            assert!(said.contains("name the volume by the task's variables DVDI_VOLUME_NAME"), "{said}");
        }
        for executor in both("t1", "extvolume", "x") {
            assert_eq!(verdict(&executor), "");
        }
        let [forged, _] = both("t\n1", "extvol.\u{1b}x", "");
        let said = verdict(&forged);
        assert!(said.starts_with("task t\\n1 has the label extvol.\\u{1b}x, which"), "{said}");
    }

    #[test]
    fn labels_that_the_executor_has_too_were_seen_with_it() {
        for mut executor in both("t1", "extvol.name", "vol-1") {
            executor["labels"] = json!([{ "key": "extvol.name", "value": "vol-1" }]);
            assert_eq!(verdict(&executor), "");
            executor["labels"] = json!([{ "key": "extvol.name", "value": "vol-2" }]);
            assert!(verdict(&executor).contains("has the label extvol.name"));
            // Those of a default executor are seen by none of its tasks.
            executor["type"] = json!("DEFAULT");
            executor["labels"] = json!([{ "key": "extvol.name", "value": "vol-1" }]);
            assert!(verdict(&executor).contains("has the label extvol.name"));
        }
    }

    #[test]
    fn a_leased_volume_that_a_custom_executors_task_declares_is_refused() {
        let declares = |driver: &str, kind: &str| {
            let docker = json!({ "driver": driver, "name": "vol-1" });
            let source = json!({ "type": "DOCKER_VOLUME", "docker_volume": docker });
            let volume = json!({ "container_path": "data", "mode": "RW", "source": source });
            let task = json!({ "task_id": { "value": "t1" }, "container": { "type": "MESOS", "volumes": [volume] } });
            verdict(&json!({ "container": "c", "type": kind, "queued_tasks": [task] }))
        };
        let said = declares("rexray", "CUSTOM");
        assert!(said.starts_with("task t1: DOCKER_VOLUME rexray/vol-1 is not mounted"), "{said}");
        // Of a command task the container is seen, though this agent process may be younger.
        let docker = json!({ "driver": "rexray", "name": "vol-1" });
        let volume = json!({ "container_path": "data", "source": { "type": "DOCKER_VOLUME", "docker_volume": docker } });
        let task = json!({ "id": "t1", "container": { "type": "MESOS", "volumes": [volume] } });
        let of = |id: &str, name: &str| {
            verdict(&json!({ "container": "c", "id": id, "name": name, "tasks": [task] }))
        };
        assert_eq!(of("t1", "Command Executor (Task: t1) (Command: sh -c 'true')"), "");
        assert_ne!(of("t2", "Command Executor (Task: t2) (Command: sh -c 'true')"), "");
        // A framework's own may be called like its task.
        assert_ne!(of("t1", ""), "");
        // That executor may mount it itself; and a default executor's task has a container that is prepared.
        assert_eq!(declares("pxd", "CUSTOM"), "");
        assert_eq!(declares("rexray", "DEFAULT"), "");
    }

    #[test]
    fn a_volume_that_a_later_task_brings_by_its_resources_ends_the_executor_with_a_sentence() {
        let waits = |items: &[&str]| {
            let set = json!({ "name": "volumes", "type": "SET", "set": { "item": items } });
            let cpus = json!({ "name": "cpus", "type": "SCALAR", "scalar": { "value": 1 } });
            json!({ "task_id": { "value": "t2" }, "resources": [cpus, set] })
        };
        let runs = json!({ "id": "t1", "resources": { "cpus": 1.0, "volumes": "{a, b}" } });
        let executor = |task: &Value| json!({ "container": "c", "type": "CUSTOM", "queued_tasks": [task], "tasks": [runs] });
        let volume = |name: &str| VolumeId {
            driver: Driver::new("rexray").unwrap(),
            name: shared::volume::VolumeName::new(name).unwrap(),
        };
        let with = |items: &[&str], prepared: Prepared| verdict_of(&executor(&waits(items)), prepared);
        assert_eq!(with(&["a"], Some([volume("a")].into())), "");
        let said = with(&["a", "c"], Some([volume("a"), volume("b")].into()));
        assert!(
            said.starts_with("task t2 brings volume rexray/c by its resources, and its executor's"),
            "{said}"
        );
        // Of an agent that was restarted since: what runs has its volumes.
        assert_eq!(with(&["b"], None), "");
        assert!(with(&["c"], None).contains("brings volume rexray/c"));
        let mut of_default = executor(&waits(&["c"]));
        of_default["type"] = json!("DEFAULT");
        let said = verdict_of(&of_default, Some([volume("c")].into()));
        assert!(said.starts_with("task t2 of a task group names volume rexray/c by its resources"), "{said}");
    }

    #[tokio::test]
    async fn launches_that_come_together_share_a_look_and_the_agent_rests_after_one() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let agent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = agent.local_addr().unwrap().to_string();
        let pairs = [("etcd_endpoints".to_owned(), "h:1".to_owned())];
        let (mut looks, mut looked) = Looks::new(IsolatorParameters::read(&pairs).unwrap(), false);
        let (answered, mut answers) = mpsc::unbounded_channel();
        let ask = |looks: &mut Looks| {
            let answered = answered.clone();
            looks.look(
                address.clone(),
                "c".into(),
                None,
                Box::new(move |verdict| drop(answered.send(verdict))),
            );
        };
        ask(&mut looks);
        let took = Duration::from_millis(100);
        for expected in [1, 20] {
            // Its tasks, then its state.
            for _ in 0..2 {
                let (mut asked, _) = agent.accept().await.unwrap();
                let _request = asked.read(&mut [0; 4_096]).await.unwrap();
                tokio::time::sleep(took).await;
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                asked.write_all(answer).await.unwrap();
            }
            let ended = looked.recv().await.unwrap();
            assert!(matches!(&ended, Looked::Seen(waiting, _) if waiting.len() == expected));
            looks.ended(ended);
            for _ in 0..expected {
                assert_eq!(answers.recv().await.unwrap(), Ok(()));
            }
            let began = Instant::now();
            for _ in 0..20 {
                ask(&mut looks);
            }
            assert!(looked.try_recv().is_err());
            let rested = looked.recv().await.unwrap();
            assert!(matches!(rested, Looked::Rested) && began.elapsed() >= 3 * took);
            looks.ended(rested);
        }
        assert_eq!(pause(Duration::from_secs(5)), PAUSE.1);
    }

    #[test]
    fn bytes_that_are_no_text_hide_no_other_task() {
        let [executor, _] = both("t1", "extvol.name", "vol-1");
        let state = json!({ "frameworks": [{ "name": "BYTES", "executors": [executor] }] }).to_string();
        let mut bytes = state.into_bytes();
        let at = bytes.windows(5).position(|window| window == b"BYTES").unwrap();
        bytes[at] = 0xff;
        let pairs = [("etcd_endpoints".to_owned(), "h:1".to_owned())];
        let parameters = IsolatorParameters::read(&pairs).unwrap();
        let declared =
            Declared { rules: &parameters.rules, keeper: &parameters.keeper, docker_volume_isolator: false };
        let tasks = r#"{"get_tasks": {}}"#;
        assert!(judge(&agent_state::text(bytes), tasks, &declared).unwrap()["c"].refused.is_some());
        for (state, tasks) in [("<html>", tasks), ("{}", "{}")] {
            assert!(judge(state, tasks, &declared).unwrap_err().starts_with("it cannot be read: "));
        }
    }
}
