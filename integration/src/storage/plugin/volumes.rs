//! What RexRay does for each request, with its use counts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Settings;
use super::filesystem;
use crate::storage::control::client::{ClientError, ControlClient};
use crate::storage::control::http::RefusalKind;
use crate::storage::control::{Attachment, Volume};
use crate::storage::journal::Caller;

/// Why a request failed; the text is what follows `failed: ` in the answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    /// RexRay's word for an unknown volume, one that is attached elsewhere, and one that is not attached at all.
    #[error("resource not found")]
    NotFound,
    #[error("device or resource busy")]
    Busy,
    #[error("{0}")]
    Storage(#[source] ClientError),
    #[error("{0}")]
    FileSystem(#[source] io::Error),
}

impl From<ClientError> for VolumeError {
    fn from(error: ClientError) -> Self {
        match error.kind() {
            Some(RefusalKind::NotFound | RefusalKind::AttachedElsewhere | RefusalKind::NotAttached) => {
                Self::NotFound
            }
            Some(RefusalKind::Busy) => Self::Busy,
            _ => Self::Storage(error),
        }
    }
}

impl From<io::Error> for VolumeError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ResourceBusy => Self::Busy,
            _ => Self::FileSystem(error),
        }
    }
}

/// How often a volume was mounted and not unmounted. The lock also keeps requests for one volume one after another.
type Uses = Arc<tokio::sync::Mutex<u32>>;

/// The volumes of this host as the plugin sees them.
#[derive(Debug)]
pub(super) struct Volumes {
    control: ControlClient,
    settings: Settings,
    /// By name in lower case.
    uses: Mutex<BTreeMap<String, Uses>>,
    /// Volumes that the storage has attached, and whose device never showed; likewise.
    stuck: Mutex<BTreeSet<String>>,
}

impl Volumes {
    pub(super) fn new(control: ControlClient, settings: Settings) -> Self {
        let control = control.by(Caller { host: Some(settings.host.clone()), mount_id: None });
        Self { control, settings, uses: Mutex::default(), stuck: Mutex::default() }
    }

    /// What a restart does to the use counts.
    pub(super) fn forget_counts(&self) {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn uses(&self, name: &str) -> Uses {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(uses.entry(name.to_ascii_lowercase()).or_default())
    }

    pub(super) async fn create(&self, name: &str, size: Option<u64>) -> Result<(), VolumeError> {
        self.control.create(name, size).await?;
        Ok(())
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), VolumeError> {
        match self.control.delete(name).await {
            // Attached, here or elsewhere.
            Err(error) if error.kind() == Some(RefusalKind::AttachedElsewhere) => Err(VolumeError::Busy),
            outcome => Ok(outcome?),
        }
    }

    pub(super) async fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        Ok(self.control.volumes().await?)
    }

    pub(super) async fn get(&self, name: &str) -> Result<Volume, VolumeError> {
        Ok(self.control.volume(name).await?)
    }

    fn stuck(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches, formats an empty volume, mounts, counts; answers the data directory. One that is `stuck` attaches, and
    /// waits for ever for the device.
    pub(super) async fn mount(
        &self,
        name: &str,
        mount_id: Option<String>,
        stuck: bool,
    ) -> Result<PathBuf, VolumeError> {
        let uses = self.uses(name);
        let mut count = uses.lock().await;
        let attachment = self.attach(name, mount_id).await?;
        if stuck {
            self.stuck().insert(name.to_ascii_lowercase());
            drop(count);
            return std::future::pending().await;
        }
        self.stuck().remove(&name.to_ascii_lowercase());
        let target = self.target(name);
        let mount_point = target.clone();
        blocking(move || filesystem::mount_volume(attachment.device.as_ref(), &mount_point)).await?;
        *count += 1;
        Ok(target.join("data"))
    }

    async fn attach(&self, name: &str, mount_id: Option<String>) -> Result<Attachment, ClientError> {
        let control = self.control.by(Caller { host: Some(self.settings.host.clone()), mount_id });
        match control.attach(name, &self.settings.host).await {
            Err(error) if self.settings.preempt && error.kind() == Some(RefusalKind::AttachedElsewhere) => {
                match control.force_detach(name).await {
                    // Its host let go of it meanwhile.
                    Err(error) if error.kind() != Some(RefusalKind::NotAttached) => return Err(error),
                    _ => {}
                }
                control.attach(name, &self.settings.host).await
            }
            outcome => outcome,
        }
    }

    /// Takes one use away; with the last one (or when none is known) unmounts and detaches. The detach names no host,
    /// as that of EBS does not: after a long `midway`, or when what is known here is `stale`, it takes the volume from whoever
    /// has it by then.
    pub(super) async fn unmount(&self, name: &str, stale: bool, midway: Duration) -> Result<(), VolumeError> {
        let uses = self.uses(name);
        let mut count = uses.lock().await;
        if *count > 1 {
            *count -= 1;
            return Ok(());
        }
        if self.stuck().contains(&name.to_ascii_lowercase()) {
            return Err(VolumeError::NotFound);
        }
        let volume = self.control.volume(name).await?;
        let own = volume.attachment_of(&self.settings.host);
        let found = own.or(volume.attachment.as_ref().filter(|_| stale));
        let attachment = found.cloned().ok_or(VolumeError::NotFound)?;
        let mount_point = self.target(name);
        blocking(move || filesystem::unmount_volume(attachment.device.as_ref(), &mount_point)).await?;
        *count = 0;
        tokio::time::sleep(midway).await;
        Ok(self.control.detach(name, None).await?)
    }

    /// In lower case, so that one volume has one mount point however it is spelt.
    fn target(&self, name: &str) -> PathBuf {
        self.settings.mount_root.join(name.to_ascii_lowercase())
    }
}

/// A mount may take long; the runtime's own threads must not wait for it.
async fn blocking<W>(work: W) -> Result<(), VolumeError>
where
    W: FnOnce() -> io::Result<()> + Send + 'static,
{
    Ok(tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??)
}
