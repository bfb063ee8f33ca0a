//! The task that drives session and leases: opens the session, then does what it is asked for, one thing after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use shared::holder::{FoundLease, Input, LeaseFault, LeaseState, MountedVolume, Op};
use shared::record::{HeldLease, LeaseRecord};
use shared::retry::Retry;
use shared::store::LeaseStore;
use shared::volume::{ContainerId, VolumeId};
use tokio::sync::mpsc;

use super::leases::{Answer, Leases, Mine, Noted, sentence};
use super::{Event, alive, blocking, mounts};

/// How long a look at a volume's mount may take before the answer is that it cannot be told: a file system
/// whose server or disk hangs does not answer.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the lease task is asked for.
#[derive(Debug)]
pub(super) enum LeaseCall {
    Acquire { op: Op, volumes: Vec<VolumeId>, container: ContainerId, agent_id: Option<String> },
    Record { op: Op, volume: VolumeId, record: Recorded },
    Release { op: Op, volume: VolumeId },
}

#[derive(Clone, Debug)]
pub(super) struct Recorded {
    pub(super) state: LeaseState,
    pub(super) containers: BTreeSet<ContainerId>,
    pub(super) mount_point: Option<String>,
}

/// What is mounted where a lease's record says, and whether somebody may use it.
async fn look_up(mount_point: Option<String>, roots: &[PathBuf]) -> (Option<MountedVolume>, bool) {
    let Some(point) = mount_point else { return (None, false) };
    let (shown, roots) = (point.clone(), roots.to_vec());
    let look = blocking(move || mounts::look_up(&point, &roots));
    match tokio::time::timeout(LOOK_TIMEOUT, look).await {
        Ok(Ok(None)) => (None, false),
        Ok(Ok(Some((mounted, in_use)))) => (Some(mounted), in_use),
        // It may be mounted, and in use.
        Ok(Err(error)) => {
            tracing::warn!("what is mounted at {shown} could not be told: {error}");
            (None, true)
        }
        Err(_) => {
            tracing::warn!("what is mounted at {shown} could not be told: no answer within {LOOK_TIMEOUT:?}");
            (None, true)
        }
    }
}

/// Opens the session, then does what it is asked for, one thing after the other.
pub(super) async fn keep_leases<S: LeaseStore>(
    mut leases: Leases<S>,
    noted: Noted,
    mut calls: mpsc::UnboundedReceiver<LeaseCall>,
    events: mpsc::UnboundedSender<Event>,
    roots: Vec<PathBuf>,
) {
    let tell = |input| events.send(Event::Core(input)).is_ok();
    let mut retry = Retry::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut said = String::new();
    let mine = loop {
        let is_mounted = |point: String| -> Answer {
            let roots = roots.clone();
            Box::pin(async move {
                let (mounted, in_use) = look_up(Some(point), &roots).await;
                mounted.is_some() || in_use
            })
        };
        match leases.open(&noted, &is_mounted).await {
            Ok(mine) => break mine,
            Err(error) => {
                let why = sentence(&error);
                if said != why {
                    tracing::warn!("there is no session yet: {why}");
                    said.clone_from(&why);
                }
                if !tell(Input::NotOpened { why }) {
                    return;
                }
                tokio::time::sleep(retry.next_delay()).await;
            }
        }
    };
    let mut found = BTreeMap::new();
    for (volume, Mine { token, calling, same_boot, lease }) in mine {
        let mount_point = lease.mount_point.clone();
        let (mounted, in_use) = look_up(lease.mount_point, &roots).await;
        let cgroup = |id: ContainerId| Some((id.clone(), alive::find_cgroup(&id)?));
        // Of volumes in the table the core knows better.
        let containers = match noted.volumes.contains(&volume) {
            true => BTreeMap::new(),
            false => lease.containers.into_iter().filter_map(cgroup).collect(),
        };
        found.insert(
            volume,
            FoundLease { token, calling, same_boot, mount_point, containers, mounted, in_use },
        );
    }
    if events.send(Event::Opened { cluster: leases.cluster_id(), found }).is_err() {
        return;
    }
    while let Some(call) = calls.recv().await {
        let input = match call {
            LeaseCall::Acquire { op, volumes, container, agent_id } => {
                Input::Acquired(op, leases.acquire(&volumes, &container, agent_id.as_deref()).await)
            }
            LeaseCall::Record { op, volume, record } => {
                Input::Written(op, write(&mut leases, &volume, &record).await)
            }
            LeaseCall::Release { op, volume } => Input::Written(op, leases.release(&volume).await),
        };
        if !tell(input) {
            return;
        }
    }
}

async fn write<S: LeaseStore>(
    leases: &mut Leases<S>,
    volume: &VolumeId,
    record: &Recorded,
) -> Result<(), LeaseFault> {
    let Recorded { state, containers, mount_point } = record;
    let change = |held: HeldLease| {
        let held = HeldLease { containers: containers.clone(), mount_point: mount_point.clone(), ..held };
        match state {
            LeaseState::Attaching => LeaseRecord::Attaching(held),
            LeaseState::Attached => LeaseRecord::Attached(held),
            LeaseState::Detaching => LeaseRecord::Detaching(held),
        }
    };
    leases.rewrite(volume, change).await
}
