//! Fencing on real file systems and real processes. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod alone;
mod guards;
mod host;
mod keeper;
mod strike;
mod volumes;
