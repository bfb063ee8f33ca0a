//! Names of volumes, holders and containers. Each is checked once, where it enters, and has its own
//! type from there on. Cloning one costs a count: the protocol core hands names around freely.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest driver, volume, holder or container name accepted, in bytes: NAME_MAX of the file
/// systems in which plugins make directories of that name.
pub const NAME_BYTES_MAX: usize = 255;

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is the empty string.
    #[error("is empty")]
    Empty,
    /// The name is longer than [`NAME_BYTES_MAX`].
    #[error("has {bytes} bytes, more than {NAME_BYTES_MAX}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The name holds a character that it must not hold.
    #[error("holds {found:?}, which is not allowed there")]
    Character {
        /// The first such character.
        found: char,
    },
    /// The driver compares names without case, in a way of its own beyond ASCII: two spellings of one
    /// volume could be leased as two.
    #[error("holds {found:?}: the driver {driver} is not declared case-sensitive, so names are ASCII")]
    NotAscii {
        /// The first such character.
        found: char,
        /// The driver.
        driver: String,
    },
    /// The driver's name has a slash: one plugin's socket can be found under several such names.
    #[error(
        "is a plugin's long name; make it an alias of a short one in `drivers`, as `\"ebs\": {{\"aliases\": [\"{driver}\"]}}`"
    )]
    LongDriver {
        /// The driver.
        driver: String,
    },
    /// The driver's names follow a rule that this one breaks.
    #[error(
        "has {found:?} at a place where the names of the driver {driver} have none ({}); if they are otherwise, say so by \
         its `names` in `drivers`, the same on all hosts",
        kind.rule()
    )]
    Kind {
        /// The first character that is wrong.
        found: char,
        /// The driver.
        driver: String,
        /// How its names are spelt.
        kind: NameKind,
    },
    /// The name would mean a directory's parent or the directory itself.
    #[error("must not be or contain the path segment {segment:?}")]
    Segment {
        /// `.` or `..`.
        segment: String,
    },
}

fn check(name: &str, refused: impl Fn(char) -> bool) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { bytes: name.len() });
    }
    if let Some(found) = name.chars().find(|c| c.is_control() || refused(*c)) {
        return Err(NameError::Character { found });
    }
    if let Some(segment) = name.split('/').find(|s| matches!(*s, "" | "." | "..")) {
        return Err(NameError::Segment { segment: segment.to_owned() });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $Name:ident, $refused:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $Name(Arc<str>);

        impl $Name {
            /// Checks `name`.
            ///
            /// # Errors
            /// Says what is wrong with it, as the end of a sentence about the name.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check(&name, $refused)?;
                Ok(Self(name.into()))
            }

            /// The name as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $Name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$Name> for String {
            fn from(name: $Name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A Docker volume plugin's name, such as `rexray` or `rexray/ebs:latest`.
    Driver, |c: char| c == '\\' || c.is_whitespace()
}
name! {
    /// A volume's name as the driver knows it. Which of these a driver has is told by [`NameKind`].
    VolumeName, |c: char| c == '\\'
}

impl VolumeName {
    /// Whether directories of this path, one below the other, are this name, whatever the case: plugins mount a volume
    /// below directories of its name.
    #[must_use]
    pub fn is_in(&self, path: &Path) -> bool {
        let name: Vec<_> = self.as_str().split('/').map(str::to_lowercase).collect();
        let path: Vec<_> = path.iter().map(|part| part.to_string_lossy().to_lowercase()).collect();
        path.windows(name.len()).any(|parts| parts == name)
    }
}
name! {
    /// An agent host, by the name that its `holder` parameter gives it.
    Holder, |c: char| c == '/' || c.is_whitespace()
}
name! {
    /// A Mesos container: its ids from the outermost to the innermost, joined by dots, as Mesos
    /// prints them.
    ContainerId, |c: char| c == '/' || c == '\\' || c.is_whitespace()
}

/// A volume as a task names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId {
    /// The plugin that serves it.
    pub driver: Driver,
    /// Its name there.
    pub name: VolumeName,
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.driver, self.name)
    }
}

/// How a driver spells the names of its volumes. A plugin may take two names that are not spelt by its rule for one, as
/// one that decodes percents does: two leases, two writers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameKind {
    /// Docker's own rule, which its volume names keep whatever the plugin.
    #[default]
    Docker,
    /// Such names joined by single slashes: `pool/image`.
    Path,
    /// All but slashes, backslashes and control characters.
    Any,
}

