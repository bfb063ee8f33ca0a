//! Power and cable of a host: its start, its death, its link.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::PoisonError;
use std::time::Duration;

use super::{Host, random_uuid, write};
use crate::cluster::error::{ClusterError, Doing, Result};
use crate::cluster::network;
use crate::cluster::services::{AGENT_PORT, MASTER, STANDBY, etcd_port};
use crate::cluster::wait::until;

/// How long an init may take from its start to its first answer.
const BOOT: Duration = Duration::from_secs(20);
/// How long a service may take to become ready.
const SERVICE: Duration = Duration::from_secs(30);

/// What a host may be cut off from alone ([`Host::cut_off_from`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// All members of etcd.
    Etcd,
    /// The masters, both ways.
    Masters,
}

impl Host {
    /// Starts a host that was killed, with all its services: a new boot id, an empty `/run`, the disk as it was.
    ///
    /// # Errors
    /// When it runs already, or a service cannot be started.
    pub fn start(&self) -> Result<()> {
        self.boot()?;
        self.connect()?;
        self.start_services()
    }

    /// A power loss: the cable goes first, so that no dying process says goodbye. Back when nothing of the host
    /// runs, containers included. A host that is down stays down.
    ///
    /// # Errors
    /// When a process of the host cannot be killed.
    pub fn kill(&self) -> Result<()> {
        let mut init = self.init.lock().unwrap_or_else(PoisonError::into_inner);
        if init.is_none() {
            return Ok(());
        }
        network::set_link(self.hub_pid()?, self.number, false)?;
        self.guardian.kill_host(&self.name)?;
        *init = None;
        network::disconnect(self.hub_pid()?, self.number)
    }

    /// Takes the host's cable out (a partition), or puts it in.
    ///
    /// # Errors
    /// [`ClusterError::HostDown`], or when `ip` fails.
    pub fn set_link(&self, up: bool) -> Result<()> {
        self.init_pid()?;
        network::set_link(self.hub_pid()?, self.number, up)
    }

    /// Drops what is on the way between this host and these servers, and nothing else; of none, all gets through again.
    ///
    /// # Errors
    /// [`ClusterError::HostDown`], or when `nft` fails.
    pub fn cut_off_from(&self, servers: &[Server]) -> Result<()> {
        let ports = |server: &Server| match server {
            // As many members as an etcd cluster may sensibly have.
            Server::Etcd => (0..7).map(etcd_port).collect(),
            Server::Masters => vec![MASTER.port(), STANDBY.port(), AGENT_PORT],
        };
        let ports: Vec<_> = servers.iter().flat_map(ports).collect();
        network::block_ports(self.init_pid()?, &ports)
    }

    /// Connects the host to the hub.
    pub(in crate::cluster) fn connect(&self) -> Result<()> {
        network::connect(self.hub_pid()?, self.init_pid()?, self.number)
    }

    /// Says where the cable goes.
    pub(in crate::cluster) fn know_hub(&self, init: u32) {
        self.hub.get_or_init(|| init);
    }

    /// The hub itself has no cable to pull.
    fn hub_pid(&self) -> Result<u32> {
        self.hub.get().copied().ok_or_else(|| ClusterError::HostDown { host: "hub".to_owned() })
    }

    /// Starts the namespaces and the init; no service yet.
    pub(in crate::cluster) fn boot(&self) -> Result<u32> {
        let mut init = self.init.lock().unwrap_or_else(PoisonError::into_inner);
        if init.is_some() {
            return Err(self.refused("runs already"));
        }
        write(&self.directory.join("boot_id"), &format!("{}\n", random_uuid()?))?;
        // A runtime directory is on a file system in memory, which a restart empties.
        let runtime = self.directory.join("mesos/agents/0/run");
        gone_already(fs::remove_dir_all(&runtime)).doing_with("remove", &runtime)?;
        let socket = self.directory.join("init.sock");
        gone_already(fs::remove_file(&socket)).doing_with("remove", &socket)?;
        let pid = self.guardian.start_host(&self.name, &self.directory.join("setup.json"))?;
        *init = Some(pid);
        drop(init);
        let log = self.logs.join(format!("{}-init.log", self.name));
        until(&format!("the init of {}", self.name), BOOT, &self.logs, || {
            UnixStream::connect(&socket).map(drop).map_err(|error| {
                let said = fs::read_to_string(&log).unwrap_or_default();
                format!("{error} {}", said.trim())
            })
        })?;
        Ok(pid)
    }

    /// Starts every service of the host, in order, each when the one before is ready.
    pub(in crate::cluster) fn start_services(&self) -> Result<()> {
        for service in &self.services {
            self.start_service(&service.name)?;
            self.wait_service_ready(&service.name, SERVICE)?;
        }
        Ok(())
    }
}

fn gone_already(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
