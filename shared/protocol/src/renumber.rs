//! Lets a model checker give the numbers in a core their smallest equivalent: times relative to now,
//! revisions and operations by rank. The cores compare such numbers, and do nothing else with them, so that
//! two states that differ in them alone behave the same; without this the states would never end.

use super::deadman::{Deadman, Fencing};
use super::exchange::{Commit, Held, Lease, Outcome, Record, View};
use super::holder::{Container, Deadline, Life, Phase, Row, Safety, Table};
use super::reclaimer::Guard;
use super::{Now, Op, holder, reclaimer};
use crate::ids::Revision;

/// What is done with each number.
pub trait Renumber {
    /// A moment that something is counted from.
    fn since(&mut self, at: &mut Now);
    /// A moment at which something is due: all that have passed are alike.
    fn due(&mut self, at: &mut Now);
    /// A revision of etcd.
    fn revision(&mut self, revision: &mut Revision);
    /// The highest revision that somebody has seen: of account only where etcd can be restored from a backup.
    fn seen(&mut self, revision: &mut Revision);
    /// When a deadman's worker last ticked.
    fn ticked(&mut self, at: &mut Now) {
        self.since(at);
    }
    /// Whether so many holders are modelled that there can be a storm.
    fn storms(&self) -> bool {
        true
    }
    /// The number of an effect.
    fn op(&mut self, op: &mut Op);
}

fn held(held: &mut Held, r: &mut impl Renumber) {
    if let Some(token) = &mut held.token {
        r.revision(&mut token.0);
    }
}

/// Visits a record.
pub fn record(record: &mut Record, r: &mut impl Renumber) {
    if let Record::Lease(Lease::Held(lease)) = record {
        held(lease, r);
    }
}

/// Visits a commit.
pub fn commit(commit: &mut Commit, r: &mut impl Renumber) {
    commit.compares.iter_mut().for_each(|(_, at)| r.revision(at));
    commit.puts.iter_mut().for_each(|(_, put)| record(put, r));
}

/// Visits what became of a commit.
pub fn outcome(outcome: &mut Outcome, r: &mut impl Renumber) {
    match outcome {
        Outcome::Done(at) => r.revision(at),
        Outcome::Conflict(read) => read.iter_mut().for_each(|read| view(read, r)),
        Outcome::Unknown | Outcome::NotSent => {}
    }
}

/// Visits what was read.
pub fn view(view: &mut View, r: &mut impl Renumber) {
    r.revision(&mut view.revision);
    for (entry, at) in view.entries.values_mut() {
        record(entry, r);
        r.revision(at);
    }
}

fn phase(phase: &mut Phase, r: &mut impl Renumber) {
    match phase {
        Phase::Acquiring => {}
        Phase::Settling { token }
        | Phase::Mounting { token }
        | Phase::Attached { token, .. }
        | Phase::Detaching { token, .. } => r.revision(&mut token.0),
    }
}

fn container(container: &mut Container, r: &mut impl Renumber) {
    container.ending.iter_mut().for_each(|at| r.since(at));
}

/// Visits a stored table.
pub fn table(table: &mut Table, r: &mut impl Renumber) {
    table.containers.values_mut().for_each(|it| container(it, r));
    table.volumes.iter_mut().for_each(|Row { phase: it, .. }| phase(it, r));
}

/// Visits the shared deadline.
pub fn deadline(deadline: &mut Deadline, r: &mut impl Renumber) {
    deadline.fence_at.iter_mut().for_each(|at| r.since(at));
}

/// Visits a deadman and the shared deadline: of its generation it counts alone whether it is the same.
pub fn deadman(deadman: &mut Deadman, shared: &mut Deadline, r: &mut impl Renumber) {
    r.ticked(&mut deadman.ticked);
    match &mut deadman.fencing {
        // What the deadman itself would do first.
        Fencing::Done(generation) if *generation != shared.generation => deadman.fencing = Fencing::No,
        Fencing::Due(generation) | Fencing::Begun(generation) | Fencing::Done(generation) => {
            *generation = if *generation == shared.generation { 0 } else { u64::MAX };
        }
        Fencing::No => {}
    }
    shared.generation = 0;
}

