//! The module acts on a real etcd, with a master of a few lines. Sessions, heartbeats and leases are written as a
//! keeper writes them.

#![expect(clippy::unwrap_used, reason = "a test that unwraps fails with a place and a value")]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, listen, socket};
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::exchange_io::Exchange;
use shared::keys::Keys;
use shared::protocol::exchange::{
    Agent as SessionAgent, ByTime, ClusterId, Commit, Held, Instance, Key, Lease, Outcome, Proof, Reading,
    Record, Session, SessionState, Stage, Storm,
};
use shared::protocol::timing::Timing;
use shared::record::Epoch;
use shared::store::Revision;
use shared::volume::{Driver, Holder, VolumeId, VolumeName};
use support::events::{events, whats};
use support::log::Log;
use support::master::{Agent, AgentAnswer, Answer, Master};
use support::{nowhere, start_with};
use testing::{EtcdCluster, wait_until};
use tokio::runtime::Runtime;

const TTL: Duration = Duration::from_millis(3_000);

/// The times of the sessions, which are also those of the modules.
fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing { ttl: TTL, beat: ms(200), request: ms(500), election: ms(200), fence: ms(2_000), kill: ms(900) }
}

const PARAMETERS: [(&str, &str); 6] = [
    ("ttl", "3000ms"),
    ("beat_interval", "200ms"),
    ("election_time", "200ms"),
    ("fence_after", "2000ms"),
    ("kill_time", "900ms"),
    ("read_interval", "100ms"),
];

fn holder(n: usize) -> Holder {
    Holder::new(format!("agent-{n}")).unwrap()
}

