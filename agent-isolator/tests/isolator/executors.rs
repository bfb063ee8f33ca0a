//! Tasks that an executor is handed: Mesos asks before, and the agent's state tells what they are.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use agent_isolator::mesos::ContainerConfig;
use serde_json::json;

use crate::agent::{Agent, config, id, set_address};

/// The agent's own HTTP, which the test answers.
struct State {
    listener: TcpListener,
}

impl State {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_address(listener.local_addr().unwrap().to_string());
        Self { listener }
    }

    /// The next request for the state, behind one for the tasks, which are answered by these.
    fn asked_with(&self, tasks: &str) -> TcpStream {
        reply(self.request(b"POST /slave(1)/api/v1 HTTP/1.1\r\n"), "200 OK", tasks);
        self.request(b"GET /slave(1)/state HTTP/1.1\r\n")
    }

    /// The next request for the tasks.
    fn asked(&self) -> TcpStream {
        self.request(b"POST /slave(1)/api/v1 HTTP/1.1\r\n")
    }

    /// The next request, after its head was read, and what a POST sends.
    fn request(&self, line: &[u8]) -> TcpStream {
        let (mut stream, _) = self.listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(line), "{}", String::from_utf8_lossy(&head));
        if line.starts_with(b"POST") {
            let mut body = [0; TASKS.len()];
            stream.read_exact(&mut body).unwrap();
            assert_eq!(body, *TASKS);
        }
        stream
    }
}

fn reply(mut stream: TcpStream, status: &str, body: &str) {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
        .unwrap();
}

const TASKS: &[u8; 20] = br#"{"type":"GET_TASKS"}"#;

/// An agent's state with executors in these containers.
fn state(containers: &[&str]) -> String {
    let executor = |container: &&str| json!({ "id": container, "container": container });
    json!({ "frameworks": [{ "id": "f", "executors": containers.iter().map(executor).collect::<Vec<_>>() }] })
        .to_string()
}

/// Its tasks: one waits for each of these executors, and has this label.
fn tasks(waiting: &[(&str, &str)]) -> String {
    let task = |(executor, key): &(&str, &str)| {
        let labels = json!({ "labels": [{ "key": key, "value": "vol-1" }] });
        json!({
            "name": "t1", "task_id": { "value": "t1" }, "framework_id": { "value": "f" },
            "executor_id": { "value": executor }, "labels": labels,
        })
    };
    let tasks: Vec<_> = waiting.iter().map(task).collect();
    json!({ "type": "GET_TASKS", "get_tasks": { "queued_tasks": tasks } }).to_string()
}

#[test]
fn an_executor_is_not_handed_a_task_whose_volume_nobody_would_mount() {
    let agents_state = State::start();
    let agent = Agent::start(&[]);
    assert_eq!(agent.prepare(&id("c1"), &ContainerConfig::default()).answer(), Ok(None));
    let first = agent.update(&id("c1"));
    let asked = agents_state.asked_with(&tasks(&[("c1", "app"), ("c2", "app")]));
    // These come while a look is under way, which may be older than their tasks.
    let (second, third) = (agent.update(&id("c1")), agent.update(&id("c2")));
    reply(asked, "200 OK", &state(&["c1", "c2"]));
    assert_eq!(first.answer(), Ok(()));
    assert!(second.is_pending() && third.is_pending());
    let asked = agents_state.asked_with(&tasks(&[("c1", "extvol.name"), ("c2", "app")]));
    reply(asked, "200 OK", &state(&["c1", "c2"]));
    let refused = second.answer().unwrap_err();
    assert!(refused.starts_with("task t1 has the label extvol.name, which Mesos does not hand"), "{refused}");
    assert_eq!(third.answer(), Ok(()));
}

#[test]
fn a_command_tasks_container_is_not_looked_at_again() {
    set_address("127.0.0.1:1".into());
    let agent = Agent::start(&[]);
    assert_eq!(agent.prepare(&id("c1"), &config(&[], &[])).answer(), Ok(None));
    assert_eq!(agent.update(&id("c1")).answer(), Ok(()));
    let lax = Agent::start(&[("executor_tasks", "ignore")]);
    assert_eq!(lax.update(&id("c2")).answer(), Ok(()));
}

#[test]
fn an_agent_that_does_not_show_its_state_runs_its_tasks_all_the_same() {
    let agents_state = State::start();
    let agent = Agent::start(&[]);
    let refused = tasks(&[("c1", "extvol.name")]);
    let answers = [
        ("401 Unauthorized", refused.as_str()),
        ("503 Service Unavailable", ""),
        ("302 Found\r\nlocation: http://127.0.0.1:1/", ""),
        ("200 OK", "<html>"),
        ("200 OK", "{}"),
    ];
    for (status, body) in answers {
        let update = agent.update(&id("c1"));
        let asked = agents_state.asked();
        reply(asked, status, body);
        // What cannot be read shows after both were.
        if status == "200 OK" {
            reply(agents_state.request(b"GET /slave(1)/state HTTP/1.1\r\n"), status, &state(&["c1"]));
        }
        assert_eq!(update.answer(), Ok(()), "{status}");
        let update = agent.update(&id("c1"));
        reply(agents_state.asked_with(&refused), status, body);
        assert_eq!(update.answer(), Ok(()), "{status}");
    }
    // One that closes the connection; and one that is very busy, and waited for.
    let update = agent.update(&id("c1"));
    drop(agents_state.asked());
    assert_eq!(update.answer(), Ok(()));
    let update = agent.update(&id("c1"));
    let late = agents_state.asked();
    std::thread::sleep(Duration::from_secs(6));
    reply(late, "200 OK", &refused);
    reply(agents_state.request(b"GET /slave(1)/state HTTP/1.1\r\n"), "200 OK", &state(&["c1"]));
    assert!(update.answer().is_err());
}
