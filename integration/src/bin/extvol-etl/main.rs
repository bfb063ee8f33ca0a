//! The job of the ETL demonstration: extracts orders from a PostgreSQL server, cleans and aggregates them, and loads them into a
//! database on an external volume. It may be killed at any moment and started anywhere: it goes on where the last committed batch
//! ended. It knows nothing of Mesos, and nothing of leases.
//!
//! ```text
//! ETL_SOURCE=postgres://... extvol-etl --target DIR --scratch DIR [--batch ROWS] [--rows-per-second N]
//!                                      [--now SECONDS] [--journals DIR] [--volume NAME]
//! ```
//!
//! `--now` is the moment behind which an order's date is in the future, by default the present. `--journals` is where the witness
//! of the tests (`integration::witness`) wants to be told of each batch, and `--volume` the storage's name of the target's volume.
//!
//! ```text
//! extract.rs     PostgreSQL -> files on the scratch volume, on a thread of its own
//! transform.rs   one row; pure
//! load.rs        batches -> SQLite on the target volume
//! progress.rs    what it shows, and its pace
//! ```

mod extract;
mod load;
mod progress;
mod transform;

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use integration::cluster::session::with_causes;
use integration::storage::arguments::Arguments;
use integration::witness::Moment;
use integration::witness::writer::{Settings, Writer};

use crate::extract::{Chunk, Source};
use crate::load::{Batch, Done, Target};
use crate::progress::{Pace, Progress};

/// The extract has ended before all rows that the source had at the start.
#[derive(Debug, thiserror::Error)]
#[error("only {done} rows came of the {total} that the source has")]
struct TooFew {
    done: i64,
    total: i64,
}

/// What the command line says.
struct Job {
    source: String,
    target: PathBuf,
    scratch: PathBuf,
    batch: usize,
    rows_per_second: Option<u32>,
    now: i64,
    /// The witness's journals, and the target's volume.
    witness: Option<(PathBuf, String)>,
}

fn main() -> ExitCode {
    match Job::read().and_then(|job| job.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("etl: failed: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

impl Job {
    fn read() -> Result<Self, Box<dyn Error>> {
        let names = ["target", "scratch", "batch", "rows-per-second", "now", "journals", "volume"];
        let arguments = Arguments::parse(std::env::args().skip(1), &names, &[])?;
        let witness = match arguments.optional("journals") {
            Some(journals) => Some((journals.into(), arguments.required("volume")?.to_owned())),
            None => None,
        };
        let now = match arguments.optional("now") {
            Some(now) => now.parse()?,
            None => i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?,
        };
        Ok(Self {
            source: std::env::var("ETL_SOURCE")?,
            target: arguments.required("target")?.into(),
            scratch: arguments.required("scratch")?.into(),
            batch: arguments.optional("batch").unwrap_or("1000").parse::<usize>()?.max(1),
            rows_per_second: arguments.optional("rows-per-second").map(str::parse).transpose()?,
            now,
            witness,
        })
    }

    fn run(&self) -> Result<(), Box<dyn Error>> {
        let mut witness = match &self.witness {
            Some((journals, volume)) => Some(self.witness(journals, volume)?),
            None => None,
        };
        let mut target = Target::open(&self.target.join("shop.db"))?;
        let mut source = Source::new(&self.source)?;
        let (done, total) = (target.done(), source.count()?);
        let before = done.good + done.rejected;
        match before {
            0 => println!("etl: begins: the target is empty, the source has {total} rows"),
            _ => println!(
                "etl: goes on after order {}: {before} of {total} rows are in the target",
                done.last_id
            ),
        }
        let now = Instant::now();
        let mut progress = Progress::new(before, total, now);
        let mut pace = Pace::new(self.rows_per_second, now);
        let (mut extracted, mut found) = (0, 0);
        for chunk in extract::start(source, &self.scratch, done.last_id) {
            let chunk = chunk?;
            *(if chunk.found { &mut found } else { &mut extracted }) += chunk.rows;
            self.load(&chunk, &mut target, witness.as_mut(), |rows| {
                if let Some(line) = progress.add(rows.into(), Instant::now()) {
                    println!("etl: {line}");
                }
                pace.keep(rows);
            })?;
            // Everything of it is in the target.
            fs::remove_file(&chunk.path)?;
        }
        let Done { good, rejected, .. } = target.done();
        if good + rejected < total {
            return Err(TooFew { done: good + rejected, total }.into());
        }
        println!("etl: finished: {good} orders loaded, {rejected} rows set aside");
        println!(
            "etl: {extracted} rows were extracted in this start; files of {found} were found on the scratch volume"
        );
        Ok(())
    }

    fn witness(&self, journals: &Path, volume: &str) -> Result<Writer, Box<dyn Error>> {
        // The sandbox has the same path in every container with an image.
        let container = std::env::var("MESOS_DIRECTORY").ok();
        let container = container.as_deref().map(Path::new).and_then(Path::file_name);
        Ok(Writer::begin(Settings {
            volume: volume.to_owned(),
            directory: self.target.clone(),
            file: "batches".to_owned(),
            journals: journals.to_owned(),
            container: container.and_then(|name| name.to_str()).map(str::to_owned),
        })?)
    }

    fn load(
        &self,
        chunk: &Chunk,
        target: &mut Target,
        mut witness: Option<&mut Writer>,
        mut done: impl FnMut(u32),
    ) -> Result<(), Box<dyn Error>> {
        let already = target.done().last_id;
        let lines: Vec<_> = chunk
            .text
            .lines()
            .skip_while(|line| extract::id_of(line).is_some_and(|id| id <= already))
            .collect();
        for lines in lines.chunks(self.batch) {
            let rows = lines.iter().map(|line| transform::transform(line, self.now));
            let rows = rows.collect::<Result<Vec<_>, _>>()?;
            let Some(batch) = Batch::of(target.done().last_id, rows) else { continue };
            match &mut witness {
                Some(witness) => {
                    witness.write(|_, at| target.commit(&batch, at).map_err(io::Error::other))??;
                }
                None => target.commit(&batch, Moment::now())?,
            }
            done(u32::try_from(lines.len())?);
        }
        Ok(())
    }
}
