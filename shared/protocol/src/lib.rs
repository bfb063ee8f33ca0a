//! The lease protocol itself, without any I/O: who may write to a volume, and until when.
//!
//! Four small state machines, each synchronous, without clock, file, thread or async of its own, and
//! with ordered collections alone, so that the same inputs always give the same outputs:
//!
//! ```text
//! holder/     a host's session, leases and volumes; runs in the keeper's worker
//! deadman     restarts the worker, and fences when the worker's deadline has passed
//! fence       the order in which a host is made unable to write; run by deadman or worker
//! reclaimer/  what a master module does about sessions: revoke, declare dead, mark gone
//! ```
//!
//! A shell receives, calls `handle(now, input)`, stores the table if it changed, and only then carries
//! out what `poll_output()` gives. Production, simulator and model checker are three such shells
//! around this very code. An input that does not fit the state (a late or repeated answer) changes
//! nothing.
//!
//! `now` is elapsed time on one host, from any fixed moment (`crate::clock`; docs/lease-protocol.md, L11): which clock it is
//! of is the shell's duty, and no wall clock comes in here at all.
//!
//! Numbers such as L12 are the rules of docs/lease-protocol.md.

pub mod deadman;
pub mod exchange;
pub mod fence;
pub mod holder;
pub mod ids;
pub mod quote;
pub mod reclaimer;
pub mod renumber;
pub mod timing;
pub mod volume;

use std::sync::Arc;
use std::time::Duration;

/// Elapsed time on one host, from a fixed moment.
pub type Now = Duration;

/// Text that is handed around, and never interpreted.
pub type Text = Arc<str>;

/// An effect under way. Its result comes back under the same number; one under another number is
/// late, and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Op(pub u64);

/// A call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request(pub u64);

/// The most volumes that one container may name, and one transaction writes: etcd allows 128 compares, writes and reads each by
/// default, and a lease takes two of each (its own and its last holder's session; its own and the index).
pub const VOLUMES_MAX: usize = 40;
