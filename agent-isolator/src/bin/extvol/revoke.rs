//! `extvol revoke`: a host gives up one volume, or all. Its tasks that use them are ended.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write;

use shared::protocol::exchange::{Commit, Held, Key, Lease, Proof, Record, Session, SessionState};
use shared::protocol::timing::Timing;
use shared::quote;
use shared::record::{Epoch, Token};
use shared::store::{LeaseStore, Revision};
use shared::volume::{ContainerId, Holder, VolumeId};

use crate::arguments::Subject;
use crate::decided::{Decision, Done, Meant, write};
use crate::failure::Failure;
use crate::records::{Everything, Reading, Records};
use crate::sessions::{seconds, state};

/// Longest name of a person or host in a reason.
const NAME_CHARS_MAX: usize = 64;

/// Revokes.
///
/// # Errors
/// When it may not be done, or is not known to be done.
pub(crate) async fn run<S: LeaseStore>(
    out: &mut dyn Write,
    records: &Records<S>,
    subject: &Subject,
    yes: bool,
) -> Result<(), Failure> {
    let subject = match subject {
        Subject::Volume(volume) => Subject::Volume(records.canonical(volume).await?),
        holder @ Subject::Holder(_) => holder.clone(),
    };
    let asked_by = reason(&person(), &host());
    let about = RefCell::new(None);
    let meant = Meant::new();
    let decide = |reading: &Reading| {
        let decision = match &subject {
            Subject::Holder(holder) => of_holder(reading, holder, &asked_by, &meant),
            Subject::Volume(volume) => of_volume(reading, volume, &asked_by, &meant),
        };
        about.replace(concerned(reading, &subject));
        decision
    };
    if !yes {
        return match decide(&records.about(&subject).await?) {
            Decision::Write(_) => {
                let everything = records.everything().await?;
                let what = about.into_inner().map(|c| c.describe(&subject, &everything)).unwrap_or_default();
                Err(Failure::Refused(format!("nothing is written without --yes. With it: {what}")))
            }
            Decision::Already(why) | Decision::Refuse(why) => Err(Failure::Refused(why)),
        };
    }
    let done = write(records, &subject, decide).await?;
    let known = match done {
        Done::Committed(at) => format!("revoked at revision {at}"),
        Done::Seen(at) => format!("revoked; the write had no answer, and a read at revision {at} shows it"),
    };
    // What it concerns is told as it is now; that the write is done does not depend on it.
    let told = match (about.into_inner(), records.everything().await) {
        (Some(concerned), Ok(everything)) => concerned.describe(&subject, &everything),
        (_, Err(failure)) => format!("What it concerns could not be read any more: {failure}"),
        (None, Ok(_)) => String::new(),
    };
    Ok(writeln!(out, "{known}. {}", quote::line(&told))?)
}

/// What is revoked: a holder's epoch, and of one volume its token.
type What = (Holder, Epoch, Option<Token>);

/// Whom a revoke concerns, and with which times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Concerned {
    holder: Holder,
    timing: Timing,
}

fn concerned(reading: &Reading, subject: &Subject) -> Option<Concerned> {
    let holder = match subject {
        Subject::Holder(holder) => holder.clone(),
        Subject::Volume(volume) => reading.view.lease(volume)?.0.held()?.holder.clone(),
    };
    let timing = reading.view.session(&holder)?.0.timing;
    Some(Concerned { holder, timing })
}

impl Concerned {
    /// What follows, and when.
    fn describe(&self, subject: &Subject, everything: &Everything) -> String {
        let mine = |(volume, held): &(&VolumeId, &Held)| match subject {
            Subject::Holder(_) => held.holder == self.holder,
            Subject::Volume(wanted) => *volume == wanted,
        };
        let held =
            everything.leases.iter().filter_map(|(volume, lease)| Some((volume, lease.record.held()?)));
        let held: Vec<_> = held.filter(mine).collect();
        let volumes: Vec<String> = held.iter().map(|(volume, _)| volume.to_string()).collect();
        let mut containers: Vec<&ContainerId> = held.iter().flat_map(|(_, held)| &held.containers).collect();
        containers.sort();
        containers.dedup();
        let containers: Vec<String> = containers.iter().map(ToString::to_string).collect();
        let Self { holder, timing } = self;
        if volumes.is_empty() {
            return format!(
                "{holder} holds no volume; it takes none in this session, and notices when it next wants one"
            );
        }
        let whom = match containers.len() {
            0 => "no container uses them".to_owned(),
            1 => format!("container {} is told to end", containers[0]),
            more => format!("{more} containers are told to end ({})", containers.join(", ")),
        };
        let all = if matches!(subject, Subject::Holder(_)) { "takes no new volume, and " } else { "" };
        format!(
            "{holder} notices with its next beat (every {}), {all}gives up {}: {whom}; after the grace that its keeper \
             was given what still runs is killed, and {} after that (its time K) the host is fenced if anything still \
             does, or if nothing was given back for as long; for one volume alone, if that is not given back in the \
             settle time and 2 min more. Each lease is free once its device \
             is idle: `extvol leases`, `extvol events --follow`",
            seconds(timing.beat),
            volumes.join(", "),
            seconds(timing.kill),
        )
    }
}

