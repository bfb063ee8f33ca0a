//! Tokens only grow: in etcd from grant to grant, and at the storage from Mount to Mount.

use std::collections::BTreeMap;

use crate::storage::journal::Event;
use crate::witness::check::{Case, moment};
use crate::witness::history::Grant;
use crate::witness::verdict::{Verdict, Violation};

/// What a Mount's ID begins with; the token follows.
const MOUNT_ID: &str = "extvol-";

pub(crate) fn check(case: &Case<'_>, verdict: &mut Verdict) {
    for (volume, history) in &case.history.volumes {
        let mut before: Option<&Grant> = None;
        for grant in &history.tokens {
            let same = |before: &&Grant| before.holder == grant.holder && before.epoch == grant.epoch;
            // A holder that was given it again in its session has a greater one; a rewritten lease keeps its own.
            let right = before
                .is_none_or(|last| grant.token > last.token || same(&last) && grant.token == last.token);
            if !right {
                verdict.violations.push(Violation::TokenWentBack {
                    volume: volume.clone(),
                    holder: grant.holder.as_str().to_owned(),
                    token: grant.token.0.0,
                    before: before.map_or(0, |before| before.token.0.0),
                    at: case.at(grant.seen),
                });
            }
            if before.is_none_or(|before| grant.token >= before.token) {
                before = Some(grant);
            }
        }
    }
    let mut greatest: BTreeMap<&str, i64> = BTreeMap::new();
    for entry in &case.journals.storage {
        let is_attach = matches!(entry.event, Event::Attach | Event::MultiAttach);
        let Some(mount_id) = entry.mount_id.as_ref().filter(|_| is_attach) else { continue };
        let Some(token) = mount_id.strip_prefix(MOUNT_ID).and_then(|token| token.parse::<i64>().ok()) else {
            continue;
        };
        let before = greatest.entry(&entry.volume).or_insert(token);
        if token < *before {
            verdict.violations.push(Violation::TokenWentBackAtStorage {
                volume: entry.volume.clone(),
                host: entry.host.clone().unwrap_or_default(),
                mount_id: mount_id.clone(),
                before: *before,
                seq: entry.seq,
                at: case.at(moment(entry)),
            });
        }
        *before = token.max(*before);
    }
}
