//! Processes that have files of a volume open, by its device number, or by the path of its directory: after a lazy unmount no
//! mount table shows it, and writes go on.
//!
//! What no process shows is not found: a file that is under way in a socket's queue or belongs to an `io_uring` alone, a loop device or swap on
//! a file of it, what a kernel's NFS server exports, and what a FUSE daemon has not yet written to its storage. Of a FUSE file system the
//! kernel tells whether it lives at all, whoever holds it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, MemfdFlags, Statx, StatxFlags, statx};
use shared::protocol::holder::{Directory, MountedVolume};

use super::{is_of, storage};
use crate::keeper::mount_table::{self, Mount};
use crate::keeper::{alive, process};

/// Where the kernel lists the FUSE file systems that live, by the minor of their numbers.
const FUSE: &str = "/sys/fs/fuse/connections";

/// `FUSE_SUPER_MAGIC`'s control file system, in statfs(2).
const FUSE_CONTROL: u64 = 0x6573_5543;

/// How a process holds a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::keeper) struct Hold {
    how: &'static str,
    /// Whether it is known to be this volume that it holds. What cannot be told keeps the volume from being idle, and nobody is killed
    /// for it.
    pub(in crate::keeper) sure: bool,
}

impl Hold {
    /// In words.
    pub(in crate::keeper) fn in_words(self) -> &'static str {
        self.how
    }
}

/// By id.
type Mounts = HashMap<u64, Mount>;

/// One look at processes. What it reads of a mount namespace it reads once: a host has thousands of files open, and tables of thousands
/// of mounts.
pub(in crate::keeper) struct Scan<'a> {
    mounted: &'a MountedVolume,
    cgroup_root: Option<&'a str>,
    own: Mounts,
    tables: BTreeMap<PathBuf, Mounts>,
    /// That of the process which is looked at, once it was asked for.
    namespace: Option<PathBuf>,
    /// Those of all namespaces that somebody lives in: a process may have files of one that is neither its own nor this one. Of mounts
    /// of other file systems only the ids. Read when it is needed.
    all: Option<HashMap<u64, Option<Mount>>>,
    /// The namespaces that somebody lives in, by the kernel's names of them.
    inhabited: BTreeSet<PathBuf>,
    /// The numbers of what is memory alone, and in no mount table: memfd, shared memory, huge pages of each size.
    memory: Vec<String>,
    /// The number of namespaces' own files.
    namespaces: Option<String>,
}

impl<'a> Scan<'a> {
    /// `cgroup_root`: the freezer cgroup below which the agent's containers are.
    pub(in crate::keeper) fn new(mounted: &'a MountedVolume, cgroup_root: Option<&'a str>) -> Self {
        let namespaces = rustix::fs::stat("/proc/self/ns/mnt").ok();
        Self {
            mounted,
            cgroup_root,
            own: by_id(mount_table::own().unwrap_or_default()),
            tables: BTreeMap::new(),
            namespace: None,
            all: None,
            inhabited: process::pids().into_iter().filter_map(namespace).collect(),
            memory: memory(),
            namespaces: namespaces.map(|found| storage::number(found.st_dev)),
        }
    }

