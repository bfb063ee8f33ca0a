//! A Mesos master of a few lines: it gives one answer to every request, and that can be changed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// As the leader, with these agents: id, host name, active.
    Leader(Vec<(&'static str, &'static str, bool)>),
    /// As a standby that knows this leader.
    Redirect(String),
    /// As a master while none leads.
    NoLeader,
    /// What is no list of agents.
    Garbage,
    /// Nothing, ever.
    Hang,
}

/// It serves until the test's process ends.
pub(crate) struct Master {
    pub(crate) address: String,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicUsize>,
}

impl Master {
    pub(crate) fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answer = Arc::new(Mutex::new(answer));
        let requests = Arc::new(AtomicUsize::new(0));
        let (shown, counted) = (Arc::clone(&answer), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shown, counted) = (Arc::clone(&shown), Arc::clone(&counted));
                std::thread::spawn(move || serve(stream, &shown, &counted));
            }
        });
        Self { address, answer, requests }
    }

    pub(crate) fn now(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Requests that it has got.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(mut stream: TcpStream, answer: &Mutex<Answer>, requests: &AtomicUsize) {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(bytes) if bytes > 0 => request.extend_from_slice(&chunk[..bytes]),
            _ => return,
        }
    }
    requests.fetch_add(1, Ordering::SeqCst);
    assert!(request.starts_with(b"GET /master/slaves "), "{}", String::from_utf8_lossy(&request));
    let (status, header, body) = match answer.lock().unwrap().clone() {
        Answer::Leader(agents) => ("200 OK", String::new(), slaves(&agents)),
        Answer::Redirect(leader) => {
            // Without a scheme, as Mesos writes it.
            ("307 Temporary Redirect", format!("Location: //{leader}/master/slaves\r\n"), String::new())
        }
        Answer::NoLeader => ("503 Service Unavailable", String::new(), "No leader elected".to_owned()),
        Answer::Garbage => ("200 OK", String::new(), "<html>".to_owned()),
        Answer::Hang => {
            // Until the other side gives up.
            let _ = stream.read(&mut chunk);
            return;
        }
    };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
}

fn slaves(agents: &[(&str, &str, bool)]) -> String {
    let slave = |(id, hostname, active): &(&str, &str, bool)| {
        format!(
            r#"{{"id":"{id}","hostname":"{hostname}","port":5051,"pid":"slave(1)@10.0.0.1:5051","active":{active},"resources":{{"cpus":1.0}}}}"#
        )
    };
    let slaves: Vec<_> = agents.iter().map(slave).collect();
    format!(r#"{{"slaves":[{}],"recovered_slaves":[]}}"#, slaves.join(","))
}
