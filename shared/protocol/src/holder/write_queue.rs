//! The write queue: one transaction of leases and session at a time (docs/decisions/0003), so that a conflict has one
//! meaning: somebody else, or a write of ours that was given up for lost. What waits goes together, as much as one
//! transaction takes.
//!
//! A transaction is sent on what this host believes, and reads what it compared if that was wrong. Of a volume that nobody has
//! there is no record, so that a lease is taken without having been read.
//!
//! After an unknown outcome the session is rewritten first: the barrier. Whatever is still in flight compares the session, and
//! can never commit; only then is a read believed (L2). Beats, and the reading that a refused beat asks for, do not wait for the
//! queue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::claim::{Decision, Write};
use super::session::Life;
use super::{Core, FoundLease, Output, Volume};
use crate::VOLUMES_MAX;
use crate::exchange::{
    ByTime, Commit, Held, Key, Lease, Outcome, Owed, Reading, Record, Session, Stage, View,
};
use crate::ids::Revision;
use crate::ids::{Task, Token};
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
    /// Whose sessions were read with them, or are.
    pub(super) owners: BTreeSet<Holder>,
    /// Another host had one of them: they are read first.
    pub(super) reads_first: bool,
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
    purpose: Purpose,
    /// The session, when it is rewritten.
    session: Option<Session>,
    /// When the beat was sent that is in it.
    beat: Option<Now>,
    leases: Vec<Write>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    Jobs(Vec<Job>),
    /// Closes what is in flight.
    Barrier,
    /// Makes so many leases of earlier epochs this one's.
    TakeOver(usize),
    /// Takes so many volumes of others out of the own index.
    Index(usize),
}

