//! The shell and the core against a store in memory, with a clock that goes on when it is told to.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use shared::memory::{CommitFault, MemoryStore};
use shared::protocol::exchange::{
    Agent, ByTime, ClusterId, Held, Instance, Key, Lease, Proof, Record, Session, SessionState, Stage, Storm,
};
use shared::protocol::timing::Profile;
use shared::record::{Epoch, Token};
use shared::store::Revision;
use shared::volume::{Driver, Holder, VolumeId, VolumeName};

use super::holdings::{Followed, Newest};
use super::*;

#[path = "acting_waiting_tests.rs"]
mod waiting;

const MS: Duration = Duration::from_millis(1);

#[derive(Clone, Default)]
struct Clock(Rc<Cell<Duration>>);

impl Elapsed for Clock {
    fn now(&mut self) -> Duration {
        self.0.get()
    }
}

fn holder(n: usize) -> Holder {
    Holder::new(format!("agent-{n}")).unwrap()
}

fn volume(n: usize) -> VolumeId {
    VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(format!("v{n}")).unwrap() }
}

fn id(n: usize) -> Text {
    format!("S{n}").into()
}

fn session(n: usize) -> Session {
    Session {
        epoch: Epoch(3),
        instance: Instance("i".into()),
        state: SessionState::Live,
        machine: "m".into(),
        boot: "b".into(),
        agent: Some(Agent { id: Some(id(n)), address: format!("slave(1)@10.0.0.{n}:5051").into() }),
        timing: Profile::Default.timing(),
        by_time: ByTime::Allowed,
        means: Default::default(),
        unproved: None,
        unsettled_through: Epoch(0),
        wants: Default::default(),
        reason: None,
        since: Some("then".into()),
    }
}

fn lease(n: usize) -> Record {
    Record::Lease(Lease::Held(Held {
        stage: Stage::Attached,
        holder: holder(n),
        epoch: Epoch(3),
        token: None,
        agent_id: Some(id(n)),
        containers: BTreeSet::new(),
        tasks: Default::default(),
        mount_point: None,
        unsettled: false,
        calls: false,
        owed: None,
        revoked: None,
        since: Some("then".into()),
    }))
}

trait IntoHeld {
    fn into_held(self) -> Held;
}

impl IntoHeld for Record {
    fn into_held(self) -> Held {
        match self {
            Record::Lease(Lease::Held(held)) => held,
            other => panic!("{other:?} is not held"),
        }
    }
}

/// For how long an agent may be disconnected.
const RECONNECT: Duration = Duration::from_secs(2);

/// One that stands beside its master, and what it knows.
struct Module {
    acting: Acting<MemoryStore, Clock>,
    leading: bool,
    agents: Option<Agents>,
    acted: Acted,
}

/// Holders with one lease each, and one module or more.
struct Scene {
    store: MemoryStore,
    exchange: Exchange<MemoryStore>,
    cluster: ClusterId,
    clock: Clock,
    holdings: Holdings,
    wanted: Wanted,
}

impl Scene {
    async fn begin(sessions: &[(usize, Session)]) -> Self {
        let store = MemoryStore::new();
        let exchange = Exchange::new(store.clone(), Default::default(), Duration::from_secs(10), None);
        exchange.found("one").await.unwrap();
        let cluster = exchange.read(&Reading::Everything).await.unwrap().cluster;
        let (clock, holdings, wanted) = (Clock::default(), Holdings::new(), Wanted::new());
        let mut scene = Self { store, exchange, cluster, clock, holdings, wanted };
        for (n, session) in sessions {
            scene.put(Key::Session(holder(*n)), Record::Session(session.clone())).await;
        }
        for (n, _) in sessions {
            scene.hold(*n).await;
            scene.beat(*n).await;
        }
        scene
    }

    fn module(&self, leading: bool) -> Module {
        let exchange =
            Exchange::new(self.store.another_client(), Default::default(), Duration::from_secs(10), None);
        let acting =
            Acting::new(Arc::new(exchange), self.clock.clone(), Profile::Default.timing(), MS, RECONNECT);
        Module { acting, leading, agents: None, acted: Acted::default() }
    }

