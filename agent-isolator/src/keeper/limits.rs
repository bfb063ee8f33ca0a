//! How much of this host's keeper tenants can have at once, so that none of them takes it from the others, and all of
//! them together take nothing that heartbeats need.
//!
//! ```text
//! prepares_max       prepares that wait for their answer; the next one is refused
//! driver_calls_max   calls of one driver under way; the others wait here, one container after the other
//! LOOKS_MAX          helper processes that look at mounts for launches, and as many again for releases
//! CONNECTIONS_MAX    connections to the keeper's socket, which only root can make
//! ```
//!
//! etcd's client has one connection for each member, made at the start, and the deadman its own files: with the
//! descriptors of [`raise_descriptors`] all of the above leaves tens of thousands for them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shared::protocol::holder::Output;
use shared::volume::{ContainerId, Driver};

/// Helper processes at once, of each kind. A hung one is given up after 10 s.
pub(super) const LOOKS_MAX: usize = 32;

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

/// For whom a driver is called: a container, or none, when a volume is given up.
type Caller = Option<ContainerId>;

/// The calls that wait for their driver.
#[derive(Debug)]
pub(super) struct DriverCalls {
    max: usize,
    drivers: BTreeMap<Driver, Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    under_way: usize,
    waiting: BTreeMap<Caller, VecDeque<Output>>,
    /// Whose call was made last: the next one after it is next.
    last: Caller,
}

impl DriverCalls {
    pub(super) fn new(max: usize) -> Self {
        Self { max, drivers: BTreeMap::new() }
    }

    /// Takes in a call; [`DriverCalls::next`] says when it is made.
    pub(super) fn add(&mut self, driver: Driver, caller: Caller, call: Output) {
        self.drivers.entry(driver).or_default().waiting.entry(caller).or_default().push_back(call);
    }

    /// A call that may be made now, of a driver that has not too many under way: it counts as under way until
    /// [`DriverCalls::ended`].
    pub(super) fn next(&mut self) -> Option<(Driver, Output)> {
        let max = self.max;
        let free = |(_, calls): &(&Driver, &mut Calls)| calls.under_way < max && !calls.waiting.is_empty();
        let (driver, calls) = self.drivers.iter_mut().find(free)?;
        Some((driver.clone(), calls.next()?))
    }

    /// A call of this driver has ended, or was not made.
    pub(super) fn ended(&mut self, driver: &Driver) {
        if let Some(calls) = self.drivers.get_mut(driver) {
            calls.under_way = calls.under_way.saturating_sub(1);
            if calls.under_way == 0 && calls.waiting.is_empty() {
                self.drivers.remove(driver);
            }
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
    fn next(&mut self) -> Option<Output> {
        let after = (Bound::Excluded(&self.last), Bound::Unbounded);
        let caller = self.waiting.range(after).next().or_else(|| self.waiting.iter().next())?.0.clone();
        let queue = self.waiting.get_mut(&caller)?;
        let call = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&caller);
        }
        self.last = caller;
        self.under_way += 1;
        Some(call)
    }
}

#[cfg(test)]
mod tests {
    use shared::protocol::Op;
    use shared::record::Token;
    use shared::store::Revision;
    use shared::volume::{VolumeId, VolumeName};

    use super::*;

    fn driver(name: &str) -> Driver {
        Driver::new(name).unwrap()
    }

    fn add(calls: &mut DriverCalls, name: &str, container: Option<&str>, op: u64) {
        let asked = VolumeId { driver: driver(name), name: VolumeName::new("v").unwrap() };
        let call = Output::Unmount { op: Op(op), token: Token(Revision(1)), asked, mounted: None };
        calls.add(driver(name), container.map(|id| ContainerId::new(id).unwrap()), call);
    }

    fn next(calls: &mut DriverCalls) -> Option<u64> {
        let (_, Output::Unmount { op: Op(op), .. }) = calls.next()? else { panic!() };
        Some(op)
    }

    #[test]
    fn a_drivers_calls_are_bounded_and_another_drivers_do_not_wait_for_them() {
        let mut calls = DriverCalls::new(2);
        for op in 1..=5 {
            add(&mut calls, "slow", Some("a"), op);
        }
        assert_eq!([next(&mut calls), next(&mut calls), next(&mut calls)], [Some(1), Some(2), None]);
        add(&mut calls, "zfast", Some("b"), 9);
        assert_eq!([next(&mut calls), next(&mut calls)], [Some(9), None]);
        calls.ended(&driver("slow"));
        assert_eq!([next(&mut calls), next(&mut calls)], [Some(3), None]);
    }

    #[test]
    fn containers_take_turns_at_a_driver_however_many_calls_one_has_waiting() {
        let mut calls = DriverCalls::new(1);
        for op in 1..=1_000 {
            add(&mut calls, "d", Some("hostile"), op);
        }
        assert_eq!(next(&mut calls), Some(1));
        add(&mut calls, "d", Some("bystander"), 2_001);
        add(&mut calls, "d", None, 2_002);
        let mut made = Vec::new();
        for _ in 0..4 {
            calls.ended(&driver("d"));
            made.extend(next(&mut calls));
        }
        assert_eq!(made, [2_002, 2_001, 2, 3]);
    }

    #[test]
    fn what_waits_is_forgotten_with_its_epoch_and_what_is_under_way_still_counts() {
        let mut calls = DriverCalls::new(1);
        add(&mut calls, "d", Some("a"), 1);
        add(&mut calls, "d", Some("a"), 2);
        assert_eq!(next(&mut calls), Some(1));
        calls.forget();
        add(&mut calls, "d", Some("a"), 3);
        assert_eq!(next(&mut calls), None);
        calls.ended(&driver("d"));
        assert_eq!(next(&mut calls), Some(3));
        calls.ended(&driver("d"));
        assert!(calls.drivers.is_empty());
    }

    #[test]
    fn a_keeper_has_descriptors_for_more_than_all_calls_and_looks() {
        raise_descriptors();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let reached = current.is_none_or(|current| current >= DESCRIPTORS) || current == maximum;
        assert!(reached, "{current:?} of {maximum:?}");
    }
}
