//! The write queue: one transaction of leases and session at a time (docs/decisions/0003), so that a conflict has one
//! meaning: somebody else, or a write of ours that was given up for lost. What waits goes together, as much as one
//! transaction takes.
//!
//! A transaction is sent on what this host believes, and reads what it compared if that was wrong. Of a volume that nobody has
//! there is no record, so that a lease is taken without having been read.
//!
//! What etcd answers is in `answers.rs`, what a session finds at its opening in `take_over.rs`.
//!
//! After an unknown outcome the session is rewritten first: the barrier. Whatever is still in flight compares the session, and
//! can never commit; only then is a read believed (L2). Beats, and the reading that a refused beat asks for, do not wait for the
//! queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::claim::{Decision, Write};
use super::session::Life;
use super::{Core, Output};
use crate::VOLUMES_MAX;
use crate::exchange::{ByTime, Commit, Held, Key, Lease, Owed, Reading, Record, Session, Stage, View};
use crate::ids::Revision;
use crate::ids::Task;
use crate::renumber::Renumber;
use crate::volume::{ContainerId, Holder, VolumeId};
use crate::{Now, Op, Text};

/// Of so many containers a lease says for whom they run.
const TASKS_TOLD: usize = 5;

/// So many users the leases of one transaction name, or one lease alone names more: each takes some hundred bytes, and etcd refuses
/// what is larger than 1.5 MiB.
const USERS_TOLD: usize = 2_000;

/// What is wanted of the leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Job {
    /// Take all of a container's, or none.
    Acquire(Box<Acquire>),
    /// Rewrite one.
    Record { op: Op, volume: VolumeId },
    /// Free one.
    Release { op: Op, volume: VolumeId },
}

/// The leases that a container needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Acquire {
    pub(super) volumes: Vec<VolumeId>,
    pub(super) container: ContainerId,
    pub(super) agent_id: Option<Text>,
    /// What was read of them. Before that, they are taken to be nobody's.
    pub(super) seen: Option<Arc<View>>,
    /// Whose sessions are read with them: who is known to have, or to have had, one of them.
    pub(super) owners: BTreeSet<Holder>,
}

impl Job {
    fn volumes(&self) -> &[VolumeId] {
        match self {
            Self::Acquire(acquire) => &acquire.volumes,
            Self::Record { volume, .. } | Self::Release { volume, .. } => std::slice::from_ref(volume),
        }
    }
}

/// What the queue is at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum InFlight {
    Idle,
    /// Something failed, and is tried again then.
    Pause {
        until: Now,
    },
    /// A request is with etcd; `seen` was the highest revision when it was sent.
    Busy {
        op: Op,
        seen: Revision,
        doing: Doing,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Doing {
    OpenRead,
    OpenWrite(Box<Session>),
    /// What is this session's own.
    OwnRead,
    /// The session, to know what a barrier has to compare.
    SessionRead,
    /// The leases of these, with their owners' sessions.
    AcquireRead(Vec<Acquire>),
    Write(Box<Batch>),
    Die,
}

/// What one transaction writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(super) purpose: Purpose,
    /// The session, when it is rewritten.
    pub(super) session: Option<Session>,
    /// When the beat was sent that is in it.
    pub(super) beat: Option<Now>,
    pub(super) leases: Vec<Write>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    Jobs(Vec<Job>),
    /// Closes what is in flight.
    Barrier,
    /// Makes so many leases of earlier epochs this one's.
    TakeOver(usize),
    /// Takes so many volumes of others out of the own index.
    Index(usize),
}

impl Core {
    pub(super) fn send_read(&mut self, reading: Reading, doing: Doing) {
        let op = self.op();
        self.in_flight = InFlight::Busy { op, seen: self.highest, doing };
        self.outputs.push_back(Output::Read { op, reading });
    }

    pub(super) fn send_commit(&mut self, commit: Commit, doing: Doing) {
        let op = self.op();
        self.in_flight = InFlight::Busy { op, seen: self.highest, doing };
        self.outputs.push_back(Output::Commit { op, commit });
    }

    pub(super) fn own(&self) -> Reading {
        Reading::Own(self.settings.holder.clone())
    }

    pub(super) fn session_key(&self) -> Key {
        Key::Session(self.settings.holder.clone())
    }

    /// Puts an acquire into the queue: behind the other acquires, with at most one other job between two. What volumes
    /// of some containers leave to be written and released, which may be much, delays no launch of another; and
    /// launches delay it by no more than their own number.
    pub(super) fn queue_acquire(&mut self, acquire: Acquire) {
        let last = self.jobs.iter().rposition(|job| matches!(job, Job::Acquire(_)));
        let place = last.map_or(1, |last| last + 2).min(self.jobs.len());
        self.jobs.insert(place, Job::Acquire(Box::new(acquire)));
    }

