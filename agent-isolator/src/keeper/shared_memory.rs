//! What worker and deadman share: the deadline, and each other's signs of life (L16). One page of a file that both map; it
//! survives both, and not a reboot.
//!
//! ```text
//! word 0     layout's version
//! words 1,2  the kernel's boot id: of another boot nothing here is true
//! word 3     the deadline   FENCED (1 bit) | generation (23 bits) | milliseconds since boot (40 bits; all ones: none)
//! word 4, 5  when worker and deadman last ticked, in milliseconds
//! word 6, 7  worker and deadman   pid (22 bits, the kernel's most) | start in ticks since boot (42 bits)
//! word 8, 9  their session, and the start of its first process
//! word 10    whether the keeper is to end once nothing is held
//! word 11    the guard, like 6
//! word 12    when it last ticked
//! word 13    the generation whose fence was proved last, and 1; 0: none
//! ```
//!
//! Words 11 to 13 were none in an older keeper's file, which has zeros there: its version is the same.
//!
//! **The deadline is never torn**, for it is one word: flag, time and generation are read by one load and changed by one
//! compare-and-swap. `extend` fails for good once `FENCED` is in the word, for its compare-and-swap expects a word without it; in
//! the one order that all changes of a word have, no extension comes after the flag but behind a `reset`. All accesses are
//! sequentially consistent: a worker that finds the flag unset has extended before the deadman's next look.
//!
//! A generation counts epochs of one boot and wraps after eight million: it is compared for being another one, and nothing else.
//! Forty bits of milliseconds are 34 years of uptime; a later deadline is told as the latest, which is earlier, and so safe. A
//! fraction of a millisecond is cut off, for the same reason.
//!
//! This is the one file of the keeper with `unsafe` in it but for the ioctl of `fence/shutdown.rs` and the call of `fence/scheduling.rs`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};
use shared::protocol::Now;
use shared::protocol::holder::Deadline;

use super::process::ProcessId;

/// A page: what is mapped at once.
const BYTES: usize = 4096;

/// Of this layout.
const VERSION: u64 = 1;

const FENCED: u64 = 1 << 63;
const TIME_BITS: u32 = 40;
const NO_TIME: u64 = (1 << TIME_BITS) - 1;
const GENERATION_MAX: u64 = (1 << 23) - 1;

/// The sticky flag is set: the deadline is not moved any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this host is being fenced")]
pub struct Flagged;

/// Why there is no shared memory.
#[derive(Debug, thiserror::Error)]
pub enum SharedMemoryError {
    /// The file cannot be made, opened or mapped.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no such file, or one of another version of this program.
    #[error("{} is not of this version of extvol-keeper", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
    },
}

#[derive(Clone, Copy)]
enum Word {
    Version = 0,
    Boot = 1,
    BootRest = 2,
    Deadline = 3,
    WorkerTick = 4,
    DeadmanTick = 5,
    Worker = 6,
    Deadman = 7,
    Session = 8,
    SessionStart = 9,
    Stop = 10,
    Guard = 11,
    GuardTick = 12,
    Proved = 13,
}

const WORDS: usize = 14;

/// The mapped page.
#[derive(Debug)]
pub struct SharedMemory {
    words: NonNull<AtomicU64>,
    file: File,
}

#[expect(unsafe_code, reason = "memory that two processes share")]
mod mapping {
    use super::{AtomicU64, BYTES, File, MapFlags, NonNull, ProtFlags, SharedMemory, WORDS, Word, io};

    // SAFETY: the pointer is to memory that any thread may use, as no thread has anything to do with its mapping; all access is
    // through atomics, by shared reference; and unmapping needs `&mut`, in `drop` alone.
    unsafe impl Send for SharedMemory {}
    // SAFETY: as above.
    unsafe impl Sync for SharedMemory {}

    /// Maps the file's first page.
    pub(super) fn map(file: &File) -> io::Result<NonNull<AtomicU64>> {
        // SAFETY: the address is the kernel's choice (null, no MAP_FIXED), so that no other mapping of this process is
        // replaced; nothing else in this process knows it.
        let page = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
    }

    impl SharedMemory {
        pub(super) fn word(&self, word: Word) -> &AtomicU64 {
            const { assert!(WORDS * size_of::<AtomicU64>() <= BYTES) };
            // SAFETY: `words` is the start of a mapping of BYTES bytes, which lives until `drop`, and the reference borrows
            // `self`. It is aligned: mappings begin at a page. `Word`'s discriminants are below WORDS, and WORDS words
            // fit in BYTES, so that the place is within the mapping. The file was at least BYTES long when it was mapped, and
            // nobody shortens it: it is root's, in root's own directory, and replaced only by rename. Any bits are a
            // valid AtomicU64. Other processes change the memory, but through atomics of the same size alone, as every
            // process that maps it runs this code.
            unsafe { self.words.add(word as usize).as_ref() }
        }
    }

