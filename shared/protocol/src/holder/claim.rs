//! Whether a lease may be taken: a pure decision over records as they were read.

use std::collections::BTreeSet;

use super::Core;
use super::wait::Others;
use super::write_queue::Acquire;
use crate::exchange::{ClusterId, Held, Key, Lease, Owed, Proof, SessionState, Stage, View};
use crate::ids::Revision;
use crate::ids::{Epoch, Task};
use crate::volume::{ContainerId, Holder, VolumeId};
use crate::{Now, Text};

/// A lease as a transaction writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(super) volume: VolumeId,
    /// The revision that it compares.
    pub(super) at: Revision,
    /// The record; none is left of it otherwise.
    pub(super) lease: Option<Lease>,
    /// The session that it compares of another holder, whose lease it takes.
    pub(super) from: Option<(Holder, Revision)>,
}

/// What becomes of an acquire.
pub(super) enum Decision {
    /// All may be taken.
    Take(Vec<Write>),
    /// These sessions decide, and were not read.
    Ask(BTreeSet<Holder>),
    /// Other hosts have these.
    Wait {
        /// Them.
        wants: BTreeSet<VolumeId>,
        /// What frees them.
        others: Others,
    },
    /// It may not be, and waiting does not help; the sentence is for the task.
    Refuse(Text),
}

/// What a lease means for one who wants it.
enum Claim {
    /// Its owner's session decides, and was not read.
    Ask(Holder),
    /// It may be taken.
    Take {
        /// The owner's session that the taking compares, when it is another holder's.
        from: Option<(Holder, Revision)>,
        /// Whether the owner's driver calls or I/O may still land.
        unsettled: bool,
        /// Whether those include driver calls.
        calls: bool,
        /// Who has not given it back.
        owed: Option<Owed>,
    },
    /// Another host has it; the sentence is for the task.
    Held {
        /// Who.
        owner: Holder,
        /// Since when, for whom, and what frees it.
        why: Text,
    },
    /// It may not, and waiting does not help; the sentence is for the task.
    Refused(Text),
}

impl Core {
    /// Whether the leases of a container may be taken, as far as it is known what stands in etcd.
    pub(super) fn decide(&self, now: Now, acquire: &Acquire) -> Decision {
        let Some(mine) = &self.mine else { return Decision::Refuse("this host has no session".into()) };
        if self.is_revoking() {
            return Decision::Refuse("this host's session is revoked".into());
        }
        let wanted = |id| self.volumes.get(id).is_some_and(|volume| !volume.users.is_empty());
        if !acquire.volumes.iter().any(wanted) {
            return Decision::Refuse(format!("container {} has ended", acquire.container).into());
        }
        if acquire.seen.is_none() && !acquire.owners.is_empty() {
            return Decision::Ask(BTreeSet::new());
        }
        // Nobody has what was not read: whoever has it is found by the transaction's compares.
        let nothing = View::new(ClusterId("".into()), Revision::ABSENT);
        let view = acquire.seen.as_deref().unwrap_or(&nothing);
        let (mut taken, mut ask) = (Vec::new(), BTreeSet::new());
        let (mut wants, mut keys, mut held_by) = (BTreeSet::new(), BTreeSet::new(), None);
        for id in &acquire.volumes {
            match self.claim(id, mine.epoch(), view, &acquire.owners) {
                Claim::Ask(owner) => _ = ask.insert(owner),
                Claim::Refused(why) => return Decision::Refuse(why),
                Claim::Held { owner, why } => {
                    wants.insert(id.clone());
                    keys.extend([Key::Lease(id.clone()), Key::Session(owner)]);
                    held_by.get_or_insert(why);
                }
                Claim::Take { from, unsettled, calls, owed } => {
                    let lease =
                        Some(Lease::Held(self.granted(acquire, mine.epoch(), unsettled, calls, owed)));
                    taken.push(Write {
                        volume: id.clone(),
                        at: view.at(&Key::Lease(id.clone())),
                        lease,
                        from,
                    });
                }
            }
        }
        match held_by {
            _ if !ask.is_empty() => Decision::Ask(ask),
            Some(why) => {
                let again = now + mine.timing().ttl / 2;
                Decision::Wait { wants, others: Others { keys, read: view.revision, why, again } }
            }
            None => Decision::Take(taken),
        }
    }

    fn granted(
        &self,
        acquire: &Acquire,
        epoch: Epoch,
        unsettled: bool,
        calls: bool,
        owed: Option<Owed>,
    ) -> Held {
        let containers = BTreeSet::from([acquire.container.clone()]);
        Held {
            stage: Stage::Attaching,
            holder: self.settings.holder.clone(),
            epoch,
            token: None,
            agent_id: acquire.agent_id.clone(),
            tasks: self.tasks(&containers),
            containers,
            mount_point: None,
            unsettled,
            calls,
            owed,
            revoked: None,
            since: None,
        }
    }

