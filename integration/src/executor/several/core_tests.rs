//! The decisions, driven without a clock, a process or an agent.

use serde_json::json;

use super::*;

struct Bench {
    core: Core,
    start: Instant,
}

impl Bench {
    fn subscribed(kind: Kind) -> Self {
        let caller = Caller { framework_id: "f".into(), executor_id: "e".into() };
        let mut count = 0;
        let uuids = Box::new(move || {
            count += 1;
            format!("u{count}")
        });
        let recovery = Some(Duration::from_secs(9));
        let core = Core::new(kind, caller, recovery, Duration::from_secs(5), uuids);
        let mut bench = Self { core, start: Instant::now() };
        let subscribed = json!({ "type": "SUBSCRIBED", "subscribed": { "framework_info": {} } });
        assert_eq!(bench.event(subscribed), [""; 0]);
        bench
    }

    /// What is done, each in a word or two.
    fn at(&mut self, seconds: u64, input: Input) -> Vec<String> {
        let instant = self.start + Duration::from_secs(seconds);
        let actions = self.core.handle(Moment { instant, unix: 0.0 }, input);
        let word = |action: &Action| match action {
            Action::Send(call) => {
                let status = &call["update"]["status"];
                let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
                format!("{} {}", text(&status["task_id"]["value"]), text(&status["state"]))
            }
            Action::Start(task) => format!("start {}", task["task_id"]["value"].as_str().unwrap()),
            Action::Terminate(id) => format!("term {id}"),
            Action::Kill(id) => format!("kill {id}"),
            Action::Exit(status) => format!("exit {status}"),
        };
        actions.iter().map(word).collect()
    }

    fn event(&mut self, event: Value) -> Vec<String> {
        self.at(0, Input::Event(serde_json::from_value(event).unwrap()))
    }

    fn ends(&mut self, id: &str, well: bool) -> Vec<String> {
        self.at(1, Input::Ended(id.into(), End { well, ..End::default() }))
    }

    fn acknowledge(&mut self, updates: std::ops::RangeInclusive<u32>) -> Vec<String> {
        let acknowledged = |n| json!({ "type": "ACKNOWLEDGED", "acknowledged": { "uuid": format!("u{n}") } });
        updates.flat_map(|n| self.event(acknowledged(n))).collect()
    }
}

fn task(id: &str) -> Value {
    json!({ "task_id": { "value": id }, "kill_policy": { "grace_period": { "nanoseconds": 4_000_000_000_i64 } } })
}

fn launch(id: &str) -> Value {
    json!({ "type": "LAUNCH", "launch": { "task": task(id) } })
}

fn group() -> Value {
    json!({ "type": "LAUNCH_GROUP", "launch_group": { "task_group": { "tasks": [task("a"), task("b")] } } })
}

#[test]
fn a_custom_executor_outlives_its_tasks_and_ends_when_it_is_told_to() {
    let mut bench = Bench::subscribed(Kind::Custom);
    assert_eq!(bench.event(launch("a")), ["a TASK_STARTING", "start a"]);
    assert_eq!(bench.at(0, Input::Started("a".into())), ["a TASK_RUNNING"]);
    assert_eq!(bench.event(launch("b")), ["b TASK_STARTING", "start b"]);
    assert_eq!(bench.ends("a", false), ["a TASK_FAILED"]);
    assert_eq!(bench.acknowledge(1..=4), [""; 0]);
    assert_eq!(bench.event(json!({ "type": "SHUTDOWN" })), ["term b"]);
    assert_eq!(bench.at(4, Input::Tick), ["kill b"]);
    assert_eq!(bench.ends("b", false), ["b TASK_KILLED"]);
    assert_eq!(bench.acknowledge(5..=5), ["exit 0"]);
}

#[test]
fn a_group_ends_with_the_first_task_that_fails_and_its_executor_with_the_last() {
    let mut bench = Bench::subscribed(Kind::Default);
    assert_eq!(bench.event(group()), ["a TASK_STARTING", "start a", "b TASK_STARTING", "start b"]);
    assert_eq!(bench.ends("a", false), ["a TASK_FAILED", "term b"]);
    assert_eq!(bench.core.next_deadline(), Some(bench.start + Duration::from_secs(5)));
    assert_eq!(bench.ends("b", true), ["b TASK_KILLED"]);
    assert_eq!(bench.acknowledge(1..=4), ["exit 0"]);

    let mut bench = Bench::subscribed(Kind::Default);
    bench.event(group());
    assert_eq!(bench.ends("a", true), ["a TASK_FINISHED"]);
    let kill = json!({ "type": "KILL", "kill": { "task_id": { "value": "b" } } });
    assert_eq!(bench.event(kill), ["term b"]);
    // The agent's word counts.
    let end = End { state: Some("TASK_FAILED".into()), ..End::default() };
    assert_eq!(bench.at(1, Input::Ended("b".into(), end)), ["b TASK_FAILED"]);
}

#[test]
fn what_the_agent_has_not_acknowledged_is_told_again_when_it_returns() {
    let mut bench = Bench::subscribed(Kind::Default);
    bench.event(group());
    bench.at(0, Input::Started("a".into()));
    bench.acknowledge(1..=1);
    assert_eq!(bench.at(1, Input::Disconnected), [""; 0]);
    assert_eq!(bench.ends("b", true), [""; 0]);
    let call = bench.core.subscribe_call();
    assert_eq!(call["subscribe"]["unacknowledged_tasks"], json!([]));
    let updates = call["subscribe"]["unacknowledged_updates"].as_array().unwrap().iter();
    let states: Vec<_> = updates.map(|update| update["status"]["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["TASK_STARTING", "TASK_RUNNING", "TASK_FINISHED"]);
    assert_eq!(bench.at(10, Input::Tick), ["exit 1"]);
}
