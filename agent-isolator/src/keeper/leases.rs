//! The holder's session and leases in etcd: the I/O around shared's transactions.
//!
//! All operations of a host run one after the other ([`Leases`] is driven by one task), so that
//! the only writers that can conflict are other hosts, and this host's own writes that were given up
//! for lost. Those are shut out by the *barrier*: after an unknown outcome the session record is
//! rewritten first. Whatever is still in flight compares the session, and can never commit; only
//! then does a read tell the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use shared::decide::{Claim, Machine, claim, held_elsewhere};
use shared::holder::LeaseFault;
use shared::keys::Keys;
use shared::record::{HeldLease, LeaseRecord, SessionRecord, SessionState, Token, decode};
use shared::retry::Retry;
use shared::store::{LeaseStore, Revision, Snapshot, StoreError};
use shared::transaction::{Rewrite, Writer};
use shared::volume::{ContainerId, Holder, NamingRules, VolumeId};

mod opening;

pub use opening::{Answer, Mine, Noted, OpenError};

/// How often a conflict is answered by reading again before it is given up: a conflict means that
/// somebody else got on, and twenty in a row mean that something is wrong.
const TRIES: u32 = 20;

/// What stays the same for the whole life of the keeper's process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The holder's name.
    pub holder: Holder,
    /// This host.
    pub machine: Machine,
    /// Random, one per process.
    pub instance: String,
    /// This host's naming rules.
    pub naming: NamingRules,
}

/// Session and leases of one holder.
pub struct Leases<S> {
    store: S,
    keys: Keys,
    identity: Identity,
    writer: Writer,
    session: Option<(SessionRecord, Revision)>,
    leases: BTreeMap<VolumeId, (LeaseRecord, Revision)>,
    agent_id: Option<String>,
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn read<T: serde::de::DeserializeOwned>(
    snapshot: &Snapshot,
    key: &str,
) -> Result<Option<(T, Revision)>, StoreError> {
    let Some(entry) = snapshot.entries.get(key) else { return Ok(None) };
    match decode(&entry.value) {
        Ok(record) => Ok(Some((record, entry.mod_revision))),
        Err(error) => Err(StoreError::Corrupt { what: key.to_owned(), source: Some(Box::new(error)) }),
    }
}

/// An error and its causes in one line.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The token of a lease: what it says, or the revision of the write that granted it.
fn token(lease: &HeldLease, at: Revision) -> Token {
    lease.token.unwrap_or(Token(at))
}

impl<S: LeaseStore> Leases<S> {
    /// Without a session yet.
    pub fn new(store: S, keys: Keys, identity: Identity) -> Self {
        let writer = Writer { keys: keys.clone(), cluster: Vec::new(), holder: identity.holder.clone() };
        Self { store, keys, identity, writer, session: None, leases: BTreeMap::new(), agent_id: None }
    }

    /// Reads the session; it must be this process's.
    async fn read_session(&mut self) -> Result<(), LeaseFault> {
        let key = self.keys.session(&self.identity.holder);
        let cluster = self.keys.cluster();
        let snapshot = self.store.get(&[key.clone(), cluster.clone()]).await.map_err(unavailable)?;
        let (mine, _) = self.session().map_err(unavailable)?;
        if snapshot.entries.get(&cluster).is_none_or(|entry| entry.value != self.writer.cluster) {
            return Err(LeaseFault::Unavailable(format!(
                "the record {cluster} in etcd is not the one under which this keeper opened its session; put \
                 it back, or restart the keeper once nothing uses its volumes"
            )));
        }
        match read::<SessionRecord>(&snapshot, &key).map_err(unavailable)? {
            Some((session, at)) if session.instance == mine.instance && session.epoch == mine.epoch => {
                if session.state == SessionState::Dead {
                    return Err(LeaseFault::Lost("this host's session was declared dead".into()));
                }
                self.session = Some((session, at));
                Ok(())
            }
            Some((session, _)) => Err(LeaseFault::Lost(format!(
                "the session of {} is now epoch {}, opened at {} by another process",
                self.identity.holder, session.epoch, session.since
            ))),
            None => Err(LeaseFault::Lost("this host's session record is gone".into())),
        }
    }

