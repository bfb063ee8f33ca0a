//! A task finds its volume mounted, under a lease in etcd; a second task that wants the same volume on another agent waits,
//! is refused, and goes on with the first one's data once that has ended.

use std::time::Instant;

use integration::scheduler::{TaskEvent, TaskState};
use integration::timeline::Timeline;
use integration::trial::{Result, SOON, Trial, TrialError, app_with, check_counting};

use crate::{NAME, VOLUME, show_lease};

/// The number of lines that are on the volume then.
pub(crate) fn play(time: &Timeline, trial: &Trial) -> Result<usize> {
    first_task(time, trial)?;
    second_task_is_refused(time, trial)?;
    let lines = volume_follows(time, trial)?;
    all_is_given_back(time, trial)?;
    Ok(lines)
}

fn first_task(time: &Timeline, trial: &Trial) -> Result<()> {
    time.part("A task names a volume");
    let first = app_with("first", "agent-1", NAME, &trial.writer(NAME)?)?;
    time.line("task `first` is sent to agent-1 with the labels");
    for (label, value) in &first.labels {
        time.more(format_args!("{label} = {value}"));
    }
    trial.run(first)?;
    time.line("task `first` is running, and writes a record to data/log fifty times a second, each synced before the next");
    wait_lines(trial, 0, 20)?;
    let path = format!("/var/lib/rexray/volumes/{NAME}/data/log");
    time.command(
        format_args!("tail -n 2 {path}   # on agent-1"),
        last_lines(&trial.read(0, NAME, "log")?, 2),
    );
    trial
        .wait_lease(VOLUME, "is attached", |lease| lease.is_some_and(|lease| lease.state() == "attached"))?;
    time.line("the lease in etcd says who has the volume:");
    show_lease(time, trial)
}

fn second_task_is_refused(time: &Timeline, trial: &Trial) -> Result<()> {
    time.part("Another task wants the same volume on another agent");
    trial.scheduler.run(app_with("second", "agent-2", NAME, &trial.writer(NAME)?)?)?;
    let ended = trial.wait_ended("second", 0)?;
    let message = ended.message.unwrap_or_default();
    if ended.state != TaskState::Failed || !message.contains("is held by agent-1") {
        return Err(TrialError::Unexpected(format!("`second` ended {} with {message:?}", ended.state)));
    }
    time.line(format_args!("task `second` on agent-2: {}", ended.state));
    time.more(message);
    time.line("its scheduler tries it again and again, with growing pauses");
    Ok(())
}

fn volume_follows(time: &Timeline, trial: &Trial) -> Result<usize> {
    time.part("The first task ends, and the volume follows the second");
    let seen = trial.scheduler.history("second").len();
    let ended = trial.stop("first")?;
    time.line(format_args!("task `first`: {}", ended.state));
    let running = trial.scheduler.wait_for("second", Instant::now() + SOON, |history| {
        history.iter().skip(seen).any(|event| event.state == TaskState::Running)
    })?;
    let refused = failures(&running);
    time.line(format_args!("task `second` is running on agent-2, after {refused} refused launches"));
    let of = |text: &str, host: &str| text.lines().filter(|line| line.ends_with(host)).count();
    let first = of(&wait_lines(trial, 1, 1)?, "agent-1");
    let text = wait_lines(trial, 1, first + 10)?;
    time.line(format_args!(
        "data/log has {} lines of agent-1, and {} of agent-2 behind them:",
        of(&text, "agent-1"),
        of(&text, "agent-2")
    ));
    let around: Vec<_> = text.lines().skip(first.saturating_sub(2)).take(4).collect();
    time.more(around.join("\n"));
    // The program counts: a line that was lost or written twice would show.
    check_counting(&text)?;
    show_lease(time, trial)?;
    Ok(text.lines().count())
}

fn all_is_given_back(time: &Timeline, trial: &Trial) -> Result<()> {
    time.part("All is given back");
    trial.stop("second")?;
    trial.wait_free(VOLUME)?;
    time.line("task `second` was ended, its volume unmounted, and the lease released: of a volume that nobody has there is no record");
    show_lease(time, trial)?;
    let attached = trial.attached()?;
    let mounted = [trial.mounted(0)?, trial.mounted(1)?].concat();
    if !(attached.is_empty() && mounted.is_empty()) {
        return Err(TrialError::Unexpected(format!("left attached {attached:?}, mounted {mounted:?}")));
    }
    time.line("the storage's own journal: never two hosts at once, and none now");
    Ok(())
}

/// Waits until `log` on the volume has a last record of this host, and so many lines; all of it.
fn wait_lines(trial: &Trial, host: usize, count: usize) -> Result<String> {
    let name = trial.cluster.host(host).name().to_owned();
    Ok(trial.cluster.wait_for("lines on the volume", SOON, || {
        let text = trial.read(host, NAME, "log").map_err(|error| error.to_string())?;
        // What the last `sync` has not covered yet may be half a line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]).to_owned();
        let there =
            whole.lines().count() >= count && whole.lines().last().is_some_and(|l| l.ends_with(&name));
        if there { Ok(whole) } else { Err(format!("{text:?}")) }
    })?)
}

fn failures(history: &[TaskEvent]) -> usize {
    history.iter().filter(|event| event.state == TaskState::Failed).count()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
