//! The storage's part: one host at a time, nobody writes without an attachment, and nobody's volume is taken while it is his.

use std::collections::BTreeMap;

use crate::storage::journal::{self, Entry, Event};
use crate::witness::Moment;
use crate::witness::attempt::Write;
use crate::witness::check::{Case, moment};
use crate::witness::history::Step;
use crate::witness::verdict::{Verdict, Violation};

pub(crate) fn check(case: &Case<'_>, verdict: &mut Verdict) {
    verdict.violations.extend(journal::check(&case.journals.storage).err().map(Violation::Storage));
    unattached(case, verdict);
    taken(case, verdict);
}

/// From an attach to its detach, or to the end.
type Attached = (Moment, Option<Moment>);

/// When each host had each volume.
fn attached(entries: &[Entry]) -> BTreeMap<(&str, &str), Vec<Attached>> {
    let mut spans: BTreeMap<_, Vec<Attached>> = BTreeMap::new();
    for entry in entries {
        let Some(host) = entry.host.as_deref() else { continue };
        let spans = spans.entry((entry.volume.as_str(), host)).or_default();
        let open = spans.last_mut().filter(|(_, end)| end.is_none());
        match entry.event {
            Event::Refused => {}
            Event::Attach | Event::MultiAttach if open.is_none() => spans.push((moment(entry), None)),
            Event::Attach | Event::MultiAttach => {}
            Event::Detach | Event::ForceDetach | Event::MultiDetach => {
                if let Some((_, end)) = open {
                    *end = Some(moment(entry));
                }
            }
        }
    }
    spans
}

fn unattached(case: &Case<'_>, verdict: &mut Verdict) {
    let spans = attached(&case.journals.storage);
    for journal in &case.journals.writers {
        // Not a volume of this storage.
        if !case.journals.storage.iter().any(|entry| entry.volume == journal.volume) {
            continue;
        }
        let spans = spans.get(&(journal.volume.as_str(), journal.writer.host.as_str()));
        let outside = |write: &Write| {
            let overlaps =
                |(from, to): &Attached| *from <= write.acknowledged && to.is_none_or(|to| to > write.tried);
            !spans.is_some_and(|spans| spans.iter().any(overlaps))
        };
        let writes: Vec<_> = journal.writes().filter(outside).collect();
        if let Some(span) = case.span(journal, &writes) {
            verdict.violations.push(Violation::Unattached { volume: journal.volume.clone(), span });
        }
    }
}

fn taken(case: &Case<'_>, verdict: &mut Verdict) {
    for entry in &case.journals.storage {
        let is_detach = matches!(entry.event, Event::Detach | Event::ForceDetach | Event::MultiDetach);
        let (Some(victim), Some(volume)) = (&entry.host, case.history.volumes.get(&entry.volume)) else {
            continue;
        };
        if !is_detach || entry.by.as_ref() == Some(victim) {
            continue;
        }
        let at = moment(entry);
        let his = |step: &Step| step.owner.as_ref().is_some_and(|owner| owner.holder.as_str() == victim);
        if let Some(step) = volume.throughout((at, at), case.history.until, his) {
            verdict.violations.push(Violation::TakenFromOwner {
                volume: entry.volume.clone(),
                victim: victim.clone(),
                by: entry.by.clone().unwrap_or_else(|| "somebody without a name".to_owned()),
                seq: entry.seq,
                at: case.at(at),
                owner: step.says.clone(),
            });
        }
    }
}
