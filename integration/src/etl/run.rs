//! One run: a cluster, the source, the job, what breaks, and the verdict.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shared::event::EventKind;

use super::fault::Fault;
use super::throughput::{self, Throughput};
use super::verify::{Verified, verify};
use super::{EtlError, Result, SCRATCH, TARGET, app, grouped, source, watch};
use crate::cluster::ClusterConfig;
use crate::scheduler::{SchedulerConfig, TaskEvent, TaskState};
use crate::timeline::Timeline;
use crate::trial::{SOON, Trial, lease_key};
use crate::witness::{Moment, collect};

/// A load that takes longer has failed: a million rows take less than a minute.
const LOAD: Duration = Duration::from_secs(600);
/// Progress is told so often.
const TELL: Duration = Duration::from_secs(5);
/// And looked for so often: it is in a log that grows.
const LOOK: Duration = Duration::from_millis(100);

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// What breaks.
    pub fault: Fault,
    /// When this part of all rows is loaded, in percent.
    pub percent: u64,
    /// Orders in the source.
    pub rows: u64,
    /// The seed of the orders.
    pub seed: u64,
    /// Another pace than the app's.
    pub rows_per_second: Option<u32>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// Seconds since the first batch.
    pub at: f64,
    /// What.
    pub what: String,
}

/// A run that has passed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// What was done.
    pub settings: Settings,
    /// Good rows, each loaded once.
    pub good: u64,
    /// Bad rows, each set aside once.
    pub bad: u64,
    /// Which hosts have loaded, one after the other.
    pub hosts: Vec<String>,
    /// How the load went.
    pub throughput: Throughput,
    /// What happened meanwhile.
    pub marks: Vec<Mark>,
}

/// The clocks of the harness: what happens has one of them, the batches have the other.
struct Clock {
    instant: Instant,
    moment: Moment,
}

impl Clock {
    fn moment(&self, at: Instant) -> Moment {
        let since = at.saturating_duration_since(self.instant).as_nanos();
        Moment(self.moment.0 + u64::try_from(since).unwrap_or(0))
    }
}

/// Runs it all on a cluster of its own, and tells what happens.
///
/// # Errors
/// Whatever is not as it has to be; above all two writers, and a target that is not right.
pub fn run(settings: &Settings, time: &Timeline) -> Result<Outcome> {
    let clock = Clock { instant: Instant::now(), moment: Moment::now() };
    time.line("starting etcd, a Mesos master, PostgreSQL and two agents, each host with plugins `ebs` and `scaleio`");
    let trial = Trial::with(config()?, SchedulerConfig::default())?;
    let outcome = run_on(&trial, settings, time, &clock).inspect_err(|_| trial.cluster.keep_logs())?;
    let Trial { scheduler, cluster } = trial;
    scheduler.teardown()?;
    cluster.stop()?;
    Ok(outcome)
}

fn run_on(trial: &Trial, settings: &Settings, time: &Timeline, clock: &Clock) -> Result<Outcome> {
    time.line(format_args!(
        "to look in from another terminal (docs/demo.md): nsenter --net --target {} bash",
        trial.cluster.hub().init_pid()?
    ));
    let mut client = source::connect()?;
    let known = source::fill(&mut client, settings.rows, settings.seed)?;
    time.line(format_args!(
        "the source has {} orders of seed {}, {} of them bad",
        grouped(settings.rows),
        settings.seed,
        grouped(known.all_bad())
    ));

    trial.scheduler.run(app::read(&trial.cluster, settings.rows_per_second)?)?;
    trial.scheduler.wait_until_running(app::ID, Instant::now() + SOON)?;
    let from = holder(trial)?;
    let name = trial.cluster.host(from).name().to_owned();
    time.line(format_args!(
        "task `etl` of apps/etl.json runs on {name}, in a container from the image `etl`"
    ));
    for (volume, _) in [TARGET, SCRATCH] {
        show_lease(time, trial, volume)?;
    }

    wait_loaded(trial, time, settings)?;
    let since = trial.last_event()?;
    let struck = Moment::now();
    settings.fault.strike(trial.cluster.host(from), time)?;
    let finished = wait_finished(trial, time)?;
    tell_end(trial, time, &finished);
    tell_events(trial, time, &since)?;
    for (volume, _) in [TARGET, SCRATCH] {
        trial.wait_free(volume)?;
    }
    clean_up(trial, time, settings.fault, from)?;

    time.line("the job has released both volumes; verifying the target against the source");
    let verified = verify_volume(trial, &mut client, &known)?;
    tell_verified(time, &verified);
    let outcome = outcome(settings, &verified, trial, clock, struck, &name)?;
    drop(client);
    trial.nothing_is_left()?;
    time.line(trial.witness()?);
    Ok(outcome)
}

