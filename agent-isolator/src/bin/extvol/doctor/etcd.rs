//! Whether etcd is well, as far as it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shared::etcd::{Alarm, EtcdStore, ListedMember, MemberStatus};
use shared::store::Revision;

use super::Check;

/// The oldest release with what the protocol needs.
const VERSION_MIN: (u32, u32) = (3, 4);

/// What compaction leaves is that of some minutes. As many revisions are made by 1,000 hosts in a quarter of an
/// hour; more means that nothing compacts.
const HISTORY_MAX: i64 = 1_000_000;

/// Below it nothing can be said: a new etcd was never compacted either.
const HISTORY_NEW: i64 = 10_000;

/// A data base is nearly full when it has this part of its quota.
const NEARLY_FULL: f64 = 0.75;

/// etcd's own default of `--quota-backend-bytes`.
const QUOTA_DEFAULT: u64 = 2 << 30;

const COMPACTION_FLAGS: &str = "--auto-compaction-mode=periodic --auto-compaction-retention=5m";

/// The metrics page is a convenience: it is not waited for.
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);

/// All that etcd said.
struct Said {
    members: Vec<(String, Result<MemberStatus, String>)>,
    listed: Result<Vec<ListedMember>, String>,
    begins: Result<Option<Revision>, String>,
    /// The quota of each endpoint's member, where its metrics tell.
    quotas: BTreeMap<String, u64>,
}

/// Asks etcd, and judges what it says.
pub(super) async fn checks(store: &EtcdStore) -> Vec<Check> {
    let members = store.members_status().await;
    let mut quotas = BTreeMap::new();
    for (endpoint, status) in &members {
        if status.is_ok()
            && let Some(quota) = quota(endpoint).await
        {
            quotas.insert(endpoint.clone(), quota);
        }
    }
    let text = |fault: shared::etcd::EtcdFault| fault.to_string();
    let members = members.into_iter().map(|(endpoint, status)| (endpoint, status.map_err(text))).collect();
    let listed = store.members_listed().await.map_err(text);
    let begins = store.history_begins().await.map_err(text);
    judge(&Said { members, listed, begins, quotas })
}

/// The quota of a member. Its API has no word for it before etcd 3.6; its metrics do, if they are served there.
async fn quota(endpoint: &str) -> Option<u64> {
    let client = reqwest::Client::builder().timeout(METRICS_TIMEOUT).no_proxy().build().ok()?;
    let text = client.get(format!("{endpoint}/metrics")).send().await.ok()?.text().await.ok()?;
    quota_in(&text)
}

fn quota_in(metrics: &str) -> Option<u64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix("etcd_server_quota_backend_bytes "))?;
    let bytes: f64 = line.trim().parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a size of a file, and the range is checked"
    )]
    (1.0..=1e18).contains(&bytes).then_some(bytes as u64)
}

fn judge(said: &Said) -> Vec<Check> {
    let mut checks: Vec<_> = said.members.iter().map(|(at, status)| member(at, status)).collect();
    let well: Vec<_> =
        said.members.iter().filter_map(|(at, status)| Some((at, status.as_ref().ok()?))).collect();
    let clusters: BTreeSet<u64> = well.iter().map(|(_, status)| status.cluster).collect();
    if clusters.len() > 1 {
        checks.push(Check::fail(
            "etcd_endpoints lead to different etcd clusters",
            "name the members of one cluster alone: leases of two would know nothing of each other",
        ));
    }
    if well.is_empty() {
        return checks;
    }
    checks.extend(alarms(&well));
    checks.extend(well.iter().map(|(at, status)| size(at, status, said.quotas.get(*at).copied())));
    checks.extend(listed(&well, &said.listed));
    let newest = well.iter().map(|(_, status)| status.revision).max().unwrap_or_default();
    checks.push(compaction(newest, &said.begins));
    checks
}

