//! A holder of 1,000 leases falls silent: one write, of its session, makes all of them takeable. How long after that
//! was allowed is it made?
//!
//! The holder is planted: its session, leases and heartbeats are written by this program, as a keeper's would be, and
//! then nothing more. It names no agent, so that nothing is decided by how Mesos sees one. It is the only one that
//! holds leases, and one silent holder is no storm.

use std::collections::BTreeSet;
use std::time::Duration;

use integration::bench::{Goal, Report};
use integration::trial::Trial;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::exchange_io::Exchange;
use shared::keys::Keys;
use shared::protocol::exchange::{
    ByTime, Commit, Held, Instance, Key, Lease, Outcome, Proof, Reading, Record, Session, SessionState,
    Stage, View,
};
use shared::protocol::timing::Profile;
use shared::record::Epoch;
use shared::store::{OPERATIONS_MAX, Revision};
use shared::volume::{ContainerId, Driver, Holder, VolumeId, VolumeName};
use tokio::runtime::Runtime;

use crate::changes::Changes;
use crate::{Result, end, milliseconds, trial};

const LEASES: usize = 1_000;

const GOAL_MILLISECONDS: f64 = 1_000.0;

/// A commit also compares the installation's record.
pub(crate) const OF_A_COMMIT: usize = OPERATIONS_MAX - 1;

pub(crate) fn measure(samples: usize) -> Result<Vec<Option<Report>>> {
    let trial = trial(1)?;
    let planter = Planter::start(&trial)?;
    let (mut after, mut writes) = (Vec::new(), Vec::new());
    for n in 0..samples {
        let sample = planter.sample(n)?;
        after.push(sample.after);
        writes.push(sample.writes);
    }
    // Nor was anything written afterwards.
    for n in 0..samples {
        let written = planter.writes(&holder(n)?, 0);
        if written != 2 {
            return Err(format!("the session of {} was written {written} times", holder(n)?).into());
        }
    }
    drop(planter);
    end(trial)?;
    Ok(vec![
        Report::new("silent-holder-1000-leases-writes", "writes", writes, Some(Goal::Worst(1.0))),
        Report::new(
            "silent-holder-1000-leases-after-its-ttl",
            "ms",
            after,
            Some(Goal::Worst(GOAL_MILLISECONDS)),
        ),
    ])
}

pub(crate) struct Planter {
    runtime: Runtime,
    exchange: Exchange<EtcdStore>,
    pub(crate) changes: Changes,
}

struct Sample {
    after: f64,
    writes: f64,
}

impl Planter {
    pub(crate) fn start(trial: &Trial) -> Result<Self> {
        let changes = Changes::start(&trial.cluster)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let request = Duration::from_secs(10);
        let config =
            EtcdConfig { request_timeout: request, ..EtcdConfig::new(trial.cluster.etcd_endpoints()) };
        let exchange = Exchange::new(EtcdStore::new(config)?, Keys::default(), request, None);
        Ok(Self { runtime, exchange, changes })
    }

    fn sample(&self, n: usize) -> Result<Sample> {
        let holder = holder(n)?;
        let key = Keys::default().session(&holder);
        let view = self.read()?;
        let planted = Commit::new(&view.cluster).put(
            Key::Session(holder.clone()),
            Revision::ABSENT,
            Record::Session(session()),
        );
        let session = self.commit(planted)?;
        self.beat(&view, &holder, session)?;
        self.write_leases(&view, |volume| Record::Lease(Lease::Held(held(&holder, volume, n))))?;
        let planted = self.changes.count();
        let last = self.beat(&view, &holder, session)?;
        let beats = Keys::default().beat(&holder);
        let beat = self.changes.wait("the last beat", planted, |change| {
            (change.key == beats && change.revision == last).then(|| change.clone())
        })?;
        let dead = self.changes.wait("the end of the session", planted, |change| {
            (change.key == key && change.session()?.proof == Some(Proof::Time)).then(|| change.clone())
        })?;
        let after = self.read()?;
        let written: Vec<_> =
            after.held().filter(|(_, _, at)| *at > last).map(|(volume, ..)| volume).collect();
        let still = after.held().filter(|(_, held, _)| held.holder == holder).count();
        if still != LEASES || !written.is_empty() {
            return Err(format!("{still} leases are held, and written were {written:?}").into());
        }
        let writes = self.writes(&holder, planted);
        let span = Profile::Fast.timing().reclaim_span();
        let took = dead.at - beat.at;
        if took < span {
            return Err(format!("dead after {took:?}, which is too soon").into());
        }
        self.write_leases(&after, |_| {
            Record::Lease(Lease::Free { last_holder: Some(holder.clone()), owed: None })
        })?;
        Ok(Sample { after: milliseconds(took - span), writes: writes as f64 })
    }

