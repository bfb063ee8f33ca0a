//! The second half of the loop: it acts. The decisions are those of `shared::protocol::reclaimer`; this shell
//! reads etcd for it, carries out what it says, and tells the time.
//!
//! One turn at a time, beside the loop that watches, which hands in what it knows at the turn's beginning: who holds
//! leases, how the leading master lists the agents, and whether that is the master of this module. A turn reads
//! sessions, heartbeats and the storm guard, sends what follows, and reads again to see what came of it. The time
//! of a read is taken when it has returned (L13).

pub(crate) mod gone;
pub(crate) mod holdings;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use shared::exchange_io::{Exchange, ReadError};
use shared::protocol::exchange::{Commit, Outcome, Reading, View};
use shared::protocol::reclaimer::{Agents, Core, Input, Output, Settings};
use shared::protocol::timing::Timing;
use shared::protocol::{Op, Text};
use shared::store::{LeaseStore, StoreError};
use tracing::{debug, error, info, warn};

use self::gone::Mark;
use self::holdings::{Holdings, Sessions, Wanted};
use crate::clock::Elapsed;
use crate::reach::{News, Reach, chain};

/// Reads of one turn: one to decide by, one to see what came of it. More would be a loop without a pause
/// whenever a lease is out of date here.
const READS_OF_A_TURN: usize = 2;

/// Transactions under way at once: a rack may be lost in one moment.
const COMMITS_AT_ONCE: usize = 16;

/// A line is not said again before this has passed: what is not done is decided anew at each read.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// How long a session that was written is looked at though its holder holds nothing any more: as soon as it is
/// dead others take its leases, and it is still to be seen that it is.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// The pause before a turn for each holder that the last one looked at: measured, a turn takes some 6 us of a core
/// for each. With 10,000 holders a turn comes every second, and below 5,000 the interval that was asked for stands.
const PAUSE_PER_HOLDER: Duration = Duration::from_micros(100);

/// What is known when a turn begins.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) holdings: Holdings,
    /// Leases that sessions of other hosts were seen to want.
    pub(crate) wanted: Wanted,
    /// How the leading master lists the agents, if it was asked since the last turn.
    pub(crate) agents: Option<Agents>,
    /// Whether the master of this module leads.
    pub(crate) leading: bool,
}

/// What came of a turn.
#[derive(Debug, Default)]
pub(crate) struct Acted {
    /// Agents that may be marked gone.
    pub(crate) gone: Vec<Mark>,
    /// What is to be said of etcd.
    pub(crate) news: Option<News>,
    /// etcd holds what cannot be: nothing goes on from here.
    pub(crate) corrupt: Option<StoreError>,
}

/// The shell of the core.
#[derive(Debug)]
pub(crate) struct Acting<S, C> {
    exchange: Arc<Exchange<S>>,
    core: Core,
    clock: C,
    poll: Duration,
    sessions: Sessions,
    /// What the core wants and was not done yet.
    wanted: VecDeque<Output>,
    said: BTreeMap<Text, Duration>,
    reach: Reach,
}

impl<S: LeaseStore, C: Elapsed> Acting<S, C> {
    /// One that reads every `poll`.
    pub(crate) fn new(
        exchange: Arc<Exchange<S>>,
        mut clock: C,
        timing: Timing,
        poll: Duration,
        reconnect: Duration,
    ) -> Self {
        let core = Core::new(clock.now(), Settings { timing, poll, reconnect });
        Self {
            exchange,
            core,
            clock,
            poll,
            sessions: Sessions::default(),
            wanted: VecDeque::new(),
            said: BTreeMap::new(),
            reach: Reach::assumed("etcd, which was asked for sessions and heartbeats"),
        }
    }

    /// How long from now the next turn is due.
    pub(crate) fn next_turn(&mut self) -> Duration {
        let now = self.clock.now();
        // Without a deadline a read is wanted that this turn left over.
        let due = self.core.next_deadline().map_or(self.poll, |due| due.saturating_sub(now)).min(self.poll);
        due.max(PAUSE_PER_HOLDER * self.sessions.holders())
    }

