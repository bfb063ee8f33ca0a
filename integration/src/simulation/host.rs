//! One agent host: the shell around holder, fence and deadman as the keeper is built, and what it acts on:
//! stored table, shared deadline, mounts, containers. It does nothing by itself: what takes time leaves as
//! an [`Effect`], and simulator or model say when, in which order, and whether it comes back.

use std::collections::{BTreeMap, BTreeSet};

use protocol::deadman::{self, Deadman};
use protocol::exchange::{Commit, Reading};
use protocol::fence::{Act, Fence};
use protocol::holder::{
    Answer, Core, Deadline, Idleness, Input, MountedVolume, Output, Settings, Sight, Table, Wanted,
};
use protocol::volume::{ContainerId, VolumeId};
use protocol::{Now, Op, Request, Text};

use super::run::volume;

/// Who runs a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runner {
    /// The worker: to be safe before an epoch, or in place of a dead deadman.
    Worker,
    /// The deadman.
    Deadman,
}

/// What takes time, or concerns the world outside the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// A read by the worker.
    Read(Op, Reading),
    /// A commit by the worker.
    Commit(Op, Commit),
    /// A driver call.
    Mount(Op, VolumeId),
    /// A driver call.
    Unmount(Op, VolumeId),
    /// A driver call.
    Remove(Op, VolumeId),
    /// A call to the storage.
    Settle(Op, VolumeId),
    /// A look at mount tables and device.
    Prove(Op, VolumeId),
    /// A look at the mount.
    Look(Op, VolumeId),
    /// A step of a fence.
    Act(Runner, Act),
    /// A container is killed, outside a fence.
    Kill(ContainerId),
    /// A call of the isolator is answered.
    Reply(Request, Result<Answer, Text>),
    /// A container is told to end.
    Limit(ContainerId),
    /// The worker and its helpers are killed, and reaped.
    KillWorker,
    /// A worker is started.
    StartWorker,
}

/// A mount on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mount {
    /// Whether the storage has taken the volume away from this mount.
    pub blocked: bool,
}

/// A container's processes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process {
    /// The volumes that it uses.
    pub volumes: BTreeSet<VolumeId>,
    /// What was mounted when it was forked, where that stays in its own namespace.
    pub copies: BTreeSet<VolumeId>,
    /// Whether it was let go: before that it writes nothing.
    pub runs: bool,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// What its workers are started with.
    pub settings: Settings,
    /// Whether what is mounted on the host is copied into each new container (mount root not shared).
    pub private_mounts: bool,
    /// The worker.
    pub worker: Option<Core>,
    /// The deadman.
    pub deadman: Option<Deadman>,
    /// Shared memory.
    pub shared: Deadline,
    /// The stored table.
    pub table: Table,
    /// Fences under way.
    pub fences: BTreeMap<Runner, (Fence, Op)>,
    /// What is mounted.
    pub mounts: BTreeMap<VolumeId, Mount>,
    /// The containers' processes.
    pub processes: BTreeMap<ContainerId, Process>,
}

impl Host {
    /// A host that was just booted.
    #[must_use]
    pub fn new(now: Now, settings: Settings) -> Self {
        let core = Core::new(now, settings.clone(), Table::default(), Deadline::default());
        Self {
            settings,
            private_mounts: false,
            worker: Some(core),
            deadman: Some(Deadman::beside_worker(now)),
            shared: Deadline::default(),
            table: Table::default(),
            fences: BTreeMap::new(),
            mounts: BTreeMap::new(),
            processes: BTreeMap::new(),
        }
    }

    /// Whether this host can write to a volume.
    #[must_use]
    pub fn can_write(&self, volume: &VolumeId) -> bool {
        let copied = || self.processes.values().any(|process| process.copies.contains(volume));
        match self.mounts.get(volume) {
            Some(mount) => !mount.blocked,
            None => copied(),
        }
    }

    /// The worker takes something in, stores its table, and only then acts.
    pub fn handle(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        let Some(core) = &mut self.worker else { return };
        core.handle(now, input);
        self.carry_out(now, effects);
    }

    /// Stores the table if it changed, and carries out what the core asks for.
    pub fn carry_out(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Some(core) = &mut self.worker else { return };
        if core.table_changed() {
            self.table = core.table();
        }
        while let Some(output) = self.worker.as_mut().and_then(Core::poll_output) {
            if !self.output(now, output, effects) {
                break;
            }
        }
    }

    /// The last look before the driver is called.
    #[must_use]
    pub fn may_call(&self, now: Now, op: Op) -> bool {
        !self.shared.fenced && self.worker.as_ref().is_some_and(|core| core.may_call_driver(now, op))
    }

