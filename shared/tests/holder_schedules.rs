//! Random schedules against the rules that no schedule may break.
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod holder_host;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holder_host::Host;
use shared::holder::{
    Idleness, Input, LeaseFault, LeaseState, MountFault, Op, Output, Sight, Table, UnmountFault,
};
use shared::record::Token;
use shared::store::Revision;
use shared::volume::VolumeId;

/// xorshift64: the same seed gives the same schedule.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % 1_000_003).unwrap() % n
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
struct Watched {
    under_way: BTreeMap<VolumeId, Output>,
    acquires: Vec<Output>,
    looks: Vec<(Op, String)>,
    confirmed: BTreeSet<VolumeId>,
    proved: BTreeSet<VolumeId>,
    /// Volumes that the driver was asked to mount under their present lease.
    asked: BTreeSet<VolumeId>,
}

impl Watched {
    /// Checks an output against the rules.
    fn see(&mut self, output: Output) {
        let id = match &output {
            Output::Acquire { .. } => return self.acquires.push(output),
            Output::Reply(..) | Output::Limit { .. } | Output::Warn(_) => return,
            Output::Mount { wanted, .. } => {
                assert!(self.confirmed.remove(&wanted.volume), "a mount without a fresh look at the lease");
                self.proved.remove(&wanted.volume);
                self.asked.insert(wanted.volume.clone());
                wanted.volume.clone()
            }
            // All mounts of this test have one name; a look concerns the one that is attached.
            Output::Look { op, mounted } => return self.looks.push((*op, mounted.mount_point.clone())),
            Output::Unmount { asked, .. } => {
                assert!(self.confirmed.remove(asked), "an unmount without a fresh look at the lease");
                asked.clone()
            }
            Output::Find { .. } => panic!("nothing was found here"),
            Output::ProveIdle { asked, .. } => asked.clone(),
            Output::Release { volume, .. } => {
                assert!(
                    self.proved.contains(volume) || !self.asked.contains(volume),
                    "released without proof"
                );
                volume.clone()
            }
            Output::Record { volume, .. } => volume.clone(),
        };
        if let Some(before) = self.under_way.insert(id, output.clone()) {
            panic!("two effects at once: {before:?} and {output:?}");
        }
    }

    /// Lets one effect end, maybe badly.
    fn end_one(&mut self, host: &mut Host, random: &mut Random, settling: bool) {
        if !self.acquires.is_empty() && random.one_in(2) {
            let acquire = self.acquires.remove(0);
            let Output::Acquire { op, volumes, .. } = acquire else { unreachable!() };
            let no = !settling && random.one_in(4);
            if !no {
                self.confirmed.extend(volumes.iter().cloned());
            }
            return host
                .give(Input::Acquired(op, if no { Err("held".into()) } else { Ok(Token(Revision(7))) }));
        }
        if !self.looks.is_empty() && random.one_in(2) {
            let (op, _) = self.looks.remove(0);
            let sight = match (settling, random.below(8)) {
                (false, 0) => Sight::Gone("gone".into()),
                (false, 1) => Sight::Unknown("hangs".into()),
                _ => Sight::Mounted { elsewhere: None },
            };
            return host.give(Input::Seen(op, sight));
        }
        if self.under_way.is_empty() {
            return;
        }
        let id = self.under_way.keys().nth(random.below(self.under_way.len())).unwrap().clone();
        let output = self.under_way.remove(&id).unwrap();
        let (fails, other) = (!settling && random.one_in(3), random.one_in(2));
        match &output {
            Output::Mount { op, .. } if fails => {
                let faults = [MountFault::Refused, MountFault::Unresolved, MountFault::Unreachable];
                let fault = faults[random.below(3)];
                host.give(Input::Mounted(*op, Err(fault("no".into()))));
            }
            Output::Record { op, .. } | Output::Release { op, .. } if fails => {
                host.give(Input::Written(*op, Err(LeaseFault::Unavailable("down".into()))));
            }
            Output::Unmount { op, .. } if fails => {
                let fault = if other { UnmountFault::Refused } else { UnmountFault::Unresolved };
                host.give(Input::Unmounted(*op, Err(fault("busy".into()))));
            }
            Output::ProveIdle { op, .. } if fails => {
                let busy = if other { Idleness::Mounted } else { Idleness::Pinned("x".into()) };
                host.give(Input::Idle(*op, busy));
            }
            Output::Release { .. } => {
                self.asked.remove(&id);
                host.succeed(output);
            }
            Output::Record { state: LeaseState::Detaching | LeaseState::Attaching, .. } => {
                self.confirmed.insert(id);
                host.succeed(output);
            }
            Output::ProveIdle { .. } => {
                self.proved.insert(id);
                host.succeed(output);
            }
            _ => host.succeed(output),
        }
    }
}

#[test]
fn no_schedule_breaks_the_order_of_effects_or_leaves_anything_behind() {
    for seed in 1..600_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut host = Host::new();
        let mut watched = Watched::default();
        for step in 0..300 {
            let settling = step > 200;
            match random.below(if settling { 4 } else { 8 }) {
                4 | 5 => {
                    let volumes: &[&str] = [&["a"][..], &["b"], &["a", "b"], &["b", "c"]][random.below(4)];
                    host.prepare(&format!("c{}", random.below(4)), volumes);
                }
                6 | 7 => host.cleanup(&format!("c{}", random.below(4))),
                3 => host.later(Duration::from_millis(if settling { 20_000 } else { 150 })),
                _ => watched.end_one(&mut host, &mut random, settling),
            }
            host.outputs().into_iter().for_each(|output| watched.see(output));
        }
        (0..4).for_each(|c| host.cleanup(&format!("c{c}")));
        let rest = watched.acquires.into_iter().chain(watched.under_way.into_values());
        rest.for_each(|output| host.succeed(output));
        for (op, _) in watched.looks {
            host.give(Input::Seen(op, Sight::Mounted { elsewhere: None }));
        }
        for _ in 0..50 {
            host.until_quiet();
            host.later(Duration::from_secs(60));
        }
        assert_eq!(host.core.table(), Table::default(), "seed {seed}: something stays behind");
    }
}