    fn claim(&self, id: &VolumeId, epoch: Epoch, view: &View, asked: &BTreeSet<Holder>) -> Claim {
        if let Some(why) = view.unreadable.get(&Key::Lease(id.clone())) {
            return Claim::Refused(format!("the lease of volume {id} in etcd cannot be read: {why}").into());
        }
        let held = match view.lease(id).map(|(lease, _)| lease) {
            Some(Lease::Held(held)) => held,
            // Who had it in between has waited for calls and I/O; the volume may be attached where it was.
            Some(Lease::Free { owed: Some(owed), .. }) => {
                if owed.by_time && self.settings.fencing_required && !self.can_take_away(id) {
                    return Claim::Refused(needs_a_person(id, owed));
                }
                let unsettled = self.can_take_away(id);
                return Claim::Take { from: None, unsettled, calls: false, owed: Some(owed.clone()) };
            }
            Some(Lease::Free { owed: None, .. }) | None => {
                return Claim::Take { from: None, unsettled: false, calls: false, owed: None };
            }
        };
        if held.holder == self.settings.holder {
            // An acquire whose answer was lost, and which the barrier has closed. Earlier epochs' leases
            // were taken over when this one was opened.
            return match held.epoch == epoch {
                true => {
                    let (unsettled, calls, owed) = (held.unsettled, held.calls, held.owed.clone());
                    Claim::Take { from: None, unsettled, calls, owed }
                }
                false => held_elsewhere(id, held, "another session of this host"),
            };
        }
        if !asked.contains(&held.holder) {
            return Claim::Ask(held.holder.clone());
        }
        if let Some(why) = view.unreadable.get(&Key::Session(held.holder.clone())) {
            return held_elsewhere(id, held, &format!("its session in etcd cannot be read: {why}"));
        }
        // A missing session proves nothing: the reclaimer writes a tombstone in time.
        let Some((owner, at)) = view.session(&held.holder) else {
            return held_elsewhere(id, held, "its session is missing");
        };
        let by_time = match owner.state {
            // It was made safe, lives, and gives the volume back through its driver: what the storage has attached
            // there nobody else could mount.
            SessionState::Live | SessionState::Revoking
                if owner.epoch > held.epoch
                    && held.epoch > owner.unsettled_through
                    && !self.can_take_away(id) =>
            {
                return given_back(id, held);
            }
            _ if owner.epoch > held.epoch => held.epoch <= owner.unsettled_through,
            _ if owner.epoch < held.epoch => {
                return held_elsewhere(id, held, "its session is older than the lease");
            }
            SessionState::Dead(proof) => proof == Proof::Time,
            SessionState::Live => return held_elsewhere(id, held, "live"),
            SessionState::Revoking => return held_elsewhere(id, held, "being revoked"),
        };
        let owed = Owed::and(held.owed.clone(), &held.holder, held.since.as_ref(), by_time);
        if owed.by_time && self.settings.fencing_required && !self.can_take_away(id) {
            return Claim::Refused(needs_a_person(id, &owed));
        }
        // While it is attached no call is under way.
        let calls = held.calls || held.stage != Stage::Attached;
        // Its holder is dead and has not released it: a fence unmounts, and leaves the volume attached there.
        let unsettled = by_time || held.unsettled || calls || self.can_take_away(id);
        Claim::Take { from: Some((held.holder.clone(), at)), unsettled, calls, owed: Some(owed) }
    }
}

/// The sentence for a task whose volume a dead host may still have, where only the storage may take it away.
fn needs_a_person(volume: &VolumeId, owed: &Owed) -> Text {
    let first = owed.from.first().map(|first| format!(" --detached {first}")).unwrap_or_default();
    let each = if owed.from.len() > 1 { ", once for each of them" } else { "" };
    format!(
        "volume {volume} was held by {}, which was declared dead by time alone; its storage cannot take it away from \
         there, and fencing is required: detach it from that host by hand, then run \
         `extvol free {volume}{first}`{each}",
        owed.hosts()
    )
    .into()
}

/// Its host was fenced, and will release it.
fn given_back(volume: &VolumeId, held: &Held) -> Claim {
    let why = format!(
        "volume {volume} was held by {}, which was fenced, lives, and is about to give it back through its driver",
        held.holder
    );
    Claim::Held { owner: held.holder.clone(), why: why.into() }
}

/// So many containers are named in a sentence.
const NAMED: usize = 5;

/// The sentence for a task whose volume is held elsewhere: who, since when, what frees it.
fn held_elsewhere(volume: &VolumeId, held: &Held, how: &str) -> Claim {
    let named = |id: &ContainerId| match held.tasks.get(id).and_then(Task::in_words) {
        Some(task) => format!("{id}, which is {task}"),
        None => id.to_string(),
    };
    let mut containers = held.containers.iter().take(NAMED).map(named).collect::<Vec<_>>().join(", ");
    if let Some(more) = held.containers.len().checked_sub(NAMED).filter(|more| *more > 0) {
        containers = format!("{containers} and {more} more");
    }
    let (users, frees) = match held.containers.len() {
        0 => ("no container".to_owned(), "when that host has unmounted it"),
        1 => (format!("container {containers}"), "when that container ends"),
        _ => (format!("containers {containers}"), "when those containers end"),
    };
    let since = held.since.as_deref().unwrap_or("just now");
    let agent = held.agent_id.as_deref().map(|id| format!(", agent {id}")).unwrap_or_default();
    let why = format!(
        "volume {volume} is held by {} ({how}, since {since}{agent}, {users}); it is free {frees}, or after \
         `extvol revoke {volume}`",
        held.holder
    );
    Claim::Held { owner: held.holder.clone(), why: why.into() }
}
