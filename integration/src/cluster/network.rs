//! The network of a cluster: a bridge in the hub's namespace, a veth pair for each agent host.
//!
//! No host has a default route: with one and no name server, every name look-up of an agent takes 10 s.
//! Network namespaces have no name and are held by processes alone, so that nothing of them stays.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::panic;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{ClusterError, Doing, Result};

/// The hub: etcd, the masters, the storage's control plane.
pub const HUB: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The address of an agent host; the first is number 1.
#[must_use]
pub const fn agent_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + number)
}

/// Gives the hub its bridge.
pub(super) fn make_hub(hub: u32) -> Result<()> {
    inside(
        hub,
        &format!(
            "ip link set lo up
             ip link add br0 address 02:00:c0:00:02:01 type bridge stp_state 0 forward_delay 0
             ip address add {HUB}/24 dev br0
             ip link set br0 up"
        ),
    )
}

/// Connects an agent host to the hub. The hardware address is fixed: a host that restarted with another
/// one would be unknown to its neighbours until they look again.
pub(super) fn connect(hub: u32, host: u32, number: u8) -> Result<()> {
    let address = agent_address(number);
    let hardware = format!("02:00:c0:00:02:{:02x}", 10 + number);
    let port = port(number);
    inside(
        hub,
        &format!(
            "ip link add {port} type veth peer name eth0 address {hardware} netns {host}
             ip link set {port} master br0 up
             nsenter --net=/proc/{host}/ns/net sh -ec '
               ip link set lo up
               ip address add {address}/24 dev eth0
               ip link set eth0 up'"
        ),
    )
}

/// Takes the hub's end of a host's cable away; gone already is as good.
pub(super) fn disconnect(hub: u32, number: u8) -> Result<()> {
    let port = port(number);
    inside(hub, &format!("ip link delete {port} 2>/dev/null || ! ip -oneline link show {port} 2>/dev/null"))
}

/// Switches the hub's end of a host's cable.
pub(super) fn set_link(hub: u32, number: u8, up: bool) -> Result<()> {
    let state = if up { "up" } else { "down" };
    inside(hub, &format!("ip link set {} {state}", port(number)))
}

/// Drops TCP segments from and to these ports in a host's own namespace, in place of those of before.
pub(super) fn block_ports(host: u32, ports: &[u16]) -> Result<()> {
    let begin = "nft add table ip blocked; nft delete table ip blocked";
    if ports.is_empty() {
        return inside(host, begin);
    }
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    inside(
        host,
        &format!(
            "{begin}
             nft 'table ip blocked {{
               chain input {{ type filter hook input priority 0; tcp sport {{ {ports} }} drop; tcp dport {{ {ports} }} drop; }}
               chain output {{ type filter hook output priority 0; tcp sport {{ {ports} }} drop; tcp dport {{ {ports} }} drop; }}
             }}'"
        ),
    )
}

fn port(number: u8) -> String {
    format!("port{number}")
}

/// Runs a shell script in the network namespace of a process, but in the harness's pid namespace, where
/// the numbers of the hosts' inits mean something.
fn inside(process: u32, script: &str) -> Result<()> {
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{process}/ns/net"))
        .args(["sh", "-ec", script])
        .output()
        .doing(|| "run nsenter".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::Program {
        command: script.split_whitespace().collect::<Vec<_>>().join(" "),
        ended: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// A network namespace, kept for as long as this value.
#[derive(Debug)]
pub(super) struct Namespace(File);

impl Namespace {
    /// The calling thread's.
    pub(super) fn current() -> Result<Self> {
        Ok(Self(File::open("/proc/thread-self/ns/net").doing(|| "open this network namespace".to_owned())?))
    }

    /// A process's.
    pub(super) fn of(process: u32) -> Result<Self> {
        let path = format!("/proc/{process}/ns/net");
        Ok(Self(File::open(&path).doing(|| format!("open {path}"))?))
    }

    /// Moves the calling thread, and with it the threads and processes that it starts later.
    pub(super) fn enter(&self) -> Result<()> {
        use std::os::fd::AsFd;
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .doing(|| "enter a network namespace".to_owned())
    }

    /// Runs something on a thread in this namespace, whatever the calling thread's is.
    pub(super) fn run<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    what()
                })
                .join()
                .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
        })
    }
}

/// One GET in HTTP/1.0, enough to ask whether a service is ready: the status and the body.
pub(super) fn get(address: SocketAddrV4, path: &str) -> std::io::Result<(u16, String)> {
    // A healthy server on the same machine answers within milliseconds.
    let patience = Duration::from_secs(2);
    let mut connection = TcpStream::connect_timeout(&address.into(), patience)?;
    connection.set_read_timeout(Some(patience))?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
}
