//! Compiles the C++ half of cxx-glue for this crate.

use std::error::Error;
use std::path::Path;

#[path = "../../../build.rs"]
#[expect(dead_code, reason = "its main is not this one's")]
mod cxx_glue;

fn main() -> Result<(), Box<dyn Error>> {
    cxx_glue::compile(Path::new("../../.."))
}
