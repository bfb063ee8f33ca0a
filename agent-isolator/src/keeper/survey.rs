//! Whether the plugins of this host do what its parameters say of them: for the keeper's log at its start, and for
//! `extvol doctor`. It changes nothing, and nothing is decided by it.

use std::time::Duration;

use shared::volume::Driver;

use super::driver::{DockerPlugins, DriverError};
use super::sentence;
use crate::parameters::{Drivers, Storage};

/// A plugin's Activate touches no volume, and nor do its Capabilities.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it is to be.
    Well,
    /// Some fault of a host will need a person.
    Warning,
    /// Tasks fail.
    Fault,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How well it is.
    pub level: Level,
    /// What it is.
    pub what: String,
    /// What to do about it; empty where all is well.
    pub advice: String,
}

impl Finding {
    fn new(level: Level, what: String, advice: impl Into<String>) -> Self {
        Self { level, what, advice: advice.into() }
    }
}

/// Looks at one driver that this host serves.
pub async fn driver(plugins: &DockerPlugins, drivers: &Drivers, driver: &Driver) -> Vec<Finding> {
    let mut findings = vec![match plugins.activate(driver, TIMEOUT).await {
        Ok(()) => Finding::new(Level::Well, format!("the volume plugin {driver} answers"), ""),
        Err(error) => {
            let found = Finding::new(
                Level::Fault,
                format!("{}, and this host serves the driver {driver}", sentence(&error)),
                advice(&error, "or take it out of the parameter `drivers`"),
            );
            // What cannot be asked is not judged.
            return vec![found];
        }
    }];
    if let Some(plugin) = drivers.preempt.get(driver) {
        findings.push(match plugins.activate(plugin, TIMEOUT).await {
            Ok(()) => Finding::new(
                Level::Well,
                format!("the plugin {plugin}, which takes volumes of {driver} away from hosts that are lost, answers"),
                "",
            ),
            Err(error) => Finding::new(
                Level::Fault,
                format!(
                    "{}: until it does, no volume of {driver} follows from a host that is lost",
                    sentence(&error)
                ),
                advice(&error, "or take this preempt_plugin out of `drivers`"),
            ),
        });
    } else if drivers.of(driver).storage == Storage::Attached {
        findings.push(scope(plugins, driver).await);
    }
    findings
}

fn advice(error: &DriverError, otherwise: &str) -> String {
    match error {
        DriverError::Coincides { .. } => "give each a plugin of its own, or, if they serve one storage, make the one an \
                                          alias of the other in `drivers`; a plugin that takes volumes away needs a socket \
                                          of its own"
            .into(),
        _ => format!("start it, or see its log, {otherwise}"),
    }
}

/// What follows from that nobody takes volumes of this driver away.
async fn scope(plugins: &DockerPlugins, driver: &Driver) -> Finding {
    let advice = format!(
        "give it a preempt_plugin in `drivers` (README, Installing); or, if nothing of its storage is attached to hosts, as of \
         NFS, say there that the storage of {driver} is shared"
    );
    let what = match plugins.scope(driver, TIMEOUT).await {
        Ok(scope) if scope == "global" => format!(
            "the driver {driver} attaches volumes to one host at a time (scope global), and no preempt_plugin \
             takes them away: the volume of a host that is lost follows nobody until it is detached by hand"
        ),
        Ok(scope) => format!(
            "the volumes of the driver {driver} are its host's own (scope {scope}), and no preempt_plugin takes \
             them away: the volume of a host that is lost follows nobody, and what has its name elsewhere is another"
        ),
        Err(error) => {
            format!("whether the driver {driver} attaches volumes cannot be told: {}", sentence(&error))
        }
    };
    Finding::new(Level::Warning, what, advice)
}
