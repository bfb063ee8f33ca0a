//! Keepers that are not there, not willing, or not whole. Each wait of Mesos ends when it was
//! promised to, and what the keeper must know reaches it in the end.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use agent_isolator::keeper::deadman::{DEADLINE, LOCK};
use agent_isolator::keeper::shared_memory::SharedMemory;
use agent_isolator::wire::{Call, CallLine, LINE_BYTES_MAX};
use testing::wait_until;

use crate::agent::{Agent, config, id, raw_id};
use crate::stand_in::StandIn;

/// What a busy machine may add to a bound.
const SLACK: Duration = Duration::from_secs(2);
/// `prepare_timeout` of 1 s, and the grace for a keeper that is not there.
const PREPARE: Duration = Duration::from_secs(3);
const NOTICE: Duration = Duration::from_secs(5);

const SHORT: (&str, &str) = ("prepare_timeout", "1secs");
const VOLUME: [(&str, &str); 1] = [("extvol.name", "a")];

#[track_caller]
fn assert_about(elapsed: Duration, expected: Duration) {
    assert!((expected..expected + SLACK).contains(&elapsed), "{elapsed:?}, not {expected:?}");
}

/// Under systemd no program is ever started by the module, and there is nothing to test of it.
fn programs_are_started() -> bool {
    !Path::new("/run/systemd/system").is_dir()
}

fn agent_with_program(directory: tempfile::TempDir, script: &str) -> Agent {
    let program = directory.path().join("keeper");
    std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}\n", directory.path().display())).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    Agent::start_in(directory, &[SHORT, ("keeper", program.to_str().unwrap())])
}

