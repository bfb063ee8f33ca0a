//! One volume's settings, whichever form they were written in, and what of them is refused.

use std::collections::BTreeMap;
use std::path::Path;

use shared::volume::{Driver, VolumeId, VolumeName};

use super::{TaskVolume, shown};
use crate::rules;

/// The driver of a volume that names none, as mesos-module-dvdi has it.
const DEFAULT_DRIVER: &str = "rexray";

/// The longest options of one volume, in bytes. All volumes of a task go to the keeper in one line, in
/// which a byte may take six: 40 volumes, the most that a task may name, stay below
/// [`LINE_BYTES_MAX`](crate::wire::LINE_BYTES_MAX).
pub(super) const OPTIONS_BYTES_MAX: usize = 4096;

/// The longest container path, in bytes: Linux's PATH_MAX without the NUL.
const PATH_BYTES_MAX: usize = 4095;

/// One volume's settings as they were found: each with the name under which the user wrote it.
#[derive(Default)]
pub(super) struct Settings {
    pub(super) name: Option<(String, String)>,
    pub(super) driver: Option<(String, String)>,
    pub(super) container_path: Option<(String, String)>,
    pub(super) mode: Option<(String, String)>,
    pub(super) options: Option<(String, String)>,
    pub(super) must_exist: Option<(String, String)>,
    pub(super) owner: Option<(String, String)>,
    pub(super) remove: Option<(String, String)>,
}

/// The value of a label or variable that is ours, named `key`. Of a secret one no error shows anything: it would be in
/// the framework's status messages, the agent's log and the master's state.
pub(super) fn text(key: &str, value: Option<&[u8]>, secret: bool) -> Result<String, String> {
    let value = value.unwrap_or_default();
    String::from_utf8(value.to_vec()).map_err(|_| match secret {
        true => format!("{key}: the value is not UTF-8"),
        false => format!("{key}={:?}: the value is not UTF-8", shown(&String::from_utf8_lossy(value))),
    })
}

impl Settings {
    /// The volume. `default_driver`: that of a volume of this name for which none is given.
    pub(super) fn volume(
        self,
        name_key: &str,
        default_driver: impl Fn(&VolumeName) -> Option<Driver>,
    ) -> Result<TaskVolume, String> {
        let Some((key, name)) = self.name else {
            return Err(format!("{name_key} is missing, while other settings of that volume are given"));
        };
        let name = volume_name(&key, &name)?;
        let driver = match self.driver {
            Some((key, driver)) => driver_name(&key, &driver)?,
            None => match default_driver(&name) {
                Some(driver) => driver,
                None => Driver::new(DEFAULT_DRIVER).map_err(|e| format!("the default driver {e}"))?,
            },
        };
        let read_only = match &self.mode {
            None => false,
            Some((_, mode)) if mode == "rw" => false,
            Some((_, mode)) if mode == "ro" => true,
            Some((key, mode)) => return Err(format!("{key}={:?}: the mode is rw or ro", shown(mode))),
        };
        let container_path = self.container_path.filter(|(_, path)| !path.is_empty());
        let container_path = container_path.map(|(key, path)| plain_path(&key, &path)).transpose()?;
        let must_exist = match &self.must_exist {
            None => false,
            Some((_, value)) if value.is_empty() || value == "false" => false,
            Some((_, value)) if value == "true" => true,
            Some((key, value)) => {
                return Err(format!("{key}={:?}: the value is true or false", shown(value)));
            }
        };
        let create = match self.options {
            Some(_) if must_exist => None,
            Some((key, options)) => Some(parse_options(&options).map_err(|fault| format!("{key}: {fault}"))?),
            None => None,
        };
        let only = |given: &Option<(String, String)>, word: &str| match given {
            None => Ok(false),
            Some((_, value)) if value == word => Ok(true),
            Some((key, value)) => Err(format!("{key}={:?}: the value is {word}", shown(value))),
        };
        let (own, remove) = (only(&self.owner, "task")?, only(&self.remove, "on_exit")?);
        if own && read_only {
            return Err("a volume that the task may only read is not given to its user".into());
        }
        Ok(TaskVolume { volume: VolumeId { driver, name }, container_path, read_only, create, remove, own })
    }
}

/// `key`: where the user wrote it.
pub(super) fn volume_name(key: &str, name: &str) -> Result<VolumeName, String> {
    VolumeName::new(name).map_err(|e| format!("{key}={:?}: the volume name {e}", shown(name)))
}

pub(super) fn driver_name(key: &str, driver: &str) -> Result<Driver, String> {
    Driver::new(driver).map_err(|e| format!("{key}={:?}: the driver name {e}", shown(driver)))
}

/// The container path without empty and `.` segments.
pub(super) fn plain_path(key: &str, path: &str) -> Result<String, String> {
    check_path(path).map_err(|fault| format!("{key}={:?}: the container path {fault}", shown(path)))?;
    Ok(plain(path))
}

fn check_path(path: &str) -> Result<(), String> {
    let refused = |why: &str| Err(why.to_owned());
    if path.len() > PATH_BYTES_MAX {
        return refused("has more than 4095 bytes");
    }
    if path.contains('\0') {
        return refused("holds a NUL");
    }
    if path.split('/').any(|segment| segment == "..") {
        return refused("must not hold the segment \"..\"");
    }
    if path.split('/').all(|segment| matches!(segment, "" | ".")) {
        return refused("must name a directory below the container's root or sandbox");
    }
    match rules::kernels(Path::new(&plain(path))) {
        Some(own) => Err(format!("lies in {own}, which is the kernel's own, and is never covered")),
        None => Ok(()),
    }
}

/// The path without empty and `.` segments.
fn plain(path: &str) -> String {
    let root = if path.starts_with('/') { "/" } else { "" };
    let segments = path.split('/').filter(|segment| !matches!(*segment, "" | "."));
    root.to_owned() + &segments.collect::<Vec<_>>().join("/")
}

/// `key=value,key=value`; an empty text has none. A comma of a value is written `\,`, a backslash before a comma `\\`;
/// any other backslash is itself. Options may hold passwords: an error names a key at most, and where there is no key
/// the number of the option, which may be a part of the value before it.
pub(super) fn parse_options(text: &str) -> Result<BTreeMap<String, String>, String> {
    if text.len() > OPTIONS_BYTES_MAX {
        return Err(format!("the options have {} bytes, more than {OPTIONS_BYTES_MAX}", text.len()));
    }
    let mut options = BTreeMap::new();
    for (number, pair) in (1..).zip(split_options(text)).filter(|(_, pair)| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(format!(
                "option {number} is not of the form key=value (a comma inside a value is written \\,)"
            ));
        };
        if options.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("option {number}, {:?}, is given twice", shown(key)));
        }
    }
    Ok(options)
}

fn split_options(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let c = match c {
            '\\' => rest.next_if(|next| matches!(next, ',' | '\\')).unwrap_or(c),
            ',' => {
                options.push(String::new());
                continue;
            }
            c => c,
        };
        if let Some(option) = options.last_mut() {
            option.push(c);
        }
    }
    options
}
