//! Which volumes a task names: by labels, by the variables of mesos-module-dvdi, by DOCKER_VOLUMEs of its ContainerInfo, by
//! set resources. Values come from users: everything is checked here, and an error names what it stands in, and the value. What
//! other labels and variables hold is nobody's business here, be it UTF-8 or not.

mod docker_volumes;
mod labels;
mod resources;
mod settings;
mod variables;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use shared::transaction::VOLUMES_MAX;
use shared::volume::{VolumeId, VolumeName};

pub use self::resources::ResourceDrivers;
pub(crate) use self::resources::{drivers as resource_drivers, named as named_by_resource};
use crate::mesos::ContainerConfig;
use crate::mesos::container_config::ContainerClass;
use crate::mesos::executor_info::Type;
use crate::rules::{self, Declared};

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
    /// Whether it is to be removed when nobody uses it any more.
    pub remove: bool,
    /// Whether it is given to the task's user when nobody has used it yet.
    pub own: bool,
}

impl TaskVolume {
    /// Whether another form says the same, as far as it can: only labels can say the rest.
    fn says_as(&self, other: &Self) -> bool {
        let rest = Self { remove: other.remove, own: other.own, ..self.clone() };
        rest == *other
    }
}

/// The forms in which a volume is named, for sentences.
const LABELS: &str = "labels";
const VARIABLES: &str = "DVDI_ variables";
const DOCKER_VOLUMES: &str = "DOCKER_VOLUMEs";
const RESOURCES: &str = "set resources";

/// The volumes that a container names and that are leased here.
///
/// # Errors
/// A sentence for the framework that names where it stands, and the value.
pub fn volumes(config: &ContainerConfig, declared: &Declared<'_>) -> Result<Vec<TaskVolume>, String> {
    let docker: Vec<_> = declared.leased(config).collect();
    // A debug container lives in its parent's mount namespace, and sees its volumes.
    if config.container_class == Some(ContainerClass::Debug.into()) {
        let Some((_, docker)) = docker.first() else { return Ok(Vec::new()) };
        let name = String::from_utf8_lossy(&docker.name).into_owned();
        return Err(format!(
            "DOCKER_VOLUME {:?} is not mounted: a debug container sees the volumes of its parent, and none of its own",
            shown(&name)
        ));
    }
    let docker = docker.into_iter().map(|(volume, docker)| docker_volumes::read(volume, docker));
    let docker = docker.collect::<Result<_, _>>()?;
    let volumes = together(config, docker, resources::read(&config.resources, &declared.rules.resources)?)?;
    // Two spellings of one volume are one volume, under one lease; but the container would have it twice.
    let mut seen = BTreeMap::new();
    for volume in &volumes {
        let Ok(name) = declared.keeper.drivers.canonical(&volume.volume) else { continue };
        if let Some(other) = seen.insert(name, &volume.volume) {
            return Err(format!("{other} and {} are two names of one volume: name it once", volume.volume));
        }
    }
    Ok(volumes)
}