/// What a session finds that is its holder's, and has not yet dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Found {
    /// Leases of earlier epochs, as this one takes them over.
    older: Vec<Write>,
    /// Volumes in the index that are no more this holder's: others took them, or they were freed by hand. With the revisions of
    /// their leases, for a second copy of what takes them out must not do so once they are this holder's again.
    stale: Vec<(VolumeId, Revision)>,
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
    fn all_own(&self) -> BTreeSet<VolumeId> {
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

    /// Takes over what earlier epochs of this holder held, in as many transactions as it takes, and then takes in what is ours.
    fn take_over(&mut self, now: Now) {
        let Some(found) = &self.found else { return self.send_read(self.own(), Doing::OwnRead) };
        if !found.older.is_empty() {
            if self.may_take(now) {
                let leases: Vec<_> = found.older.iter().take(VOLUMES_MAX).cloned().collect();
                let (purpose, session) = (Purpose::TakeOver(leases.len()), self.session_to_write());
                self.send(Batch { purpose, session, beat: Some(now), leases });
            }
            return;
        }
        let purpose = Purpose::Index(found.stale.len().min(VOLUMES_MAX));
        self.send(Batch { purpose, session: None, beat: None, leases: Vec::new() });
    }

    /// Takes in what is ours, once all that was found is dealt with.
    fn end_of_take_over(&mut self, now: Now) {
        if self.found.as_ref().is_none_or(|found| !found.older.is_empty() || !found.stale.is_empty()) {
            return;
        }
        self.found = None;
        let ours = self.leases.iter().map(|(id, (held, at))| {
            let (token, calling) = (held.token.unwrap_or(Token(*at)), held.stage != Stage::Attached);
            (id.clone(), FoundLease { token, unsettled: held.unsettled, calling })
        });
        let ours = ours.collect();
        self.take_in(now, ours);
        // What was revoked alone while no worker ran, or one that did not live to hear of it.
        let revoked = self.leases.iter().filter(|(_, (held, _))| held.revoked.is_some());
        for id in revoked.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.revoked.get_or_insert(now);
            }
        }
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
                    Decision::Take(taken) if asking.is_empty() && self.may_take(now) => {
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

    /// Whether leases may be taken, under a beat of their own: one that is under way changes what it compares, and one that is
    /// overdue goes first, for it compares no beat.
    fn may_take(&self, now: Now) -> bool {
        let Some(mine) = &self.mine else { return false };
        let is_overdue = self.beaten.is_some_and(|beaten| now >= beaten + mine.timing().beat * 2);
        self.guarded && self.beat.is_none() && !is_overdue
    }

    /// The session as it has to be now.
    pub(super) fn session_record(&self, told: &Session) -> Session {
        let instance = self.settings.instance.clone();
        let agent = self.agent.clone().or_else(|| told.agent.clone());
        self.with_word(Session { instance, agent, wants: self.wants(), ..told.clone() })
    }

    /// The same, if etcd has another one, or may have it soon.
    fn session_to_write(&self) -> Option<Session> {
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
    fn send(&mut self, batch: Batch) {
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

    // --- answers ---------------------------------------------------------------------------------

    pub(super) fn read(&mut self, now: Now, op: Op, result: Result<View, Text>) {
        if let Some((checking, seen)) = self.checking
            && checking == op
        {
            self.checking = None;
            match result {
                Ok(view) if self.believes(&view, seen) => {
                    // A write of ours may have been answered since: what it freed would come back (L15).
                    match view.revision < self.highest {
                        true => self.check = Some(now),
                        false if self.learn(now, &view) => self.checked(now, &view, self.all_own()),
                        false => {}
                    }
                }
                Ok(_) => {}
                Err(why) => {
                    self.fault = Some(why);
                    self.check = Some(now + self.settings.retry.0 * 10);
                }
            }
            return;
        }
        let Some((seen, doing)) = self.answered(op) else { return };
        let view = match result {
            Ok(view) => {
                self.fault = None;
                view
            }
            Err(why) => {
                self.in_flight = InFlight::Pause { until: now + self.settings.retry.0 };
                if !self.is_open() || !self.ready {
                    self.obstacle = why.clone();
                }
                self.fault = Some(why);
                if let Doing::AcquireRead(asking) = doing {
                    self.ask_again(asking, None);
                }
                return;
            }
        };
        if doing == Doing::OpenRead {
            // Nothing is held: whatever etcd says now is the truth to begin with.
            self.cluster = Some(view.cluster.clone());
            self.highest = view.revision;
            return self.opening(now, &view);
        }
        if !self.believes(&view, seen) {
            return;
        }
        match doing {
            Doing::OwnRead if self.learn(now, &view) => {
                self.find(&view);
                self.end_of_take_over(now);
            }
            Doing::SessionRead => _ = self.learn(now, &view),
            Doing::AcquireRead(asking) => self.ask_again(asking, Some(&Arc::new(view))),
            _ => {}
        }
    }

    /// What the request was about that has now been answered.
    fn answered(&mut self, op: Op) -> Option<(Revision, Doing)> {
        match std::mem::replace(&mut self.in_flight, InFlight::Idle) {
            InFlight::Busy { op: expected, seen, doing } if expected == op => Some((seen, doing)),
            other => {
                self.in_flight = other;
                None
            }
        }
    }

    /// Whether what etcd shows is of the installation of this epoch, and not older than what it has shown before.
    pub(super) fn believes(&mut self, view: &View, seen: Revision) -> bool {
        self.same_cluster(&view.cluster) && self.saw(view.revision, seen)
    }

    /// Puts acquires back to where they were, with what was read of them.
    fn ask_again(&mut self, asking: Vec<Acquire>, view: Option<&Arc<View>>) {
        for acquire in asking.into_iter().rev() {
            let seen = view.cloned().or_else(|| acquire.seen.clone());
            self.jobs.push_front(Job::Acquire(Box::new(Acquire { seen, ..acquire })));
        }
    }

    /// What this holder has, of this epoch and of earlier ones.
    fn find(&mut self, view: &View) {
        let Some(mine) = &self.mine else { return };
        let (epoch, unsettled_through) = (mine.epoch(), mine.record.unsettled_through);
        let me = &self.settings.holder;
        let mut older = Vec::new();
        let mut leases = BTreeMap::new();
        for (id, held, at) in view.held().filter(|(_, held, _)| held.holder == *me) {
            if held.epoch == epoch {
                let token = held.token.unwrap_or(Token(at));
                leases.insert(id.clone(), (Held { token: Some(token), ..held.clone() }, at));
                continue;
            }
            // The stage stays: it tells whether a driver call of before may be under way.
            let unsettled = held.unsettled || held.epoch <= unsettled_through;
            let calls = unsettled && (held.calls || held.stage != Stage::Attached);
            let (containers, tasks) = (BTreeSet::new(), BTreeMap::new());
            // A revoke was of the epoch that is over: this one gives back all that it finds.
            let (token, revoked) = (None, None);
            let held = Held { epoch, token, containers, tasks, unsettled, calls, revoked, ..held.clone() };
            older.push(Write { volume: id.clone(), at, lease: Some(Lease::Held(held)), from: None });
        }
        // What this host lost and still has attached is given back, too, while nobody else is at it: its driver is the
        // one that can.
        for (id, owed, at) in view.owed_by(me).filter(|_| !self.is_revoking()) {
            // No driver call has been made under it: it says what older leases say that are taken over.
            let held = Held {
                stage: Stage::Attached,
                holder: me.clone(),
                epoch,
                token: None,
                agent_id: None,
                containers: BTreeSet::new(),
                tasks: BTreeMap::new(),
                mount_point: None,
                unsettled: false,
                calls: false,
                owed: Some(owed.clone()),
                revoked: None,
                since: None,
            };
            older.push(Write { volume: id.clone(), at, lease: Some(Lease::Held(held)), from: None });
        }
        // Whoever takes a lease, or frees it by hand, leaves the index of another alone.
        let is_stale = |id: &&VolumeId| view.lease(id).is_none_or(|(lease, _)| !lease.named().contains(me));
        let stale = view.index_of(me).filter(is_stale);
        let stale = stale.map(|id| (id.clone(), view.at(&Key::Lease(id.clone())))).collect();
        self.beat_at = view.at(&Key::Beat(me.clone()));
        self.leases = leases;
        self.found = Some(Found { older, stale });
    }

    /// What a reading shows of own leases after a conflict or a barrier.
    fn checked(&mut self, now: Now, view: &View, volumes: BTreeSet<VolumeId>) {
        let Some(epoch) = self.epoch() else { return };
        for id in volumes {
            let known = self.leases.get(&id);
            match view.lease(&id) {
                Some((Lease::Held(held), at))
                    if held.holder == self.settings.holder && held.epoch == epoch =>
                {
                    let token = known.and_then(|(held, _)| held.token).or(held.token).unwrap_or(Token(at));
                    let held = Held { token: Some(token), ..held.clone() };
                    if held.revoked.is_some()
                        && let Some(volume) = self.volumes.get_mut(&id)
                    {
                        volume.revoked.get_or_insert(now);
                    }
                    self.leases.insert(id, (held, at));
                }
                // Whatever it says, nobody else can read it either: it is taken from nobody.
                None if view.unreadable.contains_key(&Key::Lease(id.clone())) => {}
                _ => {
                    self.leases.remove(&id);
                    if self.volumes.get(&id).is_some_and(Volume::needs_its_lease) {
                        return self.fence(&format!("etcd names another holder of volume {id}"));
                    }
                }
            }
        }
    }

    pub(super) fn committed(&mut self, now: Now, op: Op, outcome: Outcome) {
        if let Some(beat) = self.beat.take_if(|beat| beat.op == op) {
            return self.beat_answered(now, &beat, outcome);
        }
        let Some((seen, doing)) = self.answered(op) else { return };
        if std::mem::take(&mut self.noticed) && !matches!(outcome, Outcome::Done(_)) {
            self.check = Some(now);
        }
        if doing == Doing::Die {
            // It may have been written, or be written late: this epoch is over either way.
            self.mine = None;
            self.life = Life::CLOSED;
            return;
        }
        if let Outcome::Done(at) = outcome
            && !self.saw(at, seen)
        {
            return;
        }
        match (doing, outcome) {
            (Doing::OpenWrite(record), Outcome::Done(at)) => self.opened(*record, at),
            // Such as an etcd over its quota, which still answers reads: an opening begins with a read, and is in no hurry.
            (Doing::OpenWrite(_), Outcome::NotSent | Outcome::Unknown) => {
                self.obstacle = self.fault.clone().unwrap_or_else(|| "etcd takes no write".into());
                self.in_flight = InFlight::Pause { until: now + self.settings.retry.0 * 10 };
            }
            (Doing::Write(batch), Outcome::Done(at)) => self.written(now, *batch, at),
            (Doing::Write(batch), Outcome::Conflict(view)) => self.conflicted(now, *batch, view, seen),
            (Doing::Write(batch), Outcome::Unknown) => {
                if batch.purpose == Purpose::Barrier {
                    self.in_flight = InFlight::Pause { until: now + self.settings.retry.0 };
                }
                self.barrier = true;
                self.put_back(now, *batch, None);
            }
            (Doing::Write(batch), Outcome::NotSent) => {
                self.in_flight = InFlight::Pause { until: now + self.settings.retry.0 };
                self.put_back(now, *batch, None);
            }
            // An opening begins with a read: it is done again from there.
            _ => {}
        }
    }

    /// A transaction is done.
    fn written(&mut self, now: Now, batch: Batch, at: Revision) {
        let Batch { purpose, session, beat, leases } = batch;
        if let Some(session) = session {
            if let Some(mine) = self.mine.as_mut().filter(|mine| mine.at < at) {
                (mine.record, mine.at) = (session, at);
            }
            self.allowing = false;
        }
        if let Some(sent) = beat {
            self.beat_got_through(sent, at);
        }
        for Write { volume, lease, .. } in leases {
            match lease {
                Some(Lease::Held(held)) => {
                    let token = Some(held.token.unwrap_or(Token(at)));
                    self.leases.insert(volume, (Held { token, ..held }, at));
                }
                Some(Lease::Free { .. }) | None => _ = self.leases.remove(&volume),
            }
        }
        match (purpose, &mut self.found) {
            (Purpose::Barrier, _) => {
                self.barrier = false;
                // What is not yet taken in is read anyway.
                self.check = self.ready.then_some(now);
            }
            (Purpose::TakeOver(count), Some(found)) => _ = found.older.drain(..count),
            (Purpose::Index(count), Some(found)) => _ = found.stale.drain(..count),
            (Purpose::TakeOver(_) | Purpose::Index(_), None) => {}
            (Purpose::Jobs(jobs), _) => jobs.into_iter().for_each(|job| self.job_done(now, job)),
        }
        self.end_of_take_over(now);
    }

    fn job_done(&mut self, now: Now, job: Job) {
        match job {
            Job::Acquire(acquire) => self.acquired(now, &acquire.volumes),
            Job::Record { op, .. } => self.recorded(op),
            Job::Release { op, volume } => {
                self.released(op, &volume);
                self.gave_back(now);
            }
        }
    }

    /// Something that a transaction compared has changed. It was not done, and tried again on what is there.
    fn conflicted(&mut self, now: Now, batch: Batch, view: Option<Box<View>>, seen: Revision) {
        let Some(view) = view else {
            // Nothing was read: the session, and all that is held, are.
            if let Some(mine) = self.mine.as_mut().filter(|_| batch.purpose == Purpose::Barrier) {
                mine.at = Revision::ABSENT;
            } else {
                self.check = Some(now);
            }
            return self.put_back(now, batch, None);
        };
        if !self.believes(&view, seen) {
            return;
        }
        if !self.learn(now, &view) {
            // Or its session cannot be read, and what waits waits on.
            self.put_back(now, batch, None);
            return;
        }
        if batch.beat.is_some() {
            self.beat_at = view.at(&Key::Beat(self.settings.holder.clone()));
        }
        if self.ready {
            let volumes = batch.leases.iter().map(|write| write.volume.clone()).collect();
            self.checked(now, &view, volumes);
        }
        self.put_back(now, batch, Some(&Arc::new(*view)));
    }

    /// What was not done waits where it was; with what was read instead, if that is known.
    fn put_back(&mut self, now: Now, batch: Batch, view: Option<&Arc<View>>) {
        if !self.is_open() {
            return;
        }
        if batch.beat.is_some() {
            // It is not known to have got through.
            self.next_beat = now;
        }
        let Purpose::Jobs(jobs) = batch.purpose else {
            self.found = None;
            return;
        };
        for job in jobs.into_iter().rev() {
            match (job, view) {
                (Job::Acquire(mut acquire), Some(view)) => {
                    let leases = acquire.volumes.iter().cloned().map(Key::Lease).collect();
                    acquire.seen = Some(View::clone(view).of(&Reading::Keys(leases)).into());
                    // Their sessions are read with what the leases say now.
                    acquire.owners.clear();
                    self.jobs.push_front(Job::Acquire(acquire));
                }
                // Nobody can write it as long as it is so, and what waits behind it is not to wait for that.
                (Job::Record { volume, .. } | Job::Release { volume, .. }, Some(view))
                    if view.unreadable.contains_key(&Key::Lease(volume.clone())) =>
                {
                    self.postpone(now, &volume, &view.unreadable[&Key::Lease(volume.clone())]);
                }
                (job, _) => self.jobs.push_front(job),
            }
        }
    }

    /// A lease cannot be written now.
    fn postpone(&mut self, now: Now, id: &VolumeId, why: &Text) {
        let bounds = self.settings.retry;
        let Some(volume) = self.volumes.get_mut(id) else { return };
        volume.recorded = false;
        let trouble = format!("its lease in etcd cannot be read: {why}");
        if volume.retry(now, trouble.as_str().into(), bounds) {
            let line = format!("the lease of volume {id} cannot be written: {trouble}");
            self.outputs.push_back(Output::Warn(line.into()));
        }
    }

    /// Gives up an acquire.
    fn drop_acquire(&mut self, now: Now, acquire: &Acquire) {
        // One whose answer was lost may have been granted, as the barrier's reading has shown: then the leases
        // are ours, and have to be given back like any other without users.
        let (ours, others): (Vec<_>, Vec<_>) =
            acquire.volumes.iter().cloned().partition(|id| self.leases.contains_key(id));
        self.acquired(now, &ours);
        // Nothing has compared them since: the driver is not called before something has.
        for id in &ours {
            if let Some(volume) = self.volumes.get_mut(id) {
                volume.confirmed = false;
            }
        }
        for id in others {
            self.volumes.remove(&id);
        }
        self.table_changed = true;
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
