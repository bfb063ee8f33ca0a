//! The calls that the keeper has not answered, in the order in which Mesos made them.
//!
//! A call ends with its answer or with its deadline. One that only tells the keeper something, a
//! *notice*, lets Mesos go on at its deadline, and is kept until the keeper has it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use shared::volume::ContainerId;
use tokio::time::Instant;

use super::mounts::Targets;
use crate::wire::{Answer, Call, CallLine, LINE_BYTES_MAX, line};

/// A call, for as long as the agent's process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CallId(pub(super) u64);

/// Ends a call: with the keeper's answer and the targets that were made before, or with a sentence.
pub(super) type Finish = Box<dyn FnOnce(Result<(Answer, Targets), String>) + Send>;

/// What a call waits for, and until when.
pub(super) enum Wait {
    /// An answer.
    Answer { by: Instant },
    /// Its mount targets, described by `what`, then an answer.
    Targets { what: String, by: Instant, answer_by: Instant },
    /// To be delivered, however long that takes; at the deadline Mesos goes on.
    Delivery { by: Instant },
}

impl Wait {
    fn by(&self) -> Instant {
        let (Self::Answer { by } | Self::Targets { by, .. } | Self::Delivery { by }) = self;
        *by
    }
}

struct Pending {
    line: Arc<String>,
    /// Of a prepare.
    container: Option<ContainerId>,
    targets: Targets,
    wait: Wait,
    /// None once the deadline of a notice has passed.
    finish: Option<Finish>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Calls {
    last: u64,
    pending: BTreeMap<CallId, Pending>,
}

impl Calls {
    /// Takes a call in. One that is too long for a line ends at once: the keeper would close the
    /// connection, for all other calls too.
    pub(super) fn add(&mut self, call: Call, wait: Wait, finish: Finish) -> Option<CallId> {
        self.last += 1;
        let (container, targets) = match &call {
            // Until they are made, and for good if no volume has a container path, there are none.
            Call::Prepare { container, volumes, .. } => (
                Some(container.clone()),
                Targets { volumes: vec![None; volumes.len()], ..Default::default() },
            ),
            _ => (None, Targets::default()),
        };
        let text = line(&CallLine { id: self.last, call });
        if text.len() > LINE_BYTES_MAX {
            let why = format!(
                "the call to the keeper has {} bytes, more than the {LINE_BYTES_MAX} that it reads",
                text.len()
            );
            tracing::error!("{why}: it is not made");
            finish(Err(why));
            return None;
        }
        let id = CallId(self.last);
        let pending = Pending { line: Arc::new(text), container, targets, wait, finish: Some(finish) };
        self.pending.insert(id, pending);
        Some(id)
    }

    pub(super) fn is_pending(&self, id: CallId) -> bool {
        self.pending.contains_key(&id)
    }

    /// A call's targets are made: it may be sent.
    pub(super) fn made(&mut self, id: CallId, targets: Result<Targets, String>) {
        // Its deadline may have passed, or its container may be gone.
        let Some(pending) = self.pending.get_mut(&id) else { return };
        match (targets, &pending.wait) {
            (Ok(targets), Wait::Targets { answer_by, .. }) => {
                pending.wait = Wait::Answer { by: *answer_by };
                pending.targets = targets;
            }
            (Err(fault), _) => self.end(id, Err(fault)),
            (Ok(_), _) => {}
        }
    }

    /// The line of a call that may be sent.
    pub(super) fn line(&self, id: CallId) -> Option<Weak<String>> {
        let pending = self.pending.get(&id)?;
        (!matches!(pending.wait, Wait::Targets { .. })).then(|| Arc::downgrade(&pending.line))
    }

    /// All lines to send over a new connection.
    pub(super) fn lines(&self) -> Vec<Weak<String>> {
        self.pending.keys().filter_map(|id| self.line(*id)).collect()
    }

    /// Ends a call with the keeper's answer.
    pub(super) fn end(&mut self, id: CallId, answer: Result<Answer, String>) {
        let Some(pending) = self.pending.remove(&id) else { return };
        if let Some(finish) = pending.finish {
            finish(answer.map(|answer| (answer, pending.targets)));
        }
    }

    /// The keeper refuses this module: whoever waits for an answer need not.
    pub(super) fn refuse(&mut self, why: &str) {
        for id in self.which(|pending| !matches!(pending.wait, Wait::Delivery { .. })) {
            self.end(id, Err(why.to_owned()));
        }
    }

    /// The container is gone: what has not been sent for it is never sent, for it would come after
    /// its cleanup.
    pub(super) fn forget(&mut self, container: &ContainerId) {
        let unsent = |pending: &Pending| {
            matches!(pending.wait, Wait::Targets { .. }) && pending.container.as_ref() == Some(container)
        };
        for id in self.which(unsent) {
            self.end(id, Err("the container is cleaned up".into()));
        }
    }

    /// The next deadline.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending.values().filter(|p| p.finish.is_some()).map(|p| p.wait.by()).min()
    }

    /// Ends what is late; `why` says what keeps the keeper from answering.
    pub(super) fn expire(&mut self, now: Instant, why: &str) {
        for id in self.which(|pending| pending.finish.is_some() && pending.wait.by() <= now) {
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            let late = match &pending.wait {
                Wait::Delivery { .. } => {
                    if let Some(finish) = pending.finish.take() {
                        finish(Ok((Answer::Done, Targets::default())));
                    }
                    continue;
                }
                Wait::Targets { what, .. } => {
                    format!("{what} could not be made in time: a file system of this host does not answer")
                }
                Wait::Answer { .. } => format!("extvol-keeper on this host gave no answer in time: {why}"),
            };
            self.end(id, Err(late));
        }
    }

    fn which(&self, which: impl Fn(&Pending) -> bool) -> Vec<CallId> {
        self.pending.iter().filter(|(_, pending)| which(pending)).map(|(id, _)| *id).collect()
    }
}
