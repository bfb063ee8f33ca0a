//! The guard that keeps panics on Rust's side, tried without Mesos.
//!
//! It is compiled in by path: the crate itself only links where libmesos is.

#[path = "../src/guard.rs"]
mod guard;

use std::cell::RefCell;
use std::panic::panic_any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guard::{Completion, Done, Guarded, catch, install_panic_hook};

/// Far beyond anything a thread needs to answer; a wait that reaches it has failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// How a call ended: with the object's answer, its refusal, or without either.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Answer(u32),
    Refusal(String),
    GivenUp(String),
}

impl End {
    /// The sentence of a call that was given up.
    fn given_up(self) -> String {
        match self {
            End::GivenUp(sentence) => sentence,
            other => panic!("the call was not given up: {other:?}"),
        }
    }
}

/// Stands for the C++ completion.
struct Probe {
    ends: Option<Sender<End>>,
}

impl Completion for Probe {
    type Answer = u32;

    fn succeed(&mut self, answer: u32) {
        self.send(End::Answer(answer));
    }

    fn fail(&mut self, sentence: &str) {
        self.send(End::Refusal(sentence.to_owned()));
    }

    fn give_up(&mut self, sentence: &str) {
        self.send(End::GivenUp(sentence.to_owned()));
    }
}

impl Probe {
    fn new() -> (Probe, Receiver<End>) {
        let (sender, receiver) = channel();
        (Probe { ends: Some(sender) }, receiver)
    }

    fn send(&mut self, end: End) {
        self.ends.take().expect("a completion is ended once").send(end).expect("the test listens");
    }
}

/// Makes one call and waits for its end; a second end would panic in the probe.
fn outcome<T>(object: &Guarded<T>, body: impl FnOnce(&T, Done<u32>)) -> End {
    ended(|probe| object.call("prepare", probe, body))
}

/// As [`outcome`], for a call that is made on a poisoned object too.
fn outcome_even_poisoned<T>(object: &Guarded<T>, body: impl FnOnce(&T, Done<u32>)) -> End {
    ended(|probe| object.call_even_poisoned("cleanup", probe, body))
}

fn ended(call: impl FnOnce(Probe)) -> End {
    let (probe, ends) = Probe::new();
    call(probe);
    let end = ends.recv_timeout(DEADLINE).expect("every call ends");
    assert!(ends.recv().is_err(), "a call ends once, and leaves nothing behind");
    end
}

/// An object that has panicked with "first".
fn poisoned<T>(inner: T) -> Guarded<T> {
    install_panic_hook();
    let object = Guarded::new(inner);
    outcome(&object, |_, _| panic!("first")).given_up();
    object
}

#[test]
fn an_answer_on_the_same_thread_arrives() {
    assert_eq!(outcome(&Guarded::new(41), |object, done| done(Ok(object + 1))), End::Answer(42));
}

#[test]
fn an_answer_from_another_thread_arrives() {
    let end = outcome(&Guarded::new(()), |(), done| {
        std::thread::spawn(move || done(Ok(7)));
    });
    assert_eq!(end, End::Answer(7));
}

#[test]
fn calls_run_beside_each_other() {
    let object = Guarded::new(());
    let (here, there) = (channel(), channel());
    std::thread::scope(|scope| {
        for (met, meet) in [(here.0, there.1), (there.0, here.1)] {
            let object = &object;
            scope.spawn(move || {
                let end = outcome(object, |(), done| {
                    met.send(()).expect("the other one is there");
                    done(meet.recv_timeout(DEADLINE).map(|()| 1).map_err(|error| error.to_string()));
                });
                assert_eq!(end, End::Answer(1));
            });
        }
    });
}

#[test]
fn a_failure_arrives_word_by_word() {
    let sentence = "volume ebs/vol-7b is held by agent-2";
    let end = outcome(&Guarded::new(()), |(), done| done(Err(sentence.to_owned())));
    assert_eq!(end, End::Refusal(sentence.to_owned()));
}

#[test]
fn a_failure_is_one_line_whatever_a_task_or_a_plugin_called_itself() {
    let forged = "label extvol.a\nE1130 1 slave.cpp:1] forged\u{1b}[2J\u{202e} is unknown";
    let shown = "label extvol.a\\nE1130 1 slave.cpp:1] forged\\u{1b}[2J\\u{202e} is unknown";
    let end = outcome(&Guarded::new(()), |(), done| done(Err(forged.to_owned())));
    assert_eq!(end, End::Refusal(shown.to_owned()));
    let end = outcome(&Guarded::new(()), |(), _| panic!("{forged}")).given_up();
    assert!(end.contains(shown), "{end}");
}

