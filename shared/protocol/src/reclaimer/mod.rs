//! The core of a master module: it watches the sessions that hold leases, revokes those whose agent Mesos
//! has given up, and single volumes that are waited for while their agent stays disconnected; declares dead those that were
//! silent for a full wait, and marks agents gone.
//!
//! Several may run: every write compares what it was decided on, so that no election is needed. The one
//! beside the leading master acts first, the others T/2 later, so that a leader cut off from etcd stops
//! nobody.

mod storm;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

pub(super) use self::storm::Guard;
use super::exchange::{
    ByTime, ClusterId, Commit, Instance, Key, Lease, Outcome, Proof, Reading, Record, Session, SessionState,
    Storm, View, WAITED_FOR,
};
use super::timing::{RATE_ERROR, TTL_MAX, Timing};
use super::{Now, Op, Text};
use crate::VOLUMES_MAX;
use crate::ids::Epoch;
use crate::ids::Revision;
use crate::volume::{Holder, VolumeId};

/// What does not change while a master module runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The times of this installation, for the storm guard and for tombstones.
    pub timing: Timing,
    /// How often etcd is read.
    pub poll: Duration,
    /// For how long an agent may be disconnected from its master before a volume of its host that another one waits for is
    /// revoked: longer than an agent's restart takes.
    pub reconnect: Duration,
}

/// What the leading master says of its agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Agents {
    /// The ids of those that are connected.
    pub connected: BTreeSet<Text>,
    /// The addresses of those that are connected.
    pub addresses: BTreeSet<Text>,
    /// The ids of those that Mesos has given up: unreachable, gone, removed.
    pub given_up: BTreeSet<Text>,
    /// The ids of those that Mesos knows, and that are not connected: what other hosts wait for is revoked of theirs after
    /// [`Settings::reconnect`], and nothing else.
    pub inactive: BTreeSet<Text>,
}

/// What happens to the core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The result of [`Output::Read`].
    Read(Op, Result<View, Text>),
    /// The result of [`Output::Commit`].
    Committed(Op, Outcome),
    /// What the leading master says.
    Agents(Agents),
    /// Whether the master beside this module leads.
    Leading(bool),
    /// Time has passed: see [`Core::next_deadline`].
    Tick,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Read from etcd, linearizably.
    Read {
        /// Under which number the result comes.
        op: Op,
        /// What.
        reading: Reading,
    },
    /// Send a transaction.
    Commit {
        /// Under which number the result comes.
        op: Op,
        /// The transaction.
        commit: Commit,
    },
    /// Tell the master that the agent is gone, which kills whatever it still runs.
    MarkGone {
        /// The agent.
        agent_id: Text,
    },
    /// Something a person has to read.
    Alarm(Text),
    /// Something an operator should read.
    Note(Text),
}

/// A lease-holding session as this module's own reads have shown it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Watch {
    pub(super) epoch: Epoch,
    pub(super) session: Revision,
    pub(super) beat: Revision,
    /// When the read returned that last showed a new beat or epoch (L13).
    pub(super) since: Now,
    /// How long it must be silent; `None` when silence does not end it.
    pub(super) span: Option<Duration>,
    pub(super) state: SessionState,
    pub(super) agent: Option<Text>,
    /// Whether the master listed its agent as disconnected ever since.
    pub(super) disconnected: bool,
    /// Since when Mesos has given its agent up.
    pub(super) given_up: Option<Now>,
    /// Since when its agent is disconnected, without being given up.
    pub(super) absent: Option<Now>,
    /// Its volumes that other hosts wait for.
    pub(super) wanted: BTreeSet<VolumeId>,
    /// Of these, those that were seen to be revoked.
    pub(super) revoked: BTreeSet<VolumeId>,
    pub(super) warned: bool,
}

