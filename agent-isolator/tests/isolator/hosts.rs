//! Hosts on which something of the kernel does not answer, or is used up.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_isolator::wire::{Call, CallLine};
use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::agent::{Agent, config, id};
use crate::stand_in::StandIn;

/// A file system that answers nothing: a FUSE mount whose server never reads a request.
struct HungMount {
    server: Option<OwnedFd>,
    at: PathBuf,
}

impl HungMount {
    fn at(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let server = open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = CString::new(options).unwrap();
        mount("hung", at, "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        Self { server: Some(server), at: at.to_owned() }
    }

    /// Who waits for it gets an error now.
    fn give_up(&mut self) {
        self.server = None;
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        self.give_up();
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

#[test]
fn root_a_container_path_on_a_hung_mount_holds_up_nothing_else() {
    let (agent, keeper) = Agent::with_keeper(&[("prepare_timeout", "1secs")]);
    let mut connection = keeper.connected();
    let mut hung = HungMount::at(&agent.directory.path().join("hung"));
    let path = hung.at.join("x");
    let labels = [("extvol.name", "a"), ("extvol.container_path", path.to_str().unwrap())];
    let late = agent.prepare(&id("late"), &config(&labels, &[]));
    let ended = agent.prepare(&id("ended"), &config(&labels, &[]));

    let other = agent.prepare(&id("other"), &config(&[("extvol.name", "b")], &[]));
    let CallLine { id: call_id, call } = connection.next();
    assert!(matches!(&call, Call::Prepare { container, .. } if container.as_str() == "other"), "{call:?}");
    connection.prepared(call_id, &["/m/b"]);
    assert!(other.answer().unwrap().is_some());

    // A cleanup ends what was not sent before it.
    let cleanup = agent.cleanup(&id("ended"));
    let CallLine { id: call_id, call } = connection.next();
    assert!(matches!(&call, Call::Cleanup { container, .. } if container.as_str() == "ended"), "{call:?}");
    connection.done(call_id);
    assert_eq!(cleanup.answer(), Ok(()));
    assert_eq!(ended.answer().unwrap_err(), "the container is cleaned up");

    let (answer, elapsed) = late.ended();
    let error = answer.unwrap_err();
    let what = format!("container path {path:?} of volume rexray/a could not be made in time");
    assert!(error.contains(&what), "{error}");
    assert!((Duration::from_secs(3)..Duration::from_secs(5)).contains(&elapsed), "{elapsed:?}");

    // What comes of it later is nobody's any more.
    hung.give_up();
    let missing = agent.prepare(&id("missing"), &config(&labels, &[])).answer().unwrap_err();
    assert!(missing.contains("it could not be used or made below the host's"), "{missing}");
    let last = agent.cleanup(&id("last"));
    let CallLine { id: call_id, call } = connection.next();
    assert!(matches!(&call, Call::Cleanup { container, .. } if container.as_str() == "last"), "{call:?}");
    connection.done(call_id);
    assert_eq!(last.answer(), Ok(()));
}

/// This process in a cgroup of its own that allows no further thread.
struct NoMoreThreads {
    cgroup: PathBuf,
}

impl NoMoreThreads {
    fn now() -> Self {
        let v1 = Path::new("/sys/fs/cgroup/pids");
        let parent = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
        let cgroup = parent.join(format!("extvol-test-{}", std::process::id()));
        std::fs::create_dir(&cgroup).unwrap();
        let limited = Self { cgroup };
        std::fs::write(limited.cgroup.join("pids.max"), "1").unwrap();
        std::fs::write(limited.cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        limited
    }
}

impl Drop for NoMoreThreads {
    fn drop(&mut self) {
        let parent = self.cgroup.parent().unwrap().join("cgroup.procs");
        let _ = std::fs::write(parent, std::process::id().to_string());
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

#[test]
fn root_at_the_limit_of_threads_launches_fail_and_no_watch_ends() {
    // Connected at first: whatever a start needs is not there yet.
    let (agent, keeper) = Agent::with_keeper(&[("prepare_timeout", "1secs"), ("keeper", "/bin/false")]);
    let connection = keeper.connected();
    let watch = agent.watch(&id("w"));
    let limited = NoMoreThreads::now();
    std::fs::remove_file(agent.directory.path().join("keeper.sock")).unwrap();
    drop((connection, keeper));
    let path = [("extvol.name", "a"), ("extvol.container_path", "/tmp")];
    let no_thread = agent.prepare(&id("c1"), &config(&path, &[])).answer().unwrap_err();
    assert!(no_thread.contains("a thread could not be started"), "{no_thread}");
    let no_keeper = agent.prepare(&id("c2"), &config(&path[..1], &[])).answer().unwrap_err();
    assert!(no_keeper.contains("/bin/false could not be started: a thread to start it"), "{no_keeper}");
    assert!(watch.is_pending());
    drop(limited);
    let keeper = StandIn::listen(agent.directory.path());
    let mut connection = keeper.connected();
    connection.limit("w", "the lease is lost");
    assert_eq!(watch.answer().as_deref(), Ok("the lease is lost"));
}
