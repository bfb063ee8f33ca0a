//! What a copy of the core with a seeded mistake is put through, the cheap first.

use super::plan::Plan;
use super::run::run;
use super::scenarios;
use super::search::search;

/// How many schedules are tried first, and how many after the model, which takes longer than these.
const RUNS: [u64; 2] = [20_000, 130_000];

/// Looks for a mistake, and prints what found it; answers 0 when something did, and 1 otherwise. `hint` is a seed that
/// has found it before: after the scenarios it is tried first.
#[must_use]
pub fn hunt(hint: Option<u64>, model: fn() -> Option<String>) -> i32 {
    let found = scenarios::check()
        .err()
        .map(str::to_owned)
        .or_else(|| simulate(hint?, 1))
        .or_else(|| simulate(1, RUNS[0]))
        .or_else(|| Some(format!("model: {}", model()?)))
        .or_else(|| simulate(1 + RUNS[0], RUNS[1]));
    match found {
        Some(found) => {
            println!("{found}");
            0
        }
        None => {
            println!("nothing");
            1
        }
    }
}

fn simulate(first: u64, runs: u64) -> Option<String> {
    let seed = search(first, runs, 2).failed?;
    let violation = run(&Plan::of(seed), false).violation;
    let text = violation.map(|(_, violation)| format!("{violation:?}")).unwrap_or_default();
    let kind = text.split([' ', '{']).next().unwrap_or_default();
    Some(format!("simulation: {kind}, seed {seed}"))
}
