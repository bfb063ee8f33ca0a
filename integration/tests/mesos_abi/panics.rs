//! A panic of the isolator is contained: the agent goes on, a task without a volume is not concerned, and what fails
//! says where the bug is.

use std::fs;

use integration::cluster::ClusterConfig;
use integration::scheduler::{App, RestartPolicy, SchedulerConfig, TaskEvent, TaskState};
use integration::trial::{Result, SOON, Trial, TrialError, app, app_with};

use crate::library::Library;

/// A cluster whose isolator misbehaves when a task says so.
struct Panicking {
    trial: Trial,
    _library: Library,
}

/// Where the isolator of these tests panics.
const PLACE: &str = "panicked at cxx-glue/tests/panicking/isolator/src/lib.rs:";

impl Panicking {
    fn start() -> Result<Self> {
        Self::with(Library::panicking())
    }

    fn with(library: Library) -> Result<Self> {
        let mut config = ClusterConfig::complete(1, &["ebs"])?;
        config.modules.as_mut().expect("the product's").library = library.path();
        let trial = Trial::with(config, SchedulerConfig::default())?;
        Ok(Self { trial, _library: library })
    }

    fn log(&self) -> String {
        let log = self.trial.cluster.logs().join("agent-1-agent.log");
        String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
    }

    /// The whole life of a task without a volume.
    fn a_plain_task_runs(&self, id: &str) -> Result<()> {
        self.trial.run(app(id, "agent-1", "sleep 1000", &[])?)?;
        assert_eq!(self.trial.stop(id)?.state, TaskState::Killed);
        Ok(())
    }

    /// A task with a volume is refused because of the panic in `call`.
    fn a_volume_is_refused_after(&self, call: &str, id: &str) -> Result<()> {
        let ended = self.trial.run_to_end(once(app_with(id, "agent-1", "vol-1", "true")?))?;
        assert_failed(
            &ended,
            &format!("extvol: prepare was not tried, because of an earlier bug: {call} {PLACE}"),
            &format!("{call} panics as it was told"),
        );
        Ok(())
    }

    fn restart_agent(&self) -> Result<()> {
        let cluster = &self.trial.cluster;
        cluster.host(0).kill_agent()?;
        cluster.wait_agent_gone(0, SOON)?;
        cluster.host(0).start_agent()?;
        cluster.wait_agent_registered(0, SOON)?;
        Ok(())
    }
}

fn once(app: App) -> App {
    App { restart: RestartPolicy::Never, ..app }
}

/// What a task says for its containers to meet a bug.
fn saying(word: &str, mut app: App) -> App {
    app.labels.insert("example.bug".to_owned(), word.to_owned());
    app
}

fn assert_failed(ended: &TaskEvent, begins: &str, ends: &str) {
    assert_eq!(ended.state, TaskState::Failed);
    let message = ended.message.clone().unwrap_or_default();
    assert!(message.contains(begins) && message.contains(ends), "{message}");
}

#[test]
fn mesos_after_a_panic_in_prepare_only_volumes_are_refused_until_the_agent_starts_again() -> Result<()> {
    let panicking = Panicking::start()?;
    let trial = &panicking.trial;
    trial.create_volume("vol-1")?;
    trial.create_volume("vol-2")?;
    trial.run(app_with("before", "agent-1", "vol-2", "sleep 1000")?)?;

    let ended = trial.run_to_end(once(saying("panic-in-prepare", app("bug", "agent-1", "true", &[])?)))?;
    assert_eq!(ended.reason.as_deref(), Some("REASON_CONTAINER_LAUNCH_FAILED"));
    assert_failed(&ended, &format!("extvol: bug: prepare {PLACE}"), "prepare panics as it was told");
    assert!(panicking.log().contains("extvol: bug: panic at cxx-glue/tests/panicking/isolator/src/lib.rs:"));

    panicking.a_plain_task_runs("plain")?;
    panicking.a_volume_is_refused_after("prepare", "refused")?;
    // What was there before is given back all the same.
    assert_eq!(trial.stop("before")?.state, TaskState::Killed);
    trial.wait_free("ebs/vol-2")?;
    assert_eq!(trial.attached()?, []);

    panicking.restart_agent()?;
    trial.run(app_with("after", "agent-1", "vol-1", "sleep 1000")?)?;
    trial.stop("after")?;
    trial.wait_free("ebs/vol-1")
}

#[test]
fn mesos_a_panic_in_isolate_fails_its_launch_and_gives_the_volume_back() -> Result<()> {
    let panicking = Panicking::start()?;
    let trial = &panicking.trial;
    trial.create_volume("vol-1")?;
    let bug = saying("panic-in-isolate", app_with("bug", "agent-1", "vol-1", "true")?);
    let ended = trial.run_to_end(once(bug))?;
    assert_failed(&ended, &format!("extvol: bug: isolate {PLACE}"), "isolate panics as it was told");
    trial.wait_free("ebs/vol-1")?;
    assert_eq!(trial.attached()?, []);
    panicking.a_plain_task_runs("plain")?;
    panicking.a_volume_is_refused_after("isolate", "refused")
}

