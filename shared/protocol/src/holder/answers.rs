//! What follows from etcd's answers to the write queue.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::claim::Write;
use super::session::Life;
use super::write_queue::{Acquire, Batch, Doing, InFlight, Job, Purpose};
use super::{Core, Output, Volume};
use crate::exchange::{Held, Key, Lease, Outcome, Reading, View};
use crate::ids::{Revision, Token};
use crate::volume::VolumeId;
use crate::{Now, Op, Text};

impl Core {
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
    pub(super) fn drop_acquire(&mut self, now: Now, acquire: &Acquire) {
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
}
