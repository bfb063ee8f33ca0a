//! The isolator, as the module's glue calls it on the thread of Mesos's containerizer.
//!
//! It is thin: it reads what Mesos gives, hands the call to its own thread, and returns. That thread
//! talks to the keeper (`connection`) and completes what Mesos waits for. Nothing here blocks, and
//! an agent that is killed at any point loses nothing: the keeper has all that counts.

mod calls;
mod connection;
pub(crate) mod executors;
mod link;
mod looks;
mod mounts;
mod starter;
mod targets;
mod watches;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use prost::Message;
use shared::quote;
use shared::volume::{ContainerId, VolumeId};
use tokio::sync::mpsc;

use self::connection::Command;
use self::looks::Paths;
use self::mounts::ToHide;
use self::targets::{Make, Plan, targets};
use crate::agent_flags::{self, Beside};
use crate::kernel;
use crate::mesos::container_config::ContainerClass;
use crate::mesos::{ContainerConfig, ContainerState, RawContainerId};
use crate::parameters::IsolatorParameters;
use crate::rules::{self, Declared, Shown};
use crate::target;
use crate::task::{self, TaskVolume};
use crate::wire::{Asker, Call, VolumeCall};

/// Completes what Mesos waits for: called once, from any thread.
pub type Done<T> = Box<dyn FnOnce(Result<T, String>) + Send>;

/// The isolator of one agent.
pub struct Isolator {
    commands: mpsc::UnboundedSender<Command>,
    agent_address: fn() -> Option<String>,
    parameters: IsolatorParameters,
    beside: Beside,
    containers: Mutex<Containers>,
}

/// What this agent process knows of its containers; those of an older one are in neither set.
#[derive(Default)]
struct Containers {
    with_volumes: BTreeMap<ContainerId, BTreeSet<VolumeId>>,
    without_volumes: BTreeSet<ContainerId>,
    /// Those of command tasks, whose only task the isolator was shown when they were prepared.
    of_command_tasks: BTreeSet<ContainerId>,
    /// The watches of containers whose ids are no names, and which therefore have no volumes: nothing
    /// ends them here, and an answer, even a failed one, would have Mesos kill them.
    unnamed: BTreeMap<RawContainerId, Done<Vec<u8>>>,
}

impl Containers {
    /// The volumes that a container of this agent process was prepared with.
    fn prepared_with(&self, container: &ContainerId) -> Option<BTreeSet<VolumeId>> {
        let none = || self.without_volumes.contains(container).then(BTreeSet::new);
        self.with_volumes.get(container).cloned().or_else(none)
    }
}

impl Isolator {
    /// Checks the module's parameters and starts the isolator's thread. `agent_address` gives this
    /// agent's `ip:port`, once Mesos has it.
    ///
    /// # Errors
    /// A sentence to refuse loading with.
    pub fn start(
        parameters: &[(String, String)],
        agent_address: fn() -> Option<String>,
    ) -> Result<Self, String> {
        kernel::check()?;
        let parameters = IsolatorParameters::read(parameters).map_err(|error| error.to_string())?;
        let beside = agent_flags::check(&parameters)?;
        starter::check(&parameters)?;
        let commands = connection::start(parameters.clone(), beside.docker_volume)?;
        Ok(Self { commands, agent_address, parameters, beside, containers: Mutex::default() })
    }

