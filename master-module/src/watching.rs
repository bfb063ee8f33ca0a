//! The loop: what etcd and the leading master say goes into the view, and its events into the log.

use futures::{Stream, StreamExt, stream};
use shared::store::{LeaseStore, StoreError};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::event::Event;
use crate::follow::{Followed, follow};
use crate::mesos::{Agent, Mesos, PollError};
use crate::reach::{News, Reach, chain};
use crate::settings::Settings;
use crate::view::View;

/// Watches until etcd says what cannot be: that is the answer.
pub(crate) async fn watching<S: LeaseStore>(store: &S, mesos: Mesos, settings: &Settings) -> StoreError {
    let keys = &settings.keys;
    let (lease_prefix, session_prefix) = (keys.leases(), keys.sessions());
    let mut leases = follow(store, &lease_prefix);
    let mut sessions = follow(store, &session_prefix);
    let mut rounds = Box::pin(rounds(store, mesos, settings));
    let mut view = View::new(keys.clone());
    let mut etcd = Reach::new("etcd");
    let mut master = Reach::new("the leading master");
    // A read of all records may fail though etcd answers: then that is worth a line of its own.
    let mut reading = Reach::assumed("etcd, which was asked for all records");
    let mut polled = false;
    loop {
        let (events, error) = tokio::select! {
            // Leases are told with how their holders' agents stand. That wants one round of polling,
            // whatever it brings, and the sessions, which name the agents.
            Some(followed) = leases.next(), if polled && view.has_sessions() => match followed {
                Followed::Read(snapshot) => {
                    say(reading.answered());
                    (view.read_leases(&snapshot), None)
                }
                other => rest(&mut view, other, &etcd, &mut reading),
            },
            Some(followed) = sessions.next() => match followed {
                Followed::Read(snapshot) => {
                    say(reading.answered());
                    (view.read_sessions(&snapshot), None)
                }
                other => rest(&mut view, other, &etcd, &mut reading),
            },
            Some(Round { agents, etcd: answer }) = rounds.next() => {
                polled = true;
                say(match &answer {
                    Ok(()) => etcd.answered(),
                    Err(error) => etcd.failed(chain(error)),
                });
                let events = match agents {
                    Ok(agents) => {
                        say(master.answered());
                        view.polled(agents)
                    }
                    Err(error) => {
                        say(master.failed(chain(&error)));
                        Vec::new()
                    }
                };
                (events, answer.err())
            }
        };
        for event in events {
            event.log();
        }
        match error {
            Some(error @ StoreError::Corrupt { .. }) => return error,
            Some(error) => debug!("etcd: {}", chain(&error)),
            None => {}
        }
    }
}

/// What is the same for leases and sessions.
fn rest(
    view: &mut View,
    followed: Followed,
    etcd: &Reach,
    reading: &mut Reach,
) -> (Vec<Event>, Option<StoreError>) {
    match followed {
        Followed::Changed(changes) => (view.changed(&changes), None),
        Followed::ReadFailed(error) => {
            // While etcd does not answer at all, the rounds say so.
            if etcd.answers() {
                say(reading.failed(chain(&error)));
            }
            (Vec::new(), Some(error))
        }
        // Members restart and leaders change; what was missed is told by the next read.
        Followed::WatchEnded(error) => (Vec::new(), Some(error)),
        // Each caller has its own.
        Followed::Read(_) => (Vec::new(), None),
    }
}

/// What is asked for in each round of polling.
struct Round {
    agents: Result<Vec<Agent>, PollError>,
    /// A linearizable read of one small record. A silent watch proves nothing; this does, and it is
    /// what finds out that etcd was restored from a backup.
    etcd: Result<(), StoreError>,
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
        Some((Round { agents, etcd: etcd.map(drop) }, rounds))
    })
}

fn say(news: Option<News>) {
    match news {
        Some(news @ News::Lost { .. }) => warn!("{news}"),
        Some(news) => info!("{news}"),
        None => {}
    }
}
