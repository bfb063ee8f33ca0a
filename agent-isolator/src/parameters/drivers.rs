//! The parameters that say which drivers this host serves, and what their names mean.
//!
//! A volume is one thing, whatever a task calls it: what could give it a second name, or let a task reach a plugin that
//! takes volumes away from others, is refused here by name and value.

use std::collections::{BTreeMap, BTreeSet};

use shared::parameters::{ParameterError, Parameters};
use shared::volume::{Driver, HostNames, NameError, NameKind, NamingRules, VolumeId};

/// The driver of a task that names none, and of a host that is told of none.
const DEFAULT: &str = "rexray";

/// The drivers of a host. All but the keys of the aliases are canonical names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drivers {
    /// `drivers` (comma list, default `rexray`): the Docker volume plugins that this host serves.
    pub served: BTreeSet<Driver>,
    /// `preempt_plugins` (`ebs=ebs-preempt,...`): by driver, the plugin that takes a volume away from another host when
    /// it mounts it. No driver is one.
    pub preempt: BTreeMap<Driver, Driver>,
    /// `shared_storage` (comma list): drivers whose storage many hosts may use at once, so that nothing is ever attached
    /// to a host that is lost.
    pub shared_storage: BTreeSet<Driver>,
    /// `driver_aliases` (`rexray=ebs,...`), `case_sensitive_drivers` (comma list), `volume_names` (`rbd=path,...`).
    pub naming: NamingRules,
}

impl Drivers {
    pub(super) fn take(parameters: &mut Parameters) -> Result<Self, ParameterError> {
        let driver_aliases = parameters.parsed("driver_aliases", aliases)?.unwrap_or_default();
        let mut naming = NamingRules { driver_aliases, ..NamingRules::default() };
        let rules = &naming;
        let list = |text: &str| list(text, rules);
        let case_sensitive_drivers = parameters.parsed("case_sensitive_drivers", list)?.unwrap_or_default();
        let volume_names = parameters.parsed("volume_names", |text| kinds(text, rules))?.unwrap_or_default();
        let served = parameters.parsed("drivers", |text| served(text, rules))?;
        let served = served.unwrap_or_else(|| {
            Driver::new(DEFAULT).iter().map(|driver| rules.driver(driver).clone()).collect()
        });
        let preempt = parameters.parsed("preempt_plugins", |text| preempt(text, rules, &served))?;
        let preempt = preempt.unwrap_or_default();
        let shared_storage = parameters.parsed("shared_storage", |text| {
            let shared = list(text)?;
            match shared.iter().find(|driver| !served.contains(*driver) || preempt.contains_key(*driver)) {
                Some(driver) if preempt.contains_key(driver) => Err(format!(
                    "names {driver}, from which `preempt_plugins` takes volumes away: it attaches them"
                )),
                Some(driver) => Err(format!("names {driver}, which `drivers` does not list")),
                None => Ok(shared),
            }
        })?;
        naming.case_sensitive_drivers = case_sensitive_drivers;
        naming.volume_names = volume_names;
        naming.preempting = Some(preempt.values().cloned().collect());
        Ok(Self { served, preempt, shared_storage: shared_storage.unwrap_or_default(), naming })
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
        true => Err(format!("holds {driver}, a plugin's long name; give it a short one in `driver_aliases`")),
        false => Ok(()),
    }
}

fn pairs(text: &str) -> impl Iterator<Item = Result<(Driver, &str), String>> {
    text.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) =
            pair.split_once('=').ok_or_else(|| format!("holds {pair:?}, which has no `=`"))?;
        Ok((driver(name)?, value))
    })
}

fn aliases(text: &str) -> Result<BTreeMap<Driver, Driver>, String> {
    let mut aliases = BTreeMap::new();
    for pair in pairs(text) {
        let (alias, of) = pair?;
        let of = driver(of)?;
        has_socket(&of)?;
        if let Some(first) = aliases.insert(alias.clone(), of.clone()) {
            return Err(format!("says that {alias} is {first}, and that it is {of}"));
        }
    }
    match aliases.values().find(|driver| aliases.contains_key(*driver)) {
        Some(driver) => Err(format!("makes {driver} both an alias and what an alias stands for")),
        None => Ok(aliases),
    }
}

