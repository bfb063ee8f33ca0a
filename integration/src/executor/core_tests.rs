//! The executor's decisions, driven without a clock, a process or an agent.

use serde_json::json;

use super::*;

struct Bench {
    core: Core,
    start: Instant,
}

impl Bench {
    fn new(recovery_timeout: Option<Duration>) -> Self {
        let caller = Caller { framework_id: "f".into(), executor_id: "t".into() };
        let mut count = 0;
        let uuids = Box::new(move || {
            count += 1;
            format!("u{count}")
        });
        let core = Core::new(caller, recovery_timeout, Duration::from_secs(5), None, uuids);
        Self { core, start: Instant::now() }
    }

    /// A core whose task runs.
    fn running(recovery_timeout: Option<Duration>) -> Self {
        let mut bench = Self::new(recovery_timeout);
        let _ = bench.core.subscribe_call();
        bench.event(0.0, subscribed());
        bench.event(0.0, launch());
        bench.at(0.0, Input::Launched);
        bench
    }

    fn at(&mut self, seconds: f64, input: Input) -> Vec<Action> {
        let instant = self.start + Duration::from_secs_f64(seconds);
        self.core.handle(Moment { instant, unix: seconds }, input)
    }

    fn event(&mut self, seconds: f64, event: Value) -> Vec<Action> {
        self.at(seconds, Input::Event(serde_json::from_value(event).unwrap()))
    }

    fn deadline(&self) -> Option<f64> {
        Some((self.core.next_deadline()? - self.start).as_secs_f64())
    }
}

fn subscribed() -> Value {
    json!({ "type": "SUBSCRIBED", "subscribed": {
        "executor_info": {}, "agent_info": {},
        "framework_info": { "capabilities": [{ "type": "PARTITION_AWARE" }] },
    }})
}

fn launch() -> Value {
    json!({ "type": "LAUNCH", "launch": { "task": {
        "task_id": { "value": "t" },
        "command": { "value": "true" },
        "resources": [{ "name": "cpus", "allocation_info": { "role": "r" } }],
        "kill_policy": { "grace_period": { "nanoseconds": 10_000_000_000_i64 } },
    }}})
}

fn kill(grace_seconds: i64) -> Value {
    json!({ "type": "KILL", "kill": {
        "task_id": { "value": "t" },
        "kill_policy": { "grace_period": { "nanoseconds": grace_seconds * 1_000_000_000 } },
    }})
}

fn acknowledged(uuid: &str) -> Value {
    json!({ "type": "ACKNOWLEDGED", "acknowledged": { "task_id": { "value": "t" }, "uuid": uuid } })
}

fn states(actions: &[Action]) -> Vec<String> {
    let state = |call: &Value| call["update"]["status"]["state"].as_str().unwrap().to_owned();
    actions
        .iter()
        .map(|action| match action {
            Action::Send(call) => state(call),
            other => format!("{other:?}").split('(').next().unwrap().to_owned(),
        })
        .collect()
}

