//! Which cgroups a process of the keeper is in, and how it gets out of them: what kills a whole cgroup (`systemctl stop`, the
//! kernel for want of memory) must not reach all processes that guard this host's volumes.
//!
//! Hierarchies of v1, of v2 and of both are found by the mount table, wherever they are mounted. Nothing is believed of a move
//! but what the kernel's own list says afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use std::{fs, io};

/// Of two processes that make and remove one cgroup at once, the one that makes it tries again.
const TRIES: u32 = 5;

/// How long the first look at the hierarchies is waited for.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// The cgroups of a process: by the hierarchy's controllers, as `/proc/<pid>/cgroup` names them (v2: none), the path.
pub type Membership = BTreeMap<String, String>;

/// Where a hierarchy is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    directory: PathBuf,
    /// The cgroup that is shown there.
    root: String,
    /// Options of a v1 hierarchy, its controllers among them; none of v2.
    controllers: Option<BTreeSet<String>>,
}

/// The cgroups of a process.
///
/// # Errors
/// When it has ended.
pub fn of(pid: u32) -> io::Result<Membership> {
    Ok(parse(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?))
}

fn own() -> io::Result<Membership> {
    Ok(parse(&fs::read_to_string("/proc/self/cgroup")?))
}

fn parse(text: &str) -> Membership {
    let line = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        Some((controllers.to_owned(), path.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

fn places() -> io::Result<Vec<Place>> {
    Ok(parse_places(&String::from_utf8_lossy(&fs::read("/proc/self/mountinfo")?)))
}

fn parse_places(table: &str) -> Vec<Place> {
    let place = |line: &str| {
        let (mount, system) = line.split_once(" - ")?;
        let (mut mount, mut system) = (mount.split(' ').skip(3), system.split(' '));
        let (root, directory) = (mount.next()?.to_owned(), PathBuf::from(mount.next()?));
        let controllers = match system.next()? {
            "cgroup" => Some(system.nth(1)?.split(',').map(str::to_owned).collect()),
            "cgroup2" => None,
            _ => return None,
        };
        Some(Place { directory, root, controllers })
    };
    table.lines().filter_map(place).collect()
}

/// Where the hierarchy of these controllers is mounted; of several mounts the one that shows most of it.
fn find<'a>(places: &'a [Place], controllers: &str) -> Option<&'a Place> {
    let has = |place: &&Place| match &place.controllers {
        None => controllers.is_empty(),
        Some(options) => {
            !controllers.is_empty() && controllers.split(',').all(|wanted| options.contains(wanted))
        }
    };
    places.iter().filter(has).min_by_key(|place| place.root.len())
}

/// Moves this process to the root of each hierarchy that it is below of.
///
/// # Errors
/// Which could not be left, and why.
pub fn leave() -> Result<(), String> {
    let before = own().map_err(|error| format!("its cgroups could not be read: {error}"))?;
    let places = places().map_err(|error| format!("the mount table could not be read: {error}"))?;
    let mut why = BTreeMap::new();
    for (controllers, path) in &before {
        match find(&places, controllers) {
            Some(place) if place.root == *path => {}
            None if path == "/" => {}
            None => drop(why.insert(controllers, "it is not mounted".to_owned())),
            Some(place) => {
                if let Err(error) = enter_at(&place.directory) {
                    why.insert(controllers, error.to_string());
                }
            }
        }
    }
    left(&before, &places, &why)
}

/// Moves this process to a cgroup of its own in each hierarchy, right below the root, or to the root where that cannot be.
///
/// # Errors
/// Which cgroup could not be left, and why.
pub fn enter(name: &str) -> Result<(), String> {
    let before = own().map_err(|error| format!("its cgroups could not be read: {error}"))?;
    let places = places().map_err(|error| format!("the mount table could not be read: {error}"))?;
    let mut why = BTreeMap::new();
    for (controllers, path) in &before {
        let Some(place) = find(&places, controllers) else {
            if path != "/" {
                why.insert(controllers, "it is not mounted".to_owned());
            }
            continue;
        };
        let directory = place.directory.join(name);
        if let Err(error) = enter_new(&place.directory, &directory) {
            let root = if place.root == *path { Ok(()) } else { enter_at(&place.directory) };
            let also = root.err().map(|error| format!(", nor its root: {error}")).unwrap_or_default();
            why.insert(controllers, format!("{}: {error}{also}", directory.display()));
        }
    }
    left(&before, &places, &why)
}

fn enter_new(parent: &Path, directory: &Path) -> io::Result<()> {
    let mut last = Ok(());
    for _ in 0..TRIES {
        last = enter_once(parent, directory);
        match &last {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => break,
        }
    }
    last
}

fn enter_once(parent: &Path, directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Without a share of real time such a cgroup takes no process that has a real-time priority: its root does.
    if fs::read_to_string(directory.join("cpu.rt_runtime_us")).is_ok_and(|share| share.trim() == "0") {
        let _another_is_in_it = fs::remove_dir(directory);
        return enter_at(parent);
    }
    // A new cpuset of v1 has no processors and no memory, and takes nobody.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let unset = |set: String| set.trim().is_empty();
        if parent.join("cgroup.clone_children").exists()
            && fs::read_to_string(directory.join(file)).is_ok_and(unset)
        {
            fs::write(directory.join(file), fs::read(parent.join(file))?)?;
        }
    }
    enter_at(directory)
}

