//! Which volumes a task names, by labels or by the environment variables of mesos-module-dvdi.
//! Values come from users: everything is checked here, and an error names label and value.

use std::collections::BTreeMap;

use shared::transaction::VOLUMES_MAX;
use shared::volume::{Driver, VolumeId, VolumeName};

use crate::mesos::{ContainerConfig, Environment, Labels};

/// The driver of a volume that names none, as mesos-module-dvdi has it.
const DEFAULT_DRIVER: &str = "rexray";

/// A volume that a task names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskVolume {
    /// Driver and name as given.
    pub volume: VolumeId,
    /// Where the container sees it; without one it is mounted on the host alone.
    pub container_path: Option<String>,
    /// Whether the container may only read.
    pub read_only: bool,
    /// Options to create it with when it does not exist; `None`: it must exist.
    pub create: Option<BTreeMap<String, String>>,
}

/// The volumes that a container names, in the order of their numbers.
///
/// # Errors
/// A sentence for the framework that names label or variable, and value.
pub fn volumes(config: &ContainerConfig) -> Result<Vec<TaskVolume>, String> {
    // A command task's labels are the task's own; an executor's stand for all that it runs.
    let (labels, environment) = match (&config.task_info, &config.executor_info) {
        (Some(task), _) => (&task.labels, task.command.as_ref().and_then(|c| c.environment.as_ref())),
        (None, executor) => (
            executor.as_ref().map_or(&None, |executor| &executor.labels),
            config.command_info.as_ref().and_then(|command| command.environment.as_ref()),
        ),
    };
    let labelled = labels.as_ref().map(from_labels).transpose()?.unwrap_or_default();
    let dvdi = environment.map(from_environment).transpose()?.unwrap_or_default();
    let mut volumes = labelled;
    for volume in dvdi {
        match volumes.iter().find(|known| known.volume == volume.volume) {
            Some(known) if *known == volume => {}
            Some(_) => {
                return Err(format!(
                    "labels and DVDI_ variables name volume {} with different settings",
                    volume.volume
                ));
            }
            None => volumes.push(volume),
        }
    }
    if volumes.len() > VOLUMES_MAX {
        return Err(format!("the task names {} volumes; at most {VOLUMES_MAX} are allowed", volumes.len()));
    }
    for (i, volume) in volumes.iter().enumerate() {
        let same = |other: &&TaskVolume| {
            other.container_path.is_some() && other.container_path == volume.container_path
        };
        if let Some(other) = volumes[..i].iter().find(same) {
            let path = volume.container_path.as_deref().unwrap_or_default();
            return Err(format!(
                "volumes {} and {} both want the container path {path:?}",
                other.volume, volume.volume
            ));
        }
    }
    Ok(volumes)
}

/// One volume's settings as they were found: each with the name under which the user wrote it.
#[derive(Default)]
struct Settings {
    name: Option<(String, String)>,
    driver: Option<(String, String)>,
    container_path: Option<(String, String)>,
    mode: Option<(String, String)>,
    options: Option<(String, String)>,
    must_exist: Option<(String, String)>,
}

/// `extvol.<field>` and `extvol.<1-9>.<field>`.
fn from_labels(labels: &Labels) -> Result<Vec<TaskVolume>, String> {
    let mut found: BTreeMap<u8, Settings> = BTreeMap::new();
    for label in &labels.labels {
        let Some(rest) = label.key.strip_prefix("extvol.") else { continue };
        let (number, field) = match rest.split_once('.') {
            Some((digit, field)) => match digit.as_bytes() {
                [digit @ b'1'..=b'9'] => (digit - b'0', field),
                _ => return Err(unknown_label(&label.key)),
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
            _ => return Err(unknown_label(&label.key)),
        };
        if slot.is_some() {
            return Err(format!("label {} is given twice", label.key));
        }
        *slot = Some((format!("label {}", label.key), label.value.clone().unwrap_or_default()));
    }
    let prefix = |number: u8| if number == 0 { "extvol.".into() } else { format!("extvol.{number}.") };
    found.into_iter().map(|(number, s)| s.volume(&format!("label {}name", prefix(number)))).collect()
}

fn unknown_label(key: &str) -> String {
    format!(
        "label {key} is unknown; a volume has extvol.name, extvol.driver, extvol.container_path, extvol.mode \
         and extvol.options, further ones extvol.1.name to extvol.9.name and so on"
    )
}

/// `DVDI_VOLUME_<FIELD>` and `DVDI_VOLUME_<FIELD><0-9>`; no digit means 0.
fn from_environment(environment: &Environment) -> Result<Vec<TaskVolume>, String> {
    let mut found: BTreeMap<u8, Settings> = BTreeMap::new();
    for variable in &environment.variables {
        let Some(rest) = variable.name.strip_prefix("DVDI_VOLUME_") else { continue };
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
            return Err(format!("variable {} is given twice, with and without the digit 0", variable.name));
        }
        *slot = Some((format!("variable {}", variable.name), variable.value.clone().unwrap_or_default()));
    }
    found.retain(|_, settings| {
        settings.name.is_some() || settings.driver.is_some() || settings.container_path.is_some()
    });
    let volumes = found.into_iter().map(|(number, mut settings)| {
        // mesos-module-dvdi lets the driver create what is missing, unless told otherwise.
        settings.options.get_or_insert_with(Default::default);
        settings.volume(&format!("variable DVDI_VOLUME_NAME{number}"))
    });
    volumes.collect()
}

