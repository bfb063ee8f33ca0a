//! The lane: one read or write of leases and session at a time (docs/decisions/0003), so that a
//! conflict has one meaning: somebody else, or a write of ours that was given up for lost.
//!
//! After an unknown outcome the session is rewritten first: the barrier. Whatever is still in flight
//! compares the session, and can never commit; only then is a read believed (L2). Beats, and the
//! reading that a refused beat asks for, do not wait for the lane.

use std::collections::{BTreeMap, BTreeSet};

use super::claim::Claim;
use super::session::Life;
use super::wait::Others;
use super::{Core, FoundLease, Output};
use crate::protocol::exchange::{
    ByTime, Commit, Held, Key, Lease, Outcome, Owed, Reading, Record, Session, SessionState, Stage, View,
};
use crate::protocol::renumber::Renumber;
use crate::protocol::{Now, Op, Text};
use crate::record::{Task, Token};
use crate::store::Revision;
use crate::transaction::VOLUMES_MAX;
use crate::volume::{ContainerId, Holder, VolumeId};

/// Of so many containers a lease says for whom they run.
const TASKS_TOLD: usize = 5;

/// What is wanted of the leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::protocol) enum Job {
    /// Find the leases that are this session's, and take over those of earlier epochs of this holder.
    TakeOver,
    /// Take all of these, or none.
    Acquire {
        volumes: Vec<VolumeId>,
        container: ContainerId,
        agent_id: Option<Text>,
        owners: BTreeSet<Holder>,
    },
    /// Rewrite one.
    Record { op: Op, volume: VolumeId },
    /// Free one.
    Release { op: Op, volume: VolumeId },
}

/// What the lane is at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::protocol) enum Lane {
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
pub(in crate::protocol) enum Doing {
    OpenRead,
    OpenWrite(Box<Session>),
    BarrierRead,
    BarrierWrite(Box<Session>),
    JobRead,
    JobWrite(Vec<(VolumeId, Lease)>),
    Die,
}

impl Core {
    pub(super) fn lane_read(&mut self, reading: Reading, doing: Doing) {
        let op = self.op();
        self.lane = Lane::Busy { op, seen: self.highest, doing };
        self.outputs.push_back(Output::Read { op, reading });
    }

    pub(super) fn lane_commit(&mut self, commit: Commit, doing: Doing) {
        let op = self.op();
        self.lane = Lane::Busy { op, seen: self.highest, doing };
        self.outputs.push_back(Output::Commit { op, commit });
    }

    pub(super) fn own(&self) -> Reading {
        Reading::Own(self.settings.holder.clone())
    }

    fn session_key(&self) -> Key {
        Key::Session(self.settings.holder.clone())
    }

    /// Puts an acquire into the queue: behind the other acquires, with at most one other job between two. What volumes
    /// of some containers leave to be written and released, which may be much, delays no launch of another; and
    /// launches delay it by no more than their own number.
    pub(super) fn queue_acquire(&mut self, acquire: Job) {
        let last = self.jobs.iter().rposition(|job| matches!(job, Job::Acquire { .. }));
        // The first one may be with etcd.
        let place = last.map_or(1, |last| last + 2).min(self.jobs.len());
        self.jobs.insert(place, acquire);
    }

    /// How many jobs are carried out before the acquire of this volume; none when it is not in the queue.
    pub(super) fn before_acquire(&self, id: &VolumeId) -> Option<usize> {
        self.jobs.iter().position(|job| matches!(job, Job::Acquire { volumes, .. } if volumes.contains(id)))
    }

    /// Reads session and leases again, when something changed under us.
    pub(super) fn start_check(&mut self, now: Now) {
        let due = self.check.is_some_and(|at| at <= now) && self.checking.is_none() && self.is_open();
        if !due {
            return;
        }
        let volumes: BTreeSet<_> = self.volumes.keys().chain(self.leases.keys()).cloned().collect();
        let keys = [self.session_key()].into_iter().chain(volumes.into_iter().map(Key::Lease)).collect();
        let op = self.op();
        self.check = None;
        self.checking = Some((op, self.highest));
        self.outputs.push_back(Output::Read { op, reading: Reading::Keys(keys) });
    }

