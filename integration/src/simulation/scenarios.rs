//! Short stories with one end, for what a random schedule rarely shows: inequalities, and the storm guard.

use std::collections::BTreeSet;
use std::time::Duration;

use shared::protocol::exchange::{
    Agent, ByTime, ClusterId, Commit, Held, Instance, Key, Lease, Record, Session, SessionState, Stage, Storm,
};
use shared::protocol::reclaimer::{Agents, Core, Input, Output};
use shared::protocol::timing::RATE_ERROR;
use shared::record::Epoch;
use shared::store::Revision;

use super::etcd::Etcd;
use super::run::{holder, new_reclaimer, timing, volume};

/// Runs all of them.
///
/// # Errors
/// What went wrong, in a few words.
pub fn check() -> Result<(), &'static str> {
    clocks()?;
    storm()?;
    connected_agents()
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

/// A reclaimer whose reads return at once.
struct Story {
    etcd: Etcd,
    core: Core,
    now: Duration,
    gone: Vec<String>,
}

impl Story {
    /// `count` hosts, each with a lease, of which none beats.
    fn of(count: usize) -> Self {
        let mut etcd = Etcd::new();
        for host in 0..count {
            let session = Session {
                epoch: Epoch(1),
                instance: Instance("i".into()),
                state: SessionState::Live,
                machine: "m".into(),
                boot: "b".into(),
                agent: Some(Agent { id: Some(format!("A{host}").into()), address: "a".into() }),
                timing: timing(),
                by_time: ByTime::Allowed,
                unsettled_through: Epoch(0),
                reason: None,
                since: None,
            };
            let held = Held {
                stage: Stage::Attached,
                holder: holder(host),
                epoch: Epoch(1),
                token: None,
                agent_id: None,
                containers: BTreeSet::new(),
                mount_point: None,
                unsettled: false,
                revoked: None,
                since: None,
            };
            let commit = Commit::new(&ClusterId("c1".into()))
                .put(Key::Session(holder(host)), Revision::ABSENT, Record::Session(session))
                .put(Key::Lease(volume(host)), Revision::ABSENT, Record::Lease(Lease::Held(held)));
            etcd.commit(&commit);
        }
        let mut core = new_reclaimer(Duration::ZERO);
        core.handle(Duration::ZERO, Input::Leading(true));
        Self { etcd, core, now: Duration::ZERO, gone: Vec::new() }
    }

    fn go_on_until(&mut self, end: Duration) {
        while self.now <= end {
            self.core.handle(self.now, Input::Tick);
            while let Some(output) = self.core.poll_output() {
                let input = match output {
                    Output::Read { op, reading } => Input::Read(op, Ok(self.etcd.read(&reading))),
                    Output::Commit { op, commit } => Input::Committed(op, self.etcd.commit(&commit)),
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
        let at = self.etcd.at(&Key::Session(holder(host)));
        let commit = Commit::beat(&ClusterId("c1".into()), &holder(host), at);
        let _ = self.etcd.commit(&commit);
    }

    fn dead(&self, count: usize) -> usize {
        let dead =
            |host: &usize| matches!(self.etcd.session(&holder(*host)), Some((_, SessionState::Dead(_))));
        (0..count).filter(dead).count()
    }
}

/// Four hosts fall silent at once: nobody is declared dead, until a wait of timely reads has shown that it is
/// they who are gone.
fn storm() -> Result<(), &'static str> {
    let mut story = Story::of(4);
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
    let mut story = Story::of(4);
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

/// Of two silent hosts the master sees one: that is cut off from etcd alone, and its agent is not marked gone.
fn connected_agents() -> Result<(), &'static str> {
    let mut story = Story::of(2);
    let agents = Agents { connected: BTreeSet::from(["A0".into()]), ..Agents::default() };
    story.core.handle(Duration::ZERO, Input::Agents(agents));
    story.go_on_until(timing().reclaim_span() + Duration::from_secs(1));
    match story.gone.as_slice() {
        [gone] if gone == "A1" => Ok(()),
        [] => Err("scenario: the agent of a lost host was not marked gone"),
        _ => Err("scenario: an agent that the master sees was marked gone"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_scenario_ends_well() {
        assert_eq!(super::check(), Ok(()));
    }
}
