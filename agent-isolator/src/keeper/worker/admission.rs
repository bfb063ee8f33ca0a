//! The look before each prepare: at the mount roots, which somebody may mend, or break, while the keeper runs; and, where there
//! are rules about who may use which volumes, at them and at the frameworks of the agents that ask.
//!
//! It reads the host's mount table, whose lock every task that makes mount namespaces holds, waits for agents, and compares many
//! names: so it is done beside the worker's thread, which beats. One look serves all that came before it began.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use shared::protocol::Text;
use shared::protocol::holder::Wanted;
use shared::volume::ContainerId;
use tokio::sync::Semaphore;

use crate::agent_state;
use crate::keeper::server::ConnectionId;
use crate::keeper::volume_rules::{self, Action, Framework, Subject, VolumeRules};
use crate::keeper::{blocking, mounts};
use crate::parameters::Drivers;
use crate::wire::Asker;

/// An agent answers within milliseconds, unless it is very busy; so does a file system.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long it is not asked again for frameworks that it has shown, and for how long they are known though it does not
/// answer. It writes its whole state for each answer.
const FRESH: Duration = Duration::from_secs(5);
const KNOWN: Duration = Duration::from_secs(60);

/// A prepare that waits for the look.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) connection: ConnectionId,
    pub(super) call_id: u64,
    pub(super) container: ContainerId,
    pub(super) agent: String,
    pub(super) agent_id: Option<String>,
    /// None of a module that is older than the rules.
    pub(super) asker: Option<Asker>,
    pub(super) volumes: Vec<Wanted>,
}

impl Asked {
    fn key(&self) -> (ConnectionId, u64) {
        (self.connection, self.call_id)
    }
}

/// Prepares, before and during the look.
pub(super) struct Admission {
    waiting: Vec<Asked>,
    /// Those that the present look is for.
    looked_for: Option<Vec<Asked>>,
    known: KnownFrameworks,
    /// One look at files at a time: one that hangs holds a thread.
    files: Arc<Semaphore>,
    /// What was last said of the rules.
    said: Option<Text>,
}

/// By agent, what it has shown, and when.
type KnownFrameworks = BTreeMap<String, (Instant, BTreeMap<String, Framework>)>;

/// What a look needs.
pub(super) struct Question {
    asked: Vec<Asked>,
    known: KnownFrameworks,
    files: Arc<Semaphore>,
}

/// What a look has shown.
#[derive(Debug)]
pub struct Look {
    /// What may be had, by who asked.
    decided: BTreeMap<(ConnectionId, u64), Result<Vec<Wanted>, Text>>,
    known: KnownFrameworks,
    /// Why the rules could not be read.
    unread: Option<Text>,
}

impl Admission {
    pub(super) fn new() -> Self {
        Self {
            waiting: Vec::new(),
            looked_for: None,
            known: KnownFrameworks::new(),
            files: Arc::new(Semaphore::new(1)),
            said: None,
        }
    }

    pub(super) fn add(&mut self, asked: Asked) {
        self.waiting.push(asked);
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.waiting.len() + self.looked_for.as_ref().map_or(0, Vec::len)
    }

    /// Begins a look, unless one is under way or nobody waits.
    pub(super) fn begin(&mut self) -> Option<Question> {
        if self.looked_for.is_some() || self.waiting.is_empty() {
            return None;
        }
        let asked = self.looked_for.insert(std::mem::take(&mut self.waiting)).clone();
        Some(Question { asked, known: self.known.clone(), files: Arc::clone(&self.files) })
    }

    /// The look has ended: who waited for it, and what each may have.
    pub(super) fn ended(&mut self, mut look: Look) -> Vec<(Asked, Result<Vec<Wanted>, Text>)> {
        self.known = look.known;
        if self.said != look.unread {
            match &look.unread {
                Some(why) => tracing::error!("{why}; no container gets a volume here until they can"),
                None => tracing::info!("the volume rules can be read again"),
            }
            self.said = look.unread;
        }
        let asked = self.looked_for.take().unwrap_or_default();
        let verdict = |asked: Asked| {
            let decided = look.decided.remove(&asked.key());
            (asked, decided.unwrap_or_else(|| Err("a bug: it was not looked for it".into())))
        };
        asked.into_iter().map(verdict).collect()
    }

