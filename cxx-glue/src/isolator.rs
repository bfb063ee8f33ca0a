//! The agent's isolator, as C++ holds it.
//!
//! Called on any thread, and on several at once. Mostly it is the containerizer's actor; but where Mesos goes from one
//! isolator to the next (`prepare`, `cleanup`), it is the thread that completed the one before.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_isolator::isolator::Isolator;
use agent_isolator::mesos::ContainerConfig;
use agent_isolator::task;
use cxx::{CxxString, CxxVector, UniquePtr};
use prost::Message;

use crate::bridge::{LaunchCompletion, LimitationCompletion, NothingCompletion, Notice};
use crate::guard::{self, Completion, Done, Guarded};
use crate::{logging, own_address, parameters};

/// What C++ owns of the isolator.
pub(crate) struct IsolatorHandle {
    isolator: Guarded<Isolator>,
    /// Containers without volumes, as Mesos serialized their ids: a bug of the isolator does not concern them.
    unconcerned: Arc<Mutex<BTreeSet<Vec<u8>>>>,
}

/// C++ holds it to be so, and nothing there would notice if it were not.
const _: fn() = || {
    fn any_thread<T: Send + Sync>() {}
    any_thread::<IsolatorHandle>();
};

/// Starts the isolator of an agent; the error is the sentence to refuse loading with.
pub(crate) fn start_isolator(parameters: &[u8]) -> Result<Box<IsolatorHandle>, String> {
    guard::install_panic_hook();
    let isolator = guard::catch("start", || {
        logging::start();
        Isolator::start(&parameters::decode(parameters)?, own_address)
    })
    .flatten()?;
    Ok(Box::new(IsolatorHandle { isolator: Guarded::new(isolator), unconcerned: Arc::default() }))
}

impl IsolatorHandle {
    pub(crate) fn recover(
        &self,
        containers: &CxxVector<CxxString>,
        orphans: &CxxVector<CxxString>,
        completion: UniquePtr<NothingCompletion>,
    ) {
        self.isolator.call_even_poisoned("recover", Notice(completion), |isolator, done| {
            isolator.recover(to_bytes(containers), to_bytes(orphans), done);
        });
    }

    pub(crate) fn prepare(
        &self,
        container: &[u8],
        config: &[u8],
        mut completion: UniquePtr<LaunchCompletion>,
    ) {
        if self.isolator.is_poisoned() && names_no_volume(config) {
            lock(&self.unconcerned).insert(container.to_vec());
            completion.succeed(None);
            return;
        }
        let unconcerned = names_no_volume(config).then(|| Arc::clone(&self.unconcerned));
        self.isolator.call("prepare", completion, |isolator, done| {
            let id = container.to_vec();
            let noting: Done<Option<Vec<u8>>> = Box::new(move |answer| {
                if let (Some(unconcerned), Ok(_)) = (unconcerned, &answer) {
                    lock(&unconcerned).insert(id);
                }
                done(answer);
            });
            isolator.prepare(container, config, noting);
        });
    }

    pub(crate) fn isolate(&self, container: &[u8], pid: i32, mut completion: UniquePtr<NothingCompletion>) {
        if self.isolator.is_poisoned() && lock(&self.unconcerned).contains(container) {
            completion.succeed(());
            return;
        }
        self.isolator.call("isolate", completion, |isolator, done| isolator.isolate(container, pid, done));
    }

    /// Mesos destroys the container when this is answered.
    pub(crate) fn watch(&self, container: &[u8], completion: UniquePtr<LimitationCompletion>) {
        self.isolator.call("watch", completion, |isolator, done| isolator.watch(container, done));
    }

    /// Mesos destroys the container when this is refused, and so only the isolator's own word is a refusal.
    pub(crate) fn update(&self, container: &[u8], completion: UniquePtr<NothingCompletion>) {
        self.isolator.call("update", Notice(completion), |isolator, done| isolator.update(container, done));
    }

    pub(crate) fn cleanup(&self, container: &[u8], completion: UniquePtr<NothingCompletion>) {
        lock(&self.unconcerned).remove(container);
        self.isolator.call_even_poisoned("cleanup", Notice(completion), |isolator, done| {
            isolator.cleanup(container, done);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asked in place of a poisoned isolator, whose state may not be used: this has none. In doubt the answer is no.
fn names_no_volume(config: &[u8]) -> bool {
    let look = || {
        let config = ContainerConfig::decode(config).map_err(|error| error.to_string())?;
        Ok::<_, String>(task::names_none(&config))
    };
    guard::catch("the look at a container's volumes", look).flatten().unwrap_or(false)
}

fn to_bytes(messages: &CxxVector<CxxString>) -> Vec<Vec<u8>> {
    messages.iter().map(|message| message.as_bytes().to_vec()).collect()
}
