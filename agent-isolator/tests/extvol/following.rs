//! `extvol events --follow` over an etcd that goes away and comes back.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use testing::SOON;

use crate::program::{Installation, extvol};

/// The lines of a stream, as they come.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn put_event(installation: &Installation, revision: i64, text: &str) {
    let key = format!("/extvol/v1/events/{revision:019}/leases/ebs/v");
    let event = format!(
        r#"{{"version":1,"what":"granted","seen":"at-once","text":"{text}","time":"2026-01-02T03:04:05Z"}}"#
    );
    installation.etcd.etcdctl(&["put", &key, &event]);
}

#[test]
fn etcd_that_is_started_again_is_followed_on_with_no_event_lost_or_told_twice() {
    let mut installation = Installation::found();
    put_event(&installation, 1, "one");
    put_event(&installation, 2, "two");
    let mut command = extvol();
    command.arg("--endpoints").arg(installation.etcd.endpoint(0));
    command.args(["events", "--follow", "--limit", "1", "-o", "json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut following = Following(child);
    let out = lines(following.0.stdout.take().unwrap());
    let error = lines(following.0.stderr.take().unwrap());
    let next = |expected: &str| {
        let line = out.recv_timeout(SOON).unwrap();
        assert!(line.contains(&format!(r#""text":"{expected}""#)), "{line}");
    };
    next("two");
    put_event(&installation, 3, "three");
    next("three");
    installation.etcd.kill(0);
    let said = error.recv_timeout(SOON).unwrap();
    assert!(said.contains("asking again"), "{said}");
    installation.etcd.restart(0);
    put_event(&installation, 4, "four");
    next("four");
    let said = error.recv_timeout(SOON).unwrap();
    assert!(said.contains("etcd answers again"), "{said}");
    put_event(&installation, 5, "five");
    next("five");
}

#[test]
fn etcd_events_end_quietly_when_nobody_reads_them() {
    let installation = Installation::found();
    put_event(&installation, 1, "one");
    let mut command = extvol();
    command.arg("--endpoints").arg(installation.etcd.endpoint(0)).args(["events", "--follow"]);
    let mut following = Following(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let out = following.0.stdout.take().unwrap();
    let mut first = String::new();
    let mut reader = BufReader::new(out);
    reader.read_line(&mut first).unwrap();
    assert!(first.contains("one"), "{first}");
    drop(reader);
    put_event(&installation, 2, "two");
    let mut error = following.0.stderr.take().unwrap();
    let mut text = String::new();
    testing::wait_until("it ends", || following.0.try_wait().unwrap().is_some());
    error.read_to_string(&mut text).unwrap();
    assert_eq!((following.0.wait().unwrap().code(), text.as_str()), (Some(0), ""));
}
