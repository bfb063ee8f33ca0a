//! A task writes, and something dies under it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use integration::scheduler::TaskState;
use integration::timeline::Timeline;
use integration::trial::{Result, SOON, Trial, TrialError, app_with, check_counting};
use shared::event::{EventKind, EventRecord};

use crate::{NAME, VOLUME, show_lease};

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The agent's process is killed, and stays away.
    Agent,
    /// The host loses its power.
    Host,
    /// The host's cable is pulled out, and put in again.
    Partition,
    /// The agent's process is killed, and started again at once.
    Restart,
}

impl Fault {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "agent" => Some(Self::Agent),
            "host" => Some(Self::Host),
            "partition" => Some(Self::Partition),
            "restart" => Some(Self::Restart),
            _ => None,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Agent => "The agent is killed under a writing task; its container runs on",
            Self::Host => "The host of a writing task loses its power",
            Self::Partition => "The host of a writing task is cut off from everybody",
            Self::Restart => "The agent of a writing task is killed, and started again",
        }
    }
}

/// A record of the test writer (`integration::witness::record`), and when it was tried, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line<'a> {
    host: &'a str,
    at: u64,
}

/// The number of lines, and what became of the task, for the verdict.
pub(crate) fn play(time: &Timeline, trial: &Trial, fault: Fault) -> Result<String> {
    time.part(fault.title());
    trial.run(app_with("writer", "", NAME, &trial.writer(NAME)?)?)?;
    trial
        .wait_lease(VOLUME, "is attached", |lease| lease.is_some_and(|lease| lease.state() == "attached"))?;
    let from = holder(trial)?.ok_or_else(|| TrialError::Unexpected("nobody has the volume".into()))?;
    let name = trial.cluster.host(from).name().to_owned();
    // What other tasks have written before is not of this fault, nor is the pause of that move.
    let before = trial.wait_written(from, NAME, 0)?.len();
    let written = trial.wait_written(from, NAME, before + 2_000)?.lines().count();
    time.line(format_args!("task `writer` runs on {name}, and writes a record fifty times a second"));
    show_lease(time, trial)?;
    let (began, since) = (Instant::now(), trial.last_event()?);
    let host = trial.cluster.host(from);
    match fault {
        Fault::Agent | Fault::Restart => {
            host.kill_agent()?;
            time.line(format_args!("kill -9 of the agent of {name}"));
        }
        Fault::Host => {
            host.kill()?;
            time.line(format_args!(
                "{name} has no power any more: its init was killed, with all that ran on it"
            ));
        }
        Fault::Partition => {
            host.set_link(false)?;
            time.line(format_args!("the cable of {name} is out"));
        }
    }
    let (text, on) = if fault == Fault::Restart {
        (stays(time, trial, from)?, from)
    } else {
        (follows(time, trial, from, began)?, 1 - from)
    };
    tell_events(time, trial, &since)?;
    let gap = tell_gap(time, &text, written)?;
    if fault == Fault::Partition {
        old_side_is_clean(time, trial, from)?;
    }
    trial.stop("writer")?;
    trial.wait_free(VOLUME)?;
    time.line(format_args!(
        "task `writer` was ended on {}, and the lease released: there is no record of it any more",
        trial.cluster.host(on).name()
    ));
    show_lease(time, trial)?;
    let lines = text.lines().count();
    Ok(format!(
        "{lines} lines on the volume, none missing or doubled; longest pause across the fault {:.1} s",
        gap.as_secs_f64()
    ))
}

/// The agent was killed and comes back: the task does not notice.
fn stays(time: &Timeline, trial: &Trial, from: usize) -> Result<String> {
    let seen = trial.scheduler.history("writer").len();
    let before = trial.wait_written(from, NAME, 0)?.len();
    trial.cluster.host(from).start_agent()?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    time.line("the agent has started again, and has registered with its old id");
    let text = trial.wait_written(from, NAME, before + 2_000)?;
    let history = trial.scheduler.history("writer");
    if let Some(event) = history.iter().skip(seen).find(|event| event.state != TaskState::Running) {
        return Err(TrialError::Unexpected(format!("the task did notice: {event:?}")));
    }
    time.line("the task has gone on all the while: no status update, the same container");
    check_counting(&text)?;
    Ok(text)
}

/// The task goes on elsewhere; what is on the volume then.
fn follows(time: &Timeline, trial: &Trial, from: usize, began: Instant) -> Result<String> {
    let to = 1 - from;
    let name = trial.cluster.host(to).name().to_owned();
    trial.cluster.wait_for("the lease of the other host", SOON, || match holder(trial) {
        Ok(Some(now)) if now == to => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let text = trial.cluster.wait_for("lines of the other host", SOON, || {
        let text = trial.read(to, NAME, "log").map_err(|error| error.to_string())?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]).to_owned();
        let there = whole.lines().filter(|line| line.contains(&name)).count() >= 20;
        if there { Ok(whole) } else { Err(whole) }
    })?;
    time.line(format_args!(
        "task `writer` writes on {name}, {:.1} s after the fault",
        began.elapsed().as_secs_f64()
    ));
    show_lease(time, trial)?;
    check_counting(&text)?;
    Ok(text)
}

