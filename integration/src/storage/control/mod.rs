//! The control plane: volumes, and which host has which. All of it blocks; [`http`] calls it from blocking threads.
//!
//! Order of every change: first the kernel (bind or cut the device), then `state.json`, then the journal, then the
//! answer. After a kill between two of these steps [`ControlPlane::open`] brings the later ones in line with the
//! earlier ones, and whoever asked got no answer and asks again.

pub mod client;
pub mod http;
mod recovery;
mod state;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::journal::{Entry, Event, Journal};
use super::loop_device::LoopDevice;
use state::State;
pub use state::{Attachment, Volume};

/// Size of a volume when none is named.
pub const DEFAULT_SIZE: u64 = 64 << 20;

/// The smallest volume: an ext4 with its journal must fit.
pub const SMALLEST_SIZE: u64 = 16 << 20;

/// Why the control plane refuses. Each variant is one reaction of the caller.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The volume does not exist.
    #[error("volume {volume} does not exist")]
    NotFound {
        /// As it was asked for.
        volume: String,
    },
    /// Another host has the volume: wait, or force.
    #[error("volume {volume} is attached to host {host} ({device}); detach it there first")]
    AttachedElsewhere {
        /// The volume.
        volume: String,
        /// Who has it.
        host: String,
        /// As which device.
        device: String,
    },
    /// The device is mounted or held: unmount first, or force.
    #[error("volume {volume} is busy: {device} on host {host} is mounted or held open")]
    Busy {
        /// The volume.
        volume: String,
        /// Who has it.
        host: String,
        /// As which device.
        device: String,
    },
    /// There is nothing to detach.
    #[error("volume {volume} is not attached")]
    NotAttached {
        /// The volume.
        volume: String,
    },
    /// The request can never succeed.
    #[error("{what} {value:?} is not usable: {rule}")]
    Invalid {
        /// What was wrong.
        what: &'static str,
        /// How it was given.
        value: String,
        /// How it must be.
        rule: &'static str,
    },
    /// The kernel or the disk failed; the state may have changed.
    #[error("{doing} failed")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl ControlError {
    fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Outcome of [`ControlPlane::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Created {
    /// It is new and empty.
    New,
    /// It was there, and keeps its size and its data.
    AlreadyThere,
}

/// All volumes under one directory.
#[derive(Debug)]
pub struct ControlPlane {
    directory: PathBuf,
    state: State,
    journal: Journal,
    /// What keeps each attached device bound. Keys are those of `state.volumes`.
    devices: BTreeMap<String, LoopDevice>,
    /// Locked while this value lives.
    _lock: File,
}

impl ControlPlane {
    /// The volumes, by name.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.state.volumes.values()
    }

    /// One volume; names compare without case.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn volume(&self, name: &str) -> Result<&Volume, ControlError> {
        self.state.volume(name)
    }

    /// All that happened, oldest first.
    #[must_use]
    pub fn journal(&self) -> &[Entry] {
        self.journal.entries()
    }

    /// Makes an empty volume of `size` bytes.
    ///
    /// # Errors
    /// The name or the size is not usable.
    pub fn create(&mut self, name: &str, size: Option<u64>) -> Result<Created, ControlError> {
        let key = state::key(name)?;
        if self.state.volumes.contains_key(&key) {
            return Ok(Created::AlreadyThere);
        }
        let size = size.unwrap_or(DEFAULT_SIZE);
        if size < SMALLEST_SIZE || !size.is_multiple_of(4096) {
            return Err(ControlError::Invalid {
                what: "size",
                value: size.to_string(),
                rule: "at least 16 MiB, in bytes, and a multiple of 4096",
            });
        }
        let path = self.backing(&key);
        File::create(&path)
            .and_then(|file| file.set_len(size))
            .map_err(ControlError::io(format!("making {}", path.display())))?;
        self.state.volumes.insert(key, Volume { name: name.to_owned(), size, attachment: None });
        self.save()?;
        Ok(Created::New)
    }

    /// Deletes a volume and its data.
    ///
    /// # Errors
    /// It is attached, or does not exist.
    pub fn delete(&mut self, name: &str) -> Result<(), ControlError> {
        let volume = self.state.volume(name)?;
        if let Some(attachment) = &volume.attachment {
            return Err(attachment.elsewhere(&volume.name));
        }
        let key = state::key(name)?;
        self.state.volumes.remove(&key);
        self.save()?;
        let path = self.backing(&key);
        std::fs::remove_file(&path).map_err(ControlError::io(format!("deleting {}", path.display())))
    }

    /// Gives the volume to `host`; the same host asking again gets the same answer.
    ///
    /// # Errors
    /// Another host has it ([`ControlError::AttachedElsewhere`]), or it does not exist.
    pub fn attach(&mut self, name: &str, host: &str) -> Result<Attachment, ControlError> {
        let key = state::key(name)?;
        state::check_host(host)?;
        match &self.state.volume(name)?.attachment {
            Some(attachment) if attachment.host == host => return Ok(attachment.clone()),
            Some(attachment) => {
                let refusal = attachment.elsewhere(name);
                self.record(Event::Refused, &key, Some(host), None)?;
                return Err(refusal);
            }
            None => {}
        }
        let path = self.backing(&key);
        let device = LoopDevice::bind(&path, None)
            .map_err(ControlError::io(format!("binding a loop device to {}", path.display())))?;
        let attachment = self.state.attach(&key, host, &device);
        self.devices.insert(key.clone(), device);
        self.save()?;
        self.record(Event::Attach, &key, Some(host), Some(&attachment))?;
        Ok(attachment)
    }

    /// Takes an idle volume from its host. Without `host` from whichever has it, as EBS does.
    ///
    /// The device is cut as well: who still holds it open *without* `O_EXCL` and without a mount, which the check for
    /// idleness cannot see, writes nowhere.
    ///
    /// # Errors
    /// The device is in use ([`ControlError::Busy`]), another host has it, or nobody.
    pub fn detach(&mut self, name: &str, host: Option<&str>) -> Result<(), ControlError> {
        let key = state::key(name)?;
        let attachment = self.state.attachment(name)?.clone();
        if host.is_some_and(|host| host != attachment.host) {
            let refusal = attachment.elsewhere(name);
            self.record(Event::Refused, &key, host, None)?;
            return Err(refusal);
        }
        let cut = self.devices.get(&key).map_or(Ok(true), LoopDevice::cut_if_idle);
        if !cut.map_err(ControlError::io(format!("cutting {}", attachment.device)))? {
            let refusal = attachment.busy(name);
            self.record(Event::Refused, &key, host, None)?;
            return Err(refusal);
        }
        self.release(Event::Detach, &key, &attachment)
    }

    /// Takes the volume from its host, whatever that host does with it. When this returns, no write of that host
    /// reaches the volume any more, and none is under way.
    ///
    /// # Errors
    /// Nobody has it, or the kernel did not let the device be cut; then nothing changed.
    pub fn force_detach(&mut self, name: &str) -> Result<(), ControlError> {
        let key = state::key(name)?;
        let attachment = self.state.attachment(name)?.clone();
        if let Some(device) = self.devices.get(&key) {
            device.cut().map_err(ControlError::io(format!("cutting {}", attachment.device)))?;
        }
        self.release(Event::ForceDetach, &key, &attachment)
    }

    /// Detaches what is idle, at an orderly end. What is mounted stays attached, and its device bound until the umount.
    pub fn detach_idle(&mut self) {
        let attached: Vec<String> = self
            .state
            .volumes
            .values()
            .filter(|volume| volume.attachment.is_some())
            .map(|volume| volume.name.clone())
            .collect();
        for name in attached {
            match self.detach(&name, None) {
                Ok(()) | Err(ControlError::Busy { .. }) => {}
                Err(error) => {
                    tracing::error!(volume = name, error = &error as &dyn std::error::Error, "not detached")
                }
            }
        }
    }

    /// Books the end of an attachment whose device is cut.
    fn release(&mut self, event: Event, key: &str, attachment: &Attachment) -> Result<(), ControlError> {
        self.state.detach(key);
        // Unbinds the device, now or when its last user goes.
        self.devices.remove(key);
        self.save()?;
        self.record(event, key, Some(&attachment.host), Some(attachment))
    }

    fn record(
        &mut self,
        event: Event,
        key: &str,
        host: Option<&str>,
        attachment: Option<&Attachment>,
    ) -> Result<(), ControlError> {
        tracing::info!(?event, volume = key, host, device = attachment.map(|a| a.device.as_str()), "journal");
        let attachment = attachment.map(|attachment| (attachment.id.as_str(), attachment.device.as_str()));
        self.journal.append(event, key, host, attachment).map_err(ControlError::io("writing the journal"))
    }

    fn save(&self) -> Result<(), ControlError> {
        self.state.save(&self.directory).map_err(ControlError::io("writing state.json"))
    }

    fn backing(&self, key: &str) -> PathBuf {
        backing(&self.directory, key)
    }
}

fn backing(directory: &Path, key: &str) -> PathBuf {
    directory.join("volumes").join(format!("{key}.img"))
}
