//! Finding plugins, by Docker's own rules: sockets, specification files, and the plugins that a Docker engine manages.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use shared::volume::Driver;

use super::endpoint::{Endpoint, Plugins};
use super::managed::ManagedPlugins;
use super::specification::specified;
use super::{DriverError, files};
use crate::parameters::Drivers;

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
    /// was restarted, or a link that was turned, may lead elsewhere than before. Reads files: not for a thread that others wait
    /// for.
    pub(super) fn find(&self, driver: &Driver) -> Result<Endpoint, DriverError> {
        let look = Look { discovery: self, managed: OnceCell::new() };
        let endpoint = look.find_by_any_name(driver)?;
        let place = endpoint.place();
        let is_there = |other: &&Driver| look.find_named(other).is_ok_and(|other| other.place() == place);
        match self.known.apart_from(driver).find(is_there) {
            None => Ok(endpoint),
            Some(other) => Err(DriverError::Coincides {
                driver: driver.clone(),
                other: other.clone(),
                endpoint: endpoint.shown(),
            }),
        }
    }
}

/// One look at this host, for all names that have to do with a call.
struct Look<'d> {
    discovery: &'d Discovery,
    /// What an engine manages is read once, and not unless a name asks for it.
    managed: OnceCell<ManagedPlugins>,
}

impl Look<'_> {
    fn find_by_any_name(&self, driver: &Driver) -> Result<Endpoint, DriverError> {
        let mut fault = match self.find_named(driver) {
            Err(missing @ DriverError::NotFound { .. }) => missing,
            found => return found,
        };
        let aliases = &self.discovery.aliases;
        let canonical = aliases.get(driver).unwrap_or(driver);
        let others = aliases.iter().filter(|(_, of)| *of == canonical).map(|(alias, _)| alias);
        for other in std::iter::once(canonical).chain(others) {
            match self.find_named(other) {
                Ok(found) => return Ok(found),
                // What is wrong with the one that is there says more than that another is not.
                Err(found) if matches!(fault, DriverError::NotFound { .. }) => {
                    if !matches!(found, DriverError::NotFound { .. }) {
                        fault = found;
                    }
                }
                Err(_) => {}
            }
        }
        Err(fault)
    }

    /// By Docker's own rules of discovery.
    fn find_named(&self, driver: &Driver) -> Result<Endpoint, DriverError> {
        let Discovery { sockets, specifications, managed, .. } = self.discovery;
        let name = driver.as_str();
        // Only a managed plugin has a long name, and its socket another one.
        if name.contains(['/', ':']) {
            return self.managed.get_or_init(|| ManagedPlugins::read(managed)).find(driver, sockets);
        }
        let mut looked_for = Vec::new();
        for socket in [sockets.join(format!("{name}.sock")), sockets.join(name).join(format!("{name}.sock"))]
        {
            if socket.exists() {
                return Ok(Endpoint::Unix(socket));
            }
            looked_for.push(socket);
        }
        for directory in specifications {
            for ending in ["spec", "json"] {
                let file = directory.join(format!("{name}.{ending}"));
                let fault = |fault: String| Err(DriverError::Specification { file: file.clone(), fault });
                match files::read(&file).map(String::from_utf8) {
                    Ok(Ok(text)) => return specified(&file, &text),
                    Ok(Err(_)) => return fault("it is no UTF-8".into()),
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                    {
                        looked_for.push(file);
                    }
                    Err(error) => return fault(error.to_string()),
                }
            }
        }
        let looked_for = looked_for.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        Err(DriverError::NotFound { driver: driver.clone(), looked_for })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        // Under each name of it the fault is told, and not that there is no such file.
        std::fs::remove_file(at("sockets/ebs.sock")).unwrap();
        let error = found("ebs").unwrap_err().to_string();
        assert!(error.contains("2on/config.json") && error.contains("its socket is called"), "{error}");
        std::fs::write(at("plugins/2on/config.json"), r#"{"plugin":{"Name":"#).unwrap();
        let error = found("ebs").unwrap_err().to_string();
        assert!(error.contains("2on/config.json") && error.contains("cannot be read: EOF"), "{error}");
        assert!(error.contains("no other description is of an enabled plugin rexray/ebs:0.11.4"), "{error}");
        // A broken neighbour hides nobody.
        describe("3on", "rexray/ebs:0.11.4", true, interface);
        assert_eq!(found("ebs").unwrap().shown(), at("sockets/3on/rexray.sock").display().to_string());
    }

    #[test]
    fn a_specification_that_is_there_and_cannot_be_used_is_told_of() {
        let host = tempfile::tempdir().unwrap();
        let read = crate::parameters::KeeperParameters::read(&[("etcd_endpoints".into(), "h:1".into())]);
        let discovery = Discovery {
            sockets: host.path().join("none"),
            specifications: vec![host.path().to_owned()],
            managed: host.path().join("none"),
            ..Discovery::new(&read.unwrap().drivers)
        };
        let found = |name: &str| discovery.find(&Driver::new(name).unwrap()).unwrap_err().to_string();
        std::fs::write(host.path().join("x.spec"), b"tcp://\xff").unwrap();
        std::fs::write(host.path().join("long.json"), " ".repeat(2 << 20)).unwrap();
        std::fs::create_dir(host.path().join("d.spec")).unwrap();
        for (name, why) in [("x", "no UTF-8"), ("long", "longer than 1 MiB"), ("d", "it is no file")] {
            assert!(
                found(name).contains("does not say where the plugin listens") && found(name).contains(why)
            );
        }
        assert!(found("y").contains("no Docker volume plugin named y was found"));
    }
}
