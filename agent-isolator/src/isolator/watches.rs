//! Who is told that a container must end, and what was to be told before anybody asked.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use shared::quote;
use shared::volume::ContainerId;

use super::Done;
use crate::mesos::ContainerLimitation;

/// The watches of this agent's containers. The keeper tells every agent on the host of every limit,
/// and again over each new connection: what is none of this agent's business is not kept.
#[derive(Default)]
pub(super) struct Watches {
    watched: BTreeMap<ContainerId, Done<Vec<u8>>>,
    /// Limits that came before anybody watched.
    limits: BTreeMap<ContainerId, String>,
    /// This agent's containers with volumes.
    own: BTreeSet<ContainerId>,
    /// Whether `own` is complete; until then any limit may be for one of them.
    recovered: bool,
}

impl Watches {
    /// A container is prepared. What was said of an older one of that name is not about it.
    pub(super) fn prepare(&mut self, container: &ContainerId) {
        self.limits.remove(container);
        self.own.insert(container.clone());
    }

    /// The agent goes on with these containers.
    pub(super) fn recover(&mut self, known: &BTreeSet<ContainerId>) {
        self.recovered = true;
        self.own.extend(known.iter().cloned());
        self.limits.retain(|container, _| self.own.contains(container));
    }

    /// Completes `done` when the container must end.
    pub(super) fn watch(&mut self, container: ContainerId, done: Done<Vec<u8>>) {
        match self.limits.remove(&container) {
            Some(message) => end(message, done),
            None => drop(self.watched.insert(container, done)),
        }
    }

    /// The container must end.
    pub(super) fn limit(&mut self, container: ContainerId, message: String) {
        match self.watched.remove(&container) {
            Some(done) => end(message, done),
            None if !self.recovered || self.own.contains(&container) => {
                self.limits.insert(container, message);
            }
            None => {}
        }
    }

    /// The container is gone.
    pub(super) fn forget(&mut self, container: &ContainerId) {
        self.watched.remove(container);
        self.limits.remove(container);
        self.own.remove(container);
    }
}

fn end(message: String, done: Done<Vec<u8>>) {
    // It goes into Mesos's log, and to the framework: one line, whatever plugins and records said.
    let message = Some(quote::line(&message).into_owned());
    done(Ok(ContainerLimitation { message }.encode_to_vec()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    fn id(name: &str) -> ContainerId {
        ContainerId::new(name).unwrap()
    }

    fn watch(watches: &mut Watches, name: &str) -> Receiver<String> {
        let (sender, told) = channel();
        let done = move |answer: Result<Vec<u8>, String>| {
            let limitation = ContainerLimitation::decode(answer.unwrap().as_slice()).unwrap();
            sender.send(limitation.message.unwrap()).unwrap();
        };
        watches.watch(id(name), Box::new(done));
        told
    }

    #[test]
    fn a_limit_is_told_before_and_after_the_watch() {
        let mut watches = Watches::default();
        watches.recover(&BTreeSet::new());
        watches.prepare(&id("a"));
        watches.limit(id("a"), "lost".into());
        assert_eq!(watch(&mut watches, "a").try_recv().as_deref(), Ok("lost"));
        watches.limit(id("a"), "lost:\nE1130 forged".into());
        assert_eq!(watch(&mut watches, "a").try_recv().as_deref(), Ok("lost:\\nE1130 forged"));
        let told = watch(&mut watches, "a");
        watches.limit(id("a"), "again".into());
        assert_eq!(told.try_recv().as_deref(), Ok("again"));
    }

    #[test]
    fn an_older_containers_limit_does_not_end_a_new_one_of_that_name() {
        let mut watches = Watches::default();
        watches.recover(&BTreeSet::from([id("a")]));
        watches.limit(id("a"), "lost".into());
        watches.prepare(&id("a"));
        assert!(watch(&mut watches, "a").try_recv().is_err());
    }

    #[test]
    fn only_limits_of_this_agents_containers_are_kept() {
        let mut watches = Watches::default();
        watches.limit(id("mine"), "lost".into());
        watches.limit(id("another-agents"), "lost".into());
        watches.recover(&BTreeSet::from([id("mine")]));
        watches.limit(id("another-agents"), "lost".into());
        assert_eq!(watches.limits.keys().collect::<Vec<_>>(), [&id("mine")]);
        watches.forget(&id("mine"));
        watches.limit(id("mine"), "lost".into());
        assert!(watches.limits.is_empty() && watches.own.is_empty());
    }
}