    /// Rewrites the session, so that nothing sent before can commit any more.
    async fn barrier_once(&mut self) -> Result<(), LeaseFault> {
        for _ in 0..TRIES {
            self.read_session().await?;
            let (mut record, at) = self.session().map_err(unavailable)?.clone();
            record.agent_id = self.agent_id.clone().or(record.agent_id);
            match self.commit(self.writer.session(at, &record)).await {
                Ok(at) => {
                    self.session = Some((record, at));
                    return Ok(());
                }
                // An own write of before came through, or this one did: read, and write again.
                Err(StoreError::Conflict | StoreError::Unknown(_)) => {}
                Err(error) => return Err(unavailable(error)),
            }
        }
        Err(LeaseFault::Unavailable("the session could not be rewritten".into()))
    }

    /// As [`Leases::barrier_once`], until it is done: nothing else may happen before.
    async fn barrier(&mut self) -> Result<(), LeaseFault> {
        let mut waiting = Waiting::new("to close a write of unknown outcome");
        loop {
            match self.barrier_once().await {
                Err(LeaseFault::Unavailable(why)) => waiting.pause(&why).await,
                done => return done,
            }
        }
    }

    /// Takes all these leases in one transaction, or none.
    ///
    /// # Errors
    /// A sentence for the task: who holds which, or what is wrong with etcd.
    pub async fn acquire(
        &mut self,
        volumes: &[VolumeId],
        container: &ContainerId,
        agent_id: Option<&str>,
    ) -> Result<Token, String> {
        if let Some(agent_id) = agent_id {
            self.serve_agent(agent_id).await;
        }
        let mut tries = 0..TRIES;
        // Once a write may have been done, only etcd can say that it was not.
        let mut uncertain: Option<Waiting> = None;
        while tries.next().is_some() {
            let rewrites = loop {
                match (self.claims(volumes, container, agent_id).await, &mut uncertain) {
                    (Ok(rewrites), _) => break rewrites,
                    (Err(NoClaim::Held(why)), _) | (Err(NoClaim::Unavailable(why)), None) => return Err(why),
                    (Err(NoClaim::Unavailable(why)), Some(waiting)) => waiting.pause(&why).await,
                }
            };
            let transaction = self.leases_transaction(&rewrites).map_err(|error| sentence(&error))?;
            match self.commit(transaction).await {
                Ok(at) => {
                    self.leases.extend(rewrites.into_iter().map(|r| (r.volume, (r.record, at))));
                    return Ok(Token(at));
                }
                Err(StoreError::Conflict) => match (self.read_session().await, &mut uncertain) {
                    (Err(LeaseFault::Unavailable(why)), Some(waiting)) => {
                        waiting.pause(&why).await;
                        tries = 0..TRIES;
                    }
                    (read, _) => read.map_err(text)?,
                },
                Err(StoreError::Unknown(error)) => {
                    tracing::warn!("an acquire got no answer, and is closed by a barrier: {error}");
                    self.barrier().await.map_err(text)?;
                    uncertain.get_or_insert_with(|| Waiting::new("to learn whether leases were taken"));
                }
                Err(error) if uncertain.is_none() => return Err(sentence(&error)),
                Err(error) => {
                    if let Some(waiting) = &mut uncertain {
                        waiting.pause(&sentence(&error)).await;
                    }
                    tries = 0..TRIES;
                }
            }
        }
        Err("the leases changed too often to be taken".into())
    }

