//! The ETL demonstration: orders are extracted from a PostgreSQL server, transformed, and loaded into a database on an external
//! volume, while the job's agent dies. Its job is the program `extvol-etl`, in a container from an image (`etl/image`), as
//! `apps/etl.json` says; here is what surrounds the job, for `extvol-demo-etl` and for tests.
//!
//! ```text
//! orders.rs      the data set: seeded, and its right answer
//! source.rs      the PostgreSQL server on the hub
//! app.rs         the app, and the witness's part of it
//! watch.rs       what the job shows
//! fault.rs       what breaks
//! run.rs         one run, from the start of a cluster to its end
//! verify.rs      source against target, by SQL of its own; never by the job's code
//! throughput.rs  rows per second, and the pause
//! ```

mod app;
mod error;
mod fault;
pub mod orders;
mod run;
pub mod source;
pub mod throughput;
pub mod verify;
mod watch;

pub use error::{EtlError, Result};
pub use fault::Fault;
pub use run::{Mark, Outcome, Settings, run};

/// The moment behind which an order's date is in the future: 2026-01-01. `apps/etl.json` says it, too.
pub const NOW: u64 = 1_767_225_600;

/// The volume of the target database, as leases and the storage name it.
pub const TARGET: (&str, &str) = ("ebs/etl-target", "etl-target");
/// The scratch volume.
pub const SCRATCH: (&str, &str) = ("scaleio/etl-scratch", "etl-scratch");

/// A number with its thousands apart: `1,000,000`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn thousands_are_apart() {
        let texts = [0, 999, 1000, 1_234_567].map(super::grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }
}
