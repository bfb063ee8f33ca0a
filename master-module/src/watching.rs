//! The loop: what etcd, the leading master and the agents say goes into the view; what is new in it
//! goes into the log and, as events, to etcd.
//!
//! One task. Whatever takes time runs beside it, each at most once at a time: a round of questions to
//! the master, one to its registry, one to the agents, a write of events, a trimming. Nothing is asked
//! twice while it has not answered, so that an answer that takes long holds up nothing but itself.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt, stream};
use shared::event::TrimmedRecord;
use shared::retry::Retry;
use shared::store::{LeaseStore, Revision, StoreError};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, info, warn};

use crate::agents::{Agents, Answer};
use crate::event::{Place, Told};
use crate::follow::{Followed, follow};
use crate::mesos::{AgentList, Mesos, PollError, Registry};
use crate::queue::{Queue, STANDBY_DELAY};
use crate::reach::{News, Reach, chain};
use crate::record::{Recorded, Recorder, RecordingError};
use crate::settings::Settings;
use crate::view::View;

/// Events above those that are kept before the module beside the leading master trims them: one
/// deletion for so many events.
const TRIMMED_AT_ONCE: usize = 100;

const FIRST_WRITE_DELAY: Duration = Duration::from_millis(100);
const LONGEST_WRITE_DELAY: Duration = Duration::from_secs(5);

/// What runs beside the loop has come to its end.
enum Done {
    Registry(Result<Registry, PollError>),
    Written(Result<usize, RecordingError>),
    Trimmed(Result<Option<TrimmedRecord>, RecordingError>),
}

type Work<'s> = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + 's>>>;

/// What the loop knows and does.
struct Loop<'s, S> {
    settings: &'s Settings,
    recorder: Arc<Recorder<'s, S>>,
    view: View,
    queue: Queue,
    recorded: Recorded,
    work: Work<'s>,
    /// The leading master, when one was found by the last round.
    leader: Option<String>,
    /// Whether that is the master of this module.
    leading: bool,
    /// Whether the registry is to be asked, and whether it is being asked.
    registry_wanted: bool,
    registry_asked: bool,
    /// The last revision of etcd that is known.
    revision: Revision,
    write_retry: Retry,
    write_not_before: Instant,
    trimming: bool,
    trim_not_before: Instant,
    /// A read of all records may fail though etcd answers, and a write though it reads: then that is
    /// worth a line of its own.
    reading: Reach,
    writing: Reach,
    registry: Reach,
}

/// Watches until etcd says what cannot be: that is the answer.
pub(crate) async fn watching<S: LeaseStore>(
    store: &S,
    mesos: Mesos,
    agents: &Agents,
    settings: &Settings,
) -> StoreError {
    let keys = &settings.keys;
    let prefixes = [keys.events(), keys.standings(), keys.leases(), keys.sessions()];
    let [mut events, mut standings, mut leases, mut sessions] =
        [0, 1, 2, 3].map(|n: usize| follow(store, &prefixes[n]));
    let (mut events_read, mut standings_read, mut polled) = (false, false, false);
    let registrar = mesos.registrar();
    let mut rounds = Box::pin(rounds(store, mesos, settings));
    let mut probes: Option<Pin<Box<dyn Stream<Item = Vec<Answer>>>>> = None;
    let mut etcd = Reach::new("etcd");
    let mut master = Reach::new("the leading master");
    let mut state = Loop::new(store, settings);
    loop {
        let write_at = state.write_at();
        let told = tokio::select! {
            Some(followed) = events.next() => {
                match &followed {
                    Followed::Read(snapshot) => {
                        state.recorded.read(snapshot);
                        if !std::mem::replace(&mut events_read, true) {
                            state.view.remember(snapshot);
                        }
                    }
                    Followed::Changed(changes) => state.recorded.changed(changes),
                    Followed::ReadFailed(_) | Followed::WatchEnded(_) => {}
                }
                state.rest(followed, &etcd)
            }
            // How agents stood is of interest at the beginning: from then on this module knows what it
            // sees itself, whatever others see.
            Some(followed) = standings.next(), if !standings_read => {
                if let Followed::Read(snapshot) = &followed {
                    standings_read = true;
                    state.view.remember_standings(snapshot);
                    state.recorder.remember_standings(snapshot);
                }
                state.rest(followed, &etcd)
            }
            // Leases are told with how their holders' agents stand. That wants one round of polling,
            // whatever it brings, and the sessions, which name the agents. And what was told before
            // comes before all of it.
            Some(followed) = leases.next(), if polled && standings_read && state.view.has_sessions() => {
                let told = match &followed {
                    Followed::Read(snapshot) => {
                        state.registry_wanted = true;
                        Ok(state.view.read_leases(snapshot))
                    }
                    Followed::Changed(changes) => Ok(state.view.changed(changes)),
                    Followed::ReadFailed(_) | Followed::WatchEnded(_) => Ok(Vec::new()),
                };
                state.rest(followed, &etcd).and(told)
            }
            Some(followed) = sessions.next(), if events_read => {
                let told = match &followed {
                    Followed::Read(snapshot) => Ok(state.view.read_sessions(snapshot)),
                    Followed::Changed(changes) => Ok(state.view.changed(changes)),
                    Followed::ReadFailed(_) | Followed::WatchEnded(_) => Ok(Vec::new()),
                };
                state.rest(followed, &etcd).and(told)
            }
            Some(Round { agents: list, etcd: answer }) = rounds.next() => {
                polled = true;
                say(match &answer {
                    Ok(_) => etcd.answered(),
                    Err(error) => etcd.failed(chain(error)),
                });
                match &list {
                    Ok(_) => say(master.answered()),
                    Err(error) => say(master.failed(chain(error))),
                }
                let told = state.listed(list);
                if probes.is_none() {
                    let targets = state.view.targets();
                    probes = (!targets.is_empty()).then(|| Box::pin(agents.ask(targets)) as Pin<Box<_>>);
                }
                // What the master says is news whether or not etcd answers.
                state.tell(told);
                answer.map(|revision| {
                    state.revision = state.revision.max(revision);
                    Vec::new()
                })
            }
            answers = next_of(&mut probes) => {
                if answers.is_none() {
                    probes = None;
                }
                Ok(answers.map(|answers| state.view.answered(answers)).unwrap_or_default())
            }
            Some(done) = state.work.next() => state.done(done),
            () = sleep_until(write_at.unwrap_or_else(Instant::now)), if write_at.is_some() => Ok(Vec::new()),
        };
        match told {
            Ok(told) => state.tell(told),
            Err(error @ StoreError::Corrupt { .. }) => return error,
            Err(error) => debug!("etcd: {}", chain(&error)),
        }
        state.work_on(&registrar);
    }
}

