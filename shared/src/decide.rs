//! Who may open a session, and who may take a lease: pure decisions over records as they were read.

use crate::record::{Epoch, HeldLease, LeaseRecord, SessionRecord, SessionState};
use crate::volume::{Holder, VolumeId};

/// The host that runs this keeper, as its kernel and its disk tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// An id that no other machine has.
    pub id: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// How a starting keeper goes on from the session that it finds under its holder name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Same machine, same boot: the same epoch goes on, behind a barrier.
    Resume(Epoch),
    /// A new epoch; what earlier epochs held is taken over under it.
    Open(Epoch),
    /// The name belongs to somebody else, or that cannot be ruled out.
    Refused(Refusal),
}

/// Why a session is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another machine has a live session under this name.
    #[error(
        "the holder name {holder} belongs to a live session of another machine (machine id {machine_id}, \
         agent {agent}, since {since}); give this host a name of its own with the parameter `holder`"
    )]
    AnotherMachine {
        /// The name.
        holder: Holder,
        /// The machine that has it.
        machine_id: String,
        /// The agent there, if the session says.
        agent: String,
        /// Since when.
        since: String,
    },
    /// Leases are held under this name, yet its session is missing: nothing tells whose they are.
    #[error(
        "{count} leases are held by {holder} but its session record is missing from etcd, so that nothing \
         tells which machine holds them; restore etcd, or free those leases by hand once no host mounts them"
    )]
    SessionMissing {
        /// The name.
        holder: Holder,
        /// How many leases.
        count: usize,
    },
}

/// Decides how a keeper opens its session. `held` are the epochs of all leases under its name.
///
/// A boot id proves the death of an older life only on the same machine: believed across machines,
/// two hosts of one name would both write.
#[must_use]
pub fn opening(
    holder: &Holder,
    machine: &Machine,
    session: Option<&SessionRecord>,
    held: &[Epoch],
) -> Opening {
    let next = |epoch: Epoch| {
        let highest = held.iter().copied().max().unwrap_or(Epoch(0)).max(epoch);
        Opening::Open(Epoch(highest.0 + 1))
    };
    match session {
        None if held.is_empty() => next(Epoch(0)),
        None => Opening::Refused(Refusal::SessionMissing { holder: holder.clone(), count: held.len() }),
        Some(session) if session.state == SessionState::Dead => next(session.epoch),
        Some(session) if session.machine_id != machine.id => Opening::Refused(Refusal::AnotherMachine {
            holder: holder.clone(),
            machine_id: session.machine_id.clone(),
            agent: session.agent_id.clone().unwrap_or_else(|| "unknown".into()),
            since: session.since.clone(),
        }),
        Some(session) if session.boot_id == machine.boot_id => Opening::Resume(session.epoch),
        Some(session) => next(session.epoch),
    }
}

