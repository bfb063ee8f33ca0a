//! The log of a keeper that nobody else keeps a log for.
//!
//! It is on the run directory's file system, in memory beside the table: it must not fill that. At its size limit it
//! becomes `keeper.log.1`, in place of an older one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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

#[cfg(test)]
mod tests {
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
}
