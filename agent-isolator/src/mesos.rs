//! Mesos's messages, as far as the isolator reads and writes them.

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
/// `CLONE_NEWNS`.
pub const NEW_MOUNT_NAMESPACE: i32 = 0x0002_0000;

/// The container that `bytes` (a `mesos.ContainerID`) name: its ids from the outermost to the
/// innermost, joined by dots, as Mesos prints them.
///
/// # Errors
/// A sentence; Mesos gives no such bytes unless its ABI is another one.
pub fn container_id(bytes: &[u8]) -> Result<ContainerName, String> {
    let id = ContainerId::decode(bytes).map_err(|error| format!("not a ContainerID: {error}"))?;
    named(&id)
}

/// As [`container_id`], of a message that was decoded already.
///
/// # Errors
/// A sentence, when a part of the id is no name.
pub fn named(id: &ContainerId) -> Result<ContainerName, String> {
    let mut parts = vec![id.value.as_str()];
    let mut inner = id;
    while let Some(parent) = inner.parent.as_deref() {
        parts.push(&parent.value);
        inner = parent;
    }
    parts.reverse();
    let joined = parts.join(".");
    ContainerName::new(joined.clone()).map_err(|error| format!("the container id {joined:?} {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_container_is_named_from_the_outside_in() {
        let parent = ContainerId { value: "p".into(), parent: None };
        let id = ContainerId { value: "c".into(), parent: Some(Box::new(parent)) };
        assert_eq!(container_id(&id.encode_to_vec()).unwrap().as_str(), "p.c");
        assert!(container_id(b"\xff").is_err());
    }
}
