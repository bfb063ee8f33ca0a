//! The protocol's cores, explored by a model checker: `make model` prints the sizes, `make model-large` tries
//! larger bounds.

mod bounds;
mod explore;
mod fingerprint;
mod machine;
mod numbers;
mod state;

use std::time::{Duration, Instant};

use bounds::{Bounds, LARGE, SMALL};
use explore::{Found, LIMIT, check, explore};
use machine::{Action, Machine};
use rustix::time::{ClockId, clock_gettime};
use stateright::Model;

/// What this thread has used of a processor: what a machine that others use too would take.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), 0).as_secs_f64() + time.tv_nsec as f64 / 1e9
}

/// Prints how a state comes about, one action a line.
fn tell(bounds: Bounds, actions: Vec<Action>) {
    let machine = Machine(bounds);
    let mut state = machine.init_states().remove(0);
    for action in actions {
        let name = format!("{action:?}");
        state = machine.next_state(&state, action).expect("the checker took this step");
        println!("    {name:<24} {}", state.brief());
    }
}

/// Explores, prints what was found, and fails if that is a failure.
fn try_all(bounds: Bounds, explore: impl FnOnce(Bounds) -> Found) -> Found {
    let (began, processor) = (Instant::now(), processor_time());
    let mut found = explore(bounds);
    println!(
        "{:<52} {:>9} states, depth {:>3}, {:>6.1} s, {:>6.1} s of a processor{}{}",
        bounds.name,
        found.states,
        found.depth,
        began.elapsed().as_secs_f64(),
        processor_time() - processor,
        if found.moved { "" } else { "; the volume never moved" },
        if found.complete { "" } else { "; NOT all states" }
    );
    if let Some((property, actions)) = found.failure.take() {
        tell(bounds, actions);
        panic!("{property}: {}", bounds.name);
    }
    found
}

/// Every state within the bounds of that name: no two writers in any, and none in which the volume stays taken.
fn all_of(name: &str) {
    let bounds = SMALL.into_iter().find(|bounds| bounds.name == name).expect("there are bounds of this name");
    let found = try_all(bounds, |bounds| explore(bounds, LIMIT));
    assert!(found.complete && found.moved);
}

/// One test for each, for a machine with several processors runs several tests at once.
macro_rules! tests {
    ($($test:ident: $name:literal;)*) => {
        $(#[test] fn $test() { all_of($name); })*
        #[test]
        fn all_small_bounds_are_tried() {
            assert_eq!([$($name),*], SMALL.map(|bounds| bounds.name));
        }
    };
}

tests! {
    requests_at_any_pace: "requests at any pace";
    an_unknown_outcome: "an unknown outcome, no reclaimer";
    a_crash: "a crash, no reclaimer";
    a_revoke: "a revoke, no reclaimer";
    two_reclaimers: "two reclaimers, one leads, atomic reads";
    an_unknown_outcome_and_a_reclaimer: "an unknown outcome, atomic reads";
    a_suspend: "a suspend, atomic reads";
    clocks_that_err_and_a_late_driver_call: "clocks that err and a late driver call, atomic reads";
    a_crash_of_worker_or_deadman_and_a_reclaimer: "a crash of worker or deadman, atomic reads";
    a_crash_of_the_keeper_and_a_reclaimer: "a crash of the keeper, atomic reads";
    a_crash_of_the_host_and_a_reclaimer: "a crash of the host, atomic reads";
}

#[test]
fn stateright_finds_the_same_states() {
    let bounds = SMALL[3];
    let (ours, theirs) = (explore(bounds, LIMIT), check(bounds));
    assert_eq!((ours.states, ours.moved), (theirs.states, theirs.moved));
    assert!(ours.failure.is_none() && theirs.failure.is_none());
}

#[test]
fn within_larger_bounds() {
    // Asked for by name alone (`make model-large`): it needs memory and time that CI does not have.
    // Its value is a part of the names of those to try.
    if let Ok(part) = std::env::var("EXTVOL_MODEL_LARGE") {
        let limit = std::env::var("EXTVOL_MODEL_LIMIT").ok().and_then(|limit| limit.parse().ok());
        for bounds in SMALL.into_iter().chain(LARGE).filter(|bounds| bounds.name.contains(&part)) {
            match limit {
                Some(limit) => try_all(bounds, |bounds| explore(bounds, limit)),
                None => try_all(bounds, check),
            };
        }
    }
}
