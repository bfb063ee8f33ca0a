//! Processes by a name that is never given twice: the pid and the time of its start. And all processes of one keeper: those of
//! its session whose program is a keeper's.
//!
//! Only files of /proc are read that take no lock of the process's memory: a process that hangs in a page fault must not make
//! its reader hang.

use std::collections::HashSet;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The name of the keeper's program; a keeper that was replaced by another version shows as this, and ` (deleted)`.
const PROGRAM: &str = "extvol-keeper";

/// A process. The kernel gives its pid away again, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// As this program's pid namespace has it.
    pub pid: u32,
    /// In the kernel's ticks since boot.
    pub started: u64,
}

/// What `/proc/<pid>/stat` tells.
struct Stat {
    state: u8,
    session: u32,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the last parenthesis may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let session = fields.nth(2)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat { state, session, started })
}

impl ProcessId {
    /// The process that has this pid now; none when it has ended.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = stat(pid)?;
        (!matches!(stat.state, b'Z' | b'X')).then_some(Self { pid, started: stat.started })
    }

    /// This process.
    #[must_use]
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs. A zombie has let go of its files and mounts.
    #[must_use]
    pub fn runs(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// A handle on it; none when it has ended.
    #[must_use]
    pub fn open(self) -> Option<Handle> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The handle is of whoever has the pid; from here on that does not change.
        self.runs().then_some(Handle { handle, id: self })
    }

    /// Sends SIGKILL, if it still runs. When no descriptor is left for a handle, the kill goes to the pid that was looked at
    /// right before.
    pub fn kill(self) {
        match self.open() {
            Some(handle) => handle.signal(Signal::KILL),
            None if self.runs() => {
                let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
                // It ended by itself.
                let _ended = pid.map(|pid| rustix::process::kill_process(pid, Signal::KILL));
            }
            None => {}
        }
    }
}

/// A handle on a process: its pid cannot become another's while this is used.
#[derive(Debug)]
pub struct Handle {
    handle: OwnedFd,
    id: ProcessId,
}

impl Handle {
    /// Which process.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Sends a signal; it may have ended.
    pub fn signal(&self, signal: Signal) {
        let _ended = pidfd_send_signal(self.handle.as_fd(), signal);
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.handle, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match poll(&mut polled, Some(&at_once)) {
                Ok(ready) => return ready > 0,
                Err(Errno::INTR) => {}
                Err(_) => return !self.id.runs(),
            }
        }
    }
}

/// All pids now.
pub(super) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// This process's session.
#[must_use]
pub fn own_session() -> u32 {
    session_of(std::process::id()).unwrap_or(0)
}

/// The session of a process; none when it has ended.
#[must_use]
pub fn session_of(pid: u32) -> Option<u32> {
    stat(pid).map(|stat| stat.session)
}

/// So many processes are looked at before it is asked whether to go on: some milliseconds.
const BETWEEN_ASKING: usize = 256;

/// The processes of keepers' sessions that run a keeper's program, but for this one: worker, deadman and their helpers. Each session
/// comes with the time from which it is: its number is not given away while one of them lives, and none of them is older, so that a
/// later session of the same number is not taken for it. One look at all processes but those of the pids in `seen`, to which it adds;
/// in it `goes_on` is asked again and again. None when that ended it.
pub fn members(
    sessions: &[(u32, u64)],
    seen: &mut HashSet<u32>,
    goes_on: impl Fn() -> bool,
) -> Option<Vec<ProcessId>> {
    let own = std::process::id();
    let is_keeper = |pid: u32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let name = Path::new(program.file_name()?).to_string_lossy().into_owned();
        (name.strip_suffix(" (deleted)").unwrap_or(&name) == PROGRAM).then_some(())
    };
    let is_it = |(session, since): &&(u32, u64)| {
        let leader = stat(*session).filter(|leader| leader.session == *session);
        *session != 0 && leader.is_none_or(|leader| leader.started <= *since)
    };
    let sessions: Vec<_> = sessions.iter().filter(is_it).collect();
    if sessions.is_empty() {
        return Some(Vec::new());
    }
    let member = |pid: u32, found: &Stat| {
        let runs = !matches!(found.state, b'Z' | b'X') && pid != own;
        let is_of = |(session, since): &&(u32, u64)| found.session == *session && found.started >= *since;
        (runs && sessions.iter().any(is_of)).then_some(())?;
        is_keeper(pid)?;
        Some(ProcessId { pid, started: found.started })
    };
    let mut all = Vec::new();
    let mut pids = pids();
    pids.retain(|pid| !seen.contains(pid));
    for (index, pid) in pids.into_iter().enumerate() {
        if index % BETWEEN_ASKING == 0 && !goes_on() {
            return None;
        }
        let Some(found) = stat(pid) else { continue };
        seen.insert(pid);
        all.extend(member(pid, &found));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_ended_is_not_taken_for_one_that_runs() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let handle = id.open().unwrap();
        assert!(id.runs() && !handle.has_ended());
        id.kill();
        // A zombie until it is waited for.
        let ended = std::iter::repeat_with(|| handle.has_ended()).take(1_000_000).any(|ended| ended);
        assert!(ended && !id.runs() && id.open().is_none());
        child.wait().unwrap();
        let other = ProcessId { started: id.started + 1, ..ProcessId::own().unwrap() };
        assert!(
            !other.runs() && other.open().is_none(),
            "the same pid with another start is another process"
        );
    }

    #[test]
    fn a_look_at_many_processes_asks_in_between_whether_to_go_on() {
        let asked = std::cell::Cell::new(0);
        let goes_on = || {
            asked.set(asked.get() + 1);
            true
        };
        let sessions = [(own_session().max(1), ProcessId::own().unwrap().started), (0, 0)];
        assert!(members(&sessions, &mut HashSet::new(), goes_on).is_some());
        let expected = pids().len().div_ceil(BETWEEN_ASKING);
        assert!(asked.get() >= 1 && asked.get() <= expected + 2, "{} for {expected}", asked.get());
        assert_eq!(members(&sessions, &mut HashSet::new(), || false), None, "it is ended");
        asked.set(0);
        assert_eq!(members(&[(0, 0)], &mut HashSet::new(), goes_on), Some(vec![]));
        assert_eq!(asked.get(), 0, "no session, no look");
    }

    #[test]
    fn a_second_look_is_at_those_alone_whom_the_first_has_not_seen() {
        let sessions = [(own_session().max(1), ProcessId::own().unwrap().started)];
        let mut seen = HashSet::new();
        let _first = members(&sessions, &mut seen, || true);
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(seen.contains(&std::process::id()) && !seen.contains(&child.id()));
        let before = seen.len();
        let _second = members(&sessions, &mut seen, || true);
        assert!(seen.contains(&child.id()) && seen.len() > before);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_sessions_other_programs_are_no_keepers() {
        let own = ProcessId::own().unwrap();
        assert_eq!(members(&[(own_session(), 0)], &mut HashSet::new(), || true), Some(vec![]), "{own:?}");
    }
}
