//! What a plugin's answers mean.

use reqwest::StatusCode;
use serde_json::{Value, json};

/// Of a plugin's words, as much as goes into an error's text.
const WORDS_BYTES_MAX: usize = 1 << 10;

/// A field of an answer. Plugins are written in Go for a client in Go, which reads keys without case.
pub(super) fn field<'a>(answer: &'a Value, name: &str) -> Option<&'a Value> {
    let object = answer.as_object()?;
    object
        .get(name)
        .or_else(|| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

/// Whether an error's text says that there is no such volume, and not that something else went wrong.
pub(super) fn says_missing(text: &str) -> bool {
    let text = text.to_lowercase();
    let words = [
        "not found",
        "no such volume",
        "no such file",
        "not exist",
        "doesn't exist",
        "unknown volume",
        "could not find",
        "couldn't find",
        "cannot find",
        "can't find",
        "unable to find",
        "no volume",
    ];
    // A plugin without such a call says so in the words of its web server.
    !text.contains("page not found") && words.iter().any(|word| text.contains(word))
}

/// What a plugin says that is no good answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// No, in its words: it is done with the call.
    No(String),
    /// Nothing that means an end.
    Nothing(String),
}

/// What a whole answer means. `prompt`: it came so soon that an error is the end of the call.
pub(crate) fn understood(answer: &[u8], status: StatusCode, prompt: bool) -> Result<Value, Said> {
    let parsed: Option<Value> = serde_json::from_slice(answer).ok();
    let said = ["Err", "Error"].iter().find_map(|key| field(parsed.as_ref()?, key)?.as_str());
    let text = match said {
        Some(text) if !text.is_empty() => words(text.as_bytes()),
        _ if !status.is_success() => {
            format!("status {}, {:?}", status.as_u16(), words(answer.trim_ascii()))
        }
        // 204, or nothing at all: a good answer that says nothing.
        _ if answer.trim_ascii().is_empty() => return Ok(json!({})),
        _ => {
            return match parsed {
                Some(parsed @ Value::Object(_)) => Ok(parsed),
                _ => Err(Said::Nothing(format!("{:?} is no JSON object", words(answer)))),
            };
        }
    };
    // A server that gave up waiting, and a proxy that never heard, do not speak for the work itself. RexRay's server ends a
    // task in time with an error of no words, behind which it goes on; its Docker half puts its own before them.
    let no_words = said.is_some_and(|said| said.is_empty() || said.trim_end().ends_with(": failed:"));
    let gave_up = matches!(status.as_u16(), 408 | 502 | 503 | 504) || no_words;
    match gave_up || !prompt {
        true => Err(Said::Nothing(format!("it may go on behind the error {text}"))),
        false => Err(Said::No(text)),
    }
}

/// A plugin's words, cut where they are too many for an error's text.
pub(super) fn words(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    text.truncate(text.floor_char_boundary(WORDS_BYTES_MAX));
    text
}
