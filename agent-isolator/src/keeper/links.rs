//! A link for each volume that is mounted here, `<link_directory>/<driver>/<volume>`: for people and tools of the host that look for
//! a volume by its name, and need not know where its driver mounts. Nothing is decided by a link, and containers get none.
//!
//! A thread of its own keeps them: a file system that hangs delays links, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use shared::protocol::Text;
use shared::quote;
use shared::volume::VolumeId;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// By volume, where it is.
type Mounted = BTreeMap<VolumeId, Text>;

/// The links of a host.
pub(super) struct Links {
    /// However long a file system hangs, one wish is kept: the last.
    wanted: watch::Sender<Option<Mounted>>,
}

impl Links {
    /// Begins to keep them.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn keep(directory: PathBuf, roots: Vec<PathBuf>) -> io::Result<Self> {
        let (wanted, told) = watch::channel(None);
        let waits = tokio::runtime::Builder::new_current_thread().build()?;
        std::thread::Builder::new()
            .name("extvol-links".into())
            .spawn(move || keep(&directory, &roots, told, &waits))?;
        Ok(Self { wanted })
    }

    /// These are mounted, and no others.
    pub(super) fn set(&mut self, mounted: Mounted) {
        self.wanted.send_if_modified(|last| {
            let is_news = last.as_ref() != Some(&mounted);
            if is_news {
                *last = Some(mounted);
            }
            is_news
        });
    }
}

/// Ends with [`Links`].
fn keep(directory: &Path, roots: &[PathBuf], mut told: watch::Receiver<Option<Mounted>>, waits: &Runtime) {
    let mut said = None;
    while waits.block_on(told.changed()).is_ok() {
        let Some(mounted) = told.borrow_and_update().clone() else { continue };
        let fault = make(directory, roots, &mounted).err().map(|error| error.to_string());
        if let Some(why) = fault.as_ref().filter(|why| said.as_ref() != Some(*why)) {
            tracing::warn!(
                "the links of volumes in {} are not as they should be: {why}",
                directory.display()
            );
        }
        said = fault;
    }
}

/// A name as one part of a path. Volumes of some drivers have slashes in theirs; no name is `.` or `..`.
fn part(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

/// Makes the directory's links these.
fn make(directory: &Path, roots: &[PathBuf], mounted: &Mounted) -> io::Result<()> {
    let place = |id: &VolumeId| directory.join(part(id.driver.as_str())).join(part(id.name.as_str()));
    let wanted: BTreeMap<_, _> = mounted.iter().map(|(id, at)| (place(id), at)).collect();
    let mut first = Ok(());
    let mut note = |result: io::Result<()>, path: &Path| {
        if let (Err(error), Ok(())) = (result, &first) {
            let path = path.display().to_string();
            first = Err(io::Error::new(error.kind(), format!("{}: {error}", quote::line(&path))));
        }
    };
    let there = links(directory, roots)?;
    for path in there.iter().filter(|path| !wanted.contains_key(*path)) {
        note(fs::remove_file(path), path);
    }
    for (path, at) in wanted {
        if fs::read_link(&path).is_ok_and(|to| to == Path::new(&**at)) {
            continue;
        }
        note(link(&path, Path::new(&**at), roots), &path);
    }
    first
}

/// Only links to below the roots: whatever else lies there is somebody's.
fn links(directory: &Path, roots: &[PathBuf]) -> io::Result<BTreeSet<PathBuf>> {
    let is_own =
        |path: &Path| fs::read_link(path).is_ok_and(|to| roots.iter().any(|root| to.starts_with(root)));
    let entries = |directory: &Path| match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries?.collect::<io::Result<Vec<_>>>(),
    };
    let mut found = BTreeSet::new();
    for driver in entries(directory)? {
        if driver.file_type()?.is_dir() {
            let links = entries(&driver.path())?.into_iter();
            found.extend(
                links
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
                    .map(|entry| entry.path())
                    .filter(|path| is_own(path)),
            );
        }
    }
    Ok(found)
}

