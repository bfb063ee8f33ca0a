//! The cores under a model checker: two hosts, up to two reclaimers, one volume, etcd. Every order of events is
//! tried: requests late, lost or done after their sender gave up; clocks that go wrong by one tick against each
//! other over any time; crashes at any moment.
//!
//! A tick is a second, T is five, F two, K one. A holder's clock and a reclaimer's may err by a tick each, so
//! that two seconds lie between the end of the one's right and the end of the other's wait, as in the rules. All
//! times are kept relative to now, and revisions and operations by rank, so that the states are finite.
//! The second host has a perfect network, and no faults: it is there to take over.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use shared::protocol::exchange::{
    ByTime, Commit, Instance, Key, Lease, Outcome, Reading, Record, SessionState, View,
};
use shared::protocol::fence::Act;
use shared::protocol::holder::{Answer, Input, Life, MountFault, Settings, UnmountFault, Wanted};
use shared::protocol::renumber::{self, Renumber};
use shared::protocol::timing::Timing;
use shared::protocol::{Now, Op, Request, Text, reclaimer};
use shared::store::Revision;
use shared::volume::{ContainerId, VolumeId};
use stateright::{Checker, HasDiscoveries, Model, Property};

use integration::simulation::etcd::Etcd;
use integration::simulation::host::{Effect, Host, Mount, Runner, mounted};
use integration::simulation::run::{container, holder, volume};

/// Now, on every clock.
const NOW: Now = Duration::from_secs(100);
/// Older times are alike.
const OLDEST: Now = Duration::from_secs(90);
const TICK: Duration = Duration::from_secs(1);

/// What may happen in a model, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// For people.
    pub(crate) name: &'static str,
    pub(crate) reclaimers: usize,
    pub(crate) drift: bool,
    /// Crashes of host 0's worker, deadman or power.
    pub(crate) faults: u8,
    /// Commits of host 0 whose sender gives up.
    pub(crate) losses: u8,
    pub(crate) revokes: u8,
    /// How often each host is asked to mount.
    pub(crate) prepares: [u8; 2],
    /// For how many ticks a driver call of host 0 may still land; then the settle time is as long.
    pub(crate) late_calls: u8,
    /// Whether a reclaimer's read may take longer than a tick.
    pub(crate) late_reads: bool,
    /// Whether the answer to a commit may come later than the commit is done.
    pub(crate) late_answers: bool,
    /// How often host 0 is suspended. Its clock counts on.
    pub(crate) suspends: u8,
    /// Whether the storage can take a volume away from a host. Without it nobody can tell what a host does that does
    /// not run: suspends, and crashes of a whole keeper, are tried only with it (rule L20).
    pub(crate) storage: bool,
    /// Whether a container of host 0 may end by itself.
    pub(crate) ends: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Host,
    Reclaimer(usize),
    /// Its sender has given up or died.
    Nobody,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Read(Reading),
    Commit(Commit),
    Seen(View),
    Done(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sent {
    who: Who,
    op: Op,
    stage: Stage,
}

/// A driver call under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Call {
    host: usize,
    op: Op,
    mount: bool,
    /// Whether its caller still lives.
    heard: bool,
    /// For how many ticks it has been under way.
    age: u8,
    /// Whether the storage refuses it.
    blocked: bool,
}

/// A state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    etcd: Etcd,
    hosts: [Host; 2],
    up: [bool; 2],
    control: [VecDeque<Effect>; 2],
    calls: Vec<Call>,
    wire: Vec<Sent>,
    reclaimers: Vec<reclaimer::Core>,
    skew: Vec<u8>,
    faults: u8,
    losses: u8,
    revokes: u8,
    suspends: u8,
    suspended: bool,
    prepares: [u8; 2],
    token: Revision,
    wrong: Option<&'static str>,
}

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Tick(Vec<u8>),
    Wake(usize),
    Poll(usize),
    Control(usize),
    Land(usize),
    Prepare(usize),
    End(usize),
    Apply(usize),
    Answered(usize),
    Lose(usize),
    KillWorker,
    KillDeadman,
    KillKeeper,
    StartDeadman,
    Suspend,
    Resume,
    PowerOff,
    PowerOn,
    Revoke,
}

/// A model.
pub(crate) struct Machine(pub(crate) Bounds);

fn timing() -> Timing {
    let s = Duration::from_secs;
    Timing { ttl: s(5), beat: s(1), request: s(1), election: s(0), fence: s(2), kill: s(1) }
}

fn id() -> VolumeId {
    volume(0)
}

fn clean_up(container: ContainerId) -> Input {
    Input::Cleanup { request: Request(3), agent: "a".into(), container }
}

fn user(host: usize) -> ContainerId {
    container(&format!("c{host}"))
}

