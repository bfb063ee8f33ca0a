//! RecordIO framing of Mesos's streaming HTTP responses: each record is its length in decimal, a newline, and that
//! many bytes.
//!
//! Only the decoder is here, because only Mesos sends records. It knows nothing of HTTP: the executor and the
//! scheduler feed it chunks as they arrive, cut wherever the network cut them.

use bytes::{Buf, Bytes, BytesMut};

/// No event of Mesos comes near this; a length beyond it means that the stream is not RecordIO.
pub const MAX_RECORD: usize = 64 * 1024 * 1024;

/// Digits in the longest length that is accepted, so that a stream without newlines is noticed early.
const MAX_LENGTH_DIGITS: usize = 9;

/// The stream is not RecordIO (or has lost its framing); it cannot be read further.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// What stands where a length should be is not a decimal number.
    #[error("record length {found:?} is not a decimal number")]
    BadLength {
        /// The offending bytes, as text.
        found: String,
    },
    /// The announced record is longer than any that Mesos sends.
    #[error("record of {length} bytes exceeds the limit of {MAX_RECORD} bytes")]
    TooLong {
        /// The announced length in bytes.
        length: usize,
    },
}

/// Cuts a stream of chunks into records.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// The length of the record whose body is still arriving.
    pending: Option<usize>,
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk as it came from the network.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next complete record, or `None` until more chunks arrive.
    ///
    /// # Errors
    /// The framing is broken; every later call fails too, because the position in the stream is lost.
    pub fn next_record(&mut self) -> Result<Option<Bytes>, RecordError> {
        let length = match self.pending {
            Some(length) => length,
            None => match self.take_length()? {
                Some(length) => length,
                None => return Ok(None),
            },
        };
        if self.buffer.len() < length {
            self.pending = Some(length);
            return Ok(None);
        }
        self.pending = None;
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    fn take_length(&mut self) -> Result<Option<usize>, RecordError> {
        let window = &self.buffer[..self.buffer.len().min(MAX_LENGTH_DIGITS + 1)];
        let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
            return if window.len() > MAX_LENGTH_DIGITS { Err(bad_length(window)) } else { Ok(None) };
        };
        let digits = &window[..end];
        let length = Some(digits)
            .filter(|digits| digits.iter().all(u8::is_ascii_digit))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let Some(length) = length else { return Err(bad_length(digits)) };
        if length > MAX_RECORD {
            return Err(RecordError::TooLong { length });
        }
        self.buffer.advance(end + 1);
        Ok(Some(length))
    }
}

fn bad_length(found: &[u8]) -> RecordError {
    RecordError::BadLength { found: String::from_utf8_lossy(found).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(decoder: &mut Decoder) -> Vec<String> {
        std::iter::from_fn(|| decoder.next_record().unwrap())
            .map(|record| String::from_utf8(record.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn several_records_in_one_chunk_come_out_in_order() {
        let mut decoder = Decoder::new();
        decoder.push(b"3\nabc0\n5\nhello2\nx");
        assert_eq!(records(&mut decoder), ["abc", "", "hello"]);
        decoder.push(b"y");
        assert_eq!(records(&mut decoder), ["xy"]);
    }

    #[test]
    fn a_record_cut_at_every_byte_comes_out_whole() {
        let stream = b"11\n{\"a\":\"b\\n\"}4\nlast";
        for cut in 0..stream.len() {
            let mut decoder = Decoder::new();
            decoder.push(&stream[..cut]);
            let mut seen = records(&mut decoder);
            decoder.push(&stream[cut..]);
            seen.extend(records(&mut decoder));
            assert_eq!(seen, ["{\"a\":\"b\\n\"}", "last"], "cut at {cut}");
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_buffered() {
        let mut decoder = Decoder::new();
        decoder.push(b"999999999\n");
        assert_eq!(decoder.next_record(), Err(RecordError::TooLong { length: 999_999_999 }));
        let mut decoder = Decoder::new();
        decoder.push(b"99999999999999999999");
        assert!(matches!(decoder.next_record(), Err(RecordError::BadLength { .. })));
    }

    #[test]
    fn what_is_not_a_length_is_refused() {
        for stream in [&b"<html>\n"[..], b"-3\nabc", b"\nabc", b"+3\nabc", b"no newline here"] {
            let mut decoder = Decoder::new();
            decoder.push(stream);
            assert!(matches!(decoder.next_record(), Err(RecordError::BadLength { .. })), "{stream:?}");
        }
    }
}