    /// How many jobs are carried out before the acquire of this volume; none when it is not in the queue.
    pub(super) fn before_acquire(&self, id: &VolumeId) -> Option<usize> {
        let before = match &self.in_flight {
            InFlight::Busy { doing: Doing::Write(batch), .. } => match &batch.purpose {
                Purpose::Jobs(jobs) => jobs.len(),
                Purpose::Barrier | Purpose::TakeOver(_) | Purpose::Index(_) => 0,
            },
            _ => 0,
        };
        let is_of = |job: &Job| matches!(job, Job::Acquire(acquire) if acquire.volumes.contains(id));
        Some(before + self.jobs.iter().position(is_of)?)
    }

    /// Reads session and leases again, when something changed under us.
    pub(super) fn start_check(&mut self, now: Now) {
        let due = self.check.is_some_and(|at| at <= now) && self.checking.is_none() && self.is_open();
        if !due {
            return;
        }
        let volumes = self.all_own().into_iter().map(Key::Lease);
        let keys = [self.session_key()].into_iter().chain(volumes).collect();
        let op = self.op();
        self.check = None;
        self.checking = Some((op, self.highest));
        self.outputs.push_back(Output::Read { op, reading: Reading::Keys(keys) });
    }

    /// All volumes of which this host has something, or asks for it.
    pub(super) fn all_own(&self) -> BTreeSet<VolumeId> {
        self.volumes.keys().chain(self.leases.keys()).cloned().collect()
    }

    /// Whether a rewrite of the session is with etcd.
    pub(super) fn rewrites_session(&self) -> bool {
        matches!(&self.in_flight, InFlight::Busy { doing: Doing::Write(batch), .. } if batch.session.is_some())
    }

    // --- what is sent ----------------------------------------------------------------------------

    /// The next step of an open epoch that has nothing in flight.
    pub(super) fn step(&mut self, now: Now) {
        if self.barrier {
            return self.close_unknown();
        }
        if self.check.is_some() || self.checking.is_some() {
            return;
        }
        match self.ready {
            true => self.write_jobs(now),
            false => self.take_over(now),
        }
        if self.is_open() && self.in_flight == InFlight::Idle && self.is_wound_down() {
            self.life = Life::Dying;
            self.table_changed = true;
            self.progress_session(now);
        }
    }

    /// The barrier: the session as it is now, compared with what it was.
    fn close_unknown(&mut self) {
        let Some(mine) = &self.mine else { return };
        // Compared as absent, a session that somebody has done away with would be made again.
        if mine.at == Revision::ABSENT {
            return self.send_read(Reading::Keys(vec![self.session_key()]), Doing::SessionRead);
        }
        let session = Some(self.session_record(&mine.record));
        self.send(Batch { purpose: Purpose::Barrier, session, beat: None, leases: Vec::new() });
    }