impl Bounds {
    fn settings(&self, host: usize) -> Settings {
        Settings {
            holder: holder(host),
            instance: Instance("i".into()),
            machine: format!("m{host}").into(),
            boot: "b".into(),
            timing: timing(),
            by_time: ByTime::Allowed,
            grace: TICK,
            prepare_timeout: Duration::from_secs(1_000),
            // A lease of another is asked for again and again instead.
            wait_timeout: Duration::ZERO,
            start_timeout: Duration::MAX,
            lead: Duration::ZERO,
            retry: (TICK, TICK),
            // A call lands within `late_calls` ticks, at the latest right before the next one.
            settle: TICK * u32::from(self.late_calls + 1),
            storage_fencing: self.storage.then(|| volume(0).driver).into_iter().collect(),
            fencing_required: false,
        }
    }
}

impl State {
    fn handle(&mut self, host: usize, input: Input) {
        let mut effects = Vec::new();
        self.hosts[host].handle(NOW, input, &mut effects);
        self.take(host, effects);
    }

    /// Does at once what need not be told apart, and keeps the rest.
    fn take(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect.clone() {
                Effect::Read(op, reading) => {
                    let view = self.etcd.read(&reading);
                    self.handle(host, Input::Read(op, Ok(view)));
                }
                Effect::Commit(op, commit) if host == 1 => {
                    let outcome = self.commit(&commit);
                    self.handle(host, Input::Committed(op, outcome));
                }
                Effect::Commit(op, commit) => {
                    self.wire.push(Sent { who: Who::Host, op, stage: Stage::Commit(commit) });
                }
                Effect::Mount(op, _) | Effect::Unmount(op, _) => {
                    let mount = matches!(effect, Effect::Mount(..));
                    self.calls.push(Call { host, op, mount, heard: true, age: 0, blocked: false });
                    if host == 1 {
                        self.land(self.calls.len() - 1);
                    }
                }
                Effect::Settle(op, _) => {
                    let other = 1 - host;
                    if let Some(mount) = self.hosts[other].mounts.get_mut(&id()) {
                        mount.blocked = true;
                    }
                    let theirs = self.calls.iter_mut().filter(|call| call.host == other);
                    theirs.for_each(|call| call.blocked = true);
                    self.handle(host, Input::Settled(op, Ok(())));
                }
                Effect::Prove(op, asked) => {
                    let idleness = self.hosts[host].idleness(&asked);
                    self.handle(host, Input::Idle(op, idleness));
                }
                Effect::Look(op, asked) => {
                    let sight = self.hosts[host].sight(&asked);
                    self.handle(host, Input::Seen(op, sight));
                }
                Effect::Reply(request, answer) => self.answer(host, request, answer),
                Effect::Kill(it) => {
                    self.hosts[host].processes.remove(&it);
                    self.handle(host, clean_up(it));
                }
                Effect::Limit(_) => {}
                control => self.control[host].push_back(control),
            }
        }
    }

    fn answer(&mut self, host: usize, request: Request, answer: Result<Answer, Text>) {
        let it = user(host);
        match (answer, request.0) {
            (Ok(_), 1) => {
                let wanted = [Wanted { volume: id(), asked: id(), create: None }];
                self.hosts[host].fork(&it, &wanted);
                let (request, cgroup) = (Request(2), Some("c".into()));
                self.handle(
                    host,
                    Input::Isolate { request, agent: "a".into(), container: it, pid: 1, cgroup },
                );
            }
            (Ok(_), 2) => {
                let mounted = self.hosts[host].mounts.contains_key(&id());
                if let Some(process) = self.hosts[host].processes.get_mut(&it) {
                    process.runs = true;
                    if !mounted {
                        self.wrong = Some("a container runs without its volume");
                    }
                }
            }
            (Err(_), 1 | 2) => {
                self.hosts[host].processes.remove(&it);
                self.handle(host, clean_up(it));
            }
            _ => {}
        }
    }

    /// An answer reaches who asked.
    fn answered(&mut self, index: usize) -> Option<()> {
        let Sent { who, op, stage } = self.wire.remove(index);
        match (who, stage) {
            (Who::Host, Stage::Done(outcome)) => self.handle(0, Input::Committed(op, outcome)),
            (Who::Reclaimer(r), Stage::Done(outcome)) => {
                self.master(r, reclaimer::Input::Committed(op, outcome));
            }
            (Who::Reclaimer(r), Stage::Seen(view)) => self.master(r, reclaimer::Input::Read(op, Ok(view))),
            _ => return None,
        }
        Some(())
    }

    fn commit(&mut self, commit: &Commit) -> Outcome {
        let outcome = self.etcd.commit(commit);
        if let Outcome::Done(at) = outcome {
            for (key, record) in &commit.puts {
                if let (Key::Lease(_), Record::Lease(Lease::Held(held))) = (key, record)
                    && held.token.is_none()
                {
                    if at <= self.token {
                        self.wrong = Some("a token went back");
                    }
                    self.token = at;
                }
            }
        }
        outcome
    }

    fn master(&mut self, reclaimer: usize, input: reclaimer::Input) {
        self.reclaimers[reclaimer].handle(NOW, input);
        while let Some(output) = self.reclaimers[reclaimer].poll_output() {
            let (op, stage) = match output {
                reclaimer::Output::Read { op, reading } => (op, Stage::Read(reading)),
                reclaimer::Output::Commit { op, commit } => (op, Stage::Commit(commit)),
                _ => continue,
            };
            self.wire.push(Sent { who: Who::Reclaimer(reclaimer), op, stage });
        }
    }

    /// The state in a line.
    pub(crate) fn brief(&self) -> String {
        let host = |host: &Host| {
            let core = host.worker.as_ref().map(|core| {
                let volumes: Vec<_> = core.volumes().values().map(|volume| volume.phase.clone()).collect();
                format!("{:?} {volumes:?}", core.life())
            });
            format!("{:?} mounted {} {core:?}", host.shared.fence_at, host.mounts.len())
        };
        let [a, b] = &self.hosts;
        format!(
            "{:?}; {}; {}",
            self.etcd.lease(&id()).and_then(Lease::held).map(|l| l.holder.to_string()),
            host(a),
            host(b)
        )
    }

    /// Reads are done at once; what they have seen may be a while on the way.
    fn look(&mut self) {
        for sent in &mut self.wire {
            if let Stage::Read(reading) = &sent.stage {
                sent.stage = Stage::Seen(self.etcd.read(reading));
            }
        }
    }

    /// Whether the first host no longer keeps the volume from others.
    fn is_free_of_the_first(&self) -> bool {
        let other = self.etcd.lease(&id()).and_then(Lease::held).is_some_and(|held| held.holder != holder(0));
        other || self.etcd.is_takeable(&id())
    }

    fn writers(&self) -> usize {
        (0..2).filter(|host| self.runs(*host) && self.hosts[*host].can_write(&id())).count()
    }

    fn runs(&self, host: usize) -> bool {
        self.up[host] && !(host == 0 && self.suspended)
    }

    fn abandon(&mut self) {
        self.wire.iter_mut().filter(|sent| sent.who == Who::Host).for_each(|sent| sent.who = Who::Nobody);
        self.calls.iter_mut().filter(|call| call.host == 0).for_each(|call| call.heard = false);
    }

    fn land(&mut self, index: usize) {
        let Call { host, op, mount, heard, blocked, .. } = self.calls.remove(index);
        if blocked {
            if heard {
                let why = || "the storage refuses".into();
                self.handle(
                    host,
                    match mount {
                        true => Input::Mounted(op, Err(MountFault::Refused(why()))),
                        false => Input::Unmounted(op, Err(UnmountFault::Refused(why()))),
                    },
                );
            }
            return;
        }
        if mount {
            if self.up[host] {
                self.hosts[host].mounts.insert(id(), Mount { blocked: false });
            }
        } else {
            if self.hosts[1 - host].mounts.contains_key(&id()) {
                self.wrong = Some("a late unmount took the volume from its new host");
            }
            self.hosts[host].mounts.remove(&id());
        }
        if heard {
            let input =
                if mount { Input::Mounted(op, Ok(mounted(&id()))) } else { Input::Unmounted(op, Ok(())) };
            self.handle(host, input);
        }
    }

    /// Whether a host must do something before time goes on, or is unable to.
    fn is_urgent(&self, bounds: &Bounds, host: usize) -> bool {
        let it = &self.hosts[host];
        let fence = it.shared.fence_at.filter(|_| it.worker.is_some() || it.deadman.is_some());
        let fencing = it.worker.as_ref().is_some_and(|core| matches!(core.life(), Life::Fencing { .. }));
        let polled = self.control[host].contains(&Effect::KillWorker) || it.deadman.is_none();
        let begin = fence.is_some_and(|at| at <= NOW && (!it.shared.fenced || fencing)) && !polled;
        let waits = matches!(self.control[host].front(), None | Some(Effect::Act(_, Act::Settle(_))));
        let end = fence.is_some_and(|at| at + TICK <= NOW) && !waits;
        let patience = if host == 0 { bounds.late_calls } else { 0 };
        let call = self.calls.iter().any(|call| call.host == host && call.age >= patience);
        // A worker that lives is prompt: one that hangs does what a killed one does.
        let wake =
            host == 0 && it.worker.as_ref().and_then(|core| core.next_deadline()).is_some_and(|at| at <= NOW);
        self.runs(host) && (begin || end || wake) || call && !(host == 0 && self.suspended)
    }

    /// Gives all numbers their smallest equivalent.
    fn settle(&mut self, passed: &[u32]) {
        let etcd = &self.etcd;
        // What compares an older revision can never commit: revisions do not come back.
        self.wire.retain(|sent| match &sent.stage {
            Stage::Commit(commit) => sent.who != Who::Nobody || etcd.would_commit(commit),
            _ => sent.who != Who::Nobody,
        });
        let mut numbers =
            Numbers { passed: Duration::ZERO, revisions: Vec::new(), ops: Vec::new(), known: false };
        self.visit_shared(&mut numbers);
        for node in 0..2 + self.reclaimers.len() {
            self.visit(node, &mut numbers);
        }
        numbers.revisions.push(Revision::ABSENT);
        numbers.revisions.sort_unstable();
        numbers.revisions.dedup();
        for node in 0..2 + self.reclaimers.len() {
            let mut ops =
                Numbers { passed: Duration::ZERO, revisions: Vec::new(), ops: Vec::new(), known: false };
            self.visit(node, &mut ops);
            ops.ops.sort_unstable();
            ops.ops.dedup();
            numbers.ops = ops.ops;
            numbers.passed = TICK * passed.get(node).copied().unwrap_or(0);
            numbers.known = true;
            self.visit(node, &mut numbers);
        }
        self.visit_shared(&mut numbers);
        self.order_reclaimers();
        self.wire.sort_by_cached_key(|sent| {
            let mut hasher = DefaultHasher::new();
            sent.hash(&mut hasher);
            hasher.finish()
        });
    }

    /// Two reclaimers do the same: which of them is which makes no difference.
    fn order_reclaimers(&mut self) {
        let [first, second] = &self.reclaimers[..] else { return };
        let key = |number: usize, core: &reclaimer::Core| {
            let mut hasher = DefaultHasher::new();
            (core, self.skew[2 + number]).hash(&mut hasher);
            let mine = self.wire.iter().filter(|sent| sent.who == Who::Reclaimer(number));
            // Their order is that of their numbers, which are kept.
            let mut sent: Vec<_> = mine.map(|sent| (sent.op, &sent.stage)).collect();
            sent.sort_by_key(|(op, _)| *op);
            sent.hash(&mut hasher);
            hasher.finish()
        };
        if key(0, first) > key(1, second) {
            self.reclaimers.swap(0, 1);
            self.skew.swap(2, 3);
            for sent in &mut self.wire {
                if let Who::Reclaimer(number) = &mut sent.who {
                    *number = 1 - *number;
                }
            }
        }
    }

    fn visit_shared(&mut self, r: &mut impl Renumber) {
        r.revision(&mut self.etcd.revision);
        r.revision(&mut self.token);
        for (record, at) in self.etcd.entries.values_mut() {
            renumber::record(record, r);
            r.revision(at);
        }
        for sent in &mut self.wire {
            match &mut sent.stage {
                Stage::Commit(commit) => renumber::commit(commit, r),
                Stage::Seen(view) => renumber::view(view, r),
                Stage::Done(Outcome::Done(at)) => r.revision(at),
                Stage::Done(_) | Stage::Read(_) => {}
            }
            if sent.who == Who::Nobody {
                sent.op = Op(0);
            }
        }
    }

    fn visit(&mut self, node: usize, r: &mut impl Renumber) {
        let who = if node < 2 { Who::Host } else { Who::Reclaimer(node - 2) };
        if node != 1 {
            self.wire.iter_mut().filter(|sent| sent.who == who).for_each(|sent| r.op(&mut sent.op));
        }
        if node >= 2 {
            return renumber::reclaimer(&mut self.reclaimers[node - 2], r);
        }
        for call in self.calls.iter_mut().filter(|call| call.host == node) {
            if call.heard { r.op(&mut call.op) } else { call.op = Op(0) }
        }
        let host = &mut self.hosts[node];
        if let Some(core) = &mut host.worker {
            renumber::holder(core, r);
        }
        renumber::table(&mut host.table, r);
        if let Some(deadman) = &mut host.deadman {
            renumber::deadman(deadman, &mut host.shared, r);
        }
        if host.deadman.is_none() {
            host.shared.generation = 0;
        }
        renumber::deadline(&mut host.shared, r);
        for (runner, (_, op)) in &mut host.fences {
            if *runner == Runner::Worker {
                r.op(op);
            }
        }
        for effect in &mut self.control[node] {
            if let Effect::Act(_, Act::Settle(until)) = effect {
                r.due(until);
            }
        }
    }
}

