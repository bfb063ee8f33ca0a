//! A run of a plan.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::time::Duration;

use protocol::exchange::{ByTime, Commit, Instance, Means, Outcome, Reading, View};
use protocol::fence::Act;
use protocol::holder::{Idleness, Input, Settings};
use protocol::ids::Token;
use protocol::reclaimer::{self, Agents};
use protocol::timing::{Profile, Timing};
use protocol::volume::{ContainerId, Driver, Holder, VolumeId, VolumeName};
use protocol::{Now, Op, Text};

use super::driver::Call;
use super::etcd::Etcd;
use super::host::{Effect, Host, Runner};
use super::plan::{Dice, Fault, MS, Micros, Plan};
use super::tasks::Task;

/// What must never happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants' own sentences name their fields")]
pub enum Violation {
    /// Two hosts can write to a volume.
    TwoWriters { volume: VolumeId, hosts: Vec<usize> },
    /// A driver call of a host took the volume away from another that has it.
    LateUnmount { volume: VolumeId, by: usize, from: usize },
    /// A host had a volume deleted that another, or itself, can write.
    RemovedInUse { volume: VolumeId, by: usize, of: usize },
    /// A container runs on the empty directory beneath a mount.
    WithoutVolume { container: ContainerId, volume: VolumeId },
    /// A lease was taken of a host that lives and is about to give the volume back, where nobody else can mount it.
    TakenFromTheLiving { volume: VolumeId, from: Holder },
    /// A lease was granted with a token that is not above the last.
    TokenWentBack { volume: VolumeId, last: Token, new: Token },
    /// A session that was revoked or is dead was granted a lease.
    GrantedAfterRevoke { volume: VolumeId },
    /// A host has a lease, and knows nothing of it.
    Forgotten { host: usize, volume: VolumeId },
    /// A holder whom a lease names does not find it by its index.
    NotInIndex { volume: VolumeId },
    /// A fence was called proved on a host that can write.
    Unproved { host: usize, volume: VolumeId },
    /// A volume did not become usable again.
    Stuck { volume: VolumeId, why: Text },
    /// A session that is over beats.
    BeatAfterEnd { host: usize },
    /// A host lost its whole session though Mesos never gave its agent up.
    RevokedForRestart { holder: Holder },
    /// An agent that is connected was marked gone.
    MarkedGone { host: usize },
    /// The cores never come to rest.
    Busy,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What went wrong, and when.
    pub violation: Option<(Micros, Violation)>,
    /// How many events were handled.
    pub events: u64,
    /// How often a volume was mounted.
    pub mounts: u64,
    /// How often a volume was deleted.
    pub removals: u64,
    /// How often a lease was taken from a dead session.
    pub takeovers: u64,
    /// How often a host was fenced.
    pub fences: u64,
    /// What happened, if that was asked for.
    pub log: Vec<String>,
}

/// Who asks etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    Host(usize),
    Reclaimer(usize),
}

#[derive(Clone, Debug)]
pub(super) enum Ask {
    Read(Reading),
    Commit(Commit),
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Read(Result<View, Text>),
    Commit(Outcome),
}

/// What happens at a moment. `life` tells which process of a host or master module it concerns.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A request reaches etcd; its answer is back at `back`, or never.
    Apply {
        client: Client,
        life: u32,
        op: Op,
        ask: Ask,
        back: Option<Micros>,
    },
    Answer {
        client: Client,
        life: u32,
        op: Op,
        answer: Answer,
    },
    /// A worker's core wants to know the time.
    Wake {
        host: usize,
        life: u32,
    },
    PollDeadman {
        host: usize,
    },
    /// A core's driver call reaches the storage; `life` of the worker that made it.
    Land {
        host: usize,
        call: Call,
    },
    CallAnswered {
        host: usize,
        life: u32,
        input: Input,
    },
    /// A driver call may be made now.
    Turn {
        host: usize,
        boot: u32,
        life: u32,
        op: Op,
        effect: Effect,
    },
    Act {
        host: usize,
        boot: u32,
        runner: Runner,
        life: u32,
        act: Act,
    },
    /// A container's processes are killed by worker or agent.
    Killed {
        host: usize,
        boot: u32,
        container: ContainerId,
        by_worker: bool,
    },
    Reaped {
        host: usize,
        life: u32,
    },
    StartWorker {
        host: usize,
        boot: u32,
    },
    StartDeadman {
        host: usize,
        boot: u32,
    },
    /// Whether the deadman ticks is noticed.
    Guarded {
        host: usize,
        life: u32,
        guarded: bool,
    },
    WakeReclaimer {
        reclaimer: usize,
        life: u32,
    },
    /// Master modules are told of the agents.
    Agents,
    Start {
        task: usize,
        attempt: u32,
    },
    Isolate {
        task: usize,
        attempt: u32,
    },
    End {
        task: usize,
        attempt: u32,
    },
    Cleanup {
        host: usize,
        container: ContainerId,
    },
    Fault(usize),
    Recover(Fault),
    /// etcd is backed up.
    Backup,
    /// Every volume must become usable.
    Calm,
    /// A person detaches at the storage what the leases say.
    Person,
    GiveUpProbing,
}

