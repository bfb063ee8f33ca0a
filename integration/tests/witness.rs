//! The witness on real Mesos, etcd and file systems: clean moves are sound, and a protocol that is broken on purpose, in the
//! test alone, is caught.
//!
//! Where the storage attaches a volume to one host at a time it saves the day; so these tests tell it to behave like one that does
//! not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_isolator::keeper::shared_memory::SharedMemory;
use integration::cluster::ClusterConfig;
use integration::scheduler::{SchedulerConfig, TaskState};
use integration::storage::control::Switches;
use integration::storage::journal::Event;
use integration::trial::{Result, SOON, Trial, TrialError, app, app_with, lease_key, once};
use integration::witness::{Verdict, Violation};
use serde_json::{Value, json};
use shared::clock::holder_now;
use shared::record::LeaseRecord;

const SESSION: &str = "/extvol/v1/sessions/agent-1";

/// With the times of this profile; what an earlier holder's driver may still do is waited for half a second.
///
/// No keeper has storage take a volume away: the tests decide what it allows.
fn trial(profile: &str) -> Result<Trial> {
    trial_with(profile, |_| {})
}

fn trial_with(profile: &str, adapt: impl FnOnce(&mut ClusterConfig)) -> Result<Trial> {
    let mut config = ClusterConfig::complete(2, &["ebs"])?;
    config.set_agent_parameter("drivers", "ebs");
    config.set_agent_parameter("profile", profile);
    config.set_agent_parameter("settle_time", "500ms");
    config.set_master_parameter("profile", profile);
    adapt(&mut config);
    Trial::with(config, SchedulerConfig::default())
}

/// As [`trial`], with a storage that attaches a volume to every host that asks, and a writer of `vol-1` on agent-1.
fn written_on_shared_storage(profile: &str) -> Result<Trial> {
    written_on(trial(profile)?)
}

fn written_on(trial: Trial) -> Result<Trial> {
    trial.switch_storage(Switches { multi_attach: true, ..Switches::default() })?;
    writing(&trial)?;
    Ok(trial)
}

/// A writer of `vol-1` on agent-1, its lease written.
fn writing(trial: &Trial) -> Result<()> {
    trial.create_volume("vol-1")?;
    trial.run(once(app_with("writer", "agent-1", "vol-1", &trial.writer("vol-1")?)?))?;
    is_written(trial, 0)
}

fn is_written(trial: &Trial, host: usize) -> Result<()> {
    writes(trial, host)?;
    trial.wait_lease("ebs/vol-1", "is attached", |lease| matches!(lease, Some(LeaseRecord::Attached(_))))
}

/// Waits until the last two records on the volume, as this host sees it, are this host's: the first of them was acknowledged, for
/// the second is written after that.
fn writes(trial: &Trial, host: usize) -> Result<()> {
    let name = format!(" {}", trial.cluster.host(host).name());
    Ok(trial.cluster.wait_for(&format!("records of{name}"), SOON, || {
        let text = trial.read(host, "vol-1", "log").map_err(|error| error.to_string())?;
        let own = text.lines().rev().take_while(|line| line.ends_with(&name)).count();
        if own >= 2 && text.ends_with('\n') { Ok(()) } else { Err(text) }
    })?)
}

/// Tries on agent-2 until it has the volume.
fn taken_by_agent_2(trial: &Trial) -> Result<()> {
    trial.scheduler.run(app_with("taker", "agent-2", "vol-1", &trial.writer("vol-1")?)?)?;
    trial.scheduler.wait_until_running("taker", Instant::now() + SOON)?;
    writes(trial, 1)
}

/// Signals the keeper's processes of these names on agent-1, all at once.
fn signal_keeper(trial: &Trial, signal: &str, names: &[&str]) -> Result<()> {
    let mut argv = vec!["kill".to_owned(), format!("-{signal}")];
    for name in names {
        argv.extend(trial.processes(0, name)?);
    }
    assert_eq!(argv.len(), 2 + names.len(), "one process of each name: {argv:?}");
    trial.cluster.host(0).run(&argv)?;
    Ok(())
}

/// Declares agent-1's session dead, as a reclaimer that waits for nothing and compares nothing.
fn reclaimed_by_a_rogue(trial: &Trial) -> Result<()> {
    let text = trial.cluster.etcdctl(&["get", "--print-value-only", SESSION])?;
    let mut session: Value = serde_json::from_str(text.trim()).expect("a session's record");
    session["state"] = "dead".into();
    session["proof"] = "time".into();
    trial.cluster.etcdctl(&["put", SESSION, &session.to_string()])?;
    Ok(())
}

/// Waits until the witness has seen what is expected; its verdict.
fn seen(trial: &Trial, what: &str, is: impl Fn(&Verdict) -> bool) -> Result<Verdict> {
    let verdict = trial.cluster.wait_for(what, SOON, || {
        let verdict = trial.verdict().map_err(|error| error.to_string())?;
        if is(&verdict) { Ok(verdict) } else { Err(verdict.to_string()) }
    })?;
    println!("{verdict}");
    assert!(verdict.incomplete.is_empty(), "{verdict}");
    assert!(matches!(trial.witness(), Err(TrialError::Witness(_))), "it stays on record");
    Ok(verdict)
}

