//! Guardian of a cluster, init of a host and the init's server, by its first argument. Only the harness runs
//! it; `extvol-cluster` is the program for people.

use std::path::Path;
use std::process::ExitCode;

use integration::cluster::{guard, init};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["guard", directory] => guard::run(Path::new(directory)),
        ["init", setup] => init::run(Path::new(setup)),
        ["serve", setup] => init::serve(Path::new(setup)),
        _ => {
            eprintln!("usage: extvol-host-init guard DIRECTORY | init SETUP | serve SETUP");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("extvol-host-init {}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}
