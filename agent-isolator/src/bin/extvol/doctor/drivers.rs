//! Whether the drivers that this host serves work, and take volumes away from hosts that are lost.

use std::collections::BTreeSet;

use agent_isolator::keeper::driver::DockerPlugins;
use agent_isolator::keeper::survey::{self, Finding, Level};

use super::{Check, Host};
use crate::records::Everything;

pub(super) async fn checks(host: &Host<'_>, is_agent: bool, everything: Option<&Everything>) -> Vec<Check> {
    let drivers = &host.parameters.drivers;
    let plugins = DockerPlugins::new(drivers);
    let mut checks = Vec::new();
    if is_agent {
        for driver in &drivers.served {
            let findings = survey::driver(&plugins, drivers, driver).await;
            checks.extend(findings.into_iter().map(check));
        }
    }
    let looked_at = if is_agent { drivers.served.clone() } else { BTreeSet::new() };
    for plugin in host.plugins.iter().filter(|plugin| !looked_at.contains(*plugin)) {
        checks.push(match plugins.activate(plugin, survey::TIMEOUT).await {
            Ok(()) => Check::ok(format!("the volume plugin {plugin} answers")),
            Err(error) => Check::fail(
                format!("{}, which was asked for", crate::failure::cause(&error)),
                "start it, or see its log: tasks with its volumes fail on this host",
            ),
        });
    }
    checks.extend(everything.filter(|_| is_agent).into_iter().flat_map(|all| not_served(host, all)));
    checks
}

fn check(finding: Finding) -> Check {
    match finding.level {
        Level::Well => Check::ok(finding.what),
        Level::Warning => Check::warning(finding.what, finding.advice),
        Level::Fault => Check::fail(finding.what, finding.advice),
    }
}

/// Drivers of which volumes are held, and none may be taken here.
fn not_served(host: &Host<'_>, everything: &Everything) -> Vec<Check> {
    let (mut here, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
    for (volume, lease) in &everything.leases {
        let Some(held) = lease.record.held().filter(|_| !host.parameters.serves(&volume.driver)) else {
            continue;
        };
        let holders = if held.holder == host.parameters.holder { &mut here } else { &mut elsewhere };
        holders.insert(&volume.driver);
    }
    let here_alone = here.iter().map(|driver| {
        Check::warning(
            format!("this host holds volumes of {driver}, which its parameter `drivers` does not list"),
            "its tasks go on, and each volume is given back when they end; no task gets one here again",
        )
    });
    let elsewhere_alone = elsewhere.difference(&here).map(|driver| {
        Check::note(format!(
            "other hosts hold volumes of {driver}, which this host does not serve (its parameter `drivers`): tasks with \
             them are refused here"
        ))
    });
    here_alone.chain(elsewhere_alone).collect()
}

#[cfg(test)]
mod tests {
    use agent_isolator::parameters::KeeperParameters;
    use shared::protocol::exchange::{Held, Lease};
    use shared::store::Revision;
    use shared::volume::{Driver, VolumeId};

    use super::super::Level as CheckLevel;
    use super::*;
    use crate::fixture;
    use crate::records::Stored;

    #[test]
    fn volumes_of_drivers_that_are_not_served_here_are_told_of() {
        let lease = |holder: &str| Stored {
            record: Lease::Held(Held { holder: fixture::holder(holder), ..fixture::held() }),
            at: Revision(9),
            since: None,
        };
        let of = |driver: &str, name: &str, holder: &str| {
            let driver = Driver::new(driver).unwrap();
            (VolumeId { driver, ..fixture::volume(name) }, lease(holder))
        };
        let leases = [
            of("ebs", "1", "b"),
            of("ebs", "2", "a"),
            of("old", "3", "a"),
            of("old", "4", "b"),
            of("scaleio", "5", "b"),
        ];
        let everything = Everything { leases: leases.into(), ..Everything::default() };
        let drivers = r#"{"ebs": {"aliases": ["rexray"]}}"#;
        let pairs = [("etcd_endpoints", "h:1"), ("holder", "a"), ("drivers", drivers)];
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let parameters = KeeperParameters::read(&pairs).unwrap();
        let host = Host { parameters: &parameters, from: "a test", compare: true, agent: true, plugins: &[] };
        let found = not_served(&host, &everything);
        let found: Vec<_> = found.iter().map(|check| (check.level, check.what.as_str())).collect();
        assert!(
            matches!(found[0], (CheckLevel::Warning, what) if what.contains("holds volumes of old, ")),
            "{found:?}"
        );
        assert!(
            matches!(found[1], (CheckLevel::Note, what) if what.contains("hold volumes of scaleio, ")),
            "{found:?}"
        );
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
