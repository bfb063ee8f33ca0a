//! A worker and what it has to do with.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_isolator::keeper::checkpoint::{Checkpoint, Machine, Owner};
use agent_isolator::keeper::deadman::{DEADLINE, DeadmanWatch};
use agent_isolator::keeper::driver::VolumeDriver;
use agent_isolator::keeper::server::ConnectionId;
use agent_isolator::keeper::shared_memory::SharedMemory;
use agent_isolator::keeper::{Event, Worker};
use agent_isolator::parameters::KeeperParameters;
use agent_isolator::wire::{Answer, Asker, Call, KeeperLine, VolumeCall};
use shared::clock::holder_now;
use shared::exchange_io::Exchange;
use shared::keys::Keys;
use shared::memory::MemoryStore;
use shared::protocol::holder::{MountFault, UnmountFault};
use shared::record::Token;
use shared::store::{LeaseStore, Revision};
use shared::volume::{ContainerId, Driver, VolumeId, VolumeName};
use tokio::sync::{Notify, mpsc};

use crate::alone::{Alone, FREEZER};

const KEEPER: &str = env!("CARGO_BIN_EXE_extvol-keeper");

/// For what happens at once on a machine that is not overloaded.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) const AGENT: &str = "10.0.0.1:5051";

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A driver: its volumes are disks that a test has made, its calls wait while the test holds them.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Scripted>);

#[derive(Default)]
struct Scripted {
    /// By volume: its disk, and where it is mounted.
    disks: Mutex<BTreeMap<String, (String, PathBuf)>>,
    /// As they began.
    calls: Mutex<Vec<String>>,
    held: Mutex<BTreeSet<String>>,
    /// Volumes whose next Mount has no answer.
    unanswered: Mutex<BTreeSet<String>>,
    changed: Notify,
}

impl Script {
    /// Calls of this driver wait until they are let go.
    pub(crate) fn hold(&self, driver: &str) {
        self.0.held.lock().unwrap().insert(driver.to_owned());
    }

    pub(crate) fn let_go(&self, driver: &str) {
        self.0.held.lock().unwrap().remove(driver);
        self.0.changed.notify_waiters();
    }

    /// The next Mount of this volume has no answer.
    pub(crate) fn leave_unanswered(&self, name: &str) {
        self.0.unanswered.lock().unwrap().insert(name.to_owned());
    }

    /// `mount ebs/a`, and so on.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.0.calls.lock().unwrap().clone()
    }

    async fn call(&self, call: &str, asked: &VolumeId) -> Option<(String, PathBuf)> {
        self.0.calls.lock().unwrap().push(format!("{call} {asked}"));
        loop {
            let changed = self.0.changed.notified();
            if !self.0.held.lock().unwrap().contains(asked.driver.as_str()) {
                return self.0.disks.lock().unwrap().get(asked.name.as_str()).cloned();
            }
            changed.await;
        }
    }
}

impl VolumeDriver for Script {
    async fn mount(
        &self,
        asked: &VolumeId,
        create: Option<&BTreeMap<String, String>>,
        _token: Token,
    ) -> Result<String, MountFault> {
        if create.is_some() {
            self.call("create", asked).await;
        }
        let found = self.call("mount", asked).await;
        if self.0.unanswered.lock().unwrap().remove(asked.name.as_str()) {
            return Err(MountFault::Unresolved("no answer".into()));
        }
        let Some((disk, point)) = found else {
            return Err(MountFault::Refused("no such volume".into()));
        };
        let point = point.to_str().unwrap();
        if !disk.is_empty() {
            run("mount", &[&disk, point]);
        }
        Ok(point.to_owned())
    }

    async fn take_away(&self, asked: &VolumeId, _token: Token) -> Result<(), MountFault> {
        self.call("take away", asked).await;
        Ok(())
    }

    async fn unmount(&self, asked: &VolumeId, _token: Token) -> Result<(), UnmountFault> {
        let Some((_, point)) = self.call("unmount", asked).await else {
            return Err(UnmountFault::Refused("no such volume".into()));
        };
        // It may be asked for what it was never asked to mount.
        if is_mounted(&point) {
            run("umount", &[point.to_str().unwrap()]);
        }
        Ok(())
    }

    async fn remove(&self, asked: &VolumeId) -> Result<(), UnmountFault> {
        match self.call("remove", asked).await {
            Some((_, point)) if !is_mounted(&point) => Ok(()),
            found => Err(UnmountFault::Refused(format!("in use, or missing: {found:?}").into())),
        }
    }
}

/// A deadman that does nothing but tick.
struct Ticker(Arc<AtomicBool>);

