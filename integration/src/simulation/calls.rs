//! Short stories about one host's driver calls and containers, for what a random schedule rarely shows.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::exchange::{ClusterId, Commit, Held, Key, Lease, Proof, Record, Session, SessionState, Stage};
use protocol::fence::{Act, Fence};
use protocol::holder::{Idleness, Input, MountFault, Phase, Settings, UnmountFault};
use protocol::ids::Revision;
use protocol::{Request, Text};

use super::alone::Alone;
use super::host::Effect;
use super::plan::Plan;
use super::run::{container, holder, settings, timing, volume};
use super::scenarios::{attached, live};

/// Runs all of them.
pub(super) fn check() -> Result<(), &'static str> {
    unanswered_mount()?;
    in_doubt()?;
    unmounted_by_somebody()?;
    refused_alone()?;
    another_agent()?;
    told_wants()?;
    calls_of_the_last_host()?;
    never_started()?;
    removal()?;
    owes_its_mount()?;
    not_made()?;
    kill_first()
}

/// A host whose container `c` has its volume.
fn with_volume() -> Alone {
    let mut story = Alone::asked();
    story.all();
    story
}

/// A Mount without an answer is repeated, each time under a lease that was confirmed; and a refusal counts only
/// when no earlier one can happen any more.
fn unanswered_mount() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let Some(op) = story.next_mount() else { return Err("scenario: no Mount was asked for") };
    story.tell(Input::Mounted(op, Err(MountFault::Unresolved("no answer".into()))));
    for _ in 0..12 {
        story.now += Duration::from_millis(100);
        story.tell(Input::Tick);
    }
    if story.effects.iter().any(|effect| matches!(effect, Effect::Mount(..))) {
        return Err("scenario: a Mount was repeated under a lease that nothing had confirmed");
    }
    let Some(op) = story.next_mount() else {
        return Err("scenario: a Mount without an answer was not repeated");
    };
    story.tell(Input::Mounted(op, Err(MountFault::Refused("not found".into()))));
    let core = story.host.worker.as_ref();
    match core.and_then(|core| core.volumes().get(&volume(0))).map(|volume| &volume.phase) {
        Some(Phase::Mounting { .. }) => Ok(()),
        _ => Err("scenario: a refusal counted though an earlier Mount could still happen"),
    }
}

/// The keeper sees that nothing of a container runs any more, and yet something sees the volume: that is not
/// unmounted.
fn in_doubt() -> Result<(), &'static str> {
    let mut story = with_volume();
    story.host.fork(&container("c"), &story.host.table.containers[&container("c")].volumes.clone());
    let (request, agent, cgroup) = (Request(2), "a".into(), Some("c".into()));
    story.tell(Input::Isolate { request, agent, container: container("c"), pid: 1, cgroup });
    story.tell(Input::Ended { container: container("c") });
    story.later(Duration::from_secs(3));
    if !story.host.mounts.contains_key(&volume(0)) {
        return Err("scenario: a volume in doubt was unmounted, and a process still used it");
    }
    story.host.processes.clear();
    story.later(Duration::from_secs(3));
    if story.host.mounts.is_empty() {
        Ok(())
    } else {
        Err("scenario: a volume in doubt was kept though nothing used it")
    }
}

/// Somebody else unmounts a volume: whoever comes next does not get the empty directory beneath.
fn unmounted_by_somebody() -> Result<(), &'static str> {
    let mut story = with_volume();
    story.host.mounts.clear();
    story.prepare(2, "d", &[0]);
    story.all();
    if story.told.iter().any(|effect| matches!(effect, Effect::Reply(Request(2), Ok(_)))) {
        return Err("scenario: a container joined a volume that somebody had unmounted");
    }
    if story.told.contains(&Effect::Limit(container("c"))) {
        Ok(())
    } else {
        Err("scenario: a container went on in the directory beneath its volume")
    }
}

/// Of two containers that ask for one volume, one is refused for another volume: the other one is not.
fn refused_alone() -> Result<(), &'static str> {
    let settings = settings(&Plan::of(1), 0);
    let mut story = Alone::new(Settings { wait_timeout: Duration::ZERO, ..settings });
    let commit = Commit::new(&ClusterId("c1".into()))
        .put(Key::Session(holder(9)), Revision::ABSENT, Record::Session(live()))
        .put(Key::Lease(volume(0)), Revision::ABSENT, Record::Lease(Lease::Held(attached(9))));
    story.etcd.commit(&commit);
    story.prepare(1, "c", &[0, 1]);
    story.prepare(2, "d", &[1]);
    story.all();
    let uses = |name| story.host.worker.as_ref().is_some_and(|core| core.users().contains(&container(name)));
    match (uses("c"), uses("d")) {
        (false, true) => Ok(()),
        (true, _) => Err("scenario: a container got a volume that another host has"),
        (false, false) => Err("scenario: a container was refused for a volume that it did not want"),
    }
}