    /// The next step of an open epoch whose lane is idle.
    pub(super) fn step(&mut self, now: Now) {
        if self.barrier {
            return self.lane_read(Reading::Keys(vec![self.session_key()]), Doing::BarrierRead);
        }
        if self.check.is_some() || self.checking.is_some() {
            return;
        }
        while self.lane == Lane::Idle
            && let Some(job) = self.jobs.front().cloned()
        {
            match job {
                Job::TakeOver if self.is_fresh(now) => self.lane_read(self.own(), Doing::JobRead),
                Job::Acquire { volumes, container, owners, .. } => {
                    let wanted = |id| self.volumes.get(id).is_some_and(|volume| !volume.users.is_empty());
                    if self.is_revoking() {
                        self.refuse_job(now, "this host's session is revoked".into());
                    } else if !volumes.iter().any(wanted) {
                        self.refuse_job(now, format!("container {container} has ended").into());
                    } else if self.is_fresh(now) {
                        let leases = volumes.into_iter().map(Key::Lease);
                        let keys = leases.chain(owners.into_iter().map(Key::Session)).collect();
                        self.lane_read(Reading::Keys(keys), Doing::JobRead);
                    } else {
                        return;
                    }
                }
                Job::TakeOver => return,
                Job::Record { op, volume } => match self.recorded_lease(&volume) {
                    // Of a mounted volume it confirms nothing, and after a restart nothing has changed.
                    Some(held) if held.stage == Stage::Attached && self.has_recorded(&volume, &held) => {
                        self.jobs.pop_front();
                        self.recorded(op);
                    }
                    Some(held) => self.write_leases(vec![(volume, Lease::Held(held))]),
                    None => return self.fence(&format!("etcd names another holder of volume {volume}")),
                },
                Job::Release { volume, .. } if self.leases.contains_key(&volume) => {
                    let last_holder = Some(self.settings.holder.clone());
                    let owed = self.owed_after_release(&volume);
                    self.write_leases(vec![(volume, Lease::Free { last_holder, owed })]);
                }
                // Freed by the write whose answer was lost.
                Job::Release { op, volume } => {
                    self.jobs.pop_front();
                    self.released(op, &volume);
                    self.gave_back(now);
                }
            }
        }
        if self.lane == Lane::Idle && self.is_wound_down() {
            self.life = Life::Dying;
            self.table_changed = true;
            self.progress_session(now);
        }
    }

