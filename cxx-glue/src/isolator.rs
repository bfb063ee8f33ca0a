//! The agent's isolator, as C++ holds it.
//!
//! Called on the containerizer's actor thread, one call at a time; answers leave on whichever thread the isolator
//! has them.

use agent_isolator::isolator::Isolator;
use cxx::{CxxString, CxxVector, UniquePtr};

use crate::bridge::{LaunchCompletion, LimitationCompletion, NothingCompletion};
use crate::guard::{self, Guarded};
use crate::{logging, own_address, parameters};

/// What C++ owns of the isolator.
pub(crate) struct IsolatorHandle(Guarded<Isolator>);

/// Starts the isolator of an agent; the error is the sentence to refuse loading with.
pub(crate) fn start_isolator(parameters: &[u8]) -> Result<Box<IsolatorHandle>, String> {
    guard::install_panic_hook();
    let isolator = guard::catch("start", || {
        logging::start();
        Isolator::start(&parameters::decode(parameters)?, own_address)
    })
    .flatten()?;
    Ok(Box::new(IsolatorHandle(Guarded::new(isolator))))
}

impl IsolatorHandle {
    pub(crate) fn recover(
        &self,
        containers: &CxxVector<CxxString>,
        orphans: &CxxVector<CxxString>,
        completion: UniquePtr<NothingCompletion>,
    ) {
        self.0.call("recover", completion, |isolator, done| {
            isolator.recover(to_bytes(containers), to_bytes(orphans), done);
        });
    }

    pub(crate) fn prepare(&self, container: &[u8], config: &[u8], completion: UniquePtr<LaunchCompletion>) {
        self.0.call("prepare", completion, |isolator, done| isolator.prepare(container, config, done));
    }

    pub(crate) fn isolate(&self, container: &[u8], pid: i32, completion: UniquePtr<NothingCompletion>) {
        self.0.call("isolate", completion, |isolator, done| isolator.isolate(container, pid, done));
    }

    /// Mesos kills the container when this is answered, be it by a failure.
    pub(crate) fn watch(&self, container: &[u8], completion: UniquePtr<LimitationCompletion>) {
        self.0.call("watch", completion, |isolator, done| isolator.watch(container, done));
    }

    pub(crate) fn cleanup(&self, container: &[u8], completion: UniquePtr<NothingCompletion>) {
        self.0.call("cleanup", completion, |isolator, done| isolator.cleanup(container, done));
    }
}

fn to_bytes(messages: &CxxVector<CxxString>) -> Vec<Vec<u8>> {
    messages.iter().map(|message| message.as_bytes().to_vec()).collect()
}
