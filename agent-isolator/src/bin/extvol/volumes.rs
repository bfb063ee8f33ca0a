//! `extvol volumes`: what the plugins of this host's drivers list, beside the leases.

use std::collections::BTreeMap;
use std::io::Write;

use agent_isolator::keeper::driver::{DockerPlugins, DriverError, Listed, UNMOUNT_TIMEOUT};
use agent_isolator::parameters::Drivers;
use futures::future::join_all;
use serde::Serialize;
use shared::protocol::exchange::Lease;
use shared::store::LeaseStore;
use shared::volume::{Driver, VolumeId, VolumeName};

use crate::arguments::Output;
use crate::failure::{Failure, cause};
use crate::leases::{json, stage, unreadable};
use crate::records::{Everything, Records};
use crate::table;

/// One volume as it is shown. The field names of its JSON stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Row {
    /// As it is leased; none if no lease can have such a name.
    volume: Option<String>,
    driver: String,
    /// What its plugin calls it; none if the plugin does not list it.
    listed_as: Option<String>,
    /// Of its lease; none if it was never leased.
    state: Option<&'static str>,
    holder: Option<String>,
    /// Where the plugin says that it is mounted on this host.
    mountpoint: Option<String>,
    /// Why no lease can have its name.
    fault: Option<String>,
    notes: Vec<String>,
}

/// What each plugin said.
type Answers = Vec<(Driver, Result<Vec<Listed>, DriverError>)>;

/// Asks the plugins of all drivers that this host serves, or that of one, and prints what they list.
///
/// # Errors
/// See [`Failure`]; plugins that do not answer, and leases that cannot be read, are named after the others were printed.
pub(crate) async fn run<S: LeaseStore>(
    out: &mut dyn Write,
    output: Output,
    records: &Records<S>,
    drivers: &Drivers,
    only: Option<&Driver>,
) -> Result<(), Failure> {
    if let Some(driver) = only.filter(|driver| !drivers.serves(driver)) {
        let served: Vec<_> = drivers.served.iter().map(Driver::as_str).collect();
        return Err(Failure::Refused(format!(
            "the driver {driver} is not served here: the parameter `drivers` lists {}",
            served.join(", ")
        )));
    }
    let everything = records.everything().await?;
    let plugins = DockerPlugins::new(drivers);
    let asked = drivers.served.iter().filter(|driver| {
        only.is_none_or(|only| drivers.naming.driver(only) == drivers.naming.driver(driver))
    });
    let ask = async |driver: &Driver| (driver.clone(), plugins.list(driver, UNMOUNT_TIMEOUT).await);
    let answers = join_all(asked.map(ask)).await;
    render(out, output, &rows(drivers, &answers, &everything))?;
    let silent: Vec<_> =
        answers.iter().filter_map(|(_, answer)| answer.as_ref().err()).map(|error| cause(error)).collect();
    let broken = unreadable(&everything, &records.keys().leases()).err().map(|failure| failure.to_string());
    match silent.into_iter().chain(broken).collect::<Vec<_>>() {
        faults if faults.is_empty() => Ok(()),
        faults => Err(Failure::Refused(faults.join("; "))),
    }
}

fn rows(drivers: &Drivers, answers: &Answers, everything: &Everything) -> Vec<Row> {
    let mut rows = Vec::new();
    for (driver, answer) in answers {
        let Ok(listed) = answer else { continue };
        let mut named: BTreeMap<VolumeId, Vec<&Listed>> = BTreeMap::new();
        let mut faulty = Vec::new();
        for volume in listed {
            match leased(drivers, driver, &volume.name) {
                Ok(id) => named.entry(id).or_default().push(volume),
                Err(fault) => {
                    faulty.push(Row { volume: None, fault: Some(fault), ..row(driver, Some(volume)) })
                }
            }
        }
        // What is leased, and its plugin does not know, is worth a look.
        let canonical = drivers.naming.driver(driver);
        let of_this = everything.leases.iter().filter(|(id, lease)| {
            let owed = matches!(lease.record, Lease::Free { owed: Some(_), .. });
            id.driver == *canonical && (lease.record.held().is_some() || owed)
        });
        for (id, _) in of_this {
            named.entry(id.clone()).or_default();
        }
        for (id, listed) in named {
            rows.extend(of_lease(driver, &id, &listed, everything));
        }
        rows.extend(faulty);
    }
    rows
}