    fn containers(&self) -> std::sync::MutexGuard<'_, Containers> {
        // A panic while it was held is answered at the bridge; the sets are whole all the same.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) {
        // Its thread ends only with the process. A command that is dropped fails what it would have
        // completed.
        let _ = self.commands.send(command);
    }

    /// The agent's address; before Mesos has one there are no containers either.
    fn agent(&self) -> String {
        (self.agent_address)().unwrap_or_default()
    }

    /// Tells the keeper which containers this agent goes on with (serialized
    /// `mesos.slave.ContainerState`) and which it will clean up (serialized `mesos.ContainerID`).
    ///
    /// Never fails for the keeper's sake: a failed recover would stop the agent.
    pub fn recover(&self, containers: Vec<Vec<u8>>, orphans: Vec<Vec<u8>>, done: Done<()>) {
        let state = |bytes: Vec<u8>| {
            let state = ContainerState::decode(bytes.as_slice())
                .map_err(|error| format!("not a ContainerState: {error}"))?;
            Ok(RawContainerId::of(&state.container_id))
        };
        let known = containers.into_iter().map(state).collect::<Result<Vec<_>, String>>();
        let orphans =
            orphans.iter().map(|bytes| RawContainerId::decode(bytes)).collect::<Result<Vec<_>, _>>();
        match (known, orphans) {
            (Ok(known), Ok(orphans)) => {
                let (known, orphans) = (named(&known), named(&orphans));
                let call = Call::Recover { agent: self.agent(), known, orphans };
                self.send(Command::Notify { call, done });
            }
            (Err(fault), _) | (_, Err(fault)) => done(Err(fault)),
        }
    }

    /// Leases and mounts the volumes that a container (serialized `mesos.ContainerID`) names in its
    /// configuration (serialized `mesos.slave.ContainerConfig`). The answer is a serialized
    /// `mesos.slave.ContainerLaunchInfo`; none without volumes.
    pub fn prepare(&self, container: &[u8], config: &[u8], done: Done<Option<Vec<u8>>>) {
        let read = RawContainerId::decode(container).and_then(|raw| {
            let config = config_of(&raw, config)?;
            self.declared().check(&config)?;
            let volumes = task::volumes(&config, &self.declared())?;
            let taken: Vec<_> = rules::taken(&config, self.beside.docker_volume).collect();
            check_places(&config, &volumes, &taken, &self.parameters.sandbox_directory)?;
            let debug = config.container_class == Some(ContainerClass::Debug.into());
            match raw.name() {
                Err(fault) if !volumes.is_empty() => Err(fault),
                name => Ok((raw, name.ok(), config, debug, volumes)),
            }
        });
        let (raw, container, config, debug, volumes) = match read {
            Ok(read) => read,
            Err(fault) => return done(Err(fault)),
        };
        let hidden = if debug { ToHide::default() } else { self.hidden(&config) };
        let paths = Paths {
            shown: Shown::all(&config),
            sandbox: targets::path(&config.directory).to_owned(),
            roots: rules::closed(&self.parameters.keeper),
        };
        if volumes.is_empty() {
            self.note(container.as_ref(), &config, &[]);
            if hidden.is_empty() && paths.shown.is_empty() {
                return done(Ok(None));
            }
            let container = quote::line(&raw.to_string()).into_owned();
            return self.send(Command::Hide { container, hidden, paths, done: timed(done) });
        }
        self.note(container.as_ref(), &config, &volumes);
        // A container with volumes has a name.
        let Some(container) = container else { return done(Ok(None)) };
        let asked = |volume: &TaskVolume| VolumeCall {
            volume: volume.volume.clone(),
            create: volume.create.clone(),
            read_only: volume.read_only,
            remove: volume.remove,
            own: volume.own,
        };
        let call = Call::Prepare {
            container,
            agent: self.agent(),
            agent_id: agent_id(&String::from_utf8_lossy(&config.directory)),
            asker: Some(asker(&config)),
            volumes: volumes.iter().map(asked).collect(),
        };
        // Before anything is leased: a path that cannot be needs no undoing.
        let targets = looked_at(&volumes, &hidden, &paths.shown).map(|what| {
            let plan = Plan {
                volumes,
                sandbox_directory: self.parameters.sandbox_directory.clone(),
                host_paths: self.parameters.rules.host_paths.clone(),
                hidden,
                aside: self.parameters.keeper.run_directory.to_string_lossy().into_owned(),
            };
            let make: Make = Box::new(move || paths.check().and_then(|()| targets(&config, &plan)));
            (what, make)
        });
        self.send(Command::Prepare { call, targets, done: timed(done) });
    }

    /// Which directories of the host the container is not to see; with an image it sees none.
    fn hidden(&self, config: &ContainerConfig) -> ToHide {
        let sees_host = self.beside.filesystem_linux && config.rootfs.is_none();
        match self.parameters.rules.hide_volumes && sees_host {
            true => ToHide::of(&self.parameters.keeper),
            false => ToHide::default(),
        }
    }

    fn declared(&self) -> Declared<'_> {
        Declared {
            rules: &self.parameters.rules,
            keeper: &self.parameters.keeper,
            docker_volume_isolator: self.beside.docker_volume,
        }
    }

    /// The one name of a volume; what is none is refused by the keeper.
    fn canonical(&self, volume: &VolumeId) -> VolumeId {
        self.parameters.keeper.drivers.canonical(volume).unwrap_or_else(|_| volume.clone())
    }

    fn note(&self, container: Option<&ContainerId>, config: &ContainerConfig, volumes: &[TaskVolume]) {
        // One whose id is no name has no volumes, and no place in these sets.
        let Some(container) = container else { return };
        let mut containers = self.containers();
        if config.task_info.is_some() {
            containers.of_command_tasks.insert(container.clone());
        }
        if volumes.is_empty() {
            containers.without_volumes.insert(container.clone());
        } else {
            let volumes = volumes.iter().map(|volume| self.canonical(&volume.volume)).collect();
            containers.with_volumes.insert(container.clone(), volumes);
        }
    }

    /// Whether an executor's container may be handed the tasks that wait for it: Mesos asks before each is. It ends
    /// the container on a refusal.
    pub fn update(&self, container: &[u8], done: Done<()>) {
        if !self.parameters.rules.look_at_executors {
            return done(Ok(()));
        }
        match RawContainerId::decode(container) {
            Ok(raw) if raw.name().is_ok_and(|name| self.containers().of_command_tasks.contains(&name)) => {
                done(Ok(()));
            }
            Ok(raw) => {
                let prepared = raw.name().ok().and_then(|name| self.containers().prepared_with(&name));
                self.send(Command::Look { agent: self.agent(), container: raw.to_string(), prepared, done });
            }
            Err(fault) => done(Err(fault)),
        }
    }

    /// The container's first process exists: may it go on?
    pub fn isolate(&self, container: &[u8], pid: i32, done: Done<()>) {
        let container = match RawContainerId::decode(container).map(|container| container.name()) {
            Ok(Ok(container)) => container,
            // It has no volumes.
            Ok(Err(_)) => return done(Ok(())),
            Err(fault) => return done(Err(fault)),
        };
        if !self.containers().with_volumes.contains_key(&container) {
            return done(Ok(()));
        }
        match u32::try_from(pid) {
            Ok(pid) => {
                self.send(Command::Ask { call: Call::Isolate { agent: self.agent(), container, pid }, done })
            }
            Err(_) => done(Err(format!("{pid} is no process id"))),
        }
    }

    /// Completes with a serialized `mesos.slave.ContainerLimitation` when the container must end.
    pub fn watch(&self, container: &[u8], done: Done<Vec<u8>>) {
        match RawContainerId::decode(container) {
            Ok(raw) => match raw.name() {
                Ok(container) => self.send(Command::Watch { container, done }),
                Err(_) => {
                    let older = self.containers().unnamed.insert(raw, done);
                    // Not under the lock: who waits for it may call back.
                    drop(older);
                }
            },
            Err(fault) => done(Err(fault)),
        }
    }

    /// Gives the container's volumes back. Never fails for the keeper's sake: a failed cleanup would
    /// leave the container for ever; the keeper is told as soon as it can be.
    pub fn cleanup(&self, container: &[u8], done: Done<()>) {
        let raw = match RawContainerId::decode(container) {
            Ok(raw) => raw,
            Err(fault) => return done(Err(fault)),
        };
        let Ok(container) = raw.name() else {
            let watch = self.containers().unnamed.remove(&raw);
            drop(watch); // Nor here.
            return done(Ok(()));
        };
        self.send(Command::Unwatch { container: container.clone() });
        let mut containers = self.containers();
        containers.with_volumes.remove(&container);
        containers.of_command_tasks.remove(&container);
        if containers.without_volumes.remove(&container) {
            drop(containers);
            return done(Ok(()));
        }
        drop(containers);
        self.send(Command::Notify { call: Call::Cleanup { agent: self.agent(), container }, done });
    }
}

