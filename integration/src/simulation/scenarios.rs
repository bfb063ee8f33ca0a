//! Short stories with one end, for what a random schedule rarely shows: inequalities, and the storm guard.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::Request;
use protocol::deadman::{self, Deadman};
use protocol::exchange::{
    Agent, ByTime, ClusterId, Commit, Held, Instance, Key, Lease, Outcome, Record, Session, SessionState,
    Stage, Storm,
};
use protocol::holder;
use protocol::ids::Epoch;
use protocol::ids::Revision;
use protocol::reclaimer::{Agents, Core, Input, Output};
use protocol::timing::RATE_ERROR;

use super::alone::Alone;
use super::calls;
use super::etcd::Etcd;
use super::host::Effect;
use super::run::{container, holder as name, new_reclaimer, timing, volume};

/// Runs all of them.
///
/// # Errors
/// What went wrong, in a few words.
pub fn check() -> Result<(), &'static str> {
    clocks()?;
    storm()?;
    connected_agents()?;
    absent_agent()?;
    late_beat()?;
    never_by_time()?;
    slow_answer()?;
    lost_acquire(false)?;
    lost_acquire(true)?;
    another_machine()?;
    revoked_meanwhile()?;
    gate()?;
    adoption()?;
    deadman_alone()?;
    calls::check()
}

/// The slowest holder stops before the fastest reclaimer starts, and refuses times that do not allow it.
fn clocks() -> Result<(), &'static str> {
    let timing = timing();
    let rate = f64::from(RATE_ERROR);
    let holder = timing.write_span().as_secs_f64() / (1.0 - 1.0 / rate);
    let reclaimer = timing.reclaim_span().as_secs_f64() / (1.0 + 1.0 / rate);
    if holder >= reclaimer {
        return Err(
            "scenario: the slowest holder may write when the fastest reclaimer gives its volumes away",
        );
    }
    let mut late = timing;
    late.kill += Duration::from_millis(1);
    if late.check().is_ok() {
        return Err("scenario: times were taken whose fence ends too late");
    }
    Ok(())
}

pub(super) fn live() -> Session {
    Session {
        epoch: Epoch(1),
        instance: Instance("i".into()),
        state: SessionState::Live,
        machine: "m".into(),
        boot: "b".into(),
        agent: None,
        timing: timing(),
        by_time: ByTime::Allowed,
        means: Default::default(),
        unproved: None,
        unsettled_through: Epoch(0),
        wants: BTreeSet::new(),
        reason: None,
        since: None,
    }
}

pub(super) fn attached(host: usize) -> Held {
    Held {
        stage: Stage::Attached,
        holder: name(host),
        epoch: Epoch(1),
        token: None,
        agent_id: None,
        containers: BTreeSet::new(),
        tasks: Default::default(),
        mount_point: None,
        unsettled: false,
        calls: false,
        owed: None,
        revoked: None,
        since: None,
    }
}

/// A reclaimer whose reads return at once.
struct Story {
    etcd: Etcd,
    core: Core,
    now: Duration,
    gone: Vec<String>,
    /// Whether host 0 beats right before a reclaim arrives.
    beats_at_last: bool,
}

impl Story {
    /// `count` hosts, each with a lease, of which none beats.
    fn of(count: usize, by_time: ByTime) -> Self {
        let mut etcd = Etcd::new();
        for host in 0..count {
            let id = Some(format!("A{host}").into());
            let agent = Some(Agent { id, address: "a".into() });
            let session = Session { agent, by_time, ..live() };
            let held = attached(host);
            let commit = Commit::new(&ClusterId("c1".into()))
                .put(Key::Session(name(host)), Revision::ABSENT, Record::Session(session))
                .put(Key::Lease(volume(host)), Revision::ABSENT, Record::Lease(Lease::Held(held)));
            etcd.commit(&commit);
        }
        let mut core = new_reclaimer(Duration::ZERO);
        core.handle(Duration::ZERO, Input::Leading(true));
        Self { etcd, core, now: Duration::ZERO, gone: Vec::new(), beats_at_last: false }
    }

    fn go_on_until(&mut self, end: Duration) {
        while self.now <= end {
            self.core.handle(self.now, Input::Tick);
            while let Some(output) = self.core.poll_output() {
                let input = match output {
                    Output::Read { op, reading } => Input::Read(op, Ok(self.etcd.read(&reading))),
                    Output::Commit { op, commit } => {
                        if self.beats_at_last {
                            self.beat(0);
                        }
                        Input::Committed(op, self.etcd.commit(&commit))
                    }
                    Output::MarkGone { agent_id } => {
                        self.gone.push(agent_id.to_string());
                        continue;
                    }
                    Output::Alarm(_) | Output::Note(_) => continue,
                };
                self.core.handle(self.now, input);
            }
            self.now += Duration::from_millis(100);
        }
    }

    fn beat(&mut self, host: usize) {
        let at = self.etcd.at(&Key::Session(name(host)));
        let commit = Commit::beat(&ClusterId("c1".into()), &name(host), at);
        let _ = self.etcd.commit(&commit);
    }

