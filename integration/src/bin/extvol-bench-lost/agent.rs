//! Two agents are killed at once, one under a task with a volume and one under a task without: from Mesos's own
//! "unreachable" to the first line of each one's replacement. The difference is what the volume costs.
//!
//! Each task has a pair of hosts of its own, between which it moves.

use std::time::Instant;

use integration::bench::{Goal, Report};
use integration::scheduler::{App, TaskEvent, TaskState};
use integration::trial::{SOON, Trial, app, app_with, check_counting, lease_key};
use shared::keys::Keys;
use shared::record::LeaseRecord;

use crate::changes::{Change, Changes};
use crate::writer::{clock, first_line, writer};
use crate::{NAME, Result, VOLUME, end, holder, milliseconds, tell_keepers, trial, wait_clean};

/// By how much the medians may differ.
const GOAL_MILLISECONDS: f64 = 1_000.0;

const WITH: &str = "with";
const WITHOUT: &str = "without";

/// Milliseconds from a task's loss.
#[derive(Default)]
struct Times {
    with: Vec<f64>,
    without: Vec<f64>,
    /// Of the one with a volume, what etcd had meanwhile.
    revoked: Vec<f64>,
    takeable: Vec<f64>,
    granted: Vec<f64>,
}

pub(crate) fn measure(samples: usize) -> Result<Vec<Option<Report>>> {
    let trial = trial(4)?;
    let changes = Changes::start(&trial.cluster)?;
    trial.run(between(app(WITHOUT, "", &writer("."), &[])?, &trial, 1))?;
    trial.run(between(app_with(WITH, "", NAME, &writer("data"))?, &trial, 0))?;
    let mut times = Times::default();
    for _ in 0..samples {
        sample(&trial, &changes, &mut times).inspect_err(|_| tell_keepers(&trial))?;
    }
    let last = runs_on(&trial, WITH)?;
    check_counting(&trial.wait_written(last, NAME, 0)?)?;
    wait_clean(&trial, other(last))?;
    trial.stop(WITH)?;
    trial.stop(WITHOUT)?;
    drop(changes);
    end(trial)?;
    let reports = [
        Report::new("lost-agent-replaced-without-volume", "ms", times.without, None),
        Report::new("lost-agent-replaced-with-volume", "ms", times.with, None),
    ];
    let median = |n: usize| reports[n].as_ref().map(|report| report.p50);
    let difference = median(1).zip(median(0)).map(|(with, without)| with - without);
    let difference = difference.and_then(|difference| {
        let goal = Some(Goal::Worst(GOAL_MILLISECONDS));
        Report::new("lost-agent-difference-of-medians", "ms", vec![difference], goal)
    });
    let parts = [
        Report::new("lost-agent-revoked", "ms", times.revoked, None),
        Report::new("lost-agent-takeable", "ms", times.takeable, None),
        Report::new("lost-agent-granted", "ms", times.granted, None),
    ];
    Ok(reports.into_iter().chain(parts).chain([difference]).collect())
}

/// The other host of a pair: of 0 and 2, of 1 and 3.
fn other(host: usize) -> usize {
    (host + 2) % 4
}

/// The app, on one of the pair of hosts that this one belongs to.
fn between(mut app: App, trial: &Trial, host: usize) -> App {
    app.constraints.hostnames = [host, other(host)].map(|n| trial.cluster.host(n).name().to_owned()).into();
    app
}

/// The host whose agent runs the app's task.
fn runs_on(trial: &Trial, app: &str) -> Result<usize> {
    let running = trial.scheduler.wait_until_running(app, Instant::now() + SOON)?;
    let host = trial.cluster.hosts().iter().position(|host| running.hostname.as_deref() == Some(host.name()));
    Ok(host.ok_or("a task on no host")?)
}

fn sample(trial: &Trial, changes: &Changes, times: &mut Times) -> Result<()> {
    let (from, beside) = (runs_on(trial, WITH)?, runs_on(trial, WITHOUT)?);
    let to = other(from);
    wait_clean(trial, to)?;
    wait_clean(trial, other(beside))?;
    trial.wait_written(from, NAME, 0)?;
    trial.wait_lease(VOLUME, "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let seen = [WITH, WITHOUT].map(|app| trial.scheduler.history(app).len());
    let place = changes.count();
    trial.cluster.host(from).kill_agent()?;
    trial.cluster.host(beside).kill_agent()?;
    let (lost, first) = replaced(trial, WITH, seen[0], to)?;
    times.with.push(first);
    times.without.push(replaced(trial, WITHOUT, seen[1], other(beside))?.1);

    // Told before or after Mesos has told the scheduler.
    let since = |change: &Change| change.at.saturating_duration_since(lost);
    let (lease, session) = (lease_key(VOLUME)?, Keys::default().session(&holder(trial, from)?));
    let revoked = changes.wait("the revoke", place, |change| {
        (change.key == session && change.session()?.revoking).then(|| since(change))
    })?;
    let takeable = changes.wait("the end of the lease or the session", place, |change| {
        let dead = change.key == session && change.session()?.proof.is_some();
        let free = change.key == lease && change.frees();
        (dead || free).then(|| since(change))
    })?;
    let to_next = |record: &LeaseRecord| {
        record.held().is_some_and(|held| held.holder.as_str() == trial.cluster.host(to).name())
    };
    let granted = changes.wait_lease(&lease, "the grant", place, to_next)?;
    times.revoked.push(milliseconds(revoked));
    times.takeable.push(milliseconds(takeable));
    times.granted.push(milliseconds(since(&granted)));
    trial.cluster.host(from).start_agent()?;
    trial.cluster.host(beside).start_agent()?;
    Ok(())
}

/// When a task was lost, and the milliseconds from then to the first line of its replacement on a host.
fn replaced(trial: &Trial, app: &str, seen: usize, to: usize) -> Result<(Instant, f64)> {
    let name = trial.cluster.host(to).name();
    let runs =
        |event: &&TaskEvent| event.state == TaskState::Running && event.hostname.as_deref() == Some(name);
    let history = trial.scheduler.wait_for(app, Instant::now() + SOON, |history| {
        history.iter().skip(seen).any(|event| runs(&event))
    })?;
    let lost = history.iter().skip(seen).find(|event| event.state == TaskState::Unreachable);
    let lost = lost.ok_or_else(|| format!("{app} was not lost: {history:?}"))?;
    let began = clock(lost.wall)?;
    let task = &history.iter().skip(seen).find(runs).ok_or("no task")?.task_id;
    let first = first_line(trial, to, began, || {
        if app == WITH { trial.read(to, NAME, "log") } else { sandboxed(trial, to, task) }
    })?;
    Ok((lost.at, (first - began) as f64))
}

/// The file `log` of a task's sandbox.
fn sandboxed(trial: &Trial, host: usize, task: &str) -> integration::trial::Result<String> {
    let host = trial.cluster.host(host);
    let script = "cat \"$1\"/mesos/agents/0/work/slaves/*/frameworks/*/executors/\"$2\"/runs/latest/log";
    Ok(host.run(&["sh", "-c", script, "sh", &host.directory().display().to_string(), task])?)
}
