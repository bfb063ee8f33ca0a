//! Reads: some keys in one transaction, or all keys below a prefix in pages. Either way all at one
//! revision.

use std::collections::BTreeMap;

use etcd_client::{GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};

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
            for response in answer.op_responses() {
                if let TxnOpResponse::Get(mut get) = response {
                    collect(&mut snapshot.entries, get.take_kvs());
                }
            }
            snapshot.revision = at.unwrap_or(revision);
        }
        Ok(snapshot)
    }

    pub(super) async fn read_prefix(&self, prefix: &str) -> Result<Snapshot, EtcdFault> {
        let mut restarts = 0;
        loop {
            match self.read_pages(prefix).await {
                Err(EtcdFault::Compacted { .. }) if restarts < RESTARTS_MAX => restarts += 1,
                result => return result,
            }
        }
    }

    async fn read_pages(&self, prefix: &str) -> Result<Snapshot, EtcdFault> {
        let end = after_prefix(prefix.as_bytes());
        let mut from = prefix.as_bytes().to_vec();
        let mut snapshot = Snapshot::default();
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
            let last = page.last().map(|kv| kv.key().to_vec());
            collect(&mut snapshot.entries, page);
            match last {
                Some(mut last) if more => {
                    // The least key above it.
                    last.push(0);
                    from = last;
                }
                _ => return Ok(snapshot),
            }
        }
    }
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
