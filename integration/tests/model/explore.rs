//! Visits every state within some bounds once: checks it, and finds out from which of them the volume can no longer
//! become takeable without a further fault.
//!
//! Safety and this are one pass over one graph: forward to find the states, then backward from those in which the
//! volume is takeable. [`check`] is stateright's own checker, for what is too large to keep a graph of, and for
//! comparing the two.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use super::bounds::{Bounds, SMALL};
use super::fingerprint::Fingerprint;
use super::machine::{Action, Machine};
use super::state::State;

/// What an exploration came to.
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) depth: usize,
    /// A property that fails, with the actions that lead there.
    pub(crate) failure: Option<(String, Vec<Action>)>,
    pub(crate) moved: bool,
    /// Whether there were no more states than were asked for.
    pub(crate) complete: bool,
}

/// More states than this are taken for a mistake in the model: a number that is not kept relative.
pub(crate) const LIMIT: usize = 40_000_000;

/// The states in the order in which they were found, and how each was reached first.
struct Graph {
    known: HashMap<u64, u32, BuildHasherDefault<Fingerprint>>,
    parents: Vec<Option<(u32, Action)>>,
    /// Whether the volume is takeable there, or becomes so.
    good: Vec<bool>,
    /// Steps that need no fault, from and to.
    steps: Vec<(u32, u32)>,
}

impl Graph {
    fn path(&self, to: u32) -> Vec<Action> {
        let mut path = Vec::new();
        let mut at = to;
        while let Some((from, action)) = &self.parents[at as usize] {
            path.push(action.clone());
            at = *from;
        }
        path.reverse();
        path
    }

    /// The first state from which no good one can be reached, and how many there are.
    fn stuck(&mut self) -> (usize, Option<u32>) {
        self.steps.sort_unstable_by_key(|(_, to)| *to);
        let mut stack: Vec<u32> =
            (0..).zip(&self.good).filter(|(_, good)| **good).map(|(number, _)| number).collect();
        while let Some(state) = stack.pop() {
            let first = self.steps.partition_point(|(_, to)| *to < state);
            for (from, _) in self.steps[first..].iter().take_while(|(_, to)| *to == state) {
                if !std::mem::replace(&mut self.good[*from as usize], true) {
                    stack.push(*from);
                }
            }
        }
        let mut stuck = (0..).zip(&self.good).filter(|(_, good)| !**good).map(|(number, _)| number);
        let first = stuck.next();
        (stuck.count() + usize::from(first.is_some()), first)
    }
}

/// Tries all orders of events within the bounds, up to so many states.
#[must_use]
pub(crate) fn explore(bounds: Bounds, limit: usize) -> Found {
    let machine = Machine(bounds);
    let properties = machine.properties();
    let key = |state: &State| {
        let mut hasher = Fingerprint::default();
        state.hash(&mut hasher);
        hasher.finish()
    };
    let mut graph =
        Graph { known: HashMap::default(), parents: Vec::new(), good: Vec::new(), steps: Vec::new() };
    let mut queue = VecDeque::new();
    for state in machine.init_states() {
        graph.known.insert(key(&state), 0);
        graph.parents.push(None);
        graph.good.push(state.is_free_or_used(&bounds));
        queue.push_back(state);
    }
    let mut found = Found { states: 0, depth: 0, failure: None, moved: false, complete: true };
    let (mut from, mut layer) = (0, queue.len());
    let mut actions = Vec::new();
    while let Some(state) = queue.pop_front() {
        if layer == 0 {
            found.depth += 1;
            layer = queue.len() + 1;
        }
        layer -= 1;
        machine.actions(&state, &mut actions);
        for action in actions.drain(..) {
            let healthy = action.is_healthy();
            let Some(next) = machine.next_state(&state, action.clone()) else { continue };
            if !machine.within_boundary(&next) {
                // Beyond is another epoch, which ends the lease of this one.
                graph.good[from as usize] |= healthy;
                continue;
            }
            let number = u32::try_from(graph.good.len()).unwrap_or(u32::MAX);
            let to = *graph.known.entry(key(&next)).or_insert(number);
            if healthy && to != from {
                graph.steps.push((from, to));
            }
            if to < number {
                continue;
            }
            graph.parents.push(Some((from, action)));
            graph.good.push(next.is_free_or_used(&bounds));
            for property in &properties {
                let holds = (property.condition)(&machine, &next);
                match property.expectation {
                    Expectation::Always if !holds => {
                        found.failure = Some((property.name.to_owned(), graph.path(to)));
                        found.states = graph.good.len();
                        return found;
                    }
                    Expectation::Sometimes => found.moved |= holds,
                    _ => {}
                }
            }
            queue.push_back(next);
        }
        from += 1;
        if graph.good.len() > limit {
            found.states = graph.good.len();
            found.complete = false;
            return found;
        }
    }
    found.states = graph.good.len();
    if let (stuck, Some(first)) = graph.stuck() {
        found.failure = Some((format!("the volume stays taken, from {stuck} states"), graph.path(first)));
    }
    found
}

/// The same by stateright's checker, without looking for states in which the volume stays taken.
#[must_use]
pub(crate) fn check(bounds: Bounds) -> Found {
    let checker = Machine(bounds)
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(LIMIT)
        .spawn_bfs()
        .join();
    let failure = ["never two writers", "nothing else goes wrong"].into_iter().find_map(|name| {
        let path = checker.discovery(name)?;
        Some((name.to_owned(), path.into_actions()))
    });
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        failure,
        moved: checker.discovery("the volume moves").is_some(),
        complete: checker.state_count() < LIMIT,
    }
}

/// Explores the small bounds; answers what failed first.
#[must_use]
#[expect(dead_code, reason = "extvol-mutants compiles this file too, and calls it")]
pub(crate) fn small() -> Option<String> {
    SMALL.into_iter().find_map(|bounds| {
        let (property, _) = explore(bounds, LIMIT).failure?;
        Some(format!("{property} ({})", bounds.name))
    })
}
