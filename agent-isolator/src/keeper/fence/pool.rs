//! Helper processes that exist before there is a fence: a full process table, a fork bomb or a machine without memory cannot keep a
//! fence from what must be done at once. One for each volume of the table, up to a number, and some more stand by, each with its memory
//! locked and its scheduling set (`job.rs`): of more volumes each waits for the next helper that is done. One that hangs in the
//! kernel occupies itself alone.
//!
//! With them is kept which file systems are the host's own: looking for that reads a mount table, under a lock that tenants can make
//! its readers wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shared::protocol::Now;
use shared::volume::VolumeId;

use super::Policy;
use super::child::Helper;
use super::job::{Job, Report};
use crate::keeper::stored_table::{Stored, read_table};

/// Beside those of the volumes: the freeze, which is the kill's later, the sweep, and one that hangs.
const BESIDE: usize = 3;

/// For so many volumes one stands by each: a shutdown takes a millisecond, and a helper is a process with a megabyte or two of its own.
pub(super) const MOST: usize = 16;

/// For so long the end of all helpers is waited for.
const ENDS_WITHIN: Duration = Duration::from_millis(500);

/// When a start has failed, and between two looks at the host's mounts.
const AGAIN: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Between two readings of a table that changes.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// The host's own file systems by device number, each with a path that is on it.
pub(super) type Hosts = BTreeMap<String, PathBuf>;

/// The helpers of one process. See the module's head.
pub struct Pool {
    program: PathBuf,
    standby: Vec<Helper>,
    /// With a job that nobody waits for any more.
    late: Vec<Helper>,
    /// Killed, and to be reaped.
    ending: Vec<Helper>,
    wanted: usize,
    /// The table that `wanted` was read from: its file's inode, time and size.
    table: Option<(u64, i64, i64, u64)>,
    read_at: Now,
    hosts: Option<Hosts>,
    looking: Option<Helper>,
    look_at: Now,
    start_at: Now,
    /// It was said that too few stand by.
    said: bool,
    /// Since the last fence: volumes whose shutdown was answered, however, and those whose was not.
    pub(super) answered: BTreeSet<VolumeId>,
    pub(super) hung: BTreeSet<VolumeId>,
}