struct At(Micros, u64, Event);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A host in the world.
pub(super) struct Node {
    pub(super) host: Host,
    rate: i64,
    /// By how much its clock is behind because it was paused without knowing.
    pub(super) lost: Micros,
    pub(super) powered: bool,
    pub(super) suspended: Option<Micros>,
    pub(super) hung: Micros,
    pub(super) cut: Micros,
    pub(super) slow: Micros,
    pub(super) boot: u32,
    pub(super) life: u32,
    pub(super) wake: Option<Micros>,
    pub(super) polling: Option<Micros>,
    pub(super) connected: Micros,
    pub(super) busy: BTreeMap<VolumeId, Micros>,
    pub(super) requests: u64,
}

pub(super) struct Master {
    pub(super) core: reclaimer::Core,
    rate: i64,
    pub(super) cut: Micros,
    pub(super) life: u32,
    pub(super) wake: Option<Micros>,
    pub(super) requests: u64,
}

/// The world.
pub(super) struct World<'p> {
    pub(super) plan: &'p Plan,
    pub(super) now: Micros,
    queue: BinaryHeap<Reverse<At>>,
    sequence: u64,
    pub(super) etcd: Etcd,
    pub(super) backup: Option<Etcd>,
    pub(super) member_hung: Micros,
    pub(super) no_quorum: Micros,
    pub(super) full: Micros,
    pub(super) nodes: Vec<Node>,
    pub(super) masters: Vec<Master>,
    pub(super) volumes: Vec<VolumeId>,
    pub(super) calls: Vec<(usize, Call)>,
    /// To which host the storage has a volume attached, where it attaches to one.
    pub(super) attached: BTreeMap<VolumeId, usize>,
    pub(super) tasks: Vec<Task>,
    pub(super) given_up: BTreeSet<usize>,
    /// Those of which this was so at any time.
    pub(super) ever_given_up: BTreeSet<usize>,
    /// Hosts whose agent does not run.
    pub(super) stopped: BTreeSet<usize>,
    pub(super) tokens: BTreeMap<VolumeId, Token>,
    pub(super) probes: usize,
    pub(super) calm: bool,
    pub(super) report: Report,
    pub(super) logging: bool,
    pub(super) done: bool,
    scratch: Vec<Effect>,
}

fn name<T, E: fmt::Debug>(made: Result<T, E>) -> T {
    match made {
        Ok(name) => name,
        Err(error) => unreachable!("a simulated name is valid: {error:?}"),
    }
}

/// The volume of this number.
#[must_use]
pub fn volume(number: usize) -> VolumeId {
    VolumeId { driver: name(Driver::new("d")), name: name(VolumeName::new(format!("v{number}"))) }
}

/// The container of this name.
#[must_use]
pub fn container(text: &str) -> ContainerId {
    name(ContainerId::new(text))
}

/// The holder of this number.
#[must_use]
pub fn holder(number: usize) -> Holder {
    name(Holder::new(format!("h{number}")))
}

/// The fast profile, without the reserve that it leaves between the end of fencing and the end of the right
/// to write: here a fence may end at the last moment that the rules allow.
#[must_use]
pub fn timing() -> Timing {
    Timing { fence: Duration::from_millis(3_690), ..Profile::Fast.timing() }
}

