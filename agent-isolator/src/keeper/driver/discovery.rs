//! Finding plugins, by Docker's own rules: sockets, specification files, and the plugins that a Docker engine manages.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use shared::volume::Driver;

use super::DriverError;
use super::endpoint::{Endpoint, Managed, Plugins};
use crate::parameters::Drivers;

/// The longest description of a managed plugin that is read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Where plugins are looked for, and under which names.
#[derive(Clone, Debug)]
pub(super) struct Discovery {
    pub(super) sockets: PathBuf,
    pub(super) specifications: Vec<PathBuf>,
    /// Where a Docker engine keeps the plugins that it manages (`docker plugin install`).
    pub(super) managed: PathBuf,
    /// Other names of the plugins, for volumes of which only the leased name is known.
    pub(super) aliases: BTreeMap<Driver, Driver>,
    /// All that are known by name.
    known: Plugins,
}

impl Discovery {
    /// As Docker finds them on this host.
    pub(super) fn new(drivers: &Drivers) -> Self {
        Self {
            sockets: "/run/docker/plugins".into(),
            specifications: vec!["/etc/docker/plugins".into(), "/usr/lib/docker/plugins".into()],
            managed: "/var/lib/docker/plugins".into(),
            aliases: drivers.naming.driver_aliases.clone(),
            known: Plugins::new(drivers),
        }
    }

    /// Where a plugin listens, under its own name or else under another one of it. Looked at for each call: a plugin that
    /// was restarted, or a link that was turned, may lead elsewhere than before.
    pub(super) fn find(&self, driver: &Driver) -> Result<Endpoint, DriverError> {
        let mut found = self.find_named(driver);
        if matches!(found, Err(DriverError::NotFound { .. })) {
            let canonical = self.aliases.get(driver).unwrap_or(driver);
            let aliases = self.aliases.iter().filter(|(_, of)| *of == canonical).map(|(alias, _)| alias);
            let mut others = std::iter::once(canonical).chain(aliases);
            found = others.find_map(|other| self.find_named(other).ok()).map_or(found, Ok);
        }
        let endpoint = found?;
        let place = endpoint.place();
        let is_there = |other: &&Driver| self.find_named(other).is_ok_and(|other| other.place() == place);
        match self.known.apart_from(driver).find(is_there) {
            None => Ok(endpoint),
            Some(other) => Err(DriverError::Coincides {
                driver: driver.clone(),
                other: other.clone(),
                endpoint: endpoint.shown(),
            }),
        }
    }

    /// By Docker's own rules of discovery.
    fn find_named(&self, driver: &Driver) -> Result<Endpoint, DriverError> {
        let name = driver.as_str();
        // Only a managed plugin has a long name, and its socket another one.
        if name.contains(['/', ':']) {
            return self.find_managed(driver);
        }
        let sockets =
            [self.sockets.join(format!("{name}.sock")), self.sockets.join(name).join(format!("{name}.sock"))];
        let mut looked_for = Vec::new();
        for socket in sockets {
            if socket.exists() {
                return Ok(Endpoint::Unix(socket));
            }
            looked_for.push(socket);
        }
        for directory in &self.specifications {
            for ending in ["spec", "json"] {
                let file = directory.join(format!("{name}.{ending}"));
                match std::fs::read_to_string(&file) {
                    Ok(text) => return specified(&file, &text),
                    Err(_) => looked_for.push(file),
                }
            }
        }
        let looked_for = looked_for.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(DriverError::NotFound { driver: driver.clone(), looked_for })
    }

    /// A plugin that a Docker engine manages. Its name is in its description alone: the directory of its socket has its id.
    fn find_managed(&self, driver: &Driver) -> Result<Endpoint, DriverError> {
        let looked_for = || DriverError::NotFound {
            driver: driver.clone(),
            looked_for: self.managed.join("*/config.json").display().to_string(),
        };
        let directories = std::fs::read_dir(&self.managed).map_err(|_| looked_for())?;
        let mut plugins: Vec<_> = directories.flatten().map(|entry| entry.path()).collect();
        plugins.sort();
        let found = plugins.iter().filter_map(|directory| Some((directory, Description::read(directory)?)));
        let mut enabled = found.filter(|(_, found)| found.plugin.enabled && found.plugin.is_called(driver));
        let (directory, Description { plugin }) = enabled.next().ok_or_else(looked_for)?;
        let fault = |fault: String| DriverError::Specification { file: directory.join("config.json"), fault };
        let socket = plugin.config.interface.socket;
        if socket.contains('/') || socket.is_empty() {
            return Err(fault(format!("its socket is called {socket:?}")));
        }
        let id = directory.file_name().ok_or_else(looked_for)?;
        Ok(Endpoint::Managed(Managed {
            socket: self.sockets.join(id).join(socket),
            directory: directory.clone(),
            propagated: Some(plugin.config.propagated).filter(|path| path.is_absolute()),
        }))
    }
}

