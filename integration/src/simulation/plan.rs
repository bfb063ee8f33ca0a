//! What a simulated schedule consists of, made from its seed alone: hosts, tasks, faults. A failing plan is
//! shrunk by leaving parts of it out; the latencies of what is left do not change by that.

use serde::{Deserialize, Serialize};

/// A source of numbers that depend on nothing but the seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// One for a thing that is told apart by these numbers.
    #[must_use]
    pub fn of(parts: [u64; 4]) -> Self {
        let mut dice = Self(0x9e37_79b9_7f4a_7c15);
        for part in parts {
            dice.0 ^= part;
            dice.next();
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// True in `n` of a thousand cases.
    pub fn permille(&mut self, n: u64) -> bool {
        self.next() % 1000 < n
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.range(0, len as u64 - 1)).unwrap_or(0)
    }
}

/// Microseconds of true time, in which everything of a plan is given.
pub type Micros = u64;

/// Milliseconds as microseconds.
pub const MS: Micros = 1_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "fields are numbers of hosts, master modules and volumes, and true time")]
pub enum Fault {
    /// A host loses its power for a while.
    PowerOff { host: usize, lasts: Micros },
    /// A worker is killed.
    KillWorker { host: usize },
    /// A worker is stopped, or hangs, between any two steps.
    HangWorker { host: usize, lasts: Micros },
    /// A deadman is killed.
    KillDeadman { host: usize },
    /// Worker and deadman are killed together; systemd starts them again.
    KillKeeper { host: usize },
    /// The host is suspended; `counted` tells whether its clock knows (a suspend) or not (a paused VM).
    Suspend { host: usize, lasts: Micros, counted: bool },
    /// A host is cut off from etcd.
    CutHost { host: usize, lasts: Micros },
    /// A master module is cut off from etcd.
    CutReclaimer { reclaimer: usize, lasts: Micros },
    /// A master and its module are started again.
    RestartReclaimer { reclaimer: usize },
    /// Another master leads.
    Lead { reclaimer: usize },
    /// An etcd member hangs; who talks to it has to time out once.
    HangMember { lasts: Micros },
    /// etcd has no quorum.
    LoseQuorum { lasts: Micros },
    /// etcd's data base is full: reads are answered, writes refused, and some of them done all the same.
    FillEtcd { lasts: Micros },
    /// Mesos gives an agent up.
    GiveUp { host: usize, lasts: Micros },
    /// The agent's process is down for a while. Its containers run on; a framework without checkpoints has
    /// them started elsewhere at once.
    StopAgent { host: usize, lasts: Micros },
    /// The agent is started again: it knows some containers, and not others.
    RestartAgent { host: usize },
    /// An operator revokes one volume.
    RevokeVolume { volume: usize },
    /// The drivers of a host answer late or not at all; what they were asked for happens late.
    SlowDriver { host: usize, lasts: Micros },
    /// All members of etcd are stopped, and a while later it is restored from a backup of `age` before.
    Restore { age: Micros, closed: Micros },
    /// A person deletes a session.
    DeleteSession { host: usize },
    /// Another machine is given a host's name, while that is up or not.
    CloneName { host: usize, of: usize },
}

/// A host of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPlan {
    /// How fast its clocks go, in parts per million off.
    pub rate: i64,
    /// Whether its mount root is private.
    pub private_mounts: bool,
    /// Whether its session never ends by silence.
    pub never_by_time: bool,
}

/// A task of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPlan {
    /// When it is first started.
    pub at: Micros,
    /// Where.
    pub host: usize,
    /// Its volumes.
    pub volumes: Vec<usize>,
    /// How long it runs.
    pub runs: Micros,
}