    /// How a process holds the volume; none when it does not.
    pub(in crate::keeper) fn holds(&mut self, pid: u32) -> Option<Hold> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        self.namespace = None;
        let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
        let mut untold = None;
        let mut note = |hold: Option<Hold>| match hold {
            Some(hold) if hold.sure => Some(hold),
            other => {
                untold = untold.or(other);
                None
            }
        };
        for thread in threads.map(|thread| thread.path()) {
            let id = thread.file_name().and_then(|id| id.to_str()?.parse().ok()).unwrap_or(pid);
            // Threads may have files and directories of their own; nearly all have their process's.
            if id == pid
                && let Some(hold) = note(self.at(&thread.join("exe"), pid, "its program", &|| false))
            {
                return Some(hold);
            }
            if id == pid || !shares(pid, id, FS) {
                for (name, how) in [("cwd", "its working directory"), ("root", "its root directory")] {
                    if let Some(hold) = note(self.at(&thread.join(name), pid, how, &|| true)) {
                        return Some(hold);
                    }
                }
            }
            if id != pid && shares(pid, id, FILES) {
                continue;
            }
            for file in fs::read_dir(thread.join("fd")).into_iter().flatten().flatten() {
                let info = thread.join("fdinfo").join(file.file_name());
                if let Some(hold) = note(self.at(&file.path(), pid, "an open file", &|| may_write(&info))) {
                    return Some(hold);
                }
            }
        }
        if let Some(hold) = note(self.maps(&process, pid)) {
            return Some(hold);
        }
        untold
    }

    /// By what a link of /proc leads to. Nothing is opened, and no server is asked. `writes`: whether something can be changed by it.
    fn at(&mut self, link: &Path, pid: u32, how: &'static str, writes: &dyn Fn() -> bool) -> Option<Hold> {
        let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
        // It has ended, was closed, or is a kernel thread's.
        let found = statx(CWD, link, flags, StatxFlags::TYPE | StatxFlags::MNT_ID).ok()?;
        let sure = |is: bool| is.then_some(Hold { how, sure: true });
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        let number = number(&found);
        if self.namespaces.as_ref() == Some(&number) {
            let is_empty = self.leads_to_an_empty_namespace(link);
            return is_empty.then_some(Hold { how: "a mount namespace that nobody lives in", sure: false });
        }
        let Some(directory) = self.mounted.directory.clone() else {
            if *number != *self.mounted.device_number {
                return None;
            }
            // Several mounts of one server may share a number: what is on another one, which is still mounted, is not this volume's.
            let mounted = self.mounted;
            return sure(match self.mount(pid, found.stx_mnt_id) {
                Some(Shown::Mount(mount)) => is_of(mounted)(mount),
                Some(Shown::Other) | None => true,
            });
        };
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return None;
        }
        match self.mount(pid, found.stx_mnt_id) {
            Some(Shown::Mount(mount)) => sure(is_in(link, mount, &directory)),
            Some(Shown::Other) => None,
            None => {
                let changes = || kind == FileType::Directory || writes();
                let untold = self.may_be_of(&found, &number, pid, &directory) && changes();
                untold.then_some(Hold { how, sure: false })
            }
        }
    }

    /// Whether a file on a mount that no table shows may be in the directory: of a file system of its number; or, of a container, of
    /// whatever has no device, for a subvolume in a subvolume, and a file system over it, have numbers of their own.
    fn may_be_of(&self, found: &Statx, number: &str, pid: u32, directory: &Directory) -> bool {
        let is_its = *number == *directory.files || *number == *directory.file_system;
        let is_contained = || self.cgroup_root.is_some_and(|root| alive::is_below(pid, root));
        !self.memory.iter().any(|memory| memory == number)
            && (is_its || found.stx_dev_major == 0 && is_contained())
    }

    fn leads_to_an_empty_namespace(&self, link: &Path) -> bool {
        let to = fs::read_link(link).unwrap_or_default();
        to.to_str().is_some_and(|to| to.starts_with("mnt:[")) && !self.inhabited.contains(&to)
    }

    /// A mount by its id, which is its own in the whole kernel: of the process's namespace, of this one, of which an agent's containers
    /// have files, or of any other.
    fn mount(&mut self, pid: u32, id: u64) -> Option<Shown<'_>> {
        let key =
            self.namespace.get_or_insert_with(|| namespace(pid).unwrap_or_else(|| pid.to_string().into()));
        if !self.tables.contains_key(key) {
            let read = fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
            self.tables.insert(key.clone(), by_id(mount_table::parse(&read)));
        }
        let table = self.tables.get(key)?;
        if table.contains_key(&id) || self.own.contains_key(&id) {
            return table.get(&id).or_else(|| self.own.get(&id)).map(Shown::Mount);
        }
        let file_system = self.mounted.directory.as_ref().map(|directory| &directory.file_system);
        let all = self
            .all
            .get_or_insert_with(|| all(|mount| Some(&*mount.device_number) == file_system.map(|f| &**f)));
        all.get(&id).map(|mount| mount.as_ref().map_or(Shown::Other, Shown::Mount))
    }

    /// By a file that is mapped: a map outlives its descriptor.
    fn maps(&mut self, process: &Path, pid: u32) -> Option<Hold> {
        const HOW: &str = "a mapped file";
        let read = || fs::read_to_string(process.join("maps")).unwrap_or_default();
        let maps = read();
        let mut untold = None;
        for line in maps.lines() {
            let Some(map) = Map::parse(line).filter(|map| map.inode != "0") else { continue };
            let file = process.join("map_files").join(&map.name);
            // What is only read there, as programs and libraries are, changes nothing.
            match self.at(&file, pid, HOW, &|| map.writes) {
                Some(hold) if hold.sure => return Some(hold),
                Some(hold) => untold = Some(hold),
                // Unmapped meanwhile, or it could not be looked at.
                None if self.is_numbered(&map)
                    && !file.exists()
                    && read().lines().any(|again| again == line) =>
                {
                    untold = Some(Hold { how: HOW, sure: false });
                }
                None => {}
            }
        }
        untold
    }

    /// Whether a map is, by its number, of the volume's own file system.
    fn is_numbered(&self, map: &Map<'_>) -> bool {
        self.mounted.directory.is_none() && *map.number == *self.mounted.device_number
    }
}

