//! How the agents of holders stand: in the eyes of the leading master, and by their own answers.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use shared::event::{Answering, Listed, StandingRecord};
use shared::protocol::reclaimer;
use shared::volume::Holder;

use super::{Agents, Holding, View, outside};
use crate::agents::{AgentAddress, Answer, Target};
use crate::event::{AgentView, Event, Told, Whose};
use crate::mesos::{Agent, Registration, Registry};

/// Failures in a row after which an agent is called silent: one lost packet, or an agent that is
/// being restarted, is no news.
const SILENT_AFTER: u32 = 2;

/// The fewest agents that are too many to have been given up at once: as for the storm guard.
const MANY: usize = 3;

/// Of how many agents it is not believed that they are lost, since these are most of them at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NotBelieved {
    pub(crate) given_up: usize,
    pub(crate) inactive: usize,
}

impl View {
    /// The leading master was asked for its agents. What it does not list is told only when its
    /// registry was asked as well: see [`View::unlisted`].
    pub(crate) fn listed(&mut self, agents: Vec<Agent>) {
        let mut known = Agents::default();
        for Agent { id, hostname, registration, address } in agents {
            let id: Arc<str> = id.into();
            let other = known.by_host.get(&hostname).and_then(|other| known.by_id.get(other));
            let (active, here) = (registration == Registration::Active, registration.may_be_connected());
            if other.is_none_or(|(other, _)| active || here && !other.may_be_connected()) {
                known.by_host.insert(hostname, Arc::clone(&id));
            }
            known.by_id.insert(id, (registration, address));
        }
        // One that is listed was not given up, or is back; one that no holder names is nobody's business.
        let unlisted = self.unlisted_in(&known);
        self.given_up.retain(|id| unlisted.contains(id));
        self.unlisted_once.retain(|id| unlisted.contains(id));
        self.unlisted_twice = self.unlisted_once.clone();
        self.agents = Some(known);
        self.registry = None;
    }

    /// Agents of holders that the leading master does not list: the registry may know what became of
    /// them.
    #[must_use]
    pub(crate) fn unlisted(&self) -> BTreeSet<Arc<str>> {
        self.agents.as_ref().map(|agents| self.unlisted_in(agents)).unwrap_or_default()
    }

    fn unlisted_in(&self, agents: &Agents) -> BTreeSet<Arc<str>> {
        let named = |(holder, holding): (&Holder, &Holding)| {
            let named = self.named(holder, self.agent_of_first_lease(holding))?;
            (!agents.by_id.contains_key(&named) && !agents.by_host.contains_key(holder.as_str()))
                .then_some(named)
        };
        self.holders.iter().filter_map(named).collect()
    }

    /// The leading master's registry was asked, or needed not be.
    #[must_use]
    pub(crate) fn polled(&mut self, registry: Option<Registry>) -> Vec<Told> {
        if let Some(registry) = &registry {
            self.take_given_up(registry);
        }
        self.registry = registry;
        let holders: Vec<_> = self.holders.keys().cloned().collect();
        let mut told = Vec::new();
        for holder in holders {
            self.tell_agent(&holder, &mut told);
        }
        told
    }

    /// The agents to ask: those of holders whose address is known.
    #[must_use]
    pub(crate) fn targets(&self) -> Vec<Target> {
        let target = |(holder, holding): (&Holder, &Holding)| {
            let (agent_id, address) = holding.seen_at.clone()?;
            let verified = holding.verified && holding.listed == Listed::Active;
            Some(Target { holder: holder.clone(), agent_id, address, verified })
        };
        self.holders.iter().filter_map(target).collect()
    }

    /// Agents answered, or did not.
    #[must_use]
    pub(crate) fn answered(&mut self, answers: Vec<Answer>) -> Vec<Told> {
        let mut told = Vec::new();
        for Answer { holder, agent_id, address, answering, why } in answers {
            let Some(holding) = self.holders.get_mut(&holder) else { continue };
            // Meanwhile it may be another agent's.
            if holding.seen_at.as_ref().is_none_or(|seen| *seen != (agent_id, address)) {
                continue;
            }
            holding.verified = answering == Answering::Answers;
            if answering == Answering::Silent {
                holding.failures = holding.failures.saturating_add(1);
                if holding.failures < SILENT_AFTER {
                    continue;
                }
            } else {
                holding.failures = 0;
            }
            holding.answering = answering;
            let standing = self.standings.get(&holder).cloned().unwrap_or_default();
            if standing.answering == answering {
                continue;
            }
            let Some(whose) = self.whose(&holder) else { continue };
            self.standings.insert(holder, StandingRecord { answering, ..standing });
            told.push(outside(Event::Answering { whose, answering, why }));
        }
        told
    }

