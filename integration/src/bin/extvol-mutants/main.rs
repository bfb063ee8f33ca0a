//! Builds copies of the protocol core with one seeded mistake each, and lets scenarios, simulation and model find it:
//! `extvol-mutants [NAME...]`, from the workspace's root. Writes what found them into docs/mutants.md.
//!
//! ```text
//! list.rs     the mistakes
//! copies.rs   a copy of core, simulation and model with one of them
//! main.rs     builds each, lets it hunt, and keeps what came of it
//! ```
//!
//! Two at a time: cargo builds one while another one hunts. What a copy came to is kept below target/mutants beside the
//! digest of all of its text, so that a run which was interrupted goes on where it was, and a mistake is tried again when
//! anything of core, simulation or model has changed.

mod copies;
mod list;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use copies::{prepare, write_copy};
use list::{MUTANTS, Mutant};

/// The page with the results. A run of some mutants replaces their lines alone.
const TABLE: &str = "docs/mutants.md";

/// For how long one copy may hunt.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// How often a copy that hunts is looked at.
const LOOK: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let chosen: BTreeSet<String> = std::env::args().skip(1).collect();
    match run(&chosen) {
        Ok(survivors) if survivors.is_empty() => ExitCode::SUCCESS,
        Ok(survivors) => {
            eprintln!("not found: {}", survivors.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("extvol-mutants: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a copy came to.
#[derive(Clone)]
struct Verdict {
    found: bool,
    text: String,
}

/// What is shared by those who try mutants.
struct Trial {
    waiting: VecDeque<Option<&'static Mutant>>,
    rows: BTreeMap<String, String>,
    survivors: Vec<&'static str>,
    failed: Option<io::Error>,
}

/// Tries the chosen mutants, or all; answers those that nothing found.
fn run(chosen: &BTreeSet<String>) -> io::Result<Vec<&'static str>> {
    let root = PathBuf::from("target/mutants");
    prepare(&root)?;
    let wanted = |mutant: &&Mutant| chosen.is_empty() || chosen.contains(mutant.name);
    // The unchanged core takes longest: it goes through everything.
    let waiting = std::iter::once(None).chain(MUTANTS.iter().filter(wanted).map(Some)).collect();
    let trial = Mutex::new(Trial { waiting, rows: rows()?, survivors: Vec::new(), failed: None });
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| work(&root, &trial));
        }
    });
    let trial = trial.into_inner().unwrap_or_else(PoisonError::into_inner);
    match trial.failed {
        Some(error) => Err(error),
        None => Ok(trial.survivors),
    }
}

/// Tries one mutant after the other.
fn work(root: &Path, trial: &Mutex<Trial>) {
    let lock = || trial.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(mutant) = lock().waiting.pop_front() else { return };
        let name = mutant.map_or("unchanged", |mutant| mutant.name);
        let verdict = judge(root, name, mutant);
        let mut trial = lock();
        let taken_in = match (verdict, mutant) {
            (Ok(verdict), None) if verdict.found => {
                Err(io::Error::other(format!("the unchanged core fails: {}", verdict.text)))
            }
            (Ok(verdict), None) => {
                println!("{name:<36} {}", verdict.text);
                Ok(())
            }
            (Ok(verdict), Some(mutant)) => take_in(&mut trial, mutant, &verdict),
            (Err(error), _) => Err(error),
        };
        if let Err(error) = taken_in {
            trial.waiting.clear();
            trial.failed.get_or_insert(error);
        }
    }
}

/// Notes a verdict, and writes the page as far as it is.
fn take_in(trial: &mut Trial, mutant: &'static Mutant, verdict: &Verdict) -> io::Result<()> {
    println!("{:<36} {}", mutant.name, verdict.text);
    if !verdict.found {
        trial.survivors.push(mutant.name);
    }
    let row = format!("| {} | `{}` | {} |", mutant.mistake, mutant.file, verdict.text);
    trial.rows.insert(mutant.mistake.to_owned(), row);
    let mut page = include_str!("head.md").to_owned();
    for row in MUTANTS.iter().filter_map(|mutant| trial.rows.get(mutant.mistake)) {
        // Writing to a string does not fail.
        let _ = writeln!(page, "{row}");
    }
    fs::write(TABLE, page)
}

/// The rows of the page as it is, by mistake.
fn rows() -> io::Result<BTreeMap<String, String>> {
    let page = match fs::read_to_string(TABLE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        page => page?,
    };
    let row = |line: &str| {
        let mistake = line.strip_prefix("| ")?.split(" |").next()?;
        Some((mistake.to_owned(), line.to_owned()))
    };
    Ok(page.lines().filter_map(row).collect())
}

/// What a copy finds: from an earlier run, if nothing of its text has changed since.
fn judge(root: &Path, name: &str, mutant: Option<&Mutant>) -> io::Result<Verdict> {
    let digest = write_copy(root, name, mutant)?;
    let kept = root.join("verdicts").join(name);
    if let Ok(text) = fs::read_to_string(&kept)
        && let [known, found, text] = text.splitn(3, '\n').collect::<Vec<_>>()[..]
        && known == digest
    {
        return Ok(Verdict { found: found == "found", text: text.to_owned() });
    }
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--bin", name])
        .current_dir(root)
        .status()?;
    if !built.success() {
        return Err(io::Error::other(format!("the copy {name} does not build")));
    }
    let verdict = hunt(&root.join("target/release").join(name))?;
    fs::write(kept, format!("{digest}\n{}\n{}", if verdict.found { "found" } else { "no" }, verdict.text))?;
    Ok(verdict)
}

/// Lets a copy look for its own mistake.
fn hunt(program: &Path) -> io::Result<Verdict> {
    let mut child = Command::new(program).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + LIMIT;
    // What it prints is a few lines, which a pipe holds.
    while child.try_wait()?.is_none() {
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(Verdict { found: false, text: format!("nothing within {} s", LIMIT.as_secs()) });
        }
        thread::sleep(LOOK);
    }
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(match output.status.code() {
        Some(code @ (0 | 1)) => Verdict { found: code == 0, text },
        _ => {
            let error = String::from_utf8_lossy(&output.stderr);
            let line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            Verdict { found: true, text: format!("it panics: {line}") }
        }
    })
}
