//! What a task may not do, and what this agent's operator allows all the same. Labels and variables are read in
//! [`task`]; here is what a container declares beside them: volumes that would be passed over in silence,
//! and paths of the host that would lead around a lease.

use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use shared::parameters::{ParameterError, Parameters};
use shared::quote;
use shared::volume::Driver;

use crate::mesos::mount_propagation::Mode;
use crate::mesos::volume::source::{DockerVolume, Type};
use crate::mesos::{ContainerConfig, Volume};
use crate::parameters::KeeperParameters;
use crate::task::{self, ResourceDrivers};

/// The module's parameters about tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// `docker_volumes` (`lease`, `ignore`): DOCKER_VOLUMEs of the drivers served here are leased, and a container that declares
    /// one which nobody would mount is refused; or containers start without all of them.
    pub lease_docker_volumes: bool,
    /// `resources`: which set resources name volumes, and of which driver.
    pub resources: ResourceDrivers,
    /// `docker_volume_isolator` (`refuse`, `allow`): whether Mesos's own `docker/volume` may run beside this module.
    pub allow_docker_volume_isolator: bool,
    /// `executor_tasks` (`refuse`, `ignore`): an executor is ended when one of its tasks names a volume in a way that
    /// reaches no isolator, or the task starts without it.
    pub look_at_executors: bool,
    /// `host_paths`: the directories below which a container path without an image may lie; default none.
    pub host_paths: Vec<PathBuf>,
    /// `hide_volumes` (`true`, `false`): whether containers without an image see the mount roots, and the directories of the
    /// keeper's and the plugins' sockets, as empty.
    pub hide_volumes: bool,
    /// `container_paths` (`allow`, `refuse`): whether containers may declare HOST_PATHs and SANDBOX_PATHs at all.
    pub allow_container_paths: bool,
}

impl Rules {
    /// The names of these parameters.
    pub const NAMES: [&str; 7] = [
        "docker_volumes",
        "resources",
        "docker_volume_isolator",
        "executor_tasks",
        "host_paths",
        "hide_volumes",
        "container_paths",
    ];

    /// Takes them out of the module's.
    ///
    /// # Errors
    /// Names the parameter and its value.
    pub fn take(parameters: &mut Parameters) -> Result<Self, ParameterError> {
        let refuse_or_ignore = |text: &str| either(text, "refuse", "ignore");
        Ok(Self {
            lease_docker_volumes: parameters
                .parsed("docker_volumes", |text: &str| either(text, "lease", "ignore"))?
                .unwrap_or(true),
            resources: parameters.parsed("resources", task::resource_drivers)?.unwrap_or_default(),
            allow_docker_volume_isolator: parameters
                .parsed("docker_volume_isolator", |text: &str| either(text, "allow", "refuse"))?
                .unwrap_or(false),
            look_at_executors: parameters.parsed("executor_tasks", refuse_or_ignore)?.unwrap_or(true),
            host_paths: parameters.parsed("host_paths", host_paths)?.unwrap_or_default(),
            hide_volumes: parameters
                .parsed("hide_volumes", |text: &str| either(text, "true", "false"))?
                .unwrap_or(true),
            allow_container_paths: parameters
                .parsed("container_paths", |text: &str| either(text, "allow", "refuse"))?
                .unwrap_or(true),
        })
    }
}

fn either(text: &str, yes: &str, no: &str) -> Result<bool, String> {
    if text != yes && text != no {
        return Err(format!("is neither {yes} nor {no}"));
    }
    Ok(text == yes)
}

fn host_paths(text: &str) -> Result<Vec<PathBuf>, String> {
    let path = |part: &str| {
        let path = PathBuf::from(part);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain {
            return Err(format!("holds {part:?}, which is not a plain absolute path"));
        }
        match kernels(&path) {
            Some(own) => Err(format!("holds {part:?}, and {own} is never covered")),
            None if path.parent().is_none() => Err("holds /, below which everything is".to_owned()),
            None => Ok(path),
        }
    };
    text.split(',').filter(|part| !part.is_empty()).map(path).collect()
}

/// Which of the kernel's own trees an absolute path is in; without them no program of the container works.
#[must_use]
pub fn kernels(path: &Path) -> Option<&'static str> {
    ["/proc", "/sys", "/dev"].into_iter().find(|own| path.starts_with(own))
}

