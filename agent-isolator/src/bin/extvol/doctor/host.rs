//! Whether this host can run a keeper, and does.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_isolator::keeper::flock::holder_of;
use agent_isolator::keeper::mounts::check_root;
use agent_isolator::wire::{self, Call, CallLine, KeeperLine};
use shared::protocol::exchange::SessionState;

use super::{Check, Host};
use crate::records::Everything;
use crate::sessions::state;

/// A keeper answers from memory.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(3);

const FREEZER: &str = "/sys/fs/cgroup/freezer/cgroup.procs";
const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Whether a keeper runs here, ran here, or ought to.
pub(super) fn is_agent(host: &Host<'_>) -> bool {
    host.agent || host.parameters.run_directory.exists() || host.parameters.state_directory.exists()
}

pub(super) fn checks(host: &Host<'_>, is_agent: bool, everything: Option<&Everything>) -> Vec<Check> {
    let parameters = host.parameters;
    let mut checks = Vec::new();
    if is_agent {
        checks.push(keeper(host));
        checks.extend(everything.map(|everything| session(everything, host)));
        checks.push(match agent_isolator::kernel::check() {
            Ok(()) => Check::ok("this host's kernel has what the keeper needs"),
            Err(why) => Check::fail(why, "upgrade it"),
        });
        checks.extend(parameters.mount_roots.iter().map(|root| mount_root(root)));
        checks.push(freezer(Path::new(FREEZER)));
        checks.push(clock(std::fs::read_to_string(CLOCK).ok().as_deref()));
    } else {
        checks.push(Check::note(format!(
            "no keeper was ever started on this host (there is neither {} nor {}): what only an agent's host has to \
             have is not checked; --agent checks it",
            parameters.run_directory.display(),
            parameters.state_directory.display()
        )));
    }
    checks
}

fn mount_root(root: &Path) -> Check {
    match check_root(root) {
        // Its sentence holds the command that mends it.
        Err(why) => Check::fail(why, "and see that it is done at each boot, before the keeper starts"),
        Ok(()) if root.is_dir() => match std::fs::metadata(root).map(|file| file.mode() & 0o7777) {
            Ok(mode) if mode & 0o077 == 0 => {
                Check::ok(format!("the mount root {} is shared, and root's alone", root.display()))
            }
            Ok(mode) => Check::warning(
                format!("the mount root {} is shared, and open to others (mode {mode:04o})", root.display()),
                format!("`chmod 0700 {}`: who sees it sees the volumes of all tasks", root.display()),
            ),
            Err(error) => Check::fail(
                format!("the mount root {} could not be looked at: {error}", root.display()),
                "run this as root",
            ),
        },
        Ok(()) => Check::warning(
            format!("the mount root {} does not exist yet", root.display()),
            "the driver makes it with its first mount; if it mounts elsewhere, name that in mount_roots",
        ),
    }
}

fn freezer(processes: &Path) -> Check {
    match processes.exists() {
        true => Check::ok("the freezer cgroup hierarchy is mounted"),
        false => Check::fail(
            format!("there is no {}: the freezer cgroup hierarchy is not mounted", processes.display()),
            "mount it (`mount -t cgroup -o freezer freezer /sys/fs/cgroup/freezer`), and give the agent \
             --isolation=cgroups/...: without it the keeper cannot see or kill what runs in a container",
        ),
    }
}

/// The kernel's choice of a clock. That it was dropped from the processor's counter to a slower one means that
/// the kernel found that counter unstable.
fn clock(current: Option<&str>) -> Check {
    let Some(name) = current.map(str::trim) else {
        return Check::note(format!("the kernel's clock source could not be read from {CLOCK}"));
    };
    match name {
        "jiffies" | "refined-jiffies" => Check::fail(
            format!("the kernel's clock source is {name}, which stands still while interrupts are off"),
            "see the kernel's log for why it uses no better one (`dmesg | grep -i clocksource`)",
        ),
        "hpet" | "acpi_pm" => Check::warning(
            format!(
                "the kernel's clock source is {name}: it has given up the processor's own counter, or was told to"
            ),
            "see `dmesg | grep -i clocksource`: a clock that errs by more than one in a thousand breaks the protocol's \
             assumption",
        ),
        name => Check::ok(format!("the kernel's clock source is {name}")),
    }
}

/// This host's session.
fn session(everything: &Everything, host: &Host<'_>) -> Check {
    let holder = &host.parameters.holder;
    let Some(session) = everything.sessions.get(holder) else {
        return Check::warning(
            format!("this host, as holder {holder}, never had a session"),
            "a keeper opens one when it starts: see its log; is `holder` the name that it was given?",
        );
    };
    let record = &session.stored.record;
    let (word, proof) = state(record.state);
    let what = format!("this host's session ({holder}, epoch {}) is {word}", record.epoch);
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let why = record.reason.as_deref().unwrap_or("no reason was given");
    match record.state {
        SessionState::Dead(_) => Check::warning(
            format!("{what} (proof: {}): {why}", proof.unwrap_or_default()),
            "the keeper opens the next epoch when this host is known to be safe: see its log if it does not",
        ),
        SessionState::Revoking => Check::warning(
            format!("{what}: {why}"),
            "it takes no volume until it has given up all that it has, and has opened the next epoch",
        ),
        SessionState::Live if *record.boot != *boot.trim() => Check::warning(
            format!("{what}, of another boot of this host or of another host with its name"),
            "a keeper opens a new one when it starts: see its log; give no two hosts one `holder` name",
        ),
        SessionState::Live => Check::ok(what),
    }
}