    async fn put(&self, key: Key, record: Record) -> Revision {
        let at = self.exchange.read(&Reading::Keys(vec![key.clone()])).await.unwrap().at(&key);
        match self.exchange.commit(&Commit::new(&self.cluster).put(key, at, record)).await {
            Outcome::Done(at) => at,
            other => panic!("{other:?}"),
        }
    }

    async fn hold(&mut self, n: usize) {
        let written = self.put(Key::Lease(volume(n)), lease(n)).await;
        let newest = Newest { epoch: Epoch(3), volume: Arc::new(volume(n)), written };
        self.holdings.insert(holder(n), newest);
    }

    async fn beat(&self, n: usize) {
        self.put(Key::Beat(holder(n)), Record::Beat).await;
    }

    async fn session(&self, n: usize) -> Option<Session> {
        let key = Key::Session(holder(n));
        let view = self.exchange.read(&Reading::Keys(vec![key])).await.unwrap();
        view.session(&holder(n)).map(|(session, _)| session.clone())
    }

    async fn state(&self, n: usize) -> SessionState {
        self.session(n).await.unwrap().state
    }

    /// Whether a keeper may take a volume's lease over, by what it reads and compares: the session of the lease's
    /// holder is dead, of the lease's epoch or a later one, and unchanged when the lease is written.
    async fn can_be_taken(&self, n: usize, taker: usize) -> bool {
        let view = self.exchange.read(&Reading::Everything).await.unwrap();
        let (lease, at) = view.lease(&volume(n)).unwrap();
        let held = lease.held().unwrap().clone();
        let Some((owner, owned)) = view.session(&held.holder) else { return false };
        if !matches!(owner.state, SessionState::Dead(_)) || owner.epoch < held.epoch {
            return false;
        }
        let (mine, key) = (Key::Session(holder(taker)), Key::Session(held.holder.clone()));
        let taken = Record::Lease(Lease::Held(Held { holder: holder(taker), ..held }));
        let commit = Commit::new(&self.cluster)
            .put(Key::Lease(volume(n)), at, taken)
            .unchanged(key, owned)
            .unchanged(mine.clone(), view.at(&mine));
        matches!(self.exchange.commit(&commit).await, Outcome::Done(_))
    }

    async fn storm(&self) -> Option<Storm> {
        let view = self.exchange.read(&Reading::Keys(vec![Key::Storm])).await.unwrap();
        match view.entries.get(&Key::Storm) {
            Some((Record::Storm(storm), _)) => Some(*storm),
            _ => None,
        }
    }

    async fn turn_at(&self, ms: u64, module: &mut Module) {
        self.clock.0.set(Duration::from_millis(ms));
        let known = Known {
            holdings: self.holdings.clone(),
            wanted: self.wanted.clone(),
            agents: module.agents.take(),
            leading: module.leading,
        };
        module.acted = module.acting.turn(&known).await;
        assert!(module.acted.corrupt.is_none());
    }

    /// Turns every half second, up to and without `until`.
    async fn turns(&self, from: u64, until: u64, module: &mut Module) {
        for ms in (from..until).step_by(500) {
            self.turn_at(ms, module).await;
        }
    }
}

fn agents(connected: &[usize], given_up: &[usize]) -> Option<Agents> {
    let set = |ids: &[usize]| ids.iter().map(|n| id(*n)).collect();
    Some(Agents { connected: set(connected), given_up: set(given_up), ..Agents::default() })
}

const DEAD: SessionState = SessionState::Dead(Proof::Time);

/// T(1 + 2 rho) of the default profile.
const WAIT: u64 = 10_020;

