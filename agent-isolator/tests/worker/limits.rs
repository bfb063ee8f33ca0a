//! What one tenant can have of a host, and what is left for the others.

use std::time::{Duration, Instant};

use agent_isolator::wire::Answer;

use crate::alone::alone;
use crate::world::{eventually, with_worker};

#[test]
fn root_more_prepares_than_a_host_takes_are_refused_with_a_sentence_and_a_repeated_one_is_not() {
    let name =
        "limits::root_more_prepares_than_a_host_takes_are_refused_with_a_sentence_and_a_repeated_one_is_not";
    alone(name, |alone| {
        with_worker(alone, &[("prepares_max", "2")], async |mut world| {
            world.disk("a");
            world.driver.hold("ebs");
            let first = world.prepare("c1", &["ebs/a"]);
            let second = world.prepare("c2", &["ebs/missing"]);
            let third = world.prepare("c3", &["fast/missing"]);
            let why = world.answer(third).await.unwrap_err();
            assert!(
                why.contains("already preparing the volumes of 2 containers") && why.contains("prepares_max"),
                "{why}"
            );
            // As over a new connection.
            let again = world.prepare("c1", &["ebs/a"]);
            world.driver.let_go("ebs");
            assert!(matches!(world.answer(again).await, Ok(Answer::Prepared { .. })));
            assert!(!world.is_answered(first) && world.answer(second).await.is_err());
            let fourth = world.prepare("c4", &["ebs/a"]);
            assert!(matches!(world.answer(fourth).await, Ok(Answer::Prepared { .. })));
        });
    });
}

#[test]
fn root_a_driver_that_hangs_has_few_calls_under_way_and_another_driver_is_called_at_once() {
    let name =
        "limits::root_a_driver_that_hangs_has_few_calls_under_way_and_another_driver_is_called_at_once";
    alone(name, |alone| {
        with_worker(alone, &[("driver_calls_max", "3")], async |mut world| {
            world.disk("a");
            world.driver.hold("slow");
            // A container has a quarter of the calls, and one at least.
            let hanging: Vec<_> =
                (0..12).map(|n| world.prepare(&format!("hostile-{n}"), &[&format!("slow/v{n}")])).collect();
            let driver = world.driver.clone();
            eventually("calls are under way", async || driver.calls().len() == 3).await;
            let launch = world.prepare("bystander", &["ebs/a"]);
            assert!(matches!(world.answer(launch).await, Ok(Answer::Prepared { .. })));
            assert_eq!(world.driver.calls().len(), 4, "{:?}", world.driver.calls());
            world.driver.let_go("slow");
            for launch in hanging {
                assert!(world.answer(launch).await.is_err());
            }
        });
    });
}

#[test]
fn root_at_one_driver_a_bystander_takes_its_turn_before_the_rest_of_a_container_with_many_volumes() {
    let name = "limits::root_at_one_driver_a_bystander_takes_its_turn_before_the_rest_of_a_container_with_many_volumes";
    alone(name, |alone| {
        with_worker(alone, &[("driver_calls_max", "1")], async |mut world| {
            world.disk("a");
            world.driver.hold("ebs");
            let hostile: Vec<_> = (0..20).map(|n| format!("ebs/v{n}")).collect();
            world.prepare("hostile", &hostile.iter().map(String::as_str).collect::<Vec<_>>());
            let driver = world.driver.clone();
            eventually("a call is under way", async || driver.calls().len() == 1).await;
            let launch = world.prepare("bystander", &["ebs/a"]);
            let leased = async || world.stored("leases/ebs/a").await.is_some();
            eventually("its lease is there", leased).await;
            world.driver.let_go("ebs");
            assert!(matches!(world.answer(launch).await, Ok(Answer::Prepared { .. })));
            let calls = world.driver.calls();
            let turn = calls.iter().position(|call| call == "mount ebs/a").unwrap();
            assert!(turn <= 3, "{calls:?}");
        });
    });
}

#[test]
fn root_what_etcd_answers_is_taken_in_before_all_that_isolators_ask() {
    let name = "limits::root_what_etcd_answers_is_taken_in_before_all_that_isolators_ask";
    alone(name, |alone| {
        with_worker(alone, &[], async |mut world| {
            world.disk("a");
            let first = world.prepare("c1", &["ebs/a"]);
            assert!(matches!(world.answer(first).await, Ok(Answer::Prepared { .. })));
            world.driver.hold("ebs");
            world.store.fail_reads(true);
            world.prepare("c2", &["ebs/b"]);
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.store.fail_reads(false);
            // Each takes the worker's thread for a while, and the lease takes two answers of etcd's.
            let flood: Vec<_> = (0..50_000).map(|n| world.cleanup(&format!("nobody-{n}"))).collect();
            while world.stored("leases/ebs/b").await.is_none() {
                tokio::task::yield_now().await;
            }
            let last = flood[flood.len() - 1];
            assert!(!world.is_answered(last), "the lease came behind {} other calls", flood.len());
        });
    });
}

#[test]
fn root_a_call_without_an_answer_has_its_turn_until_it_has_settled() {
    let name = "limits::root_a_call_without_an_answer_has_its_turn_until_it_has_settled";
    alone(name, |alone| {
        with_worker(alone, &[("driver_calls_max", "1"), ("settle_time", "3secs")], async |mut world| {
            world.disk("a");
            world.driver.leave_unanswered("lost");
            let began = Instant::now();
            world.prepare("c1", &["ebs/lost"]);
            let driver = world.driver.clone();
            eventually("it is called", async || driver.calls() == ["mount ebs/lost"]).await;
            let launch = world.prepare("c2", &["ebs/a"]);
            assert!(matches!(world.answer(launch).await, Ok(Answer::Prepared { .. })));
            let calls = world.driver.calls();
            let before = calls.iter().take_while(|call| *call != "mount ebs/a");
            assert!(
                before.clone().all(|call| call.ends_with("ebs/lost")) && before.count() >= 2,
                "{calls:?}"
            );
            assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
        });
    });
}
