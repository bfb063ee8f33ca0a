//! How etcd, the masters and the agents are started.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::path::Path;

use serde_json::{Value, json};

use super::config::{ClusterConfig, Module, Place, ServiceSpec};
use super::leftovers::cgroup_root;
use super::network::HUB;

/// The leading master.
pub(super) const MASTER: SocketAddrV4 = SocketAddrV4::new(HUB, 5050);
pub(super) const STANDBY: SocketAddrV4 = SocketAddrV4::new(HUB, 5060);
/// Every agent's port.
pub(super) const AGENT_PORT: u16 = 5051;

/// Where clients reach an etcd member; the first is number 0.
pub(super) fn etcd_port(member: u8) -> u16 {
    2379 + 10 * u16::from(member)
}

/// Where clients reach each etcd member.
pub(super) fn etcd_clients(config: &ClusterConfig) -> Vec<SocketAddrV4> {
    (0..config.etcd_members).map(|member| SocketAddrV4::new(HUB, etcd_port(member))).collect()
}

pub(super) fn etcd(config: &ClusterConfig) -> Vec<ServiceSpec> {
    let clients = etcd_clients(config);
    let url = |address: SocketAddrV4| format!("http://{address}");
    let peer = |client: &SocketAddrV4| url(SocketAddrV4::new(HUB, client.port() + 1));
    let name = |index: usize| format!("etcd-{}", index + 1);
    let members: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(index, client)| format!("{}={}", name(index), peer(client)))
        .collect();
    let members = members.join(",");
    let member = |(index, client): (usize, &SocketAddrV4)| {
        let name = name(index);
        let data = format!("{{cluster}}/{name}");
        let flags = [
            ("name", name.clone()),
            ("data-dir", data),
            ("listen-client-urls", url(*client)),
            ("advertise-client-urls", url(*client)),
            ("listen-peer-urls", peer(client)),
            ("initial-advertise-peer-urls", peer(client)),
            ("initial-cluster", members.clone()),
            // Heartbeats write all the time: without compaction the history only grows.
            ("auto-compaction-mode", "periodic".to_owned()),
            ("auto-compaction-retention", "5m".to_owned()),
            ("logger", "zap".to_owned()),
        ];
        let flags = flags.into_iter().map(|(flag, value)| format!("--{flag}={value}"));
        ServiceSpec::new(name, std::iter::once("etcd".to_owned()).chain(flags))
    };
    clients.iter().enumerate().map(member).collect()
}

/// The leading master, and the standby if there is one.
pub(super) fn masters(config: &ClusterConfig) -> Vec<ServiceSpec> {
    let node = config.binaries.mesos.join("mesos-node").display().to_string();
    let mut masters = vec![master("master", MASTER, config, vec![node.clone(), "master".to_owned()])];
    if config.standby_master {
        let argv = vec![node, "agent".to_owned(), format!("master@{MASTER}")];
        masters.push(master("standby-master", STANDBY, config, argv));
    }
    masters
}

fn master(name: &str, at: SocketAddrV4, config: &ClusterConfig, argv: Vec<String>) -> ServiceSpec {
    let mut env = config.master_env.clone();
    let mut set = |name: &str, value: String| {
        env.entry(name.to_owned()).or_insert(value);
    };
    set("LIBPROCESS_IP", at.ip().to_string());
    set("LIBPROCESS_PORT", at.port().to_string());
    set("GLOG_logtostderr", "1".to_owned());
    set("MESOS_HOSTNAME", at.ip().to_string());
    set("MESOS_NUM_SLAVES", "0".to_owned());
    // The only registry that survives the master's death.
    set("MESOS_REGISTRY", "replicated_log".to_owned());
    set("MESOS_WORK_DIR", format!("{{cluster}}/{name}"));
    set("MESOS_AGENT_PING_TIMEOUT", format!("{}ms", config.agent_ping_timeout.as_millis()));
    set("MESOS_MAX_AGENT_PING_TIMEOUTS", config.max_agent_ping_timeouts.to_string());
    if config.modules.as_ref().is_some_and(|modules| modules.master.is_some()) {
        set("MESOS_MODULES", "file://{dir}/modules.json".to_owned());
    }
    ServiceSpec { name: name.to_owned(), argv, env, ready: Vec::new() }
}

pub(super) fn agent(config: &ClusterConfig, id: &str) -> ServiceSpec {
    let node = config.binaries.mesos.join("mesos-node").display().to_string();
    let mut env = config.agent_env.clone();
    let mut set = |name: &str, value: String| {
        env.entry(name.to_owned()).or_insert(value);
    };
    set("LIBPROCESS_IP", "{address}".to_owned());
    set("LIBPROCESS_PORT", AGENT_PORT.to_string());
    set("GLOG_logtostderr", "1".to_owned());
    set("MESOS_HOSTNAME", "{host}".to_owned());
    set("MESOS_NUM_SLAVES", "1".to_owned());
    // That of the idle master in the agent's own process.
    set("MESOS_REGISTRY", "in_memory".to_owned());
    set("MESOS_WORK_DIR", "{dir}/mesos".to_owned());
    set("MESOS_SYSTEMD_ENABLE_SUPPORT", "false".to_owned());
    set("MESOS_LAUNCHER", "linux".to_owned());
    set("MESOS_LAUNCHER_DIR", "{cluster}/launcher".to_owned());
    set("MESOS_CGROUPS_ROOT", cgroup_root(id, "{host}"));
    set("MESOS_RESOURCES", config.resources.clone());
    if !config.attributes.is_empty() {
        set("MESOS_ATTRIBUTES", config.attributes.clone());
    }
    let mut isolation = vec!["filesystem/linux".to_owned()];
    if let Some(registry) = &config.docker_registry {
        isolation.push("docker/runtime".to_owned());
        set("MESOS_IMAGE_PROVIDERS", "docker".to_owned());
        set("MESOS_DOCKER_REGISTRY", registry.display().to_string());
    }
    isolation.extend(config.isolation.iter().cloned());
    if let Some(isolator) = config.modules.as_ref().and_then(|modules| modules.isolator.as_ref()) {
        isolation.push(isolator.name.clone());
        set("MESOS_MODULES", "file://{dir}/modules.json".to_owned());
    }
    set("MESOS_ISOLATION", isolation.join(","));
    ServiceSpec {
        name: "agent".to_owned(),
        argv: vec![node, "agent".to_owned(), format!("master@{MASTER}")],
        env,
        ready: Vec::new(),
    }
}

/// The modules JSON of one host.
pub(super) fn modules_json(library: &Path, module: &Module, place: &Place) -> Value {
    let parameters: Vec<_> = module
        .parameters
        .iter()
        .map(|(key, value)| BTreeMap::from([("key", place.fill(key)), ("value", place.fill(value))]))
        .collect();
    json!({ "libraries": [{
        "file": library,
        "modules": [{ "name": module.name, "parameters": parameters }],
    }] })
}