    impl Drop for SharedMemory {
        fn drop(&mut self) {
            // SAFETY: this address and length are those of the mapping made in `map`, unmapped only here, once; no
            // reference into it outlives `self`.
            let unmapped = unsafe { rustix::mm::munmap(self.words.as_ptr().cast(), BYTES) };
            debug_assert_eq!(unmapped, Ok(()), "a whole mapping can be unmapped");
        }
    }
}

fn boot_id() -> io::Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let part = |range| digits.get(range).and_then(|hex: &str| u64::from_str_radix(hex, 16).ok());
    match (part(0..16), part(16..32)) {
        (Some(first), Some(rest)) => Ok([first, rest]),
        _ => Err(io::Error::other("the kernel's boot id is not 32 hexadecimal digits")),
    }
}

impl SharedMemory {
    /// Maps the file at `path`, in a directory that is root's alone. Where there is none, or one of an earlier boot, a new one is
    /// made, complete before it is there. Only who holds the keeper's lock may call this.
    ///
    /// # Errors
    /// See [`SharedMemoryError`]: a file of another layout is not replaced, for a deadline may run in it.
    pub fn create(path: &Path) -> Result<Self, SharedMemoryError> {
        let at = |source| SharedMemoryError::File { path: path.to_owned(), source };
        let boot = boot_id().map_err(at)?;
        match Self::open(path) {
            Ok(found) if found.boot() == boot => return Ok(found),
            Ok(_) => {}
            Err(SharedMemoryError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let beside = path.with_extension("new");
        let mut options = File::options();
        let file = options.create(true).truncate(true).read(true).write(true).mode(0o600).open(&beside);
        let file = file.map_err(at)?;
        file.set_len(BYTES as u64).map_err(at)?;
        // Room for it, now: a full file system would be a SIGBUS later.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BYTES as u64)
            .map_err(|error| at(error.into()))?;
        let made = Self { words: mapping::map(&file).map_err(at)?, file };
        made.word(Word::Boot).store(boot[0], SeqCst);
        made.word(Word::BootRest).store(boot[1], SeqCst);
        made.word(Word::Deadline).store(encode(Deadline::default()), SeqCst);
        made.word(Word::Version).store(VERSION, SeqCst);
        fs::rename(&beside, path).map_err(at)?;
        Ok(made)
    }

    /// Maps the file at `path`, which is there.
    ///
    /// # Errors
    /// See [`SharedMemoryError`].
    pub fn open(path: &Path) -> Result<Self, SharedMemoryError> {
        let at = |source| SharedMemoryError::File { path: path.to_owned(), source };
        let file = File::options().read(true).write(true).open(path).map_err(at)?;
        if file.metadata().map_err(at)?.size() < BYTES as u64 {
            return Err(SharedMemoryError::Foreign { path: path.to_owned() });
        }
        let found = Self { words: mapping::map(&file).map_err(at)?, file };
        if found.word(Word::Version).load(SeqCst) != VERSION {
            return Err(SharedMemoryError::Foreign { path: path.to_owned() });
        }
        Ok(found)
    }

    /// The same page once more, though another file may stand in its place by now.
    ///
    /// # Errors
    /// When the kernel does not map it.
    pub fn another(&self) -> Result<Self, SharedMemoryError> {
        let again = || {
            let file = self.file.try_clone()?;
            Ok(Self { words: mapping::map(&file)?, file })
        };
        again().map_err(|source| SharedMemoryError::File { path: "the shared deadline".into(), source })
    }

    fn boot(&self) -> [u64; 2] {
        [self.word(Word::Boot).load(SeqCst), self.word(Word::BootRest).load(SeqCst)]
    }

    /// The deadline.
    #[must_use]
    pub fn read(&self) -> Deadline {
        decode(self.word(Word::Deadline).load(SeqCst))
    }

    fn change(&self, change: impl Fn(Deadline) -> Option<Deadline>) -> Result<Deadline, Deadline> {
        let word = self.word(Word::Deadline);
        let changed = word.fetch_update(SeqCst, SeqCst, |now| change(decode(now)).map(encode));
        changed.map(decode).map_err(decode)
    }

    /// Moves the deadline; `None`: nothing is held any more.
    ///
    /// # Errors
    /// When the flag is set: then nothing was changed.
    pub fn extend(&self, fence_at: Option<Now>) -> Result<(), Flagged> {
        let unless_fenced = |now: Deadline| (!now.fenced).then_some(Deadline { fence_at, ..now });
        self.change(unless_fenced).map(drop).map_err(|_| Flagged)
    }

    /// Sets the sticky flag.
    pub fn flag(&self) {
        self.word(Word::Deadline).fetch_or(FENCED, SeqCst);
    }

    /// That of a new epoch: without deadline and flag.
    pub fn reset(&self) {
        let next = |now: Deadline| {
            let next = now.next();
            Some(Deadline { generation: next.generation & GENERATION_MAX, ..next })
        };
        let _always = self.change(next);
    }

    /// The worker lives.
    pub fn tick_worker(&self, now: Now) {
        self.word(Word::WorkerTick).store(milliseconds(now), SeqCst);
    }

    /// When it last said so.
    #[must_use]
    pub fn worker_tick(&self) -> Now {
        Duration::from_millis(self.word(Word::WorkerTick).load(SeqCst))
    }

    /// The deadman lives.
    pub fn tick_deadman(&self, now: Now) {
        self.word(Word::DeadmanTick).store(milliseconds(now), SeqCst);
    }

    /// When it last said so.
    #[must_use]
    pub fn deadman_tick(&self) -> Now {
        Duration::from_millis(self.word(Word::DeadmanTick).load(SeqCst))
    }

    /// Who is the worker.
    pub fn set_worker(&self, worker: Option<ProcessId>) {
        self.word(Word::Worker).store(pack(worker), SeqCst);
    }

    /// Who is the worker, or was.
    #[must_use]
    pub fn worker(&self) -> Option<ProcessId> {
        unpack(self.word(Word::Worker).load(SeqCst))
    }

    /// Who is the deadman.
    pub fn set_deadman(&self, deadman: Option<ProcessId>) {
        self.word(Word::Deadman).store(pack(deadman), SeqCst);
    }

    /// Who is the deadman, or was.
    #[must_use]
    pub fn deadman(&self) -> Option<ProcessId> {
        unpack(self.word(Word::Deadman).load(SeqCst))
    }

    /// The guard lives.
    pub fn tick_guard(&self, now: Now) {
        self.word(Word::GuardTick).store(milliseconds(now), SeqCst);
    }

    /// When it last said so.
    #[must_use]
    pub fn guard_tick(&self) -> Now {
        Duration::from_millis(self.word(Word::GuardTick).load(SeqCst))
    }

    /// Names the guard, and tells who was it before.
    pub fn replace_guard(&self, guard: Option<ProcessId>) -> Option<ProcessId> {
        unpack(self.word(Word::Guard).swap(pack(guard), SeqCst))
    }

    /// Who is the guard, or was.
    #[must_use]
    pub fn guard(&self) -> Option<ProcessId> {
        unpack(self.word(Word::Guard).load(SeqCst))
    }

    /// The fence of this generation is proved: nothing was mounted since.
    pub fn set_proved(&self, generation: u64) {
        self.word(Word::Proved).store(generation + 1, SeqCst);
    }

    /// Which fence was proved last.
    #[must_use]
    pub fn proved(&self) -> Option<u64> {
        self.word(Word::Proved).load(SeqCst).checked_sub(1)
    }

    /// The session that this keeper's processes are in, and the start of the oldest of them. Written while the keeper's lock is
    /// held, when no other process of it lives.
    pub fn set_session(&self, session: u32, since: u64) {
        self.word(Word::Session).store(0, SeqCst);
        self.word(Word::SessionStart).store(since, SeqCst);
        self.word(Word::Session).store(session.into(), SeqCst);
    }

    /// As it was set last; session 0 is none.
    #[must_use]
    pub fn session(&self) -> (u32, u64) {
        let session = self.word(Word::Session).load(SeqCst);
        (u32::try_from(session).unwrap_or_default(), self.word(Word::SessionStart).load(SeqCst))
    }

    /// Asks the keeper to end once nothing is held, or goes back on it.
    pub fn set_stop(&self, stop: bool) {
        self.word(Word::Stop).store(stop.into(), SeqCst);
    }

    /// Whether it is to end.
    #[must_use]
    pub fn stop(&self) -> bool {
        self.word(Word::Stop).load(SeqCst) != 0
    }
}

fn milliseconds(time: Now) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn encode(deadline: Deadline) -> u64 {
    let time = deadline.fence_at.map_or(NO_TIME, |at| milliseconds(at).min(NO_TIME - 1));
    let flag = if deadline.fenced { FENCED } else { 0 };
    flag | (deadline.generation & GENERATION_MAX) << TIME_BITS | time
}

fn decode(word: u64) -> Deadline {
    let time = word & NO_TIME;
    Deadline {
        fence_at: (time != NO_TIME).then(|| Duration::from_millis(time)),
        fenced: word & FENCED != 0,
        generation: word >> TIME_BITS & GENERATION_MAX,
    }
}

const PID_BITS: u32 = 22;

/// 0 is nobody: pid 0 is no process.
fn pack(process: Option<ProcessId>) -> u64 {
    process.map_or(0, |process| process.started << PID_BITS | u64::from(process.pid))
}

fn unpack(word: u64) -> Option<ProcessId> {
    let pid = u32::try_from(word & ((1 << PID_BITS) - 1)).ok()?;
    (pid != 0).then_some(ProcessId { pid, started: word >> PID_BITS })
}

#[cfg(test)]
#[path = "shared_memory/tests.rs"]
mod tests;
