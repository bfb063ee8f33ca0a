//! Nobody writes without the right to: the lease, in a session that is not over.

use crate::witness::attempt::Write;
use crate::witness::check::Case;
use crate::witness::history::{Step, VolumeHistory};
use crate::witness::verdict::{Breach, Verdict, Violation};

/// What a write without the right was.
#[derive(Clone, PartialEq)]
struct Wrong {
    second: bool,
    owner: String,
}

pub(crate) fn check(case: &Case<'_>, verdict: &mut Verdict) {
    for journal in &case.journals.writers {
        let Some(volume) = case.history.volumes.get(&journal.volume) else { continue };
        let mut group: Option<(Wrong, Vec<Write>)> = None;
        // Behind the last write, so that the last group is told as well.
        for write in journal.writes().map(Some).chain([None]) {
            let wrong = write.and_then(|write| judge(case, volume, &journal.writer.host, write));
            match (&mut group, wrong, write) {
                (Some((before, writes)), Some(wrong), Some(write)) if *before == wrong => writes.push(write),
                (_, wrong, write) => {
                    let done = std::mem::replace(
                        &mut group,
                        wrong.zip(write).map(|(wrong, write)| (wrong, vec![write])),
                    );
                    let Some((Wrong { second, owner }, writes)) = done else { continue };
                    let Some(span) = case.span(journal, &writes) else { continue };
                    let volume = journal.volume.clone();
                    if second {
                        verdict.violations.push(Violation::SecondWriter { volume, span, owner });
                    } else {
                        verdict.breaches.push(Breach { volume, span, owner });
                    }
                }
            }
        }
    }
}

fn judge(case: &Case<'_>, volume: &VolumeHistory, host: &str, write: Write) -> Option<Wrong> {
    let (time, until) = ((write.tried, write.acknowledged), case.history.until);
    let anothers = |step: &Step| step.owner.as_ref().is_none_or(|owner| owner.holder.as_str() != host);
    let step = volume.throughout(time, until, anothers)?;
    let mounted = |step: &Step| anothers(step) && step.owner.as_ref().is_some_and(|owner| owner.mounted);
    let second = volume.throughout(time, until, mounted);
    Some(Wrong { second: second.is_some(), owner: second.unwrap_or(step).says.clone() })
}
