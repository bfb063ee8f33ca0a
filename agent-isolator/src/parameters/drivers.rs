//! The parameter `drivers`: which drivers this host serves, what each is told, and what their names mean.
//!
//! A volume is one thing, whatever a task calls it: what could give it a second name, or let a task reach a plugin that
//! takes volumes away from others, is refused here by name and value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use shared::parameters::{ParameterError, Parameters};
use shared::volume::{Driver, HostNames, NameError, NameKind, NamingRules, VolumeId};

/// The driver of a task that names none, and of a host that is told of none.
const DEFAULT: &str = "rexray";

/// The longest file of drivers that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The drivers of a host. All but the keys of the aliases are canonical names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drivers {
    /// The Docker volume plugins that this host serves.
    pub served: BTreeSet<Driver>,
    /// By driver, the plugin that takes a volume away from another host when it mounts it. No driver is one.
    pub preempt: BTreeMap<Driver, Driver>,
    /// What their names mean.
    pub naming: NamingRules,
    settings: BTreeMap<Driver, DriverSettings>,
}

/// What a driver's volumes are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Disks, attached to one host at a time.
    #[default]
    Attached,
    /// File systems that many hosts may mount at once, as NFS: nothing is attached, and nothing has to be taken away.
    Shared,
    /// Plain directories of a file system that is not the plugin's to mount, as those of buttervolume and local-persist.
    Directory,
}

/// What a host is told of one driver, beside names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriverSettings {
    /// `storage`: what its volumes are.
    pub storage: Storage,
    /// `directories`: where its plugin keeps the directories that it binds to where it answers, by the volumes' names.
    pub directories: Option<PathBuf>,
    /// `suid_dev`: set-user-id programs and device files work on its volumes; else they are mounted `nosuid,nodev`.
    pub suid_dev: bool,
    /// `calls_max`: how many of its calls are under way at once; else as the parameter `driver_calls_max` has it.
    pub calls_max: Option<usize>,
    /// `settle_time`: for how long one of its calls without an answer may still be under way; else as the parameter of
    /// this name has it.
    pub settle_time: Option<Duration>,
    /// `mount_timeout`: how long a Create or Mount may take.
    pub mount_timeout: Option<Duration>,
    /// `unmount_timeout`: how long any other call may take.
    pub unmount_timeout: Option<Duration>,
    /// `remove`: tasks may have its volumes removed when they end.
    pub remove: bool,
}

/// A driver as the file describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Description {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preempt_plugin: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    storage: Storage,
    #[serde(skip_serializing_if = "Option::is_none")]
    directories: Option<PathBuf>,
    #[serde(skip_serializing_if = "is_default")]
    names: NameKind,
    #[serde(skip_serializing_if = "is_default")]
    case_sensitive: bool,
    #[serde(skip_serializing_if = "is_default")]
    suid_dev: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    calls_max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    settle_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mount_timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unmount_timeout: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    remove: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// All that a host is told of its drivers; a driver that is described twice is a mistake.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Descriptions(BTreeMap<String, Description>);

impl<'de> Deserialize<'de> for Descriptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Descriptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with the name of a driver for each key")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Descriptions, M::Error> {
                let mut all = BTreeMap::new();
                while let Some((name, description)) = map.next_entry::<String, Description>()? {
                    if all.contains_key(&name) {
                        return Err(serde::de::Error::custom(format!("{name:?} is described twice")));
                    }
                    all.insert(name, description);
                }
                Ok(Descriptions(all))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

impl Descriptions {
    /// From a comma list of names, JSON, or the path of a file with JSON.
    fn read(text: &str) -> Result<Self, String> {
        let json = if text.starts_with('/') {
            let cannot = |error: std::io::Error| format!("cannot be read: {error}");
            let path = Path::new(text);
            if !std::fs::metadata(path).map_err(cannot)?.is_file() {
                return Err("is no file".into());
            }
            let file = std::fs::File::open(path).map_err(cannot)?;
            let mut found = String::new();
            file.take(FILE_BYTES_MAX + 1).read_to_string(&mut found).map_err(cannot)?;
            if found.len() as u64 > FILE_BYTES_MAX {
                return Err("is longer than 1 MiB".into());
            }
            found
        } else if text.trim_start().starts_with('{') {
            text.to_owned()
        } else if text.ends_with(".json") {
            return Err("looks like the path of a file, and is not an absolute one".into());
        } else {
            let names = text.split(',').filter(|name| !name.is_empty());
            return Ok(Self(names.map(|name| (name.to_owned(), Description::default())).collect()));
        };
        serde_json::from_str(&json).map_err(|error| format!("does not describe drivers: {error}"))
    }
}

