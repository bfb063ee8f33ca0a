//! Prepares that wait for a lease which another host has: until it is free, or their patience ends.
//!
//! Nothing is held or asked for meanwhile, so that this host needs no beats for it. The session names the
//! volumes that are waited for: a lease whose agent is gone is revoked only when somebody wants it.

use std::collections::{BTreeMap, BTreeSet};

use super::Core;
use crate::exchange::Key;
use crate::ids::Revision;
use crate::volume::{ContainerId, Holder, VolumeId};
use crate::{Now, Request, Text};

/// A prepare that is not yet answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    /// When it is refused, whatever is missing.
    pub(crate) deadline: Now,
    /// When it is refused if another host still has a lease.
    pub(crate) patience: Now,
    /// What it waits for, unless it is this host's own turn.
    pub(crate) others: Option<Others>,
    /// The volumes that others had when it last asked.
    pub(crate) wants: BTreeSet<VolumeId>,
    /// Who had them.
    pub(crate) owners: BTreeSet<Holder>,
}

/// Leases of others that stand in the way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Others {
    /// What may free them.
    pub(crate) keys: BTreeSet<Key>,
    /// At which revision that was read.
    pub(crate) read: Revision,
    /// Who has one, since when, and what frees it.
    pub(crate) why: Text,
    /// When it is asked for again though nothing was heard: a silent watch proves nothing.
    pub(crate) again: Now,
}

impl Core {
    /// The keys that prepares wait for, and this holder's own session, which others revoke; with the revision at
    /// which each was last read. The shell watches them from there, and tells of each change by
    /// [`super::Input::Changed`]. One that it does not tell of is noticed later: at the next beat, or by asking again.
    #[must_use]
    pub fn watching(&self) -> BTreeMap<Key, Revision> {
        let own = self.mine.as_ref().filter(|mine| self.is_open() && mine.at != Revision::ABSENT);
        let own = own.map(|mine| (Key::Session(self.settings.holder.clone()), mine.at));
        let mut keys: BTreeMap<_, _> = own.into_iter().collect();
        for others in self.waiting.values().filter_map(|waiting| waiting.others.as_ref()) {
            for key in &others.keys {
                let read = keys.entry(key.clone()).or_insert(others.read);
                *read = others.read.min(*read);
            }
        }
        keys
    }

    /// Lets a prepare wait until something of `keys` changes; answers whether it still may.
    pub(super) fn wait_for_others(
        &mut self,
        now: Now,
        container: &ContainerId,
        wants: BTreeSet<VolumeId>,
        others: Others,
    ) -> bool {
        let Some(waiting) = self.waiting.get_mut(container).filter(|waiting| now < waiting.patience) else {
            return false;
        };
        waiting.wants = wants;
        let owner = |key: &Key| if let Key::Session(owner) = key { Some(owner.clone()) } else { None };
        waiting.owners = others.keys.iter().filter_map(owner).collect();
        waiting.others = Some(others);
        true
    }

    /// Something changed that prepares may wait for, or that may be a revoke.
    pub(super) fn changed(&mut self, now: Now, key: &Key) {
        let own = matches!(key, Key::Session(holder) if *holder == self.settings.holder);
        // A reading under way may have been made before.
        // One that is being rewritten is compared with what it was, by that transaction or its repetition.
        if own && self.is_open() && self.check.is_none() && !self.rewrites_session() {
            self.check = Some(now);
        }
        for waiting in self.waiting.values_mut() {
            if waiting.others.as_ref().is_some_and(|others| others.keys.contains(key)) {
                waiting.others = None;
            }
        }
    }

    /// Ends the patience of prepares, and asks again for those of which nothing was heard.
    pub(super) fn stop_waiting(&mut self, now: Now) {
        let mut refused = Vec::new();
        for (id, waiting) in &mut self.waiting {
            match &waiting.others {
                Some(others) if waiting.patience <= now => refused.push((id.clone(), others.why.clone())),
                Some(others) if others.again <= now => waiting.others = None,
                _ => {}
            }
        }
        for (id, why) in refused {
            let seconds = self.settings.wait_timeout.as_secs_f64();
            self.end(&id, &format!("{why}; it was waited for {seconds} s"));
        }
    }

    /// What others have, and is waited for here.
    pub(super) fn wants(&self) -> BTreeSet<VolumeId> {
        self.waiting.values().flat_map(|waiting| waiting.wants.iter().cloned()).collect()
    }

    /// When something is due for prepares.
    pub(super) fn next_wait(&self) -> Option<Now> {
        let of = |waiting: &Waiting| {
            let others = waiting.others.as_ref().map(|others| others.again.min(waiting.patience));
            others.map_or(waiting.deadline, |at| at.min(waiting.deadline))
        };
        self.waiting.values().map(of).min()
    }
}
