//! The order in which a host is made unable to write (L17): freeze every container that is known, shut every file system that is
//! known down through the host's own mount, and only then kill, unmount and prove.
//!
//! What must be done within K is the freeze and the shutdowns. So neither waits for anything but itself: a shutdown waits for the
//! answer of the freeze, a kill for those of the shutdowns, and *any* answer will do. What comes after them
//! may be delayed by whoever fills the machine with processes and mounts; it writes to no volume any more.
//!
//! Who runs it has set the sticky flag before. When that is the deadman, it strikes first ([`Fence::strike`]), with the table as it
//! is; then it kills and *reaps* the worker and its helpers. Only then does the table not change any more, is it read again, and all
//! of it fenced. What the worker was about to mount is in the table already, for the table is written before the effect
//! (L8); what a helper mounted at its last gasp is found by the sweep at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::holder::{MountedVolume, Row, Table};
use super::{Now, Text};
use crate::volume::{ContainerId, VolumeId};

/// What is to be done next. Those given out together may be done at the same time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// Freeze the recorded cgroups of all containers, and what is nested in them. It need not succeed, and is not waited for when it
    /// hangs: then its answer is that it did not.
    Freeze,
    /// Shut the volume's file system down through the host's own mount, where its kind can be: from then on nobody writes to it. It
    /// need not succeed, and is not waited for when it hangs: [`Act::MakeIdle`] is about the proof.
    Shutdown(VolumeId),
    /// Freeze, kill and *thaw* the container's cgroups (on cgroup v1 a kill acts only after the thaw), until
    /// no process is left.
    Kill(ContainerId),
    /// In a process of its own, for it may block for ever: shut the file system down or flush it, unmount it,
    /// and prove its device idle. Only on the recorded device, and never on one of the host's own.
    MakeIdle(VolumeId),
    /// Look through all mount tables for what is below the mount roots, and make that idle too.
    Sweep,
    /// Wait until then: a driver call that was under way has happened by then, and has perhaps mounted what was
    /// swept away before it. Another sweep follows.
    Settle(Now),
    /// It was not proved in time: the host is reset, where that is allowed.
    Reset,
}

/// A fence under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    freezing: bool,
    shutting: BTreeSet<VolumeId>,
    /// Freeze and shutdowns alone are wanted of it.
    strikes: bool,
    killing: BTreeSet<ContainerId>,
    idling: BTreeMap<VolumeId, Option<MountedVolume>>,
    /// Those have been given out.
    idles: bool,
    sweeping: bool,
    swept: bool,
    settle: Option<Now>,
    give_up: Option<Now>,
    acts: VecDeque<Act>,
}

impl Fence {
    /// Fences what `table` tells of. What is not proved at `give_up`, which is F + K after the last beat, is
    /// left to a reset. `settle` is when a driver call has happened that was made right before the fence, which
    /// is the deadline's fence time and the settle time; it is for who proves that this host is safe (a taker
    /// waits as long, from later on), and not for who must be done at F + K.
    #[must_use]
    pub fn new(table: &Table, give_up: Option<Now>, settle: Option<Now>) -> Self {
        Self::begin(table, give_up, settle, false)
    }

    /// What must be done at once, and nothing else: freeze and shutdowns. It proves nothing: a fence follows.
    #[must_use]
    pub fn strike(table: &Table) -> Self {
        Self::begin(table, None, None, true)
    }

    fn begin(table: &Table, give_up: Option<Now>, settle: Option<Now>, strikes: bool) -> Self {
        let mounted = |row: &Row| match &row.phase {
            super::holder::Phase::Attached { mounted, .. } => Some(mounted.clone()),
            super::holder::Phase::Detaching { mounted, .. } => mounted.clone(),
            _ => None,
        };
        let idling: BTreeMap<_, _> =
            table.volumes.iter().map(|row| (row.wanted.volume.clone(), mounted(row))).collect();
        let known = idling.iter().filter(|(_, mounted)| mounted.is_some());
        let mut fence = Self {
            freezing: table.containers.values().any(|container| container.cgroup.is_some()),
            shutting: known.map(|(volume, _)| volume.clone()).collect(),
            strikes,
            killing: table.containers.keys().cloned().collect(),
            idling,
            idles: false,
            sweeping: false,
            swept: false,
            settle: settle.filter(|_| table.lost || table.volumes.iter().any(Row::may_call_driver)),
            give_up,
            acts: VecDeque::new(),
        };
        if fence.freezing {
            fence.acts.push_back(Act::Freeze);
        } else {
            fence.shut_down();
        }
        fence
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_act(&mut self) -> Option<Act> {
        self.acts.pop_front()
    }

    /// The mount that the table tells of, for [`Act::MakeIdle`].
    #[must_use]
    pub fn mounted(&self, volume: &VolumeId) -> Option<&MountedVolume> {
        self.idling.get(volume)?.as_ref()
    }

    /// Whether freeze and shutdowns have been answered, whatever the answers are.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        !self.freezing && self.shutting.is_empty()
    }