    fn dead(&self, count: usize) -> usize {
        let dead = |host: &usize| matches!(self.etcd.session(&name(*host)), Some((_, SessionState::Dead(_))));
        (0..count).filter(dead).count()
    }
}

/// Four hosts fall silent at once: nobody is declared dead, until a wait of timely reads has shown that it is
/// they who are gone.
fn storm() -> Result<(), &'static str> {
    let mut story = Story::of(4, ByTime::Allowed);
    let span = timing().reclaim_span();
    story.go_on_until(span + Duration::from_secs(2));
    if story.dead(4) > 0 {
        return Err("scenario: hosts were declared dead in a storm");
    }
    if !matches!(story.etcd.entries.get(&Key::Storm), Some((Record::Storm(Storm::Raised), _))) {
        return Err("scenario: no storm was raised");
    }
    story.go_on_until(span * 2 + Duration::from_secs(3));
    if story.dead(4) < 4 {
        return Err("scenario: a storm did not lift itself");
    }
    // One of four is no storm.
    let mut story = Story::of(4, ByTime::Allowed);
    story.go_on_until(span / 2);
    for host in 1..4 {
        story.beat(host);
    }
    story.go_on_until(span + Duration::from_millis(900));
    if story.dead(4) == 1 {
        Ok(())
    } else {
        Err("scenario: one lost host of four was not declared dead alone")
    }
}

/// Of two silent hosts the master saw one for a while: that was cut off from etcd alone, and its agent is not
/// marked gone.
fn connected_agents() -> Result<(), &'static str> {
    let mut story = Story::of(2, ByTime::Allowed);
    let agents = Agents { connected: BTreeSet::from(["A0".into()]), ..Agents::default() };
    story.core.handle(Duration::ZERO, Input::Agents(agents.clone()));
    story.go_on_until(timing().reclaim_span() / 2);
    story.core.handle(story.now, Input::Agents(agents));
    story.core.handle(story.now, Input::Agents(Agents::default()));
    story.go_on_until(timing().reclaim_span() + Duration::from_secs(1));
    match story.gone.as_slice() {
        [gone] if gone == "A1" => Ok(()),
        [] => Err("scenario: the agent of a lost host was not marked gone"),
        _ => Err("scenario: an agent that the master sees was marked gone"),
    }
}

/// Of a host whose agent is disconnected a volume that another one waits for is revoked, after the time that a restart may take; its
/// session is rewritten as it was, for by that its keeper hears of it.
fn absent_agent() -> Result<(), &'static str> {
    let mut story = Story::of(1, ByTime::Never);
    let waits = Session { wants: [volume(0)].into(), ..live() };
    let commit = Commit::new(&ClusterId("c1".into()));
    story.etcd.commit(&commit.put(Key::Session(name(8)), Revision::ABSENT, Record::Session(waits)));
    let key = Key::Session(name(0));
    let written = story.etcd.at(&key);
    let agents = Agents { inactive: BTreeSet::from(["A0".into()]), ..Agents::default() };
    story.core.handle(Duration::ZERO, Input::Agents(agents));
    let revoked = |story: &Story| {
        story.etcd.lease(&volume(0)).and_then(Lease::held).is_some_and(|held| held.revoked.is_some())
    };
    story.go_on_until(Duration::from_secs(1));
    if revoked(&story) {
        return Err("scenario: a volume was revoked while its agent might be restarted");
    }
    // Also where the master beside it does not lead.
    story.go_on_until(Duration::from_secs(3) + timing().ttl);
    if !revoked(&story) {
        return Err("scenario: a volume that another host waits for stayed with a host whose agent is away");
    }
    match story.etcd.at(&key) > written {
        true => Ok(()),
        false => Err("scenario: a keeper does not hear that a volume of its was revoked"),
    }
}

/// A beat that commits right before the reclaim makes it fail.
fn late_beat() -> Result<(), &'static str> {
    let mut story = Story::of(1, ByTime::Allowed);
    story.beats_at_last = true;
    story.go_on_until(timing().reclaim_span() + Duration::from_secs(1));
    if story.dead(1) == 0 { Ok(()) } else { Err("scenario: a host that had just beaten was declared dead") }
}

/// A session that never ends by silence does not.
fn never_by_time() -> Result<(), &'static str> {
    let mut story = Story::of(1, ByTime::Never);
    story.go_on_until(timing().reclaim_span() * 3);
    if story.dead(1) == 0 {
        Ok(())
    } else {
        Err("scenario: a session that never ends by silence was ended by it")
    }
}

/// A beat's answer that comes late does not move the deadline with it: neither of one alone, nor of one among the taking of a lease.
fn slow_answer() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let mut slow = 0;
    while let Some((op, commit)) = story.next_commit(|key| matches!(key, Key::Beat(_))) {
        let sent = story.now;
        story.now += Duration::from_millis(400);
        let outcome = story.etcd.commit(&commit);
        let is_done = matches!(outcome, Outcome::Done(_));
        story.tell(holder::Input::Committed(op, outcome));
        if is_done {
            if story.host.shared.fence_at != Some(sent + timing().fence) {
                return Err("scenario: the deadline is not counted from the sending of a beat");
            }
            slow += 1;
            if slow == 2 {
                return Ok(());
            }
        }
    }
    Err("scenario: a host that was asked for a volume did not beat")
}

