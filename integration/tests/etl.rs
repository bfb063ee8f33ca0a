//! The ETL demonstration with a smaller data set, and each of its faults in the midst of the load. A run that returns has been
//! verified: source against target by SQL of its own, and the witness's verdict.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use integration::cluster::{Cluster, ClusterConfig, HUB};
use integration::etl::verify::{VerifyError, verify};
use integration::etl::{Fault, NOW, Outcome, Result, Settings, run, source};
use integration::timeline::Timeline;

fn load(fault: Fault, percent: u64, rows_per_second: u32) -> Result<Outcome> {
    let settings = Settings { fault, percent, rows: 60_000, seed: 7, rows_per_second: Some(rows_per_second) };
    let outcome = run(&settings, &Timeline::begin())?;
    assert_eq!(outcome.good + outcome.bad, 60_000);
    assert!(outcome.bad > 100, "{outcome:?}");
    Ok(outcome)
}

/// As [`load`], and both hosts have loaded. The pace leaves more rows than the old side could load before its volume is taken.
fn goes_on_elsewhere(fault: Fault, percent: u64, rows_per_second: u32) -> Result<()> {
    let outcome = load(fault, percent, rows_per_second)?;
    assert_eq!(outcome.hosts.len(), 2, "{outcome:?}");
    let pause = &outcome.throughput.pause;
    assert_ne!(pause.from, pause.to, "{outcome:?}");
    Ok(())
}

/// The container lives on, and writes until the master has given the agent up.
#[test]
fn mesos_etl_every_row_is_loaded_once_though_the_agent_is_killed() -> Result<()> {
    goes_on_elsewhere(Fault::Agent, 10, 4_000)
}

#[test]
fn mesos_etl_every_row_is_loaded_once_though_the_host_loses_its_power() -> Result<()> {
    goes_on_elsewhere(Fault::Host, 40, 10_000)
}

/// The container writes until its host fences itself, which it does within its time to live.
#[test]
fn mesos_etl_every_row_is_loaded_once_though_the_host_is_cut_off() -> Result<()> {
    goes_on_elsewhere(Fault::Partition, 15, 5_000)
}

#[test]
fn mesos_etl_every_row_is_loaded_once_when_nothing_breaks() -> Result<()> {
    let outcome = load(Fault::None, 40, 15_000)?;
    assert_eq!(outcome.hosts.len(), 1, "{outcome:?}");
    Ok(())
}

/// What the demonstration's verdict stands on, with the job run by hand.
#[test]
fn mesos_etl_a_target_with_one_wrong_row_is_found() -> Result<()> {
    let mut config = ClusterConfig::plain(1)?;
    source::add_to(&mut config);
    let cluster = Cluster::start(config)?;
    let mut client = source::connect()?;
    let known = source::fill(&mut client, 5_000, 3)?;
    let directory = cluster.directory().join("job");
    let path = |name: &str| directory.join(name).display().to_string();
    for name in ["target", "scratch"] {
        fs::create_dir_all(path(name)).expect("a directory");
    }
    let (target, scratch, now) = (path("target"), path("scratch"), NOW.to_string());
    let program = env!("CARGO_BIN_EXE_extvol-etl");
    let job = [program, "--target", &target, "--scratch", &scratch, "--batch", "700", "--now", &now];
    let env = BTreeMap::from([("ETL_SOURCE".to_owned(), format!("postgres://etl@{HUB}/postgres"))]);
    // The second finds nothing to do.
    for _ in 0..2 {
        let output = cluster.hub().exec_with(&job, &env, Duration::from_secs(60))?;
        assert!(output.success() && output.stdout.contains("finished"), "{output:?}");
    }

    let (good, copy) = (directory.join("target/shop.db"), directory.join("copy.db"));
    let mut verify = |path| {
        client.batch_execute("DROP VIEW IF EXISTS judged").expect("the source");
        verify(&mut client, path, &known)
    };
    assert_eq!(verify(&good)?.good, known.good);
    for (wrong, what) in [
        ("DELETE FROM orders WHERE id = (SELECT max(id) FROM orders)", "good rows"),
        ("UPDATE orders SET eur_cents = eur_cents + 1 WHERE id = (SELECT min(id) FROM orders)", "good rows"),
        ("INSERT INTO orders SELECT max(id) + 1, customer, day, eur_cents FROM orders", "good rows"),
        ("UPDATE rejected SET reason = 'other' WHERE id = (SELECT min(id) FROM rejected)", "bad rows"),
        ("UPDATE daily SET orders = orders + 1 WHERE day = (SELECT min(day) FROM daily)", "daily totals"),
        ("UPDATE batches SET last_id = last_id + 1 WHERE number = 1", "where a batch goes on"),
        ("UPDATE batches SET began_ns = 0 WHERE number = 3", "the time of a batch"),
        ("UPDATE progress SET good = good - 1", "the recorded progress"),
    ] {
        fs::copy(&good, &copy).expect("a copy");
        let connection = rusqlite::Connection::open(&copy).expect("a database");
        assert!(connection.execute(wrong, []).expect("a change") > 0, "{wrong}");
        drop(connection);
        match verify(&copy) {
            Err(VerifyError::Differs { what: found, .. }) => assert_eq!(found, what, "{wrong}"),
            other => panic!("{wrong}: {other:?}"),
        }
    }
    Ok(())
}
