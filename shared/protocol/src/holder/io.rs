//! What goes into the core of a holder, and what comes out of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::table::{MountedVolume, Wanted};
use crate::exchange::{Commit, Key, Means, Outcome, Reading, View};
use crate::ids::{Task, Token};
use crate::volume::{ContainerId, VolumeId};
use crate::{Now, Op, Request, Text};

/// A lease that is this session's, found in etcd when the session was opened or adopted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FoundLease {
    /// Its fencing token.
    pub token: Token,
    /// Whether an earlier holder's driver calls or I/O may still land.
    pub unsettled: bool,
    /// Whether a driver call of this host may be under way, as far as the lease tells.
    pub calling: bool,
}

/// Why a driver's Mount gave no mount.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum MountFault {
    /// The driver said no, and is done with it.
    Refused(Text),
    /// The call did not reach the driver.
    Unreachable(Text),
    /// No answer, or one that does not mean an end: the driver may still be at it.
    Unresolved(Text),
    /// The driver mounted, but not so that it can be used.
    Unusable {
        /// What is wrong.
        why: Text,
        /// What is mounted where the driver says, if that can be told, and is this volume's.
        mounted: Option<Box<MountedVolume>>,
    },
    /// What the driver answered is another volume's, or was mounted before it was asked; nothing is left of this call. The
    /// driver's Unmount would take it from whoever uses it, and is not called.
    NotItsOwn(Text),
}

/// Why a driver's Unmount did not end well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UnmountFault {
    /// The driver said no, and is done with it.
    Refused(Text),
    /// The call did not reach the driver.
    Unreachable(Text),
    /// No answer, or one that does not mean an end: the driver may still be at it, and take the volume from
    /// whoever has it then.
    Unresolved(Text),
}

/// What is found where a volume should be mounted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Sight {
    /// It is there.
    Mounted {
        /// A process of another mount namespace that sees it too, in words.
        elsewhere: Option<Text>,
    },
    /// It is not there: somebody else has unmounted it.
    Gone(Text),
    /// It is there, and can be written no more: its disk is gone, or its file system has turned read-only.
    Broken(Text),
    /// It could not be told.
    Unknown(Text),
}

/// What came of asking whether a volume's device is idle.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Idleness {
    /// Proved: no mount in any namespace holds it, and the disk is no longer on this host.
    Proved,
    /// Proved likewise, but the disk is still on this host: the storage may have it attached here.
    ProvedAttached,
    /// The host's own mount is still there: the driver has not unmounted.
    Mounted,
    /// The host's mount is gone, but something else still holds the device.
    Pinned(Text),
    /// It could not be told.
    Unknown(Text),
}