/// What a container declares. Mesos gives a nested one the ExecutorInfo of the outermost container, unless the agent was restarted
/// since: that container's labels and kind are not its own.
fn config_of(container: &RawContainerId, config: &[u8]) -> Result<ContainerConfig, String> {
    let mut config =
        ContainerConfig::decode(config).map_err(|error| format!("not a ContainerConfig: {error}"))?;
    if container.is_nested() {
        config.executor_info = None;
    }
    Ok(config)
}

/// Logs how long a prepare took, for whoever wants to know.
fn timed(done: Done<Option<Vec<u8>>>) -> Done<Option<Vec<u8>>> {
    let began = Instant::now();
    Box::new(move |answer| {
        tracing::debug!("prepared in {} us", began.elapsed().as_micros());
        done(answer);
    })
}

/// The containers that have names, and so may have volumes.
fn named(containers: &[RawContainerId]) -> BTreeSet<ContainerId> {
    let name = |container: &RawContainerId| match container.name() {
        Ok(name) => Some(name),
        Err(fault) => {
            tracing::warn!("a container is left alone, for it can have no volumes: {fault}");
            None
        }
    };
    containers.iter().filter_map(name).collect()
}

/// What is to be looked at on the host, for a sentence; none when there is nothing.
fn looked_at(volumes: &[TaskVolume], hidden: &ToHide, shown: &[Shown]) -> Option<String> {
    let paths = volumes.iter().filter_map(|v| Some((&v.volume, v.container_path.as_deref()?)));
    let paths = paths.map(|(volume, path)| format!("container path {path:?} of volume {volume}"));
    let roots = hidden.all().map(|root| format!("the look at {}", root.display()));
    let shown = shown.iter().map(|shown| format!("the look at {:?}", shown.path()));
    let all: Vec<_> = paths.chain(roots).chain(shown).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// Whether each volume has a place in the container where it is seen, is what it is said to be, and is mounted on what no user
/// can put a link into: what ContainerInfo mounts is not ours to close.
///
/// # Errors
/// A sentence that names the volume.
fn check_places(
    config: &ContainerConfig,
    volumes: &[TaskVolume],
    taken: &[String],
    sandbox_directory: &str,
) -> Result<(), String> {
    let place = |path: &str| {
        let inside = path.strip_prefix(sandbox_directory).filter(|rest| rest.starts_with('/'));
        target::relative(inside.filter(|_| config.rootfs.is_some()).unwrap_or(path))
    };
    if let (Some(first), Some(path)) =
        (volumes.first(), taken.iter().find(|path| path.split('/').any(|part| part == "..")))
    {
        return Err(format!(
            "volume {} cannot be beside the container path {:?} of ContainerInfo, which holds \"..\": name that one without it",
            first.volume,
            task::shown(path)
        ));
    }
    let taken: Vec<_> = taken.iter().map(|path| (place(path), path)).collect();
    for TaskVolume { volume, container_path, read_only, .. } in volumes {
        let Some(path) = container_path else {
            if config.rootfs.is_some() {
                return Err(format!(
                    "volume {volume} has no container path, and a task with an image does not see the host's: name one \
                     by extvol.container_path"
                ));
            }
            if *read_only {
                return Err(format!(
                    "volume {volume} is read-only and has no container path, and at the host's path it can be written: \
                     name one by extvol.container_path"
                ));
            }
            continue;
        };
        let own = place(path);
        let meets = |taken: &PathBuf| own.starts_with(taken) || taken.starts_with(&own);
        if let Some((_, other)) = taken.iter().find(|(taken, _)| meets(taken)) {
            return Err(format!(
                "volume {volume}: container path {path:?} is in the volume that ContainerInfo mounts at {:?}, where a link \
                 may lead anywhere, or covers it: name one beside it",
                task::shown(other)
            ));
        }
    }
    Ok(())
}

/// Of whom the container is. That of a nested one is in the sandbox path alone, which Mesos makes as well.
fn asker(config: &ContainerConfig) -> Asker {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    let sandbox = text(&config.directory);
    let framework = sandbox.split_once("/slaves/").and_then(|(_, rest)| rest.split_once("/frameworks/"));
    let framework = framework.and_then(|(_, rest)| Some(rest.split_once('/')?.0.to_owned()));
    let (task, executor) = (config.task_info.as_ref(), config.executor_info.as_ref());
    let role = config.resources.iter().find_map(|resource| resource.allocation_info.as_ref()?.role.as_ref());
    Asker {
        framework,
        user: config.user.as_ref().map(text),
        role: role.map(text),
        executor: executor.and_then(|executor| Some(text(&executor.executor_id.as_ref()?.value))),
        task_id: task.and_then(|task| Some(text(&task.task_id.as_ref()?.value))),
        task_name: task.and_then(|task| task.name.as_ref().map(text)),
    }
}

/// The agent's id in a task's sandbox path, `<work>/slaves/<agent id>/frameworks/...`; a standalone
/// container's has none.
fn agent_id(sandbox: &str) -> Option<String> {
    let (before, _) = sandbox.split_once("/frameworks/")?;
    let (_, id) = before.rsplit_once("/slaves/")?;
    Some(id.to_owned())
}

#[cfg(test)]
mod tests {
    use shared::volume::{Driver, VolumeId, VolumeName};

    use super::*;

    #[test]
    fn a_volume_is_mounted_beside_what_containerinfo_mounts_and_where_its_task_sees_it() {
        let check = |rootfs: bool, path: Option<&str>, read_only: bool, declared: &str| {
            let config = ContainerConfig { rootfs: rootfs.then(|| b"/image".to_vec()), ..Default::default() };
            let volume =
                VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("v").unwrap() };
            let container_path = path.map(str::to_owned);
            let volume =
                TaskVolume { volume, container_path, read_only, create: None, remove: false, own: false };
            check_places(&config, &[volume], &[declared.to_owned()], "/mnt/mesos/sandbox")
                .err()
                .unwrap_or_default()
        };
        for (rootfs, path, declared) in [
            (false, "shared/x", "shared"),
            (false, "shared", "./shared/"),
            (false, "a", "a/b"),
            (true, "/mnt/mesos/sandbox/shared/x", "shared"),
            (true, "shared/x", "/mnt/mesos/sandbox/shared"),
            (true, "/srv/x", "/srv"),
        ] {
            let said = check(rootfs, Some(path), false, declared);
            assert!(said.contains("the volume that ContainerInfo mounts"), "{path} in {declared}: {said}");
        }
        assert!(check(false, Some("data/v"), false, "x/../data").contains("holds \"..\""));
        assert_eq!(check(false, Some("shared2"), false, "shared"), "");
        assert_eq!(check(false, None, false, "shared"), "");
        assert!(check(true, None, false, "shared").contains("with an image does not see the host's"));
        assert!(check(false, None, true, "shared").contains("is read-only and has no container path"));
    }

    #[test]
    fn a_nested_container_is_not_its_executor() {
        use crate::mesos::{ContainerId, ExecutorInfo};
        let executor_info = Some(ExecutorInfo::default());
        let config = ContainerConfig { executor_info, ..Default::default() }.encode_to_vec();
        let id = |value: &str, parent| ContainerId { value: value.into(), parent };
        let nested = id("n", Some(Box::new(id("e", None))));
        for (id, kept) in [(id("e", None), true), (nested, false)] {
            let read = config_of(&RawContainerId::of(&id), &config).unwrap();
            assert_eq!(read.executor_info.is_some(), kept);
        }
    }

    #[test]
    fn a_tasks_sandbox_tells_the_agents_id() {
        let sandbox = "/w/agents/0/work/slaves/1f-S0/frameworks/1f-0000/executors/e/runs/c";
        assert_eq!(agent_id(sandbox).as_deref(), Some("1f-S0"));
        let asker =
            |sandbox: &str| asker(&ContainerConfig { directory: sandbox.into(), ..Default::default() });
        assert_eq!(asker(sandbox).framework.as_deref(), Some("1f-0000"));
        let nested = format!("{sandbox}/containers/n/frameworks/x/");
        assert_eq!(asker(&nested).framework.as_deref(), Some("1f-0000"));
        assert_eq!(asker("/w/agents/0/work/containers/c"), Asker::default());
        assert_eq!(agent_id("/w/agents/0/work/containers/c"), None);
    }
}
