//! The scheduler's decisions, driven without a clock or a master.

use super::*;

struct Bench {
    core: Core,
    start: Instant,
}

impl Bench {
    fn new() -> Self {
        // Rarely, so that the deadlines seen here are those of the apps.
        let reconcile_every = Duration::from_secs(3600);
        let config = SchedulerConfig { reconcile_every, ..SchedulerConfig::default() };
        Self { core: Core::new(config, "r".into()), start: Instant::now() }
    }

    /// Subscribed, with one app whose first task was launched at 0 s.
    fn launched(more: &str) -> Self {
        let mut bench = Self::new();
        bench.event(0.0, subscribed());
        bench.core.run(bench.moment(0.0), vec![app("a", more)]).unwrap();
        assert_eq!(bench.offer(0.0, "h1"), ["STAGING a.r.1", "ACCEPT", "SUPPRESS"]);
        bench
    }

    fn running(more: &str) -> Self {
        let mut bench = Self::launched(more);
        assert_eq!(bench.update(0.0, "a.r.1", "RUNNING"), ["ACKNOWLEDGE", "RUNNING a.r.1"]);
        bench
    }

    fn moment(&self, seconds: f64) -> Moment {
        Moment { instant: self.start + Duration::from_secs_f64(seconds), wall: SystemTime::UNIX_EPOCH }
    }

    fn event(&mut self, seconds: f64, event: Value) -> Vec<String> {
        let now = self.moment(seconds);
        told(&self.core.event(now, serde_json::from_value(event).unwrap()))
    }

    fn offer(&mut self, seconds: f64, hostname: &str) -> Vec<String> {
        self.event(seconds, offers(hostname))
    }

    fn update(&mut self, seconds: f64, task_id: &str, state: &str) -> Vec<String> {
        let uuid = format!("{task_id}{state}");
        self.event(
            seconds,
            json!({ "type": "UPDATE", "update": { "status": {
                "task_id": { "value": task_id }, "agent_id": { "value": "agent" },
                "state": format!("TASK_{state}"), "uuid": uuid,
            }}}),
        )
    }

    fn tick(&mut self, seconds: f64) -> Vec<String> {
        told(&self.core.tick(self.moment(seconds)))
    }

    fn deadline(&self) -> f64 {
        (self.core.next_deadline().unwrap() - self.start).as_secs_f64()
    }
}

fn app(id: &str, more: &str) -> App {
    App::from_json(&format!(
        r#"{{"id": "{id}", "cmd": "x", "backoff": {{"initial_seconds": 2, "factor": 2, "max_seconds": 6,
            "reset_after_seconds": 10}} {more}}}"#
    ))
    .unwrap()
}

fn subscribed() -> Value {
    json!({ "type": "SUBSCRIBED", "subscribed": {
        "framework_id": { "value": "f" }, "heartbeat_interval_seconds": 15,
    }})
}

fn offers(hostname: &str) -> Value {
    json!({ "type": "OFFERS", "offers": { "offers": [{
        "id": { "value": "o" }, "agent_id": { "value": "agent" }, "hostname": hostname,
        "resources": [
            { "name": "cpus", "type": "SCALAR", "scalar": { "value": 1.0 } },
            { "name": "mem", "type": "SCALAR", "scalar": { "value": 1000.0 } },
            { "name": "disk", "type": "SCALAR", "scalar": { "value": 10.0 } },
        ],
    }]}})
}

fn told(outputs: &[Output]) -> Vec<String> {
    let word = |output: &Output| match output {
        Output::Call(call) => call["type"].as_str().unwrap().to_owned(),
        Output::Record(event) => {
            format!("{} {}", event.state.to_string().trim_start_matches("TASK_"), event.task_id)
        }
        Output::Subscribed(_) => "subscribed".into(),
        Output::Reconnect => "reconnect".into(),
        Output::Rejected(message) => format!("rejected: {message}"),
    };
    outputs.iter().map(word).collect()
}

