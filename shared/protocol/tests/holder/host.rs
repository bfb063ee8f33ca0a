//! A host around the core: a clock, an etcd of its own, and driver calls that are answered as the test says.
//! What the core does is shown as [`Step`]s.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::exchange::{ByTime, Commit, Instance, Key, Lease, Means, Outcome, Record, Stage, View};
use protocol::holder::{
    Answer, BlockDevice, Core, Deadline, Idleness, Input, MountFault, MountedVolume, Output, Settings, Sight,
    Table, UnmountFault, Wanted,
};
use protocol::ids::Task;
use protocol::timing::Profile;
use protocol::volume::{ContainerId, Driver, VolumeId, VolumeName};
use protocol::{Op, Request, Text};

use crate::etcd::{Etcd, holder};

pub(crate) const PREPARE: Duration = Duration::from_secs(45);
pub(crate) const WAIT: Duration = Duration::from_secs(20);
pub(crate) const SETTLE: Duration = Duration::from_secs(120);
pub(crate) const GRACE: Duration = Duration::from_secs(30);
pub(crate) const AGENT: &str = "10.0.0.1:5051";
pub(crate) const ME: &str = "agent-1";

/// Once this has passed, a beat is due.
pub(crate) const BEAT: Duration = Duration::from_millis(1_100);

/// The longest pause before something is tried again, and a little.
pub(crate) const PAUSE: Duration = Duration::from_secs(11);

pub(crate) fn volume(name: &str) -> VolumeId {
    VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() }
}

pub(crate) fn container(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}

pub(crate) fn mount(name: &str) -> MountedVolume {
    // A disk of its own for each name.
    let minor = name.bytes().fold(0_u64, |minor, byte| minor * 31 + u64::from(byte));
    let (path, number) = (format!("/dev/loop{minor}"), format!("7:{minor}"));
    let device = BlockDevice {
        path: path.as_str().into(),
        number: number.as_str().into(),
        disk_sequence: Some(minor),
    };
    MountedVolume {
        mount_point: format!("/mnt/{name}/data").into(),
        device_number: number.into(),
        source: path.into(),
        device: Some(device),
        can_be_shut_down: true,
        ..MountedVolume::default()
    }
}

/// What the core does, in a word. A commit is shown when the core hears that it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// These are leased.
    Acquire(Vec<String>),
    /// A lease is written again: volume, stage, containers.
    Record(String, Stage, Vec<String>),
    /// A lease is freed.
    Release(String),
    /// The session is written, with what this host waits for.
    Session(Vec<String>),
    Beat,
    Mount(String),
    Unmount(String),
    Remove(String),
    Look(String),
    Prove(String),
    Settle(String),
    /// A prepare has its volumes.
    Ready(u64, Vec<String>),
    Done(u64),
    Refused(u64, String),
    Limit(String, String),
    Kill(String),
    Fence(String),
    Warn(String),
    Note(String),
}

/// The steps by which a host changes leases and calls drivers.
pub(crate) fn acquire(names: &[&str]) -> Step {
    Step::Acquire(names.iter().map(|name| (*name).to_owned()).collect())
}

pub(crate) fn record(name: &str, stage: Stage, users: &[&str]) -> Step {
    Step::Record(name.to_owned(), stage, users.iter().map(|name| (*name).to_owned()).collect())
}

pub(crate) fn release(name: &str) -> Step {
    Step::Release(name.to_owned())
}

/// Where in `steps` the first is for which `wanted` holds.
pub(crate) fn place(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(wanted).unwrap_or_else(|| panic!("it is not in {steps:#?}"))
}