    /// Whether nothing on this host can write any more.
    #[must_use]
    pub fn is_proved(&self) -> bool {
        self.swept
    }

    /// Takes in what became of an act. One that failed is tried again, but for the two that nothing may wait for.
    pub fn done(&mut self, act: &Act, result: Result<(), Text>) {
        match act {
            Act::Freeze => {
                if std::mem::take(&mut self.freezing) {
                    self.shut_down();
                }
                return;
            }
            Act::Shutdown(volume) => {
                if self.shutting.remove(volume) && self.shutting.is_empty() {
                    self.kill();
                }
                return;
            }
            _ if result.is_err() => return self.acts.push_back(act.clone()),
            Act::Kill(container) => {
                self.killing.remove(container);
            }
            Act::MakeIdle(volume) => {
                self.idling.remove(volume);
            }
            Act::Sweep => match self.settle.take() {
                Some(at) => self.acts.push_back(Act::Settle(at)),
                None => self.swept = true,
            },
            Act::Settle(_) => self.acts.push_back(Act::Sweep),
            Act::Reset => {}
        }
        self.go_on();
    }

    fn shut_down(&mut self) {
        self.acts.extend(self.shutting.iter().cloned().map(Act::Shutdown));
        if self.shutting.is_empty() {
            self.kill();
        }
    }

    fn kill(&mut self) {
        if !self.strikes {
            self.acts.extend(self.killing.iter().cloned().map(Act::Kill));
            self.go_on();
        }
    }

    /// Gives out what the last result has made possible.
    fn go_on(&mut self) {
        // A living process would have its mount taken from under it, and write on to what is beneath: all are dead first.
        if !self.has_struck() || !self.killing.is_empty() || self.sweeping {
            return;
        }
        if self.idling.is_empty() {
            self.sweeping = true;
            return self.acts.push_back(Act::Sweep);
        }
        // Once: one that fails is given out again by its own answer.
        if !std::mem::replace(&mut self.idles, true) {
            self.acts.extend(self.idling.keys().cloned().map(Act::MakeIdle));
        }
    }

