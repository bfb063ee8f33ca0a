//! Compiles the C++ half, against the declarations in `include/`, or against an installed Mesos when
//! `EXTVOL_MESOS_INCLUDE` lists its include folders (Mesos's own and those of what its headers include),
//! separated by colons.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    compile(Path::new(""))
}

/// The folder of this crate as seen from the crate that is built: another one around the same C++ half is
/// `tests/panicking/glue`.
pub(crate) fn compile(glue: &Path) -> Result<(), Box<dyn Error>> {
    let (source, include, bridge) = (glue.join("src"), glue.join("include"), glue.join("src/bridge.rs"));
    println!("cargo::rerun-if-env-changed=EXTVOL_MESOS_INCLUDE");
    println!("cargo::rerun-if-changed={}", include.display());
    println!("cargo::rerun-if-changed={}", bridge.display());

    let mut sources = Vec::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("cpp") => sources.push(path.clone()),
            Some("hpp") => {}
            _ => continue,
        }
        println!("cargo::rerun-if-changed={}", path.display());
    }
    // The order in the archive, so that the same tree gives the same library.
    sources.sort();

    let includes: Vec<PathBuf> = match env::var_os("EXTVOL_MESOS_INCLUDE") {
        Some(folders) => env::split_paths(&folders).collect(),
        None => vec![include],
    };

    // The bridge names its headers with this crate's name, whichever crate is built.
    cxx_build::CFG.include_prefix = "cxx-glue";
    cxx_build::bridge(bridge)
        .files(sources)
        .includes(includes)
        .include(glue.join(".."))
        .std("c++17")
        .flag("-Wall")
        .flag("-Wextra")
        .compile("extvol_glue");
    Ok(())
}