fn message(actions: &[Action]) -> String {
    let Some(Action::Send(call)) = actions.first() else { panic!("no update in {actions:?}") };
    call["update"]["status"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_task_starts_runs_finishes_and_the_executor_leaves_once_that_is_acknowledged() {
    let mut bench = Bench::new(None);
    let _ = bench.core.subscribe_call();
    assert_eq!(bench.event(0.0, subscribed()), []);
    let actions = bench.event(0.0, launch());
    assert_eq!(states(&actions), ["TASK_STARTING", "Launch"]);
    let Action::Launch(command) = &actions[1] else { panic!() };
    assert!(command.environment.pairs().any(|(name, value)| name == "MESOS_ALLOCATION_ROLE" && value == "r"));
    assert_eq!(states(&bench.at(0.0, Input::Launched)), ["TASK_RUNNING"]);
    let actions = bench.at(1.0, Input::Ended(Ended::Exited(0)));
    assert_eq!(states(&actions), ["TASK_FINISHED"]);
    assert_eq!(message(&actions), "Command exited with status 0");
    assert_eq!(bench.event(1.0, acknowledged("u1")), []);
    assert_eq!(bench.event(1.0, acknowledged("u2")), []);
    assert_eq!(bench.event(1.0, acknowledged("u3")), [Action::Exit(0)]);
}

#[test]
fn failures_are_described_in_mesos_words() {
    for (ended, words) in [
        (Ended::Exited(3), "Command exited with status 3"),
        (Ended::Signalled { signal: 9, core_dumped: false }, "Command terminated with signal Killed"),
        (
            Ended::Signalled { signal: 11, core_dumped: true },
            "Command terminated with signal Segmentation fault (core dumped)",
        ),
    ] {
        let actions = Bench::running(None).at(1.0, Input::Ended(ended));
        assert_eq!(states(&actions), ["TASK_FAILED"]);
        assert_eq!(message(&actions), words);
    }
}

#[test]
fn a_kill_terminates_then_kills_after_the_grace() {
    let mut bench = Bench::running(None);
    assert_eq!(bench.event(1.0, kill(2)), [Action::Terminate]);
    assert_eq!(bench.deadline(), Some(3.0));
    assert_eq!(bench.at(2.9, Input::Tick), []);
    assert_eq!(bench.at(3.0, Input::Tick), [Action::Kill]);
    let actions = bench.at(3.1, Input::Ended(Ended::Signalled { signal: 9, core_dumped: false }));
    assert_eq!(states(&actions), ["TASK_KILLED"]);
}

#[test]
fn a_kill_without_policy_uses_the_tasks_and_a_later_kill_only_shortens_it() {
    let mut bench = Bench::running(None);
    let bare = json!({ "type": "KILL", "kill": { "task_id": { "value": "t" } } });
    assert_eq!(bench.event(1.0, bare), [Action::Terminate]);
    assert_eq!(bench.deadline(), Some(11.0));
    assert_eq!(bench.event(2.0, kill(30)), []);
    assert_eq!(bench.deadline(), Some(11.0));
    assert_eq!(bench.event(4.0, kill(1)), []);
    assert_eq!(bench.at(4.0, Input::Tick), [Action::Kill]);
}

#[test]
fn a_returning_agent_gets_the_task_and_what_it_did_not_acknowledge() {
    let mut bench = Bench::running(Some(Duration::from_secs(900)));
    assert_eq!(bench.at(1.0, Input::Disconnected), []);
    assert_eq!(bench.at(1.2, Input::Disconnected), []);
    assert_eq!(bench.deadline(), Some(901.0), "the first loss counts");
    let call = bench.core.subscribe_call();
    assert_eq!(call["subscribe"]["unacknowledged_tasks"].as_array().unwrap().len(), 1);
    assert_eq!(call["subscribe"]["unacknowledged_updates"].as_array().unwrap().len(), 2);
    assert_eq!(bench.event(2.0, subscribed()), []);
    assert_eq!(bench.deadline(), None);
    bench.event(2.0, acknowledged("u1"));
    let call = bench.core.subscribe_call();
    assert_eq!(call["subscribe"]["unacknowledged_tasks"], json!([]));
    assert_eq!(call["subscribe"]["unacknowledged_updates"][0]["status"]["uuid"], "u2");
}

#[test]
fn an_update_made_while_subscribing_is_sent_once_subscribed() {
    let mut bench = Bench::running(Some(Duration::from_secs(900)));
    bench.at(1.0, Input::Disconnected);
    let _ = bench.core.subscribe_call();
    assert_eq!(bench.at(1.1, Input::Ended(Ended::Exited(0))), []);
    assert_eq!(states(&bench.event(1.2, subscribed())), ["TASK_FINISHED"]);
}

#[test]
fn an_agent_that_stays_away_ends_the_task() {
    let mut bench = Bench::running(Some(Duration::from_secs(900)));
    bench.at(1.0, Input::Disconnected);
    assert_eq!(bench.at(901.0, Input::Tick), [Action::Terminate]);
    assert_eq!(bench.at(902.0, Input::Ended(Ended::Exited(0))), [Action::Exit(1)]);
}

#[test]
fn without_checkpointing_a_lost_agent_ends_the_task_at_once() {
    let mut bench = Bench::running(None);
    assert_eq!(bench.at(1.0, Input::Disconnected), [Action::Terminate]);
    assert_eq!(bench.at(1.2, Input::Disconnected), []);
    assert_eq!(bench.deadline(), Some(4.9));
    let actions = bench.at(2.0, Input::Ended(Ended::Signalled { signal: 15, core_dumped: false }));
    assert_eq!(actions, [Action::Exit(1)]);
}

#[test]
fn shutdown_kills_within_the_agents_patience_and_before_a_task_just_ends() {
    let mut bench = Bench::running(None);
    assert_eq!(bench.event(1.0, json!({ "type": "SHUTDOWN" })), [Action::Terminate]);
    assert_eq!(bench.deadline(), Some(4.9));
    assert_eq!(Bench::new(None).event(0.0, json!({ "type": "SHUTDOWN" })), [Action::Exit(0)]);
}

#[test]
fn shutdown_after_the_end_still_waits_for_the_last_acknowledgement() {
    let mut bench = Bench::running(None);
    bench.at(1.0, Input::Ended(Ended::Exited(0)));
    assert_eq!(bench.event(1.0, json!({ "type": "SHUTDOWN" })), []);
    assert_eq!(bench.event(1.0, acknowledged("u3")), [Action::Exit(0)]);
}

#[test]
fn a_last_update_that_nobody_acknowledges_does_not_hold_the_executor_for_ever() {
    let mut bench = Bench::running(None);
    bench.at(1.0, Input::Ended(Ended::Exited(0)));
    assert_eq!(bench.deadline(), Some(61.0));
    assert_eq!(bench.at(61.0, Input::Tick), [Action::Exit(1)]);
}

#[test]
fn a_task_that_cannot_be_started_has_failed() {
    let mut bench = Bench::new(None);
    let _ = bench.core.subscribe_call();
    bench.event(0.0, subscribed());
    bench.event(0.0, launch());
    let actions = bench.at(0.0, Input::LaunchFailed("Failed to launch command: no such file".into()));
    assert_eq!(states(&actions), ["TASK_FAILED"]);
}
