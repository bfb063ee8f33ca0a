//! The core of a holder: what the worker of one agent host does about its session, leases and
//! volumes. See the head of [`super`] for how it is run.
//!
//! ```text
//! io.rs       what goes in and comes out
//! mod.rs      time; the fence
//! session.rs  opening an epoch, beats, what a refused beat means, dying
//! write_queue.rs  one transaction of leases and session at a time; the barrier after an unknown outcome
//! answers.rs  what follows from etcd's answers; take_over.rs: what a session finds that is its holder's
//! proof.rs    whether this host can prove its fence, and what its session says of silence
//! claim.rs    whether a lease may be taken
//! calls.rs    what the isolator asks: prepare, isolate, cleanup, recover; wait.rs: for others' leases
//! volumes.rs  what is done next for each volume; results.rs: what follows from it; revoke.rs: winding down
//! volume.rs, table.rs   one volume; what is stored before each effect
//! ```
//!
//! One volume has at most one effect under way, so that no two driver calls for it ever overlap (L9):
//!
//! ```text
//!           acquire ok       settled       mount ok          last user gone
//! Acquiring ------> (Settling) --> Mounting ------> Attached ----------> Detaching
//!     | refused                       | definite error          announce -> unmount -> prove -> release
//!     v                               v                                        ^          |
//!   (gone)                         Detaching                                   +-- busy --+
//! ```

mod answers;
mod calls;
mod claim;
mod io;
mod proof;
mod results;
mod revoke;
mod session;
mod table;
mod take_over;
mod tracked;
mod volume;
mod volumes;
mod wait;
mod write_queue;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub use calls::READ_ONLY;
pub use io::{Answer, FoundLease, Idleness, Input, MountFault, Output, Sight, UnmountFault};
pub use results::other_name_in_words;
pub use session::{Life, Safety, Silence};
pub use table::{
    BlockDevice, Container, Directory, MountedVolume, OpenEpoch, Owner, Row, StoredTable, Table, TableChange,
    Wanted,
};
pub use volume::{Notes, Phase, Step, Volume};

use self::session::{Beat, Mine};
use self::take_over::Found;
use self::tracked::Tracked;
pub(super) use self::wait::Waiting;
use self::write_queue::{InFlight, Job};
use super::exchange::{Agent, ByTime, ClusterId, Held, Instance, Means};
use super::timing::Timing;
use super::{Now, Op, Text};
use crate::ids::Epoch;
use crate::ids::Revision;
use crate::volume::{ContainerId, Driver, Holder, VolumeId};

/// What does not change while a worker runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The holder's name.
    pub holder: Holder,
    /// Random, one per worker.
    pub instance: Instance,
    /// An id that no other machine has.
    pub machine: Text,
    /// The kernel's boot id.
    pub boot: Text,
    /// The times that a new epoch is opened with. Checked ([`Timing::check`]).
    pub timing: Timing,
    /// Whether silence may end the session, if this host can prove its fence: allowed, or never.
    pub by_time: ByTime,
    /// What a fence rests on, as far as it is established at the start ([`Input::Means`]).
    pub means: BTreeSet<Means>,
    /// How long containers may take to end by themselves after a revoke.
    pub grace: Duration,
    /// Within it a prepare is answered.
    pub prepare_timeout: Duration,
    /// For how long of that a prepare waits for a lease that another host has.
    pub wait_timeout: Duration,
    /// Within it a container that has its volumes has to start. Mesos's own limit, which counts from before the
    /// prepare, is a minute by default (`executor_registration_timeout`).
    pub start_timeout: Duration,
    /// How long before the deadman the worker begins to fence: it has to tell the containers' agents why, before the
    /// deadman kills it.
    pub lead: Duration,
    /// The first and the longest pause before something that failed is tried again.
    pub retry: (Duration, Duration),
    /// How long a driver call may still land after its caller has died.
    pub settle: Duration,
    /// The same, of drivers that have a time of their own.
    pub settle_of: BTreeMap<Driver, Duration>,
    /// The drivers whose storage can take a volume away from another host.
    pub storage_fencing: BTreeSet<Driver>,
    /// Whether a volume of a host that was declared dead by time alone is mounted only after the
    /// storage took it away from there (`fencing = required`).
    pub fencing_required: bool,
}

