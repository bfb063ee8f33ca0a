//! Opening the session: whose the name is, in which installation, and taking over what earlier epochs held.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;

use shared::decide::{Opening, opening};
use shared::record::{
    ClusterRecord, Epoch, HeldLease, LeaseRecord, SessionRecord, SessionState, Token, decode, encode,
};
use shared::store::{LeaseStore, Revision, Snapshot, StoreError, Transaction};
use shared::transaction::{Rewrite, VOLUMES_MAX, found};
use shared::volume::VolumeId;

use super::{Leases, now, read, sentence, token};

/// Why there is no session yet.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// etcd did not do what was asked. Tried again.
    #[error("etcd cannot be used")]
    Store(#[source] StoreError),
    /// The session belongs to somebody else, or may.
    #[error(transparent)]
    Refused(#[from] shared::decide::Refusal),
    /// This host canonicalizes names otherwise than the installation.
    #[error(
        "this host's driver_aliases and case_sensitive_drivers differ from those that etcd has for all hosts \
         ({theirs}); two hosts could lease one volume under two names"
    )]
    Naming {
        /// The installation's rules, as JSON.
        theirs: String,
    },
    /// The volumes that this host has mounted were leased in another installation.
    #[error(
        "etcd holds {}, and the volumes that are in use on this host were leased in installation {ours}; lead it \
         back there, or end the containers that use them",
        theirs.as_ref().map_or("no installation's records".to_owned(), |id| format!("installation {id}"))
    )]
    AnotherInstallation {
        /// Whose leases this host has.
        ours: String,
        /// What etcd has.
        theirs: Option<String>,
    },
    /// The lease of a volume that this host has mounted cannot be read.
    #[error("the lease of {volume}, which this host has, cannot be read; it is left alone")]
    Unreadable {
        /// The volume.
        volume: VolumeId,
    },
    /// What an earlier boot of this host leased is mounted now.
    #[error("{mount_point} is mounted, though its lease is of an earlier boot; unmount it")]
    StillMounted {
        /// Where.
        mount_point: String,
    },
}

/// A lease that is this session's after it was opened.
#[derive(Clone, Debug)]
pub struct Mine {
    /// The fencing token.
    pub token: Token,
    /// Whether an older life left it `attaching` or `detaching`.
    pub calling: bool,
    /// Whether it was leased in the present boot.
    pub same_boot: bool,
    /// What the record says.
    pub lease: HeldLease,
}

/// An answer about a path of this host, which may take a while.
pub type Answer = Pin<Box<dyn Future<Output = bool> + Send>>;

/// What the table says to a session that is opened.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// The installation in which its volumes are leased, if there are any.
    pub cluster: Option<String>,
    /// Its volumes.
    pub volumes: BTreeSet<VolumeId>,
}

impl<S: LeaseStore> Leases<S> {
    /// Opens the session, and takes over what earlier epochs of this holder held.
    ///
    /// `is_mounted` tells whether something is mounted at a path of this host.
    ///
    /// # Errors
    /// See [`OpenError`]; after any of them the whole may be tried again.
    pub async fn open(
        &mut self,
        noted: &Noted,
        is_mounted: &(dyn Fn(String) -> Answer + Sync),
    ) -> Result<BTreeMap<VolumeId, Mine>, OpenError> {
        self.session = None;
        self.leases.clear();
        self.learn_cluster(noted).await?;
        let snapshot = self.everything().await?;
        let held = self.leases_of_holder(&snapshot, noted)?;
        let key = self.keys.session(&self.identity.holder);
        let before: Option<(SessionRecord, _)> = read(&snapshot, &key).map_err(OpenError::Store)?;
        let epochs: Vec<Epoch> = held.values().filter_map(|(l, _)| Some(l.held()?.epoch)).collect();
        let session = before.as_ref().map(|(session, _)| session);
        let (epoch, since) = match opening(&self.identity.holder, &self.identity.machine, session, &epochs) {
            Opening::Refused(refusal) => return Err(refusal.into()),
            Opening::Resume(epoch) => (epoch, session.map_or_else(now, |session| session.since.clone())),
            Opening::Open(epoch) => {
                // The boot is another one, so that nothing of before can be mounted. Look all the same.
                for mount_point in held.values().filter_map(|(lease, _)| lease.held()?.mount_point.clone()) {
                    if is_mounted(mount_point.clone()).await {
                        return Err(OpenError::StillMounted { mount_point });
                    }
                }
                (epoch, now())
            }
        };
        let record = SessionRecord {
            epoch,
            instance: self.identity.instance.clone(),
            state: SessionState::Live,
            machine_id: self.identity.machine.id.clone(),
            boot_id: self.identity.machine.boot_id.clone(),
            agent_id: self.agent_id.clone().or_else(|| session.and_then(|s| s.agent_id.clone())),
            since,
        };
        let at = before.map_or(Revision::ABSENT, |(_, at)| at);
        let at = self.commit(self.writer.session(at, &record)).await.map_err(OpenError::Store)?;
        self.session = Some((record, at));
        self.take_over(epoch, noted).await
    }

