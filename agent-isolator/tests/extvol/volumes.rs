//! `volumes`: what plugins list, beside real leases.

use serde_json::{Value, json};

use crate::doctor::{plugin, run_with_plugins};
use crate::program::Installation;

const LIST: (&str, &str) =
    ("List", r#"{"Volumes":[{"Name":"NEW","Mountpoint":"/m/new"},{"Name":"a b"},{"Name":"other"}]}"#);

#[tokio::test]
async fn root_volumes_are_listed_beside_their_leases_and_a_plugin_that_is_not_there_is_named() {
    let installation = Installation::of_two_releases().await;
    let directory = tempfile::tempdir().unwrap();
    let volumes = |words: &[&str]| run_with_plugins(directory.path(), &installation, words);
    let served =
        plugin(&directory.path().join("ebs.sock"), vec![LIST, LIST, ("List", r#"{"Err":"no \u001b"}"#)]);
    let answer = volumes(&["--drivers=ebs", "volumes"]);
    assert_eq!((answer.code, answer.error.as_str()), (0, ""), "{answer:#?}");
    let lines: Vec<_> =
        answer.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[1], "ebs/new new-1 attaching /m/new its plugin calls it \"NEW\"", "{lines:#?}");
    assert_eq!(lines[2], "ebs/old old-1 attached - its plugin does not list it", "{lines:#?}");
    assert_eq!(lines[3], "ebs/other - - - -", "{lines:#?}");
    assert!(
        lines[4].starts_with("ebs/a b - - - no lease can have this name: the volume name \"a b\" has ' ' at")
    );
    assert_eq!(lines.len(), 5);
    // One plugin answers, and the other is named; what was listed is there all the same.
    let answer = volumes(&["--drivers=ebs,nfs", "-o", "json", "volumes"]);
    assert_eq!(answer.code, 1);
    assert_eq!(answer.error.lines().count(), 1, "{answer:#?}");
    assert!(answer.error.contains("extvol: no Docker volume plugin named nfs was found"), "{answer:#?}");
    let rows: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!((&rows[0]["volume"], &rows[0]["listed_as"]), (&json!("ebs/new"), &json!("NEW")));
    assert_eq!((&rows[3]["volume"], &rows[3]["listed_as"]), (&json!(null), &json!("a b")));
    let answer = volumes(&["--drivers=ebs,nfs", "volumes", "ebs"]);
    assert_eq!((answer.code, answer.out.lines().count()), (1, 1), "{answer:#?}");
    assert!(answer.error.contains("the plugin ebs refused List: no \\u{1b}"), "{answer:#?}");
    served.join().unwrap();
}
