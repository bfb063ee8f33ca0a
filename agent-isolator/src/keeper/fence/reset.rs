//! Resets the host, where that is allowed: the last means against a process that cannot be killed or a device that hangs.

use std::path::PathBuf;

/// How the host may be reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reset {
    /// By writing `b` to this file, `/proc/sysrq-trigger`: at once, without a sync, which could hang and would write.
    Sysrq(PathBuf),
    /// By reboot(2), where /proc is not writable. Without a sync, too.
    Reboot,
}

impl Reset {
    /// Does it. Returns only when it did not happen.
    pub(super) fn now(&self) -> Result<(), String> {
        match self {
            Self::Sysrq(path) => {
                std::fs::write(path, "b").map_err(|error| format!("{}: {error}", path.display()))
            }
            Self::Reboot => rustix::system::reboot(rustix::system::RebootCommand::Restart)
                .map_err(|error| format!("reboot: {error}")),
        }
    }
}
