//! What the control plane knows and keeps in `state.json`: pure data, and its writing by rename.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ControlError;
use crate::storage::loop_device::LoopDevice;

/// A volume and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// As it was given at its creation; compares without case.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Who has it.
    pub attachment: Option<Attachment>,
    /// Who has it as well, where that was allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Attachment>,
}

impl Volume {
    /// What `host` has of it.
    #[must_use]
    pub fn attachment_of(&self, host: &str) -> Option<&Attachment> {
        self.attachment.iter().chain(&self.beside).find(|attachment| attachment.host == host)
    }
}

/// That a host has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// `att-N`, never used twice in one directory.
    pub id: String,
    /// The name that the host gives itself.
    pub host: String,
    /// `/dev/loopN`.
    pub device: String,
}

impl Attachment {
    pub(super) fn elsewhere(&self, volume: &str) -> ControlError {
        ControlError::AttachedElsewhere {
            volume: volume.to_owned(),
            host: self.host.clone(),
            device: self.device.clone(),
        }
    }

    pub(super) fn busy(&self, volume: &str) -> ControlError {
        ControlError::Busy { volume: volume.to_owned(), host: self.host.clone(), device: self.device.clone() }
    }

    /// The N of `/dev/loopN`.
    pub(super) fn number(&self) -> Option<u32> {
        self.device.strip_prefix("/dev/loop")?.parse().ok()
    }
}

/// The contents of `state.json`. Keys are names in lower case.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) volumes: BTreeMap<String, Volume>,
    attachments_made: u64,
}

impl State {
    pub(super) fn load(directory: &Path) -> io::Result<Self> {
        match std::fs::read(directory.join("state.json")) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces `state.json` by rename, so that a kill at any moment leaves the old or the new one. Not synced: loop
    /// devices do not outlive the kernel either.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let new = directory.join("state.json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, directory.join("state.json"))
    }

    pub(super) fn volume(&self, name: &str) -> Result<&Volume, ControlError> {
        let missing = || ControlError::NotFound { volume: name.to_owned() };
        self.volumes.get(&key(name)?).ok_or_else(missing)
    }

    pub(super) fn attachment(&self, name: &str) -> Result<&Attachment, ControlError> {
        let missing = || ControlError::NotAttached { volume: name.to_owned() };
        self.volume(name)?.attachment.as_ref().ok_or_else(missing)
    }

    pub(super) fn attach(&mut self, key: &str, host: &str, device: &LoopDevice) -> Attachment {
        self.attachments_made += 1;
        let attachment = Attachment {
            id: format!("att-{}", self.attachments_made),
            host: host.to_owned(),
            device: device.path().display().to_string(),
        };
        if let Some(volume) = self.volumes.get_mut(key) {
            match &volume.attachment {
                None => volume.attachment = Some(attachment.clone()),
                Some(_) => volume.beside.push(attachment.clone()),
            }
        }
        attachment
    }

    pub(super) fn detach(&mut self, key: &str) {
        if let Some(volume) = self.volumes.get_mut(key) {
            volume.attachment = None;
        }
    }

    pub(super) fn detach_beside(&mut self, key: &str, attachment: &Attachment) {
        if let Some(volume) = self.volumes.get_mut(key) {
            volume.beside.retain(|other| other.id != attachment.id);
        }
    }
}

/// The key of a volume: its name in lower case, checked to be usable as a file name.
pub(super) fn key(name: &str) -> Result<String, ControlError> {
    let usable = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(usable) {
        return Err(ControlError::Invalid {
            what: "volume name",
            value: name.to_owned(),
            rule: "1 to 128 of a-z, 0-9, dot, dash, underscore, and no dot first",
        });
    }
    Ok(name.to_ascii_lowercase())
}

/// A host must say who it is, or two nameless ones would share a volume.
pub(super) fn check_host(host: &str) -> Result<(), ControlError> {
    if host.trim().is_empty() {
        return Err(ControlError::Invalid { what: "host", value: host.to_owned(), rule: "not empty" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn names_compare_without_case_and_cannot_leave_the_directory() {
        assert_eq!(key("Vol-7B").unwrap(), key("vol-7b").unwrap());
        for name in ["", "..", ".hidden", "a/b", "a b", "ä"] {
            assert!(key(name).is_err(), "{name:?}");
        }
    }
}
