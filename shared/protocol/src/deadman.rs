//! The deadman: the small process that restarts the worker, and fences the host when the deadline that
//! the worker extends has passed (L16). A worker that is killed, stopped or hung does not stop the clock.
//!
//! It reads the shared deadline and knows nothing of etcd. The worker in turn watches the deadman, beats only
//! while that ticks, and fences at the same time itself.

use std::collections::VecDeque;
use std::time::Duration;

use super::Now;
use super::holder::Deadline;

/// Without a tick for this long the worker is taken for hung: twenty of its polls.
pub const WORKER_SILENCE: Duration = Duration::from_secs(1);

/// What happens to the deadman.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The worker has ticked.
    WorkerTicked,
    /// The worker and its helpers are gone, and reaped.
    WorkerGone,
    /// The fence is proved.
    Fenced,
    /// Time has passed.
    Tick,
}

/// What the deadman's shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// Set the sticky flag, by compare-and-swap.
    Flag,
    /// SIGKILL the worker and its helpers, and reap them.
    Kill,
    /// Read the table, and fence what it tells of ([`super::fence::Fence`]).
    Fence,
    /// Start a worker.
    Start,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Worker {
    Running,
    Killed,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fencing {
    No,
    /// The host is to be fenced, for this generation of the deadline, once the worker is gone, and before one is started again.
    Due(u64),
    /// It is being fenced: once, however often the worker's end is told.
    Begun(u64),
    /// It was, for this generation, whose flag may still stand.
    Done(u64),
}

/// The core. See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Deadman {
    pub(super) ticked: Now,
    worker: Worker,
    pub(super) fencing: Fencing,
    outputs: VecDeque<Output>,
}