pub(super) fn list(text: &str, rules: &NamingRules) -> Result<BTreeSet<Driver>, String> {
    let names = text.split(',').filter(|name| !name.is_empty());
    names.map(|name| Ok(rules.driver(&driver(name)?).clone())).collect()
}

fn served(text: &str, rules: &NamingRules) -> Result<BTreeSet<Driver>, String> {
    let served = list(text, rules)?;
    if served.is_empty() {
        return Err("names no driver".into());
    }
    served.iter().try_for_each(has_socket)?;
    let mut seen = BTreeMap::new();
    for driver in &served {
        if let Some(other) = seen.insert(driver.as_str().to_lowercase(), driver) {
            return Err(format!(
                "names {other} and {driver}, which differ by case alone; if they serve one storage, say so in `driver_aliases`"
            ));
        }
    }
    Ok(served)
}

/// Kinds by driver; Docker's, which is that of all others, is not among them.
fn kinds(text: &str, rules: &NamingRules) -> Result<BTreeMap<Driver, NameKind>, String> {
    let mut kinds = BTreeMap::new();
    for pair in pairs(text) {
        let (name, kind) = pair?;
        let (driver, kind) = (rules.driver(&name).clone(), NameKind::named(kind)?);
        if kinds.insert(driver.clone(), kind).is_some_and(|first| first != kind) {
            return Err(format!("gives the driver {driver} two kinds"));
        }
    }
    kinds.retain(|_, kind| *kind != NameKind::Docker);
    Ok(kinds)
}

fn preempt(
    text: &str,
    rules: &NamingRules,
    served: &BTreeSet<Driver>,
) -> Result<BTreeMap<Driver, Driver>, String> {
    let mut preempt: BTreeMap<Driver, Driver> = BTreeMap::new();
    for pair in pairs(text) {
        let (name, plugin) = pair?;
        let (of, plugin) = (rules.driver(&name).clone(), driver(plugin)?);
        has_socket(&plugin)?;
        if !served.contains(&of) {
            return Err(format!("names a plugin of {of}, which `drivers` does not list"));
        }
        let is = |other: &&Driver| other.as_str().eq_ignore_ascii_case(plugin.as_str());
        let why = "a task that named it would take volumes away from hosts that live";
        if let Some(driver) = served.iter().find(is) {
            return Err(format!("names the plugin {plugin}, and `drivers` lists {driver}: {why}"));
        }
        let aliases = rules.driver_aliases.iter().flat_map(|(alias, of)| [alias, of]);
        if let Some(alias) = aliases.into_iter().find(is) {
            return Err(format!("names the plugin {plugin}, and `driver_aliases` has {alias}: {why}"));
        }
        if let Some((other, _)) = preempt.iter().find(|(other, taken)| **other != of && is(taken)) {
            return Err(format!(
                "gives {other} and {of} one plugin, {plugin}: if they serve one storage, say so in `driver_aliases`"
            ));
        }
        if let Some(first) = preempt.insert(of.clone(), plugin.clone()).filter(|first| *first != plugin) {
            return Err(format!("gives the driver {of} two plugins, {first} and {plugin}"));
        }
    }
    Ok(preempt)
}

#[cfg(test)]
mod tests {
    use shared::volume::VolumeName;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Drivers, String> {
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut parameters = Parameters::new(&pairs).unwrap();
        let drivers = Drivers::take(&mut parameters).map_err(|error| error.to_string())?;
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
        let renamed = read(&[("driver_aliases", "rexray=ebs")]).unwrap();
        assert!(renamed.serves(&name("rexray")) && renamed.serves(&name("ebs")));
    }