    /// The installation that the session was opened in.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        decode::<ClusterRecord>(&self.writer.cluster).ok().map(|cluster| cluster.id)
    }

    async fn learn_cluster(&mut self, noted: &Noted) -> Result<(), OpenError> {
        let key = self.keys.cluster();
        let read_cluster = async |store: &S| store.get(std::slice::from_ref(&key)).await;
        let mut snapshot = read_cluster(&self.store).await.map_err(OpenError::Store)?;
        if !snapshot.entries.contains_key(&key) {
            if let Some(ours) = noted.cluster.clone() {
                return Err(OpenError::AnotherInstallation { ours, theirs: None });
            }
            let id = crate::keeper::random_id();
            let record = encode(&ClusterRecord { id, naming: self.identity.naming.clone() });
            match self.store.commit(found(&self.keys, record)).await {
                // Somebody else was first, or may be: what is there now is read below.
                Ok(_) | Err(StoreError::Conflict | StoreError::Unknown(_)) => {}
                Err(error) => return Err(OpenError::Store(error)),
            }
            snapshot = read_cluster(&self.store).await.map_err(OpenError::Store)?;
        }
        let (cluster, _) = read::<ClusterRecord>(&snapshot, &key)
            .map_err(OpenError::Store)?
            .ok_or(OpenError::Store(StoreError::Conflict))?;
        if let Some(ours) = noted.cluster.clone().filter(|ours| *ours != cluster.id) {
            return Err(OpenError::AnotherInstallation { ours, theirs: Some(cluster.id) });
        }
        if cluster.naming != self.identity.naming {
            let theirs = serde_json::to_string(&cluster.naming).unwrap_or_default();
            return Err(OpenError::Naming { theirs });
        }
        self.writer.cluster = snapshot.entries.remove(&key).map(|entry| entry.value).unwrap_or_default();
        Ok(())
    }

    /// This holder's session and all leases, at one revision or a later one.
    async fn everything(&self) -> Result<Snapshot, OpenError> {
        let session = [self.keys.session(&self.identity.holder)];
        // The session first: a write in between makes the compare of the session fail.
        let mut snapshot = self.store.get(&session).await.map_err(OpenError::Store)?;
        let leases = self.store.get_prefix(&self.keys.leases()).await.map_err(OpenError::Store)?;
        snapshot.entries.extend(leases.entries);
        Ok(snapshot)
    }

    fn leases_of_holder(
        &self,
        snapshot: &Snapshot,
        noted: &Noted,
    ) -> Result<BTreeMap<VolumeId, (LeaseRecord, Revision)>, OpenError> {
        let mut mine = BTreeMap::new();
        for key in snapshot.entries.keys() {
            let Some(volume) = self.keys.volume_of(key) else { continue };
            let lease = match read::<LeaseRecord>(snapshot, key) {
                Ok(lease) => lease,
                Err(_) if noted.volumes.contains(&volume) => return Err(OpenError::Unreadable { volume }),
                // Another holder's unreadable record is its own business, until it is asked for.
                Err(error) => {
                    tracing::warn!("{}", sentence(&error));
                    continue;
                }
            };
            if let Some((lease, at)) = lease
                && lease.held().is_some_and(|held| held.holder == self.identity.holder)
            {
                mine.insert(volume, (lease, at));
            }
        }
        Ok(mine)
    }

    /// Rewrites the leases of earlier epochs as this one's, and answers all that are its own.
    async fn take_over(
        &mut self,
        epoch: Epoch,
        noted: &Noted,
    ) -> Result<BTreeMap<VolumeId, Mine>, OpenError> {
        // Read after the session was rewritten: nothing of an older life can commit any more.
        let leases = self.store.get_prefix(&self.keys.leases()).await.map_err(OpenError::Store)?;
        let held = self.leases_of_holder(&leases, noted)?;
        let mut mine = BTreeMap::new();
        let mut before = Vec::new();
        for (volume, (lease, at)) in held {
            let Some(held) = lease.held().cloned() else { continue };
            let calling = !matches!(lease, LeaseRecord::Attached(_));
            if held.epoch == epoch {
                mine.insert(
                    volume.clone(),
                    Mine { token: token(&held, at), calling, same_boot: true, lease: held },
                );
                self.leases.insert(volume, (lease, at));
            } else {
                let held = HeldLease { epoch, token: None, containers: BTreeSet::new(), ..held };
                let record = LeaseRecord::Detaching(held);
                before.push((calling, Rewrite { volume, at, record, taken_from: None }));
            }
        }
        for chunk in before.chunks(VOLUMES_MAX) {
            let rewrites: Vec<_> = chunk.iter().map(|(_, rewrite)| rewrite.clone()).collect();
            let transaction = self.leases_transaction(&rewrites).map_err(OpenError::Store)?;
            let at = self.commit(transaction).await.map_err(OpenError::Store)?;
            for (calling, Rewrite { volume, record, .. }) in chunk.iter().cloned() {
                if let Some(lease) = record.held().cloned() {
                    mine.insert(volume.clone(), Mine { token: Token(at), calling, same_boot: false, lease });
                }
                self.leases.insert(volume, (record, at));
            }
        }
        Ok(mine)
    }

    /// The session is told the agent's id, for those who read it.
    pub async fn serve_agent(&mut self, agent_id: &str) {
        if self.agent_id.as_deref() == Some(agent_id) {
            return;
        }
        self.agent_id = Some(agent_id.to_owned());
        // A note for people and for the master's module: a fault shows at the next operation.
        if let Err(fault) = self.barrier_once().await {
            tracing::debug!(?fault, "the agent's id could not be noted in the session");
        }
    }

    pub(super) fn session(&self) -> Result<&(SessionRecord, Revision), StoreError> {
        self.session.as_ref().ok_or_else(|| StoreError::Unavailable("there is no session".into()))
    }

    pub(super) fn leases_transaction(&self, rewrites: &[Rewrite]) -> Result<Transaction, StoreError> {
        let (_, at) = self.session()?;
        Ok(self.writer.leases(*at, rewrites))
    }

    pub(super) async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.store.commit(transaction).await
    }
}