    /// Whether a beat got through lately: a lease is taken only then, so that no reclaimer's wait that
    /// began before can end while it is held (L14).
    fn is_fresh(&self, now: Now) -> bool {
        let Some(mine) = &self.mine else { return false };
        self.beaten.is_some_and(|beaten| now < beaten + mine.timing().beat * 2)
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
    fn tasks(&self, containers: &BTreeSet<ContainerId>) -> BTreeMap<ContainerId, Task> {
        let task = |id: &ContainerId| Some((id.clone(), self.containers.get(id)?.task.clone()?));
        containers.iter().take(TASKS_TOLD).filter_map(task).collect()
    }

    /// Who still owes the volume when this host releases it: whoever did before, if it was not mounted here; or this
    /// host, if its driver may have attached it, and has not detached it.
    fn owed_after_release(&self, id: &VolumeId) -> Option<Owed> {
        let (held, _) = self.leases.get(id)?;
        let volume = self.volumes.get(id)?;
        let before = held.owed.clone().filter(|_| volume.mounted().is_none());
        match volume.attached {
            true => Some(Owed::and(before, &self.settings.holder, held.since.as_ref(), false)),
            false => before,
        }
    }

    /// Sends the write of leases that are this holder's.
    fn write_leases(&mut self, leases: Vec<(VolumeId, Lease)>) {
        let (Some(mine), Some(cluster)) = (&self.mine, &self.cluster) else { return };
        let mut commit = Commit::new(cluster).unchanged(self.session_key(), mine.at);
        for (id, lease) in &leases {
            let at = self.leases.get(id).map_or(Revision::ABSENT, |(_, at)| *at);
            commit = commit.put(Key::Lease(id.clone()), at, Record::Lease(lease.clone()));
            if !lease.named().contains(&self.settings.holder) {
                commit = commit.unindex(&self.settings.holder, id);
            }
        }
        self.lane_commit(commit, Doing::JobWrite(leases));
    }

    // --- answers ---------------------------------------------------------------------------------

    pub(super) fn read(&mut self, now: Now, op: Op, result: Result<View, Text>) {
        if let Some((checking, seen)) = self.checking
            && checking == op
        {
            self.checking = None;
            match result {
                Ok(view) if self.same_cluster(&view.cluster) && self.saw(view.revision, seen) => {
                    // A write of ours may have been answered since: what it freed would come back (L15).
                    match view.revision < self.highest {
                        true => self.check = Some(now),
                        false => self.checked(now, &view),
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
        let Lane::Busy { op: expected, seen, doing } = &self.lane else { return };
        if *expected != op {
            return;
        }
        let (seen, doing) = (*seen, doing.clone());
        self.lane = Lane::Idle;
        let view = match result {
            Ok(view) => {
                self.fault = None;
                view
            }
            Err(why) => {
                self.lane = Lane::Pause { until: now + self.settings.retry.0 };
                if !self.is_open() || !self.ready {
                    self.obstacle = why.clone();
                }
                self.fault = Some(why);
                return;
            }
        };
        if doing == Doing::OpenRead {
            // Nothing is held: whatever etcd says now is the truth to begin with.
            self.cluster = Some(view.cluster.clone());
            self.highest = view.revision;
            return self.opening(now, &view);
        }
        if !self.same_cluster(&view.cluster) || !self.saw(view.revision, seen) {
            return;
        }
        match doing {
            Doing::BarrierRead => {
                if self.learn(now, &view)
                    && let (Some(mine), Some(cluster)) = (&self.mine, &self.cluster)
                {
                    let instance = self.settings.instance.clone();
                    let agent = self.agent.clone().or_else(|| mine.record.agent.clone());
                    let wants = self.wants();
                    let record = self.with_word(Session { instance, agent, wants, ..mine.record.clone() });
                    let put = Record::Session(record.clone());
                    let commit = Commit::new(cluster).put(self.session_key(), mine.at, put);
                    self.allowing |= record.by_time == ByTime::Allowed;
                    self.lane_commit(commit, Doing::BarrierWrite(Box::new(record)));
                }
            }
            Doing::JobRead => match self.jobs.front().cloned() {
                Some(Job::TakeOver) => self.take_over(now, &view),
                Some(Job::Acquire { volumes, container, agent_id, owners }) => {
                    self.acquire(now, &view, &volumes, &container, agent_id.as_ref(), &owners);
                }
                _ => {}
            },
            _ => {}
        }
    }

    /// What the reading after a conflict or a barrier shows.
    fn checked(&mut self, now: Now, view: &View) {
        if !self.learn(now, view) {
            return;
        }
        let Some(epoch) = self.epoch() else { return };
        for id in self.volumes.keys().chain(self.leases.keys()).cloned().collect::<BTreeSet<_>>() {
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
                _ => {
                    self.leases.remove(&id);
                }
            }
        }
    }

    pub(super) fn committed(&mut self, now: Now, op: Op, outcome: Outcome) {
        if self.beat.as_ref().is_some_and(|beat| beat.op == op)
            && let Some(beat) = self.beat.take()
        {
            return self.beat_answered(now, &beat, outcome);
        }
        let Lane::Busy { op: expected, seen, doing } = &self.lane else { return };
        if *expected != op {
            return;
        }
        let (seen, doing) = (*seen, doing.clone());
        self.lane = Lane::Idle;
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
            (Doing::BarrierWrite(record), Outcome::Done(at)) => {
                if let Some(mine) = self.mine.as_mut().filter(|mine| mine.at < at) {
                    (mine.record, mine.at) = (*record, at);
                }
                (self.barrier, self.allowing) = (false, false);
                self.check = Some(now);
            }
            (Doing::JobWrite(written), Outcome::Done(at)) => self.job_done(now, written, at),
            (Doing::JobWrite(_), Outcome::Conflict) => self.check = Some(now),
            (Doing::JobWrite(_), Outcome::Unknown) => self.barrier = true,
            // Such as an etcd over its quota, which still answers reads: an opening begins with a read, and is in no hurry.
            (Doing::OpenWrite(_), Outcome::NotSent | Outcome::Unknown) => {
                self.obstacle = self.fault.clone().unwrap_or_else(|| "etcd takes no write".into());
                self.lane = Lane::Pause { until: now + self.settings.retry.0 * 10 };
            }
            (_, Outcome::NotSent) | (Doing::BarrierWrite(_), Outcome::Unknown) => {
                self.lane = Lane::Pause { until: now + self.settings.retry.0 };
            }
            // Opening and barrier begin with a read: they are done again from there.
            _ => {}
        }
    }

    fn job_done(&mut self, now: Now, written: Vec<(VolumeId, Lease)>, at: Revision) {
        for (id, lease) in written {
            match lease {
                Lease::Held(held) => {
                    let token = Some(held.token.unwrap_or(Token(at)));
                    self.leases.insert(id, (Held { token, ..held }, at));
                }
                Lease::Free { .. } => {
                    self.leases.remove(&id);
                }
            }
        }
        match self.jobs.front().cloned() {
            // There may be more of them than one transaction takes: read again.
            Some(Job::TakeOver) | None => {}
            Some(Job::Acquire { volumes, .. }) => {
                self.jobs.pop_front();
                self.acquired(now, &volumes);
            }
            Some(Job::Record { op, .. }) => {
                self.jobs.pop_front();
                self.recorded(op);
            }
            Some(Job::Release { op, volume }) => {
                self.jobs.pop_front();
                self.released(op, &volume);
                self.gave_back(now);
            }
        }
    }

    /// Takes over what earlier epochs of this holder held, as many as fit; or takes in what is ours.
    fn take_over(&mut self, now: Now, view: &View) {
        let Some(mine) = &self.mine else { return };
        let (epoch, unsettled_through) = (mine.epoch(), mine.record.unsettled_through);
        let mut found = BTreeMap::new();
        let mut older = Vec::new();
        self.leases.clear();
        for (id, held, at) in view.held().filter(|(_, held, _)| held.holder == self.settings.holder) {
            let token = held.token.unwrap_or(Token(at));
            self.leases.insert(id.clone(), (Held { token: Some(token), ..held.clone() }, at));
            if held.epoch == epoch {
                let calling = held.stage != Stage::Attached;
                found.insert(id.clone(), FoundLease { token, unsettled: held.unsettled, calling });
            } else if older.len() < VOLUMES_MAX {
                // The stage stays: it tells whether a driver call of before may be under way.
                let unsettled = held.unsettled || held.epoch <= unsettled_through;
                let calls = unsettled && (held.calls || held.stage != Stage::Attached);
                let (containers, tasks) = (BTreeSet::new(), BTreeMap::new());
                // A revoke was of the epoch that is over: this one gives back all that it finds.
                let (token, revoked) = (None, None);
                let held =
                    Held { epoch, token, containers, tasks, unsettled, calls, revoked, ..held.clone() };
                older.push((id.clone(), Lease::Held(held)));
            }
        }
        // What this host lost and still has attached is given back, too, while nobody else is at it: its driver is the
        // one that can.
        for (id, owed, at) in view.owed_by(&self.settings.holder) {
            if older.len() < VOLUMES_MAX && !self.is_revoking() {
                // No driver call has been made under it: it says what older leases say that are taken over.
                let held = Held {
                    stage: Stage::Attached,
                    holder: self.settings.holder.clone(),
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
                self.leases.insert(id.clone(), (held.clone(), at));
                older.push((id.clone(), Lease::Held(held)));
            }
        }
        if !older.is_empty() {
            if self.is_fresh(now) {
                self.write_leases(older);
            }
            return;
        }
        if let Some(commit) = self.without_stale_index(view) {
            return self.lane_commit(commit, Doing::JobWrite(Vec::new()));
        }
        self.jobs.pop_front();
        self.take_in(now, found);
    }

    /// Takes out of the index what is no more this holder's, as many as fit: others took it, or it was freed by hand. Whoever
    /// does that leaves the index of another alone.
    fn without_stale_index(&self, view: &View) -> Option<Commit> {
        let (mine, cluster, me) = (self.mine.as_ref()?, self.cluster.as_ref()?, &self.settings.holder);
        let is_stale = |id: &&VolumeId| view.lease(id).is_none_or(|(lease, _)| !lease.named().contains(me));
        let mut stale = view.index_of(me).filter(is_stale).take(VOLUMES_MAX).peekable();
        stale.peek()?;
        let commit = Commit::new(cluster).unchanged(self.session_key(), mine.at);
        Some(stale.fold(commit, |commit, id| commit.unindex(me, id)))
    }

    fn acquire(
        &mut self,
        now: Now,
        view: &View,
        volumes: &[VolumeId],
        container: &ContainerId,
        agent_id: Option<&Text>,
        owners: &BTreeSet<Holder>,
    ) {
        let Some(mine) = &self.mine else { return };
        let (epoch, mut more, mut taken) = (mine.epoch(), BTreeSet::new(), Vec::new());
        let (mut wants, mut keys, mut held_by) = (BTreeSet::new(), BTreeSet::new(), None);
        for id in volumes {
            let lease = view.lease(id);
            let (from, unsettled, calls, owed) =
                match self.claim(id, lease.map(|(lease, _)| lease), epoch, view, owners) {
                    Claim::Ask(owner) => {
                        more.insert(owner);
                        continue;
                    }
                    Claim::Refused(why) => return self.refuse_job(now, why),
                    Claim::Held { owner, why } => {
                        wants.insert(id.clone());
                        keys.extend([Key::Lease(id.clone()), Key::Session(owner)]);
                        held_by.get_or_insert(why);
                        continue;
                    }
                    Claim::Take { from, unsettled, calls, owed } => (from, unsettled, calls, owed),
                };
            let held = Held {
                stage: Stage::Attaching,
                holder: self.settings.holder.clone(),
                epoch,
                token: None,
                agent_id: agent_id.cloned(),
                containers: BTreeSet::from([container.clone()]),
                tasks: self.tasks(&BTreeSet::from([container.clone()])),
                mount_point: None,
                unsettled,
                calls,
                owed,
                revoked: None,
                since: None,
            };
            taken.push((id.clone(), lease.map_or(Revision::ABSENT, |(_, at)| at), held, from));
        }
        if !more.is_empty() {
            // Read all of it again, with the owners' sessions.
            if let Some(Job::Acquire { owners, .. }) = self.jobs.front_mut() {
                owners.extend(more);
            }
            return;
        }
        if let Some(why) = held_by {
            let again = now + mine.timing().ttl / 2;
            let others = Others { keys, read: view.revision, why: why.clone(), again };
            return match self.wait_for_others(now, container, wants, others) {
                true => self.drop_job(now),
                false => self.refuse_job(now, why),
            };
        }
        let mut commit = match (&self.cluster, mine.record.state) {
            (Some(cluster), SessionState::Live) => {
                Commit::new(cluster).unchanged(self.session_key(), mine.at)
            }
            _ => return,
        };
        let mut written = Vec::new();
        for (id, at, held, from) in taken {
            commit = commit.put(Key::Lease(id.clone()), at, Record::Lease(Lease::Held(held.clone())));
            commit = commit.index(&self.settings.holder, &id);
            if let Some((owner, at)) = from {
                commit = commit.unchanged(Key::Session(owner), at);
            }
            written.push((id, Lease::Held(held)));
        }
        self.lane_commit(commit, Doing::JobWrite(written));
    }

    /// For [`crate::protocol::renumber`]: no one else sees into the lane.
    pub(in crate::protocol) fn renumber_lane(&mut self, r: &mut impl Renumber) {
        match &mut self.lane {
            Lane::Idle => {}
            Lane::Pause { until } => r.due(until),
            Lane::Busy { op, seen, doing } => {
                r.op(op);
                r.seen(seen);
                if let Doing::JobWrite(written) = doing {
                    for (_, lease) in written {
                        let mut record = Record::Lease(lease.clone());
                        crate::protocol::renumber::record(&mut record, r);
                        if let Record::Lease(renumbered) = record {
                            *lease = renumbered;
                        }
                    }
                }
            }
        }
        for job in &mut self.jobs {
            if let Job::Record { op, .. } | Job::Release { op, .. } = job {
                r.op(op);
            }
        }
    }

    /// Ends the acquire at the head of the queue without leases, and its container. Others that wait for the same
    /// volumes ask for themselves: the refusal may be of another one.
    fn refuse_job(&mut self, now: Now, why: Text) {
        let Some(Job::Acquire { container, .. }) = self.jobs.front().cloned() else { return };
        self.drop_job(now);
        self.end(&container, &why);
    }

    /// Gives up the acquire at the head of the queue.
    fn drop_job(&mut self, now: Now) {
        let Some(Job::Acquire { volumes, .. }) = self.jobs.pop_front() else { return };
        // One whose answer was lost may have been granted, as the barrier's reading has shown: then the leases
        // are ours, and have to be given back like any other without users.
        let (ours, others): (Vec<_>, Vec<_>) =
            volumes.into_iter().partition(|id| self.leases.contains_key(id));
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
}
