//! The plugin daemon of the storage stand-in; see `integration::storage::plugin`.
//!
//! `extvol-plugin --driver NAME --control URL --host HOST [--socket PATH] [--mount-root DIR] [--preempt] [--faults FILE]`.
//! It prints `listening on PATH` once it answers. Mounts outlive it.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use integration::storage::arguments::Arguments;
use integration::storage::control::client::ControlClient;
use integration::storage::plugin::{Settings, bind, serve};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let names = ["driver", "socket", "control", "host", "mount-root", "faults"];
    let arguments = Arguments::parse(std::env::args().skip(1), &names, &["preempt"])?;
    let driver = arguments.required("driver")?;
    let socket = arguments
        .optional("socket")
        .map_or_else(|| PathBuf::from(format!("/run/docker/plugins/{driver}.sock")), PathBuf::from);
    let settings = Settings {
        host: arguments.required("host")?.to_owned(),
        mount_root: arguments.optional("mount-root").unwrap_or("/var/lib/rexray/volumes").into(),
        preempt: arguments.switch("preempt"),
        faults: arguments.optional("faults").map(PathBuf::from),
    };
    let control = ControlClient::new(arguments.required("control")?)?;
    let listener = bind(&socket)?;
    writeln!(std::io::stdout(), "listening on {}", socket.display())?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = serve(listener, control, settings) => ended?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    std::fs::remove_file(&socket)?;
    Ok(())
}
