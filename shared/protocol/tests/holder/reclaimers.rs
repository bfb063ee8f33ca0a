//! What a master's module does about an agent that is not connected.

use std::time::Duration;

use protocol::VOLUMES_MAX;
use protocol::exchange::SessionState;
use protocol::reclaimer::{Agents, Core, Input, Output, Settings};
use protocol::timing::Profile;

use crate::etcd::Etcd;

const SECOND: Duration = Duration::from_secs(1);

/// A master's module, and hosts that beat each second: `agent-2` holds volume `a`.
struct Master {
    core: Core,
    etcd: Etcd,
    now: Duration,
}

impl Master {
    fn new(agents: Agents) -> Self {
        let mut etcd = Etcd::new();
        etcd.hold_elsewhere("agent-2", "a");
        let now = SECOND;
        let mut core = Core::new(
            now,
            Settings { timing: Profile::Default.timing(), poll: SECOND, reconnect: SECOND * 5 },
        );
        core.handle(now, Input::Leading(true));
        core.handle(now, Input::Agents(agents));
        Self { core, etcd, now }
    }

    fn later(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.etcd.beat_elsewhere("agent-2");
            self.now += SECOND;
            self.core.handle(self.now, Input::Tick);
            while let Some(output) = self.core.poll_output() {
                let input = match output {
                    Output::Read { op, reading } => Input::Read(op, Ok(self.etcd.read(&reading))),
                    Output::Commit { op, commit } => Input::Committed(op, self.etcd.commit(&commit)),
                    Output::MarkGone { .. } | Output::Alarm(_) | Output::Note(_) => continue,
                };
                self.core.handle(self.now, input);
            }
        }
    }

    fn is_revoked(&self, name: &str) -> bool {
        self.etcd.lease(name).is_some_and(|held| held.revoked.is_some())
    }

    fn revoked(&self) -> Vec<&str> {
        ["a", "b"].into_iter().filter(|name| self.is_revoked(name)).collect()
    }

    fn state(&self) -> SessionState {
        self.etcd.session("agent-2").state
    }
}

fn of_agent_2(list: impl Fn(&mut Agents) -> &mut std::collections::BTreeSet<protocol::Text>) -> Agents {
    let mut agents = Agents::default();
    list(&mut agents).insert("agent of agent-2".into());
    agents
}

#[test]
fn an_agent_that_is_not_connected_keeps_its_leases_as_long_as_nobody_wants_them() {
    let mut master = Master::new(of_agent_2(|agents| &mut agents.inactive));
    master.etcd.open_elsewhere("agent-1", &["b"]);
    master.later(60);
    assert_eq!((master.state(), master.revoked()), (SessionState::Live, vec![]));
}

#[test]
fn a_lease_that_a_live_session_wants_is_revoked_alone_when_its_agent_stays_away() {
    let mut master = Master::new(of_agent_2(|agents| &mut agents.inactive));
    master.etcd.hold_elsewhere("agent-2", "b");
    master.etcd.open_elsewhere("agent-1", &["a"]);
    master.later(4);
    assert!(master.revoked().is_empty());
    master.later(3);
    assert_eq!((master.state(), master.revoked()), (SessionState::Live, vec!["a"]));
}

/// One transaction has no room for all: those that are revoked already, and not yet given back, are not asked for again.
#[test]
fn of_more_volumes_than_a_transaction_takes_all_that_are_waited_for_are_revoked() {
    let mut master = Master::new(of_agent_2(|agents| &mut agents.inactive));
    let names: Vec<_> = (0..2 * VOLUMES_MAX + 1).map(|n| format!("v{n:03}")).collect();
    for name in &names {
        master.etcd.hold_elsewhere("agent-2", name);
    }
    master.etcd.open_elsewhere("agent-1", &names.iter().map(String::as_str).collect::<Vec<_>>());
    master.later(15);
    assert!(names.iter().all(|name| master.is_revoked(name)));
    assert_eq!(master.state(), SessionState::Live);
}

#[test]
fn what_a_session_wants_that_is_revoked_or_over_revokes_nobody() {
    let mut master = Master::new(of_agent_2(|agents| &mut agents.inactive));
    master.etcd.open_elsewhere("agent-1", &["a"]);
    master.etcd.revoke_session("agent-1", "drained");
    master.later(60);
    assert_eq!((master.state(), master.revoked()), (SessionState::Live, vec![]));
}

#[test]
fn an_agent_that_is_connected_keeps_its_leases_though_others_want_them() {
    let mut master = Master::new(of_agent_2(|agents| &mut agents.connected));
    master.etcd.open_elsewhere("agent-1", &["a"]);
    master.later(60);
    assert_eq!((master.state(), master.revoked()), (SessionState::Live, vec![]));
}

#[test]
fn an_agent_that_mesos_has_given_up_is_revoked_though_nobody_wants_its_leases() {
    let mut master = Master::new(of_agent_2(|agents| &mut agents.given_up));
    master.later(3);
    assert_eq!(master.state(), SessionState::Revoking);
}
