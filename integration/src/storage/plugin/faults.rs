//! Faults that a test switches on, in a file that is read again at each request or by `POST /faults` on the plugin's
//! own socket. The whole set is replaced each time; of file and request the latest change counts.
//!
//! ```json
//! {"forget_counts": true,
//!  "methods": {"Mount":   {"delay_before_ms": 500, "answer": "never"},
//!              "Unmount": {"busy": true, "times": 3}}}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// RexRay's server gives a task so long; then it answers, and the task goes on.
const TASK_TIMEOUT: Duration = Duration::from_secs(60);

/// The methods of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the Docker volume plugin protocol")]
pub enum Method {
    Activate,
    Create,
    Remove,
    Mount,
    Unmount,
    Path,
    Get,
    List,
    Capabilities,
}

/// All faults of one daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Once, when the set is taken over: all use counts are lost, as by a restart.
    pub forget_counts: bool,
    /// After how long a request is answered with an empty error while its work goes on, in place of RexRay's 60 s.
    pub task_timeout_ms: Option<u64>,
    /// What goes wrong with each method.
    pub methods: BTreeMap<Method, Fault>,
}

/// What goes wrong with one method. Without any field: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fault {
    /// Only the next N requests; without, all.
    pub times: Option<u32>,
    /// Wait before the work.
    pub delay_before_ms: u64,
    /// Unmount only: wait between the umount and the detach, which then may hit a new owner.
    pub delay_midway_ms: u64,
    /// Unmount only: the daemon takes the volume for its host's own without asking the storage, as one does whose knowledge is
    /// old; so that its detach may hit another owner.
    pub stale: bool,
    /// Mount only: the storage attaches, and the device never shows, as an EBS volume that stays `attaching`. The work never
    /// ends; until a Mount goes well the plugin has nothing to unmount, though the volume is attached.
    pub stuck: bool,
    /// Wait after the work, before the answer.
    pub delay_after_ms: u64,
    /// Do not do the work, answer this.
    pub fail: Option<Failure>,
    /// Do not do the work, answer that the device is busy.
    pub busy: bool,
    /// How the answer is sent once the work is done.
    pub answer: Answer,
}

/// An answer in place of the work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// HTTP status; 200 with an `Err` is a failure too.
    #[serde(default = "internal_error")]
    pub status: u16,
    /// The text of `Err`.
    pub err: String,
}

fn internal_error() -> u16 {
    500
}

/// How an answer is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// As it is.
    #[default]
    Normal,
    /// Status 200 and a body that is no JSON.
    Garbage,
    /// The head and half of the body, then the connection closes.
    Half,
    /// Not at all; the connection stays open.
    Never,
}

impl Fault {
    pub(super) fn before(&self) -> Duration {
        Duration::from_millis(self.delay_before_ms)
    }

    pub(super) fn midway(&self) -> Duration {
        Duration::from_millis(self.delay_midway_ms)
    }

    pub(super) fn after(&self) -> Duration {
        Duration::from_millis(self.delay_after_ms)
    }
}

/// The faults in force, and where they come from.
#[derive(Debug)]
pub(super) struct Switchboard {
    file: Option<PathBuf>,
    seen: Option<Vec<u8>>,
    faults: Faults,
}

impl Switchboard {
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self { file, seen: None, faults: Faults::default() }
    }

    /// Replaces all faults.
    pub(super) fn set(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// For how long a request waits for its work.
    #[must_use]
    pub(super) fn task_timeout(&self) -> Duration {
        self.faults.task_timeout_ms.map_or(TASK_TIMEOUT, Duration::from_millis)
    }

    /// The fault that the request at hand meets, and whether the use counts are to be forgotten first.
    #[must_use]
    pub(super) fn next(&mut self, method: Method) -> (Fault, bool) {
        if let Some(file) = self.file.clone() {
            self.read(&file);
        }
        let forget = std::mem::take(&mut self.faults.forget_counts);
        let Some(fault) = self.faults.methods.get_mut(&method) else {
            return (Fault::default(), forget);
        };
        match &mut fault.times {
            Some(0) => return (Fault::default(), forget),
            Some(times) => *times -= 1,
            None => {}
        }
        (fault.clone(), forget)
    }

    fn read(&mut self, file: &Path) {
        let text = std::fs::read(file).ok();
        if text == self.seen {
            return;
        }
        match text.as_deref().map(serde_json::from_slice).transpose() {
            Ok(faults) => self.faults = faults.unwrap_or_default(),
            // Perhaps caught in the middle of being written: the next request reads it again.
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "faults not understood");
                return;
            }
        }
        self.seen = text;
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Faults, Method, Switchboard};

    fn faults(text: &str) -> Faults {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_fault_with_a_count_ends_after_that_many_requests_of_its_method() {
        let mut board = Switchboard::new(None);
        board.set(faults(r#"{"methods": {"Unmount": {"busy": true, "times": 2}}}"#));
        let busy: Vec<bool> = [Method::Unmount, Method::Mount, Method::Unmount, Method::Unmount]
            .into_iter()
            .map(|method| board.next(method).0.busy)
            .collect();
        assert_eq!(busy, [true, false, true, false]);
    }

    #[test]
    fn counts_are_forgotten_once() {
        let mut board = Switchboard::new(None);
        board.set(faults(r#"{"forget_counts": true}"#));
        assert!(board.next(Method::Get).1);
        assert!(!board.next(Method::Get).1);
    }

    #[test]
    fn a_changed_file_counts_at_the_next_request_and_half_a_file_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("faults.json");
        let mut board = Switchboard::new(Some(file.clone()));
        assert_eq!(board.next(Method::Mount).0, Fault::default());
        std::fs::write(&file, r#"{"methods": {"Mount": {"delay_before_ms": 7}}}"#).unwrap();
        assert_eq!(board.next(Method::Mount).0.delay_before_ms, 7);
        std::fs::write(&file, r#"{"methods": {"Mount": {"delay"#).unwrap();
        assert_eq!(board.next(Method::Mount).0.delay_before_ms, 7);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(board.next(Method::Mount).0, Fault::default());
    }

    #[test]
    fn a_misspelt_fault_is_refused() {
        for text in
            [r#"{"methods": {"mount": {}}}"#, r#"{"methods": {"Mount": {"delay": 1}}}"#, r#"{"Mount": {}}"#]
        {
            assert!(serde_json::from_str::<Faults>(text).is_err(), "{text}");
        }
    }
}
