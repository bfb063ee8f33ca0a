//! Whole clusters on simulated time, made of the very cores that keeper and master module run: hosts with
//! worker, deadman, mounts and containers; master modules; etcd; drivers and storage; Mesos's decisions.
//!
//! ```text
//! plan.rs    hosts, tasks and faults of a seed; smaller plans of a failing one
//! etcd.rs    the store
//! host.rs    one agent host: the shell around its cores (the model uses it too)
//! run.rs     a run of a plan: events by time, and the world they happen to
//! wire.rs    requests to etcd: how long they take, and which are lost, late or done twice
//! driver.rs  driver calls, storage, and who can write
//! tasks.rs   tasks, agents and containers
//! faults.rs  what goes wrong
//! scenarios.rs, calls.rs short stories with one end; alone.rs: a host that they happen to
//! hunt.rs    what seeded mistakes are put through
//! search.rs  many runs; the smallest plan that still fails
//! ```
//!
//! Everything depends on the plan alone; nothing on wall clock, threads or addresses. No file, socket or
//! process is touched.

mod alone;
mod calls;
mod driver;
mod faults;
mod tasks;
mod wire;

pub mod etcd;
pub mod host;
pub mod hunt;
pub mod plan;
pub mod run;
pub mod scenarios;
pub mod search;
