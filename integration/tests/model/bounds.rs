//! Within which bounds the model is explored.

use std::time::Duration;

use protocol::exchange::{ByTime, Instance, Means};
use protocol::holder::Settings;
use protocol::timing::Timing;

use integration::simulation::run::{holder, volume};

use super::state::TICK;

/// What may crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crashes {
    /// Each of those below.
    Any,
    /// Worker or deadman.
    Process,
    /// Both at once: only with a storage that fences.
    Keeper,
    /// The host's power.
    Host,
}

/// How long a reclaimer's read is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// It shows what is there when it is taken in, at any moment of the tick in which it was asked for.
    Atomic,
    /// It shows what was there when it was asked for, and is taken in within the tick.
    Prompt,
    /// It is done, and taken in, at any later time.
    Late,
}

/// What may happen in a model, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// For people.
    pub(crate) name: &'static str,
    pub(crate) reclaimers: usize,
    /// How many of them are beside a master that leads: the others act T/2 later.
    pub(crate) leaders: usize,
    pub(crate) drift: bool,
    /// How often something of host 0 crashes.
    pub(crate) faults: u8,
    /// What may.
    pub(crate) crashes: Crashes,
    /// Commits of host 0 whose sender gives up.
    pub(crate) losses: u8,
    pub(crate) revokes: u8,
    /// How often each host is asked to mount.
    pub(crate) prepares: [u8; 2],
    /// For how many ticks a driver call of host 0 may still land; then the settle time is as long.
    pub(crate) late_calls: u8,
    /// How long a reclaimer's read may take.
    pub(crate) reads: Reads,
    /// Whether the answer to a commit may come later than the commit is done.
    pub(crate) late_answers: bool,
    /// How often host 0 is suspended. Its clock counts on.
    pub(crate) suspends: u8,
    /// Whether the storage can take a volume away from a host. Without it nobody can tell what a host does that does
    /// not run: suspends, and crashes of a whole keeper, are tried only with it (rule L20).
    pub(crate) storage: bool,
    /// Whether a container of host 0 may end by itself.
    pub(crate) ends: bool,
}

pub(super) fn timing() -> Timing {
    let s = Duration::from_secs;
    Timing { ttl: s(5), beat: s(1), request: s(1), election: s(0), fence: s(2), kill: s(1) }
}

impl Bounds {
    pub(super) fn settings(&self, host: usize) -> Settings {
        Settings {
            holder: holder(host),
            instance: Instance("i".into()),
            machine: format!("m{host}").into(),
            boot: "b".into(),
            timing: timing(),
            by_time: ByTime::Allowed,
            means: [Means::Guard].into(),
            grace: TICK,
            prepare_timeout: Duration::from_secs(1_000),
            // A lease of another is asked for again and again instead.
            wait_timeout: Duration::ZERO,
            start_timeout: Duration::MAX,
            lead: Duration::ZERO,
            retry: (TICK, TICK),
            // A call lands within `late_calls` ticks, at the latest right before the next one.
            settle: TICK * u32::from(self.late_calls + 1),
            settle_of: Default::default(),
            storage_fencing: self.storage.then(|| volume(0).driver).into_iter().collect(),
            fencing_required: false,
        }
    }
}

const BASE: Bounds = Bounds {
    name: "requests at any pace",
    reclaimers: 1,
    leaders: 2,
    drift: false,
    faults: 0,
    crashes: Crashes::Any,
    losses: 0,
    revokes: 0,
    prepares: [1, 1],
    late_calls: 0,
    reads: Reads::Prompt,
    late_answers: true,
    suspends: 0,
    storage: false,
    ends: true,
};

/// One where requests take no time, and the container of the first host runs on.
const PROMPT: Bounds = Bounds { reads: Reads::Atomic, late_answers: false, ends: false, ..BASE };

/// The bounds that CI tries: every state within them is visited.
pub(crate) const SMALL: [Bounds; 11] = [
    BASE,
    Bounds { name: "an unknown outcome, no reclaimer", losses: 1, reclaimers: 0, ..BASE },
    Bounds { name: "a crash, no reclaimer", faults: 1, reclaimers: 0, ..BASE },
    Bounds { name: "a revoke, no reclaimer", revokes: 1, reclaimers: 0, ..BASE },
    Bounds { name: "two reclaimers, one leads, atomic reads", reclaimers: 2, leaders: 1, ..PROMPT },
    Bounds { name: "an unknown outcome, atomic reads", losses: 1, ..PROMPT },
    Bounds { name: "a suspend, atomic reads", suspends: 1, storage: true, ..PROMPT },
    Bounds {
        name: "clocks that err and a late driver call, atomic reads",
        drift: true,
        late_calls: 1,
        ..PROMPT
    },
    Bounds {
        name: "a crash of worker or deadman, atomic reads",
        faults: 1,
        crashes: Crashes::Process,
        ..PROMPT
    },
    Bounds {
        name: "a crash of the keeper, atomic reads",
        faults: 1,
        crashes: Crashes::Keeper,
        storage: true,
        ..PROMPT
    },
    Bounds { name: "a crash of the host, atomic reads", faults: 1, crashes: Crashes::Host, ..PROMPT },
];

/// Larger ones, for a machine that has an hour.
pub(crate) const LARGE: [Bounds; 20] = [
    Bounds { name: "two reclaimers, an unknown outcome, atomic reads", reclaimers: 2, losses: 1, ..PROMPT },
    Bounds { name: "two reclaimers, two lead, atomic reads", reclaimers: 2, ..PROMPT },
    Bounds { name: "two reclaimers, prompt answers", reclaimers: 2, late_answers: false, ..BASE },
    Bounds { name: "two reclaimers, small", reclaimers: 2, late_answers: false, ends: false, ..BASE },
    Bounds {
        name: "drift and late call, small",
        drift: true,
        late_calls: 1,
        late_answers: false,
        ends: false,
        ..BASE
    },
    Bounds { name: "suspend, small", suspends: 1, storage: true, late_answers: false, ends: false, ..BASE },
    Bounds {
        name: "keeper crash, small",
        faults: 1,
        storage: true,
        reclaimers: 0,
        late_answers: false,
        ..BASE
    },
    Bounds {
        name: "clocks that err, late driver calls, prompt answers",
        drift: true,
        late_calls: 1,
        late_answers: false,
        ..BASE
    },
    Bounds { name: "a suspend, prompt answers", suspends: 1, storage: true, late_answers: false, ..BASE },
    Bounds { name: "keeper crash", faults: 1, storage: true, late_answers: false, ..BASE },
    Bounds { name: "keeper crash, no reclaimer", faults: 1, storage: true, reclaimers: 0, ..BASE },
    Bounds { name: "clocks that err", drift: true, ..BASE },
    Bounds { name: "a reclaimer's reads at any pace", reads: Reads::Late, ..BASE },
    Bounds { name: "an unknown outcome", losses: 1, ..BASE },
    Bounds { name: "a revoke", revokes: 1, ..BASE },
    Bounds { name: "late driver calls", late_calls: 1, ..BASE },
    Bounds { name: "a crash", faults: 1, ..BASE },
    Bounds { name: "a crash and an unknown outcome", faults: 1, losses: 1, ..BASE },
    Bounds { name: "clocks that err, and a crash", faults: 1, drift: true, ..BASE },
    Bounds { name: "two reclaimers", reclaimers: 2, ..BASE },
];