impl<'s, S: LeaseStore> Loop<'s, S> {
    fn new(store: &'s S, settings: &'s Settings) -> Self {
        let keys = &settings.keys;
        Self {
            settings,
            recorder: Arc::new(Recorder::new(store, keys)),
            // Leases and sessions are read one after the other: together they fit into the queue.
            view: View::new(keys.clone(), settings.events_kept / 2),
            queue: Queue::new(settings.events_kept),
            recorded: Recorded::new(keys.clone()),
            work: FuturesUnordered::new(),
            leader: None,
            leading: false,
            registry_wanted: false,
            registry_asked: false,
            revision: Revision::ABSENT,
            write_retry: Retry::new(FIRST_WRITE_DELAY, LONGEST_WRITE_DELAY),
            write_not_before: Instant::now(),
            trimming: false,
            trim_not_before: Instant::now(),
            reading: Reach::assumed("etcd, which was asked for all records"),
            writing: Reach::assumed("etcd, which was asked to write events"),
            registry: Reach::assumed("the leading master's registry"),
        }
    }

    /// What is the same for all records that are followed.
    fn rest(&mut self, followed: Followed, etcd: &Reach) -> Result<Vec<Told>, StoreError> {
        match followed {
            Followed::Read(snapshot) => {
                say(self.reading.answered());
                self.revision = self.revision.max(snapshot.revision);
                Ok(Vec::new())
            }
            Followed::Changed(changes) => {
                let newest = changes.iter().map(|change| change.revision()).max();
                self.revision = newest.max(Some(self.revision)).unwrap_or_default();
                Ok(Vec::new())
            }
            Followed::ReadFailed(error) => {
                // While etcd does not answer at all, the rounds say so.
                if etcd.answers() {
                    say(self.reading.failed(chain(&error)));
                }
                Err(error)
            }
            // Members restart and leaders change; what is missed is told by the next watch.
            Followed::WatchEnded(error) => Err(error),
        }
    }

    fn listed(&mut self, list: Result<AgentList, PollError>) -> Vec<Told> {
        let Ok(AgentList { agents, leader, leading }) = list else {
            (self.leader, self.leading) = (None, false);
            return Vec::new();
        };
        (self.leader, self.leading) = (Some(leader), leading);
        self.view.listed(agents);
        self.registry_wanted = true;
        self.view.polled(None)
    }