/// The name under which a volume is leased that its plugin calls so.
fn leased(drivers: &Drivers, driver: &Driver, name: &str) -> Result<VolumeId, String> {
    let name = VolumeName::new(name).map_err(|why| format!("the volume name {name:?} {why}"))?;
    drivers.canonical(&VolumeId { driver: driver.clone(), name })
}

fn row(driver: &Driver, listed: Option<&Listed>) -> Row {
    Row {
        volume: None,
        driver: driver.to_string(),
        listed_as: listed.map(|listed| listed.name.clone()),
        state: None,
        holder: None,
        mountpoint: listed.map(|listed| listed.mountpoint.clone()).filter(|path| !path.is_empty()),
        fault: None,
        notes: Vec::new(),
    }
}

/// A row for each name that the plugin has for one volume, or one without.
fn of_lease(driver: &Driver, id: &VolumeId, listed: &[&Listed], everything: &Everything) -> Vec<Row> {
    let lease = everything.leases.get(id).map(|stored| &stored.record);
    let mut notes = Vec::new();
    let (state, holder) = match lease {
        None => (None, None),
        Some(Lease::Held(held)) => (Some(stage(held.stage)), Some(held.holder.to_string())),
        Some(Lease::Free { owed, .. }) => {
            notes.extend(owed.iter().map(|owed| format!("may still be attached to {}", owed.hosts())));
            (Some("free"), None)
        }
    };
    match listed.len() {
        0 => notes.push("its plugin does not list it".to_owned()),
        1 => {}
        names => notes.push(format!("its plugin has {names} volumes that are this one by name")),
    }
    let whole = |listed: Option<&Listed>| {
        let spelt = listed.map(|listed| listed.name.as_str()).filter(|name| *name != id.name.as_str());
        let spelt = spelt.map(|name| format!("its plugin calls it {name:?}"));
        Row {
            volume: Some(id.to_string()),
            state,
            holder: holder.clone(),
            notes: notes.iter().cloned().chain(spelt).collect(),
            ..row(driver, listed)
        }
    };
    match listed {
        [] => vec![whole(None)],
        listed => listed.iter().map(|listed| whole(Some(listed))).collect(),
    }
}

fn render(out: &mut dyn Write, output: Output, rows: &[Row]) -> Result<(), Failure> {
    if output == Output::Json {
        return json(out, &rows);
    }
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            let named = || format!("{}/{}", row.driver, row.listed_as.as_deref().unwrap_or_default());
            let fault = row.fault.iter().map(|why| format!("no lease can have this name: {why}"));
            [
                row.volume.clone().unwrap_or_else(named),
                row.holder.clone().unwrap_or_default(),
                row.state.unwrap_or_default().to_owned(),
                row.mountpoint.clone().unwrap_or_default(),
                fault.chain(row.notes.iter().cloned()).collect::<Vec<_>>().join("; "),
            ]
        })
        .collect();
    Ok(table::print(out, ["VOLUME", "HELD-BY", "STATE", "MOUNTPOINT", "NOTES"], &cells)?)
}

#[cfg(test)]
mod tests {
    use agent_isolator::parameters::KeeperParameters;
    use shared::protocol::exchange::{Held, Owed};
    use shared::store::Revision;

    use super::*;
    use crate::fixture::{Fixture, held, volume};
    use crate::records::Stored;

    fn drivers() -> Drivers {
        let drivers = r#"{"ebs": {"aliases": ["rexray"]}, "nfs": {"case_sensitive": true}}"#;
        let pairs = [("etcd_endpoints", "h:1"), ("drivers", drivers)];
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        KeeperParameters::read(&pairs).unwrap().drivers
    }

    fn listed(name: &str, mountpoint: &str) -> Listed {
        Listed { name: name.into(), mountpoint: mountpoint.into() }
    }

