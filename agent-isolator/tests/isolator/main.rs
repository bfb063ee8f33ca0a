//! The isolator against keepers that hang, refuse, break off or were never there. The keeper is a
//! stand-in at the socket, the isolator is whole.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod agent;
mod declared;
mod executors;
mod hosts;
mod keepers;
mod limits;
mod names;
mod stand_in;
