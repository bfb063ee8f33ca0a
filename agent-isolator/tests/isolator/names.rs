//! Ids and values that are none of ours, be they long or not UTF-8, fail no task without volumes, no
//! cleanup, and no agent's start.

use agent_isolator::wire::{Call, CallLine};
use prost::Message;

use crate::agent::{Agent, config, raw_id};

#[test]
fn a_container_whose_id_is_no_name_lives_and_ends_as_if_we_were_not_there() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.connected();
    let long = raw_id([&[b'p'; 36][..], &[b'c'; 230]].into_iter());
    let bytes = raw_id([&b"p"[..], b"c\xff"].into_iter());
    let other = raw_id([&b"other"[..]].into_iter());
    for (odd, why) in [(&long, "has 267 bytes, more than 255"), (&bytes, "is not UTF-8")] {
        let id = odd.encode_to_vec();
        assert_eq!(agent.prepare(&id, &config(&[], &[])).answer(), Ok(None));
        assert_eq!(agent.isolate(&id).answer(), Ok(()));
        let watch = agent.watch(&id);
        let error = agent.prepare(&id, &config(&[("extvol.name", "a")], &[])).answer().unwrap_err();
        assert!(error.contains(why), "{error}");
        let recover = agent.recover(&[odd.clone(), other.clone()], std::slice::from_ref(odd));
        let CallLine { id: call_id, call } = connection.next();
        let Call::Recover { known, orphans, .. } = call else { panic!("{call:?}") };
        assert_eq!(known.iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["other"]);
        assert!(orphans.is_empty());
        connection.done(call_id);
        assert_eq!(recover.answer(), Ok(()));
        assert!(watch.is_pending());
        assert_eq!(agent.cleanup(&id).answer(), Ok(()));
    }
}

#[test]
fn values_that_are_not_utf8_fail_no_task_without_volumes() {
    let agent = Agent::start(&[]);
    let mut config = config(&[("other", "x")], &[("LATIN", b"caf\xe9")]);
    config.directory = b"/work/slaves/S0/frameworks/f/executors/\xff/runs/c".to_vec();
    config.rootfs = Some(b"/\xff".to_vec());
    assert_eq!(agent.prepare(&crate::agent::id("c"), &config).answer(), Ok(None));
}
