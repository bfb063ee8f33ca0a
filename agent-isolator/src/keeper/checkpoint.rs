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
//! The table need not survive a power failure: after a reboot nothing of it is true. It is written
//! beside its place and renamed, so that a crash leaves the old one or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::stored_table::is_want;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use shared::protocol::holder::Table;
use shared::volume::Holder;

/// The host that runs this keeper, as its kernel and its disk tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// An id that no other machine has.
    pub id: String,
    /// The kernel's boot id.
    pub boot_id: String,
}

/// The version of the table that this program writes, and the only one that it reads.
const VERSION: u32 = 2;

#[derive(Deserialize)]
struct Stored {
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

/// The file that holds the table.
pub struct Checkpoint {
    path: PathBuf,
    boot_id: String,
    owner: Owner,
}

impl Checkpoint {
    /// In `run_directory`, for this boot and owner.
    #[must_use]
    pub fn new(run_directory: &Path, boot_id: &str, owner: Owner) -> Self {
        Self { path: run_directory.join("table.json"), boot_id: boot_id.to_owned(), owner }
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
        match serde_json::from_slice::<Versioned>(&bytes) {
            Ok(Versioned { version: VERSION }) => {}
            Ok(Versioned { version }) => {
                return Ok(self.set_aside(&format!("it has version {version}, not {VERSION}")));
            }
            Err(error) => return Ok(self.set_aside(&error.to_string())),
        }
        let stored = match serde_json::from_slice::<Stored>(&bytes) {
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

    /// Stores the table.
    ///
    /// # Errors
    /// When it is not stored; the old one is still there.
    pub fn store(&self, table: &Table) -> io::Result<()> {
        let stored = Storing { version: VERSION, boot_id: &self.boot_id, owner: &self.owner, table };
        let part = self.path.with_extension("json.part");
        // Options of volumes may be passwords: the directory is root's alone, and so is the file.
        let mut options = File::options();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&part)?;
        file.write_all(&serde_json::to_vec(&stored)?)?;
        fs::rename(&part, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

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

    #[test]
    fn a_table_comes_back_in_the_same_boot_only() {
        let directory = tempfile::tempdir().unwrap();
        let open = |boot: &str| Checkpoint::new(directory.path(), boot, owner("a"));
        assert_eq!(open("boot-1").load().unwrap(), Table::default());
        open("boot-1").store(&used()).unwrap();
        assert_eq!(open("boot-1").load().unwrap(), used());
        let mode = fs::metadata(open("boot-1").path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
        assert_eq!(open("boot-2").load().unwrap(), Table::default());
        assert!(!directory.path().join("table.json.broken").exists());
    }

    #[test]
    fn a_table_in_use_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let first = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        first.store(&used()).unwrap();
        assert_eq!(first.load().unwrap(), used());
        let other = Checkpoint::new(directory.path(), "boot-1", owner("b"));
        let error = other.load().unwrap_err().to_string();
        assert!(error.contains("of the holder a under") && error.contains("was given b"), "{error}");
        // Nothing is in use: nothing can be mistaken.
        first.store(&Table::default()).unwrap();
        assert_eq!(other.load().unwrap(), Table::default());
    }

    #[test]
    fn a_broken_table_is_set_aside_and_never_stops_the_keeper() {
        for bytes in ["", "{", r#"{"version":3,"tables":[]}"#, r#"{"version":2,"boot_id":"boot-1"}"#] {
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
        let checkpoint = Checkpoint::new(directory.path(), "boot-1", owner("a"));
        checkpoint.store(&used()).unwrap();
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
