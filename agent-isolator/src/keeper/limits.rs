//! How much of this host's keeper tenants can have at once, so that none of them takes it from the others, and all of
//! them together take nothing that heartbeats need.
//!
//! ```text
//! prepares_max       prepares that wait for their answer; the next one is refused
//! driver_calls_max   calls of one driver under way, a quarter of them for one container; the others wait here, one container after
//!                    the other
//! LOOKS_MAX          helper processes that look at mounts for launches, and as many again for releases
//! CONNECTIONS_MAX    connections to the keeper's socket, which only root can make
//! ```
//!
//! etcd's client has one connection for each member, made at the start, and the deadman its own files: with the
//! descriptors of [`raise_descriptors`] all of the above leaves tens of thousands for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::protocol::holder::{Output, Wanted};
use shared::volume::{ContainerId, Driver, VolumeId};

/// Helper processes at once, of each kind. A hung one is given up after 10 s.
pub(super) const LOOKS_MAX: usize = 32;

/// So many volumes that are held no more are remembered.
pub(super) const FORGOTTEN_LATER: usize = 16;

/// Connections to the socket: an agent has one, and a host two agents at most.
pub(super) const CONNECTIONS_MAX: usize = 64;

/// A keeper's descriptors. A thousand, the usual limit, are seventy calls of a plugin and what belongs to them.
const DESCRIPTORS: u64 = 65_536;

/// Raises this process's limit of descriptors, as far as the kernel lets it. For the first lines of worker and deadman.
pub fn raise_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= DESCRIPTORS);
    if enough(current) {
        return;
    }
    let raised = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: if enough(maximum) { maximum } else { Some(DESCRIPTORS) },
    };
    if setrlimit(Resource::Nofile, raised).is_err() {
        // Without the right to raise the hard limit: as far as that goes.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// For whom a driver is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Caller {
    /// The container that uses the volume, or was the last to.
    Container(ContainerId),
    /// A volume of which this life of the keeper knows no container.
    Volume(VolumeId),
}

/// A call that may be made, and counts as under way until it is said to have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    driver: Driver,
    caller: Caller,
}

impl Turn {
    pub(super) fn driver(&self) -> &Driver {
        &self.driver
    }
}

/// The calls that wait for their driver.
#[derive(Debug)]
pub(super) struct DriverCalls {
    max: usize,
    /// Of drivers that have a number of their own.
    max_of: BTreeMap<Driver, usize>,
    drivers: BTreeMap<Driver, Calls>,
    /// For whom a volume, as its driver is asked for it, was wanted last.
    users: BTreeMap<VolumeId, ContainerId>,
}

#[derive(Debug, Default)]
struct Calls {
    under_way: BTreeMap<Caller, usize>,
    /// Of those that had no answer, and may still happen, the volumes.
    unanswered: Vec<VolumeId>,
    waiting: BTreeMap<Caller, VecDeque<Output>>,
    /// Whose call was made last: the next one after it is next.
    last: Option<Caller>,
}

impl DriverCalls {
    pub(super) fn new(max: usize, max_of: BTreeMap<Driver, usize>) -> Self {
        Self { max, max_of, drivers: BTreeMap::new(), users: BTreeMap::new() }
    }

    /// For whom a volume's driver is called: who gives volumes up without end waits behind itself, and not before others.
    pub(super) fn caller(&mut self, asked: &VolumeId, user: Option<ContainerId>) -> Caller {
        if let Some(user) = user {
            self.users.insert(asked.clone(), user);
        }
        let known = self.users.get(asked).cloned();
        known.map_or_else(|| Caller::Volume(asked.clone()), Caller::Container)
    }

    /// Forgets volumes that are not among these any more; not each time, for that is work for each of them.
    pub(super) fn forget_users<'a>(&mut self, still: impl ExactSizeIterator<Item = &'a VolumeId>) {
        if self.users.len() > 2 * still.len() + FORGOTTEN_LATER {
            let still: BTreeSet<_> = still.collect();
            self.users.retain(|asked, _| still.contains(asked));
        }
    }

    /// Takes in a call; [`DriverCalls::next`] says when it is made.
    pub(super) fn add(&mut self, driver: Driver, caller: Caller, call: Output) {
        self.drivers.entry(driver).or_default().waiting.entry(caller).or_default().push_back(call);
    }

    /// A call that may be made now, of a driver that has not too many under way: it counts as under way until
    /// [`DriverCalls::ended`].
    pub(super) fn next(&mut self) -> Option<(Turn, Output)> {
        let (max, max_of) = (self.max, &self.max_of);
        self.drivers.iter_mut().find_map(|(driver, calls)| {
            let (caller, call) = calls.next(max_of.get(driver).copied().unwrap_or(max))?;
            Some((Turn { driver: driver.clone(), caller }, call))
        })
    }

    /// A call of this driver had no answer: it counts as under way until it has settled, but for Unmounts and for calls of the same
    /// volume. Who has to give a volume back has no time to wait; and what took too long may be done when it is asked for again.
    pub(super) fn unanswered(&mut self, Turn { driver, .. }: &Turn, asked: VolumeId) {
        if let Some(calls) = self.drivers.get_mut(driver) {
            calls.unanswered.push(asked);
        }
    }

    /// A call without an answer has settled.
    pub(super) fn settled(&mut self, turn: &Turn, asked: &VolumeId) {
        if let Some(calls) = self.drivers.get_mut(&turn.driver)
            && let Some(place) = calls.unanswered.iter().position(|volume| volume == asked)
        {
            calls.unanswered.swap_remove(place);
        }
        self.ended(turn);
    }

    /// A call of this driver has ended, or was not made.
    pub(super) fn ended(&mut self, Turn { driver, caller }: &Turn) {
        let Some(calls) = self.drivers.get_mut(driver) else { return };
        if let Some(count) = calls.under_way.get_mut(caller) {
            *count -= 1;
            if *count == 0 {
                calls.under_way.remove(caller);
            }
        }
        if calls.under_way.is_empty() && calls.waiting.is_empty() {
            self.drivers.remove(driver);
        }
    }

    /// Forgets what waits: it is of an epoch that is over. What is under way ends by itself.
    pub(super) fn forget(&mut self) {
        for calls in self.drivers.values_mut() {
            calls.waiting.clear();
        }
    }
}