impl Ticker {
    fn start(memory: Arc<SharedMemory>) -> Self {
        let ticks = Arc::new(AtomicBool::new(true));
        let theirs = Arc::downgrade(&ticks);
        std::thread::spawn(move || {
            while let Some(ticks) = theirs.upgrade() {
                if ticks.load(Ordering::SeqCst) {
                    memory.tick_deadman(holder_now());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self(ticks)
    }
}

pub(crate) struct World<'a> {
    alone: &'a Alone,
    root: PathBuf,
    pub(crate) run_directory: PathBuf,
    pub(crate) store: MemoryStore,
    pub(crate) driver: Script,
    pub(crate) memory: Arc<SharedMemory>,
    /// The program of the helpers that look at mounts.
    pub(crate) helper: PathBuf,
    ticker: Ticker,
    events: mpsc::UnboundedSender<Event>,
    lines: mpsc::UnboundedReceiver<String>,
    last_call: u64,
    heard: Vec<KeeperLine>,
    /// The agent that asks, and for whom.
    pub(crate) agent: String,
    pub(crate) asker: Asker,
    /// Whether volumes are to be removed at their end, and given to the container\'s user.
    pub(crate) remove: bool,
    pub(crate) own: bool,
    /// What its volumes are to be made with.
    pub(crate) create: Option<BTreeMap<String, String>>,
}

/// Runs a worker with these parameters beside `body`, which is the isolator, etcd, the driver and the deadman.
pub(crate) fn with_worker(alone: &Alone, given: &[(&str, &str)], body: impl AsyncFnOnce(World<'_>)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (world, worker) = World::new(alone, given);
        tokio::select! {
            () = worker.run() => panic!("the worker has ended"),
            () = body(world) => {}
        }
    });
    // A fence that has begun is not waited for.
    runtime.shutdown_background();
}

impl<'a> World<'a> {
    fn new(alone: &'a Alone, given: &[(&str, &str)]) -> (World<'a>, Worker<MemoryStore, Script>) {
        let [root, run_directory, state] = ["volumes", "run", "state"].map(|name| alone.directory.join(name));
        for directory in [&root, &run_directory, &state] {
            fs::create_dir(directory).unwrap();
        }
        let path = root.to_str().unwrap();
        run("mount", &["--bind", path, path]);
        run("mount", &["--make-shared", path]);
        let mut pairs = vec![
            ("etcd_endpoints".to_owned(), "127.0.0.1:1".to_owned()),
            ("holder".to_owned(), "h".to_owned()),
            ("drivers".to_owned(), "ebs,fast,slow".to_owned()),
            ("mount_roots".to_owned(), path.to_owned()),
            ("run_directory".to_owned(), run_directory.to_str().unwrap().to_owned()),
            ("state_directory".to_owned(), state.to_str().unwrap().to_owned()),
            ("cgroup_root".to_owned(), alone.cgroup.clone()),
        ];
        pairs.retain(|(name, _)| given.iter().all(|(other, _)| name != other));
        pairs.extend(given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let parameters = KeeperParameters::read(&pairs).unwrap();
        let memory = Arc::new(SharedMemory::create(&run_directory.join(DEADLINE)).unwrap());
        memory.tick_deadman(holder_now());
        let machine = Machine { id: "m1".into(), boot_id: "b1".into() };
        let owner = Owner { holder: parameters.holder.clone(), etcd_prefix: parameters.etcd_prefix.clone() };
        let checkpoint = Checkpoint::new(&run_directory, "b1", owner);
        let store = MemoryStore::new();
        let naming = Some(parameters.drivers.names());
        let keys = Keys::new(&parameters.etcd_prefix);
        let exchange = Exchange::new(store.clone(), keys, parameters.timing.request, naming);
        // What the guard starts when nobody ticks is this program, which lists its tests and ends.
        let guard = DeadmanWatch::new(Arc::clone(&memory), vec!["--list".into()]);
        let driver = Script::default();
        let worker = Worker::start(
            parameters,
            checkpoint,
            machine,
            Arc::clone(&memory),
            exchange,
            driver.clone(),
            guard,
        );
        let helper = alone.directory.join("extvol-keeper");
        std::os::unix::fs::symlink(KEEPER, &helper).unwrap();
        let worker = worker.unwrap().with_helpers(helper.clone());
        let (events, (to_us, lines)) = (worker.events(), mpsc::unbounded_channel());
        events.send(Event::Connected(ConnectionId(1), to_us)).unwrap();
        let ticker = Ticker::start(Arc::clone(&memory));
        let world = World {
            alone,
            root,
            run_directory,
            store,
            driver,
            memory,
            helper,
            ticker,
            events,
            lines,
            last_call: 0,
            heard: Vec::new(),
            agent: AGENT.into(),
            asker: Asker::default(),
            remove: false,
            own: false,
            create: None,
        };
        (world, worker)
    }

    /// A volume that the driver has.
    pub(crate) fn disk(&self, name: &str) {
        let image = self.alone.directory.join(format!("{name}.image"));
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        run("mkfs.ext4", &["-q", image.to_str().unwrap()]);
        let disk = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
        let point = self.root.join(name);
        fs::create_dir(&point).unwrap();
        self.driver.0.disks.lock().unwrap().insert(name.to_owned(), (disk, point));
    }

    /// A volume for which the driver answers what somebody else has mounted.
    pub(crate) fn foreign(&self, name: &str) {
        let point = self.root.join(name);
        fs::create_dir(&point).unwrap();
        run("mount", &["-t", "tmpfs", "extvol-foreign", point.to_str().unwrap()]);
        self.driver.0.disks.lock().unwrap().insert(name.to_owned(), (String::new(), point));
    }

    /// Makes the mount root's mount a shared or a private one.
    pub(crate) fn share_root(&self, shared: bool) {
        let how = if shared { "--make-shared" } else { "--make-private" };
        run("mount", &[how, self.root.to_str().unwrap()]);
    }

    pub(crate) fn point(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The deadman stops ticking, or goes on.
    pub(crate) fn deadman_ticks(&self, ticks: bool) {
        self.ticker.0.store(ticks, Ordering::SeqCst);
    }

    // --- the isolator's side

    pub(crate) fn call(&mut self, call: Call) -> u64 {
        self.last_call += 1;
        self.events.send(Event::Call(ConnectionId(1), self.last_call, call)).unwrap();
        self.last_call
    }

    /// `volumes` as `driver/name`.
    pub(crate) fn prepare(&mut self, container: &str, volumes: &[&str]) -> u64 {
        let volume = |text: &&str| {
            let (driver, name) = text.split_once('/').unwrap();
            let volume =
                VolumeId { driver: Driver::new(driver).unwrap(), name: VolumeName::new(name).unwrap() };
            VolumeCall {
                volume,
                create: self.create.clone(),
                read_only: false,
                remove: self.remove,
                own: self.own,
            }
        };
        let (container, volumes) = (id(container), volumes.iter().map(volume).collect());
        let (agent, agent_id) = (self.agent.clone(), Some("S1".into()));
        self.call(Call::Prepare { container, agent, agent_id, asker: Some(self.asker.clone()), volumes })
    }

    pub(crate) fn isolate(&mut self, container: &str, pid: u32) -> u64 {
        self.call(Call::Isolate { agent: AGENT.into(), container: id(container), pid })
    }

    pub(crate) fn cleanup(&mut self, container: &str) -> u64 {
        self.call(Call::Cleanup { agent: AGENT.into(), container: id(container) })
    }

    /// The answer to a call.
    pub(crate) async fn answer(&mut self, call: u64) -> Result<Answer, String> {
        let is = |line: &KeeperLine| matches!(line, KeeperLine::Answer { id, .. } | KeeperLine::Refused { id, .. } if *id == call);
        loop {
            if let Some(place) = self.heard.iter().position(is) {
                return match self.heard.remove(place) {
                    KeeperLine::Answer { answer, .. } => Ok(answer),
                    KeeperLine::Refused { refused, .. } => Err(refused),
                    KeeperLine::Limit { limit } => panic!("{limit:?} is no answer"),
                };
            }
            let line = tokio::time::timeout(SOON, self.lines.recv()).await;
            let line = line.unwrap_or_else(|_| panic!("no answer to call {call}; heard {:?}", self.heard));
            self.heard.push(serde_json::from_str(&line.unwrap()).unwrap());
        }
    }

    /// Whether a call was answered up to now.
    pub(crate) fn is_answered(&mut self, call: u64) -> bool {
        while let Ok(line) = self.lines.try_recv() {
            self.heard.push(serde_json::from_str(&line).unwrap());
        }
        self.heard.iter().any(|line| {
            matches!(line, KeeperLine::Answer { id, .. } | KeeperLine::Refused { id, .. } if *id == call)
        })
    }

    /// A container that has its volumes and a process.
    pub(crate) async fn running(&mut self, container: &str, volumes: &[&str]) -> Process {
        let prepare = self.prepare(container, volumes);
        assert!(matches!(self.answer(prepare).await, Ok(Answer::Prepared { .. })));
        let process = self.process(container);
        let isolate = self.isolate(container, process.0.id());
        assert_eq!(self.answer(isolate).await, Ok(Answer::Done));
        process
    }

    /// A process in the container's freezer cgroup.
    pub(crate) fn process(&self, container: &str) -> Process {
        let cgroup = Path::new(FREEZER).join(&self.alone.cgroup).join(container);
        fs::create_dir_all(&cgroup).unwrap();
        let process = Process(Command::new("sleep").arg("600").spawn().unwrap());
        fs::write(cgroup.join("cgroup.procs"), process.0.id().to_string()).unwrap();
        process
    }

    // --- what etcd has

    pub(crate) async fn stored(&self, key: &str) -> Option<(String, Revision)> {
        let key = format!("/extvol/v1/{key}");
        let snapshot = self.store.get(std::slice::from_ref(&key)).await.unwrap();
        let entry = snapshot.entries.get(&key)?;
        Some((String::from_utf8_lossy(&entry.value).into_owned(), entry.mod_revision))
    }

    pub(crate) async fn beat(&self) -> Option<Revision> {
        self.stored("beats/h").await.map(|(_, at)| at)
    }
}

fn id(container: &str) -> ContainerId {
    ContainerId::new(container).unwrap()
}

/// A process that does nothing.
pub(crate) struct Process(std::process::Child);

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Waits until it holds, while the worker goes on.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + SOON;
    while !holds().await {
        assert!(tokio::time::Instant::now() < until, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether it is mounted on this host.
pub(crate) fn is_mounted(point: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(point.to_str().unwrap())
}