    /// How often a holder's session was written from a place on.
    fn writes(&self, holder: &Holder, place: usize) -> usize {
        let key = Keys::default().session(holder);
        self.changes.from(place).iter().filter(|change| change.key == key).count()
    }

    fn read(&self) -> Result<View> {
        Ok(self.runtime.block_on(self.exchange.try_read(&Reading::Everything))?)
    }

    pub(crate) fn read_own(&self, holder: &Holder) -> Result<View> {
        Ok(self.runtime.block_on(self.exchange.try_read(&Reading::Own(holder.clone())))?)
    }

    pub(crate) fn commit(&self, commit: Commit) -> Result<Revision> {
        match self.runtime.block_on(self.exchange.commit(&commit)) {
            Outcome::Done(revision) => Ok(revision),
            other => Err(format!("a write of {} keys: {other:?}", commit.puts.len()).into()),
        }
    }

    fn beat(&self, view: &View, holder: &Holder, session: Revision) -> Result<Revision> {
        self.commit(Commit::beat(&view.cluster, holder, session))
    }

    fn write_leases(&self, view: &View, record: impl Fn(&VolumeId) -> Record) -> Result<()> {
        let volumes = (0..LEASES).map(volume).collect::<Result<Vec<_>>>()?;
        for some in volumes.chunks(OF_A_COMMIT) {
            let commit = some.iter().fold(Commit::new(&view.cluster), |commit, volume| {
                let key = Key::Lease(volume.clone());
                let at = view.at(&key);
                commit.put(key, at, record(volume))
            });
            self.commit(commit)?;
        }
        Ok(())
    }
}

pub(crate) fn holder(n: usize) -> Result<Holder> {
    Ok(Holder::new(format!("planted-{n}"))?)
}

pub(crate) fn volume(n: usize) -> Result<VolumeId> {
    Ok(VolumeId { driver: Driver::new("ebs")?, name: VolumeName::new(format!("vol-{n:017x}"))? })
}

pub(crate) fn session() -> Session {
    Session {
        epoch: Epoch(1),
        instance: Instance("planted".into()),
        state: SessionState::Live,
        machine: "planted".into(),
        boot: "planted".into(),
        agent: None,
        timing: Profile::Fast.timing(),
        by_time: ByTime::Allowed,
        means: Default::default(),
        unproved: None,
        unsettled_through: Epoch(0),
        wants: BTreeSet::new(),
        reason: None,
        since: None,
    }
}

pub(crate) fn held(holder: &Holder, volume: &VolumeId, n: usize) -> Held {
    let container = ContainerId::new(format!("planted-{n}")).ok();
    Held {
        stage: Stage::Attached,
        holder: holder.clone(),
        epoch: Epoch(1),
        token: None,
        agent_id: None,
        containers: container.into_iter().collect(),
        tasks: Default::default(),
        mount_point: Some(format!("/var/lib/rexray/volumes/{}", volume.name.as_str()).into()),
        unsettled: false,
        calls: false,
        owed: None,
        revoked: None,
        since: None,
    }
}