impl Calls {
    fn next(&mut self, max: usize) -> Option<(Caller, Output)> {
        let under_way = self.under_way.values().sum::<usize>();
        if under_way >= max {
            return if under_way - self.unanswered.len() < max { self.next_beside() } else { None };
        }
        // One container's volumes may all be of a plugin's that hang.
        let of_one = (max / 4).max(1);
        let may = |(caller, _): &(&Caller, &VecDeque<Output>)| {
            self.under_way.get(*caller).is_none_or(|count| *count < of_one)
        };
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let others = || self.waiting.range((after, Bound::Unbounded)).chain(self.waiting.iter());
        // Who waits alone may have all but a quarter: that is for whoever comes next.
        let alone = || {
            let free = max - self.under_way.values().sum::<usize>();
            others().next().filter(|_| free > of_one && self.waiting.len() == 1)
        };
        let caller = others().find(may).or_else(alone)?.0.clone();
        self.take(caller, 0)
    }

    /// One that does not wait for calls without an answer.
    fn next_beside(&mut self) -> Option<(Caller, Output)> {
        let after = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut others = self.waiting.range((after, Bound::Unbounded)).chain(self.waiting.iter());
        let passes = |call: &Output| match call {
            Output::Unmount { .. } => true,
            Output::Settle { asked, .. } | Output::Mount { wanted: Wanted { asked, .. }, .. } => {
                self.unanswered.contains(asked)
            }
            _ => false,
        };
        let place = |queue: &VecDeque<Output>| queue.iter().position(passes);
        let (caller, place) = others.find_map(|(caller, queue)| Some((caller.clone(), place(queue)?)))?;
        self.take(caller, place)
    }

    fn take(&mut self, caller: Caller, place: usize) -> Option<(Caller, Output)> {
        let queue = self.waiting.get_mut(&caller)?;
        let call = queue.remove(place)?;
        if queue.is_empty() {
            self.waiting.remove(&caller);
        }
        *self.under_way.entry(caller.clone()).or_default() += 1;
        self.last = Some(caller.clone());
        Some((caller, call))
    }
}

#[cfg(test)]
mod tests {
    use shared::protocol::Op;
    use shared::record::Token;
    use shared::store::Revision;
    use shared::volume::VolumeName;

    use super::*;

    fn driver(name: &str) -> Driver {
        Driver::new(name).unwrap()
    }

    /// The calls, and those under way.
    struct World {
        calls: DriverCalls,
        made: BTreeMap<u64, Turn>,
    }

    impl World {
        fn new(max: usize) -> Self {
            Self { calls: DriverCalls::new(max, BTreeMap::new()), made: BTreeMap::new() }
        }

        fn add(&mut self, name: &str, container: Option<&str>, op: u64) {
            let asked = VolumeId { driver: driver(name), name: VolumeName::new(format!("v{op}")).unwrap() };
            let caller = self.calls.caller(&asked, container.map(|id| ContainerId::new(id).unwrap()));
            let call = Output::Unmount { op: Op(op), token: Token(Revision(1)), asked, mounted: None };
            self.calls.add(driver(name), caller, call);
        }

        fn next(&mut self) -> Option<u64> {
            let (turn, Output::Unmount { op: Op(op), .. }) = self.calls.next()? else { panic!() };
            self.made.insert(op, turn);
            Some(op)
        }

        fn end(&mut self, op: u64) {
            self.calls.ended(&self.made[&op]);
        }
    }

