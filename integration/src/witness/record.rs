//! A record on the volume: one line, with the checksum of itself and of all lines before it. So a line that was lost, doubled,
//! torn, changed or put in by another writer does not fit.
//!
//! ```text
//! <number> <checksum> <tried, nanoseconds> <pid> <container> <host>
//! ```

use serde::{Deserialize, Serialize};

use super::{Moment, WriterId};

/// Where a writer goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Last {
    /// The last record's number; 0 before the first.
    pub number: u64,
    /// Its checksum.
    pub checksum: u64,
}

/// Records that one writer wrote one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Who.
    pub writer: WriterId,
    /// The first number.
    pub from: u64,
    /// The last number.
    pub to: u64,
}

/// What a file of records holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The records from 1 on.
    pub runs: Vec<Run>,
    /// Why the line after them is not the next record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Bytes of a last line without its end. It was never acknowledged.
    #[serde(default)]
    pub torn: u64,
}

impl Reading {
    /// Whether it holds record `number` of `writer`.
    #[must_use]
    pub fn holds(&self, writer: &WriterId, number: u64) -> bool {
        self.runs.iter().any(|run| run.writer == *writer && (run.from..=run.to).contains(&number))
    }
}

/// The next record's line.
#[must_use]
pub fn line(last: Last, writer: &WriterId, tried: Moment) -> (String, Last) {
    let number = last.number + 1;
    let WriterId { host, container, pid } = writer;
    let rest = format!("{} {pid} {container} {host}", tried.0);
    let checksum = checksum(last.checksum, number, &rest);
    (format!("{number} {checksum:016x} {rest}\n"), Last { number, checksum })
}

/// Reads a whole file; also where a writer would go on.
#[must_use]
pub fn read(bytes: &[u8]) -> (Reading, Last) {
    let (mut reading, mut last) = (Reading::default(), Last::default());
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    reading.torn = (bytes.len() - whole) as u64;
    for bytes in bytes[..whole].split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(bytes);
        match next(last, text.trim_end_matches('\n')) {
            Ok((writer, this)) => {
                last = this;
                match reading.runs.last_mut().filter(|run| run.writer == writer) {
                    Some(run) => run.to = this.number,
                    None => reading.runs.push(Run { writer, from: this.number, to: this.number }),
                }
            }
            Err(why) => {
                reading.fault = Some(why);
                break;
            }
        }
    }
    (reading, last)
}

fn next(last: Last, text: &str) -> Result<(WriterId, Last), String> {
    let expected = last.number + 1;
    let is_none = || format!("where record {expected} was expected there is {text:?}");
    let mut parts = text.splitn(3, ' ');
    let number: u64 = parts.next().and_then(|part| part.parse().ok()).ok_or_else(is_none)?;
    let sum = parts.next().and_then(|part| u64::from_str_radix(part, 16).ok()).ok_or_else(is_none)?;
    let rest = parts.next().ok_or_else(is_none)?;
    let mut parts = rest.splitn(4, ' ').skip(1);
    let pid = parts.next().and_then(|part| part.parse().ok()).ok_or_else(is_none)?;
    let (container, host) = (parts.next().ok_or_else(is_none)?, parts.next().ok_or_else(is_none)?);
    let writer = WriterId { host: host.to_owned(), container: container.to_owned(), pid };
    if number != expected {
        return Err(format!("record {number} of {writer} follows where {expected} was expected"));
    }
    if sum != checksum(last.checksum, number, rest) {
        return Err(format!(
            "record {number} of {writer} has the checksum {sum:016x}, which does not follow from the records before it"
        ));
    }
    Ok((writer, Last { number, checksum: sum }))
}

/// FNV-1a, from the checksum of the record before: against accidents, not against anybody's intent.
fn checksum(before: u64, number: u64, rest: &str) -> u64 {
    let bytes = before.to_le_bytes().into_iter().chain(number.to_le_bytes()).chain(rest.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(host: &str) -> WriterId {
        WriterId { host: host.into(), container: "c".into(), pid: 7 }
    }

    fn written(hosts: &[&str]) -> Vec<String> {
        let mut last = Last::default();
        let write = |(at, host): (u64, &&str)| {
            let (text, next) = line(last, &writer(host), Moment(at));
            last = next;
            text
        };
        (0..).zip(hosts).map(write).collect()
    }

    #[test]
    fn what_is_written_is_read_back_by_runs() {
        let text = written(&["a", "a", "b"]).concat();
        let (reading, last) = read(text.as_bytes());
        let run = |host, from, to| Run { writer: writer(host), from, to };
        assert_eq!(reading, Reading { runs: vec![run("a", 1, 2), run("b", 3, 3)], ..Reading::default() });
        assert_eq!(last.number, 3);
        assert!(reading.holds(&writer("a"), 2) && !reading.holds(&writer("a"), 3));
    }

    #[test]
    fn a_last_line_without_its_end_is_torn_and_no_fault() {
        let mut text = written(&["a", "a"]).concat();
        text.truncate(text.len() - 5);
        let (reading, last) = read(text.as_bytes());
        assert_eq!((reading.fault, last.number), (None, 1));
        assert!(reading.torn > 0);
    }

    #[test]
    fn a_line_that_is_missing_doubled_changed_or_another_writers_does_not_fit() {
        let lines = written(&["a", "a", "a"]);
        // Another who began at the same place, as two hosts with a copy of the volume each would.
        let others = written(&["a", "b"]);
        let zeros = "\0\0\0\n".to_owned();
        for (lines, words) in [
            (vec![&lines[0], &lines[2]], "record 3 of a (container c, process 7) follows where 2"),
            (vec![&lines[0], &lines[0]], "record 1 of a (container c, process 7) follows where 2"),
            (
                vec![&lines[0], &others[1], &lines[2]],
                "record 3 of a (container c, process 7) has the checksum",
            ),
            (vec![&lines[0], &lines[1].replace(" 7 ", " 8 ")], "process 8) has the checksum"),
            (vec![&zeros], "where record 1 was expected there is"),
        ] {
            let text: String = lines.into_iter().map(String::as_str).collect();
            let fault = read(text.as_bytes()).0.fault.unwrap_or_default();
            assert!(fault.contains(words), "{fault}");
        }
    }
}