impl Settings {
    /// How long a call for this volume may still land.
    fn settle(&self, volume: &VolumeId) -> Duration {
        self.settle_of.get(&volume.driver).copied().unwrap_or(self.settle)
    }
}

/// What worker and deadman share, and what survives both: one word of memory, only ever moved forward
/// or to `fenced`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline {
    /// When fencing starts; `None` while nothing is held.
    pub fence_at: Option<Now>,
    /// The sticky flag: fencing has begun.
    pub fenced: bool,
    /// Which epoch's it is: counted up by each [`Output::Reset`], so that nobody takes one fence for another's.
    pub generation: u64,
}

impl Deadline {
    /// That of a new epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self { generation: self.generation + 1, ..Self::default() }
    }
}

/// The core. See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    pub(super) settings: Settings,
    // --- session
    pub(super) life: Life,
    /// The present epoch, from its opening until it is known to be over.
    pub(super) mine: Option<Mine>,
    /// Why this worker opens no epoch any more, and the next one adopts none.
    pub(super) refused: Option<Text>,
    /// What is on this host is not known.
    pub(super) lost: bool,
    /// Why there is no session yet, or what stands in its way: for the text of refusals.
    pub(super) obstacle: Text,
    pub(super) cluster: Option<ClusterId>,
    /// The highest revision that etcd has shown: one below it means a restored backup.
    pub(super) highest: Revision,
    /// When the last beat was sent that got through. What is written is written before this plus T.
    pub(super) beaten: Option<Now>,
    /// The revision of this holder's last beat, as far as it is known.
    pub(super) beat_at: Revision,
    pub(super) beat: Option<Beat>,
    pub(super) next_beat: Now,
    pub(super) guarded: bool,
    /// What a fence of this host rests on.
    pub(super) means: BTreeSet<Means>,
    /// Why no guard is among that.
    pub(super) lacking: Option<Text>,
    /// The Mesos agent that asked last, for the session to tell.
    pub(super) agent: Option<Agent>,
    /// What the shared deadline was last told.
    pub(super) extended: Option<Now>,
    // --- write queue
    pub(super) in_flight: InFlight,
    pub(super) jobs: VecDeque<Job>,
    /// What is this holder's, once it was read; none again when it was taken in.
    pub(super) found: Option<Found>,
    /// A write's outcome is unknown, or the session is adopted: the session is rewritten before anything
    /// is concluded (L2).
    pub(super) barrier: bool,
    /// A rewrite of the session to one that silence may end was sent, by this worker or the one before it, and no later
    /// rewrite has closed it.
    pub(super) allowing: bool,
    /// Why etcd did not answer, the last time.
    pub(super) fault: Option<Text>,
    /// Something changed under us: from this time on session and leases are read, before the next write.
    pub(super) check: Option<Now>,
    pub(super) checking: Option<(Op, Revision)>,
    pub(super) leases: BTreeMap<VolumeId, (Held, Revision)>,
    // --- volumes
    /// Whether the found leases have been taken in.
    pub(super) ready: bool,
    pub(super) containers: Tracked<ContainerId, Container>,
    pub(super) volumes: Tracked<VolumeId, Volume>,
    /// Prepares that are not yet answered.
    pub(super) waiting: BTreeMap<ContainerId, Waiting>,
    /// Until when containers must start that have their volumes, or did before a restart.
    pub(super) unisolated: BTreeMap<ContainerId, Now>,
    // --- shell
    pub(super) outputs: VecDeque<Output>,
    pub(super) next_op: u64,
    pub(super) table_changed: bool,
}

