//! Where plugins listen, and which of them may be found at one place.
//!
//! A volume has one lease, under the name of one driver. Two plugins that serve one storage give each of its volumes two
//! names, and so two leases; and a driver that is found where its preempting plugin listens takes every volume that it
//! mounts away from whoever has it. What a plugin stores cannot be seen; that two names lead to one socket or one address
//! can. Such names are aliases, or neither is called.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use reqwest::Url;
use shared::volume::Driver;

use super::tls::Tls;
use crate::parameters::Drivers;

/// Where a plugin listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(Address),
    Tls(Address, Tls),
    Managed(Managed),
}

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// As in an URL: an address of IPv6 stands in brackets.
    host: String,
    pub(super) port: u16,
}

impl Address {
    /// Reads what follows the scheme. As Docker does, it looks at host and port alone.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn read(scheme: &str, rest: &str) -> Result<Self, String> {
        // Whoever writes a password there does not want to see it in a log.
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err("its address has a user name, which no plugin is asked with".into());
        }
        let url = Url::parse(&format!("{scheme}://{authority}"))
            .map_err(|error| format!("its address {authority:?} names no host and port: {error}"))?;
        let host = url.host_str().filter(|host| !host.is_empty());
        host.zip(url.port_or_known_default())
            .map(|(host, port)| Self { host: host.to_owned(), port })
            .ok_or_else(|| format!("its address {authority:?} names no host"))
    }

    /// A name, or the address of a host without brackets.
    pub(super) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The one form of it, whatever is spoken there.
    fn place(&self) -> String {
        let host = self.host().trim_end_matches('.').to_ascii_lowercase();
        let host = match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if address.is_loopback() => Ipv4Addr::LOCALHOST.to_string(),
            Ok(address) => address.to_string(),
            Err(_) if host == "localhost" => Ipv4Addr::LOCALHOST.to_string(),
            Err(_) => host,
        };
        format!("{host} {}", self.port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A plugin that a Docker engine manages: a container of its own, whose paths are not the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Managed {
    pub(super) socket: PathBuf,
    /// The engine's directory of it.
    pub(super) directory: PathBuf,
    /// Below this path of the plugin's what it mounts is seen by the host.
    pub(super) propagated: Option<PathBuf>,
}

/// What two endpoints have in common when they are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Device and inode, behind all links.
    Socket(u64, u64),
    /// A socket that cannot be looked at.
    Path(PathBuf),
    Address(String),
}

impl Managed {
    /// Where its socket is.
    pub(crate) fn socket_directory(&self) -> Option<&Path> {
        self.socket.parent()
    }
}

impl Endpoint {
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Unix(path) | Self::Managed(Managed { socket: path, .. }) => path.display().to_string(),
            Self::Tcp(address) => format!("http://{address}"),
            Self::Tls(address, _) => format!("https://{address}"),
        }
    }

    /// Where the host has what the plugin says that it has mounted at `path`. Docker's own rule (`ScopedPath` of its managed plugins).
    pub(crate) fn host_path(&self, path: String) -> Result<String, String> {
        let Self::Managed(Managed { directory, propagated, .. }) = self else { return Ok(path) };
        let inside = Path::new(&path);
        if inside.components().any(|part| part == Component::ParentDir) {
            return Err("a path of a managed plugin may not hold `..`".into());
        }
        let seen = propagated.as_ref().and_then(|propagated| inside.strip_prefix(propagated).ok());
        let on_host = match seen {
            Some(below) => directory.join("propagated-mount").join(below),
            None => directory.join("rootfs").join(inside.strip_prefix("/").unwrap_or(inside)),
        };
        on_host.into_os_string().into_string().map_err(|_| "it is no UTF-8 on the host".into())
    }

    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Unix(path) | Self::Managed(Managed { socket: path, .. }) => match std::fs::metadata(path) {
                Ok(file) => Place::Socket(file.dev(), file.ino()),
                Err(_) => Place::Path(path.clone()),
            },
            Self::Tcp(address) | Self::Tls(address, _) => Place::Address(address.place()),
        }
    }
}

/// The plugins that this host knows by name, and the storage of each: its driver, and whether it takes volumes away.
#[derive(Clone, Debug, Default)]
pub(super) struct Plugins {
    known: BTreeMap<Driver, (Driver, bool)>,
}

impl Plugins {
    pub(super) fn new(drivers: &Drivers) -> Self {
        let rules = &drivers.naming;
        let served = drivers.served.iter().map(|driver| (driver.clone(), (driver.clone(), false)));
        let aliases = rules
            .driver_aliases
            .iter()
            .flat_map(|(alias, of)| [alias, of].map(|name| (name.clone(), (of.clone(), false))));
        let preempting = drivers.preempt.iter().map(|(of, plugin)| (plugin.clone(), (of.clone(), true)));
        Self { known: served.chain(aliases).chain(preempting).collect() }
    }

    /// Those that must not be found where this one is.
    pub(super) fn apart_from<'a>(&'a self, driver: &'a Driver) -> impl Iterator<Item = &'a Driver> {
        let own = self.known.get(driver);
        self.known
            .iter()
            .filter(move |(name, storage)| *name != driver && Some(*storage) != own)
            .map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Driver {
        Driver::new(name).unwrap()
    }

    #[test]
    fn aliases_of_one_driver_may_be_one_plugin_and_no_others_may() {
        let text = r#"{"ebs": {"aliases": ["rexray", "old"], "preempt_plugin": "ebs-p"}, "s": {}}"#;
        let pairs = [("etcd_endpoints", "h:1"), ("drivers", text)];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let plugins = Plugins::new(&crate::parameters::KeeperParameters::read(&pairs).unwrap().drivers);
        let apart = |driver: &str| {
            let driver = name(driver);
            let names: Vec<_> = plugins.apart_from(&driver).map(|name| name.as_str().to_owned()).collect();
            names.join(" ")
        };
        assert_eq!(apart("ebs"), "ebs-p s");
        assert_eq!(apart("rexray"), "ebs-p s");
        assert_eq!(apart("ebs-p"), "ebs old rexray s");
        assert_eq!(apart("unknown"), "ebs ebs-p old rexray s");
    }

    #[test]
    fn an_address_is_one_however_it_is_spelt() {
        let place = |address: &str| {
            let (scheme, rest) = address.split_once("://").unwrap();
            let read = Address::read(scheme, rest).unwrap();
            let endpoint =
                if scheme == "https" { Endpoint::Tls(read, Tls::default()) } else { Endpoint::Tcp(read) };
            endpoint.place()
        };
        for same in [
            "http://localhost:7979",
            "http://[::1]:7979",
            "http://LOCALHOST.:7979",
            "http://127.1:7979/x",
            "http://[::ffff:127.0.0.1]:7979",
            // A port is one program's, whatever that speaks.
            "https://localhost:7979",
        ] {
            assert_eq!(place(same), place("http://127.0.0.1:7979"), "{same}");
        }
        assert_eq!(place("https://Plugin.example"), place("http://plugin.example:443/x"));
        assert_ne!(place("https://plugin.example"), place("http://plugin.example"));
        assert_ne!(place("http://127.0.0.1:7979"), place("http://127.0.0.1:7980"));
        assert_ne!(place("http://a:1"), place("http://b:1"));
    }
}
