//! What breaks under the job.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Result;
use crate::cluster::Host;
use crate::timeline::Timeline;

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// The agent's process is killed; its container runs on.
    Agent,
    /// The host loses its power.
    Host,
    /// The host's cable is pulled out.
    Partition,
    /// Nothing.
    None,
}

/// There is no such fault.
#[derive(Debug, thiserror::Error)]
#[error("fault {name} is unknown; known are agent, host, partition, none")]
pub struct UnknownFault {
    /// As it was given.
    pub name: String,
}

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownFault> {
        match name {
            "agent" => Ok(Self::Agent),
            "host" => Ok(Self::Host),
            "partition" => Ok(Self::Partition),
            "none" => Ok(Self::None),
            _ => Err(UnknownFault { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Host => "host",
            Self::Partition => "partition",
            Self::None => "none",
        })
    }
}

impl Fault {
    /// Breaks it, and says so.
    pub(super) fn strike(self, host: &Host, time: &Timeline) -> Result<()> {
        let name = host.name();
        match self {
            Self::Agent => {
                host.kill_agent()?;
                time.line(format_args!("kill -9 of the agent of {name}; its container runs on"));
            }
            Self::Host => {
                host.kill()?;
                time.line(format_args!("{name} has no power any more: its init was killed, with all on it"));
            }
            Self::Partition => {
                host.set_link(false)?;
                time.line(format_args!("the cable of {name} is out"));
            }
            Self::None => time.line("nothing breaks in this run"),
        }
        Ok(())
    }

    /// What the picture says.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Agent => "agent killed",
            Self::Host => "host without power",
            Self::Partition => "cable pulled out",
            Self::None => "no fault",
        }
    }
}
