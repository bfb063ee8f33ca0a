//! A task waits for the volume of another host's task, which is stopped: from the release to the grant, and to the
//! mount.

use integration::bench::{Goal, Report};
use integration::trial::{SOON, app_with, check_counting, lease_key, once};
use shared::record::LeaseRecord;
use std::time::Instant;

use crate::changes::Changes;
use crate::writer::writer;
use crate::{NAME, Result, VOLUME, end, milliseconds, trial, wait_wanted};

const GOAL_MILLISECONDS: f64 = 100.0;

pub(crate) fn measure(samples: usize) -> Result<Vec<Option<Report>>> {
    let trial = trial(2)?;
    let changes = Changes::start(&trial.cluster)?;
    let lease = lease_key(VOLUME)?;
    let named = |host: usize| trial.cluster.host(host).name();
    let task = |n: usize| format!("task-{n}");
    let writing =
        |n: usize| Ok::<_, crate::Failure>(once(app_with(&task(n), named(n % 2), NAME, &writer("data"))?));
    let (mut granted, mut attached) = (Vec::new(), Vec::new());
    trial.run(writing(0)?)?;
    for n in 0..samples {
        trial.wait_written(n % 2, NAME, 0)?;
        trial.wait_lease(VOLUME, "is attached", |lease| {
            lease.is_some_and(|lease| {
                lease.state() == "attached"
                    && lease.held().is_some_and(|held| held.holder.as_str() == named(n % 2))
            })
        })?;
        let place = changes.count();
        // Of this one's successor, which has to wait.
        let to = (n + 1) % 2;
        trial.scheduler.run(writing(n + 1)?)?;
        wait_wanted(&changes, &trial, place, to)?;
        let place = changes.count();
        trial.stop(&task(n))?;
        let released = changes.wait("the release", place, |change| {
            (change.key == lease && change.frees()).then(|| change.clone())
        })?;
        let is_next =
            |record: &LeaseRecord| record.held().is_some_and(|held| held.holder.as_str() == named(to));
        let grant = changes.wait_lease(&lease, "the grant", place, is_next)?;
        let mount =
            changes.wait_lease(&lease, "the mount", place, |r| is_next(r) && r.state() == "attached")?;
        if grant.revision <= released.revision {
            return Err(format!("granted as {}, released as {}", grant.revision, released.revision).into());
        }
        granted.push(milliseconds(grant.at - released.at));
        attached.push(milliseconds(mount.at - released.at));
        trial.scheduler.wait_until_running(&task(n + 1), Instant::now() + SOON)?;
    }
    check_counting(&trial.wait_written(samples % 2, NAME, 0)?)?;
    trial.stop(&task(samples))?;
    trial.wait_free(VOLUME)?;
    drop(changes);
    end(trial)?;
    Ok(vec![
        Report::new("release-to-grant", "ms", granted, Some(Goal::Worst(GOAL_MILLISECONDS))),
        Report::new("release-to-attached", "ms", attached, None),
    ])
}