/// Where Docker volume plugins listen. Who may write there has them mount and take away any volume, lease or not; root may, and
/// so may root in a container that sees the directory.
pub const PLUGIN_SOCKETS: &str = "/run/docker/plugins";

/// The directories of which no container needs anything: those whose sockets take orders about volumes, and those where plugins
/// keep volumes that they bind elsewhere.
#[must_use]
pub fn of_no_container(keeper: &KeeperParameters) -> Vec<PathBuf> {
    let sockets = [keeper.run_directory.clone(), PLUGIN_SOCKETS.into()];
    sockets.into_iter().chain(keeper.drivers.directories()).collect()
}

/// The directories of the host that no container may be shown.
#[must_use]
pub fn closed(keeper: &KeeperParameters) -> Vec<PathBuf> {
    keeper.mount_roots.iter().cloned().chain(of_no_container(keeper)).collect()
}

/// Who mounts what on this agent.
pub struct Declared<'a> {
    /// The module's parameters.
    pub rules: &'a Rules,
    /// The keeper's.
    pub keeper: &'a KeeperParameters,
    /// Whether the agent runs Mesos's own `docker/volume`.
    pub docker_volume_isolator: bool,
}

impl Declared<'_> {
    /// Whether all that the container declares beside labels and variables is mounted by somebody who may.
    ///
    /// # Errors
    /// A sentence for the framework: the first volume that is not, and what to do instead.
    pub fn check(&self, config: &ContainerConfig) -> Result<(), String> {
        volumes(config).try_for_each(|volume| self.check_volume(volume))
    }

    fn check_volume(&self, volume: &Volume) -> Result<(), String> {
        let closed = closed(self.keeper);
        Shown::of(volume).try_for_each(|shown| {
            if !self.rules.allow_container_paths {
                return Err(shown.refused(&"this agent's operator allows none (container_paths)"));
            }
            shown.check_as_written(&closed)
        })?;
        if self.rules.hide_volumes && shares_mounts_with_the_host(volume) {
            let path = lossy(&volume.container_path);
            return Err(format!(
                "volume {:?} with the mount propagation BIDIRECTIONAL is not mounted: what is hidden from its container, \
                 its neighbours' volumes, would be hidden from the host; HOST_TO_CONTAINER can be had",
                task::shown(&path)
            ));
        }
        match docker_volume(volume) {
            Some(docker) => self.check_docker_volume(docker),
            None if is_docker_volume(volume) => {
                let path = lossy(&volume.container_path);
                Err(format!(
                    "the DOCKER_VOLUME at {:?} is not mounted: it names no volume",
                    task::shown(&path)
                ))
            }
            None => Ok(()),
        }
    }

    /// The DOCKER_VOLUMEs that are leased here.
    pub(crate) fn leased<'c>(
        &self,
        config: &'c ContainerConfig,
    ) -> impl Iterator<Item = (&'c Volume, &'c DockerVolume)> {
        let leases = self.rules.lease_docker_volumes;
        let declared = volumes(config).filter_map(|volume| Some((volume, docker_volume(volume)?)));
        declared.filter(move |(_, docker)| leases && self.serves(docker.driver.as_deref()))
    }

    /// Whether a driver of this name, as a user has written it, is one of ours.
    pub(crate) fn serves(&self, driver: Option<&[u8]>) -> bool {
        let driver = driver.and_then(|name| std::str::from_utf8(name).ok());
        driver.is_some_and(|name| Driver::new(name).is_ok_and(|name| self.keeper.serves(&name)))
    }

    fn check_docker_volume(&self, docker: &DockerVolume) -> Result<(), String> {
        let ours = self.serves(docker.driver.as_deref());
        // Either of the two mounts it.
        if !self.rules.lease_docker_volumes || ours != self.docker_volume_isolator {
            return Ok(());
        }
        let shown = |bytes: &[u8]| quote::line(&task::shown(&lossy(bytes))).into_owned();
        let (name, driver) = (shown(&docker.name), docker.driver.as_deref().map(shown));
        let what = driver.as_ref().map_or_else(|| name.clone(), |driver| format!("{driver}/{name}"));
        let why = match driver {
            Some(driver) if ours => {
                return Err(format!(
                    "DOCKER_VOLUME {what} is not mounted: volumes of the driver {driver} are leased, and this agent's \
                     docker/volume would mount it without a lease; name it by the task's labels or variables instead, or have \
                     the operator take docker/volume out of --isolation"
                ));
            }
            Some(driver) => format!("the driver {driver} is none that mesos-extvol serves here"),
            None => "it names no driver".to_owned(),
        };
        Err(format!(
            "DOCKER_VOLUME {what} is not mounted: nobody on this agent mounts it ({why}, and the agent's --isolation \
             does not list docker/volume)"
        ))
    }
}

