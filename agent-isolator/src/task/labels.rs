//! The labels `extvol.<field>` and `extvol.<1-9>.<field>`.

use std::collections::BTreeMap;

use shared::quote;
use shared::volume::{Driver, VolumeName};

use super::settings::{Settings, text};
use super::{TaskVolume, shown};
use crate::mesos::Labels;

/// The volumes that labels name, in the order of their numbers.
pub(super) fn read(
    labels: &Labels,
    default_driver: impl Fn(&VolumeName) -> Option<Driver>,
) -> Result<Vec<TaskVolume>, String> {
    let mut found: BTreeMap<u8, Settings> = BTreeMap::new();
    for label in &labels.labels {
        let Some(_) = label.key.strip_prefix(b"extvol.") else { continue };
        let key = String::from_utf8_lossy(&label.key);
        let rest = &key["extvol.".len()..];
        let (number, field) = match rest.split_once('.') {
            Some((digit, field)) => match digit.as_bytes() {
                [digit @ b'1'..=b'9'] => (digit - b'0', field),
                _ => return Err(unknown_label(&key)),
            },
            None => (0, rest),
        };
        let settings = found.entry(number).or_default();
        let slot = match field {
            "name" => &mut settings.name,
            "driver" => &mut settings.driver,
            "container_path" => &mut settings.container_path,
            "mode" => &mut settings.mode,
            "options" => &mut settings.options,
            "owner" => &mut settings.owner,
            "remove" => &mut settings.remove,
            _ => return Err(unknown_label(&key)),
        };
        if slot.is_some() {
            return Err(format!("label {key} is given twice"));
        }
        let key = format!("label {key}");
        let value = text(&key, label.value.as_deref(), field == "options")?;
        *slot = Some((key, value));
    }
    let prefix = |number: u8| if number == 0 { "extvol.".into() } else { format!("extvol.{number}.") };
    let volumes = found
        .into_iter()
        .map(|(number, settings)| settings.volume(&format!("label {}name", prefix(number)), &default_driver));
    volumes.collect()
}

fn unknown_label(key: &str) -> String {
    let key = shown(key);
    let key = quote::line(&key);
    format!(
        "label {key} is unknown; a volume has extvol.name, extvol.driver, extvol.container_path, extvol.mode, \
         extvol.options, extvol.owner and extvol.remove, further ones extvol.1.name to extvol.9.name and so on"
    )
}
