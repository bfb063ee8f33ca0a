//! The variables of mesos-module-dvdi: `DVDI_VOLUME_<FIELD>` and `DVDI_VOLUME_<FIELD><0-9>`; no digit means 0.

use std::collections::BTreeMap;

use shared::volume::{Driver, VolumeName};

use super::TaskVolume;
use super::settings::{Settings, text};
use crate::mesos::Environment;

/// The volumes that variables name, in the order of their numbers.
pub(super) fn read(
    environment: &Environment,
    default_driver: impl Fn(&VolumeName) -> Option<Driver>,
) -> Result<Vec<TaskVolume>, String> {
    let mut found: BTreeMap<u8, Settings> = BTreeMap::new();
    for variable in &environment.variables {
        let Ok(name) = std::str::from_utf8(&variable.name) else { continue };
        let Some(rest) = name.strip_prefix("DVDI_VOLUME_") else { continue };
        let (field, number) = match rest.as_bytes().split_last() {
            Some((digit @ b'0'..=b'9', _)) => (&rest[..rest.len() - 1], digit - b'0'),
            _ => (rest, 0),
        };
        let settings = found.entry(number).or_default();
        let slot = match field {
            "NAME" => &mut settings.name,
            "DRIVER" => &mut settings.driver,
            "CONTAINERPATH" => &mut settings.container_path,
            "OPTS" => &mut settings.options,
            "EXPLICITCREATE" => &mut settings.must_exist,
            // The path of the dvdcli program, which is not used here.
            "DVDCLI" => continue,
            // Another program's variable: this name space was never reserved.
            _ => continue,
        };
        if slot.is_some() {
            return Err(format!("variable {name} is given twice, with and without the digit 0"));
        }
        let key = format!("variable {name}");
        let value = text(&key, variable.value.as_deref(), field == "OPTS")?;
        *slot = Some((key, value));
    }
    found.retain(|_, settings| {
        settings.name.is_some() || settings.driver.is_some() || settings.container_path.is_some()
    });
    let volumes = found.into_iter().map(|(number, mut settings)| {
        // mesos-module-dvdi lets the driver create what is missing, unless told otherwise.
        settings.options.get_or_insert_with(Default::default);
        settings.volume(&format!("variable DVDI_VOLUME_NAME{number}"), &default_driver)
    });
    volumes.collect()
}
