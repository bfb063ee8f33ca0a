//! One host whose requests to etcd are answered at once, and whose driver calls a scenario answers by hand.

use std::time::Duration;

use protocol::exchange::{Commit, Key};
use protocol::holder::{Input, Settings, Wanted};
use protocol::{Op, Request, Text};

use super::etcd::Etcd;
use super::host::{Effect, Host, Mount, mounted};
use super::plan::Plan;
use super::run::{container, settings, volume};

/// The host.
pub(super) struct Alone {
    pub(super) etcd: Etcd,
    pub(super) host: Host,
    pub(super) now: Duration,
    /// What it asked for, and was not yet given.
    pub(super) effects: Vec<Effect>,
    /// What it told, and nobody has to answer.
    pub(super) told: Vec<Effect>,
    /// Whether its containers have their volumes removed.
    pub(super) removes: bool,
}

impl Alone {
    /// A host that was just asked for a volume, for a container `c`.
    pub(super) fn asked() -> Self {
        let mut alone = Self::new(settings(&Plan::of(1), 0));
        alone.prepare(1, "c", &[0]);
        alone
    }

    pub(super) fn new(settings: Settings) -> Self {
        let now = Duration::from_secs(1);
        let mut host = Host::new(now, settings);
        let mut effects = Vec::new();
        host.handle(now, Input::Tick, &mut effects);
        Self { etcd: Etcd::new(), host, now, effects, told: Vec::new(), removes: false }
    }

    pub(super) fn prepare(&mut self, request: u64, name: &str, volumes: &[usize]) {
        let wanted = |number: &usize| Wanted {
            volume: volume(*number),
            asked: volume(*number),
            create: None,
            read_only: false,
            remove: self.removes,
            owner: None,
        };
        let (request, container, agent): (_, _, Text) = (Request(request), container(name), "a".into());
        let volumes = volumes.iter().map(wanted).collect();
        self.tell(Input::Prepare { request, container, agent, agent_id: None, task: None, volumes });
    }

    pub(super) fn tell(&mut self, input: Input) {
        self.host.handle(self.now, input, &mut self.effects);
    }

    /// Does the first thing that the host asks for.
    pub(super) fn one(&mut self) {
        match self.effects.remove(0) {
            Effect::Read(op, reading) => {
                let view = self.etcd.read(&reading);
                self.tell(Input::Read(op, Ok(view)));
            }
            Effect::Commit(op, commit) => {
                let outcome = self.etcd.commit(&commit);
                self.tell(Input::Committed(op, outcome));
            }
            Effect::Act(runner, act) => self.host.act(self.now, runner, &act, &mut self.effects),
            other => self.told.push(other),
        }
    }

    /// Goes on until the host wants something for which `wanted` holds.
    pub(super) fn next(&mut self, wanted: impl Fn(&Effect) -> bool) -> Option<Effect> {
        for _ in 0..100 {
            if wanted(self.effects.first()?) {
                return Some(self.effects.remove(0));
            }
            self.one();
        }
        None
    }

    /// Goes on until the host wants to commit something to a key for which `wanted` holds.
    pub(super) fn next_commit(&mut self, wanted: impl Fn(&Key) -> bool) -> Option<(Op, Commit)> {
        let writes =
            |commit: &Commit| commit.puts.iter().map(|(key, _)| key).chain(&commit.deletes).any(&wanted);
        let commits = |effect: &Effect| matches!(effect, Effect::Commit(_, commit) if writes(commit));
        match self.next(commits)? {
            Effect::Commit(op, commit) => Some((op, commit)),
            _ => None,
        }
    }

    /// Goes on until the host wants to write a lease, and is not mistaken in what it compares.
    pub(super) fn next_taking(&mut self) -> Option<(Op, Commit)> {
        loop {
            let (op, commit) = self.next_commit(|key| matches!(key, Key::Lease(_)))?;
            if self.etcd.would_commit(&commit) {
                return Some((op, commit));
            }
            let outcome = self.etcd.commit(&commit);
            self.tell(Input::Committed(op, outcome));
        }
    }

    /// Goes on until the host calls its driver to mount.
    pub(super) fn next_mount(&mut self) -> Option<Op> {
        match self.next(|effect| matches!(effect, Effect::Mount(..)))? {
            Effect::Mount(op, _) => Some(op),
            _ => None,
        }
    }

    /// Whatever the host asks for is done, and well.
    pub(super) fn all(&mut self) {
        for _ in 0..1_000 {
            match self.effects.first().cloned() {
                None => return,
                Some(Effect::Mount(op, id)) => {
                    self.host.mounts.insert(id.clone(), Mount { blocked: false });
                    self.effects.remove(0);
                    self.tell(Input::Mounted(op, Ok(mounted(&id))));
                }
                Some(Effect::Unmount(op, id)) => {
                    self.host.mounts.remove(&id);
                    self.effects.remove(0);
                    self.tell(Input::Unmounted(op, Ok(())));
                }
                Some(Effect::Look(op, id)) => {
                    self.effects.remove(0);
                    self.tell(Input::Seen(op, self.host.sight(&id)));
                }
                Some(Effect::Prove(op, id)) => {
                    self.effects.remove(0);
                    self.tell(Input::Idle(op, self.host.idleness(&id)));
                }
                Some(_) => self.one(),
            }
        }
    }

    /// Time passes, and whatever the host asks for is done, and well.
    pub(super) fn later(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now += Duration::from_millis(100);
            self.tell(Input::Tick);
            self.all();
        }
    }
}