pub(super) fn settings(plan: &Plan, host: usize) -> Settings {
    let by_time = if plan.hosts[host].never_by_time { ByTime::Never } else { ByTime::Allowed };
    Settings {
        holder: holder(host),
        instance: Instance("i".into()),
        machine: format!("m{host}").into(),
        boot: "b0".into(),
        timing: timing(),
        by_time,
        means: [Means::Guard].into(),
        grace: Duration::from_millis(500),
        prepare_timeout: Duration::from_secs(8),
        wait_timeout: Duration::from_secs(if plan.seed.is_multiple_of(3) { 0 } else { 6 }),
        start_timeout: Duration::from_secs(20),
        lead: Duration::from_millis(if plan.seed.is_multiple_of(2) { 0 } else { 100 }),
        retry: (Duration::from_millis(100), Duration::from_secs(1)),
        settle: Duration::from_millis(3_000),
        settle_of: BTreeMap::new(),
        storage_fencing: plan.storage_fencing.then(|| volume(0).driver).into_iter().collect(),
        fencing_required: false,
    }
}

/// Runs a plan.
#[must_use]
pub fn run(plan: &Plan, logging: bool) -> Report {
    let mut world = World::new(plan, logging);
    world.start();
    while !world.done
        && world.report.violation.is_none()
        && let Some(Reverse(At(at, _, event))) = world.queue.pop()
    {
        world.now = at;
        world.report.events += 1;
        if world.report.events > 200_000 {
            world.violated(Violation::Busy);
        }
        world.happen(event);
    }
    world.check_forgotten();
    world.report
}

impl<'p> World<'p> {
    fn new(plan: &'p Plan, logging: bool) -> Self {
        let node = |number: usize| {
            let mut host = Host::new(Duration::ZERO, settings(plan, number));
            host.private_mounts = plan.hosts[number].private_mounts;
            Node {
                host,
                rate: plan.hosts[number].rate,
                lost: 0,
                powered: true,
                suspended: None,
                hung: 0,
                cut: 0,
                slow: 0,
                boot: 0,
                life: 0,
                wake: None,
                polling: None,
                connected: 0,
                busy: BTreeMap::new(),
                requests: 0,
            }
        };
        let master = |rate: &i64| Master {
            core: new_reclaimer(Duration::ZERO),
            rate: *rate,
            cut: 0,
            life: 0,
            wake: None,
            requests: 0,
        };
        let mut world = Self {
            plan,
            now: 0,
            queue: BinaryHeap::with_capacity(256),
            sequence: 0,
            etcd: Etcd::new(),
            backup: None,
            member_hung: 0,
            no_quorum: 0,
            full: 0,
            nodes: (0..plan.hosts.len()).map(node).collect(),
            masters: plan.reclaimers.iter().map(master).collect(),
            volumes: (0..plan.volumes).map(volume).collect(),
            calls: Vec::new(),
            attached: BTreeMap::new(),
            tasks: Vec::new(),
            given_up: BTreeSet::new(),
            ever_given_up: BTreeSet::new(),
            stopped: BTreeSet::new(),
            tokens: BTreeMap::new(),
            probes: 0,
            calm: false,
            report: Report {
                violation: None,
                events: 0,
                mounts: 0,
                removals: 0,
                takeovers: 0,
                fences: 0,
                log: Vec::new(),
            },
            logging,
            done: false,
            scratch: Vec::new(),
        };
        world.masters[0].core.handle(Duration::ZERO, reclaimer::Input::Leading(true));
        world
    }

    fn start(&mut self) {
        let plan = self.plan;
        for host in 0..self.nodes.len() {
            self.at(self.now, Event::Wake { host, life: 0 });
        }
        for reclaimer in 0..self.masters.len() {
            self.at(self.now, Event::WakeReclaimer { reclaimer, life: 0 });
        }
        for (number, task) in plan.tasks.iter().enumerate() {
            self.tasks.push(Task::of(task));
            self.at(task.at, Event::Start { task: number, attempt: 0 });
        }
        let mut calm = plan.calm;
        for (number, (at, fault)) in plan.faults.iter().enumerate() {
            self.at(*at, Event::Fault(number));
            if let Fault::Restore { closed, age } = fault {
                self.at(at.saturating_sub(*age), Event::Backup);
                calm = calm.max(at + closed + MS);
            }
        }
        self.at(0, Event::Agents);
        self.at(calm, Event::Calm);
    }

    // --- time ------------------------------------------------------------------------------------

