//! The module library against what real Mesos 1.11.0 makes of it: a library that does not fit is refused at load, a
//! panic inside is contained, and under sanitizers nothing is reported. Every broken library here has one defect.

#[path = "mesos_abi/library.rs"]
mod library;
#[path = "mesos_abi/panics.rs"]
mod panics;
#[path = "mesos_abi/refusals.rs"]
mod refusals;
#[path = "mesos_abi/sanitizers.rs"]
mod sanitizers;