/// A line of `maps`.
struct Map<'a> {
    /// Its name in `map_files`, where the kernel writes no leading zeros.
    name: String,
    writes: bool,
    number: String,
    inode: &'a str,
}

impl<'a> Map<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (rights, _offset) = (fields.next()?, fields.next()?);
        let (major, minor) = fields.next()?.split_once(':')?;
        Some(Self {
            name: format!("{:x}-{:x}", hex(start)?, hex(end)?),
            writes: rights.contains('w') && rights.ends_with('s'),
            number: format!("{}:{}", hex(major)?, hex(minor)?),
            inode: fields.next()?,
        })
    }
}

/// A mount that a table shows.
enum Shown<'a> {
    Mount(&'a Mount),
    /// Of a file system that is not looked for.
    Other,
}

/// The mounts of all namespaces, by id; of those that are not `wanted` the ids alone.
fn all(wanted: impl Fn(&Mount) -> bool) -> HashMap<u64, Option<Mount>> {
    let by_namespace: BTreeMap<_, _> =
        process::pids().into_iter().filter_map(|pid| Some((namespace(pid)?, pid))).collect();
    let tables = by_namespace.into_values().filter_map(|pid| fs::read(format!("/proc/{pid}/mountinfo")).ok());
    let mounts = tables.flat_map(|table| mount_table::parse(&table));
    mounts.map(|mount| (mount.id, Some(mount).filter(|mount| wanted(mount)))).collect()
}

/// Each size of huge pages has a mount of its own in the kernel. Nothing is allocated for a file that nobody writes.
fn memory() -> Vec<String> {
    let huge = [
        MemfdFlags::empty(),
        MemfdFlags::HUGE_64KB,
        MemfdFlags::HUGE_512KB,
        MemfdFlags::HUGE_1MB,
        MemfdFlags::HUGE_2MB,
        MemfdFlags::HUGE_8MB,
        MemfdFlags::HUGE_16MB,
        MemfdFlags::HUGE_32MB,
        MemfdFlags::HUGE_256MB,
        MemfdFlags::HUGE_512MB,
        MemfdFlags::HUGE_1GB,
        MemfdFlags::HUGE_2GB,
        MemfdFlags::HUGE_16GB,
    ];
    let huge = huge.into_iter().map(|size| MemfdFlags::HUGETLB | size);
    let number = |flags: MemfdFlags| {
        let file = rustix::fs::memfd_create("extvol", flags | MemfdFlags::CLOEXEC).ok()?;
        Some(storage::number(rustix::fs::fstat(file).ok()?.st_dev))
    };
    // A size that the processor has not is refused.
    std::iter::once(MemfdFlags::empty()).chain(huge).filter_map(number).collect()
}

fn by_id(table: Vec<Mount>) -> Mounts {
    table.into_iter().map(|mount| (mount.id, mount)).collect()
}

fn namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

fn number(found: &Statx) -> String {
    format!("{}:{}", found.stx_dev_major, found.stx_dev_minor)
}

/// Whether what a link of /proc leads to, by this mount, is in the directory.
fn is_in(link: &Path, mount: &Mount, directory: &Directory) -> bool {
    if *mount.device_number != *directory.file_system {
        return false;
    }
    if directory.holds(&mount.device_number, &mount.root) {
        return true;
    }
    let Ok(path) = fs::read_link(link) else { return false };
    let below = path.strip_prefix(&mount.mount_point).map(|rest| mount.root.join(rest));
    below.is_ok_and(|path| directory.holds(&mount.device_number, &path))
}