pub(crate) struct Host {
    pub(crate) core: Core,
    pub(crate) etcd: Etcd,
    pub(crate) now: Duration,
    /// Commits for which this holds wait until [`Host::let_through`].
    pub(crate) held_back: Option<fn(&Step) -> bool>,
    back: Vec<(Op, Commit)>,
    /// Whether etcd's readings are on their way until [`Host::readings_arrive`].
    pub(crate) readings_are_late: bool,
    late: Vec<(Op, Result<View, Text>)>,
    /// What the last Mount said of those before it.
    pub(crate) again: Option<bool>,
    /// Whether the last look was to tell who else sees the volume.
    pub(crate) doubted: Option<bool>,
    /// Whether containers ask for the removal of their volumes.
    pub(crate) removes: bool,
    settings: Settings,
    table: Vec<u8>,
    deadline: Deadline,
    /// Driver calls, looks and proofs under way: one at a time for a volume.
    calls: BTreeMap<String, (Op, Step)>,
    steps: Vec<Step>,
    /// Calls of drivers, and the deadline, as they came.
    pub(crate) order: Vec<Step>,
    /// How often etcd was read.
    pub(crate) reads: usize,
    /// What was done together.
    pub(crate) transactions: Vec<Vec<Step>>,
    requests: u64,
    /// The fence under way.
    fence: Option<Op>,
}

impl Host {
    /// A host with an open epoch.
    pub(crate) fn new() -> Self {
        Self::with(Etcd::new(), |_| {})
    }

    /// One whose prepares do not wait for other hosts.
    pub(crate) fn impatient() -> Self {
        Self::with(Etcd::new(), |settings| settings.wait_timeout = Duration::ZERO)
    }

    pub(crate) fn with(etcd: Etcd, change: fn(&mut Settings)) -> Self {
        let now = Duration::from_secs(1_000);
        let mut settings = Settings {
            holder: holder(ME),
            instance: Instance("i1".into()),
            machine: "m1".into(),
            boot: "b1".into(),
            timing: Profile::Default.timing(),
            by_time: ByTime::Allowed,
            means: [Means::Guard].into(),
            grace: GRACE,
            prepare_timeout: PREPARE,
            wait_timeout: WAIT,
            start_timeout: Duration::from_secs(15 * 60),
            lead: Duration::ZERO,
            retry: (Duration::from_secs(1), Duration::from_secs(10)),
            settle: SETTLE,
            settle_of: BTreeMap::new(),
            storage_fencing: BTreeSet::new(),
            fencing_required: false,
        };
        change(&mut settings);
        let core = Core::new(now, settings.clone(), Table::default(), Deadline::default());
        let mut host = Self {
            core,
            etcd,
            now,
            held_back: None,
            back: Vec::new(),
            readings_are_late: false,
            late: Vec::new(),
            again: None,
            doubted: None,
            removes: false,
            settings,
            table: serde_json::to_vec(&Table::default()).unwrap(),
            deadline: Deadline::default(),
            calls: BTreeMap::new(),
            steps: Vec::new(),
            order: Vec::new(),
            reads: 0,
            transactions: Vec::new(),
            requests: 0,
            fence: None,
        };
        host.give(Input::Tick);
        // A lease is taken under a beat of its own, and the last one was sent just now.
        host.later(BEAT);
        host
    }

    // --- lives -----------------------------------------------------------------------------------

    /// The worker is killed, and another one goes on from the stored table.
    pub(crate) fn restart(&mut self) {
        let table = serde_json::from_slice(&self.table).unwrap();
        self.core = Core::new(self.now, self.settings.clone(), table, self.deadline);
        self.begin();
    }

    /// The host is booted: nothing of before is mounted, run or remembered.
    pub(crate) fn reboot(&mut self) {
        self.settings.boot = format!("{}'", self.settings.boot).into();
        self.table = serde_json::to_vec(&Table::default()).unwrap();
        self.deadline = Deadline::default();
        self.core = Core::new(self.now, self.settings.clone(), Table::default(), self.deadline);
        self.begin();
    }

    fn begin(&mut self) {
        self.calls.clear();
        self.back.clear();
        self.steps.clear();
        self.give(Input::Tick);
    }

