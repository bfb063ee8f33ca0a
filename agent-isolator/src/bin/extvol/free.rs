//! `extvol free`: a lease of a host that is lost becomes free, once a person has detached its volume.
//!
//! For installations whose storage cannot take a volume away from a host (`fencing_required` refuses the
//! take-over there). That a session was declared dead by time says that its processes cannot write any more;
//! it says nothing of I/O that the block layer has, of a host that did not run, or of a driver's call that is
//! still under way (L19, L20). The person vouches for those by naming the host with `--detached`; without it nothing
//! is written, and a volume that another host has taken meanwhile is not meant.

use std::io::Write;
use std::time::Duration;

use shared::protocol::exchange::{Commit, Key, Lease, Owed, Proof, Record, SessionState, View};
use shared::quote;
use shared::record::{Epoch, Token};
use shared::store::{LeaseStore, Revision};
use shared::volume::{Holder, VolumeId};

use crate::arguments::Subject;
use crate::decided::{Decision, Done, Meant, write};
use crate::failure::Failure;
use crate::records::{Reading, Records};
use crate::sessions::{seconds, state};

/// Frees a lease.
///
/// # Errors
/// When it may not be done, or is not known to be done.
pub(crate) async fn run<S: LeaseStore>(
    out: &mut dyn Write,
    records: &Records<S>,
    volume: &VolumeId,
    detached_from: Option<&Holder>,
    settle: Duration,
) -> Result<(), Failure> {
    let volume = records.canonical(volume).await?;
    let subject = Subject::Volume(volume.clone());
    let meant = Meant::new();
    let Some(from) = detached_from else {
        let reading = records.about(&subject).await?;
        return match decide(&reading, &volume, None, &meant) {
            Decision::Write(_) => {
                let holder = match reading.view.lease(&volume) {
                    Some((Lease::Held(held), _)) => Some(&held.holder),
                    Some((Lease::Free { owed: Some(owed), .. }, _)) => owed.from.first(),
                    _ => None,
                };
                let holder = holder.map(ToString::to_string).unwrap_or_default();
                Err(Failure::Refused(format!(
                    "nothing is written without `--detached {holder}`. With it you say that you made sure of this: the \
                     storage has detached {volume} from {holder}; {holder} is off, or cannot reach the storage; and no \
                     call of its driver can still land, for which {} must have passed since it was lost (the \
                     parameter settle_time)",
                    seconds(settle)
                )))
            }
            Decision::Already(why) | Decision::Refuse(why) => Err(Failure::Refused(why)),
        };
    };
    let done = write(records, &subject, |reading| decide(reading, &volume, Some(from), &meant)).await?;
    let known = match done {
        Done::Committed(at) => format!("volume {volume} is free since revision {at}, and not owed by {from}"),
        Done::Seen(at) => {
            format!("volume {volume} is free; the write had no answer, and a read at revision {at} shows it")
        }
    };
    let known = quote::line(&known);
    Ok(writeln!(out, "{known}: the next task that names it can start on any host")?)
}

/// `from` is the host from which the person has detached the volume, once that is said.
fn decide(
    reading: &Reading,
    volume: &VolumeId,
    from: Option<&Holder>,
    meant: &Meant<(Holder, Epoch, Token)>,
) -> Decision {
    let view = &reading.view;
    let (held, at) = match view.lease(volume) {
        Some((Lease::Held(held), at)) => (held, at),
        Some((Lease::Free { last_holder, owed: Some(owed) }, at)) => {
            return paid(view, volume, (last_holder.clone(), owed.clone(), at), from, meant);
        }
        Some((Lease::Free { owed: None, .. }, _)) | None => {
            return Decision::Already(format!(
                "volume {volume} is free already: nobody has it, and nobody owes it"
            ));
        }
    };
    let (holder, epoch) = (&held.holder, held.epoch);
    let refuse =
        |why: String| Decision::Refuse(format!("volume {volume} is held by {holder} (epoch {epoch}), {why}"));
    if let Some(from) = from
        && held.owed.as_ref().is_some_and(|owed| owed.from.contains(from))
        && from != holder
    {
        return refuse(format!(
            "which tries to mount it: once it is detached from {from} that succeeds, and nothing has to be freed"
        ));
    }
    if from.is_some_and(|from| from != holder) {
        return refuse("and not by the host that you name: detach it from the one that has it".into());
    }
    if !meant.is((holder.clone(), epoch, held.token.unwrap_or(Token(at)))) {
        return refuse("and that only since this began: it has to be detached anew".into());
    }
    let Some((session, session_at)) = view.session(holder) else {
        return refuse(
            "whose session is missing: a master module declares it dead after 60 s; run this again then"
                .into(),
        );
    };
    let over = session.epoch > epoch;
    if session.epoch < epoch {
        return refuse(format!(
            "whose session has only epoch {}: no part of this software writes that. Was etcd restored from a backup?",
            session.epoch
        ));
    }
    match session.state {
        _ if over => {}
        SessionState::Dead(Proof::Time) => {}
        SessionState::Dead(_) => {
            let (_, proof) = state(session.state);
            let proof = proof.unwrap_or_default();
            return refuse(format!(
                "whose session is dead with the proof {proof:?}: it can be taken over already, nothing has to be freed"
            ));
        }
        SessionState::Live => {
            return refuse(format!(
                "whose session is live: `extvol revoke {volume}` makes it give the volume up"
            ));
        }
        SessionState::Revoking => {
            return refuse(
                "whose session is being revoked: wait until it has given the volume up, or is dead".into(),
            );
        }
    }
    // What others owe besides stays owed.
    let owed = held.owed.clone().and_then(|owed| owed.without(holder));
    Decision::Write(
        freed(view, volume, at, Some(holder.clone()), owed)
            // The judgement rests on it: a session that was opened again in between takes its leases itself.
            .unchanged(Key::Session(holder.clone()), session_at),
    )
}

