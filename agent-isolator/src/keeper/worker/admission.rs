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
use shared::protocol::holder::{Owner, Wanted};
use shared::record::Task;
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

/// Of frameworks that nothing has to be known of, the names are asked for so long, and after a failure not again for [`FRESH`].
const NAME_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest text of a framework that a lease shows, in bytes.
const TEXT_MAX: usize = 128;

/// So many frameworks' names are remembered.
const NAMES_MAX: usize = 10_000;

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
    names: Names,
    /// What was last said of why nothing can be had.
    said: Option<Text>,
}

/// What frameworks are called, for people.
#[derive(Clone, Debug, Default)]
struct Names {
    /// Name and role, by id.
    known: BTreeMap<String, (String, Option<String>)>,
    /// Until when an agent is not asked again.
    unasked: BTreeMap<String, Instant>,
}

/// By agent, what it has shown, and when.
type KnownFrameworks = BTreeMap<String, (Instant, BTreeMap<String, Framework>)>;

/// What a look needs.
pub(super) struct Question {
    asked: Vec<Asked>,
    known: KnownFrameworks,
    files: Arc<Semaphore>,
    names: Names,
}

/// What a look has shown.
#[derive(Debug)]
pub struct Look {
    /// What may be had, by who asked.
    decided: BTreeMap<(ConnectionId, u64), Result<Vec<Wanted>, Text>>,
    known: KnownFrameworks,
    names: Names,
    /// Why nobody may have anything.
    fault: Option<Text>,
}