/// Longer, it would not fit among a process's arguments.
const TEXT_BYTES_MAX: usize = 64 << 10;

impl Descriptions {
    /// The same text, however it was told.
    fn in_one_form(&self) -> Result<String, String> {
        if self.0.values().all(is_default) {
            return Ok(self.0.keys().cloned().collect::<Vec<_>>().join(","));
        }
        let text = serde_json::to_string(self).map_err(|error| error.to_string())?;
        match text.len() {
            0..=TEXT_BYTES_MAX => Ok(text),
            more => Err(format!("says {more} bytes of drivers, more than {TEXT_BYTES_MAX}")),
        }
    }
}

impl Drivers {
    /// The value of the parameter, with what it says in one form, whether it was a list, JSON or a file: so two processes compare
    /// what they were told.
    pub(super) fn take(parameters: &mut Parameters) -> Result<(Self, Option<String>), ParameterError> {
        let given = parameters.parsed("drivers", |text| {
            let mut all = Descriptions::read(text)?;
            all.0.values_mut().for_each(|one| one.aliases.sort());
            let text = all.in_one_form()?;
            Ok::<_, String>((Self::described(&all)?, text))
        })?;
        match given {
            Some((drivers, text)) => Ok((drivers, Some(text))),
            None => {
                let all = Descriptions([(DEFAULT.to_owned(), Description::default())].into());
                let invalid = |reason| ParameterError::Invalid {
                    name: "drivers".into(),
                    value: DEFAULT.into(),
                    reason,
                };
                Ok((Self::described(&all).map_err(invalid)?, None))
            }
        }
    }

    fn described(all: &Descriptions) -> Result<Self, String> {
        let mut drivers = Self {
            served: BTreeSet::new(),
            preempt: BTreeMap::new(),
            naming: NamingRules::default(),
            settings: BTreeMap::new(),
        };
        for (name, description) in &all.0 {
            drivers.add(driver(name)?, description)?;
        }
        drivers.check()?;
        drivers.naming.preempting = Some(drivers.preempt.values().cloned().collect());
        Ok(drivers)
    }

    fn add(&mut self, name: Driver, description: &Description) -> Result<(), String> {
        has_socket(&name)?;
        for alias in &description.aliases {
            let alias = driver(alias)?;
            if let Some(first) = self.naming.driver_aliases.insert(alias.clone(), name.clone()) {
                return Err(format!("says that {alias} is {first}, and that it is {name}"));
            }
        }
        if let Some(plugin) = &description.preempt_plugin {
            let plugin = driver(plugin)?;
            has_socket(&plugin)?;
            if description.storage != Storage::Attached {
                return Err(format!("has a preempt_plugin of {name}, whose volumes are not attached"));
            }
            self.preempt.insert(name.clone(), plugin);
        }
        if description.case_sensitive {
            self.naming.case_sensitive_drivers.insert(name.clone());
        }
        // Docker's, which is that of all others, is not among them.
        if description.names != NameKind::Docker {
            self.naming.volume_names.insert(name.clone(), description.names);
        }
        let time = |key: &str, text: &Option<String>, least: u64| {
            let Some(text) = text else { return Ok(None) };
            let wrong = |why: String| format!("has the {key} {text:?} of {name}, which {why}");
            let found = shared::parameters::duration(text).map_err(wrong)?;
            let bounds = Duration::from_secs(least)..=Duration::from_secs(3600);
            match bounds.contains(&found) {
                true => Ok(Some(found)),
                false => Err(wrong(format!("is not from {:?} to {:?}", bounds.start(), bounds.end()))),
            }
        };
        if let Some(path) = &description.directories {
            let wrong = |why| Err(format!("has the directories {:?} of {name}, which {why}", path.display()));
            match description.storage {
                Storage::Directory if !path.is_absolute() => return wrong("is not an absolute path"),
                Storage::Directory => {}
                Storage::Attached | Storage::Shared => return wrong("needs the storage `directory`"),
            }
        }
        if let Some(count) = description.calls_max.filter(|count| !(1..=1000).contains(count)) {
            return Err(format!("has the calls_max {count} of {name}, which is not from 1 to 1000"));
        }
        let settings = DriverSettings {
            storage: description.storage,
            directories: description.directories.clone(),
            suid_dev: description.suid_dev,
            calls_max: description.calls_max,
            settle_time: time("settle_time", &description.settle_time, 0)?,
            mount_timeout: time("mount_timeout", &description.mount_timeout, 1)?,
            unmount_timeout: time("unmount_timeout", &description.unmount_timeout, 1)?,
            remove: description.remove,
        };
        self.settings.insert(name.clone(), settings);
        self.served.insert(name);
        Ok(())
    }

