//! A copy of core, simulation and model with all mistakes in it, of which one or none is made when it runs: a package
//! below target/mutants, built once. The product has no such switch.
//!
//! Each function of the core that has mistakes is written with one body for each, and its own. A mistake whose text is not
//! in the core exactly once, within one function, is an error: the list has to follow the core.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::path::Path;

use super::list::{MUTANTS, Mutant};

/// Where the core is.
const CORE: &str = "shared/protocol/src";

const MAIN: &str = r#"#![allow(warnings)]
mod protocol;
mod simulation;
mod model { pub mod bounds; pub mod explore; mod fingerprint; mod machine; mod numbers; mod state; }
static CHOSEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(usize::MAX);
fn chosen() -> usize { CHOSEN.load(std::sync::atomic::Ordering::Relaxed) }
fn main() {
    if let Some(number) = std::env::args().nth(1) {
        CHOSEN.store(number.parse().expect("a number"), std::sync::atomic::Ordering::Relaxed);
    }
    let hint = std::env::args().nth(2).map(|seed| seed.parse().expect("a seed"));
    std::process::exit(simulation::hunt::hunt(hint, model::explore::small))
}
"#;

/// Built without what only a debugger or a second build would want.
const MANIFEST: &str = r#"[package]
name = "mutants"
version = "0.0.0"
edition = "2024"
publish = false
[workspace]
[dependencies]
serde = { version = "1", features = ["derive", "rc"] }
stateright = { version = "0.31", default-features = false }
thiserror = "2"
[profile.release]
opt-level = 2
debug = false
incremental = false
"#;

/// Writes the package of the workspace `tree`; answers the digest of all text but the mistakes'.
pub(crate) fn write_copy(tree: &Path, root: &Path) -> io::Result<String> {
    let source = root.join("src");
    if source.exists() {
        fs::remove_dir_all(&source)?;
    }
    fs::create_dir_all(&source)?;
    let mut digest = DefaultHasher::new();
    MANIFEST.hash(&mut digest);
    let mut applied = 0;
    let core = tree.join(CORE);
    copy(&core, &source.join("protocol"), &mut |path, text| {
        text.hash(&mut digest);
        let of_file = |(_, m): &(usize, &Mutant)| path == core.join(m.file);
        let mutants: Vec<_> = MUTANTS.iter().enumerate().filter(of_file).collect();
        applied += mutants.len();
        Ok(with_mistakes(path, text, &mutants)?
            .replace("crate::", "crate::protocol::")
            .replace(CHOOSE, "crate::chosen"))
    })?;
    fs::rename(source.join("protocol/lib.rs"), source.join("protocol/mod.rs"))?;
    for (part, name) in [("src/simulation", "simulation"), ("tests/model", "model")] {
        copy(&tree.join("integration").join(part), &source.join(name), &mut |_, text| {
            text.hash(&mut digest);
            Ok(text
                .replace("protocol::", "crate::protocol::")
                .replace("integration::simulation", "crate::simulation"))
        })?;
    }
    if applied != MUTANTS.len() {
        return Err(io::Error::other("a mutant names a file that is not there"));
    }
    fs::write(source.join("main.rs"), MAIN)?;
    fs::write(root.join("Cargo.toml"), MANIFEST)?;
    fs::copy(tree.join("Cargo.lock"), root.join("Cargo.lock"))?;
    Ok(format!("{:016x}", digest.finish()))
}

/// Stands for the call that tells which mistake is made, until paths are rewritten.
const CHOOSE: &str = "__chosen__";

/// A function's bodies.
struct Bodies {
    /// Where its own is.
    own: Range<usize>,
    /// Those with a mistake, and which.
    mistaken: Vec<(usize, String)>,
}

/// A file's text with several bodies for the functions that have mistakes.
fn with_mistakes(path: &Path, text: &str, mutants: &[(usize, &Mutant)]) -> io::Result<String> {
    let mut bodies: BTreeMap<usize, Bodies> = BTreeMap::new();
    for (number, mutant) in mutants {
        let found: Vec<_> = text.match_indices(mutant.from).map(|(at, _)| at).collect();
        let body = match found[..] {
            [at] => body_around(text, at..at + mutant.from.len()),
            _ => None,
        };
        let Some(body) = body else {
            return Err(io::Error::other(format!(
                "the text of mutant {} is {} times in {}, or not within one function: the list has to follow the core",
                mutant.name,
                found.len(),
                path.display()
            )));
        };
        let mistaken = text[body.clone()].replacen(mutant.from, mutant.to, 1);
        let own = Bodies { own: body.clone(), mistaken: Vec::new() };
        bodies.entry(body.start).or_insert(own).mistaken.push((*number, mistaken));
    }
    let mut text = text.to_owned();
    for Bodies { own: body, mistaken } in bodies.into_values().rev() {
        let mut all = format!("match {CHOOSE}() {{\n");
        for (number, body) in mistaken {
            // Writing to a string does not fail.
            let _ = writeln!(all, "{number} => {{\n{body}}}");
        }
        let _ = writeln!(all, "_ => {{\n{}}}\n}}", &text[body.clone()]);
        text.replace_range(body, &all);
    }
    Ok(text)
}

/// The body of the function that `part` is in: from the line after the one that ends with its brace, to its last brace.
/// The text is as rustfmt writes it, so that a function ends with the first brace that is as far right as its head.
fn body_around(text: &str, part: Range<usize>) -> Option<Range<usize>> {
    let mut at = 0;
    let mut open: Option<(usize, Option<usize>)> = None;
    for line in text.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let code = line.trim();
        let indent = line.len() - line.trim_start().len();
        let head =
            code.strip_prefix("pub").map_or(code, |rest| rest.split_once("fn ").map_or(code, |_| "fn "));
        if open.is_none() && indent <= 4 && head.starts_with("fn ") {
            open = Some((indent, None));
        }
        if let Some((depth, body)) = &mut open {
            if body.is_none() && code.ends_with('{') && indent == *depth {
                *body = Some(end);
            } else if code == "}" && indent == *depth {
                let body = body.map(|body| body..start);
                if let Some(body) = body.filter(|body| body.start <= part.start && part.end <= body.end) {
                    return Some(body);
                }
                open = None;
            }
        }
    }
    None
}

fn copy(from: &Path, to: &Path, change: &mut dyn FnMut(&Path, &str) -> io::Result<String>) -> io::Result<()> {
    if from.is_file() {
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        return fs::write(to, change(from, &fs::read_to_string(from)?)?);
    }
    let mut paths = fs::read_dir(from)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if let Some(name) = path.file_name() {
            copy(&path, &to.join(name), change)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Without it a change of the core would be noticed only by the long run of all mutants.
    #[test]
    fn each_mistake_has_its_place_in_the_core() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let copy = tempfile::tempdir().expect("a directory");
        super::write_copy(&tree, copy.path()).expect("a copy with all mistakes");
    }
}
