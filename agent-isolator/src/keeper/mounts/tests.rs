//! Real mounts and loop devices, below a root of each test's own.

mod directories;
mod disks;
mod identified;
mod idleness;
mod looks;
