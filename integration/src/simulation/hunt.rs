//! What a copy of the core with a seeded mistake is put through, the cheap first.

use super::plan::Plan;
use super::run::run;
use super::scenarios;
use super::search::search;

/// How many schedules a mistake may survive.
const RUNS: u64 = 150_000;

/// Looks for a mistake, and prints what found it; answers 0 when something did, and 1 otherwise.
#[must_use]
pub fn hunt(model: fn() -> Option<String>) -> i32 {
    if let Err(why) = scenarios::check() {
        println!("{why}");
        return 0;
    }
    if let Some(seed) = search(1, RUNS, 2).failed {
        let violation = run(&Plan::of(seed), false).violation;
        let text = violation.map(|(_, violation)| format!("{violation:?}")).unwrap_or_default();
        let kind = text.split([' ', '{']).next().unwrap_or_default().to_owned();
        println!("simulation: {kind}, seed {seed}");
        return 0;
    }
    if let Some(found) = model() {
        println!("model: {found}");
        return 0;
    }
    println!("nothing");
    1
}
