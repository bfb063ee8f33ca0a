//! The one bridge: the functions and objects that C++ and Rust share.
//!
//! Only types and translations live here. Messages cross as the bytes of their protobuf wire form, so neither
//! side depends on the other's classes.

use cxx::UniquePtr;

use crate::guard::{self, Completion};
use crate::isolator::{IsolatorHandle, start_isolator};
use crate::master::{MasterHandle, start_master_module};

#[cxx::bridge(namespace = "extvol")]
mod ffi {
    // What Mesos's modules call. All of it catches its own panics: cxx would abort the agent.
    extern "Rust" {
        type IsolatorHandle;

        // `parameters` is a mesos.Parameters. The error is the sentence to refuse loading with; it is thrown,
        // and caught again by the shim that called.
        fn start_isolator(parameters: &[u8]) -> Result<Box<IsolatorHandle>>;

        fn recover(
            self: &IsolatorHandle,
            containers: &CxxVector<CxxString>,
            orphans: &CxxVector<CxxString>,
            completion: UniquePtr<NothingCompletion>,
        );
        fn prepare(
            self: &IsolatorHandle,
            container: &[u8],
            config: &[u8],
            completion: UniquePtr<LaunchCompletion>,
        );
        fn isolate(
            self: &IsolatorHandle,
            container: &[u8],
            pid: i32,
            completion: UniquePtr<NothingCompletion>,
        );
        fn watch(self: &IsolatorHandle, container: &[u8], completion: UniquePtr<LimitationCompletion>);
        fn update(self: &IsolatorHandle, container: &[u8], completion: UniquePtr<NothingCompletion>);
        fn cleanup(self: &IsolatorHandle, container: &[u8], completion: UniquePtr<NothingCompletion>);

        type MasterHandle;

        fn start_master_module(parameters: &[u8]) -> Result<Box<MasterHandle>>;
    }

    // SAFETY: every function below is `noexcept`, takes its arguments by value or borrows them for the call
    // only, and may be called on any thread: `own_address` reads what libprocess fixed before it loaded us, and
    // a completion is used through its one owner.
    unsafe extern "C++" {
        include!("cxx-glue/src/completion_shim.hpp");

        type NothingCompletion;
        fn succeed(self: Pin<&mut NothingCompletion>);
        fn fail(self: Pin<&mut NothingCompletion>, sentence: &str);

        type LaunchCompletion;
        fn succeed(self: Pin<&mut LaunchCompletion>, launch_info: &[u8]);
        fn succeed_without(self: Pin<&mut LaunchCompletion>);
        fn fail(self: Pin<&mut LaunchCompletion>, sentence: &str);

        // Has no `fail`: see its header.
        type LimitationCompletion;
        fn succeed(self: Pin<&mut LimitationCompletion>, limitation: &[u8]);

        include!("cxx-glue/src/master_shim.hpp");

        fn own_address() -> String;
    }
}

pub(crate) use ffi::{LaunchCompletion, LimitationCompletion, NothingCompletion, own_address};

// SAFETY: moving a completion to another thread needs that nothing in it belongs to the thread that made it,
// and that no other thread keeps an access that does not synchronize. It holds a flag that only its one owner
// touches, and a promise: a shared_ptr, whose count is atomic, to a state that libprocess guards with a lock of
// its own, so that `set`, `fail` and the last release may come from any thread while Mesos reads the future.
unsafe impl Send for NothingCompletion {}
// SAFETY: as for `NothingCompletion`; the value is copied into the state before `set` returns.
unsafe impl Send for LaunchCompletion {}
// SAFETY: as for `LaunchCompletion`.
unsafe impl Send for LimitationCompletion {}

impl Completion for UniquePtr<NothingCompletion> {
    type Answer = ();

    fn succeed(&mut self, (): ()) {
        self.pin_mut().succeed();
    }

    fn fail(&mut self, sentence: &str) {
        self.pin_mut().fail(sentence);
    }
}

impl Completion for UniquePtr<LaunchCompletion> {
    type Answer = Option<Vec<u8>>;

    fn succeed(&mut self, launch_info: Option<Vec<u8>>) {
        match launch_info {
            Some(bytes) => self.pin_mut().succeed(&bytes),
            None => self.pin_mut().succeed_without(),
        }
    }

    fn fail(&mut self, sentence: &str) {
        self.pin_mut().fail(sentence);
    }
}

/// Completes a call that only tells the isolator something (`recover`, `cleanup`). That it was not told is no reason
/// to fail: a failed recover stops the agent each time it starts, and a failed cleanup leaves the container for ever.
/// The keeper sees by itself which containers run, and until then keeps the lease.
pub(crate) struct Notice(pub(crate) UniquePtr<NothingCompletion>);

impl Completion for Notice {
    type Answer = ();

    fn succeed(&mut self, (): ()) {
        self.0.succeed(());
    }

    fn fail(&mut self, sentence: &str) {
        self.0.fail(sentence);
    }

    fn give_up(&mut self, sentence: &str) {
        guard::tell(sentence);
        self.0.succeed(());
    }
}

/// A watch never fails, since Mesos destroys a container whose watch does: without a limitation it stays pending.
impl Completion for UniquePtr<LimitationCompletion> {
    type Answer = Vec<u8>;

    fn succeed(&mut self, limitation: Vec<u8>) {
        self.pin_mut().succeed(&limitation);
    }

    fn fail(&mut self, sentence: &str) {
        guard::tell(&format!("extvol: a container is not watched: {sentence}"));
    }
}