    /// Those that no longer wait, because their container or connection has ended.
    pub(super) fn remove(&mut self, gone: impl Fn(&Asked) -> bool) -> Vec<Asked> {
        let all = std::iter::once(&mut self.waiting).chain(&mut self.looked_for);
        all.flat_map(|all| all.extract_if(.., |asked| gone(asked)).collect::<Vec<_>>()).collect()
    }
}

/// Looks, and decides.
pub(super) async fn look(
    question: Question,
    roots: Vec<PathBuf>,
    rules: Option<PathBuf>,
    drivers: Drivers,
) -> Look {
    let Question { asked, mut known, files } = question;
    let files = tokio::time::timeout(LOOK_TIMEOUT, look_at_files(files, roots, rules)).await;
    let (roots, rules) = files.unwrap_or_else(|_| {
        (
            Err("the mount roots, or the volume rules, could not be looked at in time: a file system hangs"
                .into()),
            None,
        )
    });
    let mut faults = BTreeMap::new();
    if roots.is_ok() && matches!(rules, Some(Ok(_))) {
        faults = ask_agents(&asked, &mut known).await;
    }
    blocking(move || {
        let decide = |asked: Asked| {
            let key = asked.key();
            let admitted = roots.clone().map_err(Text::from).and_then(|()| match &rules {
                None => Ok(asked.volumes),
                Some(Err(why)) => Err(why.as_str().into()),
                Some(Ok(rules)) => admit(asked, rules, &drivers, &known, &faults),
            });
            (key, admitted)
        };
        let unread = rules.as_ref().and_then(|rules| Some(rules.as_ref().err()?.as_str().into()));
        let decided = asked.into_iter().map(decide).collect();
        Look { decided, known, unread }
    })
    .await
}

type Files = (Result<(), String>, Option<Result<VolumeRules, String>>);

async fn look_at_files(files: Arc<Semaphore>, roots: Vec<PathBuf>, rules: Option<PathBuf>) -> Files {
    // Never closed.
    let turn = files.acquire_owned().await;
    blocking(move || {
        let looked = (check(&roots), rules.map(|file| VolumeRules::read(&file)));
        drop(turn);
        looked
    })
    .await
}

/// Has each agent asked for its frameworks, of which one that asks is not known or not fresh. Answers which were not to be had, and
/// why.
async fn ask_agents(asked: &[Asked], known: &mut KnownFrameworks) -> BTreeMap<String, String> {
    let is_fresh = |asked: &&Asked| {
        let framework = asked.asker.as_ref().and_then(|asker| asker.framework.as_ref());
        let shown = known.get(&asked.agent).filter(|(at, _)| at.elapsed() < FRESH);
        framework.is_none_or(|id| shown.is_some_and(|(_, frameworks)| frameworks.contains_key(id)))
    };
    let agents: BTreeSet<_> =
        asked.iter().filter(|asked| !is_fresh(asked)).map(|asked| asked.agent.clone()).collect();
    let read = agents.into_iter().map(|agent| async move {
        let state = tokio::time::timeout(LOOK_TIMEOUT, agent_state::read(&agent)).await;
        let state = state.unwrap_or_else(|_| Err("it did not answer in time".into()));
        let frameworks = match state {
            Ok(state) => blocking(move || volume_rules::frameworks(&agent_state::text(state))).await,
            Err(why) => Err(why),
        };
        (agent, frameworks)
    });
    let mut faults = BTreeMap::new();
    for (agent, frameworks) in join_all(read).await {
        match frameworks {
            Ok(frameworks) => drop(known.insert(agent, (Instant::now(), frameworks))),
            Err(why) => drop(faults.insert(agent, why)),
        }
    }
    known.retain(|_, (at, _)| at.elapsed() < KNOWN);
    faults
}