/// What labels and variables name, together with what the other forms do.
fn together(
    config: &ContainerConfig,
    docker: Vec<TaskVolume>,
    resources: Vec<TaskVolume>,
) -> Result<Vec<TaskVolume>, String> {
    // A label or variable without a driver may be about a volume that a resource names.
    let drivers: BTreeMap<_, _> =
        resources.iter().map(|known| (known.volume.name.clone(), known.volume.driver.clone())).collect();
    let driver = |name: &VolumeName| drivers.get(name).cloned();
    // A command task's labels are the task's own; an executor's stand for all that it runs.
    let (labels, environment) = match (&config.task_info, &config.executor_info) {
        (Some(task), _) => (&task.labels, task.command.as_ref().and_then(|c| c.environment.as_ref())),
        (None, executor) => (
            executor.as_ref().map_or(&None, |executor| &executor.labels),
            config.command_info.as_ref().and_then(|command| command.environment.as_ref()),
        ),
    };
    let mut all = Named::default();
    all.add(RESOURCES, resources)?;
    let labelled = labels.as_ref().map(|labels| labels::read(labels, driver)).transpose()?;
    all.add(LABELS, labelled.unwrap_or_default())?;
    all.add(DOCKER_VOLUMES, docker)?;
    let is_default = config.executor_info.as_ref().is_some_and(|executor| executor.r#type() == Type::Default);
    if config.task_info.is_none()
        && is_default
        && let Some((form, volume)) = all.0.first()
    {
        return Err(format!(
            "the {form} of a default executor name volume {}, and its tasks would not see it: each has a container of \
             its own; name the volume by the task's variables DVDI_VOLUME_NAME, DVDI_VOLUME_DRIVER and \
             DVDI_VOLUME_CONTAINERPATH, or by a DOCKER_VOLUME of the task's ContainerInfo, instead",
            volume.volume
        ));
    }
    let dvdi = environment.map(|environment| variables::read(environment, driver)).transpose()?;
    all.add(VARIABLES, dvdi.unwrap_or_default())?;
    let volumes: Vec<_> = all.0.into_iter().map(|(_, volume)| volume).collect();
    if volumes.len() > VOLUMES_MAX {
        return Err(format!("the task names {} volumes; at most {VOLUMES_MAX} are allowed", volumes.len()));
    }
    check_apart(volumes.iter().filter_map(|v| Some((&v.volume, v.container_path.as_deref()?))))?;
    Ok(volumes)
}

/// The volumes found up to now, each with the form that names it.
#[derive(Default)]
struct Named(Vec<(&'static str, TaskVolume)>);

impl Named {
    /// Takes in what a form names. A volume that is named twice the same way is one.
    fn add(&mut self, form: &'static str, volumes: Vec<TaskVolume>) -> Result<(), String> {
        for volume in volumes {
            match self.0.iter_mut().find(|(_, known)| known.volume == volume.volume) {
                Some((_, known)) if known.says_as(&volume) => {
                    (known.remove, known.own) = (known.remove || volume.remove, known.own || volume.own);
                }
                // It says that the task has this volume, and no more.
                Some(known @ (RESOURCES, _)) => *known = (form, volume),
                Some((of, _)) => {
                    let forms =
                        if *of == form { format!("two of the {form}") } else { format!("{of} and {form}") };
                    return Err(format!("{forms} name volume {} with different settings", volume.volume));
                }
                None => self.0.push((form, volume)),
            }
        }
        Ok(())
    }
}

/// Whether a container names no volume in any way: it is nobody's business here. What cannot be read may name one, and so may a
/// set resource of whatever name.
#[must_use]
pub fn names_none(config: &ContainerConfig) -> bool {
    !rules::has_docker_volume(config)
        && config.resources.iter().all(|resource| resource.set.is_none())
        && together(config, vec![], vec![]).is_ok_and(|volumes| volumes.is_empty())
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

/// As much of a user's text as an error shows.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_BYTES_MAX {
        return text.into();
    }
    format!("{}...", &text[..text.floor_char_boundary(SHOWN_BYTES_MAX)]).into()
}

#[cfg(test)]
mod tests {
    use shared::quote;
    use shared::volume::Driver;

    use super::settings::{OPTIONS_BYTES_MAX, parse_options};
    use super::*;
    use crate::mesos::volume::source::{DockerVolume, Type as Source};
    use crate::mesos::{
        CommandInfo, ContainerInfo, Environment, ExecutorInfo, Label, Labels, Parameter, Parameters,
        Resource, TaskInfo, Volume, environment::Variable, resource, volume,
    };
    use crate::parameters::IsolatorParameters;

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
        let task =
            TaskInfo { command: Some(command), labels: Some(labels(label_pairs)), ..TaskInfo::default() };
        ContainerConfig { task_info: Some(task), ..Default::default() }
    }

    /// On an agent with these parameters beside `drivers=ebs,rexray`.
    fn read_with(given: &[(&str, &str)], config: &ContainerConfig) -> Result<Vec<TaskVolume>, String> {
        let usual = [("etcd_endpoints", "h:1"), ("drivers", "ebs,rexray")];
        let pairs = usual.iter().chain(given).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let parameters = IsolatorParameters::read(&pairs.collect::<Vec<_>>()).unwrap();
        let (rules, keeper) = (&parameters.rules, &parameters.keeper);
        volumes(config, &Declared { rules, keeper, docker_volume_isolator: false })
    }

    /// `driver/name path mode options`, one line a volume; or the error.
    fn read(config: &ContainerConfig) -> String {
        let show = |v: &TaskVolume| {
            let mode = if v.read_only { "ro" } else { "rw" };
            let create = v.create.as_ref().map_or("must exist".into(), |o| format!("{o:?}"));
            format!("{} {} {mode} {create}", v.volume, v.container_path.as_deref().unwrap_or("-"))
        };
        match read_with(&[], config) {
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
            let executor = ExecutorInfo { labels, r#type: Some(kind.into()), ..ExecutorInfo::default() };
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

    fn docker_volume(
        driver: &str,
        name: &str,
        path: &str,
        mode: volume::Mode,
        options: &[(&str, &str)],
    ) -> Volume {
        let parameter =
            |(key, value): &(&str, &str)| Parameter { key: (*key).into(), value: (*value).into() };
        let driver_options = Some(Parameters { parameter: options.iter().map(parameter).collect() });
        let docker = DockerVolume { driver: Some(driver.into()), name: name.into(), driver_options };
        let source = volume::Source {
            r#type: Some(Source::DockerVolume.into()),
            docker_volume: Some(docker),
            ..Default::default()
        };
        Volume {
            container_path: path.into(),
            mode: Some(mode.into()),
            source: Some(source),
            ..Default::default()
        }
    }

    fn with_docker(config: ContainerConfig, volumes: &[Volume]) -> ContainerConfig {
        let info = ContainerInfo { r#type: None, volumes: volumes.to_vec() };
        ContainerConfig { container_info: Some(info), ..config }
    }

    fn set(name: &str, items: &[&str]) -> Resource {
        let item = items.iter().map(|item| item.as_bytes().to_vec()).collect();
        Resource { name: name.into(), set: Some(resource::Set { item }), allocation_info: None }
    }

    #[test]
    fn a_docker_volume_of_a_driver_of_ours_says_all_of_a_volume() {
        use volume::Mode::{Ro, Rw};
        let ours = docker_volume("ebs", "a", "./data/", Rw, &[("size", "5"), ("type", "gp2"), ("size", "5")]);
        let theirs = docker_volume("pxd", "a", "other", Rw, &[]);
        let second = docker_volume("rexray", "b", "/var/db", Ro, &[]);
        let config = with_docker(task(&[], &[]), &[ours.clone(), theirs, second]);
        let expected = "ebs/a data rw {\"size\": \"5\", \"type\": \"gp2\"}\nrexray/b /var/db ro {}";
        assert_eq!(read(&config), expected);
        // Of whatever kind the container is.
        let info = config.container_info.clone();
        assert_eq!(read(&ContainerConfig { container_info: info, ..Default::default() }), expected);
        let debug = ContainerConfig { container_class: Some(ContainerClass::Debug.into()), ..config };
        assert!(read(&debug).contains("a debug container sees the volumes of its parent"));
        let twice = with_docker(task(&[], &[]), &[ours.clone(), ours.clone()]);
        assert_eq!(read(&twice).lines().count(), 1);
        let apart = with_docker(task(&[], &[]), &[ours, docker_volume("ebs", "a", "else", Rw, &[])]);
        assert_eq!(
            read(&apart),
            "error: two of the DOCKER_VOLUMEs name volume ebs/a with different settings"
        );
    }

    #[test]
    fn a_bad_docker_volume_is_refused_by_name_and_shows_no_option() {
        use volume::Mode::Rw;
        let secret = "hunter2";
        let long = secret.repeat(600);
        let table = [
            (
                docker_volume("ebs", "../x", "d", Rw, &[]),
                "DOCKER_VOLUME name=\"../x\": the volume name must not",
            ),
            (
                docker_volume("ebs", "a", "/a/../etc", Rw, &[]),
                "container_path of DOCKER_VOLUME ebs/a=\"/a/../etc\"",
            ),
            (docker_volume("ebs", "a", "/proc/x", Rw, &[]), "lies in /proc"),
            (docker_volume("ebs", "a", "", Rw, &[]), "must name a directory below"),
            (
                docker_volume("ebs", "a", "d", Rw, &[("k", secret), ("k", "other")]),
                "option 2 of DOCKER_VOLUME ebs/a, \"k\", is given twice",
            ),
            (
                docker_volume("ebs", "a", "d", Rw, &[("", secret)]),
                "option 1 of DOCKER_VOLUME ebs/a has no key",
            ),
            (docker_volume("ebs", "a", "d", Rw, &[("k", &long)]), "the options have more than 4096 bytes"),
            (
                Volume { mode: Some(7), ..docker_volume("ebs", "a", "d", Rw, &[]) },
                "DOCKER_VOLUME ebs/a has neither the mode RW nor RO",
            ),
        ];
        for (volume, expected) in table {
            let error = read(&with_docker(task(&[], &[]), &[volume]));
            assert!(error.starts_with("error: ") && error.contains(expected), "{error}");
            assert!(!error.contains(secret), "{error}");
        }
    }

    #[test]
    fn a_set_resource_names_volumes_which_labels_may_say_more_of() {
        let with = |items: &[Resource], label_pairs: &[(&str, &str)]| {
            let config = ContainerConfig { resources: items.to_vec(), ..task(label_pairs, &[]) };
            let read = read_with(&[("resources", "ebsvolumes:ebs")], &config);
            read.map(|volumes| {
                volumes.into_iter().map(|v| (v.volume.to_string(), v.container_path)).collect::<Vec<_>>()
            })
        };
        let volume = |name: &str, path: &str| (name.to_owned(), Some(path.to_owned()));
        let both =
            [set("ebsvolumes", &["vol-1", "vol-2"]), set("ebsvolumes", &["vol-2"]), set("other", &["x"])];
        let default = [volume("ebs/vol-1", "ebsvolumes/vol-1"), volume("ebs/vol-2", "ebsvolumes/vol-2")];
        assert_eq!(with(&both, &[]).unwrap(), default);
        // The driver is the resource's.
        let labels = [("extvol.name", "vol-2"), ("extvol.container_path", "/data")];
        assert_eq!(
            with(&both, &labels).unwrap(),
            [volume("ebs/vol-1", "ebsvolumes/vol-1"), volume("ebs/vol-2", "/data")]
        );
        let scalar = Resource { name: b"ebsvolumes".to_vec(), ..Resource::default() };
        assert!(
            with(&[scalar], &[])
                .unwrap_err()
                .contains("the resource ebsvolumes names volumes, and is no set")
        );
        let error = with(&[set("ebsvolumes", &["../x"])], &[]).unwrap_err();
        assert!(error.starts_with("resource ebsvolumes=\"../x\": the volume name"), "{error}");
        assert!(
            read(&ContainerConfig { resources: both.to_vec(), ..task(&[], &[]) }).is_empty(),
            "no parameter"
        );
    }

    #[test]
    fn the_parameter_of_resources_is_a_list_of_names_and_drivers() {
        let read = |list: &str| resource_drivers(list);
        let ebs = Driver::new("ebs").unwrap();
        assert_eq!(read("ebsvolumes:ebs,").unwrap(), ResourceDrivers::from([("ebsvolumes".to_owned(), ebs)]));
        assert_eq!(read("").unwrap(), ResourceDrivers::new());
        let table = [
            ("ebsvolumes", "which is not RESOURCE:DRIVER"),
            (":ebs", "which is not RESOURCE:DRIVER"),
            ("../x:ebs", "which is not RESOURCE:DRIVER"),
            ("disk:ebs", "one of Mesos's own resources"),
            ("v:", "the driver name"),
            ("v:a,v:b", "holds \"v\" twice"),
        ];
        for (list, expected) in table {
            let error = read(list).unwrap_err();
            assert!(error.contains(expected), "{list}: {error}");
        }
    }

    #[test]
    fn a_container_names_no_volume_only_when_it_does_so_in_no_way() {
        assert!(names_none(&ContainerConfig::default()) && names_none(&task(&[("a", "b")], &[])));
        assert!(!names_none(&task(&[("extvol.name", "a")], &[])));
        assert!(!names_none(&task(&[("extvol.nmae", "a")], &[])));
        let declaring = |kind: Source| {
            let source = volume::Source { r#type: Some(kind.into()), ..Default::default() };
            with_docker(task(&[], &[]), &[Volume { source: Some(source), ..Default::default() }])
        };
        assert!(!names_none(&declaring(Source::DockerVolume)));
        assert!(names_none(&declaring(Source::SandboxPath)));
        let with = |resource| ContainerConfig { resources: vec![resource], ..task(&[], &[]) };
        assert!(!names_none(&with(set("whatever", &["x"]))));
        assert!(names_none(&with(Resource { name: b"cpus".to_vec(), ..Resource::default() })));
    }
}