    /// Reads the leases, and says how they would be rewritten; or who holds one.
    async fn claims(
        &self,
        volumes: &[VolumeId],
        container: &ContainerId,
        agent_id: Option<&str>,
    ) -> Result<Vec<Rewrite>, NoClaim> {
        let text = |error: StoreError| match error {
            // Not what this keeper wrote: nothing of it is waited for.
            StoreError::Corrupt { .. } => NoClaim::Held(sentence(&error)),
            _ => NoClaim::Unavailable(sentence(&error)),
        };
        let (session, _) = self.session().map_err(text)?;
        let keys: Vec<String> = volumes.iter().map(|volume| self.keys.lease(volume)).collect();
        let snapshot = self.store.get(&keys).await.map_err(text)?;
        let mut leases = Vec::new();
        let mut owners = BTreeSet::new();
        for (volume, key) in volumes.iter().zip(&keys) {
            let lease = read::<LeaseRecord>(&snapshot, key).map_err(text)?;
            let held = lease.as_ref().and_then(|(lease, _)| lease.held());
            owners.extend(held.map(|h| h.holder.clone()).filter(|h| *h != self.identity.holder));
            leases.push((volume, lease));
        }
        let mut sessions: BTreeMap<Holder, (SessionRecord, Revision)> = BTreeMap::new();
        if !owners.is_empty() {
            let keys: Vec<String> = owners.iter().map(|owner| self.keys.session(owner)).collect();
            let snapshot = self.store.get(&keys).await.map_err(text)?;
            for (owner, key) in owners.into_iter().zip(&keys) {
                if let Some(session) = read(&snapshot, key).map_err(text)? {
                    sessions.insert(owner, session);
                }
            }
        }
        let mut rewrites = Vec::new();
        for (volume, lease) in leases {
            let (lease, at) = lease.map_or((None, Revision::ABSENT), |(lease, at)| (Some(lease), at));
            let owner = lease.as_ref().and_then(|lease| sessions.get(&lease.held()?.holder));
            let me = &self.identity.holder;
            let taken_from = match claim(lease.as_ref(), me, session.epoch, owner.map(|(s, _)| s)) {
                // Mine: an acquire whose answer was lost, and which the barrier has closed.
                Claim::Free | Claim::Mine(_) | Claim::MineBefore(_) => None,
                Claim::LeftBehind(held) => owner.map(|(_, at)| (held.holder.clone(), *at)),
                Claim::Held(held) => return Err(NoClaim::Held(held_elsewhere(volume, held))),
            };
            let record = LeaseRecord::Attaching(HeldLease {
                holder: me.clone(),
                epoch: session.epoch,
                token: None,
                since: now(),
                agent_id: agent_id.map(str::to_owned),
                containers: BTreeSet::from([container.clone()]),
                mount_point: None,
            });
            rewrites.push(Rewrite { volume: volume.clone(), at, record, taken_from });
        }
        Ok(rewrites)
    }

    /// Rewrites a lease of this session.
    ///
    /// # Errors
    /// When etcd is out of reach, or the lease is no longer this session's.
    pub async fn rewrite(
        &mut self,
        volume: &VolumeId,
        change: impl Fn(HeldLease) -> LeaseRecord,
    ) -> Result<(), LeaseFault> {
        for _ in 0..TRIES {
            let (_, session_at) = *self.session().map_err(unavailable)?;
            let Some((lease, at)) = self.leases.get(volume) else {
                return Err(LeaseFault::Lost("this host has no such lease".into()));
            };
            let Some(held) = lease.held() else {
                return Err(LeaseFault::Lost("the lease is free".into()));
            };
            let mut held = held.clone();
            held.token = Some(token(&held, *at));
            let record = change(held);
            let rewrite = Rewrite { volume: volume.clone(), at: *at, record, taken_from: None };
            match self.commit(self.writer.leases(session_at, std::slice::from_ref(&rewrite))).await {
                Ok(at) if rewrite.record.held().is_some() => {
                    self.leases.insert(volume.clone(), (rewrite.record, at));
                    return Ok(());
                }
                Ok(_) => {
                    self.leases.remove(volume);
                    return Ok(());
                }
                Err(StoreError::Conflict) => self.read_session().await?,
                Err(StoreError::Unknown(error)) => {
                    tracing::warn!("a lease's rewrite got no answer, and is closed by a barrier: {error}");
                    self.barrier().await?;
                }
                Err(error) => return Err(unavailable(error)),
            }
            self.read_lease(volume, rewrite.record.held().is_none()).await?;
            if !self.leases.contains_key(volume) {
                return Ok(());
            }
        }
        Err(LeaseFault::Unavailable("the lease changed too often to be rewritten".into()))
    }