/// What happens to the core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Mesos is about to start a container that names volumes.
    Prepare {
        /// Whom to answer.
        request: Request,
        /// The container.
        container: ContainerId,
        /// The agent's address, which tells two agents of one host apart.
        agent: Text,
        /// The agent's id, if the container's sandbox tells it.
        agent_id: Option<Text>,
        /// For whom it runs.
        task: Option<Task>,
        /// Its volumes, in the order of the answer's mount points.
        volumes: Vec<Wanted>,
    },
    /// The container's process exists, and has not yet been let go.
    Isolate {
        /// Whom to answer.
        request: Request,
        /// The agent's address.
        agent: Text,
        /// The container.
        container: ContainerId,
        /// Its process on this host.
        pid: u32,
        /// Its freezer cgroup.
        cgroup: Option<Text>,
    },
    /// All of the container's processes are dead, or it never had one.
    Cleanup {
        /// Whom to answer.
        request: Request,
        /// The agent's address.
        agent: Text,
        /// The container, maybe one that was never prepared.
        container: ContainerId,
    },
    /// Nothing of an isolated container runs any more, whether or not Mesos will say so.
    Ended {
        /// The container.
        container: ContainerId,
    },
    /// The table cannot be stored, and so nothing can be done for those who wait.
    Unstored {
        /// A sentence.
        why: Text,
    },
    /// Something of [`super::Core::watching`] may have changed.
    Changed(Key),
    /// Something is wrong with a mounted volume: it is looked at, though nobody new wants it.
    Suspect {
        /// Which.
        volume: VolumeId,
    },
    /// An agent has started, and knows these containers.
    Recover {
        /// Whom to answer.
        request: Request,
        /// The agent's address.
        agent: Text,
        /// Containers that it goes on with.
        known: BTreeSet<ContainerId>,
        /// Containers that it will kill and clean up.
        orphans: BTreeSet<ContainerId>,
    },
    /// Why etcd did not take a write, or did not answer: told before its [`Input::Committed`], for the texts alone.
    Silent(Text),
    /// The result of [`Output::Read`]: what was read, or why nothing was. It comes within R.
    Read(Op, Result<View, Text>),
    /// The result of [`Output::Commit`]. It comes within R.
    Committed(Op, Outcome),
    /// The result of [`Output::Settle`].
    Settled(Op, Result<(), MountFault>),
    /// The result of [`Output::Mount`].
    Mounted(Op, Result<MountedVolume, MountFault>),
    /// The result of [`Output::Unmount`].
    Unmounted(Op, Result<(), UnmountFault>),
    /// A call of the driver was not made: right before, [`super::Core::may_call_driver`] said no.
    NotMade(Op),
    /// The result of [`Output::Remove`].
    Removed(Op, Result<(), UnmountFault>),
    /// The result of [`Output::Look`].
    Seen(Op, Sight),
    /// The result of [`Output::ProveIdle`].
    Idle(Op, Idleness),
    /// The result of [`Output::MakeSafe`] and [`Output::Fence`].
    Safe(Op, Result<(), Text>),
    /// Whether the deadman ticks (L16).
    Guarded(bool),
    /// What a fence of this host rests on now, as it was established.
    Means {
        /// All of it.
        means: BTreeSet<Means>,
        /// Why there is no guard, if there is none.
        lacking: Option<Text>,
    },
    /// The sticky flag was found set.
    Flagged,
    /// Time has passed: see [`super::Core::next_deadline`].
    Tick,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Answer a call. A yes to [`Input::Isolate`] is sent only if the sticky flag is still clear after
    /// the table was stored: it is the gate.
    Reply(Request, Result<Answer, Text>),
    /// Read from etcd, linearizably.
    Read {
        /// Under which number the result comes.
        op: Op,
        /// What.
        reading: Reading,
    },
    /// Send a transaction.
    Commit {
        /// Under which number the result comes.
        op: Op,
        /// The transaction.
        commit: Commit,
    },
    /// Move the shared deadline, by compare-and-swap: when that finds the flag set, nothing after this is
    /// carried out, and [`Input::Flagged`] follows.
    Extend(Option<Now>),
    /// A new epoch: clear the shared deadline and its flag ([`super::Deadline::next`]).
    Reset,
    /// Have the storage take the volume away from every other host.
    Settle {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        token: Token,
        /// The volume, as the driver was asked for it.
        asked: VolumeId,
    },
    /// Have the driver mount, if [`super::Core::may_call_driver`] still says so right before. Comes only after a
    /// transaction that confirmed the lease.
    Mount {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        token: Token,
        /// What to mount.
        wanted: Wanted,
        /// Whether an earlier Mount of this lease may have been done, so that it may be mounted already.
        again: bool,
    },
    /// Have the driver unmount, if [`super::Core::may_call_driver`] still says so right before. Comes only after
    /// the lease was rewritten as `detaching`, which confirmed that it is this session's.
    Unmount {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        token: Token,
        /// The volume, as the driver was asked for it.
        asked: VolumeId,
        /// Its mount, if it is known.
        mounted: Option<MountedVolume>,
    },
    /// Have the driver remove the volume, which was proved idle, if [`super::Core::may_call_driver`] still says so right
    /// before. Comes only after a transaction that confirmed the lease once more (L3).
    Remove {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        token: Token,
        /// The volume, as the driver was asked for it.
        asked: VolumeId,
    },
    /// Look whether a volume is still mounted as it was, and who else sees it.
    Look {
        /// Under which number the result comes.
        op: Op,
        /// What was mounted.
        mounted: MountedVolume,
        /// Whether it counts who else sees it: no container is known that uses it, and one may.
        doubted: bool,
    },
    /// Find out whether the device is idle.
    ProveIdle {
        /// Under which number the result comes.
        op: Op,
        /// The volume, as it is leased.
        volume: VolumeId,
        /// The volume, as the driver was asked for it.
        asked: VolumeId,
        /// What was mounted, if that is known.
        mounted: Option<MountedVolume>,
    },
    /// Before an epoch: end every container and mount that an older life of this host left, and prove it
    /// ([`crate::fence`]).
    MakeSafe {
        /// Under which number the result comes.
        op: Op,
    },
    /// Set the sticky flag, then as [`Output::MakeSafe`]; the deadman, where it ticks, sees the flag and does
    /// it, beginning with this worker.
    Fence {
        /// Under which number the result comes.
        op: Op,
        /// For the log and for people.
        why: Text,
    },
    /// Kill a container's processes.
    Kill {
        /// The container.
        container: ContainerId,
    },
    /// Tell whoever watches the container that it must end, and why.
    Limit {
        /// The container.
        container: ContainerId,
        /// For the framework to show.
        message: Text,
    },
    /// Something an operator should read.
    Warn(Text),
    /// Something to tell a person, and nothing is wrong.
    Note(Text),
}

/// The good answer to a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// To [`Input::Prepare`]: where each volume is mounted, in the order asked.
    Prepared {
        /// Host paths.
        mount_points: Vec<Text>,
    },
    /// To [`Input::Isolate`]: the container may run.
    Isolated,
    /// To anything else.
    Done,
}
