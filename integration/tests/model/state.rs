//! A state of the world, and what follows at once from an effect of a core.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::exchange::{Commit, Key, Lease, Outcome, Reading, Record, View};
use protocol::fence::Act;
use protocol::holder::{Answer, Input, Life, MountFault, UnmountFault, Wanted};
use protocol::ids::Revision;
use protocol::volume::{ContainerId, VolumeId};
use protocol::{Now, Op, Request, Text, reclaimer};

use integration::simulation::etcd::Etcd;
use integration::simulation::host::{Effect, Host, Mount, mounted};
use integration::simulation::run::{container, holder, volume};

use super::bounds::Bounds;

/// Now, on every clock.
pub(super) const NOW: Now = Duration::from_secs(100);
/// Older times are alike: the longest wait that is counted from one is T, and T/2 more.
pub(super) const OLDEST: Now = Duration::from_secs(92);
pub(super) const TICK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Host,
    Reclaimer(usize),
    /// Its sender has given up or died.
    Nobody,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Read(Reading),
    Commit(Commit),
    Seen(View),
    Done(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    pub(super) who: Who,
    pub(super) op: Op,
    pub(super) stage: Stage,
}

/// A driver call under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) host: usize,
    pub(super) op: Op,
    pub(super) mount: bool,
    /// Whether its caller still lives.
    pub(super) heard: bool,
    /// For how many ticks it has been under way.
    pub(super) age: u8,
    /// Whether the storage refuses it.
    pub(super) blocked: bool,
}

/// A state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(super) etcd: Etcd,
    pub(super) hosts: [Host; 2],
    pub(super) up: [bool; 2],
    pub(super) control: [VecDeque<Effect>; 2],
    pub(super) calls: Vec<Call>,
    pub(super) wire: Vec<Sent>,
    pub(super) reclaimers: Vec<reclaimer::Core>,
    pub(super) skew: Vec<u8>,
    pub(super) faults: u8,
    pub(super) losses: u8,
    pub(super) revokes: u8,
    pub(super) suspends: u8,
    pub(super) suspended: bool,
    pub(super) prepares: [u8; 2],
    pub(super) token: Revision,
    pub(super) wrong: Option<&'static str>,
}

pub(super) fn id() -> VolumeId {
    volume(0)
}

pub(super) fn clean_up(container: ContainerId) -> Input {
    Input::Cleanup { request: Request(3), agent: "a".into(), container }
}

pub(super) fn user(host: usize) -> ContainerId {
    container(&format!("c{host}"))
}

impl State {
    pub(super) fn handle(&mut self, host: usize, input: Input) {
        let mut effects = Vec::new();
        self.hosts[host].handle(NOW, input, &mut effects);
        self.take(host, effects);
    }

