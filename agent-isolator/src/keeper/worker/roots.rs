//! The look at the mount roots before each prepare: somebody may mend one, or break it, while the keeper runs.
//!
//! It reads the host's mount table, whose lock every task that makes mount namespaces holds: so it is done beside the worker's
//! thread, which beats. One look serves all that came before it began.

use std::path::{Path, PathBuf};

use shared::volume::ContainerId;

use crate::keeper::mounts;
use crate::keeper::server::ConnectionId;
use crate::wire::Call;

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
pub(super) struct Roots {
    waiting: Vec<Waiting>,
    /// Those that the present look is for.
    looked_for: Option<Vec<Waiting>>,
}

impl Roots {
    pub(super) fn add(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// Begins a look, unless one is under way or nobody waits.
    pub(super) fn begin(&mut self) -> bool {
        let begins = self.looked_for.is_none() && !self.waiting.is_empty();
        if begins {
            self.looked_for = Some(std::mem::take(&mut self.waiting));
        }
        begins
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
pub(super) fn check(roots: &[PathBuf]) -> Result<(), String> {
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
        let call = Call::Prepare { container, agent: "a".into(), agent_id: None, volumes: vec![] };
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
        let mut roots = Roots::default();
        assert!(!roots.begin());
        roots.add(waiting("a"));
        roots.add(waiting("b"));
        assert!(roots.begin());
        roots.add(waiting("c"));
        assert!(!roots.begin(), "one at a time");
        assert_eq!(names(&roots.ended()), ["a", "b"]);
        assert!(roots.begin());
        assert_eq!(names(&roots.ended()), ["c"]);
    }

    #[test]
    fn a_container_that_ends_meanwhile_is_not_prepared() {
        let mut roots = Roots::default();
        roots.add(waiting("a"));
        roots.add(waiting("b"));
        assert!(roots.begin());
        roots.add(waiting("a"));
        let a = ContainerId::new("a").unwrap();
        assert!(roots.remove(|waiting| waiting.is_of("another agent", &a)).is_empty());
        let gone = roots.remove(|waiting| waiting.is_of("a", &a));
        assert_eq!(names(&gone), ["a", "a"]);
        assert_eq!(names(&roots.ended()), ["b"]);
    }
}
