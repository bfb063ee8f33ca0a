//! What goes into the core of a holder, and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::table::{MountedVolume, Wanted};
use crate::record::Token;
use crate::volume::{ContainerId, VolumeId};

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Request(pub u64);

/// An effect under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op(pub u64);

/// Time since some fixed moment, from a clock that only goes forward.
pub type Now = Duration;

/// A lease that is this session's, found in etcd when the session was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLease {
    /// Its fencing token.
    pub token: Token,
    /// Whether a driver call may have been under way when the record was last written by an older
    /// life: it was `attaching` or `detaching`.
    pub calling: bool,
    /// Whether it was leased in the present boot: then what was done for it may still be there.
    pub same_boot: bool,
    /// Where the record says that it is mounted.
    pub mount_point: Option<String>,
    /// The containers that the record names and of which something runs, with their freezer cgroups.
    pub containers: BTreeMap<ContainerId, String>,
    /// Its mount on this host, if one can be seen where the record says.
    pub mounted: Option<MountedVolume>,
    /// Whether a process other than the host's own sees that mount, or that cannot be told: then it
    /// may be in use, whatever the records say.
    pub in_use: bool,
}

/// Why a driver's Mount gave no mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountFault {
    /// The driver said no, and is done with it.
    Refused(String),
    /// The call did not reach the driver.
    Unreachable(String),
    /// No answer, or one that does not mean an end: the driver may still be at it.
    Unresolved(String),
    /// The driver mounted, but not so that it can be used.
    Unusable {
        /// What is wrong.
        why: String,
        /// What is mounted where the driver says, if that can be told.
        mounted: Option<Box<MountedVolume>>,
    },
}

/// Why a driver's Unmount did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnmountFault {
    /// The driver said no, and is done with it.
    Refused(String),
    /// The call did not reach the driver.
    Unreachable(String),
    /// No answer, or one that does not mean an end: the driver may still be at it.
    Unresolved(String),
}

/// What is found where a volume should be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is there.
    Mounted {
        /// A process of another mount namespace that sees it too, in words.
        elsewhere: Option<String>,
    },
    /// It is not there: somebody else has unmounted it.
    Gone(String),
    /// It could not be told.
    Unknown(String),
}

/// Why a lease could not be rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseFault {
    /// etcd is out of reach, or what it holds cannot be read; nothing was written.
    Unavailable(String),
    /// The lease or the session is no longer this keeper's.
    Lost(String),
}

/// What came of asking whether a volume's device is idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Idleness {
    /// Proved: no mount in any namespace holds it, and the disk is no longer on this host.
    Proved,
    /// Proved likewise, but the disk is still on this host: the storage may have it attached here.
    ProvedAttached,
    /// The host's own mount is still there: the driver has not unmounted.
    Mounted,
    /// The host's mount is gone, but something else still holds the device.
    Pinned(String),
    /// It could not be told.
    Unknown(String),
}

