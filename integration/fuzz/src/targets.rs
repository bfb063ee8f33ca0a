//! The targets: each takes any bytes, and panics when something does not hold that must hold for all.
//!
//! The fuzzer runs them (`make fuzz`), and a plain test replays the kept inputs (`integration/tests/fuzz_corpora.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use shared::event::{EventRecord, StandingRecord, TrimmedRecord};
use shared::exchange::{from_bytes, to_bytes};
use shared::keys::Keys;
use shared::protocol::exchange::{ByTime, ClusterId, Instance, Key, Outcome, View};
use shared::protocol::holder::{Core, Deadline, Input, Output, Settings, Table};
use shared::protocol::timing::Profile;
use shared::record::{ClusterRecord, decode};
use shared::store::Revision;
use shared::volume::{Driver, Holder, NamingRules, VolumeId, VolumeName};
use shared::{parameters, quote};

/// A parser's name, and what is called with bytes for it.
type Target = (&'static str, fn(&[u8]));

/// By name. Each has its kept inputs in `corpus/<name>/`.
pub(crate) const TARGETS: &[Target] = &[
    ("agent_flags", agent_isolator::fuzzing::agent_flags),
    ("agent_list", master_module::fuzzing::agent_list),
    ("agent_state", agent_isolator::fuzzing::agent_state),
    ("certificates", agent_isolator::fuzzing::certificates),
    ("events", events),
    ("keys", keys),
    ("managed_plugin", agent_isolator::fuzzing::managed_plugin),
    ("mount_table", agent_isolator::fuzzing::mount_table),
    ("names", names),
    ("parameters", module_parameters),
    ("plugin_answer", agent_isolator::fuzzing::plugin_answer),
    ("plugin_file", agent_isolator::fuzzing::plugin_file),
    ("plugin_tls", agent_isolator::fuzzing::plugin_tls),
    ("quote", quoted),
    ("records", records),
    ("table", table),
    ("task", agent_isolator::fuzzing::task),
    ("view", view),
    ("wire_line", agent_isolator::fuzzing::wire_line),
];

fn holder() -> Holder {
    Holder::new("h").expect("a good name")
}

fn volume() -> VolumeId {
    VolumeId {
        driver: Driver::new("ebs").expect("a good name"),
        name: VolumeName::new("v").expect("a good name"),
    }
}

/// Leases, sessions, beats and the storm guard, whoever wrote them: what is read is written as it was read.
fn records(bytes: &[u8]) {
    for key in [
        Key::Lease(volume()),
        Key::Held(holder(), volume()),
        Key::Session(holder()),
        Key::Beat(holder()),
        Key::Storm,
    ] {
        let Ok(record) = from_bytes(&key, bytes) else { continue };
        let now = "2026-01-02T03:04:05Z";
        let again = from_bytes(&key, &to_bytes(&record, now)).expect("what this program writes it can read");
        // The time of the writing is not the record's.
        assert_eq!(
            to_bytes(&again, now),
            to_bytes(&from_bytes(&key, &to_bytes(&again, now)).expect("read"), now)
        );
    }
}

/// Events and what is kept for them, and the installation's record.
fn events(bytes: &[u8]) {
    let _event = decode::<EventRecord>(bytes);
    let _standing = decode::<StandingRecord>(bytes);
    let _trimmed = decode::<TrimmedRecord>(bytes);
    let _cluster = decode::<ClusterRecord>(bytes);
}

/// Keys below the prefix: what is understood is exactly what this program would write.
fn keys(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let keys = Keys::new("/x");
    for key in [text.to_owned(), format!("{}{text}", keys.leases()), format!("{}{text}", keys.sessions())] {
        if let Some(volume) = keys.volume_of(&key) {
            assert_eq!(keys.lease(&volume), key);
        }
        if let Some(holder) = keys.holder_of(&key) {
            assert_eq!(keys.session(&holder), key);
        }
        if let Some(holder) = keys.holder_of_beat(&key) {
            assert_eq!(keys.beat(&holder), key);
        }
        let subject = keys.subject_of_record(&key);
        assert!(keys.event_of(&keys.event(Revision(7), &subject)).is_some());
    }
}

/// Names of volumes: the canonical name is its own canonical name, and has a key of its own.
fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (driver, name) = text.split_once('/').unwrap_or(("ebs", text));
    let (Ok(driver), Ok(name)) = (Driver::new(driver), VolumeName::new(name)) else { return };
    let volume = VolumeId { driver, name };
    let aliases = [("rexray", "ebs")]
        .map(|(alias, of)| (Driver::new(alias).expect("a good name"), Driver::new(of).expect("a good name")));
    let rules = NamingRules { driver_aliases: BTreeMap::from(aliases), ..NamingRules::default() };
    let Ok(canonical) = rules.canonical(&volume) else { return };
    assert_eq!(rules.canonical(&canonical).ok().as_ref(), Some(&canonical));
    let keys = Keys::new("/x");
    assert_eq!(keys.volume_of(&keys.lease(&canonical)), Some(canonical));
}

