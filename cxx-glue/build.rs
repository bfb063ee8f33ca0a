//! Compiles the C++ half, against the declarations in `include/`, or against an installed Mesos when
//! `EXTVOL_MESOS_INCLUDE` lists its include folders (Mesos's own and those of what its headers include),
//! separated by colons.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=EXTVOL_MESOS_INCLUDE");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=src/bridge.rs");

    let mut sources = Vec::new();
    for entry in fs::read_dir("src")? {
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
        None => vec![PathBuf::from("include")],
    };

    cxx_build::bridge("src/bridge.rs")
        .files(sources)
        .includes(includes)
        .std("c++17")
        .flag("-Wall")
        .flag("-Wextra")
        .compile("extvol_glue");
    Ok(())
}
