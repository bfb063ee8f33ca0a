//! `extvol free`: a lease of a host that is lost becomes free, once a person has detached its volume.
//!
//! For installations whose storage cannot take a volume away from a host (`fencing_required` refuses the
//! take-over there). That a session was declared dead by time says that its processes cannot write any more;
//! it says nothing of I/O that the block layer has, of a host that did not run, or of a driver's call that is
//! still under way (L19, L20). The person vouches for those; without `--detached` nothing is written.

use std::io::Write;
use std::time::Duration;

use shared::protocol::exchange::{Commit, Key, Lease, Proof, Record, SessionState};
use shared::store::LeaseStore;
use shared::volume::VolumeId;

use crate::arguments::Subject;
use crate::decided::{Decision, Done, write};
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
    detached: bool,
    settle: Duration,
) -> Result<(), Failure> {
    let volume = records.canonical(volume).await?;
    let subject = Subject::Volume(volume.clone());
    if !detached {
        let reading = records.about(&subject).await?;
        return match decide(&reading, &volume) {
            Decision::Write(_) => {
                let holder = reading.view.lease(&volume).and_then(|(lease, _)| lease.held());
                let holder = holder.map(|held| held.holder.to_string()).unwrap_or_default();
                Err(Failure::Refused(format!(
                    "nothing is written without --detached. With it you say that you made sure of this: the storage has \
                     detached {volume} from {holder}; {holder} is off, or cannot reach the storage; and no call of \
                     its driver can still land, for which {} must have passed since it was lost (the parameter \
                     settle_time)",
                    seconds(settle)
                )))
            }
            Decision::Already(why) | Decision::Refuse(why) => Err(Failure::Refused(why)),
        };
    }
    let done = write(records, &subject, |reading| decide(reading, &volume)).await?;
    let known = match done {
        Done::Committed(at) => format!("volume {volume} is free since revision {at}"),
        Done::Seen(at) => {
            format!("volume {volume} is free; the write had no answer, and a read at revision {at} shows it")
        }
    };
    Ok(writeln!(out, "{known}: the next task that names it can start on any host")?)
}

fn decide(reading: &Reading, volume: &VolumeId) -> Decision {
    let view = &reading.view;
    let (held, at) = match view.lease(volume) {
        Some((Lease::Held(held), at)) => (held, at),
        Some((Lease::Free { .. }, _)) => {
            return Decision::Already(format!("volume {volume} is free already"));
        }
        None => return Decision::Refuse(format!("volume {volume} was never held by anybody")),
    };
    let (holder, epoch) = (&held.holder, held.epoch);
    let refuse =
        |why: String| Decision::Refuse(format!("volume {volume} is held by {holder} (epoch {epoch}), {why}"));
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
    let free = Lease::Free { last_holder: Some(holder.clone()) };
    Decision::Write(
        Commit::new(&view.cluster)
            .put(Key::Lease(volume.clone()), at, Record::Lease(free))
            // The judgement rests on it: a session that was opened again in between takes its leases itself.
            .unchanged(Key::Session(holder.clone()), session_at),
    )
}
