//! Image and volumes of an app, as the Mesos containerizer wants them.

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
        info["volumes"] = self.volumes.iter().map(Volume::volume).collect();
        info
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
