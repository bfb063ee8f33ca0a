//! Asking a cluster how it is, and waiting until it is so.

use std::net::SocketAddrV4;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use super::error::Result;
use super::wait::until;
use super::{Cluster, network, services};

impl Cluster {
    /// GET of a path of the leading master, decoded; `None` while nobody leads.
    ///
    /// # Errors
    /// [`HostDown`](super::ClusterError::HostDown) when the hub never started.
    pub fn master_json(&self, path: &str) -> Result<Option<Value>> {
        let answer = self.get(services::MASTER, path)?;
        Ok(answer.filter(|(status, _)| *status == 200).and_then(|(_, body)| serde_json::from_str(&body).ok()))
    }

    fn get(&self, address: SocketAddrV4, path: &str) -> Result<Option<(u16, String)>> {
        self.on_hub_network(|| Ok(network::get(address, path).ok()))
    }

    /// The agent id of a host, as the master knows it; `None` while its agent is not registered and active.
    ///
    /// # Errors
    /// As for [`Cluster::master_json`].
    pub fn agent_id(&self, index: usize) -> Result<Option<String>> {
        let agents = self.master_json("/master/slaves")?;
        let agents = agents.as_ref().and_then(|agents| agents["slaves"].as_array());
        let active = agents.into_iter().flatten().find(|agent| {
            agent["hostname"] == self.agents[index].name() && agent["active"] == Value::Bool(true)
        });
        Ok(active.and_then(|agent| agent["id"].as_str()).map(str::to_owned))
    }

    /// Waits until a host's agent is registered and active; its agent id.
    ///
    /// # Errors
    /// [`TimedOut`](super::ClusterError::TimedOut).
    pub fn wait_agent_registered(&self, index: usize, within: Duration) -> Result<String> {
        let what = format!("registration of {}", self.agents[index].name());
        self.wait_for(&what, within, || {
            self.agent_id(index).map_err(|error| error.to_string())?.ok_or("not active".to_owned())
        })
    }

    /// Waits until the master no longer counts a host's agent as active.
    ///
    /// # Errors
    /// [`TimedOut`](super::ClusterError::TimedOut).
    pub fn wait_agent_gone(&self, index: usize, within: Duration) -> Result<()> {
        let what = format!("loss of {}", self.agents[index].name());
        self.wait_for(&what, within, || match self.agent_id(index) {
            Ok(None) => Ok(()),
            Ok(Some(id)) => Err(format!("{id} is active")),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Waits until every agent whose host is up is registered and active.
    ///
    /// # Errors
    /// [`TimedOut`](super::ClusterError::TimedOut).
    pub fn wait_agents_registered(&self) -> Result<()> {
        let up = |index: &usize| self.agents[*index].is_up();
        (0..self.agents.len())
            .filter(up)
            .try_for_each(|index| self.wait_agent_registered(index, self.config.ready_within).map(drop))
    }

    /// Waits until the master leads, that is, answers questions about its agents.
    ///
    /// # Errors
    /// [`TimedOut`](super::ClusterError::TimedOut).
    pub fn wait_master_leading(&self) -> Result<()> {
        self.wait_for("a leading master", self.config.ready_within, || {
            let answer = self.get(services::MASTER, "/master/slaves").map_err(|error| error.to_string())?;
            match answer {
                Some((200, _)) => Ok(()),
                Some((status, body)) => Err(format!("{status} {body}")),
                None => Err("no answer".to_owned()),
            }
        })
    }

    /// Waits until every etcd member is healthy.
    ///
    /// # Errors
    /// [`TimedOut`](super::ClusterError::TimedOut).
    pub fn wait_etcd_healthy(&self) -> Result<()> {
        for address in services::etcd_clients(&self.config) {
            self.wait_for(&format!("a healthy etcd at {address}"), self.config.ready_within, || {
                let answer = self.get(address, "/health").map_err(|error| error.to_string())?;
                match answer {
                    Some((200, body)) if body.contains("true") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })?;
        }
        Ok(())
    }

    /// [`until`], with this cluster's logs.
    ///
    /// # Errors
    /// [`TimedOut`](super::ClusterError::TimedOut).
    pub fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        ask: impl FnMut() -> std::result::Result<T, String>,
    ) -> Result<T> {
        let outcome = until(what, within, &self.logs(), ask);
        self.failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    }
}