fn of_holder(reading: &Reading, holder: &Holder, reason: &str, meant: &Meant<What>) -> Decision {
    let Some((session, at)) = reading.view.session(holder) else {
        return Decision::Refuse(format!(
            "there is no session of a holder {holder}; `extvol sessions` lists all"
        ));
    };
    if !meant.is((holder.clone(), session.epoch, None)) {
        return Decision::Refuse(format!(
            "{holder} has opened epoch {} since this began; if that is to be revoked too, run this again",
            session.epoch
        ));
    }
    if let Err(refused) = may_be_revoked(reading, holder, session) {
        return refused;
    }
    let session = revoking(session, reason);
    let commit = Commit::new(&reading.view.cluster);
    Decision::Write(commit.put(Key::Session(holder.clone()), at, Record::Session(session)))
}

fn revoking(session: &Session, reason: &str) -> Session {
    Session { state: SessionState::Revoking, reason: Some(reason.into()), ..session.clone() }
}

/// The lease says so, and the session is rewritten as it is, so that the next beat is refused and tells.
fn of_volume(reading: &Reading, volume: &VolumeId, reason: &str, meant: &Meant<What>) -> Decision {
    let view = &reading.view;
    let (held, lease_at) = match view.lease(volume) {
        Some((Lease::Held(held), at)) => (held, at),
        Some((Lease::Free { last_holder, .. }, _)) => {
            let last = last_holder.as_ref().map(|last| format!("; {last} held it last")).unwrap_or_default();
            return Decision::Refuse(format!("volume {volume} is not held by anybody{last}"));
        }
        None => return Decision::Refuse(format!("volume {volume} is not held by anybody")),
    };
    let holder = &held.holder;
    if !meant.is((holder.clone(), held.epoch, Some(token(held, lease_at)))) {
        return Decision::Refuse(format!(
            "volume {volume} has been taken since this began, by {holder} (epoch {}); if that is to be revoked too, \
             run this again",
            held.epoch
        ));
    }
    let Some((session, at)) = view.session(holder) else {
        return Decision::Refuse(format!(
            "volume {volume} is held by {holder}, whose session is missing: nobody is there to tell. A master module \
             declares it dead after 60 s, and then the volume can be taken over"
        ));
    };
    if session.epoch > held.epoch {
        return Decision::Refuse(format!(
            "volume {volume} is held by epoch {} of {holder}, which is over (it has epoch {} now): it can be taken over \
             already{}",
            held.epoch,
            session.epoch,
            unless_required(volume, holder)
        ));
    }
    if session.epoch < held.epoch {
        return Decision::Refuse(format!(
            "volume {volume} is held by epoch {} of {holder}, whose session has only epoch {}: no part of this \
             software writes that. Was etcd restored from a backup?",
            held.epoch, session.epoch
        ));
    }
    if let Some(why) = &held.revoked {
        return Decision::Already(format!("volume {volume} of {holder} is revoked already: {why}"));
    }
    if let Err(refused) = may_be_revoked(reading, holder, session) {
        return match refused {
            Decision::Already(why) => Decision::Refuse(format!("all volumes of {holder} are: {why}")),
            other => other,
        };
    }
    let revoked = held.revoked(lease_at, reason);
    Decision::Write(
        Commit::new(&view.cluster)
            .put(Key::Lease(volume.clone()), lease_at, Record::Lease(Lease::Held(revoked)))
            .put(Key::Session(holder.clone()), at, Record::Session(session.clone())),
    )
}

/// The granting write does not say the token: it is that write's revision.
fn token(held: &Held, at: Revision) -> Token {
    held.token.unwrap_or(Token(at))
}