#[tokio::test]
async fn a_session_that_beats_is_not_touched_and_one_that_stops_is_declared_dead_after_the_wait_and_not_before()
 {
    let scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    let mut module = scene.module(true);
    for ms in (0..60_000).step_by(500) {
        if ms % 1_000 == 0 {
            scene.beat(1).await;
            scene.beat(2).await;
        }
        scene.turn_at(ms, &mut module).await;
    }
    // The last beats were seen at 59,000.
    scene.beat(1).await;
    scene.turns(60_000, 59_000 + WAIT, &mut module).await;
    scene.turn_at(59_000 + WAIT - 1, &mut module).await;
    assert_eq!((scene.state(1).await, scene.state(2).await), (SessionState::Live, SessionState::Live));
    scene.turn_at(59_000 + WAIT, &mut module).await;
    assert_eq!((scene.state(1).await, scene.state(2).await), (SessionState::Live, DEAD));
    let dead = scene.session(2).await.unwrap();
    assert!(dead.reason.unwrap().contains("no heartbeat"));
    assert_eq!((dead.epoch, dead.since.as_deref()), (Epoch(3), Some("then")), "the rest stays as it was");
}

#[tokio::test]
async fn a_new_module_starts_the_wait_again() {
    let scene = Scene::begin(&[(1, session(1))]).await;
    let mut first = scene.module(true);
    scene.turns(0, 10_000, &mut first).await;
    let mut next = scene.module(true);
    scene.turns(10_000, 10_000 + WAIT, &mut next).await;
    assert_eq!(scene.state(1).await, SessionState::Live);
    scene.turn_at(10_000 + WAIT, &mut next).await;
    assert_eq!(scene.state(1).await, DEAD);
}

#[tokio::test]
async fn of_several_modules_one_writes_and_the_one_beside_the_leader_is_first() {
    let scene = Scene::begin(&[(1, session(1))]).await;
    let [mut leading, mut other, mut standby] = [true, true, false].map(|leading| scene.module(leading));
    for module in [&mut leading, &mut other, &mut standby] {
        scene.turn_at(0, module).await;
    }
    let before = scene.exchange.read(&Reading::Everything).await.unwrap();
    scene.turn_at(WAIT, &mut standby).await;
    assert_eq!(scene.state(1).await, SessionState::Live, "it waits for the one beside the leader");
    for module in [&mut leading, &mut other, &mut standby] {
        scene.turn_at(WAIT, module).await;
    }
    let after = scene.exchange.read(&Reading::Everything).await.unwrap();
    assert_eq!((scene.state(1).await, after.revision.0), (DEAD, before.revision.0 + 1));
    for module in [&mut leading, &mut other, &mut standby] {
        scene.turn_at(3 * WAIT, module).await;
    }
    assert_eq!(scene.exchange.read(&Reading::Everything).await.unwrap().revision, after.revision);
}

#[tokio::test]
async fn two_that_decide_at_once_write_once() {
    let scene = Scene::begin(&[(1, session(1))]).await;
    let [mut one, mut other] = [true, true].map(|leading| scene.module(leading));
    scene.turn_at(0, &mut one).await;
    scene.turn_at(0, &mut other).await;
    let before = scene.exchange.read(&Reading::Everything).await.unwrap();
    // The first one's write is under way while the other reads and writes.
    scene.store.fail_next_commit(CommitFault::UnknownDoneAfter(2));
    scene.turn_at(WAIT, &mut one).await;
    scene.turn_at(WAIT, &mut other).await;
    scene.turn_at(WAIT + 1, &mut one).await;
    assert_eq!(scene.state(1).await, DEAD);
    assert_eq!(scene.exchange.read(&Reading::Everything).await.unwrap().revision.0, before.revision.0 + 1);
}

#[tokio::test]
async fn without_the_leader_another_acts_after_half_a_ttl() {
    let scene = Scene::begin(&[(1, session(1))]).await;
    let mut standby = scene.module(false);
    scene.turns(0, WAIT + 5_000, &mut standby).await;
    assert_eq!(scene.state(1).await, SessionState::Live);
    scene.turn_at(WAIT + 5_000, &mut standby).await;
    assert_eq!(scene.state(1).await, DEAD);
}

