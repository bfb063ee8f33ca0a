//! Which volumes a task names, by labels or by the environment variables of mesos-module-dvdi.
//! Values come from users: everything is checked here, and an error names label and value. What other
//! labels and variables hold is nobody's business here, be it UTF-8 or not.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use shared::quote;
use shared::transaction::VOLUMES_MAX;
use shared::volume::{Driver, VolumeId, VolumeName};

use crate::mesos::executor_info::Type;
use crate::mesos::{ContainerConfig, Environment, Labels};
use crate::rules;

/// The driver of a volume that names none, as mesos-module-dvdi has it.
const DEFAULT_DRIVER: &str = "rexray";

/// The longest options of one volume, in bytes. All volumes of a task go to the keeper in one line, in
/// which a byte may take six: 20 volumes, as many as labels and variables can name, stay far below
/// [`LINE_BYTES_MAX`](crate::wire::LINE_BYTES_MAX).
const OPTIONS_BYTES_MAX: usize = 4096;

/// The longest container path, in bytes: Linux's PATH_MAX without the NUL.
const PATH_BYTES_MAX: usize = 4095;

/// How much of a label or a value an error shows, in bytes.
const SHOWN_BYTES_MAX: usize = 200;

/// A volume that a task names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskVolume {
    /// Driver and name as given.
    pub volume: VolumeId,
    /// Where the container sees it, without empty and `.` segments; without one it is mounted on the
    /// host alone.
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
    let default_executor =
        config.executor_info.as_ref().is_some_and(|executor| executor.r#type() == Type::Default);
    if config.task_info.is_none()
        && default_executor
        && let Some(volume) = labelled.first()
    {
        return Err(format!(
            "the labels of a default executor name volume {}, and its tasks would not see it: each has a container of \
             its own; name the volume by the task's variables DVDI_VOLUME_NAME, DVDI_VOLUME_DRIVER and \
             DVDI_VOLUME_CONTAINERPATH instead",
            volume.volume
        ));
    }
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
    check_apart(volumes.iter().filter_map(|v| Some((&v.volume, v.container_path.as_deref()?))))?;
    Ok(volumes)
}

/// Whether a container names no volume in any way: it is nobody's business here. What cannot be read may name one.
#[must_use]
pub fn names_none(config: &ContainerConfig) -> bool {
    !rules::has_docker_volume(config) && volumes(config).is_ok_and(|volumes| volumes.is_empty())
}

/// No volume may hide another one, nor need a directory that only another one holds: the launch
/// helper would find that out late, and say it badly. `paths` are either all the paths as tasks write
/// them, or all as they are on the host.
///
/// # Errors
/// A sentence that names both.
pub fn check_apart<'a, P: AsRef<Path> + Debug + ?Sized + 'a>(
    paths: impl Iterator<Item = (&'a VolumeId, &'a P)>,
) -> Result<(), String> {
    let paths: Vec<_> = paths.collect();
    for (i, (volume, path)) in paths.iter().enumerate() {
        for (other, another) in &paths[..i] {
            if path.as_ref() == another.as_ref() {
                return Err(format!("volumes {other} and {volume} both want the container path {path:?}"));
            }
            if path.as_ref().starts_with(another) || another.as_ref().starts_with(path) {
                return Err(format!(
                    "volumes {other} and {volume} want the container paths {another:?} and {path:?}, one inside \
                     the other"
                ));
            }
        }
    }
    Ok(())
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
    found.into_iter().map(|(number, s)| s.volume(&format!("label {}name", prefix(number)))).collect()
}

/// The value of a label or variable that is ours, named `key`. Of a secret one no error shows anything: it would be in
/// the framework's status messages, the agent's log and the master's state.
fn text(key: &str, value: Option<&[u8]>, secret: bool) -> Result<String, String> {
    let value = value.unwrap_or_default();
    String::from_utf8(value.to_vec()).map_err(|_| match secret {
        true => format!("{key}: the value is not UTF-8"),
        false => format!("{key}={:?}: the value is not UTF-8", shown(&String::from_utf8_lossy(value))),
    })
}

/// As much of a user's text as an error shows.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_BYTES_MAX {
        return text.into();
    }
    format!("{}...", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]).into()
}

