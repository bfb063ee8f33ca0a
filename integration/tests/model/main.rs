//! The protocol's cores, explored by a model checker: `make model` prints the sizes, `make model-large` tries
//! larger bounds.

mod machine;

use machine::{Bounds, SMALL, search, stuck};

fn explore(bounds: Bounds) {
    let found = search(bounds);
    println!(
        "{:<40} {:>9} states, depth {:>3}, {:>6.1} s{}",
        bounds.name,
        found.states,
        found.depth,
        found.seconds,
        if found.moved { "" } else { "; the volume never moved" }
    );
    if let Some((property, actions)) = found.failure {
        let machine = machine::Machine(bounds);
        let mut state = stateright::Model::init_states(&machine).remove(0);
        for action in actions {
            state = stateright::Model::next_state(&machine, &state, action.clone()).unwrap();
            println!("    {action:<24} {}", state.brief(), action = format!("{action:?}"));
        }
        panic!("{property}: {}", bounds.name);
    }
}

#[test]
fn at_most_one_host_writes_in_every_order_of_events() {
    SMALL.into_iter().for_each(explore);
}

#[test]
fn a_volume_becomes_takeable_from_every_state() {
    for bounds in SMALL {
        let (stuck, states) = stuck(bounds);
        println!("{:<40} {states:>9} states, {stuck} of them stuck", bounds.name);
        assert_eq!(stuck, 0, "{}", bounds.name);
    }
}

#[test]
fn zz_probe() {
    let base = Bounds { name: "p", reclaimers: 0, drift: false, faults: 0, losses: 0, revokes: 0, prepares: [1, 0], late_calls: 0, late_reads: false };
    for b in [Bounds { reclaimers: 1, ..base }, Bounds { reclaimers: 1, prepares: [1, 1], ..base }, Bounds{ losses: 1, ..base}, Bounds{faults: 1, ..base}] {
        println!("{b:?}");
        explore(b);
    }
}