impl Settings {
    fn volume(self, name_key: &str) -> Result<TaskVolume, String> {
        let Some((key, name)) = self.name else {
            return Err(format!("{name_key} is missing, while other settings of that volume are given"));
        };
        let name =
            VolumeName::new(name.as_str()).map_err(|e| format!("{key}={name:?}: the volume name {e}"))?;
        let driver = match self.driver {
            Some((key, driver)) => {
                Driver::new(driver.as_str()).map_err(|e| format!("{key}={driver:?}: the driver name {e}"))?
            }
            None => Driver::new(DEFAULT_DRIVER).map_err(|e| format!("the default driver {e}"))?,
        };
        let read_only = match &self.mode {
            None => false,
            Some((_, mode)) if mode == "rw" => false,
            Some((_, mode)) if mode == "ro" => true,
            Some((key, mode)) => return Err(format!("{key}={mode:?}: the mode is rw or ro")),
        };
        let container_path = self.container_path.filter(|(_, path)| !path.is_empty());
        if let Some((key, path)) = &container_path {
            check_path(path).map_err(|fault| format!("{key}={path:?}: the container path {fault}"))?;
        }
        let must_exist = match &self.must_exist {
            None => false,
            Some((_, value)) if value.is_empty() || value == "false" => false,
            Some((_, value)) if value == "true" => true,
            Some((key, value)) => return Err(format!("{key}={value:?}: the value is true or false")),
        };
        let create = match self.options {
            Some(_) if must_exist => None,
            Some((key, options)) => {
                Some(parse_options(&options).map_err(|fault| format!("{key}={options:?}: {fault}"))?)
            }
            None => None,
        };
        let volume = VolumeId { driver, name };
        Ok(TaskVolume { volume, container_path: container_path.map(|(_, path)| path), read_only, create })
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.contains('\0') {
        return Err("holds a NUL");
    }
    if path.split('/').any(|segment| segment == "..") {
        return Err("must not hold the segment \"..\"");
    }
    if path.split('/').all(|segment| matches!(segment, "" | ".")) {
        return Err("must name a directory below the container's root or sandbox");
    }
    Ok(())
}

/// `key=value,key=value`; an empty text has none.
fn parse_options(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut options = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(format!("the option {pair:?} is not of the form key=value"));
        };
        if options.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("the option {key:?} is given twice"));
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesos::{CommandInfo, ExecutorInfo, Label, TaskInfo, environment::Variable};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let label = |(key, value): &(&str, &str)| Label { key: (*key).into(), value: Some((*value).into()) };
        Labels { labels: pairs.iter().map(label).collect() }
    }

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let variable =
            |(name, value): &(&str, &str)| Variable { name: (*name).into(), value: Some((*value).into()) };
        Environment { variables: pairs.iter().map(variable).collect() }
    }

    fn task(label_pairs: &[(&str, &str)], env_pairs: &[(&str, &str)]) -> ContainerConfig {
        let command = CommandInfo { environment: Some(environment(env_pairs)) };
        let task = TaskInfo { command: Some(command), labels: Some(labels(label_pairs)) };
        ContainerConfig { task_info: Some(task), ..Default::default() }
    }

    /// `driver/name path mode options`, one line a volume; or the error.
    fn read(config: &ContainerConfig) -> String {
        let show = |v: &TaskVolume| {
            let mode = if v.read_only { "ro" } else { "rw" };
            let create = v.create.as_ref().map_or("must exist".into(), |o| format!("{o:?}"));
            format!("{} {} {mode} {create}", v.volume, v.container_path.as_deref().unwrap_or("-"))
        };
        match volumes(config) {
            Ok(volumes) => volumes.iter().map(show).collect::<Vec<_>>().join("\n"),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn labels_say_all_of_a_volume() {
        let table = [
            (&[][..], ""),
            (&[("other", "x"), ("extvolume", "x")], ""),
            (&[("extvol.name", "a"), ("extvol.container_path", "data")], "rexray/a data rw must exist"),
            (
                &[
                    ("extvol.name", "a"),
                    ("extvol.driver", "ebs"),
                    ("extvol.container_path", "/data"),
                    ("extvol.mode", "ro"),
                    ("extvol.options", "size=5,type=gp2"),
                    ("extvol.2.name", "b"),
                ],
                "ebs/a /data ro {\"size\": \"5\", \"type\": \"gp2\"}\nrexray/b - rw must exist",
            ),
        ];
        for (pairs, expected) in table {
            assert_eq!(read(&task(pairs, &[])), expected);
        }
    }

    #[test]
    fn bad_labels_are_refused_by_name_and_value() {
        let table: [(&[(&str, &str)], &str); 12] = [
            (&[("extvol.nmae", "a")], "label extvol.nmae is unknown"),
            (&[("extvol.10.name", "a")], "label extvol.10.name is unknown"),
            (&[("extvol.0.name", "a")], "label extvol.0.name is unknown"),
            (&[("extvol.driver", "ebs")], "label extvol.name is missing"),
            (&[("extvol.3.mode", "rw")], "label extvol.3.name is missing"),
            (&[("extvol.name", "../x")], "label extvol.name=\"../x\": the volume name holds '/'"),
            (&[("extvol.name", "..")], "label extvol.name=\"..\""),
            (&[("extvol.name", "")], "label extvol.name=\"\": the volume name is empty"),
            (
                &[("extvol.name", "a"), ("extvol.mode", "rwx")],
                "label extvol.mode=\"rwx\": the mode is rw or ro",
            ),
            (&[("extvol.name", "a"), ("extvol.container_path", "/a/../etc")], "segment \"..\""),
            (&[("extvol.name", "a"), ("extvol.container_path", "/")], "must name a directory below"),
            (&[("extvol.name", "a"), ("extvol.options", "size")], "\"size\" is not of the form key=value"),
        ];
        for (pairs, expected) in table {
            let error = read(&task(pairs, &[]));
            assert!(error.starts_with("error: ") && error.contains(expected), "{error}");
        }
        let twice = read(&task(&[("extvol.name", "a"), ("extvol.name", "b")], &[]));
        assert_eq!(twice, "error: label extvol.name is given twice");
        let paths = [
            ("extvol.name", "a"),
            ("extvol.container_path", "d"),
            ("extvol.1.name", "b"),
            ("extvol.1.container_path", "d"),
        ];
        assert!(read(&task(&paths, &[])).contains("both want the container path \"d\""));
    }

    #[test]
    fn the_variables_of_mesos_module_dvdi_are_understood() {
        let table: [(&[(&str, &str)], &str); 6] = [
            (&[("DVDI_VOLUME_NAME", "a")], "rexray/a - rw {}"),
            (&[("DVDI_VOLUME_DVDCLI", "/usr/bin/dvdcli"), ("DVDI_VOLUME_WHATEVER", "x")], ""),
            (
                &[
                    ("DVDI_VOLUME_NAME", "a"),
                    ("DVDI_VOLUME_DRIVER", "ebs"),
                    ("DVDI_VOLUME_OPTS", "size=5,iops=150"),
                    ("DVDI_VOLUME_CONTAINERPATH", "/data"),
                    ("DVDI_VOLUME_NAME1", "b"),
                    ("DVDI_VOLUME_EXPLICITCREATE1", "true"),
                ],
                "ebs/a /data rw {\"iops\": \"150\", \"size\": \"5\"}\nrexray/b - rw must exist",
            ),
            (
                &[("DVDI_VOLUME_DRIVER", "ebs")],
                "error: variable DVDI_VOLUME_NAME0 is missing, while other settings of that volume are given",
            ),
            (
                &[("DVDI_VOLUME_NAME", "a"), ("DVDI_VOLUME_NAME0", "b")],
                "error: variable DVDI_VOLUME_NAME0 is given twice, with and without the digit 0",
            ),
            (
                &[("DVDI_VOLUME_NAME", "a;rm"), ("DVDI_VOLUME_NAME2", "b/c")],
                "error: variable DVDI_VOLUME_NAME2=\"b/c\": the volume name holds '/', which is not allowed there",
            ),
        ];
        for (pairs, expected) in table {
            assert_eq!(read(&task(&[], pairs)), expected);
        }
    }

    #[test]
    fn labels_and_variables_may_agree_but_not_contradict() {
        let label = [("extvol.name", "a"), ("extvol.options", "")];
        assert_eq!(read(&task(&label, &[("DVDI_VOLUME_NAME", "a")])), "rexray/a - rw {}");
        let error = read(&task(&[("extvol.name", "a"), ("extvol.mode", "ro")], &[("DVDI_VOLUME_NAME", "a")]));
        assert!(error.contains("labels and DVDI_ variables name volume rexray/a"), "{error}");
    }

    #[test]
    fn an_executor_without_a_task_speaks_for_itself() {
        let executor = ExecutorInfo { labels: Some(labels(&[("extvol.name", "a")])), command: None };
        let config = ContainerConfig { executor_info: Some(executor), ..Default::default() };
        assert_eq!(read(&config), "rexray/a - rw must exist");
    }
}
