//! Names of volumes, holders and containers. Each is checked once, where it enters, and has its own
//! type from there on. Cloning one costs a count: the protocol core hands names around freely.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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
    #[error("is a plugin's long name; give it a short one in driver_aliases, such as {driver}=ebs")]
    LongDriver {
        /// The driver.
        driver: String,
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
    /// A volume's name as the driver knows it.
    VolumeName, |c: char| c == '/' || c == '\\'
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

/// Which spellings mean the same volume. One rule for the whole installation, kept in etcd's
/// `cluster` record: two hosts with different rules could lease one volume under two keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamingRules {
    /// Plugin names that serve the volumes of another plugin name.
    #[serde(default)]
    pub driver_aliases: BTreeMap<Driver, Driver>,
    /// Drivers whose volume names differ by case. RexRay compares without case.
    #[serde(default)]
    pub case_sensitive_drivers: BTreeSet<Driver>,
}

impl NamingRules {
    /// The one name under which a volume is leased.
    ///
    /// # Errors
    /// When it cannot be told which other names mean the same volume.
    pub fn canonical(&self, volume: &VolumeId) -> Result<VolumeId, NameError> {
        let driver = self.driver_aliases.get(&volume.driver).unwrap_or(&volume.driver).clone();
        if driver.as_str().contains('/') {
            return Err(NameError::LongDriver { driver: driver.into() });
        }
        if self.case_sensitive_drivers.contains(&driver) {
            return Ok(VolumeId { driver, name: volume.name.clone() });
        }
        let name = volume.name.as_str();
        if let Some(found) = name.chars().find(|c| !c.is_ascii()) {
            return Err(NameError::NotAscii { found, driver: driver.into() });
        }
        Ok(VolumeId { driver, name: VolumeName(name.to_ascii_lowercase().into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(driver: &str, name: &str) -> VolumeId {
        VolumeId { driver: Driver::new(driver).unwrap(), name: VolumeName::new(name).unwrap() }
    }

    #[test]
    fn a_name_that_is_a_path_is_refused_and_the_segment_named() {
        assert_eq!(VolumeName::new("..").unwrap_err(), NameError::Segment { segment: "..".into() });
        assert_eq!(VolumeName::new("a/b").unwrap_err(), NameError::Character { found: '/' });
        assert_eq!(VolumeName::new("a\0").unwrap_err(), NameError::Character { found: '\0' });
        assert_eq!(VolumeName::new("").unwrap_err(), NameError::Empty);
        assert_eq!(VolumeName::new("v".repeat(256)).unwrap_err(), NameError::TooLong { bytes: 256 });
        assert_eq!(Driver::new("a/../b").unwrap_err(), NameError::Segment { segment: "..".into() });
        assert!(Driver::new("rexray/ebs:latest").is_ok());
    }

    #[test]
    fn two_spellings_of_one_volume_have_one_canonical_name() {
        let mut rules = NamingRules::default();
        rules.driver_aliases.insert(Driver::new("rexray").unwrap(), Driver::new("ebs").unwrap());
        assert_eq!(rules.canonical(&id("rexray", "Vol-7B")), Ok(id("ebs", "vol-7b")));
        // RexRay takes these for one; whether it does so for others, nobody can promise.
        assert!(matches!(rules.canonical(&id("ebs", "vol-\u{17f}")), Err(NameError::NotAscii { .. })));
        rules.case_sensitive_drivers.insert(Driver::new("ebs").unwrap());
        assert_eq!(rules.canonical(&id("rexray", "Vol-7B")), Ok(id("ebs", "Vol-7B")));
    }

    #[test]
    fn a_plugins_long_name_needs_an_alias() {
        let mut rules = NamingRules::default();
        let long = id("rexray/rexray", "v");
        assert!(matches!(rules.canonical(&long), Err(NameError::LongDriver { .. })));
        rules.driver_aliases.insert(long.driver.clone(), Driver::new("rexray").unwrap());
        assert_eq!(rules.canonical(&long), Ok(id("rexray", "v")));
    }
}
