//! Logs: one event is one line, whatever stands in it; and the log of a keeper that nobody else keeps a log for.
//!
//! That log is on the run directory's file system, in memory beside the table: it must not fill that. At its size limit
//! it becomes `keeper.log.1`, in place of an older one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use shared::quote::LineWriter;
use tracing_subscriber::fmt::MakeWriter;

/// Small beside the memory of any host, also twice.
const BYTES_MAX: u64 = 2 << 20;

/// The log.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    bytes_max: u64,
    open: Mutex<(File, u64)>,
}

impl BoundedLog {
    /// Goes on at the end of the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, BYTES_MAX)
    }

    fn with_limit(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let open = Mutex::new(append_to(path)?);
        Ok(Self { path: path.to_owned(), bytes_max, open })
    }
}

fn append_to(path: &Path) -> io::Result<(File, u64)> {
    let file = File::options().create(true).append(true).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

/// Writes whole lines, as `tracing` gives them.
impl Write for &BoundedLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.1 >= self.bytes_max {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *open = append_to(&self.path)?;
        }
        let written = open.0.write(line)?;
        open.1 += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for BoundedLog {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// A log in which every event is one line: names and sentences of tasks, plugins and records cannot forge another, nor
/// reach a terminal that shows it ([`LineWriter`]). Around every log of these programs.
#[derive(Clone, Debug)]
pub struct OneLine<M>(pub M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = LineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self.0.make_writer())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shared::quote;

    use super::*;

    #[test]
    fn a_full_log_is_kept_once_and_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper.log");
        fs::write(&path, "before\n").unwrap();
        let log = BoundedLog::with_limit(&path, 12).unwrap();
        for line in ["first\n", "second\n", "third\n", "fourth\n"] {
            (&log).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(path.with_extension("log.1")).unwrap(), "second\nthird\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "fourth\n");
    }

    #[test]
    fn an_event_is_one_line_whatever_stands_in_its_message_and_fields() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keeper.log");
        let log = OneLine(Arc::new(BoundedLog::open(&path).unwrap()));
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log).finish();
        tracing::subscriber::with_default(subscriber, || {
            let forged = "extvol.a\nE1130 00:00:00.0 1 slave.cpp:1] forged";
            tracing::warn!("label {forged} is unknown");
            tracing::warn!(driver = "\u{202e}sbe", "the plugin said: one\r\ntwo\u{9b}2J");
            tracing::warn!(holder = %"a\u{1b}[2J\n", "gone");
        });
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines.iter().all(|line| quote::line(line) == *line), "{text}");
        assert!(
            lines[0].ends_with("label extvol.a\\nE1130 00:00:00.0 1 slave.cpp:1] forged is unknown"),
            "{text}"
        );
        assert!(lines[1].contains("one\\r\\ntwo") && lines[1].contains("202e"), "{text}");
    }
}
