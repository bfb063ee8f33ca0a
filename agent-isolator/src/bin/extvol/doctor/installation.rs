//! Whether what the records say is as it has to be.

use std::collections::{BTreeMap, BTreeSet};

use agent_isolator::parameters::KeeperParameters;
use shared::keys::Keys;
use shared::protocol::exchange::{ByTime, SessionState, Storm};
use shared::volume::Holder;

use super::Check;
use crate::records::Everything;
use crate::sessions::seconds;

/// So many names are listed; more say no more.
const NAMES_MAX: usize = 10;

pub(super) fn checks(everything: &Everything, parameters: &KeeperParameters, is_agent: bool) -> Vec<Check> {
    let mut checks = vec![cluster(everything, parameters)];
    if is_agent {
        checks.extend(naming(everything, parameters));
    }
    checks.extend(unreadable(everything));
    checks.extend(times(everything));
    checks.extend(storm(everything));
    checks.extend(leases(everything));
    checks.extend(index(everything, &Keys::new(&parameters.etcd_prefix)));
    checks
}

fn cluster(everything: &Everything, parameters: &KeeperParameters) -> Check {
    match &everything.cluster {
        Some(cluster) => {
            let held = everything.leases.values().filter(|lease| lease.record.held().is_some()).count();
            let hosts = everything.sessions.len();
            Check::ok(format!("installation {}: {hosts} hosts, {held} volumes held", cluster.id))
        }
        None => Check::warning(
            format!("there is no installation under {}", parameters.etcd_prefix),
            "the first keeper that starts makes it; if keepers run, they have another etcd_prefix or etcd",
        ),
    }
}

fn naming(everything: &Everything, parameters: &KeeperParameters) -> Vec<Check> {
    let Some(cluster) = &everything.cluster else { return Vec::new() };
    let mut checks = vec![match cluster.naming.admit(&parameters.drivers.names()) {
        Ok(()) => Check::ok("the names of drivers and volumes here are those of the installation"),
        Err(fault) => Check::fail(
            fault.to_string(),
            "give this host the installation's: its keeper gets no session. To change them for all: docs/operating.md",
        ),
    }];
    if cluster.naming.preempting.is_none() {
        checks.push(Check::warning(
            "etcd's record `cluster` is an earlier release's, and does not say which plugins take volumes away: a host \
             that was told otherwise than the rest could serve one to its tasks",
            "add them as `preempting` to its `naming`: docs/operating.md",
        ));
    }
    checks
}

fn unreadable(everything: &Everything) -> Option<Check> {
    if everything.unreadable.is_empty() {
        return None;
    }
    let named = names(everything.unreadable.iter().map(|(key, why)| format!("{key} {why}")));
    Some(Check::fail(
        format!("records that cannot be read: {named}"),
        "compare them with docs/lease-protocol.md; after a downgrade, upgrade again",
    ))
}

/// The times of the sessions that live, and what etcd has to do about E.
fn times(everything: &Everything) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut elections = BTreeSet::new();
    let (mut good, mut without, mut never, mut unproved) = (0_usize, Vec::new(), Vec::new(), Vec::new());
    for (holder, session) in &everything.sessions {
        let record = &session.stored.record;
        if matches!(record.state, SessionState::Dead(_)) {
            continue;
        }
        if session.without_beats {
            without.push(holder);
            continue;
        }
        match record.by_time {
            ByTime::Allowed => {}
            ByTime::Never => never.push(holder),
            ByTime::Unproved => unproved.push(match &record.unproved {
                Some(why) => format!("{holder} ({why})"),
                None => holder.to_string(),
            }),
        }
        elections.insert(record.timing.election);
        match record.timing.check() {
            Ok(()) => good += 1,
            Err(why) => checks.push(Check::fail(
                format!("the times of {holder}: {why}"),
                "give its keeper a profile whose times keep the rules; until then it is not reclaimed by time",
            )),
        }
    }
    if good > 0 {
        checks.push(Check::ok(format!("the times of {good} sessions keep the rules")));
    }
    for election in elections {
        checks.push(Check::note(format!(
            "a change of etcd's leader may take {} (E) before hosts are fenced: see that --election-timeout of every \
             member of etcd is at most {} ms, for a change takes up to twice that (etcd does not tell its value; its \
             default is 1000)",
            seconds(election),
            election.as_millis() / 2
        )));
    }
    let of = |holders: &[&Holder]| names(holders.iter().map(ToString::to_string));
    if !without.is_empty() {
        checks.push(Check::note(format!(
            "the keepers of {} do not beat (an earlier release): their volumes are never taken over while they are lost",
            of(&without)
        )));
    }
    if !never.is_empty() {
        checks.push(Check::note(format!(
            "the sessions of {} are never ended by silence, as their keepers were told: their volumes stay with them \
             when they are lost",
            of(&never)
        )));
    }
    if !unproved.is_empty() {
        checks.push(Check::warning(
            format!(
                "the keepers of {} cannot prove their fence: they are never reclaimed by time alone",
                names(unproved.into_iter())
            ),
            "see the log of each of them for what is missing, and docs/operating.md for what ends one that is lost",
        ));
    }
    checks
}