impl Core {
    /// A core that goes on from a stored table and the shared deadline. An epoch whose fence time has not
    /// come is adopted, behind a barrier; anything else is first made safe (L17).
    #[must_use]
    pub fn new(now: Now, settings: Settings, table: Table, deadline: Deadline) -> Self {
        let Table { open, refused, lost, mut containers, volumes } = table;
        // Told to end by another worker: this one has yet to learn why, and a time that has passed would wake for ever.
        containers.values_mut().for_each(Container::forget_revoke);
        // Of what is merely asked for nothing can have been done: the first lease is taken before the deadline is set.
        let holds = volumes.iter().any(|row| row.phase != Phase::Acquiring)
            || containers.values().any(|container| container.prepared || container.is_isolated());
        let never = open.as_ref().is_some_and(|open| open.by_time == ByTime::Never);
        let in_time = deadline.fence_at.map_or(never || !holds, |at| now < at);
        let adopted = open.filter(|_| refused.is_none() && !lost && !deadline.fenced && in_time);
        let beaten =
            adopted.as_ref().zip(deadline.fence_at).map(|(open, at)| at.saturating_sub(open.timing.fence));
        Self {
            life: if adopted.is_some() { Life::Open } else { Life::CLOSED },
            cluster: adopted.as_ref().map(|open| open.cluster.clone()),
            mine: adopted.as_ref().map(|open| Mine::adopted(&settings, open)),
            refused,
            lost,
            obstacle: "the keeper has just started".into(),
            highest: Revision::ABSENT,
            beaten,
            beat_at: Revision::ABSENT,
            beat: None,
            next_beat: now,
            guarded: true,
            means: settings.means.clone(),
            lacking: None,
            agent: None,
            extended: deadline.fence_at,
            in_flight: InFlight::Idle,
            jobs: VecDeque::new(),
            found: None,
            barrier: adopted.is_some(),
            allowing: adopted.is_some(),
            fault: None,
            check: None,
            checking: None,
            leases: BTreeMap::new(),
            ready: false,
            containers: containers.into(),
            volumes: volumes.into_iter().map(Row::volume).collect::<BTreeMap<_, _>>().into(),
            waiting: BTreeMap::new(),
            unisolated: BTreeMap::new(),
            outputs: VecDeque::new(),
            next_op: 0,
            table_changed: false,
            settings,
        }
    }

    /// What to store before the next output is carried out.
    #[must_use]
    pub fn table(&self) -> Table {
        Table {
            open: self.mine.as_ref().filter(|_| self.is_open()).zip(self.cluster.clone()).map(Mine::open),
            refused: self.refused.clone(),
            lost: self.lost,
            containers: BTreeMap::clone(&self.containers),
            volumes: self.volumes.values().map(Row::of).collect(),
        }
    }

    /// What may differ in [`Core::table`] since this was last called.
    #[must_use]
    pub fn table_change(&mut self) -> TableChange {
        let containers = self.containers.take_touched().into_iter();
        let volumes = self.volumes.take_touched().into_iter();
        TableChange {
            open: self.mine.as_ref().filter(|_| self.is_open()).zip(self.cluster.clone()).map(Mine::open),
            refused: self.refused.clone(),
            lost: self.lost,
            containers: containers.map(|id| (id.clone(), self.containers.get(&id).cloned())).collect(),
            volumes: volumes.map(|id| (id.clone(), self.volumes.get(&id).map(Row::of))).collect(),
        }
    }

    /// Whether [`Core::table`] differs from what it was when this was last called.
    #[must_use]
    pub fn table_changed(&mut self) -> bool {
        std::mem::take(&mut self.table_changed)
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted, if nothing happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        let prepares = self.next_wait().into_iter().chain(self.unisolated.values().copied());
        // Nothing of this is acted on while no epoch is open: a time that has passed would wake for ever.
        let retries = self.volumes.values().filter_map(|volume| volume.retry_at.filter(|_| self.ready));
        let open = self.is_open();
        let endings =
            self.containers.values().filter_map(|container| self.end_time(container).filter(|_| open));
        let beat = (self.wants_beat() && self.beat.is_none()).then_some(self.next_beat);
        let pause = if let InFlight::Pause { until } = self.in_flight { Some(until) } else { None };
        let check = self.check.filter(|_| open && self.checking.is_none());
        let others = [beat, pause, check, self.fence_at(), self.revoke_ends()];
        prepares.chain(retries).chain(endings).chain(others.into_iter().flatten()).min()
    }

    /// Whether the driver may be called for `op` at this very moment: it is still wanted, and the time of
    /// fencing has not come (L3).
    #[must_use]
    pub fn may_call_driver(&self, now: Now, op: Op) -> bool {
        self.is_open()
            && self.fence_at().map_or_else(|| self.never_fences(), |at| now < at)
            && self.volumes.values().any(|volume| volume.awaits == Some(op) && self.may_still(volume))
    }

