//! The checker against journals written by hand, sound and broken.

use super::{Entry, Event, Violation, check, holdings};

/// "event volume host attachment" with `-` for nothing; the sequence starts at 1.
fn journal(lines: &[&str]) -> Vec<Entry> {
    lines
        .iter()
        .zip(1..)
        .map(|(line, seq)| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let given = |index: usize| Some(words[index].to_owned()).filter(|word| word != "-");
            Entry {
                seq,
                at: "2026-01-01T00:00:00.000000Z".to_owned(),
                raw_ns: seq,
                event: serde_json::from_value(words[0].into()).unwrap(),
                volume: words[1].to_owned(),
                host: given(2),
                device: None,
                attachment: given(3),
                by: None,
                mount_id: None,
            }
        })
        .collect()
}

#[test]
fn sound_journals_pass() {
    for lines in [
        &[][..],
        &["attach v a 1", "detach v a 1", "attach v b 2"],
        &["attach v a 1", "force-detach v a 1", "attach v b 2"],
        &["attach v a 1", "refused v b -", "detach v a 1"],
        &["attach v a 1", "attach w b 2", "detach w b 2", "detach v a 1"],
        &["attach v a 1", "attach v a 1", "detach v a 1"],
    ] {
        assert_eq!(check(&journal(lines)), Ok(()), "{lines:?}");
    }
}

#[test]
fn two_hosts_at_one_time_are_told_with_both_names() {
    let entries = journal(&["attach v a 1", "attach w c 2", "attach v b 3"]);
    let violation = check(&entries).unwrap_err();
    assert_eq!(violation.to_string(), "volume v was attached to b (entry 3) while a had it (entry 1)");
    assert!(matches!(violation, Violation::TwoHosts { .. }));
}

#[test]
fn a_refusal_frees_nothing() {
    let entries = journal(&["attach v a 1", "refused v a -", "attach v b 2"]);
    assert!(matches!(check(&entries), Err(Violation::TwoHosts { .. })));
}

#[test]
fn a_detach_must_name_what_is_attached() {
    for lines in [
        &["detach v a 1"][..],
        &["attach v a 1", "detach v a 2"],
        &["attach v a 1", "force-detach v a -"],
        &["attach v a 1", "detach v a 1", "detach v a 1"],
    ] {
        assert!(matches!(check(&journal(lines)), Err(Violation::WrongDetach { .. })), "{lines:?}");
    }
}

#[test]
fn a_missing_line_and_a_doubled_line_are_found() {
    let mut entries = journal(&["attach v a 1", "detach v a 1", "attach v b 2"]);
    let doubled = entries[1].clone();
    entries.remove(1);
    assert_eq!(check(&entries), Err(Violation::Sequence { expected: 2, found: 3 }));
    entries.insert(1, doubled.clone());
    entries.insert(1, doubled);
    assert_eq!(check(&entries), Err(Violation::Sequence { expected: 3, found: 2 }));
}

#[test]
fn an_attach_without_a_host_proves_nothing() {
    assert!(matches!(check(&journal(&["attach v - 1"])), Err(Violation::Incomplete { .. })));
}

#[test]
fn the_end_of_the_journal_says_who_has_what() {
    let held = holdings(&journal(&["attach v a 1", "attach w b 2", "detach v a 1"])).unwrap();
    assert_eq!(held.keys().collect::<Vec<_>>(), ["w"]);
    assert_eq!(held["w"].host, "b");
}

#[test]
fn events_are_spelled_as_documented() {
    for (event, word) in [
        (Event::Attach, "attach"),
        (Event::Detach, "detach"),
        (Event::ForceDetach, "force-detach"),
        (Event::Refused, "refused"),
        (Event::MultiAttach, "multi-attach"),
        (Event::MultiDetach, "multi-detach"),
    ] {
        assert_eq!(serde_json::to_value(event).unwrap(), word);
    }
}
