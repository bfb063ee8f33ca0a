//! The worker process: one thread, beside the deadman that started it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use agent_isolator::keeper::checkpoint::{Checkpoint, Owner, lock, machine};
use agent_isolator::keeper::deadman::{DEADLINE, DeadmanWatch};
use agent_isolator::keeper::driver::DockerPlugins;
use agent_isolator::keeper::limits::raise_descriptors;
use agent_isolator::keeper::log::{BoundedLog, OneLine};
use agent_isolator::keeper::shared_memory::SharedMemory;
use agent_isolator::keeper::survey::{self, Finding, Level};
use agent_isolator::keeper::{Worker, mounts, sentence, server};
use agent_isolator::parameters::{Drivers, KeeperParameters};
use shared::clock::holder_now;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::exchange_io::Exchange;
use shared::keys::Keys;
use shared::quote;

use crate::start::{DEADMAN, DETACHED, LOG, arguments};

/// For what may hang; helper processes hang, these threads only wait for them.
const BLOCKING_THREADS: usize = 24;

/// How often plugins that did not answer are asked again, until they have.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

pub(crate) fn run(parameters: KeeperParameters) -> Result<(), String> {
    let _name_is_for_people = rustix::thread::set_name(c"extvol-worker");
    raise_descriptors();
    let memory = SharedMemory::open(&parameters.run_directory.join(DEADLINE));
    let memory = Arc::new(memory.map_err(|error| sentence(&error))?);
    // Before anything that takes its time: the deadman counts.
    memory.tick_worker(holder_now());
    log(&parameters);
    // A worker with a part missing would go on half: better none, until it is started again.
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "extvol-keeper: a bug: {}", quote::line(&panic.to_string()));
        std::process::abort();
    }));
    let _locks = [&parameters.run_directory, &parameters.state_directory]
        .map(|directory| lock(directory).map_err(|error| sentence(&error)))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let machine = machine(&parameters.state_directory).map_err(|error| sentence(&error))?;
    let owner = Owner { holder: parameters.holder.clone(), etcd_prefix: parameters.etcd_prefix.clone() };
    let checkpoint = Checkpoint::new(&parameters.run_directory, &machine.boot_id, owner);
    let request = parameters.timing.request;
    let config = EtcdConfig {
        // A little less than R: the store has to see for itself that a member did not answer, to go to another.
        request_timeout: request - request / 10,
        // Hosts begin with different members, and so share the load.
        first_member: parameters.holder.as_str().bytes().map(usize::from).sum(),
        ..EtcdConfig::new(parameters.etcd_endpoints.clone())
    };
    let store = EtcdStore::new(config).map_err(|error| sentence(&error))?;
    let keys = Keys::new(&parameters.etcd_prefix);
    let exchange = Exchange::new(store, keys, request, Some(parameters.drivers.names()));
    let guard = DeadmanWatch::new(Arc::clone(&memory), arguments(DEADMAN, &parameters));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|error| format!("the runtime could not be made: {error}"))?;
    runtime.block_on(async {
        let listener = server::listen(&parameters.socket())
            .map_err(|error| format!("{}: {error}", parameters.socket().display()))?;
        tracing::info!("keeper of holder {} listens at {}", parameters.holder, parameters.socket().display());
        for root in &parameters.mount_roots {
            if let Err(why) = mounts::check_root(root) {
                tracing::error!("{why}");
            }
        }
        let cgroup_root = parameters.policy().cgroup_root;
        let plugins = DockerPlugins::new(&parameters.drivers);
        tokio::spawn(look_at_plugins(plugins.clone(), parameters.drivers.clone()));
        let worker = Worker::start(parameters, checkpoint, machine, memory, exchange, plugins, guard)
            .map_err(|error| sentence(&error))?;
        tokio::spawn(server::serve(listener, cgroup_root, worker.events()));
        worker.run().await;
        Ok(())
    })
}

/// Tells once what is not well with each driver; a plugin that does not answer is asked until it does, for it may be
/// started after this one.
async fn look_at_plugins(plugins: DockerPlugins, drivers: Drivers) {
    let mut silent = Vec::new();
    for driver in &drivers.served {
        let findings = survey::driver(&plugins, &drivers, driver).await;
        tell(&findings);
        silent.extend(findings.iter().any(|finding| finding.level == Level::Fault).then_some(driver));
    }
    while !silent.is_empty() {
        tokio::time::sleep(LOOK_AGAIN).await;
        let asked = std::mem::take(&mut silent);
        for driver in asked {
            let findings = survey::driver(&plugins, &drivers, driver).await;
            if findings.iter().any(|finding| finding.level == Level::Fault) {
                silent.push(driver);
                continue;
            }
            tracing::info!("the driver {driver} is well now");
            tell(&findings);
        }
    }
}

fn tell(findings: &[Finding]) {
    for Finding { level, what, advice } in findings {
        match level {
            Level::Well => {}
            Level::Warning => tracing::warn!("{what}; {advice}"),
            Level::Fault => tracing::error!("{what}; {advice}"),
        }
    }
}

fn log(parameters: &KeeperParameters) {
    let filter = std::env::var("EXTVOL_LOG").unwrap_or_else(|_| "info".into());
    let detached = std::env::var_os(DETACHED).is_some();
    // A log that cannot be written is no reason to end.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).log_internal_errors(false);
    match BoundedLog::open(&parameters.run_directory.join(LOG)).ok().filter(|_| detached) {
        Some(bounded) => log.with_writer(OneLine(Arc::new(bounded))).init(),
        None => log.with_writer(OneLine(std::io::stderr)).init(),
    }
}