/// In one step, so that nobody finds a half of it. A file in the way stays.
fn link(path: &Path, to: &Path, roots: &[PathBuf]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    fs::create_dir_all(directory)?;
    let is_own = |to: PathBuf| roots.iter().any(|root| to.starts_with(root));
    if fs::symlink_metadata(path).is_ok() && !fs::read_link(path).is_ok_and(is_own) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is in its place"));
    }
    let new = directory.join(".extvol-new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(to, &new)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use shared::volume::{Driver, VolumeName};

    use super::*;

    fn mounted(volumes: &[(&str, &str, &str)]) -> Mounted {
        let entry = |(driver, name, at): &(&str, &str, &str)| {
            let id =
                VolumeId { driver: Driver::new(*driver).unwrap(), name: VolumeName::new(*name).unwrap() };
            (id, Text::from(*at))
        };
        volumes.iter().map(entry).collect()
    }

    #[test]
    fn there_is_a_link_for_each_volume_and_for_no_other() {
        let host = tempfile::tempdir().unwrap();
        let directory = host.path().join("foo/rexray");
        let to = |path: &str| fs::read_link(directory.join(path)).ok();
        let roots = ["/m".into()];
        let make = |directory: &Path, mounted: &Mounted| make(directory, &roots, mounted);
        make(&directory, &mounted(&[("ebs", "vol-1", "/m/1"), ("rbd", "pool/image", "/m/2")])).unwrap();
        assert_eq!(to("ebs/vol-1"), Some("/m/1".into()));
        assert_eq!(to("rbd/pool%2Fimage"), Some("/m/2".into()));
        // What an earlier life left, mounted elsewhere by now or nowhere.
        make(&directory, &mounted(&[("ebs", "vol-1", "/m/other"), ("ebs", "vol-2", "/m/3")])).unwrap();
        assert_eq!((to("ebs/vol-1"), to("ebs/vol-2")), (Some("/m/other".into()), Some("/m/3".into())));
        assert_eq!(to("rbd/pool%2Fimage"), None);
        assert_eq!(links(&directory, &roots).unwrap().len(), 2);
        // A link of somebody's in the place of the directory, or a file, is not followed and not removed.
        symlink(host.path(), directory.join("linked")).unwrap();
        symlink("/bin/true", directory.join("ebs/editor")).unwrap();
        fs::write(directory.join("ebs/vol-3"), "mine").unwrap();
        let error = make(&directory, &mounted(&[("ebs", "vol-3", "/m/3")])).unwrap_err();
        assert!(error.to_string().contains("ebs/vol-3: something else"), "{error}");
        assert_eq!(to("ebs/editor"), Some("/bin/true".into()));
        assert_eq!(fs::read(directory.join("ebs/vol-3")).unwrap(), b"mine");
        assert!(to("ebs/vol-1").is_none() && to("linked").is_some());
    }

    #[test]
    fn the_thread_keeps_what_was_set_last_and_begins_by_taking_away_what_an_earlier_life_left() {
        let host = tempfile::tempdir().unwrap();
        let at = host.path().join("ebs/v");
        fs::create_dir(host.path().join("ebs")).unwrap();
        symlink("/m/0", &at).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let becomes = |to: Option<&str>| {
            while fs::read_link(&at).ok() != to.map(PathBuf::from) {
                assert!(std::time::Instant::now() < until, "{to:?}");
                std::thread::yield_now();
            }
        };
        let mut links = Links::keep(host.path().to_owned(), vec!["/m".into()]).unwrap();
        links.set(mounted(&[]));
        becomes(None);
        for to in ["/m/1", "/m/2", "/m/3"] {
            links.set(mounted(&[("ebs", "v", to)]));
        }
        becomes(Some("/m/3"));
    }
}
