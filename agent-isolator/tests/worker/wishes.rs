//! What a task may ask beside the mount: that its volume is removed at its end, and that a new one is its user's; and for whom it
//! runs, as the lease says.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use agent_isolator::wire::{Answer, Asker};

use crate::alone::alone;
use crate::rules::agent;
use crate::world::{eventually, with_worker};

#[test]
fn root_a_volume_is_removed_where_the_host_lets_tasks_do_so() {
    alone("wishes::root_a_volume_is_removed_where_the_host_lets_tasks_do_so", |alone| {
        let drivers = r#"{"ebs": {"remove": true}, "fast": {}}"#;
        let rules = alone.directory.join("rules.json");
        fs::write(
            &rules,
            r#"{"rules": [{"name": "kept", "deny": ["remove"], "volumes": ["ebs/kept"]},
                {"name": "all", "allow": ["use", "remove"], "volumes": ["**"]}]}"#,
        )
        .unwrap();
        let given = [("drivers", drivers), ("volume_rules", rules.to_str().unwrap())];
        with_worker(alone, &given, async |mut world| {
            world.disk("a");
            world.disk("b");
            world.remove = true;
            let denied = world.prepare("c", &["ebs/kept"]);
            let why = world.answer(denied).await.unwrap_err();
            assert!(
                why.contains("may not remove volume ebs/kept: this host's volume rule \"kept\" denies it"),
                "{why}"
            );
            let refused = world.prepare("c0", &["fast/b"]);
            let why = world.answer(refused).await.unwrap_err();
            assert!(why.contains("does not let tasks remove volumes of the driver fast"), "{why}");
            let mut used = Vec::new();
            for container in ["c1", "c2"] {
                let prepare = world.prepare(container, &["ebs/a"]);
                assert!(matches!(world.answer(prepare).await, Ok(Answer::Prepared { .. })));
                let process = world.process(container);
                let isolate = world.isolate(container, process.id());
                assert_eq!(world.answer(isolate).await, Ok(Answer::Done));
                used.push(process);
            }
            drop(used.remove(0));
            world.cleanup("c1");
            world.remove = false;
            let prepare = world.prepare("c3", &["ebs/b"]);
            assert!(world.answer(prepare).await.is_ok());
            assert_eq!(world.driver.calls(), ["mount ebs/a", "mount ebs/b"], "c2 still has it");
            used.clear();
            world.cleanup("c2");
            world.cleanup("c3");
            let world = &world;
            let are_free = async || {
                let free = async |name: &str| {
                    world
                        .stored(&format!("leases/ebs/{name}"))
                        .await
                        .is_none_or(|(lease, _)| !lease.contains("epoch"))
                };
                free("a").await && free("b").await
            };
            eventually("the leases are free", are_free).await;
            let calls = world.driver.calls();
            let of = |volume: &str| {
                calls.iter().filter(|call| call.ends_with(volume)).map(String::as_str).collect::<Vec<_>>()
            };
            assert_eq!(of("/a"), ["mount ebs/a", "unmount ebs/a", "remove ebs/a"]);
            assert_eq!(of("/b"), ["mount ebs/b", "unmount ebs/b"]);
        });
    });
}

#[test]
fn root_a_new_volume_is_given_to_the_tasks_user_and_a_used_one_stays_whose_it_is() {
    alone("wishes::root_a_new_volume_is_given_to_the_tasks_user_and_a_used_one_stays_whose_it_is", |alone| {
        with_worker(alone, &[], async |mut world| {
            for name in ["a", "b", "c", "d"] {
                world.disk(name);
            }
            let of = |user: Option<&str>| Asker { user: user.map(str::to_owned), ..Asker::default() };
            let nobody = 65_534;
            let owner = |point: &std::path::Path| {
                let found = fs::metadata(point).unwrap();
                (found.uid(), found.gid())
            };
            let mut prepared = async |volume: &str, own: bool, user: Option<&str>| {
                (world.own, world.asker) = (own, of(user));
                let prepare = world.prepare(&format!("c-{}", volume.replace('/', "-")), &[volume]);
                world.answer(prepare).await.map(|_| owner(&world.point(volume.rsplit('/').next().unwrap())))
            };
            assert_eq!(prepared("ebs/a", true, Some("nobody")).await, Ok((nobody, nobody)));
            assert_eq!(prepared("ebs/b", false, Some("nobody")).await, Ok((0, 0)));
            assert_eq!(prepared("ebs/c", true, None).await, Ok((0, 0)), "root's task");
            let why = prepared("ebs/d", true, Some("nobody-at-all")).await.unwrap_err();
            assert!(why.contains("this host knows no user \"nobody-at-all\""), "{why}");
            // One with something in it, or of somebody else.
            let world = &mut world;
            for (volume, change) in [("b", true), ("c", false)] {
                let point = world.point(volume);
                if change {
                    fs::write(point.join("file"), "kept").unwrap();
                } else {
                    chown(&point, Some(1), Some(1)).unwrap();
                }
                let cleanup = world.cleanup(&format!("c-ebs-{volume}"));
                assert_eq!(world.answer(cleanup).await, Ok(Answer::Done));
                (world.own, world.asker) = (true, of(Some("nobody")));
                let prepare = world.prepare(&format!("again-{volume}"), &[&format!("ebs/{volume}")]);
                assert!(world.answer(prepare).await.is_ok());
                assert_eq!(owner(&point), if change { (0, 0) } else { (1, 1) });
            }
        });
    });
}

#[test]
fn root_a_lease_says_for_whom_it_is_held_and_a_framework_has_no_more_than_its_share() {
    let name = "wishes::root_a_lease_says_for_whom_it_is_held_and_a_framework_has_no_more_than_its_share";
    alone(name, |alone| {
        with_worker(alone, &[("framework_volumes_max", "1")], async |mut world| {
            world.disk("a");
            world.disk("b");
            let frameworks = r#"{"id": "f1", "name": "marathon", "roles": ["db"]}"#;
            let (address, serve) = agent(&format!(r#"{{"id": "S1", "frameworks": [{frameworks}]}}"#)).await;
            world.agent = address;
            let text = |text: &str| Some(text.to_owned());
            world.asker = Asker {
                framework: text("f1"),
                executor: text("e"),
                task_id: text("db.1"),
                task_name: text("db\n\u{1b}[2J"),
                ..Asker::default()
            };
            let prepare = world.prepare("c1", &["ebs/a"]);
            assert!(matches!(world.answer(prepare).await, Ok(Answer::Prepared { .. })));
            let (lease, _) = world.stored("leases/ebs/a").await.unwrap();
            let expected = r#""tasks":{"c1":{"framework_id":"f1","framework":"marathon","role":"db","executor_id":"e","task_id":"db.1","task":"db\n\u001b[2J"}}"#;
            assert!(lease.contains(expected), "{lease}");
            let prepare = world.prepare("c2", &["ebs/b"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(
                why.contains("framework f1 would have 2 volumes on this host, which lets one have 1"),
                "{why}"
            );
            // The same volume once more is no other one; and others have their own share.
            let prepare = world.prepare("c3", &["ebs/a"]);
            assert!(world.answer(prepare).await.is_ok());
            // No launch fails because an agent does not answer for what is for people alone.
            serve.abort();
            world.asker.framework = text("f2");
            let prepare = world.prepare("c4", &["ebs/b"]);
            assert!(world.answer(prepare).await.is_ok());
            let (lease, _) = world.stored("leases/ebs/b").await.unwrap();
            assert!(lease.contains(r#""framework_id":"f2","executor_id""#), "{lease}");
        });
    });
}
