//! The guard that keeps panics on Rust's side, tried without Mesos.
//!
//! It is compiled in by path: the crate itself only links where libmesos is.

#[path = "../src/guard.rs"]
mod guard;

use std::cell::RefCell;
use std::panic::panic_any;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use guard::{Completion, Done, Guarded, catch, install_panic_hook};

/// Far beyond anything a thread needs to answer; a wait that reaches it has failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// Stands for the C++ completion: fails when it is dropped without an answer.
struct Probe {
    answers: Option<Sender<Result<u32, String>>>,
}

impl Completion for Probe {
    type Answer = u32;

    fn succeed(&mut self, answer: u32) {
        self.send(Ok(answer));
    }

    fn fail(&mut self, sentence: &str) {
        self.send(Err(sentence.to_owned()));
    }
}

impl Probe {
    fn new() -> (Probe, Receiver<Result<u32, String>>) {
        let (sender, receiver) = channel();
        (Probe { answers: Some(sender) }, receiver)
    }

    fn send(&mut self, answer: Result<u32, String>) {
        self.answers.take().expect("a completion is ended once").send(answer).expect("the test listens");
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if self.answers.is_some() {
            self.fail("dropped");
        }
    }
}

/// Makes one call and waits for its end; a second end would panic in the probe.
fn outcome<T>(object: &Guarded<T>, body: impl FnOnce(&T, Done<u32>)) -> Result<u32, String> {
    let (completion, answers) = Probe::new();
    object.call("prepare", completion, body);
    let answer = answers.recv_timeout(DEADLINE).expect("every call ends");
    assert!(answers.recv().is_err(), "a call ends once, and leaves nothing behind");
    answer
}

#[test]
fn an_answer_on_the_same_thread_arrives() {
    assert_eq!(outcome(&Guarded::new(41), |object, done| done(Ok(object + 1))), Ok(42));
}

#[test]
fn an_answer_from_another_thread_arrives() {
    let answer = outcome(&Guarded::new(()), |(), done| {
        std::thread::spawn(move || done(Ok(7)));
    });
    assert_eq!(answer, Ok(7));
}

#[test]
fn a_failure_arrives_word_by_word() {
    let sentence = "volume ebs/vol-7b is held by agent-2";
    let answer = outcome(&Guarded::new(()), |(), done| done(Err(sentence.to_owned())));
    assert_eq!(answer, Err(sentence.to_owned()));
}

#[test]
fn a_call_that_is_given_up_fails() {
    assert_eq!(outcome(&Guarded::new(()), |(), done| drop(done)), Err("dropped".to_owned()));
}

#[test]
fn a_panic_fails_its_call_with_message_and_place() {
    install_panic_hook();
    let sentence = outcome(&Guarded::new(()), |(), _| panic!("no such {}", "luck")).unwrap_err();
    assert!(sentence.starts_with("extvol: bug: prepare panicked at "), "{sentence}");
    assert!(sentence.contains("tests/guard.rs:"), "{sentence}");
    assert!(sentence.ends_with(": no such luck"), "{sentence}");
}

#[test]
fn after_a_panic_no_call_reaches_the_object() {
    install_panic_hook();
    let calls = RefCell::new(0);
    let object = Guarded::new(&calls);
    outcome(&object, |_, _| panic!("first")).unwrap_err();
    for _ in 0..2 {
        let sentence = outcome(&object, |calls, done| {
            *calls.borrow_mut() += 1;
            done(Ok(1));
        })
        .unwrap_err();
        assert!(
            sentence.starts_with("extvol: prepare was not tried, because of an earlier bug: "),
            "{sentence}"
        );
        assert!(sentence.ends_with(": first"), "{sentence}");
    }
    assert_eq!(*calls.borrow(), 0);
}

#[test]
fn a_panic_after_the_answer_leaves_the_answer() {
    install_panic_hook();
    let object = Guarded::new(());
    let answer = outcome(&object, |(), done| {
        done(Ok(3));
        panic!("too late");
    });
    assert_eq!(answer, Ok(3));
    assert!(outcome(&object, |(), done| done(Ok(4))).is_err(), "the object is poisoned all the same");
}

#[test]
fn an_answer_that_comes_after_the_panic_is_ignored() {
    install_panic_hook();
    let kept: Mutex<Option<Done<u32>>> = Mutex::new(None);
    let object = Guarded::new(());
    let (completion, answers) = Probe::new();
    object.call("prepare", completion, |(), done| {
        *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        panic!("gave it away first");
    });
    assert!(answers.recv_timeout(DEADLINE).expect("the panic ends the call").is_err());
    let late = kept.lock().unwrap().take().expect("it was given away");
    late(Ok(5));
    assert!(answers.recv().is_err(), "the call had ended");
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
