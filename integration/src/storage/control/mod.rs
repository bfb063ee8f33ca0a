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

use super::journal::{Caller, Entry, Event, Journal};
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

/// What a test makes the storage do that EBS does not do. Not kept over a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// A volume is attached to every host that asks, as Ceph's RBD does it.
    pub multi_attach: bool,
    /// A detach takes a busy volume, too.
    pub detach_busy: bool,
}

/// All volumes under one directory.
#[derive(Debug)]
pub struct ControlPlane {
    directory: PathBuf,
    state: State,
    journal: Journal,
    /// What keeps each attached device bound. Keys are those of `state.volumes`.
    devices: BTreeMap<String, LoopDevice>,
    /// Those of `state.volumes[..].beside`, by the attachment's id.
    beside: BTreeMap<String, LoopDevice>,
    switches: Switches,
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

    /// Replaces all switches.
    pub fn switch(&mut self, switches: Switches) {
        self.switches = switches;
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
        self.state
            .volumes
            .insert(key, Volume { name: name.to_owned(), size, attachment: None, beside: Vec::new() });
        self.save()?;
        Ok(Created::New)
    }

    /// Deletes a volume and its data.
    ///
    /// # Errors
    /// It is attached, or does not exist.
    pub fn delete(&mut self, name: &str) -> Result<(), ControlError> {
        let volume = self.state.volume(name)?;
        if let Some(attachment) = volume.attachment.iter().chain(&volume.beside).next() {
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
    pub fn attach(&mut self, name: &str, host: &str, caller: &Caller) -> Result<Attachment, ControlError> {
        let key = state::key(name)?;
        state::check_host(host)?;
        let volume = self.state.volume(name)?;
        if let Some(attachment) = volume.attachment_of(host) {
            return Ok(attachment.clone());
        }
        let is_beside = volume.attachment.is_some();
        let other = volume.attachment.iter().chain(&volume.beside).next();
        if let Some(attachment) = other.filter(|_| !self.switches.multi_attach) {
            let refusal = attachment.elsewhere(name);
            self.record(Event::Refused, &key, Some(host), None, caller)?;
            return Err(refusal);
        }
        let path = self.backing(&key);
        let device = LoopDevice::bind(&path, None)
            .map_err(ControlError::io(format!("binding a loop device to {}", path.display())))?;
        let attachment = self.state.attach(&key, host, &device);
        let event = if is_beside {
            self.beside.insert(attachment.id.clone(), device);
            Event::MultiAttach
        } else {
            self.devices.insert(key.clone(), device);
            Event::Attach
        };
        self.save()?;
        self.record(event, &key, Some(host), Some(&attachment), caller)?;
        Ok(attachment)
    }

    /// Takes an idle volume from its host. Without `host` from whichever has it, as EBS does.
    ///
    /// The device is cut as well: who still holds it open *without* `O_EXCL` and without a mount, which the check for
    /// idleness cannot see, writes nowhere.
    ///
    /// # Errors
    /// The device is in use ([`ControlError::Busy`]), another host has it, or nobody.
    pub fn detach(&mut self, name: &str, host: Option<&str>, caller: &Caller) -> Result<(), ControlError> {
        let key = state::key(name)?;
        // Beside others, each host lets go of its own.
        let own = caller.host.as_ref().and_then(|caller| {
            self.state.volumes.get(&key)?.beside.iter().find(|attachment| attachment.host == *caller).cloned()
        });
        if let Some(attachment) = own {
            return self.detach_beside(name, &key, &attachment, caller);
        }
        let attachment = self.state.attachment(name)?.clone();
        if host.is_some_and(|host| host != attachment.host) {
            let refusal = attachment.elsewhere(name);
            self.record(Event::Refused, &key, host, None, caller)?;
            return Err(refusal);
        }
        if !self.cut(self.devices.get(&key), &attachment, false)? {
            let refusal = attachment.busy(name);
            self.record(Event::Refused, &key, host, None, caller)?;
            return Err(refusal);
        }
        self.release(Event::Detach, &key, &attachment, caller)
    }

    fn detach_beside(
        &mut self,
        name: &str,
        key: &str,
        attachment: &Attachment,
        caller: &Caller,
    ) -> Result<(), ControlError> {
        if !self.cut(self.beside.get(&attachment.id), attachment, false)? {
            self.record(Event::Refused, key, Some(&attachment.host), None, caller)?;
            return Err(attachment.busy(name));
        }
        self.release_beside(key, attachment, caller)
    }

    /// Cuts a device, unless it is in use and that counts; whether it is cut.
    fn cut(
        &self,
        device: Option<&LoopDevice>,
        attachment: &Attachment,
        force: bool,
    ) -> Result<bool, ControlError> {
        let Some(device) = device else { return Ok(true) };
        let cut = if force || self.switches.detach_busy {
            device.cut().map(|()| true)
        } else {
            device.cut_if_idle()
        };
        cut.map_err(ControlError::io(format!("cutting {}", attachment.device)))
    }

    /// Takes the volume from its host, whatever that host does with it. When this returns, no write of that host
    /// reaches the volume any more, and none is under way.
    ///
    /// # Errors
    /// Nobody has it, or the kernel did not let the device be cut; then nothing changed.
    pub fn force_detach(&mut self, name: &str, caller: &Caller) -> Result<(), ControlError> {
        let key = state::key(name)?;
        let beside = self.state.volume(name)?.beside.clone();
        for attachment in &beside {
            self.cut(self.beside.get(&attachment.id), attachment, true)?;
            self.release_beside(&key, attachment, caller)?;
        }
        let attachment = match self.state.attachment(name) {
            Ok(attachment) => attachment.clone(),
            Err(_) if !beside.is_empty() => return Ok(()),
            Err(error) => return Err(error),
        };
        self.cut(self.devices.get(&key), &attachment, true)?;
        self.release(Event::ForceDetach, &key, &attachment, caller)
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
            match self.detach(&name, None, &Caller::default()) {
                Ok(()) | Err(ControlError::Busy { .. }) => {}
                Err(error) => {
                    tracing::error!(volume = name, error = &error as &dyn std::error::Error, "not detached")
                }
            }
        }
    }

    /// Books the end of an attachment whose device is cut.
    fn release(
        &mut self,
        event: Event,
        key: &str,
        attachment: &Attachment,
        caller: &Caller,
    ) -> Result<(), ControlError> {
        self.state.detach(key);
        // Unbinds the device, now or when its last user goes.
        self.devices.remove(key);
        self.save()?;
        self.record(event, key, Some(&attachment.host), Some(attachment), caller)
    }

    fn release_beside(
        &mut self,
        key: &str,
        attachment: &Attachment,
        caller: &Caller,
    ) -> Result<(), ControlError> {
        self.state.detach_beside(key, attachment);
        self.beside.remove(&attachment.id);
        self.save()?;
        self.record(Event::MultiDetach, key, Some(&attachment.host), Some(attachment), caller)
    }

    fn record(
        &mut self,
        event: Event,
        key: &str,
        host: Option<&str>,
        attachment: Option<&Attachment>,
        caller: &Caller,
    ) -> Result<(), ControlError> {
        tracing::info!(?event, volume = key, host, device = attachment.map(|a| a.device.as_str()), "journal");
        let attachment = attachment.map(|attachment| (attachment.id.as_str(), attachment.device.as_str()));
        self.journal
            .append(event, key, host, attachment, caller)
            .map_err(ControlError::io("writing the journal"))
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