fn is_docker_volume(volume: &Volume) -> bool {
    volume.source.as_ref().is_some_and(|source| source.r#type() == Type::DockerVolume)
}

fn docker_volume(volume: &Volume) -> Option<&DockerVolume> {
    volume.source.as_ref().filter(|_| is_docker_volume(volume))?.docker_volume.as_ref()
}

/// A path that a volume of ContainerInfo shows in the container: Mesos binds it as root, links followed, and with all
/// that is mounted below it. Where a leased volume is below, or on the way, no lease would know of the mount, and no
/// unmount of the host would take it away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Of the host.
    Host(PathBuf),
    /// Of the container's sandbox.
    Sandbox(PathBuf),
    /// Of its parent's.
    ParentSandbox(PathBuf),
}

impl Shown {
    /// Those of a container.
    #[must_use]
    pub fn all(config: &ContainerConfig) -> Vec<Self> {
        volumes(config).flat_map(Self::of).collect()
    }

    /// The older field and the source, as Mesos's volume/host_path and volume/sandbox_path read them.
    fn of(volume: &Volume) -> impl Iterator<Item = Self> {
        use crate::mesos::volume::source::sandbox_path::Type as Whose;
        let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let source = volume.source.as_ref();
        let of_source = || {
            let source = source?;
            match source.r#type() {
                Type::HostPath => Some(Self::Host(path(&source.host_path.as_ref()?.path))),
                Type::SandboxPath => {
                    let sandbox = source.sandbox_path.as_ref()?;
                    let of =
                        if sandbox.r#type() == Whose::Parent { Self::ParentSandbox } else { Self::Sandbox };
                    Some(of(path(&sandbox.path)))
                }
                _ => None,
            }
        };
        let older = volume.host_path.as_deref().map(path);
        let older = older.map(|path| if path.is_absolute() { Self::Host(path) } else { Self::Sandbox(path) });
        of_source().into_iter().chain(older)
    }

    /// The path as it is written.
    #[must_use]
    pub fn path(&self) -> &Path {
        let (Self::Host(path) | Self::Sandbox(path) | Self::ParentSandbox(path)) = self;
        path
    }

    /// The sentence to refuse it with.
    pub(crate) fn refused(&self, why: &dyn Display) -> String {
        let what = if matches!(self, Self::Host(_)) { "host path" } else { "sandbox path" };
        format!("{what} {:?} is not mounted: {why}", self.path())
    }

    fn check_as_written(&self, roots: &[PathBuf]) -> Result<(), String> {
        if self.path().components().any(|part| part == Component::ParentDir) {
            return Err(self.refused(&"it has the segment \"..\"; name the path without it"));
        }
        match self {
            Self::Host(path) if path.is_absolute() => {
                let plain: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
                self.check_place(&plain, roots)
            }
            // Mesos refuses it.
            Self::Host(_) | Self::Sandbox(_) | Self::ParentSandbox(_) => Ok(()),
        }
    }

    /// Whether a place on the host, links resolved or not, shows no leased volume.
    pub(crate) fn check_place(&self, place: &Path, roots: &[PathBuf]) -> Result<(), String> {
        if let Some(root) = roots.iter().find(|root| place.starts_with(root)) {
            return Err(self.refused(&format!(
                "below {} volumes are mounted under leases, or orders about them are taken; name the volume by the task's \
                 labels instead",
                root.display()
            )));
        }
        if let Some(root) = roots.iter().find(|root| root.starts_with(place)) {
            return Err(self.refused(&format!(
                "it shows {}, below which volumes are mounted under leases, or orders about them are taken; name a path that \
                 does not",
                root.display()
            )));
        }
        match kernels(place) {
            Some(own) => Err(self.refused(&format!(
                "{own} is the kernel's own, and leads to devices and to what other processes have mounted"
            ))),
            None => Ok(()),
        }
    }
}

