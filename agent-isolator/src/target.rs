//! Where in a container a volume goes, resolved as Mesos's docker/volume isolator does:
//!
//! | container path | image | target | made if missing |
//! | --- | --- | --- | --- |
//! | absolute | yes | `<rootfs>/<path>` | yes |
//! | absolute | no | `<path>` on the host | no |
//! | relative | yes | `<rootfs>/<sandbox directory>/<path>` | yes, in the sandbox |
//! | relative | no | `<sandbox>/<path>` | yes |
//!
//! Rootfs and sandbox hold what users put there. A symbolic link in an image is resolved inside the
//! image, and one in a sandbox is refused: no link leads a root-owned mkdir or mount to the host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;

/// A container's places on the host.
#[derive(Clone, Debug)]
pub struct Places<'a> {
    /// The sandbox.
    pub sandbox: &'a Path,
    /// The image's root, if the container has one.
    pub rootfs: Option<&'a Path>,
    /// Where the sandbox is seen inside an image: the agent's flag `--sandbox_directory`.
    pub sandbox_in_image: &'a str,
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
            let target = PathBuf::from("/").join(inside);
            return match target.metadata() {
                Ok(found) if found.is_dir() => Ok(target),
                Ok(_) => Err(refused("it must be a directory on the host", &"it is none")),
                Err(error) => {
                    Err(refused("without an image it must be a directory that exists on the host", &error))
                }
            };
        };
        return make(rootfs, &inside, ResolveFlags::IN_ROOT)
            .map_err(|error| refused("it could not be made in the image's root", &error));
    }
    let in_sandbox = make(places.sandbox, &inside, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
        .map_err(|error| refused("it could not be made in the sandbox", &error))?;
    let Some(rootfs) = places.rootfs else { return Ok(in_sandbox) };
    // The sandbox is mounted there when the container starts, and shows what was made above.
    let sandbox = make(rootfs, &relative(places.sandbox_in_image), ResolveFlags::IN_ROOT)
        .map_err(|error| refused("the sandbox's place in the image could not be made", &error))?;
    Ok(sandbox.join(inside))
}

/// The path without leading slashes and `.` segments.
fn relative(path: &str) -> PathBuf {
    path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect()
}

/// Makes `path` below `root`, one directory after the other, and answers where it really is.
fn make(root: &Path, path: &Path, how: ResolveFlags) -> io::Result<PathBuf> {
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
        here = openat2(&root, &so_far, directory, Mode::empty(), how)?;
    }
    real_path(&here)
}

fn real_path(directory: &OwnedFd) -> io::Result<PathBuf> {
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
            resolve(path, &Places { sandbox: &sandbox, rootfs, sandbox_in_image: "/mnt/mesos/sandbox" })
        }
    }

    #[test]
    fn the_four_cases_resolve_as_the_table_says() {
        let tree = Tree::new();
        assert_eq!(tree.resolve("/var/db", true), Ok(tree.at("image/var/db")));
        assert!(tree.at("image/var/db").is_dir());
        let host = tree.at("host");
        assert_eq!(tree.resolve(host.to_str().unwrap(), false), Ok(host.clone()));
        let missing = host.join("missing");
        let error = tree.resolve(missing.to_str().unwrap(), false).unwrap_err();
        assert!(error.contains("missing") && error.contains("exists on the host"), "{error}");
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
}
