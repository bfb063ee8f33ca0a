//! Tasks, agents and containers: what Mesos and a framework do.

use std::collections::BTreeSet;

use protocol::holder::{Answer, Input, Wanted};
use protocol::volume::{ContainerId, VolumeId};
use protocol::{Request, Text};

use super::plan::{MS, Micros, TaskPlan};
use super::run::{Event, Violation, World, container};

/// After so many attempts a task is given up.
const ATTEMPTS: u32 = 8;

/// How long after the calm each volume must have become usable.
const RECOVERY: Micros = 60_000 * MS;

/// How often a person looks whether something has to be detached by hand.
pub(super) const PERSON: Micros = 5_000 * MS;

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Preparing,
    Forked,
    Running,
    Over,
}

/// A task, in its present attempt.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) host: usize,
    pub(super) volumes: Vec<usize>,
    runs: Micros,
    pub(super) attempt: u32,
    pub(super) state: State,
    probe: bool,
    /// Whether it ever ran.
    ran: bool,
}

impl Task {
    pub(super) fn of(plan: &TaskPlan) -> Self {
        let TaskPlan { host, volumes, runs, .. } = plan.clone();
        Self { host, volumes, runs, attempt: 0, state: State::Waiting, probe: false, ran: false }
    }
}

fn request(task: usize, attempt: u32, isolate: bool) -> Request {
    Request((task as u64 * 10_000 + u64::from(attempt)) * 2 + u64::from(isolate))
}