fn storm(everything: &Everything) -> Option<Check> {
    let storm = everything.storm.as_ref()?;
    let since = storm.since.as_deref().unwrap_or("an unknown time");
    match storm.record {
        Storm::Over => None,
        Storm::Lifted => Some(Check::note(format!("the storm guard is lifted since {since}"))),
        Storm::Raised => Some(Check::fail(
            format!(
                "the storm guard is raised since {since}: more than half of the hosts with leases are silent"
            ),
            "see etcd and the network; `extvol storm lift` if those hosts are really gone",
        )),
    }
}

/// Leases whose session is not there to keep them.
fn leases(everything: &Everything) -> Vec<Check> {
    let mut lost: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for (volume, lease) in &everything.leases {
        let Some(held) = lease.record.held() else { continue };
        let how = match everything.sessions.get(&held.holder).map(|session| &session.stored.record) {
            None => "missing",
            Some(session) if session.epoch < held.epoch => "older than the lease",
            Some(session) if session.epoch > held.epoch => "over",
            Some(session) if matches!(session.state, SessionState::Dead(_)) => "dead",
            Some(_) => continue,
        };
        lost.entry(how).or_default().push(format!("{volume} ({})", held.holder));
    }
    let check = |(how, volumes): (&'static str, Vec<String>)| {
        let what = format!(
            "{} volumes whose holder's session is {how}: {}",
            volumes.len(),
            names(volumes.into_iter())
        );
        match how {
            "missing" => Check::warning(
                what,
                "a master module declares such a session dead after 60 s; is one running?",
            ),
            "over" | "dead" => Check::note(format!(
                "{what}; each can be taken over by the next task that names it, under fencing=required only where its \
                     storage takes it away: else detach it there, and run `extvol free DRIVER/NAME --detached HOST`"
            )),
            _ => Check::fail(
                what,
                "no part of this software writes that: was etcd restored from a backup? See docs/operating.md",
            ),
        }
    };
    lost.into_iter().map(check).collect()
}

/// Leases that a holder whom they name would not find.
fn index(everything: &Everything, keys: &Keys) -> Option<Check> {
    let mut missing = Vec::new();
    for (volume, lease) in &everything.leases {
        let named = lease.record.named().into_iter().map(|holder| (holder.clone(), volume.clone()));
        missing.extend(named.filter(|entry| !everything.index.contains(entry)));
    }
    if missing.is_empty() {
        return None;
    }
    let named = names(missing.iter().map(|(holder, volume)| keys.held(holder, volume)));
    Some(Check::warning(
        format!(
            "{} leases are not in the index of a holder that they name; missing are {named}",
            missing.len()
        ),
        "an earlier version wrote none, and a person may have written records by hand. Put each of these keys, with the value {\"version\":1}: a \
         keeper that is started again gives back what is in its index",
    ))
}