/// Two agent hosts, with the times of the profile `fast` on both sides.
fn config() -> Result<ClusterConfig> {
    let mut config = ClusterConfig::complete(2, &["ebs", "scaleio"])?;
    for (name, value) in [("profile", "fast"), ("settle_time", "5secs"), ("grace", "1secs")] {
        config.set_agent_parameter(name, value);
    }
    config.set_master_parameter("profile", "fast");
    config.set_master_parameter("poll_interval", "500ms");
    config.docker_registry = Some(app::images()?);
    // The agents' own, which go with the cluster.
    config.agent_env.insert("MESOS_DOCKER_STORE_DIR".to_owned(), "{dir}/images".to_owned());
    source::add_to(&mut config);
    Ok(config)
}

/// Which host has the target.
fn holder(trial: &Trial) -> Result<usize> {
    trial.wait_lease(TARGET.0, "is attached", |lease| {
        lease.is_some_and(|lease| lease.state() == "attached")
    })?;
    let held = trial.held(TARGET.0)?;
    let hosts = trial.cluster.hosts();
    let of = held.and_then(|held| hosts.iter().position(|host| host.name() == held.holder.as_str()));
    of.ok_or_else(|| job_error(trial, "no volume"))
}

fn show_lease(time: &Timeline, trial: &Trial, volume: &str) -> Result<()> {
    let key = lease_key(volume)?;
    let value = trial.cluster.etcdctl(&["get", "--print-value-only", &key])?;
    time.command(format_args!("etcdctl get --print-value-only {key}"), value.trim());
    Ok(())
}

/// Follows the job's own lines, and tells some of them.
struct Watch<'a> {
    trial: &'a Trial,
    time: &'a Timeline,
    told: Instant,
    looked: Option<Instant>,
    rows: u64,
}

impl<'a> Watch<'a> {
    fn new(trial: &'a Trial, time: &'a Timeline) -> Self {
        Self { trial, time, told: Instant::now(), looked: None, rows: 0 }
    }

    /// Rows that are done, by the newest task's word.
    fn look(&mut self) -> u64 {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return self.rows;
        }
        self.looked = Some(Instant::now());
        let history = self.trial.scheduler.history(app::ID);
        let Some(task) = watch::newest(&history) else { return self.rows };
        let output = watch::output(&self.trial.cluster, task);
        let Some((rows, line)) = watch::progress(&output) else { return self.rows };
        let stands = rows == self.rows;
        self.rows = rows;
        if !stands && self.told.elapsed() >= TELL {
            self.told = Instant::now();
            self.time.line(format_args!("{}: {line}", task.hostname.as_deref().unwrap_or("?")));
        }
        rows
    }
}

/// Until the part of the rows is loaded behind which something breaks.
fn wait_loaded(trial: &Trial, time: &Timeline, settings: &Settings) -> Result<()> {
    let enough = settings.rows * settings.percent / 100;
    let mut watch = Watch::new(trial, time);
    trial.cluster.wait_for("the load", LOAD, || match watch.look() {
        rows if rows >= enough.max(1) => Ok(()),
        rows => Err(format!("{rows} of {enough} rows; {:?}", trial.scheduler.history(app::ID))),
    })?;
    Ok(())
}

fn wait_finished(trial: &Trial, time: &Timeline) -> Result<TaskEvent> {
    let mut watch = Watch::new(trial, time);
    let finished = trial.cluster.wait_for("the end of the job", LOAD, || {
        watch.look();
        let history = trial.scheduler.history(app::ID);
        let finished = history.iter().find(|event| event.state == TaskState::Finished);
        finished.cloned().ok_or_else(|| format!("{history:?}"))
    })?;
    Ok(finished)
}

fn job_error(trial: &Trial, what: &str) -> EtlError {
    let history = trial.scheduler.history(app::ID);
    let output = watch::newest(&history).map(|task| watch::output(&trial.cluster, task)).unwrap_or_default();
    EtlError::Job { what: what.to_owned(), said: watch::words(&output).join("; ") }
}

fn tell_end(trial: &Trial, time: &Timeline, finished: &TaskEvent) {
    let host = finished.hostname.as_deref().unwrap_or("?");
    time.line(format_args!("task `etl` has finished on {host}; in its standard output there:"));
    time.more(watch::words(&watch::output(&trial.cluster, finished)).join("\n"));
}