/// Writes of a host while the other had the volume mounted.
fn second_writer<'a>(host: &str) -> impl Fn(&'a Verdict) -> bool {
    move |verdict| {
        verdict.violations.iter().any(|violation| {
            matches!(violation, Violation::SecondWriter { span, owner, .. }
                if span.writer.host == host && owner.starts_with("agent-2 "))
        })
    }
}

fn agent_1_wrote_beside_agent_2(trial: &Trial) -> Result<Verdict> {
    seen(trial, "writes of agent-1 while agent-2 has the volume", |verdict| second_writer("agent-1")(verdict))
}

#[test]
fn mesos_clean_moves_are_sound_and_a_writer_without_its_volume_does_not_begin() -> Result<()> {
    let trial = trial("fast")?;
    let stray = once(app("stray", "agent-1", &format!("mkdir data && {}", trial.writer("vol-1")?), &[])?);
    assert_eq!(trial.run_to_end(stray)?.state, TaskState::Failed);
    writing(&trial)?;
    trial.stop("writer")?;
    taken_by_agent_2(&trial)?;
    trial.stop("taker")?;
    trial.wait_free("ebs/vol-1")?;
    trial.run(once(app_with("again", "agent-1", "vol-1", &trial.writer("vol-1")?)?))?;
    is_written(&trial, 0)?;
    trial.stop("again")?;
    trial.nothing_is_left()?;
    let verdict = trial.witness()?;
    println!("{verdict}");
    let summary = &verdict.summary;
    assert_eq!((summary.writers, summary.hosts, summary.volumes, summary.moves), (3, 2, 1, 2), "{verdict}");
    assert!(summary.writes >= 3 && summary.failed == 0, "{verdict}");
    Ok(())
}

/// agent-1 is cut off and has time left by its own clock; nobody waits for that.
#[test]
fn mesos_a_reclaim_that_is_too_early_is_caught() -> Result<()> {
    let trial = written_on_shared_storage("default")?;
    trial.cluster.host(0).set_link(false)?;
    reclaimed_by_a_rogue(&trial)?;
    taken_by_agent_2(&trial)?;
    agent_1_wrote_beside_agent_2(&trial)?;
    Ok(())
}

#[test]
fn mesos_a_reclaim_that_is_too_early_is_a_breach_where_the_storage_refuses_the_taker() -> Result<()> {
    let trial = trial("default")?;
    writing(&trial)?;
    trial.cluster.host(0).set_link(false)?;
    reclaimed_by_a_rogue(&trial)?;
    let ended = trial.run_to_end(once(app_with("taker", "agent-2", "vol-1", &trial.writer("vol-1")?)?))?;
    assert_eq!(ended.state, TaskState::Failed, "{ended:?}");
    let verdict =
        seen(&trial, "writes of agent-1 in a dead session", |verdict| !verdict.breaches.is_empty())?;
    assert!(verdict.violations.is_empty() && verdict.summary.refused > 0, "{verdict}");
    assert!(verdict.breaches.iter().all(|breach| breach.span.writer.host == "agent-1"), "{verdict}");
    Ok(())
}

