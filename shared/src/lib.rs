//! The lease protocol: what is stored in etcd, which transactions may change it, and the pure
//! core that decides on an agent host. Master module and keeper are shells around this crate.
//!
//! Nothing here knows Mesos's ABI, a volume driver's protocol or a mount system call.

pub mod clock;
pub mod etcd;
pub mod event;
pub mod exchange;
pub mod exchange_io;
pub mod keys;
pub mod memory;
pub mod parameters;
pub mod record;
pub mod retry;
pub mod store;
pub mod transaction;

pub use ::protocol;
pub use ::protocol::{quote, volume};
