//! The journal's file: JSON lines, appended and synced one by one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};

use super::{Caller, Entry, Event};

/// The journal of one control plane, open for appending. The caller sees to it that there is one writer.
#[derive(Debug)]
pub struct Journal {
    file: File,
    length: u64,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal, or begins one. A last line without its end, left by a kill in the middle of a write, told
    /// nobody anything and is cut away.
    ///
    /// # Errors
    /// The file cannot be read or written, or a whole line of it is no entry ([`io::ErrorKind::InvalidData`]).
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).append(true).create(true).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let length = u64::try_from(whole).map_err(io::Error::other)?;
        if whole < text.len() {
            file.set_len(length)?;
        }
        let entries = text[..whole]
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice)
            .collect::<Result<_, _>>()?;
        Ok(Self { file, length, entries })
    }

    /// Everything written so far.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Appends one entry and syncs it. `seq` and the two clocks are filled in here.
    ///
    /// # Errors
    /// The disk is full or broken. The line is taken back as far as that is possible; the entry is not in
    /// [`Journal::entries`].
    pub fn append(
        &mut self,
        event: Event,
        volume: &str,
        host: Option<&str>,
        attachment: Option<(&str, &str)>,
        caller: &Caller,
    ) -> io::Result<()> {
        let now = clock_gettime(ClockId::MonotonicRaw);
        let entry = Entry {
            seq: self.entries.last().map_or(1, |last| last.seq + 1),
            at: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            raw_ns: nanoseconds(now.tv_sec) * 1_000_000_000 + nanoseconds(now.tv_nsec),
            event,
            volume: volume.to_owned(),
            host: host.map(str::to_owned),
            device: attachment.map(|(_, device)| device.to_owned()),
            attachment: attachment.map(|(id, _)| id.to_owned()),
            by: caller.host.clone(),
            mount_id: caller.mount_id.clone(),
        };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line).and_then(|()| self.file.sync_data()) {
            // Half a line would spoil the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += u64::try_from(line.len()).map_err(io::Error::other)?;
        self.entries.push(entry);
        Ok(())
    }
}

/// A part of a monotonic time stamp, which is never negative.
fn nanoseconds(part: i64) -> u64 {
    part.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{Caller, Event, Journal};

    #[test]
    fn a_torn_last_line_is_cut_away_and_the_sequence_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        journal
            .append(Event::Attach, "v", Some("a"), Some(("att-1", "/dev/loop9")), &Caller::default())
            .unwrap();
        drop(journal);
        let mut file = std::fs::File::options().append(true).open(&path).unwrap();
        file.write_all(br#"{"seq":2,"at":"20"#).unwrap();

        let mut journal = Journal::open(&path).unwrap();
        assert_eq!(journal.entries().len(), 1);
        journal
            .append(Event::Detach, "v", Some("a"), Some(("att-1", "/dev/loop9")), &Caller::default())
            .unwrap();
        let again = Journal::open(&path).unwrap();
        assert_eq!(again.entries(), journal.entries());
        assert_eq!(again.entries()[1].seq, 2);
        super::super::check(again.entries()).unwrap();
    }
}
