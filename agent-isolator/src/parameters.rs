//! The parameters of the isolator module and of the keeper. Both read the same names: the module
//! hands the keeper's on when it starts one, and compares them with those of a keeper that runs.

mod drivers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::keeper::fence::{Policy, Reset};
use crate::keeper::mounts::Places;
use crate::rules::{Rules, invalid};
use shared::parameters::{ParameterError, Parameters};
use shared::protocol::exchange::ByTime;
use shared::protocol::timing::Timing;
use shared::volume::{Driver, Holder};

pub use self::drivers::{DriverSettings, Drivers, Storage};

/// An agent's `executor_registration_timeout` is 1 min by default, and prepare counts in it.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(45);

/// One attach or detach of RexRay's EBS driver takes up to 102 s (`ebs.statusTimeout` 2 min, looked at with doubling pauses); what waits in
/// its queue behind others takes longer, see `driver_calls_max`.
const SETTLE_TIME: Duration = Duration::from_secs(120);

/// What the keeper is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeeperParameters {
    /// `holder`: this host's name in leases; by default the host name.
    pub holder: Holder,
    /// `etcd_endpoints`: comma list of `http://host:port`.
    pub etcd_endpoints: Vec<String>,
    /// `etcd_prefix`: default `/extvol/v1`.
    pub etcd_prefix: String,
    /// `profile` (`fast`, `default`, `calm`), `ttl`, `beat_interval`, `request_timeout`, `election_time`,
    /// `fence_after`, `kill_time`: the protocol's times.
    pub timing: Timing,
    /// `by_time`: whether silence may end this host's session: `allowed`, or `never` on a host that is to go on
    /// while etcd is away.
    pub by_time: ByTime,
    /// `grace`: how long containers may take to end by themselves after a revoke; default 10 s.
    pub grace: Duration,
    /// `wait_timeout`: for how long a prepare waits for a lease that another host has; default `ttl` and 5 s.
    pub wait_timeout: Duration,
    /// `drivers`: which drivers this host serves, what it is told of each, and what their names mean.
    pub drivers: Drivers,
    /// `fencing` = `required`: a volume of a host that is dead by time alone is taken only where the storage takes
    /// it away from there.
    pub fencing_required: bool,
    /// `prepare_timeout`: within it a container's volumes are mounted, or its launch fails; default
    /// 45 s.
    pub prepare_timeout: Duration,
    /// `settle_time`: for how long a driver's call without an answer may still be under way; default
    /// 2 min. A lease is not released before. A driver may have one of its own.
    pub settle_time: Duration,
    /// `prepares_max`: how many containers' volumes are prepared at once; a further launch is refused; default 256.
    pub prepares_max: usize,
    /// `framework_volumes_max`: how many volumes containers of one framework have on this host at once; without it, any number.
    pub framework_volumes_max: Option<usize>,
    /// `driver_calls_max`: how many calls of one driver are under way at once; the others wait; default 16. A driver may have
    /// a number of its own.
    pub driver_calls_max: usize,
    /// `mount_roots`: the directories below which drivers mount; default
    /// `/var/lib/rexray/volumes`.
    pub mount_roots: Vec<PathBuf>,
    /// `run_directory`: socket, lock and table, on a file system that a reboot empties; default
    /// `/run/extvol`.
    pub run_directory: PathBuf,
    /// `state_directory`: this machine's id, kept over reboots; default `/var/lib/extvol`.
    pub state_directory: PathBuf,
    /// `cgroup_root`: the freezer cgroup of the agent's containers, its `--cgroups_root`; default `mesos`.
    pub cgroup_root: String,
    /// `link_directory`: in it a link for each mounted volume is kept, by driver and name; none by default.
    pub link_directory: Option<PathBuf>,
    /// `hosts_own` (comma list of paths): file systems that are never fenced, beside `/`, `/run` and the directories
    /// above; the agent's work directory, where it has a file system of its own.
    pub hosts_own: Vec<PathBuf>,
    /// `volume_rules`: a file of rules about who may use which volumes; without one everybody may use all.
    pub volume_rules: Option<PathBuf>,
    /// `reset` (`never`, `sysrq`, `reboot`): how this host is reset when a fence is not proved in time; default never.
    pub reset: Option<Reset>,
    /// `watchdog`: a watchdog device.
    pub watchdog: Option<PathBuf>,
    /// All that was given, by name.
    pub given: BTreeMap<String, String>,
}