    #[test]
    fn a_drivers_calls_are_bounded_and_another_drivers_do_not_wait_for_them() {
        let mut world = World::new(2);
        for op in 1..=5 {
            world.add("slow", Some(&format!("c{op}")), op);
        }
        assert_eq!([world.next(), world.next(), world.next()], [Some(1), Some(2), None]);
        world.add("zfast", Some("b"), 9);
        assert_eq!([world.next(), world.next()], [Some(9), None]);
        world.end(1);
        assert_eq!([world.next(), world.next()], [Some(3), None]);
    }

    #[test]
    fn one_container_has_a_quarter_of_a_drivers_calls_while_another_waits() {
        let mut world = World::new(8);
        for op in 1..=20 {
            world.add("d", Some("hostile"), op);
        }
        for op in 101..=103 {
            world.add("d", Some("other"), op);
        }
        let made = [world.next(), world.next(), world.next(), world.next(), world.next()];
        assert_eq!(made, [Some(1), Some(101), Some(2), Some(102), None]);
    }

    #[test]
    fn one_that_waits_alone_leaves_a_quarter_to_who_comes_next() {
        let mut world = World::new(8);
        for op in 1..=20 {
            world.add("d", Some("one"), op);
        }
        let made: Vec<_> = std::iter::from_fn(|| world.next()).collect();
        assert_eq!(made, [1, 2, 3, 4, 5, 6]);
        world.add("d", Some("bystander"), 99);
        assert_eq!([world.next(), world.next()], [Some(99), None]);
    }

    #[test]
    fn containers_take_turns_at_a_driver_however_many_calls_one_has_waiting() {
        let mut world = World::new(1);
        for op in 1..=1_000 {
            world.add("d", Some("hostile"), op);
        }
        assert_eq!(world.next(), Some(1));
        world.add("d", Some("bystander"), 2_001);
        world.add("d", None, 2_002);
        let mut made = vec![1];
        for _ in 0..4 {
            world.end(*made.last().unwrap());
            made.extend(world.next());
        }
        assert_eq!(made, [1, 2_002, 2_001, 2, 3]);
    }

    #[test]
    fn what_is_given_up_waits_behind_the_container_that_wanted_it() {
        let mut world = World::new(1);
        for op in 1..=100 {
            world.add("d", Some("hostile"), op);
        }
        assert_eq!(world.next(), Some(1));
        // Their Unmounts, when nobody uses them any more.
        for op in 1..=100 {
            world.add("d", None, op);
        }
        world.add("d", Some("bystander"), 999);
        world.end(1);
        assert_eq!(world.next(), Some(999));
    }

    #[test]
    fn behind_a_call_without_an_answer_unmounts_and_the_same_volume_are_all_until_it_has_settled() {
        let mut world = World::new(1);
        world.add("d", Some("a"), 1);
        assert_eq!(world.next(), Some(1));
        let asked = VolumeId { driver: driver("d"), name: VolumeName::new("m").unwrap() };
        let caller = world.calls.caller(&asked, Some(ContainerId::new("b").unwrap()));
        let settle = |op: u64, asked: &VolumeId| Output::Settle {
            op: Op(op),
            token: Token(Revision(1)),
            asked: asked.clone(),
        };
        world.calls.add(driver("d"), caller, settle(2, &asked));
        world.add("d", Some("b"), 3);
        world.add("d", Some("c"), 4);
        assert_eq!(world.next(), None);
        let lost = VolumeId { driver: driver("d"), name: VolumeName::new("v1").unwrap() };
        world.calls.unanswered(&world.made[&1], lost.clone());
        // One at a time, also those.
        assert_eq!([world.next(), world.next()], [Some(3), None]);
        world.end(3);
        assert_eq!([world.next(), world.next()], [Some(4), None]);
        world.end(4);
        assert!(world.calls.next().is_none());
        // What took too long may be done by now.
        let caller = world.calls.caller(&lost, None);
        world.calls.add(driver("d"), caller, settle(5, &lost));
        let Some((again, Output::Settle { op: Op(5), .. })) = world.calls.next() else {
            panic!("it is asked again")
        };
        world.calls.ended(&again);
        assert!(world.calls.next().is_none());
        world.calls.settled(&world.made[&1], &lost);
        assert!(matches!(world.calls.next(), Some((_, Output::Settle { op: Op(2), .. }))));
    }

    #[test]
    fn what_waits_is_forgotten_with_its_epoch_and_what_is_under_way_still_counts() {
        let mut world = World::new(1);
        world.add("d", Some("a"), 1);
        world.add("d", Some("a"), 2);
        assert_eq!(world.next(), Some(1));
        world.calls.forget();
        world.add("d", Some("a"), 3);
        assert_eq!(world.next(), None);
        world.end(1);
        assert_eq!(world.next(), Some(3));
        world.end(3);
        assert!(world.calls.drivers.is_empty());
    }

    #[test]
    fn a_keeper_has_descriptors_for_more_than_all_calls_and_looks() {
        raise_descriptors();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let reached = current.is_none_or(|current| current >= DESCRIPTORS) || current == maximum;
        assert!(reached, "{current:?} of {maximum:?}");
    }
}
