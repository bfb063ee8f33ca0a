//! Who must act in time runs before everybody else: a container may start as many processes as it is allowed to.
//!
//! The policy is `SCHED_RR` at the lowest of its priorities, which is above every usual process. The kernel's limit for such
//! processes (`kernel.sched_rt_runtime_us`, 0.95 s of each second) stays: deadman and helpers sleep most of the time, and a helper's
//! looks are bounded. What they start is usual again (`SCHED_RESET_ON_FORK`): each helper asks for itself, and the worker does not.

use std::ffi::c_int;
use std::io;

/// `SCHED_RR | SCHED_RESET_ON_FORK` (sched(7)).
const POLICY: c_int = 2 | 0x4000_0000;

/// The greatest weight among usual processes.
const NICE: i32 = -20;

/// The C library's `struct sched_param`.
#[repr(C)]
struct Parameter {
    priority: c_int,
}

#[expect(unsafe_code, reason = "rustix does not have it")]
// SAFETY: this is the declaration of sched_setscheduler(2) in glibc, which std links: two numbers, and a struct of one int that is read.
unsafe extern "C" {
    fn sched_setscheduler(pid: c_int, policy: c_int, parameter: *const Parameter) -> c_int;
}

/// Lets the calling thread run before every usual process. Where the kernel refuses that (a cgroup without real-time budget), it
/// gets the greatest usual weight.
///
/// # Errors
/// The refusal, after which the weight was asked for.
pub(in crate::keeper) fn before_all_others() -> io::Result<()> {
    let parameter = Parameter { priority: 1 };
    #[expect(unsafe_code, reason = "rustix does not have it")]
    // SAFETY: the pointer is to a `sched_param` that lives until the call returns, and is only read; pid 0 is the calling thread.
    let refused = unsafe { sched_setscheduler(0, POLICY, &raw const parameter) } != 0;
    if !refused {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // Refused as well, it runs as everybody does, and the caller says so.
    let _refused = rustix::process::setpriority_process(None, NICE);
    Err(error)
}
