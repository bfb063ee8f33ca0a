//! Others wait for what an agent's host holds that is not connected.

use super::*;

impl Scene {
    /// A session without a lease that wants something; what it wants is followed when `is_followed`.
    async fn want(&mut self, by: usize, session: Session, wants: &[usize], is_followed: bool) {
        let session = Session { wants: wants.iter().map(|n| volume(*n)).collect(), ..session };
        self.put(Key::Session(holder(by)), Record::Session(session)).await;
        for n in wants.iter().filter(|n| is_followed && **n != by) {
            let Newest { epoch, written, .. } = self.holdings[&holder(*n)];
            let followed = Followed { holder: holder(*n), epoch, written };
            self.wanted.insert(Arc::new(volume(*n)), followed);
        }
    }

    /// One more lease of the first holder's, which does not stand for all.
    async fn another_of_the_first(&mut self, n: usize) {
        let written = self.put(Key::Lease(volume(n)), lease(1)).await;
        let followed = Followed { holder: holder(1), epoch: Epoch(3), written };
        self.wanted.insert(Arc::new(volume(n)), followed);
    }

    async fn lease(&self, n: usize) -> Lease {
        let view = self.exchange.read(&Reading::Keys(vec![Key::Lease(volume(n))])).await.unwrap();
        view.lease(&volume(n)).unwrap().0.clone()
    }

    async fn is_revoked(&self, n: usize) -> bool {
        self.lease(n).await.held().is_some_and(|held| held.revoked.is_some())
    }
}

fn inactive(connected: &[usize], inactive: &[usize]) -> Option<Agents> {
    let inactive = inactive.iter().map(|n| id(*n)).collect();
    agents(connected, &[]).map(|agents| Agents { inactive, ..agents })
}

/// Turns in which these beat, long enough for anything to follow.
async fn turns(scene: &Scene, from: u64, module: &mut Module, beating: &[usize]) {
    for ms in (from..from + 20_000).step_by(500) {
        for n in beating {
            scene.beat(*n).await;
        }
        scene.turn_at(ms, module).await;
    }
}

#[tokio::test]
async fn of_a_host_whose_agent_stays_away_only_what_another_host_wants_is_revoked() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.another_of_the_first(7).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1]);
    turns(&scene, 0, &mut module, &[1, 2]).await;
    assert!(!scene.is_revoked(1).await && !scene.is_revoked(7).await);
    // Its host holds no lease, and waits. The agent has been away for long enough.
    let before = scene.lease(1).await;
    scene.want(3, session(3), &[1], true).await;
    scene.turn_at(20_000, &mut module).await;
    let Lease::Held(held) = scene.lease(1).await else { panic!("it is held") };
    assert!(held.revoked.as_deref().unwrap().contains("another host waits for it"), "within one turn");
    // The granting write does not say the token, and this is another revision.
    let at = scene.holdings[&holder(1)].written;
    assert_eq!(held.token, Some(Token(at)));
    assert_eq!(Lease::Held(Held { revoked: None, token: None, ..held }), before, "the rest is as it was");
    assert!(!scene.is_revoked(7).await && !scene.is_revoked(2).await);
    for n in 1..=3 {
        assert_eq!(scene.state(n).await, SessionState::Live);
    }
    // It is written once. The session was rewritten as it was: else its keeper would not hear of it.
    assert_eq!(scene.session(1).await, Some(session(1)));
    let written =
        scene.exchange.read(&Reading::Keys(vec![Key::Session(holder(1)), Key::Lease(volume(1))])).await;
    let written = written.unwrap();
    assert_eq!(written.at(&Key::Session(holder(1))), written.at(&Key::Lease(volume(1))));
    let revision = scene.exchange.read(&Reading::Everything).await.unwrap().revision;
    scene.turn_at(20_500, &mut module).await;
    assert_eq!(scene.exchange.read(&Reading::Everything).await.unwrap().revision, revision);
}