    /// What the core is to know of the agents, by the last list and what the registry said; and what is not believed.
    ///
    /// Connected is whatever is not known to be disconnected: also those that the leading master knows from before
    /// it led, and those that an operator has deactivated. When there is no list (`is_known`) that is every agent.
    ///
    /// Given up is an agent that stands in no list of the leading master and that its registry has as unreachable,
    /// gone, or not at all. Inactive is one that is listed as that; or that its registry has admitted, and that two
    /// lists in a row did not have. Neither, if an agent that may be connected has its holder's name or its address.
    ///
    /// When more than half of the holders, and at least [`MANY`], are given up at once, the masters have more likely
    /// lost their registry, or are not those of this installation: then none is. When that many are inactive or given
    /// up, the leading master has more likely lost its network than so many agents: then none is inactive.
    #[must_use]
    pub(crate) fn agents_for_the_core(&self, is_known: bool) -> (reclaimer::Agents, NotBelieved) {
        let (mut core, mut not_believed) = (reclaimer::Agents::default(), NotBelieved::default());
        let Some(agents) = self.agents.as_ref().filter(|_| is_known) else {
            core.connected = (self.holders.iter())
                .filter_map(|(holder, holding)| self.named(holder, self.agent_of_first_lease(holding)))
                .collect();
            return (core, not_believed);
        };
        core.connected = (agents.by_id.iter())
            .filter(|(_, (registration, _))| registration.may_be_connected())
            .map(|(id, _)| Arc::clone(id))
            .collect();
        let (mut given_up, mut inactive) = (Vec::new(), Vec::new());
        for holder in self.holders.keys() {
            let Some(session) = self.sessions.get(holder) else { continue };
            let Some(id) = &session.agent_id else { continue };
            let lost = match agents.by_id.get(id) {
                Some((Registration::Inactive, _)) => &mut inactive,
                None if self.unlisted_twice.contains(id) => &mut inactive,
                None if self.given_up.contains(id) => &mut given_up,
                _ => continue,
            };
            let namesake = agents.by_host.get(holder.as_str()).filter(|namesake| *namesake != id);
            let is_there = |id: &Arc<str>| agents.by_id.get(id).is_some_and(|(r, _)| r.may_be_connected());
            if namesake.is_none_or(|namesake| !is_there(namesake)) {
                lost.push((id, session.address.as_ref()));
            }
        }
        if given_up.is_empty() && inactive.is_empty() {
            return (core, not_believed);
        }
        let are_too_many = |lost: usize| lost >= MANY && lost * 2 > self.holders.len();
        if are_too_many(given_up.len()) {
            not_believed.given_up = given_up.len();
            given_up.clear();
            inactive.clear();
        } else if are_too_many(given_up.len() + inactive.len()) {
            not_believed.inactive = inactive.len();
            inactive.clear();
        }
        let there: HashSet<_> = (agents.by_id.values())
            .filter(|(registration, _)| registration.may_be_connected())
            .filter_map(|(_, address)| address.as_ref())
            .collect();
        let ids = |lost: Vec<(&Arc<str>, Option<&AgentAddress>)>| {
            let lost = lost.into_iter().filter(|(_, address)| address.is_none_or(|a| !there.contains(a)));
            lost.map(|(id, _)| Arc::clone(id)).collect()
        };
        (core.given_up, core.inactive) = (ids(given_up), ids(inactive));
        (core, not_believed)
    }

    /// Agents that the registry was found to have given up, and that have not been listed since.
    pub(crate) fn given_up(&self) -> &BTreeSet<Arc<str>> {
        &self.given_up
    }

    /// Whether there is an agent that is not listed and of which the registry has not said anything.
    pub(crate) fn has_new_unlisted(&self) -> bool {
        let is_new = |id: &Arc<str>| !self.given_up.contains(id) && !self.unlisted_once.contains(id);
        self.unlisted().iter().any(is_new)
    }

    /// What a registry says of the agents that it was asked for, of each by its id: what was known of another
    /// agent of the same holder proves nothing.
    fn take_given_up(&mut self, registry: &Registry) {
        for id in &registry.asked {
            let listed = registry.unreachable.contains(&**id) || registry.gone.contains(&**id);
            if listed || !registry.admitted.contains(&**id) {
                self.given_up.insert(Arc::clone(id));
                self.unlisted_once.remove(id);
                self.unlisted_twice.remove(id);
            } else {
                self.given_up.remove(id);
                self.unlisted_once.insert(Arc::clone(id));
            }
        }
    }

    /// Whether the leading master may still reach an agent, for all that the last list says.
    pub(crate) fn may_be_connected(&self, agent_id: &str) -> bool {
        self.agents.as_ref().is_none_or(|agents| {
            agents.by_id.get(agent_id).is_some_and(|(registration, _)| registration.may_be_connected())
        })
    }