fn member(at: &str, status: &Result<MemberStatus, String>) -> Check {
    let status = match status {
        Ok(status) => status,
        Err(why) if speaks_of_users(why) => return denied(&format!("etcd at {at}"), why),
        Err(why) => {
            let advice = "start etcd there, or take it out of etcd_endpoints";
            return Check::fail(format!("etcd at {at} does not answer: {why}"), advice);
        }
    };
    let version = &status.version;
    if status.leader == 0 {
        return Check::fail(
            format!("etcd {version} at {at} knows no leader"),
            "see its log: it is cut off from the others, or there is no quorum",
        );
    }
    if let Err(why) = status.linearizable.as_ref()
        && speaks_of_users(why)
    {
        return denied(&format!("etcd {version} at {at}"), why);
    }
    if let Err(why) = &status.linearizable {
        return Check::fail(
            format!("etcd {version} at {at} answers, but not a linearizable read: {why}"),
            "there is no quorum, it is cut off from the others, or it only learns: see `etcdctl endpoint status`",
        );
    }
    if parsed(version).is_some_and(|version| version < VERSION_MIN) {
        let (major, minor) = VERSION_MIN;
        return Check::fail(
            format!("etcd at {at} has version {version}"),
            format!("upgrade it to {major}.{minor} or later"),
        );
    }
    let role = if status.leader == status.member { ", the leader" } else { "" };
    Check::ok(format!("etcd {version} at {at}{role} answers a linearizable read"))
}

/// Whether etcd's words are about who asks, and so not about its health.
fn speaks_of_users(why: &str) -> bool {
    ["user name is empty", "user name not found", "permission denied", "auth token", "authentication"]
        .iter()
        .any(|words| why.contains(words))
}

