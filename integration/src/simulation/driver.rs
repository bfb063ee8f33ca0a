//! Driver calls, the storage behind them, and who can write.
//!
//! A driver makes the calls for one volume on one host one after the other. A call may go without an answer
//! and happen late, also after its caller or its host has died, but not later than the settle time. An
//! unmount that happens at the wrong time takes the volume from whoever has it, as EBS's detach does. In some plans the
//! storage attaches a volume to one host, refuses it to others, and lets go of it when that host's driver unmounts, when it
//! is taken away, or when a person detaches it.

use protocol::Op;
use protocol::holder::{Input, MountFault, UnmountFault};
use protocol::volume::VolumeId;

use super::host::{Effect, Mount, mounted};
use super::plan::{MS, Micros};
use super::run::{Event, Violation, World};

/// When a call that has no answer is given up.
const PATIENCE: Micros = 1_000 * MS;

/// By when a call has happened: the settle time of the simulated installation is 3 s.
const LATEST: Micros = 2_800 * MS;

/// What a driver is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Mount,
    Unmount,
    /// The volume is deleted, with what is in it.
    Remove,
}

impl What {
    fn failed(self, op: Op, fault: UnmountFault) -> Input {
        match (self, fault) {
            (Self::Mount, UnmountFault::Refused(why)) => Input::Mounted(op, Err(MountFault::Refused(why))),
            (Self::Mount, UnmountFault::Unreachable(why)) => {
                Input::Mounted(op, Err(MountFault::Unreachable(why)))
            }
            (Self::Mount, UnmountFault::Unresolved(why)) => {
                Input::Mounted(op, Err(MountFault::Unresolved(why)))
            }
            (Self::Unmount, fault) => Input::Unmounted(op, Err(fault)),
            (Self::Remove, fault) => Input::Removed(op, Err(fault)),
        }
    }
}

/// A driver call under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) op: Op,
    pub(super) life: u32,
    pub(super) boot: u32,
    pub(super) volume: VolumeId,
    pub(super) what: What,
    /// Whether the caller has given up.
    given_up: bool,
    refused: bool,
    unusable: bool,
    blocked: bool,
}

