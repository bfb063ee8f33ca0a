//! What a fence of this host rests on when all of the keeper's processes die at once: established by looking, never by what a
//! parameter says. With none of it the session is opened, or rewritten, as one that silence does not end (L18).
//!
//! - *guard*: it ticks, in a session of its own, and in no cgroup below a root that deadman or worker is in;
//! - *supervisor*: systemd runs this keeper as a service that it always restarts, and says so itself;
//! - *watchdog*: the kernel says that the device counts, and its time fits the protocol's;
//! - *storage*: nobody takes a volume by time unless its storage takes it away from here. That alone ends no writer on this
//!   host: it stands beside the others, for people.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shared::protocol::exchange::Means;
use shared::protocol::timing::Timing;
use shared::protocol::{Now, Text};

use super::cgroups::{self, Hierarchies};
use super::deadman::{GUARD_SILENCE, check_watchdog, watchdog_is_armed, watchdog_timeout};
use super::process::{ProcessId, session_of};
use super::shared_memory::SharedMemory;
use crate::parameters::KeeperParameters;

/// A deadman has replaced a guard that died long before; after this etcd is told that there is none.
pub const GUARD_LOST: Duration = Duration::from_secs(3);

/// How often what may change unseen is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What this host's fence rests on.
    pub means: BTreeSet<Means>,
    /// Why the guard is not among it.
    pub lacking: Option<Text>,
}

/// Looks, again and again.
pub struct MeansWatch {
    shared: Arc<SharedMemory>,
    timing: Timing,
    watchdog: Option<PathBuf>,
    storage: bool,
    supervisor: Arc<AtomicBool>,
    hierarchies: Hierarchies,
    /// The guard that was looked at last, when, and what was found.
    guard: Option<(ProcessId, Now, Result<(), Text>)>,
    /// When a guard was last seen to be one.
    guarded: Option<Now>,
    /// When this was first asked: the deadman starts worker and guard at once.
    since: Option<Now>,
    told: Option<Found>,
}

impl MeansWatch {
    /// One for the keeper with these parameters.
    #[must_use]
    pub fn new(parameters: &KeeperParameters, shared: Arc<SharedMemory>) -> Self {
        let supervisor = Arc::new(AtomicBool::new(false));
        if let (Some(deadman), Ok(invocation)) = (shared.deadman(), std::env::var("INVOCATION_ID")) {
            let found = Arc::clone(&supervisor);
            let ask = move || match supervised(deadman, &invocation) {
                Ok(()) => found.store(true, Ordering::Relaxed),
                Err(why) => tracing::info!("systemd is not known to restart this keeper: {why}"),
            };
            // It talks to systemd, which may take its time.
            if let Err(error) = std::thread::Builder::new().name("extvol-systemd".into()).spawn(ask) {
                tracing::warn!("systemd could not be asked: {error}");
            }
        }
        Self {
            shared,
            timing: parameters.timing,
            watchdog: parameters.watchdog.clone(),
            // Where it is required and a driver has no such plugin, nobody takes that driver's volumes by time at all.
            storage: parameters.fencing_required && !parameters.drivers.preempt.is_empty(),
            supervisor,
            hierarchies: Hierarchies::new(),
            guard: None,
            guarded: None,
            since: None,
            told: None,
        }
    }

    /// What is found now, if that is not what it was.
    pub fn look(&mut self, now: Now) -> Option<Found> {
        let guard = self.guard(now);
        let begins = now < *self.since.get_or_insert(now) + LOOK_AGAIN;
        if guard.is_ok() {
            self.guarded = Some(now);
        }
        // One that died is replaced within a moment.
        let guarded = self.guarded.is_some_and(|at| now < at + GUARD_LOST);
        let found = [
            (guarded, Means::Guard),
            (self.supervisor.load(Ordering::Relaxed), Means::Supervisor),
            (self.watchdog_runs(), Means::Watchdog),
            (self.storage, Means::Storage),
        ];
        let means = found.into_iter().filter_map(|(is_there, means)| is_there.then_some(means)).collect();
        let found = Found { means, lacking: guard.err().filter(|_| !guarded && !begins) };
        if self.told.as_ref() == Some(&found) {
            return None;
        }
        let names: Vec<_> = found.means.iter().map(|means| means.as_str()).collect();
        tracing::info!("a fence of this host rests on: {}", names.join(", "));
        if let Some(why) = &found.lacking {
            tracing::warn!("there is no guard: {why}");
        }
        self.told = Some(found.clone());
        Some(found)
    }

    /// Whether there is a guard that what kills this keeper does not kill.
    fn guard(&mut self, now: Now) -> Result<(), Text> {
        let guard = self.shared.guard().ok_or("none was started")?;
        if now >= self.shared.guard_tick() + GUARD_SILENCE {
            return Err("it does not tick".into());
        }
        match &self.guard {
            Some((known, at, found)) if *known == guard && now < *at + LOOK_AGAIN => found.clone(),
            _ => {
                let found = is_apart(guard, self.shared.deadman(), &self.hierarchies).map_err(Text::from);
                self.guard = Some((guard, now, found.clone()));
                found
            }
        }
    }

    fn watchdog_runs(&self) -> bool {
        self.watchdog.as_ref().is_some_and(|path| {
            watchdog_is_armed(path)
                && watchdog_timeout(path).is_some_and(|timeout| check_watchdog(&self.timing, timeout).is_ok())
        })
    }
}

