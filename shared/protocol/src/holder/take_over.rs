//! What a session finds that is its holder's: leases of earlier epochs, which it takes over, and its own.

use std::collections::{BTreeMap, BTreeSet};

use super::claim::Write;
use super::write_queue::{Batch, Doing, Purpose};
use super::{Core, FoundLease};
use crate::exchange::{Held, Key, Lease, Stage, View};
use crate::ids::{Revision, Token};
use crate::volume::VolumeId;
use crate::{Now, VOLUMES_MAX};

/// What a session finds that is its holder's, and has not yet dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Found {
    /// Leases of earlier epochs, as this one takes them over.
    pub(super) older: Vec<Write>,
    /// Volumes in the index that are no more this holder's: others took them, or they were freed by hand. With the revisions of
    /// their leases, for a second copy of what takes them out must not do so once they are this holder's again.
    pub(super) stale: Vec<(VolumeId, Revision)>,
}

impl Core {
    /// Takes over what earlier epochs of this holder held, in as many transactions as it takes, and then takes in what is ours.
    pub(super) fn take_over(&mut self, now: Now) {
        let Some(found) = &self.found else { return self.send_read(self.own(), Doing::OwnRead) };
        if !found.older.is_empty() {
            if self.may_take() {
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
    pub(super) fn end_of_take_over(&mut self, now: Now) {
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

    /// What this holder has, of this epoch and of earlier ones.
    pub(super) fn find(&mut self, view: &View) {
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
}
