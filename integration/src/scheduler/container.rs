//! Image, volumes and host paths of an app, as the Mesos containerizer wants them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::app::key_values;

/// Image and volumes of a task under the Mesos containerizer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// A Docker image's name; without one the task sees the host's file system.
    #[serde(default)]
    pub image: Option<String>,
    /// External volumes.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Paths of the host that the task finds in its image.
    #[serde(default)]
    pub host_paths: Vec<HostPath>,
}

/// A path of the host in a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPath {
    /// Where the task finds it; made if the image does not have it.
    pub container_path: String,
    /// What is mounted there; it must exist on the host.
    pub host_path: String,
    /// Whether the task may write.
    #[serde(default)]
    pub mode: VolumeMode,
}

/// A volume of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Where the task finds it.
    pub container_path: String,
    /// Whether the task may write.
    #[serde(default)]
    pub mode: VolumeMode,
    /// The Docker volume behind it.
    pub docker_volume: DockerVolume,
}

/// Whether a task may write to a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeMode {
    /// Reads and writes.
    #[default]
    #[serde(rename = "RW")]
    ReadWrite,
    /// Reads only.
    #[serde(rename = "RO")]
    ReadOnly,
}

/// A volume of a Docker volume plugin: Mesos's source type `DOCKER_VOLUME`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerVolume {
    /// The plugin.
    #[serde(default)]
    pub driver: Option<String>,
    /// The volume's name at the plugin.
    pub name: String,
    /// Options for the plugin.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Container {
    pub(super) fn container_info(&self) -> Value {
        let mut info = json!({ "type": "MESOS", "mesos": {} });
        if let Some(image) = &self.image {
            info["mesos"]["image"] = json!({ "type": "DOCKER", "docker": { "name": image } });
        }
        let volumes = self.volumes.iter().map(Volume::volume);
        info["volumes"] = volumes.chain(self.host_paths.iter().map(HostPath::volume)).collect();
        info
    }
}

impl HostPath {
    fn volume(&self) -> Value {
        json!({ "container_path": self.container_path, "mode": self.mode, "host_path": self.host_path })
    }
}

impl Volume {
    fn volume(&self) -> Value {
        let mut docker = json!({
            "name": self.docker_volume.name,
            "driver_options": { "parameter": key_values(&self.docker_volume.options) },
        });
        if let Some(driver) = &self.docker_volume.driver {
            docker["driver"] = json!(driver);
        }
        json!({
            "container_path": self.container_path,
            "mode": self.mode,
            "source": { "type": "DOCKER_VOLUME", "docker_volume": docker },
        })
    }
}