    /// Resets the host when its time is over.
    pub fn tick(&mut self, now: Now) {
        if !self.swept && self.give_up.is_some_and(|at| at <= now) {
            self.give_up = None;
            self.acts.push_front(Act::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::holder::{Container, Notes, Phase, Row, Wanted};
    use crate::ids::Revision;
    use crate::ids::Token;
    use crate::volume::{Driver, VolumeName};

    fn table() -> Table {
        let volume = VolumeId { driver: Driver::new("d").unwrap(), name: VolumeName::new("v").unwrap() };
        let wanted = Wanted {
            volume: volume.clone(),
            asked: volume,
            create: None,
            read_only: false,
            remove: false,
            owner: None,
        };
        let phase = Phase::Mounting { token: Token(Revision(1)) };
        let containers = ["a", "b"].map(|name| {
            let id = ContainerId::new(name).unwrap();
            (id, Container::new("slave(1)@h".into(), None, None, vec![wanted.clone()]))
        });
        Table {
            containers: containers.into(),
            volumes: vec![Row { wanted, phase, users: Vec::new(), notes: Notes::default() }],
            ..Table::default()
        }
    }

    /// With the containers in cgroups, and the volume mounted.
    fn attached() -> Table {
        let mut table = table();
        for container in table.containers.values_mut() {
            container.cgroup = Some("/mesos/c".into());
        }
        let mounted = MountedVolume {
            mount_point: "/m".into(),
            device_number: "7:0".into(),
            source: "/dev/loop0".into(),
            can_be_shut_down: true,
            ..MountedVolume::default()
        };
        table.volumes[0].phase = Phase::Attached { token: Token(Revision(1)), mounted };
        table
    }

    fn drain(fence: &mut Fence) -> Vec<Act> {
        std::iter::from_fn(|| fence.poll_act()).collect()
    }

    #[test]
    fn file_systems_are_shut_down_right_after_the_freeze_whatever_came_of_it_and_before_any_death() {
        for answer in [Ok(()), Err("no answer of the kernel yet".into())] {
            let mut fence = Fence::new(&attached(), None, None);
            assert_eq!(drain(&mut fence), [Act::Freeze]);
            fence.done(&Act::Freeze, answer.clone());
            let shutdown = drain(&mut fence);
            assert!(matches!(shutdown[..], [Act::Shutdown(_)]), "{shutdown:?}");
            assert!(!fence.has_struck());
            fence.done(&shutdown[0], answer);
            assert!(fence.has_struck() && !fence.is_proved());
            let kills = drain(&mut fence);
            assert!(matches!(kills[..], [Act::Kill(_), Act::Kill(_)]), "{kills:?}");
            // Another answer of the same, late, begins nothing anew.
            fence.done(&Act::Freeze, Err("late".into()));
            fence.done(&shutdown[0], Err("late".into()));
            assert_eq!(drain(&mut fence), []);
        }
    }

    #[test]
    fn a_strike_is_freeze_and_shutdowns_alone_and_proves_nothing() {
        let mut fence = Fence::strike(&attached());
        assert_eq!(drain(&mut fence), [Act::Freeze]);
        fence.done(&Act::Freeze, Ok(()));
        let shutdown = drain(&mut fence);
        fence.done(&shutdown[0], Ok(()));
        assert_eq!((drain(&mut fence), fence.has_struck(), fence.is_proved()), (vec![], true, false));
        let mut fence = Fence::strike(&table());
        assert_eq!((drain(&mut fence), fence.has_struck(), fence.is_proved()), (vec![], true, false));
    }

    #[test]
    fn no_mount_is_taken_away_before_every_container_is_dead() {
        let mut fence = Fence::new(&table(), None, None);
        let kills = drain(&mut fence);
        assert_eq!(kills.len(), 2);
        fence.done(&kills[0], Ok(()));
        fence.done(&kills[1], Err("frozen".into()));
        assert_eq!(drain(&mut fence), [kills[1].clone()]);
        fence.done(&kills[1], Ok(()));
        let idle = drain(&mut fence);
        assert!(matches!(idle[..], [Act::MakeIdle(_)]));
        assert!(!fence.is_proved());
        fence.done(&idle[0], Ok(()));
        assert_eq!(drain(&mut fence), [Act::Sweep]);
        fence.done(&Act::Sweep, Err("something is mounted".into()));
        assert!(!fence.is_proved());
        fence.done(&Act::Sweep, Ok(()));
        assert!(fence.is_proved());
    }

    #[test]
    fn each_volume_is_made_idle_once_and_again_only_when_that_failed() {
        let mut table = Table { containers: [].into(), ..table() };
        for name in ["w", "x"] {
            let mut row = table.volumes[0].clone();
            row.wanted.volume.name = VolumeName::new(name).unwrap();
            table.volumes.push(row);
        }
        let mut fence = Fence::new(&table, None, None);
        let idle = drain(&mut fence);
        assert_eq!(idle.len(), 3);
        fence.done(&idle[0], Ok(()));
        assert_eq!(drain(&mut fence), [], "the two others are under way");
        fence.done(&idle[1], Err("held".into()));
        assert_eq!(drain(&mut fence), [idle[1].clone()]);
        fence.done(&idle[2], Ok(()));
        assert_eq!(drain(&mut fence), []);
        fence.done(&idle[1], Ok(()));
        assert_eq!(drain(&mut fence), [Act::Sweep]);
    }

    #[test]
    fn a_fence_that_is_not_proved_in_time_resets_the_host_once() {
        let at = Now::from_secs(9);
        let mut fence = Fence::new(&table(), Some(at), None);
        let _ = drain(&mut fence);
        fence.tick(Now::from_secs(8));
        assert_eq!(drain(&mut fence), []);
        fence.tick(at);
        fence.tick(at);
        assert_eq!(drain(&mut fence), [Act::Reset]);
    }

    #[test]
    fn a_driver_call_that_was_under_way_is_waited_for_and_swept_away() {
        let at = Now::from_secs(3);
        let mut fence = Fence::new(&Table { containers: [].into(), ..table() }, None, Some(at));
        let idle = drain(&mut fence);
        fence.done(&idle[0], Ok(()));
        assert_eq!(drain(&mut fence), [Act::Sweep]);
        fence.done(&Act::Sweep, Ok(()));
        assert_eq!((drain(&mut fence), fence.is_proved()), (vec![Act::Settle(at)], false));
        fence.done(&Act::Settle(at), Ok(()));
        assert_eq!(drain(&mut fence), [Act::Sweep]);
        fence.done(&Act::Sweep, Ok(()));
        assert!(fence.is_proved());
    }

    #[test]
    fn a_host_with_nothing_to_fence_is_swept_all_the_same() {
        let mut fence = Fence::new(&Table::default(), None, Some(Now::from_secs(3)));
        assert_eq!(drain(&mut fence), [Act::Sweep]);
    }
}
