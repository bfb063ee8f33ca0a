//! The kernel's mount tables (proc(5), `/proc/[pid]/mountinfo`), read as bytes: a path need not be UTF-8.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{Mode, OFlags};

/// How often `/proc` is read again for a mount namespace whose processes all ended while it was read.
const SCANS: u32 = 8;

/// One line of a mount table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    pub(crate) parent: u64,
    pub(crate) device_number: String,
    /// The directory of the file system that is shown: `/`, unless a part of it was bound.
    pub(crate) root: PathBuf,
    pub(crate) mount_point: PathBuf,
    /// This mount's own options.
    pub(crate) options: String,
    pub(crate) shared: bool,
    /// The number of its peer group, where it is shared.
    pub(crate) peers: Option<u64>,
    /// The number of the peer group that it gets mounts and unmounts of, where it is a slave.
    pub(crate) master: Option<u64>,
    /// Its type, such as `ext4`.
    pub(crate) file_system: String,
    pub(crate) source: String,
    /// The file system's options.
    pub(crate) super_options: String,
}

impl Mount {
    /// Whether nobody can write to it.
    pub(crate) fn is_read_only(&self) -> bool {
        [&self.options, &self.super_options]
            .into_iter()
            .any(|options| options.split(',').any(|option| option == "ro"))
    }

    /// Whether it lies below a directory.
    pub(crate) fn is_below(&self, root: &Path) -> bool {
        self.mount_point != root && self.mount_point.starts_with(root)
    }
}

/// Reads a mount table.
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = |field: &[u8]| text(field).parse().ok();
        let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
        let device_number = text(fields.next()?);
        let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
        let (root, mount_point) = (path(fields.next()?), path(fields.next()?));
        let options = text(fields.next()?);
        let optional: Vec<_> = fields.by_ref().take_while(|field| *field != b"-").map(text).collect();
        let group = |name: &str| optional.iter().find_map(|field| field.strip_prefix(name)?.parse().ok());
        let (peers, master) = (group("shared:"), group("master:"));
        let (file_system, source) = (text(&unescape(fields.next()?)), text(&unescape(fields.next()?)));
        let super_options = fields.next().map(text).unwrap_or_default();
        Some(Mount {
            id,
            parent,
            device_number,
            root,
            mount_point,
            options,
            shared: peers.is_some(),
            peers,
            master,
            file_system,
            source,
            super_options,
        })
    };
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// The kernel writes space, tab, newline and backslash as octal escapes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match after.get(..3).filter(|_| *first == b'\\').and_then(octal) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// This process's table.
pub(crate) fn own() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount that shows `path`, by the kernel's own word: of stacked mounts the one on top.
pub(crate) fn showing(path: &Path) -> io::Result<Mount> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    showing_file(&file)?
        .ok_or_else(|| io::Error::other(format!("no mount in this process's table shows {}", path.display())))
}

/// The mount that an open file is on; none when this process's table does not show it.
pub(crate) fn showing_file(file: &OwnedFd) -> io::Result<Option<Mount>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    Ok(own()?.into_iter().find(|mount| Some(mount.id) == id))
}

/// A process, with the mount by which it sees a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Witness {
    pub(crate) pid: u32,
    pub(crate) name: String,
    pub(crate) mount_point: PathBuf,
}

/// A process of another mount namespace, and a mount in its table, for which `wanted` holds. It is given the process, the
/// mount and the whole table.
///
/// # Errors
/// When a namespace could not be read: then nothing is known of it.
pub(crate) fn elsewhere(wanted: impl Fn(u32, &Mount, &[Mount]) -> bool) -> io::Result<Option<Witness>> {
    let own_name = fs::read_link("/proc/self/ns/mnt")?;
    let own_ids: BTreeSet<u64> = own()?.into_iter().map(|mount| mount.id).collect();
    for _ in 0..SCANS {
        let mut unread = false;
        for (namespace, Processes { table, pids }) in namespaces()? {
            if namespace == Namespace::Named(own_name.clone()) {
                continue;
            }
            let Some(table) = any_table(table, &pids)? else {
                unread = true;
                continue;
            };
            // A mount's id is its own in the whole kernel: a copy in another namespace has another one.
            let is_own = table.first().is_some_and(|mount| own_ids.contains(&mount.id));
            if is_own {
                continue;
            }
            // Any process of the namespace may be the one that is looked for; all show the same table.
            let found =
                pids.iter().find_map(|pid| Some((*pid, table.iter().find(|m| wanted(*pid, m, &table))?)));
            if let Some((pid, mount)) = found {
                let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
                let name = String::from_utf8_lossy(&name).trim().to_owned();
                return Ok(Some(Witness { pid, name, mount_point: mount.mount_point.clone() }));
            }
        }
        if !unread {
            return Ok(None);
        }
    }
    Err(io::Error::other("processes come and go faster than their mount tables can be read"))
}

