//! A Mesos master and agents of a few lines: each gives the answer that it was last told to give.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// An agent, as a master lists it.
#[derive(Clone, Debug)]
pub(crate) struct Slave {
    id: &'static str,
    hostname: &'static str,
    active: bool,
    address: String,
}

/// What a master answers to `/master/slaves`.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// As the leader, with these agents.
    Leader(Vec<Slave>),
    /// As the leader, with agents that have not registered since it leads: id and host name.
    Recovering(Vec<(&'static str, &'static str)>),
    /// As a standby that knows this leader.
    Redirect(String),
    /// As a master while none leads.
    NoLeader,
    /// What is no list of agents.
    Garbage,
    /// Nothing, ever.
    Hang,
}

/// What an agent answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AgentAnswer {
    /// As the agent with this id.
    Id(&'static str),
    /// That it is recovering.
    Recovering,
    /// Nothing, ever.
    Hang,
    /// Headers and the beginning of a state without end, with this id.
    Endless(&'static str),
}

type Reply = Option<(&'static str, String, String)>;
type Serve = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

/// Serves until the test's process ends. `None` is no answer, until the other side gives up.
fn serve(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let reply: Serve = Arc::new(reply);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let reply = Arc::clone(&reply);
            std::thread::spawn(move || serve_one(stream, &reply));
        }
    });
    address
}

