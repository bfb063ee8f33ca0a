//! The agent's half of mesos-extvol: a thin isolator inside the agent, and the keeper, a process of
//! its own that owns session, leases and mounts of the host.
//!
//! - [`isolator`] runs in the agent: it reads what a task asks for ([`task`], [`target`]), asks the
//!   keeper, and answers Mesos. It knows no etcd and makes no driver call, and nothing in it blocks.
//! - [`keeper`] runs beside the agent and outlives it.
//! - [`wire`] is what they say to each other.

mod agent_flags;
mod agent_state;
#[doc(hidden)]
pub mod fuzzing;
pub mod isolator;
pub mod keeper;
pub mod kernel;
pub mod mesos;
pub mod parameters;
pub mod rules;
pub mod target;
pub mod task;
pub mod wire;