/// A mount namespace, as far as it can be told from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Namespace {
    /// By the kernel's name of it.
    Named(PathBuf),
    /// That of a process with capabilities that this one lacks, whose name is refused; its table is not.
    Of(u32),
}

/// Those of one namespace.
#[derive(Default)]
struct Processes {
    /// Opened when the first was listed: it can be read when that has ended, too. Tasks can make namespaces that end at once as
    /// fast as they like.
    table: Option<File>,
    pids: Vec<u32>,
}

/// The table of a namespace, also by another of its processes; none when all have ended.
fn any_table(opened: Option<File>, pids: &[u32]) -> io::Result<Option<Vec<Mount>>> {
    if let Some(mut opened) = opened {
        let mut table = Vec::new();
        opened.read_to_end(&mut table)?;
        return Ok(Some(parse(&table)));
    }
    for pid in pids {
        match fs::read(format!("/proc/{pid}/mountinfo")) {
            Ok(table) => return Ok(Some(parse(&table))),
            Err(error) if is_end(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// All mount namespaces that have processes, with those.
fn namespaces() -> io::Result<BTreeMap<Namespace, Processes>> {
    let mut namespaces: BTreeMap<Namespace, Processes> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let namespace = match fs::read_link(format!("/proc/{pid}/ns/mnt")) {
            Ok(name) => Namespace::Named(name),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Namespace::Of(pid),
            // It has ended, or is a zombie, which has let go of its namespace.
            Err(error) if is_end(&error) => continue,
            Err(error) => return Err(error),
        };
        let found = namespaces.entry(namespace).or_default();
        if found.table.is_none() {
            // Where there are more than this process may open, by its path later.
            found.table = File::open(format!("/proc/{pid}/mountinfo")).ok();
        }
        found.pids.push(pid);
    }
    Ok(namespaces)
}

/// What the kernel says of a process that has ended (EINVAL: one without a mount namespace any more).
fn is_end(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ends = [Errno::NOENT, Errno::SRCH, Errno::INVAL].map(|errno| errno.raw_os_error());
    error.raw_os_error().is_some_and(|code| ends.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:33 / /run rw - tmpfs tmpfs rw
50 22 7:3 / /var/lib/rexray/volumes/a\\040b rw,relatime shared:9 master:2 - ext4 /dev/loop3 rw
51 50 7:4 / /var/lib/rexray/volumes/\xff rw - ext4 /dev/loop4 ro,errors=remount-ro
";

    #[test]
    fn a_mount_table_is_read_with_its_escapes_optional_fields_and_odd_names() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[2].mount_point, Path::new("/var/lib/rexray/volumes/a b"));
        assert_eq!(mounts.iter().map(|m| m.shared).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!(mounts[3].source, "/dev/loop4");
        assert_eq!(mounts[3].parent, 50);
        assert_eq!((mounts[2].peers, mounts[2].master), (Some(9), Some(2)));
        assert_eq!((mounts[2].file_system.as_str(), mounts[2].root.as_path()), ("ext4", Path::new("/")));
        assert!(!mounts[2].is_read_only() && mounts[3].is_read_only(), "an ext4 that turned read-only");
        assert_eq!(unescape(b"a\\134b\\"), b"a\\b\\");
    }

    #[test]
    fn the_kernel_says_which_mount_shows_a_path() {
        let shown = showing(Path::new("/proc/self")).unwrap();
        assert_eq!(shown.mount_point, Path::new("/proc"));
        assert!(showing(Path::new("/proc/nothing")).is_err());
    }

    #[test]
    fn a_process_of_another_namespace_is_found_by_what_it_has_mounted() {
        // In a namespace of its own it mounts something that nobody else has.
        let script = "mount -t tmpfs extvol-witness /mnt && echo ready && cat";
        let mut child = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = io::BufReader::new(child.stdout.as_mut().unwrap());
        io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert_eq!(line, "ready\n");
        let witness = elsewhere(|_, mount, _| mount.source == "extvol-witness").unwrap().unwrap();
        assert_eq!(witness.mount_point, Path::new("/mnt"));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(elsewhere(|_, mount, _| mount.source == "extvol-witness").unwrap(), None);
    }
}