/// What the masters' module has recorded of it, each with who noticed what and why.
fn tell_events(trial: &Trial, time: &Timeline, since: &str) -> Result<()> {
    time.line("what the master's module recorded in etcd meanwhile (`extvol events`):");
    let hidden = [EventKind::Changed, EventKind::AgentAnswers, EventKind::AgentRecovering];
    for (key, event) in trial.events()? {
        if key.as_str() > since && !hidden.contains(&event.what) {
            let what = serde_json::to_value(event.what).unwrap_or_default();
            let (at, what) = (event.time.get(11..23).unwrap_or(&event.time), what.as_str().unwrap_or("?"));
            time.more(format_args!("{at}  {what:<18} {}", event.text));
        }
    }
    Ok(())
}

/// The old side is clean by itself; then the fault is mended.
fn clean_up(trial: &Trial, time: &Timeline, fault: Fault, from: usize) -> Result<()> {
    let host = trial.cluster.host(from);
    let name = host.name();
    if matches!(fault, Fault::Agent | Fault::Partition) {
        trial.cluster.wait_for("a clean host", SOON, || match trial.mounted(from) {
            Ok(mounted) if mounted.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    match fault {
        Fault::None => return Ok(()),
        Fault::Agent => {
            host.start_agent()?;
            time.line(format_args!("nothing is mounted on {name}; its agent is started again"));
        }
        Fault::Partition => {
            host.set_link(true)?;
            time.line(format_args!("nothing is mounted on {name}; its cable is in again"));
        }
        Fault::Host => {
            host.start()?;
            time.line(format_args!("{name} has power again, and starts"));
        }
    }
    trial.cluster.wait_agent_registered(from, SOON)?;
    Ok(())
}

/// Reads the database from the volume at rest, as the next mount would show it. The copy is among the logs, which are kept when it
/// is wrong.
fn verify_volume(
    trial: &Trial,
    client: &mut postgres::Client,
    known: &super::orders::Known,
) -> Result<Verified> {
    let directory = trial.cluster.logs().join("target");
    let failed = |source| EtlError::File { path: directory.clone(), source };
    fs::create_dir_all(&directory).map_err(failed)?;
    let target = directory.join("shop.db");
    let bytes = collect::volume_file(&trial.cluster, TARGET.1, "shop.db").map_err(failed)?;
    fs::write(&target, bytes).map_err(failed)?;
    Ok(verify(client, &target, known)?)
}

fn tell_verified(time: &Timeline, verified: &Verified) {
    let euros = grouped(verified.eur_cents / 100);
    time.more(format_args!("integrity check of the target: ok; {} batches", verified.batches.len()));
    time.more(format_args!("good rows: {} in both, each once and equal", grouped(verified.good)));
    time.more(format_args!(
        "totals by customer and day: equal, EUR {euros}.{:02} in all",
        verified.eur_cents % 100
    ));
    time.more(format_args!(
        "bad rows: {} set aside, each with the reason that the source's own query gives",
        grouped(verified.bad)
    ));
}

fn outcome(
    settings: &Settings,
    verified: &Verified,
    trial: &Trial,
    clock: &Clock,
    struck: Moment,
    first: &str,
) -> Result<Outcome> {
    let mut hosts: Vec<String> = verified.batches.iter().map(|batch| batch.host.clone()).collect();
    hosts.dedup();
    // A job that was as good as done may have ended before anybody noticed the fault.
    let most = if settings.fault == Fault::None { 1 } else { 2 };
    if hosts.len() > most || hosts.first().is_none_or(|host| host != first) {
        return Err(EtlError::Hosts { hosts });
    }
    let throughput = throughput::of(&verified.batches).ok_or_else(|| job_error(trial, "too few batches"))?;
    let began = verified.batches.first().map(|batch| batch.at).unwrap_or_default();
    let mut marks = Vec::new();
    if settings.fault != Fault::None {
        marks.push(Mark { at: struck.seconds_since(began), what: settings.fault.title().to_owned() });
    }
    for event in trial.scheduler.history(app::ID) {
        let at = clock.moment(event.at);
        let host = event.hostname.as_deref().unwrap_or("?");
        let what = match event.state {
            state if state.is_loss() => format!("Mesos: task lost on {host}"),
            TaskState::Running => format!("task runs on {host}"),
            _ => continue,
        };
        if at > struck {
            marks.push(Mark { at: at.seconds_since(began), what });
        }
    }
    marks.sort_by(|one, other| one.at.total_cmp(&other.at));
    let (good, bad) = (verified.good, verified.bad);
    Ok(Outcome { settings: settings.clone(), good, bad, hosts, throughput, marks })
}
