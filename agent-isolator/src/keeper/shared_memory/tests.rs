use std::process::{Command, Stdio};

use super::*;

fn memory() -> (tempfile::TempDir, PathBuf, SharedMemory) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deadline");
    let memory = SharedMemory::create(&path).unwrap();
    (directory, path, memory)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn every_deadline_is_read_as_it_was_written_rounded_to_the_safe_side() {
    let times = [None, Some(ms(0)), Some(ms(1)), Some(ms(NO_TIME - 1))];
    for fence_at in times {
        for fenced in [false, true] {
            for generation in [0, 1, GENERATION_MAX] {
                let deadline = Deadline { fence_at, fenced, generation };
                assert_eq!(decode(encode(deadline)), deadline);
            }
        }
    }
    let at = |fence_at| decode(encode(Deadline { fence_at, ..Deadline::default() })).fence_at;
    assert_eq!(at(Some(Duration::from_micros(1_999))), Some(ms(1)));
    assert_eq!(at(Some(ms(NO_TIME))), Some(ms(NO_TIME - 1)), "a far deadline is not taken for none");
    assert_eq!(at(Some(Duration::MAX)), Some(ms(NO_TIME - 1)));
}

#[test]
fn the_flag_stays_until_the_next_epoch_and_keeps_what_it_fenced() {
    let (_directory, _, memory) = memory();
    assert_eq!(memory.read(), Deadline::default());
    memory.extend(Some(ms(5))).unwrap();
    memory.flag();
    assert_eq!((memory.extend(Some(ms(9))), memory.extend(None)), (Err(Flagged), Err(Flagged)));
    assert_eq!(memory.read(), Deadline { fence_at: Some(ms(5)), fenced: true, generation: 0 });
    memory.reset();
    assert_eq!(memory.read(), Deadline { fence_at: None, fenced: false, generation: 1 });
    memory.extend(Some(ms(9))).unwrap();
    memory.extend(None).unwrap();
}

#[test]
fn another_process_of_the_same_boot_finds_everything_and_another_boot_finds_nothing() {
    let (_directory, path, memory) = memory();
    let own = ProcessId::own();
    memory.extend(Some(ms(7))).unwrap();
    memory.tick_worker(ms(3));
    memory.tick_deadman(ms(4));
    memory.set_worker(own);
    memory.set_session(11, 12);
    let again = SharedMemory::create(&path).unwrap();
    assert_eq!(again.read().fence_at, Some(ms(7)));
    assert_eq!((again.worker_tick(), again.deadman_tick()), (ms(3), ms(4)));
    assert_eq!((again.worker(), again.deadman(), again.session()), (own, None, (11, 12)));
    again.word(Word::Boot).fetch_add(1, SeqCst);
    let after = SharedMemory::create(&path).unwrap();
    assert_eq!((after.read(), after.worker()), (Deadline::default(), None));
}

#[test]
fn a_file_that_is_none_of_these_is_left_alone() {
    let (directory, path, memory) = memory();
    memory.word(Word::Version).store(9, SeqCst);
    assert!(matches!(SharedMemory::create(&path), Err(SharedMemoryError::Foreign { .. })));
    let short = directory.path().join("short");
    fs::write(&short, "short").unwrap();
    assert!(matches!(SharedMemory::create(&short), Err(SharedMemoryError::Foreign { .. })));
}

/// What one round of a race saw. The flagging side looks at the deadline right after its flag, and once more when the other side
/// is done: they are equal unless an extension came after the flag.
fn extend_until_flagged(memory: &SharedMemory) -> Duration {
    let mut last = ms(0);
    for next in 1_u64.. {
        let seen = memory.read();
        assert!(seen.fence_at == Some(last) || next == 1, "{seen:?} is not what was written, {last:?}");
        match memory.extend(Some(ms(next))) {
            Ok(()) => last = ms(next),
            Err(Flagged) => break,
        }
    }
    last
}

#[test]
fn of_threads_that_race_none_extends_after_the_flag() {
    let (_directory, _, memory) = memory();
    for _ in 0..200 {
        memory.reset();
        std::thread::scope(|scope| {
            let extending = scope.spawn(|| extend_until_flagged(&memory));
            while memory.read().fence_at.is_none() {
                std::hint::spin_loop();
            }
            memory.flag();
            let at_flag = memory.read();
            let last = extending.join().unwrap();
            assert!(at_flag.fenced);
            assert_eq!(at_flag.fence_at, Some(last), "an extension came after the flag, or was lost");
            assert_eq!(memory.read(), at_flag);
        });
    }
}

const RACING: &str = "EXTVOL_TEST_RACING_WITH";

#[test]
fn of_processes_that_race_none_extends_after_the_flag() {
    // The other process is this test once more.
    if let Some(path) = std::env::var_os(RACING) {
        let memory = SharedMemory::open(Path::new(&path)).unwrap();
        for round in 1..=100_u64 {
            while memory.read().generation != round {
                std::thread::yield_now();
            }
            let last = extend_until_flagged(&memory);
            memory.tick_worker(last);
            memory.tick_deadman(ms(round));
        }
        return;
    }
    let (_directory, path, memory) = memory();
    let name = "keeper::shared_memory::tests::of_processes_that_race_none_extends_after_the_flag";
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads", "1"])
        .env(RACING, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let wait_until = |other: &mut std::process::Child, what: &dyn Fn() -> bool| {
        while !what() {
            assert!(other.try_wait().unwrap().is_none() || what(), "the other process ended early");
            std::thread::yield_now();
        }
    };
    for round in 1..=100 {
        memory.reset();
        wait_until(&mut other, &|| memory.read().fence_at.is_some());
        memory.flag();
        let at_flag = memory.read();
        wait_until(&mut other, &|| memory.deadman_tick() == ms(round));
        assert_eq!(
            at_flag.fence_at,
            Some(memory.worker_tick()),
            "an extension came after the flag, or was lost"
        );
        assert_eq!(memory.read(), at_flag);
    }
    assert!(other.wait().unwrap().success());
}
