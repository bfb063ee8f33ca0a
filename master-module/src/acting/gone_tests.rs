//! A master that gives each answer, agents that are silent, and the last look.

use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, SocketType, bind, connect, listen, socket};
use shared::memory::MemoryStore;
use shared::protocol::exchange::{Agent, ByTime, Commit, Instance, Outcome, Record};
use shared::protocol::timing::Profile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const PATIENCE: Duration = Duration::from_millis(300);

/// An address that takes no more connections and refuses none, as of a host that is gone.
struct Silent {
    address: SocketAddr,
    _listening: OwnedFd,
    _waiting: StdStream,
}

impl Silent {
    fn new() -> Self {
        let listening = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listening, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&listening, 0).unwrap();
        let listener = StdListener::from(listening.try_clone().unwrap());
        let address = listener.local_addr().unwrap();
        // The one that waits to be accepted; there is no room for a second.
        let waiting = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        connect(&waiting, &address).unwrap();
        Self { address, _listening: listening, _waiting: waiting.into() }
    }
}

/// A master that answers so; what it was asked is kept.
async fn master(status: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let mut chunk = [0; 1024];
            while body(&request).is_none() {
                match stream.read(&mut chunk).await {
                    Ok(bytes) if bytes > 0 => request.extend_from_slice(&chunk[..bytes]),
                    _ => break,
                }
            }
            kept.lock().unwrap().push(String::from_utf8(request).unwrap());
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, asked)
}

/// The JSON in a request, once all of it is there.
fn body(request: &[u8]) -> Option<serde_json::Value> {
    let end = request.windows(4).position(|end| end == b"\r\n\r\n")?;
    serde_json::from_slice(&request[end + 4..]).ok()
}

fn holder() -> Holder {
    Holder::new("agent-1").unwrap()
}

fn session(state: SessionState, address: SocketAddr) -> Session {
    Session {
        epoch: Epoch(3),
        instance: Instance("i".into()),
        state,
        machine: "m".into(),
        boot: "b".into(),
        agent: Some(Agent { id: Some("S1".into()), address: format!("slave(1)@{address}").into() }),
        timing: Profile::Default.timing(),
        by_time: ByTime::Allowed,
        means: Default::default(),
        unproved: None,
        unsettled_through: Epoch(0),
        wants: Default::default(),
        reason: Some("silent".into()),
        since: Some("then".into()),
    }
}

/// An etcd with this session, and its revision.
async fn etcd(session: &Session) -> (Exchange<MemoryStore>, Revision) {
    let exchange = Exchange::new(MemoryStore::new(), Default::default(), Duration::from_secs(10), None);
    exchange.found("one").await.unwrap();
    let cluster = exchange.read(&Reading::Everything).await.unwrap().cluster;
    let put =
        Commit::new(&cluster).put(Key::Session(holder()), Revision::ABSENT, Record::Session(session.clone()));
    let Outcome::Done(at) = exchange.commit(&put).await else { panic!("it is written") };
    (exchange, at)
}

fn client() -> Client {
    Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap()
}

const DEAD: SessionState = SessionState::Dead(Proof::Time);

#[tokio::test]
async fn each_answer_of_the_master_is_told_apart_and_the_call_is_what_mesos_wants() {
    let silent = Silent::new();
    let dead = session(DEAD, silent.address);
    let (exchange, at) = etcd(&dead).await;
    let mark = Mark::new("S1".into(), &holder(), &dead);
    for (status, expected) in [
        ("200 OK", Tried::Marked(at)),
        ("404 Not Found", Tried::NotKnown),
        ("503 Service Unavailable", Tried::Busy),
        ("401 Unauthorized", Tried::Forbidden(StatusCode::UNAUTHORIZED)),
        ("403 Forbidden", Tried::Forbidden(StatusCode::FORBIDDEN)),
        ("400 Bad Request", Tried::Failed("it answered 400 Bad Request".to_owned())),
    ] {
        let (url, asked) = master(status).await;
        assert_eq!(try_to_mark(&exchange, &client(), &url, PATIENCE, &mark).await, expected);
        let asked = asked.lock().unwrap();
        let [request] = &asked[..] else { panic!("asked {} times", asked.len()) };
        assert!(request.starts_with("POST /api/v1 HTTP/1.1\r\n"), "{request}");
        assert!(request.to_lowercase().contains("content-type: application/json"), "{request}");
        let expected = serde_json::json!(
            {"type": "MARK_AGENT_GONE", "mark_agent_gone": {"agent_id": {"value": "S1"}}}
        );
        assert_eq!(body(request.as_bytes()), Some(expected));
    }
    let nobody = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tried = try_to_mark(&exchange, &client(), &format!("http://{nobody}"), PATIENCE, &mark).await;
    assert!(matches!(tried, Tried::Failed(_)), "{tried:?}");
}