    /// Does at once what need not be told apart, and keeps the rest.
    pub(super) fn take(&mut self, host: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect.clone() {
                Effect::Read(op, reading) => {
                    let view = self.etcd.read(&reading);
                    self.handle(host, Input::Read(op, Ok(view)));
                }
                Effect::Commit(op, commit) if host == 1 => {
                    let outcome = self.commit(&commit);
                    self.handle(host, Input::Committed(op, outcome));
                }
                Effect::Commit(op, commit) => {
                    self.wire.push(Sent { who: Who::Host, op, stage: Stage::Commit(commit) });
                }
                Effect::Mount(op, _) | Effect::Unmount(op, _) => {
                    let mount = matches!(effect, Effect::Mount(..));
                    self.calls.push(Call { host, op, mount, heard: true, age: 0, blocked: false });
                    if host == 1 {
                        self.land(self.calls.len() - 1);
                    }
                }
                Effect::Settle(op, _) => {
                    let other = 1 - host;
                    if let Some(mount) = self.hosts[other].mounts.get_mut(&id()) {
                        mount.blocked = true;
                    }
                    let theirs = self.calls.iter_mut().filter(|call| call.host == other);
                    theirs.for_each(|call| call.blocked = true);
                    self.handle(host, Input::Settled(op, Ok(())));
                }
                Effect::Prove(op, asked) => {
                    let idleness = self.hosts[host].idleness(&asked);
                    self.handle(host, Input::Idle(op, idleness));
                }
                Effect::Look(op, asked) => {
                    let sight = self.hosts[host].sight(&asked);
                    self.handle(host, Input::Seen(op, sight));
                }
                Effect::Reply(request, answer) => self.answer(host, request, answer),
                Effect::Kill(it) => {
                    self.hosts[host].processes.remove(&it);
                    self.handle(host, clean_up(it));
                }
                Effect::Limit(_) => {}
                control => self.control[host].push_back(control),
            }
        }
    }

    pub(super) fn answer(&mut self, host: usize, request: Request, answer: Result<Answer, Text>) {
        let it = user(host);
        match (answer, request.0) {
            (Ok(_), 1) => {
                let wanted = [Wanted {
                    volume: id(),
                    asked: id(),
                    create: None,
                    read_only: false,
                    remove: false,
                    owner: None,
                }];
                self.hosts[host].fork(&it, &wanted);
                let (request, cgroup) = (Request(2), Some("c".into()));
                self.handle(
                    host,
                    Input::Isolate { request, agent: "a".into(), container: it, pid: 1, cgroup },
                );
            }
            (Ok(_), 2) => {
                let mounted = self.hosts[host].mounts.contains_key(&id());
                if let Some(process) = self.hosts[host].processes.get_mut(&it) {
                    process.runs = true;
                    if !mounted {
                        self.wrong = Some("a container runs without its volume");
                    }
                }
            }
            (Err(_), 1 | 2) => {
                self.hosts[host].processes.remove(&it);
                self.handle(host, clean_up(it));
            }
            _ => {}
        }
    }

    /// An answer reaches who asked.
    pub(super) fn answered(&mut self, index: usize) -> Option<()> {
        let Sent { who, op, stage } = self.wire.remove(index);
        match (who, stage) {
            (Who::Host, Stage::Done(outcome)) => self.handle(0, Input::Committed(op, outcome)),
            (Who::Reclaimer(r), Stage::Done(outcome)) => {
                self.master(r, reclaimer::Input::Committed(op, outcome));
            }
            (Who::Reclaimer(r), Stage::Seen(view)) => self.master(r, reclaimer::Input::Read(op, Ok(view))),
            _ => return None,
        }
        Some(())
    }

    pub(super) fn commit(&mut self, commit: &Commit) -> Outcome {
        let outcome = self.etcd.commit(commit);
        if let Outcome::Done(at) = outcome {
            for (key, record) in &commit.puts {
                if let (Key::Lease(_), Record::Lease(Lease::Held(held))) = (key, record)
                    && held.token.is_none()
                {
                    if at <= self.token {
                        self.wrong = Some("a token went back");
                    }
                    self.token = at;
                }
            }
        }
        outcome
    }

    pub(super) fn master(&mut self, reclaimer: usize, input: reclaimer::Input) {
        self.reclaimers[reclaimer].handle(NOW, input);
        while let Some(output) = self.reclaimers[reclaimer].poll_output() {
            let (op, stage) = match output {
                reclaimer::Output::Read { op, reading } => (op, Stage::Read(reading)),
                reclaimer::Output::Commit { op, commit } => (op, Stage::Commit(commit)),
                _ => continue,
            };
            self.wire.push(Sent { who: Who::Reclaimer(reclaimer), op, stage });
        }
    }

    /// The state in a line.
    pub(crate) fn brief(&self) -> String {
        let host = |host: &Host| {
            let core = host.worker.as_ref().map(|core| {
                let volumes: Vec<_> = core.volumes().values().map(|volume| volume.phase.clone()).collect();
                format!("{:?} {volumes:?}", core.life())
            });
            format!("{:?} mounted {} {core:?}", host.shared.fence_at, host.mounts.len())
        };
        let [a, b] = &self.hosts;
        format!(
            "{:?}; {}; {}",
            self.etcd.lease(&id()).and_then(Lease::held).map(|l| l.holder.to_string()),
            host(a),
            host(b)
        )
    }

    /// Reads are done at once; what they have seen may be a while on the way.
    pub(super) fn look(&mut self) {
        for sent in &mut self.wire {
            if let Stage::Read(reading) = &sent.stage {
                sent.stage = Stage::Seen(self.etcd.read(reading));
            }
        }
    }

    /// Whether the first host no longer keeps the volume from others, or a container there uses it that will not
    /// end by itself.
    pub(super) fn is_free_or_used(&self, bounds: &Bounds) -> bool {
        let other = self.etcd.lease(&id()).and_then(Lease::held).is_some_and(|held| held.holder != holder(0));
        let used = !bounds.ends && self.hosts[0].processes.values().any(|process| process.runs);
        other || self.etcd.is_takeable(&id(), bounds.storage) || used
    }

    pub(super) fn writers(&self) -> usize {
        (0..2).filter(|host| self.runs(*host) && self.hosts[*host].can_write(&id())).count()
    }

    pub(super) fn runs(&self, host: usize) -> bool {
        self.up[host] && !(host == 0 && self.suspended)
    }

    pub(super) fn abandon(&mut self) {
        self.wire.iter_mut().filter(|sent| sent.who == Who::Host).for_each(|sent| sent.who = Who::Nobody);
        self.calls.iter_mut().filter(|call| call.host == 0).for_each(|call| call.heard = false);
    }

    pub(super) fn land(&mut self, index: usize) {
        let Call { host, op, mount, heard, blocked, .. } = self.calls.remove(index);
        if blocked {
            if heard {
                let why = || "the storage refuses".into();
                self.handle(
                    host,
                    match mount {
                        true => Input::Mounted(op, Err(MountFault::Refused(why()))),
                        false => Input::Unmounted(op, Err(UnmountFault::Refused(why()))),
                    },
                );
            }
            return;
        }
        if mount {
            if self.up[host] {
                self.hosts[host].mounts.insert(id(), Mount { blocked: false });
            }
        } else {
            if self.hosts[1 - host].mounts.contains_key(&id()) {
                self.wrong = Some("a late unmount took the volume from its new host");
            }
            self.hosts[host].mounts.remove(&id());
        }
        if heard {
            let input =
                if mount { Input::Mounted(op, Ok(mounted(&id()))) } else { Input::Unmounted(op, Ok(())) };
            self.handle(host, input);
        }
    }

    fn fences_nothing(&self, host: usize) -> bool {
        self.hosts[host].fences.is_empty()
    }

    /// Whether a host must do something before time goes on, or is unable to.
    pub(super) fn is_urgent(&self, bounds: &Bounds, host: usize) -> bool {
        let it = &self.hosts[host];
        let fence = it.shared.fence_at.filter(|_| it.worker.is_some() || it.deadman.is_some());
        let fencing = it.worker.as_ref().is_some_and(|core| matches!(core.life(), Life::Fencing { .. }));
        let polled = self.control[host].contains(&Effect::KillWorker) || it.deadman.is_none();
        let begin = fence.is_some_and(|at| at <= NOW && (!it.shared.fenced || fencing)) && !polled;
        // The second sweep is done within K like the first, whatever deadline there is (L17).
        let (waits, late) = match self.control[host].front() {
            None => (true, false),
            Some(Effect::Act(_, Act::Settle(until))) => (*until > NOW, *until + TICK <= NOW),
            Some(_) => (false, false),
        };
        // A worker whose deadman died starts another one; a fence that it had left to that is done in time all the same (L16).
        let left = it.worker.is_some() && it.deadman.is_none() && it.shared.fenced && waits;
        let start = left && fencing && self.fences_nothing(host) && fence.is_some_and(|at| at + TICK <= NOW);
        let end = late || fence.is_some_and(|at| at + TICK <= NOW) && !waits;
        let patience = if host == 0 { bounds.late_calls } else { 0 };
        let call = self.calls.iter().any(|call| call.host == host && call.age >= patience);
        // A worker that lives is prompt: one that hangs does what a killed one does.
        let wake =
            host == 0 && it.worker.as_ref().and_then(|core| core.next_deadline()).is_some_and(|at| at <= NOW);
        self.runs(host) && (begin || end || start || wake) || call && !(host == 0 && self.suspended)
    }
}
