//! What isolator and keeper say to each other: one JSON object a line, over a unix socket.
//!
//! ```text
//! isolator -> keeper   {"id":7,"call":{"prepare":{...}}}
//! keeper -> isolator   {"id":7,"answer":{"prepared":{...}}} or {"id":7,"refused":"sentence"}
//! keeper -> isolator   {"limit":{"container":"...","message":"sentence"}}
//! ```
//!
//! The first call of a connection is `hello`. Every call may be sent again over a new connection:
//! all are idempotent.

use std::collections::{BTreeMap, BTreeSet};
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use shared::quote;
use shared::volume::{ContainerId, VolumeId};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// The protocol's version, compared in `hello`: agent and keeper are upgraded one at a time.
pub const VERSION: u32 = 1;

/// The longest line, in bytes, its end included. The isolator sends no longer one; a task's options
/// are bounded where they are read, and texts and mount points from drivers where they are sent, so
/// that nothing comes near it.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// The longest text for people that the keeper sends, in bytes: drivers may answer any text, and
/// what is longer is cut. No framework shows as much.
pub const TEXT_BYTES_MAX: usize = 16 << 10;

/// A call from the isolator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallLine {
    /// Comes back with the answer; unique per agent process.
    pub id: u64,
    /// What is asked.
    pub call: Call,
}

/// What an isolator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Opens a connection.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The keeper parameters that the module was given; each must be what the keeper has.
        parameters: BTreeMap<String, String>,
    },
    /// Lease and mount these volumes for a container.
    Prepare {
        /// The container.
        container: ContainerId,
        /// The agent's address, `ip:port`.
        agent: String,
        /// The agent's id, when the sandbox path holds it.
        agent_id: Option<String>,
        /// For whom; a module before the rules about that does not say.
        #[serde(default)]
        asker: Option<Asker>,
        /// The volumes.
        volumes: Vec<VolumeCall>,
    },
    /// The container's process exists; may it go on?
    Isolate {
        /// The agent's address, `ip:port`.
        agent: String,
        /// The container.
        container: ContainerId,
        /// Its first process.
        pid: u32,
    },
    /// The container is gone.
    Cleanup {
        /// The agent's address, `ip:port`.
        agent: String,
        /// The container.
        container: ContainerId,
    },
    /// The agent has started.
    Recover {
        /// The agent's address, `ip:port`.
        agent: String,
        /// The containers that it goes on with.
        known: BTreeSet<ContainerId>,
        /// The containers that it will kill and clean up.
        orphans: BTreeSet<ContainerId>,
    },
}

/// Of whom a container is, as Mesos says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// The framework's id; none of a standalone container.
    pub framework: Option<String>,
    /// The user that the container runs as, where one is set.
    pub user: Option<String>,
    /// The role of its resources.
    #[serde(default)]
    pub role: Option<String>,
    /// The executor's id.
    #[serde(default)]
    pub executor: Option<String>,
    /// The task's id, of a command task.
    #[serde(default)]
    pub task_id: Option<String>,
    /// The task's name.
    #[serde(default)]
    pub task_name: Option<String>,
}

/// A volume in [`Call::Prepare`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeCall {
    /// As the task named it.
    pub volume: VolumeId,
    /// Options to create it with when it does not exist; `None`: it must exist.
    pub create: Option<BTreeMap<String, String>>,
    /// Whether the container may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Whether it is to be removed when nobody uses it any more.
    #[serde(default)]
    pub remove: bool,
    /// Whether it is given to the container's user when nobody has used it yet.
    #[serde(default)]
    pub own: bool,
}

impl fmt::Debug for VolumeCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let create = quote::options(self.create.as_ref());
        f.debug_struct("VolumeCall")
            .field("volume", &self.volume)
            .field("create", &create)
            .finish_non_exhaustive()
    }
}

/// A line from the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeeperLine {
    /// A call's good answer.
    Answer {
        /// The call's.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// A call's refusal.
    Refused {
        /// The call's.
        id: u64,
        /// For the user to read.
        #[serde(serialize_with = "cut")]
        refused: String,
    },
    /// A container must end.
    Limit {
        /// Which, and why.
        limit: Limit,
    },
}

/// The keeper's good answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Call::Prepare`]: the host paths, in the order asked.
    Prepared {
        /// One per volume.
        mount_points: Vec<String>,
    },
    /// To any other call.
    Done,
}