fn session(n: usize) -> Session {
    Session {
        epoch: Epoch(3),
        instance: Instance("i".into()),
        state: SessionState::Live,
        machine: "m".into(),
        boot: "b".into(),
        agent: Some(SessionAgent {
            id: Some(format!("S{n}").into()),
            address: format!("slave({n})@127.0.0.1:1").into(),
        }),
        timing: timing(),
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
        agent_id: Some(format!("S{n}").into()),
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

/// An etcd with an installation, a master, and whoever writes as keepers do.
struct Scene {
    // Ends before the log of the next test begins.
    cluster: EtcdCluster,
    master: Master,
    log: Log,
    runtime: Runtime,
    exchange: Exchange<EtcdStore>,
    id: ClusterId,
}

impl Scene {
    fn begin() -> Self {
        let log = Log::begin();
        let cluster = EtcdCluster::start(1);
        let master = Master::start(Answer::Leader(vec![]));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let patient = Duration::from_secs(10);
        let config = EtcdConfig { request_timeout: patient, ..EtcdConfig::new(cluster.endpoints()) };
        let exchange = Exchange::new(EtcdStore::new(config).unwrap(), Keys::default(), patient, None);
        let id = runtime.block_on(async {
            exchange.found("test").await.unwrap();
            exchange.read(&Reading::Everything).await.unwrap().cluster
        });
        Self { cluster, master, log, runtime, exchange, id }
    }

    fn start(&self, more: &[(&str, &str)]) -> master_module::MasterModule {
        self.start_beside(&self.master, more)
    }

    fn start_beside(&self, master: &Master, more: &[(&str, &str)]) -> master_module::MasterModule {
        let parameters = [&PARAMETERS, more].concat();
        start_with(&self.cluster.endpoints(), Some(&master.address), nowhere, &parameters)
    }

    fn put(&self, key: Key, record: Record) -> Revision {
        self.runtime.block_on(async {
            let at = self.exchange.read(&Reading::Keys(vec![key.clone()])).await.unwrap().at(&key);
            match self.exchange.commit(&Commit::new(&self.id).put(key, at, record)).await {
                Outcome::Done(at) => at,
                other => panic!("{other:?}"),
            }
        })
    }

    /// A session with a lease and one heartbeat; when the heartbeat was sent, at the earliest.
    fn live(&self, n: usize, session: Session) -> Instant {
        self.put(Key::Session(holder(n)), Record::Session(session));
        let (driver, name) = (Driver::new("ebs").unwrap(), VolumeName::new(format!("v{n}")).unwrap());
        self.put(Key::Lease(VolumeId { driver, name }), lease(n));
        let sent = Instant::now();
        self.put(Key::Beat(holder(n)), Record::Beat);
        sent
    }

    /// Beats as its keeper does, against the session as it is now; whether it could.
    fn beat(&self, n: usize) -> bool {
        self.runtime.block_on(async {
            let key = Key::Session(holder(n));
            let view = self.exchange.read(&Reading::Keys(vec![key.clone()])).await.unwrap();
            let commit = Commit::beat(&self.id, &holder(n), view.at(&key));
            matches!(self.exchange.commit(&commit).await, Outcome::Done(_))
        })
    }

    fn revoked(&self, name: &str) -> bool {
        let view = self.runtime.block_on(self.exchange.read(&Reading::Everything)).unwrap();
        let of = |volume: &VolumeId| volume.name.as_str() == name;
        view.held().any(|(volume, held, _)| of(volume) && held.revoked.is_some())
    }

    fn state(&self, n: usize) -> SessionState {
        let view = self.runtime.block_on(self.exchange.read(&Reading::Everything)).unwrap();
        view.session(&holder(n)).unwrap().0.state
    }

    /// How often a session was written.
    fn writes(&self, n: usize) -> i64 {
        let text =
            self.cluster.etcdctl(&["get", &Keys::default().session(&holder(n)), "--write-out", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        answer["kvs"][0]["version"].as_i64().unwrap()
    }

    /// Lets holders beat until a condition holds.
    fn beating_until(&self, beating: &[usize], what: &str, mut condition: impl FnMut(&Self) -> bool) {
        wait_until(what, || {
            for n in beating {
                assert!(self.beat(*n), "{n} beats");
            }
            condition(self)
        });
    }
}

const DEAD: SessionState = SessionState::Dead(Proof::Time);

#[test]
fn etcd_one_that_beats_is_not_touched_and_one_that_stops_is_declared_dead_after_its_ttl_by_one_write() {
    let scene = Scene::begin();
    scene.live(1, session(1));
    // One that silence does not end.
    scene.live(2, Session { by_time: ByTime::Never, ..session(2) });
    scene.live(4, session(4));
    // Both have the same master, and so both take themselves for the one that acts first.
    let _modules = [scene.start(&[]), scene.start(&[])];
    wait_until("both follow", || scene.log.count("etcd has 3 leases") == 2);
    let sent = scene.live(3, session(3));
    scene.beating_until(&[1, 4], "the third is declared dead", |scene| scene.state(3) == DEAD);
    assert!(sent.elapsed() >= TTL + TTL * 2 / 1_000, "after {:?}", sent.elapsed());
    scene.beating_until(&[1, 4], "it is told", |scene| {
        whats(&scene.cluster).contains(&"session-reclaimed".to_owned())
    });
    // For longer than a wait.
    let told = Instant::now();
    scene.beating_until(&[1, 4], "some time", |_| told.elapsed() > TTL + TTL / 2);
    let states = [1, 2, 3, 4].map(|n| scene.state(n));
    assert_eq!(states, [SessionState::Live, SessionState::Live, DEAD, SessionState::Live]);
    assert_eq!([1, 2, 3, 4].map(|n| scene.writes(n)), [1, 1, 2, 1]);
    let all = events(&scene.cluster);
    let reclaimed: Vec<_> = all.iter().filter(|event| event.what() == "session-reclaimed").collect();
    let [event] = reclaimed[..] else { panic!("{reclaimed:#?}") };
    assert_eq!((&event.value["holder"], &event.value["epoch"]), (&"agent-3".into(), &3.into()));
    let text = event.value["text"].as_str().unwrap();
    assert!(text.contains("declared dead, with time as the proof: it sent no heartbeat"), "{text}");
    assert!(text.contains("(ttl 3000 ms)"), "{text}");
    scene.log.wait_for("agent-2 is silent, and its session is never ended by silence");
}

#[test]
fn etcd_the_session_of_an_agent_that_was_given_up_is_revoked_and_beats_on() {
    let scene = Scene::begin();
    for n in 1..=3 {
        scene.live(n, session(n));
    }
    scene.master.now(Answer::Recovering(vec![("S1", "agent-1"), ("S2", "agent-2"), ("S3", "agent-3")]));
    let _module = scene.start(&[]);
    scene.log.wait_for("etcd has 3 leases");
    scene.beating_until(&[1, 2, 3], "the list is read", |scene| scene.master.requests() > 3);
    assert_eq!(scene.state(1), SessionState::Live);
    scene.master.registry(&["S1"], &[]);
    scene.master.now(Answer::Recovering(vec![("S2", "agent-2"), ("S3", "agent-3")]));
    scene.beating_until(&[2, 3], "it is revoked", |scene| scene.state(1) == SessionState::Revoking);
    assert!(scene.beat(1), "against the new revision");
    scene.beating_until(&[1, 2, 3], "it is told", |scene| {
        whats(&scene.cluster).contains(&"session-revoked".to_owned())
    });
    assert_eq!([2, 3].map(|n| scene.state(n)), [SessionState::Live; 2]);
    assert_eq!(scene.writes(1), 2);
}

#[test]
fn etcd_an_agent_in_no_list_was_removed_only_if_the_registry_has_not_admitted_it() {
    let scene = Scene::begin();
    // The stand-in's registry has S9 alone.
    for n in [1, 9] {
        scene.live(n, session(n));
    }
    let _module = scene.start(&[]);
    scene.log.wait_for("etcd has 2 leases");
    scene.beating_until(&[9], "the removed one is revoked", |scene| scene.state(1) == SessionState::Revoking);
    let rounds = scene.master.requests();
    scene.beating_until(&[1, 9], "more is asked", |scene| scene.master.requests() > rounds + 5);
    assert_eq!((scene.state(9), scene.writes(9)), (SessionState::Live, 1));
    assert_eq!(scene.log.count("agent S9 is not known"), 0);
}

/// Lists that nobody would wait for.
const RARE_LISTS: [(&str, &str); 1] = [("poll_interval", "60secs")];

#[test]
fn etcd_of_a_host_whose_agent_stays_away_the_volume_that_another_one_wants_is_revoked() {
    let scene = Scene::begin();
    for n in [1, 2] {
        scene.live(n, session(n));
    }
    let [one, two] = ["S1", "S2"].map(|id| Agent::start(AgentAnswer::Id(id)));
    let list = |is_active| {
        Answer::Leader(vec![one.listed("S1", "agent-1", is_active), two.listed("S2", "agent-2", true)])
    };
    scene.master.now(list(true));
    let _module = scene.start(&[RARE_LISTS[0], ("agent_reconnect_timeout", "2secs")]);
    scene.log.wait_for("etcd has 2 leases");
    scene.master.now(list(false));
    let quiet = Instant::now();
    scene.beating_until(&[1, 2], "nothing presses", |_| quiet.elapsed() > Duration::from_secs(1));
    assert_eq!((scene.master.requests(), scene.master.looks()), (1, 0));
    let wanted = VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("v1").unwrap() };
    let waiting = Session { wants: [wanted].into(), ..session(3) };
    scene.put(Key::Session(holder(3)), Record::Session(waiting));
    let since = Instant::now();
    scene.beating_until(&[1, 2], "it is revoked", |scene| scene.revoked("v1"));
    assert!(since.elapsed() >= Duration::from_secs(2));
    // That of the first was rewritten as it was, so that its keeper hears of it.
    assert_eq!([2, 3].map(|n| (scene.state(n), scene.writes(n))), [(SessionState::Live, 1); 2]);
    assert_eq!((scene.state(1), scene.writes(1)), (SessionState::Live, 2));
    assert!(!scene.revoked("v2"));
}

#[test]
fn etcd_while_an_agent_is_inactive_it_is_soon_seen_that_it_was_given_up() {
    let scene = Scene::begin();
    for n in [1, 2] {
        scene.live(n, session(n));
    }
    let two = Agent::start(AgentAnswer::Id("S2"));
    let one = Agent::start(AgentAnswer::Id("S1"));
    let listed = two.listed("S2", "agent-2", true);
    scene.master.now(Answer::Leader(vec![one.listed("S1", "agent-1", false), listed.clone()]));
    let _module = scene.start(&RARE_LISTS);
    scene.beating_until(&[1, 2], "it is looked at in haste", |scene| scene.master.looks() > 3);
    assert_eq!(scene.master.requests(), 1, "without a list");
    assert_eq!([1, 2].map(|n| scene.state(n)), [SessionState::Live; 2], "nobody waits");
    scene.master.registry(&["S1"], &[]);
    scene.master.now(Answer::Leader(vec![listed]));
    let since = Instant::now();
    scene.beating_until(&[2], "it is revoked", |scene| scene.state(1) == SessionState::Revoking);
    println!("revoked {:?} after it was given up", since.elapsed());
    // Nothing presses any more.
    let mut looks = scene.master.looks();
    let mut quiet = Instant::now();
    scene.beating_until(&[1, 2], "the haste ends", |scene| {
        if std::mem::replace(&mut looks, scene.master.looks()) != looks {
            quiet = Instant::now();
        }
        quiet.elapsed() > Duration::from_secs(2)
    });
    assert!(scene.master.requests() <= 3, "{}", scene.master.requests());
    assert_eq!(scene.state(2), SessionState::Live);
}

#[test]
fn etcd_when_most_are_silent_at_once_nobody_is_declared_dead() {
    let scene = Scene::begin();
    for n in 1..=4 {
        scene.live(n, session(n));
    }
    let _modules = [scene.start(&[]), scene.start(&[])];
    scene.beating_until(&[4], "a storm is raised", |scene| {
        whats(&scene.cluster).contains(&"storm-raised".to_owned())
    });
    assert_eq!([1, 2, 3, 4].map(|n| scene.state(n)), [SessionState::Live; 4]);
    scene.log.wait_for("3 of 4 hosts with leases are silent at once");
    // A person lifts it.
    scene.put(Key::Storm, Record::Storm(Storm::Lifted));
    scene.beating_until(&[4], "they are declared dead", |scene| {
        [1, 2, 3].map(|n| scene.state(n)) == [DEAD; 3]
    });
    scene.beating_until(&[4], "it is told", |scene| {
        let whats = whats(&scene.cluster);
        ["storm-lifted", "storm-over"].iter().all(|what| whats.iter().any(|told| told == what))
    });
    assert_eq!(scene.state(4), SessionState::Live);
    assert_eq!(whats(&scene.cluster).iter().filter(|what| *what == "storm-raised").count(), 1);
}

#[test]
fn etcd_a_module_that_is_not_to_act_writes_no_session() {
    let scene = Scene::begin();
    let sent = scene.live(1, session(1));
    let _module = scene.start(&[("act", "false")]);
    scene.log.wait_for("etcd has 1 leases");
    wait_until("its time is over for long", || sent.elapsed() > TTL + TTL / 2);
    assert_eq!((scene.state(1), scene.writes(1)), (SessionState::Live, 1));
    assert_eq!(scene.log.count("declared dead"), 0);
}

/// An address that takes no more connections and refuses none, as of a host that is gone.
fn silent() -> (SocketAddr, [OwnedFd; 2]) {
    let [listening, waiting] =
        [(); 2].map(|()| socket(AddressFamily::INET, SocketType::STREAM, None).unwrap());
    bind(&listening, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&listening, 0).unwrap();
    let listener = std::net::TcpListener::from(listening.try_clone().unwrap());
    let address = listener.local_addr().unwrap();
    connect(&waiting, &address).unwrap();
    (address, [listening, waiting])
}

#[test]
fn etcd_the_agent_of_a_host_that_is_gone_is_marked_gone_once_and_that_is_told() {
    let scene = Scene::begin();
    let (address, _sockets) = silent();
    let agent = SessionAgent { id: Some("S1".into()), address: format!("slave(1)@{address}").into() };
    scene.live(1, Session { agent: Some(agent), ..session(1) });
    // The master is busy at first.
    scene.master.marks_gone("503 Service Unavailable");
    let _module = scene.start(&[("mark_gone", "true")]);
    scene.log.wait_for("agent S1 of agent-1 is not marked gone yet, asking again");
    assert_eq!(scene.state(1), DEAD);
    scene.master.marks_gone("200 OK");
    scene.log.wait_for("holder agent-1: its agent S1 was marked gone");
    wait_until("it is told", || whats(&scene.cluster).contains(&"agent-marked-gone".to_owned()));
    let asked = scene.master.asked_to_mark();
    assert!(asked >= 2, "{asked}");
    let all = events(&scene.cluster);
    let event = all.iter().find(|event| event.what() == "agent-marked-gone").unwrap();
    assert_eq!(
        (&event.value["agent_id"], event.subject.as_str()),
        (&"S1".into(), "then/marked-gone/agent-1")
    );
}

#[test]
fn etcd_without_mark_gone_no_agent_is_marked_and_the_log_says_which_could_be() {
    let scene = Scene::begin();
    let (address, _sockets) = silent();
    let agent = SessionAgent { id: Some("S1".into()), address: format!("slave(1)@{address}").into() };
    scene.live(1, Session { agent: Some(agent), ..session(1) });
    scene.master.marks_gone("200 OK");
    let _module = scene.start(&[]);
    scene.log.wait_for("agent S1 of agent-1 could be marked gone");
    assert_eq!((scene.state(1), scene.master.asked_to_mark()), (DEAD, 0));
}
