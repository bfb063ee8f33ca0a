//! Who may use which volumes, by what the agent says of frameworks.

use std::collections::BTreeMap;
use std::fs;

use agent_isolator::wire::{Answer, Asker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::alone::alone;
use crate::world::with_worker;

const RULES: &str = r#"{"rules": [
    {"name": "etl", "allow": ["use"], "volumes": ["ebs/*"], "frameworks": ["etl"]},
    {"name": "scratch", "allow": ["use", "create"], "volumes": ["fast/*"]}
]}"#;

/// An agent that answers each request with its state, until it is dropped.
pub(crate) async fn agent(state: &str) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{state}", state.len());
    let serve = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _request = stream.read(&mut [0; 4096]).await;
            let _gone = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, serve)
}

#[test]
fn root_a_volume_is_had_by_whom_the_rules_allow_it_and_made_by_whom_they_allow_that() {
    let name = "rules::root_a_volume_is_had_by_whom_the_rules_allow_it_and_made_by_whom_they_allow_that";
    alone(name, |alone| {
        let file = alone.directory.join("rules.json");
        fs::write(&file, RULES).unwrap();
        with_worker(alone, &[("volume_rules", file.to_str().unwrap())], async |mut world| {
            world.disk("a");
            world.disk("b");
            let frameworks = r#"{"id": "f1", "name": "etl", "role": "*"}, {"id": "f2", "name": "other"}"#;
            let (address, serve) = agent(&format!(r#"{{"id": "S1", "frameworks": [{frameworks}]}}"#)).await;
            world.agent = address;
            world.create = Some(BTreeMap::new());
            let of = |id: &str| Asker { framework: Some(id.into()), ..Asker::default() };

            world.asker = of("f1");
            let prepare = world.prepare("c1", &["ebs/a"]);
            assert!(matches!(world.answer(prepare).await, Ok(Answer::Prepared { .. })));
            assert_eq!(world.driver.calls(), ["mount ebs/a"], "it may not make it");
            world.asker = of("f2");
            let prepare = world.prepare("c2", &["fast/b", "ebs/a"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(
                why.contains(r#"framework "other" (f2, no principal) may not use volume ebs/a: none of"#),
                "{why}"
            );
            world.asker = Asker::default();
            let prepare = world.prepare("c3", &["fast/b"]);
            assert!(matches!(world.answer(prepare).await, Ok(Answer::Prepared { .. })));
            assert_eq!(world.driver.calls()[1..], ["create fast/b", "mount fast/b"]);

            // What cannot be told is denied.
            world.asker = of("f3");
            let prepare = world.prepare("c4", &["fast/b"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(
                why.contains("which framework f3 is cannot be told") && why.contains("it does not show it"),
                "{why}"
            );
            serve.abort();
            let _ended = serve.await;
            world.asker = of("f4");
            let prepare = world.prepare("c5", &["ebs/a"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(why.contains("which framework f4 is cannot be told") && why.contains("refused"), "{why}");
            // What was seen a moment ago is known.
            world.asker = of("f1");
            let prepare = world.prepare("c5", &["ebs/a"]);
            assert!(matches!(world.answer(prepare).await, Ok(Answer::Prepared { .. })));
            fs::write(&file, "{").unwrap();
            world.asker = Asker::default();
            let prepare = world.prepare("c6", &["fast/b"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(why.contains("the volume rules in") && why.contains("cannot be read"), "{why}");
            assert_eq!(world.driver.calls().len(), 3);
        });
    });
}
