//! Foreign text on its way out: to a log, a terminal, a status message, an event.
//!
//! Tasks, plugins and whoever writes to etcd choose names and sentences. With a line feed such a text forges a line
//! of a log, with an escape character it moves an operator's cursor, and with a character that turns the direction of
//! writing it shows another text than it is. So whatever leaves these programs goes through here, once, at the last
//! place before it leaves.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io;

/// `text` as one line: what is no letter, digit, sign or space is shown as Rust writes it in a literal (`\n`,
/// `\u{202e}`). A backslash stays as it is, so that doing this twice changes nothing more.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unseen) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_unseen(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// JSON, as `serde_json` writes it, with all that [`line()`] escapes written as JSON does: the same value, and nothing
/// in it that a terminal obeys. Line feeds between values stay.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    // Below U+0020 only white space between values is left by then.
    let hidden = |c: char| c >= ' ' && is_unseen(c);
    if !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// At most `max` characters of a line, and how many there are more.
#[must_use]
pub fn cut(text: &str, max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max) {
        None => Cow::Borrowed(text),
        Some((end, _)) => {
            let more = text[end..].chars().count();
            Cow::Owned(format!("{}... ({more} characters more)", &text[..end]))
        }
    }
}

/// Where each write is one event of a log, with a line feed at its end, as `tracing` gives it: what stands in it cannot
/// make another line of it.
#[derive(Debug)]
pub struct LineWriter<W>(pub W);

impl<W: io::Write> io::Write for LineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let mut shown = line(text.strip_suffix('\n').unwrap_or(&text)).into_owned();
        shown.push('\n');
        // In one piece: other processes write to the same log.
        self.0.write_all(shown.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A volume's options for `Debug`: they may hold passwords, so that their names alone are shown, anywhere.
#[must_use]
pub fn options(options: Option<&BTreeMap<String, String>>) -> impl fmt::Debug {
    options.map(|options| options.keys().collect::<Vec<_>>())
}

/// Controls (C0, DEL, C1), the separators of lines and paragraphs, and what is invisible or turns the direction of
/// writing: Unicode's categories Cc, Zl, Zp and Cf, and the blocks that have nothing else.
fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{1f}'
        | '\u{7f}'..='\u{9f}'
        | '\u{ad}'
        | '\u{600}'..='\u{605}'
        | '\u{61c}'
        | '\u{6dd}'
        | '\u{70f}'
        | '\u{890}'..='\u{891}'
        | '\u{8e2}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{110bd}'
        | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_breaks_a_line_or_turns_the_text_is_escaped_and_nothing_else() {
        for plain in ["", "ebs/vol-1 (größe 5 GB)", "数据", "C:\\n", "emoji 🎉", "a\u{301}"] {
            assert!(matches!(line(plain), Cow::Borrowed(shown) if shown == plain), "{plain}");
        }
        let table = [
            ("a\nE1130 forged", "a\\nE1130 forged"),
            ("x\r\ny", "x\\r\\ny"),
            ("\u{1b}[2Jz", "\\u{1b}[2Jz"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{feff}\u{200b}\u{2028}\u{2029}\u{2066}", "\\u{feff}\\u{200b}\\u{2028}\\u{2029}\\u{2066}"),
            ("\u{0}\u{e0041}", "\\u{0}\\u{e0041}"),
        ];
        for (text, shown) in table {
            assert_eq!(line(text), shown);
            assert_eq!(line(&line(text)), shown);
        }
    }

    #[test]
    fn json_keeps_its_value_and_obeys_no_terminal() {
        let value = serde_json::json!({ "a\u{202e}": "x\u{1b}\u{9b}\u{7f}\u{e0041}\n", "b": [1, "ü"] });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let shown = json(&text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        assert!(shown.lines().count() > 3 && shown.lines().all(|part| line(part) == part), "{shown}");
        assert!(shown.contains("\\udb40\\udc41") && shown.contains('ü'), "{shown}");
    }

    #[test]
    fn a_text_is_cut_between_characters_and_says_how_much_is_missing() {
        assert_eq!(cut("größe", 5), "größe");
        assert_eq!(cut("größe", 3), "grö... (2 characters more)");
    }
}