    fn done(&mut self, done: Done) -> Result<Vec<Told>, StoreError> {
        match done {
            Done::Registry(answer) => {
                self.registry_asked = false;
                match answer {
                    Ok(registry) => {
                        say(self.registry.answered());
                        return Ok(self.view.polled(Some(registry)));
                    }
                    Err(error) => say(self.registry.failed(chain(&error))),
                }
            }
            Done::Written(Ok(count)) => {
                say(self.writing.answered());
                self.queue.written(count);
                self.write_retry.reset();
            }
            Done::Written(Err(error)) => {
                self.queue.written(0);
                // When etcd is back, what has waited is overdue everywhere: the leader's module comes first.
                let delay = if self.leading { Duration::ZERO } else { STANDBY_DELAY };
                self.write_not_before = Instant::now() + self.write_retry.next_delay() + delay;
                return self.refused(error);
            }
            Done::Trimmed(result) => {
                self.trimming = false;
                match result {
                    Ok(Some(trimmed)) => self.recorded.trimmed(&trimmed),
                    // Others trim; the watch will tell.
                    Ok(None) => self.trim_not_before = Instant::now() + LONGEST_WRITE_DELAY,
                    Err(error) => {
                        self.trim_not_before = Instant::now() + LONGEST_WRITE_DELAY;
                        return self.refused(error);
                    }
                }
            }
        }
        Ok(Vec::new())
    }

    fn refused(&mut self, error: RecordingError) -> Result<Vec<Told>, StoreError> {
        if let RecordingError::Store(error @ StoreError::Corrupt { .. }) = error {
            return Err(error);
        }
        say(self.writing.failed(chain(&error)));
        Ok(Vec::new())
    }

    fn tell(&mut self, told: Vec<Told>) {
        let now = Instant::now();
        for one in told {
            if one.logged {
                one.event.log();
            }
            let key = self.recorder.fixed_key(&one.event, one.place);
            let is_there = key.is_some_and(|key| self.recorded.contains(&key));
            if one.place != Place::LogAlone && !is_there {
                self.queue.push(one, now, self.revision);
            }
        }
    }

    /// When events are to be written next.
    fn write_at(&self) -> Option<Instant> {
        self.queue.due(self.leading).map(|due| due.max(self.write_not_before))
    }

    /// Begins what is due and not under way.
    fn work_on(&mut self, registrar: &crate::mesos::Registrar) {
        if self.registry_wanted && !self.registry_asked {
            self.registry_wanted = false;
            let unlisted: BTreeSet<_> = self.view.unlisted();
            if let Some(leader) = self.leader.clone().filter(|_| !unlisted.is_empty()) {
                self.registry_asked = true;
                let registrar = registrar.clone();
                let ask = async move { Done::Registry(registrar.registry(&leader, unlisted).await) };
                self.work.push(Box::pin(ask));
            }
        }
        let now = Instant::now();
        if now >= self.write_not_before {
            let batch = self.queue.batch(now, self.leading);
            if !batch.is_empty() {
                let recorder = Arc::clone(&self.recorder);
                self.work.push(Box::pin(async move { Done::Written(recorder.write(&batch).await) }));
            }
        }
        let kept = self.settings.events_kept;
        // Beside a master that does not lead only when nobody else seems to do it.
        let tolerated = kept + if self.leading { TRIMMED_AT_ONCE } else { 3 * TRIMMED_AT_ONCE };
        if !self.trimming
            && now >= self.trim_not_before
            && let Some(excess) = self.recorded.excess(kept, tolerated)
        {
            self.trimming = true;
            let recorder = Arc::clone(&self.recorder);
            self.work.push(Box::pin(async move { Done::Trimmed(recorder.trim(excess).await) }));
        }
    }
}

/// What is asked for in each round of polling.
struct Round {
    agents: Result<AgentList, PollError>,
    /// A linearizable read of one small record. A silent watch proves nothing; this does, and it is
    /// what finds out that etcd was restored from a backup.
    etcd: Result<Revision, StoreError>,
}

struct Rounds<'s, S> {
    store: &'s S,
    cluster: [String; 1],
    mesos: Mesos,
    ticks: Interval,
}

fn rounds<'s, S: LeaseStore>(
    store: &'s S,
    mesos: Mesos,
    settings: &Settings,
) -> impl Stream<Item = Round> + use<'s, S> {
    let mut ticks = interval(settings.poll_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let rounds = Rounds { store, cluster: [settings.keys.cluster()], mesos, ticks };
    stream::unfold(rounds, |mut rounds| async {
        rounds.ticks.tick().await;
        let (agents, etcd) = tokio::join!(rounds.mesos.agents(), rounds.store.get(&rounds.cluster));
        Some((Round { agents, etcd: etcd.map(|snapshot| snapshot.revision) }, rounds))
    })
}

/// The next item of a stream that may not be there; never, without one.
async fn next_of<T>(stream: &mut Option<Pin<Box<dyn Stream<Item = T>>>>) -> Option<T> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

fn say(news: Option<News>) {
    match news {
        Some(news @ News::Lost { .. }) => warn!("{news}"),
        Some(news) => info!("{news}"),
        None => {}
    }
}
