//! A Docker volume plugin over the control plane that answers as RexRay 0.11.4 does, its faults included.
//!
//! What it deliberately is not: a good plugin. Use counts are in memory and lost with the process, `ID` is ignored,
//! Unmount is not idempotent, a Detach names no host, Path and Get never tell a mount point. The product must be safe
//! on top of exactly this. [`faults`] adds what a worse day brings.
//!
//! Mounts are plain mounts in the daemon's own mount namespace; they outlive the daemon, as RexRay's do.

pub mod faults;
mod filesystem;
mod protocol;
mod volumes;

use std::io;
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixListener;

use super::control::client::ControlClient;
use protocol::Plugin;
use volumes::Volumes;

/// How a daemon is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name that this host gives itself towards the storage.
    pub host: String,
    /// Volumes are mounted at `<mount_root>/<name>`.
    pub mount_root: PathBuf,
    /// Whether a volume of another host is taken by force.
    pub preempt: bool,
    /// A file of [`faults::Faults`], read again at each request.
    pub faults: Option<PathBuf>,
}

/// Binds the plugin's socket. The socket of a daemon that was killed is replaced, that of a living one is not.
///
/// # Errors
/// A daemon answers there, or the socket cannot be made.
pub fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if socket.exists() {
        if BlockingUnixStream::connect(socket).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another daemon answers on {}", socket.display()),
            ));
        }
        std::fs::remove_file(socket)?;
    }
    UnixListener::bind(socket)
}

/// Answers on `listener` for ever.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: UnixListener, control: ControlClient, settings: Settings) -> io::Result<()> {
    let plugin = Arc::new(Plugin::new(settings.faults.clone(), Volumes::new(control, settings)));
    axum::serve(listener, protocol::router(plugin)).await
}
