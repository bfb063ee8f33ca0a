//! Where in a container a volume goes, resolved as Mesos's docker/volume isolator does, but that the host's own paths
//! are covered only where its operator allows it:
//!
//! | container path | image | target | made if missing |
//! | --- | --- | --- | --- |
//! | absolute | yes | `<rootfs>/<path>` | yes |
//! | absolute | no | `<path>` on the host, below one of `host_paths` | yes |
//! | relative | yes | `<rootfs>/<sandbox directory>/<path>` | yes, in the sandbox |
//! | relative | no | `<sandbox>/<path>` | yes |
//!
//! Rootfs and sandbox hold what users put there. A symbolic link in an image is resolved inside the
//! image, and one in a sandbox is refused: no link leads a root-owned mkdir or mount to the host. Nor does one that comes
//! later, before the launch helper mounts: below [`guarded`] none is followed then (`isolator/mounts.rs`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, open, openat2, stat};
use rustix::io::Errno;

use crate::rules::kernels;

/// A container's places on the host.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// The sandbox.
    pub sandbox: &'a Path,
    /// The image's root, if the container has one.
    pub rootfs: Option<&'a Path>,
    /// Where the sandbox is seen inside an image: the agent's flag `--sandbox_directory`.
    pub sandbox_in_image: &'a str,
    /// The directories of the host below which a container path without an image may lie.
    pub host_paths: &'a [PathBuf],
}

/// The mount's target, as Mesos's launch helper needs it: a path in the host's tree. Makes the
/// directory where the table above says so.
///
/// # Errors
/// A sentence that names the container path.
pub fn resolve(container_path: &str, places: &Places<'_>) -> Result<PathBuf, String> {
    let refused = |what: &str, error: &dyn std::fmt::Display| {
        format!("container path {container_path:?}: {what}: {error}")
    };
    let inside = relative(container_path);
    if container_path.starts_with('/') {
        let Some(rootfs) = places.rootfs else {
            return on_host(&Path::new("/").join(inside), places.host_paths)
                .map_err(|why| format!("container path {container_path:?}: {why}"));
        };
        let sandbox = Path::new("/").join(relative(places.sandbox_in_image));
        if sandbox.starts_with(Path::new("/").join(&inside)) {
            let why = format!("the sandbox is at {} there", sandbox.display());
            return Err(refused("it would cover the container's sandbox", &why));
        }
        let target = make(rootfs, &inside, ResolveFlags::IN_ROOT)
            .map_err(|error| refused("it could not be made in the image's root", &error))?;
        let root = place(rootfs).map_err(|error| refused("the image's root cannot be read", &error))?;
        let found = target.strip_prefix(&root).map(|found| Path::new("/").join(found));
        return match found.as_deref().map(|found| (found, kernels(found))) {
            Ok((found, None)) if target != root && sandbox_is_below(rootfs, &sandbox, found)? => {
                Err(refused("a link of the image leads it to the container's sandbox", &found.display()))
            }
            Ok((_, None)) if target != root => Ok(target),
            Ok((found, _)) => {
                Err(refused("a link of the image leads it to what is never covered", &found.display()))
            }
            Err(error) => Err(refused("it is not in the image", &error)),
        };
    }
    // Nor into a persistent volume, which is a mount of its own: there a link may come behind this look.
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let in_sandbox = make(places.sandbox, &inside, how)
        .map_err(|error| refused("it could not be made in the sandbox", &error))?;
    let Some(rootfs) = places.rootfs else { return Ok(in_sandbox) };
    // The sandbox is mounted there when the container starts, and shows what was made above.
    let sandbox = make(rootfs, &relative(places.sandbox_in_image), ResolveFlags::IN_ROOT)
        .map_err(|error| refused("the sandbox's place in the image could not be made", &error))?;
    Ok(sandbox.join(inside))
}

/// Whether the sandbox's place in the image, by its links too, is at or below a directory of the image.
fn sandbox_is_below(rootfs: &Path, sandbox: &Path, directory: &Path) -> Result<bool, String> {
    let inside = sandbox.strip_prefix("/").map_err(|error| error.to_string())?;
    let unread = |error: io::Error| format!("the sandbox's place in the image could not be made: {error}");
    let real = make(rootfs, inside, ResolveFlags::IN_ROOT).map_err(unread)?;
    let root = place(rootfs).map_err(unread)?;
    Ok(real.strip_prefix(root).is_ok_and(|real| Path::new("/").join(real).starts_with(directory)))
}