    pub(super) fn agent_of_first_lease(&self, holding: &Holding) -> Option<Arc<str>> {
        self.leases.get(holding.volumes.first()?)?.lease.agent_id.clone()
    }

    /// The agent's id that a holder's session names, else its lease.
    pub(super) fn named(&self, holder: &Holder, of_lease: Option<Arc<str>>) -> Option<Arc<str>> {
        self.sessions.get(holder).and_then(|session| session.agent_id.clone()).or(of_lease)
    }

    /// The agent of a holder: that which its session names, else its lease, else one of that host.
    /// An id that the master does not know gives way to a host that it does: an agent that lost its
    /// working directory comes back under another id.
    pub(super) fn agent_of(&self, holder: &Holder, of_lease: Option<Arc<str>>) -> AgentView {
        let answering = self.holders.get(holder).map_or(Answering::NotAsked, |holding| holding.answering);
        let named = self.named(holder, of_lease);
        let Some(agents) = &self.agents else {
            return AgentView { id: named, listed: Listed::NotAsked, answering };
        };
        let by_id = named.as_ref().and_then(|id| agents.by_id.get_key_value(id));
        let by_host = || agents.by_id.get_key_value(agents.by_host.get(holder.as_str())?);
        if let Some((id, (registration, _))) = by_id.or_else(by_host) {
            let listed = match registration {
                Registration::Active => Listed::Active,
                Registration::Inactive | Registration::Deactivated => Listed::Inactive,
                Registration::Recovered => Listed::Recovered,
            };
            return AgentView { id: Some(Arc::clone(id)), listed, answering };
        }
        let listed = match (&named, &self.registry) {
            (None, _) => Listed::Unknown,
            // What the registry says is not known yet: what was known of it before still holds.
            (Some(id), registry)
                if registry.as_ref().is_none_or(|r| !r.asked.contains(id) || r.admitted.contains(&**id)) =>
            {
                match self.holders.get(holder).map(|holding| holding.listed) {
                    Some(before @ (Listed::Unreachable | Listed::Gone | Listed::Unknown)) => before,
                    _ => Listed::NotAsked,
                }
            }
            (Some(id), Some(registry)) if registry.gone.contains(&**id) => Listed::Gone,
            (Some(id), Some(registry)) if registry.unreachable.contains(&**id) => Listed::Unreachable,
            (Some(_), _) => Listed::Unknown,
        };
        AgentView { id: named, listed, answering }
    }

    pub(super) fn whose(&self, holder: &Holder) -> Option<Whose> {
        let holding = self.holders.get(holder)?;
        let volume = Arc::clone(holding.volumes.first()?);
        let known = self.leases.get(&volume)?;
        let agent_id = match &holding.seen_at {
            Some((id, _)) => Some(Arc::clone(id)),
            None => self.named(holder, known.lease.agent_id.clone()),
        };
        let (epoch, more) = (Some(known.lease.epoch), holding.volumes.len() - 1);
        Some(Whose { holder: holder.clone(), epoch, volume, more, agent_id })
    }

    /// Looks how a holder's agent is listed, and tells what is new in that.
    pub(super) fn tell_agent(&mut self, holder: &Holder, told: &mut Vec<Told>) {
        let Some(holding) = self.holders.get(holder) else { return };
        let agent = self.agent_of(holder, self.agent_of_first_lease(holding));
        if agent.listed == Listed::NotAsked {
            return;
        }
        let address = agent.id.as_ref().and_then(|id| self.agents.as_ref()?.by_id.get(id)?.1.clone());
        let Some(holding) = self.holders.get_mut(holder) else { return };
        match (&agent.id, address) {
            (Some(id), Some(address)) => {
                let seen_at = Some((Arc::clone(id), address));
                if holding.seen_at != seen_at {
                    (holding.seen_at, holding.verified) = (seen_at, false);
                }
            }
            // Another agent than the one whose address is known.
            (id, None) if holding.seen_at.as_ref().is_some_and(|(known, _)| Some(known) != id.as_ref()) => {
                (holding.seen_at, holding.verified) = (None, false);
            }
            _ => {}
        }
        let before = std::mem::replace(&mut holding.listed, agent.listed);
        let standing = self.standings.get(holder).cloned().unwrap_or_default();
        if standing.listed == agent.listed {
            return;
        }
        let Some(whose) = self.whose(holder) else { return };
        let whose = Whose { agent_id: agent.id, ..whose };
        self.standings.insert(holder.clone(), StandingRecord { listed: agent.listed, ..standing });
        let before = (before != Listed::NotAsked).then_some(before);
        told.push(outside(Event::Listed { whose, listed: agent.listed, before }));
    }
}
