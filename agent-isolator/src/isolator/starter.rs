//! Starting a keeper where none answers.
//!
//! Under systemd the keeper must be its own unit: systemd ends a service's children with it, and a
//! keeper that ends with the agent would leave the host's mounts unfenced.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::parameters::IsolatorParameters;

/// Whether systemd runs this host (sd_booted(3)).
fn under_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Checks at load that a keeper can be had.
///
/// # Errors
/// A sentence to refuse loading with.
pub(super) fn check(parameters: &IsolatorParameters) -> Result<(), String> {
    match &parameters.program {
        Some(program) if !under_systemd() => match program.metadata() {
            Ok(found) if found.is_file() => Ok(()),
            Ok(_) => {
                Err(format!("the parameter `keeper` has the value `{}`, which is no file", program.display()))
            }
            Err(error) => Err(format!(
                "the parameter `keeper` has the value `{}`, which cannot be used: {error}",
                program.display()
            )),
        },
        Some(program) => {
            tracing::info!(
                "this host runs systemd: the unit extvol-keeper.service is required, and the parameter \
                 `keeper` ({}) is not used",
                program.display()
            );
            Ok(())
        }
        None => Ok(()),
    }
}

/// Starts a keeper, detached, if that is this module's business; answers what an operator should
/// know, when none can be started.
pub(super) fn start(parameters: &IsolatorParameters) -> Result<(), String> {
    if under_systemd() {
        return Err("start the unit extvol-keeper.service".into());
    }
    let Some(program) = &parameters.program else {
        return Err("start extvol-keeper, or give its path with the parameter `keeper`".into());
    };
    // Its environment is its own: the agent's may name libraries for the agent alone.
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    if let Ok(filter) = std::env::var("EXTVOL_LOG") {
        command.env("EXTVOL_LOG", filter);
    }
    command.arg("--detach");
    command.args(parameters.keeper.given.iter().map(|(name, value)| format!("--{name}={value}")));
    command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/");
    let output = command.stderr(Stdio::piped()).output();
    match output {
        Ok(output) if output.status.success() => {
            tracing::info!("started {}", program.display());
            Ok(())
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} did not start: {}", program.display(), said.trim()))
        }
        Err(error) => Err(format!("{} could not be run: {error}", program.display())),
    }
}