/// The core. See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    pub(super) settings: Settings,
    pub(super) leading: bool,
    pub(super) agents: Option<Agents>,
    pub(super) cluster: Option<ClusterId>,
    pub(super) highest: Revision,
    pub(super) reading: Option<Op>,
    pub(super) next_read: Now,
    pub(super) watches: BTreeMap<Holder, Watch>,
    /// Writes under way.
    pub(super) writing: BTreeMap<Op, Key>,
    /// Reads under way of the leases of holders that others wait for.
    pub(super) asking: BTreeMap<Op, Holder>,
    pub(super) guard: Guard,
    /// Sessions that this module declared dead, whose agents were disconnected throughout.
    pub(super) reclaimed: BTreeMap<Holder, (Epoch, Text)>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) next_op: u64,
}

impl Core {
    /// One that knows nothing yet: every wait begins with its own first read.
    #[must_use]
    pub fn new(now: Now, settings: Settings) -> Self {
        Self {
            settings,
            leading: false,
            agents: None,
            cluster: None,
            highest: Revision::ABSENT,
            reading: None,
            next_read: now,
            watches: BTreeMap::new(),
            writing: BTreeMap::new(),
            asking: BTreeMap::new(),
            guard: Guard::default(),
            reclaimed: BTreeMap::new(),
            outputs: VecDeque::new(),
            next_op: 0,
        }
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted, if nothing happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        self.reading.is_none().then_some(self.next_read)
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Read(op, result) if self.reading == Some(op) => {
                self.reading = None;
                self.next_read = now + self.settings.poll;
                match result {
                    Ok(view) => self.seen(now, &view),
                    Err(_) => self.guard.late(),
                }
            }
            Input::Read(op, result) => {
                if let (Some(holder), Ok(view)) = (self.asking.remove(&op), result) {
                    self.revoke_wanted(&holder, &view);
                }
            }
            Input::Tick => {}
            Input::Committed(op, _) => {
                // Whatever came of it, the next read tells: all of these may be tried again, for each compares
                // what it was decided on.
                if self.writing.remove(&op).is_some() {
                    self.next_read = now;
                }
            }
            Input::Agents(agents) => {
                for watch in self.watches.values_mut() {
                    watch.listed(now, &agents);
                }
                self.agents = Some(agents);
            }
            Input::Leading(leading) => self.leading = leading,
        }
        if self.reading.is_none() && self.next_read <= now {
            let op = self.op();
            self.reading = Some(op);
            self.outputs.push_back(Output::Read { op, reading: Reading::Everything });
        }
    }

    fn op(&mut self) -> Op {
        self.next_op += 1;
        Op(self.next_op)
    }

    /// Takes in what this module's own read shows, at the time of its return.
    fn seen(&mut self, now: Now, view: &View) {
        let restored =
            view.revision < self.highest || self.cluster.as_ref().is_some_and(|id| *id != view.cluster);
        if restored {
            self.outputs
                .push_back(Output::Alarm("etcd was restored from a backup: all waits begin again".into()));
            self.watches.clear();
            self.reclaimed.clear();
            self.guard = Guard::default();
        }
        self.highest = view.revision;
        self.cluster = Some(view.cluster.clone());
        self.observe(now, view);
        self.mark_gone(view);
        self.act(now, view);
    }

    fn observe(&mut self, now: Now, view: &View) {
        let mut holding: BTreeMap<&Holder, Epoch> = BTreeMap::new();
        let wanted = wanted(view, self.agents.as_ref());
        let wanted_of = |holder| wanted.get(holder).cloned().unwrap_or_default();
        for (_, held, _) in view.held() {
            let epoch = holding.entry(&held.holder).or_insert(held.epoch);
            *epoch = held.epoch.max(*epoch);
        }
        let mut watches = BTreeMap::new();
        for (holder, held) in holding {
            let found = view.session(holder);
            let beat = view.at(&Key::Beat(holder.clone()));
            let (epoch, session, span, state, agent) = match found {
                // Leases of a missing session: nobody knows its T, so the longest that there is.
                None => {
                    let span = Some(TTL_MAX + TTL_MAX * 2 / RATE_ERROR);
                    (held, Revision::ABSENT, span, SessionState::Live, None)
                }
                Some((session, _)) if matches!(session.state, SessionState::Dead(_)) => continue,
                // Its leases are of earlier epochs, and may be taken.
                Some((session, _)) if session.epoch > held => continue,
                Some((session, at)) => {
                    let judged = session.by_time == ByTime::Allowed && session.timing.fences_in_time();
                    let span = judged.then(|| session.timing.reclaim_span());
                    let agent = session.agent.as_ref().and_then(|agent| agent.id.clone());
                    (session.epoch, at, span, session.state, agent)
                }
            };
            let mut watch = match self.watches.remove(holder) {
                // A rewritten session (a revoke, a barrier) is no sign of life: the wait goes on.
                Some(watch) if watch.epoch == epoch && watch.beat == beat => {
                    Watch { session, span, state, agent, wanted: wanted_of(holder), ..watch }
                }
                known => Watch {
                    epoch,
                    session,
                    beat,
                    since: now,
                    span,
                    state,
                    agent,
                    disconnected: true,
                    given_up: known.as_ref().and_then(|watch| watch.given_up),
                    absent: known.as_ref().and_then(|watch| watch.absent),
                    wanted: wanted_of(holder),
                    revoked: known
                        .filter(|watch| watch.epoch == epoch)
                        .map(|watch| watch.revoked)
                        .unwrap_or_default(),
                    warned: false,
                },
            };
            watch.revoked.retain(|volume| watch.wanted.contains(volume));
            match &self.agents {
                Some(agents) => watch.listed(now, agents),
                None => watch.disconnected = false,
            }
            watches.insert(holder.clone(), watch);
        }
        self.watches = watches;
    }

    fn act(&mut self, now: Now, view: &View) {
        let lost = self.watches.values().filter(|watch| watch.is_overdue(now)).count();
        let holding = self.watches.len();
        let span = self.settings.timing.reclaim_span();
        let verdict = self.guard.judge(now, &self.settings, span, view, lost, holding);
        if let Some(storm) = verdict.write {
            let commit =
                Commit::new(&view.cluster).put(Key::Storm, view.at(&Key::Storm), Record::Storm(storm));
            self.commit(Key::Storm, commit);
        }
        if let Some(alarm) = verdict.alarm {
            self.outputs.push_back(Output::Alarm(alarm));
        }
        if !verdict.may_act {
            return;
        }
        let later = if self.leading { Duration::ZERO } else { self.settings.timing.ttl / 2 };
        for (holder, watch) in self.watches.clone() {
            if self.writing.values().any(|key| *key == Key::Session(holder.clone())) {
                continue;
            }
            if watch.is_overdue(now) {
                if now >= watch.since + watch.span.unwrap_or_default() + later {
                    self.declare_dead(view, &holder, &watch);
                }
                continue;
            }
            if watch.state == SessionState::Live {
                if watch.given_up.is_some_and(|since| now >= since + later) {
                    self.revoke(view, &holder);
                    continue;
                }
                let bound = self.settings.reconnect + later;
                if !watch.wanted.is_empty() && watch.absent.is_some_and(|since| now >= since + bound) {
                    self.ask_for_wanted(&holder, &watch);
                }
            }
            if watch.span.is_none() && !watch.warned && now >= watch.since + span {
                let unproved = view.session(&holder).and_then(|(session, _)| session.unproved.as_deref());
                let why = unproved.map(|why| format!(": {why}")).unwrap_or_default();
                let line = format!("{holder} is silent, and its session is never ended by silence{why}");
                self.outputs.push_back(Output::Alarm(line.into()));
                if let Some(watch) = self.watches.get_mut(&holder) {
                    watch.warned = true;
                }
            }
        }
    }

    fn commit(&mut self, key: Key, commit: Commit) {
        if self.writing.values().any(|writing| *writing == key) {
            return;
        }
        let op = self.op();
        self.writing.insert(op, key);
        self.outputs.push_back(Output::Commit { op, commit });
    }

    /// One write, however many volumes the holder has: compares that neither session nor beat has changed
    /// since the wait began, and that no storm was raised.
    fn declare_dead(&mut self, view: &View, holder: &Holder, watch: &Watch) {
        let state = SessionState::Dead(Proof::Time);
        let reason = Some("it sent no heartbeat for its whole time to live".into());
        let dead = match view.session(holder) {
            Some((session, _)) => Session { state, reason, ..session.clone() },
            None => tombstone(watch.epoch, &self.settings, reason),
        };
        let key = Key::Session(holder.clone());
        let commit = Commit::new(&view.cluster)
            .put(key.clone(), watch.session, Record::Session(dead))
            .unchanged(Key::Beat(holder.clone()), watch.beat)
            .unchanged(Key::Storm, view.at(&Key::Storm));
        if watch.disconnected
            && let Some(agent_id) = &watch.agent
        {
            self.reclaimed.insert(holder.clone(), (watch.epoch, agent_id.clone()));
        }
        self.outputs.push_back(Output::Note(format!("{holder} was silent: it is declared dead").into()));
        self.commit(key, commit);
    }

    /// Reads the leases that others wait for. What is followed of them is too little to be written again.
    fn ask_for_wanted(&mut self, holder: &Holder, watch: &Watch) {
        let leases: Vec<_> = watch.wanted.difference(&watch.revoked).take(VOLUMES_MAX).cloned().collect();
        if leases.is_empty() || self.asking.values().any(|asked| asked == holder) {
            return;
        }
        let keys = [Key::Session(holder.clone()), Key::Storm].into_iter();
        let reading = Reading::Keys(keys.chain(leases.into_iter().map(Key::Lease)).collect());
        let op = self.op();
        self.asking.insert(op, holder.clone());
        self.outputs.push_back(Output::Read { op, reading });
    }

    /// These volumes alone: an agent that is restarted has the others when it is back. The session is rewritten with them, so that
    /// the holder hears of it.
    fn revoke_wanted(&mut self, holder: &Holder, view: &View) {
        let Some(watch) = self.watches.get_mut(holder).filter(|watch| watch.absent.is_some()) else { return };
        let is_watched =
            |session: &Session| session.epoch == watch.epoch && session.state == SessionState::Live;
        let Some((session, at)) = view.session(holder).filter(|(session, _)| is_watched(session)) else {
            return;
        };
        let is_raised = matches!(view.entries.get(&Key::Storm), Some((Record::Storm(Storm::Raised), _)));
        if is_raised || self.cluster.as_ref() != Some(&view.cluster) {
            return;
        }
        let mut commit = Commit::new(&view.cluster)
            .put(Key::Session(holder.clone()), at, Record::Session(session.clone()))
            .unchanged(Key::Storm, view.at(&Key::Storm));
        let mut named = Vec::new();
        for (volume, held, at) in view.held() {
            if held.holder != *holder || held.epoch != watch.epoch || !watch.wanted.contains(volume) {
                continue;
            }
            if held.revoked.is_some() {
                watch.revoked.insert(volume.clone());
                continue;
            }
            let revoked = Record::Lease(Lease::Held(held.revoked(at, WAITED_FOR)));
            commit = commit.put(Key::Lease(volume.clone()), at, revoked);
            named.push(volume.to_string());
        }
        if named.is_empty() {
            return;
        }
        let line = format!(
            "the agent of {holder} is disconnected, and other hosts wait for {}: revoked",
            named.join(", ")
        );
        self.outputs.push_back(Output::Note(line.into()));
        self.commit(Key::Session(holder.clone()), commit);
    }

    /// No new leases for this session; its holder winds down what it has.
    fn revoke(&mut self, view: &View, holder: &Holder) {
        let Some((session, at)) = view.session(holder) else { return };
        let reason = Some("Mesos has given its agent up".into());
        let session = Session { state: SessionState::Revoking, reason, ..session.clone() };
        let key = Key::Session(holder.clone());
        let commit = Commit::new(&view.cluster)
            .put(key.clone(), at, Record::Session(session))
            .unchanged(Key::Storm, view.at(&Key::Storm));
        self.outputs.push_back(Output::Note(format!("Mesos has given {holder} up: it is revoked").into()));
        self.commit(key, commit);
    }

    /// Marks agents gone, which kills all their tasks: only if the master saw them disconnected throughout the
    /// wait, and the session is still that dead epoch.
    fn mark_gone(&mut self, view: &View) {
        for (holder, (epoch, agent_id)) in std::mem::take(&mut self.reclaimed) {
            match view.session(&holder) {
                Some((session, _)) if session.epoch == epoch => match session.state {
                    SessionState::Dead(Proof::Time) => {
                        let connected = self.agents.as_ref().is_none_or(|a| a.connected.contains(&agent_id));
                        if !connected {
                            self.outputs.push_back(Output::MarkGone { agent_id });
                        }
                    }
                    SessionState::Dead(_) => {}
                    // The write is not done, or was refused.
                    SessionState::Live | SessionState::Revoking if self.watches.contains_key(&holder) => {
                        let disconnected = self.watches.get(&holder).is_some_and(|watch| watch.disconnected);
                        if disconnected {
                            self.reclaimed.insert(holder, (epoch, agent_id));
                        }
                    }
                    SessionState::Live | SessionState::Revoking => {}
                },
                _ => {}
            }
        }
    }
}