fn unknown_label(key: &str) -> String {
    let key = shown(key);
    let key = quote::line(&key);
    format!(
        "label {key} is unknown; a volume has extvol.name, extvol.driver, extvol.container_path, extvol.mode \
         and extvol.options, further ones extvol.1.name to extvol.9.name and so on"
    )
}

/// `DVDI_VOLUME_<FIELD>` and `DVDI_VOLUME_<FIELD><0-9>`; no digit means 0.
fn from_environment(environment: &Environment) -> Result<Vec<TaskVolume>, String> {
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
        settings.volume(&format!("variable DVDI_VOLUME_NAME{number}"))
    });
    volumes.collect()
}

impl Settings {
    fn volume(self, name_key: &str) -> Result<TaskVolume, String> {
        let Some((key, name)) = self.name else {
            return Err(format!("{name_key} is missing, while other settings of that volume are given"));
        };
        let name = VolumeName::new(name.as_str())
            .map_err(|e| format!("{key}={:?}: the volume name {e}", shown(&name)))?;
        let driver = match self.driver {
            Some((key, driver)) => Driver::new(driver.as_str())
                .map_err(|e| format!("{key}={:?}: the driver name {e}", shown(&driver)))?,
            None => Driver::new(DEFAULT_DRIVER).map_err(|e| format!("the default driver {e}"))?,
        };
        let read_only = match &self.mode {
            None => false,
            Some((_, mode)) if mode == "rw" => false,
            Some((_, mode)) if mode == "ro" => true,
            Some((key, mode)) => return Err(format!("{key}={:?}: the mode is rw or ro", shown(mode))),
        };
        let container_path = self.container_path.filter(|(_, path)| !path.is_empty());
        if let Some((key, path)) = &container_path {
            check_path(path)
                .map_err(|fault| format!("{key}={:?}: the container path {fault}", shown(path)))?;
        }
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
        let volume = VolumeId { driver, name };
        let container_path = container_path.map(|(_, path)| plain(&path));
        Ok(TaskVolume { volume, container_path, read_only, create })
    }
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
fn parse_options(text: &str) -> Result<BTreeMap<String, String>, String> {
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
        let command = CommandInfo { environment: Some(environment(env_pairs)), ..Default::default() };
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
            (
                &[("extvol.name", "../x")],
                "label extvol.name=\"../x\": the volume name must not be or contain the path segment",
            ),
            (&[("extvol.name", "..")], "label extvol.name=\"..\""),
            (&[("extvol.name", "")], "label extvol.name=\"\": the volume name is empty"),
            (
                &[("extvol.name", "a"), ("extvol.mode", "rwx")],
                "label extvol.mode=\"rwx\": the mode is rw or ro",
            ),
            (&[("extvol.name", "a"), ("extvol.container_path", "/a/../etc")], "segment \"..\""),
            (&[("extvol.name", "a"), ("extvol.container_path", "/")], "must name a directory below"),
            (
                &[("extvol.name", "a"), ("extvol.options", "size")],
                "label extvol.options: option 1 is not of the form",
            ),
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
    fn two_spellings_of_one_container_path_are_the_same_path() {
        let both = |a, b| {
            let a = [("extvol.name", "a"), ("extvol.container_path", a)];
            let b = [("extvol.1.name", "b"), ("extvol.1.container_path", b)];
            read(&task(&[a, b].concat(), &[]))
        };
        for (a, b) in [("data", "./data"), ("data/", "data"), ("/x//y", "/x/./y/")] {
            let error = both(a, b);
            assert!(error.contains("volumes rexray/a and rexray/b both want the container path"), "{error}");
        }
        for (a, b) in [("data", "data/sub"), ("./data/sub", "data"), ("/x", "/x/y/z")] {
            let error = both(a, b);
            assert!(error.contains("one inside the other"), "{error}");
        }
        assert_eq!(both("data", "data2"), "rexray/a data rw must exist\nrexray/b data2 rw must exist");
        assert_eq!(both("./x", "/x"), "rexray/a x rw must exist\nrexray/b /x rw must exist");
    }

    #[test]
    fn long_values_are_refused_by_name_and_are_not_repeated_whole() {
        let long = "k=".to_owned() + &"\u{1}".repeat(1 << 20);
        let table = [
            ("extvol.options", "label extvol.options: ", "the options have 1048578 bytes, more than 4096"),
            ("extvol.container_path", "label extvol.container_path=", "has more than 4095 bytes"),
            ("extvol.driver", "label extvol.driver=", "the driver name has 1048578 bytes"),
            ("extvol.mode", "label extvol.mode=", "the mode is rw or ro"),
        ];
        for (key, named, why) in table {
            let error = read(&task(&[("extvol.name", "a"), (key, long.as_str())], &[]));
            assert!(error.contains(named) && error.contains(why), "{key}: {}", &error[..300]);
            assert!(error.len() < 2000, "{key}: {}", error.len());
        }
        let opts = read(&task(&[], &[("DVDI_VOLUME_NAME", "a"), ("DVDI_VOLUME_OPTS", long.as_str())]));
        assert!(opts.contains("variable DVDI_VOLUME_OPTS: ") && opts.contains("more than 4096"), "{opts}");
        let key = format!("extvol.{long}");
        assert!(read(&task(&[(key.as_str(), "")], &[])).len() < 2000);
        let longest = "k=".to_owned() + &"v".repeat(OPTIONS_BYTES_MAX - 2);
        assert!(
            read(&task(&[("extvol.name", "a"), ("extvol.options", longest.as_str())], &[]))
                .starts_with("rexray/a")
        );
    }

    #[test]
    fn only_our_own_labels_and_variables_must_be_utf8() {
        let mut config = task(&[("extvol.name", "a")], &[("DVDI_VOLUME_NAME1", "b")]);
        let bytes = |config: &mut ContainerConfig, key: &[u8], variable: &[u8]| {
            let task = config.task_info.as_mut().unwrap();
            let label = Label { key: key.to_vec(), value: Some(b"\xff".to_vec()) };
            task.labels.as_mut().unwrap().labels.push(label);
            let variables = &mut task.command.as_mut().unwrap().environment.as_mut().unwrap().variables;
            variables.push(Variable { name: variable.to_vec(), value: Some(b"\xff".to_vec()) });
        };
        bytes(&mut config, b"else\xff", b"LANG\xff");
        bytes(&mut config, b"else", b"DVDI_VOLUME_\xff");
        assert_eq!(read(&config), "rexray/a - rw must exist\nrexray/b - rw {}");
        let (mut label, mut variable) = (config.clone(), config);
        bytes(&mut label, b"extvol.mode", b"LANG");
        assert!(read(&label).contains("label extvol.mode=\"\u{fffd}\": the value is not UTF-8"));
        bytes(&mut variable, b"else", b"DVDI_VOLUME_DRIVER1");
        assert!(
            read(&variable).contains("variable DVDI_VOLUME_DRIVER1=\"\u{fffd}\": the value is not UTF-8")
        );
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
                &[("DVDI_VOLUME_NAME", "a;rm"), ("DVDI_VOLUME_NAME2", "b//c")],
                "error: variable DVDI_VOLUME_NAME2=\"b//c\": the volume name must not be or contain the path segment \"\"",
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
        let executor = ExecutorInfo { labels: Some(labels(&[("extvol.name", "a")])), ..Default::default() };
        let config = ContainerConfig { executor_info: Some(executor), ..Default::default() };
        assert_eq!(read(&config), "rexray/a - rw must exist");
    }

    #[test]
    fn labels_of_a_default_executor_are_refused_for_its_tasks_would_not_see_the_volume() {
        let of = |kind: Type, key: &str| {
            let labels = Some(labels(&[(key, "a")]));
            let executor = ExecutorInfo { labels, r#type: Some(kind.into()), command: None };
            read(&ContainerConfig { executor_info: Some(executor), ..Default::default() })
        };
        assert_eq!(of(Type::Custom, "extvol.name"), "rexray/a - rw must exist");
        assert_eq!(of(Type::Default, "other"), "");
        let error = of(Type::Default, "extvol.name");
        assert!(error.starts_with("error: the labels of a default executor name volume rexray/a"), "{error}");
    }

    #[test]
    fn a_comma_in_an_option_is_written_with_a_backslash() {
        let table: [(&str, &[(&str, &str)]); 6] = [
            (r"o=addr=10.0.0.9\,vers=4,device=:/x", &[("device", ":/x"), ("o", "addr=10.0.0.9,vers=4")]),
            (r"o=a\\,vers=4", &[("o", r"a\"), ("vers", "4")]),
            (r"o=a\\\,vers=4", &[("o", r"a\,vers=4")]),
            (r"path=C:\dir,b=\", &[("b", r"\"), ("path", r"C:\dir")]),
            ("size=5,,type=gp2,", &[("size", "5"), ("type", "gp2")]),
            ("", &[]),
        ];
        for (text, expected) in table {
            let expected = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(parse_options(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn no_error_shows_what_an_option_holds() {
        let secret = "password=hunter2";
        let long = format!("{secret}{}", "x".repeat(5000));
        let table = [
            ("password=hunter2,oops", "option 2 is not of the form key=value"),
            ("=hunter2", "option 1 is not of the form key=value"),
            ("password=hunter2,password=hunter2", "option 2, \"password\", is given twice"),
            (long.as_str(), "the options have 5016 bytes"),
        ];
        for (options, expected) in table {
            for error in [
                read(&task(&[("extvol.name", "a"), ("extvol.options", options)], &[])),
                read(&task(&[], &[("DVDI_VOLUME_NAME", "a"), ("DVDI_VOLUME_OPTS", options)])),
            ] {
                assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
            }
        }
        let mut config = task(&[("extvol.name", "a"), ("extvol.options", "")], &[]);
        config.task_info.as_mut().unwrap().labels.as_mut().unwrap().labels[1].value =
            Some(b"hunter2\xff".to_vec());
        assert_eq!(read(&config), "error: label extvol.options: the value is not UTF-8");
    }

    #[test]
    fn a_label_forges_no_line_of_a_log() {
        let error =
            read(&task(&[("extvol.a\nE1130 00:00:00.0 1 slave.cpp:1] forged\u{1b}[2J\u{202e}", "")], &[]));
        assert!(
            error.contains("label extvol.a\\nE1130 ") && error.contains("\\u{1b}[2J\\u{202e} is unknown"),
            "{error}"
        );
        for key in ["extvol.driver", "extvol.mode", "extvol.container_path"] {
            let error = read(&task(&[("extvol.name", "a"), (key, "../\n\u{1b}\u{202e}")], &[]));
            assert!(error.starts_with("error: ") && quote::line(&error) == error, "{error}");
        }
        let error = read(&task(&[("extvol.name", "../\n\u{1b}\u{202e}")], &[]));
        assert!(error.starts_with("error: ") && quote::line(&error) == error, "{error}");
    }

    #[test]
    fn the_kernels_own_trees_are_never_covered() {
        for (path, own) in
            [("/proc", "/proc"), ("//sys/./fs", "/sys"), ("/dev/shm", "/dev"), ("/proc/", "/proc")]
        {
            let error = read(&task(&[("extvol.name", "a"), ("extvol.container_path", path)], &[]));
            assert!(
                error.contains(&format!("the container path lies in {own}, which is the kernel's own")),
                "{error}"
            );
        }
        for path in ["proc", "/process", "/srv/dev"] {
            let read = read(&task(&[("extvol.name", "a"), ("extvol.container_path", path)], &[]));
            assert!(read.starts_with("rexray/a"), "{read}");
        }
    }

    #[test]
    fn a_container_names_no_volume_only_when_it_does_so_in_no_way() {
        use crate::mesos::volume::{Source, source};
        use crate::mesos::{ContainerInfo, Volume};
        assert!(names_none(&ContainerConfig::default()) && names_none(&task(&[("a", "b")], &[])));
        assert!(!names_none(&task(&[("extvol.name", "a")], &[])));
        assert!(!names_none(&task(&[("extvol.nmae", "a")], &[])));
        let declaring = |kind: source::Type| {
            let source = Source { r#type: Some(kind.into()), ..Default::default() };
            let volume = Volume { container_path: b"data".to_vec(), host_path: None, source: Some(source) };
            let info = ContainerInfo { r#type: None, volumes: vec![volume] };
            ContainerConfig { container_info: Some(info), ..Default::default() }
        };
        assert!(!names_none(&declaring(source::Type::DockerVolume)));
        assert!(names_none(&declaring(source::Type::SandboxPath)));
    }
}