    /// The fence that the worker runs itself, without a deadman, is proved.
    pub(crate) fn fence_is_proved(&mut self) {
        let op = self.fence.take().unwrap();
        self.give(Input::Safe(op, Ok(())));
    }

    pub(crate) fn stored(&self) -> Table {
        serde_json::from_slice(&self.table).unwrap()
    }

    /// Whether nothing is held, here or in etcd.
    pub(crate) fn is_bare(&self) -> bool {
        let table = self.stored();
        let held =
            ["a", "b", "c"].iter().any(|name| self.etcd.lease(name).is_some_and(|l| l.holder == holder(ME)));
        table.volumes.is_empty() && table.containers.is_empty() && self.core.volumes().is_empty() && !held
    }

    // --- what happens ----------------------------------------------------------------------------

    pub(crate) fn give(&mut self, input: Input) {
        self.core.handle(self.now, input);
        self.carry_out();
    }

    /// What the shell does: stores the table, and then whatever the core asks for.
    fn carry_out(&mut self) {
        loop {
            if self.core.table_changed() {
                self.table = serde_json::to_vec(&self.core.table()).unwrap();
            }
            let Some(output) = self.core.poll_output() else { return self.wants_no_idle_wake_up() };
            self.output(output);
        }
    }

    /// A wake-up for a time that has come does something: otherwise the shell would be woken for ever.
    fn wants_no_idle_wake_up(&self) {
        if self.core.next_deadline().is_some_and(|at| at <= self.now) {
            let mut woken = self.core.clone();
            woken.handle(self.now, Input::Tick);
            assert!(woken != self.core, "woken for nothing: {:?}", self.core);
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Read { op, reading } => {
                self.reads += 1;
                let result =
                    self.etcd.down.map_or_else(|| Ok(self.etcd.read(&reading)), |why| Err(why.into()));
                if self.readings_are_late {
                    return self.late.push((op, result));
                }
                self.core.handle(self.now, Input::Read(op, result));
            }
            Output::Commit { op, commit } => {
                let steps = shown(&commit);
                if self.held_back.is_some_and(|held| steps.iter().any(held)) {
                    return self.back.push((op, commit));
                }
                let beat = steps == [Step::Beat];
                let outcome = if beat { self.etcd.commit(&commit) } else { self.etcd.answer(&commit) };
                self.committed(op, outcome, steps);
            }
            Output::Extend(fence_at) => {
                self.order.push(Step::Note("the deadline".to_owned()));
                self.deadline.fence_at = fence_at;
            }
            Output::Reset => self.deadline = self.deadline.next(),
            Output::MakeSafe { op } => self.core.handle(self.now, Input::Safe(op, Ok(()))),
            Output::Fence { op, why } => {
                self.deadline.fenced = true;
                self.fence = Some(op);
                self.calls.clear();
                self.steps.push(Step::Fence(why.to_string()));
            }
            Output::Mount { op, wanted, again, .. } => {
                self.again = Some(again);
                if self.core.may_call_driver(self.now, op) {
                    self.call(op, wanted.asked.name.as_str(), Step::Mount);
                }
            }
            Output::Unmount { op, asked, .. } => {
                if self.core.may_call_driver(self.now, op) {
                    self.call(op, asked.name.as_str(), Step::Unmount);
                }
            }
            Output::Remove { op, asked, .. } => {
                if self.core.may_call_driver(self.now, op) {
                    self.call(op, asked.name.as_str(), Step::Remove);
                }
            }
            Output::Settle { op, asked, .. } => self.call(op, asked.name.as_str(), Step::Settle),
            Output::ProveIdle { op, asked, .. } => self.call(op, asked.name.as_str(), Step::Prove),
            Output::Look { op, mounted, doubted } => {
                self.doubted = Some(doubted);
                let name = mounted.mount_point.split('/').nth(2).unwrap().to_owned();
                self.call(op, &name, Step::Look);
            }
            Output::Reply(Request(number), answer) => self.steps.push(match answer {
                Ok(Answer::Prepared { mount_points }) => {
                    Step::Ready(number, mount_points.iter().map(ToString::to_string).collect())
                }
                Ok(_) => Step::Done(number),
                Err(why) => Step::Refused(number, why.to_string()),
            }),
            Output::Limit { container, message } => {
                self.steps.push(Step::Limit(container.as_str().to_owned(), message.to_string()));
            }
            Output::Kill { container } => self.steps.push(Step::Kill(container.as_str().to_owned())),
            Output::Warn(line) => self.steps.push(Step::Warn(line.to_string())),
            Output::Note(line) => self.steps.push(Step::Note(line.to_string())),
        }
    }