/// What the masters' module has recorded of it, each with who noticed what and why.
fn tell_events(time: &Timeline, trial: &Trial, since: &str) -> Result<()> {
    time.line("what the master's module recorded in etcd meanwhile (`extvol events`):");
    let worth_telling = |event: &EventRecord| {
        !matches!(event.what, EventKind::Changed | EventKind::AgentAnswers | EventKind::AgentRecovering)
    };
    for (key, event) in
        trial.events()?.iter().filter(|(key, event)| key.as_str() > since && worth_telling(event))
    {
        let mut line = String::new();
        let what = serde_json::to_value(event.what).unwrap_or_default();
        let what = what.as_str().unwrap_or_default();
        let _infallible =
            write!(line, "{}  {what:<18} {}", event.time.get(11..23).unwrap_or(&event.time), event.text);
        time.more(line);
        let _ = key;
    }
    Ok(())
}

/// The longest pause between two lines since the fault, when so many were `written`, and between which hosts it was.
fn tell_gap(time: &Timeline, text: &str, written: usize) -> Result<Duration> {
    let (pause, before, after) = longest_pause(text, written)
        .ok_or_else(|| TrialError::Unexpected(format!("nothing was written after the fault: {text:?}")))?;
    time.line(format_args!(
        "the longest pause of the writing: {pause} ms, between a line of {} and the next of {}",
        before.host, after.host
    ));
    Ok(Duration::from_millis(pause))
}

/// In milliseconds. Of the lines that were `written` before, the last alone counts.
fn longest_pause(text: &str, written: usize) -> Option<(u64, Line<'_>, Line<'_>)> {
    let lines: Vec<_> = text.lines().skip(written.saturating_sub(1)).filter_map(line).collect();
    let pauses = lines.windows(2).map(|pair| (pair[1].at.saturating_sub(pair[0].at), pair[0], pair[1]));
    pauses.max_by_key(|(pause, ..)| *pause)
}

fn old_side_is_clean(time: &Timeline, trial: &Trial, from: usize) -> Result<()> {
    let host = trial.cluster.host(from);
    let log = host.run(&["cat", "/run/extvol/deadman.log"])?;
    let fenced = log.lines().filter(|line| line.contains("fenced")).map(|line| line.to_owned());
    time.line(format_args!("on {} meanwhile its keeper had fenced it by itself:", host.name()));
    time.more(fenced.collect::<Vec<_>>().join("\n"));
    let mounted = trial.mounted(from)?;
    if !mounted.is_empty() {
        return Err(TrialError::Unexpected(format!("still mounted on {}: {mounted:?}", host.name())));
    }
    host.set_link(true)?;
    trial.cluster.wait_agent_registered(from, SOON)?;
    time.line(format_args!(
        "the cable is in again: the agent of {} has registered, nothing is mounted there",
        host.name()
    ));
    Ok(())
}

fn line(text: &str) -> Option<Line<'_>> {
    let mut words = text.split(' ').skip(2);
    let tried: u64 = words.next()?.parse().ok()?;
    Some(Line { host: words.last()?, at: tried / 1_000_000 })
}

/// Which host has the volume.
fn holder(trial: &Trial) -> Result<Option<usize>> {
    let held = trial.held(VOLUME)?;
    let of = |name: &str| trial.cluster.hosts().iter().position(|host| host.name() == name);
    Ok(held.and_then(|held| of(held.holder.as_str())))
}

#[cfg(test)]
mod tests {
    use super::longest_pause;

    #[test]
    fn the_pause_of_an_earlier_move_is_not_that_of_the_fault() {
        let record =
            |number: usize, at: u64, host: &str| format!("{number} 0 {} 7 c {host}\n", at * 1_000_000);
        let text = [
            record(1, 0, "agent-1"),
            record(2, 9_000, "agent-2"),
            record(3, 9_020, "agent-2"),
            record(4, 11_020, "agent-1"),
            record(5, 11_040, "agent-1"),
        ]
        .concat();
        let hosts = |written| longest_pause(&text, written).map(|(pause, a, b)| (pause, a.host, b.host));
        assert_eq!(hosts(3), Some((2_000, "agent-2", "agent-1")));
        assert_eq!(hosts(0), Some((9_000, "agent-1", "agent-2")));
        assert_eq!(hosts(5), None);
    }
}
