//! Keeps the apps of its JSON files running on a Mesos cluster, and prints a line on every change.
//!
//! `extvol-scheduler --master http://HOST:PORT[,...] [--keep] [--no-checkpoint] [--name NAME] APP.json...`
//!
//! Ctrl-C or SIGTERM ends the framework and its tasks; with `--keep` it disconnects and leaves them running until the
//! failover timeout.

use std::{
    process::ExitCode,
    time::{Duration, Instant, UNIX_EPOCH},
};

use integration::scheduler::{App, Scheduler, SchedulerConfig, TaskEvent, WaitError};

const USAGE: &str =
    "usage: extvol-scheduler --master URL[,URL...] [--keep] [--no-checkpoint] [--name NAME] APP.json...";

/// How often the printing loop looks whether it was told to end.
const SIGNAL_CHECK: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    match Arguments::read(std::env::args().skip(1)).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("extvol-scheduler: {error}");
            ExitCode::FAILURE
        }
    }
}

/// An error for a person; its causes are part of the text.
type Failure = String;

fn explain(error: &dyn std::error::Error) -> Failure {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[derive(Default)]
struct Arguments {
    master: String,
    keep: bool,
    config: SchedulerConfig,
    files: Vec<String>,
}

impl Arguments {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut read = Self::default();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value; {USAGE}"));
            match argument.as_str() {
                "--master" => read.master = value()?,
                "--name" => read.config.name = value()?,
                "--keep" => read.keep = true,
                "--no-checkpoint" => read.config.checkpoint = false,
                "--help" | "-h" => return Err(USAGE.into()),
                flag if flag.starts_with("--") => return Err(format!("unknown flag {flag}; {USAGE}")),
                _ => read.files.push(argument),
            }
        }
        if read.master.is_empty() || read.files.is_empty() { Err(USAGE.into()) } else { Ok(read) }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut apps = Vec::new();
    for file in &arguments.files {
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        apps.push(App::from_json(&text).map_err(|error| format!("{file}: {}", explain(&error)))?);
    }
    let scheduler =
        Scheduler::start(&arguments.master, arguments.config.clone()).map_err(|error| explain(&error))?;
    scheduler.run_together(apps).map_err(|error| explain(&error))?;
    let told = signals().map_err(|error| format!("signals: {error}"))?;
    let mut seen = 0;
    while told.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        match scheduler.events_after(seen, Instant::now() + SIGNAL_CHECK) {
            Ok(events) => {
                seen += events.len();
                events.iter().for_each(print);
            }
            Err(WaitError::Deadline { .. }) => {}
            Err(WaitError::Ended { reason, .. }) => return Err(reason),
        }
    }
    if arguments.keep {
        return Ok(());
    }
    scheduler.teardown().map_err(|error| explain(&error))
}

/// Tells once when Ctrl-C or SIGTERM has come.
fn signals() -> std::io::Result<std::sync::mpsc::Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        // Whoever listened may be gone: then there is nobody to tell.
        let _ = tell.send(());
    });
    Ok(told)
}

/// `10:02:11.345Z app TASK_STATE on host (task id): message [REASON]`.
fn print(event: &TaskEvent) {
    let since = event.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let day = since.as_secs() % 86_400;
    let (hours, minutes, seconds) = (day / 3600, day / 60 % 60, day % 60);
    let host = event.hostname.as_deref().or(event.agent_id.as_deref()).unwrap_or("?");
    let message = event.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    let reason = event.reason.as_ref().map(|reason| format!(" [{reason}]")).unwrap_or_default();
    println!(
        "{hours:02}:{minutes:02}:{seconds:02}.{:03}Z {} {} on {host} ({}){message}{reason}",
        since.subsec_millis(),
        event.app_id,
        event.state,
        event.task_id
    );
}
