//! The worker's shell, with a store in memory, a driver that does as it is told, and a deadman that is a thread: what
//! stands between what the core decides and what is done. Needs root, for mounts.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

#[path = "../fence/alone.rs"]
mod alone;
mod effects;
mod limits;
mod rules;
mod wishes;
mod world;
