//! The runner's first part: freeze and shutdowns, each by a helper that stands by. None is waited for longer than [`STRIKE`], and a
//! process is started only where neither a helper stands by nor one comes back soon.
//!
//! Many volumes on one storage that hangs occupy helpers, each for that long. So once one has hung, processes are started up to the
//! usual number of helpers, and the fence that follows a strike begins with the volumes that the strike has not come to.

use shared::protocol::Now;
use shared::protocol::fence::Act;
use shared::volume::VolumeId;

use super::job::{Job, Report};
use super::pool::MOST;
use super::{FenceRunner, NO_ANSWER, Policy, STRIKE, not_started, unexpected};

impl FenceRunner {
    pub(super) fn start_freeze(&mut self, now: Now) {
        let cgroups = self.containers.values().flatten().cloned().collect();
        match self.pool.start(&Job::Freeze { cgroups }) {
            Ok(helper) => self.freezing = Some((helper, now)),
            // A full process table may have room in a moment.
            Err(_) if self.may_try_again(now) => {
                self.again.insert(Act::Freeze, now);
            }
            Err(error) => self.struck(&Act::Freeze, Err(not_started(&error)), now),
        }
    }

    /// Has a volume's shutdown wait for a helper: behind those that no fence has come to yet, and before those that did not answer to one.
    /// What a strike has shut down is shut down again: what was under way then may have mounted it anew.
    pub(super) fn wait_for_shutdown(&mut self, volume: &VolumeId) {
        let turn = |volume: &VolumeId| {
            if self.pool.hung.contains(volume) { 2 } else { u8::from(self.pool.answered.contains(volume)) }
        };
        let own = turn(volume);
        let at = self.waiting.partition_point(|other| turn(other) <= own);
        self.waiting.insert(at, volume.clone());
    }

    /// Gives shutdowns that wait to helpers: to those that stand by, and to processes that are started where no helper comes back.
    pub(super) fn start_shutdowns(&mut self, now: Now) {
        while let Some(volume) = self.waiting.front().cloned() {
            let act = Act::Shutdown(volume.clone());
            let Some(mounted) = self.fence.mounted(&volume).cloned() else {
                self.waiting.pop_front();
                self.struck(&act, Ok(()), now);
                continue;
            };
            let enough = if self.pool.hung.is_empty() { 1 } else { MOST };
            let comes_back = self.shutting.len() >= enough;
            if !self.pool.has_standby() && comes_back {
                return;
            }
            let Policy { roots, hosts_own, .. } = self.policy.clone();
            let may_be_hosts = self.pool.may_be_hosts(&mounted.device_number);
            match self.pool.start(&Job::Shutdown { mounted, roots, own: hosts_own, may_be_hosts }) {
                Ok(helper) => {
                    self.refused = None;
                    self.waiting.pop_front();
                    self.shutting.insert(volume, (helper, now));
                }
                Err(_) if self.may_try_again(now) => return,
                Err(error) => {
                    self.waiting.pop_front();
                    self.unshut.insert(volume, not_started(&error));
                    self.struck(&act, Err(not_started(&error)), now);
                }
            }
        }
    }

    /// Whether a start that was refused is tried again, as long as an answer would be waited for.
    fn may_try_again(&mut self, now: Now) -> bool {
        now < *self.refused.get_or_insert(now) + STRIKE
    }

    fn struck(&mut self, act: &Act, result: Result<(), String>, now: Now) {
        if *act == Act::Freeze {
            self.refused = None;
        }
        self.finish(act, result, now);
    }

    pub(super) fn poll_strike(&mut self, now: Now) {
        if let Some((mut helper, since)) = self.freezing.take() {
            match helper.poll() {
                Some(report) => {
                    let result = match report {
                        Report::Frozen(result) => result,
                        other => Err(unexpected(&other)),
                    };
                    self.pool.put_back(helper);
                    self.struck(&Act::Freeze, result, now);
                }
                None if now < since + STRIKE => self.freezing = Some((helper, since)),
                None => {
                    self.pool.leave(helper);
                    self.struck(&Act::Freeze, Err(NO_ANSWER.to_owned()), now);
                }
            }
        }
        let busy: Vec<_> = self.shutting.keys().cloned().collect();
        for volume in busy {
            let Some((helper, since)) = self.shutting.get_mut(&volume) else { continue };
            let report = helper.poll();
            if report.is_none() && now < *since + STRIKE {
                continue;
            }
            let Some((helper, _)) = self.shutting.remove(&volume) else { continue };
            let hangs = report.is_none();
            let result = match report {
                Some(Report::Shut(result)) => result,
                Some(other) => Err(unexpected(&other)),
                None => Err(NO_ANSWER.to_owned()),
            };
            if hangs {
                self.pool.hung.insert(volume.clone());
                self.pool.leave(helper);
            } else {
                self.pool.hung.remove(&volume);
                self.pool.answered.insert(volume.clone());
                self.pool.put_back(helper);
            }
            self.answered(&volume, &result);
            self.struck(&Act::Shutdown(volume), result.map(|_| ()), now);
            self.start_shutdowns(now);
        }
        self.start_shutdowns(now);
    }

    fn answered(&mut self, volume: &VolumeId, result: &Result<bool, String>) {
        match result {
            Ok(true) => {
                self.shut.insert(volume.clone());
            }
            Ok(false) => {
                let why = "not mounted, or of a kind that cannot be".to_owned();
                self.unshut.insert(volume.clone(), why);
            }
            Err(why) => {
                self.unshut.insert(volume.clone(), why.clone());
            }
        }
    }

    /// What came of the shutdowns, in words.
    #[must_use]
    pub fn what_was_struck(&self) -> String {
        let (shut, all) = (self.shut.len(), self.volumes.len());
        let mut words = format!("{shut} of {all} volumes' file systems are shut down");
        for (volume, why) in &self.unshut {
            words += &format!("; volume {volume}: {why}");
        }
        let unanswered = all.saturating_sub(shut + self.unshut.len());
        if unanswered > 0 {
            words += &format!("; of {unanswered} nothing is known to be mounted, or there is no answer yet");
        }
        words
    }
}
