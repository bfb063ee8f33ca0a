//! The keeper's table on disk, and what tells this machine from others.
//!
//! ```text
//! <run_directory>/            default /run/extvol, emptied by a reboot
//!   keeper.lock               held while a keeper runs
//!   keeper.sock               where it listens
//!   table.json                containers, volumes, how far each is
//!   table.json.broken         a table that could not be read, set aside
//! <state_directory>/          default /var/lib/extvol
//!   keeper.lock               held likewise: another run directory makes no second keeper
//!   machine-id                random, made at the first start
//! ```
//!
//! The table need not survive a power failure: after a reboot nothing of it is true. A whole one is written
//! beside its place and renamed, so that a crash leaves the old one or the new one; changes are added to it line by line, and a
//! last line that is not whole was never acted on.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::stored_table::{is_want, lines, replayed};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use shared::protocol::holder::{StoredTable, Table, TableChange};
use shared::volume::Holder;

/// The host that runs this keeper, as its kernel and its disk tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// An id that no other machine has.
    pub id: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// The version of the table that this program writes. It also reads the one before, which is a whole table without changes.
const VERSION: u32 = 3;
const OLDEST: u32 = 2;

#[derive(Deserialize)]
struct Loaded {
    boot_id: String,
    /// Whose leases the table tells of. Read by another holder, or against another etcd, they would
    /// all look lost.
    owner: Owner,
    table: Table,
}

/// The same, as it is written.
#[derive(Serialize)]
struct Storing<'a> {
    version: u32,
    boot_id: &'a str,
    owner: &'a Owner,
    table: &'a Table,
}

/// Whose leases a table tells of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The holder.
    pub holder: Holder,
    /// Where the records are in etcd.
    pub etcd_prefix: String,
}

/// Why the keeper cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another keeper runs on this host.
    #[error("another keeper runs here: it holds {}", lock.display())]
    Running {
        /// The lock.
        lock: PathBuf,
    },
    /// The table in the run directory is another holder's, and not empty.
    #[error(
        "the table in {} is of the holder {} under the prefix {}, and this keeper was given {} and {}; volumes are \
         in use: give it the old values until the containers that use them have ended",
        path.display(), theirs.holder, theirs.etcd_prefix, ours.holder, ours.etcd_prefix
    )]
    AnotherHolder {
        /// The table.
        path: PathBuf,
        /// Whose it is.
        theirs: Box<Owner>,
        /// Who asks.
        ours: Box<Owner>,
    },
    /// The directory belongs to somebody else, who could put anything there.
    #[error("{} belongs to user {uid}, not to this keeper's", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// A file or directory of its own cannot be used.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    |source| StartError::File { path, source }
}

