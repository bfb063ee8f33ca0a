//! What the module's tests share: masters and agents of a few lines, the log, and the events.

#![expect(dead_code, reason = "each test program uses its part of it")]

pub(crate) mod events;
pub(crate) mod log;
pub(crate) mod master;

use std::time::Duration;

use master_module::MasterModule;
use testing::EtcdCluster;

/// Starts the module for an etcd and a master.
pub(crate) fn start(
    endpoints: &[String],
    master: Option<&str>,
    own_address: fn() -> Option<String>,
) -> MasterModule {
    start_with(endpoints, master, own_address, &[])
}

/// The same, with further parameters, or others.
pub(crate) fn start_with(
    endpoints: &[String],
    master: Option<&str>,
    own_address: fn() -> Option<String>,
    more: &[(&str, &str)],
) -> MasterModule {
    let mut parameters = vec![
        ("etcd_endpoints".to_owned(), endpoints.join(",")),
        ("poll_interval".to_owned(), "100ms".to_owned()),
        ("request_timeout".to_owned(), "500ms".to_owned()),
    ];
    parameters.retain(|(name, _)| more.iter().all(|(other, _)| name != other));
    parameters.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    parameters.extend(master.map(|url| ("master".to_owned(), url.to_owned())));
    let begin = std::time::Instant::now();
    let module = MasterModule::start(&parameters, own_address).unwrap();
    assert!(begin.elapsed() < Duration::from_millis(500), "start blocks: {:?}", begin.elapsed());
    module
}

/// No address yet.
pub(crate) fn nowhere() -> Option<String> {
    None
}

/// Makes the installation's record, as the first keeper does.
pub(crate) fn found(cluster: &EtcdCluster) {
    cluster.etcdctl(&["put", "/extvol/v1/cluster", r#"{"version":1,"id":"test"}"#]);
}

/// Writes a held lease, as a keeper would.
pub(crate) fn put_lease(cluster: &EtcdCluster, volume: &str, state: &str) {
    let held = format!(
        r#"{{"version":1,"state":"{state}","holder":"agent-1","epoch":3,"token":42,"since":"x","agent_id":"S0","containers":["c1"]}}"#
    );
    let free = r#"{"version":1,"state":"free","last_holder":"agent-1","since":"x"}"#;
    let value = if state == "free" { free } else { &held };
    cluster.etcdctl(&["put", &format!("/extvol/v1/leases/{volume}"), value]);
}