#[tokio::test]
async fn who_waits_on_a_host_whose_own_agent_is_not_there_waits_for_nothing() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.want(3, session(3), &[1], true).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1, 3]);
    turns(&scene, 0, &mut module, &[1, 2]).await;
    assert!(!scene.is_revoked(1).await);
    module.agents = inactive(&[2, 3], &[1]);
    scene.turn_at(20_000, &mut module).await;
    assert!(scene.is_revoked(1).await);
}

#[tokio::test]
async fn an_agent_that_is_restarted_in_time_loses_nothing_whoever_waits() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.want(3, session(3), &[1], true).await;
    let mut module = scene.module(true);
    let away = u64::try_from(RECONNECT.as_millis()).unwrap() - 500;
    for restart in 0..3 {
        let from = restart * 10_000;
        module.agents = inactive(&[2], &[1]);
        for ms in (from..=from + away).step_by(500) {
            scene.beat(1).await;
            scene.beat(2).await;
            scene.turn_at(ms, &mut module).await;
        }
        module.agents = inactive(&[1, 2], &[]);
        scene.turn_at(from + away + 1, &mut module).await;
    }
    assert!(!scene.is_revoked(1).await);
    module.agents = inactive(&[2], &[1]);
    scene.turn_at(22_000, &mut module).await;
    scene.turn_at(22_000 + away + 500, &mut module).await;
    assert!(scene.is_revoked(1).await);
}

#[tokio::test]
async fn a_host_that_holds_leases_may_want_others_and_any_of_several_leases_may_be_wanted() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.another_of_the_first(7).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1]);
    turns(&scene, 0, &mut module, &[1, 2]).await;
    assert!(!scene.is_revoked(7).await, "that it is wanted is read, and not only followed");
    scene.want(2, session(2), &[7], false).await;
    scene.turn_at(20_000, &mut module).await;
    assert!(scene.is_revoked(7).await && !scene.is_revoked(1).await);
}

#[tokio::test]
async fn nothing_follows_from_what_does_not_count() {
    let connected = || inactive(&[1, 2, 3], &[1]);
    let of_another = inactive(&[1, 3], &[2]);
    let lost = || inactive(&[2, 3], &[1]);
    let ended = |state| Session { state, ..session(4) };
    for (what, agents, by, wanting, wants) in [
        ("a dead session waits for nothing", lost(), 4, ended(DEAD), 1),
        ("nor does a revoked one", lost(), 4, ended(SessionState::Revoking), 1),
        ("a volume of another holder", lost(), 4, session(4), 2),
        ("its own volume", lost(), 1, session(1), 1),
        ("its agent is connected", connected(), 4, session(4), 1),
        ("another one is not", of_another, 4, session(4), 1),
    ] {
        let mut scene = Scene::begin(&[(1, session(1)), (2, session(2)), (3, session(3))]).await;
        scene.want(by, wanting, &[wants], true).await;
        let mut module = scene.module(true);
        module.agents = agents;
        let before = [scene.state(1).await, scene.state(2).await, scene.state(3).await];
        turns(&scene, 0, &mut module, &[1, 2, 3]).await;
        assert_eq!([scene.state(1).await, scene.state(2).await, scene.state(3).await], before, "{what}");
        assert!(!scene.is_revoked(1).await && !scene.is_revoked(2).await, "{what}");
    }
}

#[tokio::test]
async fn one_that_has_just_taken_what_it_waited_for_does_not_lose_it_for_that() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.another_of_the_first(7).await;
    scene.want(1, session(1), &[7], false).await;
    // Another host waits as well, but is being revoked; what is followed may be behind.
    scene.want(4, Session { state: SessionState::Revoking, ..session(4) }, &[7], false).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1]);
    turns(&scene, 0, &mut module, &[1, 2]).await;
    assert!(!scene.is_revoked(7).await);
    // Once that one's session is live the want counts.
    scene.want(4, session(4), &[7], false).await;
    scene.turn_at(20_000, &mut module).await;
    assert!(scene.is_revoked(7).await);
}

