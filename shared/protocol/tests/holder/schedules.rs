//! Random schedules against the rules that no schedule may break.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::exchange::Stage;
use protocol::holder::{Idleness, MountFault, Sight, UnmountFault};

use crate::etcd::Fate;
use crate::host::{Host, PAUSE, SETTLE, Step, mount};

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
    /// Volumes whose lease a transaction has confirmed since their driver was last called.
    confirmed: BTreeSet<String>,
    proved: BTreeSet<String>,
    /// Volumes that the driver was asked to mount under their present lease.
    asked: BTreeSet<String>,
    releases: usize,
}

impl Watched {
    /// Checks a step against the rules. That no two effects of one volume overlap is checked by the host.
    fn see(&mut self, step: Step) {
        match step {
            Step::Acquire(names) => self.confirmed.extend(names),
            Step::Record(name, Stage::Attaching | Stage::Detaching, _) => {
                self.confirmed.insert(name);
            }
            Step::Mount(name) => {
                assert!(self.confirmed.remove(&name), "a mount without a fresh look at the lease");
                self.proved.remove(&name);
                self.asked.insert(name);
            }
            Step::Unmount(name) => {
                assert!(self.confirmed.remove(&name), "an unmount without a fresh look at the lease");
                self.proved.remove(&name);
            }
            Step::Release(name) => {
                let proved = self.proved.remove(&name);
                assert!(self.asked.remove(&name) <= proved, "released without proof");
                self.releases += 1;
            }
            Step::Fence(why) => panic!("fenced: {why}"),
            _ => {}
        }
    }

    /// Lets one effect end, maybe badly.
    fn end_one(&mut self, host: &mut Host, random: &mut Random, settling: bool) {
        let calls = host.calls();
        if calls.is_empty() {
            return;
        }
        let (name, step) = calls[random.below(calls.len())].clone();
        let (fails, kind) = (!settling && random.one_in(3), random.below(3));
        match step {
            Step::Mount(_) if fails => {
                let faults = [MountFault::Refused, MountFault::Unresolved, MountFault::Unreachable];
                host.mounts(&name, Err(faults[kind]("no".into())));
            }
            Step::Mount(_) if !settling && random.one_in(10) => {
                let mounted = Some(Box::new(mount(&name)));
                let unusable = MountFault::Unusable { why: "elsewhere".into(), mounted };
                let fault = if kind == 0 { MountFault::NotItsOwn("another's".into()) } else { unusable };
                // Nothing of its own is mounted: there is nothing to prove.
                if kind == 0 {
                    self.proved.insert(name.clone());
                }
                host.mounts(&name, Err(fault));
            }
            Step::Unmount(_) if fails => {
                let faults = [UnmountFault::Refused, UnmountFault::Unresolved, UnmountFault::Unreachable];
                host.unmounts(&name, Err(faults[kind]("busy".into())));
            }
            Step::Look(_) if fails => host.sees(
                &name,
                match kind {
                    0 => Sight::Gone("gone".into()),
                    1 => Sight::Unknown("hangs".into()),
                    _ => Sight::Mounted { elsewhere: Some("process 7".into()) },
                },
            ),
            Step::Prove(_) if fails => host.finds(
                &name,
                match kind {
                    0 => Idleness::Mounted,
                    1 => Idleness::Pinned("process 7".into()),
                    _ => Idleness::Unknown("hangs".into()),
                },
            ),
            Step::Prove(_) => {
                self.proved.insert(name.clone());
                host.succeed(&name);
            }
            _ => host.succeed(&name),
        }
    }
}

#[test]
fn no_schedule_breaks_the_order_of_effects_or_leaves_anything_behind() {
    let mut releases = 0;
    for seed in 1..600_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut host = Host::new();
        let mut watched = Watched::default();
        for step in 0..300 {
            let settling = step > 200;
            match random.below(if settling { 4 } else { 10 }) {
                4 | 5 => {
                    let volumes: &[&str] = [&["a"][..], &["b"], &["a", "b"], &["b", "c"]][random.below(4)];
                    host.prepare(&format!("c{}", random.below(4)), volumes);
                }
                6 | 7 => host.cleanup(&format!("c{}", random.below(4))),
                8 => host.etcd.fate = Some([Fate::Unheard, Fate::Late, Fate::NotSent][random.below(3)]),
                9 => {
                    // What was given up for lost comes after all: it must not change anything.
                    for commit in std::mem::take(&mut host.etcd.late) {
                        let _ = host.etcd.commit(&commit);
                    }
                }
                3 => host.later(if settling { PAUSE * 2 } else { Duration::from_millis(150) }),
                _ => watched.end_one(&mut host, &mut random, settling),
            }
            host.all_steps().into_iter().for_each(|step| watched.see(step));
        }
        (0..4).for_each(|number| host.cleanup(&format!("c{number}")));
        for _ in 0..200 {
            while !host.calls().is_empty() {
                watched.end_one(&mut host, &mut random, true);
                host.all_steps().into_iter().for_each(|step| watched.see(step));
            }
            if host.is_bare() {
                break;
            }
            host.later(PAUSE);
            host.all_steps().into_iter().for_each(|step| watched.see(step));
        }
        host.later(SETTLE);
        assert!(host.is_bare(), "seed {seed}: something stays behind: {:?}", host.core.volumes());
        releases += watched.releases;
    }
    assert!(releases > 1_000, "{releases} releases in all");
}