fn may_be_revoked(reading: &Reading, holder: &Holder, session: &Session) -> Result<(), Decision> {
    let epoch = session.epoch;
    match session.state {
        SessionState::Dead(_) => {
            let (_, proof) = state(session.state);
            let unless = match session.state {
                SessionState::Dead(Proof::Time) => unless_required(&"DRIVER/NAME", holder),
                _ => String::new(),
            };
            Err(Decision::Refuse(format!(
                "the session of {holder} (epoch {epoch}) is dead (proof: {}): what it held can be taken over already{unless}",
                proof.unwrap_or("none"),
            )))
        }
        SessionState::Revoking => {
            let why = session.reason.as_deref().unwrap_or("no reason was given");
            Err(Decision::Already(format!(
                "the session of {holder} (epoch {epoch}) is revoked already: {why}"
            )))
        }
        SessionState::Live if reading.without_beats.contains(holder) => Err(Decision::Refuse(format!(
            "the keeper of {holder} is of a release that does not beat, and would not notice: end the tasks that use \
             its volumes, or upgrade that keeper first"
        ))),
        SessionState::Live => Ok(()),
    }
}

/// What stands in the way of taking over what a host held that did not prove its end.
fn unless_required(volume: &dyn Display, holder: &Holder) -> String {
    format!(
        "; under fencing=required only where its storage takes it away: else detach it there, and run \
         `extvol free {volume} --detached {holder}`"
    )
}

fn reason(person: &str, host: &str) -> String {
    format!("an operator asked for it ({}@{})", plain(person), plain(host))
}

/// For a record that others print: bounded, and without what moves a terminal's cursor.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

