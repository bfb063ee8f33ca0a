//! The test writer: a task that appends records to a file on its volume, and says beside the volume what it tried and what was
//! acknowledged.
//!
//! It goes on from the last record that it finds, as a database does from its log: a torn last line, which nobody was told of, is
//! cut away. After an error it opens and reads the file again, and goes on trying, so that a fence shows as failures.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use super::attempt::Line;
use super::record::{self, Last};
use super::{Moment, WriterId};

/// How a writer is set up.
#[derive(Debug)]
pub struct Settings {
    /// The volume, by the storage's name.
    pub volume: String,
    /// Where it is mounted, seen from the sandbox.
    pub directory: PathBuf,
    /// The file on it.
    pub file: String,
    /// Where the journals are.
    pub journals: PathBuf,
    /// Between two records.
    pub pause: Duration,
}

/// Why a writer does not begin.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The journal cannot be written: then there is nothing to witness.
    #[error("the journal {} cannot be written", path.display())]
    Journal {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory is on the file system of the sandbox: the volume is not mounted there.
    #[error("{} is no volume: it is on the file system of the sandbox", directory.display())]
    NotMounted {
        /// Which.
        directory: PathBuf,
    },
    /// The directory cannot be looked at.
    #[error("{} cannot be looked at", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is on the volume is not what writers leave.
    #[error("{file} on the volume does not continue: {fault}")]
    Broken {
        /// Which file.
        file: String,
        /// The first fault.
        fault: String,
    },
}

struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    fn create(directory: &std::path::Path, writer: &WriterId, volume: &str) -> Result<Self, WriterError> {
        let name = format!("{}-{volume}-{}-{}.jsonl", writer.host, writer.container, writer.pid);
        let path = directory.join(name);
        let opened = std::fs::create_dir_all(directory)
            .and_then(|()| File::options().append(true).create_new(true).open(&path));
        match opened {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(WriterError::Journal { path, source }),
        }
    }

    /// In one write, so that a kill leaves whole lines. Not synced: the kernel of this machine outlives all of its hosts.
    fn say(&mut self, line: &Line) -> Result<(), WriterError> {
        let written = serde_json::to_string(line).map_err(io::Error::other);
        written
            .and_then(|text| self.file.write_all(format!("{text}\n").as_bytes()))
            .map_err(|source| WriterError::Journal { path: self.path.clone(), source })
    }
}

/// Writes for ever.
///
/// # Errors
/// Why it does not begin, or cannot tell any more what it does.
pub fn run(settings: &Settings) -> Result<std::convert::Infallible, WriterError> {
    let writer = own_id();
    let mut journal = Journal::create(&settings.journals, &writer, &settings.volume)?;
    let begin = check_mounted(settings).and_then(|()| {
        let at = Moment::now();
        let source = |source| WriterError::Directory { directory: settings.directory.clone(), source };
        let (file, last, reading) = open(settings).map_err(source)?;
        match reading.fault.clone() {
            Some(fault) => Err(WriterError::Broken { file: settings.file.clone(), fault }),
            None => Ok((file, last, at, reading)),
        }
    });
    let (mut file, mut last, at, reading) = match begin {
        Ok(begun) => begun,
        Err(error) => {
            let (volume, why) = (settings.volume.clone(), error.to_string());
            journal.say(&Line::Refused { writer, volume, at: Moment::now(), why })?;
            return Err(error);
        }
    };
    let found = |at, reading| Line::Found {
        writer: writer.clone(),
        volume: settings.volume.clone(),
        file: settings.file.clone(),
        at,
        reading,
    };
    journal.say(&found(at, reading))?;
    loop {
        let number = last.number + 1;
        let tried = Moment::now();
        let (text, next) = record::line(last, &writer, tried);
        journal.say(&Line::Tried { number, at: tried })?;
        match file.write_all(text.as_bytes()).and_then(|()| file.sync_data()) {
            Ok(()) => {
                journal.say(&Line::Acknowledged { number, at: Moment::now() })?;
                last = next;
            }
            Err(error) => {
                journal.say(&Line::Failed { number, at: Moment::now(), error: error.to_string() })?;
                // A failed sync is never tried again on the same file: the kernel has told it once, and forgets.
                let at = Moment::now();
                if let Ok((again, found_last, reading)) = open(settings)
                    && reading.fault.is_none()
                {
                    journal.say(&found(at, reading))?;
                    (file, last) = (again, found_last);
                }
            }
        }
        std::thread::sleep(settings.pause);
    }
}

fn own_id() -> WriterId {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let sandbox = std::env::current_dir().ok();
    let container = sandbox.as_deref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
    WriterId {
        host: name.replace(' ', "_"),
        container: container.filter(|name| !name.contains(' ')).unwrap_or("none").to_owned(),
        pid: std::process::id(),
    }
}

fn check_mounted(settings: &Settings) -> Result<(), WriterError> {
    let source = |source| WriterError::Directory { directory: settings.directory.clone(), source };
    let sandbox = std::fs::metadata(".").map_err(source)?;
    let volume = std::fs::metadata(&settings.directory).map_err(source)?;
    if sandbox.dev() == volume.dev() {
        return Err(WriterError::NotMounted { directory: settings.directory.clone() });
    }
    Ok(())
}

fn open(settings: &Settings) -> io::Result<(File, Last, record::Reading)> {
    let path = settings.directory.join(&settings.file);
    let mut file = File::options().read(true).append(true).create(true).open(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let (reading, last) = record::read(&bytes);
    if reading.torn > 0 && reading.fault.is_none() {
        file.set_len(bytes.len() as u64 - reading.torn)?;
        file.seek(SeekFrom::End(0))?;
    }
    // That the file is there has to be durable, too.
    File::open(&settings.directory)?.sync_all()?;
    Ok((file, last, reading))
}
