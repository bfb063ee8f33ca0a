//! Whether this host can prove its fence in time, and that etcd knows it before anything depends on it (L18). Who cannot is
//! never ended by silence.
//!
//! Two things make a fence unproved: nothing outlives the keeper's processes, or a file system is held that cannot be
//! shut down, so that whoever is in the kernel for it may write later. The second is forgiven where the storage takes the
//! volume away before anybody else mounts it (L20), and nobody mounts it otherwise.

use super::{Core, MountedVolume, Settings, Volume};
use crate::Text;
use crate::exchange::{ByTime, Session};
use crate::volume::VolumeId;

/// What a session says of silence.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Word {
    by_time: ByTime,
    unproved: Option<Text>,
}

impl Settings {
    /// Whether nobody takes this volume from a host that is silent before its storage has taken it away from there.
    fn storage_fences(&self, id: &VolumeId) -> bool {
        self.fencing_required && self.storage_fencing.contains(&id.driver)
    }

    /// Whether a volume that is mounted so makes the fence unproved.
    pub(super) fn leaves_unproved(&self, id: &VolumeId, mounted: &MountedVolume) -> bool {
        !mounted.can_be_shut_down && !self.storage_fences(id)
    }
}

impl Core {
    /// What the session has to say now; an epoch that was opened to end never stays so.
    fn word(&self, opened: ByTime) -> Word {
        let unproved = match opened {
            ByTime::Never => return Word { by_time: ByTime::Never, unproved: None },
            ByTime::Allowed | ByTime::Unproved if self.means.iter().any(|means| means.outlives_keeper()) => {
                self.volumes.iter().find_map(|(id, volume)| self.not_shut_down(id, volume))
            }
            ByTime::Allowed | ByTime::Unproved => {
                let why = self.lacking.as_deref().unwrap_or("no guard, supervisor or watchdog was found");
                Some(format!("nothing outlives the keeper's processes: {why}").into())
            }
        };
        let by_time = if unproved.is_some() { ByTime::Unproved } else { ByTime::Allowed };
        Word { by_time, unproved }
    }

    fn not_shut_down(&self, id: &VolumeId, volume: &Volume) -> Option<Text> {
        let mounted = volume.mounted().filter(|mounted| self.settings.leaves_unproved(id, mounted))?;
        Some(format!("volume {id} has a file system that cannot be shut down, on {}", mounted.source).into())
    }

    /// The session with what it has to say of silence.
    pub(super) fn with_word(&self, session: Session) -> Session {
        let Word { by_time, unproved } = self.word(session.by_time);
        Session { by_time, unproved, means: self.means.clone(), ..session }
    }

    /// Whether no reclaimer can end this session by silence now, nor by a write of this holder's that is still under way: a
    /// rewrite to `allowed` whose answer was lost may come late, until a later rewrite has closed it (L2).
    pub(super) fn is_past_silence(&self) -> bool {
        self.mine.as_ref().is_some_and(|mine| match mine.record.by_time {
            ByTime::Never => true,
            ByTime::Unproved => !self.allowing,
            ByTime::Allowed => false,
        })
    }
}
