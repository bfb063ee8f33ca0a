//! The glue between Mesos and the two Rust halves: what `libextvol.so` is made of.
//!
//! Mesos calls C++ (`*_shim.cpp`), C++ calls `bridge`, and the bridge calls the isolator or the master's
//! module. Nothing is decided here. What this crate owes to both sides:
//!
//! - no panic leaves Rust and no C++ exception leaves C++ (`guard`);
//! - every future that Mesos was given is completed, exactly once, whatever happens to the call; but `watch` only
//!   when the container has to end;
//! - a Mesos that is not laid out as the C++ half believes is refused before the first call
//!   (`host_check_shim.cpp`).
//!
//! This crate is only ever a static library, which `link` turns into the shared one.

#[expect(unsafe_code, reason = "the one bridge to C++; nothing else in the workspace may")]
#[expect(unreachable_pub, reason = "cxx makes everything that it generates pub")]
mod bridge;
mod guard;
mod isolator;
mod logging;
mod master;
mod parameters;

/// "ip:port" of the libprocess of this process.
fn own_address() -> Option<String> {
    let address = bridge::own_address();
    (!address.is_empty()).then_some(address)
}