#[tokio::test]
async fn what_was_given_back_or_taken_and_is_not_known_to_be_is_left_alone() {
    let taken = Lease::Held(Held { holder: holder(2), ..lease(2).into_held() });
    let free = Lease::Free { last_holder: Some(holder(1)), owed: None };
    let earlier = Lease::Held(Held { epoch: Epoch(2), ..lease(1).into_held() });
    for now in [free, taken, earlier] {
        let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
        scene.another_of_the_first(7).await;
        scene.put(Key::Lease(volume(7)), Record::Lease(now.clone())).await;
        scene.want(3, session(3), &[7], false).await;
        let mut module = scene.module(true);
        module.agents = inactive(&[2], &[1]);
        turns(&scene, 0, &mut module, &[1, 2]).await;
        assert_eq!(scene.lease(7).await, now);
        assert_eq!(scene.state(1).await, SessionState::Live);
    }
}

#[tokio::test]
async fn a_want_is_seen_when_it_comes_and_not_any_more_when_it_goes() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    let mut module = scene.module(true);
    scene.want(3, session(3), &[1], true).await;
    module.agents = inactive(&[2], &[1]);
    scene.turn_at(0, &mut module).await;
    scene.want(3, session(3), &[], true).await;
    turns(&scene, 500, &mut module, &[1, 2]).await;
    assert!(!scene.is_revoked(1).await, "it is followed as wanted, and is not");
    scene.want(3, session(3), &[1], true).await;
    scene.store.delete("/extvol/v1/sessions/agent-3");
    scene.turn_at(20_500, &mut module).await;
    assert!(!scene.is_revoked(1).await);
    scene.want(3, session(3), &[1], true).await;
    scene.turn_at(20_501, &mut module).await;
    assert!(scene.is_revoked(1).await);
}

#[tokio::test]
async fn nothing_is_revoked_for_others_in_a_storm() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.want(3, session(3), &[1], true).await;
    scene.put(Key::Storm, Record::Storm(Storm::Raised)).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1]);
    scene.turn_at(0, &mut module).await;
    assert!(!scene.is_revoked(1).await);
}

#[tokio::test]
async fn a_keeper_that_does_not_beat_is_neither_revoked_nor_ended_because_others_wait() {
    let old = r#"{"version":1,"epoch":3,"instance":"i","state":"live","machine_id":"m","boot_id":"b","agent_id":"S1","since":"x"}"#;
    // Its session has no times, or is missing, and it never beat.
    for stored in [Some(old), None] {
        let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
        let key = "/extvol/v1/sessions/agent-1";
        scene.store.delete(key);
        scene.store.delete("/extvol/v1/beats/agent-1");
        if let Some(stored) = stored {
            scene.store.plant(key, stored);
        }
        // Neither the lease that stands for all nor another one is shown.
        scene.another_of_the_first(7).await;
        scene.want(3, session(3), &[1, 7], false).await;
        let mut module = scene.module(true);
        module.agents = inactive(&[2], &[1]);
        // Longer than the longest ttl, which a missing session is waited for.
        for ms in (0..70_000).step_by(500) {
            scene.beat(2).await;
            scene.turn_at(ms, &mut module).await;
        }
        let read = scene.store.get(&[key.to_owned()]).await.unwrap();
        let now = read.entries.get(key).map(|entry| entry.value.as_slice());
        assert_eq!(now, stored.map(str::as_bytes));
        assert!(!scene.is_revoked(1).await && !scene.is_revoked(7).await);
    }
}

#[tokio::test]
async fn beside_a_master_that_does_not_lead_it_comes_half_a_ttl_later() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.want(3, session(3), &[1], true).await;
    let mut module = scene.module(false);
    let due = u64::try_from(RECONNECT.as_millis()).unwrap() + 5_000;
    for ms in (0..=due).step_by(500) {
        module.agents = inactive(&[2], &[1]);
        scene.beat(1).await;
        scene.beat(2).await;
        scene.turn_at(ms, &mut module).await;
        assert_eq!(scene.is_revoked(1).await, ms == due, "{ms}");
    }
}