/// What the isolator module is told beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsolatorParameters {
    /// The keeper's.
    pub keeper: KeeperParameters,
    /// `keeper`: the program to start, detached, when no keeper answers and no systemd runs.
    pub program: Option<PathBuf>,
    /// `sandbox_directory`: the agent's flag of that name; default `/mnt/mesos/sandbox`.
    pub sandbox_directory: String,
    /// What tasks may do.
    pub rules: Rules,
}

/// The parameters of a keeper's file: an object of names, and values as strings; `drivers` may be an object itself.
///
/// # Errors
/// A sentence.
pub fn pairs_of(json: &serde_json::Value) -> Result<Vec<(String, String)>, String> {
    let object = json.as_object().ok_or("it is no JSON object")?;
    let pair = |(name, value): (&String, &serde_json::Value)| match value {
        serde_json::Value::String(text) => Ok((name.clone(), text.clone())),
        serde_json::Value::Object(_) if name == "drivers" => Ok((name.clone(), value.to_string())),
        _ => Err(format!("the value of {name:?} is no string")),
    };
    object.iter().map(pair).collect()
}

fn host_name(_: &str) -> Result<Holder, String> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    Holder::new(name.clone()).map_err(|error| format!("is missing, and the host name {name:?} {error}"))
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("is not an absolute path") }
}

fn mount_roots(text: &str) -> Result<Vec<PathBuf>, String> {
    let root = |part: &str| match absolute(part)? {
        root if root.parent().is_none() => Err("holds /, below which everything is"),
        root => Ok(root),
    };
    Ok(text.split(',').map(root).collect::<Result<_, _>>()?)
}

fn directories(text: &str) -> Result<Vec<PathBuf>, &'static str> {
    text.split(',').map(absolute).collect()
}

fn reset(text: &str) -> Result<Option<Reset>, &'static str> {
    match text {
        "never" => Ok(None),
        "sysrq" => Ok(Some(Reset::Sysrq("/proc/sysrq-trigger".into()))),
        "reboot" => Ok(Some(Reset::Reboot)),
        _ => Err("is none of never, sysrq and reboot"),
    }
}

fn by_time(text: &str) -> Result<ByTime, &'static str> {
    match text {
        "allowed" => Ok(ByTime::Allowed),
        "never" => Ok(ByTime::Never),
        _ => Err("is neither allowed nor never"),
    }
}

fn required(text: &str) -> Result<bool, &'static str> {
    match text {
        "required" => Ok(true),
        "optional" => Ok(false),
        _ => Err("is neither required nor optional"),
    }
}