    fn committed(&mut self, op: Op, outcome: Outcome, steps: Vec<Step>) {
        if matches!(outcome, Outcome::Done(_)) {
            self.transactions.push(steps.clone());
            self.steps.extend(steps);
        }
        self.core.handle(self.now, Input::Committed(op, outcome));
    }

    fn call(&mut self, op: Op, name: &str, step: fn(String) -> Step) {
        let step = step(name.to_owned());
        if let Some((_, before)) = self.calls.insert(name.to_owned(), (op, step.clone())) {
            panic!("two effects at once: {before:?} and {step:?}");
        }
        self.order.push(step.clone());
        self.steps.push(step);
    }

    /// Whoever asked is gone, and what was asked is done.
    pub(crate) fn hold_nothing_back_and_forget_who_asked(&mut self) {
        self.held_back = None;
        for (_, commit) in std::mem::take(&mut self.back) {
            assert!(matches!(self.etcd.commit(&commit), Outcome::Done(_)));
        }
    }

    /// What was read a while ago arrives.
    pub(crate) fn readings_arrive(&mut self) {
        self.readings_are_late = false;
        for (op, result) in std::mem::take(&mut self.late) {
            self.core.handle(self.now, Input::Read(op, result));
        }
        self.carry_out();
    }

    /// etcd answers what was held back.
    pub(crate) fn let_through(&mut self) {
        self.hold_back_only(None);
    }

    /// What was held back is given up for lost, and may still be done: etcd has it as late.
    pub(crate) fn give_up_held_back(&mut self) {
        self.held_back = None;
        for (op, commit) in std::mem::take(&mut self.back) {
            self.etcd.late.push(commit);
            self.core.handle(self.now, Input::Committed(op, Outcome::Unknown));
        }
        self.carry_out();
    }

    /// etcd answers what was held back, but for this, which is held back from now on.
    pub(crate) fn hold_back_only(&mut self, held: Option<fn(&Step) -> bool>) {
        self.held_back = held;
        for (op, commit) in std::mem::take(&mut self.back) {
            let steps = shown(&commit);
            if held.is_some_and(|held| steps.iter().any(held)) {
                self.back.push((op, commit));
                continue;
            }
            let outcome = self.etcd.answer(&commit);
            self.committed(op, outcome, steps);
            self.wants_no_idle_wake_up();
        }
        self.carry_out();
    }