/// 0 stands for the writer, in whatever pid namespace it is.
fn enter_at(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.procs"), "0")
}

fn left(before: &Membership, places: &[Place], why: &BTreeMap<&String, String>) -> Result<(), String> {
    let after = own().map_err(|error| format!("its cgroups could not be read: {error}"))?;
    let because = |controllers: &str| {
        let found = why.iter().find(|(of, _)| **of == controllers);
        found.map(|(_, why)| format!(" ({why})")).unwrap_or_default()
    };
    match within(&after, before, places) {
        None => Ok(()),
        Some((controllers, path)) => {
            Err(format!("the cgroup {controllers}:{path} could not be left{}", because(controllers)))
        }
    }
}

/// The first cgroup of `of`, below a root, that `process` is in, too.
fn within<'a>(process: &Membership, of: &'a Membership, places: &[Place]) -> Option<(&'a str, &'a str)> {
    of.iter().map(|(controllers, path)| (controllers.as_str(), path.as_str())).find(|(controllers, path)| {
        let is_root = *path == "/" || find(places, controllers).is_some_and(|place| place.root == *path);
        let inside = |found: &String| {
            found.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        !is_root && process.get(*controllers).is_none_or(inside)
    })
}

/// Where this host's hierarchies are mounted. A thread of its own reads that: tenants that make mount namespaces hold the
/// kernel's lock of the mount tables, and who asks has to tick.
#[derive(Clone, Debug, Default)]
pub struct Hierarchies {
    places: Arc<Mutex<Vec<Place>>>,
    reading: Arc<AtomicBool>,
}

impl Hierarchies {
    /// Reads them. The first look is waited for, if it takes no time.
    #[must_use]
    pub fn new() -> Self {
        let hierarchies = Self::default();
        if let Some(read) = hierarchies.read() {
            let _later = read.recv_timeout(FIRST_LOOK);
        }
        hierarchies
    }

    /// Has them read, unless they are being read; what is answered tells of the end.
    fn read(&self) -> Option<mpsc::Receiver<()>> {
        if self.reading.swap(true, Ordering::SeqCst) {
            return None;
        }
        let (ended, end) = mpsc::channel();
        let (known, reading) = (Arc::clone(&self.places), Arc::clone(&self.reading));
        let read = move || {
            match places() {
                Ok(found) => *known.lock().unwrap_or_else(PoisonError::into_inner) = found,
                Err(error) => tracing::warn!("the mount table could not be read: {error}"),
            }
            reading.store(false, Ordering::SeqCst);
            // Who waited may have gone on.
            let _ = ended.send(());
        };
        if let Err(error) = std::thread::Builder::new().name("extvol-cgroups".into()).spawn(read) {
            tracing::warn!("the cgroups' mounts could not be read: {error}");
            self.reading.store(false, Ordering::SeqCst);
        }
        Some(end)
    }

    /// Whether what kills a cgroup that `of` is in leaves `process` alone. A cgroup of a hierarchy that is not known is no root;
    /// the hierarchies are read again for the next question.
    ///
    /// # Errors
    /// A cgroup that both are in, in words.
    pub fn is_apart(&self, process: &Membership, of: &Membership) -> Result<(), String> {
        let found = {
            let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            within(process, of, &places)
        };
        let Some((controllers, path)) = found else { return Ok(()) };
        let _later = self.read();
        Err(format!("both are in the cgroup {controllers}:{path}"))
    }
}

/// Removes the cgroups that [`enter`] made, where nobody is in them.
pub fn remove(name: &str) {
    for place in places().into_iter().flatten() {
        let _none_or_in_use = fs::remove_dir(place.directory.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /elsewhere/memory rw shared:4 master:2 - cgroup cgroup rw,memory
34 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
35 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    fn directory(table: &str, controllers: &str) -> Option<PathBuf> {
        find(&parse_places(table), controllers).map(|place| place.directory.clone())
    }

    #[test]
    fn a_hierarchy_is_found_where_it_is_mounted() {
        for (controllers, expected) in [
            ("cpu,cpuacct", Some("/sys/fs/cgroup/cpu,cpuacct")),
            ("memory", Some("/elsewhere/memory")),
            ("name=systemd", Some("/sys/fs/cgroup/systemd")),
            ("", Some("/sys/fs/cgroup/unified")),
            ("pids", None),
        ] {
            assert_eq!(directory(HYBRID, controllers), expected.map(PathBuf::from), "{controllers}");
        }
        let unified = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(directory(unified, ""), Some("/sys/fs/cgroup".into()));
        assert_eq!(directory(unified, "memory"), None);
    }

    #[test]
    fn two_processes_are_apart_when_no_cgroup_below_a_root_has_both() {
        let places = parse_places(HYBRID);
        let agent = parse("2:memory:/agent\n1:name=systemd:/system.slice/agent.service\n0::/\n");
        for (other, expected) in [
            ("2:memory:/\n1:name=systemd:/\n0::/\n", None),
            ("2:memory:/agent\n1:name=systemd:/\n0::/\n", Some(("memory", "/agent"))),
            ("2:memory:/agent/below\n1:name=systemd:/\n0::/\n", Some(("memory", "/agent"))),
            ("2:memory:/agent-2\n1:name=systemd:/system.slice/other.service\n0::/\n", None),
            (
                "2:memory:/own\n1:name=systemd:/system.slice/agent.service/x\n0::/\n",
                Some(("name=systemd", "/system.slice/agent.service")),
            ),
            // What is not listed is not known.
            ("1:name=systemd:/\n0::/\n", Some(("memory", "/agent"))),
        ] {
            assert_eq!(within(&parse(other), &agent, &places), expected, "{other}");
        }
        let at_root = parse("2:memory:/\n0::/\n");
        assert_eq!(within(&at_root, &at_root, &places), None, "nobody kills a root");
    }

    #[test]
    fn a_hierarchy_that_is_not_known_has_no_root_and_is_read_again_for_the_next_question() {
        let hierarchies = Hierarchies::default();
        let known = || !hierarchies.places.lock().unwrap().is_empty();
        let at_root = parse("2:memory:/\n");
        assert_eq!(hierarchies.is_apart(&at_root, &at_root), Ok(()));
        assert!(!known(), "nothing was asked that needs it");
        let member = parse("2:memory:/box\n");
        let why = hierarchies.is_apart(&member, &member).unwrap_err();
        assert_eq!(why, "both are in the cgroup memory:/box");
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while !known() {
            assert!(std::time::Instant::now() < until);
            std::thread::yield_now();
        }
        *hierarchies.places.lock().unwrap() =
            parse_places("31 23 0:28 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        assert_eq!(hierarchies.is_apart(&member, &member), Ok(()));
    }

    #[test]
    fn while_the_mount_table_is_being_read_nobody_waits_for_it() {
        let hierarchies = Hierarchies::default();
        // A look that never ends.
        hierarchies.reading.store(true, Ordering::SeqCst);
        let member = parse("2:memory:/box\n");
        assert!(hierarchies.is_apart(&member, &member).is_err());
        assert!(hierarchies.read().is_none());
    }

    #[test]
    fn below_a_mount_that_shows_a_part_that_part_is_the_root() {
        let table = "31 23 0:28 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let member = parse("2:memory:/box\n");
        assert_eq!(within(&member, &member, &parse_places(table)), None);
    }
}