struct Numbers {
    passed: Duration,
    revisions: Vec<Revision>,
    ops: Vec<Op>,
    known: bool,
}

impl Renumber for Numbers {
    fn since(&mut self, at: &mut Now) {
        if self.known {
            *at = (*at - self.passed).max(OLDEST);
        }
    }
    fn due(&mut self, at: &mut Now) {
        if self.known {
            // What is a thousand seconds away never comes.
            let far = *at > NOW + TICK * 100;
            *at = if far { *at } else { (*at - self.passed).max(NOW) };
        }
    }
    fn revision(&mut self, revision: &mut Revision) {
        if !self.known {
            self.revisions.push(*revision);
        } else if let Ok(rank) = self.revisions.binary_search(revision) {
            *revision = Revision(i64::try_from(rank).unwrap_or(i64::MAX));
        }
    }
    fn storms(&self) -> bool {
        false
    }
    fn ticked(&mut self, at: &mut Now) {
        // No worker hangs here.
        *at = NOW;
    }
    fn seen(&mut self, revision: &mut Revision) {
        // No etcd is restored here: none of these is ever above what is shown.
        *revision = Revision::ABSENT;
    }
    fn op(&mut self, op: &mut Op) {
        if !self.known {
            self.ops.push(*op);
        } else if let Ok(rank) = self.ops.binary_search(op) {
            *op = Op(rank as u64 + 1);
        }
    }
}

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let bounds = &self.0;
        let host = |number| Host::new(NOW, bounds.settings(number));
        let settings = reclaimer::Settings { timing: timing(), poll: TICK };
        let mut core = reclaimer::Core::new(NOW, settings.clone());
        core.handle(NOW - TICK, reclaimer::Input::Leading(true));
        let reclaimers = (0..bounds.reclaimers).map(|_| core.clone()).collect();
        let mut state = State {
            etcd: Etcd::new(),
            hosts: [host(0), host(1)],
            up: [true; 2],
            control: [VecDeque::new(), VecDeque::new()],
            calls: Vec::new(),
            wire: Vec::new(),
            reclaimers,
            skew: vec![0; 2 + bounds.reclaimers],
            faults: bounds.faults,
            losses: bounds.losses,
            revokes: bounds.revokes,
            suspends: bounds.suspends,
            suspended: false,
            prepares: bounds.prepares,
            token: Revision::ABSENT,
            wrong: None,
        };
        // Both sessions are open, and tell whom they serve: how they are opened is tried after the first fence or crash.
        for host in 0..2 {
            state.handle(host, Input::Tick);
            let (request, container) = (Request(0), user(host));
            let none =
                Input::Prepare { request, container, agent: "a".into(), agent_id: None, volumes: Vec::new() };
            state.handle(host, none);
            state.handle(host, clean_up(user(host)));
            while !state.control[host].is_empty() || host == 0 && !state.wire.is_empty() {
                while let Some(Effect::Act(runner, act)) = state.control[host].pop_front() {
                    let mut effects = Vec::new();
                    state.hosts[host].act(NOW, runner, &act, &mut effects);
                    state.take(host, effects);
                }
                while host == 0
                    && let Some(Sent { op, stage: Stage::Commit(commit), .. }) = state.wire.pop()
                {
                    let outcome = state.commit(&commit);
                    state.handle(0, Input::Committed(op, outcome));
                }
            }
        }
        state.settle(&[]);
        vec![state]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        if s.wrong.is_some() {
            return;
        }
        // SIGKILL is faster than anything that goes over a network.
        if let Some(host) =
            (0..2).find(|host| s.runs(*host) && s.control[*host].contains(&Effect::KillWorker))
        {
            return actions.push(Action::Control(host));
        }
        let bounds = &self.0;
        let reads = s.wire.iter().any(|sent| matches!(sent.stage, Stage::Read(_) | Stage::Seen(_)));
        if !(0..2).any(|host| s.is_urgent(bounds, host)) && (bounds.late_reads || !reads) {
            let mut ticks = vec![Vec::new()];
            for node in 0..s.skew.len() {
                // The second host's clock is right: what counts is how far two clocks are apart.
                let choices: &[u8] = if bounds.drift && node != 1 { &[0, 1] } else { &[0] };
                ticks = ticks
                    .into_iter()
                    .flat_map(|tick| choices.iter().map(move |c| [tick.clone(), vec![*c]].concat()))
                    .collect();
            }
            actions.extend(ticks.into_iter().map(Action::Tick));
        }
        for host in 0..2 {
            if !s.runs(host) {
                continue;
            }
            let it = &s.hosts[host];
            if let Some(core) = &it.worker {
                if host == 0 && core.next_deadline().is_some_and(|at| at <= NOW) {
                    actions.push(Action::Wake(host));
                }
                // The second host is asked when it can take the volume: before, it would say no.
                if s.prepares[host] > 0
                    && (host == 0 || s.etcd.is_takeable(&id()))
                    && core.epoch().is_some()
                    && !it.processes.contains_key(&user(host))
                    && !core.users().contains(&user(host))
                {
                    actions.push(Action::Prepare(host));
                }
                if bounds.ends
                    && host == 0
                    && it.processes.get(&user(host)).is_some_and(|process| process.runs)
                {
                    actions.push(Action::End(host));
                }
            }
            let due = it.shared.fenced || it.shared.fence_at.is_some_and(|at| at <= NOW);
            if it.deadman.is_some() && it.worker.is_some() && due {
                actions.push(Action::Poll(host));
            }
            if let Some(effect) = s.control[host].front()
                && !matches!(effect, Effect::Act(_, Act::Settle(until)) if *until > NOW)
            {
                actions.push(Action::Control(host));
            }
        }
        let lands = |call: &Call| !(call.host == 0 && s.suspended);
        actions.extend((0..s.calls.len()).filter(|index| lands(&s.calls[*index])).map(Action::Land));
        for (index, sent) in s.wire.iter().enumerate() {
            match &sent.stage {
                Stage::Read(_) | Stage::Commit(_) => actions.push(Action::Apply(index)),
                Stage::Seen(_) | Stage::Done(_) if s.suspended && sent.who == Who::Host => {}
                Stage::Seen(_) | Stage::Done(_) => actions.push(Action::Answered(index)),
            }
            if s.losses > 0 && sent.who == Who::Host && !s.suspended {
                actions.push(Action::Lose(index));
            }
        }
        if s.suspended {
            actions.push(Action::Resume);
        } else if s.suspends > 0 && s.up[0] {
            actions.push(Action::Suspend);
        }
        if s.faults > 0 && s.runs(0) {
            actions.push(Action::PowerOff);
            if bounds.storage && s.hosts[0].deadman.is_some() {
                actions.push(Action::KillKeeper);
            }
            if s.hosts[0].worker.is_some() {
                actions.push(Action::KillWorker);
            }
            if s.hosts[0].deadman.is_some() && s.hosts[0].worker.is_some() {
                actions.push(Action::KillDeadman);
            }
        }
        if !s.up[0] {
            actions.push(Action::PowerOn);
        } else if s.runs(0) && s.hosts[0].deadman.is_none() {
            actions.push(Action::StartDeadman);
        }
        if s.revokes > 0 && matches!(s.etcd.session(&holder(0)), Some((_, SessionState::Live))) {
            actions.push(Action::Revoke);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        let mut effects = Vec::new();
        let mut passed = vec![0; s.skew.len()];
        match action {
            Action::Tick(skew) => {
                for (node, skew) in skew.iter().enumerate() {
                    passed[node] = u32::from(1 + skew - s.skew[node]);
                }
                s.skew = skew;
                // A suspended host's calls wait for it.
                let oldest = self.0.late_calls.max(1);
                s.calls.iter_mut().for_each(|call| call.age = oldest.min(call.age + 1));
            }
            Action::Wake(host) => s.handle(host, Input::Tick),
            Action::Poll(host) => {
                s.hosts[host].poll_deadman(NOW, true, &mut effects);
                s.take(host, effects);
            }
            Action::Control(host) => {
                // A kill does not wait for what the worker itself was at.
                if s.control[host].contains(&Effect::KillWorker) {
                    s.control[host].retain(|effect| !matches!(effect, Effect::Act(Runner::Worker, _)));
                }
                while let Some(effect) = s.control[host].pop_front() {
                    match effect {
                        Effect::Act(runner, Act::Settle(until)) if until > NOW => {
                            s.control[host].push_front(Effect::Act(runner, Act::Settle(until)));
                            break;
                        }
                        Effect::KillWorker => {
                            if host == 0 {
                                s.abandon();
                            }
                            s.control[host]
                                .retain(|effect| !matches!(effect, Effect::Act(Runner::Worker, _)));
                            s.hosts[host].worker_gone(NOW, &mut effects);
                        }
                        Effect::StartWorker => s.hosts[host].start_worker(NOW, &mut effects),
                        Effect::Act(runner, act) => s.hosts[host].act(NOW, runner, &act, &mut effects),
                        _ => {}
                    }
                    s.take(host, std::mem::take(&mut effects));
                }
            }
            Action::Land(index) => s.land(index),
            Action::Prepare(host) => {
                s.prepares[host] -= 1;
                let volumes = vec![Wanted { volume: id(), asked: id(), create: None }];
                let (request, container) = (Request(1), user(host));
                s.handle(
                    host,
                    Input::Prepare { request, container, agent: "a".into(), agent_id: None, volumes },
                );
            }
            Action::End(host) => {
                s.hosts[host].processes.remove(&user(host));
                s.handle(host, clean_up(user(host)));
            }
            Action::Apply(index) => {
                let sent = s.wire.remove(index);
                let stage = match &sent.stage {
                    Stage::Read(reading) => Stage::Seen(s.etcd.read(reading)),
                    Stage::Commit(commit) => Stage::Done(s.commit(commit)),
                    _ => return None,
                };
                let waits = sent.who == Who::Host && s.suspended;
                if sent.who != Who::Nobody {
                    s.wire.push(Sent { stage, ..sent });
                    if !self.0.late_answers && !waits {
                        s.answered(s.wire.len() - 1)?;
                    }
                }
            }
            Action::Answered(index) => s.answered(index)?,
            Action::Lose(index) => {
                s.losses -= 1;
                let op = s.wire[index].op;
                if matches!(s.wire[index].stage, Stage::Done(_)) {
                    s.wire.remove(index);
                } else {
                    s.wire[index].who = Who::Nobody;
                }
                s.handle(0, Input::Committed(op, Outcome::Unknown));
            }
            Action::KillWorker => {
                s.faults -= 1;
                s.abandon();
                s.control[0]
                    .retain(|effect| !matches!(effect, Effect::Act(Runner::Worker, _) | Effect::KillWorker));
                s.hosts[0].worker_gone(NOW, &mut effects);
                s.take(0, effects);
            }
            Action::KillDeadman => {
                s.faults -= 1;
                s.hosts[0].deadman_gone();
                s.control[0]
                    .retain(|effect| !matches!(effect, Effect::Act(Runner::Deadman, _) | Effect::KillWorker));
                s.handle(0, Input::Guarded(false));
            }
            Action::KillKeeper => {
                s.faults -= 1;
                s.abandon();
                s.control[0].clear();
                s.hosts[0].deadman_gone();
                s.hosts[0].worker_gone(NOW, &mut effects);
                s.take(0, effects);
            }
            Action::Suspend => {
                s.suspends -= 1;
                s.suspended = true;
            }
            Action::Resume => s.suspended = false,
            Action::StartDeadman => {
                s.hosts[0].start_deadman(NOW, &mut effects);
                s.take(0, effects);
                s.handle(0, Input::Guarded(true));
            }
            Action::PowerOff => {
                s.faults -= 1;
                s.abandon();
                // Nothing is mounted by a driver that is gone; what it asked of the storage may still happen.
                s.calls.retain(|call| call.host != 0 || !call.mount);
                s.control[0].clear();
                s.hosts[0].power_off();
                s.up[0] = false;
            }
            Action::PowerOn => {
                s.up[0] = true;
                s.hosts[0].boot(NOW, "b2".into(), &mut effects);
                s.take(0, effects);
            }
            Action::Revoke => {
                s.revokes -= 1;
                let key = Key::Session(holder(0));
                if let Some((Record::Session(session), _)) = s.etcd.entries.get_mut(&key) {
                    session.state = SessionState::Revoking;
                }
                s.etcd.revision.0 += 1;
                let at = s.etcd.revision;
                if let Some(entry) = s.etcd.entries.get_mut(&key) {
                    entry.1 = at;
                }
            }
        }
        s.settle(&passed);
        // The reclaimers are prompt; what they ask for is not.
        for number in 0..s.reclaimers.len() {
            if s.reclaimers[number].next_deadline().is_some_and(|at| at <= NOW) {
                s.master(number, reclaimer::Input::Tick);
            }
        }
        if !self.0.late_reads {
            s.look();
        }
        if s.hosts[1].worker.as_ref().and_then(|core| core.next_deadline()).is_some_and(|at| at <= NOW) {
            s.handle(1, Input::Tick);
        }
        s.settle(&[]);
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two writers", |_, s: &State| s.writers() <= 1),
            Property::always("nothing else goes wrong", |_, s: &State| s.wrong.is_none()),
            Property::sometimes("the volume moves", |_, s: &State| {
                let over = match s.etcd.session(&holder(0)) {
                    Some((epoch, state)) => epoch > 1 || state != SessionState::Live,
                    None => true,
                };
                over && s.hosts[1].can_write(&id())
            }),
        ]
    }

    fn within_boundary(&self, s: &State) -> bool {
        s.etcd.session(&holder(0)).is_none_or(|(epoch, _)| epoch <= 2)
    }
}