    /// What only all of them together show.
    fn check(&self) -> Result<(), String> {
        if self.served.is_empty() {
            return Err("names no driver".into());
        }
        let mut seen = BTreeMap::new();
        for driver in &self.served {
            if let Some(other) = seen.insert(driver.as_str().to_lowercase(), driver) {
                return Err(format!(
                    "names {other} and {driver}, which differ by case alone; if they serve one storage, make one an alias"
                ));
            }
        }
        let aliases = &self.naming.driver_aliases;
        if let Some(driver) = aliases.keys().find(|alias| self.served.contains(*alias)) {
            return Err(format!("makes {driver} both an alias and what an alias stands for"));
        }
        let mut plugins: BTreeMap<String, &Driver> = BTreeMap::new();
        for (of, plugin) in &self.preempt {
            let is = |other: &&Driver| other.as_str().eq_ignore_ascii_case(plugin.as_str());
            let why = "a task that named it would take volumes away from hosts that live";
            if let Some(driver) = self.served.iter().chain(aliases.keys()).find(is) {
                return Err(format!(
                    "has {driver} as a driver or alias and as the preempt_plugin of {of}: {why}"
                ));
            }
            if let Some(other) = plugins.insert(plugin.as_str().to_lowercase(), of) {
                return Err(format!(
                    "gives {other} and {of} one preempt_plugin, {plugin}: if they serve one storage, make one an alias"
                ));
            }
        }
        Ok(())
    }

    /// What this host is told of a driver, by whatever name of it.
    #[must_use]
    pub fn of(&self, driver: &Driver) -> DriverSettings {
        self.settings.get(self.naming.driver(driver)).cloned().unwrap_or_default()
    }

    /// The drivers of which this host is told something, each with it.
    pub fn settings(&self) -> impl Iterator<Item = (&Driver, &DriverSettings)> {
        self.settings.iter()
    }

    /// Where plugins keep directories that they bind to where they answer: all volumes of a driver are to be found there, mounted
    /// or not.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        self.settings.values().filter_map(|of| of.directories.clone()).collect()
    }

    /// Whether this host serves a driver, by whatever name of it.
    #[must_use]
    pub fn serves(&self, driver: &Driver) -> bool {
        self.served.contains(self.naming.driver(driver))
    }

    /// The one name under which a volume is leased.
    ///
    /// # Errors
    /// A sentence, when this host does not serve its driver, or the driver has no volumes of such a name.
    pub fn canonical(&self, asked: &VolumeId) -> Result<VolumeId, String> {
        let volume = self.naming.canonical(asked).map_err(|fault| match fault {
            NameError::LongDriver { .. } => format!("the driver name {} {fault}", asked.driver),
            _ => format!("the volume name {:?} {fault}", asked.name.as_str()),
        });
        // A driver that is not served has no rules that would be worth telling.
        match self.serves(&asked.driver) {
            true => volume,
            false => Err(format!(
                "driver {} is not served here: this host's parameter `drivers` lists {}",
                asked.driver,
                self.listed()
            )),
        }
    }

    /// The drivers that this host serves, for people.
    #[must_use]
    pub fn listed(&self) -> String {
        self.served.iter().map(Driver::as_str).collect::<Vec<_>>().join(", ")
    }

    /// What etcd's record of the installation is asked to admit.
    #[must_use]
    pub fn names(&self) -> HostNames {
        HostNames { rules: self.naming.clone(), drivers: self.served.clone() }
    }
}

fn driver(name: &str) -> Result<Driver, String> {
    Driver::new(name).map_err(|fault| format!("holds the driver name {name:?}, which {fault}"))
}