fn denied(what: &str, why: &str) -> Check {
    Check::fail(
        format!("{what} answers, and does not let this program read: {why}"),
        "its authentication is on, and this release has no user there: `etcdctl auth disable`; keepers that hold leases \
         fence their hosts as long as it is on",
    )
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse::<u32>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn alarms(well: &[(&String, &MemberStatus)]) -> Vec<Check> {
    let mut checks = Vec::new();
    let is_raised = |alarm| well.iter().any(|(_, status)| status.alarms.contains(&alarm));
    if is_raised(Alarm::NoSpace) {
        checks.push(Check::fail(
            "etcd is full: the alarm NOSPACE is raised, and every write is refused; no task with a volume starts, and \
             none gives its volume back",
            format!(
                "`etcdctl compact REVISION`, `etcdctl defrag` on each member, `etcdctl alarm disarm`; then see to {COMPACTION_FLAGS} \
                 and --quota-backend-bytes"
            ),
        ));
    }
    if is_raised(Alarm::Corrupt) {
        checks.push(Check::fail(
            "etcd's alarm CORRUPT is raised: its members' data differ, and the leases in it cannot be relied on",
            "take the member away that is wrong, as etcd's documentation tells, before anything else",
        ));
    }
    if checks.is_empty() {
        checks.push(Check::ok("etcd has raised no alarm"));
    }
    checks
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[expect(clippy::cast_precision_loss, reason = "a share of a quota, for people")]
fn share(bytes: u64, quota: u64) -> f64 {
    bytes as f64 / quota.max(1) as f64
}

fn size(at: &str, status: &MemberStatus, quota: Option<u64>) -> Check {
    let (bytes, used) = (status.db_bytes, status.db_bytes_used);
    let told = match quota {
        Some(quota) => format!("of {} MiB", mebibytes(quota)),
        None => format!("of {} MiB if its --quota-backend-bytes is the default", mebibytes(QUOTA_DEFAULT)),
    };
    let what = format!(
        "the data base of {at} has {} MiB {told}, {} MiB of it in use",
        mebibytes(bytes),
        mebibytes(used)
    );
    let quota = quota.unwrap_or(QUOTA_DEFAULT);
    if share(bytes, quota) < NEARLY_FULL {
        return Check::ok(what);
    }
    let advice = match share(used, quota) < NEARLY_FULL {
        true => "`etcdctl defrag` on each member, one after the other, gives the rest back".to_owned(),
        false => format!("see what fills it, and to {COMPACTION_FLAGS}: a full etcd refuses every write"),
    };
    Check::warning(what, advice)
}

fn listed(well: &[(&String, &MemberStatus)], listed: &Result<Vec<ListedMember>, String>) -> Vec<Check> {
    let listed = match listed {
        Ok(listed) => listed,
        Err(why) => return vec![Check::note(format!("etcd's list of members could not be had: {why}"))],
    };
    let mut checks = Vec::new();
    let known: BTreeSet<u64> = well.iter().map(|(_, status)| status.member).collect();
    let missing = listed.iter().filter(|member| !member.learner && !known.contains(&member.id));
    let missing: Vec<_> = missing
        .map(|member| match member.client_urls.is_empty() {
            true => format!("{:x} (never started)", member.id),
            false => format!("{} ({})", member.name, member.client_urls.join(",")),
        })
        .collect();
    if !missing.is_empty() {
        checks.push(Check::warning(
            format!("members of etcd that answered at none of etcd_endpoints: {}", missing.join(", ")),
            "start them, or name them in etcd_endpoints, so that their part is taken when another one is lost",
        ));
    }
    let voters = listed.iter().filter(|member| !member.learner).count();
    checks.push(match voters {
        1 => Check::warning(
            "etcd has a single member",
            "run three or five: without it no volume can be taken, and every holder fences its tasks",
        ),
        even if even % 2 == 0 => Check::warning(
            format!("etcd has {even} members, and bears the loss of no more than {}", (even - 1) / 2),
            "run three or five",
        ),
        odd => Check::ok(format!("etcd has {odd} members, and bears the loss of {}", (odd - 1) / 2)),
    });
    checks
}

/// Whether auto-compaction is on cannot be asked. What can be seen is where history begins now.
fn compaction(newest: Revision, begins: &Result<Option<Revision>, String>) -> Check {
    let advice = format!(
        "start each member of etcd with {COMPACTION_FLAGS}: without it etcd fills up, and refuses writes"
    );
    match begins {
        Err(why) => {
            let what = format!("whether etcd's history is compacted could not be told: {why}");
            Check::warning(what, advice)
        }
        Ok(None) if newest.0 < HISTORY_NEW => Check::note(format!(
            "etcd's history was never compacted, and with {newest} revisions need not have been: see that its members run \
             with {COMPACTION_FLAGS}"
        )),
        Ok(None) => {
            Check::warning(format!("etcd's history was never compacted, and has {newest} revisions"), advice)
        }
        Ok(Some(begins)) => {
            let kept = newest.0.saturating_sub(begins.0);
            if kept > HISTORY_MAX {
                let what = format!("etcd was last compacted {kept} revisions ago, at revision {begins}");
                return Check::warning(what, advice);
            }
            // Once by hand looks the same: only a later run that shows a later revision tells them apart.
            Check::ok(format!(
                "etcd's history begins at revision {begins}, {kept} revisions ago: it is compacted (a later run shows a \
                 later revision if that is done regularly)"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn status(member: u64) -> MemberStatus {
        MemberStatus {
            version: "3.4.23".into(),
            cluster: 7,
            member,
            leader: 1,
            learner: false,
            db_bytes: 20 << 20,
            db_bytes_used: 10 << 20,
            revision: Revision(500_000),
            alarms: Vec::new(),
            linearizable: Ok(()),
        }
    }

    fn listing(ids: &[u64]) -> Vec<ListedMember> {
        let member = |id: &u64| ListedMember {
            id: *id,
            name: format!("m{id}"),
            client_urls: vec![format!("http://m{id}:2379")],
            learner: false,
        };
        ids.iter().map(member).collect()
    }

    fn three() -> Said {
        Said {
            members: (1..=3).map(|id| (format!("http://m{id}:2379"), Ok(status(id)))).collect(),
            listed: Ok(listing(&[1, 2, 3])),
            begins: Ok(Some(Revision(490_000))),
            quotas: BTreeMap::from([("http://m1:2379".into(), 2 << 30)]),
        }
    }

    /// The one check that is not good.
    #[track_caller]
    fn found(said: &Said) -> (Level, String) {
        let mut bad: Vec<_> = judge(said).into_iter().filter(|check| check.level != Level::Ok).collect();
        assert_eq!(bad.len(), 1, "{bad:#?}");
        let Check { level, what, advice } = bad.remove(0);
        (level, format!("{what} - {}", advice.unwrap_or_default()))
    }

    #[test]
    fn three_members_that_are_well_are_ok_in_every_line() {
        let checks = judge(&three());
        assert!(checks.iter().all(|check| check.level == Level::Ok), "{checks:#?}");
        assert_eq!(checks[0].what, "etcd 3.4.23 at http://m1:2379, the leader answers a linearizable read");
    }

    #[test]
    fn each_fault_is_found_and_nothing_else() {
        let with = |change: &dyn Fn(&mut MemberStatus)| {
            let mut said = three();
            change(said.members[1].1.as_mut().unwrap());
            said
        };
        for (said, level, words) in [
            (with(&|m| m.leader = 0), Level::Fail, "m2:2379 knows no leader"),
            (with(&|m| m.linearizable = Err("no".into())), Level::Fail, "not a linearizable read: no"),
            (with(&|m| m.version = "3.3.27".into()), Level::Fail, "version 3.3.27 - upgrade it to 3.4"),
            (with(&|m| m.cluster = 8), Level::Fail, "different etcd clusters"),
            (with(&|m| m.alarms = vec![Alarm::NoSpace]), Level::Fail, "NOSPACE"),
            (with(&|m| m.alarms = vec![Alarm::Corrupt]), Level::Fail, "CORRUPT"),
            (with(&|m| m.db_bytes = 1_900 << 20), Level::Warning, "`etcdctl defrag`"),
            (
                with(&|m| (m.db_bytes, m.db_bytes_used) = (1_900 << 20, 1_800 << 20)),
                Level::Warning,
                "see what fills it",
            ),
            (Said { begins: Ok(None), ..three() }, Level::Warning, "never compacted, and has 500000"),
            (Said { begins: Err("x".into()), ..three() }, Level::Warning, "could not be told: x"),
            (
                Said { listed: Ok(listing(&[1, 2, 3, 4, 5])), ..three() },
                Level::Warning,
                "m4 (http://m4:2379), m5",
            ),
            (Said { listed: Err("x".into()), ..three() }, Level::Note, "could not be had: x"),
        ] {
            let (found, text) = found(&said);
            assert_eq!(found, level, "{text}");
            assert!(text.contains(words), "{text}");
        }
        let old = with(&|m| m.revision = Revision(5_000_000));
        assert!(found(&old).1.contains("4510000 revisions ago"));
    }

    #[test]
    fn a_member_that_does_not_answer_is_a_failure_even_with_a_quorum() {
        let mut said = three();
        said.members[2].1 = Err("no connection".into());
        let levels: Vec<_> = judge(&said).into_iter().map(|check| check.level).collect();
        assert_eq!(levels.iter().filter(|level| **level == Level::Fail).count(), 1);
        // It is also missing from those who answered.
        assert_eq!(levels.iter().filter(|level| **level == Level::Warning).count(), 1);
    }

    #[test]
    fn an_even_number_of_members_and_a_single_one_are_warned_of() {
        for (count, words) in
            [(1, "a single member"), (2, "has 2 members, and bears the loss of no more than 0")]
        {
            let ids: Vec<u64> = (1..=count).collect();
            let mut said = three();
            said.members.truncate(ids.len());
            said.listed = Ok(listing(&ids));
            assert!(found(&said).1.contains(words));
        }
        let mut new = three();
        new.begins = Ok(None);
        new.members.iter_mut().for_each(|(_, m)| m.as_mut().unwrap().revision = Revision(12));
        assert_eq!(found(&new).0, Level::Note);
    }

    #[test]
    fn the_quota_is_read_from_the_metrics() {
        assert_eq!(quota_in("# HELP x\netcd_server_quota_backend_bytes 2.147483648e+09\n"), Some(2 << 30));
        assert_eq!(quota_in("etcd_server_quota_backend_bytes -1\n"), None);
        assert_eq!(quota_in(""), None);
    }
}
