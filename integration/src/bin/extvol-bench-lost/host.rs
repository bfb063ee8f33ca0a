//! A host loses its power under a task whose volume another host's task already waits for, so that Mesos's own
//! detection plays no part: from the host's last heartbeat to the first write elsewhere.

use std::time::SystemTime;

use integration::bench::{Goal, Report};
use integration::trial::{Trial, app_with, check_counting, lease_key, once};
use serde::Deserialize;
use shared::keys::Keys;
use shared::protocol::timing::Profile;
use shared::record::{LeaseRecord, decode};

use crate::changes::Changes;
use crate::writer::{clock, first_line, writer};
use crate::{NAME, Result, VOLUME, end, holder, milliseconds, tell_keepers, trial, wait_clean, wait_wanted};

/// Beside the time to live.
const REST_MILLISECONDS: f64 = 1_000.0;

#[derive(Deserialize)]
struct Beat {
    at: String,
}

#[derive(Default)]
struct Times {
    dead: Vec<f64>,
    granted: Vec<f64>,
    written: Vec<f64>,
}

pub(crate) fn measure(samples: usize) -> Result<Vec<Option<Report>>> {
    let trial = trial(2)?;
    let changes = Changes::start(&trial.cluster)?;
    let mut times = Times::default();
    for n in 0..samples {
        sample(&trial, &changes, n, &mut times).inspect_err(|_| tell_keepers(&trial))?;
    }
    drop(changes);
    end(trial)?;
    let goal = milliseconds(Profile::Fast.timing().ttl) + REST_MILLISECONDS;
    Ok(vec![
        Report::new("lost-host-last-beat-to-dead", "ms", times.dead, None),
        Report::new("lost-host-last-beat-to-granted", "ms", times.granted, None),
        Report::new("lost-host-last-beat-to-first-write", "ms", times.written, Some(Goal::Worst(goal))),
    ])
}

fn sample(trial: &Trial, changes: &Changes, n: usize, times: &mut Times) -> Result<()> {
    let (from, to) = (n % 2, 1 - n % 2);
    let (first, second) = (format!("first-{n}"), format!("second-{n}"));
    let named = |host: usize| trial.cluster.host(host).name();
    let keys = Keys::default();
    let (lease, place) = (lease_key(VOLUME)?, changes.count());
    trial.run(once(app_with(&first, named(from), NAME, &writer("data"))?))?;
    trial.wait_written(from, NAME, 0)?;
    trial.wait_lease(VOLUME, "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    trial.scheduler.run(once(app_with(&second, named(to), NAME, &writer("data"))?))?;
    wait_wanted(changes, trial, place, to)?;
    let (before, killed) = (changes.count(), SystemTime::now());
    trial.cluster.host(from).kill()?;

    let session = keys.session(&holder(trial, from)?);
    let dead = changes.wait("the end of the session", before, |change| {
        (change.key == session && change.session()?.proof.is_some()).then(|| change.clone())
    })?;
    let is_next = |record: &LeaseRecord| record.held().is_some_and(|held| held.holder.as_str() == named(to));
    let granted = changes.wait_lease(&lease, "the grant", before, is_next)?;
    changes
        .wait_lease(&lease, "the mount", before, |record| is_next(record) && record.state() == "attached")?;
    let written = first_line(trial, to, clock(killed)?, || trial.read(to, NAME, "log"))?;

    let last = changes.last(&keys.beat(&holder(trial, from)?), place)?;
    let beat: Beat = decode(&last.value)?;
    let beat = clock(humantime::parse_rfc3339(&beat.at)?)?;
    times.dead.push(milliseconds(dead.at - last.at));
    times.granted.push(milliseconds(granted.at - last.at));
    times.written.push((written - beat) as f64);

    check_counting(&trial.wait_written(to, NAME, 0)?)?;
    trial.stop(&second)?;
    trial.wait_free(VOLUME)?;
    trial.nothing_is_left()?;
    trial.cluster.host(from).start()?;
    wait_clean(trial, from)
}
