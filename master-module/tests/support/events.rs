//! The events in etcd, as an operator reads them.

use serde_json::Value;
use testing::{EtcdCluster, wait_until};

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) revision: i64,
    pub(crate) subject: String,
    pub(crate) value: Value,
}

impl Event {
    pub(crate) fn what(&self) -> &str {
        self.value["what"].as_str().unwrap()
    }
}

/// All events, in the order in which `etcdctl get --prefix` lists them.
pub(crate) fn events(cluster: &EtcdCluster) -> Vec<Event> {
    let text = cluster.etcdctl(&["get", "--prefix", "/extvol/v1/events/"]);
    let lines: Vec<_> = text.lines().collect();
    let event = |pair: &[&str]| {
        let (revision, subject) =
            pair[0].strip_prefix("/extvol/v1/events/").unwrap().split_once('/').unwrap();
        let (revision, subject) = (revision.parse().unwrap(), subject.to_owned());
        let value: Value = serde_json::from_str(pair[1]).unwrap();
        assert_eq!(value["version"], 1);
        Event { revision, subject, value }
    };
    lines.chunks(2).map(event).collect()
}

/// What happened, in order: `what` of each event.
pub(crate) fn whats(cluster: &EtcdCluster) -> Vec<String> {
    events(cluster).iter().map(|event| event.what().to_owned()).collect()
}

/// Waits until exactly these events are there.
pub(crate) fn wait_for(cluster: &EtcdCluster, expected: &[&str]) {
    let reached = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("events", || whats(cluster) == expected);
    }));
    assert!(reached.is_ok(), "expected {expected:?}, there are {:#?}", events(cluster));
}
