//! Master and agent with the modules, the C++ half under the address and undefined behaviour sanitizers
//! (`integration/sanitize` says what is instrumented and what is not).

use std::fs;

use integration::cluster::{Cluster, ClusterConfig, target_directory};
use integration::scheduler::{SchedulerConfig, TaskState};
use integration::trial::{Result, SOON, Trial, app_with};

use crate::library::Library;
use crate::refusals::Loader;

/// One of these is in whatever a sanitizer reports.
const REPORTS: [&str; 4] =
    ["AddressSanitizer", "UndefinedBehaviorSanitizer", "LeakSanitizer", "runtime error: "];

fn sanitized() -> Result<ClusterConfig> {
    let mut config = ClusterConfig::complete(1, &["ebs"])?;
    config.binaries.mesos = target_directory().join("mesos-sanitized");
    config.modules.as_mut().expect("the product's").library =
        target_directory().join("extvol-sanitized/libextvol.so");
    Ok(config)
}

#[test]
fn mesos_the_modules_run_under_sanitizers() -> Result<()> {
    let trial = Trial::with(sanitized()?, SchedulerConfig::default())?;
    let cluster = &trial.cluster;
    for (host, service) in [(cluster.hub(), "master"), (cluster.host(0), "agent")] {
        let maps = "for map in /proc/[0-9]*/maps; do cat $map; done";
        let maps = host.run(&["sh", "-c", maps])?;
        for part in ["libasan", "libubsan", "extvol-sanitized/libextvol.so"] {
            assert!(maps.contains(part), "{service} has no {part}");
        }
    }
    trial.create_volume("vol-1")?;
    let write = "echo here >data/log && sync && cat /dev/null; while ! test -e data/end; do sleep 0.1; done";
    let running = trial.run(app_with("writer", "agent-1", "vol-1", write)?)?;
    // Its containers are walked over in recover.
    cluster.host(0).kill_agent()?;
    cluster.wait_agent_gone(0, SOON)?;
    cluster.host(0).start_agent()?;
    cluster.wait_agent_registered(0, SOON)?;
    cluster.host(0).run(&["touch", "/var/lib/rexray/volumes/vol-1/data/end"])?;
    let ended = trial.wait_ended("writer", 0)?;
    assert_eq!((ended.state, &ended.task_id), (TaskState::Finished, &running.task_id), "{:?}", ended.message);
    trial.scheduler.stop("writer")?;
    // One that is killed, one that is refused, and what the agent asks of isolators beside.
    trial.run_to_end(app_with("refused", "agent-1", "missing", "true")?)?;
    trial.scheduler.stop("refused")?;
    trial.wait_free("ebs/vol-1")?;
    trial.run(app_with("killed", "agent-1", "vol-1", "sleep 1000")?)?;
    cluster.hub().run(&["curl", "-sSf", &format!("{}/monitor/statistics", cluster.agent_url(0))])?;
    trial.stop("killed")?;
    trial.wait_free("ebs/vol-1")?;
    nothing_is_reported(cluster);
    Ok(())
}

fn nothing_is_reported(cluster: &Cluster) {
    let logs = fs::read_dir(cluster.logs()).expect("the logs").flatten();
    for log in logs.map(|entry| entry.path()).filter(|path| path.is_file()) {
        let text = String::from_utf8_lossy(&fs::read(&log).expect("a log")).into_owned();
        for report in REPORTS {
            assert!(!text.contains(report), "{}: {text}", log.display());
        }
    }
}

/// The proof that the test above can fail.
#[test]
fn mesos_a_shim_that_overruns_or_overflows_is_reported() -> Result<()> {
    let cluster = Cluster::start(sanitized()?)?;
    let agent = Loader::agent(&cluster)?;
    let defects = [
        (
            "-DDEFECT=volatile char* volatile bytes = new char[7]; bytes[sizeof(seconds) - 1] = 1; delete[] bytes",
            "ERROR: AddressSanitizer: heap-buffer-overflow",
        ),
        (
            "-DDEFECT=volatile char* volatile bytes = new char[7]; delete[] bytes; bytes[0] = 1",
            "ERROR: AddressSanitizer: heap-use-after-free",
        ),
        (
            "-DDEFECT=volatile int places = 40; places = 1 << places",
            "runtime error: shift exponent 40 is too large for 32-bit type 'int'",
        ),
    ];
    for (defect, report) in defects {
        let library = Library::sanitized_with("statistics.cpp", &["-DAT_LOAD", defect]);
        let said = agent.starts_in_vain(&library.path(), None)?;
        assert!(said.contains(report), "{report:?} is not in: {said}");
        assert!(REPORTS.iter().any(|word| said.contains(word)), "{said}");
        assert!(said.contains("timestampedStatistics"), "{said}");
    }
    cluster.host(0).start_agent()?;
    cluster.wait_agent_registered(0, SOON)?;
    Ok(())
}