/// Visits a holder's core.
pub fn holder(core: &mut holder::Core, r: &mut impl Renumber) {
    match &mut core.life {
        Life::Closed { silence, safety } => {
            if let Some(silence) = silence {
                r.revision(&mut silence.session);
                r.revision(&mut silence.beat);
                r.since(&mut silence.since);
            }
            if let Safety::Making(op) = safety {
                r.op(op);
            }
        }
        Life::Fencing { op } => op.iter_mut().for_each(|op| r.op(op)),
        Life::Open | Life::Dying | Life::Refused => {}
    }
    if let Some(mine) = &mut core.mine {
        r.revision(&mut mine.at);
        mine.revoking.iter_mut().for_each(|at| r.since(at));
    }
    r.seen(&mut core.highest);
    r.revision(&mut core.beat_at);
    // Texts are for people.
    core.obstacle = "".into();
    core.fault = None;
    core.beaten.iter_mut().chain(&mut core.extended).for_each(|at| r.since(at));
    if let Some(beat) = &mut core.beat {
        r.op(&mut beat.op);
        r.since(&mut beat.sent);
        r.revision(&mut beat.against);
        r.seen(&mut beat.seen);
    }
    r.due(&mut core.next_beat);
    core.check.iter_mut().for_each(|at| r.due(at));
    if let Some((op, seen)) = &mut core.checking {
        r.op(op);
        r.seen(seen);
    }
    core.renumber_queue(r);
    for (lease, at) in core.leases.values_mut() {
        held(lease, r);
        r.revision(at);
    }
    core.containers.values_mut().for_each(|it| container(it, r));
    for volume in core.volumes.values_mut() {
        phase(&mut volume.phase, r);
        volume.trouble = None;
        volume.revoked.iter_mut().for_each(|at| r.since(at));
        volume.settled_at.iter_mut().for_each(|at| r.due(at));
        volume.awaits.iter_mut().for_each(|op| r.op(op));
        volume.retry_at.iter_mut().for_each(|at| r.due(at));
    }
    for waiting in core.waiting.values_mut() {
        r.due(&mut waiting.deadline);
        r.due(&mut waiting.patience);
        if let Some(others) = &mut waiting.others {
            r.revision(&mut others.read);
            r.due(&mut others.again);
        }
    }
    core.unisolated.values_mut().for_each(|at| r.due(at));
    let mut last = Op(core.next_op);
    r.op(&mut last);
    core.next_op = last.0;
}

/// Visits a reclaimer's core.
pub fn reclaimer(core: &mut reclaimer::Core, r: &mut impl Renumber) {
    r.seen(&mut core.highest);
    core.reading.iter_mut().for_each(|op| r.op(op));
    r.due(&mut core.next_read);
    for watch in core.watches.values_mut() {
        r.revision(&mut watch.session);
        r.revision(&mut watch.beat);
        r.since(&mut watch.since);
        watch.given_up.iter_mut().chain(&mut watch.absent).for_each(|at| r.since(at));
    }
    core.asking = std::mem::take(&mut core.asking)
        .into_iter()
        .map(|(mut op, holder)| {
            r.op(&mut op);
            (op, holder)
        })
        .collect();
    core.writing = std::mem::take(&mut core.writing)
        .into_iter()
        .map(|(mut op, key)| {
            r.op(&mut op);
            (op, key)
        })
        .collect();
    if !r.storms() {
        core.guard = Guard::default();
    }
    if let Some((at, seen)) = &mut core.guard.raised {
        r.revision(at);
        r.since(seen);
    }
    if let Some((since, last)) = &mut core.guard.good {
        r.since(since);
        r.since(last);
    }
    let mut last = Op(core.next_op);
    r.op(&mut last);
    core.next_op = last.0;
}