/// Whether the container's mounts would be also the host's: what is mounted in it would be mounted on the host.
fn shares_mounts_with_the_host(volume: &Volume) -> bool {
    let propagation = || {
        let path = volume.source.as_ref()?.host_path.as_ref()?;
        Some(path.mount_propagation.as_ref()?.mode() == Mode::Bidirectional)
    };
    propagation() == Some(true)
}

/// The places in the container that other volumes of ContainerInfo than DOCKER_VOLUMEs take, and those of them that Mesos mounts.
pub fn taken(config: &ContainerConfig, docker_volume_isolator: bool) -> impl Iterator<Item = String> {
    let others = move |volume: &&Volume| docker_volume_isolator || docker_volume(volume).is_none();
    volumes(config).filter(others).map(|volume| lossy(&volume.container_path))
}

/// Whether the container declares a volume of source DOCKER_VOLUME, whoever mounts it.
#[must_use]
pub fn has_docker_volume(config: &ContainerConfig) -> bool {
    volumes(config).any(is_docker_volume)
}

fn volumes(config: &ContainerConfig) -> impl Iterator<Item = &Volume> {
    config.container_info.iter().flat_map(|info| &info.volumes)
}

/// The sentence to refuse a parameter's value with.
pub(crate) fn invalid(name: &str, value: impl Display, reason: String) -> ParameterError {
    ParameterError::Invalid { name: name.to_owned(), value: value.to_string(), reason }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesos::volume::Source;
    use crate::mesos::volume::source::{DockerVolume, HostPath};
    use crate::mesos::{ContainerInfo, MountPropagation};
    use crate::parameters::IsolatorParameters;

    fn parameters(pairs: &[(&str, &str)]) -> Result<IsolatorParameters, String> {
        let drivers = r#"{"rexray": {}, "ebs": {"aliases": ["elastic"]}}"#;
        let given = [("etcd_endpoints", "h:1"), ("drivers", drivers)];
        let pairs = given.iter().chain(pairs).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        IsolatorParameters::read(&pairs.collect::<Vec<_>>()).map_err(|error| error.to_string())
    }

    fn container(volumes: Vec<Volume>) -> ContainerConfig {
        let info = ContainerInfo { r#type: None, volumes };
        ContainerConfig { container_info: Some(info), ..Default::default() }
    }

    fn docker_volume(driver: Option<&str>, name: &str) -> Volume {
        let driver = driver.map(Into::into);
        let docker_volume = Some(DockerVolume { driver, name: name.into(), driver_options: None });
        let source = Source { r#type: Some(Type::DockerVolume.into()), docker_volume, ..Default::default() };
        Volume { container_path: b"data".to_vec(), source: Some(source), ..Default::default() }
    }

    fn host_volume(path: &str, propagation: Option<Mode>) -> Volume {
        let mount_propagation = propagation.map(|mode| MountPropagation { mode: Some(mode.into()) });
        let host_path = Some(HostPath { path: path.into(), mount_propagation });
        let source = Source { r#type: Some(Type::HostPath.into()), host_path, ..Default::default() };
        Volume { container_path: b"data".to_vec(), source: Some(source), ..Default::default() }
    }

    fn check(pairs: &[(&str, &str)], isolator: bool, volume: Volume) -> String {
        let parameters = parameters(pairs).unwrap();
        let declared = Declared {
            rules: &parameters.rules,
            keeper: &parameters.keeper,
            docker_volume_isolator: isolator,
        };
        declared.check(&container(vec![host_volume("/srv", None), volume])).err().unwrap_or_default()
    }

    #[test]
    fn a_docker_volume_that_nobody_would_mount_is_refused_by_name_with_what_to_do() {
        let beside = "is not mounted: volumes of the driver ebs are leased, and this agent's docker/volume would mount";
        let table = [
            (Some("ebs"), false, ""),
            (Some("ebs"), true, beside),
            (Some("elastic"), false, ""),
            (
                Some("elastic"),
                true,
                "DOCKER_VOLUME elastic/vol-1 is not mounted: volumes of the driver elastic",
            ),
            (Some("pxd"), false, "nobody on this agent mounts it (the driver pxd is none"),
            (Some("pxd"), true, ""),
            (Some("../x"), false, "nobody on this agent mounts it (the driver ../x is none"),
            (None, false, "DOCKER_VOLUME vol-1 is not mounted: nobody on this agent mounts it (it names no"),
            (None, true, ""),
        ];
        for (driver, isolator, expected) in table {
            let said = check(&[], isolator, docker_volume(driver, "vol-1"));
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{driver:?}: {said}");
            assert_eq!(check(&[("docker_volumes", "ignore")], isolator, docker_volume(driver, "vol-1")), "");
        }
        let source = Source { r#type: Some(Type::DockerVolume.into()), ..Default::default() };
        let none = Volume { container_path: b"data".to_vec(), source: Some(source), ..Default::default() };
        assert!(check(&[], false, none).contains("at \"data\" is not mounted: it names no volume"));
        let forged =
            check(&[], false, docker_volume(Some("pxd"), "a\nE1130 00:00:00.0 1 slave.cpp:1] forged"));
        assert!(forged.contains("pxd/a\\nE1130") && !forged.contains('\n'), "{forged}");
    }

    #[test]
    fn a_docker_volume_of_ours_takes_no_place_from_itself_and_is_none_of_ours_where_they_are_ignored() {
        let config = container(vec![host_volume("/srv", None), docker_volume(Some("elastic"), "vol-1")]);
        assert_eq!((taken(&config, false).count(), taken(&config, true).count()), (1, 2));
        for (given, leased) in [(&[][..], 1), (&[("docker_volumes", "ignore")], 0)] {
            let parameters = parameters(given).unwrap();
            let (rules, keeper) = (&parameters.rules, &parameters.keeper);
            let declared = Declared { rules, keeper, docker_volume_isolator: false };
            assert_eq!(declared.leased(&config).count(), leased);
        }
    }

    #[test]
    fn a_path_of_the_host_does_not_lead_to_a_volume() {
        let refused = "below /var/lib/rexray/volumes volumes are mounted under leases";
        for path in ["/var/lib/rexray/volumes", "/var/lib//rexray/./volumes/vol-1/data"] {
            let said = check(&[], true, host_volume(path, None));
            assert!(said.contains(refused), "{path}: {said}");
            let older = Volume {
                container_path: b"data".to_vec(),
                host_path: Some(path.as_bytes().to_vec()),
                ..Default::default()
            };
            assert!(check(&[], true, older).contains(refused), "{path}");
        }
        let table = [
            ("/var/../var/lib/rexray/volumes/db/data", "it has the segment \"..\""),
            ("..", "it has the segment"),
            ("/", "it shows /var/lib/rexray/volumes, below which volumes"),
            ("/var/./lib", "it shows /var/lib/rexray/volumes"),
            ("/proc/self/root/var/lib/rexray/volumes", "/proc is the kernel's own"),
            ("//dev/sda", "/dev is the kernel's own"),
            ("/sys", "/sys is the kernel's own"),
        ];
        for (path, expected) in table {
            let said = check(&[], true, host_volume(path, None));
            assert!(said.starts_with("host path ") && said.contains(expected), "{path}: {said}");
        }
        // Where a plugin keeps the directories that it binds elsewhere.
        let drivers = r#"{"vfs": {"storage": "directory", "directories": "/var/lib/vfs/vol"}}"#;
        let pairs = [("etcd_endpoints", "h:1"), ("drivers", drivers)];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let parameters = IsolatorParameters::read(&pairs).unwrap();
        let (rules, keeper) = (&parameters.rules, &parameters.keeper);
        let declared = Declared { rules, keeper, docker_volume_isolator: true };
        for path in ["/var/lib/vfs/vol/victim", "/var/lib/vfs/vol", "/var/lib/vfs", "/var/lib"] {
            let said = declared.check(&container(vec![host_volume(path, None)])).unwrap_err();
            assert!(said.starts_with("host path "), "{path}: {said}");
        }
        assert!(of_no_container(keeper).contains(&"/var/lib/vfs/vol".into()));
        assert_eq!(check(&[], false, host_volume("/var/lib/rexray/volumes2", None)), "");
        assert_eq!(check(&[], false, host_volume("data", None)), "");
    }

    #[test]
    fn a_path_of_a_sandbox_leads_to_no_other_place() {
        use crate::mesos::volume::source::{SandboxPath, sandbox_path::Type as Whose};
        let volume = |whose: Whose, path: &str| {
            let sandbox_path = Some(SandboxPath { r#type: Some(whose.into()), path: path.into() });
            let source =
                Source { r#type: Some(Type::SandboxPath.into()), sandbox_path, ..Default::default() };
            Volume { container_path: b"data".to_vec(), source: Some(source), ..Default::default() }
        };
        let older = Volume {
            container_path: b"data".to_vec(),
            host_path: Some(b"../x".to_vec()),
            ..Default::default()
        };
        for volume in [volume(Whose::Self_, "a/../../x"), volume(Whose::Parent, ".."), older] {
            let said = check(&[], true, volume);
            assert!(said.starts_with("sandbox path ") && said.contains("it has the segment"), "{said}");
        }
        let declared =
            container(vec![volume(Whose::Parent, "a"), volume(Whose::Self_, "b"), host_volume("c", None)]);
        let all = [Shown::ParentSandbox("a".into()), Shown::Sandbox("b".into()), Shown::Host("c".into())];
        assert_eq!(Shown::all(&declared), all);
    }

    #[test]
    fn a_path_that_shares_the_containers_mounts_with_the_host_is_refused_where_volumes_are_hidden() {
        let said = |pairs, mode| check(pairs, true, host_volume("/srv", mode));
        assert!(said(&[], Some(Mode::Bidirectional)).contains("BIDIRECTIONAL is not mounted"));
        assert_eq!(said(&[("hide_volumes", "false")], Some(Mode::Bidirectional)), "");
        assert_eq!(said(&[], Some(Mode::HostToContainer)), "");
        assert_eq!(said(&[], None), "");
    }

    #[test]
    fn no_container_is_shown_where_orders_about_volumes_are_taken() {
        for path in ["/run/docker/plugins/ebs.sock", "/run/docker", "/run", "/run/extvol/keeper.sock"] {
            let said = check(&[], true, host_volume(path, None));
            assert!(said.contains("orders about them are taken"), "{path}: {said}");
        }
        assert_eq!(check(&[], true, host_volume("/run/docker.sock", None)), "");
    }

    #[test]
    fn an_operator_may_allow_no_path_at_all() {
        let said = check(&[("container_paths", "refuse")], true, host_volume("/srv", None));
        assert!(said.contains("allows none (container_paths)"), "{said}");
    }

    #[test]
    fn the_rules_are_strict_unless_the_operator_says_otherwise() {
        let rules = parameters(&[]).unwrap().rules;
        assert!(
            rules.lease_docker_volumes
                && rules.resources.is_empty()
                && rules.look_at_executors
                && rules.hide_volumes
        );
        assert!(!rules.allow_docker_volume_isolator && rules.host_paths.is_empty());
        let all = [
            ("docker_volumes", "ignore"),
            ("docker_volume_isolator", "allow"),
            ("executor_tasks", "ignore"),
            ("host_paths", "/tmp,/srv/data"),
            ("hide_volumes", "false"),
            ("resources", "ebsvolumes:ebs"),
        ];
        let read = parameters(&all).unwrap();
        let rules = &read.rules;
        assert!(!rules.lease_docker_volumes && !rules.look_at_executors && !rules.hide_volumes);
        assert!(rules.allow_docker_volume_isolator);
        assert_eq!(rules.resources["ebsvolumes"].as_str(), "ebs");
        assert_eq!(rules.host_paths, [PathBuf::from("/tmp"), "/srv/data".into()]);
        // They are the module's alone: the keeper is not told.
        assert!(Rules::NAMES.iter().all(|name| !read.keeper.given.contains_key(*name)));
        let table = [
            ("docker_volumes", "no", "which is neither lease nor ignore"),
            ("docker_volume_isolator", "yes", "which is neither allow nor refuse"),
            ("resources", "disk:ebs", "one of Mesos's own"),
            ("resources", "volumes:zfs", "zfs is not among the drivers that"),
            ("executor_tasks", "kill", "which is neither refuse nor ignore"),
            ("hide_volumes", "1", "which is neither true nor false"),
            ("container_paths", "no", "which is neither allow nor refuse"),
            ("host_paths", "tmp", "not a plain absolute path"),
            ("host_paths", "/srv/../etc", "not a plain absolute path"),
            ("host_paths", "/", "below which everything is"),
            ("host_paths", "/srv,/proc/sys", "/proc is never covered"),
        ];
        for (name, value, expected) in table {
            let error = parameters(&[(name, value)]).unwrap_err();
            assert!(error.contains(&format!("`{name}` has the value `{value}`")), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }
}