impl NameKind {
    fn rule(self) -> &'static str {
        match self {
            Self::Docker => "a letter or digit, then letters, digits and _.-, as Docker has it",
            Self::Path => "segments joined by /, each a letter or digit, then letters, digits and _.-",
            Self::Any => "anything but slashes",
        }
    }

    /// The first character that breaks the rule.
    fn fault(self, name: &str) -> Option<char> {
        let docker = |segment: &str| {
            let first = segment.chars().next().filter(|c| !c.is_ascii_alphanumeric());
            let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            first.or_else(|| segment.chars().find(|c| !plain(c)))
        };
        match self {
            Self::Docker => docker(name),
            Self::Path => name.split('/').find_map(docker),
            Self::Any => name.chars().find(|c| *c == '/'),
        }
    }
}

/// Which names there are, and which spellings mean the same volume. One rule for the whole installation, kept in etcd's
/// `cluster` record: two hosts with different rules could lease one volume under two keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamingRules {
    /// Plugin names that serve the volumes of another plugin name.
    #[serde(default)]
    pub driver_aliases: BTreeMap<Driver, Driver>,
    /// Drivers whose volume names differ by case. RexRay compares without case.
    #[serde(default)]
    pub case_sensitive_drivers: BTreeSet<Driver>,
    /// How drivers spell their names; those that are not here keep Docker's rule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volume_names: BTreeMap<Driver, NameKind>,
    /// Plugins that take a volume away from another host when they mount it, of any host: no task may reach one as its
    /// driver. Absent in the record of an earlier release, which told nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempting: Option<BTreeSet<Driver>>,
}

impl NamingRules {
    /// The one name of a driver.
    #[must_use]
    pub fn driver<'a>(&'a self, named: &'a Driver) -> &'a Driver {
        self.driver_aliases.get(named).unwrap_or(named)
    }

    /// The one name under which a volume is leased.
    ///
    /// # Errors
    /// When the driver has no such names, or it cannot be told which other names mean the same volume.
    pub fn canonical(&self, volume: &VolumeId) -> Result<VolumeId, NameError> {
        let driver = self.driver(&volume.driver);
        if driver.as_str().contains('/') {
            return Err(NameError::LongDriver { driver: driver.to_string() });
        }
        let (kind, name) = (self.volume_names.get(driver).copied().unwrap_or_default(), volume.name.as_str());
        if let Some(found) = kind.fault(name) {
            return Err(NameError::Kind { found, driver: driver.to_string(), kind });
        }
        if !self.case_sensitive_drivers.contains(driver)
            && let Some(found) = name.chars().find(|c| !c.is_ascii())
        {
            return Err(NameError::NotAscii { found, driver: driver.to_string() });
        }
        Ok(self.leased(volume))
    }

    /// The name under which a volume was leased, by these rules or by earlier ones that allowed more names.
    #[must_use]
    pub fn leased(&self, volume: &VolumeId) -> VolumeId {
        let driver = self.driver(&volume.driver).clone();
        if self.case_sensitive_drivers.contains(&driver) || !volume.name.as_str().is_ascii() {
            return VolumeId { driver, name: volume.name.clone() };
        }
        VolumeId { driver, name: VolumeName(volume.name.as_str().to_ascii_lowercase().into()) }
    }

    /// What has to be the same everywhere.
    fn in_words(&self) -> String {
        let Self { driver_aliases, case_sensitive_drivers, volume_names, preempting: _ } = self;
        let aliases: BTreeMap<_, _> =
            driver_aliases.iter().map(|(alias, of)| (alias.as_str(), of.as_str())).collect();
        let case_sensitive: BTreeSet<_> = case_sensitive_drivers.iter().map(Driver::as_str).collect();
        let names: BTreeMap<_, _> =
            volume_names.iter().map(|(driver, kind)| (driver.as_str(), kind)).collect();
        format!("aliases {aliases:?}, case_sensitive {case_sensitive:?}, names {names:?}")
    }

    /// Whether a host may take part in the installation that has these rules.
    ///
    /// What decides which key a volume has must be the same. Of preempting plugins a host may know fewer, for it need not
    /// serve every driver; none that the installation does not know, and it must not serve one of any host.
    ///
    /// # Errors
    /// What differs.
    pub fn admit(&self, host: &HostNames) -> Result<(), RulesFault> {
        let of = |rules: &Self| Self { preempting: None, ..rules.clone() };
        if of(self) != of(&host.rules) {
            return Err(RulesFault::Names { ours: host.rules.in_words(), theirs: self.in_words() });
        }
        let Some(preempting) = &self.preempting else { return Ok(()) };
        let known = || preempting.iter().map(Driver::as_str).collect::<Vec<_>>().join(", ");
        let aliases = host.rules.driver_aliases.iter().flat_map(|(alias, driver)| [alias, driver]);
        if let Some(driver) = host.drivers.iter().chain(aliases).find(|name| preempting.contains(*name)) {
            return Err(RulesFault::Serves { driver: driver.clone() });
        }
        let mut ours = host.rules.preempting.iter().flatten();
        match ours.find(|plugin| !preempting.contains(*plugin)) {
            Some(plugin) => Err(RulesFault::Unknown { plugin: plugin.clone(), known: known() }),
            None => Ok(()),
        }
    }
}

