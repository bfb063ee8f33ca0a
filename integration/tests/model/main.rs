//! The protocol's cores, explored by a model checker: `make model` prints the sizes, `make model-large` tries
//! larger bounds.

mod machine;

use machine::{Action, Bounds, LARGE, Machine, SMALL, search, stuck};
use stateright::Model;

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
        tell(bounds, actions);
        panic!("{property}: {}", bounds.name);
    }
}

#[test]
fn at_most_one_host_writes_in_every_order_of_events() {
    SMALL.into_iter().for_each(explore);
}

#[test]
fn at_most_one_host_writes_within_larger_bounds() {
    // Asked for by name alone (`make model-large`): it needs memory and time that CI does not have.
    // Its value is a part of the names of those to try.
    if let Ok(part) = std::env::var("EXTVOL_MODEL_LARGE") {
        LARGE.into_iter().filter(|bounds| bounds.name.contains(&part)).for_each(explore);
    }
}

#[test]
fn a_volume_becomes_takeable_from_every_state() {
    for bounds in SMALL {
        let (stuck, states, actions) = stuck(bounds);
        println!("{:<40} {states:>9} states, {stuck} of them stuck", bounds.name);
        tell(bounds, actions);
        assert_eq!(stuck, 0, "{}", bounds.name);
    }
}
