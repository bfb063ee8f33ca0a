//! The ETL demonstration, for a person to watch, on real Mesos hosts on this machine (docs/demo.md):
//!
//! ```text
//! extvol-demo-etl [--fault agent|host|partition|none] [--rows N] [--seed N] [--percent N] [--runs N]
//! extvol-demo-etl --picture FILE      draws the last run
//! ```
//!
//! The fault comes when `--percent` of the rows are loaded. With more than one run that moment is drawn by the seed for each,
//! between 10 and 90, and each run has a cluster and orders of its own. Data of the last run: `target/demo-etl/run.json`.

mod picture;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use integration::cluster::session::with_causes;
use integration::cluster::target_directory;
use integration::etl::orders::Random;
use integration::etl::{Fault, Outcome, Settings, grouped, run};
use integration::storage::arguments::Arguments;
use integration::timeline::Timeline;

/// Fewer rows are loaded before anything could break.
const FEWEST_ROWS: u64 = 10_000;

/// A run like this would show nothing.
#[derive(Debug, thiserror::Error)]
#[error("--percent {percent} must be 1 to 99, and --rows {rows} at least {FEWEST_ROWS}")]
struct Unusable {
    percent: u64,
    rows: u64,
}

fn main() -> ExitCode {
    match start() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("extvol-demo-etl: {}", with_causes(error.as_ref()));
            ExitCode::from(2)
        }
    }
}

/// Whether all has passed.
fn start() -> Result<bool, Box<dyn Error>> {
    let names = ["fault", "rows", "seed", "percent", "runs", "picture"];
    let arguments = Arguments::parse(std::env::args().skip(1), &names, &[])?;
    if let Some(path) = arguments.optional("picture") {
        draw(&fs::read_to_string(data())?, Path::new(path))?;
        return Ok(true);
    }
    let settings = Settings {
        fault: arguments.optional("fault").unwrap_or("agent").parse()?,
        percent: arguments.optional("percent").unwrap_or("40").parse()?,
        rows: arguments.optional("rows").unwrap_or("1000000").parse()?,
        seed: arguments.optional("seed").unwrap_or("1").parse()?,
        rows_per_second: None,
    };
    if !(1..100).contains(&settings.percent) || settings.rows < FEWEST_ROWS {
        return Err(Unusable { percent: settings.percent, rows: settings.rows }.into());
    }
    match arguments.optional("runs").unwrap_or("1").parse()? {
        1 => Ok(play(&settings)?.is_some()),
        runs => play_all(&settings, runs),
    }
}

/// One run, with its verdict; nothing if it has not passed.
fn play(settings: &Settings) -> Result<Option<Outcome>, Box<dyn Error>> {
    let time = Timeline::begin();
    match run(settings, &time) {
        Ok(outcome) => {
            keep(&outcome)?;
            tell_pause(&time, &outcome);
            println!(
                "\netl: passed in {:.0} s. {} good rows, each loaded once; {} bad rows set aside; totals equal; longest \
                 pause {:.1} s; never two writers; nothing is left on this machine.",
                time.seconds(),
                grouped(outcome.good),
                grouped(outcome.bad),
                outcome.throughput.pause.seconds
            );
            Ok(Some(outcome))
        }
        Err(error) => {
            println!("\netl: FAILED: {}", with_causes(&error));
            Ok(None)
        }
    }
}

fn tell_pause(time: &Timeline, outcome: &Outcome) {
    let throughput = &outcome.throughput;
    let pause = &throughput.pause;
    time.line(format_args!(
        "the longest pause that the job saw: {:.1} s, between a batch of {} and the next of {}",
        pause.seconds, pause.from, pause.to
    ));
    let (before, after) = (grouped(throughput.before), grouped(throughput.after));
    time.line(format_args!("rows per second: {before} before it, {after} after it"));
    if outcome.settings.fault != Fault::None && outcome.hosts.len() < 2 {
        time.line(
            "the job was done before anybody had noticed the fault; its second start found nothing to do",
        );
    }
}

/// Many runs, each with a moment of its own; a line for each, and the worst pause.
fn play_all(settings: &Settings, runs: u64) -> Result<bool, Box<dyn Error>> {
    let mut random = Random::new(settings.seed);
    let (mut lines, mut worst, mut passed, mut moved) = (Vec::new(), 0.0_f64, 0, 0);
    for number in 1..=runs {
        let percent = 10 + random.below(81);
        let settings = Settings { percent, seed: settings.seed + number - 1, ..settings.clone() };
        println!(
            "\nRun {number} of {runs}: fault {}, at {percent} %, seed {}",
            settings.fault, settings.seed
        );
        let line = match play(&settings)? {
            Some(outcome) => {
                passed += 1;
                let Outcome { throughput, hosts, .. } = outcome;
                moved += u64::from(hosts.len() > 1);
                worst = worst.max(throughput.pause.seconds);
                format!(
                    "passed, pause {:.1} s, {} rows/s before and {} after it, loaded by {}",
                    throughput.pause.seconds,
                    grouped(throughput.before),
                    grouped(throughput.after),
                    hosts.join(", then ")
                )
            }
            None => "FAILED".to_owned(),
        };
        lines.push(format!("run {number:2}: fault {} at {percent:2} %: {line}", settings.fault));
    }
    println!("\n{}", lines.join("\n"));
    let verdict = if passed == runs { "passed" } else { "FAILED" };
    println!(
        "\netl: {verdict}: {passed} of {runs} runs have passed; in {moved} of them the load has moved to the other host; the \
         worst pause was {worst:.1} s."
    );
    Ok(passed == runs)
}

fn data() -> PathBuf {
    target_directory().join("demo-etl/run.json")
}

fn keep(outcome: &Outcome) -> Result<(), Box<dyn Error>> {
    let data = data();
    let text = serde_json::to_string_pretty(outcome)?;
    if let Some(directory) = data.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&data, &text)?;
    draw(&text, &data.with_extension("svg"))
}

fn draw(text: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    Ok(fs::write(path, picture::svg(&serde_json::from_str(text)?))?)
}