    /// One turn.
    pub(crate) async fn turn(&mut self, known: &Known) -> Acted {
        let mut acted = Acted::default();
        self.handle(Input::Leading(known.leading));
        if let Some(agents) = known.agents.clone() {
            self.handle(Input::Agents(agents));
        }
        self.handle(Input::Tick);
        let mut reads = 0;
        loop {
            let (mut commits, mut asked, mut reading) = (Vec::new(), Vec::new(), None);
            while let Some(output) = self.wanted.pop_front() {
                match output {
                    Output::Read { op, reading: Reading::Everything } => reading = Some(op),
                    Output::Read { op, reading } => asked.push((op, reading)),
                    Output::Commit { op, commit } => {
                        commits.push((op, Sessions::compared(commit, &known.holdings)))
                    }
                    Output::MarkGone { agent_id } => {
                        let mark = self.sessions.of_agent(&agent_id);
                        acted.gone.extend(mark.map(|(holder, session)| Mark::new(agent_id, holder, session)));
                    }
                    Output::Alarm(line) => self.say(line, true),
                    Output::Note(line) => self.say(line, false),
                }
            }
            if !commits.is_empty() {
                let until = self.clock.now() + KEPT_FOR;
                self.sessions.keep(commits.iter().flat_map(|(_, commit)| &commit.puts), until);
                for (op, outcome) in self.commit(commits).await {
                    debug!(?op, ?outcome, "a transaction about a session");
                    self.handle(Input::Committed(op, outcome));
                }
            }
            for (op, view) in self.read_all(asked).await {
                self.handle(Input::Read(op, view));
            }
            let Some(op) = reading else {
                if self.wanted.is_empty() {
                    break;
                }
                continue;
            };
            if reads == READS_OF_A_TURN {
                self.wanted.push_back(Output::Read { op, reading: Reading::Everything });
                break;
            }
            reads += 1;
            self.read(op, known, &mut acted).await;
            if acted.corrupt.is_some() {
                break;
            }
        }
        acted
    }

    async fn read(&mut self, op: Op, known: &Known, acted: &mut Acted) {
        let result = self.view(known).await;
        let result = match result {
            Ok(view) => {
                acted.news = self.reach.answered().or(acted.news.take());
                Ok(view)
            }
            Err(error) => {
                let why = chain(&error);
                match error {
                    ReadError::Store(corrupt @ StoreError::Corrupt { .. }) => acted.corrupt = Some(corrupt),
                    // Before the first keeper there is nothing to act on.
                    ReadError::NotFounded { .. } => debug!("{why}"),
                    _ => acted.news = self.reach.failed(why.clone()),
                }
                Err(why.into())
            }
        };
        // After the read has returned.
        self.handle(Input::Read(op, result));
    }

    async fn view(&mut self, known: &Known) -> Result<View, ReadError> {
        let (keys, now) = (self.exchange.keys().clone(), self.clock.now());
        self.sessions.forget(now);
        let (cluster, snapshot) =
            self.exchange.snapshot(vec![keys.storm()], &[keys.sessions(), keys.beats()]).await?;
        self.sessions
            .view(&keys, &known.holdings, &known.wanted, cluster, &snapshot)
            .map_err(|error| ReadError::Unreadable { key: keys.storm(), why: error.to_string().into() })
    }

    async fn read_all(&self, asked: Vec<(Op, Reading)>) -> Vec<(Op, Result<View, Text>)> {
        let exchange = &self.exchange;
        stream::iter(asked)
            .map(|(op, reading)| async move {
                let view = exchange.read(&reading).await;
                if let Err(why) = &view {
                    warn!("leases that hosts wait for could not be read: {why}");
                }
                (op, view)
            })
            .buffer_unordered(COMMITS_AT_ONCE)
            .collect()
            .await
    }

    async fn commit(&self, commits: Vec<(Op, Commit)>) -> Vec<(Op, Outcome)> {
        let exchange = &self.exchange;
        stream::iter(commits)
            .map(|(op, commit)| async move { (op, exchange.commit(&commit).await) })
            .buffer_unordered(COMMITS_AT_ONCE)
            .collect()
            .await
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        self.core.handle(now, input);
        self.wanted.extend(std::iter::from_fn(|| self.core.poll_output()));
    }

    fn say(&mut self, line: Text, alarm: bool) {
        let now = self.clock.now();
        self.said.retain(|_, said| now < *said + SAID_AGAIN_AFTER);
        if self.said.contains_key(&line) {
            return;
        }
        if alarm {
            error!("{line}");
        } else {
            info!("{line}");
        }
        self.said.insert(line, now);
    }
}

#[cfg(test)]
#[path = "acting_tests.rs"]
mod tests;
