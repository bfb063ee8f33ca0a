//! What a copy of the core with a seeded mistake is put through, the cheap first.

use super::scenarios;
use super::search::{Summary, search};
use super::plan::Plan;
use super::run::run;

/// How many schedules a mistake may survive.
const RUNS: u64 = 150_000;

/// Looks for a mistake, and prints what found it; answers 0 when something did, and 1 otherwise.
#[must_use]
pub fn hunt(model: fn() -> Option<String>) -> i32 {
    if let Err(why) = scenarios::check() {
        println!("{why}");
        return 0;
    }
    // Most mistakes show at once; the model is asked before the rare ones are hunted for.
    let mut from = 1;
    for (runs, then_model) in [(20_000, true), (RUNS - 20_000, false)] {
        let Summary { failed, .. } = search(from, runs, 2);
        if let Some(seed) = failed {
            let violation = run(&Plan::of(seed), false).violation;
            let text = violation.map(|(_, violation)| format!("{violation:?}")).unwrap_or_default();
            let kind = text.split([' ', '{']).next().unwrap_or_default().to_owned();
            println!("simulation: {kind}, seed {seed}");
            return 0;
        }
        from += runs;
        if then_model && let Some(found) = model() {
            println!("model: {found}");
            return 0;
        }
    }
    println!("nothing");
    1
}