#[tokio::test]
async fn the_session_of_an_agent_that_was_given_up_is_revoked_and_no_other() {
    let scene = Scene::begin(&[(1, session(1)), (2, session(2)), (3, session(3))]).await;
    let mut module = scene.module(true);
    module.agents = agents(&[1, 2, 3], &[]);
    scene.turn_at(0, &mut module).await;
    // The third is in both lists: what is connected was not given up.
    module.agents = agents(&[2, 3], &[1, 3]);
    scene.turn_at(1, &mut module).await;
    let states = [scene.state(1).await, scene.state(2).await, scene.state(3).await];
    assert_eq!(states, [SessionState::Revoking, SessionState::Live, SessionState::Live]);
    assert!(scene.session(1).await.unwrap().reason.unwrap().contains("given its agent up"));
    // It beats on against the new revision, and is not revoked again.
    scene.beat(1).await;
    let before = scene.exchange.read(&Reading::Everything).await.unwrap().revision;
    scene.turn_at(2, &mut module).await;
    assert_eq!(scene.exchange.read(&Reading::Everything).await.unwrap().revision, before);
}

#[tokio::test]
async fn beside_a_master_that_does_not_lead_a_revoke_comes_half_a_ttl_later() {
    let scene = Scene::begin(&[(1, session(1))]).await;
    let mut module = scene.module(false);
    module.agents = agents(&[], &[1]);
    for ms in (0..5_000).step_by(500) {
        scene.beat(1).await;
        scene.turn_at(ms, &mut module).await;
        // It is told again and again, as by each list.
        module.agents = agents(&[], &[1]);
    }
    assert_eq!(scene.state(1).await, SessionState::Live);
    scene.turn_at(5_001, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Revoking);
}

#[tokio::test]
async fn sessions_that_silence_does_not_end_are_left_alone() {
    let never = Session { by_time: ByTime::Never, ..session(1) };
    let unproved = Session { by_time: ByTime::Unproved, ..session(2) };
    let late = Session { timing: Timing { kill: Duration::from_secs(4), ..session(3).timing }, ..session(3) };
    let scene = Scene::begin(&[(1, never), (2, unproved), (3, late), (4, session(4))]).await;
    let mut module = scene.module(true);
    scene.turns(0, 100_000, &mut module).await;
    for n in 1..=3 {
        assert_eq!(scene.state(n).await, SessionState::Live, "{n}");
    }
    assert_eq!(scene.state(4).await, DEAD);
}

#[tokio::test]
async fn a_storm_stops_everything_until_timely_reads_lift_it() {
    let scene =
        Scene::begin(&[(1, session(1)), (2, session(2)), (3, session(3)), (4, session(4)), (5, session(5))])
            .await;
    let mut module = scene.module(true);
    module.agents = agents(&[1, 2, 3, 5], &[]);
    for ms in (0..WAIT).step_by(500) {
        scene.beat(4).await;
        scene.beat(5).await;
        scene.turn_at(ms, &mut module).await;
    }
    // The fourth beats, and is given up; the guard stops that as well.
    module.agents = agents(&[1, 2, 3, 5], &[4]);
    scene.beat(4).await;
    scene.beat(5).await;
    scene.turn_at(WAIT, &mut module).await;
    assert_eq!(scene.storm().await, Some(Storm::Raised));
    for n in 1..=5 {
        assert_eq!(scene.state(n).await, SessionState::Live, "{n}");
    }
    // Reads that were never late for a full wait: they are really gone.
    for ms in (WAIT + 500..2 * WAIT + 1_000).step_by(500) {
        scene.beat(4).await;
        scene.beat(5).await;
        scene.turn_at(ms, &mut module).await;
    }
    for n in 1..=3 {
        assert_eq!(scene.state(n).await, DEAD, "{n}");
    }
    assert_eq!((scene.state(4).await, scene.state(5).await), (SessionState::Revoking, SessionState::Live));
}