    pub(super) fn at(&mut self, at: Micros, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(At(at.max(self.now), self.sequence, event)));
    }

    pub(super) fn after(&mut self, pause: Micros, event: Event) {
        self.at(self.now + pause, event);
    }

    pub(super) fn dice(&self, kind: u64, thing: u64, count: u64) -> Dice {
        Dice::of([self.plan.seed, kind, thing, count])
    }

    /// A host's own elapsed time.
    pub(super) fn clock(&self, host: usize) -> Now {
        let node = &self.nodes[host];
        local(self.now - node.lost, node.rate)
    }

    fn clock_of_master(&self, reclaimer: usize) -> Now {
        local(self.now, self.masters[reclaimer].rate)
    }

    pub(super) fn violated(&mut self, violation: Violation) {
        if self.report.violation.is_none() {
            self.log(|| format!("VIOLATION {violation:?}"));
            self.report.violation = Some((self.now, violation));
        }
    }

    pub(super) fn log(&mut self, line: impl FnOnce() -> String) {
        if self.logging {
            let line = format!("{:>10.3} ms  {}", self.now as f64 / 1_000.0, line());
            self.report.log.push(line);
        }
    }

    // --- cores -----------------------------------------------------------------------------------

    /// A worker takes something in, unless it is gone, stopped or suspended: then later, if it still lives.
    pub(super) fn tell(&mut self, host: usize, input: Input) {
        self.log(|| format!("h{host} <- {}", brief(&input)));
        let now = self.clock(host);
        let mut effects = std::mem::take(&mut self.scratch);
        self.nodes[host].host.handle(now, input, &mut effects);
        self.effects(host, &mut effects);
        self.scratch = effects;
    }

    /// Does something with a host, and sees to what follows.
    pub(super) fn with(&mut self, host: usize, what: impl FnOnce(&mut Host, Now, &mut Vec<Effect>)) {
        let now = self.clock(host);
        let mut effects = std::mem::take(&mut self.scratch);
        what(&mut self.nodes[host].host, now, &mut effects);
        self.effects(host, &mut effects);
        self.scratch = effects;
    }

    /// When a host's processes run again; none if they run.
    fn delayed(&self, host: usize) -> Option<Micros> {
        self.nodes[host].suspended.filter(|until| *until > self.now)
    }

    pub(super) fn worker_delayed(&self, host: usize) -> Option<Micros> {
        let hung = Some(self.nodes[host].hung).filter(|until| *until > self.now);
        self.delayed(host).max(hung)
    }

    /// Sees to it that the cores of a host are woken in time.
    fn set_alarms(&mut self, host: usize) {
        let node = &self.nodes[host];
        if let Some(core) = &node.host.worker
            && let Some(deadline) = core.next_deadline()
        {
            let at = self.true_time(host, deadline);
            if self.nodes[host].wake.is_none_or(|wake| at < wake) {
                let life = self.nodes[host].life;
                self.nodes[host].wake = Some(at);
                self.at(at, Event::Wake { host, life });
            }
        }
        let node = &self.nodes[host];
        if let Some(deadman) = &node.host.deadman
            && node.host.worker.is_some()
        {
            // It polls every 50 ms; only the polls that can matter are simulated.
            let due = if node.hung > self.now {
                deadman.next_deadline(node.host.shared)
            } else if node.host.shared.fenced {
                Some(self.clock(host))
            } else {
                node.host.shared.fence_at
            };
            if let Some(due) = due {
                let due = self.true_time(host, due);
                if self.nodes[host].polling.is_none_or(|polling| due + 50 * MS < polling) {
                    let at = due + self.dice(7, host as u64, self.now).range(0, 50 * MS);
                    self.nodes[host].polling = Some(at);
                    self.at(at, Event::PollDeadman { host });
                }
            }
        }
    }

    fn true_time(&self, host: usize, local_time: Now) -> Micros {
        let node = &self.nodes[host];
        let behind = local_time.saturating_sub(self.clock(host));
        self.now + truth(behind, node.rate)
    }

    fn wake_master(&mut self, reclaimer: usize) {
        let master = &self.masters[reclaimer];
        if let Some(deadline) = master.core.next_deadline() {
            let behind = deadline.saturating_sub(self.clock_of_master(reclaimer));
            let at = self.now + truth(behind, master.rate);
            if master.wake.is_none_or(|wake| at < wake || wake <= self.now) {
                let life = master.life;
                self.masters[reclaimer].wake = Some(at);
                self.at(at, Event::WakeReclaimer { reclaimer, life });
            }
        }
    }

    pub(super) fn tell_master(&mut self, reclaimer: usize, input: reclaimer::Input) {
        let now = self.clock_of_master(reclaimer);
        self.masters[reclaimer].core.handle(now, input);
        while let Some(output) = self.masters[reclaimer].core.poll_output() {
            let client = Client::Reclaimer(reclaimer);
            match output {
                reclaimer::Output::Read { op, reading } => self.ask(client, op, Ask::Read(reading)),
                reclaimer::Output::Commit { op, commit } => {
                    self.log(|| format!("m{reclaimer} commits {}", brief(&commit.puts)));
                    self.ask(client, op, Ask::Commit(commit));
                }
                reclaimer::Output::MarkGone { agent_id } => self.marked_gone(&agent_id),
                reclaimer::Output::Alarm(_) | reclaimer::Output::Note(_) => {}
            }
        }
        self.wake_master(reclaimer);
    }

    fn effects(&mut self, host: usize, effects: &mut Vec<Effect>) {
        let (boot, life) = (self.nodes[host].boot, self.nodes[host].life);
        for effect in effects.drain(..) {
            match effect {
                Effect::Read(op, reading) => self.ask(Client::Host(host), op, Ask::Read(reading)),
                Effect::Commit(op, commit) => {
                    self.log(|| format!("h{host} commits #{} {}", op.0, brief(&commit.puts)));
                    self.ask(Client::Host(host), op, Ask::Commit(commit));
                }
                Effect::Mount(op, _)
                | Effect::Unmount(op, _)
                | Effect::Remove(op, _)
                | Effect::Settle(op, _) => {
                    // It waits for its turn among the driver's calls.
                    let mut dice = self.dice(17, host as u64, op.0);
                    let waits =
                        if dice.permille(30) { dice.range(20 * MS, 800 * MS) } else { dice.range(0, MS) };
                    self.after(waits, Event::Turn { host, boot, life, op, effect });
                }
                Effect::Prove(op, volume) => {
                    let pause = self.dice(11, host as u64, op.0).range(MS, 20 * MS);
                    let idleness = match self.nodes[host].host.idleness(&volume) {
                        Idleness::Proved if self.attached.get(&volume) == Some(&host) => {
                            Idleness::ProvedAttached
                        }
                        idleness => idleness,
                    };
                    let input = Input::Idle(op, idleness);
                    self.after(pause, Event::CallAnswered { host, life, input });
                }
                Effect::Look(op, volume) => {
                    let pause = self.dice(14, host as u64, op.0).range(MS, 20 * MS);
                    let input = Input::Seen(op, self.nodes[host].host.sight(&volume));
                    self.after(pause, Event::CallAnswered { host, life, input });
                }
                Effect::Act(runner, act) => {
                    let slow = matches!(act, Act::Kill(_) | Act::MakeIdle(_));
                    let pause = if let Act::Settle(until) = act {
                        self.true_time(host, until) - self.now
                    } else if slow {
                        let mut dice = self.dice(12, host as u64, self.now);
                        let usual = dice.range(5 * MS, 250 * MS);
                        // A host that is slow to fence uses all of K, and not more.
                        let shared = self.nodes[host].host.shared;
                        let latest = shared.fence_at.map(|at| self.true_time(host, at + timing().kill));
                        let left = latest.map_or(0, |at| at - self.now).saturating_sub(2 * MS);
                        let last = runner == Runner::Deadman && matches!(act, Act::MakeIdle(_));
                        if last && dice.permille(300) { usual.max(left) } else { usual }
                    } else {
                        MS
                    };
                    self.after(pause, Event::Act { host, boot, runner, life, act });
                }
                Effect::Kill(container) => {
                    let pause = self.dice(13, host as u64, self.now).range(MS, 100 * MS);
                    self.after(pause, Event::Killed { host, boot, container, by_worker: true });
                }
                Effect::Reply(request, answer) => self.answered(host, request, answer),
                Effect::Limit(container) => self.limited(host, container),
                Effect::KillWorker => self.after(5 * MS, Event::Reaped { host, life }),
                Effect::StartWorker => self.after(20 * MS, Event::StartWorker { host, boot }),
            }
        }
        self.set_alarms(host);
    }

    /// Ends the worker's life; whatever was meant for it finds another one.
    pub(super) fn worker_dies(&mut self, host: usize) {
        let node = &mut self.nodes[host];
        node.life += 1;
        node.hung = 0;
        node.wake = None;
        self.with(host, |host, now, effects| host.worker_gone(now, effects));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Apply { client, life, op, ask, back } => self.apply(client, life, op, &ask, back),
            Event::Answer { client: Client::Host(host), life, op, answer } => {
                let input = match answer {
                    Answer::Read(result) => Input::Read(op, result),
                    Answer::Commit(outcome) => Input::Committed(op, outcome),
                };
                self.answer_worker(host, life, input);
            }
            Event::CallAnswered { host, life, input } => self.answer_worker(host, life, input),
            Event::Turn { host, boot, life, op, effect } => self.take_turn(host, boot, life, op, effect),
            Event::Answer { client: Client::Reclaimer(reclaimer), life, op, answer } => {
                if self.masters[reclaimer].life == life {
                    self.tell_master(
                        reclaimer,
                        match answer {
                            Answer::Read(result) => reclaimer::Input::Read(op, result),
                            Answer::Commit(outcome) => reclaimer::Input::Committed(op, outcome),
                        },
                    );
                }
            }
            Event::Wake { host, life } => {
                if self.nodes[host].life == life && self.nodes[host].powered {
                    match self.worker_delayed(host) {
                        Some(until) => self.at(until, Event::Wake { host, life }),
                        None => {
                            self.nodes[host].wake = None;
                            self.tell(host, Input::Tick);
                        }
                    }
                }
            }
            Event::WakeReclaimer { reclaimer, life } => {
                if self.masters[reclaimer].life == life {
                    self.masters[reclaimer].wake = None;
                    self.tell_master(reclaimer, reclaimer::Input::Tick);
                }
            }
            Event::PollDeadman { host } => match self.delayed(host) {
                Some(until) => self.at(until + 10 * MS, Event::PollDeadman { host }),
                None => {
                    self.nodes[host].polling = None;
                    let ticks = self.nodes[host].hung <= self.now;
                    self.with(host, |host, now, effects| host.poll_deadman(now, ticks, effects));
                }
            },
            Event::Land { host, call } => self.land(host, &call),
            Event::Act { host, boot, runner, life, act } => self.fence_act(host, boot, runner, life, &act),
            Event::Reaped { host, life } => {
                if self.nodes[host].life == life && self.nodes[host].powered {
                    match self.delayed(host) {
                        Some(until) => self.at(until, Event::Reaped { host, life }),
                        None => self.worker_dies(host),
                    }
                }
            }
            Event::StartWorker { host, boot } => {
                if self.nodes[host].boot == boot && self.nodes[host].powered {
                    match self.delayed(host) {
                        Some(until) => self.at(until, Event::StartWorker { host, boot }),
                        None => {
                            self.log(|| format!("h{host} starts a worker"));
                            self.with(host, |host, now, effects| host.start_worker(now, effects));
                            self.repeat_calls(host);
                        }
                    }
                }
            }
            Event::StartDeadman { host, boot } => self.start_deadman(host, boot),
            Event::Guarded { host, life, guarded } => {
                self.answer_worker(host, life, Input::Guarded(guarded));
            }
            Event::Killed { host, boot, container, by_worker } => {
                self.killed(host, boot, &container, by_worker)
            }
            Event::Agents => {
                let agents = self.agents();
                for reclaimer in 0..self.masters.len() {
                    self.tell_master(reclaimer, reclaimer::Input::Agents(agents.clone()));
                }
            }
            Event::Start { task, attempt } => self.start_task(task, attempt),
            Event::Isolate { task, attempt } => self.isolate_task(task, attempt),
            Event::End { task, attempt } => self.end_task(task, attempt),
            Event::Cleanup { host, container } => self.cleanup(host, container),
            Event::Fault(number) => self.fault(self.plan.faults[number].1),
            Event::Recover(fault) => self.recover(fault),
            Event::Backup => self.backup = Some(self.etcd.clone()),
            Event::Calm => self.calm_down(),
            Event::Person => self.detach_by_hand(),
            Event::GiveUpProbing => self.give_up_probing(),
        }
    }

    fn start_deadman(&mut self, host: usize, boot: u32) {
        if self.nodes[host].boot != boot || !self.nodes[host].powered {
            return;
        }
        // After the worker, which starts when a suspend is over.
        if let Some(until) = self.delayed(host) {
            return self.at(until + MS, Event::StartDeadman { host, boot });
        }
        let has_worker = self.nodes[host].host.worker.is_some();
        self.with(host, |host, now, effects| host.start_deadman(now, effects));
        if has_worker {
            let life = self.nodes[host].life;
            self.after(MS, Event::Guarded { host, life, guarded: true });
        }
    }

    fn answer_worker(&mut self, host: usize, life: u32, input: Input) {
        if self.nodes[host].life == life && self.nodes[host].powered {
            match self.worker_delayed(host) {
                Some(until) => self.at(until, Event::CallAnswered { host, life, input }),
                None => self.tell(host, input),
            }
        }
    }

    fn fence_act(&mut self, host: usize, boot: u32, runner: Runner, life: u32, act: &Act) {
        let node = &self.nodes[host];
        let current = node.boot == boot && node.powered && (runner == Runner::Deadman || node.life == life);
        if !current {
            return;
        }
        let delayed = if runner == Runner::Deadman { self.delayed(host) } else { self.worker_delayed(host) };
        if let Some(until) = delayed {
            return self.at(until, Event::Act { host, boot, runner, life, act: act.clone() });
        }
        self.log(|| format!("h{host} {runner:?} {act:?}"));
        let under_way = self.nodes[host].host.fences.contains_key(&runner);
        self.with(host, |host, now, effects| host.act(now, runner, act, effects));
        if under_way && !self.nodes[host].host.fences.contains_key(&runner) {
            self.report.fences += u64::from(runner == Runner::Deadman);
            let host_state = &self.nodes[host].host;
            let runs = |volume: &VolumeId| {
                host_state.processes.values().any(|process| process.runs && process.volumes.contains(volume))
            };
            let writes = self.volumes.iter().find(|volume| host_state.can_write(volume) || runs(volume));
            if let Some(volume) = writes.cloned() {
                self.violated(Violation::Unproved { host, volume });
            }
        }
    }

    /// Each lease of an open epoch has its row on the host, from before the transaction that takes it.
    pub(super) fn check_forgotten(&mut self) {
        // A restored etcd shows leases that are long given back; an idle host's are reclaimed in time.
        if self.etcd.cluster != Etcd::new().cluster {
            return;
        }
        for (volume, held, _) in self.etcd.read(&Reading::Everything).held() {
            let forgets = |node: &Node| {
                let Some(core) = &node.host.worker else { return false };
                // Two machines of one name may be at the same epoch, where a person deleted a session.
                let named = self.nodes.iter().filter(|n| n.host.settings.holder == held.holder).count();
                let mine = named == 1
                    && node.host.settings.holder == held.holder
                    && core.epoch() == Some(held.epoch);
                mine && core.is_ready() && !core.volumes().contains_key(volume)
            };
            if let Some(host) = self.nodes.iter().position(forgets) {
                self.violated(Violation::Forgotten { host, volume: volume.clone() });
            }
        }
    }

    pub(super) fn agents(&self) -> Agents {
        let mut agents = Agents::default();
        for (host, node) in self.nodes.iter().enumerate() {
            let id: Text = format!("A{host}").into();
            if self.given_up.contains(&host) {
                agents.given_up.insert(id);
            } else if node.powered && node.suspended.is_none() && !self.stopped.contains(&host) {
                agents.connected.insert(id);
            } else {
                agents.inactive.insert(id);
            }
        }
        agents
    }
}

pub(super) fn new_reclaimer(now: Now) -> reclaimer::Core {
    reclaimer::Core::new(
        now,
        reclaimer::Settings {
            timing: timing(),
            poll: Duration::from_millis(500),
            reconnect: Duration::from_secs(2),
        },
    )
}

/// What a clock shows that goes `rate` parts per million too fast.
fn local(time: Micros, rate: i64) -> Now {
    let off = i128::from(time) * i128::from(rate) / 1_000_000;
    let shown = i128::from(time) + off;
    Duration::from_micros(u64::try_from(shown).unwrap_or(0))
}

/// The true time in which such a clock goes on by `span`, rounded up.
fn truth(span: Duration, rate: i64) -> Micros {
    let span = span.as_micros() * 1_000_000;
    let rate = u128::try_from(1_000_000 + rate).unwrap_or(1_000_000);
    u64::try_from(span.div_ceil(rate)).unwrap_or(u64::MAX) + 1
}

/// Debug output in one line that a person reads.
pub(super) fn brief(thing: &impl fmt::Debug) -> String {
    let text = format!("{thing:?}");
    let mut short: String = text.chars().take(600).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