impl KeeperParameters {
    fn take(
        parameters: &mut Parameters,
        mut given: BTreeMap<String, String>,
    ) -> Result<Self, ParameterError> {
        let seconds = Duration::from_secs;
        let holder = |text: &str| Holder::new(text);
        let directory = |parameters: &mut Parameters, name, default: &str| {
            Ok::<_, ParameterError>(parameters.parsed(name, absolute)?.unwrap_or_else(|| default.into()))
        };
        let holder = match parameters.parsed("holder", holder)? {
            Some(holder) => holder,
            None => host_name("").map_err(|reason| ParameterError::Invalid {
                name: "holder".into(),
                value: String::new(),
                reason,
            })?,
        };
        let timing = parameters.timing()?;
        let (drivers, described) = Drivers::take(parameters)?;
        let volume_rules = parameters.parsed("volume_rules", absolute)?;
        // Whoever names a volume could have it removed.
        if let Some((driver, _)) = drivers.settings().find(|(_, of)| of.remove && volume_rules.is_none()) {
            let why =
                format!("lets tasks remove volumes of {driver}: say who may, in the file of `volume_rules`");
            return Err(invalid("drivers", described.as_deref().unwrap_or_default(), why));
        }
        given.extend(described.map(|text| ("drivers".to_owned(), text)));
        Ok(Self {
            holder,
            etcd_endpoints: parameters.endpoints("etcd_endpoints")?,
            etcd_prefix: parameters.key_prefix("etcd_prefix", "/extvol/v1")?,
            timing,
            by_time: parameters.parsed("by_time", by_time)?.unwrap_or(ByTime::Allowed),
            grace: parameters.duration("grace", seconds(10), Duration::ZERO..=seconds(600))?,
            wait_timeout: parameters.duration(
                "wait_timeout",
                timing.ttl + seconds(5),
                Duration::ZERO..=seconds(3600),
            )?,
            drivers,
            fencing_required: parameters.parsed("fencing", required)?.unwrap_or(false),
            prepare_timeout: parameters.duration(
                "prepare_timeout",
                PREPARE_TIMEOUT,
                seconds(1)..=seconds(3600),
            )?,
            settle_time: parameters.duration("settle_time", SETTLE_TIME, Duration::ZERO..=seconds(3600))?,
            prepares_max: parameters.count("prepares_max", 256, 1..=10_000)?,
            framework_volumes_max: match parameters.count("framework_volumes_max", 0, 1..=100_000)? {
                0 => None,
                count => Some(count),
            },
            driver_calls_max: parameters.count("driver_calls_max", 16, 1..=1_000)?,
            mount_roots: parameters
                .parsed("mount_roots", mount_roots)?
                .unwrap_or_else(|| vec!["/var/lib/rexray/volumes".into()]),
            run_directory: directory(parameters, "run_directory", "/run/extvol")?,
            state_directory: directory(parameters, "state_directory", "/var/lib/extvol")?,
            cgroup_root: parameters.optional("cgroup_root").unwrap_or_else(|| "mesos".into()),
            link_directory: parameters.parsed("link_directory", absolute)?,
            hosts_own: parameters.parsed("hosts_own", directories)?.unwrap_or_default(),
            volume_rules,
            reset: parameters.parsed("reset", reset)?.flatten(),
            watchdog: parameters.parsed("watchdog", absolute)?,
            given,
        })
    }

    /// Reads the keeper's parameters.
    ///
    /// # Errors
    /// Names the parameter and its value.
    pub fn read(pairs: &[(String, String)]) -> Result<Self, ParameterError> {
        let mut parameters = Parameters::new(pairs)?;
        let read = Self::take(&mut parameters, pairs.iter().cloned().collect())?;
        parameters.finish()?;
        Ok(read)
    }

    /// Whether this host serves a driver, by whatever name of it: `drivers` lists it. Any other is refused before
    /// anything is leased.
    #[must_use]
    pub fn serves(&self, driver: &Driver) -> bool {
        self.drivers.serves(driver)
    }

    /// For how long a call of this driver without an answer may still be under way.
    #[must_use]
    pub fn settle_time(&self, driver: &Driver) -> Duration {
        self.drivers.of(driver).settle_time.unwrap_or(self.settle_time)
    }

    /// The same, of whichever driver.
    #[must_use]
    pub fn longest_settle_time(&self) -> Duration {
        self.settle_time_of().into_values().fold(self.settle_time, Duration::max)
    }

    /// The drivers that have a settle time of their own.
    #[must_use]
    pub fn settle_time_of(&self) -> BTreeMap<Driver, Duration> {
        self.drivers.settings().filter_map(|(driver, of)| Some((driver.clone(), of.settle_time?))).collect()
    }

    /// The drivers that have a number of calls of their own.
    #[must_use]
    pub fn calls_max_of(&self) -> BTreeMap<Driver, usize> {
        self.drivers.settings().filter_map(|(driver, of)| Some((driver.clone(), of.calls_max?))).collect()
    }