/// What a search came to.
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    pub(crate) seconds: f64,
    /// A property that fails, with the actions that lead there.
    pub(crate) failure: Option<(String, Vec<Action>)>,
    pub(crate) moved: bool,
}

/// More states than this are taken for a mistake in the model: a number that is not kept relative.
const LIMIT: usize = 40_000_000;

/// Tries all orders of events within the bounds.
#[must_use]
pub(crate) fn search(bounds: Bounds) -> Found {
    let began = std::time::Instant::now();
    let checker = Machine(bounds)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(LIMIT)
        .spawn_bfs()
        .join();
    let failure = ["never two writers", "nothing else goes wrong"].into_iter().find_map(|name| {
        let path = checker.discovery(name)?;
        Some((name.to_owned(), path.into_actions()))
    });
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        seconds: began.elapsed().as_secs_f64(),
        failure,
        moved: checker.discovery("the volume moves").is_some(),
    }
}

/// In how many of the reachable states the volume can no longer become takeable without further faults; with
/// how many states there are.
#[must_use]
pub(crate) fn stuck(bounds: Bounds) -> (usize, usize, Vec<Action>) {
    let machine = Machine(bounds);
    let key = |state: &State| {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        hasher.finish()
    };
    let mut known = HashMap::new();
    let mut queue = VecDeque::new();
    let mut back: Vec<Vec<u32>> = Vec::new();
    let mut good = Vec::new();
    let mut parents: Vec<Option<(u32, Action)>> = vec![None];
    for state in machine.init_states() {
        known.insert(key(&state), 0_u32);
        good.push(state.is_free_of_the_first());
        back.push(Vec::new());
        queue.push_back((0_u32, state));
    }
    while let Some((from, state)) = queue.pop_front() {
        let mut actions = Vec::new();
        machine.actions(&state, &mut actions);
        for action in actions {
            let healthy = is_healthy(&state, &action);
            let Some(next) = machine.next_state(&state, action.clone()) else { continue };
            if !machine.within_boundary(&next) {
                // Beyond is another epoch, which ends the lease of this one.
                good[from as usize] = true;
                continue;
            }
            let to = *known.entry(key(&next)).or_insert_with(|| {
                let number = u32::try_from(good.len()).unwrap_or(u32::MAX);
                good.push(next.is_free_of_the_first());
                back.push(Vec::new());
                parents.push(Some((from, action)));
                queue.push_back((number, next));
                number
            });
            if healthy {
                back[to as usize].push(from);
            }
        }
    }
    let mut stack: Vec<u32> = (0..).zip(&good).filter(|(_, good)| **good).map(|(number, _)| number).collect();
    while let Some(state) = stack.pop() {
        for from in back[state as usize].clone() {
            if !std::mem::replace(&mut good[from as usize], true) {
                stack.push(from);
            }
        }
    }
    let mut path = Vec::new();
    let mut at = good.iter().position(|good| !*good);
    while let Some((from, action)) = at.and_then(|at| parents[at].clone()) {
        path.insert(0, action);
        at = usize::try_from(from).ok();
    }
    (good.iter().filter(|good| !**good).count(), good.len(), path)
}

