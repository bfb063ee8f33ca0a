//! Compiles the C++ half, against the declarations in `include/`, or against an
//! installed Mesos when `EXTVOL_MESOS_INCLUDE` names its include folder.

use std::env;

/// Everything that is compiled; headers are followed by cxx-build's own rules.
const SOURCES: &[&str] = &[
    "src/completion_shim.cpp",
    "src/convert_shim.cpp",
    "src/host_check_shim.cpp",
    "src/host_expectations_shim.cpp",
    "src/isolator_shim.cpp",
    "src/master_shim.cpp",
    "src/modules_shim.cpp",
];

fn main() {
    println!("cargo::rerun-if-env-changed=EXTVOL_MESOS_INCLUDE");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-changed=src");

    let mesos = env::var("EXTVOL_MESOS_INCLUDE").unwrap_or_else(|_| "include".to_owned());
    cxx_build::bridge("src/bridge.rs")
        .files(SOURCES)
        .include(mesos)
        .std("c++17")
        .flag("-Wall")
        .flag("-Wextra")
        .flag("-fvisibility-inlines-hidden")
        .compile("extvol_glue");
}