/// Whether the keeper answers, as it answers an agent.
fn keeper(host: &Host<'_>) -> Check {
    let socket = host.parameters.socket();
    let shown = socket.display();
    let stream = match UnixStream::connect(&socket) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Check::warning(
                format!("the keeper's socket {shown} is for root alone"),
                "run this as root",
            );
        }
        Err(error) => return no_answer(host, &format!("no keeper answers at {shown}: {error}")),
    };
    match hello(&stream, host) {
        Ok(None) => Check::ok(format!("the keeper answers at {shown}")),
        Ok(Some(refused)) => Check::fail(
            format!("the keeper at {shown} refuses: {refused}"),
            "give the keeper and the agent's module the same parameters and release",
        ),
        Err(why) => no_answer(host, &format!("a keeper listens at {shown}, and does not answer: {why}")),
    }
}

/// Whether a keeper that does not answer runs at all, by its lock.
fn no_answer(host: &Host<'_>, what: &str) -> Check {
    let lock = host.parameters.run_directory.join("keeper.lock");
    match holder_of(&lock) {
        Some(pid) => Check::fail(
            format!("{what}; process {pid} holds {}", lock.display()),
            "a keeper starts or hangs: see its log",
        ),
        None => Check::fail(
            format!("{what}; and none holds {}", lock.display()),
            "start it: `systemctl start extvol-keeper`, or start the agent, whose module starts one",
        ),
    }
}

/// Greets the keeper; `Some` is its refusal.
fn hello(mut stream: &UnixStream, host: &Host<'_>) -> Result<Option<String>, String> {
    let text = |error: std::io::Error| error.to_string();
    let deadline = Instant::now() + KEEPER_TIMEOUT;
    stream.set_read_timeout(Some(KEEPER_TIMEOUT)).map_err(text)?;
    stream.set_write_timeout(Some(KEEPER_TIMEOUT)).map_err(text)?;
    let parameters = if host.compare { host.parameters.given.clone() } else { Default::default() };
    let call = CallLine { id: 1, call: Call::Hello { version: wire::VERSION, parameters } };
    stream.write_all(wire::line(&call).as_bytes()).map_err(text)?;
    let mut lines = BufReader::new(stream).lines();
    // What it has to say of containers comes before its answer.
    while Instant::now() < deadline {
        let line = lines.next().ok_or("it closed the connection")?.map_err(text)?;
        match serde_json::from_str(&line) {
            Ok(KeeperLine::Answer { id: 1, .. }) => return Ok(None),
            Ok(KeeperLine::Refused { id: 1, refused }) => return Ok(Some(refused)),
            Ok(_) => {}
            Err(error) => return Err(format!("its line cannot be read: {error}")),
        }
    }
    Err(format!("none within {KEEPER_TIMEOUT:?}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::Level;
    use super::*;
    use agent_isolator::parameters::KeeperParameters;

    fn parameters(directory: &Path) -> KeeperParameters {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let run = directory.to_str().unwrap();
        KeeperParameters::read(&[pair("etcd_endpoints", "h:1"), pair("run_directory", run)]).unwrap()
    }

    fn host(parameters: &KeeperParameters) -> Host<'_> {
        Host { parameters, from: "a test", compare: true, agent: false, plugins: &[] }
    }

    #[test]
    fn a_keeper_that_answers_refuses_or_is_silent_is_told_apart() {
        for (answers, level, words) in [
            (r#"{"id":1,"answer":"done"}"#, Level::Ok, "the keeper answers"),
            (r#"{"id":1,"refused":"other parameters"}"#, Level::Fail, "refuses: other parameters"),
            ("what?", Level::Fail, "its line cannot be read"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let parameters = parameters(directory.path());
            let listener = UnixListener::bind(parameters.socket()).unwrap();
            let served = std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                let asked = BufReader::new(&stream).lines().next().unwrap().unwrap();
                let limit = r#"{"limit":{"container":"c","message":"m"}}"#;
                writeln!(&stream, "{limit}\n{answers}").unwrap();
                asked
            });
            let check = keeper(&host(&parameters));
            assert_eq!(check.level, level, "{check:?}");
            assert!(check.what.contains(words), "{check:?}");
            let asked = served.join().unwrap();
            assert!(asked.contains(r#""hello""#) && asked.contains(r#""etcd_endpoints":"h:1""#), "{asked}");
        }
    }

    #[test]
    fn a_keeper_that_does_not_answer_is_known_by_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let parameters = parameters(directory.path());
        let check = keeper(&host(&parameters));
        assert!(check.what.contains("none holds"), "{check:?}");
        let lock = agent_isolator::keeper::checkpoint::lock(directory.path()).unwrap();
        let check = keeper(&host(&parameters));
        let own = format!("process {} holds", std::process::id());
        assert!(check.level == Level::Fail && check.what.contains(&own), "{check:?}");
        drop(lock);
    }

    #[test]
    fn clocks_are_judged_by_name() {
        for (name, level) in [
            (Some("tsc\n"), Level::Ok),
            (Some("kvm-clock"), Level::Ok),
            (Some("hpet"), Level::Warning),
            (Some("jiffies"), Level::Fail),
            (None, Level::Note),
        ] {
            assert_eq!(clock(name).level, level, "{name:?}");
        }
    }

    #[test]
    fn a_host_without_a_keeper_is_an_agents_only_when_it_is_said_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("none");
        let mut parameters = parameters(&nowhere);
        parameters.state_directory = nowhere.clone();
        assert!(!is_agent(&host(&parameters)));
        assert!(is_agent(&Host { agent: true, ..host(&parameters) }));
        std::fs::create_dir(&nowhere).unwrap();
        assert!(is_agent(&host(&parameters)));
        assert_eq!(freezer(&nowhere).level, Level::Ok);
        assert_eq!(freezer(&nowhere.join("x")).level, Level::Fail);
    }
}
