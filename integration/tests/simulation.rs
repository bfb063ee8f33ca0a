//! Simulated clusters of the protocol core. `make simulate` runs more of them.

use integration::simulation::plan::Plan;
use integration::simulation::run::run;
use integration::simulation::search::search;

#[test]
fn twenty_thousand_schedules_keep_the_promise() {
    let sum = search(1, 20_000, std::thread::available_parallelism().map_or(1, usize::from));
    assert_eq!(sum.failed, None, "make simulate RUNS=1 SEED=<this seed> shows why");
    // They are about something: volumes are mounted, taken over and fenced in them.
    assert!(sum.mounts > 20_000 && sum.takeovers > 200 && sum.fences > 1_000, "{sum:?}");
    assert!(sum.removals > 2_000, "{sum:?}");
}

#[test]
fn each_scenario_ends_as_it_should() {
    assert_eq!(integration::simulation::scenarios::check(), Ok(()));
}

#[test]
fn a_plan_runs_the_same_way_every_time_also_from_its_text() {
    for seed in 1..50 {
        let plan = Plan::of(seed);
        let text = serde_json::to_string(&plan).unwrap();
        let again: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(again, plan);
        assert_eq!(again.check(), Ok(()));
        assert_eq!(run(&plan, true), run(&again, true), "seed {seed}");
    }
}

#[test]
fn a_plan_that_names_what_is_not_there_is_refused() {
    let mut plan = Plan::of(1);
    plan.tasks[0].host = 99;
    assert!(plan.check().is_err());
}
