//! Who waits for whose volumes, and what it is worth to ask the leading master more often for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use shared::event::Answering;
use shared::protocol::exchange::SessionState;
use shared::volume::Holder;

use super::{Known, View};
use crate::acting::holdings::{Followed, Wanted};
use crate::mesos::Registration;

/// Something for which a session may have to be revoked as soon as the leading master's list says so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressing {
    /// Another host waits for a volume of this holder.
    Wanted(Holder),
    /// The leading master has lost the connection to this holder's agent.
    Inactive(Holder),
    /// It does not list it, and has not said that it has given it up.
    Unlisted(Holder),
    /// It does not answer.
    Silent(Holder),
}

impl View {
    /// Whether somebody has begun or ceased to wait since this was last asked.
    pub(crate) fn wants_changed(&mut self) -> bool {
        std::mem::take(&mut self.wants_changed)
    }

    /// The leases that live sessions of other hosts want.
    #[must_use]
    pub(crate) fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::new();
        for holder in &self.wanting {
            let Some(session) = self.sessions.get(holder) else { continue };
            for volume in &session.wants {
                let Some((volume, Known { lease, written })) = self.leases.get_key_value(volume) else {
                    continue;
                };
                if lease.holder != *holder {
                    let (holder, epoch) = (lease.holder.clone(), lease.epoch);
                    wanted.insert(Arc::clone(volume), Followed { holder, epoch, written: *written });
                }
            }
        }
        wanted
    }

    /// What presses, of holders whose session is live: the others are being dealt with. Of each the agent, and how the
    /// leading master lists it.
    #[must_use]
    pub(crate) fn pressing(&self) -> BTreeMap<Pressing, (Arc<str>, Option<Registration>)> {
        let mut pressing = BTreeMap::new();
        let Some(agents) = &self.agents else { return pressing };
        let wanted: BTreeSet<_> = self.wanted().into_values().map(|followed| followed.holder).collect();
        for (holder, holding) in &self.holders {
            let live = self.sessions.get(holder).filter(|session| session.state == SessionState::Live);
            let id = live.and_then(|session| session.agent_id.as_ref());
            let Some(id) = id.filter(|id| !self.given_up.contains(*id)) else { continue };
            let registration = agents.by_id.get(id).map(|(registration, _)| *registration);
            let mut presses = |why: fn(Holder) -> Pressing| {
                pressing.insert(why(holder.clone()), (Arc::clone(id), registration));
            };
            match registration {
                Some(Registration::Inactive) => presses(Pressing::Inactive),
                None => presses(Pressing::Unlisted),
                Some(Registration::Active | Registration::Deactivated | Registration::Recovered) => {}
            }
            if holding.answering == Answering::Silent {
                presses(Pressing::Silent);
            }
            if wanted.contains(holder) {
                presses(Pressing::Wanted);
            }
        }
        pressing
    }
}
