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
}

fn inactive(connected: &[usize], inactive: &[usize]) -> Option<Agents> {
    let inactive = inactive.iter().map(|n| id(*n)).collect();
    agents(connected, &[]).map(|agents| Agents { inactive, ..agents })
}

/// Turns in which all beat, long enough for anything to follow.
async fn turns(scene: &Scene, from: u64, module: &mut Module, beating: &[usize]) {
    for ms in (from..from + 20_000).step_by(500) {
        for n in beating {
            scene.beat(*n).await;
        }
        scene.turn_at(ms, module).await;
    }
}

#[tokio::test]
async fn a_session_whose_agent_is_inactive_is_left_alone_until_another_host_wants_a_lease_of_its() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1]);
    turns(&scene, 0, &mut module, &[1, 2]).await;
    assert_eq!(scene.state(1).await, SessionState::Live);
    // Its host holds no lease, and waits.
    scene.want(3, session(3), &[1], true).await;
    scene.turn_at(20_000, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Revoking, "within one turn");
    assert_eq!([scene.state(2).await, scene.state(3).await], [SessionState::Live; 2]);
    let revoked = scene.session(1).await.unwrap();
    assert_eq!(
        revoked,
        Session { state: SessionState::Revoking, reason: revoked.reason.clone(), ..session(1) }
    );
}

#[tokio::test]
async fn a_host_that_holds_leases_may_want_others_and_any_of_several_leases_may_be_wanted() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    // Another lease of the first: the one that stands for all is not the one that is wanted.
    let written = scene.put(Key::Lease(volume(7)), lease(1)).await;
    let followed = Followed { holder: holder(1), epoch: Epoch(3), written };
    scene.wanted.insert(Arc::new(volume(7)), followed);
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1]);
    scene.turn_at(0, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Live, "that it is wanted is read, and not only followed");
    scene.want(2, session(2), &[7], false).await;
    scene.turn_at(1, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Revoking);
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
    }
}

#[tokio::test]
async fn one_that_has_just_taken_what_it_waited_for_is_not_revoked_for_that_though_it_has_more_leases() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    let written = scene.put(Key::Lease(volume(7)), lease(1)).await;
    scene.want(1, session(1), &[7], false).await;
    // Another host waits as well, but is being revoked; what is followed may be behind.
    scene.wanted.insert(Arc::new(volume(7)), Followed { holder: holder(1), epoch: Epoch(3), written });
    scene.want(4, Session { state: SessionState::Revoking, ..session(4) }, &[7], false).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[2], &[1]);
    turns(&scene, 0, &mut module, &[1, 2]).await;
    assert_eq!(scene.state(1).await, SessionState::Live);
    // Once that one's session is live the want counts.
    scene.want(4, session(4), &[7], false).await;
    scene.turn_at(20_000, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Revoking);
}

#[tokio::test]
async fn a_revoke_compares_the_lease_that_is_wanted() {
    let mut scene = Scene::begin(&[(1, session(1))]).await;
    let written = scene.put(Key::Lease(volume(7)), lease(1)).await;
    scene.wanted.insert(Arc::new(volume(7)), Followed { holder: holder(1), epoch: Epoch(3), written });
    // It was given back, and that is not known yet.
    let free = Record::Lease(Lease::Free { last_holder: Some(holder(1)), owed: None });
    scene.put(Key::Lease(volume(7)), free).await;
    scene.want(3, session(3), &[7], false).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[], &[1]);
    turns(&scene, 0, &mut module, &[1]).await;
    assert_eq!(scene.state(1).await, SessionState::Live);
}

#[tokio::test]
async fn a_want_is_seen_when_it_comes_and_not_any_more_when_it_goes() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    let mut module = scene.module(true);
    module.agents = inactive(&[1, 2], &[]);
    scene.want(3, session(3), &[1], true).await;
    scene.turn_at(0, &mut module).await;
    scene.want(3, session(3), &[], true).await;
    scene.turn_at(1, &mut module).await;
    module.agents = inactive(&[2], &[1]);
    scene.turn_at(2, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Live, "it is followed as wanted, and is not");
    scene.want(3, session(3), &[1], true).await;
    scene.store.delete("/extvol/v1/sessions/agent-3");
    scene.turn_at(3, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Live);
    scene.want(3, session(3), &[1], true).await;
    scene.turn_at(4, &mut module).await;
    assert_eq!(scene.state(1).await, SessionState::Revoking);
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
        let written = scene.put(Key::Lease(volume(7)), lease(1)).await;
        let followed = Followed { holder: holder(1), epoch: Epoch(3), written };
        scene.wanted.insert(Arc::new(volume(7)), followed);
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
    }
}

#[tokio::test]
async fn beside_a_master_that_does_not_lead_it_comes_half_a_ttl_later() {
    let mut scene = Scene::begin(&[(1, session(1)), (2, session(2))]).await;
    scene.want(3, session(3), &[1], true).await;
    let mut module = scene.module(false);
    for ms in (0..=5_000).step_by(500) {
        module.agents = inactive(&[2], &[1]);
        scene.beat(1).await;
        scene.beat(2).await;
        scene.turn_at(ms, &mut module).await;
        let expected = if ms < 5_000 { SessionState::Live } else { SessionState::Revoking };
        assert_eq!(scene.state(1).await, expected, "{ms}");
    }
}
