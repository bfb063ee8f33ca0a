//! Looking at the host for containers without leased volumes: where the paths lead that their ContainerInfo shows, and
//! which mount roots they are not to see. That may take for ever, where a file system does not answer: each look has a
//! thread of its own, and Mesos waits for as long as the look may take.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::mounts::{self, ToHide};
use crate::rules::Shown;
use crate::target;

/// A file system that answers does so in milliseconds; this covers a busy one. The container is launched all the same.
const ROOTS_TIMEOUT: Duration = Duration::from_secs(1);
/// As [`ROOTS_TIMEOUT`], for a container that is not launched without the look.
const PATHS_TIMEOUT: Duration = Duration::from_secs(10);
/// Threads of each kind at once; usually one lives for less than a millisecond.
const THREADS_MAX: usize = 64;

/// The threads. Those that walk users' paths are others: they keep no look at the mount roots waiting.
pub(super) struct Threads {
    roots: (Arc<Semaphore>, Duration),
    paths: (Arc<Semaphore>, Duration),
}

impl Threads {
    pub(super) fn new() -> Self {
        let threads = || Arc::new(Semaphore::new(THREADS_MAX));
        Self { roots: (threads(), ROOTS_TIMEOUT), paths: (threads(), PATHS_TIMEOUT) }
    }
}

/// The paths that a container's ContainerInfo shows.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) shown: Vec<Shown>,
    pub(super) sandbox: PathBuf,
    /// What no container may be shown.
    pub(super) roots: Vec<PathBuf>,
}

impl Paths {
    /// Whether none of them leads to a leased volume. May block.
    ///
    /// # Errors
    /// A sentence that names the path.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.shown.is_empty() {
            return Ok(());
        }
        // As they are written too: one that is not there yet has no other name.
        let real = self.roots.iter().filter_map(|root| root.canonicalize().ok());
        let roots: Vec<_> = real.chain(self.roots.iter().cloned()).collect();
        self.shown.iter().try_for_each(|shown| {
            let place = self.place(shown).map_err(|why| shown.refused(&why))?;
            shown.check_place(&place, &roots)
        })
    }

    fn place(&self, shown: &Shown) -> Result<PathBuf, String> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = match shown {
            // A magic link (proc(5)) leads to another process's tree, and its text tells nothing of that.
            Shown::Host(path) => {
                openat2(CWD, path.as_path(), flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
            }
            Shown::Sandbox(path) | Shown::ParentSandbox(path) => {
                let sandbox = match shown {
                    Shown::ParentSandbox(_) => parents_sandbox(&self.sandbox)?,
                    _ => self.sandbox.as_path(),
                };
                let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let path = if path.as_os_str().is_empty() { Path::new(".") } else { path.as_path() };
                open(sandbox, flags | OFlags::DIRECTORY, Mode::empty())
                    .and_then(|sandbox| openat2(sandbox, path, flags, Mode::empty(), within))
            }
        };
        let found =
            found.map_err(|error| format!("where it leads cannot be told, or is outside: {error}"))?;
        target::real_path(&found).map_err(|error| error.to_string())
    }
}

/// Mesos puts a nested container's sandbox into its parent's, at `containers/<id>`.
fn parents_sandbox(sandbox: &Path) -> Result<&Path, String> {
    let containers = sandbox.parent().filter(|above| above.ends_with("containers"));
    containers
        .and_then(Path::parent)
        .ok_or_else(|| "the sandbox of the container's parent is not known".to_owned())
}

/// The answer for a container without leased volumes.
///
/// # Errors
/// A sentence, for a path that may not be shown. For want of a look at the mount roots alone no container fails: it
/// needs nothing of ours.
pub(super) async fn answer(
    threads: &Threads,
    container: &str,
    hidden: ToHide,
    paths: Paths,
) -> Result<Option<Vec<u8>>, String> {
    let (threads, time) = match paths.shown.as_slice() {
        [] => &threads.roots,
        _ => &threads.paths,
    };
    let needed = !paths.shown.is_empty();
    let late = match timeout(*time, look(threads, hidden, paths)).await {
        Ok(Ok(answer)) => return answer,
        Ok(Err(why)) => why,
        Err(_) => "a file system of this host does not answer".to_owned(),
    };
    if needed {
        return Err(format!("the paths that ContainerInfo shows could not be looked at in time: {late}"));
    }
    tracing::error!(
        "container {container} is launched and sees the mount roots: they could not be looked at in time: {late}"
    );
    Ok(None)
}

