//! An agent is killed under two tasks, one with a volume and one without: from Mesos's own "unreachable" to the first
//! line of each one's replacement. The difference is what the volume costs.

use std::time::Instant;

use integration::bench::{Goal, Report};
use integration::scheduler::{TaskEvent, TaskState};
use integration::trial::{SOON, Trial, app, app_with, check_counting};
use shared::record::LeaseRecord;

use crate::writer::{clock, first_line, writer};
use crate::{NAME, Result, VOLUME, end, trial, wait_clean};

/// By how much the medians may differ.
const GOAL_MILLISECONDS: f64 = 1_000.0;

const WITH: &str = "with";
const WITHOUT: &str = "without";

pub(crate) fn measure(samples: usize) -> Result<Vec<Option<Report>>> {
    let trial = trial(2)?;
    // Both begin on the one host that has an agent, and so they move together.
    trial.cluster.host(1).kill_agent()?;
    trial.cluster.wait_agent_gone(1, SOON)?;
    trial.run(app(WITHOUT, "", &writer("."), &[])?)?;
    trial.run(app_with(WITH, "", NAME, &writer("data"))?)?;
    trial.wait_written(0, NAME, 0)?;
    trial.cluster.host(1).start_agent()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for n in 0..samples {
        let from = n % 2;
        wait_clean(&trial, 1 - from)?;
        trial.wait_lease(VOLUME, "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
        let seen = [WITH, WITHOUT].map(|app| trial.scheduler.history(app).len());
        trial.cluster.host(from).kill_agent()?;
        with.push(replaced(&trial, WITH, seen[0], 1 - from)?);
        without.push(replaced(&trial, WITHOUT, seen[1], 1 - from)?);
        trial.cluster.host(from).start_agent()?;
    }
    let last = samples % 2;
    check_counting(&trial.wait_written(last, NAME, 0)?)?;
    wait_clean(&trial, 1 - last)?;
    trial.stop(WITH)?;
    trial.stop(WITHOUT)?;
    end(trial)?;
    let reports = [
        Report::new("lost-agent-replaced-without-volume", "ms", without, None),
        Report::new("lost-agent-replaced-with-volume", "ms", with, None),
    ];
    let median = |n: usize| reports[n].as_ref().map(|report| report.p50);
    let difference = median(1).zip(median(0)).map(|(with, without)| with - without);
    let difference = difference.and_then(|difference| {
        Report::new(
            "lost-agent-difference-of-medians",
            "ms",
            vec![difference],
            Some(Goal::Worst(GOAL_MILLISECONDS)),
        )
    });
    Ok(reports.into_iter().chain([difference]).collect())
}

/// The milliseconds from a task's loss to the first line of its replacement on a host.
fn replaced(trial: &Trial, app: &str, seen: usize, to: usize) -> Result<f64> {
    let name = trial.cluster.host(to).name();
    let runs =
        |event: &TaskEvent| event.state == TaskState::Running && event.hostname.as_deref() == Some(name);
    let history = trial
        .scheduler
        .wait_for(app, Instant::now() + SOON, |history| history.iter().skip(seen).any(runs))?;
    let lost = history.iter().skip(seen).find(|event| event.state == TaskState::Unreachable);
    let lost = clock(lost.ok_or_else(|| format!("{app} was not lost: {history:?}"))?.wall)?;
    let task = history.iter().skip(seen).find(|event| runs(event)).ok_or("no task")?.task_id.clone();
    let first = first_line(trial, to, lost, || {
        if app == WITH { trial.read(to, NAME, "log") } else { sandboxed(trial, to, &task) }
    })?;
    Ok((first - lost) as f64)
}

/// The file `log` of a task's sandbox.
fn sandboxed(trial: &Trial, host: usize, task: &str) -> integration::trial::Result<String> {
    let host = trial.cluster.host(host);
    let script = "cat \"$1\"/mesos/slaves/*/frameworks/*/executors/\"$2\"/runs/latest/log";
    Ok(host.run(&["sh", "-c", script, "sh", &host.directory().display().to_string(), task])?)
}
