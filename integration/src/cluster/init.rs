//! The init of a host: its mounts, then process 1 and the server that starts and ends its services.
//!
//! Process 1 does nothing but reap, so that a container's orphans are gone the moment they end. Its one
//! child, the server, starts programs and waits for them: two programs that wait in one process would
//! take each other's children.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal};

use super::protocol::{Ended, HostReply, HostRequest, HostSetup, Output, receive, send};

/// Process 1 of a host: makes the mounts, starts the server, reaps until the server ends.
pub fn run(setup_file: &Path) -> io::Result<()> {
    let setup = read_setup(setup_file)?;
    rustix::system::sethostname(setup.name.as_bytes())?;
    make_mounts(&setup)?;
    let server = Command::new("/proc/self/exe").arg("serve").arg(setup_file).spawn()?;
    let server = Pid::from_child(&server);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid == server => return Err(io::Error::other("the host's server ended")),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn read_setup(file: &Path) -> io::Result<HostSetup> {
    Ok(serde_json::from_slice(&fs::read(file)?)?)
}

/// The mounts of a host, seen nowhere else: its propagation is cut from the machine's, then shared inside,
/// as on a machine with systemd, so that an unmount reaches the copies that containers hold.
fn make_mounts(setup: &HostSetup) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    let mode = Some(c"mode=755");
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, mode)?;
    fs::create_dir("/run/lock")?;
    for (own, covered) in &setup.binds {
        let place = || format!("bind {} over {}", own.display(), covered.display());
        mount_bind(own, covered)
            // A bind of a shared mount joins its peers: a volume mounted below would appear below `own`
            // too, and keep the device busy there. It becomes a group of its own.
            .and_then(|()| mount_change(covered, MountPropagationFlags::PRIVATE))
            .and_then(|()| mount_change(covered, MountPropagationFlags::SHARED))
            .map_err(|error| io::Error::other(format!("{}: {error}", place())))?;
    }
    Ok(())
}

/// The host's server: answers requests on the host's socket, each connection on a thread of its own.
pub fn serve(setup_file: &Path) -> io::Result<()> {
    let setup = read_setup(setup_file)?;
    match fs::remove_file(&setup.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&setup.socket)?;
    let server = Arc::new(Server { setup, services: Mutex::default(), ended: Condvar::new() });
    for connection in listener.incoming() {
        let (connection, server) = (connection?, Arc::clone(&server));
        thread::spawn(move || {
            if let Err(error) = server.answer(&connection) {
                eprintln!("init: a connection failed: {error}");
            }
        });
    }
    Ok(())
}

struct Server {
    setup: HostSetup,
    services: Mutex<BTreeMap<String, Service>>,
    ended: Condvar,
}

struct Service {
    /// Names the process for as long as we hold it, unlike a number.
    process: OwnedFd,
    ended: Option<Ended>,
}

impl Server {
    fn answer(self: &Arc<Self>, connection: &UnixStream) -> io::Result<()> {
        let mut requests = BufReader::new(connection);
        while let Some(request) = receive(&mut requests)? {
            let reply =
                self.handle(request).unwrap_or_else(|error| HostReply::Failed { message: error.to_string() });
            send(connection, &reply)?;
        }
        Ok(())
    }

    fn handle(self: &Arc<Self>, request: HostRequest) -> io::Result<HostReply> {
        match request {
            HostRequest::Exec { argv, env, timeout_ms } => {
                exec(&argv, &env, Duration::from_millis(timeout_ms)).map(HostReply::Output)
            }
            HostRequest::Start { name, argv, env } => self.start(name, &argv, &env),
            HostRequest::Signal { name, signal } => self.signal(&name, signal),
            HostRequest::Wait { name, timeout_ms } => self.wait(&name, Duration::from_millis(timeout_ms)),
        }
    }

    fn services(&self) -> MutexGuard<'_, BTreeMap<String, Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(
        self: &Arc<Self>,
        name: String,
        argv: &[String],
        env: &BTreeMap<String, String>,
    ) -> io::Result<HostReply> {
        let mut services = self.services();
        if services.get(&name).is_some_and(|service| service.ended.is_none()) {
            return Err(io::Error::other(format!("service {name} runs already")));
        }
        let log = self.setup.logs.join(format!("{}-{name}.log", self.setup.name));
        let log = File::options().create(true).append(true).open(log)?;
        let mut child = program(argv, env)?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| cannot_run(argv, &error))?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        services.insert(name.clone(), Service { process, ended: None });
        let pid = child.id();
        let server = Arc::clone(self);
        thread::spawn(move || {
            let ended = child.wait().map_or(Ended::Code(-1), ended);
            if let Some(service) = server.services().get_mut(&name) {
                service.ended = Some(ended);
            }
            server.ended.notify_all();
        });
        Ok(HostReply::Started { pid })
    }

    fn signal(&self, name: &str, signal: i32) -> io::Result<HostReply> {
        let signal = Signal::from_named_raw(signal).ok_or(io::ErrorKind::InvalidInput)?;
        let services = self.services();
        let service = services.get(name).ok_or_else(|| unknown(name))?;
        match pidfd_send_signal(&service.process, signal) {
            Ok(()) => Ok(HostReply::Signalled { running: true }),
            Err(Errno::SRCH) => Ok(HostReply::Signalled { running: false }),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self, name: &str, timeout: Duration) -> io::Result<HostReply> {
        let services = self.services();
        if !services.contains_key(name) {
            return Err(unknown(name));
        }
        let runs = |services: &mut BTreeMap<String, Service>| {
            services.get(name).is_some_and(|service| service.ended.is_none())
        };
        let (services, _) =
            self.ended.wait_timeout_while(services, timeout, runs).unwrap_or_else(PoisonError::into_inner);
        Ok(HostReply::State(services.get(name).and_then(|service| service.ended)))
    }
}

fn unknown(name: &str) -> io::Error {
    io::Error::other(format!("no service {name} was started here"))
}

fn cannot_run(argv: &[String], error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot run {}: {error}", argv.join(" ")))
}

/// A program in the plain environment of a host, in a process group of its own.
fn program(argv: &[String], env: &BTreeMap<String, String>) -> io::Result<Command> {
    let (name, arguments) = argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(name);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .envs(env)
        .current_dir("/")
        .process_group(0);
    Ok(command)
}

/// Runs a program to its end. Its output goes to files in memory: a pipe would stay open for as long as
/// any process that it left behind.
fn exec(argv: &[String], env: &BTreeMap<String, String>, timeout: Duration) -> io::Result<Output> {
    let mut stdout = File::from(rustix::fs::memfd_create("stdout", MemfdFlags::CLOEXEC)?);
    let mut stderr = File::from(rustix::fs::memfd_create("stderr", MemfdFlags::CLOEXEC)?);
    let child = program(argv, env)?
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .map_err(|error| cannot_run(argv, &error))?;
    let ended = wait_or_kill(child, timeout)?;
    Ok(Output { ended, stdout: whole(&mut stdout)?, stderr: whole(&mut stderr)? })
}

fn wait_or_kill(mut child: Child, timeout: Duration) -> io::Result<Ended> {
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let timeout = rustix::event::Timespec::try_from(timeout).map_err(io::Error::other)?;
    let mut ready = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut ready, Some(&timeout))? == 0 {
        child.kill()?;
    }
    child.wait().map(ended)
}

fn whole(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn ended(status: ExitStatus) -> Ended {
    // A process that was waited for has one or the other.
    status.code().map_or_else(|| Ended::Signal(status.signal().unwrap_or(0)), Ended::Code)
}
