//! `revoke` and `free`: the exact records that they leave.

use shared::protocol::exchange::{Held, Key, Lease, Proof, Record, Session, SessionState};
use shared::record::Token;
use shared::store::{LeaseStore, Transaction};

use crate::program::{Installation, extvol, granted, holder, session, volume};

fn reason() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("an operator asked for it (ada@{host})")
}

#[tokio::test]
async fn etcd_a_holder_is_revoked_by_its_session_alone() {
    let installation = Installation::of_two_releases().await;
    let before = installation.all().await;
    let answer = installation.run(&["revoke", "new-1"]);
    assert_eq!((answer.code, answer.out.as_str()), (1, ""));
    assert!(answer.error.contains("nothing is written without --yes"), "{}", answer.error);
    assert_eq!(installation.all().await, before);

    let answer = installation.run(&["revoke", "new-1", "--yes"]);
    assert_eq!((answer.code, answer.error.as_str()), (0, ""));
    assert!(answer.out.contains("gives up ebs/new: container c1 is told to end"), "{}", answer.out);
    let mut after = installation.all().await;
    let revoking =
        Session { state: SessionState::Revoking, reason: Some(reason().as_str().into()), ..session() };
    assert_eq!(installation.record(&Key::Session(holder("new-1"))).await, Record::Session(revoking));
    // What an older keeper reads.
    let text = String::from_utf8(after.entries["/extvol/v1/sessions/new-1"].value.clone()).unwrap();
    assert!(text.contains(r#""state":"live""#) && text.contains(r#""revoking":true"#), "{text}");
    // One transaction, and no other key.
    assert_eq!(after.revision.0, before.revision.0 + 1);
    let mut others = before.entries.clone();
    others.remove("/extvol/v1/sessions/new-1");
    after.entries.remove("/extvol/v1/sessions/new-1");
    assert_eq!(after.entries, others);

    let again = installation.run(&["revoke", "new-1", "--yes"]);
    assert_eq!(again.code, 1);
    assert!(again.error.contains("is revoked already: an operator asked for it"), "{}", again.error);
}

#[tokio::test]
async fn etcd_a_volume_is_revoked_by_its_lease_and_the_session_is_rewritten_as_it_was() {
    let installation = Installation::of_two_releases().await;
    let (lease, owner) = (Key::Lease(volume("new")), Key::Session(holder("new-1")));
    let granted_at = installation.entry(&lease).await.mod_revision;
    let before = installation.all().await;
    let answer = installation.run(&["revoke", "ebs/NEW", "--yes"]);
    assert_eq!((answer.code, answer.error.as_str()), (0, ""));
    let after = installation.all().await;
    assert_eq!(after.revision.0, before.revision.0 + 1);
    // The token is that of the grant, which the lease itself did not say before.
    let token = Some(Token(granted_at));
    let revoked = Held { token, revoked: Some(reason().as_str().into()), ..granted("new-1") };
    assert_eq!(installation.record(&lease).await, Record::Lease(Lease::Held(revoked)));
    let (old, new) = (&before.entries["/extvol/v1/sessions/new-1"], installation.entry(&owner).await);
    assert_eq!((&new.value, new.mod_revision), (&old.value, after.revision));
    let changed: Vec<_> = after.entries.iter().filter(|(_, e)| e.mod_revision == after.revision).collect();
    assert_eq!(changed.len(), 2, "{changed:?}");

    let again = installation.run(&["revoke", "ebs/new", "--yes"]);
    assert_eq!(again.code, 1);
    assert!(again.error.contains("volume ebs/new of new-1 is revoked already"), "{}", again.error);
    let listed = installation.run(&["leases"]).out;
    assert!(listed.contains("unsettled; revoked: an operator asked for it (ada@"), "{listed}");
}

#[tokio::test]
async fn etcd_a_keeper_that_would_not_notice_is_not_revoked() {
    let installation = Installation::of_two_releases().await;
    let before = installation.all().await;
    for subject in ["old-1", "ebs/old"] {
        let answer = installation.run(&["revoke", subject, "--yes"]);
        assert_eq!(answer.code, 1);
        assert!(
            answer.error.contains("the keeper of old-1 is of a release that does not beat"),
            "{answer:?}"
        );
    }
    assert_eq!(installation.all().await, before);
}

#[tokio::test]
async fn etcd_a_lease_of_a_host_that_is_lost_is_freed_once_it_is_vouched_for() {
    let installation = Installation::of_two_releases().await;
    let answer = installation.run(&["free", "ebs/new", "--detached", "new-1"]);
    assert_eq!(answer.code, 1);
    assert!(answer.error.contains("whose session is live"), "{}", answer.error);
    let dead = Session { state: SessionState::Dead(Proof::Time), ..session() };
    installation.put(&Key::Session(holder("new-1")), &Record::Session(dead)).await;
    let before = installation.all().await;
    let answer = installation.run(&["--settle_time=30secs", "free", "ebs/new"]);
    assert_eq!(answer.code, 1);
    assert!(answer.error.contains("30 s must have passed"), "{}", answer.error);
    assert_eq!(installation.all().await, before);
    let answer = installation.run(&["free", "ebs/new", "--detached", "new-1"]);
    assert_eq!((answer.code, answer.error.as_str()), (0, ""));
    // Of a free volume that nobody owes nothing is left, and nothing else was written.
    let after = installation.all().await;
    let changed: Vec<_> = after.entries.iter().filter(|(_, e)| e.mod_revision > before.revision).collect();
    assert!(changed.is_empty(), "{changed:?}");
    let gone: Vec<_> = before.entries.keys().filter(|key| !after.entries.contains_key(*key)).collect();
    assert_eq!(gone, ["/extvol/v1/leases/ebs/new"]);
    // An older release's session that a person ended by hand, and its lease.
    let ended = crate::program::OLD_SESSION.replace("live", "dead");
    installation.etcd.etcdctl(&["put", "/extvol/v1/sessions/old-1", &ended]);
    assert_eq!(installation.run(&["free", "ebs/old", "--detached=old-1"]).code, 0);
    assert!(!installation.all().await.entries.contains_key("/extvol/v1/leases/ebs/old"));
}

/// A keeper that writes its session as fast as it can is still revoked, and nothing of either is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_a_revoke_gets_through_between_the_writes_of_a_keeper() {
    let installation = Installation::of_two_releases().await;
    let key = "/extvol/v1/sessions/new-1".to_owned();
    let config = shared::etcd::EtcdConfig::new(installation.etcd.endpoints());
    let store = shared::etcd::EtcdStore::new(config).unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let keeper = tokio::spawn(async move {
        let mut written = 0_u32;
        while !*stopped.borrow() {
            let snapshot = store.get(std::slice::from_ref(&key)).await.unwrap();
            let entry = snapshot.entries[&key].clone();
            if store.commit(Transaction::new().put(&key, entry.mod_revision, entry.value)).await.is_ok() {
                written += 1;
            }
            // As a keeper rests between its writes.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        written
    });
    let mut command = extvol();
    command.arg("--endpoints").arg(installation.etcd.endpoint(0)).args(["revoke", "new-1", "--yes"]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    stop.send(true).unwrap();
    assert!(keeper.await.unwrap() > 0);
    assert!(output.status.success(), "{output:?}");
    let Record::Session(session) = installation.record(&Key::Session(holder("new-1"))).await else {
        panic!()
    };
    assert_eq!(session.state, SessionState::Revoking);
}

#[tokio::test]
async fn etcd_that_is_full_lets_nothing_be_revoked_and_says_so() {
    let etcd = testing::EtcdCluster::start_with(1, &["--quota-backend-bytes", "2000000"]);
    let installation = Installation::found_in(etcd);
    installation.put(&Key::Session(holder("new-1")), &Record::Session(session())).await;
    crate::doctor::fill(&installation).await;
    let answer = installation.run(&["revoke", "new-1", "--yes"]);
    // Such a refusal may be of a write that was done.
    assert_eq!(answer.code, 3, "{answer:?}");
    assert!(answer.error.contains("may have been done"), "{answer:?}");
    assert!(answer.error.contains(" is full: ") && answer.error.contains("alarm disarm"), "{answer:?}");
    assert_eq!(installation.record(&Key::Session(holder("new-1"))).await, Record::Session(session()));
}