    /// A removal that waited for its turn is not made once a person has revoked what it is about.
    fn may_still(&self, volume: &Volume) -> bool {
        let removes = matches!(volume.phase, Phase::Detaching { step: Step::Remove, .. });
        !removes || volume.revoked.is_none() && !self.is_revoking()
    }

    /// The volumes and who uses them, for people and tests.
    #[must_use]
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// The containers that use volumes. The shell looks at those of which something has run, and
    /// tells by [`Input::Ended`] when nothing does any more.
    #[must_use]
    pub fn containers(&self) -> &BTreeMap<ContainerId, Container> {
        &self.containers
    }

    /// Whether this epoch has taken in the leases that it found.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// How many prepares wait for their answer, and whether this container's is one of them.
    #[must_use]
    pub fn preparing(&self, container: &ContainerId) -> (usize, bool) {
        (self.waiting.len(), self.waiting.contains_key(container))
    }

    /// Why there is no session, in words.
    #[must_use]
    pub fn obstacle(&self) -> &str {
        &self.obstacle
    }

    /// Where the session is.
    #[must_use]
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// The open epoch.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.mine.as_ref().filter(|_| self.is_open()).map(Mine::epoch)
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Prepare { request, container, agent, agent_id, task, volumes } => {
                self.prepare(now, request, container, Container::new(agent, agent_id, task, volumes));
            }
            Input::Isolate { request, agent, container, pid, cgroup } => {
                let answer = self.isolate(&agent, &container, pid, cgroup);
                self.outputs.push_back(Output::Reply(request, answer.map(|()| Answer::Isolated)));
            }
            Input::Cleanup { request, agent, container } => {
                if self.containers.get(&container).is_some_and(|entry| entry.is_of(&agent)) {
                    self.end(&container, "the container was destroyed while its volumes were prepared");
                }
                self.mesos_ended(&agent, |doubted| *doubted == container);
                self.outputs.push_back(Output::Reply(request, Ok(Answer::Done)));
            }
            Input::Ended { container } => {
                // Mesos has not said so: others who see the volume are looked for before it is unmounted. One that was
                // told to end is known to have, and nobody waits for its neighbours' copies of the mount.
                let untold = self.containers.get(&container).filter(|entry| entry.ending.is_none());
                if let Some(Container { agent, volumes, .. }) = untold.cloned() {
                    for wanted in &volumes {
                        if let Some(volume) = self.volumes.get_mut(&wanted.volume)
                            && volume.users.contains(&container)
                        {
                            volume.doubts.insert(container.clone(), agent.clone());
                        }
                    }
                }
                self.end(&container, "its processes have ended");
            }
            Input::Unstored { why } => {
                for container in self.waiting.keys().cloned().collect::<Vec<_>>() {
                    self.end(&container, &why);
                }
            }
            Input::Changed(key) => self.changed(now, &key),
            Input::Suspect { volume } => self.suspect(&volume),
            Input::Recover { request, agent, known, orphans } => {
                self.recover(&agent, &known, &orphans);
                self.outputs.push_back(Output::Reply(request, Ok(Answer::Done)));
            }
            Input::Silent(why) => self.fault = Some(why),
            Input::Read(op, result) => self.read(now, op, result),
            Input::Committed(op, outcome) => self.committed(now, op, outcome),
            Input::Settled(op, result) => self.settled(now, op, result),
            Input::Mounted(op, result) => self.mounted(now, op, result),
            Input::Unmounted(op, result) => self.unmounted(now, op, result),
            Input::Removed(op, result) => self.removed(now, op, result),
            Input::NotMade(op) => self.not_made(now, op),
            Input::Seen(op, sight) => self.looked(now, op, sight),
            Input::Idle(op, idleness) => self.idle(now, op, idleness),
            Input::Safe(op, result) => self.safe(now, op, result),
            Input::Guarded(guarded) => self.guarded = guarded,
            Input::Means { means, lacking } => (self.means, self.lacking) = (means, lacking),
            Input::Flagged => self.fence("the deadman has begun to fence this host"),
            Input::Tick => {}
        }
        self.progress(now);
    }

    fn op(&mut self) -> Op {
        self.next_op += 1;
        Op(self.next_op)
    }

    /// Everything that time or the last input has made possible.
    fn progress(&mut self, now: Now) {
        self.expire(now);
        if self.fence_at().is_some_and(|at| at <= now) {
            let fault = self.fault.as_ref().map(|fault| format!(": {fault}")).unwrap_or_default();
            self.fence(&format!("no heartbeat got through to etcd in time{fault}"));
        }
        if self.is_open() {
            self.wind_down(now);
        }
        // Before a driver is called under it.
        self.extend();
        if self.is_open() && self.ready {
            for container in self.waiting.keys().cloned().collect::<Vec<_>>() {
                self.advance(now, &container);
            }
            let due = self.volumes.iter().filter(|(_, volume)| volume.due(now) && !volume.is_at_rest());
            for id in due.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
                self.start_effect(now, &id);
            }
        }
        // Before what is written under the deadline, and after what may have been the last use.
        self.extend();
        self.progress_session(now);
        self.extend();
    }

    /// Whether this host holds a lease, or may: then the deadline runs (L14).
    fn armed(&self) -> bool {
        !(self.ready && self.volumes.is_empty() && self.leases.is_empty() && self.jobs.is_empty())
    }

    /// When the deadman fences, if no further beat gets through.
    fn deadline(&self) -> Option<Now> {
        let mine = self.mine.as_ref().filter(|_| self.is_open() && self.armed() && !self.never_fences())?;
        Some(self.beaten? + mine.timing().fence)
    }

    /// When this worker begins to.
    pub(super) fn fence_at(&self) -> Option<Now> {
        Some(self.deadline()?.saturating_sub(self.settings.lead))
    }

    /// Whether the epoch was opened to go on without etcd: no reclaimer touches it either.
    fn never_fences(&self) -> bool {
        self.mine.as_ref().is_some_and(|mine| mine.record.by_time == ByTime::Never)
    }

    /// Tells the shared deadline what it must be, before anything that depends on it.
    fn extend(&mut self) {
        if !self.is_open() {
            return;
        }
        // The next lease begins with a beat of its own (L14): what is left of an old one could be too short
        // for it.
        if !self.armed() {
            self.beaten = None;
            self.next_beat = Now::ZERO;
        }
        let deadline = self.deadline();
        if deadline != self.extended {
            self.extended = deadline;
            self.outputs.push_back(Output::Extend(deadline));
        }
    }

    /// Begins to fence: this epoch never beats, writes or calls a driver again (L12). The table stays as it
    /// is, for it says what is to be fenced.
    fn fence(&mut self, why: &str) {
        if !self.is_open() {
            return;
        }
        let message: Text = format!("this host lost the right to its volumes: {why}").into();
        for output in &mut self.outputs {
            if let Output::Reply(_, answer @ Ok(Answer::Prepared { .. } | Answer::Isolated)) = output {
                *answer = Err(message.clone());
            }
        }
        self.outputs.retain(|o| {
            matches!(o, Output::Reply(..) | Output::Limit { .. } | Output::Warn(_) | Output::Note(_))
        });
        for (container, waiting) in std::mem::take(&mut self.waiting) {
            self.outputs.push_back(Output::Reply(waiting.request, Err(message.clone())));
            self.containers.remove(&container);
        }
        self.unisolated.clear();
        for container in self.containers.keys() {
            let (container, message) = (container.clone(), message.clone());
            self.outputs.push_back(Output::Limit { container, message });
        }
        for volume in self.volumes.values_mut() {
            volume.awaits = None;
            volume.retry_at = None;
        }
        self.close();
        self.obstacle = message;
        let op = self.op();
        self.life = Life::Fencing { op: Some(op) };
        self.table_changed = true;
        self.outputs.push_back(Output::Fence { op, why: why.into() });
    }

    /// Forgets all that is under way with etcd: late answers find nothing to match.
    fn close(&mut self) {
        self.in_flight = InFlight::Idle;
        self.jobs.clear();
        self.leases.clear();
        self.found = None;
        (self.barrier, self.allowing, self.ready) = (false, false, false);
        (self.check, self.checking, self.beat, self.beaten) = (None, None, None, None);
    }
}