fn names(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let more = match all.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", all.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shared::protocol::exchange::{Lease, Owed, Proof, Session};
    use shared::protocol::timing::{Profile, Timing};
    use shared::record::ClusterRecord;
    use shared::store::Revision;
    use shared::volume::{Driver, NamingRules, VolumeId, VolumeName};

    use super::super::Level;
    use super::*;
    use crate::records::{Stored, StoredSession};
    use crate::sessions::tests::{session, stored};

    fn parameters() -> KeeperParameters {
        KeeperParameters::read(&[("etcd_endpoints".into(), "h:1".into())]).unwrap()
    }

    fn with(session: StoredSession) -> Everything {
        Everything {
            cluster: Some(ClusterRecord { id: "c1".into(), naming: parameters().drivers.naming }),
            sessions: [(Holder::new("a").unwrap(), session)].into(),
            ..Everything::default()
        }
    }

    #[track_caller]
    fn assert_says(everything: &Everything, level: Level, words: &str) {
        let checks = checks(everything, &parameters(), true);
        assert!(checks.iter().any(|c| c.level == level && c.what.contains(words)), "{words}: {checks:#?}");
    }

    #[test]
    fn rules_of_names_that_differ_fail_on_an_agents_host_alone() {
        let mut everything = with(stored(session()));
        assert_says(&everything, Level::Ok, "are those of the installation");
        let drivers: BTreeSet<_> = [Driver::new("rexray").unwrap()].into();
        let naming = &mut everything.cluster.as_mut().unwrap().naming;
        naming.preempting = Some(drivers.clone());
        assert_says(
            &everything,
            Level::Fail,
            "the driver rexray, which this host serves, is a plugin that takes",
        );
        everything.cluster.as_mut().unwrap().naming = NamingRules::default();
        assert_says(&everything, Level::Warning, "does not say which plugins take volumes away");
        everything.cluster.as_mut().unwrap().naming.case_sensitive_drivers = drivers;
        assert_says(&everything, Level::Fail, "differ from those that etcd has");
        let on_master = checks(&everything, &parameters(), false);
        assert!(on_master.iter().all(|check| check.level != Level::Fail), "{on_master:#?}");
    }

    #[test]
    fn times_that_break_a_rule_fail_and_e_names_the_flag_to_compare_with() {
        assert_says(
            &with(stored(session())),
            Level::Note,
            "--election-timeout of every member of etcd is at most 1500 ms",
        );
        let timing = Timing { kill: Duration::from_secs(4), ..Profile::Default.timing() };
        assert_says(
            &with(stored(Session { timing, ..session() })),
            Level::Fail,
            "the times of a: the parameter `fence_after`",
        );
        let old = StoredSession { without_beats: true, ..stored(session()) };
        assert_says(&with(old), Level::Note, "the keepers of a do not beat");
        assert_says(
            &with(stored(Session {
                by_time: ByTime::Unproved,
                unproved: Some("no guard".into()),
                ..session()
            })),
            Level::Warning,
            "the keepers of a (no guard) cannot prove",
        );
        assert_says(
            &with(stored(Session { by_time: ByTime::Never, ..session() })),
            Level::Note,
            "never ended by silence",
        );
        // Of a dead session nothing is asked.
        let dead = Session { timing, state: SessionState::Dead(Proof::Time), ..session() };
        let checks = checks(&with(stored(dead)), &parameters(), true);
        assert!(checks.iter().all(|check| check.level == Level::Ok), "{checks:#?}");
    }

    #[test]
    fn a_raised_storm_and_a_broken_record_fail() {
        let raised = Stored { record: Storm::Raised, at: Revision(4), since: Some("then".into()) };
        assert_says(
            &Everything { storm: Some(raised), ..Everything::default() },
            Level::Fail,
            "raised since then",
        );
        let broken = vec![("/x/leases/a/b".into(), "is not a valid record".into())];
        assert_says(
            &Everything { unreadable: broken, ..Everything::default() },
            Level::Fail,
            "/x/leases/a/b is not",
        );
        assert_says(&Everything::default(), Level::Warning, "no installation under /extvol/v1");
    }

    #[test]
    fn many_names_are_cut_with_their_number() {
        let all = (0..12).map(|n| n.to_string());
        assert_eq!(names(all), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }

    #[test]
    fn a_lease_that_its_holder_would_not_find_is_told_with_the_key() {
        let volume = VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new("v").unwrap() };
        let owed = Some(Owed::and(None, &Holder::new("b").unwrap(), None, false));
        let free = Lease::Free { last_holder: None, owed };
        let stored = Stored { record: free, at: Revision(3), since: None };
        let mut everything =
            Everything { leases: [(volume.clone(), stored)].into(), ..Everything::default() };
        assert_says(&everything, Level::Warning, "missing are /extvol/v1/held/b/ebs/v");
        everything.index.insert((Holder::new("b").unwrap(), volume));
        assert_eq!(index(&everything, &Keys::default()), None);
    }
}
