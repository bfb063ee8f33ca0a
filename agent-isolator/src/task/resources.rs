//! Set resources that stand for volumes, such as `ebsvolumes:{vol-7bca078f}`: which, the parameter `resources` says.

use std::collections::BTreeMap;

use shared::volume::{Driver, VolumeId};

use super::settings::{plain_path, text, volume_name};
use super::{TaskVolume, shown};
use crate::mesos::Resource;

/// By the resource's name, the driver of its volumes.
pub type ResourceDrivers = BTreeMap<String, Driver>;

/// The volumes among a container's resources, each below the resource's name in the sandbox. It exists: whoever has made it a
/// resource knows it.
pub(super) fn read(resources: &[Resource], drivers: &ResourceDrivers) -> Result<Vec<TaskVolume>, String> {
    let mut volumes: Vec<TaskVolume> = Vec::new();
    for resource in resources {
        let Some((name, driver)) = drivers.iter().find(|(name, _)| name.as_bytes() == resource.name) else {
            continue;
        };
        let Some(set) = &resource.set else {
            return Err(format!("the resource {name} names volumes, and is no set such as {name}:{{vol-1}}"));
        };
        for item in &set.item {
            let volume = named(name, driver, &text(&format!("resource {name}"), Some(item), false)?)?;
            let path = format!("{name}/{}", volume.name);
            let container_path = Some(plain_path(&format!("resource {name}"), &path)?);
            // One may come in parts, of several roles.
            if !volumes.iter().any(|known| known.volume == volume) {
                volumes.push(TaskVolume {
                    volume,
                    container_path,
                    read_only: false,
                    create: None,
                    remove: false,
                    own: false,
                });
            }
        }
    }
    Ok(volumes)
}

/// The volume that an item of a resource names.
pub(crate) fn named(resource: &str, driver: &Driver, item: &str) -> Result<VolumeId, String> {
    let name = volume_name(&format!("resource {resource}"), item)?;
    Ok(VolumeId { driver: driver.clone(), name })
}

/// The parameter: `ebsvolumes:ebs,nfsvolumes:nfs`.
pub(crate) fn drivers(list: &str) -> Result<ResourceDrivers, String> {
    let mut drivers = ResourceDrivers::new();
    for pair in list.split(',').filter(|pair| !pair.is_empty()) {
        let Some((resource, driver)) = pair.split_once(':').filter(|(resource, _)| is_name(resource)) else {
            return Err(format!("holds {pair:?}, which is not RESOURCE:DRIVER"));
        };
        if ["cpus", "gpus", "mem", "disk", "ports"].contains(&resource) {
            return Err(format!("holds {resource}, which is one of Mesos's own resources"));
        }
        let driver = Driver::new(driver).map_err(|why| format!("holds {pair:?}: the driver name {why}"))?;
        if drivers.insert(resource.to_owned(), driver).is_some() {
            return Err(format!("holds {:?} twice", shown(resource)));
        }
    }
    Ok(drivers)
}

/// A name that is a directory's as well.
fn is_name(resource: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !resource.is_empty() && !resource.starts_with('.') && resource.chars().all(plain)
}