#[tokio::test]
async fn nothing_is_written_of_a_holder_whose_lease_is_not_what_it_was_followed_as() {
    let mut scene = Scene::begin(&[(1, session(1))]).await;
    let mut module = scene.module(true);
    scene.turn_at(0, &mut module).await;
    // It was released, and its session sleeps; the watch has not told.
    let free = Record::Lease(Lease::Free { last_holder: Some(holder(1)), owed: None });
    scene.put(Key::Lease(volume(1)), free).await;
    for ms in (WAIT..3 * WAIT).step_by(500) {
        scene.turn_at(ms, &mut module).await;
    }
    module.agents = agents(&[], &[1]);
    scene.turn_at(3 * WAIT, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Live);
    // Now it holds it again, and the watch has told.
    scene.hold(1).await;
    scene.turn_at(3 * WAIT + 1, &mut module).await;
    assert_eq!(scene.state(1).await, DEAD);
}

#[tokio::test]
async fn a_turn_reads_no_more_than_twice_whatever_conflicts() {
    let mut scene = Scene::begin(&[(1, session(1))]).await;
    let mut module = scene.module(true);
    scene.turn_at(0, &mut module).await;
    scene.hold(1).await;
    let stale = scene.holdings.get_mut(&holder(1)).unwrap();
    stale.written = Revision(stale.written.0 - 1);
    scene.turn_at(WAIT, &mut module).await;
    assert_eq!(module.acting.wanted.len(), 1, "the third one waits for the next turn");
    assert_eq!(module.acting.next_turn(), MS);
}

#[tokio::test]
async fn a_keeper_that_publishes_no_times_is_neither_revoked_nor_ended() {
    let mut scene = Scene::begin(&[(1, session(1))]).await;
    let old = br#"{"version":1,"epoch":3,"instance":"i","state":"live","machine_id":"m","boot_id":"b","agent_id":"S1","since":"x"}"#;
    scene.store.plant("/extvol/v1/sessions/agent-1", old.to_vec());
    scene.hold(1).await;
    let mut module = scene.module(true);
    module.agents = agents(&[], &[1]);
    let before = scene.exchange.read(&Reading::Everything).await.unwrap().revision;
    scene.turns(0, 100_000, &mut module).await;
    assert_eq!(scene.exchange.read(&Reading::Everything).await.unwrap().revision, before);
}