/// A whole schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// From which latencies are drawn.
    pub seed: u64,
    /// The agent hosts.
    pub hosts: Vec<HostPlan>,
    /// How far off the clocks of the master modules are.
    pub reclaimers: Vec<i64>,
    /// How many volumes there are.
    pub volumes: usize,
    /// Whether the storage can take a volume away from a host.
    pub storage_fencing: bool,
    /// The tasks.
    pub tasks: Vec<TaskPlan>,
    /// The faults, by time.
    pub faults: Vec<(Micros, Fault)>,
    /// When all faults are over, and each volume must become usable again.
    pub calm: Micros,
}

impl Plan {
    /// The plan of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::of([seed, 1, 0, 0]);
        let storage_fencing = dice.permille(500);
        let count = match dice.range(0, 9) {
            0..=5 => 2,
            6..=8 => 3,
            _ => 5,
        };
        // Clocks at the very bounds find more than clocks in between.
        let rate = |dice: &mut Dice| [-1000, 1000, 0][dice.index(3)];
        let hosts: Vec<_> = (0..count)
            .map(|_| HostPlan {
                rate: rate(&mut dice),
                private_mounts: dice.permille(150),
                never_by_time: dice.permille(40),
            })
            .collect();
        let reclaimers: Vec<_> = (0..dice.range(1, 2)).map(|_| rate(&mut dice)).collect();
        let volumes = usize::from(count > 3) * 4 + dice.index(2) + 1;
        let calm = dice.range(6_000, 14_000) * MS;
        let tasks = (0..dice.range(2, 3) + count as u64)
            .map(|_| {
                let first = dice.index(volumes);
                let mut chosen = vec![first];
                if dice.permille(200) && volumes > 1 {
                    chosen.push((first + 1) % volumes);
                }
                TaskPlan {
                    at: dice.range(0, calm * 3 / 4),
                    host: dice.index(count),
                    volumes: chosen,
                    runs: dice.range(50, 8_000) * MS,
                }
            })
            .collect();
        let mut plan =
            Self { seed, hosts, reclaimers, volumes, storage_fencing, tasks, faults: Vec::new(), calm };
        for _ in 0..dice.range(0, 4) {
            let at = dice.range(200 * MS, calm);
            if let Some(fault) = plan.fault(&mut dice, at) {
                plan.faults.push((at, fault));
            }
        }
        // What no protocol can see over a restore (rule L21): a host that does not run, or that goes on without etcd.
        if plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::Restore { .. })) {
            plan.faults
                .retain(|(_, fault)| !matches!(fault, Fault::Suspend { .. } | Fault::KillKeeper { .. }));
            plan.hosts.iter_mut().for_each(|host| host.never_by_time = false);
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Whether the storage attaches a volume to one host, as EBS does, until its driver detaches it there. Then a person helps
    /// where the storage cannot take it away. Not where etcd forgets what it knew, or two machines have one name.
    #[must_use]
    pub fn attaches_once(&self) -> bool {
        let forgets = |(_, fault): &(Micros, Fault)| {
            matches!(fault, Fault::Restore { .. } | Fault::DeleteSession { .. } | Fault::CloneName { .. })
        };
        Dice::of([self.seed, 40, 0, 0]).permille(600) && !self.faults.iter().any(forgets)
    }

    /// Checks a plan that was read from a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let (hosts, reclaimers, volumes) = (self.hosts.len(), self.reclaimers.len(), self.volumes);
        if hosts < 2 || reclaimers == 0 || volumes == 0 {
            return Err("a plan needs two hosts, a reclaimer and a volume".to_owned());
        }
        let fits = |task: &TaskPlan| {
            task.host < hosts
                && !task.volumes.is_empty()
                && task.volumes.iter().all(|volume| *volume < volumes)
        };
        if !self.tasks.iter().all(fits) {
            return Err("a task names a host or a volume that is not in the plan".to_owned());
        }
        let fits = |fault: &Fault| match *fault {
            Fault::PowerOff { host, .. }
            | Fault::KillWorker { host }
            | Fault::HangWorker { host, .. }
            | Fault::KillDeadman { host }
            | Fault::KillKeeper { host }
            | Fault::Suspend { host, .. }
            | Fault::CutHost { host, .. }
            | Fault::GiveUp { host, .. }
            | Fault::StopAgent { host, .. }
            | Fault::RestartAgent { host }
            | Fault::SlowDriver { host, .. }
            | Fault::DeleteSession { host } => host < hosts,
            Fault::CloneName { host, of } => host < hosts && of < hosts,
            Fault::CutReclaimer { reclaimer, .. }
            | Fault::RestartReclaimer { reclaimer }
            | Fault::Lead { reclaimer } => reclaimer < reclaimers,
            Fault::RevokeVolume { volume } => volume < volumes,
            Fault::HangMember { .. }
            | Fault::LoseQuorum { .. }
            | Fault::FillEtcd { .. }
            | Fault::Restore { .. } => true,
        };
        match self.faults.iter().find(|(_, fault)| !fits(fault)) {
            None => Ok(()),
            Some((_, fault)) => Err(format!("{fault:?} names what is not in the plan")),
        }
    }

    fn fault(&self, dice: &mut Dice, at: Micros) -> Option<Fault> {
        let host = dice.index(self.hosts.len());
        let reclaimer = dice.index(self.reclaimers.len());
        // What lasts ends before the calm.
        let left = (self.calm - at).max(1);
        let lasts = dice.range(100 * MS, 9_000 * MS).min(left);
        Some(match dice.range(0, 99) {
            0..=9 => Fault::PowerOff { host, lasts },
            10..=17 => Fault::KillWorker { host },
            18..=24 => Fault::HangWorker { host, lasts: lasts / 3 },
            25..=29 => Fault::KillDeadman { host },
            30..=33 if self.storage_fencing => Fault::KillKeeper { host },
            34..=41 if self.storage_fencing => Fault::Suspend { host, lasts, counted: dice.permille(500) },
            42..=55 => Fault::CutHost { host, lasts },
            56..=59 => Fault::CutReclaimer { reclaimer, lasts },
            60..=62 => Fault::RestartReclaimer { reclaimer },
            63..=65 => Fault::Lead { reclaimer },
            66..=70 => Fault::HangMember { lasts },
            71..=72 => Fault::LoseQuorum { lasts },
            73 => Fault::FillEtcd { lasts },
            74..=78 => Fault::GiveUp { host, lasts },
            79..=82 => Fault::StopAgent { host, lasts },
            83..=84 => Fault::RestartAgent { host },
            85..=87 => Fault::RevokeVolume { volume: dice.index(self.volumes) },
            88..=94 => Fault::SlowDriver { host, lasts },
            95..=96 => Fault::Restore { age: dice.range(0, 5_000) * MS, closed: 9_500 * MS },
            97 if dice.permille(300) => Fault::DeleteSession { host },
            98..=99 => Fault::CloneName { host, of: (host + 1) % self.hosts.len() },
            _ => return None,
        })
    }

    /// The plans that have a little less of everything than this one.
    #[must_use]
    pub fn smaller(&self) -> Vec<Self> {
        let mut smaller = Vec::new();
        for i in 0..self.faults.len() {
            let mut plan = self.clone();
            plan.faults.remove(i);
            smaller.push(plan);
        }
        for i in 0..self.tasks.len() {
            let mut plan = self.clone();
            plan.tasks.remove(i);
            smaller.push(plan);
        }
        for i in 0..self.tasks.len() {
            if self.tasks[i].volumes.len() > 1 {
                let mut plan = self.clone();
                plan.tasks[i].volumes.truncate(1);
                smaller.push(plan);
            }
        }
        for i in 0..self.hosts.len() {
            if self.hosts[i].rate != 0 || self.hosts[i].private_mounts {
                let mut plan = self.clone();
                plan.hosts[i] = HostPlan { rate: 0, private_mounts: false, ..self.hosts[i] };
                smaller.push(plan);
            }
        }
        if self.reclaimers.len() > 1 {
            let mut plan = self.clone();
            plan.reclaimers.truncate(1);
            smaller.push(plan);
        }
        smaller
    }
}
