//! The program `extvol`, as it is installed, against real etcd and a real keeper.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod doctor;
mod following;
mod listings;
mod parameters;
mod program;
mod volumes;
mod writes;