/// Waits for a thread, and for its end.
async fn look(
    threads: &Arc<Semaphore>,
    hidden: ToHide,
    paths: Paths,
) -> Result<Result<Option<Vec<u8>>, String>, String> {
    let thread = Arc::clone(threads).acquire_owned().await.map_err(|error| error.to_string())?;
    let (tell, told) = oneshot::channel();
    let run = move || {
        let hide = || mounts::without_volumes(&hidden.present(String::new()));
        // Nobody may wait any more.
        let _ = tell.send(paths.check().map(|()| hide()));
        drop(thread);
    };
    std::thread::Builder::new()
        .name("extvol-looks".into())
        .spawn(run)
        .map_err(|error| format!("no thread could be started: {error}"))?;
    told.await.map_err(|_| "the look has failed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn paths(host: &Path, shown: Vec<Shown>) -> Paths {
        Paths { shown, sandbox: host.join("sandbox/containers/c"), roots: vec![host.join("roots")] }
    }

    fn host() -> (tempfile::TempDir, PathBuf) {
        let host = tempfile::tempdir().unwrap();
        let path = host.path().canonicalize().unwrap();
        for directory in ["roots/db/data", "sandbox/containers/c/own", "sandbox/shared", "srv"] {
            std::fs::create_dir_all(path.join(directory)).unwrap();
        }
        (host, path)
    }

    #[test]
    fn no_link_leads_around_a_lease() {
        let (_kept, host) = host();
        let link = |to: &str, at: &str| symlink(host.join(to), host.join(at)).unwrap();
        link("roots/db/data", "volume");
        link("", "above");
        link("srv", "good");
        symlink("/proc/self/root", host.join("magic")).unwrap();
        link("roots", "sandbox/containers/c/out");
        symlink("own", host.join("sandbox/containers/c/in")).unwrap();
        let refused = |shown: &Shown| paths(&host, vec![shown.clone()]).check().err().unwrap_or_default();
        let root = host.join("roots");
        let table = [
            ("volume", format!("below {} volumes", root.display())),
            ("above/roots/db", format!("below {} volumes", root.display())),
            ("above", format!("it shows {}", root.display())),
            ("magic", "cannot be told".to_owned()),
            ("missing", "cannot be told".to_owned()),
        ];
        for (path, expected) in table {
            let said = refused(&Shown::Host(host.join(path)));
            assert!(said.starts_with("host path ") && said.contains(&expected), "{path}: {said}");
        }
        assert!(refused(&Shown::Sandbox("out/db".into())).contains("outside"));
        assert!(refused(&Shown::ParentSandbox("containers/c/out".into())).contains("outside"));
        for good in [
            Shown::Host(host.join("good")),
            Shown::Sandbox("in".into()),
            Shown::Sandbox(PathBuf::new()),
            Shown::ParentSandbox("shared".into()),
        ] {
            assert_eq!(refused(&good), "");
        }
        let top =
            Paths { sandbox: host.join("sandbox"), ..paths(&host, vec![Shown::ParentSandbox("x".into())]) };
        assert!(top.check().unwrap_err().contains("the container's parent is not known"));
    }

    #[test]
    fn a_mount_root_that_is_a_link_hides_no_volume_from_the_check() {
        let (_kept, host) = host();
        symlink(host.join("roots"), host.join("linked")).unwrap();
        let mut paths = paths(&host, vec![Shown::Host(host.join("roots/db"))]);
        paths.roots = vec![host.join("linked")];
        assert!(paths.check().unwrap_err().contains("volumes are mounted under leases"));
    }

    #[tokio::test]
    async fn a_container_waits_for_a_thread_and_fails_for_its_own_paths_alone() {
        let (_kept, host) = host();
        let (mut threads, hidden) =
            (Threads::new(), ToHide { roots: vec![host.join("roots")], ..Default::default() });
        (threads.roots.1, threads.paths.1) = (Duration::from_millis(50), Duration::from_millis(50));
        let all = u32::try_from(THREADS_MAX).unwrap();
        let held = Arc::clone(&threads.roots.0).acquire_many_owned(all).await.unwrap();
        // Nobody ends: it is launched, and sees them.
        assert_eq!(answer(&threads, "c", hidden.clone(), paths(&host, vec![])).await, Ok(None));
        // A thread that ends makes room.
        let threads =
            Threads { roots: (threads.roots.0.clone(), PATHS_TIMEOUT), paths: threads.paths.clone() };
        let waits = answer(&threads, "c", hidden.clone(), paths(&host, vec![]));
        let ends = async { drop(held) };
        let (answered, ()) = tokio::join!(biased; waits, ends);
        assert!(answered.unwrap().is_some());
        let _held = Arc::clone(&threads.paths.0).acquire_many_owned(all).await.unwrap();
        let with_path =
            answer(&threads, "c", hidden.clone(), paths(&host, vec![Shown::Host("/srv".into())])).await;
        assert!(with_path.unwrap_err().contains("could not be looked at in time"));
    }
}
