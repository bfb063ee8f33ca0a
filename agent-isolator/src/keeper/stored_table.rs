//! The stored table as the deadman reads it, and who makes the host safe: what the worker wrote (`checkpoint.rs`), whoever's
//! it is.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use serde::Deserialize;
use shared::protocol::holder::{Table, TableChange};

/// Its name in the run directory.
pub const TABLE: &str = "table.json";

/// What is stored.
#[derive(Debug)]
pub enum Stored {
    /// A table.
    Table(Box<Table>),
    /// None: nothing was ever held, or somebody took it away.
    Missing,
    /// One that cannot be read, and why.
    Broken(String),
}

#[derive(Deserialize)]
struct OnlyTable {
    table: Table,
}

/// How often, and after which pause, a table is read again that could not be for want of something: within the time of a fence.
const AGAIN: (u32, Duration) = (5, Duration::from_millis(10));

/// Whether a file could not be opened or read for want of descriptors or memory: that says nothing of the file.
#[must_use]
pub fn is_want(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let want = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::AGAIN];
    Errno::from_io_error(error).is_some_and(|errno| want.contains(&errno))
}

/// Reads the table at `path`.
#[must_use]
pub fn read_table(path: &Path) -> Stored {
    let mut read = fs::read(path);
    for _ in 0..AGAIN.0 {
        if !read.as_ref().is_err_and(is_want) {
            break;
        }
        std::thread::sleep(AGAIN.1);
        read = fs::read(path);
    }
    match read {
        Ok(text) => {
            let (whole, changes) = lines(&text);
            let table = serde_json::from_slice::<OnlyTable>(whole);
            match table.and_then(|OnlyTable { table }| replayed(table, changes)) {
                Ok(table) => Stored::Table(Box::new(table)),
                Err(error) => Stored::Broken(format!("{}: {error}", path.display())),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::Missing,
        Err(error) => Stored::Broken(format!("{}: {error}", path.display())),
    }
}

/// The whole table that is stored, and the lines of what has changed since. A last one that does not end was being written when its
/// writer ended: nothing was done that it tells.
pub(super) fn lines(text: &[u8]) -> (&[u8], impl Iterator<Item = &[u8]>) {
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let ended = rest.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let changes = rest[..ended].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (whole, changes)
}

/// A table with what has changed since.
///
/// # Errors
/// When a line is none.
pub(super) fn replayed<'a>(
    table: Table,
    changes: impl Iterator<Item = &'a [u8]>,
) -> serde_json::Result<Table> {
    let changes = changes.map(serde_json::from_slice::<TableChange>).collect::<Result<Vec<_>, _>>()?;
    Ok(table.after(changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_and_what_is_none_is_told_apart_from_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(TABLE);
        assert!(matches!(read_table(&path), Stored::Missing));
        fs::write(
            &path,
            serde_json::to_vec(&serde_json::json!({ "version": 2, "table": Table::default() })).unwrap(),
        )
        .unwrap();
        assert!(matches!(read_table(&path), Stored::Table(table) if *table == Table::default()));
        for broken in ["", "{", "{\"table\":7}"] {
            fs::write(&path, broken).unwrap();
            assert!(matches!(read_table(&path), Stored::Broken(why) if why.contains(TABLE)), "{broken}");
        }
    }
}