impl Deadman {
    /// A deadman without a worker. Its shell kills and reaps every older keeper, and says so with
    /// [`Input::WorkerGone`]: a deadline that passed meanwhile is fenced for before a worker is started.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self { ticked: now, worker: Worker::Gone, fencing: Fencing::No, outputs: VecDeque::new() }
    }

    /// A deadman that a worker has started, in place of one that died.
    #[must_use]
    pub fn beside_worker(now: Now) -> Self {
        Self { worker: Worker::Running, ..Self::new(now) }
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted at the latest; the shell polls every 50 ms in any case, for a kernel
    /// timer runs on a clock that can be slewed.
    #[must_use]
    pub fn next_deadline(&self, deadline: Deadline) -> Option<Now> {
        if self.worker != Worker::Running {
            return None;
        }
        let hung = Some(self.ticked + WORKER_SILENCE);
        let fence = deadline.fence_at.filter(|_| !deadline.fenced);
        [hung, fence].into_iter().flatten().min()
    }

    /// Takes in what happened, with the shared deadline as it is now.
    pub fn handle(&mut self, now: Now, deadline: Deadline, input: Input) {
        match input {
            Input::WorkerTicked => self.ticked = self.ticked.max(now),
            Input::WorkerGone => self.worker = Worker::Gone,
            Input::Fenced => {
                if let Fencing::Begun(generation) = self.fencing {
                    self.fencing = Fencing::Done(generation);
                }
            }
            Input::Tick => {}
        }
        // Another generation is another epoch's, also for a deadman that was stopped while that was opened.
        if matches!(self.fencing, Fencing::Done(generation) if generation != deadline.generation) {
            self.fencing = Fencing::No;
        }
        let due = deadline.fenced || deadline.fence_at.is_some_and(|at| at <= now);
        if self.fencing == Fencing::No && due {
            self.fencing = Fencing::Due(deadline.generation);
            if !deadline.fenced {
                self.outputs.push_back(Output::Flag);
            }
            self.kill();
        }
        if now >= self.ticked + WORKER_SILENCE {
            self.kill();
        }
        if self.worker == Worker::Gone {
            match self.fencing {
                Fencing::Due(generation) if input == Input::WorkerGone => {
                    self.fencing = Fencing::Begun(generation);
                    self.outputs.push_back(Output::Fence);
                }
                Fencing::Due(_) | Fencing::Begun(_) => {}
                Fencing::No | Fencing::Done(_) => {
                    self.worker = Worker::Running;
                    self.ticked = now;
                    self.outputs.push_back(Output::Start);
                }
            }
        }
    }

    fn kill(&mut self) {
        if self.worker == Worker::Running {
            self.worker = Worker::Killed;
            self.outputs.push_back(Output::Kill);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Deadline = Deadline { fence_at: Some(Duration::from_secs(5)), fenced: false, generation: 1 };
    const FENCED: Deadline = Deadline { fence_at: Some(Duration::from_secs(5)), fenced: true, generation: 1 };

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    fn run(deadman: &mut Deadman, now: Now, deadline: Deadline, input: Input) -> Vec<Output> {
        deadman.handle(now, deadline, input);
        std::iter::from_fn(|| deadman.poll_output()).collect()
    }

    #[test]
    fn a_hung_worker_is_killed_and_started_again_without_a_fence() {
        let mut deadman = Deadman::new(at(0));
        assert_eq!(run(&mut deadman, at(0), OPEN, Input::WorkerGone), [Output::Start]);
        assert_eq!(run(&mut deadman, at(1), OPEN, Input::Tick), [Output::Kill]);
        assert_eq!(run(&mut deadman, at(2), OPEN, Input::Tick), []);
        assert_eq!(run(&mut deadman, at(2), OPEN, Input::WorkerGone), [Output::Start]);
    }

    #[test]
    fn a_passed_deadline_flags_kills_reaps_fences_and_only_then_starts() {
        let mut deadman = Deadman::new(at(4));
        assert_eq!(run(&mut deadman, at(4), OPEN, Input::WorkerGone), [Output::Start]);
        assert_eq!(run(&mut deadman, at(5), OPEN, Input::Tick), [Output::Flag, Output::Kill]);
        // A late sign of life of the worker changes nothing.
        assert_eq!(run(&mut deadman, at(5), FENCED, Input::WorkerTicked), []);
        assert_eq!(run(&mut deadman, at(5), FENCED, Input::WorkerGone), [Output::Fence]);
        // One of its processes that hung may end later.
        assert_eq!(run(&mut deadman, at(5), FENCED, Input::WorkerGone), []);
        assert_eq!(run(&mut deadman, at(6), FENCED, Input::Fenced), [Output::Start]);
        // The flag stands until the new worker has opened an epoch: it is not fenced for again.
        assert_eq!(run(&mut deadman, at(6), FENCED, Input::WorkerTicked), []);
        assert_eq!(run(&mut deadman, at(6), FENCED, Input::Tick), []);
    }

    #[test]
    fn a_deadman_that_slept_through_the_opening_of_an_epoch_fences_that_too() {
        let mut deadman = Deadman::beside_worker(at(5));
        let _ = run(&mut deadman, at(5), OPEN, Input::Tick);
        let _ = run(&mut deadman, at(5), FENCED, Input::WorkerGone);
        assert_eq!(run(&mut deadman, at(6), FENCED, Input::Fenced), [Output::Start]);
        let next = Deadline { fence_at: Some(at(9)), ..FENCED.next() };
        assert_eq!(run(&mut deadman, at(9), next, Input::WorkerTicked), [Output::Flag, Output::Kill]);
    }

    #[test]
    fn a_keeper_started_too_late_fences_before_it_starts_a_worker() {
        let mut deadman = Deadman::new(at(6));
        assert_eq!(run(&mut deadman, at(6), OPEN, Input::WorkerGone), [Output::Flag, Output::Fence]);
        assert_eq!(run(&mut deadman, at(7), FENCED, Input::Fenced), [Output::Start]);
    }

    #[test]
    fn a_flag_that_the_worker_set_is_fenced_too() {
        let mut deadman = Deadman::beside_worker(at(0));
        assert_eq!(run(&mut deadman, at(0), FENCED, Input::Tick), [Output::Kill]);
        assert_eq!(run(&mut deadman, at(0), FENCED, Input::WorkerGone), [Output::Fence]);
    }

    #[test]
    fn without_leases_there_is_no_deadline() {
        let mut deadman = Deadman::beside_worker(at(0));
        let none = Deadline::default();
        for second in 1..100 {
            let now = at(second) - Duration::from_millis(500);
            assert_eq!(run(&mut deadman, now - Duration::from_millis(400), none, Input::WorkerTicked), []);
            assert_eq!(run(&mut deadman, now, none, Input::Tick), []);
        }
    }
}
