//! The agent's own state, over HTTP, as anybody may read it who may read anything of an agent's.

use reqwest::redirect::Policy;

/// The state of an agent with thousands of tasks has some megabytes.
const STATE_BYTES_MAX: usize = 256 << 20;

/// Why the state of an agent that has just started is not seen.
pub(crate) const RECOVERING: &str = "it is still recovering";

/// Reads the state of the agent at `ip:port`. How long that may take is the caller's business.
///
/// # Errors
/// A sentence without a subject.
pub(crate) async fn read(agent: &str) -> Result<Vec<u8>, String> {
    answer(client()?.get(format!("http://{agent}/slave(1)/state"))).await
}

/// Reads the tasks of the agent at `ip:port`. Those that wait for their executor stand in the state by their ids and resources
/// alone, without labels and ContainerInfo.
///
/// # Errors
/// As [`read`].
pub(crate) async fn tasks(agent: &str) -> Result<Vec<u8>, String> {
    let request = client()?.post(format!("http://{agent}/slave(1)/api/v1"));
    let request = request.header("Content-Type", "application/json").header("Accept", "application/json");
    answer(request.body(r#"{"type":"GET_TASKS"}"#)).await
}

fn client() -> Result<reqwest::Client, String> {
    let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).build();
    client.map_err(|error| chain(&error))
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Vec<u8>, String> {
    let mut response = request.send().await.map_err(|error| chain(&error))?;
    match response.status().as_u16() {
        200 => {}
        // No task is handed to an executor before that.
        503 => return Err(RECOVERING.into()),
        401 | 403 => return Err("it wants authentication".into()),
        status => return Err(format!("it answers with status {status}")),
    }
    let mut state = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if state.len() + chunk.len() > STATE_BYTES_MAX {
            return Err(format!("it has more than {STATE_BYTES_MAX} bytes"));
        }
        state.extend_from_slice(&chunk);
    }
    Ok(state)
}

/// Texts of frameworks may hold any bytes, and their numbers may be none: Mesos writes both as they came, and one of them is not to hide
/// the rest. Takes its time, as all that is done with a state: not for a thread that others wait for.
pub(crate) fn text(state: Vec<u8>) -> String {
    let text =
        String::from_utf8(state).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned());
    without_no_numbers(text)
}

/// What stands for a number that is none, as C++ prints it. JSON has no word for it.
const NO_NUMBERS: [&str; 4] = ["nan", "inf", "NaN", "Infinity"];

/// With `null` in place of each, outside strings. A state may have tens of megabytes: what stands between is copied as it is.
fn without_no_numbers(text: String) -> String {
    let bytes = text.as_bytes();
    let (mut mended, mut copied, mut at) = (String::new(), 0, 0);
    while at < bytes.len() {
        let word = match bytes[at] {
            b'"' => {
                at = after_string(bytes, at + 1);
                continue;
            }
            b'n' | b'N' | b'i' | b'I' => {
                NO_NUMBERS.iter().find(|word| bytes[at..].starts_with(word.as_bytes()))
            }
            _ => None,
        };
        let Some(word) = word else {
            at += 1;
            continue;
        };
        mended.push_str(text[copied..at].trim_end_matches('-'));
        mended.push_str("null");
        at += word.len();
        copied = at;
    }
    if copied == 0 {
        return text;
    }
    mended.push_str(&text[copied..]);
    mended
}

/// The place behind a string's end; `at` is in it.
fn after_string(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// An error with its causes, which reqwest leaves out.
fn chain(error: &reqwest::Error) -> String {
    crate::keeper::sentence(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_hides_nothing_and_texts_stay() {
        let state = r#"{"a": nan, "b": [-inf, -nan, inf,1.5,-2], "c": "nan \" inf \\", "nan": NaN, "d": -Infinity, "e": null}"#;
        let read: serde_json::Value = serde_json::from_str(&text(state.as_bytes().to_vec())).unwrap();
        assert_eq!(
            read,
            serde_json::json!({
                "a": null, "b": [null, null, null, 1.5, -2], "c": "nan \" inf \\", "nan": null, "d": null, "e": null
            })
        );
        let bytes = [b"{\"a\": nan, \"b\": \"" as &[u8], &[0xff], b"\"}"].concat();
        assert!(serde_json::from_str::<serde_json::Value>(&text(bytes)).is_ok());
        assert_eq!(text(b"{}".to_vec()), "{}");
    }
}
