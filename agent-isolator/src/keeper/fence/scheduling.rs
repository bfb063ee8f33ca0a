//! Who must act in time runs before everybody else: a container may start as many processes as it is allowed to.
//!
//! The policy is `SCHED_RR`: deadman and guard before the helpers, and those before every usual process. The kernel's limit for such
//! processes (`kernel.sched_rt_runtime_us`, 0.95 s of each second) stays: deadman and guard sleep most of the time. A helper has it
//! while it waits, freezes, shuts down and kills (a fork bomb would outrun it); for what takes longer it is a usual process of the greatest weight. What they start is
//! usual again (`SCHED_RESET_ON_FORK`): each helper asks for itself, and the worker does not.

use std::ffi::c_int;
use std::io;

/// sched(7): `SCHED_OTHER`, `SCHED_RR`, `SCHED_RESET_ON_FORK`.
const OTHER: c_int = 0;
const RR: c_int = 2;
const RESET_ON_FORK: c_int = 0x4000_0000;

/// The greatest weight among usual processes.
const NICE: i32 = -20;

/// Who runs before whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keeper) enum Priority {
    /// The deadman, and the guard.
    Deadman,
    /// Their helpers.
    Helper,
}

impl Priority {
    /// Of the kernel's from 1 to 99, the lowest.
    fn number(self) -> c_int {
        match self {
            Self::Deadman => 2,
            Self::Helper => 1,
        }
    }
}

/// The C library's `struct sched_param`.
#[repr(C)]
struct Parameter {
    priority: c_int,
}

#[expect(unsafe_code, reason = "rustix does not have it")]
// SAFETY: these are the declarations of sched_setscheduler(2) and sched_getscheduler(2) in glibc, which std links: numbers, and a struct
// of one int that is read.
unsafe extern "C" {
    fn sched_setscheduler(pid: c_int, policy: c_int, parameter: *const Parameter) -> c_int;
    safe fn sched_getscheduler(pid: c_int) -> c_int;
}

fn set(policy: c_int, priority: c_int) -> io::Result<()> {
    let parameter = Parameter { priority };
    #[expect(unsafe_code, reason = "rustix does not have it")]
    // SAFETY: the pointer is to a `sched_param` that lives until the call returns, and is only read; pid 0 is the calling thread.
    let refused = unsafe { sched_setscheduler(0, policy, &raw const parameter) } != 0;
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the calling thread run before every usual process. Where the kernel refuses that (a cgroup without real-time budget), it
/// gets the greatest usual weight.
///
/// # Errors
/// The refusal, after which the weight was asked for.
pub(in crate::keeper) fn before_all_others(priority: Priority) -> io::Result<()> {
    set(RR | RESET_ON_FORK, priority.number()).inspect_err(|_| {
        // Refused as well, it runs as everybody does, and the caller says so.
        let _refused = rustix::process::setpriority_process(None, NICE);
    })
}

/// Makes the calling thread a usual one of the greatest weight.
pub(super) fn before_usual_ones() {
    let _was_so = set(OTHER, 0);
    let _refused = rustix::process::setpriority_process(None, NICE);
}

/// Has the deadman or the guard start a process that has its priority from the first moment: it waits until that runs another
/// program, and as a usual one in the midst of a fork bomb that would take its time. The process sets its own priority.
pub(in crate::keeper) fn started_before_all_others<T>(start: impl FnOnce() -> T) -> T {
    let is_first = sched_getscheduler(0) == RR | RESET_ON_FORK && set(RR, Priority::Deadman.number()).is_ok();
    let started = start();
    if is_first {
        let _as_before = set(RR | RESET_ON_FORK, Priority::Deadman.number());
    }
    started
}
