//! The core of a holder, driven by hand: what it does to leases, session and volumes, in which order, and what it
//! never does. Schedules that are not by hand are in the simulation (`integration`).

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod containers;
mod etcd;
mod fairness;
mod host;
mod index;
mod lives;
mod mounts;
mod names;
mod not_made;
mod owed;
mod proofs;
mod reclaimers;
mod releases;
mod removes;
mod revokes;
mod schedules;
mod waits;
mod write_queue;