/// A holder whose beats are refused, or never sent, and that goes on as if they had succeeded: its deadline moves on.
struct DeafHolder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DeafHolder {
    /// In place of agent-1's worker, which is stopped.
    fn begin(trial: &Trial) -> Result<Self> {
        let init = trial.cluster.host(0).init_pid()?;
        let path = format!("/proc/{init}/root/run/extvol/deadline");
        let memory = SharedMemory::open(path.as_ref()).expect("the keeper's shared memory");
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let go_on = move || {
            while !asked.load(Ordering::Relaxed) {
                let now = holder_now();
                memory.tick_worker(now);
                memory.extend(Some(now + Duration::from_secs(60))).expect("the host is not being fenced");
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        Ok(Self { stop, thread: Some(std::thread::spawn(go_on)) })
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join).transpose().expect("it went on to the end");
    }
}

#[test]
fn mesos_a_holder_that_ignores_its_refused_beats_is_caught() -> Result<()> {
    let trial = written_on_shared_storage("fast")?;
    let holder = DeafHolder::begin(&trial)?;
    signal_keeper(&trial, "STOP", &["extvol-worker"])?;
    // The master's module reclaims, as it must.
    taken_by_agent_2(&trial)?;
    agent_1_wrote_beside_agent_2(&trial)?;
    holder.end();
    Ok(())
}

#[test]
fn mesos_a_host_without_its_deadman_and_guard_is_caught() -> Result<()> {
    let trial = written_on_shared_storage("fast")?;
    signal_keeper(&trial, "STOP", &["extvol-guard", "extvol-deadman", "extvol-worker"])?;
    taken_by_agent_2(&trial)?;
    agent_1_wrote_beside_agent_2(&trial)?;
    Ok(())
}

/// The same kill but for the guard, which no kill of the agent's or the keeper's cgroup reaches.
#[test]
fn mesos_deadman_worker_and_agent_killed_together_make_no_second_writer() -> Result<()> {
    let trial = written_on_shared_storage("fast")?;
    trial.cluster.host(0).kill_agent()?;
    trial.kill_keeper(0)?;
    taken_by_agent_2(&trial)?;
    let guard = trial.cluster.host(0).run(&["cat", "/run/extvol/guard.log"])?;
    assert!(guard.contains("the guard does") && guard.contains("this host is fenced"), "{guard}");
    let verdict = trial.witness()?;
    println!("{verdict}");
    assert!(verdict.violations.is_empty() && verdict.summary.moves == 1, "{verdict}");
    // Once there is an agent again, so is a keeper, and the guard is its own.
    trial.cluster.host(0).start_agent()?;
    trial.cluster.wait_agent_registered(0, SOON)?;
    trial.stop("taker")?;
    trial.wait_free("ebs/vol-1")?;
    trial.run(once(app_with("again", "agent-1", "vol-1", &trial.writer("vol-1")?)?))?;
    is_written(&trial, 0)?;
    assert_eq!(trial.processes(0, "extvol-guard")?.len(), 1);
    trial.stop("again")?;
    trial.nothing_is_left()
}

#[test]
fn mesos_an_unmount_sent_after_the_lease_has_moved_is_caught() -> Result<()> {
    let trial = trial("fast")?;
    writing(&trial)?;
    trial.stop("writer")?;
    trial.wait_free("ebs/vol-1")?;
    taken_by_agent_2(&trial)?;
    is_written(&trial, 1)?;
    trial.set_faults(0, &json!({ "methods": { "Unmount": { "stale": true } } }))?;
    let late = |trial: &Trial| {
        let (socket, url) = ("/run/docker/plugins/ebs.sock", "http://plugin/VolumeDriver.Unmount");
        let body = r#"{"Name":"vol-1"}"#;
        trial.cluster.host(0).run(&["curl", "-sS", "--unix-socket", socket, "-d", body, url])
    };
    // A storage that takes no volume that is in use refuses it, and no harm is done.
    late(&trial)?;
    let verdict = trial.witness()?;
    assert_eq!(verdict.summary.refused, 1, "{verdict}");
    trial.switch_storage(Switches { detach_busy: true, ..Switches::default() })?;
    late(&trial)?;
    let taken = |verdict: &Verdict| {
        verdict.violations.iter().any(|violation| {
            matches!(violation, Violation::TakenFromOwner { victim, by, .. } if victim == "agent-2" && by == "agent-1")
        })
    };
    seen(&trial, "the volume taken from agent-2", taken)?;
    Ok(())
}

/// The root becomes private behind the keeper's check, and another container keeps a copy of the mount.
#[test]
fn mesos_a_release_on_the_word_of_an_unmount_below_a_private_root_is_caught() -> Result<()> {
    // The other container would not see the volume.
    let trial =
        written_on(trial_with("fast", |config| config.set_agent_parameter("hide_volumes", "false"))?)?;
    let host = trial.cluster.host(0);
    host.run(&["mount", "--make-private", "/var/lib/rexray/volumes"])?;
    let flag = trial.cluster.directory().join("go-on");
    let copy = trial.writer_at("vol-1", "/var/lib/rexray/volumes/vol-1/data")?;
    let script = format!("touch there; until test -e {}; do sleep 0.05; done; {copy}", flag.display());
    trial.run(once(app("bystander", "agent-1", &script, &[])?))?;
    trial.stop("writer")?;
    trial.cluster.wait_for("an unmount that leaves the device in use", SOON, || {
        let journal = trial.journal().map_err(|error| error.to_string())?;
        let refused = journal.iter().any(|entry| entry.event == Event::Refused);
        if refused { Ok(()) } else { Err(format!("{journal:?}")) }
    })?;
    assert_eq!(trial.mounted(0)?, Vec::<String>::new(), "the host has unmounted it");
    // The keeper does not believe it: the device is not idle (L4). A lesser one would release the lease now.
    assert!(trial.held("ebs/vol-1")?.is_some(), "{}", trial.keeper_log(host));
    signal_keeper(&trial, "STOP", &["extvol-guard", "extvol-deadman", "extvol-worker"])?;
    let free =
        json!({ "version": 1, "state": "free", "last_holder": "agent-1", "since": "2026-01-01T00:00:00Z" });
    trial.cluster.etcdctl(&["put", &lease_key("ebs/vol-1")?, &free.to_string()])?;
    taken_by_agent_2(&trial)?;
    is_written(&trial, 1)?;
    std::fs::write(&flag, "").expect("the cluster's directory");
    agent_1_wrote_beside_agent_2(&trial)?;
    Ok(())
}