/// The directories below which users may put links in the way of these targets, from the outermost in, each with the
/// directory that shows its mount's flags on the host. Nobody but root can replace the first; the second is in it.
///
/// # Errors
/// A sentence, of a directory that cannot be read.
pub fn guarded<'a>(
    container_paths: impl Iterator<Item = &'a str> + Clone,
    places: &Places<'_>,
) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let mut paths = container_paths;
    let none = paths.clone().next().is_none();
    let in_sandbox = paths.any(|path| !path.starts_with('/'));
    let unread = |what: &str, error: io::Error| format!("{what} cannot be read: {error}");
    // In the host's own tree nobody else than root can put a link on the way: see `on_host`.
    if none || (places.rootfs.is_none() && !in_sandbox) {
        return Ok(Vec::new());
    }
    let Some(rootfs) = places.rootfs else {
        let sandbox = place(places.sandbox).map_err(|error| unread("the sandbox", error))?;
        // A nested container's sandbox is in that of its executor, whose user may replace it.
        let outermost = outermost_shared(&sandbox).map_err(|error| unread("the sandbox", error))?;
        return Ok(vec![(outermost.clone(), outermost)]);
    };
    let root = place(rootfs).map_err(|error| unread("the image's root", error))?;
    // A mount of its own, and an absolute path may lead there too.
    let inside = make(rootfs, &relative(places.sandbox_in_image), ResolveFlags::IN_ROOT)
        .map_err(|error| unread("the sandbox's place in the image", error))?;
    Ok(vec![(root.clone(), root), (inside, places.sandbox.to_owned())])
}

/// The first directory on the way to `path` in which somebody else than root may put another in the next one's place;
/// without one, `path`.
fn outermost_shared(path: &Path) -> io::Result<PathBuf> {
    let mut ways: Vec<_> = path.ancestors().collect();
    ways.reverse();
    for (parent, entry) in ways.iter().zip(ways.iter().skip(1)) {
        let (above, below) = (stat(*parent)?, stat(*entry)?);
        let shared = above.st_mode & 0o022 != 0 && (above.st_mode & 0o1000 == 0 || below.st_uid != 0);
        // A mount of its own for `/` is not seen by paths that begin there.
        if (above.st_uid != 0 || shared) && parent.parent().is_some() {
            return Ok(parent.to_path_buf());
        }
    }
    Ok(path.to_owned())
}

/// The path without leading slashes and `.` segments.
pub(crate) fn relative(path: &str) -> PathBuf {
    path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect()
}

/// A directory of the host, below one that its operator has given for this. No user may be able to put another
/// directory, or a link, in the place of any on the way.
fn on_host(path: &Path, allowed: &[PathBuf]) -> Result<PathBuf, String> {
    let Some(above) = allowed.iter().find(|above| path.starts_with(above) && path != above.as_path()) else {
        let listed = match allowed {
            [] => "lists none".to_owned(),
            some => format!(
                "lists {}",
                some.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
            ),
        };
        return Err(format!(
            "without an image it would cover a path of the host, and the agent's parameter host_paths {listed}; name a \
             path without a leading slash, which is in the sandbox, or use an image, or have the operator add a \
             directory above it to host_paths"
        ));
    };
    let inside = path.strip_prefix(above).map_err(|error| error.to_string())?;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    make_checked(above, inside, how, check_owner).map_err(|error| {
        format!("it could not be used or made below the host's {}: {error}", above.display())
    })
}

/// Whether nobody but root may replace an entry of a directory of root's: `parent` holds `entry`.
fn check_owner(parent: &Stat, entry: &Stat) -> io::Result<()> {
    let sticky = parent.st_mode & 0o1000 != 0;
    let shared = parent.st_mode & 0o022 != 0;
    if entry.st_uid != 0 || parent.st_uid != 0 || (shared && !sticky) {
        return Err(io::Error::other(
            "somebody else than root could put another directory in its place: all directories on the way must be \
             root's, and those that others may write sticky",
        ));
    }
    Ok(())
}

/// Makes `path` below `root`, one directory after the other, and answers where it really is.
fn make(root: &Path, path: &Path, how: ResolveFlags) -> io::Result<PathBuf> {
    make_checked(root, path, how, |_, _| Ok(()))
}