impl World<'_> {
    fn container_of(&self, task: usize) -> ContainerId {
        container(&format!("t{task}-{}", self.tasks[task].attempt))
    }

    fn wanted(&self, task: usize) -> Vec<Wanted> {
        let volume = |number: &usize| self.volumes[*number].clone();
        let remove = self.dice(16, task as u64, 0).permille(250);
        let wanted = |id: VolumeId| Wanted {
            volume: id.clone(),
            asked: id,
            create: None,
            read_only: false,
            remove,
            owner: None,
        };
        self.tasks[task].volumes.iter().map(volume).map(wanted).collect()
    }

    /// Whether a host's isolator reaches a worker now.
    fn reachable(&self, host: usize) -> bool {
        let node = &self.nodes[host];
        let agent = node.powered && node.suspended.is_none() && !self.stopped.contains(&host);
        agent && node.hung <= self.now && node.host.worker.is_some()
    }

    /// The framework starts the task again, somewhere else.
    pub(super) fn retry(&mut self, task: usize) {
        let mut dice = self.dice(5, task as u64, u64::from(self.tasks[task].attempt));
        let (hosts, calm) = (self.nodes.len(), self.calm);
        let attaches_once = self.plan.attaches_once();
        let it = &mut self.tasks[task];
        it.attempt += 1;
        if !it.probe && (it.attempt >= ATTEMPTS || calm) {
            it.state = State::Over;
            return;
        }
        it.state = State::Waiting;
        it.host = match it.probe {
            false => dice.index(hosts),
            // Where the storage attaches to one host, the volume has to follow to this one.
            true if attaches_once => it.host,
            true => (it.host + 1) % hosts,
        };
        let attempt = it.attempt;
        self.after(dice.range(200 * MS, 1_000 * MS), Event::Start { task, attempt });
    }

    pub(super) fn start_task(&mut self, task: usize, attempt: u32) {
        let it = &self.tasks[task];
        if it.attempt != attempt || it.state != State::Waiting {
            return;
        }
        let host = it.host;
        if !self.nodes[host].powered || self.nodes[host].suspended.is_some() || self.stopped.contains(&host) {
            return self.retry(task);
        }
        if !self.reachable(host) {
            return self.after(100 * MS, Event::Start { task, attempt });
        }
        self.tasks[task].state = State::Preparing;
        self.prepare(task);
    }

    fn prepare(&mut self, task: usize) {
        let (host, attempt) = (self.tasks[task].host, self.tasks[task].attempt);
        let agent: Text = self.agent(host);
        let agent_id = Some(format!("A{host}").into());
        let container = self.container_of(task);
        let volumes = self.wanted(task);
        let request = request(task, attempt, false);
        self.tell(host, Input::Prepare { request, container, agent, agent_id, task: None, volumes });
    }

    pub(super) fn agent(&self, host: usize) -> Text {
        format!("slave(1)@h{host}").into()
    }

    /// A worker has started: isolators repeat what was not answered.
    pub(super) fn repeat_calls(&mut self, host: usize) {
        for task in 0..self.tasks.len() {
            if self.tasks[task].host == host && self.tasks[task].state == State::Preparing {
                self.prepare(task);
            }
        }
    }

    pub(super) fn answered(&mut self, host: usize, request_id: Request, answer: Result<Answer, Text>) {
        let number = usize::try_from(request_id.0 / 20_000).unwrap_or(usize::MAX);
        let Some(it) = self.tasks.get(number) else { return };
        let (task, attempt, state) = (number, it.attempt, it.state);
        let isolate = request_id.0 % 2 == 1;
        let current = request_id == request(task, attempt, isolate) && it.host == host;
        self.log(|| format!("h{host} answers task {task}: {answer:?}"));
        let container = self.container_of(task);
        match (answer, isolate, state) {
            _ if !current => {}
            (Ok(_), false, State::Preparing) => {
                let wanted = self.wanted(task);
                self.nodes[host].host.fork(&container, &wanted);
                self.tasks[task].state = State::Forked;
                let pause = self.dice(6, task as u64, u64::from(attempt)).range(2 * MS, 60 * MS);
                self.after(pause, Event::Isolate { task, attempt });
            }
            (Ok(_), true, State::Forked) => self.let_go(task, &container),
            (Err(_), false, State::Preparing) => {
                self.after(MS, Event::Cleanup { host, container });
                self.retry(task);
            }
            (Err(_), true, State::Forked) => {
                self.nodes[host].host.processes.remove(&container);
                self.after(MS, Event::Cleanup { host, container });
                self.retry(task);
            }
            _ => {}
        }
    }

    pub(super) fn isolate_task(&mut self, task: usize, attempt: u32) {
        let it = &self.tasks[task];
        if it.attempt != attempt || it.state != State::Forked {
            return;
        }
        let host = it.host;
        if !self.reachable(host) {
            if self.nodes[host].powered {
                self.after(50 * MS, Event::Isolate { task, attempt });
            }
            return;
        }
        let container = self.container_of(task);
        let (request, cgroup) = (request(task, attempt, true), Some("c".into()));
        let agent = self.agent(host);
        self.tell(host, Input::Isolate { request, agent, container, pid: 1, cgroup });
    }

    /// The container's first instruction.
    fn let_go(&mut self, task: usize, container: &ContainerId) {
        let (host, attempt, runs) = (self.tasks[task].host, self.tasks[task].attempt, self.tasks[task].runs);
        let mounts: BTreeSet<_> = self.nodes[host].host.mounts.keys().cloned().collect();
        // A fence may have killed it already.
        let Some(process) = self.nodes[host].host.processes.get_mut(container) else { return };
        process.runs = true;
        let missing = process.volumes.iter().find(|volume| !mounts.contains(volume)).cloned();
        if let Some(volume) = missing {
            return self.violated(Violation::WithoutVolume { container: container.clone(), volume });
        }
        self.tasks[task].state = State::Running;
        if self.tasks[task].probe && !self.tasks[task].ran {
            self.tasks[task].ran = true;
            self.probes -= 1;
            self.done = self.probes == 0;
        }
        self.after(runs, Event::End { task, attempt });
    }

    pub(super) fn end_task(&mut self, task: usize, attempt: u32) {
        let it = &self.tasks[task];
        if it.attempt != attempt || it.state != State::Running {
            return;
        }
        let (host, container) = (it.host, self.container_of(task));
        self.tasks[task].state = State::Over;
        self.nodes[host].host.processes.remove(&container);
        self.after(MS, Event::Cleanup { host, container });
    }

    pub(super) fn cleanup(&mut self, host: usize, container: ContainerId) {
        if !self.nodes[host].powered {
            return;
        }
        if !self.reachable(host) {
            return self.after(100 * MS, Event::Cleanup { host, container });
        }
        let (request, agent) = (Request(u64::MAX), self.agent(host));
        self.tell(host, Input::Cleanup { request, agent, container });
    }

    /// The agent hears that a container must end, and ends it; not always.
    pub(super) fn limited(&mut self, host: usize, container: ContainerId) {
        let mut dice = self.dice(8, host as u64, self.now);
        if !self.stopped.contains(&host) && dice.permille(850) {
            let boot = self.nodes[host].boot;
            let pause = dice.range(20 * MS, 400 * MS);
            self.after(pause, Event::Killed { host, boot, container, by_worker: false });
        }
    }

    pub(super) fn killed(&mut self, host: usize, boot: u32, container: &ContainerId, by_worker: bool) {
        if self.nodes[host].boot != boot || !self.nodes[host].powered {
            return;
        }
        self.nodes[host].host.processes.remove(container);
        let task = (0..self.tasks.len()).find(|task| self.container_of(*task) == *container);
        if by_worker {
            if self.reachable(host) {
                self.tell(host, Input::Ended { container: container.clone() });
            }
        } else {
            self.cleanup(host, container.clone());
        }
        if let Some(task) = task
            && self.tasks[task].host == host
            && matches!(self.tasks[task].state, State::Running | State::Forked)
        {
            self.retry(task);
        }
    }

    /// Mesos believes the host lost: the framework starts its tasks elsewhere, whatever runs there.
    pub(super) fn lose_tasks(&mut self, host: usize) {
        for task in 0..self.tasks.len() {
            let it = &self.tasks[task];
            if it.host == host && !matches!(it.state, State::Waiting | State::Over) {
                self.retry(task);
            }
        }
    }

    /// Mesos sees the host again: the agent ends the containers that have been replaced elsewhere.
    pub(super) fn end_strays(&mut self, host: usize) {
        let current: BTreeSet<_> = (0..self.tasks.len())
            .filter(|task| self.tasks[*task].host == host && self.tasks[*task].state != State::Over)
            .map(|task| self.container_of(task))
            .collect();
        let boot = self.nodes[host].boot;
        for container in self.nodes[host]
            .host
            .processes
            .keys()
            .filter(|c| !current.contains(c))
            .cloned()
            .collect::<Vec<_>>()
        {
            self.after(200 * MS, Event::Killed { host, boot, container, by_worker: false });
        }
    }

    pub(super) fn marked_gone(&mut self, agent_id: &str) {
        let host = (0..self.nodes.len()).find(|host| format!("A{host}") == agent_id);
        if let Some(host) = host
            && self.agents().connected.contains(agent_id)
            && self.nodes[host].connected + 1_000 * MS < self.now
        {
            self.violated(Violation::MarkedGone { host });
        }
    }

    // --- the end ---------------------------------------------------------------------------------

    /// All faults are over: what runs ends, and each volume is asked for on some host.
    pub(super) fn calm_down(&mut self) {
        self.calm = true;
        self.check_forgotten();
        self.recover_all();
        for task in 0..self.tasks.len() {
            let attempt = self.tasks[task].attempt;
            match self.tasks[task].state {
                State::Running => self.after(500 * MS, Event::End { task, attempt }),
                State::Forked | State::Preparing | State::Waiting | State::Over => {}
            }
        }
        self.probes = self.volumes.len();
        for number in 0..self.volumes.len() {
            let host = self.dice(9, number as u64, 0).index(self.nodes.len());
            let runs = 300 * MS;
            let volumes = vec![number];
            let probe =
                Task { host, volumes, runs, attempt: 0, state: State::Waiting, probe: true, ran: false };
            self.tasks.push(probe);
            let task = self.tasks.len() - 1;
            self.after(700 * MS, Event::Start { task, attempt: 0 });
        }
        if self.plan.attaches_once() && !self.plan.storage_fencing {
            self.after(PERSON, Event::Person);
        }
        self.after(RECOVERY + self.extra_recovery(), Event::GiveUpProbing);
    }

    pub(super) fn give_up_probing(&mut self) {
        let stuck = self.tasks.iter().find(|task| task.probe && !task.ran);
        if let Some(number) = stuck.map(|task| task.volumes[0]) {
            let volume = self.volumes[number].clone();
            let lives: Vec<_> = self
                .nodes
                .iter()
                .map(|node| node.host.worker.as_ref().map(|core| format!("{:?}", core.life())))
                .collect();
            let why = format!("{:?}; workers: {lives:?}", self.etcd.lease(&volume)).into();
            self.violated(Violation::Stuck { volume, why });
        }
        self.done = true;
    }
}
