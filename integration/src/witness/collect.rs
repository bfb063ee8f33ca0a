//! Collects the journals of a cluster.
//!
//! ```text
//! <cluster>/logs/witness/
//!   leases.jsonl       the recorder's
//!   writers/*.jsonl    one for each start of a writer
//! ```
//!
//! They are among the logs, so that they are kept when a test fails.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shared::keys::Keys;
use shared::store::Revision;

use super::attempt::WriterJournal;
use super::{Journals, LastReading, Moment, Verdict, check, history, record};
use crate::cluster::{Cluster, ClusterError};
use crate::storage::journal::{Entry, Event};

/// How long the recorder may be behind.
const BEHIND: Duration = Duration::from_secs(30);

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The cluster does not answer.
    #[error("the journals could not be collected")]
    Cluster(#[from] ClusterError),
    /// A journal cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line of a journal is none.
    #[error("{} holds what is no line of its kind: {why}", path.display())]
    Line {
        /// Which.
        path: PathBuf,
        /// The line, and why.
        why: String,
    },
}

/// Where a cluster's journals are.
#[must_use]
pub fn directory(cluster: &Cluster) -> PathBuf {
    cluster.logs().join("witness")
}

/// Where its writers' journals are.
#[must_use]
pub fn writers_directory(cluster: &Cluster) -> PathBuf {
    directory(cluster).join("writers")
}

/// Collects and judges. Volumes that nobody has attached are read, too.
///
/// # Errors
/// When a journal is missing or broken, or etcd does not answer.
pub fn verdict(cluster: &Cluster, storage: Vec<Entry>) -> Result<Verdict, CollectError> {
    let until = Moment::now();
    let leases = leases(cluster, until)?;
    let writers = writers(&writers_directory(cluster))?;
    let (last, unread) = last(&volumes(cluster), &storage, &writers);
    let journals = Journals { storage, writers, leases, last, until };
    let mut verdict = check(&journals, &Keys::default());
    verdict.incomplete.extend(unread);
    Ok(verdict)
}

/// A file of a volume at rest, as the next mount would show it.
///
/// # Errors
/// When the volume has no file system, or no such file.
pub fn volume_file(cluster: &Cluster, volume: &str, file: &str) -> io::Result<Vec<u8>> {
    image_file(&volumes(cluster).join(format!("{volume}.img")), file)
}

fn volumes(cluster: &Cluster) -> PathBuf {
    cluster.directory().join("storage/volumes")
}

/// The recorder's lines, once it has seen all that etcd has.
fn leases(cluster: &Cluster, until: Moment) -> Result<Vec<history::Line>, CollectError> {
    let path = directory(cluster).join("leases.jsonl");
    let keys = Keys::default();
    let mut there = Revision::ABSENT;
    for prefix in [keys.leases(), keys.sessions()] {
        let text = cluster.etcdctl(&["get", "--prefix", "--keys-only", "--write-out=json", &prefix])?;
        let answer: serde_json::Value = serde_json::from_str(&text).map_err(|error| CollectError::Line {
            path: "etcdctl's answer".into(),
            why: error.to_string(),
        })?;
        let entries = answer["kvs"].as_array().into_iter().flatten();
        let last = entries.filter_map(|entry| entry["mod_revision"].as_i64()).max();
        there = last.map(Revision).max(Some(there)).unwrap_or(there);
    }
    let mut lines = Vec::new();
    cluster.wait_for("the recorder of leases", BEHIND, || {
        lines = parse(&path).map_err(|error| crate::cluster::session::with_causes(&error))?;
        let seen = |line: &history::Line| match line {
            history::Line::Written { revision, .. } => *revision >= there,
            _ => false,
        };
        let read = |line: &history::Line| matches!(line, history::Line::Read { sent, .. } if *sent >= until);
        if lines.iter().any(read) && (there == Revision::ABSENT || lines.iter().any(seen)) {
            return Ok(());
        }
        Err(format!("it has not yet seen revision {there}"))
    })?;
    Ok(lines)
}

fn parse(path: &Path) -> Result<Vec<history::Line>, CollectError> {
    let text = read(path)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let line = |line: &str| {
        let why = |error: serde_json::Error| format!("{line}: {error}");
        serde_json::from_str(line)
            .map_err(|error| CollectError::Line { path: path.to_owned(), why: why(error) })
    };
    whole.lines().map(line).collect()
}

fn read(path: &Path) -> Result<String, CollectError> {
    fs::read_to_string(path).map_err(|source| CollectError::File { path: path.to_owned(), source })
}

fn writers(directory: &Path) -> Result<Vec<WriterJournal>, CollectError> {
    // Nobody wrote: nobody made it.
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let mut journals = Vec::new();
    for path in paths {
        let journal = WriterJournal::parse(&read(&path)?);
        journals.extend(journal.map_err(|why| CollectError::Line { path, why })?);
    }
    Ok(journals)
}

/// The files of volumes at rest; and why some could not be read.
fn last(images: &Path, storage: &[Entry], writers: &[WriterJournal]) -> (Vec<LastReading>, Vec<String>) {
    let attached = attached(storage);
    let files: BTreeSet<_> = writers.iter().map(|writer| (&writer.volume, &writer.file)).collect();
    let (mut readings, mut unread) = (Vec::new(), Vec::new());
    for (volume, file) in files.into_iter().filter(|(volume, _)| !attached.contains(volume.as_str())) {
        let at = Moment::now();
        match image_file(&images.join(format!("{volume}.img")), file) {
            Ok(bytes) => {
                let (reading, _) = record::read(&bytes);
                readings.push(LastReading { volume: volume.clone(), file: file.clone(), at, reading });
            }
            Err(error) => {
                unread.push(format!("{file} on volume {volume} could not be read at the end: {error}"))
            }
        }
    }
    (readings, unread)
}

fn attached(storage: &[Entry]) -> BTreeSet<&str> {
    let mut attached = BTreeSet::new();
    for entry in storage {
        let key = (entry.volume.as_str(), entry.attachment.as_deref());
        match entry.event {
            Event::Attach | Event::MultiAttach => _ = attached.insert(key),
            Event::Detach | Event::ForceDetach | Event::MultiDetach => _ = attached.remove(&key),
            Event::Refused => {}
        }
    }
    attached.into_iter().map(|(volume, _)| volume).collect()
}

/// A file below `data` of an ext4 image, as the next mount would show it: on a copy, since that replays the journal.
fn image_file(image: &Path, file: &str) -> io::Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("copy.img");
    run(Command::new("cp").args(["--sparse=always"]).arg(image).arg(&copy), &[0])?;
    // 1: it mended something, such as by replaying the journal.
    run(Command::new("/sbin/e2fsck").args(["-p", "-E", "journal_only"]).arg(&copy), &[0, 1])?;
    let out = directory.path().join("file");
    let request = format!("dump /data/{file} {}", out.display());
    // It succeeds without the file, too. Without the bitmaps: of a volume that is written to meanwhile a copy may have an old
    // checksum of one.
    let said = run(Command::new("/sbin/debugfs").args(["-c", "-R", &request]).arg(&copy), &[0])?;
    fs::read(out).map_err(|error| io::Error::new(error.kind(), format!("{error}; debugfs: {said}")))
}

/// What it said on its standard error.
fn run(command: &mut Command, good: &[i32]) -> io::Result<String> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(said);
    }
    Err(io::Error::other(format!("{command:?}: {}: {said}", output.status)))
}