/// As [`make`]; `check` is asked about each directory and the one that it is in.
fn make_checked(
    root: &Path,
    path: &Path,
    how: ResolveFlags,
    check: fn(&Stat, &Stat) -> io::Result<()>,
) -> io::Result<PathBuf> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(root, directory, Mode::empty())?;
    let mut so_far = PathBuf::new();
    let mut here: OwnedFd = openat2(&root, ".", directory, Mode::empty(), how)?;
    for segment in path {
        let parent = here.as_fd();
        match mkdirat(parent, segment, Mode::from(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        so_far.push(segment);
        // Always from the root: a link on the way is resolved against it, never against the host.
        let next = openat2(&root, &so_far, directory, Mode::empty(), how)?;
        check(&fstat(parent)?, &fstat(&next)?)?;
        here = next;
    }
    real_path(&here)
}

/// Where a directory really is.
fn place(directory: &Path) -> io::Result<PathBuf> {
    real_path(&open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

pub(crate) fn real_path(directory: &OwnedFd) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStringExt;
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let target = rustix::fs::readlinkat(CWD, link, Vec::new())?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Tree {
        root: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for directory in ["sandbox", "image/etc", "host"] {
                std::fs::create_dir_all(root.path().join(directory)).unwrap();
            }
            Self { root }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.root.path().canonicalize().unwrap().join(path)
        }

        fn resolve(&self, path: &str, image: bool) -> Result<PathBuf, String> {
            let (sandbox, rootfs) = (self.at("sandbox"), self.at("image"));
            let rootfs = image.then_some(rootfs.as_path());
            let host_paths = [self.at("host")];
            let sandbox_in_image = "/mnt/mesos/sandbox";
            resolve(path, &Places { sandbox: &sandbox, rootfs, sandbox_in_image, host_paths: &host_paths })
        }
    }

    #[test]
    fn the_four_cases_resolve_as_the_table_says() {
        let tree = Tree::new();
        assert_eq!(tree.resolve("/var/db", true), Ok(tree.at("image/var/db")));
        assert!(tree.at("image/var/db").is_dir());
        assert_eq!(tree.resolve("data/x", false), Ok(tree.at("sandbox/data/x")));
        assert_eq!(tree.resolve("./data//y", true), Ok(tree.at("image/mnt/mesos/sandbox/data/y")));
        assert!(tree.at("sandbox/data/y").is_dir());
    }

    #[test]
    fn a_link_in_an_image_is_resolved_inside_the_image() {
        let tree = Tree::new();
        symlink(tree.at("host"), tree.at("image/absolute")).unwrap();
        symlink("../../../../etc", tree.at("image/up")).unwrap();
        // The absolute link's target does not exist inside the image, and nothing is made outside.
        assert!(tree.resolve("/absolute/made", true).is_err());
        assert_eq!(std::fs::read_dir(tree.at("host")).unwrap().count(), 0);
        assert_eq!(tree.resolve("/up/made", true), Ok(tree.at("image/etc/made")));
    }

    #[test]
    fn a_link_in_a_sandbox_is_refused() {
        let tree = Tree::new();
        symlink(tree.at("host"), tree.at("sandbox/link")).unwrap();
        assert!(tree.resolve("link/made", false).is_err());
        assert!(tree.resolve("link", false).is_err());
        assert_eq!(std::fs::read_dir(tree.at("host")).unwrap().count(), 0);
    }

    #[test]
    fn a_path_of_the_host_is_covered_only_below_what_its_operator_lists() {
        let tree = Tree::new();
        for path in
            ["/etc", "/tmp/ebs-auto", tree.at("host").to_str().unwrap(), tree.at("hosts/x").to_str().unwrap()]
        {
            let error = tree.resolve(path, false).unwrap_err();
            let expected = format!(
                "container path {path:?}: without an image it would cover a path of the host, and \
                                    the agent's parameter host_paths lists {}",
                tree.at("host").display()
            );
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = on_host(Path::new("/tmp/ebs-auto"), &[]).unwrap_err();
        assert!(
            error.contains("the agent's parameter host_paths lists none; name a path without"),
            "{error}"
        );
        assert!(!Path::new("/tmp/ebs-auto").exists());
    }

    /// The entries are root's only if the test is root.
    #[test]
    fn root_a_directory_of_the_host_is_made_where_nobody_else_can_put_another_in_its_place() {
        use std::os::unix::fs::{PermissionsExt, chown};
        let tree = Tree::new();
        let host = tree.at("host");
        let path = |name: &str| host.join(name).to_str().unwrap().to_owned();
        let mode =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        assert_eq!(tree.resolve(&path("made/below"), false), Ok(host.join("made/below")));
        assert!(host.join("made/below").is_dir());
        // As /tmp is.
        mode(&host, 0o1777);
        assert_eq!(tree.resolve(&path("sticky"), false), Ok(host.join("sticky")));
        let refused = |name: &str| {
            let error = tree.resolve(&path(name), false).unwrap_err();
            assert!(error.contains("it could not be used or made below the host's"), "{error}");
            error
        };
        std::fs::create_dir(host.join("users")).unwrap();
        chown(host.join("users"), Some(65534), None).unwrap();
        assert!(refused("users").contains("somebody else than root could put"));
        assert!(refused("users/below").contains("somebody else than root could put"));
        mode(&host, 0o777);
        assert!(refused("sticky").contains("somebody else than root could put"));
        mode(&host, 0o755);
        symlink("/etc", host.join("link")).unwrap();
        refused("link");
        refused("link/below");
        assert!(!Path::new("/etc/below").exists());
        std::fs::write(host.join("file"), "").unwrap();
        refused("file");
    }

    #[test]
    fn neither_the_sandbox_nor_the_kernels_trees_are_covered_in_an_image() {
        let tree = Tree::new();
        for path in ["/mnt", "/mnt/mesos/sandbox"] {
            let error = tree.resolve(path, true).unwrap_err();
            assert!(
                error.contains("it would cover the container's sandbox: the sandbox is at /mnt/mesos"),
                "{error}"
            );
        }
        assert_eq!(
            tree.resolve("/mnt/mesos/sandbox/data", true),
            Ok(tree.at("image/mnt/mesos/sandbox/data"))
        );
        for (name, link) in [("x", "/mnt"), ("y", "mnt/mesos"), ("z", "/mnt/mesos/sandbox")] {
            symlink(link, tree.at("image").join(name)).unwrap();
            let error = tree.resolve(&format!("/{name}"), true).unwrap_err();
            assert!(
                error.contains("a link of the image leads it to the container's sandbox"),
                "{name}: {error}"
            );
        }
        std::fs::create_dir_all(tree.at("image/proc/sys")).unwrap();
        for (name, link) in [("p", "/proc"), ("q", "proc/sys"), ("r", "/"), ("s", "../..")] {
            symlink(link, tree.at("image").join(name)).unwrap();
            let error = tree.resolve(&format!("/{name}"), true).unwrap_err();
            assert!(
                error.contains("a link of the image leads it to what is never covered"),
                "{name}: {error}"
            );
        }
    }

    /// The entries are root's only if the test is root.
    #[test]
    fn root_no_link_is_followed_from_where_somebody_else_than_root_can_put_one() {
        use std::os::unix::fs::chown;
        let tree = Tree::new();
        std::fs::create_dir_all(tree.at("sandbox/containers/c")).unwrap();
        let guarded = |sandbox: &str, image: bool, paths: &[&str]| {
            let (sandbox, rootfs) = (tree.at(sandbox), tree.at("image"));
            let rootfs = image.then_some(rootfs.as_path());
            let places =
                Places { sandbox: &sandbox, rootfs, sandbox_in_image: "/mnt/sandbox", host_paths: &[] };
            let all = guarded(paths.iter().copied(), &places).unwrap();
            all.into_iter().map(|(path, _)| path).collect::<Vec<_>>()
        };
        assert_eq!(guarded("sandbox/containers/c", false, &["data"]), [tree.at("sandbox/containers/c")]);
        chown(tree.at("sandbox"), Some(65534), None).unwrap();
        assert_eq!(guarded("sandbox/containers/c", false, &["data"]), [tree.at("sandbox")]);
        assert_eq!(guarded("sandbox", false, &["data"]), [tree.at("sandbox")]);
        assert!(guarded("sandbox", false, &["/srv/x"]).is_empty());
        let both = [tree.at("image"), tree.at("image/mnt/sandbox")];
        assert_eq!(guarded("sandbox", true, &["/x"]), both);
    }
}