    fn everything() -> Everything {
        let stored = |record| Stored { record, at: Revision(9), since: None };
        let owed = Owed { from: [crate::fixture::holder("lost")].into(), since: None, by_time: false };
        let leases = [
            (volume("a"), stored(Lease::Held(held()))),
            (volume("gone"), stored(Lease::Held(Held { mount_point: None, ..held() }))),
            (volume("free"), stored(Lease::Free { last_holder: None, owed: None })),
            (volume("owed"), stored(Lease::Free { last_holder: None, owed: Some(owed) })),
        ];
        Everything { leases: leases.into(), ..Everything::default() }
    }

    fn printed(output: Output, answers: &Answers) -> String {
        let mut out = Vec::new();
        render(&mut out, output, &rows(&drivers(), answers, &everything())).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_volume_is_a_line_with_its_lease_and_what_is_odd_about_it() {
        let ebs = vec![
            listed("A", "/m/a"),
            listed("new", ""),
            listed("owed", ""),
            listed("twice", ""),
            listed("TWICE", "/m/t"),
            listed("a\u{1b}b", "/x\ny"),
            listed("../x", ""),
            listed("", ""),
        ];
        let driver = |name: &str| Driver::new(name).unwrap();
        let answers = vec![(driver("ebs"), Ok(ebs)), (driver("nfs"), Ok(vec![listed("Share", "")]))];
        let table = printed(Output::Table, &answers);
        let lines: Vec<_> = table
            .lines()
            .map(|line| {
                line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("|")
            })
            .collect();
        let expected = [
            "VOLUME|HELD-BY|STATE|MOUNTPOINT|NOTES",
            "ebs/a|a|attached|/m/a|its plugin calls it \"A\"",
            "ebs/gone|a|attached|-|its plugin does not list it",
            "ebs/new|-|-|-|-",
            "ebs/owed|-|free|-|may still be attached to lost",
            "ebs/twice|-|-|-|its plugin has 2 volumes that are this one by name",
            "ebs/twice|-|-|/m/t|its plugin has 2 volumes that are this one by name; its plugin calls it \"TWICE\"",
        ];
        assert_eq!(lines[..7], expected, "{table}");
        assert!(lines[7].starts_with("ebs/a\\u{1b}b|-|-|/x\\ny|no lease can have this name: "), "{table}");
        assert!(lines[8].starts_with("ebs/../x|-|-|-|no lease can have this name: "), "{table}");
        assert!(lines[9].starts_with("ebs/|-|-|-|no lease can have this name: "), "{table}");
        assert_eq!(lines[10..], ["nfs/Share|-|-|-|-"], "{table}");
    }

    #[test]
    fn the_json_of_a_volume_keeps_its_field_names() {
        let answers = vec![(Driver::new("nfs").unwrap(), Ok(vec![listed("Share", "/m/Share")]))];
        let expected = r#"[
  {
    "volume": "nfs/Share",
    "driver": "nfs",
    "listed_as": "Share",
    "state": null,
    "holder": null,
    "mountpoint": "/m/Share",
    "fault": null,
    "notes": []
  }
]
"#;
        assert_eq!(printed(Output::Json, &answers), expected);
    }

    #[tokio::test]
    async fn a_driver_that_is_not_served_and_a_plugin_that_is_not_there_are_refused() {
        let fixture = Fixture::holding();
        let mut out = Vec::new();
        let other = Driver::new("other").unwrap();
        let ended = run(&mut out, Output::Table, &fixture.records, &drivers(), Some(&other)).await;
        let text = ended.unwrap_err().to_string();
        assert!(
            text.contains("the driver other is not served here: the parameter `drivers` lists ebs, nfs"),
            "{text}"
        );
        assert!(out.is_empty());
        // By another name of it.
        let alias = Driver::new("rexray").unwrap();
        let ended =
            run(&mut out, Output::Table, &fixture.records, &drivers(), Some(&alias)).await.unwrap_err();
        assert_eq!(ended.exit_code(), 1);
        assert!(ended.to_string().contains("no Docker volume plugin named ebs was found"), "{ended}");
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 1);
    }
}
