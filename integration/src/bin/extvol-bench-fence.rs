//! How soon a host that is cut off writes to no volume any more, whatever its tenants do.
//!
//! ```text
//! extvol-bench-fence [--short]     fewer samples, and fewer hostile namespaces
//! ```
//!
//! A real keeper guards real file systems on loop devices, each with a container that writes and syncs without end. The deadline
//! passes, and it is counted from there until the last file system is shut down *and* the last write has reached a device,
//! whichever is later. That is done on a quiet machine and, side by side in the same run, with
//!
//! - `mounts`: a container without a volume that has hostile mount namespaces of 32,768 mounts each, with copies of the volumes,
//! - `bomb`: one whose thousand processes start others without end,
//! - `full`: no process can be started any more, by anybody.
//!
//! Each sample is a host of its own: mount and pid namespaces that end with it, loop devices that the kernel takes down with their
//! last mount, and cgroups that are removed afterwards, however it ends; those of a run that was killed by the next run.

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_isolator::keeper::deadman::DEADLINE;
use agent_isolator::keeper::fence::HELPER_MODE;
use agent_isolator::keeper::shared_memory::SharedMemory;
use agent_isolator::keeper::stored_table::TABLE;
use integration::bench::{Goal, Report, directory};
use integration::cluster::target_directory;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::clock::holder_now;
use tokio::signal::unix::{SignalKind, signal};

type Failure = Box<dyn Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

/// Volumes of a host, each with a container.
const VOLUMES: usize = 4;

/// From F to the last file system shut down.
const GOAL_MILLISECONDS: f64 = 500.0;

/// How long anything may take that this waits for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes are looked for so long after the last shutdown.
const AFTERWARDS: Duration = Duration::from_millis(500);

const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/pids"];
const PREFIX: &str = "extvol-bench-fence-";

/// Processes of a fork bomb, of which each starts others.
const BOMB: usize = 1_000;

/// As many processes as a host of its own may have where its table is full.
const FULL: usize = 400;

/// A namespace with 2^15 mounts, by recursive binds, and many copies of it.
const HOSTILE: &str = "mount -t tmpfs many $MANY
    for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do mkdir $MANY/$i; mount --rbind $MANY $MANY/$i; done
    for i in $(seq $COUNT); do unshare --mount --propagation private sh -c 'echo >>$READY; exec sleep 1000' & done
    wait";

/// Each of its processes starts another one, again and again.
const FORKS: &str = "for i in $(seq $COUNT); do (while :; do (:); done) & done; wait";

/// Without starting a process: in a full process table it goes on.
const WRITES: &str = "exec $SELF --writer $VOLUME/data";

/// What one host has shown.
#[derive(Serialize, Deserialize)]
struct Sample {
    /// Milliseconds from F to the last shutdown, and to the last write, if that is later.
    quiet_after: f64,
    /// Milliseconds from F to the proof.
    proved_after: f64,
    /// Writes after the last shutdown, other than those that were under way then.
    writes_after: u64,
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--inside", case, count, directory] => inside(case, count.parse()?, Path::new(directory)),
        ["--writer", file] => writer(Path::new(file)),
        [] => measure(10, 5, 200),
        ["--short"] => measure(2, 1, 20),
        _ => Err("usage: extvol-bench-fence [--short]".into()),
    }
}

