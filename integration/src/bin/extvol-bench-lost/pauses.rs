//! The longest pause between a task's writes while its agent is killed and started again, and while the keeper's worker
//! is killed, against the longest in an undisturbed stretch of the same length that follows.

use std::time::{Duration, SystemTime};

use integration::bench::{Goal, Report};
use integration::scheduler::TaskState;
use integration::trial::{SOON, Trial, app_with, check_counting};
use shared::record::LeaseRecord;

use crate::writer::{clock, lines, writer};
use crate::{NAME, Result, VOLUME, end, trial};

/// What a stretch lasts at least: longer than the profile's time to live.
const STRETCH: Duration = Duration::from_secs(6);

/// The longest pause may be so many times that of undisturbed stretches, or this, whichever is more.
const TIMES: f64 = 3.0;
const ALWAYS_MILLISECONDS: f64 = 250.0;

const TASK: &str = "writer";

pub(crate) fn measure(samples: usize) -> Result<Vec<Option<Report>>> {
    let trial = trial(1)?;
    trial.run(app_with(TASK, "agent-1", NAME, &writer("data"))?)?;
    trial.wait_written(0, NAME, 0)?;
    trial.wait_lease(VOLUME, "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let before = trial.held(VOLUME)?.ok_or("nobody has the volume")?;
    let seen = trial.scheduler.history(TASK).len();
    let (mut restarts, mut kills, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..samples {
        let host = trial.cluster.host(0);
        let restart = || Ok(host.kill_agent().and_then(|()| host.start_agent()).map(drop)?);
        let (pause, length) = stretch(&trial, STRETCH, restart)?;
        restarts.push(pause);
        quiet.push(stretch(&trial, length, || Ok(()))?.0);
        let kill = || Ok(trial.kill_processes(0, &["extvol-worker"])?);
        let (pause, length) = stretch(&trial, STRETCH, kill)?;
        kills.push(pause);
        quiet.push(stretch(&trial, length, || Ok(()))?.0);
    }
    // The same container under the same lease, and nothing is missing.
    let history = trial.scheduler.history(TASK);
    if let Some(event) = history.iter().skip(seen).find(|event| event.state != TaskState::Running) {
        return Err(format!("the task did notice: {event:?}").into());
    }
    let after = trial.held(VOLUME)?.ok_or("nobody has the volume")?;
    if (before.token, before.epoch) != (after.token, after.epoch) {
        return Err(format!("the lease was {before:?}, and is {after:?}").into());
    }
    check_counting(&trial.wait_written(0, NAME, 0)?)?;
    trial.stop(TASK)?;
    trial.wait_free(VOLUME)?;
    end(trial)?;
    let quiet = Report::new("longest-pause-undisturbed", "ms", quiet, None);
    let goal = quiet.as_ref().map(|quiet| Goal::Worst((TIMES * quiet.max).max(ALWAYS_MILLISECONDS)));
    Ok(vec![
        quiet,
        Report::new("longest-pause-agent-restart", "ms", restarts, goal),
        Report::new("longest-pause-worker-killed", "ms", kills, goal),
    ])
}

/// Breaks something, and lets the task write on for so long at least, and until agent and worker are there again. The
/// longest pause meanwhile, in milliseconds, and how long it was.
fn stretch(
    trial: &Trial,
    length: Duration,
    break_it: impl FnOnce() -> Result<()>,
) -> Result<(f64, Duration)> {
    let began = clock(SystemTime::now())?;
    break_it()?;
    let least = began + u64::try_from(length.as_millis())?;
    let give_up = least + u64::try_from(SOON.as_millis())?;
    let mut until = least;
    loop {
        wait_line(trial, until)?;
        if trial.cluster.agent_id(0)?.is_some() && trial.processes(0, "extvol-worker")?.len() == 1 {
            break;
        }
        if until > give_up {
            return Err("agent and worker are not both there again".into());
        }
        until += 1_000;
    }
    let text = trial.read(0, NAME, "log")?;
    let times: Vec<_> = lines(&text).map(|line| line.at).collect();
    // From the last line before the fault to the first one after the end.
    let first = times.partition_point(|at| *at < began).saturating_sub(1);
    let last = times.partition_point(|at| *at < until);
    let within = times.get(first..=last).ok_or("lines are missing")?;
    let longest =
        within.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().ok_or("no two lines")?;
    Ok((longest as f64, Duration::from_millis(until - began)))
}

/// Waits until the task has written a line at this time or later. One process on the host does, and looks five times a
/// second: questions in quick succession would disturb the writing.
fn wait_line(trial: &Trial, at: u64) -> Result<()> {
    let script = "for i in $(seq 250); do \
        t=$(tail -n 1 \"$1\" | cut -d' ' -f3); [ \"${t:-0}\" -ge \"$2\" ] && exit 0; sleep 0.2; done; exit 1";
    let path = format!("/var/lib/rexray/volumes/{NAME}/data/log");
    trial.cluster.host(0).run(&["sh", "-c", script, "sh", &path, &at.to_string()])?;
    Ok(())
}
