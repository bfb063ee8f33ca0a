//! The checker: prepares what the journals say, and asks each rule.

use std::collections::{BTreeMap, BTreeSet};

use shared::keys::Keys;

use super::attempt::{Outcome, Write, WriterJournal};
use super::history::History;
use super::verdict::{Gap, Span, Summary, Verdict};
use super::{Journals, Moment, rules};
use crate::storage::journal::{Entry, Event};

/// What the rules look at.
pub(super) struct Case<'a> {
    pub(super) journals: &'a Journals,
    pub(super) history: History,
    /// The first entry of any journal.
    pub(super) began: Moment,
}

impl Case<'_> {
    /// Seconds since the beginning.
    pub(super) fn at(&self, moment: Moment) -> f64 {
        moment.seconds_since(self.began)
    }

    /// Some writes of a writer, in order, as one.
    pub(super) fn span(&self, journal: &WriterJournal, writes: &[Write]) -> Option<Span> {
        let (first, last) = (writes.first()?, writes.last()?);
        Some(Span {
            writer: journal.writer.clone(),
            writes: writes.len() as u64,
            from: first.number,
            to: last.number,
            began: self.at(first.tried),
            ended: self.at(last.acknowledged),
        })
    }
}

/// Judges.
#[must_use]
pub fn check(journals: &Journals, keys: &Keys) -> Verdict {
    let history = History::of(&journals.leases, keys, journals.until);
    let case = Case { began: began(journals), history, journals };
    let mut verdict = Verdict { incomplete: case.history.faults.clone(), ..Verdict::default() };
    rules::rights::check(&case, &mut verdict);
    rules::interleaving::check(&case, &mut verdict);
    rules::attachments::check(&case, &mut verdict);
    rules::tokens::check(&case, &mut verdict);
    rules::records::check(&case, &mut verdict);
    verdict.summary = summary(&case);
    verdict
}

/// The storage's entries as moments.
pub(super) fn moment(entry: &Entry) -> Moment {
    Moment(entry.raw_ns)
}

fn began(journals: &Journals) -> Moment {
    let storage = journals.storage.iter().map(moment);
    let writers = journals.writers.iter().flat_map(|writer| writer.found.iter().map(|(at, _)| *at));
    let leases = journals.leases.iter().filter_map(|line| match line {
        super::history::Line::Read { sent, .. } => Some(*sent),
        _ => None,
    });
    storage.chain(writers).chain(leases).min().unwrap_or_default()
}

fn summary(case: &Case<'_>) -> Summary {
    let writers = &case.journals.writers;
    let mut by_volume: BTreeMap<&str, Vec<(Moment, &str)>> = BTreeMap::new();
    for writer in writers {
        let writes = by_volume.entry(&writer.volume).or_default();
        writes.extend(writer.writes().map(|write| (write.acknowledged, writer.writer.host.as_str())));
    }
    by_volume.retain(|_, writes| !writes.is_empty());
    let (mut moves, mut gap) = (0, None::<(Moment, Gap)>);
    for (volume, writes) in &mut by_volume {
        writes.sort();
        for pair in writes.windows(2) {
            let [(before, from), (after, to)] = pair else { continue };
            moves += u64::from(from != to);
            let seconds = after.seconds_since(*before);
            if gap.as_ref().is_none_or(|(_, longest)| seconds > longest.seconds) {
                let (volume, at) = ((*volume).to_owned(), case.at(*before));
                let (from, to) = ((*from).to_owned(), (*to).to_owned());
                gap = Some((*before, Gap { volume, seconds, at, from, to }));
            }
        }
    }
    let hosts: BTreeSet<_> = by_volume.values().flatten().map(|(_, host)| host).collect();
    let failed = |attempt: &&super::attempt::Attempt| matches!(attempt.outcome, Outcome::Failed(_));
    Summary {
        writes: by_volume.values().map(|writes| writes.len() as u64).sum(),
        failed: writers.iter().map(|writer| writer.attempts.iter().filter(failed).count() as u64).sum(),
        writers: writers.len(),
        hosts: hosts.len(),
        volumes: by_volume.len(),
        moves,
        gap: gap.map(|(_, gap)| gap),
        refused: case.journals.storage.iter().filter(|entry| entry.event == Event::Refused).count() as u64,
    }
}