/// A plugin is found by a socket of its name, and a long name, such as `rexray/ebs:latest`, stands in none.
fn has_socket(driver: &Driver) -> Result<(), String> {
    match driver.as_str().contains('/') {
        true => {
            Err(format!("holds {driver}, a plugin's long name; give it a short one, with this as an alias"))
        }
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use shared::volume::VolumeName;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Drivers, String> {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut parameters = Parameters::new(&pairs).unwrap();
        let (drivers, _) = Drivers::take(&mut parameters).map_err(|error| error.to_string())?;
        parameters.finish().map_err(|error| error.to_string())?;
        Ok(drivers)
    }

    fn name(name: &str) -> Driver {
        Driver::new(name).unwrap()
    }

    #[test]
    fn a_host_that_is_told_nothing_serves_rexray_by_whatever_name_it_has() {
        let plain = read(&[]).unwrap();
        assert!(plain.serves(&name("rexray")) && !plain.serves(&name("ebs")));
        assert_eq!(plain.naming.preempting, Some(BTreeSet::new()));
        let renamed = read(&[("drivers", r#"{"ebs": {"aliases": ["rexray"]}}"#)]).unwrap();
        assert!(renamed.serves(&name("rexray")) && renamed.serves(&name("ebs")));
    }

    #[test]
    fn all_that_is_told_of_drivers_stands_in_one_place() {
        let text = r#"{
            "ebs": {"aliases": ["rexray", "rexray/ebs:latest"], "preempt_plugin": "ebs-preempt", "calls_max": 1,
                    "settle_time": "5mins", "mount_timeout": "90secs", "unmount_timeout": "30secs", "remove": true},
            "scaleio": {"aliases": ["sio"], "preempt_plugin": "sio-preempt", "case_sensitive": true, "names": "path"},
            "nfs": {"storage": "shared", "suid_dev": true},
            "local": {"storage": "directory"},
            "vfs": {"storage": "directory", "directories": "/var/lib/vfs/vol"}
        }"#;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("drivers.json");
        std::fs::write(&file, text).unwrap();
        let inline = read(&[("drivers", text)]).unwrap();
        let read = read(&[("drivers", file.to_str().unwrap())]).unwrap();
        assert_eq!(read, inline);
        assert_eq!(read.listed(), "ebs, local, nfs, scaleio, vfs");
        for served in ["rexray", "ebs", "rexray/ebs:latest", "sio", "scaleio"] {
            assert!(read.serves(&name(served)), "{served}");
        }
        // A socket's name has its case.
        for other in ["EBS", "ebs-preempt", "sio-preempt", "zfs", "rexray/rexray"] {
            assert!(!read.serves(&name(other)), "{other}");
        }
        assert_eq!(read.preempt.get(&name("ebs")), Some(&name("ebs-preempt")));
        assert_eq!(read.naming.case_sensitive_drivers, [name("scaleio")].into());
        assert_eq!(read.naming.volume_names, [(name("scaleio"), NameKind::Path)].into());
        assert_eq!(read.naming.preempting, Some([name("ebs-preempt"), name("sio-preempt")].into()));
        let seconds = |count| Some(Duration::from_secs(count));
        let ebs = DriverSettings {
            calls_max: Some(1),
            settle_time: seconds(300),
            mount_timeout: seconds(90),
            unmount_timeout: seconds(30),
            remove: true,
            ..DriverSettings::default()
        };
        assert_eq!((read.of(&name("ebs")), read.of(&name("rexray"))), (ebs.clone(), ebs));
        assert!(read.of(&name("nfs")).suid_dev && !read.of(&name("local")).suid_dev);
        let storage = |driver: &str| read.of(&name(driver)).storage;
        assert_eq!(
            [storage("scaleio"), storage("nfs"), storage("local"), storage("unknown")],
            [Storage::Attached, Storage::Shared, Storage::Directory, Storage::Attached]
        );
    }

    #[test]
    fn what_is_told_has_one_form_however_it_is_told() {
        let form = |text: &str| {
            let mut parameters = Parameters::new(&[("drivers".to_owned(), text.to_owned())]).unwrap();
            Drivers::take(&mut parameters).unwrap().1.unwrap()
        };
        assert_eq!(form("nfs,ebs"), "ebs,nfs");
        assert_eq!(form("nfs,ebs,"), form(r#"{"nfs": {}, "ebs": {"storage": "attached"}}"#));
        let described = r#"{"ebs":{"aliases":["a","b"],"storage":"shared","settle_time":"1mins"}}"#;
        assert_eq!(form(described), described);
        assert_eq!(form(&described.replace(r#""a","b""#, r#""b","a""#)), described);
    }

    #[test]
    fn a_driver_that_is_not_served_is_refused_by_whatever_name_and_an_odd_volume_by_its_own() {
        let text = r#"{"ebs": {"aliases": ["rexray"], "preempt_plugin": "ebs-preempt"}}"#;
        let drivers = read(&[("drivers", text)]).unwrap();
        let canonical = |driver: &str, volume: &str| {
            let volume = VolumeId { driver: name(driver), name: VolumeName::new(volume).unwrap() };
            drivers.canonical(&volume).map(|volume| volume.to_string())
        };
        assert_eq!(canonical("rexray", "Vol-1"), Ok("ebs/vol-1".into()));
        assert_eq!(canonical("ebs", "vol-1"), Ok("ebs/vol-1".into()));
        for (driver, volume, expected) in [
            (
                "ebs-preempt",
                "vol-1",
                "driver ebs-preempt is not served here: this host's parameter `drivers` lists ebs",
            ),
            ("EBS", "vol-1", "driver EBS is not served here"),
            ("x/ebs", "vol-1", "driver x/ebs is not served here"),
            ("zfs", "vol%1", "driver zfs is not served here"),
            ("rexray", "vol%2d2", "the volume name \"vol%2d2\" has '%' at a place where"),
        ] {
            let error = canonical(driver, volume).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn what_could_give_a_volume_two_names_or_a_task_a_preempting_plugin_is_refused_by_name_and_value() {
        let table = [
            ("", "`drivers` has the value ``, which names no driver"),
            ("{}", "names no driver"),
            ("../ebs", "`drivers` has the value `../ebs`, which holds the driver name \"../ebs\""),
            ("ebs, s", "holds the driver name \" s\""),
            ("rexray/ebs:latest", "a plugin's long name; give it a short one"),
            ("ebs,EBS", "names EBS and ebs, which differ by case alone"),
            ("/no/such/file", "which cannot be read: No such file"),
            ("drivers.json", "which looks like the path of a file"),
            ("/dev/zero", "which is no file"),
            ("{\"ebs\": {}", "which does not describe drivers: EOF while parsing an object at line 1"),
            (r#"{"ebs": {}, "ebs": {}}"#, "\"ebs\" is described twice"),
            (
                r#"{"ebs": {"alias": "a"}}"#,
                "unknown field `alias`, expected one of `aliases`, `preempt_plugin`",
            ),
            (r#"{"b": {"aliases": ["a"]}, "c": {"aliases": ["b"]}}"#, "makes b both an alias and what"),
            (r#"{"b": {"aliases": ["a"]}, "c": {"aliases": ["a"]}}"#, "says that a is b, and that it is c"),
            (r#"{"b/c": {"aliases": ["a"]}}"#, "a plugin's long name"),
            (
                r#"{"a": {"names": "loose"}}"#,
                "unknown variant `loose`, expected one of `docker`, `path`, `any`",
            ),
            (
                r#"{"a": {"directories": "/a"}}"#,
                "has the directories \"/a\" of a, which needs the storage `directory`",
            ),
            (
                r#"{"a": {"storage": "directory", "directories": "a/b"}}"#,
                "has the directories \"a/b\" of a, which is not an absolute path",
            ),
            (r#"{"a": {"storage": "nfs"}}"#, "expected one of `attached`, `shared`, `directory`"),
            (
                r#"{"ebs": {"preempt_plugin": "p"}, "p": {}}"#,
                "has p as a driver or alias and as the preempt_plugin",
            ),
            (r#"{"ebs": {"preempt_plugin": "ebs"}}"#, "has ebs as a driver or alias"),
            (r#"{"ebs": {"preempt_plugin": "EBS"}}"#, "has ebs as a driver or alias"),
            (r#"{"ebs": {"aliases": ["p"], "preempt_plugin": "p"}}"#, "has p as a driver or alias"),
            (r#"{"ebs": {"preempt_plugin": "p"}, "x": {"aliases": ["p"]}}"#, "has p as a driver or alias"),
            (
                r#"{"ebs": {"preempt_plugin": "p"}, "s": {"preempt_plugin": "P"}}"#,
                "gives ebs and s one preempt_plugin, P",
            ),
            (r#"{"ebs": {"preempt_plugin": "x/p"}}"#, "holds x/p, a plugin's long name"),
            (
                r#"{"nfs": {"preempt_plugin": "p", "storage": "shared"}}"#,
                "has a preempt_plugin of nfs, whose volumes are not attached",
            ),
            (r#"{"a": {"calls_max": 0}}"#, "has the calls_max 0 of a, which is not from 1 to 1000"),
            (r#"{"a": {"settle_time": "5"}}"#, "has the settle_time \"5\" of a, which "),
            (
                r#"{"a": {"mount_timeout": "2hrs"}}"#,
                "has the mount_timeout \"2hrs\" of a, which is not from 1s to 3600s",
            ),
            (r#"{"a": {"unmount_timeout": "0secs"}}"#, "of a, which is not from 1s to 3600s"),
        ];
        for (text, expected) in table {
            let error = read(&[("drivers", text)]).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