    /// Sends what waits in the queue, as much as one transaction takes.
    fn write_jobs(&mut self, now: Now) {
        let (mut jobs, mut leases, mut takes) = (Vec::new(), Vec::new(), false);
        let (mut room, mut users) = (VOLUMES_MAX, 0);
        let mut asking: Vec<Acquire> = Vec::new();
        while let Some(job) = self.jobs.pop_front() {
            let names =
                job.volumes().iter().filter_map(|id| Some(self.volumes.get(id)?.users.len())).sum::<usize>();
            let is_full = job.volumes().len() > room || users > 0 && users + names > USERS_TOLD;
            let is_read = asking.is_empty() || matches!(job, Job::Acquire(_));
            if is_full || !is_read {
                self.jobs.push_front(job);
                break;
            }
            let size = job.volumes().len();
            match job {
                Job::Acquire(mut acquire) => match self.decide(now, &acquire) {
                    Decision::Refuse(why) => {
                        self.drop_acquire(now, &acquire);
                        self.end(&acquire.container, &why);
                        continue;
                    }
                    Decision::Wait { wants, others } => {
                        let why = others.why.clone();
                        self.drop_acquire(now, &acquire);
                        if !self.wait_for_others(now, &acquire.container, wants, others) {
                            self.end(&acquire.container, &why);
                        }
                        continue;
                    }
                    Decision::Ask(owners) if jobs.is_empty() => {
                        acquire.owners.extend(owners);
                        asking.push(*acquire);
                    }
                    Decision::Take(taken) if asking.is_empty() && self.may_take() => {
                        takes = true;
                        leases.extend(taken);
                        jobs.push(Job::Acquire(acquire));
                    }
                    Decision::Ask(_) | Decision::Take(_) => {
                        self.jobs.push_front(Job::Acquire(acquire));
                        break;
                    }
                },
                Job::Record { op, volume } => match self.recorded_lease(&volume) {
                    // Of a mounted volume it confirms nothing, and after a restart nothing has changed.
                    Some(held) if held.stage == Stage::Attached && self.has_recorded(&volume, &held) => {
                        self.recorded(op);
                        continue;
                    }
                    Some(held) => {
                        leases.push(self.write_of(&volume, Some(Lease::Held(held))));
                        jobs.push(Job::Record { op, volume });
                    }
                    None => return self.fence(&format!("etcd names another holder of volume {volume}")),
                },
                Job::Release { op, volume } if self.leases.contains_key(&volume) => {
                    leases.push(self.write_of(&volume, self.released_lease(&volume)));
                    jobs.push(Job::Release { op, volume });
                }
                // Freed by the write whose answer was lost.
                Job::Release { op, volume } => {
                    self.released(op, &volume);
                    self.gave_back(now);
                    continue;
                }
            }
            room -= size;
            users += names;
        }
        if !asking.is_empty() {
            let volumes = asking.iter().flat_map(|acquire| acquire.volumes.iter().cloned().map(Key::Lease));
            let owners = asking.iter().flat_map(|acquire| acquire.owners.iter().cloned().map(Key::Session));
            let keys: BTreeSet<_> = volumes.chain(owners).collect();
            return self.send_read(Reading::Keys(keys.into_iter().collect()), Doing::AcquireRead(asking));
        }
        let session = self.session_to_write();
        if jobs.is_empty() && session.is_none() {
            return;
        }
        // No reclaimer's wait that began before it can end while the leases are held (L14).
        let beat = takes.then_some(now);
        self.send(Batch { purpose: Purpose::Jobs(jobs), session, beat, leases });
    }

    /// Whether leases may be taken, under a beat of their own: one that is under way changes what it compares.
    pub(super) fn may_take(&self) -> bool {
        self.guarded && self.beat.is_none()
    }

    /// The session as it has to be now.
    pub(super) fn session_record(&self, told: &Session) -> Session {
        let instance = self.settings.instance.clone();
        let agent = self.agent.clone().or_else(|| told.agent.clone());
        self.with_word(Session { instance, agent, wants: self.wants(), ..told.clone() })
    }

    /// The same, if etcd has another one, or may have it soon.
    pub(super) fn session_to_write(&self) -> Option<Session> {
        let told = &self.mine.as_ref()?.record;
        let session = self.session_record(told);
        (session != *told || self.allowing).then_some(session)
    }

    /// A lease of ours as it is to be written.
    fn recorded_lease(&self, id: &VolumeId) -> Option<Held> {
        let (held, _) = self.leases.get(id)?;
        let volume = self.volumes.get(id)?;
        let mount_point = volume.mounted().map(|mounted| mounted.mount_point.clone());
        let (stage, containers) = (volume.stage(), volume.users.clone());
        let unsettled = held.unsettled && stage == Stage::Attaching;
        let calls = held.calls && unsettled;
        let owed = held.owed.clone().filter(|_| volume.mounted().is_none());
        let tasks = self.tasks(&containers);
        Some(Held { stage, containers, tasks, mount_point, unsettled, calls, owed, ..held.clone() })
    }

    fn has_recorded(&self, id: &VolumeId, held: &Held) -> bool {
        self.leases.get(id).is_some_and(|(known, _)| known == held)
    }

    /// For whom containers run: of the first few, for a lease is written again with each that comes or goes.
    pub(super) fn tasks(&self, containers: &BTreeSet<ContainerId>) -> BTreeMap<ContainerId, Task> {
        let task = |id: &ContainerId| Some((id.clone(), self.containers.get(id)?.task.clone()?));
        containers.iter().take(TASKS_TOLD).filter_map(task).collect()
    }

    /// What is left of a lease that this host releases: who still owes the volume. That is whoever did before, if it was not
    /// mounted here; or this host, if its driver may have attached it, and has not detached it. Of one that nobody owes nothing
    /// is left.
    fn released_lease(&self, id: &VolumeId) -> Option<Lease> {
        let (held, _) = self.leases.get(id)?;
        let volume = self.volumes.get(id)?;
        let before = held.owed.clone().filter(|_| volume.mounted().is_none());
        let owed = match volume.attached {
            true => Some(Owed::and(before, &self.settings.holder, held.since.as_ref(), false)),
            false => before,
        };
        owed.map(|owed| Lease::Free { last_holder: Some(self.settings.holder.clone()), owed: Some(owed) })
    }

