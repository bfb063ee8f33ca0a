//! Containers that must end, and those that need not.

use crate::agent::{Agent, Waiting, config, id, raw_id};
use crate::stand_in::Connection;

/// When this is over, the isolator has taken in all that either side said before.
fn settle(agent: &Agent, connection: &mut Connection) {
    let told: Waiting<()> = agent.cleanup(&id("settle"));
    let call = connection.next();
    connection.done(call.id);
    told.answer().unwrap();
}

fn known(name: &str) -> agent_isolator::mesos::ContainerId {
    raw_id([name.as_bytes()].into_iter())
}

#[test]
fn a_limit_ends_the_watch_that_is_there_or_comes_later() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.accept();
    let (hello, _) = connection.hello();
    // As the keeper tells a new connection: before it answers anything.
    connection.limit("early", "the lease is lost");
    connection.done(hello);
    let recover = agent.recover(&[known("early"), known("later")], &[]);
    let call = connection.next();
    connection.done(call.id);
    recover.answer().unwrap();
    let later = agent.watch(&id("later"));
    settle(&agent, &mut connection);
    assert!(later.is_pending());
    assert_eq!(agent.watch(&id("early")).answer().as_deref(), Ok("the lease is lost"));
    connection.limit("later", "the lease is lost, too");
    assert_eq!(later.answer().as_deref(), Ok("the lease is lost, too"));
}

#[test]
fn a_container_with_the_id_of_a_limited_one_is_not_ended_with_it() {
    let (agent, keeper) = Agent::with_keeper(&[]);
    let mut connection = keeper.accept();
    let (hello, _) = connection.hello();
    connection.limit("standalone", "the lease is lost");
    connection.done(hello);
    settle(&agent, &mut connection);
    let prepare = agent.prepare(&id("standalone"), &config(&[("extvol.name", "a")], &[]));
    let call = connection.next();
    connection.prepared(call.id, &["/m/a"]);
    prepare.answer().unwrap();
    let watch = agent.watch(&id("standalone"));
    settle(&agent, &mut connection);
    assert!(watch.is_pending());
}