    #[test]
    fn all_names_are_canonical() {
        let read = read(&[
            ("drivers", "rexray,scaleio,nfs"),
            ("driver_aliases", "rexray=ebs,rexray/ebs:latest=ebs,sio=scaleio"),
            ("preempt_plugins", "rexray=ebs-preempt,scaleio=sio-preempt"),
            ("case_sensitive_drivers", "sio"),
            ("volume_names", "sio=path,ebs=docker,rexray=docker"),
            ("shared_storage", "nfs"),
        ])
        .unwrap();
        assert_eq!(read.listed(), "ebs, nfs, scaleio");
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
    }

    #[test]
    fn a_driver_that_is_not_served_is_refused_by_whatever_name_and_an_odd_volume_by_its_own() {
        let drivers = read(&[
            ("drivers", "rexray"),
            ("driver_aliases", "rexray=ebs"),
            ("preempt_plugins", "ebs=ebs-preempt"),
        ])
        .unwrap();
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
        let ebs = ("drivers", "ebs");
        let table: [(&[(&str, &str)], &str); 22] = [
            (&[("drivers", "")], "`drivers` has the value ``, which names no driver"),
            (
                &[("drivers", "../ebs")],
                "`drivers` has the value `../ebs`, which holds the driver name \"../ebs\"",
            ),
            (&[("drivers", "ebs, s")], "holds the driver name \" s\""),
            (&[("drivers", "rexray/ebs:latest")], "a plugin's long name; give it a short one"),
            (&[("drivers", "ebs,EBS")], "names EBS and ebs, which differ by case alone"),
            (&[("driver_aliases", "a=b,b=c")], "makes b both an alias and what an alias stands for"),
            (&[("driver_aliases", "a=b,a=c")], "says that a is b, and that it is c"),
            (&[("driver_aliases", "a")], "holds \"a\", which has no `=`"),
            (&[("driver_aliases", "a=b/c")], "a plugin's long name"),
            (&[("volume_names", "a=loose")], "names the kind \"loose\"; the kinds are docker, path and any"),
            (&[("volume_names", "a=path,a=any")], "gives the driver a two kinds"),
            (&[ebs, ("preempt_plugins", "s=p")], "names a plugin of s, which `drivers` does not list"),
            (
                &[("drivers", "ebs,p"), ("preempt_plugins", "ebs=p")],
                "`preempt_plugins` has the value `ebs=p`, which names the plugin p, and `drivers` lists p",
            ),
            (&[ebs, ("preempt_plugins", "ebs=ebs")], "names the plugin ebs, and `drivers` lists ebs"),
            (&[ebs, ("preempt_plugins", "ebs=EBS")], "names the plugin EBS, and `drivers` lists ebs"),
            (
                &[ebs, ("driver_aliases", "p=ebs"), ("preempt_plugins", "ebs=p")],
                "names the plugin p, and `driver_aliases` has p",
            ),
            (
                &[ebs, ("driver_aliases", "x=p"), ("preempt_plugins", "ebs=p")],
                "names the plugin p, and `driver_aliases` has p",
            ),
            (&[("drivers", "ebs,s"), ("preempt_plugins", "ebs=p,s=p")], "gives ebs and s one plugin, p"),
            (
                &[ebs, ("driver_aliases", "a=ebs"), ("preempt_plugins", "ebs=p,a=q")],
                "gives the driver ebs two plugins, p and q",
            ),
            (&[ebs, ("preempt_plugins", "ebs=x/p")], "holds x/p, a plugin's long name"),
            (&[ebs, ("shared_storage", "nfs")], "names nfs, which `drivers` does not list"),
            (
                &[ebs, ("preempt_plugins", "ebs=p"), ("shared_storage", "ebs")],
                "names ebs, from which `preempt_plugins` takes volumes away",
            ),
        ];
        for (pairs, expected) in table {
            let error = read(pairs).unwrap_err();
            assert!(error.contains(expected), "{pairs:?}: {error}");
        }
    }
}
