//! The parsers of foreign bytes that are nobody's interface, for the fuzz targets (`integration/fuzz`).
//!
//! Each panics when something does not hold that must hold for any input.

use std::path::Path;

use prost::Message;
use reqwest::StatusCode;
use shared::volume::Driver;

use crate::isolator::executors;
use crate::keeper::driver::endpoint::Endpoint;
use crate::keeper::{driver, mount_table, volume_rules};
use crate::mesos::{ContainerConfig, RawContainerId};
use crate::parameters::IsolatorParameters;
use crate::rules::Declared;
use crate::{agent_flags, agent_state, task, wire};

/// `/proc/<pid>/mountinfo`, in which tenants choose paths and sources.
pub fn mount_table(bytes: &[u8]) {
    let mounts = mount_table::parse(bytes);
    assert!(mounts.len() <= bytes.len() / 4 + 1, "a line has at least an id, a parent and more");
}

/// What Mesos hands over of a task: labels, environment, all of it.
pub fn task(bytes: &[u8]) {
    if let Ok(id) = RawContainerId::decode(bytes) {
        let _refused_or_not = id.name();
    }
    let Ok(config) = ContainerConfig::decode(bytes) else { return };
    let _none_or_some = task::names_none(&config);
    let given = [("etcd_endpoints", "h:1"), ("drivers", "rexray,ebs"), ("resources", "ebsvolumes:ebs")];
    let given: Vec<_> = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let Ok(IsolatorParameters { rules, keeper, .. }) = IsolatorParameters::read(&given) else { return };
    let declared = Declared { rules: &rules, keeper: &keeper, docker_volume_isolator: false };
    let _refused_or_not = declared.check(&config);
    let Ok(volumes) = task::volumes(&config, &declared) else { return };
    for volume in volumes {
        let path = volume.container_path.unwrap_or_default();
        assert!(path.split('/').all(|segment| !matches!(segment, "." | "..")), "{path:?}");
        assert!(!path.contains('\0') && !path.contains("//"), "{path:?}");
    }
}

/// The lines between isolator and keeper.
pub fn wire_line(bytes: &[u8]) {
    let mut reader = bytes;
    let read = futures::FutureExt::now_or_never(wire::read_line(&mut reader));
    let Some(Ok(Some(line))) = read else { return };
    if let Ok(call) = serde_json::from_str::<wire::CallLine>(&line) {
        let again = wire::line(&call);
        assert_eq!(serde_json::from_str::<wire::CallLine>(&again).ok(), Some(call));
    }
    if let Ok(told) = serde_json::from_str::<wire::KeeperLine>(&line) {
        assert!(serde_json::from_str::<wire::KeeperLine>(&wire::line(&told)).is_ok());
    }
}

/// A plugin's whole answer; the first two bytes choose status and haste.
pub fn plugin_answer(bytes: &[u8]) {
    let [status, prompt, answer @ ..] = bytes else { return };
    let status = StatusCode::from_u16(100 + u16::from(*status) * 2).unwrap_or_default();
    match driver::answer::understood(answer, status, prompt % 2 == 0) {
        Ok(value) => assert!(value.is_object() && status.is_success()),
        Err(driver::answer::Said::No(text)) => assert!(prompt % 2 == 0 && text.len() < 8192),
        Err(driver::answer::Said::Nothing(text)) => assert!(text.len() < 8192),
    }
}

/// The file that tells where a plugin listens.
pub fn plugin_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for name in ["x.spec", "x.json"] {
        let Ok(endpoint) = driver::specification::specified(Path::new(name), text) else { continue };
        // What is shown of an address is an address of its own, and the same place.
        if matches!(endpoint, Endpoint::Tcp(_) | Endpoint::Tls(..)) {
            let shown = endpoint.shown();
            assert!(!shown.contains('@'), "{shown:?}");
            let again = driver::specification::specified(Path::new("x.spec"), &shown);
            assert_eq!(again.map(|again| again.place()).ok(), Some(endpoint.place()), "{shown:?}");
        }
    }
}

/// How TLS is to be, in such a file: nothing but what it says in so many words makes it weaker.
pub fn plugin_tls(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(tls) = serde_json::from_str::<serde_json::Value>(text) else { return };
    let file = serde_json::json!({ "Addr": "https://h:1", "TLSConfig": tls });
    let Ok(endpoint) = driver::specification::specified(Path::new("x.json"), &file.to_string()) else {
        return;
    };
    assert_eq!(endpoint.shown(), "https://h:1");
    let insecure = matches!(&endpoint, Endpoint::Tls(_, tls) if tls.is_insecure());
    assert!(!insecure || text.contains("true"), "{text}");
    let plain = serde_json::json!({ "Addr": "tcp://h:1", "TLSConfig": tls });
    let plain = driver::specification::specified(Path::new("x.json"), &plain.to_string());
    assert!(plain.is_err() || !insecure, "{text}");
}

/// Files of certificates and keys.
pub fn certificates(bytes: &[u8]) {
    let _certificates_or_none = driver::tls::certificates_in(bytes);
    if let Err(why) = driver::tls::key_in(bytes) {
        assert!(why.len() < 100);
    }
}

/// The description of a plugin that a Docker engine manages.
pub fn managed_plugin(bytes: &[u8]) {
    let Ok(plugin) = driver::managed::described(bytes) else { return };
    for name in ["ebs", "rexray/ebs", "rexray/ebs:0.11.4"] {
        let Ok(name) = Driver::new(name) else { continue };
        let _is_or_not = plugin.is_called(&name);
    }
    let directory = Path::new("/var/lib/docker/plugins/id");
    let Ok(Endpoint::Managed(managed)) = plugin.endpoint(directory, Path::new("/run/docker/plugins")) else {
        return;
    };
    assert_eq!(managed.socket_directory(), Some(Path::new("/run/docker/plugins/id")));
    let endpoint = Endpoint::Managed(managed);
    for answered in ["/mnt/v", "/", "/var/lib/volumes/../../x", ""] {
        if let Ok(path) = endpoint.host_path(answered.to_owned()) {
            assert!(Path::new(&path).starts_with(directory), "{path:?}");
        }
    }
}

/// The agent's `/state`, in which frameworks choose much.
pub fn agent_state(bytes: &[u8]) {
    let text = agent_state::text(bytes.to_vec());
    if let Ok(frameworks) = volume_rules::frameworks(&text) {
        assert!(frameworks.len() <= text.len());
    }
    let given = [("etcd_endpoints", "h:1"), ("drivers", "rexray,ebs"), ("resources", "ebsvolumes:ebs")];
    let given: Vec<_> = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let Ok(IsolatorParameters { rules, keeper, .. }) = IsolatorParameters::read(&given) else { return };
    let declared = Declared { rules: &rules, keeper: &keeper, docker_volume_isolator: false };
    // The answer to GET_TASKS stands behind a NUL, which is in no JSON.
    let (state, tasks) = text.split_once('\0').unwrap_or((&text, r#"{"get_tasks": {}}"#));
    let _judged_or_not = executors::judged(state, tasks, &declared);
}

/// The agent's command line, as /proc has it.
pub fn agent_flags(bytes: &[u8]) {
    // A flag may name a file, which would be read.
    if !bytes.windows(7).any(|window| window == b"file://") {
        let _value = agent_flags::given("isolation", bytes, None);
    }
}
