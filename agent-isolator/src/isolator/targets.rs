//! Making the mount targets of containers. That walks paths that users give, which may lead to a file
//! system that does not answer: each container's are made by a thread of its own, and nothing else
//! waits for it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::calls::CallId;
use super::mounts::{Guarded, Target, Targets, ToHide};
use crate::mesos::ContainerConfig;
use crate::target::{self, Places};
use crate::task::{self, TaskVolume};

/// Threads at once. As many containers may wait for a file system that does not answer before others
/// wait for them; usually a thread lives for less than a millisecond.
const THREADS_MAX: usize = 64;

/// Makes a container's targets; may block for ever.
pub(super) type Make = Box<dyn FnOnce() -> Result<Targets, String> + Send>;

/// What a thread tells at its end; it is told of each.
pub(super) struct Made {
    pub(super) id: CallId,
    pub(super) targets: Result<Targets, String>,
}

/// The threads.
pub(super) struct Makers {
    running: usize,
    waiting: VecDeque<(CallId, Make)>,
    made: mpsc::UnboundedSender<Made>,
}

impl Makers {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Made>) {
        let (made, receiver) = mpsc::unbounded_channel();
        (Self { running: 0, waiting: VecDeque::new(), made }, receiver)
    }

    /// Has targets made: now, or when a thread is free.
    pub(super) fn make(&mut self, id: CallId, make: Make) {
        if self.running == THREADS_MAX {
            self.waiting.push_back((id, make));
        } else {
            self.start(id, make);
        }
    }

    /// A thread has ended: the next that is still wanted may begin.
    pub(super) fn ended(&mut self, is_wanted: impl Fn(CallId) -> bool) {
        self.running -= 1;
        while let Some((id, make)) = self.waiting.pop_front() {
            if is_wanted(id) {
                return self.start(id, make);
            }
        }
    }

    fn start(&mut self, id: CallId, make: Make) {
        let end = End { made: self.made.clone(), id, targets: bug() };
        let run = move || end.tell(make());
        self.running += 1;
        if let Err(error) = std::thread::Builder::new().name("extvol-targets".into()).spawn(run) {
            // What it would have run was dropped, and has told its end.
            tracing::error!("a thread for a container's mount targets could not be started: {error}");
        }
    }
}

fn bug() -> Result<Targets, String> {
    Err("the container paths could not be made: a thread could not be started, or has failed".into())
}

/// Tells the end of a thread, also of one that panicked or never was.
struct End {
    made: mpsc::UnboundedSender<Made>,
    id: CallId,
    targets: Result<Targets, String>,
}

impl End {
    fn tell(mut self, targets: Result<Targets, String>) {
        self.targets = targets;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let targets = std::mem::replace(&mut self.targets, Ok(Targets::default()));
        // Nobody waits any more when the isolator is gone.
        let _ = self.made.send(Made { id: self.id, targets });
    }
}

/// Where a container's volumes may go, and what it is not to see.
pub(super) struct Plan {
    pub(super) volumes: Vec<TaskVolume>,
    /// The agent's flag.
    pub(super) sandbox_directory: String,
    /// The module's parameter.
    pub(super) host_paths: Vec<PathBuf>,
    /// Nothing, for a container that sees none of the host's tree.
    pub(super) hidden: ToHide,
    /// See [`Hidden::aside`].
    pub(super) aside: String,
}

/// Makes the targets of a container's volumes.
///
/// # Errors
/// A sentence that names the volume and its path.
pub(super) fn targets(config: &ContainerConfig, plan: &Plan) -> Result<Targets, String> {
    let places = Places {
        sandbox: path(&config.directory),
        rootfs: config.rootfs.as_deref().map(path),
        sandbox_in_image: &plan.sandbox_directory,
        host_paths: &plan.host_paths,
    };
    let target = |volume: &TaskVolume| {
        let Some(path) = &volume.container_path else { return Ok(None) };
        let target =
            target::resolve(path, &places).map_err(|fault| format!("volume {}: {fault}", volume.volume))?;
        let target = target.into_os_string().into_string();
        let path = target.map_err(|t| format!("volume {}: {} is not UTF-8", volume.volume, t.display()))?;
        Ok(Some(Target { path, read_only: volume.read_only }))
    };
    let volumes = plan.volumes.iter().map(target).collect::<Result<Vec<_>, String>>()?;
    // Links, and an absolute path into the sandbox, may lead to one place.
    let taken = plan.volumes.iter().zip(&volumes);
    task::check_apart(taken.filter_map(|(volume, t)| Some((&volume.volume, t.as_ref()?.path.as_str()))))?;
    let paths = plan.volumes.iter().filter_map(|volume| volume.container_path.as_deref());
    let guarded = target::guarded(paths, &places)?;
    let guarded = guarded.iter().map(|(path, shown)| guard(path, shown)).collect::<Result<_, _>>()?;
    let hidden = plan.hidden.present(plan.aside.clone());
    Ok(Targets { volumes, guarded, hidden })
}