    /// Answers whether the outputs behind this one may be carried out.
    fn output(&mut self, now: Now, output: Output, effects: &mut Vec<Effect>) -> bool {
        match output {
            // The gate: the table with pid and cgroup is stored, the flag is looked at last.
            Output::Reply(request, Ok(Answer::Isolated)) if self.shared.fenced => {
                effects.push(Effect::Reply(request, Err("this host is being fenced".into())));
            }
            Output::Reply(request, answer) => effects.push(Effect::Reply(request, answer)),
            Output::Read { op, reading } => effects.push(Effect::Read(op, reading)),
            Output::Commit { op, commit } => effects.push(Effect::Commit(op, commit)),
            Output::Extend(fence_at) => {
                if self.shared.fenced {
                    self.handle(now, Input::Flagged, effects);
                    return false;
                }
                self.shared.fence_at = fence_at;
            }
            Output::Reset => self.shared = self.shared.next(),
            Output::Settle { op, .. }
            | Output::Mount { op, .. }
            | Output::Unmount { op, .. }
            | Output::Remove { op, .. }
                if !self.may_call(now, op) =>
            {
                self.handle(now, Input::NotMade(op), effects);
                return false;
            }
            Output::Settle { op, asked, .. } => effects.push(Effect::Settle(op, asked)),
            Output::Mount { op, wanted, .. } => effects.push(Effect::Mount(op, wanted.asked)),
            Output::Unmount { op, asked, .. } => effects.push(Effect::Unmount(op, asked)),
            Output::Remove { op, asked, .. } => effects.push(Effect::Remove(op, asked)),
            Output::ProveIdle { op, asked, .. } => effects.push(Effect::Prove(op, asked)),
            Output::Look { op, mounted, .. } => effects.push(Effect::Look(op, mounted_volume(&mounted))),
            Output::MakeSafe { op } => self.start_fence(now, Runner::Worker, op, effects),
            Output::Fence { op, .. } => {
                self.shared.fenced = true;
                // A deadman that ticks does it, beginning with this worker.
                if self.deadman.is_none() {
                    self.start_fence(now, Runner::Worker, op, effects);
                }
            }
            Output::Kill { container } => effects.push(Effect::Kill(container)),
            Output::Limit { container, .. } => effects.push(Effect::Limit(container)),
            Output::Warn(_) | Output::Note(_) => {}
        }
        true
    }

    /// The deadman takes something in.
    pub fn deadman(&mut self, now: Now, input: deadman::Input, effects: &mut Vec<Effect>) {
        let Some(deadman) = &mut self.deadman else { return };
        deadman.handle(now, self.shared, input);
        while let Some(output) = self.deadman.as_mut().and_then(Deadman::poll_output) {
            match output {
                deadman::Output::Flag => self.shared.fenced = true,
                deadman::Output::Kill => effects.push(Effect::KillWorker),
                deadman::Output::Start => effects.push(Effect::StartWorker),
                deadman::Output::Fence => self.start_fence(now, Runner::Deadman, Op(0), effects),
            }
        }
    }

    /// What the deadman's poll does: it sees whether the worker ticks.
    pub fn poll_deadman(&mut self, now: Now, worker_ticks: bool, effects: &mut Vec<Effect>) {
        if worker_ticks && self.worker.is_some() {
            self.deadman(now, deadman::Input::WorkerTicked, effects);
        } else {
            self.deadman(now, deadman::Input::Tick, effects);
        }
    }

    fn start_fence(&mut self, now: Now, runner: Runner, op: Op, effects: &mut Vec<Effect>) {
        let settle = match runner {
            Runner::Worker => Some(self.shared.fence_at.unwrap_or(now) + self.settings.settle),
            Runner::Deadman => None,
        };
        self.fences.insert(runner, (Fence::new(&self.table, None, settle), op));
        self.poll_fence(runner, effects);
    }

    fn poll_fence(&mut self, runner: Runner, effects: &mut Vec<Effect>) {
        while let Some(act) = self.fences.get_mut(&runner).and_then(|(fence, _)| fence.poll_act()) {
            effects.push(Effect::Act(runner, act));
        }
    }