/// Whether a fair schedule without faults can be relied on to do this.
fn is_healthy(_: &State, action: &Action) -> bool {
    !matches!(
        action,
        Action::Lose(_)
            | Action::KillWorker
            | Action::KillDeadman
            | Action::KillKeeper
            | Action::PowerOff
            | Action::Suspend
            | Action::Revoke
            | Action::Prepare(_)
    )
}

const BASE: Bounds = Bounds {
    name: "requests at any pace",
    reclaimers: 1,
    drift: false,
    faults: 0,
    losses: 0,
    revokes: 0,
    prepares: [1, 1],
    late_calls: 0,
    late_reads: false,
    late_answers: true,
    suspends: 0,
    storage: false,
    ends: true,
};

/// The bounds that CI tries.
pub(crate) const SMALL: [Bounds; 4] = [
    BASE,
    Bounds { name: "an unknown outcome, no reclaimer", losses: 1, reclaimers: 0, ..BASE },
    Bounds { name: "a crash, no reclaimer", faults: 1, reclaimers: 0, ..BASE },
    Bounds { name: "a revoke, no reclaimer", revokes: 1, reclaimers: 0, ..BASE },
];

/// Larger ones, for a machine that has an hour.
pub(crate) const LARGE: [Bounds; 18] = [
    Bounds { name: "two reclaimers, prompt answers", reclaimers: 2, late_answers: false, ..BASE },
    Bounds { name: "two reclaimers, small", reclaimers: 2, late_answers: false, ends: false, ..BASE },
    Bounds {
        name: "drift and late call, small",
        drift: true,
        late_calls: 1,
        late_answers: false,
        ends: false,
        ..BASE
    },
    Bounds { name: "suspend, small", suspends: 1, storage: true, late_answers: false, ends: false, ..BASE },
    Bounds {
        name: "keeper crash, small",
        faults: 1,
        storage: true,
        reclaimers: 0,
        late_answers: false,
        ..BASE
    },
    Bounds {
        name: "clocks that err, late driver calls, prompt answers",
        drift: true,
        late_calls: 1,
        late_answers: false,
        ..BASE
    },
    Bounds { name: "a suspend, prompt answers", suspends: 1, storage: true, late_answers: false, ..BASE },
    Bounds { name: "keeper crash", faults: 1, storage: true, late_answers: false, ..BASE },
    Bounds { name: "keeper crash, no reclaimer", faults: 1, storage: true, reclaimers: 0, ..BASE },
    Bounds { name: "clocks that err", drift: true, ..BASE },
    Bounds { name: "a reclaimer's reads at any pace", late_reads: true, ..BASE },
    Bounds { name: "an unknown outcome", losses: 1, ..BASE },
    Bounds { name: "a revoke", revokes: 1, ..BASE },
    Bounds { name: "late driver calls", late_calls: 1, ..BASE },
    Bounds { name: "a crash", faults: 1, ..BASE },
    Bounds { name: "a crash and an unknown outcome", faults: 1, losses: 1, ..BASE },
    Bounds { name: "clocks that err, and a crash", faults: 1, drift: true, ..BASE },
    Bounds { name: "two reclaimers", reclaimers: 2, ..BASE },
];

/// Tries the small bounds; answers what failed first.
#[must_use]
#[expect(dead_code, reason = "extvol-mutants compiles this file too, and calls it")]
pub(crate) fn small() -> Option<String> {
    SMALL.into_iter().find_map(|bounds| {
        let (property, _) = search(bounds).failure?;
        Some(format!("{property} ({})", bounds.name))
    })
}
