//! Runs simulated schedules of the protocol core, each made from a seed: `extvol-simulate RUNS [SEED]`.
//! On a failure it prints the seed, the smallest plan that still fails, and that plan's events.

use std::process::ExitCode;

use integration::simulation::plan::Plan;
use integration::simulation::search::{search, shrink};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (runs, seed) = match (arguments.next().unwrap_or(Ok(20_000)), arguments.next().unwrap_or(Ok(1))) {
        (Ok(runs), Ok(seed)) => (runs, seed),
        _ => {
            eprintln!("usage: extvol-simulate [RUNS [SEED]]: two numbers");
            return ExitCode::from(2);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let sum = search(seed, runs, threads);
    let seconds = sum.took.as_secs_f64();
    println!(
        "{} schedules from seed {seed} in {seconds:.1} s on {threads} processors: {:.0} a second, {} events; \
         {} mounts, {} removals, {} unsettled take-overs, {} fences",
        sum.runs,
        sum.runs as f64 / seconds,
        sum.events,
        sum.mounts,
        sum.removals,
        sum.takeovers,
        sum.fences
    );
    let Some(failed) = sum.failed else { return ExitCode::SUCCESS };
    let (plan, report) = shrink(&Plan::of(failed));
    println!("seed {failed} failed. The smallest plan that does:");
    match serde_json::to_string(&plan) {
        Ok(text) => println!("{text}"),
        Err(error) => println!("{plan:?} ({error})"),
    }
    for line in &report.log {
        println!("{line}");
    }
    println!("again: make simulate RUNS=1 SEED={failed}");
    ExitCode::FAILURE
}
