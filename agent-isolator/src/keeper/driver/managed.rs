//! Plugins that a Docker engine manages (`docker plugin install`): what their descriptions say.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use shared::volume::Driver;

use super::endpoint::{Endpoint, Managed};
use super::{DriverError, files};

/// An engine with more plugins than this is none.
const DIRECTORIES_MAX: usize = 1024;

/// All that an engine manages on this host, as they were at one moment.
#[derive(Debug)]
pub(super) struct ManagedPlugins {
    /// The engine's directory of them.
    directory: PathBuf,
    /// In the order of their directories.
    described: Vec<(PathBuf, Plugin)>,
    /// The first description that says nothing usable, with why.
    fault: Option<(PathBuf, String)>,
}

impl ManagedPlugins {
    /// Looks at each.
    pub(super) fn read(directory: &Path) -> Self {
        let mut read = Self { directory: directory.to_owned(), described: Vec::new(), fault: None };
        let Ok(entries) = std::fs::read_dir(directory) else { return read };
        let mut plugins: Vec<_> =
            entries.flatten().take(DIRECTORIES_MAX + 1).map(|entry| entry.path()).collect();
        if plugins.len() > DIRECTORIES_MAX {
            let fault = format!("it holds more than {DIRECTORIES_MAX} directories, and none is looked at");
            read.fault = Some((directory.to_owned(), fault));
            return read;
        }
        plugins.sort();
        for plugin in plugins {
            let file = plugin.join("config.json");
            let described = match files::read(&file) {
                Ok(bytes) => described(&bytes),
                // No plugin's directory.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    continue;
                }
                Err(error) => Err(error.to_string()),
            };
            match described {
                Ok(described) => read.described.push((plugin, described)),
                Err(why) => read.fault = read.fault.or(Some((file, format!("it cannot be read: {why}")))),
            }
        }
        read
    }

    /// The one of that name. It is in the description alone: the directory of its socket, below `sockets`, has its id.
    pub(super) fn find(&self, driver: &Driver, sockets: &Path) -> Result<Endpoint, DriverError> {
        let mut enabled =
            self.described.iter().filter(|(_, plugin)| plugin.enabled && plugin.is_called(driver));
        let Some((directory, plugin)) = enabled.next() else {
            return Err(match &self.fault {
                // It may be the one.
                Some((file, why)) => DriverError::Specification {
                    file: file.clone(),
                    fault: format!("{why}; and no other description is of an enabled plugin {driver}"),
                },
                None => DriverError::NotFound {
                    driver: driver.clone(),
                    looked_for: self.directory.join("*/config.json").display().to_string(),
                },
            });
        };
        plugin.endpoint(directory, sockets)
    }
}

/// What of a managed plugin's `config.json` is read, as Docker 1.13 and later write it.
#[derive(Deserialize)]
struct Description {
    plugin: Plugin,
}

/// Of it, what it is called and where it listens.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Plugin {
    name: String,
    #[serde(default)]
    enabled: bool,
    config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    interface: Interface,
    #[serde(default, rename = "PropagatedMount")]
    propagated: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    #[serde(default)]
    socket: String,
}

/// What a `config.json` says.
pub(crate) fn described(bytes: &[u8]) -> Result<Plugin, String> {
    let read: Result<Description, _> = serde_json::from_slice(bytes);
    read.map(|description| description.plugin).map_err(|error| error.to_string())
}

impl Plugin {
    /// Where it listens: the plugin that the engine keeps in `directory`.
    pub(crate) fn endpoint(&self, directory: &Path, sockets: &Path) -> Result<Endpoint, DriverError> {
        let socket = self.config.interface.socket.as_str();
        if socket.contains('/') || matches!(socket, "" | "." | "..") {
            let fault = format!("its socket is called {socket:?}");
            return Err(DriverError::Specification { file: directory.join("config.json"), fault });
        }
        let id = directory.file_name().unwrap_or_default();
        Ok(Endpoint::Managed(Managed {
            socket: sockets.join(id).join(socket),
            directory: directory.to_owned(),
            propagated: Some(self.config.propagated.clone()).filter(|path| path.is_absolute()),
        }))
    }

    /// By name and tag; without a tag `latest` is meant.
    pub(crate) fn is_called(&self, driver: &Driver) -> bool {
        let tagged = |name: &str| match name.rsplit_once(':') {
            Some((_, tag)) if !tag.contains('/') => name.to_owned(),
            _ => format!("{name}:latest"),
        };
        tagged(&self.name) == tagged(driver.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_means_the_latest() {
        let plugin = |name: &str| Plugin {
            name: name.into(),
            enabled: true,
            config: Config { interface: Interface { socket: String::new() }, propagated: PathBuf::new() },
        };
        let called =
            |plugin_name: &str, driver: &str| plugin(plugin_name).is_called(&Driver::new(driver).unwrap());
        assert!(called("rexray/ebs:latest", "rexray/ebs") && called("rexray/ebs", "rexray/ebs:latest"));
        assert!(!called("rexray/ebs:0.11.4", "rexray/ebs") && !called("rexray/efs:latest", "rexray/ebs"));
    }

    #[test]
    fn what_a_plugin_mounts_below_nothing_is_where_it_says() {
        let plugin = |propagated: &str| Plugin {
            name: "x".into(),
            enabled: true,
            config: Config {
                interface: Interface { socket: "x.sock".into() },
                propagated: propagated.into(),
            },
        };
        for (told, known) in [("", None), ("data", None), ("/data", Some(PathBuf::from("/data")))] {
            let endpoint = plugin(told).endpoint(Path::new("/plugins/id"), Path::new("/run")).unwrap();
            assert!(
                matches!(endpoint, Endpoint::Managed(managed) if managed.propagated == known),
                "{told:?}"
            );
        }
    }

    #[test]
    fn of_an_engine_with_too_many_plugins_none_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        for place in 0..DIRECTORIES_MAX {
            std::fs::create_dir(directory.path().join(place.to_string())).unwrap();
        }
        let found = || {
            let plugins = ManagedPlugins::read(directory.path());
            plugins.find(&Driver::new("x/y:1").unwrap(), Path::new("/s")).unwrap_err().to_string()
        };
        assert!(found().contains("no Docker volume plugin named x/y:1"), "{}", found());
        std::fs::create_dir(directory.path().join("one more")).unwrap();
        assert!(found().contains("holds more than 1024 directories"), "{}", found());
    }
}
