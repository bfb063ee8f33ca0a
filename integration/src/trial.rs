//! The whole product on a cluster of this machine, a scheduler that runs apps on it, and what etcd, the storage and
//! the hosts say of a volume: what demonstrations and tests do with it.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use shared::event::EventRecord;
use shared::keys::Keys;
use shared::record::{HeldLease, LeaseRecord, decode};
use shared::volume::{Driver, VolumeId, VolumeName};

use crate::cluster::{Cluster, ClusterConfig, ClusterError, Host, STORAGE_PORT};
use crate::scheduler::{
    App, AppError, RestartPolicy, Scheduler, SchedulerConfig, SchedulerError, TaskEvent, WaitError,
};
use crate::storage::control::Switches;
use crate::storage::journal::{self, Entry, Violation};
use crate::witness::Verdict;
use crate::witness::collect::{self, CollectError};

/// How long anything may take that should be there in a moment: a busy machine is slow.
pub const SOON: Duration = Duration::from_secs(60);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The scheduler.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// An app.
    #[error(transparent)]
    App(#[from] AppError),
    /// A task did not get where it was expected.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// The storage's journal shows two hosts with one volume.
    #[error(transparent)]
    TwoWriters(#[from] Violation),
    /// The witness's journals could not be collected.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The witness saw what must not be, or could not see everything.
    #[error("{0}")]
    Witness(Box<Verdict>),
    /// Something answered otherwise than it should.
    #[error("{0}")]
    Unexpected(String),
}

/// `Result` of this module.
pub type Result<T> = std::result::Result<T, TrialError>;

/// A cluster with the product, and a scheduler. The scheduler is dropped first, and leaves its tasks to the
/// cluster's end.
#[derive(Debug)]
pub struct Trial {
    /// Runs the apps.
    pub scheduler: Scheduler,
    /// Everything else.
    pub cluster: Cluster,
}

impl Trial {
    /// Two agent hosts with the driver `ebs`.
    ///
    /// # Errors
    /// What kept it from starting.
    pub fn start() -> Result<Self> {
        Self::with(ClusterConfig::complete(2, &["ebs"])?, SchedulerConfig::default())
    }

    /// As described; the configuration must have storage.
    ///
    /// # Errors
    /// What kept it from starting.
    pub fn with(config: ClusterConfig, scheduler: SchedulerConfig) -> Result<Self> {
        let cluster = Cluster::start(config)?;
        let scheduler = Scheduler::start(&cluster.master_url(), scheduler)?;
        Ok(Self { scheduler, cluster })
    }

    /// Makes an empty volume of 64 MiB at the storage.
    ///
    /// # Errors
    /// When the storage does not.
    pub fn create_volume(&self, name: &str) -> Result<()> {
        let url = format!("http://{}:{STORAGE_PORT}/volumes/{name}", self.cluster.hub().address());
        self.cluster.hub().run(&["curl", "-sSf", "-X", "POST", &url])?;
        Ok(())
    }

    /// Runs an app and waits until its task runs.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(&self, app: App) -> Result<TaskEvent> {
        let id = app.id.clone();
        self.scheduler.run(app)?;
        Ok(self.scheduler.wait_until_running(id.as_str(), Instant::now() + SOON)?)
    }

    /// Runs an app and waits until its first task has ended; that event.
    ///
    /// # Errors
    /// When it does not end.
    pub fn run_to_end(&self, app: App) -> Result<TaskEvent> {
        let id = app.id.clone();
        self.scheduler.run(app)?;
        self.wait_ended(id.as_str(), 0)
    }

    /// Waits until a task of the app has ended after the first `seen` events of its history; that event.
    ///
    /// # Errors
    /// When none does.
    pub fn wait_ended(&self, app: &str, seen: usize) -> Result<TaskEvent> {
        let ended = |event: &&TaskEvent| !event.state.is_live();
        let history = self.scheduler.wait_for(app, Instant::now() + SOON, |history| {
            history.iter().skip(seen).any(|event| ended(&event))
        })?;
        let found = history.iter().skip(seen).find(ended).cloned();
        found.ok_or_else(|| TrialError::Unexpected(format!("no task of {app} has ended")))
    }

    /// Stops an app and waits until its task has ended.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self, app: &str) -> Result<TaskEvent> {
        let seen = self.scheduler.history(app).len();
        self.scheduler.stop(app)?;
        self.wait_ended(app, seen)
    }

    /// The lease of `driver/name` as etcd has it; none when the volume was never leased.
    ///
    /// # Errors
    /// When etcd does not answer, or the record cannot be read.
    pub fn lease(&self, volume: &str) -> Result<Option<LeaseRecord>> {
        let text = self.cluster.etcdctl(&["get", "--print-value-only", &lease_key(volume)?])?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        let record = decode(text.trim().as_bytes());
        record.map(Some).map_err(|error| TrialError::Unexpected(format!("lease of {volume}: {error}")))
    }

    /// The holder's part of a lease; none when it is free.
    ///
    /// # Errors
    /// As [`Trial::lease`].
    pub fn held(&self, volume: &str) -> Result<Option<HeldLease>> {
        Ok(self.lease(volume)?.and_then(|lease| lease.held().cloned()))
    }

    /// Waits until `is` holds for a lease.
    ///
    /// # Errors
    /// When it does not within [`SOON`]; says what the lease is instead.
    pub fn wait_lease(
        &self,
        volume: &str,
        what: &str,
        is: impl Fn(Option<&LeaseRecord>) -> bool,
    ) -> Result<()> {
        Ok(self.cluster.wait_for(&format!("{volume} {what}"), SOON, || {
            let lease = self.lease(volume).map_err(|error| error.to_string())?;
            if is(lease.as_ref()) { Ok(()) } else { Err(format!("{lease:?}")) }
        })?)
    }

    /// Waits until nobody holds a volume's lease.
    ///
    /// # Errors
    /// As [`Trial::wait_lease`].
    pub fn wait_free(&self, volume: &str) -> Result<()> {
        self.wait_lease(volume, "is free", |lease| lease.is_none_or(|lease| lease.held().is_none()))
    }

    /// All events in etcd, by key, which is their order.
    ///
    /// # Errors
    /// When etcd does not answer, or an event cannot be read.
    pub fn events(&self) -> Result<Vec<(String, EventRecord)>> {
        let text = self.cluster.etcdctl(&["get", "--prefix", "/extvol/v1/events/"])?;
        let mut lines = text.lines();
        let mut events = Vec::new();
        while let (Some(key), Some(value)) = (lines.next(), lines.next()) {
            let event = decode(value.as_bytes());
            let event = event.map_err(|error| TrialError::Unexpected(format!("event {key}: {error}")))?;
            events.push((key.to_owned(), event));
        }
        Ok(events)
    }

    /// The key of the last event; empty before the first.
    ///
    /// # Errors
    /// As [`Trial::events`].
    pub fn last_event(&self) -> Result<String> {
        Ok(self.events()?.pop().map(|(key, _)| key).unwrap_or_default())
    }

    /// The storage's journal.
    ///
    /// # Errors
    /// When the storage does not answer.
    pub fn journal(&self) -> Result<Vec<Entry>> {
        let url = format!("http://{}:{STORAGE_PORT}/journal", self.cluster.hub().address());
        let text = self.cluster.hub().run(&["curl", "-sSf", &url])?;
        serde_json::from_str(&text).map_err(|error| TrialError::Unexpected(format!("the journal: {error}")))
    }

    /// Checks that no volume ever had two hosts, and answers who has which now.
    ///
    /// # Errors
    /// [`TrialError::TwoWriters`] above all.
    pub fn attached(&self) -> Result<Vec<(String, String)>> {
        let holdings = journal::holdings(&self.journal()?)?;
        Ok(holdings.into_iter().map(|(volume, holding)| (volume, holding.host)).collect())
    }

    /// The mount points of volumes on a host; of the keeper's own mounts only those that are left without any.
    ///
    /// # Errors
    /// When the host is down.
    pub fn mounted(&self, host: usize) -> Result<Vec<String>> {
        let table = self.cluster.host(host).run(&["cat", "/proc/mounts"])?;
        let points = table.lines().filter_map(|line| line.split(' ').nth(1));
        let volumes = points.filter(|point| point.starts_with("/var/lib/rexray/volumes/"));
        let is_own = |point: &String| point.starts_with("/var/lib/rexray/volumes/.extvol/");
        let (own, of_drivers): (Vec<_>, Vec<_>) = volumes.map(str::to_owned).partition(is_own);
        Ok(if of_drivers.is_empty() { own } else { of_drivers })
    }

    /// A file of a mounted volume, as its host sees it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, host: usize, volume: &str, file: &str) -> Result<String> {
        let path = format!("/var/lib/rexray/volumes/{volume}/data/{file}");
        Ok(self.cluster.host(host).run(&["cat", &path])?)
    }

    /// Switches faults of a host's plugin `ebs` on and off (`storage::plugin::faults`).
    ///
    /// # Errors
    /// When the plugin does not take them.
    pub fn set_faults(&self, host: usize, faults: &Value) -> Result<()> {
        let socket = "/run/docker/plugins/ebs.sock";
        let argv =
            ["curl", "-sSf", "--unix-socket", socket, "-d", &faults.to_string(), "http://plugin/faults"];
        self.cluster.host(host).run(&argv)?;
        Ok(())
    }

    /// The directory of a container's freezer cgroup on a host.
    #[must_use]
    pub fn cgroup_of(&self, host: usize, container: &str) -> String {
        let (cluster, host) = (self.cluster.id(), self.cluster.host(host).name());
        format!("/sys/fs/cgroup/freezer/extvol_{cluster}_{host}/{container}")
    }

    /// Kills all processes of a container on a host, as a crash of its executor would; back when they are gone.
    ///
    /// # Errors
    /// When the host is down, or the container has no cgroup.
    pub fn kill_container(&self, host: usize, container: &str) -> Result<()> {
        // Frozen, so that none is started meanwhile; the kill acts after the thaw.
        let script = "cd \"$1\" && echo FROZEN >freezer.state && kill -KILL $(cat cgroup.procs) && echo THAWED >freezer.state";
        let cgroup = self.cgroup_of(host, container);
        let on = self.cluster.host(host);
        on.run(&["sh", "-c", script, "sh", &cgroup])?;
        Ok(self.cluster.wait_for("the end of a container", SOON, || {
            match on.exec(&["cat", &format!("{cgroup}/cgroup.procs")]) {
                Ok(output) if output.stdout.is_empty() => Ok(()),
                Ok(output) => Err(output.stdout),
                Err(error) => Err(error.to_string()),
            }
        })?)
    }

    /// The process ids of a host's programs of this name, as the host numbers them.
    ///
    /// # Errors
    /// When the host is down.
    pub fn processes(&self, host: usize, name: &str) -> Result<Vec<String>> {
        let found = self.cluster.host(host).exec(&["pgrep", "-x", name])?;
        Ok(found.stdout.split_whitespace().map(str::to_owned).collect())
    }

    /// Kills the keeper of a host, deadman and worker at once; back when they are gone. Its guard is left: when no other keeper is
    /// started before the fence time, it fences the host.
    ///
    /// # Errors
    /// When one is missing, or does not die.
    pub fn kill_keeper(&self, host: usize) -> Result<()> {
        self.kill_processes(host, &["extvol-deadman", "extvol-worker"])
    }

    /// Kills one process of each of these names on a host; back when they are gone.
    ///
    /// # Errors
    /// When there is not one of each, or one does not die.
    pub fn kill_processes(&self, host: usize, names: &[&str]) -> Result<()> {
        let mut pids = Vec::new();
        for name in names {
            match self.processes(host, name)?.as_slice() {
                [pid] => pids.push(pid.clone()),
                found => {
                    return Err(TrialError::Unexpected(format!("one {name} was expected, not {found:?}")));
                }
            }
        }
        let on = self.cluster.host(host);
        let mut kill = vec!["kill", "-KILL"];
        kill.extend(pids.iter().map(String::as_str));
        on.run(&kill)?;
        for pid in pids {
            self.cluster.wait_for("the end of a process", SOON, || {
                match on.exec(&["test", "-e", &format!("/proc/{pid}")]) {
                    Ok(output) if output.success() => Err(format!("process {pid} is there")),
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.to_string()),
                }
            })?;
        }
        Ok(())
    }

    /// What the keeper of a host has logged.
    #[must_use]
    pub fn keeper_log(&self, host: &Host) -> String {
        host.run(&["cat", "/run/extvol/keeper.log"]).unwrap_or_else(|error| error.to_string())
    }

    /// Nothing of any volume is left on any host that is up, nor attached: waits for the keepers' tables to be empty,
    /// then looks, and asks the witness.
    ///
    /// # Errors
    /// Says what is left; [`TrialError::TwoWriters`] and [`TrialError::Witness`] above all.
    pub fn nothing_is_left(&self) -> Result<()> {
        for (index, host) in self.cluster.hosts().iter().enumerate().filter(|(_, host)| host.is_up()) {
            // Stored a moment after the release was written.
            self.cluster.wait_for(&format!("an empty table on {}", host.name()), SOON, || {
                let table =
                    host.run(&["cat", "/run/extvol/table.json"]).map_err(|error| error.to_string())?;
                // Its first line is whole, and each further one tells of a change.
                let empty = table.contains(r#""containers":{},"volumes":[]"#) && table.lines().count() == 1;
                if empty { Ok(()) } else { Err(format!("{table}\n{}", self.keeper_log(host))) }
            })?;
            let mounted = self.mounted(index)?;
            if !mounted.is_empty() {
                return Err(TrialError::Unexpected(format!("mounted on {}: {mounted:?}", host.name())));
            }
        }
        match self.attached()? {
            attached if attached.is_empty() => self.witness().map(drop),
            attached => Err(TrialError::Unexpected(format!("attached: {attached:?}"))),
        }
    }

    /// The shell command of a task that writes numbered records to the file `log` of its volume, which is at `data` in its
    /// sandbox, and tells the witness.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn writer(&self, volume: &str) -> Result<String> {
        self.writer_at(volume, "data")
    }

    /// As [`Trial::writer`], with the volume in another directory.
    ///
    /// # Errors
    /// When the program was not built.
    pub fn writer_at(&self, volume: &str, directory: &str) -> Result<String> {
        let (writer, _) = self.cluster.config().binaries.witness()?;
        let journals = collect::writers_directory(&self.cluster);
        let (writer, journals) = (writer.display(), journals.display());
        Ok(format!("exec {writer} --volume {volume} --directory {directory} --journals {journals}"))
    }

    /// The witness's verdict so far, whatever it is.
    ///
    /// # Errors
    /// When the journals cannot be collected.
    pub fn verdict(&self) -> Result<Verdict> {
        Ok(collect::verdict(&self.cluster, self.journal()?)?)
    }

    /// The witness's verdict, which must be sound; its one line is what a demonstration prints at its end.
    ///
    /// # Errors
    /// [`TrialError::Witness`] with everything that was seen.
    pub fn witness(&self) -> Result<Verdict> {
        let verdict = self.verdict()?;
        if verdict.is_sound() { Ok(verdict) } else { Err(TrialError::Witness(Box::new(verdict))) }
    }

    /// Makes the storage do what EBS does not do.
    ///
    /// # Errors
    /// When it does not take that.
    pub fn switch_storage(&self, switches: Switches) -> Result<()> {
        let url = format!("http://{}:{STORAGE_PORT}/switches", self.cluster.hub().address());
        let body =
            serde_json::to_string(&switches).map_err(|error| TrialError::Unexpected(error.to_string()))?;
        self.cluster.hub().run(&["curl", "-sSf", "-d", &body, &url])?;
        Ok(())
    }

    /// Waits until a host's file `log` of a mounted volume has a whole line after its first `after` bytes; all of it.
    ///
    /// # Errors
    /// When it does not within [`SOON`].
    pub fn wait_written(&self, host: usize, volume: &str, after: usize) -> Result<String> {
        Ok(self.cluster.wait_for("a line on the volume", SOON, || {
            let text = self.read(host, volume, "log").map_err(|error| error.to_string())?;
            if text.len() > after && text.ends_with('\n') { Ok(text) } else { Err(text) }
        })?)
    }
}

