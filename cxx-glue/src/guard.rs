//! Panics stop here.
//!
//! A panic that reaches cxx aborts the process, and with an agent all its containers lose their supervisor. So
//! every call from C++ runs under [`Guarded::call`]. A panic is a bug: the object may be half changed, so it is
//! *poisoned*: the call that panicked fails, and so does every later one, without being made. Failing is the
//! closed side: no container starts that this object would have had to prepare.
//!
//! Nothing here knows C++, which is why it can be tested without Mesos.

use std::any::Any;
use std::cell::Cell;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

/// How a call's answer gets back to whoever waits for it. Dropping it without an answer fails the call.
pub(crate) trait Completion: Send + 'static {
    /// What a call that went well gives back.
    type Answer;

    /// Ends the call well.
    fn succeed(&mut self, answer: Self::Answer);

    /// Ends the call with a sentence for people.
    fn fail(&mut self, sentence: &str);
}

/// Ends a call, on any thread.
pub(crate) type Done<T> = Box<dyn FnOnce(Result<T, String>) + Send>;

/// An object that is not called again after it has panicked.
pub(crate) struct Guarded<T> {
    /// `None` only while it is dropped.
    inner: Option<T>,
    /// The sentence of the first panic.
    poisoned: OnceLock<String>,
}

impl<T> Guarded<T> {
    pub(crate) fn new(inner: T) -> Guarded<T> {
        Guarded { inner: Some(inner), poisoned: OnceLock::new() }
    }

    /// Makes the call `name`. Whatever happens in `body`, the completion is ended or on its way to be: by `body`
    /// through its `Done`, now or later; by the drop of that `Done`; or here, when there was a panic.
    pub(crate) fn call<C: Completion>(
        &self,
        name: &'static str,
        mut completion: C,
        body: impl FnOnce(&T, Done<C::Answer>),
    ) {
        let Some(inner) = &self.inner else { return };
        if let Some(sentence) = self.poisoned.get() {
            completion.fail(&format!("extvol: {name} was not tried, because of an earlier {sentence}"));
            return;
        }

        // The `Done` is dropped while a panic unwinds, which would fail the call with a sentence that says
        // nothing. So the completion stays in a slot that both sides hold, for as long as the call is on the
        // stack; after that the `Done` alone keeps it.
        let slot = Arc::new(Mutex::new(Some(completion)));
        let theirs = Arc::clone(&slot);
        let done: Done<C::Answer> = Box::new(move |answer| {
            // Taken out before it is used: Mesos's callbacks run inside, and no lock may be held meanwhile.
            let completion = take(&theirs);
            match (completion, answer) {
                (Some(mut completion), Ok(answer)) => completion.succeed(answer),
                (Some(mut completion), Err(sentence)) => completion.fail(&sentence),
                // The call panicked after it had given this to another thread, and has failed.
                (None, _) => {}
            }
        });

        if let Err(sentence) = catch(name, || body(inner, done)) {
            // `inner` is never touched again but to drop it, so that it may be broken does not matter.
            let sentence = self.poisoned.get_or_init(|| sentence);
            if let Some(mut completion) = take(&slot) {
                completion.fail(&format!("extvol: {sentence}"));
            }
        }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let inner = self.inner.take();
        // The hook has printed it, and there is nobody to tell.
        let _ = catch("drop", || drop(inner));
    }
}

fn take<C>(slot: &Mutex<Option<C>>) -> Option<C> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Runs `body`; a panic becomes a sentence.
pub(crate) fn catch<R>(name: &str, body: impl FnOnce() -> R) -> Result<R, String> {
    PLACE.set(None);
    // What `body` borrows is either dropped by the caller or never used again: see the callers.
    panic::catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let place = PLACE.take().unwrap_or_else(|| "an unknown place".to_owned());
        let sentence = format!("bug: {name} panicked at {place}: {}", message(payload.as_ref()));
        // Its drop may be anybody's code, and may panic.
        if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        sentence
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(literal) = payload.downcast_ref::<&str>() {
        literal
    } else if let Some(formatted) = payload.downcast_ref::<String>() {
        formatted
    } else {
        "no message"
    }
}

thread_local! {
    /// Where this thread last panicked: only the hook is told.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

/// Replaces the panic hook by one that prints message and place, and never a backtrace: resolving the symbols of
/// libmesos under `RUST_BACKTRACE=1` took 66 MiB and 113 ms on Mesos's own thread.
///
/// The hook belongs to the copy of the Rust runtime inside this library, whose symbols it does not export: a Rust
/// program or module beside it keeps its own.
pub(crate) fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
            // Not through `tracing`, which may be what panicked. That stderr is closed changes nothing.
            let _ = writeln!(std::io::stderr(), "extvol: bug: panic at {place}: {}", message(info.payload()));
            // A thread on its way out has nobody to tell.
            let _ = PLACE.try_with(|cell| cell.set(Some(place)));
        }));
    });
}
