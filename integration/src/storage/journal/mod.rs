//! The journal of the control plane: who had which volume when; and the check that no volume ever had two hosts.
//!
//! An entry is written after the change it tells of has taken effect, and before anybody is told of it: an attach
//! after the device is bound and before its name is answered, a detach after the device is cut. So the time between an
//! attach and its detach covers all the time in which the host could write.

mod file;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use file::Journal;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The host got the volume. Again for the same host: its device was made again after a restart.
    Attach,
    /// The volume was idle and is now free.
    Detach,
    /// The host was cut off, and the volume is now free.
    ForceDetach,
    /// An attach of a volume of another host, or a detach of a busy one; nothing changed.
    Refused,
    /// The host got the volume beside another, for the storage was told to allow that.
    MultiAttach,
    /// An attachment beside another ended: given back, or cut.
    MultiDetach,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// 1, 2, 3, ... without gaps.
    pub seq: u64,
    /// Wall clock, RFC 3339 with microseconds, for people.
    pub at: String,
    /// `CLOCK_MONOTONIC_RAW` in nanoseconds, the same clock for all processes of this machine.
    pub raw_ns: u64,
    /// What happened.
    pub event: Event,
    /// The volume, in lower case.
    pub volume: String,
    /// Whose attachment changed; with [`Event::Refused`], who asked, if he said.
    pub host: Option<String>,
    /// `/dev/loopN` of the attachment.
    pub device: Option<String>,
    /// The id of the attachment.
    pub attachment: Option<String>,
    /// Which host asked, if it said so: not always the one whose attachment changed. The storage decides nothing by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The ID of the Mount that asked for an attach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_id: Option<String>,
}

/// What a request says of itself, for the journal alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The host that asks.
    pub host: Option<String>,
    /// The ID of the Mount for which it asks.
    pub mount_id: Option<String>,
}

/// Why a journal is not that of a sound control plane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Lines are missing, doubled or out of order.
    #[error("journal entry {found} follows where {expected} was expected")]
    Sequence {
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// The one thing that must never be.
    #[error("volume {volume} was attached to {newcomer} (entry {seq}) while {holder} had it (entry {since})")]
    TwoHosts {
        /// The volume.
        volume: String,
        /// Who had it.
        holder: String,
        /// The entry by which he got it.
        since: u64,
        /// Who got it as well.
        newcomer: String,
        /// The entry by which he did.
        seq: u64,
    },
    /// A detach of something that was not attached, or was another attachment.
    #[error("entry {seq} detaches {attachment:?} of volume {volume}, which had {current:?}")]
    WrongDetach {
        /// The volume.
        volume: String,
        /// The entry.
        seq: u64,
        /// What it says was detached.
        attachment: Option<String>,
        /// What was attached at that time.
        current: Option<String>,
    },
    /// An attach without host or attachment id proves nothing.
    #[error("entry {seq} attaches volume {volume} without host or attachment")]
    Incomplete {
        /// The volume.
        volume: String,
        /// The entry.
        seq: u64,
    },
}

/// Who has a volume according to the entries so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The host.
    pub host: String,
    /// The id of the attachment.
    pub attachment: String,
    /// The device, if the entry names one.
    pub device: Option<String>,
    /// The entry of the (latest) attach.
    pub since: u64,
}

/// Checks that the sequence is continuous from its first entry on and that no volume ever had two hosts at one time.
///
/// The first entry may have any number, so that a part of a journal can be checked; that part must then begin while
/// nothing is attached.
///
/// # Errors
/// The first violation.
pub fn check(entries: &[Entry]) -> Result<(), Violation> {
    holdings(entries).map(|_| ())
}

/// As [`check`], and tells who has what at the end.
///
/// # Errors
/// The first violation.
pub fn holdings(entries: &[Entry]) -> Result<BTreeMap<String, Holding>, Violation> {
    let mut held: BTreeMap<String, Holding> = BTreeMap::new();
    let first = entries.first().map_or(1, |entry| entry.seq);
    for (entry, expected) in entries.iter().zip(first..) {
        if entry.seq != expected {
            return Err(Violation::Sequence { expected, found: entry.seq });
        }
        let current = held.get(&entry.volume);
        match entry.event {
            // More than one host is what the storage was told to allow; who may write then is not for it to judge.
            Event::Refused | Event::MultiAttach | Event::MultiDetach => {}
            Event::Attach => {
                let newcomer = attached_by(entry)?;
                if let Some(holder) = current
                    && holder.host != newcomer.host
                {
                    return Err(Violation::TwoHosts {
                        volume: entry.volume.clone(),
                        holder: holder.host.clone(),
                        since: holder.since,
                        newcomer: newcomer.host,
                        seq: entry.seq,
                    });
                }
                held.insert(entry.volume.clone(), newcomer);
            }
            Event::Detach | Event::ForceDetach => {
                let current = current.map(|holder| holder.attachment.clone());
                if current.is_none() || current != entry.attachment {
                    return Err(Violation::WrongDetach {
                        volume: entry.volume.clone(),
                        seq: entry.seq,
                        attachment: entry.attachment.clone(),
                        current,
                    });
                }
                held.remove(&entry.volume);
            }
        }
    }
    Ok(held)
}

fn attached_by(entry: &Entry) -> Result<Holding, Violation> {
    match (&entry.host, &entry.attachment) {
        (Some(host), Some(attachment)) => Ok(Holding {
            host: host.clone(),
            attachment: attachment.clone(),
            device: entry.device.clone(),
            since: entry.seq,
        }),
        _ => Err(Violation::Incomplete { volume: entry.volume.clone(), seq: entry.seq }),
    }
}

#[cfg(test)]
mod tests;