#[test]
fn a_call_that_is_dropped_is_given_up() {
    let sentence = "extvol: bug: prepare was dropped without an answer";
    let end = outcome(&Guarded::new(()), |(), done| drop(done));
    assert_eq!(end, End::GivenUp(sentence.to_owned()));
    let end = outcome(&Guarded::new(()), |(), done| {
        std::thread::spawn(move || drop(done));
    });
    assert_eq!(end, End::GivenUp(sentence.to_owned()));
}

#[test]
fn a_panic_gives_its_call_up_with_message_and_place() {
    install_panic_hook();
    let object = Guarded::new(());
    let sentence = outcome(&object, |(), _| panic!("no such {}", "luck")).given_up();
    assert!(sentence.starts_with("extvol: bug: prepare panicked at "), "{sentence}");
    assert!(sentence.contains("tests/guard.rs:"), "{sentence}");
    assert!(sentence.ends_with(": no such luck"), "{sentence}");
    assert!(object.is_poisoned());
}

#[test]
fn an_object_that_has_not_panicked_is_not_poisoned() {
    let object = Guarded::new(());
    outcome(&object, |(), done| done(Err("no".to_owned())));
    outcome(&object, |(), done| drop(done));
    assert!(!object.is_poisoned());
}

#[test]
fn after_a_panic_no_call_asks_the_object() {
    let calls = RefCell::new(0);
    let object = poisoned(&calls);
    for _ in 0..2 {
        let sentence = outcome(&object, |calls, done| {
            *calls.borrow_mut() += 1;
            done(Ok(1));
        })
        .given_up();
        assert!(
            sentence.starts_with("extvol: prepare was not tried, because of an earlier bug: "),
            "{sentence}"
        );
        assert!(sentence.ends_with(": first"), "{sentence}");
    }
    assert_eq!(*calls.borrow(), 0);
}

#[test]
fn after_a_panic_what_gives_back_is_still_called() {
    let object = poisoned(41);
    assert_eq!(outcome_even_poisoned(&object, |inner, done| done(Ok(inner + 1))), End::Answer(42));
    // Which may panic in its turn.
    let sentence = outcome_even_poisoned(&object, |_, _| panic!("second")).given_up();
    assert!(sentence.starts_with("extvol: bug: cleanup panicked at "), "{sentence}");
    assert!(sentence.ends_with(": second"), "{sentence}");
    // The first one is told from then on.
    let sentence = outcome(&object, |_, done| done(Ok(1))).given_up();
    assert!(sentence.ends_with(": first"), "{sentence}");
}

#[test]
fn whoever_hears_of_a_panic_finds_the_object_poisoned() {
    struct Looks(Arc<Guarded<()>>, Sender<bool>);
    impl Completion for Looks {
        type Answer = ();
        fn succeed(&mut self, (): ()) {}
        fn fail(&mut self, _: &str) {
            self.1.send(self.0.is_poisoned()).expect("the test listens");
        }
    }
    install_panic_hook();
    let object = Arc::new(Guarded::new(()));
    let (sender, receiver) = channel();
    object.call("prepare", Looks(Arc::clone(&object), sender), |(), _| panic!("first"));
    assert!(receiver.recv_timeout(DEADLINE).expect("it is told"));
}

#[test]
fn a_panic_after_the_answer_leaves_the_answer() {
    install_panic_hook();
    let object = Guarded::new(());
    let end = outcome(&object, |(), done| {
        done(Ok(3));
        panic!("too late");
    });
    assert_eq!(end, End::Answer(3));
    outcome(&object, |(), done| done(Ok(4))).given_up();
}

#[test]
fn an_answer_that_comes_after_the_panic_is_ignored() {
    install_panic_hook();
    let kept: Mutex<Option<Done<u32>>> = Mutex::new(None);
    let object = Guarded::new(());
    let (probe, ends) = Probe::new();
    object.call("prepare", probe, |(), done| {
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        panic!("gave it away first");
    });
    ends.recv_timeout(DEADLINE).expect("the panic ends the call").given_up();
    let late = kept.lock().unwrap().take().expect("it was given away");
    late(Ok(5));
    assert!(ends.recv().is_err(), "the call had ended");
}

#[test]
fn a_panic_in_the_objects_drop_stays_inside() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    install_panic_hook();
    drop(Guarded::new(Bomb));
}

#[test]
fn a_payload_that_panics_when_it_is_dropped_stays_inside() {
    struct Payload;
    impl Drop for Payload {
        fn drop(&mut self) {
            panic!("in the payload's drop");
        }
    }
    install_panic_hook();
    let sentence = catch("prepare", || panic_any(Payload)).unwrap_err();
    assert!(sentence.ends_with(": no message"), "{sentence}");
}