/// What may be had of these volumes; what may not be made is to exist.
fn admit(
    asked: Asked,
    rules: &VolumeRules,
    drivers: &Drivers,
    known: &KnownFrameworks,
    faults: &BTreeMap<String, String>,
) -> Result<Vec<Wanted>, Text> {
    let Asked { agent, asker, volumes, .. } = asked;
    let Some(asker) = asker else {
        return Err("this host has volume rules, and the agent's module does not say for whom it asks: restart the agent \
                    with the keeper's version of it"
            .into());
    };
    let framework = match &asker.framework {
        None => None,
        Some(id) => {
            let shown = known.get(&agent).and_then(|(_, frameworks)| frameworks.get(id));
            let unknown = || {
                let why = faults.get(&agent).map_or("it does not show it", String::as_str);
                format!(
                    "this host has volume rules, and which framework {id} is cannot be told from the state of the agent at \
                     {agent}: {why}"
                )
            };
            Some(shown.ok_or_else(unknown)?)
        }
    };
    let subject = Subject { framework, user: asker.user.as_deref() };
    let admit = |mut wanted: Wanted| {
        let names = volume_rules::names(&wanted.volume, &drivers.naming.driver_aliases);
        rules.check(subject, &wanted.volume, &names, Action::Use)?;
        if wanted.create.is_some()
            && let Err(why) = rules.check(subject, &wanted.volume, &names, Action::Create)
        {
            tracing::info!("{why}; so it has to exist");
            wanted.create = None;
        }
        Ok::<_, String>(wanted)
    };
    Ok(volumes.into_iter().map(admit).collect::<Result<_, _>>()?)
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

    fn asked(container: &str) -> Asked {
        Asked {
            connection: ConnectionId(1),
            call_id: 1,
            container: ContainerId::new(container).unwrap(),
            agent: "a".into(),
            agent_id: None,
            asker: None,
            volumes: vec![],
        }
    }

    fn look() -> Look {
        Look { decided: BTreeMap::new(), known: KnownFrameworks::new(), unread: None }
    }

    fn names<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> Vec<&'a str> {
        asked.into_iter().map(|asked| asked.container.as_str()).collect()
    }

    fn ended(admission: &mut Admission) -> Vec<Asked> {
        admission.ended(look()).into_iter().map(|(asked, _)| asked).collect()
    }

    #[test]
    fn one_look_is_for_all_that_came_before_it_and_for_none_that_came_later() {
        let mut admission = Admission::new();
        assert!(admission.begin().is_none());
        admission.add(asked("a"));
        admission.add(asked("b"));
        assert!(admission.begin().is_some());
        admission.add(asked("c"));
        assert!(admission.begin().is_none(), "one at a time");
        assert_eq!(names(&ended(&mut admission)), ["a", "b"]);
        assert!(admission.begin().is_some());
        assert_eq!(names(&ended(&mut admission)), ["c"]);
    }

    #[test]
    fn a_container_that_ends_meanwhile_is_not_prepared() {
        let mut admission = Admission::new();
        admission.add(asked("a"));
        admission.add(asked("b"));
        assert!(admission.begin().is_some());
        admission.add(asked("a"));
        let gone = admission.remove(|asked| asked.container.as_str() == "a");
        assert_eq!(names(&gone), ["a", "a"]);
        assert_eq!(names(&ended(&mut admission)), ["b"]);
    }

    #[tokio::test]
    async fn a_file_system_that_hangs_refuses_and_holds_nobody_for_ever() {
        let mut admission = Admission::new();
        // As one that hangs has it.
        let _turn = Arc::clone(&admission.files).acquire_owned().await.unwrap();
        admission.add(asked("a"));
        let question = admission.begin().unwrap();
        let read = crate::parameters::KeeperParameters::read(&[("etcd_endpoints".into(), "h:1".into())]);
        let look = super::look(question, vec![], None, read.unwrap().drivers).await;
        let (_, decided) = admission.ended(look).pop().unwrap();
        assert!(decided.unwrap_err().contains("a file system hangs"));
    }
}