/// Who asks: behind sudo the one who called it.
fn person() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let named = named.filter(|name| !name.is_empty());
    named.unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()))
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use shared::memory::CommitFault;
    use shared::protocol::exchange::Stage;
    use shared::volume::Driver;

    use super::*;
    use crate::fixture::{Fixture, held, holder, volume};
    use crate::sessions::tests::session;

    async fn revoke(fixture: &Fixture, subject: &Subject, yes: bool) -> Result<String, Failure> {
        let mut out = Vec::new();
        run(&mut out, &fixture.records, subject, yes).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn one() -> Subject {
        Subject::Volume(volume("v"))
    }

    fn all() -> Subject {
        Subject::Holder(holder("a"))
    }

    #[tokio::test]
    async fn what_a_keeper_writes_in_between_is_kept_and_revoked_with_it() {
        let fixture = Fixture::holding();
        let detaching = Held { stage: Stage::Detaching, ..held() };
        fixture.race(1, &Key::Lease(volume("v")), &Record::Lease(Lease::Held(detaching)));
        revoke(&fixture, &one(), true).await.unwrap();
        let Some(Record::Lease(Lease::Held(now))) = fixture.stored(&Key::Lease(volume("v"))) else {
            panic!()
        };
        assert_eq!((now.stage, now.token), (Stage::Detaching, held().token));
        assert!(now.revoked.unwrap().starts_with("an operator asked for it ("));
    }

    #[tokio::test]
    async fn a_volume_that_is_taken_in_between_is_not_revoked_from_the_taker() {
        for fault in [None, Some(CommitFault::UnknownNotDone)] {
            for taken in [
                Held { holder: holder("b"), ..held() },
                Held { token: Some(Token(Revision(99))), ..held() },
                Held { epoch: Epoch(4), ..held() },
            ] {
                let fixture = Fixture::holding();
                fixture.put(&Key::Session(holder("b")), &Record::Session(session()));
                fault.into_iter().for_each(|fault| fixture.store.fail_next_commit(fault));
                fixture.race(1, &Key::Lease(volume("v")), &Record::Lease(Lease::Held(taken.clone())));
                let error = revoke(&fixture, &one(), true).await.unwrap_err();
                assert_eq!(error.exit_code(), 1);
                assert!(error.to_string().contains("has been taken since this began"), "{error}");
                assert_eq!(error.to_string().contains("cannot happen any more"), fault.is_some(), "{error}");
                let lease = fixture.stored(&Key::Lease(volume("v")));
                assert_eq!(lease, Some(Record::Lease(Lease::Held(taken))));
            }
        }
    }

    #[tokio::test]
    async fn a_host_that_opens_its_next_epoch_in_between_is_not_revoked_in_that() {
        let fixture = Fixture::holding();
        let next = Record::Session(Session { epoch: Epoch(4), ..session() });
        fixture.race(1, &Key::Session(holder("a")), &next);
        let error = revoke(&fixture, &all(), true).await.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("a has opened epoch 4 since this began"), "{error}");
        assert_eq!(fixture.stored(&Key::Session(holder("a"))), Some(next));
    }

    #[tokio::test]
    async fn what_follows_and_when_is_told_before_and_after() {
        let fixture = Fixture::holding();
        let before = fixture.revision();
        let error = revoke(&fixture, &all(), false).await.unwrap_err();
        assert_eq!((error.exit_code(), fixture.revision()), (1, before));
        let follows = "a notices with its next beat (every 1 s), takes no new volume, and gives up ebs/v: \
                       2 containers are told to end (c1, c2); after the grace that its keeper was given what still \
                       runs is killed, and 3 s after that (its time K) the host is fenced";
        assert!(error.to_string().starts_with("nothing is written without --yes. With it: "), "{error}");
        assert!(error.to_string().contains(follows), "{error}");
        let said = revoke(&fixture, &all(), true).await.unwrap();
        assert!(said.starts_with("revoked at revision ") && said.contains(follows), "{said}");
        let idle = Fixture::new();
        idle.put(&Key::Session(holder("a")), &Record::Session(session()));
        let said = revoke(&idle, &all(), true).await.unwrap();
        assert!(said.contains("a holds no volume"), "{said}");
    }

    #[tokio::test]
    async fn what_may_not_be_revoked_is_refused_with_the_reason_and_nothing_is_written() {
        let dead = |proof| Session { state: SessionState::Dead(proof), ..session() };
        let revoking = Session { state: SessionState::Revoking, reason: Some("so".into()), ..session() };
        let put = |record: Session| {
            let fixture = Fixture::holding();
            fixture.put(&Key::Session(holder("a")), &Record::Session(record));
            fixture
        };
        let with = |lease: Option<Lease>| {
            let fixture = Fixture::holding();
            match lease {
                Some(lease) => fixture.put(&Key::Lease(volume("v")), &Record::Lease(lease)),
                None => fixture.delete(&Key::Lease(volume("v"))),
            }
            fixture
        };
        let missing = Fixture::holding();
        missing.delete(&Key::Session(holder("a")));
        let old = Fixture::holding();
        old.put_old_session("a", "live");
        let free = Lease::Free { last_holder: Some(holder("a")), owed: None };
        let alone = Lease::Held(Held { revoked: Some("so".into()), ..held() });
        for (fixture, subject, words) in [
            (
                put(dead(Proof::Time)),
                all(),
                "is dead (proof: time): what it held can be taken over already; under fencing=required only where its \
                 storage takes it away: else detach it there, and run `extvol free DRIVER/NAME --detached a`",
            ),
            (
                put(dead(Proof::Fenced)),
                one(),
                "is dead (proof: fenced): what it held can be taken over already",
            ),
            (put(revoking.clone()), all(), "is revoked already: so"),
            (put(revoking), one(), "all volumes of a are: the session of a (epoch 3) is revoked already: so"),
            (put(Session { epoch: Epoch(4), ..session() }), one(), "run `extvol free ebs/v --detached a`"),
            (put(Session { epoch: Epoch(2), ..session() }), one(), "Was etcd restored from a backup?"),
            (with(Some(free)), one(), "ebs/v is not held by anybody; a held it last"),
            (with(None), one(), "ebs/v is not held by anybody"),
            (with(Some(alone)), one(), "volume ebs/v of a is revoked already: so"),
            (missing, one(), "a, whose session is missing"),
            (Fixture::new(), all(), "there is no session of a holder a"),
        ] {
            let before = fixture.revision();
            for yes in [false, true] {
                let error = revoke(&fixture, &subject, yes).await.unwrap_err();
                assert_eq!(error.exit_code(), 1, "{error}");
                assert!(error.to_string().contains(words), "{error}");
            }
            assert_eq!(fixture.revision(), before, "{words}");
        }
        let before = old.revision();
        for subject in [one(), all()] {
            let error = revoke(&old, &subject, true).await.unwrap_err().to_string();
            assert!(error.contains("of a release that does not beat, and would not notice"), "{error}");
        }
        assert_eq!(old.revision(), before);
    }

    #[tokio::test]
    async fn a_volume_may_be_named_as_its_tasks_name_it() {
        let fixture = Fixture::holding();
        fixture.found_with_alias("c1", "rexray", "ebs");
        let named = Subject::Volume(VolumeId { driver: Driver::new("rexray").unwrap(), ..volume("V") });
        let said = revoke(&fixture, &named, true).await.unwrap();
        assert!(said.contains("gives up ebs/v"), "{said}");
    }

    #[test]
    fn the_reason_names_person_and_host_and_is_bounded() {
        assert_eq!(reason("ada", "ops-1"), "an operator asked for it (ada@ops-1)");
        let long = reason(&"a\u{1b}".repeat(500), "h");
        assert_eq!(long.chars().count(), reason("", "h").chars().count() + NAME_CHARS_MAX);
    }
}