/// The names of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames {
    /// The installation's rules, as this host was told them. Its preempting plugins are those of this host alone.
    pub rules: NamingRules,
    /// The drivers that it serves, by their canonical names.
    pub drivers: BTreeSet<Driver>,
}

/// Why a host may not take part in an installation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesFault {
    /// Two hosts could lease one volume under two names.
    #[error(
        "aliases, case_sensitive and names of `drivers` here ({ours}) differ from those that etcd has for all hosts \
         ({theirs}); two hosts could lease one volume under two names"
    )]
    Names {
        /// This host's.
        ours: String,
        /// The installation's.
        theirs: String,
    },
    /// A task of this host could take a volume away from its live holder.
    #[error(
        "the driver {driver}, which this host serves, is a plugin that takes volumes away from other hosts (`preempting` in \
         etcd's record `cluster`)"
    )]
    Serves {
        /// The driver.
        driver: Driver,
    },
    /// Other hosts could serve it as a driver.
    #[error(
        "the preempt_plugin {plugin} of this host is not among those that etcd has for all hosts ({known}): other \
         hosts could serve it as a driver; add it to `preempting` in etcd's record `cluster` (docs/operating.md)"
    )]
    Unknown {
        /// The plugin.
        plugin: Driver,
        /// Those that the installation knows.
        known: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(driver: &str, name: &str) -> VolumeId {
        VolumeId { driver: Driver::new(driver).unwrap(), name: VolumeName::new(name).unwrap() }
    }

    #[test]
    fn a_name_that_is_no_path_of_names_is_refused_and_the_segment_named() {
        assert_eq!(VolumeName::new("..").unwrap_err(), NameError::Segment { segment: "..".into() });
        assert_eq!(VolumeName::new("../etc").unwrap_err(), NameError::Segment { segment: "..".into() });
        assert_eq!(VolumeName::new("a//b").unwrap_err(), NameError::Segment { segment: String::new() });
        assert_eq!(VolumeName::new("a\\b").unwrap_err(), NameError::Character { found: '\\' });
        assert_eq!(VolumeName::new("a\0").unwrap_err(), NameError::Character { found: '\0' });
        assert_eq!(VolumeName::new("").unwrap_err(), NameError::Empty);
        assert_eq!(VolumeName::new("v".repeat(256)).unwrap_err(), NameError::TooLong { bytes: 256 });
        assert_eq!(Driver::new("a/../b").unwrap_err(), NameError::Segment { segment: "..".into() });
        assert!(Driver::new("rexray/ebs:latest").is_ok());
    }

    fn driver(name: &str) -> Driver {
        Driver::new(name).unwrap()
    }

    #[test]
    fn two_spellings_of_one_volume_have_one_canonical_name() {
        let mut rules = NamingRules::default();
        rules.driver_aliases.insert(driver("rexray"), driver("ebs"));
        assert_eq!(rules.canonical(&id("rexray", "Vol-7B")), Ok(id("ebs", "vol-7b")));
        rules.volume_names.insert(driver("ebs"), NameKind::Any);
        // RexRay takes these for one; whether it does so for others, nobody can promise.
        assert!(matches!(rules.canonical(&id("ebs", "vol-\u{17f}")), Err(NameError::NotAscii { .. })));
        rules.case_sensitive_drivers.insert(driver("ebs"));
        assert_eq!(rules.canonical(&id("rexray", "Vol-7B")), Ok(id("ebs", "Vol-7B")));
        assert_eq!(rules.canonical(&id("ebs", "vol-\u{17f}")), Ok(id("ebs", "vol-\u{17f}")));
    }

    #[test]
    fn a_driver_has_the_names_of_its_kind_alone() {
        let kinds = [(driver("rbd"), NameKind::Path), (driver("odd"), NameKind::Any)];
        let mut rules = NamingRules { volume_names: kinds.into(), ..NamingRules::default() };
        rules.driver_aliases.insert(driver("ceph"), driver("rbd"));
        for (driver, name, fault) in [
            ("ebs", "vol-7b_A.1", None),
            ("ebs", "7", None),
            ("ebs", "vol%2d2", Some('%')),
            ("ebs", "pool/image", Some('/')),
            ("ebs", "-rf", Some('-')),
            ("ebs", ".hidden", Some('.')),
            ("ebs", "my vol", Some(' ')),
            ("ebs", "v\u{e4}", Some('\u{e4}')),
            ("rbd", "pool/image", None),
            ("rbd", "image", None),
            ("ceph", "pool/image", None),
            ("rbd", "pool/-image", Some('-')),
            ("rbd", "pool%2fimage", Some('%')),
            ("odd", "a%2d b", None),
            ("odd", "a/b", Some('/')),
        ] {
            let found = match rules.canonical(&id(driver, name)) {
                Ok(_) => None,
                Err(NameError::Kind { found, .. }) => Some(found),
                Err(other) => panic!("{name}: {other}"),
            };
            assert_eq!(found, fault, "{driver} {name}");
        }
        let error = rules.canonical(&id("ebs", "vol%2d2")).unwrap_err().to_string();
        assert!(
            error.starts_with("has '%' at a place where the names of the driver ebs have none"),
            "{error}"
        );
        // What was leased under earlier rules can still be named by a person.
        assert_eq!(rules.leased(&id("ceph", "Vol%2D2")), id("rbd", "vol%2d2"));
    }

    #[test]
    fn a_plugins_long_name_needs_an_alias() {
        let mut rules = NamingRules::default();
        let long = id("rexray/rexray", "v");
        assert!(matches!(rules.canonical(&long), Err(NameError::LongDriver { .. })));
        rules.driver_aliases.insert(long.driver.clone(), driver("rexray"));
        assert_eq!(rules.canonical(&long), Ok(id("rexray", "v")));
    }

    #[test]
    fn a_host_whose_rules_differ_or_that_serves_a_preempting_plugin_is_not_admitted() {
        let taking = |names: &[&str]| Some(names.iter().map(|name| driver(name)).collect());
        let theirs =
            NamingRules { preempting: taking(&["ebs-preempt", "s-preempt"]), ..NamingRules::default() };
        let host = |preempting: &[&str], drivers: &[&str]| HostNames {
            rules: NamingRules { preempting: taking(preempting), ..NamingRules::default() },
            drivers: drivers.iter().map(|name| driver(name)).collect(),
        };
        // A host need not serve every driver.
        for good in [host(&["ebs-preempt", "s-preempt"], &["ebs", "s"]), host(&[], &["ebs"])] {
            assert_eq!(theirs.admit(&good), Ok(()));
        }
        assert_eq!(
            theirs.admit(&host(&[], &["ebs", "s-preempt"])),
            Err(RulesFault::Serves { driver: driver("s-preempt") })
        );
        let unknown = theirs.admit(&host(&["another"], &["ebs"]));
        assert!(matches!(unknown, Err(RulesFault::Unknown { .. })), "{unknown:?}");
        let rules = || host(&[], &["ebs"]).rules;
        for rules in [
            NamingRules { driver_aliases: [(driver("a"), driver("ebs"))].into(), ..rules() },
            NamingRules { volume_names: [(driver("ebs"), NameKind::Any)].into(), ..rules() },
            NamingRules { case_sensitive_drivers: [driver("ebs")].into(), ..rules() },
        ] {
            let refused = theirs.admit(&HostNames { rules, ..host(&[], &["ebs"]) });
            assert!(matches!(refused, Err(RulesFault::Names { .. })), "{refused:?}");
        }
        // Reached by an alias, which both have.
        let aliases = BTreeMap::from([(driver("x"), driver("ebs-preempt"))]);
        let theirs = NamingRules { driver_aliases: aliases.clone(), ..theirs };
        let mut other = host(&[], &["ebs"]);
        other.rules.driver_aliases = aliases;
        assert!(matches!(theirs.admit(&other), Err(RulesFault::Serves { .. })));
        // An earlier release's record says nothing of them.
        let silent: NamingRules = serde_json::from_str("{}").unwrap();
        assert_eq!(silent.admit(&host(&["another"], &["s-preempt"])), Ok(()));
    }

    #[test]
    fn a_mount_point_bears_a_name_when_directories_of_it_are_that_name() {
        let name = |name: &str| VolumeName::new(name).unwrap();
        assert!(name("Vol-1").is_in(Path::new("vol-1/data")));
        assert!(!name("vol-1").is_in(Path::new("vol-12/data")));
        assert!(name("pool/image").is_in(Path::new("rbd/Pool/image/data")));
        assert!(!name("pool/image").is_in(Path::new("pool/other/image")));
        assert!(!name("pool/image").is_in(Path::new("image")));
    }
}