#[tokio::test]
async fn a_session_that_cannot_be_read_is_left_alone_and_the_others_are_not() {
    let scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.store.plant("/extvol/v1/sessions/agent-1", r#"{"version":2,"timing":{}}"#);
    let mut module = scene.module(true);
    // Longer than the longest ttl, which a missing session is waited for.
    scene.turns(0, 100_000, &mut module).await;
    let raw = scene.store.get(&["/extvol/v1/sessions/agent-1".to_owned()]).await.unwrap();
    assert_eq!(raw.entries["/extvol/v1/sessions/agent-1"].value, br#"{"version":2,"timing":{}}"#);
    assert_eq!(scene.state(2).await, DEAD);
}

#[tokio::test]
async fn a_missing_session_of_a_lease_is_waited_for_as_long_as_the_longest_ttl_and_then_the_lease_can_be_taken()
 {
    let scene = Scene::begin(&[(1, session(1)), (2, session(2)), (3, session(3))]).await;
    // Another lease of the first, of an earlier epoch.
    let Record::Lease(Lease::Held(held)) = lease(1) else { panic!("it is held") };
    let earlier = Held { epoch: Epoch(2), ..held };
    scene.put(Key::Lease(volume(9)), Record::Lease(Lease::Held(earlier))).await;
    scene.store.delete("/extvol/v1/sessions/agent-1");
    // One that never beat: of a keeper without a fence, which a tombstone would not stop.
    scene.store.delete("/extvol/v1/sessions/agent-2");
    scene.store.delete("/extvol/v1/beats/agent-2");
    let mut module = scene.module(true);
    for ms in (0..60_120).step_by(500) {
        scene.beat(3).await;
        scene.turn_at(ms, &mut module).await;
    }
    assert_eq!(scene.session(1).await, None);
    scene.beat(3).await;
    scene.turn_at(60_120, &mut module).await;
    for n in [1, 9] {
        assert!(scene.can_be_taken(n, 3).await, "{n}");
    }
    assert_eq!(scene.state(1).await, DEAD);
    scene.turns(60_500, 200_000, &mut module).await;
    assert_eq!(scene.session(2).await, None);
    assert!(!scene.can_be_taken(2, 3).await);
}

#[tokio::test]
async fn a_write_without_an_answer_is_settled_by_what_is_read_next() {
    for fault in [CommitFault::UnknownDone, CommitFault::UnknownNotDone, CommitFault::Unavailable] {
        let scene = Scene::begin(&[(1, session(1))]).await;
        let mut module = scene.module(true);
        scene.turn_at(0, &mut module).await;
        scene.store.fail_next_commit(fault);
        scene.turn_at(WAIT, &mut module).await;
        scene.turn_at(WAIT + 1, &mut module).await;
        assert_eq!(scene.state(1).await, DEAD, "{fault:?}");
    }
}

#[tokio::test]
async fn an_agent_is_to_be_marked_gone_only_if_it_was_disconnected_throughout_the_wait() {
    for (before, during, marked) in [
        (agents(&[], &[]), agents(&[], &[]), true),
        (agents(&[1], &[]), agents(&[], &[]), false),
        (agents(&[], &[]), agents(&[1], &[]), false),
        (None, None, false),
    ] {
        let scene = Scene::begin(&[(1, session(1))]).await;
        let mut module = scene.module(true);
        module.agents.clone_from(&before);
        scene.turn_at(0, &mut module).await;
        module.agents.clone_from(&during);
        scene.turn_at(5_000, &mut module).await;
        module.agents = before.as_ref().and(agents(&[], &[]));
        scene.turn_at(WAIT, &mut module).await;
        assert_eq!(scene.state(1).await, DEAD);
        let gone: Vec<_> = module.acted.gone.iter().map(|mark| &*mark.agent_id).collect();
        assert_eq!(gone, if marked { vec!["S1"] } else { vec![] }, "{before:?} {during:?}");
    }
}

#[tokio::test]
async fn an_agent_is_to_be_marked_gone_also_when_its_volumes_were_taken_before_that_was_seen() {
    let mut scene = Scene::begin(&[(1, session(1))]).await;
    let mut module = scene.module(true);
    module.agents = agents(&[], &[]);
    scene.turn_at(0, &mut module).await;
    // Neither the answer to the write nor the read after it come.
    scene.store.fail_next_commit(CommitFault::UnknownDoneAfter(1));
    scene.turn_at(WAIT, &mut module).await;
    if module.acted.gone.is_empty() {
        scene.holdings.clear();
        scene.turn_at(WAIT + 1, &mut module).await;
    }
    assert_eq!(module.acted.gone.len(), 1);
    assert!(module.acted.gone[0].address.is_some());
}

#[tokio::test]
async fn reads_that_fail_are_told_and_the_wait_goes_on() {
    let scene = Scene::begin(&[(1, session(1))]).await;
    let mut module = scene.module(true);
    scene.turn_at(0, &mut module).await;
    scene.store.fail_reads(true);
    scene.turn_at(WAIT, &mut module).await;
    assert!(matches!(module.acted.news, Some(News::Lost { .. })));
    scene.store.fail_reads(false);
    assert_eq!(scene.state(1).await, SessionState::Live);
    scene.turn_at(WAIT + 1, &mut module).await;
    assert!(matches!(module.acted.news, Some(News::Found { .. })));
    assert_eq!(scene.state(1).await, DEAD);
}

#[tokio::test]
async fn the_more_holders_there_are_the_longer_is_the_pause() {
    let sessions: Vec<_> = (1..=40).map(|n| (n, session(n))).collect();
    let scene = Scene::begin(&sessions).await;
    let mut module = scene.module(true);
    scene.turn_at(0, &mut module).await;
    assert_eq!(module.acting.next_turn(), 4 * MS, "not the one that was asked for");
}
