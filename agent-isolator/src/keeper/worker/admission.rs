//! The look before each prepare: at the mount roots, which somebody may mend, or break, while the keeper runs; and, where there
//! are rules about who may use which volumes, at them and at the frameworks of the agents that ask.
//!
//! It reads the host's mount table, whose lock every task that makes mount namespaces holds, and waits for an agent: so it is done
//! beside the worker's thread, which beats. One look serves all that came before it began.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared::protocol::Text;
use shared::protocol::holder::Wanted;
use shared::volume::ContainerId;

use crate::agent_state;
use crate::keeper::server::ConnectionId;
use crate::keeper::volume_rules::{self, Action, Framework, Subject, VolumeRules};
use crate::keeper::{blocking, mounts};
use crate::wire::{Asker, Call};

/// An agent answers within milliseconds, unless it is very busy.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a look has shown.
#[derive(Debug)]
pub struct Look {
    /// Whether volumes may be mounted below the roots.
    roots: Result<(), Text>,
    /// None where there are no rules.
    who_may: Option<Result<WhoMay, Text>>,
}

#[derive(Debug)]
struct WhoMay {
    rules: VolumeRules,
    /// By agent.
    frameworks: BTreeMap<String, Result<BTreeMap<String, Framework>, String>>,
}

impl Look {
    /// What may be had of these volumes; what may not be made is to exist.
    pub(super) fn admit(&self, agent: &str, asker: &Asker, wanted: Vec<Wanted>) -> Result<Vec<Wanted>, Text> {
        self.roots.clone()?;
        let Some(who_may) = &self.who_may else { return Ok(wanted) };
        let WhoMay { rules, frameworks } = who_may.as_ref().map_err(Text::clone)?;
        let framework = match &asker.framework {
            None => None,
            Some(id) => {
                let unknown = |why: &str| {
                    Text::from(format!(
                        "this host has volume rules, and which framework {id} is cannot be told from the state of the agent at \
                         {agent}: {why}"
                    ))
                };
                let known = frameworks.get(agent).ok_or_else(|| unknown("it was not asked"))?;
                let known = known.as_ref().map_err(|why| unknown(why))?;
                Some(known.get(id).ok_or_else(|| unknown("it does not show it"))?)
            }
        };
        let subject = Subject { framework, user: asker.user.as_deref() };
        let admit = |mut wanted: Wanted| {
            rules.check(subject, &wanted.volume, Action::Use)?;
            if let (Some(_), Err(why)) =
                (&wanted.create, rules.check(subject, &wanted.volume, Action::Create))
            {
                tracing::info!("{why}; so it has to exist");
                wanted.create = None;
            }
            Ok::<_, String>(wanted)
        };
        Ok(wanted.into_iter().map(admit).collect::<Result<_, _>>()?)
    }
}

/// Looks.
pub(super) async fn look(roots: Vec<PathBuf>, rules: Option<PathBuf>, agents: BTreeSet<String>) -> Look {
    let (roots, rules) = blocking(move || {
        let rules = rules.map(|file| VolumeRules::read(&file));
        (check(&roots), rules)
    })
    .await;
    let who_may = match rules {
        None => None,
        Some(Err(why)) => Some(Err(why.into())),
        Some(Ok(rules)) => {
            let mut frameworks = BTreeMap::new();
            for agent in agents {
                let state = tokio::time::timeout(AGENT_TIMEOUT, agent_state::read(&agent)).await;
                let state = state.unwrap_or_else(|_| Err("it did not answer in time".into()));
                frameworks.insert(agent, state.and_then(|state| volume_rules::frameworks(&state)));
            }
            Some(Ok(WhoMay { rules, frameworks }))
        }
    };
    Look { roots: roots.map_err(Text::from), who_may }
}

/// A prepare that waits for the look.
pub(super) struct Waiting {
    pub(super) connection: ConnectionId,
    pub(super) call_id: u64,
    pub(super) call: Call,
}