/// The key of the lease of `driver/name`.
///
/// # Errors
/// When that is no volume.
pub fn lease_key(volume: &str) -> Result<String> {
    let parsed = volume.split_once('/').and_then(|(driver, name)| {
        Some(VolumeId { driver: Driver::new(driver).ok()?, name: VolumeName::new(name).ok()? })
    });
    let volume = parsed.ok_or_else(|| TrialError::Unexpected(format!("{volume} is no driver/name")))?;
    Ok(Keys::default().lease(&volume))
}

/// An app for a host (by name; empty for any) with a shell command and labels, which is tried again soon.
///
/// # Errors
/// When it is not a valid one.
pub fn app(id: &str, host: &str, cmd: &str, labels: &[(&str, &str)]) -> Result<App> {
    let labels: Map<String, Value> = labels.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    let hosts: Vec<_> = [host].into_iter().filter(|host| !host.is_empty()).collect();
    let app = json!({
        "id": id, "cmd": cmd, "labels": labels, "constraints": { "hostnames": hosts },
        "backoff": { "initial_seconds": 0.2, "factor": 2, "max_seconds": 1, "reset_after_seconds": 30 },
    });
    Ok(App::from_json(&app.to_string())?)
}

/// As [`app`], with one volume of driver `ebs` at `data` in the sandbox.
///
/// # Errors
/// As [`app`].
pub fn app_with(id: &str, host: &str, volume: &str, cmd: &str) -> Result<App> {
    let labels = [("extvol.name", volume), ("extvol.driver", "ebs"), ("extvol.container_path", "data")];
    app(id, host, cmd, &labels)
}

/// The app, left alone when its task has ended, however that was.
#[must_use]
pub fn once(app: App) -> App {
    App { restart: RestartPolicy::Never, ..app }
}

/// The records of test writers ([`crate::witness::record`]) by number, in order: none was lost, doubled or torn.
///
/// # Errors
/// Names the first that is not what it should be.
pub fn check_counting(text: &str) -> Result<()> {
    match (1..).zip(text.lines()).find(|(n, line)| line.split(' ').next() != Some(&n.to_string())) {
        None => Ok(()),
        Some((n, line)) => Err(TrialError::Unexpected(format!("line {n} is {line:?} of {text:?}"))),
    }
}