impl World<'_> {
    /// A driver call has its turn: whether it may still be made is asked now.
    pub(super) fn take_turn(&mut self, host: usize, boot: u32, life: u32, op: Op, effect: Effect) {
        let node = &self.nodes[host];
        if node.life != life || node.boot != boot || !node.powered {
            return;
        }
        if let Some(until) = self.worker_delayed(host) {
            return self.at(until, Event::Turn { host, boot, life, op, effect });
        }
        if !self.nodes[host].host.may_call(self.clock(host), op) {
            return self.tell(host, Input::NotMade(op));
        }
        match effect {
            Effect::Mount(op, volume) => self.call(host, op, &volume, What::Mount),
            Effect::Unmount(op, volume) => self.call(host, op, &volume, What::Unmount),
            Effect::Remove(op, volume) => self.call(host, op, &volume, What::Remove),
            Effect::Settle(op, volume) => self.settle(host, op, &volume),
            _ => {}
        }
    }

    fn call(&mut self, host: usize, op: Op, volume: &VolumeId, what: What) {
        let now = self.now;
        let mut dice = self.dice(3, host as u64, op.0.wrapping_add(now << 8));
        let node = &mut self.nodes[host];
        let slow = node.slow > now;
        let takes = if slow { dice.range(100 * MS, 2_500 * MS) } else { dice.range(5 * MS, 300 * MS) };
        let begins = node.busy.get(volume).copied().unwrap_or(0).max(now);
        let lands = (begins + takes).min(now + LATEST);
        node.busy.insert(volume.clone(), lands);
        let given_up = lands > now + PATIENCE;
        let refused = dice.permille(20);
        let unusable = dice.permille(10);
        let (life, boot) = (node.life, node.boot);
        if dice.permille(15) {
            let input = what.failed(op, UnmountFault::Unreachable("connection refused".into()));
            return self.after(MS, Event::CallAnswered { host, life, input });
        }
        if given_up {
            let input = what.failed(op, UnmountFault::Unresolved("no answer".into()));
            self.after(PATIENCE, Event::CallAnswered { host, life, input });
        }
        let volume = volume.clone();
        let call = Call { op, life, boot, volume, what, given_up, refused, unusable, blocked: false };
        self.log(|| format!("h{host} calls the driver: {call:?}"));
        self.calls.push((host, call.clone()));
        self.at(lands, Event::Land { host, call });
    }

    /// The storage does what a driver asked for.
    pub(super) fn land(&mut self, host: usize, call: &Call) {
        if let Some(until) = self.nodes[host].suspended.filter(|until| *until > self.now) {
            return self.at(until, Event::Land { host, call: call.clone() });
        }
        let same = |(h, c): &(usize, Call)| *h == host && c.op == call.op && c.life == call.life;
        let Some(index) = self.calls.iter().position(same) else { return };
        let (_, call) = self.calls.remove(index);
        let volume = call.volume.clone();
        let here = self.nodes[host].powered && self.nodes[host].boot == call.boot;
        // A virtual machine that was paused without knowing calls the driver under a lease that is over: there
        // the storage alone is left, which attaches to one host, and asks who detaches (rule L20).
        let has = |(other, node): &(usize, &super::run::Node)| {
            *other != host && node.host.mounts.get(&volume).is_some_and(|mount| !mount.blocked)
        };
        let elsewhere = self.nodes.iter().enumerate().find(has).map(|(other, _)| other);
        let paused = |other: usize| {
            self.nodes[host].lost > 0 || call.what == What::Mount && self.nodes[other].lost > 0
        };
        let stopped = elsewhere.is_some_and(paused);
        let refused = call.refused || call.blocked || stopped;
        self.log(|| format!("h{host} driver call happens (here: {here}, refused: {refused}): {call:?}"));
        let mut failed = None;
        if refused {
            failed = Some("the storage refuses");
        } else if call.what == What::Remove {
            let in_use = |node: &super::run::Node| node.powered && node.host.can_write(&volume);
            if let Some(of) = self.nodes.iter().position(in_use) {
                return self.violated(Violation::RemovedInUse { volume, by: host, of });
            }
            match self.attached.get(&volume) {
                Some(_) => failed = Some("the volume is attached"),
                None => self.report.removals += 1,
            }
        } else if call.what == What::Mount {
            let attached = self.attached.get(&volume).copied();
            let before = self.nodes[host].host.mounts.get(&volume).copied();
            if here {
                self.nodes[host].host.mounts.insert(volume.clone(), Mount { blocked: false });
                self.report.mounts += 1;
                // Whatever the storage says: no protocol should rest on that.
                self.check_writers(&volume);
            }
            if self.plan.attaches_once() && attached.is_some_and(|other| other != host) {
                failed = Some("resource not found");
                match before {
                    Some(before) => self.nodes[host].host.mounts.insert(volume.clone(), before),
                    None => self.nodes[host].host.mounts.remove(&volume),
                };
            } else if self.plan.attaches_once() {
                self.attached.insert(volume.clone(), host);
            }
        } else {
            if let Some(from) = elsewhere {
                return self.violated(Violation::LateUnmount { volume, by: host, from });
            }
            let used = |process: &super::host::Process| process.runs && process.volumes.contains(&volume);
            if here && self.nodes[host].host.processes.values().any(used) {
                failed = Some("target is busy");
            } else {
                if here {
                    self.nodes[host].host.mounts.remove(&volume);
                }
                // The driver looks whether the volume is attached to its own host.
                match self.attached.get(&volume) {
                    Some(other) if *other != host => failed = Some("resource not found"),
                    Some(_) => {
                        self.attached.remove(&volume);
                    }
                    None if self.plan.attaches_once() => failed = Some("resource not found"),
                    None => {}
                }
            }
        }
        if call.given_up {
            return;
        }
        let (op, life) = (call.op, call.life);
        let input = match (call.what, failed) {
            (what, Some(why)) => what.failed(op, UnmountFault::Refused(why.into())),
            (What::Mount, None) if call.unusable => {
                let mounted = Some(Box::new(mounted(&volume)));
                let why = "it is mounted below no mount root".into();
                Input::Mounted(op, Err(MountFault::Unusable { why, mounted }))
            }
            (What::Mount, None) => Input::Mounted(op, Ok(mounted(&volume))),
            (What::Unmount, None) => Input::Unmounted(op, Ok(())),
            (What::Remove, None) => Input::Removed(op, Ok(())),
        };
        self.after(MS, Event::CallAnswered { host, life, input });
    }

    /// The storage takes a volume away from every other host. What their drivers have asked for still happens,
    /// but for a host that does not run: its driver asks when it runs again, and is refused.
    fn settle(&mut self, host: usize, op: Op, volume: &VolumeId) {
        let mut dice = self.dice(4, host as u64, op.0.wrapping_add(self.now << 8));
        let life = self.nodes[host].life;
        let pause = dice.range(10 * MS, 200 * MS);
        if dice.permille(100) {
            let input = Input::Settled(op, Err(MountFault::Refused("the storage is busy".into())));
            return self.after(pause, Event::CallAnswered { host, life, input });
        }
        for (other, node) in self.nodes.iter_mut().enumerate().filter(|(other, _)| *other != host) {
            if let Some(mount) = node.host.mounts.get_mut(volume) {
                mount.blocked = true;
            }
            for process in node.host.processes.values_mut() {
                process.copies.remove(volume);
            }
            let stands = !node.powered || node.suspended.is_some();
            let of = |h: usize, call: &Call| stands && h == other && call.volume == *volume;
            for (_, call) in self.calls.iter_mut().filter(|(h, call)| of(*h, call)) {
                call.blocked = true;
            }
        }
        self.log(|| format!("h{host} has the storage take {volume} from everybody else"));
        // It is a Mount with preemption, and mounts.
        if self.plan.attaches_once() {
            self.attached.insert(volume.clone(), host);
        }
        self.nodes[host].host.mounts.insert(volume.clone(), Mount { blocked: false });
        self.check_writers(volume);
        self.after(pause, Event::CallAnswered { host, life, input: Input::Settled(op, Ok(())) });
    }

    /// The promise above all.
    pub(super) fn check_writers(&mut self, volume: &VolumeId) {
        let writes = |node: &super::run::Node| {
            node.powered
                && node.suspended.is_none_or(|until| until <= self.now)
                && node.host.can_write(volume)
        };
        let writers = self.nodes.iter().enumerate().filter(|(_, node)| writes(node));
        let hosts: Vec<usize> = writers.map(|(host, _)| host).collect();
        if hosts.len() > 1 {
            self.violated(Violation::TwoWriters { volume: volume.clone(), hosts });
        }
    }
}
