//! Where things are in etcd.
//!
//! ```text
//! <prefix>/                           default /extvol/v1
//!   cluster                           id of this installation, naming rules
//!   leases/<driver>/<volume>          one record per volume that was ever leased
//!   sessions/<holder>                 one record per agent host
//!   beats/<holder>                    its heartbeat (protocol core)
//!   storm                             the reclaimers' storm guard (protocol core)
//! ```
//!
//! Each segment is percent-encoded, so that no name can reach into another's place. All values are
//! JSON, to be read with `etcdctl get --prefix`.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::volume::{Driver, Holder, VolumeId, VolumeName};

/// Everything but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The key layout under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(|s| s.into_owned())
}

impl Keys {
    /// The layout below `prefix`; a trailing slash is dropped.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// The installation's record.
    #[must_use]
    pub fn cluster(&self) -> String {
        format!("{}/cluster", self.prefix)
    }

    /// The prefix of all lease keys.
    #[must_use]
    pub fn leases(&self) -> String {
        format!("{}/leases/", self.prefix)
    }

    /// A volume's lease. The caller gives the canonical name.
    #[must_use]
    pub fn lease(&self, volume: &VolumeId) -> String {
        let (driver, name) = (segment(volume.driver.as_str()), segment(volume.name.as_str()));
        format!("{}/leases/{driver}/{name}", self.prefix)
    }

    /// The volume whose lease `key` is; `None` for any other key.
    #[must_use]
    pub fn volume_of(&self, key: &str) -> Option<VolumeId> {
        let (driver, name) = key.strip_prefix(&self.leases())?.split_once('/')?;
        let driver = Driver::new(decode(driver)?).ok()?;
        let name = VolumeName::new(decode(name)?).ok()?;
        Some(VolumeId { driver, name })
    }

    /// A holder's heartbeat.
    #[must_use]
    pub fn beat(&self, holder: &Holder) -> String {
        format!("{}/beats/{}", self.prefix, segment(holder.as_str()))
    }

    /// The storm guard of the master modules.
    #[must_use]
    pub fn storm(&self) -> String {
        format!("{}/storm", self.prefix)
    }

    /// The prefix of all session keys.
    #[must_use]
    pub fn sessions(&self) -> String {
        format!("{}/sessions/", self.prefix)
    }

    /// A holder's session.
    #[must_use]
    pub fn session(&self, holder: &Holder) -> String {
        format!("{}/sessions/{}", self.prefix, segment(holder.as_str()))
    }

    /// The holder whose session `key` is; `None` for any other key.
    #[must_use]
    pub fn holder_of(&self, key: &str) -> Option<Holder> {
        Holder::new(decode(key.strip_prefix(&self.sessions())?)?).ok()
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self::new("/extvol/v1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_the_volume_it_was_made_of() {
        let keys = Keys::new("/x/");
        for (driver, name) in [("ebs", "vol-7b"), ("rexray/ebs:latest", "a b%2f"), ("d", "ä.~")] {
            let volume =
                VolumeId { driver: Driver::new(driver).unwrap(), name: VolumeName::new(name).unwrap() };
            assert_eq!(keys.volume_of(&keys.lease(&volume)), Some(volume));
        }
        assert_eq!(keys.volume_of("/x/sessions/a"), None);
        let holder = Holder::new("agent-1.example:5051").unwrap();
        assert_eq!(keys.holder_of(&keys.session(&holder)), Some(holder));
    }

    #[test]
    fn a_drivers_slash_does_not_make_a_segment() {
        let volume = VolumeId { driver: Driver::new("a/b").unwrap(), name: VolumeName::new("c").unwrap() };
        assert_eq!(Keys::default().lease(&volume), "/extvol/v1/leases/a%2Fb/c");
    }
}