/// The parameters of a modules file: lines of `name=value`.
fn module_parameters(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let pairs: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect();
    let _refused_or_not = agent_isolator::parameters::IsolatorParameters::read(&pairs);
    let _duration = parameters::duration(text);
    let _endpoint = parameters::endpoint(text);
}

/// Foreign text on its way to a log or a terminal.
fn quoted(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let line = quote::line(&text);
    assert_eq!(quote::line(&line), line);
    assert!(!line.contains(|c: char| c.is_control()));
    let json = serde_json::to_string(&text).expect("a text has a JSON form");
    let shown = quote::json(&json);
    assert_eq!(serde_json::from_str::<String>(&shown).expect("it is JSON"), text);
    assert_eq!(quote::line(&shown), shown);
    assert!(quote::cut(&line, 7).chars().count() <= 7 + 45);
}

fn settings() -> Settings {
    Settings {
        holder: holder(),
        instance: Instance("i1".into()),
        machine: "m1".into(),
        boot: "b1".into(),
        timing: Profile::Default.timing(),
        by_time: ByTime::Allowed,
        means: [].into(),
        grace: Duration::from_secs(10),
        prepare_timeout: Duration::from_secs(45),
        wait_timeout: Duration::from_secs(15),
        start_timeout: Duration::from_secs(900),
        lead: Duration::from_millis(300),
        retry: (Duration::from_millis(100), Duration::from_secs(10)),
        settle: Duration::from_secs(120),
        settle_of: BTreeMap::new(),
        storage_fencing: [].into(),
        fencing_required: false,
    }
}

/// A stored table: a keeper begins with whatever it says, and goes on for a while.
fn table(bytes: &[u8]) {
    let Ok(table) = serde_json::from_slice::<Table>(bytes) else { return };
    let begin = Duration::from_secs(1_000);
    for fence_at in [None, Some(begin + Duration::from_secs(3))] {
        let deadline = Deadline { fence_at, fenced: false, generation: 1 };
        let mut core = Core::new(begin, settings(), table.clone(), deadline);
        for seconds in 0..20 {
            core.handle(begin + Duration::from_secs(seconds), Input::Tick);
            let _stored = core.table();
            while core.poll_output().is_some() {}
        }
    }
}

/// Records in etcd, one a line: the kind's letter (l, i, s, b), the name, a blank, the record. A keeper opens a session and
/// takes in what is there, whatever that is.
fn view(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut entries = BTreeMap::new();
    for (place, line) in text.lines().take(64).enumerate() {
        let Some((name, record)) = line.get(1..).and_then(|rest| rest.split_once(' ')) else { continue };
        let key = match line.as_bytes()[0] {
            b'l' => VolumeName::new(name).ok().map(|name| Key::Lease(VolumeId { name, ..volume() })),
            b'i' => VolumeName::new(name).ok().map(|name| Key::Held(holder(), VolumeId { name, ..volume() })),
            b's' => Holder::new(name).ok().map(Key::Session),
            b'b' => Holder::new(name).ok().map(Key::Beat),
            _ => None,
        };
        let Some(key) = key else { continue };
        if let Ok(record) = from_bytes(&key, record.as_bytes()) {
            let at = Revision(i64::try_from(place).unwrap_or_default() + 2);
            entries.insert(key, (record, at));
        }
    }
    let mut view = View { entries, ..View::new(ClusterId("c1".into()), Revision(100)) };
    let mut now = Duration::from_secs(1_000);
    let mut core = Core::new(now, settings(), Table::default(), Deadline::default());
    for _ in 0..200 {
        core.handle(now, Input::Tick);
        // It comes to rest: what it writes, it finds.
        for steps in 0.. {
            assert!(steps < 2_000, "it does not come to rest");
            let Some(output) = core.poll_output() else { break };
            carry_out(&mut core, now, &mut view, output);
        }
        now += Duration::from_millis(500);
    }
}

/// What a shell and etcd do with an output of the core.
fn carry_out(core: &mut Core, now: Duration, view: &mut View, output: Output) {
    match output {
        Output::Read { op, reading } => {
            core.handle(now, Input::Read(op, Ok(view.clone().of(&reading))));
        }
        Output::Commit { op, commit } => {
            let at = |key: &Key| view.entries.get(key).map_or(Revision::ABSENT, |(_, at)| *at);
            let outcome = match commit.compares.iter().all(|(key, expected)| at(key) == *expected) {
                true => {
                    view.revision.0 += 1;
                    let written = view.revision;
                    for (key, record) in commit.puts {
                        view.entries.insert(key, (record, written));
                    }
                    for key in &commit.deletes {
                        view.entries.remove(key);
                    }
                    Outcome::Done(view.revision)
                }
                false => Outcome::Conflict(None),
            };
            core.handle(now, Input::Committed(op, outcome));
        }
        Output::MakeSafe { op } => core.handle(now, Input::Safe(op, Ok(()))),
        _ => {}
    }
}