/// Two agents of one host may have containers of one name: each ends its own.
fn another_agent() -> Result<(), &'static str> {
    let mut story = with_volume();
    story.tell(Input::Cleanup { request: Request(9), agent: "b".into(), container: container("c") });
    story.later(timing().beat);
    if story.host.mounts.contains_key(&volume(0)) {
        Ok(())
    } else {
        Err("scenario: another agent ended a container of this name")
    }
}

/// A host that waits for another's lease says so in its session: a lease whose agent is gone is revoked only when
/// it is wanted.
fn told_wants() -> Result<(), &'static str> {
    let mut story = Alone::new(settings(&Plan::of(1), 0));
    let commit = Commit::new(&ClusterId("c1".into()))
        .put(Key::Session(holder(9)), Revision::ABSENT, Record::Session(live()))
        .put(Key::Lease(volume(0)), Revision::ABSENT, Record::Lease(Lease::Held(attached(9))));
    story.etcd.commit(&commit);
    story.prepare(1, "c", &[0]);
    story.all();
    match story.etcd.entries.get(&Key::Session(holder(0))) {
        Some((Record::Session(session), _)) if session.wants.contains(&volume(0)) => Ok(()),
        _ => Err("scenario: a host did not tell which volume it waits for"),
    }
}

/// The storage can take a volume away from its last host, whose driver may be at it: that call is waited for first.
fn calls_of_the_last_host() -> Result<(), &'static str> {
    let settings = settings(&Plan::of(1), 0);
    let (settle, storage_fencing) = (settings.settle, BTreeSet::from([volume(0).driver]));
    let mut story = Alone::new(Settings { storage_fencing, ..settings });
    let dead = Session { state: SessionState::Dead(Proof::Unmounted), ..live() };
    let lease = Held { stage: Stage::Detaching, ..attached(9) };
    let commit = Commit::new(&ClusterId("c1".into()))
        .put(Key::Session(holder(9)), Revision::ABSENT, Record::Session(dead))
        .put(Key::Lease(volume(0)), Revision::ABSENT, Record::Lease(Lease::Held(lease)));
    story.etcd.commit(&commit);
    story.prepare(1, "c", &[0]);
    story.all();
    let taken_away = |story: &Alone| story.told.iter().any(|effect| matches!(effect, Effect::Settle(..)));
    if taken_away(&story) || !story.host.mounts.is_empty() {
        return Err("scenario: a driver call of a volume's last host was not waited for");
    }
    story.later(settle + Duration::from_secs(1));
    if taken_away(&story) { Ok(()) } else { Err("scenario: a volume was not taken away from its last host") }
}

/// The agent died between a container's preparation and its start, and is given up: there is nothing to kill or to wait for.
fn never_started() -> Result<(), &'static str> {
    let mut story = with_volume();
    let key = Key::Session(holder(0));
    let Some((Record::Session(session), at)) = story.etcd.entries.get(&key).cloned() else {
        return Err("scenario: a host that has a volume has no session");
    };
    let session = Session { state: SessionState::Revoking, ..session };
    story.etcd.commit(&Commit::new(&ClusterId("c1".into())).put(key, at, Record::Session(session)));
    story.later(Duration::from_secs(1));
    let killed = story.told.iter().any(|effect| matches!(effect, Effect::Kill(_)));
    if killed || story.host.shared.fenced || !story.host.mounts.is_empty() {
        return Err("scenario: a container that was never started kept its volume after a revoke");
    }
    Ok(())
}