/// A free lease that a host still owes: the person has detached the volume there.
fn paid(
    view: &View,
    volume: &VolumeId,
    (last_holder, owed, at): (Option<Holder>, Owed, Revision),
    from: Option<&Holder>,
    meant: &Meant<(Holder, Epoch, Token)>,
) -> Decision {
    let hosts = owed.hosts();
    let Some(from) = from.or_else(|| owed.from.first()).filter(|from| owed.from.contains(*from)) else {
        return Decision::Refuse(format!(
            "volume {volume} is free, and may still be attached to {hosts}, and not to the host that you name"
        ));
    };
    // Hosts that try to mount it rewrite the lease again and again.
    if !meant.is((from.clone(), Epoch(0), Token(Revision::ABSENT))) {
        return Decision::Refuse(format!("volume {volume} is free only since this began"));
    }
    Decision::Write(freed(view, volume, at, last_holder, owed.clone().without(from)))
}

/// Of a free volume that nobody owes there is no record.
fn freed(
    view: &View,
    volume: &VolumeId,
    at: Revision,
    last_holder: Option<Holder>,
    owed: Option<Owed>,
) -> Commit {
    let (commit, key) = (Commit::new(&view.cluster), Key::Lease(volume.clone()));
    match owed {
        Some(owed) => commit.put(key, at, Record::Lease(Lease::Free { last_holder, owed: Some(owed) })),
        None => commit.delete(key, at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, held, holder, volume};
    use crate::sessions::tests::session;
    use shared::protocol::exchange::{Held, Session};

    const SETTLE: Duration = Duration::from_secs(120);

    async fn free(fixture: &Fixture, detached: bool) -> Result<String, Failure> {
        free_from(fixture, detached.then(|| holder("a"))).await
    }

    async fn free_from(fixture: &Fixture, from: Option<Holder>) -> Result<String, Failure> {
        let mut out = Vec::new();
        run(&mut out, &fixture.records, &volume("v"), from.as_ref(), SETTLE).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn of(session: Session) -> Fixture {
        let fixture = Fixture::holding();
        fixture.put(&Key::Session(holder("a")), &Record::Session(session));
        fixture
    }

    fn dead(proof: Proof) -> Session {
        Session { state: SessionState::Dead(proof), ..session() }
    }

    #[tokio::test]
    async fn only_a_lease_of_a_session_that_is_dead_by_time_or_over_is_freed_and_only_when_it_is_vouched_for()
    {
        for session in [dead(Proof::Time), Session { epoch: Epoch(4), ..session() }] {
            let fixture = of(session);
            let before = fixture.revision();
            let error = free(&fixture, false).await.unwrap_err();
            assert_eq!((error.exit_code(), fixture.revision()), (1, before));
            let error = error.to_string();
            assert!(
                error.contains("without `--detached a`") && error.contains("120 s must have passed"),
                "{error}"
            );
            let said = free(&fixture, true).await.unwrap();
            assert!(said.starts_with("volume ebs/v is free since revision "), "{said}");
            assert_eq!(fixture.stored(&Key::Lease(volume("v"))), None);
            // The session is compared and not written.
            assert!(fixture.at(&Key::Session(holder("a"))) <= before);
            let error = free(&fixture, true).await.unwrap_err().to_string();
            assert!(error.contains("is free already"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_lease_that_somebody_may_still_use_is_never_freed() {
        let missing = Fixture::holding();
        missing.delete(&Key::Session(holder("a")));
        for (fixture, words) in [
            (of(session()), "whose session is live: `extvol revoke ebs/v`"),
            (of(Session { state: SessionState::Revoking, ..session() }), "is being revoked"),
            (of(dead(Proof::Unmounted)), "proof \"unmounted\": it can be taken over already"),
            (of(dead(Proof::Fenced)), "proof \"fenced\": it can be taken over already"),
            (of(Session { epoch: Epoch(2), ..dead(Proof::Time) }), "has only epoch 2"),
            (missing, "whose session is missing"),
            (Fixture::new(), "is free already"),
        ] {
            let before = fixture.revision();
            let error = free(&fixture, true).await.unwrap_err();
            assert_eq!((error.exit_code(), fixture.revision()), (1, before), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[tokio::test]
    async fn a_volume_that_was_detached_from_another_host_than_has_it_is_not_freed() {
        let fixture = of(dead(Proof::Time));
        let before = fixture.revision();
        let error = free_from(&fixture, Some(holder("b"))).await.unwrap_err();
        assert_eq!((error.exit_code(), fixture.revision()), (1, before));
        assert!(error.to_string().contains("not by the host that you name"), "{error}");
        // Nor one that the same host has taken again, and lost again, since.
        let again = Lease::Held(Held { token: Some(Token(Revision(99))), ..held() });
        fixture.race(1, &Key::Lease(volume("v")), &Record::Lease(again.clone()));
        let error = free(&fixture, true).await.unwrap_err();
        assert!(error.to_string().contains("has to be detached anew"), "{error}");
        assert_eq!(fixture.stored(&Key::Lease(volume("v"))), Some(Record::Lease(again)));
    }

    #[tokio::test]
    async fn a_free_lease_that_lost_hosts_owe_is_paid_host_by_host() {
        let fixture = Fixture::holding();
        let owed = Owed::and(Some(Owed::and(None, &holder("a"), None, true)), &holder("b"), None, false);
        let owing = |owed| Record::Lease(Lease::Free { last_holder: Some(holder("c")), owed });
        let key = Key::Lease(volume("v"));
        fixture.put(&key, &owing(Some(owed.clone())));
        let before = fixture.revision();
        let error = free(&fixture, false).await.unwrap_err().to_string();
        assert!(
            error.contains("without `--detached a`") && error.contains("120 s must have passed"),
            "{error}"
        );
        let error = free_from(&fixture, Some(holder("d"))).await.unwrap_err().to_string();
        assert!(error.contains("may still be attached to a or b"), "{error}");
        assert_eq!(fixture.revision(), before);
        // A host that tries to mount it in between changes nothing.
        fixture.race(1, &key, &owing(Some(owed.clone())));
        free_from(&fixture, Some(holder("b"))).await.unwrap();
        assert_eq!(fixture.stored(&key), Some(owing(owed.without(&holder("b")))));
        let said = free(&fixture, true).await.unwrap();
        assert!(said.starts_with("volume ebs/v is free since revision "), "{said}");
        assert_eq!(fixture.stored(&key), None);
        let error = free(&fixture, true).await.unwrap_err().to_string();
        assert!(error.contains("is free already"), "{error}");
    }

    #[tokio::test]
    async fn a_lease_whose_holder_tries_to_mount_it_pays_by_that() {
        let fixture = of(session());
        let owed = Some(Owed::and(None, &holder("b"), None, true));
        fixture.put(&Key::Lease(volume("v")), &Record::Lease(Lease::Held(Held { owed, ..held() })));
        let error = free_from(&fixture, Some(holder("b"))).await.unwrap_err().to_string();
        assert!(
            error.contains("held by a") && error.contains("once it is detached from b that succeeds"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_session_that_is_opened_again_in_between_keeps_its_lease_when_it_has_taken_it() {
        let fixture = of(dead(Proof::Time));
        let taken = Held { epoch: Epoch(4), ..held() };
        fixture.race(
            1,
            &Key::Session(holder("a")),
            &Record::Session(Session { epoch: Epoch(4), ..session() }),
        );
        fixture.race(1, &Key::Lease(volume("v")), &Record::Lease(Lease::Held(taken.clone())));
        let error = free(&fixture, true).await.unwrap_err().to_string();
        assert!(error.contains("only since this began"), "{error}");
        assert_eq!(fixture.stored(&Key::Lease(volume("v"))), Some(Record::Lease(Lease::Held(taken))));
    }
}