/// A container that must end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The container.
    pub container: ContainerId,
    /// For the framework to show.
    #[serde(serialize_with = "cut")]
    pub message: String,
}

/// At most [`TEXT_BYTES_MAX`] of a text, and a note of what was left out.
fn cut<S: serde::Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    if text.len() <= TEXT_BYTES_MAX {
        return serializer.serialize_str(text);
    }
    let head = &text[..text.floor_char_boundary(TEXT_BYTES_MAX - 64)];
    serializer.serialize_str(&format!("{head}... (cut; the text has {} bytes)", text.len()))
}

/// The next line, read to its end; `None` when the other side has closed the connection.
///
/// # Errors
/// When the connection broke, or the line is longer than [`LINE_BYTES_MAX`].
pub async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let limit = LINE_BYTES_MAX as u64;
    reader.take(limit).read_until(b'\n', &mut line).await?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => String::from_utf8(line).map(Some).map_err(io::Error::other),
        // Cut off in the middle, by the limit or by the end of the connection.
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `value` as one line.
///
/// # Panics
/// Never: all that is sent has a JSON form.
#[must_use]
pub fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("what is sent has a JSON form");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_are_what_the_head_of_this_file_says() {
        let call = Call::Cleanup { agent: "a:1".into(), container: ContainerId::new("c").unwrap() };
        let text = serde_json::to_string(&CallLine { id: 7, call }).unwrap();
        assert_eq!(text, r#"{"id":7,"call":{"cleanup":{"agent":"a:1","container":"c"}}}"#);
        for (text, line) in [
            (r#"{"id":7,"answer":"done"}"#, KeeperLine::Answer { id: 7, answer: Answer::Done }),
            (r#"{"id":7,"refused":"no"}"#, KeeperLine::Refused { id: 7, refused: "no".into() }),
        ] {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<KeeperLine>(text).unwrap(), line);
        }
    }

    #[test]
    fn a_volumes_options_are_sent_and_never_shown() {
        let json = r#"{"id":1,"call":{"prepare":{"container":"c","agent":"a:1","agent_id":null,"volumes":[
            {"volume":{"driver":"cifs","name":"v"},"create":{"username":"joe","password":"hunter2"}}]}}}"#;
        let call: CallLine = serde_json::from_str(json).unwrap();
        assert!(line(&call).contains("hunter2"));
        let shown = format!("{call:?} {call:#?}");
        assert!(
            !shown.contains("hunter2") && !shown.contains("joe") && shown.contains("password"),
            "{shown}"
        );
        let Call::Prepare { volumes, .. } = call.call else { panic!() };
        let [VolumeCall { volume, create, read_only, remove, .. }] = <[_; 1]>::try_from(volumes).unwrap();
        let wanted = shared::protocol::holder::Wanted {
            asked: volume.clone(),
            volume,
            create,
            read_only,
            remove,
            owner: None,
        };
        let shown = format!("{wanted:?}");
        assert!(!shown.contains("hunter2") && shown.contains("password"), "{shown}");
    }

    #[tokio::test]
    async fn a_text_of_megabytes_is_cut_and_its_line_can_be_read() {
        // Each of these characters takes six bytes in JSON.
        let refused = "é".repeat(3) + &"\u{1}".repeat(5 << 20);
        let sent = line(&KeeperLine::Refused { id: 7, refused: refused.clone() });
        assert!(sent.len() <= 6 * TEXT_BYTES_MAX + 64, "{}", sent.len());
        let read = read_line(&mut sent.as_bytes()).await.unwrap().unwrap();
        let KeeperLine::Refused { id: 7, refused: read } = serde_json::from_str(&read).unwrap() else {
            panic!("{read}");
        };
        assert!(read.len() <= TEXT_BYTES_MAX && read.ends_with("... (cut; the text has 5242886 bytes)"));
        let whole = line(&KeeperLine::Refused { id: 7, refused: "é".repeat(TEXT_BYTES_MAX / 2) });
        assert!(!whole.contains("(cut;"));
    }

    #[tokio::test]
    async fn a_line_may_have_the_longest_length_and_no_more() {
        let longest = "x".repeat(LINE_BYTES_MAX - 1) + "\n";
        assert_eq!(read_line(&mut longest.as_bytes()).await.unwrap().unwrap().len(), LINE_BYTES_MAX - 1);
        let longer = format!("x{longest}");
        assert!(read_line(&mut longer.as_bytes()).await.is_err());
    }
}
