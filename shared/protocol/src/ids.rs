//! The numbers and names of the protocol: revisions, epochs, tokens; for whom a container runs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Text, quote};

/// An etcd revision. As a key's `mod_revision`, 0 means that the key does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub i64);

impl Revision {
    /// The `mod_revision` of a key that does not exist.
    pub const ABSENT: Self = Self(0);
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A holder's life: grows by one whenever what an earlier life held is known to be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The fencing token of a lease: the etcd revision of the transaction that granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(pub Revision);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// For whom a container runs, as Mesos says: of a nested container of its executor, of a standalone one nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Task {
    /// The framework's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub framework_id: Option<Text>,
    /// The framework's name, which it chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub framework: Option<Text>,
    /// The role that its resources are of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Text>,
    /// The executor's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executor_id: Option<Text>,
    /// The task's id, of a command task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<Text>,
    /// The task's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Text>,
}

impl Task {
    /// In a few words, such as `task db.1 of marathon`; none where Mesos said nothing.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
        let what = match (&self.task_id, &self.executor_id) {
            (Some(task), _) => format!("task {task}"),
            (None, Some(executor)) => format!("executor {executor}"),
            (None, None) => "a container".to_owned(),
        };
        let of = self.framework.as_ref().or(self.framework_id.as_ref())?;
        Some(quote::line(&format!("{what} of {of}")).into_owned())
    }
}