/// What happens to the core.
#[derive(Clone, Debug)]
pub enum Input {
    /// The session is open; these leases are its own.
    Opened {
        /// By canonical name.
        found: BTreeMap<VolumeId, FoundLease>,
    },
    /// There is no session yet, and this is why: for the text of refusals.
    NotOpened {
        /// A fragment.
        why: String,
    },
    /// Mesos is about to start a container that names volumes.
    Prepare {
        /// Whom to answer.
        request: Request,
        /// The container.
        container: ContainerId,
        /// The agent's address, which tells two agents of one host apart.
        agent: String,
        /// The agent's id, if the container's sandbox tells it.
        agent_id: Option<String>,
        /// Its volumes, in the order of the answer's mount points.
        volumes: Vec<Wanted>,
    },
    /// The container's process exists, and has not yet been let go.
    Isolate {
        /// Whom to answer.
        request: Request,
        /// The agent's address.
        agent: String,
        /// The container.
        container: ContainerId,
        /// Its process on this host.
        pid: u32,
        /// Its freezer cgroup.
        cgroup: Option<String>,
    },
    /// All of the container's processes are dead, or it never had one.
    Cleanup {
        /// Whom to answer.
        request: Request,
        /// The agent's address.
        agent: String,
        /// The container, maybe one that was never prepared.
        container: ContainerId,
    },
    /// The table cannot be stored, and so nothing can be done for those who wait.
    Unstored {
        /// A sentence.
        why: String,
    },
    /// Nothing of an isolated container runs any more, whether or not Mesos will say so.
    Ended {
        /// The container.
        container: ContainerId,
    },
    /// An agent has started, and knows these containers.
    Recover {
        /// Whom to answer.
        request: Request,
        /// The agent's address.
        agent: String,
        /// Containers that it goes on with.
        known: BTreeSet<ContainerId>,
        /// Containers that it will kill and clean up.
        orphans: BTreeSet<ContainerId>,
    },
    /// The result of [`Output::Acquire`]: the token of all of them, or why none was granted.
    Acquired(Op, Result<Token, String>),
    /// The result of [`Output::Mount`].
    Mounted(Op, Result<MountedVolume, MountFault>),
    /// The result of [`Output::Record`] and [`Output::Release`].
    Written(Op, Result<(), LeaseFault>),
    /// The result of [`Output::Unmount`].
    Unmounted(Op, Result<(), UnmountFault>),
    /// The result of [`Output::Look`].
    Seen(Op, Sight),
    /// The result of [`Output::Find`]: what is mounted there, and whether it may be in use.
    Found(Op, Result<Option<(Box<MountedVolume>, bool)>, String>),
    /// The result of [`Output::ProveIdle`].
    Idle(Op, Idleness),
    /// Time has passed: see [`super::Core::next_deadline`].
    Tick,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Answer a call.
    Reply(Request, Result<Answer, String>),
    /// Take all these leases in one transaction, as `attaching`, for this container.
    Acquire {
        /// Under which number the result comes.
        op: Op,
        /// The leases.
        volumes: Vec<VolumeId>,
        /// Who asks.
        container: ContainerId,
        /// For whose sake.
        agent_id: Option<String>,
    },
    /// Have the driver mount. Comes only after a transaction that confirmed the lease.
    Mount {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        token: Token,
        /// What to mount.
        wanted: Wanted,
    },
    /// Rewrite the lease.
    Record {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        volume: VolumeId,
        /// What it is now.
        state: LeaseState,
        /// Who uses it.
        containers: BTreeSet<ContainerId>,
        /// Where it is mounted.
        mount_point: Option<String>,
    },
    /// Have the driver unmount. Comes only after the lease was rewritten as `detaching`, which
    /// confirmed that it is this session's.
    Unmount {
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
    },
    /// Find out what is mounted where a lease says.
    Find {
        /// Under which number the result comes.
        op: Op,
        /// The path.
        mount_point: String,
    },
    /// Find out whether the device is idle.
    ProveIdle {
        /// Under which number the result comes.
        op: Op,
        /// The volume, as the driver was asked for it.
        asked: VolumeId,
        /// What was mounted, if that is known.
        mounted: Option<MountedVolume>,
    },
    /// Free the lease.
    Release {
        /// Under which number the result comes.
        op: Op,
        /// The lease.
        volume: VolumeId,
    },
    /// Tell whoever watches the container that it must end, and why.
    Limit {
        /// The container.
        container: ContainerId,
        /// For the framework to show.
        message: String,
    },
    /// Something an operator should read.
    Warn(String),
}

/// What a held lease says of its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// The driver may be attaching or mounting it.
    Attaching,
    /// It is mounted.
    Attached,
    /// The driver may be unmounting or detaching it.
    Detaching,
}

/// The good answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Input::Prepare`]: where each volume is mounted, in the order asked.
    Prepared {
        /// Host paths.
        mount_points: Vec<String>,
    },
    /// To anything else.
    Done,
}
