//! Winding down what was revoked: a message first, then a kill, then the short path, which is the fence (L15).

use std::time::Duration;

use super::tracked::Tracked;
use super::{Container, Core, Output, Volume};
use crate::exchange::SessionState;
use crate::volume::VolumeId;
use crate::{Now, Text};

/// The longest that a driver call is waited for: a Mount's.
const CALL: Duration = Duration::from_secs(120);

impl Core {
    pub(super) fn is_revoking(&self) -> bool {
        self.mine.as_ref().is_some_and(|mine| mine.record.state == SessionState::Revoking)
    }

    /// When this host is fenced because it gives back too slowly what was revoked: another waits for all that a lost agent's host
    /// has, and its containers end in any case; for one volume alone calls may last as long as they do, before all others' tasks end.
    /// Never for a volume that another host waits for while this one's agent is away: the others' tasks are to outlive that.
    pub(super) fn revoke_ends(&self) -> Option<Now> {
        let mine = self.mine.as_ref().filter(|_| self.is_open())?;
        let counts = |(id, volume): (&VolumeId, &Volume)| volume.revoked.filter(|_| !self.is_waited_for(id));
        let alone = || self.volumes.iter().filter_map(counts).min();
        let alone = || Some(alone()? + CALL + self.settings.settle);
        Some(mine.revoking.or_else(alone)? + self.patience())
    }

    fn is_waited_for(&self, id: &VolumeId) -> bool {
        self.leases.get(id).is_some_and(|(held, _)| held.is_waited_for())
    }

    /// A lease was given back: a revoked session has the whole time for the next.
    pub(super) fn gave_back(&mut self, now: Now) {
        if let Some(mine) = &mut self.mine {
            mine.revoking = mine.revoking.map(|_| now);
        }
    }

    /// How long a container may take to end before this host is fenced instead.
    pub(super) fn patience(&self) -> Duration {
        self.settings.grace + self.settings.timing.kill
    }

    /// Whether a revoked session holds nothing any more, and no call of its is under way.
    pub(super) fn is_wound_down(&self) -> bool {
        self.is_revoking() && self.ready && !self.armed() && !self.barrier
    }

    /// When something is next due for a container that was told to end.
    pub(super) fn end_time(&self, container: &Container) -> Option<Now> {
        let since = container.ending?;
        Some(since + if container.killed { self.patience() } else { self.settings.grace })
    }

    /// Ends whoever uses what was revoked.
    pub(super) fn wind_down(&mut self, now: Now) {
        let all = self.is_revoking();
        if !all && !self.volumes.values().any(|volume| volume.revoked.is_some()) {
            return;
        }
        if self.revoke_ends().is_some_and(|at| at <= now) {
            return self.fence("what was revoked was not given back in time");
        }
        // Whoever used it has ended before, or is told to: nobody waits for the neighbours' copies of the mount.
        for volume in self.volumes.values_mut().filter(|volume| volume.users.is_empty()) {
            if (all || volume.revoked.is_some()) && !volume.doubts.is_empty() {
                volume.doubts.clear();
                volume.retry_at = None;
                self.table_changed = true;
            }
        }
        let (mut unprepared, mut unstarted) = (Vec::new(), Vec::new());
        let mut overdue = false;
        for (id, container) in self.containers.iter_mut() {
            if !all && revoked(container, &self.volumes).next().is_none() {
                continue;
            }
            if self.waiting.contains_key(id) {
                unprepared.push(id.clone());
                continue;
            }
            let told = container.ending.is_some();
            let since = *container.ending.get_or_insert(now);
            if !told {
                let message = match self.mine.as_ref().filter(|_| all) {
                    Some(mine) => {
                        let names = container.volumes.iter().map(|wanted| &wanted.volume);
                        message(names, "with all leases of this host", mine.record.reason.as_ref())
                    }
                    None => {
                        let names = revoked(container, &self.volumes);
                        let held = names.clone().find_map(|id| self.leases.get(id));
                        message(names, "alone", held.and_then(|(held, _)| held.revoked.as_ref()))
                    }
                };
                self.outputs.push_back(Output::Limit { container: id.clone(), message });
            }
            // Nothing of it runs, and from now on nothing can: `isolate` refuses it. There is nothing to kill or to wait
            // for, and its agent may be gone.
            if !container.is_isolated() {
                unstarted.push(id.clone());
                continue;
            }
            if now >= since + self.settings.grace && !container.killed {
                container.killed = true;
                self.outputs.push_back(Output::Kill { container: id.clone() });
            }
            if now >= since + self.settings.grace + self.settings.timing.kill {
                let is_waited_for =
                    |id: &VolumeId| self.leases.get(id).is_some_and(|(held, _)| held.is_waited_for());
                match !all && revoked(container, &self.volumes).all(is_waited_for) {
                    // It is killed again.
                    true => (container.ending, container.killed) = (Some(now), false),
                    false => overdue = true,
                }
            }
        }
        for id in unprepared {
            self.end(&id, "the volumes that it asks for are revoked from this host");
        }
        for id in unstarted {
            self.end(&id, "it was never started");
        }
        if overdue {
            self.fence("a container did not end after a revoke");
        }
    }
}

/// Those of a container's volumes that were revoked alone.
fn revoked<'a>(
    container: &'a Container,
    volumes: &'a Tracked<VolumeId, Volume>,
) -> impl Iterator<Item = &'a VolumeId> + Clone {
    let ids = container.volumes.iter().map(|wanted| &wanted.volume);
    ids.filter(|id| volumes.get(id).is_some_and(|volume| volume.revoked.is_some()))
}

/// What the framework shows: which volumes, and why.
fn message<'a>(volumes: impl Iterator<Item = &'a VolumeId>, of: &str, reason: Option<&Text>) -> Text {
    let volumes: Vec<_> = volumes.map(ToString::to_string).collect();
    let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("the lease of volume {} was revoked {of}{why}; the container has to end", volumes.join(", "))
        .into()
}
