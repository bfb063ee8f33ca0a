//! `ContainerInfo.volumes` of source DOCKER_VOLUME, as Marathon's external volumes and Mesos's own `docker/volume` have them.

use std::collections::BTreeMap;

use shared::volume::VolumeId;

use super::settings::{OPTIONS_BYTES_MAX, driver_name, plain_path, text, volume_name};
use super::{TaskVolume, shown};
use crate::mesos::volume::source::DockerVolume;
use crate::mesos::{Volume, volume::Mode};

/// The volume of a declaration that is leased here: one of a driver of ours.
pub(super) fn read(declared: &Volume, docker: &DockerVolume) -> Result<TaskVolume, String> {
    let name = "DOCKER_VOLUME name";
    let name = volume_name(name, &text(name, Some(&docker.name), false)?)?;
    let key = format!("driver of DOCKER_VOLUME {:?}", shown(name.as_str()));
    let driver = driver_name(&key, &text(&key, docker.driver.as_deref(), false)?)?;
    let volume = VolumeId { driver, name };
    let key = format!("container_path of DOCKER_VOLUME {volume}");
    let container_path = plain_path(&key, &text(&key, Some(&declared.container_path), false)?)?;
    let read_only = match declared.mode.map(Mode::try_from) {
        Some(Ok(Mode::Rw)) => false,
        Some(Ok(Mode::Ro)) => true,
        _ => return Err(format!("DOCKER_VOLUME {volume} has neither the mode RW nor RO")),
    };
    // `docker/volume` has the driver create what is missing.
    let create = Some(options(&volume, docker)?);
    Ok(TaskVolume {
        volume,
        container_path: Some(container_path),
        read_only,
        create,
        remove: false,
        own: false,
    })
}

/// They may hold passwords: an error names a key at most.
fn options(volume: &VolumeId, docker: &DockerVolume) -> Result<BTreeMap<String, String>, String> {
    let (mut options, mut bytes) = (BTreeMap::new(), 0);
    for (number, parameter) in (1..).zip(docker.driver_options.iter().flat_map(|options| &options.parameter))
    {
        let name = format!("option {number} of DOCKER_VOLUME {volume}");
        bytes += parameter.key.len() + parameter.value.len() + 2;
        if bytes > OPTIONS_BYTES_MAX {
            return Err(format!(
                "DOCKER_VOLUME {volume}: the options have more than {OPTIONS_BYTES_MAX} bytes"
            ));
        }
        let (key, value) =
            (text(&name, Some(&parameter.key), true)?, text(&name, Some(&parameter.value), true)?);
        if key.is_empty() {
            return Err(format!("{name} has no key"));
        }
        match options.get(&key) {
            Some(known) if *known != value => {
                return Err(format!("{name}, {:?}, is given twice, with different values", shown(&key)));
            }
            _ => options.insert(key, value),
        };
    }
    Ok(options)
}
