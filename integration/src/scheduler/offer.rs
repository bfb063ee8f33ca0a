//! What an offer holds, and taking an app's share out of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{app::App, executor::Executor};

/// One agent's offer, less what earlier apps took from it.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) id: String,
    pub(super) agent_id: String,
    pub(super) hostname: String,
    resources: Vec<Value>,
}

impl Offer {
    /// `None` if the offer lacks what every offer has.
    pub(super) fn read(offer: &Value) -> Option<Self> {
        Some(Self {
            id: offer["id"]["value"].as_str()?.to_owned(),
            agent_id: offer["agent_id"]["value"].as_str()?.to_owned(),
            hostname: offer["hostname"].as_str()?.to_owned(),
            resources: offer["resources"]
                .as_array()?
                .iter()
                .filter(|resource| plain(resource))
                .cloned()
                .collect(),
        })
    }

    /// Takes what `app` asks for, as the task's resources; takes nothing if something is short or the agent does not
    /// suit.
    pub(super) fn take(&mut self, app: &App) -> Option<Vec<Value>> {
        let scalars = [("cpus", app.cpus), ("mem", app.mem), ("disk", app.disk)];
        if !app.constraints.admit(&self.hostname) {
            return None;
        }
        self.take_all(&scalars, &app.resources)
    }

    /// As [`Offer::take`], what an executor asks for itself.
    pub(super) fn take_executor(&mut self, executor: &Executor) -> Option<Vec<Value>> {
        self.take_all(&Executor::SCALARS, &executor.resources)
    }

    fn take_all(
        &mut self,
        scalars: &[(&str, f64)],
        sets: &BTreeMap<String, Vec<String>>,
    ) -> Option<Vec<Value>> {
        let mut left = self.resources.clone();
        let mut taken = Vec::new();
        for (name, amount) in scalars {
            take_scalar(&mut left, name, *amount, &mut taken)?;
        }
        for (name, items) in sets {
            take_items(&mut left, name, items, &mut taken)?;
        }
        self.resources = left;
        Some(taken)
    }
}

/// Persistent, revocable, shared and provider resources are not spent on ordinary tasks.
fn plain(resource: &Value) -> bool {
    ["disk", "revocable", "shared", "provider_id"].iter().all(|key| resource.get(key).is_none())
}

/// Mesos counts scalars in thousandths.
fn thousandths(amount: f64) -> f64 {
    (amount * 1000.0).round() / 1000.0
}

/// An amount may be spread over several entries (unreserved, reserved for our role); what is taken keeps its entry's
/// reservations and allocation.
fn take_scalar(left: &mut [Value], name: &str, amount: f64, taken: &mut Vec<Value>) -> Option<()> {
    let mut missing = thousandths(amount);
    for entry in left.iter_mut().filter(|entry| entry["name"] == name) {
        let Some(available) = entry["scalar"]["value"].as_f64() else { continue };
        let part = available.min(missing);
        if part <= 0.0 {
            continue;
        }
        let mut piece = entry.clone();
        piece["scalar"]["value"] = json!(thousandths(part));
        taken.push(piece);
        entry["scalar"]["value"] = json!(thousandths(available - part));
        missing = thousandths(missing - part);
    }
    (missing <= 0.0).then_some(())
}

fn take_items(left: &mut [Value], name: &str, items: &[String], taken: &mut Vec<Value>) -> Option<()> {
    for item in items {
        let found = left.iter_mut().filter(|entry| entry["name"] == name).find_map(|entry| {
            let offered = entry["set"]["item"].as_array_mut()?;
            let position = offered.iter().position(|candidate| candidate == item)?;
            offered.remove(position);
            let mut piece = entry.clone();
            piece["set"]["item"] = json!([item]);
            Some(piece)
        })?;
        taken.push(found);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer::read(&json!({
            "id": { "value": "o" }, "agent_id": { "value": "a" }, "hostname": "h1",
            "resources": [
                { "name": "cpus", "type": "SCALAR", "scalar": { "value": 0.5 }, "role": "*" },
                { "name": "cpus", "type": "SCALAR", "scalar": { "value": 1.0 }, "reservations": [{ "role": "r" }] },
                { "name": "mem", "type": "SCALAR", "scalar": { "value": 100.0 } },
                { "name": "disk", "type": "SCALAR", "scalar": { "value": 100.0 }, "disk": { "persistence": {} } },
                { "name": "ebsvolumes", "type": "SET", "set": { "item": ["vol-1", "vol-2"] } },
            ],
        }))
        .unwrap()
    }

    fn app(more: &str) -> App {
        App::from_json(&format!(r#"{{"id": "a", "cmd": "x", "cpus": 0.7, "mem": 60 {more}}}"#)).unwrap()
    }

    #[test]
    fn a_share_is_taken_across_entries_and_cannot_be_taken_twice() {
        let mut offer = offer();
        let taken = offer.take(&app("")).unwrap();
        assert_eq!(taken.len(), 3);
        assert_eq!(taken[1]["scalar"]["value"], 0.2);
        assert_eq!(taken[1]["reservations"][0]["role"], "r");
        assert!(offer.take(&app("")).is_none(), "mem is short now");
    }

    #[test]
    fn a_set_item_is_taken_once() {
        let mut offer = offer();
        let wanting = app(r#", "resources": {"ebsvolumes": ["vol-2"]}"#);
        let taken = offer.clone().take(&wanting).unwrap();
        assert_eq!(taken[3]["set"]["item"], json!(["vol-2"]));
        assert_eq!(taken[3]["name"], "ebsvolumes");
        offer.take(&wanting).unwrap();
        assert_eq!(offer.resources[3]["set"]["item"], json!(["vol-1"]));
        assert!(offer.take(&wanting).is_none());
    }

    #[test]
    fn a_refused_take_changes_nothing() {
        let mut offer = offer();
        let before = offer.resources.clone();
        assert!(offer.take(&app(r#", "disk": 5"#)).is_none(), "persistent disk is not spent");
        assert!(offer.take(&app(r#", "constraints": {"hostnames": ["h2"]}"#)).is_none());
        assert!(offer.take(&app(r#", "constraints": {"avoid_hostnames": ["h1"]}"#)).is_none());
        assert_eq!(offer.resources, before);
        assert!(offer.take(&app(r#", "constraints": {"hostnames": ["h2", "h1"]}"#)).is_some());
    }
}