/// Whether a guard is in a session and cgroups of its own.
fn is_apart(guard: ProcessId, deadman: Option<ProcessId>, hierarchies: &Hierarchies) -> Result<(), String> {
    if session_of(guard.pid) != Some(guard.pid) || !guard.runs() {
        return Err("it is in a session that is not its own".into());
    }
    let of = |pid| cgroups::of(pid).map_err(|error| format!("the cgroups of process {pid}: {error}"));
    let guard = of(guard.pid)?;
    let keepers =
        [Some(std::process::id()), deadman.filter(|deadman| deadman.runs()).map(|deadman| deadman.pid)];
    for keeper in keepers.into_iter().flatten() {
        hierarchies.is_apart(&guard, &of(keeper)?)?;
    }
    Ok(())
}

/// Whether systemd says that it restarts the service whose main process the deadman is, whatever it ends of.
fn supervised(deadman: ProcessId, invocation: &str) -> Result<(), String> {
    let init = std::fs::read_to_string("/proc/1/comm").map_err(|error| error.to_string())?;
    if init.trim() != "systemd" {
        return Err(format!("process 1 is {}", init.trim()));
    }
    let cgroups = cgroups::of(deadman.pid).map_err(|error| error.to_string())?;
    let path = cgroups.get("name=systemd").or_else(|| cgroups.get("")).map_or("", String::as_str);
    let unit = path.rsplit('/').find(|part| part.ends_with(".service"));
    let unit = unit.ok_or_else(|| format!("the cgroup {path} is no service's"))?;
    let properties = ["Restart", "MainPID", "InvocationID"].map(|name| format!("--property={name}"));
    let shown =
        Command::new("systemctl").arg("show").args(properties).arg(unit).stdin(Stdio::null()).output();
    let shown = shown.map_err(|error| format!("systemctl: {error}"))?;
    restarts(&String::from_utf8_lossy(&shown.stdout), deadman.pid, invocation)
}

/// Reads what `systemctl show` says of a unit.
fn restarts(shown: &str, main: u32, invocation: &str) -> Result<(), String> {
    let main = main.to_string();
    for (name, expected) in [("Restart", "always"), ("MainPID", main.as_str()), ("InvocationID", invocation)]
    {
        let found = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        if found != Some(expected) {
            return Err(format!("its unit has {name}={}, not {expected}", found.unwrap_or("nothing")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_counts_only_where_it_always_restarts_this_very_keeper() {
        let shown = "Restart=always\nMainPID=7\nInvocationID=ab\n";
        assert_eq!(restarts(shown, 7, "ab"), Ok(()));
        for (text, main, invocation, named) in [
            ("Restart=on-failure\nMainPID=7\nInvocationID=ab\n", 7, "ab", "Restart=on-failure"),
            (shown, 8, "ab", "MainPID=7"),
            (shown, 7, "cd", "InvocationID=ab"),
            ("", 7, "ab", "Restart=nothing"),
        ] {
            let why = restarts(text, main, invocation).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
    }

    #[test]
    fn a_process_is_not_apart_from_itself() {
        let own = ProcessId::own().unwrap();
        // In the keeper's session, at the least.
        assert!(is_apart(own, Some(own), &Hierarchies::new()).is_err());
    }

    fn watch(shared: &Arc<SharedMemory>, more: &[(&str, &str)]) -> MeansWatch {
        let pairs: Vec<_> =
            [("etcd_endpoints", "h:1")].iter().chain(more).map(|(n, v)| ((*n).into(), (*v).into())).collect();
        MeansWatch::new(&KeeperParameters::read(&pairs).unwrap(), Arc::clone(shared))
    }

    #[test]
    fn what_a_parameter_says_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Arc::new(SharedMemory::create(&directory.path().join("deadline")).unwrap());
        let now = Duration::from_secs(100);
        let not_a_watchdog = directory.path().join("watchdog0");
        std::fs::write(&not_a_watchdog, "").unwrap();
        let mut watch =
            watch(&shared, &[("watchdog", not_a_watchdog.to_str().unwrap()), ("fencing", "required")]);
        // A test's own process ticks as a guard, in the session of the keeper that it plays, too.
        shared.replace_guard(ProcessId::own());
        shared.tick_guard(now);
        assert_eq!(watch.look(now).unwrap(), Found::default(), "it may have yet to begin");
        let later = now + LOOK_AGAIN;
        shared.tick_guard(later);
        let found = watch.look(later).unwrap();
        assert!(found.means.is_empty() && found.lacking.unwrap().contains("session"));
        assert_eq!(watch.look(later), None, "told once");
    }

    #[test]
    fn a_storage_that_is_required_to_fence_is_told_beside() {
        let directory = tempfile::tempdir().unwrap();
        let shared = Arc::new(SharedMemory::create(&directory.path().join("deadline")).unwrap());
        let found = |more: &[(&str, &str)]| watch(&shared, more).look(Duration::from_secs(1)).unwrap().means;
        let plugins = ("drivers", r#"{"ebs": {"preempt_plugin": "ebs-preempt"}}"#);
        assert_eq!(found(&[plugins, ("fencing", "required")]), [Means::Storage].into());
        assert_eq!(found(&[plugins]), [].into());
    }
}