    /// Time passes, as fast as the core wants to be woken.
    pub(crate) fn later(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            let next = self.core.next_deadline().map_or(end, |at| at.min(end));
            // A time that has passed is looked at a little later, as a shell would.
            self.now = next.max(self.now + Duration::from_millis(1));
            self.give(Input::Tick);
        }
    }

    // --- what the isolator asks ------------------------------------------------------------------

    pub(crate) fn ask(&mut self, name: &str, agent: &str, id: Option<&str>, volumes: &[&str]) -> u64 {
        self.requests += 1;
        let wanted = |name: &&str| Wanted {
            volume: volume(name),
            asked: volume(name),
            create: None,
            read_only: false,
            remove: self.removes,
            owner: None,
        };
        let task = Task { framework: Some("f".into()), task_id: Some(name.into()), ..Task::default() };
        self.give(Input::Prepare {
            request: Request(self.requests),
            container: container(name),
            agent: agent.into(),
            agent_id: id.map(Into::into),
            task: Some(task),
            volumes: volumes.iter().map(wanted).collect(),
        });
        self.requests
    }

    pub(crate) fn prepare(&mut self, name: &str, volumes: &[&str]) -> u64 {
        self.ask(name, AGENT, Some("S0"), volumes)
    }

    pub(crate) fn prepare_read_only(&mut self, name: &str, of: &str) -> u64 {
        self.requests += 1;
        let wanted = Wanted {
            volume: volume(of),
            asked: volume(of),
            create: None,
            read_only: true,
            remove: false,
            owner: None,
        };
        self.give(Input::Prepare {
            request: Request(self.requests),
            container: container(name),
            agent: AGENT.into(),
            agent_id: Some("S0".into()),
            task: None,
            volumes: vec![wanted],
        });
        self.requests
    }

    pub(crate) fn isolate(&mut self, name: &str) -> u64 {
        self.requests += 1;
        let (request, cgroup) = (Request(self.requests), Some(format!("/mesos/{name}").into()));
        self.give(Input::Isolate {
            request,
            agent: AGENT.into(),
            container: container(name),
            pid: 4,
            cgroup,
        });
        self.requests
    }

    pub(crate) fn cleanup_by(&mut self, name: &str, agent: &str) {
        self.requests += 1;
        let request = Request(self.requests);
        self.give(Input::Cleanup { request, agent: agent.into(), container: container(name) });
    }

    pub(crate) fn cleanup(&mut self, name: &str) {
        self.cleanup_by(name, AGENT);
    }

    pub(crate) fn recover(&mut self, agent: &str, known: &[&str], orphans: &[&str]) {
        self.requests += 1;
        let request = Request(self.requests);
        let ids = |names: &[&str]| names.iter().map(|name| container(name)).collect::<BTreeSet<_>>();
        let (known, orphans) = (ids(known), ids(orphans));
        self.give(Input::Recover { request, agent: agent.into(), known, orphans });
    }

    /// Prepares a container to its good end.
    pub(crate) fn prepared(&mut self, name: &str, volumes: &[&str]) {
        let request = self.prepare(name, volumes);
        let seen = self.until_quiet();
        assert!(seen.iter().any(|step| matches!(step, Step::Ready(r, _) if *r == request)), "{seen:#?}");
    }

    // --- what drivers and mount tables answer ----------------------------------------------------

    fn answered(&mut self, name: &str) -> Op {
        self.calls.remove(name).unwrap_or_else(|| panic!("nothing is under way for {name}")).0
    }

    /// Of the call that is under way for a volume.
    pub(crate) fn op(&self, name: &str) -> Op {
        self.calls[name].0
    }

    pub(crate) fn mounts(&mut self, name: &str, result: Result<MountedVolume, MountFault>) {
        let op = self.answered(name);
        self.give(Input::Mounted(op, result));
    }

    pub(crate) fn removed(&mut self, name: &str, result: Result<(), UnmountFault>) {
        let op = self.answered(name);
        self.give(Input::Removed(op, result));
    }

    /// The shell did not make the call: the last look said no.
    pub(crate) fn not_made(&mut self, name: &str) {
        let op = self.answered(name);
        self.give(Input::NotMade(op));
    }

    pub(crate) fn settles(&mut self, name: &str, result: Result<(), MountFault>) {
        let op = self.answered(name);
        self.give(Input::Settled(op, result));
    }

    pub(crate) fn unmounts(&mut self, name: &str, result: Result<(), UnmountFault>) {
        let op = self.answered(name);
        self.give(Input::Unmounted(op, result));
    }

    pub(crate) fn sees(&mut self, name: &str, sight: Sight) {
        let op = self.answered(name);
        self.give(Input::Seen(op, sight));
    }

    pub(crate) fn finds(&mut self, name: &str, idleness: Idleness) {
        let op = self.answered(name);
        self.give(Input::Idle(op, idleness));
    }

    /// Carries out well what is under way for a volume.
    pub(crate) fn succeed(&mut self, name: &str) {
        let (op, step) = self.calls.remove(name).unwrap();
        self.give(match step {
            Step::Mount(_) => Input::Mounted(op, Ok(mount(name))),
            Step::Unmount(_) => Input::Unmounted(op, Ok(())),
            Step::Remove(_) => Input::Removed(op, Ok(())),
            Step::Look(_) => Input::Seen(op, Sight::Mounted { elsewhere: None }),
            Step::Prove(_) => Input::Idle(op, Idleness::Proved),
            Step::Settle(_) => Input::Settled(op, Ok(())),
            other => panic!("{other:?} has no answer"),
        });
    }

    /// What is under way.
    pub(crate) fn calls(&self) -> Vec<(String, Step)> {
        self.calls.iter().map(|(name, (_, step))| (name.clone(), step.clone())).collect()
    }

    /// Carries everything out, well, until nothing more comes within a beat; answers what came.
    pub(crate) fn until_quiet(&mut self) -> Vec<Step> {
        for _ in 0..1_000 {
            if self.calls.is_empty() {
                self.later(BEAT);
            }
            let Some(name) = self.calls.keys().next().cloned() else { return self.steps() };
            self.succeed(&name);
        }
        panic!("it does not come to rest: {:#?}", self.steps);
    }

    // --- what came -------------------------------------------------------------------------------

    /// All that came since this was last asked.
    pub(crate) fn all_steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// What came, without beats, warnings, the session's writes, and answers that say nothing.
    pub(crate) fn steps(&mut self) -> Vec<Step> {
        let mut steps = self.all_steps();
        steps.retain(|step| {
            !matches!(step, Step::Beat | Step::Session(_) | Step::Warn(_) | Step::Note(_) | Step::Done(_))
        });
        steps
    }

    /// The refusal of a request, which has come.
    pub(crate) fn refusal(&mut self, request: u64) -> String {
        let steps = self.steps();
        let why = steps.iter().find_map(|step| match step {
            Step::Refused(number, why) if *number == request => Some(why.clone()),
            _ => None,
        });
        why.unwrap_or_else(|| panic!("no refusal in {steps:#?}"))
    }
}

