//! Builds a copy of the protocol core that can make each of the seeded mistakes, and lets scenarios, simulation and model
//! find them: `extvol-mutants [NAME...]`, from the workspace's root. Writes what found them into docs/mutants.md. The unchanged core is
//! tried with all of them, and not with some.
//!
//! ```text
//! list.rs     the mistakes
//! copies.rs   a copy of core, simulation and model with all of them
//! main.rs     builds it, lets each be hunted, two at a time, and keeps what came of it
//! ```
//!
//! What came of a mistake is kept below target/mutants beside the digest of all text that it depends on, so that a run
//! which was interrupted goes on where it was, and all are tried again when core, simulation or model has changed.

mod copies;
mod list;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use copies::write_copy;
use list::{MUTANTS, Mutant};

/// The page with the results. A run of some mutants replaces their lines alone.
const TABLE: &str = "docs/mutants.md";

/// For how long one mistake may be hunted.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// How often a hunt is looked at.
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

/// What came of a mistake.
#[derive(Clone)]
struct Verdict {
    found: bool,
    text: String,
}

/// What is shared by those who try mutants.
struct Trial {
    /// Their numbers; none for the unchanged core.
    waiting: VecDeque<Option<usize>>,
    rows: BTreeMap<String, String>,
    survivors: Vec<&'static str>,
    failed: Option<io::Error>,
}

/// Tries the chosen mutants, or all; answers those that nothing found.
fn run(chosen: &BTreeSet<String>) -> io::Result<Vec<&'static str>> {
    let root = PathBuf::from("target/mutants");
    fs::create_dir_all(root.join("verdicts"))?;
    let digest = write_copy(Path::new("."), &root)?;
    let built = Command::new("cargo").args(["build", "--quiet", "--release"]).current_dir(&root).status()?;
    if !built.success() {
        return Err(io::Error::other("the copy does not build"));
    }
    let is_known = |name: &&String| MUTANTS.iter().any(|mutant| mutant.name == **name);
    if let Some(name) = chosen.iter().find(|name| !is_known(name)) {
        return Err(io::Error::other(format!("there is no mistake {name:?}")));
    }
    let wanted = |number: &usize| chosen.is_empty() || chosen.contains(MUTANTS[*number].name);
    // Of all, last the unchanged core, which goes through everything.
    let unchanged = chosen.is_empty().then_some(None);
    let waiting = (0..MUTANTS.len()).filter(wanted).map(Some).chain(unchanged).collect();
    let trial = Mutex::new(Trial { waiting, rows: rows()?, survivors: Vec::new(), failed: None });
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| work(&root, &digest, &trial));
        }
    });
    let trial = trial.into_inner().unwrap_or_else(PoisonError::into_inner);
    match trial.failed {
        Some(error) => Err(error),
        None => Ok(trial.survivors),
    }
}

/// Tries one mutant after the other.
fn work(root: &Path, digest: &str, trial: &Mutex<Trial>) {
    let lock = || trial.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some(number) = lock().waiting.pop_front() else { return };
        let mutant = number.map(|number| &MUTANTS[number]);
        let name = mutant.map_or("unchanged", |mutant| mutant.name);
        let hint = mutant.and_then(|mutant| seed(lock().rows.get(mutant.mistake)?));
        let verdict = judge(root, digest, name, number, hint);
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

/// The seed that a row of the page names.
fn seed(row: &str) -> Option<String> {
    let (_, rest) = row.split_once(", seed ")?;
    Some(rest.chars().take_while(char::is_ascii_digit).collect())
}

/// What came of a mistake: in an earlier run, if nothing has changed since.
fn judge(
    root: &Path,
    digest: &str,
    name: &str,
    number: Option<usize>,
    hint: Option<String>,
) -> io::Result<Verdict> {
    let mut hasher = DefaultHasher::new();
    (digest, number.map(|number| (MUTANTS[number].from, MUTANTS[number].to))).hash(&mut hasher);
    let digest = format!("{:016x}", hasher.finish());
    let kept = root.join("verdicts").join(name);
    if let Ok(text) = fs::read_to_string(&kept)
        && let [known, found, text] = text.splitn(3, '\n').collect::<Vec<_>>()[..]
        && known == digest
    {
        return Ok(Verdict { found: found == "found", text: text.to_owned() });
    }
    let verdict = hunt(&root.join("target/release/mutants"), number, hint)?;
    fs::write(kept, format!("{digest}\n{}\n{}", if verdict.found { "found" } else { "no" }, verdict.text))?;
    Ok(verdict)
}

/// Lets the copy look for a mistake of its own.
fn hunt(program: &Path, number: Option<usize>, hint: Option<String>) -> io::Result<Verdict> {
    let mut child = Command::new(program)
        .args(number.map(|number| number.to_string()).into_iter().chain(hint))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
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