fn serve_one(mut stream: TcpStream, reply: &Serve) {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(bytes) if bytes > 0 => request.extend_from_slice(&chunk[..bytes]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    assert!(request.starts_with("GET ") || path == "/api/v1", "{request}");
    let Some((status, header, body)) = reply(&path) else {
        let _ = stream.read(&mut chunk);
        return;
    };
    let endless = header.contains("X-Endless");
    let length = if endless { 1 << 40 } else { body.len() };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    while endless && stream.write_all(&[b' '; 8192]).is_ok() {}
}

fn ok(body: String) -> Reply {
    Some(("200 OK", String::new(), body))
}

pub(crate) struct Master {
    pub(crate) address: String,
    answer: Arc<Mutex<Answer>>,
    registry: Arc<Mutex<String>>,
    requests: Arc<AtomicUsize>,
    looks: Arc<AtomicUsize>,
    marks: Arc<AtomicUsize>,
    marking: Arc<Mutex<&'static str>>,
}

impl Master {
    pub(crate) fn start(answer: Answer) -> Self {
        let answer = Arc::new(Mutex::new(answer));
        let registry = Arc::new(Mutex::new(registry(&[], &[])));
        let requests = Arc::new(AtomicUsize::new(0));
        let (shown, counted, kept) = (Arc::clone(&answer), Arc::clone(&requests), Arc::clone(&registry));
        let looks = Arc::<AtomicUsize>::default();
        let looked = Arc::clone(&looks);
        let (marks, marking) = (Arc::<AtomicUsize>::default(), Arc::new(Mutex::new("403 Forbidden")));
        let (marked, answered) = (Arc::clone(&marks), Arc::clone(&marking));
        let address = serve(move |path| match path {
            "/master/slaves" => {
                counted.fetch_add(1, Ordering::SeqCst);
                slaves_answer(&shown.lock().unwrap())
            }
            path if path.starts_with(ONE_OF_THEM) => {
                looked.fetch_add(1, Ordering::SeqCst);
                slaves_answer(&only(&shown.lock().unwrap(), &path[ONE_OF_THEM.len()..]))
            }
            "/registrar(1)/registry" => ok(match *shown.lock().unwrap() {
                Answer::Leader(_) | Answer::Recovering(_) => kept.lock().unwrap().clone(),
                // A registrar that has not read the registry.
                _ => "{}".to_owned(),
            }),
            "/api/v1" => {
                marked.fetch_add(1, Ordering::SeqCst);
                Some((*answered.lock().unwrap(), String::new(), String::new()))
            }
            other => panic!("a master is not asked for {other}"),
        });
        Self { address, answer, registry, requests, looks, marks, marking }
    }

    /// What it answers from now on when it is to mark an agent gone.
    pub(crate) fn marks_gone(&self, status: &'static str) {
        *self.marking.lock().unwrap() = status;
    }

    /// How often it was to mark one.
    pub(crate) fn asked_to_mark(&self) -> usize {
        self.marks.load(Ordering::SeqCst)
    }

    pub(crate) fn now(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// What its registry has of unreachable and gone agents.
    pub(crate) fn registry(&self, unreachable: &[&str], gone: &[&str]) {
        *self.registry.lock().unwrap() = registry(unreachable, gone);
    }

    /// How often it was asked for one agent.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    /// How often it was asked for its agents.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

const ONE_OF_THEM: &str = "/master/slaves?slave_id=";

/// The same answer with one agent at most.
fn only(answer: &Answer, id: &str) -> Answer {
    match answer {
        Answer::Leader(slaves) => Answer::Leader(slaves.iter().filter(|s| s.id == id).cloned().collect()),
        Answer::Recovering(slaves) => {
            Answer::Recovering(slaves.iter().filter(|(other, _)| *other == id).copied().collect())
        }
        other => other.clone(),
    }
}

fn slaves_answer(answer: &Answer) -> Reply {
    let text = |status, text: &str| Some((status, String::new(), text.to_owned()));
    match answer {
        Answer::Leader(agents) => {
            let slaves: Vec<_> = agents.iter().map(listed).collect();
            ok(format!(r#"{{"slaves":[{}],"recovered_slaves":[]}}"#, slaves.join(",")))
        }
        Answer::Recovering(agents) => {
            let slave = |(id, hostname): &(&str, &str)| {
                format!(r#"{{"id":"{id}","hostname":"{hostname}","port":5051,"resources":[]}}"#)
            };
            let slaves: Vec<_> = agents.iter().map(slave).collect();
            ok(format!(r#"{{"slaves":[],"recovered_slaves":[{}]}}"#, slaves.join(",")))
        }
        Answer::Redirect(leader) => {
            // Without a scheme, as Mesos writes it.
            let header = format!("Location: //{leader}/master/slaves\r\n");
            Some(("307 Temporary Redirect", header, String::new()))
        }
        Answer::NoLeader => text("503 Service Unavailable", "No leader elected"),
        Answer::Garbage => text("200 OK", "<html>"),
        Answer::Hang => None,
    }
}

fn listed(Slave { id, hostname, active, address }: &Slave) -> String {
    format!(
        r#"{{"id":"{id}","hostname":"{hostname}","port":5051,"pid":"slave(1)@{address}","active":{active},"resources":{{"cpus":1.0}}}}"#
    )
}

fn registry(unreachable: &[&str], gone: &[&str]) -> String {
    let list = |ids: &[&str]| {
        let former = |id: &&str| format!(r#"{{"id":{{"value":"{id}"}},"timestamp":{{"nanoseconds":1}}}}"#);
        ids.iter().map(former).collect::<Vec<_>>().join(",")
    };
    let (unreachable, gone) = (list(unreachable), list(gone));
    format!(
        r#"{{"gone":{{"slaves":[{gone}]}},"master":{{"info":{{"id":"m"}}}},"slaves":{{"slaves":[{{"info":{{"id":{{"value":"S9"}}}}}}]}},"unreachable":{{"slaves":[{unreachable}]}}}}"#
    )
}

pub(crate) struct Agent {
    pub(crate) address: String,
    answer: Arc<Mutex<AgentAnswer>>,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Agent {
    pub(crate) fn start(answer: AgentAnswer) -> Self {
        let answer = Arc::new(Mutex::new(answer));
        let asked: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
        let (shown, counted) = (Arc::clone(&answer), Arc::clone(&asked));
        let address = serve(move |path| {
            *counted.lock().unwrap().entry(path.to_owned()).or_default() += 1;
            let state = |id: &str| {
                format!(r#"{{"version":"1.11.0","id":"{id}","hostname":"h","frameworks":[{{"id":"F"}}]}}"#)
            };
            let now = *shown.lock().unwrap();
            match (path, now) {
                (_, AgentAnswer::Hang) => None,
                ("/slave(1)/health", _) => ok(String::new()),
                ("/slave(1)/state", AgentAnswer::Id(id)) => ok(state(id)),
                ("/slave(1)/state", AgentAnswer::Recovering) => Some((
                    "503 Service Unavailable",
                    String::new(),
                    "Agent has not finished recovery".to_owned(),
                )),
                ("/slave(1)/state", AgentAnswer::Endless(id)) => {
                    Some(("200 OK", "X-Endless: yes\r\n".to_owned(), state(id)[..40].to_owned()))
                }
                (other, _) => panic!("an agent is not asked for {other}"),
            }
        });
        Self { address, answer, asked }
    }

    pub(crate) fn now(&self, answer: AgentAnswer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// How often it was asked for its `state` or `health`.
    pub(crate) fn asked(&self, what: &str) -> usize {
        self.asked.lock().unwrap().get(&format!("/slave(1)/{what}")).copied().unwrap_or_default()
    }

    /// As a master lists it under `id`.
    pub(crate) fn listed(&self, id: &'static str, hostname: &'static str, active: bool) -> Slave {
        Slave { id, hostname, active, address: self.address.clone() }
    }
}