/// `shown` has on the host the flags that `path` has in the container.
fn guard(path: &Path, shown: &Path) -> Result<Guarded, String> {
    use crate::mesos::{NODEV, NOEXEC, NOSUID, READ_ONLY};
    let name = path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))?;
    let found = rustix::fs::statvfs(shown).map_err(|error| format!("{}: {error}", shown.display()))?;
    // The numbers of statvfs(3) and mount(2) are the same for these.
    let flags = u32::try_from(found.f_flag.bits()).unwrap_or(0) & (READ_ONLY | NOSUID | NODEV | NOEXEC);
    Ok(Guarded { path: name.to_owned(), flags })
}

pub(super) fn path(bytes: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::volume::{Driver, VolumeId, VolumeName};

    fn volume(name: &str, path: &str) -> TaskVolume {
        let volume = VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() };
        TaskVolume {
            volume,
            container_path: Some(path.into()),
            read_only: false,
            create: None,
            remove: false,
            own: false,
        }
    }

    #[test]
    fn two_paths_that_lead_to_one_place_are_refused() {
        let host = tempfile::tempdir().unwrap();
        for directory in ["sandbox", "image/var"] {
            std::fs::create_dir_all(host.path().join(directory)).unwrap();
        }
        std::os::unix::fs::symlink("var", host.path().join("image/link")).unwrap();
        let at = |name: &str| host.path().join(name).into_os_string().into_encoded_bytes();
        let config =
            ContainerConfig { directory: at("sandbox"), rootfs: Some(at("image")), ..Default::default() };
        let of = |a: &str, b: &str| {
            let plan = Plan {
                volumes: vec![volume("a", a), volume("b", b)],
                sandbox_directory: "/mnt/mesos/sandbox".into(),
                host_paths: vec![],
                hidden: ToHide::default(),
                aside: String::new(),
            };
            targets(&config, &plan)
        };
        for (a, b) in [("/var/db", "/link/db"), ("data", "/mnt/mesos/sandbox/data")] {
            let both = of(a, b);
            let error = both.unwrap_err();
            assert!(error.contains("volumes ebs/a and ebs/b both want the container path"), "{error}");
        }
        assert_eq!(of("/var/db", "db").unwrap().volumes.len(), 2);
    }

    async fn next(made: &mut mpsc::UnboundedReceiver<Made>) -> Made {
        tokio::time::timeout(std::time::Duration::from_secs(20), made.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_thread_that_panics_or_waits_for_ever_holds_no_other_up() {
        let (mut makers, mut made) = Makers::new();
        makers.make(CallId(1), Box::new(|| panic!("on purpose")));
        let end = next(&mut made).await;
        assert!(end.id == CallId(1) && end.targets.unwrap_err().contains("has failed"));
        makers.ended(|_| true);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        for id in 1..=THREADS_MAX as u64 {
            let held = held.clone();
            makers.make(
                CallId(id),
                Box::new(move || {
                    let _ = held.lock().unwrap().recv();
                    Ok(Targets::default())
                }),
            );
        }
        makers.make(CallId(100), Box::new(|| Err("not wanted any more".into())));
        makers.make(CallId(101), Box::new(|| Ok(Targets { volumes: vec![None], ..Default::default() })));
        assert!(made.try_recv().is_err());
        drop(release);
        for _ in 0..THREADS_MAX {
            assert_eq!(next(&mut made).await.targets.unwrap().volumes.len(), 0);
        }
        makers.ended(|id| id == CallId(101));
        let end = next(&mut made).await;
        assert!(end.id == CallId(101) && end.targets.unwrap().volumes.len() == 1);
    }
}
