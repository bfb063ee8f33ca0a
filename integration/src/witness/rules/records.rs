//! What is on the volume: every record that was acknowledged before somebody read it, in order, and nothing that nobody wrote.

use std::collections::BTreeSet;

use crate::witness::Moment;
use crate::witness::attempt::Write;
use crate::witness::check::Case;
use crate::witness::record::Reading;
use crate::witness::verdict::{Verdict, Violation};

struct Look<'a> {
    volume: &'a str,
    file: &'a str,
    at: Moment,
    reader: String,
    reading: &'a Reading,
}

pub(crate) fn check(case: &Case<'_>, verdict: &mut Verdict) {
    let writers = &case.journals.writers;
    let by_writers = writers.iter().flat_map(|journal| {
        let look = |(at, reading)| Look {
            volume: &journal.volume,
            file: &journal.file,
            at,
            reader: journal.writer.to_string(),
            reading,
        };
        journal.found.iter().map(move |(at, reading)| look((*at, reading)))
    });
    let at_last = case.journals.last.iter().map(|last| Look {
        volume: &last.volume,
        file: &last.file,
        at: last.at,
        reader: "the last reading".to_owned(),
        reading: &last.reading,
    });
    let mut looks: Vec<_> = by_writers.chain(at_last).collect();
    looks.sort_by_key(|look| look.at);
    // Each once, by who found it first.
    let (mut lost, mut unexplained, mut broken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for look in looks {
        let (volume, file, reader, at) =
            (look.volume.to_owned(), look.file.to_owned(), look.reader.clone(), case.at(look.at));
        for run in &look.reading.runs {
            let is_its = |number: &u64| {
                !writers.iter().any(|journal| journal.writer == run.writer && journal.tried(*number))
            };
            let Some(number) = (run.from..=run.to).find(is_its) else { continue };
            if unexplained.insert((volume.clone(), run.writer.clone(), number)) {
                let (volume, reader, writer) = (volume.clone(), reader.clone(), run.writer.clone());
                verdict.violations.push(Violation::Unexplained { volume, writer, number, reader, at });
            }
        }
        // Behind a fault nothing is read.
        if let Some(fault) = look.reading.fault.clone() {
            if broken.insert((volume.clone(), file.clone(), fault.clone())) {
                verdict.violations.push(Violation::Broken { volume, file, fault, reader, at });
            }
            continue;
        }
        let written =
            writers.iter().filter(|journal| journal.volume == look.volume && journal.file == look.file);
        for journal in written {
            let missing = |write: &Write| {
                write.acknowledged <= look.at && !look.reading.holds(&journal.writer, write.number)
            };
            let writes: Vec<_> = journal
                .writes()
                .filter(missing)
                .filter(|write| lost.insert((journal.writer.clone(), write.tried)))
                .collect();
            if let Some(span) = case.span(journal, &writes) {
                let (volume, file, reader) = (volume.clone(), file.clone(), reader.clone());
                verdict.violations.push(Violation::Lost { volume, file, span, reader, at });
            }
        }
    }
}
