//! Running the program, and an installation in etcd for it.

use std::process::{Command, Output};

use shared::etcd::{EtcdConfig, EtcdStore};
use shared::exchange::{from_bytes, key, to_bytes};
use shared::keys::Keys;
use shared::protocol::exchange::{Agent, ByTime, Held, Instance, Key, Record, Session, SessionState, Stage};
use shared::protocol::timing::Profile;
use shared::record::Epoch;
use shared::store::{Entry, LeaseStore, Snapshot, Transaction};
use shared::volume::{ContainerId, Driver, Holder, VolumeId, VolumeName};
use testing::{EtcdCluster, SOON};

/// What the program answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap(), out: text(&output.stdout), error: text(&output.stderr) }
    }
}

/// The program, with nothing of this process's environment that it may look at.
pub(crate) fn extvol() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_extvol"));
    command.env_remove("SUDO_USER").env("USER", "ada").env("ETCDCTL_ENDPOINTS", "127.0.0.1:1");
    command
}

pub(crate) fn run(words: &[&str]) -> Answer {
    extvol().args(words).output().unwrap().into()
}

pub(crate) fn holder(name: &str) -> Holder {
    Holder::new(name).unwrap()
}

pub(crate) fn volume(name: &str) -> VolumeId {
    VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() }
}

pub(crate) fn session() -> Session {
    Session {
        epoch: Epoch(3),
        instance: Instance("i1".into()),
        state: SessionState::Live,
        machine: "m1".into(),
        boot: "b1".into(),
        agent: Some(Agent { id: Some("S1".into()), address: "slave(1)@10.0.0.1:5051".into() }),
        timing: Profile::Default.timing(),
        by_time: ByTime::Allowed,
        means: Default::default(),
        unproved: None,
        unsettled_through: Epoch(1),
        wants: Default::default(),
        reason: None,
        since: Some("2026-01-02T03:04:05Z".into()),
    }
}

/// A lease as its granting write leaves it: its token is that write's revision.
pub(crate) fn granted(name: &str) -> Held {
    Held {
        stage: Stage::Attaching,
        holder: holder(name),
        epoch: Epoch(3),
        token: None,
        agent_id: Some("S1".into()),
        containers: [ContainerId::new("c1").unwrap()].into(),
        tasks: Default::default(),
        mount_point: None,
        unsettled: true,
        calls: false,
        owed: None,
        revoked: None,
        since: Some("2026-01-02T03:04:05Z".into()),
    }
}

/// A session and a lease as keepers of a release without heartbeat write them.
pub(crate) const OLD_SESSION: &str = r#"{"version":1,"epoch":2,"instance":"i","state":"live","machine_id":"m","boot_id":"b","agent_id":"S7","since":"2025-01-02T03:04:05Z"}"#;
pub(crate) const OLD_LEASE: &str = r#"{"version":1,"state":"attached","holder":"old-1","epoch":2,"token":5,"since":"2025-01-02T03:04:05Z","agent_id":"S7","containers":["c7"],"mount_point":"/m/old"}"#;

/// An installation in an etcd of its own.
pub(crate) struct Installation {
    pub(crate) etcd: EtcdCluster,
    pub(crate) keys: Keys,
    store: EtcdStore,
}

impl Installation {
    /// With its `cluster` record alone.
    pub(crate) fn found() -> Self {
        Self::found_in(EtcdCluster::start(1))
    }

    pub(crate) fn found_in(etcd: EtcdCluster) -> Self {
        let config = EtcdConfig { request_timeout: SOON, ..EtcdConfig::new(etcd.endpoints()) };
        let installation = Self { etcd, keys: Keys::default(), store: EtcdStore::new(config).unwrap() };
        installation.etcd.etcdctl(&["put", "/extvol/v1/cluster", r#"{"version":1,"id":"c1","naming":{}}"#]);
        installation
    }

    /// With host `new-1` of this release, which holds `ebs/new`, and `old-1` of an older one with `ebs/old`.
    pub(crate) async fn of_two_releases() -> Self {
        let installation = Self::found();
        let lease = shared::protocol::exchange::Lease::Held(granted("new-1"));
        installation.put(&Key::Session(holder("new-1")), &Record::Session(session())).await;
        installation.put(&Key::Lease(volume("new")), &Record::Lease(lease)).await;
        installation.put(&Key::Beat(holder("new-1")), &Record::Beat).await;
        installation.etcd.etcdctl(&["put", "/extvol/v1/sessions/old-1", OLD_SESSION]);
        installation.etcd.etcdctl(&["put", "/extvol/v1/leases/ebs/old", OLD_LEASE]);
        installation
    }

    /// Runs the program against this installation.
    pub(crate) fn run(&self, words: &[&str]) -> Answer {
        extvol().arg("--endpoints").arg(self.etcd.endpoints().join(",")).args(words).output().unwrap().into()
    }

    pub(crate) async fn put(&self, at: &Key, record: &Record) {
        let bytes = to_bytes(record, "2026-01-02T03:05:06Z");
        let mut transaction = Transaction::new().overwrite(&key(&self.keys, at), bytes);
        if let (Key::Lease(volume), Record::Lease(lease)) = (at, record) {
            for holder in lease.named() {
                let index = to_bytes(&Record::Held, "");
                transaction = transaction.overwrite(&self.keys.held(holder, volume), index);
            }
        }
        self.store.commit(transaction).await.unwrap();
    }

    /// Everything in etcd.
    pub(crate) async fn all(&self) -> Snapshot {
        self.store.get_prefix("/").await.unwrap()
    }

    pub(crate) async fn entry(&self, at: &Key) -> Entry {
        self.all().await.entries.remove(&key(&self.keys, at)).unwrap()
    }

    pub(crate) async fn record(&self, at: &Key) -> Record {
        from_bytes(at, &self.entry(at).await.value).unwrap()
    }
}
