//! Panics stop here.
//!
//! A panic that reaches cxx aborts the process, and with an agent all its containers lose their supervisor. So
//! every call from C++ runs under [`Guarded::call`] or [`Guarded::call_even_poisoned`]. A panic is a bug: the
//! object may be half changed, so it is *poisoned*: a call that asks for something is not made any more, which is
//! the closed side. A call that gives something back is made all the same: not to make it would keep the thing for
//! ever.
//!
//! What an end without an answer means for the caller is the completion's matter ([`Completion::give_up`]).
//!
//! Nothing here knows C++, which is why it can be tested without Mesos. Everything here may be used on any thread,
//! and on several at once.

use std::any::Any;
use std::cell::Cell;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

use shared::quote;

/// How a call's answer gets back to whoever waits for it.
pub(crate) trait Completion: Send + 'static {
    /// What a call that went well gives back.
    type Answer;

    /// Ends the call well.
    fn succeed(&mut self, answer: Self::Answer);

    /// Ends the call with the object's own refusal, a sentence for people.
    fn fail(&mut self, sentence: &str);

    /// Ends the call when there is no answer of the object's, and says why: it panicked, it dropped the `Done`, or
    /// it is poisoned and was not called.
    fn give_up(&mut self, sentence: &str) {
        self.fail(sentence);
    }
}

/// A completion that is given up when it is dropped: nothing waits for ever without a reason.
struct Owed<C: Completion> {
    name: &'static str,
    completion: Option<C>,
}

impl<C: Completion> Owed<C> {
    fn end(mut self, end: impl FnOnce(&mut C)) {
        if let Some(mut completion) = self.completion.take() {
            end(&mut completion);
        }
    }
}

impl<C: Completion> Drop for Owed<C> {
    fn drop(&mut self) {
        if let Some(mut completion) = self.completion.take() {
            completion.give_up(&format!("extvol: bug: {} was dropped without an answer", self.name));
        }
    }
}

/// Ends a call, on any thread.
pub(crate) type Done<T> = Box<dyn FnOnce(Result<T, String>) + Send>;

/// An object of which nothing new is asked after it has panicked.
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

    /// Whether the object has panicked.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.get().is_some()
    }

    /// Makes the call `name`, unless the object is poisoned. Whatever happens in `body`, the completion is ended or
    /// on its way to be: by `body` through its `Done`, now or later; by the drop of that `Done`; or here, when there
    /// was a panic.
    pub(crate) fn call<C: Completion>(
        &self,
        name: &'static str,
        mut completion: C,
        body: impl FnOnce(&T, Done<C::Answer>),
    ) {
        match self.poisoned.get() {
            Some(sentence) => {
                completion.give_up(&format!("extvol: {name} was not tried, because of an earlier {sentence}"))
            }
            None => self.call_even_poisoned(name, completion, body),
        }
    }

    /// As [`Guarded::call`], on a poisoned object too.
    pub(crate) fn call_even_poisoned<C: Completion>(
        &self,
        name: &'static str,
        completion: C,
        body: impl FnOnce(&T, Done<C::Answer>),
    ) {
        let owed = Owed { name, completion: Some(completion) };
        let Some(inner) = &self.inner else { return };

        // The `Done` is dropped while a panic unwinds, which would give the call up with a sentence that says
        // nothing. So the completion stays in a slot that both sides hold, for as long as the call is on the
        // stack; after that the `Done` alone keeps it.
        let slot = Arc::new(Mutex::new(Some(owed)));
        let theirs = Arc::clone(&slot);
        let done: Done<C::Answer> = Box::new(move |answer| {
            // Taken out before it is used: Mesos's callbacks run inside, and no lock may be held meanwhile. It is
            // not there when the call panicked after it had given this to another thread, and was given up.
            let Some(owed) = take(&theirs) else { return };
            owed.end(|completion| match answer {
                Ok(answer) => completion.succeed(answer),
                // It goes into Mesos's log, and to the framework.
                Err(sentence) => completion.fail(&quote::line(&sentence)),
            });
        });

        if let Err(sentence) = catch(name, || body(inner, done)) {
            // Before anybody hears of it: whoever does may call again at once. The first panic is the one to tell.
            let _ = self.poisoned.set(sentence.clone());
            if let Some(owed) = take(&slot) {
                owed.end(|completion| completion.give_up(&format!("extvol: {sentence}")));
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
    // What `body` borrows may be half changed. Of it nothing new is asked, and what is given back under
    // `call_even_poisoned` may panic again, to be caught again. No memory is at stake: that would need `unsafe`.
    panic::catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let place = PLACE.take().unwrap_or_else(|| "an unknown place".to_owned());
        let message = quote::line(message(payload.as_ref())).into_owned();
        let sentence = format!("bug: {name} panicked at {place}: {message}");
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
            tell(&format!("extvol: bug: panic at {place}: {}", message(info.payload())));
            // A thread on its way out has nobody to tell.
            let _ = PLACE.try_with(|cell| cell.set(Some(place)));
        }));
    });
}

/// Puts a line on stderr. Not through `tracing`, which may be what panicked.
pub(crate) fn tell(sentence: &str) {
    // That stderr is closed changes nothing.
    let _ = writeln!(std::io::stderr(), "{}", quote::line(sentence));
}