    /// What a fence may do here.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let own = [&self.run_directory, &self.state_directory].into_iter().cloned();
        Policy {
            roots: self.mount_roots.clone(),
            hosts_own: self.hosts_own.iter().cloned().chain(own).collect(),
            cgroup_root: Some(format!("/{}", self.cgroup_root.trim_matches('/'))),
            program: "/proc/self/exe".into(),
            reset: self.reset.clone(),
        }
    }

    /// The name of the guard's cgroup in each hierarchy: as much this keeper's alone as the cgroup of its agent's containers.
    #[must_use]
    pub fn guard_cgroup(&self) -> String {
        format!("extvol-guard.{}", self.cgroup_root.trim_matches('/').replace('/', "."))
    }

    /// Where volumes are on this host, and what is none.
    #[must_use]
    pub fn places(&self) -> Places {
        let Policy { roots, hosts_own, cgroup_root, .. } = self.policy();
        Places { roots, hosts_own, cgroup_root }
    }

    /// Where the keeper listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_directory.join("keeper.sock")
    }
}

impl IsolatorParameters {
    /// Reads the module's parameters.
    ///
    /// # Errors
    /// Names the parameter and its value.
    pub fn read(pairs: &[(String, String)]) -> Result<Self, ParameterError> {
        let mut parameters = Parameters::new(pairs)?;
        let program = parameters.parsed("keeper", absolute)?;
        let sandbox_directory =
            parameters.optional("sandbox_directory").unwrap_or_else(|| "/mnt/mesos/sandbox".into());
        let rules = Rules::take(&mut parameters)?;
        let is_own =
            |name: &str| ["keeper", "sandbox_directory"].contains(&name) || Rules::NAMES.contains(&name);
        let given = pairs.iter().filter(|(name, _)| !is_own(name)).cloned().collect();
        let keeper = KeeperParameters::take(&mut parameters, given)?;
        parameters.finish()?;
        if let Some((resource, driver)) = rules.resources.iter().find(|(_, driver)| !keeper.serves(driver)) {
            let why = format!(
                "has {resource}:{driver}, and {driver} is not among the drivers that this host serves"
            );
            let value = pairs.iter().find(|(name, _)| name == "resources").map_or("", |(_, value)| value);
            return Err(invalid("resources", value, why));
        }
        Ok(Self { keeper, program, sandbox_directory, rules })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<IsolatorParameters, String> {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        IsolatorParameters::read(&pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_endpoints_must_be_given() {
        let read = read(&[("etcd_endpoints", "10.0.0.1:2379"), ("keeper", "/usr/bin/k")]).unwrap();
        assert_eq!(read.program, Some("/usr/bin/k".into()));
        assert_eq!(read.keeper.socket(), PathBuf::from("/run/extvol/keeper.sock"));
        assert_eq!(read.keeper.given.keys().collect::<Vec<_>>(), ["etcd_endpoints"]);
    }

    #[test]
    fn a_bad_value_is_refused_by_name_and_value() {
        let table = [
            (&[][..], "`etcd_endpoints` is missing"),
            (&[("etcd_endpoints", "h")], "`etcd_endpoints` has the value `h`"),
            (&[("etcd_endpoints", "h:1"), ("ttl", "5")], "`ttl` has the value `5`"),
            (&[("etcd_endpoints", "h:1"), ("holder", "a/b")], "`holder` has the value `a/b`"),
            (&[("etcd_endpoints", "h:1"), ("mount_roots", "a")], "which is not an absolute path"),
            (&[("etcd_endpoints", "h:1"), ("mount_roots", "/")], "below which everything is"),
            (
                &[("etcd_endpoints", "h:1"), ("drivers", r#"{"a": {"remove": true}}"#)],
                "which lets tasks remove volumes of a: say who may, in the file of `volume_rules`",
            ),
            (
                &[("etcd_endpoints", "h:1"), ("drivers", "a,A")],
                "`drivers` has the value `a,A`, which names A and a",
            ),
            (&[("etcd_endpoints", "h:1"), ("prepare_timeout", "1")], "`prepare_timeout` has the value `1`"),
        ];
        for (pairs, expected) in table {
            let error = read(pairs).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
