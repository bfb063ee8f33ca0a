//! The worker's way to etcd: reads, commits and watches as tasks, whose results come back as events. Nothing is
//! decided here, and nothing is tried twice but the making of the installation's record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use shared::exchange;
use shared::exchange_io::{Exchange, ReadError};
use shared::protocol::exchange::{Commit, Key, Reading, View};
use shared::protocol::holder::Input;
use shared::protocol::{Op, Text};
use shared::store::{LeaseStore, Revision, StoreError};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::Event;
use crate::keeper::{random_id, sentence};

/// Before a watch that ended is opened again.
const WATCH_AGAIN: Duration = Duration::from_millis(200);

/// Whether etcd answers, as a person is told it. A full one answers each read, and takes no write: neither answer is the other's.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    silent_reads: bool,
    silent_writes: bool,
}

impl Hearing {
    /// Takes in what became of a read or a write. Answers whether that is news.
    pub(super) fn take(&mut self, is_write: bool, is_silent: bool) -> bool {
        let was_silent = self.silent_reads || self.silent_writes;
        match is_write {
            true => self.silent_writes = is_silent,
            false => self.silent_reads = is_silent,
        }
        (self.silent_reads || self.silent_writes) != was_silent
    }
}

/// What the worker has with etcd.
pub(super) struct Etcd<S> {
    exchange: Arc<Exchange<S>>,
    events: mpsc::UnboundedSender<Event>,
    watches: BTreeMap<Key, (Revision, AbortHandle)>,
}

impl<S: LeaseStore> Etcd<S> {
    pub(super) fn new(exchange: Exchange<S>, events: mpsc::UnboundedSender<Event>) -> Self {
        Self { exchange: Arc::new(exchange), events, watches: BTreeMap::new() }
    }

    pub(super) fn read(&self, op: Op, reading: Reading) {
        let (exchange, events) = (Arc::clone(&self.exchange), self.events.clone());
        tokio::spawn(async move {
            let result = read(&exchange, &reading).await.map_err(|error| Text::from(sentence(&error)));
            // The receiver lives as long as the worker runs.
            let _ = events.send(Event::Core(Input::Read(op, result)));
        });
    }

    pub(super) fn commit(&self, op: Op, commit: Commit) {
        let (exchange, events) = (Arc::clone(&self.exchange), self.events.clone());
        tokio::spawn(async move {
            let outcome = exchange.commit(&commit).await;
            let _ = events.send(Event::Core(Input::Committed(op, outcome)));
        });
    }

    /// Why the last write had no answer.
    pub(super) fn fault(&self) -> Option<Text> {
        self.exchange.fault()
    }

    /// Watches these keys, each from after the revision at which it was read, and no others.
    pub(super) fn watch(&mut self, keys: BTreeMap<Key, Revision>) {
        self.watches.retain(|key, (read, task)| {
            let kept = keys.get(key) == Some(read);
            if !kept {
                task.abort();
            }
            kept
        });
        for (key, read) in keys {
            if self.watches.contains_key(&key) {
                continue;
            }
            let (exchange, events, watched) = (Arc::clone(&self.exchange), self.events.clone(), key.clone());
            let task = tokio::spawn(async move {
                follow(&exchange, &watched, read).await;
                let _ = events.send(Event::Core(Input::Changed(watched)));
            });
            self.watches.insert(key, (read, task.abort_handle()));
        }
    }
}

async fn read<S: LeaseStore>(exchange: &Exchange<S>, reading: &Reading) -> Result<View, ReadError> {
    match exchange.try_read(reading).await {
        // The first keeper of an installation makes its record; only for one who looks for what is its own, to
        // open an epoch: a record that vanished under an open epoch is not made again.
        Err(ReadError::NotFounded { .. }) if matches!(reading, Reading::Own(_)) => {
            exchange.found(&random_id()).await?;
            exchange.try_read(reading).await
        }
        read => read,
    }
}

/// Returns when the key may have changed since it was read.
async fn follow<S: LeaseStore>(exchange: &Exchange<S>, key: &Key, read: Revision) {
    let name = exchange::key(exchange.keys(), key);
    loop {
        let mut changes = exchange.store().watch(&name, read);
        if let Some(Ok(_) | Err(StoreError::Compacted { .. })) = changes.next().await {
            return;
        }
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_full_etcd_each_change_is_told_once() {
        let (read, write) = (false, true);
        let mut hearing = Hearing::default();
        let mut told = |is_write, is_silent| hearing.take(is_write, is_silent);
        assert!(!told(read, false) && !told(write, false));
        assert!(told(write, true));
        for _ in 0..3 {
            assert!(!told(read, false) && !told(write, true));
        }
        assert!(!told(read, true) && !told(write, false));
        assert!(told(read, false));
    }
}