impl Watch {
    /// Whether it was silent for the whole wait.
    fn is_overdue(&self, now: Now) -> bool {
        self.span.is_some_and(|span| now >= self.since + span)
    }

    fn listed(&mut self, now: Now, agents: &Agents) {
        let Some(id) = &self.agent else {
            // A new epoch, whose agent has not said so yet: Mesos says nothing of it.
            (self.disconnected, self.given_up, self.absent) = (false, None, None);
            return;
        };
        let connected = agents.connected.contains(id);
        self.disconnected &= !connected;
        let since = |known: Option<Now>, list: &BTreeSet<Text>| {
            (!connected && list.contains(id)).then(|| known.unwrap_or(now))
        };
        self.given_up = since(self.given_up, &agents.given_up);
        self.absent = since(self.absent, &agents.inactive);
    }
}

/// By holder, its volumes that another live session wants. One whose own agent is not there waits for nothing: without leases it does
/// not beat, and its host may be dead.
fn wanted<'v>(view: &'v View, agents: Option<&Agents>) -> BTreeMap<&'v Holder, BTreeSet<VolumeId>> {
    let is_away = |session: &Session| {
        let id = session.agent.as_ref().and_then(|agent| agent.id.as_ref());
        let lists = |agents: &Agents, id: &Text| {
            !agents.connected.contains(id) && (agents.inactive.contains(id) || agents.given_up.contains(id))
        };
        agents.zip(id).is_some_and(|(agents, id)| lists(agents, id))
    };
    let mut holders = BTreeMap::<_, BTreeSet<_>>::new();
    for (key, (record, _)) in &view.entries {
        if let (Key::Session(waits), Record::Session(session)) = (key, record)
            && session.state == SessionState::Live
            && !is_away(session)
        {
            // One that has just got what it waited for still says so for a moment.
            let held = session.wants.iter();
            let held = held.filter_map(|volume| Some((volume, &view.lease(volume)?.0.held()?.holder)));
            for (volume, holder) in held.filter(|(_, holder)| *holder != waits) {
                holders.entry(holder).or_default().insert(volume.clone());
            }
        }
    }
    holders
}

/// What stands for a session that is missing though there are leases of it.
fn tombstone(epoch: Epoch, settings: &Settings, reason: Option<Text>) -> Session {
    Session {
        epoch,
        instance: Instance("none".into()),
        state: SessionState::Dead(Proof::Time),
        machine: "unknown".into(),
        boot: "unknown".into(),
        agent: None,
        timing: settings.timing,
        by_time: ByTime::Allowed,
        means: Default::default(),
        unproved: None,
        unsettled_through: Epoch(0),
        wants: BTreeSet::new(),
        reason,
        since: None,
    }
}
