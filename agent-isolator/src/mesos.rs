//! Mesos's messages, as far as the isolator reads and writes them.

use std::fmt::{self, Display};

use prost::Message;
use shared::volume::ContainerId as ContainerName;

/// The types of proto/mesos.proto.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mesos.rs"));
}

pub use generated::*;

/// `MS_BIND | MS_REC`, as Mesos's launch helper passes them to mount(2).
pub const BIND: u32 = 0x1000 | 0x4000;
/// `MS_RDONLY`.
pub const READ_ONLY: u32 = 0x1;
/// `MS_NOSUID`.
pub const NOSUID: u32 = 0x2;
/// `MS_NODEV`.
pub const NODEV: u32 = 0x4;
/// `MS_NOEXEC`.
pub const NOEXEC: u32 = 0x8;
/// `MS_REMOUNT | MS_BIND`: other flags for this mount alone, not for its file system.
pub const REMOUNT_BIND: u32 = 0x20 | 0x1000;
/// `MS_NOSYMFOLLOW`, since Linux 5.10: symbolic links of this mount lead nowhere.
pub const NO_LINKS: u32 = 0x100;
/// `CLONE_NEWNS`.
pub const NEW_MOUNT_NAMESPACE: i32 = 0x0002_0000;

/// A container as Mesos names it: its ids from the outermost to the innermost, joined by dots, as
/// Mesos prints them. Ids may hold any bytes from 0x80 up and have 242 bytes each, and containers
/// are nested: not every such id is a name that volumes are leased under ([`RawContainerId::name`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RawContainerId(Vec<u8>);

impl RawContainerId {
    /// The container that `bytes` (a `mesos.ContainerID`) name.
    ///
    /// # Errors
    /// A sentence; Mesos gives no such bytes unless its ABI is another one.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let id = ContainerId::decode(bytes).map_err(|error| format!("not a ContainerID: {error}"))?;
        Ok(Self::of(&id))
    }

    /// As [`RawContainerId::decode`], of a message that was decoded already.
    #[must_use]
    pub fn of(id: &ContainerId) -> Self {
        let mut parts = vec![id.value.as_slice()];
        let mut inner = id;
        while let Some(parent) = inner.parent.as_deref() {
            parts.push(&parent.value);
            inner = parent;
        }
        parts.reverse();
        Self(parts.join(&b'.'))
    }

    /// Whether it is in another one. Mesos allows no dot in an id.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.0.contains(&b'.')
    }

    /// The name that keeper and leases know the container by.
    ///
    /// # Errors
    /// A sentence, when the id is none: such a container has no volumes.
    pub fn name(&self) -> Result<ContainerName, String> {
        let refused = |why: &dyn Display| format!("the container id {:?} {why}", self.to_string());
        let text = std::str::from_utf8(&self.0).map_err(|_| refused(&"is not UTF-8"))?;
        ContainerName::new(text).map_err(|error| refused(&error))
    }
}

impl Display for RawContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(parent: &[u8], value: &[u8]) -> RawContainerId {
        let parent = ContainerId { value: parent.to_vec(), parent: None };
        let id = ContainerId { value: value.to_vec(), parent: Some(Box::new(parent)) };
        RawContainerId::decode(&id.encode_to_vec()).unwrap()
    }

    #[test]
    fn a_nested_container_is_named_from_the_outside_in() {
        assert_eq!(nested(b"p", b"c").name().unwrap().as_str(), "p.c");
        assert!(nested(b"p", b"c").is_nested() && !RawContainerId(b"p".to_vec()).is_nested());
        assert!(RawContainerId::decode(b"\xff").is_err());
    }

    #[test]
    fn an_id_that_is_no_name_is_still_an_id() {
        let long = nested(&[b'p'; 36], &[b'c'; 230]).name().unwrap_err();
        assert!(long.contains("has 267 bytes, more than 255"), "{long}");
        let bytes = nested(b"p", b"c\xff").name().unwrap_err();
        assert!(bytes.starts_with("the container id \"p.c\u{fffd}\" is not UTF-8"), "{bytes}");
    }
}
