//! Real Mesos, etcd and storage on one machine: what the demonstrations and the tests stand on.

pub mod bench;
pub mod cluster;
pub mod etl;
pub mod executor;
pub mod recordio;
pub mod scheduler;
pub mod simulation;
pub mod storage;
pub mod timeline;
pub mod trial;
pub mod witness;
