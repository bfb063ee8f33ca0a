//! What goes wrong, and how it ends.

use std::collections::BTreeSet;

use protocol::Request;
use protocol::deadman;
use protocol::exchange::{ClusterId, Key, Lease, Record, SessionState};
use protocol::holder::Input;
use protocol::reclaimer;

use super::plan::{Fault, MS, Micros};
use super::run::{Event, World, holder, new_reclaimer};
use super::tasks::PERSON;

impl World<'_> {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.log(|| format!("FAULT {fault:?}"));
        let now = self.now;
        match fault {
            Fault::PowerOff { host, lasts } => self.power_off(host, lasts),
            Fault::KillWorker { host } => {
                if self.nodes[host].powered && self.nodes[host].host.worker.is_some() {
                    self.worker_dies(host);
                }
            }
            Fault::HangWorker { host, lasts } => {
                self.with(host, |host, now, effects| {
                    host.deadman(now, deadman::Input::WorkerTicked, effects)
                });
                self.nodes[host].hung = now + lasts;
                self.with(host, |_, _, _| {});
            }
            Fault::KillDeadman { host } => self.kill_deadman(host),
            Fault::KillKeeper { host } => {
                if self.nodes[host].powered {
                    self.nodes[host].host.deadman_gone();
                    if self.nodes[host].host.worker.is_some() {
                        self.worker_dies(host);
                    }
                    let boot = self.nodes[host].boot;
                    self.after(500 * MS, Event::StartDeadman { host, boot });
                }
            }
            Fault::Suspend { host, lasts, .. } => {
                let node = &mut self.nodes[host];
                if node.powered && node.suspended.is_none() {
                    node.suspended = Some(now + lasts);
                    self.after(lasts, Event::Recover(fault));
                    self.after(50 * MS, Event::Agents);
                    self.lose_tasks(host);
                }
            }
            Fault::CutHost { host, lasts } => self.nodes[host].cut = now + lasts,
            Fault::CutReclaimer { reclaimer, lasts } => self.masters[reclaimer].cut = now + lasts,
            Fault::RestartReclaimer { reclaimer } => {
                let core = new_reclaimer(std::time::Duration::ZERO);
                self.masters[reclaimer].core = core;
                self.masters[reclaimer].life += 1;
                self.masters[reclaimer].wake = None;
                let agents = self.agents();
                self.tell_master(reclaimer, reclaimer::Input::Agents(agents));
            }
            Fault::Lead { reclaimer } => {
                for other in 0..self.masters.len() {
                    self.tell_master(other, reclaimer::Input::Leading(other == reclaimer));
                }
            }
            Fault::HangMember { lasts } => self.member_hung = now + lasts,
            Fault::LoseQuorum { lasts } => self.no_quorum = self.no_quorum.max(now + lasts),
            Fault::FillEtcd { lasts } => self.full = self.full.max(now + lasts),
            Fault::GiveUp { host, lasts } => {
                self.given_up.insert(host);
                self.ever_given_up.insert(host);
                self.lose_tasks(host);
                self.after(50 * MS, Event::Agents);
                self.after(lasts, Event::Recover(fault));
            }
            Fault::StopAgent { host, lasts } => {
                self.stopped.insert(host);
                self.lose_tasks(host);
                self.after(50 * MS, Event::Agents);
                self.after(lasts, Event::Recover(fault));
            }
            Fault::RestartAgent { host } => self.restart_agent(host),
            Fault::RevokeVolume { volume } => self.revoke_volume(volume),
            Fault::SlowDriver { host, lasts } => self.nodes[host].slow = now + lasts,
            Fault::Restore { closed, .. } => {
                self.no_quorum = self.no_quorum.max(now + closed);
                self.after(closed, Event::Recover(fault));
            }
            Fault::DeleteSession { host } => {
                if self.etcd.entries.remove(&Key::Session(holder(host))).is_some() {
                    self.etcd.revision.0 += 1;
                }
            }
            Fault::CloneName { host, of } => {
                if !self.plan.hosts[host].never_by_time {
                    self.power_off(host, 500 * MS);
                    self.nodes[host].host.settings.holder = holder(of);
                }
            }
        }
    }

    pub(super) fn recover(&mut self, fault: Fault) {
        self.log(|| format!("OVER {fault:?}"));
        match fault {
            Fault::PowerOff { host, .. } => self.power_on(host),
            Fault::Suspend { host, lasts, counted } if self.nodes[host].suspended.take().is_some() => {
                if !counted {
                    self.nodes[host].lost += lasts;
                }
                self.nodes[host].connected = self.now;
                for volume in self.volumes.clone() {
                    self.check_writers(&volume);
                }
                self.with(host, |_, _, _| {});
                self.end_strays(host);
                self.after(50 * MS, Event::Agents);
            }
            Fault::GiveUp { host, .. } | Fault::StopAgent { host, .. } => {
                self.given_up.remove(&host);
                self.stopped.remove(&host);
                self.end_strays(host);
                self.nodes[host].connected = self.now;
                self.after(50 * MS, Event::Agents);
            }
            Fault::Restore { .. } => {
                if let Some(backup) = self.backup.clone() {
                    self.etcd = backup;
                    self.etcd.cluster = ClusterId("c2".into());
                    // Revisions begin anew from there, and tokens with them: one installation's tokens grow.
                    self.tokens.clear();
                }
            }
            _ => {}
        }
    }

    fn power_off(&mut self, host: usize, lasts: Micros) {
        let node = &mut self.nodes[host];
        if !node.powered {
            return;
        }
        node.powered = false;
        if node.suspended.take().is_some() {
            // What its drivers had not yet asked of the storage when they were stopped, they never will.
            self.calls.retain(|(caller, _)| *caller != host);
        }
        let node = &mut self.nodes[host];
        node.boot += 1;
        node.life += 1;
        node.hung = 0;
        (node.polling, node.wake) = (None, None);
        node.host.power_off();
        self.lose_tasks(host);
        self.after(50 * MS, Event::Agents);
        self.after(lasts, Event::Recover(Fault::PowerOff { host, lasts }));
    }

    fn power_on(&mut self, host: usize) {
        if self.nodes[host].powered {
            return;
        }
        let node = &mut self.nodes[host];
        node.powered = true;
        node.connected = self.now;
        let boot = format!("b{}", node.boot).into();
        self.with(host, |host, now, effects| host.boot(now, boot, effects));
        self.after(50 * MS, Event::Agents);
    }

    fn kill_deadman(&mut self, host: usize) {
        if !self.nodes[host].powered || self.nodes[host].host.deadman.is_none() {
            return;
        }
        self.nodes[host].host.deadman_gone();
        let (boot, life) = (self.nodes[host].boot, self.nodes[host].life);
        self.after(150 * MS, Event::Guarded { host, life, guarded: false });
        self.after(600 * MS, Event::StartDeadman { host, boot });
    }

    fn restart_agent(&mut self, host: usize) {
        if self.nodes[host].host.worker.is_none() || self.nodes[host].hung > self.now {
            return;
        }
        let agent = self.agent(host);
        let known = self.nodes[host].host.processes.iter().filter(|(_, process)| process.runs);
        let known: BTreeSet<_> = known.map(|(container, _)| container.clone()).collect();
        let others: Vec<_> =
            self.nodes[host].host.processes.keys().filter(|c| !known.contains(c)).cloned().collect();
        for container in others {
            self.nodes[host].host.processes.remove(&container);
        }
        let (request, orphans) = (Request(u64::MAX), BTreeSet::new());
        self.tell(host, Input::Recover { request, agent, known, orphans });
    }

    /// What `extvol revoke <volume>` does: the lease says so, and the session is rewritten, so that the next beat
    /// tells.
    fn revoke_volume(&mut self, number: usize) {
        let key = Key::Lease(self.volumes[number].clone());
        let Some((Record::Lease(Lease::Held(held)), _)) = self.etcd.entries.get(&key).cloned() else {
            return;
        };
        let session = Key::Session(held.holder.clone());
        let Some((Record::Session(owner), _)) = self.etcd.entries.get(&session).cloned() else { return };
        if owner.state == SessionState::Live && owner.epoch == held.epoch && self.no_quorum <= self.now {
            self.etcd.revision.0 += 1;
            let at = self.etcd.revision;
            let held = held.revoked(self.etcd.at(&key), "an operator asked for it");
            self.etcd.entries.insert(key, (Record::Lease(Lease::Held(held)), at));
            self.etcd.entries.insert(session, (Record::Session(owner), at));
        }
    }

    /// What a person does that reads in a free lease, or in the message of a failed task, who has not given a volume back:
    /// detaches it there, and runs `extvol free`.
    pub(super) fn detach_by_hand(&mut self) {
        for volume in self.volumes.clone() {
            let Some(Lease::Free { owed: Some(owed), .. }) = self.etcd.lease(&volume).cloned() else {
                continue;
            };
            let attached = self.attached.get(&volume).copied();
            if attached.is_some_and(|host| {
                let host = &self.nodes[host].host;
                owed.from.contains(&host.settings.holder) && !host.mounts.contains_key(&volume)
            }) {
                self.attached.remove(&volume);
            }
            self.log(|| format!("a person has detached {volume} from {}", owed.hosts()));
            self.etcd.revision.0 += 1;
            self.etcd.entries.remove(&Key::Lease(volume));
        }
        self.after(PERSON, Event::Person);
    }

    /// Everything works again.
    pub(super) fn recover_all(&mut self) {
        for host in 0..self.nodes.len() {
            self.power_on(host);
            self.end_strays(host);
            let node = &mut self.nodes[host];
            node.cut = node.cut.min(self.now);
            node.slow = node.slow.min(self.now);
        }
        for master in &mut self.masters {
            master.cut = master.cut.min(self.now);
        }
        self.member_hung = self.member_hung.min(self.now);
        self.no_quorum = self.no_quorum.min(self.now);
        self.full = self.full.min(self.now);
        self.given_up.clear();
        self.stopped.clear();
        self.after(50 * MS, Event::Agents);
    }

    /// What has to be waited for when nobody knows a session's T: the longest that there is.
    pub(super) fn extra_recovery(&self) -> Micros {
        let unknown = |fault: &Fault| {
            matches!(fault, Fault::DeleteSession { .. } | Fault::CloneName { .. } | Fault::Restore { .. })
        };
        if self.plan.faults.iter().any(|(_, fault)| unknown(fault)) { 75_000 * MS } else { 0 }
    }
}
