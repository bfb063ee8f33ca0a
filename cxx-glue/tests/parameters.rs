//! Decoding the parameters of a module, by path for the same reason as `guard.rs`.

#[path = "../src/parameters.rs"]
mod parameters;

/// Parameters { parameter { key: "a" value: "1" } parameter { key: "a" value: "" } }
const TWICE: &[u8] = b"\x0a\x06\x0a\x01a\x12\x011\x0a\x05\x0a\x01a\x12\x00";

#[test]
fn parameters_keep_their_order_and_may_repeat() {
    let decoded = parameters::decode(TWICE).unwrap();
    assert_eq!(decoded, [("a".to_owned(), "1".to_owned()), ("a".to_owned(), String::new())]);
}

#[test]
fn no_parameters_are_none() {
    assert_eq!(parameters::decode(b"").unwrap(), []);
}

#[test]
fn broken_parameters_are_a_sentence() {
    let sentence = parameters::decode(b"\x0a\xff").unwrap_err();
    assert!(sentence.starts_with("the module's parameters are broken: "), "{sentence}");
}
