//! Builds copies of the protocol core with one seeded mistake each, and lets simulation and model find it:
//! `extvol-mutants [NAME...]`, from the workspace's root. Writes what found them into docs/mutants.md.
//!
//! The mistakes are in the copies alone, below target/mutants; the product has no switch for them. A mistake
//! whose text is not in the core exactly once is an error: the list has to follow the core.

mod list;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use list::{MUTANTS, Mutant};

/// The page with the results. A run of some mutants replaces their lines alone.
const TABLE: &str = "docs/mutants.md";

/// What of `shared` the core needs.
const SHARED: [&str; 8] = [
    "event.rs",
    "keys.rs",
    "parameters.rs",
    "record.rs",
    "store.rs",
    "transaction.rs",
    "volume.rs",
    "protocol",
];

const MAIN: &str = r#"#![allow(warnings)]
mod shared {
    pub mod event; pub mod keys; pub mod parameters; pub mod record; pub mod store; pub mod transaction; pub mod volume;
    pub mod protocol;
}
mod simulation;
mod model;
fn main() { std::process::exit(simulation::hunt::hunt(model::small)) }
"#;

const MANIFEST: &str = r#"[package]
name = "mutants"
version = "0.0.0"
edition = "2024"
publish = false
[workspace]
[dependencies]
futures = "0.3"
percent-encoding = "2"
serde = { version = "1", features = ["derive", "rc"] }
serde_json = "1"
stateright = { version = "0.31", default-features = false }
thiserror = "2"
[profile.release]
opt-level = 1
"#;

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

/// Tries the chosen mutants, or all; answers those that nothing found.
fn run(chosen: &BTreeSet<String>) -> io::Result<Vec<&'static str>> {
    let root = PathBuf::from("target/mutants");
    if root.join("src").exists() {
        fs::remove_dir_all(root.join("src"))?;
    }
    let wanted = |mutant: &&Mutant| chosen.is_empty() || chosen.contains(mutant.name);
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(wanted).collect();
    write_copy(&root, "unchanged", None)?;
    for mutant in &mutants {
        write_copy(&root, mutant.name, Some(mutant))?;
    }
    fs::write(root.join("Cargo.toml"), MANIFEST)?;
    fs::copy("Cargo.lock", root.join("Cargo.lock"))?;
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--bins"])
        .current_dir(&root)
        .status()?;
    if !built.success() {
        return Err(io::Error::other("the copies do not build"));
    }
    let mut survivors = Vec::new();
    let (found, unharmed) = hunt(&root, "unchanged")?;
    if !unharmed {
        return Err(io::Error::other(format!("the unchanged core fails: {found}")));
    }
    let mut rows = rows()?;
    for mutant in &mutants {
        let (verdict, survived) = hunt(&root, mutant.name)?;
        println!("{:<36} {verdict}", mutant.name);
        if survived {
            survivors.push(mutant.name);
        }
        rows.insert(
            mutant.mistake.to_owned(),
            format!("| {} | `{}` | {verdict} |", mutant.mistake, mutant.file),
        );
    }
    let mut table = include_str!("head.md").to_owned();
    for row in MUTANTS.iter().filter_map(|mutant| rows.get(mutant.mistake)) {
        // Writing to a string does not fail.
        let _ = writeln!(table, "{row}");
    }
    fs::write(TABLE, table)?;
    Ok(survivors)
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

/// Lets a copy look for its own mistake; answers what it found, and whether it found nothing.
fn hunt(root: &Path, name: &str) -> io::Result<(String, bool)> {
    let output = Command::new(root.join("target/release").join(name)).output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok((text, false)),
        Some(1) => Ok((text, true)),
        _ => Ok((
            format!(
                "it panics: {}",
                String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default()
            ),
            false,
        )),
    }
}

fn write_copy(root: &Path, name: &str, mutant: Option<&Mutant>) -> io::Result<()> {
    let to = root.join("src/bin").join(name);
    let mut applied = mutant.is_none();
    for part in SHARED {
        copy(&Path::new("shared/src").join(part), &to.join("shared").join(part), &mut |path, text| {
            let mutated = match mutant.filter(|m| path == Path::new("shared/src/protocol").join(m.file)) {
                Some(mutant) => {
                    let times = text.matches(mutant.from).count();
                    if times != 1 {
                        return Err(io::Error::other(format!(
                            "the text of mutant {name} is {times} times in {}: the list has to follow the core",
                            path.display()
                        )));
                    }
                    applied = true;
                    text.replacen(mutant.from, mutant.to, 1)
                }
                None => text.to_owned(),
            };
            Ok(mutated.replace("crate::", "crate::shared::"))
        })?;
    }
    for (part, name) in [("src/simulation", "simulation"), ("tests/model/machine.rs", "model.rs")] {
        copy(&Path::new("integration").join(part), &to.join(name), &mut |_, text| {
            Ok(text
                .replace("shared::", "crate::shared::")
                .replace("integration::simulation", "crate::simulation"))
        })?;
    }
    if !applied {
        return Err(io::Error::other(format!("mutant {name} names a file that is not there")));
    }
    fs::write(to.join("main.rs"), MAIN)
}

fn copy(from: &Path, to: &Path, change: &mut dyn FnMut(&Path, &str) -> io::Result<String>) -> io::Result<()> {
    if from.is_file() {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        return fs::write(to, change(from, &fs::read_to_string(from)?)?);
    }
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if let Some(name) = path.file_name() {
            copy(&path, &to.join(name), change)?;
        }
    }
    Ok(())
}
