//! A stand-in for EBS: a control plane that lets a volume be attached to one host at a time, and a Docker volume
//! plugin that answers as RexRay 0.11.4 does.
//!
//! What is real: block devices (loop devices over sparse files), ext4, the mount system calls, the plugin protocol.
//! What is not: the network between host and storage. All hosts of a test share one kernel and one `/dev`; a host is a
//! name that it gives itself.
//!
//! ```text
//! extvol-plugin, one per host and driver          extvol-storage, one for all hosts
//!   unix socket: Docker volume plugin protocol      HTTP: attach, detach, force-detach, journal
//!   mkfs, mount, umount               --- HTTP -->  loop devices, backing files
//!
//! DIR/                  of extvol-storage
//!   lock                flock: one control plane at a time
//!   state.json          volumes and who has them, replaced by rename
//!   journal.jsonl       one line for each attach, detach, force-detach and refusal
//!   volumes/<name>.img  the bytes of a volume, sparse
//! ```
//!
//! The journal is one of those that the witness judges by ([`journal::check`], [`crate::witness`]): it is written where
//! volumes change hands, by the one process that none of the faults under test touches.

pub mod arguments;
pub mod control;
pub mod journal;
pub mod loop_device;
pub mod plugin;