#[test]
fn a_keeper_program_that_hangs_holds_up_no_deadline() {
    if !programs_are_started() {
        return;
    }
    let script = "echo $$ > pid.part; mv pid.part pid; exec sleep 60";
    let agent = agent_with_program(tempfile::tempdir().unwrap(), script);
    let (recover, prepare) = (agent.recover(&[], &[]), agent.prepare(&id("c"), &config(&VOLUME, &[])));
    let (answer, elapsed) = prepare.ended();
    let error = answer.unwrap_err();
    assert!(error.contains("/keeper was called to start one, and has not ended yet"), "{error}");
    assert_about(elapsed, PREPARE);
    let (answer, elapsed) = recover.ended();
    assert_eq!(answer, Ok(()));
    assert_about(elapsed, NOTICE);
    // It is not left behind either.
    let pid = std::fs::read_to_string(agent.directory.path().join("pid")).unwrap();
    let process = Path::new("/proc").join(pid.trim());
    wait_until("the program is killed", || !process.exists());
    let again = agent.prepare(&id("c"), &config(&VOLUME, &[])).answer().unwrap_err();
    assert!(again.contains("did not end within 10s, and was killed"), "{again}");
    if let Ok(pid) = std::fs::read_to_string(agent.directory.path().join("pid")) {
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn what_a_keeper_program_says_when_it_fails_reaches_the_user() {
    if !programs_are_started() {
        return;
    }
    let agent = agent_with_program(tempfile::tempdir().unwrap(), "echo the disk is full >&2; exit 3");
    let (answer, elapsed) = agent.prepare(&id("c"), &config(&VOLUME, &[])).ended();
    let error = answer.unwrap_err();
    assert!(error.contains("could not be started: exit status: 3: the disk is full"), "{error}");
    assert_about(elapsed, PREPARE);
}

#[test]
fn where_a_keeper_runs_that_does_not_answer_yet_none_is_started_and_it_is_said() {
    if !programs_are_started() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let shared = SharedMemory::create(&directory.path().join(DEADLINE)).unwrap();
    let lock = std::fs::File::create(directory.path().join(LOCK)).unwrap();
    lock.try_lock().unwrap();
    let agent = agent_with_program(directory, "echo >> started; exit 1");
    let error = agent.prepare(&id("c"), &config(&VOLUME, &[])).answer().unwrap_err();
    let runs = format!("the keeper on this host, process {}, has not begun to listen", std::process::id());
    assert!(error.contains(&runs), "{error}");
    shared.flag();
    let error = agent.prepare(&id("d"), &config(&VOLUME, &[])).answer().unwrap_err();
    assert!(error.contains("this host is being fenced by its keeper"), "{error}");
    let started = agent.directory.path().join("started");
    assert!(!started.exists());
    // Nobody holds the lock any more: then one is.
    drop(lock);
    wait_until("a keeper is started", || started.exists());
}

#[test]
fn a_keeper_is_started_where_none_answers_and_given_the_parameters() {
    if !programs_are_started() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = directory.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let keeper = StandIn::listen(&elsewhere);
    let agent = agent_with_program(directory, "echo \"$@\" > arguments; mv elsewhere/keeper.sock .");
    let told = agent.recover(&[], &[]);
    let mut connection = keeper.connected();
    let recover = connection.next();
    connection.done(recover.id);
    let (answer, elapsed) = told.ended();
    assert!(answer.is_ok() && elapsed < NOTICE, "{elapsed:?}");
    let arguments = std::fs::read_to_string(agent.directory.path().join("arguments")).unwrap();
    assert!(
        arguments.starts_with("--detach ") && arguments.contains(" --etcd_endpoints=127.0.0.1:1 --holder=h "),
        "{arguments}"
    );
}

#[test]
fn a_keeper_that_reads_nothing_holds_up_no_deadline_and_is_told_all_once_it_reads() {
    const CLEANUPS: usize = 3000;
    let (agent, keeper) = Agent::with_keeper(&[SHORT]);
    let mut connection = keeper.connected();
    let name = |i: usize| format!("{i:0200}");
    let first: Vec<_> = (0..CLEANUPS).map(|i| agent.cleanup(&id(&name(i)))).collect();
    let prepare = agent.prepare(&id("late"), &config(&VOLUME, &[]));
    let (answer, elapsed) = prepare.ended();
    let error = answer.unwrap_err();
    assert!(error.contains("gave no answer in time: it has the call, or reads nothing"), "{error}");
    assert_about(elapsed, PREPARE);
    for cleanup in first {
        let (answer, elapsed) = cleanup.ended();
        assert_eq!(answer, Ok(()));
        assert_about(elapsed, NOTICE);
    }
    let last = agent.cleanup(&id("last"));
    let container = |call| match call {
        Call::Cleanup { container, .. } => container.as_str().to_owned(),
        // The prepare has ended long ago: to make it now would mount for nobody.
        other => panic!("{other:?}"),
    };
    for i in 0..CLEANUPS {
        assert_eq!(container(connection.next().call), name(i));
    }
    let CallLine { id, call } = connection.next();
    assert_eq!(container(call), "last");
    connection.done(id);
    assert_eq!(last.answer(), Ok(()));
}

#[test]
fn a_keeper_that_refuses_the_module_fails_launches_at_once_and_is_told_the_rest_later() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let cleanup = agent.cleanup(&id("gone"));
    let waits = agent.prepare(&id("c1"), &config(&VOLUME, &[]));
    let mut connection = keeper.accept();
    let (hello, parameters) = connection.hello();
    assert_eq!(parameters["holder"], "h");
    connection.refuse(hello, "upgrade the older one");
    connection.closed();
    let refused = "extvol-keeper on this host refuses the agent's module: upgrade the older one";
    assert_eq!(waits.answer().unwrap_err(), refused);
    assert_eq!(agent.prepare(&id("c2"), &config(&VOLUME, &[])).answer().unwrap_err(), refused);
    assert_eq!(agent.isolate(&id("c2")).answer().unwrap_err(), refused);
    // The keeper is upgraded.
    let mut connection = keeper.connected();
    let CallLine { id: cleanup_id, call } = connection.next();
    assert!(matches!(&call, Call::Cleanup { container, .. } if container.as_str() == "gone"), "{call:?}");
    connection.done(cleanup_id);
    assert_eq!(cleanup.answer(), Ok(()));
    let prepare = agent.prepare(&id("c3"), &config(&VOLUME, &[]));
    let call = connection.next();
    connection.prepared(call.id, &["/m/a"]);
    assert_eq!(prepare.answer().unwrap().unwrap().mounts, []);
}

#[test]
fn a_connection_that_breaks_half_way_repeats_all_calls_in_their_order() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.connected();
    let recover = agent.recover(&[], &[]);
    let prepare = agent.prepare(&id("c1"), &config(&VOLUME, &[]));
    let cleanup = agent.cleanup(&id("c2"));
    let answered = agent.cleanup(&id("c3"));
    let calls: Vec<_> = (0..4).map(|_| connection.next()).collect();
    connection.done(calls[3].id);
    assert_eq!(answered.answer(), Ok(()));
    connection.write(&format!("{{\"id\":{},\"ans", calls[0].id));
    drop(connection);
    let mut connection = keeper.connected();
    let isolate = agent.isolate(&id("c1"));
    let again: Vec<_> = (0..4).map(|_| connection.next()).collect();
    assert_eq!(again[..3], calls[..3]);
    assert!(matches!(again[3].call, Call::Isolate { .. }), "{:?}", again[3]);
    for call in &again {
        match call.call {
            Call::Prepare { .. } => connection.prepared(call.id, &["/m/a"]),
            _ => connection.done(call.id),
        }
    }
    assert!(recover.answer().is_ok() && cleanup.answer().is_ok() && isolate.answer().is_ok());
    assert!(prepare.answer().unwrap().is_some());
}