    /// The write of a lease that is this holder's.
    fn write_of(&self, id: &VolumeId, lease: Option<Lease>) -> Write {
        let at = self.leases.get(id).map_or(Revision::ABSENT, |(_, at)| *at);
        Write { volume: id.clone(), at, lease, from: None }
    }

    /// Sends a transaction: it compares the session, and all that it writes.
    pub(super) fn send(&mut self, batch: Batch) {
        let (Some(mine), Some(cluster)) = (&self.mine, &self.cluster) else { return };
        let (me, key) = (self.settings.holder.clone(), self.session_key());
        let mut commit = match &batch.session {
            Some(session) => Commit::new(cluster).put(key, mine.at, Record::Session(session.clone())),
            None => Commit::new(cluster).unchanged(key, mine.at),
        };
        let mut owners = BTreeSet::new();
        for Write { volume, at, lease, from } in &batch.leases {
            let key = Key::Lease(volume.clone());
            commit = match lease {
                Some(lease) => commit.put(key, *at, Record::Lease(lease.clone())),
                None => commit.delete(key, *at),
            };
            let names_me = lease.as_ref().is_some_and(|lease| lease.named().contains(&me));
            let is_granted = lease.as_ref().and_then(Lease::held).is_some_and(|held| held.token.is_none());
            commit = match names_me {
                true if is_granted => commit.index(&me, volume),
                true => commit,
                false => commit.unindex(&me, volume),
            };
            owners.extend(from.clone());
        }
        for (owner, at) in owners {
            commit = commit.unchanged(Key::Session(owner), at);
        }
        if let (Purpose::Index(count), Some(found)) = (&batch.purpose, &self.found) {
            commit = found.stale.iter().take(*count).fold(commit, |commit, (id, at)| {
                commit.unchanged(Key::Lease(id.clone()), *at).unindex(&me, id)
            });
        }
        if batch.beat.is_some() {
            // What is absent may be so again after a release: a second copy of this transaction finds that the first has beaten.
            commit = commit.unchanged(Key::Beat(me.clone()), self.beat_at);
        }
        let compared: BTreeSet<_> = commit.compares.iter().map(|(key, _)| key.clone()).collect();
        commit = commit.or_read(compared);
        self.allowing |= batch.session.as_ref().is_some_and(|session| session.by_time == ByTime::Allowed);
        if let Some(sent) = batch.beat {
            commit = commit.with_beat(&me);
            self.next_beat = sent + mine.timing().beat;
        }
        self.send_commit(commit, Doing::Write(Box::new(batch)));
    }

    /// For [`crate::renumber`]: no one else sees into the queue.
    pub(crate) fn renumber_queue(&mut self, r: &mut impl Renumber) {
        match &mut self.in_flight {
            InFlight::Idle => {}
            InFlight::Pause { until } => r.due(until),
            InFlight::Busy { op, seen, doing } => {
                r.op(op);
                r.seen(seen);
                match doing {
                    Doing::Write(batch) => {
                        batch.beat.iter_mut().for_each(|at| r.since(at));
                        batch.leases.iter_mut().for_each(|write| renumber_write(write, r));
                        if let Purpose::Jobs(jobs) = &mut batch.purpose {
                            jobs.iter_mut().for_each(|job| renumber_job(job, r));
                        }
                    }
                    Doing::AcquireRead(asking) => {
                        asking.iter_mut().for_each(|acquire| renumber_acquire(acquire, r));
                    }
                    _ => {}
                }
            }
        }
        self.jobs.iter_mut().for_each(|job| renumber_job(job, r));
        for write in self.found.iter_mut().flat_map(|found| &mut found.older) {
            renumber_write(write, r);
        }
    }
}

fn renumber_write(write: &mut Write, r: &mut impl Renumber) {
    r.revision(&mut write.at);
    write.from.iter_mut().for_each(|(_, at)| r.revision(at));
    if let Some(lease) = write.lease.take() {
        let mut record = Record::Lease(lease);
        crate::renumber::record(&mut record, r);
        if let Record::Lease(renumbered) = record {
            write.lease = Some(renumbered);
        }
    }
}

fn renumber_job(job: &mut Job, r: &mut impl Renumber) {
    match job {
        Job::Record { op, .. } | Job::Release { op, .. } => r.op(op),
        Job::Acquire(acquire) => renumber_acquire(acquire, r),
    }
}

fn renumber_acquire(acquire: &mut Acquire, r: &mut impl Renumber) {
    if let Some(view) = &mut acquire.seen {
        crate::renumber::view(Arc::make_mut(view), r);
    }
}
