//! The source: a table `orders` in PostgreSQL, to which rows are only added, read in the order of its ids. Chunk after chunk is
//! streamed into a file on the scratch volume, ahead of the load, on a thread of its own.
//!
//! ```text
//! <scratch>/after-<id>.rows    from <id>        rows in COPY's text format        end <last> <rows> <checksum>
//! <scratch>/part               the one that is being streamed
//! ```
//!
//! A whole file is synced before it has its name. A job that starts again takes the files that continue where the target is, and
//! asks the source only for what is behind them. The scratch volume may be empty or old: whatever does not continue is removed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use integration::cluster::session::with_causes;
use postgres::{Client, Config, NoTls};

/// Rows in one file.
const CHUNK: i64 = 20_000;
/// So many files may be ready before the load.
const AHEAD: usize = 2;
/// A source that does not answer for so long is given up; the scheduler starts the job again.
const GIVE_UP: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// No further rows can be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtractError {
    /// The address of the source is none.
    #[error("the source's address cannot be read")]
    Address(#[source] postgres::Error),
    /// The source has not answered in all that time.
    #[error("the source has not answered for {} s", GIVE_UP.as_secs())]
    Source(#[source] SourceError),
    /// The scratch volume does not work.
    #[error("the scratch volume failed at {}", path.display())]
    Scratch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The source did not answer a question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// It refused, or could not be reached.
    #[error(transparent)]
    Refused(#[from] postgres::Error),
    /// The rows stopped.
    #[error("the stream of rows broke off")]
    Stream(#[from] io::Error),
}

/// Whole rows behind one order.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) path: PathBuf,
    /// Rows up to the last order, one a line.
    pub(crate) text: String,
    pub(crate) last: i64,
    pub(crate) rows: usize,
    /// Whether an earlier start of the job has extracted it.
    pub(crate) found: bool,
}

/// A connection to the source that is made when it is needed.
pub(crate) struct Source {
    config: Config,
    client: Option<Client>,
}

impl Source {
    /// `url` as libpq takes it.
    pub(crate) fn new(url: &str) -> Result<Self, ExtractError> {
        let mut config: Config = url.parse().map_err(ExtractError::Address)?;
        // A host that is cut off must not wait for ever.
        config
            .application_name("extvol-etl")
            .connect_timeout(Duration::from_secs(3))
            .tcp_user_timeout(Duration::from_secs(10))
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(2)
            .options("-c statement_timeout=30s");
        Ok(Self { config, client: None })
    }

    /// Asks, and asks again on a new connection when there is no answer.
    fn ask<T>(
        &mut self,
        mut ask: impl FnMut(&mut Client) -> Result<T, SourceError>,
    ) -> Result<T, ExtractError> {
        let (since, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let client = match self.client.take() {
                Some(client) => Ok(client),
                None => self.config.connect(NoTls).map_err(SourceError::Refused),
            };
            let answer = client.and_then(|mut client| {
                let answer = ask(&mut client)?;
                self.client = Some(client);
                Ok(answer)
            });
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if since.elapsed() > GIVE_UP => return Err(ExtractError::Source(error)),
                Err(error) => {
                    let why = with_causes(&error);
                    eprintln!("the source does not answer ({why}); asked again in {} ms", pause.as_millis());
                    thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// How many orders there are.
    pub(crate) fn count(&mut self) -> Result<i64, ExtractError> {
        self.ask(|client| Ok(client.query_one("SELECT count(*) FROM orders", &[])?.get(0)))
    }

    fn chunk(&mut self, after: i64) -> Result<Vec<u8>, ExtractError> {
        // COPY takes no parameters; these are numbers.
        let query = format!(
            "COPY (SELECT id, customer, extract(epoch FROM placed_at)::bigint, currency, amount
                   FROM orders WHERE id > {after} ORDER BY id LIMIT {CHUNK}) TO STDOUT"
        );
        self.ask(|client| {
            let mut rows = Vec::new();
            client.copy_out(&query)?.read_to_end(&mut rows)?;
            Ok(rows)
        })
    }
}

/// Extracts what is behind order `after`, until there is no more.
pub(crate) fn start(source: Source, scratch: &Path, after: i64) -> Receiver<Result<Chunk, ExtractError>> {
    let (sender, receiver) = sync_channel(AHEAD);
    let scratch = scratch.to_owned();
    thread::spawn(move || {
        if let Err(error) = run(source, &scratch, after, &sender) {
            // The loader has ended: nobody wants to know.
            let _nobody = sender.send(Err(error));
        }
    });
    receiver
}

fn run(
    mut source: Source,
    scratch: &Path,
    mut after: i64,
    chunks: &SyncSender<Result<Chunk, ExtractError>>,
) -> Result<(), ExtractError> {
    let mut found = continuing(scratch, after)?.into_iter();
    loop {
        let next = match found.next() {
            Some(chunk) => Some(chunk),
            None => spool(scratch, after, &source.chunk(after)?)?,
        };
        let Some(chunk) = next else { return Ok(()) };
        after = chunk.last;
        if chunks.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

/// The files that continue at `after`, in order; all others are removed.
fn continuing(scratch: &Path, mut after: i64) -> Result<Vec<Chunk>, ExtractError> {
    let failed = |source| ExtractError::Scratch { path: scratch.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(scratch).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == "part" {
            fs::remove_file(&path).map_err(failed)?;
        } else if let Some(from) = name.strip_prefix("after-").and_then(|name| name.strip_suffix(".rows")) {
            files.push((from.parse::<i64>().unwrap_or(i64::MAX), path));
        }
    }
    files.sort();
    let mut chunks = Vec::new();
    for (from, path) in files {
        match File::open(&path).and_then(io::read_to_string).ok().and_then(|text| whole(&text)) {
            // The target may have got into the midst of a file.
            Some((text, last, rows)) if from <= after && last > after => {
                after = last;
                chunks.push(Chunk { path, text, last, rows, found: true });
            }
            _ => fs::remove_file(&path).map_err(failed)?,
        }
    }
    Ok(chunks)
}

/// Writes what was extracted; nothing if that is nothing.
fn spool(scratch: &Path, after: i64, rows: &[u8]) -> Result<Option<Chunk>, ExtractError> {
    let path = scratch.join(format!("after-{after}.rows"));
    let failed = |source| ExtractError::Scratch { path: path.clone(), source };
    let text = String::from_utf8_lossy(rows).into_owned();
    let Some(last) = text.lines().last().and_then(id_of) else { return Ok(None) };
    let count = text.lines().count();
    let part = scratch.join("part");
    let write = || {
        let mut file = BufWriter::new(File::create(&part)?);
        file.write_all(text.as_bytes())?;
        writeln!(file, "end {last} {count} {:016x}", checksum(&text))?;
        file.into_inner()?.sync_all()?;
        fs::rename(&part, &path)?;
        File::open(scratch)?.sync_all()
    };
    write().map_err(failed)?;
    Ok(Some(Chunk { path, text, last, rows: count, found: false }))
}

/// The rows of a file that is all there, the last one's id, and their number.
fn whole(text: &str) -> Option<(String, i64, usize)> {
    let body = text.strip_suffix('\n')?;
    let (rows, end) = body.split_at(body.rfind('\n')? + 1);
    let mut words = end.strip_prefix("end ")?.split(' ');
    let (last, count) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let sum = u64::from_str_radix(words.next()?, 16).ok()?;
    (sum == checksum(rows) && rows.lines().count() == count).then(|| (rows.to_owned(), last, count))
}

/// The id of a row.
pub(crate) fn id_of(line: &str) -> Option<i64> {
    line.split('\t').next()?.parse().ok()
}

/// FNV-1a: against accidents.
fn checksum(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(scratch: &Path) -> Vec<String> {
        let entries = fs::read_dir(scratch).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_started_again_job_takes_the_files_that_continue_and_removes_the_others() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path();
        for (after, rows) in [(0, "1\tx\n2\tx\n"), (2, "3\tx\n5\tx\n"), (5, "6\tx\n"), (9, "10\tx\n")] {
            spool(scratch, after, rows.as_bytes()).unwrap().unwrap();
        }
        fs::write(scratch.join("part"), "11\t").unwrap();
        let found: Vec<_> =
            continuing(scratch, 3).unwrap().into_iter().map(|chunk| (chunk.last, chunk.rows)).collect();
        assert_eq!(found, [(5, 2), (6, 1)]);
        assert_eq!(names(scratch), ["after-2.rows", "after-5.rows"]);
    }

    #[test]
    fn a_file_that_is_not_whole_is_not_used() {
        let scratch = tempfile::tempdir().unwrap();
        let chunk = spool(scratch.path(), 0, b"1\tx\n2\tx\n").unwrap().unwrap();
        let good = fs::read_to_string(&chunk.path).unwrap();
        assert_eq!(whole(&good), Some(("1\tx\n2\tx\n".to_owned(), 2, 2)));
        for bad in [&good[..good.len() - 1], &good.replace("1\tx", "1\ty"), &good[4..], "", "\n"] {
            assert_eq!(whole(bad), None, "{bad:?}");
        }
        fs::write(&chunk.path, &good[4..]).unwrap();
        assert!(continuing(scratch.path(), 0).unwrap().is_empty());
        assert!(names(scratch.path()).is_empty());
        assert!(spool(scratch.path(), 0, b"").unwrap().is_none());
    }
}