    /// Reads a lease again after a conflict or a barrier. When it was being freed, and is free or
    /// another's by now, the freeing was done.
    async fn read_lease(&mut self, volume: &VolumeId, freeing: bool) -> Result<(), LeaseFault> {
        let key = self.keys.lease(volume);
        let snapshot = self.store.get(std::slice::from_ref(&key)).await.map_err(unavailable)?;
        let epoch = self.session().map_err(unavailable)?.0.epoch;
        let lease = read::<LeaseRecord>(&snapshot, &key).map_err(unavailable)?;
        let before = self.leases.remove(volume);
        match lease {
            Some((lease, at))
                if matches!(claim(Some(&lease), &self.identity.holder, epoch, None), Claim::Mine(_)) =>
            {
                // The granting write carries no token: keep the one that is known.
                let known = before.as_ref().and_then(|(lease, at)| Some(token(lease.held()?, *at)));
                let lease = with_token(lease, known);
                self.leases.insert(volume.clone(), (lease, at));
                Ok(())
            }
            _ if freeing => Ok(()),
            Some((lease, _)) => {
                let holder = lease.held().map_or("nobody".into(), |held| held.holder.to_string());
                Err(LeaseFault::Lost(format!("etcd says that {holder} holds it")))
            }
            None => Err(LeaseFault::Lost("its lease record is gone".into())),
        }
    }

    /// Frees a lease of this session.
    ///
    /// # Errors
    /// As [`Leases::rewrite`].
    pub async fn release(&mut self, volume: &VolumeId) -> Result<(), LeaseFault> {
        let last_holder = Some(self.identity.holder.clone());
        let free = |_| LeaseRecord::Free { last_holder: last_holder.clone(), since: now() };
        self.rewrite(volume, free).await
    }
}

/// Why leases cannot be claimed.
enum NoClaim {
    /// Somebody else holds one, or may: its record cannot be read.
    Held(String),
    /// etcd did not say.
    Unavailable(String),
}

/// Waits for etcd, saying so now and then: the first time, the second, the fourth, and so on.
struct Waiting {
    what_for: &'static str,
    retry: Retry,
    failures: u64,
}

impl Waiting {
    fn new(what_for: &'static str) -> Self {
        let retry = Retry::new(Duration::from_millis(50), Duration::from_secs(2));
        Self { what_for, retry, failures: 0 }
    }

    async fn pause(&mut self, why: &str) {
        self.failures += 1;
        if self.failures.is_power_of_two() {
            tracing::warn!("waiting for etcd, {}: {why}", self.what_for);
        }
        tokio::time::sleep(self.retry.next_delay()).await;
    }
}

fn with_token(lease: LeaseRecord, token: Option<Token>) -> LeaseRecord {
    let keep = |held: HeldLease| HeldLease { token: held.token.or(token), ..held };
    match lease {
        LeaseRecord::Attaching(held) => LeaseRecord::Attaching(keep(held)),
        LeaseRecord::Attached(held) => LeaseRecord::Attached(keep(held)),
        LeaseRecord::Detaching(held) => LeaseRecord::Detaching(keep(held)),
        free @ LeaseRecord::Free { .. } => free,
    }
}

/// A record that cannot be read proves nothing of whose it is, and least of all that it is lost.
fn unavailable(error: StoreError) -> LeaseFault {
    LeaseFault::Unavailable(sentence(&error))
}

fn text(fault: LeaseFault) -> String {
    match fault {
        LeaseFault::Unavailable(why) | LeaseFault::Lost(why) => why,
    }
}