#[test]
fn a_notice_lets_mesos_go_on_at_its_deadline_and_is_told_to_a_later_keeper() {
    let agent = Agent::start(&[]);
    let told = agent.cleanup(&id("c"));
    let (answer, elapsed) = told.ended();
    assert_eq!(answer, Ok(()));
    assert_about(elapsed, NOTICE);
    let keeper = StandIn::listen(agent.directory.path());
    let mut connection = keeper.connected();
    let before = connection.next();
    assert!(matches!(&before.call, Call::Cleanup { container, .. } if container.as_str() == "c"));
    drop(connection);
    let mut connection = keeper.connected();
    assert_eq!(connection.next(), before);
    // Until it is answered, and no longer.
    connection.done(before.id);
    let next = agent.cleanup(&id("next"));
    let after = connection.next();
    connection.done(after.id);
    assert_eq!(next.answer(), Ok(()));
    drop(connection);
    let mut connection = keeper.connected();
    drop(agent.cleanup(&id("last")));
    assert!(connection.next().id > after.id);
}

#[test]
fn a_keeper_that_refuses_what_it_is_told_fails_neither_recover_nor_cleanup() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.connected();
    for told in [agent.recover(&[], &[]), agent.cleanup(&id("c"))] {
        let call = connection.next();
        connection.refuse(call.id, "no");
        assert_eq!(told.answer(), Ok(()));
    }
}

#[test]
fn a_line_of_the_keeper_that_is_too_long_ends_the_connection_and_no_call() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.connected();
    let told = agent.cleanup(&id("c"));
    let before = connection.next();
    connection.flood(LINE_BYTES_MAX + 1);
    connection.closed();
    let mut connection = keeper.connected();
    assert_eq!(connection.next(), before);
    connection.done(before.id);
    assert_eq!(told.answer(), Ok(()));
}

#[test]
fn a_call_that_is_too_long_for_a_line_is_not_made_and_holds_up_no_other() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.connected();
    let long = "k=".to_owned() + &"v".repeat(2 << 20);
    let labels = [("extvol.name", "a"), ("extvol.options", long.as_str())];
    let error = agent.prepare(&id("c"), &config(&labels, &[])).answer().unwrap_err();
    assert!(error.contains("label extvol.options: ") && error.len() < 1000, "{}", error.len());
    // Many containers, all with long ids: more than a line holds.
    let known: Vec<_> = (0..5000).map(|i| raw_id([format!("{i:0240}").as_bytes()].into_iter())).collect();
    let recover = agent.recover(&known, &[]);
    let cleanup = agent.cleanup(&id("c"));
    let CallLine { id, call } = connection.next();
    assert!(matches!(call, Call::Cleanup { .. }), "{call:?}");
    connection.done(id);
    assert!(cleanup.answer().is_ok() && recover.answer().is_ok());
}

#[test]
fn a_panic_ends_one_call_and_no_watch() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.connected();
    let watch = agent.watch(&id("w"));
    agent.cleanup_that_panics(&id("c1"));
    let cleanup = agent.cleanup(&id("c2"));
    let (first, second) = (connection.next(), connection.next());
    connection.done(first.id);
    connection.done(second.id);
    assert_eq!(cleanup.answer(), Ok(()));
    assert!(watch.is_pending());
    connection.limit("w", "the lease is lost");
    assert_eq!(watch.answer().as_deref(), Ok("the lease is lost"));
}
