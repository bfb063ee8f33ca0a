//! A copy of core, simulation and model, with one mistake or none: a program of a package below target/mutants. The
//! product has no switch for mistakes. One whose text is not in the core exactly once is an error: the list has to
//! follow the core.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;

use super::list::Mutant;

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
mod model { pub mod bounds; pub mod explore; mod fingerprint; mod machine; mod numbers; mod state; }
fn main() { std::process::exit(simulation::hunt::hunt(model::explore::small)) }
"#;

/// Built without what only a debugger or a second build would want.
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
debug = false
incremental = false
[profile.release.package."*"]
opt-level = 3
"#;

/// The package without programs. Those of an earlier run stay: what has not changed is not built again.
pub(crate) fn prepare(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root.join("verdicts"))?;
    fs::create_dir_all(root.join("src"))?;
    write(&root.join("Cargo.toml"), MANIFEST)?;
    // A package has to have a program from the beginning.
    write(&root.join("src/main.rs"), "fn main() {}\n")?;
    write(&root.join("Cargo.lock"), &fs::read_to_string("Cargo.lock")?)
}

/// Writes a copy; answers the digest of its text.
pub(crate) fn write_copy(root: &Path, name: &str, mutant: Option<&Mutant>) -> io::Result<String> {
    let to = root.join("src/bin").join(name);
    let mut applied = mutant.is_none();
    let mut digest = DefaultHasher::new();
    MANIFEST.hash(&mut digest);
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
            let text = mutated.replace("crate::", "crate::shared::");
            text.hash(&mut digest);
            Ok(text)
        })?;
    }
    for (part, name) in [("src/simulation", "simulation"), ("tests/model", "model")] {
        copy(&Path::new("integration").join(part), &to.join(name), &mut |_, text| {
            let text = text
                .replace("shared::", "crate::shared::")
                .replace("integration::simulation", "crate::simulation");
            text.hash(&mut digest);
            Ok(text)
        })?;
    }
    if !applied {
        return Err(io::Error::other(format!("mutant {name} names a file that is not there")));
    }
    write(&to.join("main.rs"), MAIN)?;
    Ok(format!("{:016x}", digest.finish()))
}

fn copy(from: &Path, to: &Path, change: &mut dyn FnMut(&Path, &str) -> io::Result<String>) -> io::Result<()> {
    if from.is_file() {
        return write(to, &change(from, &fs::read_to_string(from)?)?);
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

/// Writes a file unless it is there already: cargo builds again what is newer than what it built.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)
}
