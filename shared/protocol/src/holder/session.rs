//! The session: opening an epoch, beats, what a refused beat means, dying.

use std::collections::BTreeSet;

use super::write_queue::{Doing, InFlight};
use super::{Core, OpenEpoch, Output, Settings};
use crate::exchange::{ByTime, ClusterId, Commit, Key, Outcome, Proof, Record, Session, SessionState, View};
use crate::ids::Epoch;
use crate::ids::Revision;
use crate::timing::{RATE_ERROR, TTL_MAX, Timing};
use crate::{Now, Op, Text};

/// Where a holder is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// No epoch is open: whoever has the name is waited for, what an older life left is made safe.
    Closed {
        /// Another's silence, as long as it lasts.
        silence: Option<Silence>,
        /// How far this host is safe.
        safety: Safety,
    },
    /// An epoch is open, live or revoking.
    Open,
    /// It was revoked and has released everything, and its end is being written. Whatever the answer, it is over.
    Dying,
    /// The host is being fenced; no number while a failed fence waits to be tried again.
    Fencing {
        /// The effect.
        op: Option<Op>,
    },
    /// Somebody else uses this holder's name: this worker opens nothing any more.
    Refused,
}

impl Life {
    pub(super) const CLOSED: Self = Self::Closed { silence: None, safety: Safety::Unproved };
}

/// A session under this name that another machine owns, or that is missing: nothing but its silence
/// tells that it is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Silence {
    pub(crate) session: Revision,
    pub(crate) beat: Revision,
    pub(crate) since: Now,
}

/// Whether everything of an older life of this host has ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Safety {
    /// Not known.
    Unproved,
    /// It is being ended.
    Making(Op),
    /// Proved, by mount tables and O_EXCL.
    Proved,
}

/// The present epoch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mine {
    pub(crate) record: Session,
    /// The revision of the session that everything this holder writes compares (L1).
    pub(crate) at: Revision,
    /// Since when it is known to be revoked, or has given a lease back after that.
    pub(crate) revoking: Option<Now>,
}

/// A beat under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Beat {
    pub(crate) op: Op,
    pub(crate) sent: Now,
    /// The revisions of session and store when it was sent.
    pub(crate) against: Revision,
    pub(crate) seen: Revision,
}

impl Mine {
    /// An epoch known from the table alone: its session is read and rewritten before anything else.
    pub(super) fn adopted(settings: &Settings, open: &OpenEpoch) -> Self {
        let OpenEpoch { epoch, timing, by_time, .. } = *open;
        let record = Session { timing, by_time, ..session(settings, epoch) };
        Self { record, at: Revision::ABSENT, revoking: None }
    }

    pub(super) fn open((mine, cluster): (&Self, ClusterId)) -> OpenEpoch {
        OpenEpoch { cluster, epoch: mine.epoch(), timing: mine.timing(), by_time: mine.record.by_time }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.record.epoch
    }

    pub(super) fn timing(&self) -> Timing {
        self.record.timing
    }
}

fn session(settings: &Settings, epoch: Epoch) -> Session {
    Session {
        epoch,
        instance: settings.instance.clone(),
        state: SessionState::Live,
        machine: settings.machine.clone(),
        boot: settings.boot.clone(),
        agent: None,
        timing: settings.timing,
        by_time: settings.by_time,
        means: settings.means.clone(),
        unproved: None,
        unsettled_through: Epoch(0),
        wants: BTreeSet::new(),
        reason: None,
        since: None,
    }
}

