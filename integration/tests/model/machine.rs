//! The cores under a model checker: two hosts, up to two reclaimers, one volume, etcd. Every order of events is
//! tried: requests late, lost or done after their sender gave up; clocks that go wrong by one tick against each
//! other over any time; crashes at any moment.
//!
//! A tick is a second, T is five, F two, K one. A holder's clock and a reclaimer's may err by a tick each, so
//! that two seconds lie between the end of the one's right and the end of the other's wait, as in the rules. All
//! times are kept relative to now, and revisions and operations by rank, so that the states are finite.
//! The second host has a perfect network, and no faults: it is there to take over.

use std::collections::VecDeque;

use protocol::exchange::{Key, Outcome, Record, SessionState};
use protocol::fence::Act;
use protocol::holder::{Input, Wanted};
use protocol::ids::Revision;
use protocol::{Request, reclaimer};
use stateright::{Model, Property};

use integration::simulation::etcd::Etcd;
use integration::simulation::host::{Effect, Host, Runner};
use integration::simulation::run::holder;

use super::bounds::{Bounds, Crashes, Reads, timing};
use super::state::{Call, NOW, Sent, Stage, State, TICK, Who, clean_up, id, user};

/// What may happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Tick(Vec<u8>),
    Wake(usize),
    Poll(usize),
    Control(usize),
    Land(usize),
    Prepare(usize),
    End(usize),
    Apply(usize),
    Answered(usize),
    Lose(usize),
    KillWorker,
    KillDeadman,
    KillKeeper,
    StartDeadman,
    Suspend,
    Resume,
    PowerOff,
    PowerOn,
    Revoke,
}

/// A model.
pub(crate) struct Machine(pub(crate) Bounds);

