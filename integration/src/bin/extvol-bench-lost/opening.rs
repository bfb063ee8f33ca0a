//! How long a keeper whose worker was killed takes to have its epoch again, beside more and more leases of others: it finds its own
//! by an index, so that the size of the installation should not show.

use std::time::Instant;

use integration::bench::{Goal, Report};
use integration::trial::{Trial, app_with};
use shared::keys::Keys;
use shared::protocol::exchange::{ByTime, Commit, Key, Lease, Record, Session};
use shared::record::LeaseRecord;
use shared::store::Revision;
use shared::volume::Holder;

use crate::leases::{OF_A_COMMIT, Planter, held, holder, session, volume};
use crate::writer::writer;
use crate::{NAME, Result, VOLUME, end, milliseconds, trial};

/// How many leases others have.
const FEW: usize = 1_000;
const MANY: usize = 100_000;
/// For a run of a few samples.
const MANY_IN_SHORT: usize = 20_000;
const SHORT: usize = 3;

/// The median beside many, as a multiple of the one beside few.
const GROWTH: f64 = 1.5;

/// What an opening may read, whatever there is.
const ENTRIES: f64 = 10.0;

pub(crate) fn measure(samples: usize) -> Result<Vec<Option<Report>>> {
    let many = if samples > SHORT { MANY } else { MANY_IN_SHORT };
    let trial = trial(1)?;
    trial.run(app_with("writer", "agent-1", NAME, &writer("data"))?)?;
    trial.wait_lease(VOLUME, "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))?;
    let planter = Planter::start(&trial)?;
    let me = Holder::new("agent-1")?;
    let (mut planted, mut medians, mut reports) = (0, Vec::new(), Vec::new());
    for (size, name) in [(FEW, "few"), (many, "many")] {
        plant(&planter, planted, size)?;
        planted = size;
        let mut took = Vec::new();
        for _ in 0..samples {
            took.push(adopting(&trial, &planter, &me)?);
        }
        let entries = planter.read_own(&me)?.entries.len() as f64;
        let report = Report::new(&format!("worker-restart-beside-{name}-leases"), "ms", took, None);
        medians.extend(report.as_ref().map(|report| report.p50));
        reports.push(report);
        let goal = Some(Goal::Worst(ENTRIES));
        let read = format!("opening-reads-beside-{name}-leases");
        reports.push(Report::new(&read, "records", vec![entries], goal));
    }
    println!("opening: few are {FEW} leases of others, many {many}");
    if let [few, many] = medians[..] {
        let goal = Some(Goal::Worst(GROWTH));
        reports.push(Report::new("worker-restart-many-to-few", "times", vec![many / few], goal));
    }
    drop(planter);
    trial.stop("writer")?;
    trial.wait_free(VOLUME)?;
    end(trial)?;
    Ok(reports)
}

/// Gives another holder, which silence never ends, the leases from one number up to another.
fn plant(planter: &Planter, from: usize, to: usize) -> Result<()> {
    let other = holder(0)?;
    let view = planter.read_own(&other)?;
    if from == 0 {
        let record = Record::Session(Session { by_time: ByTime::Never, ..session() });
        planter.commit(Commit::new(&view.cluster).put(
            Key::Session(other.clone()),
            Revision::ABSENT,
            record,
        ))?;
    }
    let volumes = (from..to).map(volume).collect::<Result<Vec<_>>>()?;
    for some in volumes.chunks(OF_A_COMMIT / 2) {
        let commit = some.iter().fold(Commit::new(&view.cluster), |commit, volume| {
            let lease = Record::Lease(Lease::Held(held(&other, volume, 0)));
            commit.put(Key::Lease(volume.clone()), Revision::ABSENT, lease).index(&other, volume)
        });
        planter.commit(commit)?;
    }
    Ok(())
}

/// From the worker's end to the barrier with which the next one has the epoch.
fn adopting(trial: &Trial, planter: &Planter, me: &Holder) -> Result<f64> {
    let (key, before) = (Keys::default().session(me), planter.changes.count());
    let began = Instant::now();
    trial.kill_processes(0, &["extvol-worker"])?;
    let written = planter
        .changes
        .wait("the session of the next worker", before, |change| (change.key == key).then_some(change.at))?;
    Ok(milliseconds(written - began))
}