impl Waiting {
    /// Whether it is of this container of this agent's: another agent of the host may have one of the same name.
    pub(super) fn is_of(&self, of: &str, named: &ContainerId) -> bool {
        matches!(&self.call, Call::Prepare { agent, container, .. } if agent == of && container == named)
    }
}

/// Prepares, before and during the look.
#[derive(Default)]
pub(super) struct Admission {
    waiting: Vec<Waiting>,
    /// Those that the present look is for.
    looked_for: Option<Vec<Waiting>>,
}

impl Admission {
    pub(super) fn add(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// Begins a look, unless one is under way or nobody waits; answers whose agents are to be asked.
    pub(super) fn begin(&mut self) -> Option<BTreeSet<String>> {
        if self.looked_for.is_some() || self.waiting.is_empty() {
            return None;
        }
        let looked_for = self.looked_for.insert(std::mem::take(&mut self.waiting));
        let agent = |waiting: &Waiting| match &waiting.call {
            Call::Prepare { agent, .. } => Some(agent.clone()),
            _ => None,
        };
        Some(looked_for.iter().filter_map(agent).collect())
    }

    /// The look has ended: who waited for it.
    pub(super) fn ended(&mut self) -> Vec<Waiting> {
        self.looked_for.take().unwrap_or_default()
    }

    /// Those that no longer wait, because their container or connection has ended.
    pub(super) fn remove(&mut self, gone: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let all = std::iter::once(&mut self.waiting).chain(&mut self.looked_for);
        all.flat_map(|all| all.extract_if(.., |waiting| gone(waiting)).collect::<Vec<_>>()).collect()
    }
}

/// Whether volumes may be mounted below each; one that others see is closed.
///
/// # Errors
/// A sentence with the command that mends it.
fn check(roots: &[PathBuf]) -> Result<(), String> {
    roots.iter().try_for_each(|root| {
        mounts::check_root(root)?;
        close(root)
    })
}

/// Closes a mount root to all but root, and says so where that changed something.
pub(super) fn close(root: &Path) -> Result<(), String> {
    if mounts::close_root(root)? {
        tracing::info!("the mount root {} belongs to root alone now (mode 0700)", root.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(named: &str) -> Waiting {
        let container = ContainerId::new(named).unwrap();
        let call = Call::Prepare {
            container,
            agent: "a".into(),
            agent_id: None,
            asker: Asker::default(),
            volumes: vec![],
        };
        Waiting { connection: ConnectionId(1), call_id: 1, call }
    }

    fn name(waiting: &Waiting) -> &str {
        match &waiting.call {
            Call::Prepare { container, .. } => container.as_str(),
            _ => panic!("no prepare"),
        }
    }

    fn names(waiting: &[Waiting]) -> Vec<&str> {
        waiting.iter().map(name).collect()
    }

    #[test]
    fn one_look_is_for_all_that_came_before_it_and_for_none_that_came_later() {
        let mut admission = Admission::default();
        assert!(admission.begin().is_none());
        admission.add(waiting("a"));
        admission.add(waiting("b"));
        assert!(admission.begin().is_some());
        admission.add(waiting("c"));
        assert!(admission.begin().is_none(), "one at a time");
        assert_eq!(names(&admission.ended()), ["a", "b"]);
        assert!(admission.begin().is_some());
        assert_eq!(names(&admission.ended()), ["c"]);
    }

    #[test]
    fn a_container_that_ends_meanwhile_is_not_prepared() {
        let mut admission = Admission::default();
        admission.add(waiting("a"));
        admission.add(waiting("b"));
        assert!(admission.begin().is_some());
        admission.add(waiting("a"));
        let a = ContainerId::new("a").unwrap();
        assert!(admission.remove(|waiting| waiting.is_of("another agent", &a)).is_empty());
        let gone = admission.remove(|waiting| waiting.is_of("a", &a));
        assert_eq!(names(&gone), ["a", "a"]);
        assert_eq!(names(&admission.ended()), ["b"]);
    }
}