impl Pool {
    /// A pool of helpers of this program, in which none stands by before [`Pool::tend`].
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            standby: Vec::new(),
            late: Vec::new(),
            ending: Vec::new(),
            wanted: 0,
            table: None,
            read_at: Now::ZERO,
            hosts: None,
            looking: None,
            look_at: Now::ZERO,
            start_at: Now::ZERO,
            said: false,
            answered: BTreeSet::new(),
            hung: BTreeSet::new(),
        }
    }

    /// Sees that as many stand by as the table at `path` needs. To be called now and then while nothing is fenced; does not block.
    pub fn tend(&mut self, now: Now, path: &Path, policy: &Policy) {
        self.follow(now, path);
        self.answered.clear();
        self.hung.clear();
        self.ending.retain_mut(|helper| !helper.has_ended());
        self.standby.retain_mut(|helper| !helper.has_ended());
        self.take_late();
        let missing = self.wanted.saturating_sub(self.standby.len());
        if missing == 0 {
            self.said = false;
        } else if now >= self.start_at
            // One at a time: who calls this ticks in between.
            && let Err(error) = self.add()
        {
            self.start_at = now + AGAIN;
            if !std::mem::replace(&mut self.said, true) {
                let (has, wanted) = (self.standby.len(), self.wanted);
                tracing::warn!(
                    "{has} of {wanted} fence helpers stand by, and no more can be started: {error}"
                );
            }
        }
        while self.standby.len() > self.wanted + BESIDE
            && let Some(mut helper) = self.standby.pop()
        {
            helper.kill();
            self.ending.push(helper);
        }
        self.look(now, policy);
    }

    fn add(&mut self) -> io::Result<()> {
        self.standby.push(Helper::start(&self.program)?);
        Ok(())
    }

    fn follow(&mut self, now: Now, path: &Path) {
        let of = |found: Metadata| (found.ino(), found.mtime(), found.mtime_nsec(), found.size());
        let found = std::fs::metadata(path).ok().map(of);
        let is_known = found == self.table && self.wanted > 0;
        // A busy host stores its table many times a second, and how many helpers stand by is no matter of a moment; but for
        // the first volumes.
        if is_known || self.wanted > BESIDE && now < self.read_at + READ_AGAIN {
            return;
        }
        (self.table, self.read_at) = (found, now);
        let volumes = match read_table(path) {
            Stored::Table(table) => table.volumes.len(),
            Stored::Missing | Stored::Broken(_) => 0,
        };
        self.wanted = volumes.min(MOST) + BESIDE;
        // What was mounted since may be the host's.
        self.look_at = Now::ZERO;
    }

    fn look(&mut self, now: Now, policy: &Policy) {
        if let Some(report) = self.looking.as_mut().and_then(Helper::poll) {
            self.standby.extend(self.looking.take());
            if let Report::Hosts(hosts) = report {
                self.hosts = Some(hosts);
            }
        }
        if self.looking.is_none() && now >= self.look_at {
            self.look_at = now + LOOK_AGAIN;
            let job = Job::Look { roots: policy.roots.clone(), own: policy.hosts_own.clone() };
            self.looking = self.standby.pop().and_then(|mut helper| helper.give(&job).ok().map(|()| helper));
        }
    }

    fn take_late(&mut self) {
        let mut answered: Vec<_> = self.late.extract_if(.., |helper| helper.poll().is_some()).collect();
        self.standby.append(&mut answered);
    }

    /// Whether a file system of this device number may be the host's own, as far as is known.
    pub(super) fn may_be_hosts(&self, number: &str) -> bool {
        self.hosts.as_ref().is_none_or(|hosts| hosts.contains_key(number))
    }

    /// Whether one waits for a job, if need be one that was late with its last.
    pub(super) fn has_standby(&mut self) -> bool {
        if self.standby.is_empty() {
            self.take_late();
        }
        !self.standby.is_empty()
    }

    /// Has a job done: by a helper that stands by, or else by one that is started for it.
    pub(super) fn start(&mut self, job: &Job) -> io::Result<Helper> {
        while self.has_standby()
            && let Some(mut helper) = self.standby.pop()
        {
            // It may have been killed while it stood by.
            if helper.give(job).is_ok() {
                return Ok(helper);
            }
        }
        let mut helper = Helper::start(&self.program)?;
        helper.give(job)?;
        Ok(helper)
    }

    /// Takes one back whose job is done.
    pub(super) fn put_back(&mut self, mut helper: Helper) {
        if !helper.has_ended() {
            self.standby.push(helper);
        }
    }

    /// Takes one back whose job is not waited for.
    pub(super) fn leave(&mut self, helper: Helper) {
        self.late.push(helper);
    }

    /// Ends all of them, and waits for that, but not for one that hangs in the kernel.
    pub fn end(mut self) {
        let late = self.late.drain(..).chain(self.standby.drain(..)).chain(self.looking.take());
        self.ending.extend(late);
        self.ending.iter_mut().for_each(Helper::kill);
        let until = Instant::now() + ENDS_WITHIN;
        while !self.ending.is_empty() && Instant::now() < until {
            self.ending.retain_mut(|helper| !helper.has_ended());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How many wait for a job.
    #[must_use]
    pub fn standby(&self) -> usize {
        self.standby.len()
    }

    /// Whether it has looked which file systems are the host's own.
    #[must_use]
    pub fn knows_the_host(&self) -> bool {
        self.hosts.is_some()
    }

    /// All its processes.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let all = self.standby.iter().chain(&self.late).chain(&self.ending).chain(&self.looking);
        all.map(Helper::pid).collect()
    }
}