impl Action {
    /// Whether a fair schedule without faults can be relied on to do this.
    pub(super) fn is_healthy(&self) -> bool {
        !matches!(
            self,
            Self::Lose(_)
                | Self::KillWorker
                | Self::KillDeadman
                | Self::KillKeeper
                | Self::PowerOff
                | Self::Suspend
                | Self::Revoke
                | Self::Prepare(_)
        )
    }
}

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let bounds = &self.0;
        let host = |number| Host::new(NOW, bounds.settings(number));
        let settings = reclaimer::Settings { timing: timing(), poll: TICK, reconnect: TICK };
        let core = reclaimer::Core::new(NOW, settings);
        let reclaimer = |number| {
            let mut core = core.clone();
            core.handle(NOW - TICK, reclaimer::Input::Leading(number < bounds.leaders));
            core
        };
        let reclaimers = (0..bounds.reclaimers).map(reclaimer).collect();
        let mut state = State {
            etcd: Etcd::new(),
            hosts: [host(0), host(1)],
            up: [true; 2],
            control: [VecDeque::new(), VecDeque::new()],
            calls: Vec::new(),
            wire: Vec::new(),
            reclaimers,
            skew: vec![0; 2 + bounds.reclaimers],
            faults: bounds.faults,
            losses: bounds.losses,
            revokes: bounds.revokes,
            suspends: bounds.suspends,
            suspended: false,
            prepares: bounds.prepares,
            token: Revision::ABSENT,
            wrong: None,
        };
        // Both sessions are open, and tell whom they serve: how they are opened is tried after the first fence or crash.
        for host in 0..2 {
            state.handle(host, Input::Tick);
            let (request, container) = (Request(0), user(host));
            let none = Input::Prepare {
                request,
                container,
                agent: "a".into(),
                agent_id: None,
                task: None,
                volumes: Vec::new(),
            };
            state.handle(host, none);
            state.handle(host, clean_up(user(host)));
            while !state.control[host].is_empty() || host == 0 && !state.wire.is_empty() {
                while let Some(Effect::Act(runner, act)) = state.control[host].pop_front() {
                    let mut effects = Vec::new();
                    state.hosts[host].act(NOW, runner, &act, &mut effects);
                    state.take(host, effects);
                }
                while host == 0
                    && let Some(Sent { op, stage: Stage::Commit(commit), .. }) = state.wire.pop()
                {
                    let outcome = state.commit(&commit);
                    state.handle(0, Input::Committed(op, outcome));
                }
            }
        }
        state.settle(&[]);
        vec![state]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        if s.wrong.is_some() {
            return;
        }
        // SIGKILL is faster than anything that goes over a network.
        if let Some(host) =
            (0..2).find(|host| s.runs(*host) && s.control[*host].contains(&Effect::KillWorker))
        {
            return actions.push(Action::Control(host));
        }
        let bounds = &self.0;
        let reads = s.wire.iter().any(|sent| matches!(sent.stage, Stage::Read(_) | Stage::Seen(_)));
        if !(0..2).any(|host| s.is_urgent(bounds, host)) && (bounds.reads == Reads::Late || !reads) {
            let mut ticks = vec![Vec::new()];
            for node in 0..s.skew.len() {
                // The second host's clock is right: what counts is how far two clocks are apart.
                let choices: &[u8] = if bounds.drift && node != 1 { &[0, 1] } else { &[0] };
                ticks = ticks
                    .into_iter()
                    .flat_map(|tick| choices.iter().map(move |c| [tick.clone(), vec![*c]].concat()))
                    .collect();
            }
            actions.extend(ticks.into_iter().map(Action::Tick));
        }
        for host in 0..2 {
            if !s.runs(host) {
                continue;
            }
            let it = &s.hosts[host];
            if let Some(core) = &it.worker {
                if host == 0 && core.next_deadline().is_some_and(|at| at <= NOW) {
                    actions.push(Action::Wake(host));
                }
                // The second host is asked when it can take the volume: before, it would say no.
                if s.prepares[host] > 0
                    && (host == 0 || s.etcd.is_takeable(&id(), bounds.storage))
                    && core.epoch().is_some()
                    && !it.processes.contains_key(&user(host))
                    && !core.users().contains(&user(host))
                {
                    actions.push(Action::Prepare(host));
                }
                if bounds.ends
                    && host == 0
                    && it.processes.get(&user(host)).is_some_and(|process| process.runs)
                {
                    actions.push(Action::End(host));
                }
            }
            let due = it.shared.fenced || it.shared.fence_at.is_some_and(|at| at <= NOW);
            if it.deadman.is_some() && it.worker.is_some() && due {
                actions.push(Action::Poll(host));
            }
            if let Some(effect) = s.control[host].front()
                && !matches!(effect, Effect::Act(_, Act::Settle(until)) if *until > NOW)
            {
                actions.push(Action::Control(host));
            }
        }
        let lands = |call: &Call| !(call.host == 0 && s.suspended);
        actions.extend((0..s.calls.len()).filter(|index| lands(&s.calls[*index])).map(Action::Land));
        for (index, sent) in s.wire.iter().enumerate() {
            match &sent.stage {
                Stage::Read(_) | Stage::Commit(_) => actions.push(Action::Apply(index)),
                Stage::Seen(_) | Stage::Done(_) if s.suspended && sent.who == Who::Host => {}
                Stage::Seen(_) | Stage::Done(_) => actions.push(Action::Answered(index)),
            }
            if s.losses > 0 && sent.who == Who::Host && !s.suspended {
                actions.push(Action::Lose(index));
            }
        }
        if s.suspended {
            actions.push(Action::Resume);
        } else if s.suspends > 0 && s.up[0] {
            actions.push(Action::Suspend);
        }
        let may = |what| s.faults > 0 && s.runs(0) && [Crashes::Any, what].contains(&bounds.crashes);
        let (worker, deadman) = (s.hosts[0].worker.is_some(), s.hosts[0].deadman.is_some());
        if may(Crashes::Host) {
            actions.push(Action::PowerOff);
        }
        if may(Crashes::Keeper) && bounds.storage && deadman {
            actions.push(Action::KillKeeper);
        }
        if may(Crashes::Process) && worker {
            actions.push(Action::KillWorker);
        }
        if may(Crashes::Process) && worker && deadman {
            actions.push(Action::KillDeadman);
        }
        if !s.up[0] {
            actions.push(Action::PowerOn);
        } else if s.runs(0) && s.hosts[0].deadman.is_none() {
            actions.push(Action::StartDeadman);
        }
        if s.revokes > 0 && matches!(s.etcd.session(&holder(0)), Some((_, SessionState::Live))) {
            actions.push(Action::Revoke);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        let mut effects = Vec::new();
        let mut passed = vec![0; s.skew.len()];
        match action {
            Action::Tick(skew) => {
                for (node, skew) in skew.iter().enumerate() {
                    passed[node] = u32::from(1 + skew - s.skew[node]);
                }
                s.skew = skew;
                // A suspended host's calls wait for it.
                let oldest = self.0.late_calls.max(1);
                s.calls.iter_mut().for_each(|call| call.age = oldest.min(call.age + 1));
            }
            Action::Wake(host) => s.handle(host, Input::Tick),
            Action::Poll(host) => {
                s.hosts[host].poll_deadman(NOW, true, &mut effects);
                s.take(host, effects);
            }
            Action::Control(host) => {
                // A kill does not wait for what the worker itself was at.
                if s.control[host].contains(&Effect::KillWorker) {
                    s.control[host].retain(|effect| !matches!(effect, Effect::Act(Runner::Worker, _)));
                }
                while let Some(effect) = s.control[host].pop_front() {
                    match effect {
                        Effect::Act(runner, Act::Settle(until)) if until > NOW => {
                            s.control[host].push_front(Effect::Act(runner, Act::Settle(until)));
                            break;
                        }
                        Effect::KillWorker => {
                            if host == 0 {
                                s.abandon();
                            }
                            s.control[host]
                                .retain(|effect| !matches!(effect, Effect::Act(Runner::Worker, _)));
                            s.hosts[host].worker_gone(NOW, &mut effects);
                        }
                        Effect::StartWorker => s.hosts[host].start_worker(NOW, &mut effects),
                        Effect::Act(runner, act) => s.hosts[host].act(NOW, runner, &act, &mut effects),
                        _ => {}
                    }
                    s.take(host, std::mem::take(&mut effects));
                }
            }
            Action::Land(index) => s.land(index),
            Action::Prepare(host) => {
                s.prepares[host] -= 1;
                let volumes = vec![Wanted {
                    volume: id(),
                    asked: id(),
                    create: None,
                    read_only: false,
                    remove: false,
                    owner: None,
                }];
                let (request, container) = (Request(1), user(host));
                s.handle(
                    host,
                    Input::Prepare {
                        request,
                        container,
                        agent: "a".into(),
                        agent_id: None,
                        task: None,
                        volumes,
                    },
                );
            }
            Action::End(host) => {
                s.hosts[host].processes.remove(&user(host));
                s.handle(host, clean_up(user(host)));
            }
            Action::Apply(index) => {
                let sent = s.wire.remove(index);
                let stage = match &sent.stage {
                    Stage::Read(reading) => Stage::Seen(s.etcd.read(reading)),
                    Stage::Commit(commit) => Stage::Done(s.commit(commit)),
                    _ => return None,
                };
                if sent.who != Who::Nobody {
                    let atomic = self.0.reads == Reads::Atomic && matches!(stage, Stage::Seen(_));
                    let waits = sent.who == Who::Host && s.suspended;
                    s.wire.push(Sent { stage, ..sent });
                    if (!self.0.late_answers || atomic) && !waits {
                        s.answered(s.wire.len() - 1)?;
                    }
                }
            }
            Action::Answered(index) => s.answered(index)?,
            Action::Lose(index) => {
                s.losses -= 1;
                let op = s.wire[index].op;
                if matches!(s.wire[index].stage, Stage::Done(_)) {
                    s.wire.remove(index);
                } else {
                    s.wire[index].who = Who::Nobody;
                }
                s.handle(0, Input::Committed(op, Outcome::Unknown));
            }
            Action::KillWorker => {
                s.faults -= 1;
                s.abandon();
                s.control[0]
                    .retain(|effect| !matches!(effect, Effect::Act(Runner::Worker, _) | Effect::KillWorker));
                s.hosts[0].worker_gone(NOW, &mut effects);
                s.take(0, effects);
            }
            Action::KillDeadman => {
                s.faults -= 1;
                s.hosts[0].deadman_gone();
                s.control[0]
                    .retain(|effect| !matches!(effect, Effect::Act(Runner::Deadman, _) | Effect::KillWorker));
                s.handle(0, Input::Guarded(false));
            }
            Action::KillKeeper => {
                s.faults -= 1;
                s.abandon();
                s.control[0].clear();
                s.hosts[0].deadman_gone();
                s.hosts[0].worker_gone(NOW, &mut effects);
                s.take(0, effects);
            }
            Action::Suspend => {
                s.suspends -= 1;
                s.suspended = true;
            }
            Action::Resume => s.suspended = false,
            Action::StartDeadman => {
                s.hosts[0].start_deadman(NOW, &mut effects);
                s.take(0, effects);
                s.handle(0, Input::Guarded(true));
            }
            Action::PowerOff => {
                s.faults -= 1;
                s.abandon();
                // Nothing is mounted by a driver that is gone; what it asked of the storage may still happen.
                s.calls.retain(|call| call.host != 0 || !call.mount);
                s.control[0].clear();
                s.hosts[0].power_off();
                s.up[0] = false;
            }
            Action::PowerOn => {
                s.up[0] = true;
                s.hosts[0].boot(NOW, "b2".into(), &mut effects);
                s.take(0, effects);
            }
            Action::Revoke => {
                s.revokes -= 1;
                let key = Key::Session(holder(0));
                if let Some((Record::Session(session), _)) = s.etcd.entries.get_mut(&key) {
                    session.state = SessionState::Revoking;
                }
                s.etcd.revision.0 += 1;
                let at = s.etcd.revision;
                if let Some(entry) = s.etcd.entries.get_mut(&key) {
                    entry.1 = at;
                }
            }
        }
        s.settle(&passed);
        // The reclaimers are prompt; what they ask for is not.
        for number in 0..s.reclaimers.len() {
            if s.reclaimers[number].next_deadline().is_some_and(|at| at <= NOW) {
                s.master(number, reclaimer::Input::Tick);
            }
        }
        if self.0.reads == Reads::Prompt {
            s.look();
        }
        if s.hosts[1].worker.as_ref().and_then(|core| core.next_deadline()).is_some_and(|at| at <= NOW) {
            s.handle(1, Input::Tick);
        }
        s.settle(&[]);
        Some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two writers", |_, s: &State| s.writers() <= 1),
            Property::always("nothing else goes wrong", |_, s: &State| s.wrong.is_none()),
            Property::sometimes("the volume moves", |_, s: &State| {
                let over = match s.etcd.session(&holder(0)) {
                    Some((epoch, state)) => epoch > 1 || state != SessionState::Live,
                    None => true,
                };
                over && s.hosts[1].can_write(&id())
            }),
        ]
    }

    fn within_boundary(&self, s: &State) -> bool {
        s.etcd.session(&holder(0)).is_none_or(|(epoch, _)| epoch <= 2)
    }
}