fn measure(quiet: usize, samples: usize, namespaces: usize) -> Result<()> {
    println!("{}", Report::head());
    remove_cgroups(|_| true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut missed = Vec::new();
    let cases =
        [("quiet", quiet, 0), ("mounts", samples, namespaces), ("bomb", samples, 0), ("full", samples, 0)];
    for (case, samples, count) in cases {
        let mut all = Vec::new();
        for _ in 0..samples {
            all.push(runtime.block_on(host(case, count)).map_err(|error| format!("{case}: {error}"))?);
        }
        let of = |value: fn(&Sample) -> f64| all.iter().map(value).collect::<Vec<_>>();
        let goal = Some(Goal::Worst(GOAL_MILLISECONDS));
        let reports = [
            Report::new(&format!("fence-{case}-last-write"), "ms", of(|sample| sample.quiet_after), goal),
            Report::new(&format!("fence-{case}-proved"), "ms", of(|sample| sample.proved_after), None),
        ];
        for report in reports.into_iter().flatten() {
            println!("{report}");
            report.write(&directory())?;
            if report.met == Some(false) {
                missed.push(report.name);
            }
        }
        let writes: u64 = all.iter().map(|sample| sample.writes_after).sum();
        println!("{case}: {writes} writes reached a device more than {AFTERWARDS:?} after the last shutdown");
    }
    println!("mounts: {namespaces} namespaces of 32,768 mounts; {VOLUMES} volumes in each case");
    if !missed.is_empty() {
        println!("missed: {}", missed.join(", "));
    }
    Ok(())
}

/// One sample, on a host of its own; nothing of it is left, also when this is interrupted.
async fn host(case: &str, count: usize) -> Result<Sample> {
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let cgroups = cgroup_of(directory.path());
    for root in CGROUPS {
        fs::create_dir_all(Path::new(root).join(&cgroups))?;
    }
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // In a process group of its own: who interrupts this one leaves it the time to clean up. It sees in time what it measures.
    let mut child = tokio::process::Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["--propagation", "private", "chrt", "--reset-on-fork", "--rr", "10"])
        .arg(std::env::current_exe()?)
        .args(["--inside", case, &count.to_string()])
        .arg(directory.path())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    let status = tokio::select! {
        status = child.wait() => status?,
        _ = interrupt.recv() => stop(&mut child).await?,
        _ = terminate.recv() => stop(&mut child).await?,
    };
    remove_cgroups(|name| name == cgroups);
    if !status.success() {
        return Err(format!("the sample ended with {status}").into());
    }
    Ok(serde_json::from_slice(&fs::read(directory.path().join("sample.json"))?)?)
}

async fn stop(child: &mut tokio::process::Child) -> Result<std::process::ExitStatus> {
    child.kill().await?;
    Ok(child.wait().await?)
}

fn cgroup_of(directory: &Path) -> String {
    directory.file_name().map(|name| name.to_string_lossy().replace('.', "")).unwrap_or_default()
}

