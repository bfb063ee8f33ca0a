//! The control plane of the storage stand-in; see `integration::storage::control`.
//!
//! `extvol-storage --listen ADDR:PORT --dir DIR`. It prints `listening on ADDR:PORT` once it answers (with the real port,
//! if 0 was asked for). SIGTERM and ctrl-C detach what is idle; a kill -9 loses nothing.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use integration::storage::arguments::Arguments;
use integration::storage::control::{ControlPlane, http};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let arguments = Arguments::parse(std::env::args().skip(1), &["listen", "dir"], &[])?;
    let plane = Arc::new(Mutex::new(ControlPlane::open(Path::new(arguments.required("dir")?))?));
    let listener = tokio::net::TcpListener::bind(arguments.required("listen")?).await?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let serving = axum::serve(listener, http::router(Arc::clone(&plane)));
    tokio::select! {
        ended = serving => ended?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Under the lock: a request under way ends first, and none begins after.
    tokio::task::spawn_blocking(move || {
        plane.lock().unwrap_or_else(PoisonError::into_inner).detach_idle();
    })
    .await?;
    Ok(())
}
