//! The test writer; see `integration::witness::writer`.
//!
//! `extvol-writer --volume NAME --directory DIR --journals DIR [--file NAME] [--pause-ms N]`.

use std::error::Error;
use std::time::Duration;

use integration::storage::arguments::Arguments;
use integration::witness::writer::{Settings, run};

fn main() -> Result<(), Box<dyn Error>> {
    let names = ["volume", "directory", "journals", "file", "pause-ms"];
    let arguments = Arguments::parse(std::env::args().skip(1), &names, &[])?;
    let pause = arguments.optional("pause-ms").unwrap_or("20").parse()?;
    let settings = Settings {
        volume: arguments.required("volume")?.to_ascii_lowercase(),
        directory: arguments.required("directory")?.into(),
        file: arguments.optional("file").unwrap_or("log").to_owned(),
        journals: arguments.required("journals")?.into(),
        container: None,
    };
    match run(settings, Duration::from_millis(pause))? {}
}
