//! `leases`, `sessions` and `events` over records of this release and of the one without a heartbeat.

use serde_json::{Value, json};

use crate::program::{Installation, run};
use shared::protocol::exchange::{Key, Record, Storm};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn etcd_leases_of_both_releases_are_listed() {
    let installation = Installation::of_two_releases().await;
    installation.etcd.etcdctl(&[
        "put",
        "/extvol/v1/leases/ebs/free",
        r#"{"version":1,"state":"free","last_holder":"old-1","since":"2025-06-07T08:09:10Z"}"#,
    ]);
    let granted_at = installation.entry(&Key::Lease(crate::program::volume("new"))).await.mod_revision;
    let table = installation.run(&["leases", "--all"]);
    assert_eq!((table.code, table.error.as_str()), (0, ""));
    let expected = format!(
        "\
VOLUME    STATE      HOLDER        EPOCH  TOKEN  SINCE                 CONTAINERS  TASKS  MOUNT-POINT  NOTES
ebs/free  free       (last old-1)  -      -      2025-06-07T08:09:10Z  -           -      -            -
ebs/new   attaching  new-1         3      {granted_at}      2026-01-02T03:04:05Z  c1          -      -            unsettled
ebs/old   attached   old-1         2      5      2025-01-02T03:04:05Z  c7          -      /m/old       -
"
    );
    assert_eq!(table.out, expected);
    let listed = parsed(&installation.run(&["-o", "json", "leases"]).out);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|lease| &lease["volume"]).collect();
    assert_eq!(names, ["ebs/new", "ebs/old"]);
    assert_eq!((&listed[1]["session"], &listed[1]["containers"]), (&json!("live"), &json!(["c7"])));
}

#[tokio::test]
async fn etcd_sessions_of_both_releases_are_listed() {
    let installation = Installation::of_two_releases().await;
    let listed = installation.run(&["sessions", "-o", "json"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    let listed = parsed(&listed.out);
    assert_eq!(listed[0]["holder"], "new-1");
    assert_eq!(listed[0]["times"]["ttl_ms"], 10_000);
    assert_eq!(listed[0]["last_beat"]["at"], "2026-01-02T03:05:06Z");
    assert_eq!((&listed[0]["by_time"], &listed[0]["leases"]), (&json!("allowed"), &json!(1)));
    assert_eq!((&listed[1]["holder"], &listed[1]["agent_id"]), (&json!("old-1"), &json!(null)));
    assert_eq!((&listed[1]["times"], &listed[1]["by_time"]), (&json!(null), &json!("never")));
    let table = installation.run(&["sessions"]).out;
    assert!(table.contains("none: its keeper does not beat"), "{table}");
}

#[tokio::test]
async fn etcd_a_record_that_cannot_be_read_is_named_and_hides_no_other() {
    let installation = Installation::of_two_releases().await;
    installation.etcd.etcdctl(&["put", "/extvol/v1/leases/ebs/broken", "{"]);
    installation.etcd.etcdctl(&["put", "/extvol/v1/leases/ebs/later", r#"{"version":2,"state":"free"}"#]);
    let answer = installation.run(&["leases"]);
    assert_eq!(answer.code, 1);
    assert!(answer.out.contains("ebs/new") && answer.out.contains("ebs/old"), "{}", answer.out);
    assert!(answer.error.contains("leases/ebs/broken is not a valid record"), "{}", answer.error);
    assert!(answer.error.contains("leases/ebs/later has version 2"), "{}", answer.error);
    assert_eq!(installation.run(&["sessions"]).code, 0);
    let answer = installation.run(&["revoke", "ebs/broken", "--yes"]);
    assert_eq!(answer.code, 1);
    assert!(answer.error.contains("it is left alone"), "{}", answer.error);
}

#[tokio::test]
async fn etcd_events_are_listed_oldest_first_and_the_newest_of_them() {
    let installation = Installation::found();
    for (revision, text) in [(12, "third"), (3, "first"), (11, "second")] {
        let key = format!("/extvol/v1/events/{revision:019}/leases/ebs/v");
        let event = format!(
            r#"{{"version":1,"what":"granted","seen":"at-once","text":"{text}","time":"2026-01-02T03:04:05Z"}}"#
        );
        installation.etcd.etcdctl(&["put", &key, &event]);
    }
    let listed = installation.run(&["events"]);
    let expected = "\
TIME                  REVISION  WHAT     TEXT
2026-01-02T03:04:05Z  3         granted  first
2026-01-02T03:04:05Z  11        granted  second
2026-01-02T03:04:05Z  12        granted  third
";
    assert_eq!((listed.code, listed.out.as_str()), (0, expected));
    let newest = parsed(&installation.run(&["events", "--limit", "2", "-o", "json"]).out);
    let texts: Vec<_> = newest.as_array().unwrap().iter().map(|event| &event["text"]).collect();
    assert_eq!(texts, ["second", "third"]);
    assert_eq!((&newest[0]["revision"], &newest[0]["subject"]), (&json!(11), &json!("leases/ebs/v")));
}

#[tokio::test]
async fn etcd_the_storm_guard_is_shown_and_lifted() {
    let installation = Installation::found();
    assert!(installation.run(&["storm"]).out.starts_with("over: no storm"));
    assert_eq!(installation.run(&["storm", "lift"]).code, 1);
    installation.put(&Key::Storm, &Record::Storm(Storm::Raised)).await;
    let shown = installation.run(&["storm"]).out;
    assert!(shown.starts_with("raised since 2026-01-02T03:05:06Z: more than half"), "{shown}");
    let lifted = installation.run(&["storm", "lift"]);
    assert_eq!(lifted.code, 0, "{lifted:?}");
    assert_eq!(installation.record(&Key::Storm).await, Record::Storm(Storm::Lifted));
}

#[test]
fn etcd_that_is_gone_is_exit_code_3_and_the_member_is_named() {
    let endpoint = format!("127.0.0.1:{}", testing::free_port());
    for words in [
        &["leases"][..],
        &["sessions"],
        &["events"],
        &["events", "--follow"],
        &["storm", "lift"],
        &["revoke", "a", "--yes"],
        &["free", "ebs/v", "--detached", "a"],
    ] {
        let words = [&["--endpoints", &endpoint, "--request_timeout=200ms"], words].concat();
        let answer = run(&words);
        assert_eq!(answer.code, 3, "{words:?}: {answer:?}");
        assert!(
            answer.error.contains(&endpoint) && answer.error.contains("see that etcd runs"),
            "{answer:?}"
        );
        assert!(answer.out.is_empty(), "{answer:?}");
    }
}
