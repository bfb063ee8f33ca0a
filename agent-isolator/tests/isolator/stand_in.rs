//! A stand-in for the keeper, at its socket: the test says each word of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use agent_isolator::wire::{Answer, Call, CallLine, KeeperLine, Limit, VERSION, line};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shared::volume::ContainerId;

/// What has not happened by then does not happen. Longer than all deadlines of the isolator that these
/// tests wait for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct StandIn {
    listener: UnixListener,
}

impl StandIn {
    pub(crate) fn listen(run_directory: &Path) -> Self {
        Self { listener: UnixListener::bind(run_directory.join("keeper.sock")).unwrap() }
    }

    /// The next connection, before its first word.
    pub(crate) fn accept(&self) -> Connection {
        let timeout = Timespec::try_from(DEADLINE).unwrap();
        let ready = poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ready, 1, "nobody connected");
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Connection { reader: BufReader::new(stream) }
    }

    /// The next connection; its hello is accepted.
    pub(crate) fn connected(&self) -> Connection {
        let mut connection = self.accept();
        let id = connection.hello().0;
        connection.done(id);
        connection
    }
}

pub(crate) struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    pub(crate) fn next(&mut self) -> CallLine {
        let mut text = String::new();
        self.reader.read_line(&mut text).expect("a call within the deadline");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
    }

    pub(crate) fn hello(&mut self) -> (u64, BTreeMap<String, String>) {
        match self.next() {
            CallLine { id, call: Call::Hello { version: VERSION, parameters } } => (id, parameters),
            other => panic!("not a hello: {other:?}"),
        }
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.reader.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Writes this many bytes and no end of a line, as far as they are read.
    pub(crate) fn flood(&mut self, bytes: usize) {
        let _ = self.reader.get_mut().write_all(&vec![b'x'; bytes]);
    }

    fn say(&mut self, said: &KeeperLine) {
        self.write(&line(said));
    }

    pub(crate) fn done(&mut self, id: u64) {
        self.say(&KeeperLine::Answer { id, answer: Answer::Done });
    }

    pub(crate) fn prepared(&mut self, id: u64, mount_points: &[&str]) {
        let mount_points = mount_points.iter().map(|point| (*point).to_owned()).collect();
        self.say(&KeeperLine::Answer { id, answer: Answer::Prepared { mount_points } });
    }

    pub(crate) fn refuse(&mut self, id: u64, refused: &str) {
        self.say(&KeeperLine::Refused { id, refused: refused.into() });
    }

    pub(crate) fn limit(&mut self, container: &str, message: &str) {
        let container = ContainerId::new(container).unwrap();
        self.say(&KeeperLine::Limit { limit: Limit { container, message: message.into() } });
    }

    /// Waits until the isolator has closed its side.
    pub(crate) fn closed(mut self) {
        match self.reader.read(&mut [0; 1]) {
            Ok(0) => {}
            // It closed with something of ours unread.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not closed: {other:?}"),
        }
    }
}