impl Admission {
    pub(super) fn new() -> Self {
        Self {
            waiting: Vec::new(),
            looked_for: None,
            known: KnownFrameworks::new(),
            files: Arc::new(Semaphore::new(1)),
            names: Names::default(),
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
        let (known, names) = (self.known.clone(), self.names.clone());
        Some(Question { asked, known, files: Arc::clone(&self.files), names })
    }

    /// The look has ended: who waited for it, and what each may have.
    pub(super) fn ended(&mut self, mut look: Look) -> Vec<(Asked, Result<Vec<Wanted>, Text>)> {
        (self.known, self.names) = (look.known, look.names);
        if self.said != look.fault {
            match &look.fault {
                Some(why) => tracing::error!("no container gets a volume here: {why}"),
                None => tracing::info!("containers get volumes here again"),
            }
            self.said = look.fault;
        }
        let asked = self.looked_for.take().unwrap_or_default();
        let verdict = |asked: Asked| {
            let decided = look.decided.remove(&asked.key());
            (asked, decided.unwrap_or_else(|| Err("a bug: it was not looked for it".into())))
        };
        asked.into_iter().map(verdict).collect()
    }

    /// For whom a container runs, as far as that is known.
    pub(super) fn task(&self, asker: Option<&Asker>) -> Option<Task> {
        let Asker { framework, role, executor, task_id, task_name, .. } = asker?;
        let named = framework.as_ref().and_then(|id| self.names.known.get(id));
        let text = |text: &String| Text::from(&text[..text.floor_char_boundary(TEXT_MAX)]);
        let role = role.as_ref().or_else(|| named.and_then(|(_, role)| role.as_ref()));
        Some(Task {
            framework_id: framework.as_ref().map(text),
            framework: named.map(|(name, _)| text(name)),
            role: role.map(text),
            executor_id: executor.as_ref().map(text),
            task_id: task_id.as_ref().map(text),
            task: task_name.as_ref().map(text),
        })
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
    let Question { asked, mut known, files, mut names } = question;
    let files =
        tokio::time::timeout(LOOK_TIMEOUT, look_at_files(files, roots, drivers.directories(), rules)).await;
    let (roots, rules) = files.unwrap_or_else(|_| {
        let hangs =
            "the mount roots, or the volume rules, could not be looked at in time: a file system hangs";
        (Err(hangs.into()), None)
    });
    let mut faults = BTreeMap::new();
    if roots.is_ok() && matches!(rules, Some(Ok(_))) {
        faults = ask_agents(&asked, &mut known, LOOK_TIMEOUT).await;
    } else if roots.is_ok() && rules.is_none() {
        names.ask(&asked, &mut known).await;
    }
    names.take(&known);
    let owners = Owners::look_up(&asked).await;
    blocking(move || {
        let decide = |asked: Asked| {
            let key = asked.key();
            let user = asked.asker.as_ref().and_then(|asker| asker.user.clone());
            let admitted = roots.clone().map_err(Text::from).and_then(|()| match &rules {
                None => Ok(asked.volumes),
                Some(Err(why)) => Err(why.as_str().into()),
                Some(Ok(rules)) => admit(asked, rules, &drivers, &known, &faults),
            });
            (key, admitted.and_then(|volumes| owners.give(volumes, user.as_deref())))
        };
        let unread = rules.as_ref().and_then(|rules| rules.as_ref().err());
        let fault = roots.as_ref().err().or(unread).map(|why| why.as_str().into());
        let decided = asked.into_iter().map(decide).collect();
        Look { decided, known, names, fault }
    })
    .await
}

type Files = (Result<(), String>, Option<Result<VolumeRules, String>>);

async fn look_at_files(
    files: Arc<Semaphore>,
    roots: Vec<PathBuf>,
    kept: Vec<PathBuf>,
    rules: Option<PathBuf>,
) -> Files {
    // Never closed.
    let turn = files.acquire_owned().await;
    blocking(move || {
        let closed = check(&roots).and_then(|()| kept.iter().try_for_each(|kept| close(kept)));
        let looked = (closed, rules.map(|file| VolumeRules::read(&file)));
        drop(turn);
        looked
    })
    .await
}

/// Has each agent asked for its frameworks, of which one that asks is not known or not fresh. Answers which were not to be had, and
/// why.
async fn ask_agents(
    asked: &[Asked],
    known: &mut KnownFrameworks,
    within: Duration,
) -> BTreeMap<String, String> {
    let is_fresh = |asked: &&Asked| {
        let framework = asked.asker.as_ref().and_then(|asker| asker.framework.as_ref());
        let shown = known.get(&asked.agent).filter(|(at, _)| at.elapsed() < FRESH);
        framework.is_none_or(|id| shown.is_some_and(|(_, frameworks)| frameworks.contains_key(id)))
    };
    let agents: BTreeSet<_> =
        asked.iter().filter(|asked| !is_fresh(asked)).map(|asked| asked.agent.clone()).collect();
    let read = agents.into_iter().map(|agent| async move {
        let state = tokio::time::timeout(within, agent_state::read(&agent)).await;
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

impl Names {
    /// Asks the agents of containers whose frameworks nothing is known of. It is for people: no launch fails by it.
    async fn ask(&mut self, asked: &[Asked], known: &mut KnownFrameworks) {
        self.unasked.retain(|_, until| Instant::now() < *until);
        let is_unknown = |asked: &&Asked| {
            let framework = asked.asker.as_ref().and_then(|asker| asker.framework.as_ref());
            framework.is_some_and(|id| !self.known.contains_key(id))
                && !self.unasked.contains_key(&asked.agent)
        };
        let unknown: Vec<_> = asked.iter().filter(is_unknown).cloned().collect();
        let faults = ask_agents(&unknown, known, NAME_TIMEOUT).await;
        let until = Instant::now() + FRESH;
        self.unasked.extend(faults.into_keys().map(|agent| (agent, until)));
    }

    fn take(&mut self, known: &KnownFrameworks) {
        for (_, frameworks) in known.values() {
            for (id, framework) in frameworks {
                if self.known.len() < NAMES_MAX || self.known.contains_key(id) {
                    let (name, role) = framework.named();
                    let cut = |text: String| text[..text.floor_char_boundary(TEXT_MAX)].to_owned();
                    self.known.insert(id.clone(), (cut(name), role.map(cut)));
                }
            }
        }
    }
}

/// Whose new volumes are to be, by user. The host may ask a directory service, which may hang: that is waited for by those who want an
/// owner, and not for long; one thread asks.
struct Owners(BTreeMap<String, Result<Owner, Text>>);

/// One lookup at a time, in the whole process.
static LOOKUPS: Semaphore = Semaphore::const_new(1);

impl Owners {
    async fn look_up(asked: &[Asked]) -> Self {
        let wants = |asked: &&Asked| asked.volumes.iter().any(|wanted| wanted.owner.is_some());
        let user = |asked: &Asked| asked.asker.as_ref()?.user.clone();
        let users: BTreeSet<_> = asked.iter().filter(wants).filter_map(user).collect();
        let late: Text = "label extvol.owner: the task's user could not be looked up in time".into();
        let unknown = users.iter().map(|user| (user.clone(), Err(late.clone()))).collect();
        if users.is_empty() {
            return Self(unknown);
        }
        let look_up = async {
            // Never closed.
            let turn = LOOKUPS.acquire().await;
            let found = blocking(move || {
                let found = users.into_iter().map(|user| (user.clone(), owner(&user))).collect();
                drop(turn);
                found
            });
            Self(found.await)
        };
        tokio::time::timeout(LOOK_TIMEOUT, look_up).await.unwrap_or(Self(unknown))
    }

    fn give(&self, mut volumes: Vec<Wanted>, user: Option<&str>) -> Result<Vec<Wanted>, Text> {
        for wanted in volumes.iter_mut().filter(|wanted| wanted.owner.is_some()) {
            let owner = user.and_then(|user| self.0.get(user)).cloned();
            wanted.owner = owner.transpose()?;
        }
        Ok(volumes)
    }
}

fn owner(user: &str) -> Result<Owner, Text> {
    match nix::unistd::User::from_name(user) {
        Ok(Some(found)) => Ok(Owner { uid: found.uid.as_raw(), gid: found.gid.as_raw() }),
        Ok(None) => Err(format!("label extvol.owner: this host knows no user {user:?}").into()),
        Err(error) => {
            Err(format!("label extvol.owner: the user {user:?} could not be looked up: {error}").into())
        }
    }
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
        if wanted.remove {
            rules.check(subject, &wanted.volume, &names, Action::Remove)?;
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
        Look { decided: BTreeMap::new(), known: KnownFrameworks::new(), names: Names::default(), fault: None }
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
    async fn what_an_agent_said_of_its_frameworks_a_while_ago_is_asked_for_again() {
        // Nothing listens there.
        let agent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let asker = Asker { framework: Some("f1".into()), ..Asker::default() };
        let asked = [Asked { agent: agent.as_str().into(), asker: Some(asker), ..asked("a") }];
        let state = r#"{"frameworks": [{"id": "f1", "name": "marathon"}]}"#;
        for (age, asks) in [(FRESH / 2, false), (FRESH, true)] {
            let at = Instant::now().checked_sub(age).unwrap();
            let shown = volume_rules::frameworks(state).unwrap();
            let mut known = KnownFrameworks::from([(asked[0].agent.clone(), (at, shown))]);
            let faults = ask_agents(&asked, &mut known, LOOK_TIMEOUT).await;
            assert_eq!(faults.contains_key(&asked[0].agent), asks, "{age:?}");
        }
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