/// What of a managed plugin's `config.json` is read, as Docker 1.13 and later write it.
#[derive(Deserialize)]
struct Description {
    plugin: Plugin,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Plugin {
    name: String,
    #[serde(default)]
    enabled: bool,
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    interface: Interface,
    #[serde(default, rename = "PropagatedMount")]
    propagated: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    #[serde(default)]
    socket: String,
}

impl Description {
    /// None of what is no plugin's directory.
    fn read(directory: &Path) -> Option<Self> {
        let file = directory.join("config.json");
        let fits = std::fs::metadata(&file).is_ok_and(|file| file.len() <= CONFIG_BYTES_MAX);
        serde_json::from_slice(&fits.then(|| std::fs::read(file).ok())??).ok()
    }
}

impl Plugin {
    /// By name and tag; without a tag `latest` is meant.
    fn is_called(&self, driver: &Driver) -> bool {
        let tagged = |name: &str| match name.rsplit_once(':') {
            Some((_, tag)) if !tag.contains('/') => name.to_owned(),
            _ => format!("{name}:latest"),
        };
        tagged(&self.name) == tagged(driver.as_str())
    }
}

pub(crate) fn specified(file: &Path, text: &str) -> Result<Endpoint, DriverError> {
    let fault = |fault: &str| DriverError::Specification { file: file.to_owned(), fault: fault.to_owned() };
    let address = if file.extension().is_some_and(|ending| ending == "json") {
        let parsed: Value = serde_json::from_str(text).map_err(|error| fault(&error.to_string()))?;
        if parsed.get("TLSConfig").is_some_and(|tls| !tls.is_null()) {
            return Err(fault("TLSConfig is not supported yet"));
        }
        parsed.get("Addr").and_then(Value::as_str).ok_or_else(|| fault("it has no Addr"))?.to_owned()
    } else {
        text.trim().to_owned()
    };
    match address.split_once("://") {
        Some(("unix", path)) => Ok(Endpoint::Unix(path.into())),
        Some(("tcp" | "http", host)) => Ok(Endpoint::Tcp(format!("http://{}", host.trim_end_matches('/')))),
        _ => Err(fault(&format!("{address:?} is no unix:// or tcp:// address"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specification_files_name_a_socket_or_an_address() {
        let at = |file: &str, text: &str| match specified(Path::new(file), text) {
            Ok(Endpoint::Unix(path)) => format!("unix {}", path.display()),
            Ok(Endpoint::Tcp(base)) => base,
            Ok(managed) => managed.shown(),
            Err(error) => error.to_string(),
        };
        assert_eq!(at("x.spec", "unix:///run/x.sock\n"), "unix /run/x.sock");
        assert_eq!(at("x.spec", "tcp://127.0.0.1:7979/"), "http://127.0.0.1:7979");
        assert_eq!(at("x.json", r#"{"Name":"x","Addr":"tcp://h:1"}"#), "http://h:1");
        assert!(at("x.json", r#"{"Addr":"tcp://h:1","TLSConfig":{"CAFile":"c"}}"#).contains("TLSConfig"));
        assert!(at("x.spec", "nonsense").contains("\"nonsense\" is no unix:// or tcp:// address"));
    }

    #[test]
    fn a_managed_plugin_is_found_by_name_and_tag_and_its_paths_are_the_hosts() {
        let host = tempfile::tempdir().unwrap();
        let at = |path: &str| host.path().join(path);
        let read = crate::parameters::KeeperParameters::read(&[
            ("etcd_endpoints".to_owned(), "h:1".to_owned()),
            ("drivers".to_owned(), r#"{"ebs": {"aliases": ["rexray/ebs:0.11.4"]}}"#.to_owned()),
        ]);
        let discovery = Discovery {
            sockets: at("sockets"),
            specifications: vec![],
            managed: at("plugins"),
            ..Discovery::new(&read.unwrap().drivers)
        };
        let describe = |id: &str, name: &str, enabled: bool, config: &str| {
            std::fs::create_dir_all(at("plugins").join(id)).unwrap();
            let text = format!(
                r#"{{"plugin":{{"Name":"{name}","Enabled":{enabled},"Config":{config}}},"Rootfs":""}}"#
            );
            std::fs::write(at("plugins").join(id).join("config.json"), text).unwrap();
        };
        let interface = r#"{"Interface":{"Socket":"rexray.sock","Types":["docker.volumedriver/1.0"]},"PropagatedMount":"/var/lib/libstorage/volumes"}"#;
        let found = |name: &str| discovery.find(&Driver::new(name).unwrap());
        assert!(found("ebs").unwrap_err().to_string().contains("ebs.sock"));
        describe("0off", "rexray/ebs:0.11.4", false, interface);
        describe("1other", "rexray/ebs:latest", true, interface);
        std::fs::create_dir(at("plugins/storage")).unwrap();
        assert!(found("ebs").is_err(), "one is off, the other has another tag");
        describe("2on", "rexray/ebs:0.11.4", true, interface);
        for name in ["ebs", "rexray/ebs:0.11.4"] {
            let endpoint = found(name).unwrap();
            assert_eq!(endpoint.shown(), at("sockets/2on/rexray.sock").display().to_string());
            let path = |answered: &str| endpoint.host_path(answered.to_owned()).unwrap();
            let propagated = at("plugins/2on/propagated-mount/vol-1/data").display().to_string();
            assert_eq!(path("/var/lib/libstorage/volumes/vol-1/data"), propagated);
            assert_eq!(path("/mnt/vol-1"), at("plugins/2on/rootfs/mnt/vol-1").display().to_string());
            assert_eq!(
                path("/var/lib/libstorage/volumes2/x"),
                at("plugins/2on/rootfs/var/lib/libstorage/volumes2/x").display().to_string()
            );
            assert!(
                endpoint
                    .host_path("/var/lib/libstorage/volumes/../../x".to_owned())
                    .unwrap_err()
                    .contains("..")
            );
        }
        // A socket of its own comes first.
        std::fs::create_dir(at("sockets")).unwrap();
        std::fs::write(at("sockets/ebs.sock"), "").unwrap();
        assert_eq!(found("ebs").unwrap(), Endpoint::Unix(at("sockets/ebs.sock")));
        describe("2on", "rexray/ebs:0.11.4", true, r#"{"Interface":{"Socket":"../x.sock"}}"#);
        assert!(found("rexray/ebs:0.11.4").unwrap_err().to_string().contains("its socket is called"));
    }

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
}
