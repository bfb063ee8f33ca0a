//! Reads: some keys in one transaction, all keys below a prefix in pages, or both. Each at one revision.

use std::collections::BTreeMap;

use etcd_client::{GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::EtcdStore;
use super::fault::EtcdFault;
use crate::store::{Entry, OPERATIONS_MAX, Revision, Snapshot};

/// Keys in one page: with records of some 300 bytes less than a megabyte, which a member reads in a
/// few milliseconds. Larger answers would hold up the beats of others.
const PAGE_KEYS: i64 = 2_000;

/// How often a read in pages begins again because history was compacted beneath it. Compaction comes
/// every few minutes; more than one in a read means that this will not succeed.
const RESTARTS_MAX: usize = 2;

impl EtcdStore {
    pub(super) async fn read_keys(&self, keys: &[String]) -> Result<Snapshot, EtcdFault> {
        let mut snapshot = Snapshot::default();
        if keys.is_empty() {
            return Ok(snapshot);
        }
        for chunk in keys.chunks(OPERATIONS_MAX) {
            // The first chunk is read at the newest revision, the rest at that same one.
            let at = (snapshot.revision > Revision::ABSENT).then_some(snapshot.revision);
            let options = at.map(|at| GetOptions::new().with_revision(at.0));
            let gets: Vec<_> = chunk.iter().map(|key| TxnOp::get(key.as_str(), options.clone())).collect();
            let txn = Txn::new().and_then(gets);
            let (answer, chosen, at_send) = self
                .ask(|mut clients| {
                    let txn = txn.clone();
                    async move { clients.kv.txn(txn).await }
                })
                .await?;
            let revision = self.history.check(&chosen.member.endpoint, at_send, answer.header())?;
            let Snapshot { mut entries, .. } = of_transaction(revision, &answer);
            snapshot.entries.append(&mut entries);
            snapshot.revision = at.unwrap_or(revision);
        }
        Ok(snapshot)
    }

    pub(super) async fn read_prefix(&self, prefix: &str) -> Result<Snapshot, EtcdFault> {
        let mut restarts = 0;
        loop {
            let mut snapshot = Snapshot::default();
            match self.read_pages(prefix, prefix.as_bytes().to_vec(), &mut snapshot).await {
                Err(EtcdFault::Compacted { .. }) if restarts < RESTARTS_MAX => restarts += 1,
                result => return result.map(|()| snapshot),
            }
        }
    }

    /// Some keys and all keys below some prefixes: the first page of each in one round trip, which is all
    /// there is to it in a small cluster.
    pub(super) async fn read_all(&self, keys: &[String], prefixes: &[String]) -> Result<Snapshot, EtcdFault> {
        let mut restarts = 0;
        loop {
            match self.read_all_once(keys, prefixes).await {
                Err(EtcdFault::Compacted { .. }) if restarts < RESTARTS_MAX => restarts += 1,
                result => return result,
            }
        }
    }

    async fn read_all_once(&self, keys: &[String], prefixes: &[String]) -> Result<Snapshot, EtcdFault> {
        let operations = keys.len() + prefixes.len();
        // A host with many leases: they are read one after the other, at the revision of the first.
        if operations == 0 || operations > OPERATIONS_MAX || prefixes.is_empty() {
            let mut snapshot = self.read_keys(keys).await?;
            for prefix in prefixes {
                self.read_pages(prefix, prefix.as_bytes().to_vec(), &mut snapshot).await?;
            }
            return Ok(snapshot);
        }
        let gets = keys.iter().map(|key| TxnOp::get(key.as_str(), None));
        let page = PAGE_KEYS / i64::try_from(prefixes.len()).unwrap_or(PAGE_KEYS);
        let ranges = prefixes.iter().map(|prefix| {
            let end = after_prefix(prefix.as_bytes());
            TxnOp::get(prefix.as_str(), Some(GetOptions::new().with_range(end).with_limit(page.max(1))))
        });
        let txn = Txn::new().and_then(gets.chain(ranges).collect::<Vec<_>>());
        let (answer, chosen, at_send) = self
            .ask(|mut clients| {
                let txn = txn.clone();
                async move { clients.kv.txn(txn).await }
            })
            .await?;
        let revision = self.history.check(&chosen.member.endpoint, at_send, answer.header())?;
        let mut snapshot = Snapshot { revision, ..Snapshot::default() };
        let mut unfinished = Vec::new();
        for (n, response) in answer.op_responses().into_iter().enumerate() {
            let TxnOpResponse::Get(mut get) = response else { continue };
            let (more, page) = (get.more(), get.take_kvs());
            if let (true, Some(last), Some(prefix)) =
                (more, page.last(), n.checked_sub(keys.len()).and_then(|n| prefixes.get(n)))
            {
                unfinished.push((prefix, next_key(last)));
            }
            collect(&mut snapshot.entries, page);
        }
        for (prefix, from) in unfinished {
            self.read_pages(prefix, from, &mut snapshot).await?;
        }
        Ok(snapshot)
    }

    /// The keys of `prefix` that are not before `from`, at the revision of `snapshot`; at the newest, and
    /// that is its revision then, when it has none.
    async fn read_pages(
        &self,
        prefix: &str,
        mut from: Vec<u8>,
        snapshot: &mut Snapshot,
    ) -> Result<(), EtcdFault> {
        let end = after_prefix(prefix.as_bytes());
        loop {
            let at = (snapshot.revision > Revision::ABSENT).then_some(snapshot.revision);
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(PAGE_KEYS)
                .with_revision(at.unwrap_or_default().0);
            let asked = self
                .ask(|mut clients| {
                    let (from, options) = (from.clone(), options.clone());
                    async move { clients.kv.get(from, Some(options)).await }
                })
                .await;
            let (mut answer, chosen, at_send) = match asked {
                Err(EtcdFault::Failed { member, reason }) if is_compacted(&reason) => {
                    return Err(EtcdFault::Compacted { member, at: snapshot.revision });
                }
                asked => asked?,
            };
            let revision = self.history.check(&chosen.member.endpoint, at_send, answer.header())?;
            snapshot.revision = at.unwrap_or(revision);
            let more = answer.more();
            let page = answer.take_kvs();
            let next = page.last().filter(|_| more).map(next_key);
            collect(&mut snapshot.entries, page);
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }
}

/// What a transaction has read whose compares did not hold.
pub(super) fn of_transaction(revision: Revision, answer: &TxnResponse) -> Snapshot {
    let mut snapshot = Snapshot { revision, ..Snapshot::default() };
    for response in answer.op_responses() {
        if let TxnOpResponse::Get(mut get) = response {
            collect(&mut snapshot.entries, get.take_kvs());
        }
    }
    snapshot
}

/// The least key above it.
fn next_key(last: &KeyValue) -> Vec<u8> {
    [last.key(), &[0]].concat()
}

/// etcd says so with the code OutOfRange and these words, and has no other sign.
pub(super) fn is_compacted(reason: &str) -> bool {
    reason.contains("required revision has been compacted")
}

/// A key that is not UTF-8 is none of ours, and is shown as near as it can be: one stray key must
/// not keep all others from being read.
fn collect(entries: &mut BTreeMap<String, Entry>, page: Vec<KeyValue>) {
    for kv in page {
        let mod_revision = Revision(kv.mod_revision());
        let (key, value) = kv.into_key_value();
        entries.insert(key_text(key), Entry { value, mod_revision });
    }
}

/// A key as text.
pub(super) fn key_text(key: Vec<u8>) -> String {
    String::from_utf8(key).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The end of the range of all keys that begin with `prefix`, as etcd wants it.
pub(super) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Of all keys.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(after_prefix(b"/a/"), b"/a0");
        assert_eq!(after_prefix(b"a\xff"), b"b");
        assert_eq!(after_prefix(b""), b"\0");
    }
}
