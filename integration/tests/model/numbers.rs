//! Gives the numbers in a state their smallest equivalent, so that states which differ in them alone are one.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use protocol::fence::Act;
use protocol::ids::Revision;
use protocol::renumber::{self, Renumber};
use protocol::{Now, Op, reclaimer};

use integration::simulation::host::{Effect, Runner};

use super::fingerprint::Fingerprint;
use super::state::{NOW, OLDEST, Stage, State, TICK, Who};

impl State {
    /// Gives all numbers their smallest equivalent.
    pub(super) fn settle(&mut self, passed: &[u32]) {
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
            let mut hasher = Fingerprint::default();
            sent.hash(&mut hasher);
            hasher.finish()
        });
    }

    /// Two reclaimers do the same: which of them is which makes no difference.
    fn order_reclaimers(&mut self) {
        let [first, second] = &self.reclaimers[..] else { return };
        let key = |number: usize, core: &reclaimer::Core| {
            let mut hasher = Fingerprint::default();
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
                Stage::Done(outcome) => renumber::outcome(outcome, r),
                Stage::Read(_) => {}
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
                r.since(until);
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