#[test]
fn offers_are_suppressed_while_nothing_is_wanted_and_revived_for_a_new_app() {
    let mut bench = Bench::new();
    assert_eq!(bench.event(0.0, subscribed()), ["subscribed", "RECONCILE", "SUPPRESS"]);
    assert_eq!(bench.offer(0.0, "h1"), ["DECLINE"]);
    let now = bench.moment(1.0);
    assert_eq!(told(&bench.core.run(now, vec![app("a", "")]).unwrap()), ["REVIVE"]);
    assert_eq!(bench.offer(1.0, "h1"), ["STAGING a.r.1", "ACCEPT", "SUPPRESS"]);
}

#[test]
fn an_app_waits_for_the_host_that_it_names() {
    let mut bench = Bench::new();
    bench.event(0.0, subscribed());
    bench.core.run(bench.moment(0.0), vec![app("a", r#", "constraints": {"hostnames": ["h2"]}"#)]).unwrap();
    assert_eq!(bench.offer(0.0, "h1"), ["DECLINE"]);
    assert_eq!(bench.offer(1.0, "h2"), ["STAGING a.r.1", "ACCEPT", "SUPPRESS"]);
}

#[test]
fn one_offer_starts_several_apps() {
    let mut bench = Bench::new();
    for id in ["a", "b"] {
        bench.core.run(bench.moment(0.0), vec![app(id, "")]).unwrap();
    }
    bench.event(0.0, subscribed());
    assert_eq!(bench.offer(0.0, "h1"), ["STAGING a.r.1", "STAGING b.r.2", "ACCEPT", "SUPPRESS"]);
}

#[test]
fn a_task_lost_with_its_agent_is_replaced_at_once() {
    for state in ["UNREACHABLE", "LOST", "GONE", "GONE_BY_OPERATOR", "DROPPED", "UNKNOWN"] {
        let mut bench = Bench::running("");
        let seen = format!("{state} a.r.1");
        assert_eq!(bench.update(5.0, "a.r.1", state), ["ACKNOWLEDGE", seen.as_str(), "REVIVE"]);
        assert_eq!(bench.offer(5.0, "h2"), ["STAGING a.r.2", "ACCEPT", "SUPPRESS"]);
    }
}

#[test]
fn a_replaced_task_that_returns_is_killed() {
    let mut bench = Bench::running("");
    bench.update(5.0, "a.r.1", "UNREACHABLE");
    bench.offer(5.0, "h2");
    assert_eq!(bench.update(9.0, "a.r.1", "RUNNING"), ["ACKNOWLEDGE", "RUNNING a.r.1", "KILL"]);
    assert_eq!(bench.update(9.0, "a.r.1", "KILLED"), ["ACKNOWLEDGE", "KILLED a.r.1"]);
    assert_eq!(bench.update(9.0, "a.r.2", "RUNNING"), ["ACKNOWLEDGE", "RUNNING a.r.2"]);
}

#[test]
fn failures_are_retried_with_growing_delays_which_a_long_run_resets() {
    let mut bench = Bench::launched("");
    let mut at = 1.0;
    for (launch, delay) in [(1, 2.0), (2, 4.0), (3, 6.0), (4, 6.0)] {
        bench.update(at, &format!("a.r.{launch}"), "FAILED");
        assert_eq!(bench.deadline(), at + delay);
        assert_eq!(bench.offer(at + delay - 0.1, "h1"), ["DECLINE"]);
        at += delay;
        assert_eq!(bench.tick(at), ["REVIVE"]);
        assert_eq!(bench.offer(at, "h1")[1..], ["ACCEPT", "SUPPRESS"]);
    }
    bench.update(at, "a.r.5", "RUNNING");
    bench.update(at + 10.0, "a.r.5", "FAILED");
    assert_eq!(bench.deadline(), at + 12.0);
}

#[test]
fn launches_that_are_lost_one_after_the_other_are_slowed_down() {
    let mut bench = Bench::launched("");
    assert_eq!(bench.update(1.0, "a.r.1", "DROPPED")[2], "REVIVE");
    bench.offer(1.0, "h1");
    assert_eq!(bench.update(1.0, "a.r.2", "DROPPED"), ["ACKNOWLEDGE", "DROPPED a.r.2"]);
    assert_eq!(bench.deadline(), 5.0);
}

#[test]
fn restart_policies_are_obeyed() {
    for (policy, state, again) in [
        ("always", "FINISHED", true),
        ("on-failure", "FINISHED", false),
        ("on-failure", "FAILED", true),
        ("on-failure", "UNREACHABLE", true),
        ("never", "FAILED", false),
        ("never", "UNREACHABLE", false),
    ] {
        let mut bench = Bench::running(&format!(r#", "restart": "{policy}""#));
        bench.update(1.0, "a.r.1", state);
        bench.tick(10.0);
        let offered = bench.offer(10.0, "h1");
        assert_eq!(offered.contains(&"ACCEPT".to_owned()), again, "{policy} after {state}");
    }
}

#[test]
fn a_stopped_app_is_killed_until_it_ends_and_then_forgotten() {
    let mut bench = Bench::running("");
    let now = bench.moment(1.0);
    assert_eq!(told(&bench.core.stop(now, "a").unwrap()), ["KILL"]);
    assert!(matches!(bench.core.run(now, vec![app("a", "")]), Err(RunError::AlreadyThere { .. })));
    assert_eq!(bench.deadline(), 6.0);
    assert_eq!(bench.tick(6.0), ["KILL"]);
    assert_eq!(bench.update(6.0, "a.r.1", "KILLED"), ["ACKNOWLEDGE", "KILLED a.r.1"]);
    assert_eq!(bench.core.stop(now, "a").unwrap_err(), RunError::NotThere { id: "a".into() });
    bench.core.run(now, vec![app("a", "")]).unwrap();
}

#[test]
fn a_new_subscription_keeps_the_framework_and_asks_what_became_of_its_tasks() {
    let mut bench = Bench::running("");
    bench.core.disconnected();
    assert_eq!(bench.core.next_deadline(), None);
    assert_eq!(bench.core.subscribe_call()["framework_id"]["value"], "f");
    assert_eq!(bench.core.subscribe_call()["subscribe"]["framework_info"]["id"]["value"], "f");
    assert_eq!(bench.event(9.0, subscribed()), ["subscribed", "RECONCILE", "RECONCILE", "SUPPRESS"]);
    let answer = json!({ "type": "UPDATE", "update": { "status": {
        "task_id": { "value": "a.r.1" }, "agent_id": { "value": "agent" },
        "state": "TASK_RUNNING", "reason": "REASON_RECONCILIATION",
    }}});
    assert!(bench.event(9.0, answer).is_empty(), "nothing new, and nothing to acknowledge");
}

#[test]
fn a_retried_update_is_acknowledged_and_noted_once() {
    let mut bench = Bench::running("");
    assert_eq!(bench.update(1.0, "a.r.1", "RUNNING"), ["ACKNOWLEDGE"]);
}

#[test]
fn a_silent_master_is_left() {
    let mut bench = Bench::new();
    bench.event(0.0, subscribed());
    assert_eq!(bench.tick(30.0)[..], ["RECONCILE"; 0]);
    assert_eq!(bench.event(40.0, json!({ "type": "HEARTBEAT" })), [""; 0]);
    assert_eq!(bench.tick(84.9), [""; 0]);
    assert_eq!(bench.tick(85.0), ["reconnect"]);
}

#[test]
fn teardown_waits_for_a_subscription() {
    let mut bench = Bench::new();
    assert!(bench.core.teardown().is_empty());
    assert_eq!(bench.event(0.0, subscribed()), ["subscribed", "TEARDOWN"]);
    assert_eq!(told(&bench.core.teardown()), ["TEARDOWN"]);
}

#[test]
fn an_error_of_the_master_ends_the_scheduler() {
    let mut bench = Bench::new();
    let error = json!({ "type": "ERROR", "error": { "message": "Framework has been removed" } });
    assert_eq!(bench.event(0.0, error), ["rejected: Framework has been removed"]);
}

/// What was accepted: of each operation the kind, its executor's agents and its tasks.
fn accepted(outputs: &[Output]) -> Vec<Value> {
    let operations = outputs.iter().filter_map(|output| match output {
        Output::Call(call) => call["accept"]["operations"].as_array().cloned(),
        _ => None,
    });
    operations.flatten().collect()
}

fn offer_of(core: &mut Core, now: Moment, agent: &str) -> Vec<Value> {
    let mut offered = offers("h1");
    offered["offers"]["offers"][0]["agent_id"]["value"] = json!(agent);
    accepted(&core.event(now, serde_json::from_value(offered).unwrap()))
}

#[test]
fn apps_of_one_executor_run_in_it_where_it_is_until_it_ends() {
    let mut bench = Bench::new();
    bench.event(0.0, subscribed());
    let now = bench.moment(0.0);
    let with = |id: &str| app(id, r#", "executor": {"id": "e", "cmd": "run", "labels": {"L": "v"}}"#);
    bench.core.run(now, vec![with("a")]).unwrap();
    let first = offer_of(&mut bench.core, now, "agent");
    let task = &first[0]["launch"]["task_infos"][0];
    assert_eq!((&task["executor"]["type"], task.get("command")), (&json!("CUSTOM"), None));
    assert_eq!(task["labels"]["labels"], json!([{ "key": "command", "value": "x" }]));
    bench.core.run(now, vec![with("b")]).unwrap();
    assert_eq!(offer_of(&mut bench.core, now, "another"), [Value::Null; 0]);
    let second = offer_of(&mut bench.core, now, "agent");
    assert_eq!(second[0]["launch"]["task_infos"][0]["executor"], task["executor"]);
    assert_eq!(told(&bench.core.shutdown("e").unwrap()), ["SHUTDOWN"]);
    let failure = json!({ "agent_id": { "value": "agent" }, "executor_id": { "value": "e" } });
    bench.event(1.0, json!({ "type": "FAILURE", "failure": failure }));
    assert_eq!(bench.core.shutdown("e").unwrap_err(), RunError::NoExecutor { id: "e".into() });
    bench.core.run(now, vec![with("c")]).unwrap();
    assert_eq!(offer_of(&mut bench.core, now, "another").len(), 1);
}

#[test]
fn a_group_is_launched_as_a_whole_or_not_at_all() {
    let mut bench = Bench::new();
    bench.event(0.0, subscribed());
    let now = bench.moment(0.0);
    let with = |id: &str, mem: u32| {
        app(id, &format!(r#", "restart": "never", "mem": {mem}, "group": "g", "executor": {{"id": "e"}}"#))
    };
    bench.core.run(now, vec![with("a", 500), with("b", 500)]).unwrap();
    assert_eq!(offer_of(&mut bench.core, now, "agent"), [Value::Null; 0], "the executor wants memory too");
    for id in ["a", "b"] {
        bench.core.stop(now, id).unwrap();
    }
    bench.core.run(now, vec![with("a", 400), with("b", 400), app("c", "")]).unwrap();
    let operations = offer_of(&mut bench.core, now, "agent");
    let group = &operations[0]["launch_group"];
    assert_eq!((&group["executor"]["type"], &operations[1]["type"]), (&json!("DEFAULT"), &json!("LAUNCH")));
    let tasks = group["task_group"]["tasks"].as_array().unwrap();
    assert_eq!((tasks.len(), &tasks[1]["command"]["value"]), (2, &json!("x")));
    assert!(tasks[0].get("executor").is_none());
}