/// Nobody knows what became of a Mount, and its Unmount is refused: the volume may be attached here, whatever the mount tables say.
fn owes_its_mount() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let Some(op) = story.next_mount() else { return Err("scenario: no Mount was asked for") };
    story.tell(Input::Mounted(op, Err(MountFault::Unresolved("no answer".into()))));
    story.tell(Input::Cleanup { request: Request(2), agent: "a".into(), container: container("c") });
    for _ in 0..300 {
        story.now += Duration::from_millis(100);
        story.tell(Input::Tick);
        while let Some(effect) = story.effects.first().cloned() {
            let refused = || "resource not found".into();
            let input = match effect {
                Effect::Mount(op, _) => Input::Mounted(op, Err(MountFault::Refused(refused()))),
                Effect::Unmount(op, _) => Input::Unmounted(op, Err(UnmountFault::Refused(refused()))),
                Effect::Prove(op, _) => Input::Idle(op, Idleness::Proved),
                _ => {
                    story.one();
                    continue;
                }
            };
            story.effects.remove(0);
            story.tell(input);
        }
    }
    match story.etcd.entries.get(&Key::Lease(volume(0))) {
        Some((Record::Lease(Lease::Free { owed: Some(_), .. }), _)) => Ok(()),
        _ => Err("scenario: a host whose Mount came to no known end owes nothing"),
    }
}

/// A driver call that was not made, in an epoch that goes on, is made later.
fn not_made() -> Result<(), &'static str> {
    let mut story = Alone::asked();
    let Some(op) = story.next_mount() else { return Err("scenario: no Mount was asked for") };
    story.tell(Input::NotMade(op));
    story.later(Duration::from_secs(1));
    match story.host.mounts.contains_key(&volume(0)) {
        true => Ok(()),
        false => Err("scenario: a driver call that was not made was waited for"),
    }
}

/// A volume is removed under a lease that was confirmed after its device was proved idle.
fn removal() -> Result<(), &'static str> {
    let mut story = Alone::new(settings(&Plan::of(1), 0));
    story.removes = true;
    story.prepare(1, "c", &[0]);
    story.all();
    let (request, agent, cgroup) = (Request(2), Text::from("a"), Some("c".into()));
    story.tell(Input::Isolate { request, agent: agent.clone(), container: container("c"), pid: 1, cgroup });
    story.tell(Input::Cleanup { request: Request(3), agent, container: container("c") });
    let Some(Effect::Unmount(op, _)) = story.next(|effect| matches!(effect, Effect::Unmount(..))) else {
        return Err("scenario: a container ended, and its volume was not unmounted");
    };
    story.host.mounts.clear();
    story.tell(Input::Unmounted(op, Ok(())));
    let Some(Effect::Prove(op, _)) = story.next(|effect| matches!(effect, Effect::Prove(..))) else {
        return Err("scenario: a volume was unmounted, and not proved idle");
    };
    story.tell(Input::Idle(op, Idleness::Proved));
    match story.next(|effect| matches!(effect, Effect::Commit(..) | Effect::Remove(..))) {
        Some(Effect::Commit(..)) => Ok(()),
        _ => Err("scenario: a volume was removed under a lease that nothing had confirmed"),
    }
}

/// A fence shuts file systems down before it kills, and takes no mount away before every container is dead.
fn kill_first() -> Result<(), &'static str> {
    let mut story = with_volume();
    story.prepare(2, "d", &[0]);
    story.all();
    let (request, agent, cgroup) = (Request(3), "a".into(), Some("c".into()));
    story.tell(Input::Isolate { request, agent, container: container("c"), pid: 1, cgroup });
    let mut fence = Fence::new(&story.host.table, None, None);
    if fence.poll_act() != Some(Act::Freeze) || fence.poll_act().is_some() {
        return Err("scenario: a fence did not begin with the freeze");
    }
    fence.done(&Act::Freeze, Err("no answer".into()));
    let Some(shutdown @ Act::Shutdown(_)) = fence.poll_act() else {
        return Err("scenario: a shutdown waited for something else than the freeze");
    };
    fence.done(&shutdown, Err("no answer".into()));
    let mut killing = Vec::new();
    while let Some(act) = fence.poll_act() {
        match act {
            Act::Kill(_) => killing.push(act),
            _ => return Err("scenario: a mount was taken away under a living process"),
        }
    }
    let [first, second] = &killing[..] else { return Err("scenario: a fence did not kill everybody") };
    fence.done(first, Ok(()));
    if fence.poll_act().is_some() {
        return Err("scenario: a mount was taken away under a living process");
    }
    fence.done(second, Ok(()));
    match fence.poll_act() {
        Some(Act::MakeIdle(_)) => Ok(()),
        _ => Err("scenario: a fence left a file system mounted"),
    }
}
