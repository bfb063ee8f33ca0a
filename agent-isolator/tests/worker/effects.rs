//! The gate, the last look before a driver's call, the table before the effect, beats under a guard.

use std::fs;
use std::time::Duration;

use agent_isolator::wire::{Answer, Call};
use shared::volume::ContainerId;

use crate::alone::alone;
use crate::world::{eventually, is_mounted, with_worker};

#[test]
fn root_a_volume_is_leased_mounted_handed_over_and_given_back() {
    alone("effects::root_a_volume_is_leased_mounted_handed_over_and_given_back", |alone| {
        with_worker(alone, &[], async |mut world| {
            world.disk("a");
            let prepare = world.prepare("c1", &["ebs/a"]);
            let mount_points = vec![world.point("a").to_str().unwrap().to_owned()];
            assert_eq!(world.answer(prepare).await, Ok(Answer::Prepared { mount_points }));
            let (lease, _) = world.stored("leases/ebs/a").await.unwrap();
            assert!(lease.contains(r#""holder":"h""#), "{lease}");
            let cleanup = world.cleanup("c1");
            assert_eq!(world.answer(cleanup).await, Ok(Answer::Done));
            let world = &world;
            let is_free =
                async || world.stored("leases/ebs/a").await.is_none_or(|(lease, _)| !lease.contains("epoch"));
            eventually("the lease is free", is_free).await;
            assert_eq!(world.driver.calls(), ["mount ebs/a", "unmount ebs/a"]);
            assert!(!is_mounted(&world.point("a")));
        });
    });
}

#[test]
fn root_what_was_mounted_before_a_drivers_first_call_is_none_of_its_making() {
    alone("effects::root_what_was_mounted_before_a_drivers_first_call_is_none_of_its_making", |alone| {
        with_worker(alone, &[], async |mut world| {
            // At its beginning the keeper takes away whatever is below the roots.
            world.disk("b");
            let prepare = world.prepare("c0", &["ebs/b"]);
            assert!(world.answer(prepare).await.is_ok());
            world.foreign("a");
            let prepare = world.prepare("c1", &["ebs/a"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(why.contains("before the driver was asked"), "{why}");
            assert!(is_mounted(&world.point("a")));
            assert_eq!(world.driver.calls(), ["mount ebs/b", "mount ebs/a"]);
        });
    });
}

#[test]
fn root_no_driver_is_called_while_it_cannot_be_told_what_is_mounted() {
    alone("effects::root_no_driver_is_called_while_it_cannot_be_told_what_is_mounted", |alone| {
        with_worker(alone, &[], async |mut world| {
            world.disk("a");
            world.disk("b");
            let prepare = world.prepare("c0", &["ebs/b"]);
            assert!(world.answer(prepare).await.is_ok());
            fs::rename(&world.helper, world.helper.with_extension("away")).unwrap();
            let prepare = world.prepare("c1", &["ebs/a"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(why.contains("the mounts could not be looked at"), "{why}");
            assert!(!world.driver.calls().contains(&"mount ebs/a".to_owned()));
            fs::rename(world.helper.with_extension("away"), &world.helper).unwrap();
            let prepare = world.prepare("c2", &["ebs/a"]);
            assert!(matches!(world.answer(prepare).await, Ok(Answer::Prepared { .. })));
        });
    });
}

#[test]
fn root_a_private_mount_root_is_refused_before_anything_is_leased_and_calls_keep_their_order() {
    let name =
        "effects::root_a_private_mount_root_is_refused_before_anything_is_leased_and_calls_keep_their_order";
    alone(name, |alone| {
        with_worker(alone, &[], async |mut world| {
            world.disk("a");
            world.share_root(false);
            let prepare = world.prepare("c1", &["ebs/a"]);
            let why = world.answer(prepare).await.unwrap_err();
            assert!(why.contains("`mount --make-shared "), "{why}");
            assert!(world.stored("leases/ebs/a").await.is_none());
            world.share_root(true);
            // The cleanup comes while the root is looked at for the prepare: before it, it would clean up nothing.
            let (prepare, cleanup) = (world.prepare("c2", &["ebs/a"]), world.cleanup("c2"));
            assert_eq!(world.answer(cleanup).await, Ok(Answer::Done));
            let _either = world.answer(prepare).await;
            let world = &world;
            let is_free =
                async || world.stored("leases/ebs/a").await.is_none_or(|(lease, _)| !lease.contains("epoch"));
            eventually("the lease is free", is_free).await;
            eventually("nothing is mounted", async || !is_mounted(&world.point("a"))).await;
        });
    });
}

#[test]
fn root_no_container_is_let_go_once_the_flag_is_set() {
    alone("effects::root_no_container_is_let_go_once_the_flag_is_set", |alone| {
        with_worker(alone, &[], async |mut world| {
            world.disk("a");
            let _first = world.running("c1", &["ebs/a"]).await;
            let prepare = world.prepare("c2", &["ebs/a"]);
            assert!(world.answer(prepare).await.is_ok());
            let process = world.process("c2");
            // The worker does not run in between: it learns of the flag by the gate's own look, unless an event that came
            // before has it look first.
            world.memory.flag();
            let isolate = world.isolate("c2", process.id());
            let why = world.answer(isolate).await.unwrap_err();
            assert!(why.contains("is being fenced") || why.contains("has begun to fence this host"), "{why}");
        });
    });
}

#[test]
fn root_no_driver_is_called_once_the_flag_is_set() {
    alone("effects::root_no_driver_is_called_once_the_flag_is_set", |alone| {
        with_worker(alone, &[("driver_calls_max", "1")], async |mut world| {
            world.driver.hold("ebs");
            let first = world.prepare("c1", &["ebs/missing"]);
            let driver = world.driver.clone();
            eventually("the first call is under way", async || driver.calls() == ["mount ebs/missing"]).await;
            let second = world.prepare("c2", &["ebs/a"]);
            let lease = async || world.stored("leases/ebs/a").await.is_some();
            eventually("the other one has its lease, and waits for the driver", lease).await;
            // The call's end comes before the worker's own look at the flag.
            world.memory.flag();
            world.driver.let_go("ebs");
            assert!(world.answer(second).await.is_err() && world.answer(first).await.is_err());
            assert_eq!(world.driver.calls(), ["mount ebs/missing"]);
        });
    });
}

#[test]
fn root_nothing_is_done_that_the_table_does_not_say_and_beats_go_on() {
    alone("effects::root_nothing_is_done_that_the_table_does_not_say_and_beats_go_on", |alone| {
        with_worker(alone, &[("profile", "fast")], async |mut world| {
            world.disk("a");
            world.disk("b");
            let process = world.running("c1", &["ebs/a"]).await;
            // As on a full file system: nothing can be written where the table is.
            let part = world.run_directory.join("table.json");
            fs::remove_file(&part).unwrap();
            fs::create_dir(&part).unwrap();
            let refused = world.prepare("c2", &["ebs/b"]);
            let why = world.answer(refused).await.unwrap_err();
            assert!(why.contains("cannot store its table in"), "{why}");
            drop(process);
            let cleanup = world.cleanup("c1");
            let before = world.beat().await;
            let beats = async || world.beat().await > before;
            eventually("a beat", beats).await;
            let second = world.beat().await;
            let beats = async || world.beat().await > second;
            eventually("another beat", beats).await;
            assert_eq!(world.driver.calls(), ["mount ebs/a"]);
            assert!(world.stored("leases/ebs/b").await.is_none() && is_mounted(&world.point("a")));
            assert!(!world.is_answered(cleanup));
            fs::remove_dir(&part).unwrap();
            assert_eq!(world.answer(cleanup).await, Ok(Answer::Done));
            let unmounts = async || world.driver.calls() == ["mount ebs/a", "unmount ebs/a"];
            eventually("the volume is unmounted", unmounts).await;
        });
    });
}

#[test]
fn root_no_beat_goes_out_while_no_deadman_ticks() {
    alone("effects::root_no_beat_goes_out_while_no_deadman_ticks", |alone| {
        with_worker(alone, &[], async |mut world| {
            world.disk("a");
            let _process = world.running("c1", &["ebs/a"]).await;
            let before = world.beat().await;
            let beats = async || world.beat().await > before;
            eventually("a beat", beats).await;
            world.deadman_ticks(false);
            // It is missed after a second; one beat may be on its way.
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            let last = world.beat().await;
            tokio::time::sleep(Duration::from_millis(2_200)).await;
            assert_eq!(world.beat().await, last, "two beats were due");
            world.deadman_ticks(true);
            let beats = async || world.beat().await > last;
            eventually("beats again", beats).await;
            assert!(!world.memory.read().fenced);
        });
    });
}

#[test]
fn root_a_container_that_ends_while_the_mount_roots_are_looked_at_is_not_prepared() {
    let name = "effects::root_a_container_that_ends_while_the_mount_roots_are_looked_at_is_not_prepared";
    alone(name, |alone| {
        with_worker(alone, &[], async |mut world| {
            world.disk("a");
            let prepare = world.prepare("c1", &["ebs/a"]);
            let cleanup = world.cleanup("c1");
            let why = world.answer(prepare).await.unwrap_err();
            assert!(why.contains("container c1 has ended"), "{why}");
            assert_eq!(world.answer(cleanup).await, Ok(Answer::Done));
            // Another agent of this host has a container of the same name.
            let prepare = world.prepare("c1", &["ebs/a"]);
            let container = ContainerId::new("c1").unwrap();
            world.call(Call::Cleanup { agent: "10.0.0.2:5051".into(), container });
            assert!(matches!(world.answer(prepare).await, Ok(Answer::Prepared { .. })));
            assert_eq!(world.driver.calls(), ["mount ebs/a"]);
        });
    });
}