/// Makes a directory that only root may enter.
///
/// # Errors
/// When it cannot be made, or is another user's.
pub fn private_directory(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
    let uid = fs::metadata(path).map_err(at(path))?.uid();
    if uid != rustix::process::geteuid().as_raw() {
        return Err(StartError::Foreign { path: path.to_owned(), uid });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(at(path))
}

/// The lock of the one keeper of a host. Held until it is dropped, or the process ends.
pub struct Lock(#[expect(dead_code, reason = "held, not read")] File);

/// Takes a lock of the host's keeper, and makes the directory that it is in.
///
/// # Errors
/// When another keeper has it, or the directory cannot be made.
pub fn lock(directory: &Path) -> Result<Lock, StartError> {
    private_directory(directory)?;
    let path = directory.join("keeper.lock");
    let file = File::options().create(true).append(true).open(&path).map_err(at(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StartError::Running { lock: path }),
        Err(error) => Err(at(&path)(error.into())),
    }
}

/// Who this host is. The id joins the firmware's UUID and a key made at the first start: a cloned
/// disk or a cloned machine differs in one of them, and where the two differ in doubt, "another
/// machine" is the answer that costs only time.
///
/// # Errors
/// When the key can be neither read nor made, or the kernel gives no boot id.
pub fn machine(state_directory: &Path) -> Result<Machine, StartError> {
    private_directory(state_directory)?;
    let path = state_directory.join("machine-id");
    let key = match fs::read_to_string(&path) {
        Ok(key) if !key.trim().is_empty() => key.trim().to_owned(),
        Ok(_) => make_key(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(&path)?,
        Err(error) => return Err(at(&path)(error)),
    };
    // Kernels differ in its case.
    let firmware = fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default();
    let firmware = firmware.to_ascii_lowercase();
    let boot = Path::new("/proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(boot).map_err(at(boot))?.trim().to_owned();
    let id = if firmware.trim().is_empty() { key } else { format!("{}+{key}", firmware.trim()) };
    Ok(Machine { id, boot_id })
}

fn make_key(path: &Path) -> Result<String, StartError> {
    let key = super::random_id();
    let write = || {
        let part = path.with_extension("part");
        let mut file = File::create(&part)?;
        file.write_all(key.as_bytes())?;
        // It must survive a power failure: another id would be another machine.
        file.sync_all()?;
        fs::rename(&part, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().map_err(at(path))?;
    Ok(key)
}

/// So much is added to a table of which that is more than twice, before it is written whole again.
const LOG_MIN: u64 = 64 << 10;

/// The file that holds the table: its first line is a whole one, each further line a change of it.
pub struct Checkpoint {
    path: PathBuf,
    boot_id: String,
    owner: Owner,
    /// Where changes are added; none before a table was written whole, nor after one that could not be.
    log: Option<Log>,
}

struct Log {
    file: File,
    /// What stands in the file.
    stored: StoredTable,
    /// Bytes of its first line, and of all others.
    whole: u64,
    added: u64,
}

impl Checkpoint {
    /// In `run_directory`, for this boot and owner.
    #[must_use]
    pub fn new(run_directory: &Path, boot_id: &str, owner: Owner) -> Self {
        Self { path: run_directory.join("table.json"), boot_id: boot_id.to_owned(), owner, log: None }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stored table; an empty one when there is none, when it is of an earlier boot, or when it
    /// cannot be read: then it is set aside, and the empty one says that it was lost.
    ///
    /// # Errors
    /// [`StartError::AnotherHolder`]; [`StartError::File`] when this process or the host lacks descriptors or memory.
    pub fn load(&self) -> Result<Table, StartError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
            // What this process lacks says nothing of the table: the next one may read it.
            Err(source) if is_want(&source) => {
                return Err(StartError::File { path: self.path.clone(), source });
            }
            Err(error) => return Ok(self.set_aside(&error.to_string())),
        };
        // The version first: a later one may have other fields.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let (whole, changes) = lines(&bytes);
        match serde_json::from_slice::<Versioned>(whole) {
            Ok(Versioned { version: OLDEST..=VERSION }) => {}
            Ok(Versioned { version }) => {
                return Ok(self.set_aside(&format!(
                    "it has version {version}, and this program reads {OLDEST} to {VERSION}"
                )));
            }
            Err(error) => return Ok(self.set_aside(&error.to_string())),
        }
        let read = serde_json::from_slice::<Loaded>(whole)
            .and_then(|loaded| Ok(Loaded { table: replayed(loaded.table, changes)?, ..loaded }));
        let stored = match read {
            Ok(stored) => stored,
            Err(error) => return Ok(self.set_aside(&error.to_string())),
        };
        if stored.boot_id != self.boot_id {
            tracing::info!("the table in {} is of an earlier boot", self.path.display());
            return Ok(Table::default());
        }
        let same = stored.owner == self.owner;
        if stored.table.volumes.is_empty() && !same {
            return Ok(Table::default());
        }
        if !same {
            let (theirs, ours) = (Box::new(stored.owner), Box::new(self.owner.clone()));
            return Err(StartError::AnotherHolder { path: self.path.clone(), theirs, ours });
        }
        Ok(stored.table)
    }

    fn set_aside(&self, why: &str) -> Table {
        let aside = self.path.with_extension("json.broken");
        let kept = match fs::rename(&self.path, &aside) {
            Ok(()) => format!("it is kept as {}", aside.display()),
            Err(error) => format!("it could not be kept: {error}"),
        };
        tracing::error!(
            "the table in {} cannot be read: {why}; {kept}. What is mounted here is learnt \
             from the mount tables",
            self.path.display()
        );
        Table { lost: true, ..Table::default() }
    }

    /// Stores what has changed since this was last called, of a table that is this now.
    ///
    /// # Errors
    /// When it is not stored; what was is still there.
    pub fn store(&mut self, change: TableChange, table: impl FnOnce() -> Table) -> io::Result<()> {
        // After any fault the next one is written whole: nothing is added to half a line.
        let Some(mut log) = self.log.take().filter(|log| log.is_at(&self.path)) else {
            return self.store_whole(table());
        };
        let Some(change) = log.stored.differs(change) else {
            self.log = Some(log);
            return Ok(());
        };
        let mut line = serde_json::to_vec(&change)?;
        line.push(b'\n');
        log.stored.apply(change);
        log.added += line.len() as u64;
        // An empty one is seen to be empty by who reads its first line.
        if log.stored.is_empty() || log.added > LOG_MIN.max(log.whole * 2) {
            return self.store_whole(table());
        }
        log.file.write_all(&line)?;
        self.log = Some(log);
        Ok(())
    }

    fn store_whole(&mut self, table: Table) -> io::Result<()> {
        self.log = None;
        let table = &table;
        let stored = Storing { version: VERSION, boot_id: &self.boot_id, owner: &self.owner, table };
        let part = self.path.with_extension("json.part");
        // Options of volumes may be passwords: the directory is root's alone, and so is the file.
        let mut options = File::options();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        let mut line = serde_json::to_vec(&stored)?;
        line.push(b'\n');
        file.write_all(&line)?;
        fs::rename(&part, &self.path)?;
        let (stored, whole) = (StoredTable::from(table.clone()), line.len() as u64);
        self.log = Some(Log { file, stored, whole, added: 0 });
        Ok(())
    }
}

impl Log {
    /// Whether what is at `path` is still this file.
    fn is_at(&self, path: &Path) -> bool {
        let there = fs::metadata(path).map(|found| (found.dev(), found.ino()));
        let this = self.file.metadata().map(|found| (found.dev(), found.ino()));
        matches!((there, this), (Ok(there), Ok(this)) if there == this)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    use shared::volume::VolumeId;

    use super::*;
    use crate::keeper::stored_table::{Stored, read_table};

    fn owner(holder: &str) -> Owner {
        Owner { holder: Holder::new(holder).unwrap(), etcd_prefix: "/x".into() }
    }

    /// A table with a volume.
    fn used() -> Table {
        let json = r#"{"open":null,"refused":null,"containers":{},"volumes":[{"wanted":{"volume":{"driver":"d",
            "name":"v"},"asked":{"driver":"d","name":"v"},"create":null},"phase":"mounting","token":7,"users":[],
            "asked":true,"unsettled":false,"doubts":{}}]}"#;
        serde_json::from_str(json).unwrap()
    }

    /// Stores a table of which everything may have changed.
    fn store(checkpoint: &mut Checkpoint, table: &Table) {
        let names =
            |table: &Table| -> Vec<_> { table.volumes.iter().map(|row| row.wanted.volume.clone()).collect() };
        let before = checkpoint.load().map(|before| names(&before)).unwrap_or_default();
        let volumes: BTreeSet<_> = before.into_iter().chain(names(table)).collect();
        let row = |id: &VolumeId| table.volumes.iter().find(|row| row.wanted.volume == *id).cloned();
        let change = TableChange {
            open: table.open.clone(),
            refused: table.refused.clone(),
            lost: table.lost,
            containers: Vec::new(),
            volumes: volumes.into_iter().map(|id| (id.clone(), row(&id))).collect(),
        };
        checkpoint.store(change, || table.clone()).unwrap();
    }

    /// A table of these volumes, in this phase.
    fn of(names: &[&str], phase: &str) -> Table {
        let row = |name: &&str| {
            format!(
                r#"{{"wanted":{{"volume":{{"driver":"d","name":"{name}"}},"asked":{{"driver":"d","name":"{name}"}},
                "create":null}},"phase":"{phase}","token":7,"users":[],"asked":true,"unsettled":false,"doubts":{{}}}}"#
            )
        };
        let rows = names.iter().map(row).collect::<Vec<_>>().join(",");
        serde_json::from_str(&format!(
            r#"{{"open":null,"refused":null,"containers":{{}},"volumes":[{rows}]}}"#
        ))
        .unwrap()
    }

    #[test]
    fn changes_are_added_line_by_line_and_read_as_what_they_come_to() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        let path = writer.path().to_owned();
        let reader = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        let names: Vec<_> = (0..1_000).map(|n| format!("v{n:04}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let size = || fs::metadata(&path).unwrap().len();
        store(&mut writer, &of(&names[..999], "mounting"));
        let whole = size();
        for table in [of(&names, "mounting"), of(&names[1..], "mounting"), of(&names[1..], "mounting")] {
            store(&mut writer, &table);
            assert_eq!(reader.load().unwrap(), table);
            let Stored::Table(read) = read_table(&path) else { panic!("it is a table") };
            assert_eq!(*read, table);
        }
        // One came, one went, and nothing was written of what is as it was.
        assert!(size() - whole < 600, "{} bytes", size() - whole);
        // A last line that is not whole was never acted on, and the next writer goes on from what is.
        let mut torn = File::options().append(true).open(&path).unwrap();
        torn.write_all(br#"{"open":null,"refused":"no","#).unwrap();
        assert_eq!(reader.load().unwrap(), of(&names[1..], "mounting"));
        let mut next = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        store(&mut next, &of(&names[2..], "mounting"));
        assert_eq!(reader.load().unwrap(), of(&names[2..], "mounting"));
        // One in between is broken: nobody may guess what it said.
        let mut broken = File::options().append(true).open(&path).unwrap();
        broken.write_all(b"{\n{\"open\":null,\"refused\":null,\"lost\":false}\n").unwrap();
        assert!(matches!(read_table(&path), Stored::Broken(_)));
        assert!(reader.load().unwrap().lost);
    }

    #[test]
    fn a_log_is_written_whole_when_it_has_grown_when_it_was_taken_away_and_when_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        let path = writer.path().to_owned();
        let lines = || fs::read_to_string(&path).unwrap().lines().count();
        for n in 0..1_000 {
            store(&mut writer, &of(&["a"], if n % 2 == 0 { "mounting" } else { "settling" }));
        }
        assert!(fs::metadata(&path).unwrap().len() < 2 * LOG_MIN && lines() > 1);
        assert_eq!(writer.load().unwrap(), of(&["a"], "settling"));
        fs::remove_file(&path).unwrap();
        store(&mut writer, &of(&["a"], "mounting"));
        assert_eq!((writer.load().unwrap(), lines()), (of(&["a"], "mounting"), 1));
        // What stands in its place, and cannot be written over, is a fault; after it, it is whole.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let change =
            TableChange { open: None, refused: None, lost: true, containers: vec![], volumes: vec![] };
        assert!(writer.store(change, || of(&["a", "b"], "mounting")).is_err());
        fs::remove_dir(&path).unwrap();
        store(&mut writer, &of(&["a", "b"], "mounting"));
        assert_eq!((writer.load().unwrap(), lines()), (of(&["a", "b"], "mounting"), 1));
        store(&mut writer, &of(&["b"], "mounting"));
        assert_eq!(lines(), 2);
        store(&mut writer, &Table::default());
        assert_eq!((writer.load().unwrap(), lines()), (Table::default(), 1));
    }

    #[test]
    fn a_table_comes_back_in_the_same_boot_only() {
        let directory = tempfile::tempdir().unwrap();
        let open = |boot: &str| Checkpoint::new(directory.path(), boot, owner("a"));
        assert_eq!(open("boot-1").load().unwrap(), Table::default());
        store(&mut open("boot-1"), &used());
        assert_eq!(open("boot-1").load().unwrap(), used());
        let mode = fs::metadata(open("boot-1").path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        assert_eq!(open("boot-2").load().unwrap(), Table::default());
        assert!(!directory.path().join("table.json.broken").exists());
    }

    #[test]
    fn a_table_of_the_version_before_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut checkpoint = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        store(&mut checkpoint, &used());
        let text = fs::read_to_string(checkpoint.path()).unwrap();
        fs::write(checkpoint.path(), text.trim_end().replacen(r#""version":3"#, r#""version":2"#, 1))
            .unwrap();
        assert_eq!(checkpoint.load().unwrap(), used());
    }

    #[test]
    fn a_table_in_use_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        store(&mut first, &used());
        assert_eq!(first.load().unwrap(), used());
        let other = Checkpoint::new(directory.path(), "boot-1", owner("b"));
        let error = other.load().unwrap_err().to_string();
        assert!(error.contains("of the holder a under") && error.contains("was given b"), "{error}");
        // Nothing is in use: nothing can be mistaken.
        store(&mut first, &Table::default());
        assert_eq!(other.load().unwrap(), Table::default());
    }

    #[test]
    fn a_broken_table_is_set_aside_and_never_stops_the_keeper() {
        for bytes in ["", "{", r#"{"version":4,"tables":[]}"#, r#"{"version":3,"boot_id":"boot-1"}"#] {
            let directory = tempfile::tempdir().unwrap();
            let checkpoint = Checkpoint::new(directory.path(), "boot-1", owner("a"));
            fs::write(checkpoint.path(), bytes).unwrap();
            assert_eq!(checkpoint.load().unwrap(), Table { lost: true, ..Table::default() });
            assert_eq!(fs::read_to_string(directory.path().join("table.json.broken")).unwrap(), bytes);
        }
    }

    #[test]
    fn a_table_that_a_process_without_descriptors_cannot_open_is_not_set_aside() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let directory = tempfile::tempdir().unwrap();
        let mut checkpoint = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        store(&mut checkpoint, &used());
        let usual = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: usual.maximum }).unwrap();
        let loaded = checkpoint.load();
        setrlimit(Resource::Nofile, usual).unwrap();
        assert!(matches!(loaded, Err(StartError::File { .. })), "{loaded:?}");
        assert_eq!(checkpoint.load().unwrap(), used());
    }

    #[test]
    fn one_host_has_one_keeper_and_one_machine_id() {
        let directory = tempfile::tempdir().unwrap();
        let held = lock(directory.path()).unwrap();
        assert!(matches!(lock(directory.path()), Err(StartError::Running { .. })));
        drop(held);
        lock(directory.path()).unwrap();
        let first = machine(directory.path()).unwrap();
        assert_eq!(machine(directory.path()).unwrap(), first);
    }
}
