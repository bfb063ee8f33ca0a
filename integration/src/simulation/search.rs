//! Many runs, on all processors; and the smallest plan that still fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::plan::Plan;
use super::run::{Report, run};

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many ran.
    pub runs: u64,
    /// How many events they handled.
    pub events: u64,
    /// Mounts in them.
    pub mounts: u64,
    /// Leases taken over in them whose earlier holder's calls or I/O might still have landed.
    pub takeovers: u64,
    /// Removals.
    pub removals: u64,
    /// Fences by a deadman in them.
    pub fences: u64,
    /// How long it took.
    pub took: Duration,
    /// The lowest seed that failed, if one did.
    pub failed: Option<u64>,
}

/// Runs the plans of `runs` seeds from `first` on, until one fails.
#[must_use]
pub fn search(first: u64, runs: u64, threads: usize) -> Summary {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let work = || {
        let mut sum = Summary::default();
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= runs {
                break;
            }
            let seed = first.wrapping_add(number);
            let report = run(&Plan::of(seed), false);
            sum.runs += 1;
            sum.events += report.events;
            sum.mounts += report.mounts;
            sum.takeovers += report.takeovers;
            sum.removals += report.removals;
            sum.fences += report.fences;
            if report.violation.is_some() {
                sum.failed = Some(seed);
                stop.store(true, Ordering::Relaxed);
            }
        }
        sum
    };
    let sums: Vec<Summary> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut total = Summary { took: began.elapsed(), ..Summary::default() };
    for sum in sums {
        total.runs += sum.runs;
        total.events += sum.events;
        total.mounts += sum.mounts;
        total.takeovers += sum.takeovers;
        total.removals += sum.removals;
        total.fences += sum.fences;
        total.failed = [total.failed, sum.failed].into_iter().flatten().min();
    }
    total
}

/// Leaves out of a failing plan whatever it fails without, and runs what remains with a log.
#[must_use]
pub fn shrink(plan: &Plan) -> (Plan, Report) {
    let kind = |report: &Report| report.violation.as_ref().map(|(_, v)| std::mem::discriminant(v));
    let mut best = plan.clone();
    let wanted = kind(&run(&best, false));
    while let Some(smaller) =
        best.smaller().into_iter().find(|smaller| wanted.is_some() && kind(&run(smaller, false)) == wanted)
    {
        best = smaller;
    }
    let report = run(&best, true);
    (best, report)
}