#[tokio::test]
async fn the_master_is_not_asked_while_the_host_shows_a_sign_of_life_or_cannot_be_asked_for_one() {
    let listening = StdListener::bind("127.0.0.1:0").unwrap();
    let refusing = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (url, asked) = master("200 OK").await;
    for (address, sign) in
        [(listening.local_addr().unwrap(), "its process answers"), (refusing, "its host answers")]
    {
        let dead = session(DEAD, address);
        let (exchange, _) = etcd(&dead).await;
        let mark = Mark::new("S1".into(), &holder(), &dead);
        let tried = try_to_mark(&exchange, &client(), &url, PATIENCE, &mark).await;
        assert!(matches!(&tried, Tried::Alive(why) if why.contains(sign)), "{tried:?}");
    }
    let unknown = Session { agent: None, ..session(DEAD, refusing) };
    let (exchange, _) = etcd(&unknown).await;
    let mark = Mark::new("S1".into(), &holder(), &unknown);
    let tried = try_to_mark(&exchange, &client(), &url, PATIENCE, &mark).await;
    assert!(matches!(tried, Tried::Alive(_)), "{tried:?}");
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_master_is_not_asked_unless_the_session_is_still_that_dead_epoch() {
    let silent = Silent::new();
    let dead = session(DEAD, silent.address);
    let mark = Mark::new("S1".into(), &holder(), &dead);
    let (url, asked) = master("200 OK").await;
    for other in [
        Session { epoch: Epoch(4), ..dead.clone() },
        Session { epoch: Epoch(4), state: SessionState::Live, ..dead.clone() },
        Session { state: SessionState::Live, ..dead.clone() },
        Session { state: SessionState::Dead(Proof::Fenced), ..dead.clone() },
    ] {
        let (exchange, _) = etcd(&other).await;
        assert_eq!(try_to_mark(&exchange, &client(), &url, PATIENCE, &mark).await, Tried::Back);
    }
    let (exchange, _) = etcd(&dead).await;
    exchange.store().fail_reads(true);
    let tried = try_to_mark(&exchange, &client(), &url, PATIENCE, &mark).await;
    assert!(matches!(tried, Tried::Failed(_)), "what etcd says now is not known: {tried:?}");
    assert!(asked.lock().unwrap().is_empty());
}

fn mark(id: &str) -> Mark {
    Mark { agent_id: id.into(), holder: holder(), epoch: Epoch(3), address: None }
}

#[test]
fn one_is_marked_at_a_time_and_a_busy_master_is_asked_again_behind_the_others() {
    let (mut marks, now) = (Marks::default(), Instant::now());
    assert_eq!(marks.due(now), None);
    marks.add(vec![mark("S1"), mark("S2"), mark("S1")]);
    assert_eq!(marks.due(now), Some(now));
    assert_eq!(marks.next(now, |_| false), Some(mark("S1")));
    assert_eq!((marks.next(now, |_| false), marks.due(now)), (None, None), "one is under way");
    assert_eq!(marks.tried(Tried::Busy, now), None);
    assert_eq!((marks.next(now, |_| false), marks.due(now)), (None, Some(now + PAUSE)));
    let later = now + PAUSE;
    assert_eq!(marks.next(later, |_| false), Some(mark("S2")));
    assert_eq!(marks.tried(Tried::Marked(Revision(7)), later), Some((mark("S2"), Revision(7))));
    assert_eq!(marks.next(later, |_| false), Some(mark("S1")), "again");
    assert_eq!(marks.tried(Tried::NotKnown, later), None);
    assert_eq!(marks.due(later), None);
}

#[test]
fn one_that_is_connected_again_is_dropped_and_none_is_tried_for_ever() {
    let (mut marks, mut now) = (Marks::default(), Instant::now());
    marks.add(vec![mark("S1"), mark("S2")]);
    assert_eq!(marks.next(now, |id| id == "S1"), Some(mark("S2")));
    let mut tries = 0;
    while marks.waiting.iter().any(|(mark, _)| &*mark.agent_id == "S2") {
        tries += 1;
        assert_eq!(marks.tried(Tried::Failed("why".to_owned()), now), None);
        now += PAUSE;
        marks.next(now, |_| false);
        assert!(tries <= TRIES_MAX);
    }
    assert_eq!(tries, TRIES_MAX);
    for end in [Tried::Back, Tried::Alive("it is".to_owned()), Tried::Forbidden(StatusCode::FORBIDDEN)] {
        marks.add(vec![mark("S3")]);
        marks.next(now, |_| false);
        assert_eq!(marks.tried(end, now), None);
        assert_eq!(marks.due(now), None, "it is not tried again");
    }
}
