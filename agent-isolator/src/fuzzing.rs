//! The parsers of foreign bytes that are nobody's interface, for the fuzz targets (`integration/fuzz`).
//!
//! Each panics when something does not hold that must hold for any input.

use std::path::Path;

use prost::Message;
use reqwest::StatusCode;

use crate::keeper::{driver, mount_table};
use crate::mesos::{ContainerConfig, RawContainerId};
use crate::parameters::IsolatorParameters;
use crate::rules::Declared;
use crate::{agent_flags, task, wire};

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
        let _refused_or_not = driver::discovery::specified(Path::new(name), text);
    }
}

/// The agent's command line, as /proc has it.
pub fn agent_flags(bytes: &[u8]) {
    // A flag may name a file, which would be read.
    if !bytes.windows(7).any(|window| window == b"file://") {
        let _value = agent_flags::given("isolation", bytes, None);
    }
}