#[test]
fn mesos_a_container_that_is_not_watched_runs_on() -> Result<()> {
    let panicking = Panicking::start()?;
    let trial = &panicking.trial;
    trial.create_volume("vol-1")?;
    let with_volume =
        |bug| Ok::<_, TrialError>(saying(bug, app_with(bug, "agent-1", "vol-1", "sleep 1000")?));
    let without = |bug| Ok::<_, TrialError>(saying(bug, app(bug, "agent-1", "sleep 1000", &[])?));
    for unwatched in
        [with_volume("drop-in-watch")?, with_volume("refuse-in-watch")?, without("panic-in-watch")?]
    {
        let bug = unwatched.id.to_string();
        trial.run(unwatched)?;
        // Mesos had time to destroy it: another one has lived and died since.
        panicking.a_plain_task_runs(&format!("beside-{bug}"))?;
        assert_eq!(trial.stop(&bug)?.state, TaskState::Killed, "{bug}");
        let history = trial.scheduler.history(&bug);
        assert!(history.iter().all(|event| event.state != TaskState::Failed), "{history:?}");
        trial.wait_free("ebs/vol-1")?;
    }
    for sentence in [
        "extvol: bug: watch was dropped without an answer",
        "extvol: a container is not watched: refused as it was told",
        &format!("extvol: bug: watch {PLACE}"),
    ] {
        assert!(panicking.log().contains(sentence), "{sentence}");
    }
    // The watch of every later container is not tried either, and that does not matter.
    panicking.a_plain_task_runs("later")?;
    panicking.a_volume_is_refused_after("watch", "refused")
}

#[test]
fn mesos_a_container_whose_cleanup_panics_ends_and_its_volume_comes_free() -> Result<()> {
    let panicking = Panicking::start()?;
    let trial = &panicking.trial;
    trial.create_volume("vol-1")?;
    for bug in ["drop-in-cleanup", "panic-in-cleanup"] {
        let ended = trial.run_to_end(once(saying(bug, app_with(bug, "agent-1", "vol-1", "true")?)))?;
        assert_eq!(ended.state, TaskState::Finished, "{bug}: {:?}", ended.message);
        // The keeper, which was not told, sees it.
        trial.wait_free("ebs/vol-1")?;
        trial.cluster.wait_for("the end of the container", SOON, || {
            let url = format!("{}/containers", trial.cluster.agent_url(0));
            match trial.cluster.hub().run(&["curl", "-sSf", &url]) {
                Ok(text) if text.trim() == "[]" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    // Mesos counts the containers that it could not destroy, and keeps them for ever.
    let url = format!("{}/metrics/snapshot", trial.cluster.agent_url(0));
    let metrics = trial.cluster.hub().run(&["curl", "-sSf", &url])?;
    let metrics: serde_json::Value = serde_json::from_str(&metrics).expect("JSON");
    assert_eq!(metrics["containerizer/mesos/container_destroy_errors"], 0.0, "{metrics}");
    assert!(panicking.log().contains(&format!("extvol: bug: cleanup {PLACE}")));
    panicking.a_plain_task_runs("plain")?;
    panicking.a_volume_is_refused_after("cleanup", "refused")
}

#[test]
fn mesos_a_panic_in_recover_stops_neither_the_agent_nor_its_containers() -> Result<()> {
    let panicking = Panicking::start()?;
    let trial = &panicking.trial;
    trial.create_volume("vol-1")?;
    trial.create_volume("vol-2")?;
    let running =
        trial.run(saying("panic-in-recover", app_with("bug", "agent-1", "vol-2", "sleep 1000")?))?;
    let lease = trial.lease("ebs/vol-2")?;
    panicking.restart_agent()?;
    assert!(panicking.log().contains(&format!("extvol: bug: recover {PLACE}")));
    panicking.a_plain_task_runs("plain")?;
    panicking.a_volume_is_refused_after("recover", "refused")?;
    let last = trial.scheduler.history("bug").pop().expect("it was started");
    assert_eq!((last.state, last.task_id), (TaskState::Running, running.task_id));
    assert_eq!(trial.lease("ebs/vol-2")?, lease, "the lease is untouched");
    trial.stop("bug")?;
    trial.wait_free("ebs/vol-2")?;
    assert_eq!(trial.attached()?, []);
    Ok(())
}

#[test]
fn mesos_an_exception_in_usage_is_contained() -> Result<()> {
    let throws = "-DDEFECT=throw std::runtime_error(\"usage throws as it was told\")";
    let panicking = Panicking::with(Library::with("statistics.cpp", &[throws]))?;
    let trial = &panicking.trial;
    trial.run(app("plain", "agent-1", "sleep 1000", &[])?)?;
    let url = format!("{}/monitor/statistics", trial.cluster.agent_url(0));
    let statistics = trial.cluster.hub().run(&["curl", "-sSf", &url])?;
    assert!(statistics.contains("executor_id"), "{statistics}");
    trial.cluster.wait_for("the sentence", SOON, || {
        let log = panicking.log();
        if log.contains("extvol: usage throws as it was told") { Ok(()) } else { Err(log) }
    })?;
    // update, status and usage have no Rust in them: nothing is poisoned.
    trial.create_volume("vol-1")?;
    trial.run(app_with("volume", "agent-1", "vol-1", "sleep 1000")?)?;
    trial.stop("volume")?;
    trial.stop("plain")?;
    trial.wait_free("ebs/vol-1")
}
