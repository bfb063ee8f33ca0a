//! The task that writes, and what it wrote.

use std::time::{SystemTime, UNIX_EPOCH};

use integration::trial::{SOON, Trial};

use crate::Result;

/// A shell command that counts in the file `log` of a directory, from where it finds it: number, host, and its own
/// clock in milliseconds just before the write. Each line is synced before the next.
pub(crate) fn writer(directory: &str) -> String {
    format!(
        "cd {directory} && n=$(tail -n 1 log 2>/dev/null | cut -d' ' -f1); n=${{n:-0}}; \
         while n=$((n+1)); do echo \"$n $(hostname) $(date +%s%3N)\" >>log && sync -d log || exit 1; sleep 0.05; done"
    )
}

/// One line.
pub(crate) struct Line<'a> {
    host: &'a str,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
}

/// The whole lines.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some(Line { host: words.next()?, at: words.next()?.parse().ok()? })
    })
}

/// Milliseconds since 1970.
pub(crate) fn clock(time: SystemTime) -> Result<u64> {
    Ok(time.duration_since(UNIX_EPOCH)?.as_millis().try_into()?)
}

/// The time of a host's first line after a time, once it is there.
pub(crate) fn first_line(
    trial: &Trial,
    host: usize,
    after: u64,
    read: impl Fn() -> integration::trial::Result<String>,
) -> Result<u64> {
    let name = trial.cluster.host(host).name();
    Ok(trial.cluster.wait_for(&format!("a line of {name}"), SOON, || {
        let text = read().map_err(|error| error.to_string())?;
        let first = lines(&text).find(|line| line.host == name && line.at >= after);
        first.map(|line| line.at).ok_or(text)
    })?)
}