/// What a lease, as it was read, means for one who wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim<'a> {
    /// Nobody holds it.
    Free,
    /// This session holds it.
    Mine(&'a HeldLease),
    /// An earlier epoch of this very holder held it; its effects on this host were made safe before
    /// the present epoch was opened.
    MineBefore(&'a HeldLease),
    /// Another holder's, whose session is dead or of a later epoch: it may be taken, comparing that
    /// session.
    LeftBehind(&'a HeldLease),
    /// Another holder's.
    Held(&'a HeldLease),
}

/// Reads a lease. `owner_session` is the present session of the lease's holder, read at the same
/// revision; a missing one proves nothing.
#[must_use]
pub fn claim<'a>(
    lease: Option<&'a LeaseRecord>,
    me: &Holder,
    epoch: Epoch,
    owner_session: Option<&SessionRecord>,
) -> Claim<'a> {
    let Some(held) = lease.and_then(LeaseRecord::held) else { return Claim::Free };
    if held.holder == *me {
        return if held.epoch == epoch { Claim::Mine(held) } else { Claim::MineBefore(held) };
    }
    match owner_session {
        Some(session) if session.state == SessionState::Dead => Claim::LeftBehind(held),
        // That host takes it over itself in a moment; only what had no driver call under way is free to others.
        Some(session) if session.epoch > held.epoch && matches!(lease, Some(LeaseRecord::Attached(_))) => {
            Claim::LeftBehind(held)
        }
        _ => Claim::Held(held),
    }
}

/// The sentence for a task whose volume is held elsewhere: who, since when, what frees it.
#[must_use]
pub fn held_elsewhere(volume: &VolumeId, held: &HeldLease) -> String {
    let containers = held.containers.iter().map(|c| c.as_str()).collect::<Vec<_>>().join(", ");
    let users = match held.containers.len() {
        0 => "no container".to_owned(),
        1 => format!("container {containers}"),
        _ => format!("containers {containers}"),
    };
    let agent = held.agent_id.as_deref().map(|id| format!(", agent {id}")).unwrap_or_default();
    let frees = match held.containers.len() {
        0 => "it is free when that host has unmounted it",
        1 => "it is free when that container ends",
        _ => "it is free when those containers end",
    };
    format!("volume {volume} is held by {} (since {}{agent}, {users}); {frees}", held.holder, held.since)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::volume::{ContainerId, Driver, VolumeName};

    fn session(machine: &str, boot: &str, epoch: u64, state: SessionState) -> SessionRecord {
        SessionRecord {
            epoch: Epoch(epoch),
            instance: "i".into(),
            state,
            machine_id: machine.into(),
            boot_id: boot.into(),
            agent_id: None,
            since: "then".into(),
        }
    }

    #[test]
    fn a_session_opens_as_machine_boot_and_epochs_allow() {
        use SessionState::{Dead, Live};
        let holder = Holder::new("a").unwrap();
        let me = Machine { id: "m1".into(), boot_id: "b1".into() };
        let open = |session: Option<SessionRecord>, held: &[u64]| {
            let held: Vec<_> = held.iter().map(|e| Epoch(*e)).collect();
            opening(&holder, &me, session.as_ref(), &held)
        };
        // session found                           leases' epochs   answer
        assert_eq!(open(None, &[]), Opening::Open(Epoch(1)));
        assert_eq!(open(Some(session("m1", "b1", 4, Live)), &[]), Opening::Resume(Epoch(4)));
        assert_eq!(open(Some(session("m1", "b0", 4, Live)), &[4, 2]), Opening::Open(Epoch(5)));
        assert_eq!(open(Some(session("m2", "b1", 4, Dead)), &[]), Opening::Open(Epoch(5)));
        assert_eq!(open(Some(session("m1", "b1", 4, Dead)), &[7]), Opening::Open(Epoch(8)));
        // The same boot id on another machine (a cloned image) proves nothing.
        assert!(matches!(
            open(Some(session("m2", "b1", 4, Live)), &[]),
            Opening::Refused(Refusal::AnotherMachine { .. })
        ));
        assert!(matches!(open(None, &[3]), Opening::Refused(Refusal::SessionMissing { count: 1, .. })));
    }

    fn held(holder: &str, epoch: u64) -> LeaseRecord {
        LeaseRecord::Attached(HeldLease {
            holder: Holder::new(holder).unwrap(),
            epoch: Epoch(epoch),
            token: None,
            since: "10:02:11".into(),
            agent_id: Some("S1".into()),
            containers: BTreeSet::from([ContainerId::new("c1").unwrap()]),
            mount_point: None,
        })
    }

    #[test]
    fn a_lease_is_taken_only_free_mine_or_left_behind() {
        use SessionState::{Dead, Live};
        let me = Holder::new("me").unwrap();
        let free = LeaseRecord::Free { last_holder: None, since: String::new() };
        let read = |lease: Option<&LeaseRecord>, owner: Option<SessionRecord>| match claim(
            lease,
            &me,
            Epoch(5),
            owner.as_ref(),
        ) {
            Claim::Free => "free",
            Claim::Mine(_) => "mine",
            Claim::MineBefore(_) => "mine before",
            Claim::LeftBehind(_) => "left behind",
            Claim::Held(_) => "held",
        };
        assert_eq!(read(None, None), "free");
        assert_eq!(read(Some(&free), None), "free");
        assert_eq!(read(Some(&held("me", 5)), None), "mine");
        assert_eq!(read(Some(&held("me", 4)), None), "mine before");
        assert_eq!(read(Some(&held("you", 5)), None), "held");
        assert_eq!(read(Some(&held("you", 5)), Some(session("m", "b", 5, Live))), "held");
        assert_eq!(read(Some(&held("you", 5)), Some(session("m", "b", 5, Dead))), "left behind");
        assert_eq!(read(Some(&held("you", 5)), Some(session("m", "b", 6, Live))), "left behind");
    }

    #[test]
    fn a_refusal_names_volume_holder_time_container_and_what_frees_it() {
        let volume =
            VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("vol-7b").unwrap() };
        assert_eq!(
            held_elsewhere(&volume, held("agent-2", 1).held().unwrap()),
            "volume ebs/vol-7b is held by agent-2 (since 10:02:11, agent S1, container c1); \
             it is free when that container ends"
        );
    }
}
