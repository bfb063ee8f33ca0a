//! No host writes between two writes of one life of a writer on another host. Needs neither leases nor storage.

use crate::witness::attempt::Write;
use crate::witness::check::Case;
use crate::witness::verdict::{Verdict, Violation};

pub(crate) fn check(case: &Case<'_>, verdict: &mut Verdict) {
    let writers = &case.journals.writers;
    for journal in writers {
        let (Some(first), Some(last)) = (journal.writes().next(), journal.writes().next_back()) else {
            continue;
        };
        let others = writers
            .iter()
            .filter(|other| other.volume == journal.volume && other.writer.host != journal.writer.host);
        for other in others {
            let between =
                |write: &Write| write.tried >= first.acknowledged && write.acknowledged <= last.tried;
            let writes: Vec<_> = other.writes().filter(between).collect();
            if let Some(other) = case.span(other, &writes) {
                let (volume, writer) = (journal.volume.clone(), journal.writer.clone());
                verdict.violations.push(Violation::Interleaved { volume, writer, other });
            }
        }
    }
}
