//! The loop: what etcd, the leading master and the agents say goes into the view; what is new in it
//! goes into the log and, as events, to etcd.
//!
//! One task. Whatever takes time runs beside it, each at most once at a time: a round of questions to
//! the master, one to its registry, one to the agents, a write of events, a trimming, a turn of what acts
//! (acting.rs), a try to mark an agent gone. Nothing is asked twice while it has not answered, so that an answer that takes long holds up nothing but itself.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt, stream};
use reqwest::Client;
use shared::event::{Seen, TrimmedRecord};
use shared::exchange_io::Exchange;
use shared::protocol::{Text, reclaimer};
use shared::retry::Retry;
use shared::store::{Change, LeaseStore, Revision, StoreError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::acting::gone::{Mark, Marks, Tried, try_to_mark};
use crate::acting::{Acted, Acting, Known};
use crate::agents::{Agents, Answer};
use crate::clock::KernelClock;
use crate::event::{Event, Place, Told};
use crate::follow::{Followed, follow};
use crate::mesos::{AgentList, Mesos, PollError, Registry};
use crate::pace::{Haste, LOOKED_AT_MAX, LookedAt, Pace};
use crate::queue::{Queue, STANDBY_DELAY};
use crate::reach::{News, Reach, chain};
use crate::record::{Recorded, Recorder, RecordingError};
use crate::settings::{ActingSettings, Settings};
use crate::view::{NotBelieved, View};

/// Events above those that are kept before the module beside the leading master trims them: one
/// deletion for so many events.
const TRIMMED_AT_ONCE: usize = 100;

const FIRST_WRITE_DELAY: Duration = Duration::from_millis(100);
const LONGEST_WRITE_DELAY: Duration = Duration::from_secs(5);

/// What runs beside the loop has come to its end.
enum Done<S> {
    Registry(Result<Registry, PollError>),
    Written(Result<usize, RecordingError>),
    Trimmed(Result<Option<TrimmedRecord>, RecordingError>),
    Acted(Box<Acting<Arc<S>, KernelClock>>, Acted),
    TriedToMark(Tried),
}

type Work<'s, S> = FuturesUnordered<Pin<Box<dyn Future<Output = Done<S>> + 's>>>;

/// What the loop knows and does.
struct Loop<'s, S> {
    settings: &'s Settings,
    recorder: Arc<Recorder<'s, S>>,
    view: View,
    queue: Queue,
    recorded: Recorded,
    work: Work<'s, S>,
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
    /// What acts, unless a turn of it is under way; `None` for ever when it is not to.
    acting: Option<Box<Acting<Arc<S>, KernelClock>>>,
    act_at: Instant,
    /// Whether the core was told how the agents are listed.
    agents_told: bool,
    /// Agents that Mesos has given up, as was last known while something pressed.
    given_up: BTreeSet<Text>,
    not_believed: NotBelieved,
    haste: Haste,
    /// Whether what presses may have changed.
    look_at_haste: bool,
    /// The agents to look at; none when there is no haste.
    look_at: watch::Sender<LookedAt>,
    exchange: Arc<Exchange<Arc<S>>>,
    marks: Marks,
    master_client: Client,
}

