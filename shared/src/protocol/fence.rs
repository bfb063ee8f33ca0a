//! The order in which a host is made unable to write (L17): first every process that has a volume open,
//! then every file system, then the proof.
//!
//! Who runs it has set the sticky flag before, and, when it is the deadman, has killed and *reaped* the
//! worker and its helpers: only then does the table not change any more, and only then is it read. What
//! the worker was about to mount is in the table already, for the table is written before the effect
//! (L8); what a helper mounted at its last gasp is found by the sweep at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::holder::{MountedVolume, Row, Table};
use super::{Now, Text};
use crate::volume::{ContainerId, VolumeId};

/// What is to be done next. Those given out together may be done at the same time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
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
    killing: BTreeSet<ContainerId>,
    idling: BTreeMap<VolumeId, Option<MountedVolume>>,
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
        let mounted = |row: &Row| match &row.phase {
            super::holder::Phase::Attached { mounted, .. } => Some(mounted.clone()),
            super::holder::Phase::Detaching { mounted, .. } => mounted.clone(),
            _ => None,
        };
        let mut fence = Self {
            killing: table.containers.keys().cloned().collect(),
            idling: table.volumes.iter().map(|row| (row.wanted.volume.clone(), mounted(row))).collect(),
            sweeping: false,
            swept: false,
            settle: settle.filter(|_| table.lost || table.volumes.iter().any(Row::may_call_driver)),
            give_up,
            acts: VecDeque::new(),
        };
        fence.acts.extend(fence.killing.iter().cloned().map(Act::Kill));
        fence.go_on();
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

    /// Whether nothing on this host can write any more.
    #[must_use]
    pub fn is_proved(&self) -> bool {
        self.swept
    }

    /// Takes in what became of an act. One that failed is tried again.
    pub fn done(&mut self, act: &Act, result: Result<(), Text>) {
        if result.is_err() {
            return self.acts.push_back(act.clone());
        }
        match act {
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

    /// Gives out what the last result has made possible.
    fn go_on(&mut self) {
        // A living process would have its file system taken from under it, and write on to what is mounted
        // there next: all are dead first.
        if !self.killing.is_empty() || self.sweeping {
            return;
        }
        if self.idling.is_empty() {
            self.sweeping = true;
            return self.acts.push_back(Act::Sweep);
        }
        for volume in self.idling.keys() {
            let act = Act::MakeIdle(volume.clone());
            if !self.acts.contains(&act) {
                self.acts.push_back(act);
            }
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
    use crate::protocol::holder::{Container, Notes, Phase, Row, Wanted};
    use crate::record::Token;
    use crate::store::Revision;
    use crate::volume::{Driver, VolumeName};

    fn table() -> Table {
        let volume = VolumeId { driver: Driver::new("d").unwrap(), name: VolumeName::new("v").unwrap() };
        let wanted = Wanted { volume: volume.clone(), asked: volume, create: None, read_only: false };
        let phase = Phase::Mounting { token: Token(Revision(1)) };
        let containers = ["a", "b"].map(|name| {
            let id = ContainerId::new(name).unwrap();
            (id, Container::new("slave(1)@h".into(), None, vec![wanted.clone()]))
        });
        Table {
            containers: containers.into(),
            volumes: vec![Row { wanted, phase, users: Vec::new(), notes: Notes::default() }],
            ..Table::default()
        }
    }

    fn drain(fence: &mut Fence) -> Vec<Act> {
        std::iter::from_fn(|| fence.poll_act()).collect()
    }

    #[test]
    fn no_file_system_is_touched_before_every_container_is_dead() {
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