/// A commit as steps.
fn shown(commit: &Commit) -> Vec<Step> {
    let (mut acquired, mut steps): (Vec<(_, Vec<String>)>, _) = (Vec::new(), Vec::new());
    for key in &commit.deletes {
        if let Key::Lease(id) = key {
            steps.push(Step::Release(id.name.as_str().to_owned()));
        }
    }
    for (key, put) in &commit.puts {
        match (key, put) {
            (Key::Beat(_), _) => steps.push(Step::Beat),
            (Key::Lease(id), Record::Lease(Lease::Free { .. })) => {
                steps.push(Step::Release(id.name.as_str().to_owned()));
            }
            (Key::Lease(id), Record::Lease(Lease::Held(held))) if held.token.is_some() => {
                let users = held.containers.iter().map(|id| id.as_str().to_owned()).collect();
                steps.push(Step::Record(id.name.as_str().to_owned(), held.stage, users));
            }
            (Key::Lease(id), Record::Lease(Lease::Held(held))) => {
                let (name, user) = (id.name.as_str().to_owned(), held.containers.first());
                match acquired.last_mut().filter(|(of, _)| *of == user) {
                    Some((_, names)) => names.push(name),
                    None => acquired.push((user, vec![name])),
                }
            }
            (Key::Held(..), Record::Held) => {}
            (_, Record::Session(session)) => {
                let wants = session.wants.iter().map(|id| id.name.as_str().to_owned());
                steps.push(Step::Session(wants.collect()));
            }
            other => panic!("{other:?} is not this host's to write"),
        }
    }
    steps.extend(acquired.into_iter().map(|(_, names)| Step::Acquire(names)));
    steps
}