/// Whether a descriptor is open for writing, or only stands for a place; what cannot be told is taken so.
fn may_write(info: &Path) -> bool {
    const ACCESS: u32 = 0o3;
    const PATH: u32 = 0o1000_0000;
    let info = fs::read_to_string(info).unwrap_or_default();
    let flags =
        info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_none_or(|flags| flags & ACCESS != 0 || flags & PATH != 0)
}

/// `KCMP_FILES`, `KCMP_FS`.
const FILES: i32 = 2;
const FS: i32 = 3;

/// Whether a thread has its process's descriptors, or its directories; what the kernel does not tell is taken for no.
fn shares(pid: u32, thread: u32, what: i32) -> bool {
    if pid == thread {
        return true;
    }
    #[expect(unsafe_code, reason = "a call that rustix does not have")]
    // SAFETY: kcmp(2) takes five numbers and no pointer, and changes nothing.
    let compared = unsafe { libc::syscall(libc::SYS_kcmp, pid, thread, what, 0, 0) };
    compared == 0
}

/// A process that holds the volume, in words.
pub(super) fn holder(mounted: &MountedVolume, cgroup_root: Option<&str>) -> Option<String> {
    let own = std::process::id();
    // A process that was made by one that has ended since may have been missed: the second look finds it.
    for _ in 0..2 {
        let mut scan = Scan::new(mounted, cgroup_root);
        for pid in process::pids().into_iter().filter(|pid| *pid != own) {
            if let Some(hold) = scan.holds(pid) {
                return Some(format!("{}, by {},", super::idle::in_words(pid), hold.in_words()));
            }
        }
    }
    None
}

/// Whether a FUSE file system lives, whoever holds it: by a mount that no process's table shows, a descriptor in a socket's queue. None
/// where the kernel does not tell, or of another kind.
pub(in crate::keeper) fn lives(mounted: &MountedVolume, table: &[Mount]) -> Option<bool> {
    if !mounted.file_system.starts_with("fuse") || mounted.device.is_some() {
        return None;
    }
    let shown = rustix::fs::statfs(FUSE).ok()?;
    if u64::try_from(shown.f_type).ok()? != FUSE_CONTROL {
        return None;
    }
    let (_, minor) = mounted.device_number.split_once(':')?;
    Some(!is_anothers_by_now(mounted, table) && Path::new(FUSE).join(minor).exists())
}

/// Whether the volume's number was given to another file system, which is mounted.
fn is_anothers_by_now(mounted: &MountedVolume, table: &[Mount]) -> bool {
    table.iter().any(|mount| *mount.device_number == *mounted.device_number && !is_of(mounted)(mount))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn a_number_without_a_device_is_anothers_when_another_source_has_it() {
        let table = |source: &str| {
            let line = format!("30 1 0:44 / /m/v rw shared:1 - fuse.sshfs {source} rw\n");
            mount_table::parse(line.as_bytes())
        };
        let mounted = super::super::of(&table("host:/a")[0], "/m/v");
        assert!(!is_anothers_by_now(&mounted, &table("host:/a")) && !is_anothers_by_now(&mounted, &[]));
        assert!(is_anothers_by_now(&mounted, &table("host:/b")));
    }

    #[test]
    fn huge_pages_are_memory_as_well() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
        let Ok(file) = rustix::fs::memfd_create("huge", flags) else { return };
        let found = rustix::fs::fstat(&file).unwrap();
        assert!(memory().contains(&storage::number(found.st_dev)));
    }

    #[test]
    fn by_what_only_reads_nothing_is_changed_and_what_stands_for_a_place_can_be_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let writes = |flags| {
            let opened = rustix::fs::open(&file, flags, Mode::empty()).unwrap();
            may_write(Path::new(&format!("/proc/self/fdinfo/{}", opened.as_raw_fd())))
        };
        assert!(!writes(OFlags::RDONLY));
        assert!(writes(OFlags::WRONLY) && writes(OFlags::RDWR) && writes(OFlags::PATH));
        assert!(may_write(Path::new("/proc/self/fdinfo/none")), "what cannot be told");
    }
}