/// A lease of an epoch that another machine ended by opening the next one is taken as unsettled.
fn another_machine() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let cluster = ClusterId("c1".into());
    let session = Session { epoch: Epoch(2), unsettled_through: Epoch(1), ..live() };
    let commit = Commit::new(&cluster)
        .put(Key::Session(name(9)), Revision::ABSENT, Record::Session(session))
        .put(Key::Lease(volume(0)), Revision::ABSENT, Record::Lease(Lease::Held(attached(9))));
    story.etcd.commit(&commit);
    let taken = story.next_taking();
    match taken.as_ref().and_then(|(_, commit)| commit.puts.first()) {
        Some((_, Record::Lease(Lease::Held(held)))) if held.unsettled => Ok(()),
        Some(_) => Err("scenario: another machine's epoch was taken for a proof"),
        None => Err("scenario: a lease of an earlier epoch was not taken"),
    }
}

/// A lease that is asked for as the session is revoked is not granted, and not asked for again.
fn revoked_meanwhile() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let Some((op, commit)) = story.next_taking() else {
        return Err("scenario: a host that was asked for a volume did not ask for its lease");
    };
    let key = Key::Session(name(0));
    if let Some((Record::Session(session), at)) = story.etcd.entries.get(&key).cloned() {
        let session = Session { state: SessionState::Revoking, ..session };
        let revoke = Commit::new(&ClusterId("c1".into())).put(key, at, Record::Session(session));
        story.etcd.commit(&revoke);
    }
    let outcome = story.etcd.commit(&commit);
    story.tell(holder::Input::Committed(op, outcome));
    match story.next_commit(|key| matches!(key, Key::Lease(_))) {
        Some(_) => Err("scenario: a host that knew of its revoke asked for a lease"),
        None => Ok(()),
    }
}

/// A container that the worker does not know is not let go.
fn gate() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    while story.next_commit(|_| false).is_some() {}
    let (request, container) = (Request(7), container("x"));
    story.tell(holder::Input::Isolate { request, agent: "a".into(), container, pid: 1, cgroup: None });
    let let_go = |effect: &Effect| matches!(effect, Effect::Reply(Request(7), Ok(_)));
    if story.effects.iter().any(let_go) { Err("scenario: an unknown container was let go") } else { Ok(()) }
}

/// A restarted worker adopts an epoch whose time has not come, and no other.
fn adoption() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let _ = story.next_commit(|key| matches!(key, Key::Lease(_)));
    let shared = story.host.shared;
    let Some(at) = shared.fence_at else {
        return Err("scenario: a host that asks for a lease has no deadline");
    };
    let open = |now, shared| {
        holder::Core::new(now, story.host.settings.clone(), story.host.table.clone(), shared).is_open()
    };
    if !open(at - Duration::from_millis(1), shared) {
        return Err("scenario: a restarted worker did not adopt its epoch");
    }
    if open(at, shared) {
        return Err("scenario: an epoch was adopted whose time was over");
    }
    if open(at - Duration::from_millis(1), holder::Deadline { fenced: true, ..shared }) {
        return Err("scenario: an epoch was adopted that was being fenced");
    }
    Ok(())
}

/// A deadman fences when the deadline has passed, though its worker ticks.
fn deadman_alone() -> Result<(), &'static str> {
    let now = Duration::from_secs(9);
    let mut deadman = Deadman::beside_worker(now);
    let shared = holder::Deadline { fence_at: Some(now), ..holder::Deadline::default() };
    deadman.handle(now, shared, deadman::Input::WorkerTicked);
    match deadman.poll_output() {
        Some(deadman::Output::Flag) => Ok(()),
        _ => Err("scenario: a deadline passed, and the deadman did nothing"),
    }
}

/// An acquire whose answer was lost, and whose container ends meanwhile: either it can no longer commit, or, when
/// it has (`done`), the host knows of its lease.
fn lost_acquire(done: bool) -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let Some((op, commit)) = story.next_commit(|key| matches!(key, Key::Lease(_))) else {
        return Err("scenario: a host that was asked for a volume did not ask for its lease");
    };
    if done {
        story.etcd.commit(&commit);
    }
    story.tell(holder::Input::Committed(op, Outcome::Unknown));
    story.tell(holder::Input::Cleanup { request: Request(9), agent: "a".into(), container: container("c") });
    let _ = story.next_commit(|key| matches!(key, Key::Lease(_)));
    let known = story.host.worker.as_ref().is_some_and(|core| core.volumes().contains_key(&volume(0)));
    match (done, known, story.etcd.would_commit(&commit)) {
        (true, false, _) => Err("scenario: a lease was granted, and forgotten"),
        (false, false, true) => Err("scenario: an acquire was given up that can still commit"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_scenario_ends_well() {
        assert_eq!(super::check(), Ok(()));
    }
}
