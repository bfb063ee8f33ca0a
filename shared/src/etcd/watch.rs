//! Watches.
//!
//! A silent watch proves nothing: a member that is stopped, or cut off, is silent as well. So this
//! one asks its member for a sign of life whenever it has been silent for
//! [`PROGRESS_INTERVAL`](super::PROGRESS_INTERVAL), and ends with an error when none comes within a
//! request's time-out. Thus a watch on a member that was stopped (SIGSTOP) ends after about
//! `PROGRESS_INTERVAL + request_timeout`, and the next one goes to another member. A member that lost
//! the leader ends the watch by itself.
//!
//! The revision in such a sign of life is not used for anything: etcd before 3.4.25 may give one that
//! is ahead of changes that it has not sent yet. And an etcd that was restored from a backup keeps a
//! watch from a revision that it has not reached open and silent: only a read finds that out.

use etcd_client::proto::PbWatchResponse;
use etcd_client::{EventType, WatchOptions, WatchResponse, WatchStream};
use futures::{Stream, stream};
use tokio::time::{Instant, sleep_until, timeout};

use super::fault::EtcdFault;
use super::read::key_text;
use super::{Chosen, EtcdStore, PROGRESS_INTERVAL};
use crate::store::{Change, Entry, Revision, StoreError};

/// A watch at work.
struct Open<'s> {
    store: &'s EtcdStore,
    chosen: Chosen<'s>,
    stream: WatchStream,
    after: Revision,
    /// When the member was last heard of.
    heard: Instant,
    /// When it was last asked for a sign of life, unless it has answered since.
    asked: Option<Instant>,
    /// Changes of an answer whose other fragments are still to come.
    fragments: Vec<Change>,
}

enum State<'s> {
    Start { store: &'s EtcdStore, prefix: String, after: Revision },
    Open(Box<Open<'s>>),
    Ended,
}

impl EtcdStore {
    pub(super) fn follow(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Stream<Item = Result<Vec<Change>, StoreError>> + Send + Unpin {
        let start = State::Start { store: self, prefix: prefix.to_owned(), after };
        Box::pin(stream::unfold(start, |state| async {
            let mut open = match state {
                State::Ended => return None,
                State::Open(open) => open,
                State::Start { store, prefix, after } => match Open::new(store, prefix, after).await {
                    Ok(open) => Box::new(open),
                    Err(fault) => return Some((Err(fault.of_read()), State::Ended)),
                },
            };
            match open.changes().await {
                Ok(changes) => Some((Ok(changes), State::Open(open))),
                Err(fault) => {
                    if fault.blames_member() {
                        open.store.give_up(open.chosen);
                    }
                    Some((Err(fault.of_read()), State::Ended))
                }
            }
        }))
    }
}

impl<'s> Open<'s> {
    async fn new(store: &'s EtcdStore, prefix: String, after: Revision) -> Result<Self, EtcdFault> {
        let options = WatchOptions::new().with_start_revision(after.0 + 1).with_fragment();
        // A key alone would be a prefix of others: of `agent-1` are `agent-10` to `agent-19`.
        let options = if prefix.ends_with('/') { options.with_prefix() } else { options };
        let (stream, chosen, _) = store
            .ask(|mut clients| {
                let (prefix, options) = (prefix.clone(), options.clone());
                async move { clients.watch.watch(prefix, Some(options)).await }
            })
            .await?;
        let heard = Instant::now();
        Ok(Self { store, chosen, stream, after, heard, asked: None, fragments: Vec::new() })
    }

    /// The next changes: whole revisions, at least one change.
    async fn changes(&mut self) -> Result<Vec<Change>, EtcdFault> {
        loop {
            let answer = self.answer().await?;
            self.check(&answer)?;
            let WatchResponse(PbWatchResponse { events, fragment, .. }) = answer;
            for event in events {
                let Some(kv) = event.kv else { continue };
                let key = key_text(kv.key);
                self.fragments.push(if event.r#type == EventType::Delete as i32 {
                    Change::Delete { key, at: Revision(kv.mod_revision) }
                } else {
                    let entry = Entry { value: kv.value, mod_revision: Revision(kv.mod_revision) };
                    Change::Put { key, entry }
                });
            }
            if !fragment && !self.fragments.is_empty() {
                return Ok(std::mem::take(&mut self.fragments));
            }
        }
    }

    /// The next answer of the member, which is asked for a sign of life meanwhile.
    async fn answer(&mut self) -> Result<WatchResponse, EtcdFault> {
        let patience = self.store.request_timeout;
        loop {
            let until = match self.asked {
                None => self.heard + PROGRESS_INTERVAL,
                Some(asked) => asked + patience,
            };
            tokio::select! {
                // What has already come counts, however late the caller asks for it.
                biased;
                message = self.stream.message() => {
                    self.heard = Instant::now();
                    self.asked = None;
                    return match message {
                        Ok(Some(answer)) => Ok(answer),
                        Ok(None) => Err(self.failed("the watch was closed".to_owned())),
                        Err(error) => Err(EtcdFault::of(&self.chosen.member.endpoint, error)),
                    };
                }
                () = sleep_until(until) => {
                    if self.asked.is_some() {
                        return Err(self.silent());
                    }
                    match timeout(patience, self.stream.request_progress()).await {
                        Ok(Ok(())) => self.asked = Some(Instant::now()),
                        Ok(Err(error)) => return Err(EtcdFault::of(&self.chosen.member.endpoint, error)),
                        Err(_) => return Err(self.silent()),
                    }
                }
            }
        }
    }

    fn check(&self, answer: &WatchResponse) -> Result<(), EtcdFault> {
        if answer.compact_revision() > 0 {
            let member = self.chosen.member.endpoint.clone();
            return Err(EtcdFault::Compacted { member, at: self.after });
        }
        if answer.canceled() {
            return Err(self.failed(format!("the watch was cancelled: {}", answer.cancel_reason())));
        }
        Ok(())
    }

    fn silent(&self) -> EtcdFault {
        let member = self.chosen.member.endpoint.clone();
        EtcdFault::TimedOut { member, after: self.store.request_timeout }
    }

    fn failed(&self, reason: String) -> EtcdFault {
        EtcdFault::Failed { member: self.chosen.member.endpoint.clone(), reason }
    }
}