/// Kills what is left in the cgroups of samples, the guard's in every hierarchy among them, and removes them.
fn remove_cgroups(wanted: impl Fn(&str) -> bool) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    for root in hierarchies.map(|hierarchy| hierarchy.path()) {
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = name.strip_prefix("extvol-guard.").unwrap_or(&name).to_owned();
            if name.starts_with(PREFIX.trim_end_matches('-')) && wanted(&name) {
                let until = Instant::now() + Duration::from_secs(20);
                while !remove(&entry.path()) && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
}

fn remove(cgroup: &Path) -> bool {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|pid| pid.parse().ok().and_then(rustix::process::Pid::from_raw)) {
        let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let _thawed = fs::write(cgroup.join("freezer.state"), "THAWED");
    fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

fn path(of: &Path) -> Result<&str> {
    of.to_str().ok_or_else(|| format!("{} is not UTF-8", of.display()).into())
}

fn eventually(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > PATIENCE {
            return Err(format!("not within {PATIENCE:?}: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A volume, and a handle on it.
struct Volume {
    name: String,
    point: PathBuf,
    device: String,
    number: String,
    handle: OwnedFd,
}

impl Volume {
    fn new(memory: &Path, root: &Path, name: &str) -> Result<Self> {
        let (image, point) = (memory.join(name), root.join(name));
        File::create(&image)?.set_len(64 << 20)?;
        run("mkfs.ext4", &["-q", path(&image)?])?;
        fs::create_dir(&point)?;
        // Such a loop device ends with its last mount.
        run("mount", &["-o", "loop", path(&image)?, path(&point)?])?;
        let output = Command::new("findmnt").args(["-no", "SOURCE,MAJ:MIN"]).arg(&point).output()?;
        let text = String::from_utf8(output.stdout)?;
        let (device, number) = text.trim().split_once(' ').ok_or("findmnt tells nothing")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&point, flags, Mode::empty())?;
        Ok(Self {
            name: name.to_owned(),
            point,
            device: device.to_owned(),
            number: number.trim().to_owned(),
            handle,
        })
    }

    fn is_shut_down(&self) -> bool {
        rustix::fs::fremovexattr(&self.handle, "trusted.extvol-none") == Err(Errno::IO)
    }

    /// Writes that the device has completed.
    fn writes(&self) -> u64 {
        let counted = fs::read_to_string(format!("/sys/dev/block/{}/stat", self.number)).unwrap_or_default();
        counted.split_ascii_whitespace().nth(4).and_then(|writes| writes.parse().ok()).unwrap_or_default()
    }

    fn row(&self) -> Value {
        let id = json!({"driver": "ebs", "name": self.name});
        let block = format!("/sys/dev/block/{}/diskseq", self.number);
        let sequence = fs::read_to_string(block).ok().and_then(|text| text.trim().parse::<u64>().ok());
        json!({
            "wanted": {"volume": id, "asked": id, "create": null}, "users": [], "phase": "attached", "token": 1,
            "mounted": {
                "mount_point": self.point, "device_number": self.number, "source": self.device, "file_system": "ext4",
                "device": {"path": self.device, "number": self.number, "disk_sequence": sequence},
            },
        })
    }
}

/// A container: a shell script in cgroups and a mount namespace of its own.
fn container(
    cgroup: &str,
    limit: Option<usize>,
    environment: &[(&str, &str)],
    script: &str,
) -> Result<Child> {
    for root in CGROUPS {
        fs::create_dir_all(Path::new(root).join(cgroup))?;
    }
    if let Some(limit) = limit {
        fs::write(Path::new(CGROUPS[1]).join(cgroup).join("pids.max"), limit.to_string())?;
    }
    let enter = format!(
        "for root in {}; do echo 0 >$root/{cgroup}/cgroup.procs; done; exec unshare --mount --propagation slave sh -c \"$DO\"",
        CGROUPS.join(" ")
    );
    let mut command = Command::new("sh");
    command.args(["-c", &enter]).env("DO", script).envs(environment.iter().copied());
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// A container's: writes and syncs until that is refused.
fn writer(path: &Path) -> Result<()> {
    let file = File::create(path)?;
    loop {
        file.write_all_at(&[7; 4096], 0)?;
        file.sync_data()?;
    }
}

/// One host's whole life, in its own namespaces.
fn inside(case: &str, count: usize, directory: &Path) -> Result<()> {
    let cgroups = cgroup_of(directory);
    let (memory, root, many, ready) = (
        directory.join("memory"),
        directory.join("volumes"),
        directory.join("many"),
        directory.join("memory/ready"),
    );
    for made in [&memory, &root, &many] {
        fs::create_dir(made)?;
    }
    run("mount", &["-t", "tmpfs", "extvol-bench", path(&memory)?])?;
    run("mount", &["--bind", path(&root)?, path(&root)?])?;
    run("mount", &["--make-shared", path(&root)?])?;
    let volumes = (1..=VOLUMES).map(|n| Volume::new(&memory, &root, &format!("vol{n}")));
    let volumes = volumes.collect::<Result<Vec<_>>>()?;
    let own = std::env::current_exe()?;
    let mut children = Vec::new();
    let mut containers = serde_json::Map::new();
    for volume in &volumes {
        let cgroup = format!("{cgroups}/of-{}", volume.name);
        let environment = [("VOLUME", path(&volume.point)?), ("SELF", path(&own)?)];
        children.push(container(&cgroup, None, &environment, WRITES)?);
        let stored = json!({
            "agent": "slave(1)@h", "agent_id": null, "volumes": [], "pid": null, "cgroup": format!("/{cgroup}"),
            "prepared": true,
        });
        containers.insert(format!("of-{}", volume.name), stored);
    }

    let run_directory = directory.join("memory/run");
    let mut keeper = Command::new(target_directory().join("release/extvol-keeper"))
        .args(["--etcd_endpoints=127.0.0.1:1", "--holder=h", &format!("--cgroup_root={cgroups}")])
        .arg(format!("--run_directory={}", run_directory.display()))
        .arg(format!("--state_directory={}", directory.join("memory/state").display()))
        .arg(format!("--mount_roots={}", root.display()))
        .stdin(Stdio::null())
        .stderr(File::create(memory.join("keeper.log"))?)
        .spawn()?;
    let deadline = run_directory.join(DEADLINE);
    eventually("the keeper starts", || deadline.exists())?;
    let shared = SharedMemory::open(&deadline)?;
    eventually("its worker ticks", || shared.worker_tick() > Duration::ZERO)?;
    let table = json!({
        "version": 2, "boot_id": fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim(),
        "owner": {"holder": "h", "etcd_prefix": "/extvol/v1"},
        "table": {
            "open": null, "refused": null, "containers": containers,
            "volumes": volumes.iter().map(Volume::row).collect::<Vec<_>>(),
        },
    });
    fs::write(run_directory.join(TABLE), table.to_string())?;
    // The deadman's and the guard's, each with three beside those of the volumes.
    eventually("helpers stand by", || helpers() >= 2 * (VOLUMES + 3))?;

    // Where no process can be started any more, one that has yet to begin might not.
    all_write(&volumes)?;
    let tenant = format!("{cgroups}/tenant");
    let (namespaces, bomb) = (count.to_string(), BOMB.to_string());
    let environment = [("MANY", path(&many)?), ("READY", path(&ready)?), ("COUNT", namespaces.as_str())];
    let lines = || fs::metadata(&ready).map_or(0, |found| found.len());
    match case {
        "mounts" => {
            children.push(container(&tenant, None, &environment, HOSTILE)?);
            eventually("all namespaces are there", || lines() >= u64::try_from(count).unwrap_or(u64::MAX))?;
        }
        "bomb" => {
            children.push(container(&tenant, Some(2 * BOMB + 10), &[("COUNT", bomb.as_str())], FORKS)?);
            let current = Path::new(CGROUPS[1]).join(&tenant).join("pids.current");
            let count =
                || fs::read_to_string(&current).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            eventually("the bomb is as large as it may be", || count() > BOMB)?;
        }
        "full" => {
            fs::write("/proc/sys/kernel/pid_max", FULL.to_string())?;
            loop {
                match Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn() {
                    Ok(child) => children.push(child),
                    Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        _ => {}
    }
    all_write(&volumes)?;

    let sample = fence(&volumes, &shared, &run_directory)?;
    fs::write(directory.join("sample.json"), serde_json::to_vec(&sample)?)?;
    // The namespaces end with this process, and everything in them.
    let _ends = keeper.kill();
    Ok(())
}

fn all_write(volumes: &[Volume]) -> Result<()> {
    let before: Vec<_> = volumes.iter().map(Volume::writes).collect();
    eventually("all write", || volumes.iter().zip(&before).all(|(volume, before)| volume.writes() > *before))
}

/// Lets the deadline pass, and looks.
fn fence(volumes: &[Volume], shared: &SharedMemory, run_directory: &Path) -> Result<Sample> {
    let fence_at = holder_now() + Duration::from_millis(200);
    shared.extend(Some(fence_at)).map_err(|_| "the host is fenced already")?;
    let since = || holder_now().saturating_sub(fence_at).as_secs_f64() * 1e3;
    let log = run_directory.join("deadman.log");
    let (mut shut, mut proved, mut last_write, mut writes_after) = (None, None, 0.0, 0);
    let mut seen: Vec<_> = volumes.iter().map(Volume::writes).collect();
    let mut end = None;
    while end.is_none_or(|end| holder_now() < end) {
        if holder_now() > fence_at + PATIENCE {
            let said = ["deadman.log", "guard.log"]
                .map(|log| fs::read_to_string(run_directory.join(log)).unwrap_or_default());
            return Err(format!("no proof within {PATIENCE:?}: {}", said.concat()).into());
        }
        if shut.is_none() && volumes.iter().all(Volume::is_shut_down) {
            shut = Some(since());
        }
        let now: Vec<_> = volumes.iter().map(Volume::writes).collect();
        // A device that is gone counts nothing any more.
        let written: u64 = now.iter().zip(&seen).map(|(now, seen)| now.saturating_sub(*seen)).sum();
        if written > 0 {
            last_write = since();
            if shut.is_some_and(|shut| last_write > shut + AFTERWARDS.as_secs_f64() * 1e3) {
                writes_after += written;
            }
        }
        seen = now;
        let is_proved =
            || fs::read_to_string(&log).is_ok_and(|log| log.contains("this host is fenced: nothing"));
        if proved.is_none() && shut.is_some() && is_proved() {
            proved = Some(since());
            end = Some(holder_now() + 2 * AFTERWARDS);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let (shut, proved_after) = shut.zip(proved).ok_or("neither shut down nor proved")?;
    Ok(Sample { quiet_after: last_write.max(shut), proved_after, writes_after })
}

/// Helpers that stand by, in this pid namespace.
fn helpers() -> usize {
    let is_helper = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|part| part == HELPER_MODE.as_bytes())
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| is_helper(*pid)).count()
}
