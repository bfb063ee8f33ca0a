//! What isolators ask, and what they are told.

use std::collections::{BTreeMap, BTreeSet};

use shared::clock::holder_now;
use shared::protocol::holder::{Answer, Container, Input, Owner, Wanted};
use shared::protocol::{Request, Text};
use shared::store::LeaseStore;
use shared::volume::ContainerId;

use super::admission::{self, Asked, Look};
use super::{Event, POLL, Worker, alive, has_run, is_alive};
use crate::keeper::driver::VolumeDriver;
use crate::keeper::server::{ConnectionId, Lines};
use crate::wire::{self, Call, KeeperLine, Limit, VolumeCall, line};

/// Before it is known whose a volume is to be.
const ROOT: Owner = Owner { uid: 0, gid: 0 };

impl<S: LeaseStore, D: VolumeDriver + Clone + Send + Sync + 'static> Worker<S, D> {
    pub(super) fn connected(&mut self, id: ConnectionId, lines: Lines) {
        for (container, message) in &self.limits {
            let _ = lines.send(limit_line(container, message));
        }
        self.connections.insert(id, lines);
    }

    pub(super) fn disconnected(&mut self, id: ConnectionId) {
        self.connections.remove(&id);
        self.requests.retain(|_, (connection, _)| *connection != id);
        // It is asked again over the next one.
        let _forgotten = self.admission.remove(|asked| asked.connection == id);
    }

    pub(super) fn call(&mut self, connection: ConnectionId, call_id: u64, call: Call) {
        match call {
            Call::Prepare { container, agent, agent_id, asker, volumes } => match self.wanted(volumes) {
                // Those that are prepared are counted when it was looked.
                Ok(_) if self.admission.count() >= self.parameters.prepares_max.saturating_mul(4) => {
                    let why = self.too_many(self.admission.count());
                    return self.answer(connection, call_id, Err(why));
                }
                Ok(volumes) => {
                    self.admission.add(Asked {
                        connection,
                        call_id,
                        container,
                        agent,
                        agent_id,
                        asker,
                        volumes,
                    });
                    return self.look_before();
                }
                Err(why) => return self.answer(connection, call_id, Err(why.into())),
            },
            Call::Cleanup { ref agent, ref container } => {
                for prepare in
                    self.admission.remove(|asked| asked.agent == *agent && asked.container == *container)
                {
                    let why = format!("container {container} has ended");
                    self.answer(prepare.connection, prepare.call_id, Err(why.into()));
                }
            }
            Call::Hello { .. } | Call::Isolate { .. } | Call::Recover { .. } => {}
        }
        let request = self.new_request();
        match self.input(request, call) {
            Ok(Some(input)) => self.ask_core(connection, call_id, request, input),
            Ok(None) => self.answer(connection, call_id, Ok(Answer::Done)),
            Err(why) => self.answer(connection, call_id, Err(why)),
        }
    }

    fn new_request(&mut self) -> Request {
        self.next_request += 1;
        Request(self.next_request)
    }

    fn ask_core(&mut self, connection: ConnectionId, call_id: u64, request: Request, input: Input) {
        self.requests.insert(request, (connection, call_id));
        self.core.handle(holder_now(), input);
    }

    /// A prepare that was looked for; `volumes`: what it may have.
    fn prepare(&mut self, asked: Asked, volumes: Result<Vec<Wanted>, Text>) {
        let Asked { connection, call_id, container, agent, agent_id, asker, .. } = asked;
        let framework = asker.as_ref().and_then(|asker| asker.framework.as_deref());
        let too_many = self.store_fault.clone().or_else(|| self.has_too_many(&container));
        let volumes = too_many.map_or(volumes, Err).and_then(|volumes| {
            self.leaves_others_room(framework, &volumes)?;
            Ok(volumes)
        });
        match volumes {
            Err(why) => self.answer(connection, call_id, Err(why)),
            Ok(volumes) => {
                self.limits.remove(&container);
                let (agent, agent_id) = (agent.into(), agent_id.map(Text::from));
                let (request, task) = (self.new_request(), self.admission.task(asker.as_ref()));
                let input = Input::Prepare { request, container, agent, agent_id, task, volumes };
                self.ask_core(connection, call_id, request, input);
            }
        }
    }

    /// A call as the core takes it, if it is one for the core, and not refused here.
    fn input(&mut self, request: Request, call: Call) -> Result<Option<Input>, Text> {
        Ok(Some(match call {
            Call::Hello { version, parameters } => {
                self.hello(version, &parameters)?;
                return Ok(None);
            }
            Call::Prepare { .. } => return Err("a bug: it is looked for first".into()),
            Call::Isolate { agent, container, pid } => {
                let Some(cgroup) = alive::own_cgroup(pid, &container) else {
                    let refused = format!(
                        "container {container} (process {pid}) is in no freezer cgroup of its own below {}: a fence \
                         could not end it, so it may have no volumes; the agent needs --launcher=linux",
                        alive::FREEZER
                    );
                    return Err(refused.into());
                };
                let (agent, cgroup) = (agent.into(), Some(cgroup.into()));
                Input::Isolate { request, agent, container, pid, cgroup }
            }
            Call::Cleanup { agent, container } => {
                self.limits.remove(&container);
                Input::Cleanup { request, agent: agent.into(), container }
            }
            Call::Recover { agent, mut known, orphans } => {
                // An agent with another runtime directory or cgroups root may not see what still runs.
                let unseen = |(id, entry): &(&ContainerId, &Container)| {
                    *entry.agent == *agent
                        && !known.contains(*id)
                        && !orphans.contains(*id)
                        && has_run(entry)
                        && is_alive(entry)
                };
                let running: Vec<_> =
                    self.core.containers().iter().filter(unseen).map(|(id, _)| id.clone()).collect();
                for id in running {
                    tracing::warn!("the agent at {agent} does not know container {id}, which still runs");
                    known.insert(id);
                }
                Input::Recover { request, agent: agent.into(), known, orphans }
            }
        }))
    }

    /// Why another prepare has to wait for its next try. One that is asked again, over another connection, does not.
    fn has_too_many(&self, container: &ContainerId) -> Option<Text> {
        let (preparing, this_one) = self.core.preparing(container);
        (preparing >= self.parameters.prepares_max && !this_one).then(|| self.too_many(preparing))
    }

    /// # Errors
    /// When the framework would have more volumes on this host than one may.
    fn leaves_others_room(&self, framework: Option<&str>, wanted: &[Wanted]) -> Result<(), Text> {
        let Some((max, framework)) = self.parameters.framework_volumes_max.zip(framework) else {
            return Ok(());
        };
        let of = |container: &&Container| {
            container.task.as_ref().and_then(|task| task.framework_id.as_deref()) == Some(framework)
        };
        let has = self.core.containers().values().filter(of).flat_map(|container| &container.volumes);
        let all: BTreeSet<_> = has.chain(wanted).map(|wanted| &wanted.volume).collect();
        if all.len() <= max {
            return Ok(());
        }
        let why = format!(
            "framework {framework} would have {} volumes on this host, which lets one have {max} \
             (framework_volumes_max): start it again when some of its containers have ended",
            all.len()
        );
        Err(why.into())
    }

    fn too_many(&self, preparing: usize) -> Text {
        format!(
            "this host is already preparing the volumes of {preparing} containers, the most that its keeper does at once \
             (prepares_max): start it again when some of them have started or failed"
        )
        .into()
    }

    /// The volumes by their canonical names.
    fn wanted(&self, volumes: Vec<VolumeCall>) -> Result<Vec<Wanted>, String> {
        let wanted = |call: VolumeCall| {
            let volume = self.parameters.drivers.canonical(&call.volume)?;
            let mut asked = call.volume;
            // A plugin's long name stands in no socket's name.
            if asked.driver.as_str().contains('/') {
                asked.driver = volume.driver.clone();
            }
            if call.remove && !self.parameters.drivers.of(&volume.driver).remove {
                return Err(format!(
                    "label extvol.remove: this host does not let tasks remove volumes of the driver {} (`remove` in \
                     its `drivers`)",
                    volume.driver
                ));
            }
            // Whose it becomes is looked up before the container is let in.
            let owner = call.own.then_some(ROOT);
            let VolumeCall { create, read_only, remove, .. } = call;
            Ok(Wanted { volume, asked, create, read_only, remove, owner })
        };
        volumes.into_iter().map(wanted).collect()
    }

    fn hello(&self, version: u32, theirs: &BTreeMap<String, String>) -> Result<(), String> {
        if version != wire::VERSION {
            return Err(format!(
                "the keeper speaks version {} of the module's protocol, and the module version {version}; \
                 upgrade the older one",
                wire::VERSION
            ));
        }
        for (name, value) in theirs {
            let ours = self.parameters.given.get(name);
            if ours != Some(value) {
                let ours = ours.map_or("nothing".into(), |ours| format!("`{ours}`"));
                return Err(format!(
                    "the module's parameter `{name}` is `{value}`, and the keeper that runs was given {ours}"
                ));
            }
        }
        Ok(())
    }

    fn look_before(&mut self) {
        let Some(question) = self.admission.begin() else { return };
        let (roots, rules) = (self.parameters.mount_roots.clone(), self.parameters.volume_rules.clone());
        let (drivers, events) = (self.parameters.drivers.clone(), self.events.clone());
        tokio::spawn(async move {
            let look = admission::look(question, roots, rules, drivers).await;
            let _ = events.send(Event::LookedBefore(Box::new(look)));
        });
    }

    pub(super) fn looked_before(&mut self, look: Look) {
        for (asked, volumes) in self.admission.ended(look) {
            self.prepare(asked, volumes);
        }
        self.look_before();
    }

    pub(super) fn answer(&self, connection: ConnectionId, id: u64, answer: Result<Answer, Text>) {
        let Some(lines) = self.connections.get(&connection) else { return };
        let reply = match answer {
            Ok(Answer::Prepared { mount_points }) => {
                let mount_points = mount_points.iter().map(|point| point.to_string()).collect();
                KeeperLine::Answer { id, answer: wire::Answer::Prepared { mount_points } }
            }
            Ok(Answer::Done | Answer::Isolated) => KeeperLine::Answer { id, answer: wire::Answer::Done },
            Err(refused) => KeeperLine::Refused { id, refused: refused.to_string() },
        };
        // A connection that has just ended: the isolator asks again over the next one.
        let _ = lines.send(line(&reply));
    }

    pub(super) fn reply(&mut self, request: Request, answer: Result<Answer, Text>) {
        if let Some((connection, id)) = self.requests.remove(&request) {
            self.answer(connection, id, answer);
        }
    }

    pub(super) fn limit(&mut self, container: ContainerId, message: Text) {
        tracing::warn!("container {container} has to end: {message}");
        let text = limit_line(&container, &message);
        for lines in self.connections.values() {
            let _ = lines.send(text.clone());
        }
        self.limits.insert(container, message);
        self.look_at_ending = holder_now() + POLL;
    }
}

fn limit_line(container: &ContainerId, message: &Text) -> String {
    let limit = Limit { container: container.clone(), message: message.to_string() };
    line(&KeeperLine::Limit { limit })
}