/// Watches until etcd says what cannot be: that is the answer.
pub(crate) async fn watching<S: LeaseStore>(
    store: &Arc<S>,
    mesos: Mesos,
    agents: &Agents,
    settings: &Settings,
) -> StoreError {
    let keys = &settings.keys;
    let prefixes = [keys.events(), keys.standings(), keys.leases(), keys.sessions(), keys.storm()];
    let [mut events, mut standings, mut leases, mut sessions, mut storm] =
        [0, 1, 2, 3, 4].map(|n: usize| follow(&**store, &prefixes[n]));
    let (mut events_read, mut standings_read, mut polled) = (false, false, false);
    let registrar = mesos.registrar();
    let mut state = Loop::new(store, settings, mesos.client());
    let mut rounds = Box::pin(rounds(&**store, mesos, settings, state.look_at.subscribe()));
    let mut probes: Option<Pin<Box<dyn Stream<Item = Vec<Answer>>>>> = None;
    let mut etcd = Reach::new("etcd");
    let mut master = Reach::new("the leading master");
    loop {
        let write_at = state.write_at();
        let act_at = state.act_at();
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
                // Whoever is revoked does not press any more.
                state.look_at_haste |= state.is_in_haste();
                let told = match &followed {
                    Followed::Read(snapshot) => Ok(state.view.read_sessions(snapshot)),
                    Followed::Changed(changes) => Ok(state.view.changed(changes)),
                    Followed::ReadFailed(_) | Followed::WatchEnded(_) => Ok(Vec::new()),
                };
                state.rest(followed, &etcd).and(told)
            }
            Some(followed) = storm.next(), if events_read => {
                let key = keys.storm();
                let told = match &followed {
                    Followed::Read(snapshot) => {
                        state.view.storm(snapshot.entries.get(&key), Seen::ByALaterRead)
                    }
                    Followed::Changed(changes) => changes
                        .iter()
                        .filter_map(|change| match change {
                            Change::Put { key: changed, entry } if *changed == key => Some(entry),
                            Change::Put { .. } | Change::Delete { .. } => None,
                        })
                        .flat_map(|entry| state.view.storm(Some(entry), Seen::AtOnce))
                        .collect(),
                    Followed::ReadFailed(_) | Followed::WatchEnded(_) => Vec::new(),
                };
                state.rest(followed, &etcd).map(|_| told)
            }
            Some(Round { is_ordinary, agents: list, etcd: answer }) = rounds.next() => {
                polled = true;
                say(match &answer {
                    Ok(_) => etcd.answered(),
                    Err(error) => etcd.failed(chain(error)),
                });
                match &list {
                    Ok(_) => say(master.answered()),
                    Err(error) => say(master.failed(chain(error))),
                }
                let told = state.listed(list, is_ordinary);
                if is_ordinary && probes.is_none() {
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
                    state.look_at_haste = true;
                }
                Ok(answers.map(|answers| state.view.answered(answers)).unwrap_or_default())
            }
            Some(done) = state.work.next() => state.done(done),
            () = sleep_until(write_at.unwrap_or_else(Instant::now)), if write_at.is_some() => Ok(Vec::new()),
            () = sleep_until(act_at.unwrap_or_else(Instant::now)), if act_at.is_some() => Ok(Vec::new()),
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
    fn new(store: &'s Arc<S>, settings: &'s Settings, master_client: Client) -> Self {
        let keys = &settings.keys;
        let request = settings.etcd.request_timeout;
        let exchange = Arc::new(Exchange::new(Arc::clone(store), keys.clone(), request, None));
        let acting = settings.acting.as_ref().map(|acting| {
            let ActingSettings { timing, read_interval, reconnect, .. } = *acting;
            Box::new(Acting::new(Arc::clone(&exchange), KernelClock, timing, read_interval, reconnect))
        });
        Self {
            settings,
            acting,
            act_at: Instant::now(),
            agents_told: true,
            given_up: BTreeSet::new(),
            not_believed: NotBelieved::default(),
            haste: Haste::default(),
            look_at_haste: true,
            look_at: watch::Sender::new(LookedAt::new()),
            exchange,
            marks: Marks::default(),
            master_client,
            recorder: Arc::new(Recorder::new(&**store, keys)),
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
                self.look_at_haste = true;
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

    fn listed(&mut self, list: Result<AgentList, PollError>, is_ordinary: bool) -> Vec<Told> {
        self.look_at_haste = true;
        let Ok(AgentList { agents, leader, leading }) = list else {
            (self.leader, self.leading) = (None, false);
            self.agents_told = false;
            return Vec::new();
        };
        (self.leader, self.leading) = (Some(leader), leading);
        self.view.listed(agents);
        // It is as long as the list: in haste it is asked only about those of whom it was not.
        self.registry_wanted |= is_ordinary || self.view.has_new_unlisted();
        self.agents_told = false;
        self.view.polled(None)
    }

    fn done(&mut self, done: Done<S>) -> Result<Vec<Told>, StoreError> {
        match done {
            Done::Registry(answer) => {
                self.registry_asked = false;
                match answer {
                    Ok(registry) => {
                        say(self.registry.answered());
                        self.look_at_haste = true;
                        self.agents_told = false;
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
            Done::Acted(mut acting, Acted { gone, news, corrupt }) => {
                say(news);
                self.act_at = Instant::now() + acting.next_turn();
                self.acting = Some(acting);
                self.mark(gone);
                if let Some(corrupt) = corrupt {
                    return Err(corrupt);
                }
            }
            Done::TriedToMark(tried) => {
                if let Some((Mark { agent_id, holder, epoch, .. }, at)) =
                    self.marks.tried(tried, Instant::now())
                {
                    let event = Event::MarkedGone { holder, epoch, agent_id };
                    let place = Place::Written { at, seen: Seen::AtOnce };
                    return Ok(vec![Told { event, place, logged: true }]);
                }
            }
        }
        Ok(Vec::new())
    }

    fn agents_for_the_core(&mut self) -> reclaimer::Agents {
        let (agents, not_believed) = self.view.agents_for_the_core(self.leader.is_some());
        let before = std::mem::replace(&mut self.not_believed, not_believed);
        let NotBelieved { given_up, inactive } = not_believed;
        if given_up > 0 && before.given_up == 0 {
            error!(
                "the masters have given up {given_up} of the agents whose hosts hold leases, which is more than half: no \
                 session is revoked for it; see whether `master` is right and the masters' registry was lost"
            );
        }
        if inactive > 0 && before.inactive == 0 {
            warn!(
                "{inactive} of the agents whose hosts hold leases are not connected, which is more than half: nothing \
                 is revoked because others wait for it; see the leading master's network"
            );
        }
        agents
    }

    fn mark(&mut self, gone: Vec<Mark>) {
        if self.settings.acting.as_ref().is_some_and(|acting| acting.mark_gone) {
            return self.marks.add(gone);
        }
        for Mark { agent_id, holder, .. } in gone {
            info!("agent {agent_id} of {holder} could be marked gone, which mark_gone=true would do");
        }
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

    /// When the next turn of what acts, or a try to mark an agent gone, is due.
    fn act_at(&self) -> Option<Instant> {
        // Whoever holds leases must be known: who is not there was never waited for, and no storm seen.
        let turn = self.acting.as_ref().filter(|_| self.view.has_leases()).map(|_| self.act_at);
        let mark = self.marks.due(Instant::now()).filter(|_| self.leader.is_some());
        turn.into_iter().chain(mark).min()
    }

    fn is_in_haste(&self) -> bool {
        !self.look_at.borrow().is_empty()
    }

    fn make_haste(&mut self, now: Instant) {
        let wants_changed = self.view.wants_changed();
        if std::mem::take(&mut self.look_at_haste) || wants_changed {
            // Beside a master that does not lead it makes no difference: what follows waits for half a ttl.
            let worth_it = self.leading && self.settings.acting.is_some();
            let pressing = if worth_it { self.view.pressing() } else { Default::default() };
            let look_at = self.haste.look_at(now, pressing);
            self.look_at.send_if_modified(|before| {
                let is_new = *before != look_at;
                *before = look_at;
                is_new
            });
        }
        // What was asked for in haste is not to wait for the next turn.
        if self.is_in_haste() && !self.agents_told {
            let given_up = self.agents_for_the_core().given_up;
            if !given_up.is_subset(&self.given_up) {
                self.act_at = now;
            }
            self.given_up = given_up;
        }
    }

    fn act(&mut self, now: Instant) {
        if now >= self.act_at
            && let Some(holdings) = self.view.holdings()
            && let Some(mut acting) = self.acting.take()
        {
            let agents =
                (!std::mem::replace(&mut self.agents_told, true)).then(|| self.agents_for_the_core());
            let known = Known { holdings, wanted: self.view.wanted(), agents, leading: self.leading };
            self.work.push(Box::pin(async move {
                let acted = acting.turn(&known).await;
                Done::Acted(acting, acted)
            }));
        }
        if let Some(leader) = self.leader.clone()
            && let Some(mark) = self.marks.next(now, |id| self.view.may_be_connected(id))
        {
            let (exchange, client) = (Arc::clone(&self.exchange), self.master_client.clone());
            let patience = self.settings.etcd.request_timeout;
            self.work.push(Box::pin(async move {
                Done::TriedToMark(try_to_mark(&exchange, &client, &leader, patience, &mark).await)
            }));
        }
    }

    /// Begins what is due and not under way.
    fn work_on(&mut self, registrar: &crate::mesos::Registrar) {
        if self.registry_wanted && !self.registry_asked {
            self.registry_wanted = false;
            let unlisted: BTreeSet<_> = self.view.unlisted();
            if let Some(leader) = self.leader.clone().filter(|_| !unlisted.is_empty()) {
                self.registry_asked = true;
                let registrar = registrar.clone();
                let given_up = self.view.given_up().clone();
                let ask =
                    async move { Done::Registry(registrar.registry(&leader, unlisted, &given_up).await) };
                self.work.push(Box::pin(ask));
            }
        }
        let now = Instant::now();
        self.make_haste(now);
        self.act(now);
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
    /// Whether it came at its time, and not in haste.
    is_ordinary: bool,
    agents: Result<AgentList, PollError>,
    /// A linearizable read of one small record. A silent watch proves nothing; this does, and it is
    /// what finds out that etcd was restored from a backup.
    etcd: Result<Revision, StoreError>,
}

struct Rounds<'s, S> {
    store: &'s S,
    cluster: [String; 1],
    mesos: Mesos,
    pace: Pace,
    look_at: watch::Receiver<LookedAt>,
}

impl<S: LeaseStore> Rounds<'_, S> {
    async fn next(&mut self) -> Round {
        let is_ordinary = loop {
            let look_at = self.look_at.borrow_and_update().clone();
            if let Some(due) = self.pace.due(!look_at.is_empty()) {
                tokio::select! {
                    () = sleep_until(due) => {}
                    Ok(()) = self.look_at.changed() => continue,
                }
            }
            let is_ordinary = self.pace.begin(Instant::now());
            if is_ordinary || look_at.len() > LOOKED_AT_MAX || self.see_change(&look_at).await {
                break is_ordinary;
            }
            self.pace.end(Instant::now());
        };
        let (agents, etcd) = tokio::join!(self.mesos.agents(), self.store.get(&self.cluster));
        self.pace.end(Instant::now());
        Round { is_ordinary, agents, etcd: etcd.map(|snapshot| snapshot.revision) }
    }

    /// Whether any of these is listed otherwise by now. That a master does not answer is for a round to tell.
    async fn see_change(&self, look_at: &LookedAt) -> bool {
        let looks = look_at
            .iter()
            .map(|(id, known)| async move { self.mesos.agent(id).await.is_ok_and(|now| now != *known) });
        futures::future::join_all(looks).await.contains(&true)
    }
}

fn rounds<'s, S: LeaseStore>(
    store: &'s S,
    mesos: Mesos,
    settings: &Settings,
    look_at: watch::Receiver<LookedAt>,
) -> impl Stream<Item = Round> + use<'s, S> {
    let pace = Pace::new(settings.poll_interval, settings.hasty_poll_interval);
    let rounds = Rounds { store, cluster: [settings.keys.cluster()], mesos, pace, look_at };
    stream::unfold(rounds, |mut rounds| async {
        let round = rounds.next().await;
        Some((round, rounds))
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