impl Core {
    /// Whether an epoch is open here, live or revoking.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.life, Life::Open)
    }

    pub(super) fn progress_session(&mut self, now: Now) {
        if matches!(self.in_flight, InFlight::Pause { until } if until <= now) {
            self.in_flight = InFlight::Idle;
        }
        self.start_check(now);
        if self.in_flight == InFlight::Idle {
            self.live_on(now);
        }
        // Last: what came before may have ended the session, or the need for it.
        self.start_beat(now);
    }

    fn live_on(&mut self, now: Now) {
        match self.life {
            Life::Closed { safety: Safety::Making(_), .. }
            | Life::Fencing { op: Some(_) }
            | Life::Refused => {}
            Life::Closed { .. } => self.send_read(self.own(), Doing::OpenRead),
            Life::Fencing { op: None } => {
                let op = self.op();
                self.life = Life::Fencing { op: Some(op) };
                self.outputs.push_back(Output::MakeSafe { op });
            }
            Life::Dying => self.die(),
            Life::Open => self.step(now),
        }
    }

    // --- opening ---------------------------------------------------------------------------------

    /// Decides what etcd's records of this holder mean for one who wants to open an epoch (L7).
    pub(super) fn opening(&mut self, now: Now, view: &View) {
        let Life::Closed { silence, safety } = &self.life else { return };
        let (silence, safety) = (silence.clone(), safety.clone());
        let me = &self.settings.holder;
        let found = view.session(me);
        let at = found.map_or(Revision::ABSENT, |(_, at)| at);
        let epochs = view.held().filter(|(_, held, _)| held.holder == *me).map(|(_, held, _)| held.epoch);
        let highest = epochs.max();
        let beat = view.at(&Key::Beat(me.clone()));
        let wait = match found {
            None => highest.map(|_| Ok(TTL_MAX + TTL_MAX * 2 / RATE_ERROR)),
            Some((session, _)) if matches!(session.state, SessionState::Dead(_)) => None,
            Some((session, _)) if session.machine == self.settings.machine => None,
            Some((session, _)) if session.by_time == ByTime::Allowed && session.timing.fences_in_time() => {
                Some(Ok(session.timing.reclaim_span()))
            }
            Some((session, _)) => Some(Err(session.machine.clone())),
        };
        let mut compared_beat = None;
        if let Some(wait) = wait {
            let span = match wait {
                Ok(span) => span,
                Err(machine) => return self.obstruct(now, format!(
                    "the holder name {me} belongs to machine {machine}, whose session never ends by silence"
                )),
            };
            match &silence {
                Some(silence) if silence.session == at && silence.beat == beat => {
                    let ends = silence.since + span;
                    if now < ends {
                        self.in_flight = InFlight::Pause { until: ends.min(now + self.settings.timing.beat) };
                        return;
                    }
                    compared_beat = Some(beat);
                }
                known => {
                    // It beats, or was rewritten: as long as it does, this host gets no session.
                    self.obstacle = match known {
                        Some(_) => format!(
                            "the holder name {me} is used by another machine, which is alive; give this host a \
                             name of its own with the parameter `holder`"
                        ),
                        None => format!("waiting whether another machine with the holder name {me} is alive"),
                    }
                    .into();
                    self.outputs.push_back(Output::Warn(self.obstacle.clone()));
                    let silence = Some(Silence { session: at, beat, since: now });
                    self.life = Life::Closed { silence, safety };
                    self.in_flight = InFlight::Pause { until: now + self.settings.timing.beat };
                    return;
                }
            }
        }
        if safety != Safety::Proved {
            let op = self.op();
            self.life = Life::Closed { silence, safety: Safety::Making(op) };
            return self.outputs.push_back(Output::MakeSafe { op });
        }
        let last = found.map_or(Epoch(0), |(session, _)| session.epoch).max(highest.unwrap_or(Epoch(0)));
        // Being safe is proved of this machine alone: of another it is known only if that proved it.
        let unsettled_through = match found.map(|(session, _)| session) {
            Some(before) if before.machine == self.settings.machine => before.unsettled_through,
            Some(before) if matches!(before.state, SessionState::Dead(Proof::Unmounted | Proof::Fenced)) => {
                before.unsettled_through
            }
            _ => last,
        };
        let agent = self.agent.clone();
        let wants = self.wants();
        let Some(epoch) = last.0.checked_add(1).map(Epoch) else {
            return self
                .obstruct(now, format!("etcd has epoch {last} of holder {me}, after which there is none"));
        };
        let record = Session { agent, unsettled_through, wants, ..session(&self.settings, epoch) };
        let record = self.with_word(record);
        let key = Key::Session(me.clone());
        let mut commit = Commit::new(&view.cluster).put(key, at, Record::Session(record.clone()));
        if let Some(beat) = compared_beat {
            commit = commit.unchanged(Key::Beat(me.clone()), beat);
        }
        self.send_commit(commit, Doing::OpenWrite(Box::new(record)));
    }

    fn obstruct(&mut self, now: Now, why: String) {
        self.obstacle = why.into();
        self.outputs.push_back(Output::Warn(self.obstacle.clone()));
        self.in_flight = InFlight::Pause { until: now + self.settings.retry.1 };
    }

    /// The epoch is open.
    pub(super) fn opened(&mut self, record: Session, at: Revision) {
        self.mine = Some(Mine { record, at, revoking: None });
        self.life = Life::Open;
        // This host was made safe since: the next worker may adopt what this one opened.
        self.refused = None;
        self.close();
        self.extended = None;
        self.table_changed = true;
        self.outputs.push_back(Output::Reset);
    }

    /// Everything of an older life has ended, or could not be proved to have.
    pub(super) fn safe(&mut self, now: Now, op: Op, result: Result<(), Text>) {
        match &self.life {
            Life::Closed { safety: Safety::Making(making), .. } if *making == op => {}
            Life::Fencing { op: Some(fencing) } if *fencing == op => {}
            _ => return,
        }
        if let Err(why) = result {
            let why: Text = format!("this host cannot be made safe, and gets no session: {why}").into();
            self.outputs.push_back(Output::Warn(why.clone()));
            self.obstacle = why;
            self.in_flight = InFlight::Pause { until: now + self.settings.retry.1 };
            match &mut self.life {
                Life::Closed { safety, .. } => *safety = Safety::Unproved,
                life => *life = Life::Fencing { op: None },
            }
            return;
        }
        // Prepares that came in meanwhile wait on: nothing was begun for them.
        self.volumes.clear();
        self.lost = false;
        let waiting = &self.waiting;
        self.containers.retain(|container| waiting.contains_key(container));
        self.table_changed = true;
        match &mut self.life {
            Life::Closed { safety, .. } => *safety = Safety::Proved,
            life if self.refused.is_some() => *life = Life::Refused,
            // The next epoch says that this one was made safe, and gives its volumes back through their drivers. To be
            // dead instead would leave them attached here, and to others.
            life => {
                self.mine = None;
                *life = Life::Closed { silence: None, safety: Safety::Proved };
            }
        }
    }

    // --- beats -----------------------------------------------------------------------------------

    pub(super) fn wants_beat(&self) -> bool {
        let known = self.mine.as_ref().is_some_and(|mine| mine.at != Revision::ABSENT);
        self.is_open() && known && self.armed() && self.guarded
    }

    fn start_beat(&mut self, now: Now) {
        if !self.wants_beat() || self.beat.is_some() || self.next_beat > now {
            return;
        }
        let (Some(mine), Some(cluster)) = (&self.mine, &self.cluster) else { return };
        let commit = Commit::beat(cluster, &self.settings.holder, mine.at);
        let against = mine.at;
        let op = self.op();
        self.beat = Some(Beat { op, sent: now, against, seen: self.highest });
        self.outputs.push_back(Output::Commit { op, commit });
    }

    /// Takes in the answer of the beat under way.
    pub(super) fn beat_answered(&mut self, now: Now, beat: &Beat, outcome: Outcome) {
        let Some(mine) = &self.mine else { return };
        let timing = mine.timing();
        match outcome {
            Outcome::Done(at) => {
                self.beat_got_through(beat.sent, at);
                self.saw(at, beat.seen);
            }
            // This holder has rewritten its session since: the beat goes out again against that.
            Outcome::Conflict(_) if beat.against != mine.at => self.next_beat = now,
            Outcome::Conflict(view) => {
                self.next_beat = now + timing.beat / 4;
                if view.is_none_or(|view| self.believes(&view, beat.seen) && self.learn(now, &view)) {
                    // One of the leases alone may be revoked.
                    self.check = Some(now);
                }
            }
            Outcome::Unknown | Outcome::NotSent => self.next_beat = now + timing.beat / 4,
        }
    }

    /// A beat is known to stand in etcd. It counts from its sending: a reclaimer may have read it right after (L12).
    pub(super) fn beat_got_through(&mut self, sent: Now, at: Revision) {
        let Some(mine) = &self.mine else { return };
        self.next_beat = self.next_beat.max(sent + mine.timing().beat);
        self.beaten = self.beaten.max(Some(sent));
        self.beat_at = self.beat_at.max(at);
        self.fault = None;
    }

    // --- what etcd says of this session ----------------------------------------------------------

    /// A revision that etcd showed for a request sent when `before` was the highest. A lower one means that
    /// etcd was restored from a backup, and may have given our leases to others.
    pub(super) fn saw(&mut self, at: Revision, before: Revision) -> bool {
        if self.is_open() && at < before {
            self.fence("etcd's revision has gone back: it was restored from a backup");
            return false;
        }
        self.highest = self.highest.max(at);
        true
    }

    /// Whether `view` is of the installation that this epoch was opened in.
    pub(super) fn same_cluster(&mut self, id: &ClusterId) -> bool {
        let same = self.cluster.as_ref().is_none_or(|known| known == id);
        if !same && self.is_open() {
            self.fence("etcd has another installation's id: it was restored from a backup");
        }
        same
    }

    /// Reads this holder's own session: why a beat was refused, or whether a barrier may be written (L15).
    /// Answers whether the epoch goes on.
    pub(super) fn learn(&mut self, now: Now, view: &View) -> bool {
        let Some(mine) = &mut self.mine else { return false };
        let (machine, boot) = (&self.settings.machine, &self.settings.boot);
        if let Some(why) = view.unreadable.get(&Key::Session(self.settings.holder.clone())) {
            // No beat gets through while it is so: this host is fenced in time, unless a person puts it right.
            self.fault = Some(format!("this host's session cannot be read: {why}").into());
            self.in_flight = InFlight::Pause { until: now + self.settings.retry.0 };
            return false;
        }
        match view.session(&self.settings.holder) {
            Some((session, at)) if session.epoch == mine.epoch() && session.machine == *machine => {
                if let SessionState::Dead(_) = session.state {
                    let reason = session.reason.as_deref().unwrap_or("it was silent for too long");
                    let why = format!("its session was declared dead: {reason}");
                    // It is dead already: there is nothing to write at the end.
                    self.fence(&why);
                    self.mine = None;
                    return false;
                }
                if session.boot != *boot {
                    self.refuse("its session is of another boot of this machine");
                    return false;
                }
                if at > mine.at {
                    (mine.record, mine.at) = (session.clone(), at);
                }
                if session.state == SessionState::Revoking && mine.revoking.is_none() {
                    mine.revoking = Some(now);
                }
                return true;
            }
            Some((session, _)) if session.epoch < mine.epoch() => {
                self.fence("etcd has an older epoch of this host: it was restored from a backup");
            }
            Some((session, _)) => {
                let why = format!(
                    "its session is now epoch {} of machine {}: somebody else uses the holder name {}",
                    session.epoch, session.machine, self.settings.holder
                );
                self.refuse(&why);
            }
            None => self.refuse("its session record is gone from etcd"),
        }
        false
    }

    /// Somebody else uses this name, or did away with the session: fence, and adopt nothing. The next worker opens an
    /// epoch as on a host that is new: made safe, and under another machine's name only once that is silent.
    fn refuse(&mut self, why: &str) {
        self.fence(why);
        self.refused = Some(why.into());
        self.mine = None;
        self.outputs.push_back(Output::Warn(
            format!("no session is opened before this host was made safe: {why}").into(),
        ));
    }

    // --- the end ---------------------------------------------------------------------------------

    fn die(&mut self) {
        let (Some(mine), Some(cluster)) = (&self.mine, &self.cluster) else {
            self.life = Life::CLOSED;
            return;
        };
        let record = Session { state: SessionState::Dead(Proof::Unmounted), ..mine.record.clone() };
        let key = Key::Session(self.settings.holder.clone());
        let commit = Commit::new(cluster).put(key, mine.at, Record::Session(record));
        self.send_commit(commit, Doing::Die);
    }
}
