//! The test writer: a task that appends records to a file on its volume, and says beside the volume what it tried and what was
//! acknowledged.
//!
//! It goes on from the last record that it finds, as a database does from its log: a torn last line, which nobody was told of, is
//! cut away. After an error [`run`] opens and reads the file again, and goes on trying, so that a fence shows as failures. A program with
//! writes of its own has a [`Writer`] witness them.

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
    /// The container, where the sandbox's path does not tell: in an image it is the same for all.
    pub container: Option<String>,
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

#[derive(Debug)]
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

/// One start of a writer.
#[derive(Debug)]
pub struct Writer {
    settings: Settings,
    id: WriterId,
    journal: Journal,
    file: File,
    last: Last,
}

impl Writer {
    /// Reads what is on the volume, and says so in the journal.
    ///
    /// # Errors
    /// Why it does not begin.
    pub fn begin(settings: Settings) -> Result<Self, WriterError> {
        let id = own_id(settings.container.as_deref());
        let mut journal = Journal::create(&settings.journals, &id, &settings.volume)?;
        let begin = check_mounted(&settings).and_then(|()| {
            let at = Moment::now();
            let source = |source| WriterError::Directory { directory: settings.directory.clone(), source };
            let (file, last, reading) = open(&settings).map_err(source)?;
            match reading.fault.clone() {
                Some(fault) => Err(WriterError::Broken { file: settings.file.clone(), fault }),
                None => Ok((file, last, at, reading)),
            }
        });
        match begin {
            Ok((file, last, at, reading)) => {
                let mut writer = Self { settings, id, journal, file, last };
                writer.say_found(at, reading)?;
                Ok(writer)
            }
            Err(error) => {
                let (volume, why) = (settings.volume, error.to_string());
                journal.say(&Line::Refused { writer: id, volume, at: Moment::now(), why })?;
                Err(error)
            }
        }
    }

    /// Writes the next record, after `work` that the record stands for: other writes to the same volume, which were made
    /// between the record's start and its acknowledgement. `work` is told the record's number and start. The inner result
    /// is that of the volume.
    ///
    /// # Errors
    /// It cannot tell any more what it does.
    pub fn write(
        &mut self,
        work: impl FnOnce(u64, Moment) -> io::Result<()>,
    ) -> Result<io::Result<()>, WriterError> {
        let number = self.last.number + 1;
        let tried = Moment::now();
        let (text, next) = record::line(self.last, &self.id, tried);
        self.journal.say(&Line::Tried { number, at: tried })?;
        let written = work(number, tried)
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.sync_data());
        match &written {
            Ok(()) => {
                self.journal.say(&Line::Acknowledged { number, at: Moment::now() })?;
                self.last = next;
            }
            Err(error) => {
                self.journal.say(&Line::Failed { number, at: Moment::now(), error: error.to_string() })?;
            }
        }
        Ok(written)
    }

    /// After a failure: opens and reads the file again. A failed sync is never tried again on the same file: the kernel has told
    /// it once, and forgets.
    fn find_again(&mut self) -> Result<(), WriterError> {
        let at = Moment::now();
        if let Ok((file, last, reading)) = open(&self.settings)
            && reading.fault.is_none()
        {
            self.say_found(at, reading)?;
            (self.file, self.last) = (file, last);
        }
        Ok(())
    }

    fn say_found(&mut self, at: Moment, reading: record::Reading) -> Result<(), WriterError> {
        let (volume, file) = (self.settings.volume.clone(), self.settings.file.clone());
        self.journal.say(&Line::Found { writer: self.id.clone(), volume, file, at, reading })
    }
}

/// Writes for ever, with a pause between two records.
///
/// # Errors
/// Why it does not begin, or cannot tell any more what it does.
pub fn run(settings: Settings, pause: Duration) -> Result<std::convert::Infallible, WriterError> {
    let mut writer = Writer::begin(settings)?;
    loop {
        if writer.write(|_, _| Ok(()))?.is_err() {
            writer.find_again()?;
        }
        std::thread::sleep(pause);
    }
}

fn own_id(container: Option<&str>) -> WriterId {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let sandbox = std::env::current_dir().ok();
    let sandbox = sandbox.as_deref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
    let container = container.or(sandbox);
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
