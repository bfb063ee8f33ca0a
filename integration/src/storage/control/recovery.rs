//! Start of the control plane on a directory that an earlier one left, perhaps by a kill at any moment.
//!
//! | killed after | found here | done here |
//! | --- | --- | --- |
//! | binding a device, before the state | device unbound itself; state free | nothing |
//! | an idle moment, volume mounted | device still bound | kept bound |
//! | an idle moment, volume not mounted | device unbound itself | bound again, same number if it is free |
//! | cutting a device, before the state | device bound, cut | the detach is completed |
//! | the state, before the journal | they differ | journal brought in line |

use std::fs::File;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::{ControlError, ControlPlane, State, backing};
use crate::storage::journal::{self, Caller, Event, Journal};
use crate::storage::loop_device::{Binding, LoopDevice};

impl ControlPlane {
    /// Takes over `directory`, or begins it.
    ///
    /// # Errors
    /// Another control plane has the directory, or it cannot be read, or its journal breaks its own rules.
    pub fn open(directory: &Path) -> Result<Self, ControlError> {
        let volumes = directory.join("volumes");
        std::fs::create_dir_all(&volumes)
            .map_err(ControlError::io(format!("making {}", volumes.display())))?;
        let lock = File::create(directory.join("lock"))
            .and_then(|lock| {
                rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
                Ok(lock)
            })
            .map_err(ControlError::io(format!("locking {}", directory.display())))?;
        let mut plane = Self {
            directory: directory.to_owned(),
            state: State::load(directory).map_err(ControlError::io("reading state.json"))?,
            journal: Journal::open(&directory.join("journal.jsonl"))
                .map_err(ControlError::io("reading the journal"))?,
            devices: std::collections::BTreeMap::new(),
            beside: std::collections::BTreeMap::new(),
            switches: super::Switches::default(),
            _lock: lock,
        };
        plane.align_journal()?;
        let keys: Vec<String> = plane.state.volumes.keys().cloned().collect();
        for key in keys {
            plane.recover_device(&key)?;
            plane.recover_beside(&key)?;
        }
        Ok(plane)
    }

    /// What the state says has happened; of what it does not say, nobody was told.
    fn align_journal(&mut self) -> Result<(), ControlError> {
        let held = journal::holdings(self.journal.entries())
            .map_err(|violation| ControlError::io("reading the journal")(std::io::Error::other(violation)))?;
        for (key, holding) in &held {
            let current = self.state.volumes.get(key).and_then(|volume| volume.attachment.as_ref());
            if current.is_none_or(|current| current.id != holding.attachment) {
                let device = holding.device.as_deref().unwrap_or_default();
                self.journal
                    .append(
                        Event::Detach,
                        key,
                        Some(&holding.host),
                        Some((&holding.attachment, device)),
                        &Caller::default(),
                    )
                    .map_err(ControlError::io("writing the journal"))?;
            }
        }
        let missing: Vec<_> = self
            .state
            .volumes
            .iter()
            .filter_map(|(key, volume)| Some((key.clone(), volume.attachment.clone()?)))
            .filter(|(key, attachment)| {
                held.get(key).is_none_or(|holding| holding.attachment != attachment.id)
            })
            .collect();
        for (key, attachment) in missing {
            self.record(Event::Attach, &key, Some(&attachment.host), Some(&attachment), &Caller::default())?;
        }
        Ok(())
    }

    /// Attachments beside another are kept where their device is still bound, and end otherwise.
    fn recover_beside(&mut self, key: &str) -> Result<(), ControlError> {
        let path = backing(&self.directory, key);
        for attachment in self.state.volumes.get(key).map(|volume| volume.beside.clone()).unwrap_or_default()
        {
            let found = attachment.number().map(|number| LoopDevice::adopt(&path, number)).transpose();
            let found = found.map_err(ControlError::io(format!("looking at {}", attachment.device)))?;
            match found {
                Some((Binding::Bound, Some(device))) => {
                    self.beside.insert(attachment.id.clone(), device);
                }
                _ => self.release_beside(key, &attachment, &Caller::default())?,
            }
        }
        Ok(())
    }

    fn recover_device(&mut self, key: &str) -> Result<(), ControlError> {
        let Some(attachment) = self.state.volumes.get(key).and_then(|volume| volume.attachment.clone())
        else {
            return Ok(());
        };
        let path = backing(&self.directory, key);
        let number = attachment.number();
        let (binding, device) = match number {
            Some(number) => LoopDevice::adopt(&path, number)
                .map_err(ControlError::io(format!("looking at {}", attachment.device)))?,
            None => (Binding::Elsewhere, None),
        };
        match (binding, device) {
            (Binding::Bound, Some(device)) => {
                self.devices.insert(key.to_owned(), device);
                Ok(())
            }
            (Binding::Cut, _) => self.release(Event::ForceDetach, key, &attachment, &Caller::default()),
            _ => {
                let device = LoopDevice::bind(&path, number)
                    .map_err(ControlError::io(format!("binding a loop device to {}", path.display())))?;
                let renewed =
                    super::Attachment { device: device.path().display().to_string(), ..attachment.clone() };
                self.devices.insert(key.to_owned(), device);
                if renewed == attachment {
                    return Ok(());
                }
                if let Some(volume) = self.state.volumes.get_mut(key) {
                    volume.attachment = Some(renewed.clone());
                }
                self.save()?;
                self.record(Event::Attach, key, Some(&renewed.host), Some(&renewed), &Caller::default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::storage::control::ControlPlane;
    use crate::storage::journal::{self, Caller, Event, Journal};

    #[test]
    fn a_journal_that_lags_behind_the_state_is_brought_in_line() {
        let directory = tempfile::tempdir().unwrap();
        let mut plane = ControlPlane::open(directory.path()).unwrap();
        plane.create("vol1", None).unwrap();
        drop(plane);
        // As after a kill between state and journal of a detach.
        let mut journal = Journal::open(&directory.path().join("journal.jsonl")).unwrap();
        journal
            .append(Event::Attach, "vol1", Some("host-a"), Some(("att-1", "/dev/loop9")), &Caller::default())
            .unwrap();

        let plane = ControlPlane::open(directory.path()).unwrap();
        let last = plane.journal().last().unwrap();
        assert_eq!((last.event, last.attachment.as_deref()), (Event::Detach, Some("att-1")));
        journal::check(plane.journal()).unwrap();
    }

    #[test]
    fn a_broken_journal_is_not_continued() {
        let directory = tempfile::tempdir().unwrap();
        drop(ControlPlane::open(directory.path()).unwrap());
        std::fs::write(directory.path().join("journal.jsonl"), "{}\n").unwrap();
        assert!(ControlPlane::open(directory.path()).is_err());
    }
}
