//! Requests to etcd: how long they take, and which are lost, late or done twice.

use protocol::Op;
use protocol::exchange::{Commit, Key, Lease, Outcome, Record, SessionState, Stage};
use protocol::holder::Input;
use protocol::ids::Token;

use super::plan::{MS, Micros};
use super::run::{Answer, Ask, Client, Event, Violation, World};

/// R, by which each request is answered one way or the other.
const REQUEST: Micros = 500 * MS;

impl World<'_> {
    /// Sends a request, and decides its fate.
    pub(super) fn ask(&mut self, client: Client, op: Op, ask: Ask) {
        let (life, count, cut, number) = match client {
            Client::Host(host) => {
                let node = &mut self.nodes[host];
                node.requests += 1;
                (node.life, node.requests, node.cut, host as u64)
            }
            Client::Reclaimer(reclaimer) => {
                let master = &mut self.masters[reclaimer];
                master.requests += 1;
                (master.life, master.requests, master.cut, 100 + reclaimer as u64)
            }
        };
        if let (Client::Host(host), Ask::Commit(commit)) = (client, &ask)
            && commit.puts.iter().any(|(key, _)| matches!(key, Key::Beat(_)))
            && !self.nodes[host].host.worker.as_ref().is_some_and(protocol::holder::Core::is_open)
        {
            self.violated(Violation::BeatAfterEnd { host });
        }
        let now = self.now;
        let mut dice = self.dice(2, number, count);
        let there = if dice.permille(10) { dice.range(3 * MS, 300 * MS) } else { dice.range(200, 3_000) };
        let back = there + dice.range(200, 2_000);
        if self.full > now && cut.max(self.no_quorum) <= now && matches!(ask, Ask::Commit(_)) {
            if dice.permille(50) {
                self.after(there, Event::Apply { client, life, op, ask, back: None });
            }
            return self
                .after(back, Event::Answer { client, life, op, answer: Answer::Commit(Outcome::Unknown) });
        }
        // Whether it gets through, by when at the latest it then has, and whether its sender hears of it.
        let trouble = if cut > now {
            Some((cut, 400))
        } else if self.no_quorum > now {
            Some((self.no_quorum, 500))
        } else if self.member_hung > now && dice.permille(333) {
            Some((self.member_hung, 500))
        } else if dice.permille(6) {
            Some((now + 2_500 * MS, 700))
        } else {
            None
        };
        let Some((until, through)) = trouble else {
            if dice.permille(5) && matches!(ask, Ask::Commit(_)) {
                // The transport sends it once more.
                let again = there + dice.range(MS, 3_000 * MS);
                let ask = ask.clone();
                self.after(again, Event::Apply { client, life, op, ask, back: None });
            }
            return self.after(there, Event::Apply { client, life, op, ask, back: Some(now + back) });
        };
        let unsent = cut > now && dice.permille(300);
        let answer = match &ask {
            Ask::Read(_) => Answer::Read(Err("no answer".into())),
            Ask::Commit(_) if unsent => Answer::Commit(Outcome::NotSent),
            Ask::Commit(_) => Answer::Commit(Outcome::Unknown),
        };
        let heard = if unsent { MS } else { REQUEST };
        self.after(heard, Event::Answer { client, life, op, answer });
        if !unsent && matches!(ask, Ask::Commit(_)) && dice.permille(through) {
            let early = cut > now && dice.permille(500);
            let at = if early { now + there } else { until + dice.range(0, 300 * MS) };
            self.at(at, Event::Apply { client, life, op, ask, back: None });
        }
    }

    pub(super) fn apply(&mut self, client: Client, life: u32, op: Op, ask: &Ask, back: Option<Micros>) {
        let answer = match ask {
            Ask::Read(reading) => Answer::Read(Ok(self.etcd.read(reading))),
            Ask::Commit(commit) => {
                let before = self.etcd.revision;
                self.check_taken(commit);
                self.check_revoked(&client, commit);
                let outcome = self.etcd.commit(commit);
                self.log(|| format!("etcd: {client:?} #{} {}", op.0, in_a_word(&outcome)));
                if self.etcd.revision > before {
                    self.check_grants(commit);
                    self.notify(commit);
                }
                Answer::Commit(outcome)
            }
        };
        if let Some(back) = back {
            self.at(back, Event::Answer { client, life, op, answer });
        }
    }

    /// Watches tell those who wait, and those whose session is rewritten; one in twenty stays silent.
    fn notify(&mut self, commit: &Commit) {
        for host in 0..self.nodes.len() {
            let node = &self.nodes[host];
            let Some(core) = node.host.worker.as_ref().filter(|_| node.cut <= self.now) else { continue };
            let watching = core.watching();
            let life = node.life;
            let mut dice = self.dice(15, host as u64, self.etcd.revision.0.unsigned_abs());
            let written = commit.puts.iter().map(|(key, _)| key).chain(&commit.deletes);
            for key in written.filter(|key| watching.contains_key(key)) {
                if !dice.permille(50) {
                    let input = Input::Changed(key.clone());
                    self.after(dice.range(200, 5 * MS), Event::CallAnswered { host, life, input });
                }
            }
        }
    }

    /// A module revokes the session of no host whose agent was not given up: what an agent's restart ends is what others wait for.
    fn check_revoked(&mut self, client: &Client, commit: &Commit) {
        if !matches!(client, Client::Reclaimer(_)) || !self.etcd.would_commit(commit) {
            return;
        }
        for (key, record) in &commit.puts {
            let (Key::Session(holder), Record::Session(session)) = (key, record) else { continue };
            // Two machines may have one name; their agents do not.
            let agent = session.agent.as_ref().and_then(|agent| agent.id.as_deref());
            let is_given_up = self.ever_given_up.iter().any(|host| agent == Some(&*format!("A{host}")));
            if session.state == SessionState::Revoking && !is_given_up {
                self.violated(Violation::RevokedForRestart { holder: holder.clone() });
            }
        }
    }

    /// Where the storage cannot take a volume away, nobody takes one that a living host is about to give back.
    fn check_taken(&mut self, commit: &Commit) {
        if self.plan.storage_fencing || !self.etcd.would_commit(commit) {
            return;
        }
        for (key, record) in &commit.puts {
            let (Key::Lease(volume), Record::Lease(Lease::Held(held))) = (key, record) else { continue };
            let from = self.etcd.is_given_back(volume).filter(|from| **from != held.holder).cloned();
            if let Some(from) = from {
                self.violated(Violation::TakenFromTheLiving { volume: volume.clone(), from });
            }
        }
    }

    /// Tokens only grow; and whom a lease names finds it.
    fn check_grants(&mut self, commit: &Commit) {
        for key in commit.puts.iter().map(|(key, _)| key).chain(&commit.deletes) {
            if let Key::Lease(volume) | Key::Held(_, volume) = key
                && !self.etcd.is_indexed(volume)
            {
                self.violated(Violation::NotInIndex { volume: volume.clone() });
            }
        }
        for (key, record) in &commit.puts {
            let (Key::Lease(volume), Record::Lease(Lease::Held(held))) = (key, record) else { continue };
            if held.token.is_some() {
                continue;
            }
            let live = Some((held.epoch.0, SessionState::Live));
            if self.etcd.session(&held.holder) != live && held.stage == Stage::Attaching {
                self.violated(Violation::GrantedAfterRevoke { volume: volume.clone() });
            }
            let new = Token(self.etcd.revision);
            self.report.takeovers += u64::from(held.unsettled);
            if let Some(last) = self.tokens.insert(volume.clone(), new)
                && last >= new
            {
                self.violated(Violation::TokenWentBack { volume: volume.clone(), last, new });
            }
        }
    }
}

/// What became of a commit.
fn in_a_word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Conflict(_) => "Conflict".to_owned(),
        other => format!("{other:?}"),
    }
}