    /// A step of a fence is carried out, and its result taken in.
    pub fn act(&mut self, now: Now, runner: Runner, act: &Act, effects: &mut Vec<Effect>) {
        if !self.fences.contains_key(&runner) {
            return;
        }
        match act {
            Act::Kill(container) => {
                // What was not isolated is not known, and was not let go.
                if self.table.containers.get(container).is_some_and(|container| container.pid.is_some()) {
                    self.processes.remove(container);
                }
            }
            Act::MakeIdle(volume) => self.make_idle(volume),
            Act::Sweep => {
                for volume in self.mounts.keys().cloned().collect::<Vec<_>>() {
                    self.make_idle(&volume);
                }
            }
            // What they stop could go on until the mount is taken away: here it does.
            Act::Freeze | Act::Shutdown(_) | Act::Settle(_) | Act::Reset => {}
        }
        let Some((fence, op)) = self.fences.get_mut(&runner) else { return };
        let op = *op;
        fence.done(act, Ok(()));
        if fence.is_proved() {
            self.fences.remove(&runner);
            return match runner {
                Runner::Worker => self.handle(now, Input::Safe(op, Ok(())), effects),
                Runner::Deadman => self.deadman(now, deadman::Input::Fenced, effects),
            };
        }
        self.poll_fence(runner, effects);
    }

    /// The file system is shut down, in every namespace.
    fn make_idle(&mut self, volume: &VolumeId) {
        self.mounts.remove(volume);
        for process in self.processes.values_mut() {
            process.copies.remove(volume);
        }
    }

    /// The worker and its helpers are gone, and reaped if the deadman lives.
    pub fn worker_gone(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.worker = None;
        self.fences.remove(&Runner::Worker);
        self.deadman(now, deadman::Input::WorkerGone, effects);
    }

    /// A worker starts, from table and shared deadline.
    pub fn start_worker(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.worker.is_some() {
            return;
        }
        self.worker = Some(Core::new(now, self.settings.clone(), self.table.clone(), self.shared));
        if self.deadman.is_none() {
            self.handle(now, Input::Guarded(false), effects);
        }
        self.handle(now, Input::Tick, effects);
    }

    /// The deadman is gone.
    pub fn deadman_gone(&mut self) {
        self.deadman = None;
        self.fences.remove(&Runner::Deadman);
    }

    /// The worker starts a deadman, or systemd starts the keeper.
    pub fn start_deadman(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.deadman.is_some() {
            return;
        }
        if self.worker.is_some() {
            self.deadman = Some(Deadman::beside_worker(now));
        } else {
            self.deadman = Some(Deadman::new(now));
            self.deadman(now, deadman::Input::WorkerGone, effects);
        }
    }

    /// The power is gone.
    pub fn power_off(&mut self) {
        self.worker = None;
        self.deadman = None;
        self.shared = Deadline::default();
        self.table = Table::default();
        self.fences.clear();
        self.mounts.clear();
        self.processes.clear();
    }

    /// The power is back: nothing of before is mounted, run or remembered.
    pub fn boot(&mut self, now: Now, boot: Text, effects: &mut Vec<Effect>) {
        self.settings.boot = boot;
        self.deadman = Some(Deadman::new(now));
        self.deadman(now, deadman::Input::WorkerGone, effects);
    }

    /// What looking at the device tells. A driver call that is under way is not to be seen there.
    #[must_use]
    pub fn idleness(&self, volume: &VolumeId) -> Idleness {
        if self.mounts.contains_key(volume) {
            return Idleness::Mounted;
        }
        if self.processes.values().any(|process| process.copies.contains(volume)) {
            return Idleness::Pinned("a process".into());
        }
        Idleness::Proved
    }

    /// What looking at the mount tells.
    #[must_use]
    pub fn sight(&self, volume: &VolumeId) -> Sight {
        if !self.mounts.contains_key(volume) {
            return Sight::Gone("nothing is mounted there".into());
        }
        let sees = |process: &Process| process.volumes.contains(volume) || process.copies.contains(volume);
        let elsewhere = self.processes.values().any(sees).then(|| "a process".into());
        Sight::Mounted { elsewhere }
    }

    /// A container is forked: its processes exist, and wait to be let go.
    pub fn fork(&mut self, container: &ContainerId, volumes: &[Wanted]) {
        let copies =
            if self.private_mounts { self.mounts.keys().cloned().collect() } else { BTreeSet::new() };
        let volumes = volumes.iter().map(|wanted| wanted.volume.clone()).collect();
        self.processes.insert(container.clone(), Process { volumes, copies, runs: false });
    }
}

/// What a mount looks like.
#[must_use]
pub fn mounted(volume: &VolumeId) -> MountedVolume {
    MountedVolume {
        mount_point: volume.name.as_str().into(),
        device_number: format!("7:{}", volume.name).into(),
        source: format!("/dev/loop-{}", volume.name).into(),
        can_be_shut_down: true,
        ..MountedVolume::default()
    }
}

/// The volume that [`mounted`] was made of.
fn mounted_volume(mounted: &MountedVolume) -> VolumeId {
    let number = mounted.mount_point.trim_start_matches('v').parse();
    volume(number.unwrap_or(usize::MAX))
}
