//! What the core asks for is carried out.

use shared::clock::holder_now;
use shared::protocol::Op;
use shared::protocol::exchange::Key;
use shared::protocol::holder::{Answer, Input, Output};
use shared::store::LeaseStore;
use shared::volume::ContainerId;

use super::{Event, FENCE_PATIENCE, SAFE_WITHIN, Worker, alive, blocking};
use crate::keeper::driver::VolumeDriver;
use crate::keeper::fence::{self, FenceRunner, Known};
use crate::keeper::mounts::ProofCall;
use crate::keeper::stored_table::{Stored, read_table};

impl<S: LeaseStore, D: VolumeDriver + Clone + Send + Sync + 'static> Worker<S, D> {
    pub(super) fn carry_out(&mut self, output: Output) {
        let tell = self.tell();
        match output {
            // The gate: the table with pid and cgroup is stored, the flag is looked at last.
            Output::Reply(request, Ok(Answer::Isolated)) if self.memory.read().fenced => {
                self.reply(request, Err("this host is being fenced".into()));
            }
            Output::Reply(request, answer) => self.reply(request, answer),
            Output::Read { op, reading } => self.etcd.read(op, reading),
            Output::Commit { op, commit } => self.etcd.commit(op, commit),
            Output::Extend(fence_at) => {
                if self.memory.extend(fence_at).is_err() {
                    self.drop_held();
                    self.core.handle(holder_now(), Input::Flagged);
                }
            }
            Output::Reset => self.memory.reset(),
            Output::Settle { .. } | Output::Mount { .. } | Output::Unmount { .. } | Output::Remove { .. } => {
                self.queue_call(output)
            }
            Output::Look { op, mounted, doubted } => {
                let prober = self.prober.clone();
                tokio::spawn(async move { tell(Input::Seen(op, prober.look(mounted, doubted).await)) });
            }
            Output::ProveIdle { op, volume, asked, mounted } => {
                let (others, known) = (self.others(&volume), self.calls.of(&asked));
                let end = known.had_time(holder_now(), self.parameters.grace);
                let call = ProofCall {
                    asked: asked.clone(),
                    mounted,
                    before: known.before,
                    repeated: known.calls > 1,
                    strays: known.strays,
                    found: known.found,
                    others,
                    end,
                };
                let (prober, events) = (self.prober.clone(), self.events.clone());
                tokio::spawn(async move {
                    let _ = events.send(Event::Proved(op, asked, prober.prove_idle(call).await));
                });
            }
            Output::MakeSafe { op } => self.make_safe(op),
            Output::Fence { op, why } => {
                tracing::error!("this host is fenced: {why}");
                self.memory.flag();
                self.drop_held();
                // A deadman that ticks does it, beginning with this process.
                if self.guarded {
                    self.fence_by = Some((op, holder_now() + FENCE_PATIENCE));
                } else {
                    self.make_safe(op);
                }
            }
            Output::Kill { container } => self.kill(container),
            Output::Limit { container, message } => {
                // Without an agent nobody else asks it to end before it is killed.
                let cgroup = self.core.containers().get(&container).and_then(|entry| entry.cgroup.clone());
                if let Some(cgroup) = cgroup.filter(|_| self.core.is_open() && self.connections.is_empty()) {
                    alive::terminate(&cgroup);
                }
                self.limit(container, message);
            }
            Output::Warn(text) => tracing::warn!("{text}"),
            Output::Note(text) => tracing::info!("{text}"),
        }
    }

    /// Ends every container and mount that an older life of this host left, or that this one has, and proves it.
    pub(super) fn make_safe(&self, op: Op) {
        let (tell, policy) = (self.tell(), self.policy.clone());
        let begun = self.memory.read().fence_at.unwrap_or_else(holder_now);
        let settle = begun + self.parameters.longest_settle_time();
        let path = self.checkpoint.path().to_owned();
        tokio::spawn(async move {
            let work = move || {
                let known = match read_table(&path) {
                    Stored::Table(table) => Known::of(table),
                    Stored::Missing => Known::Table(Box::default()),
                    Stored::Broken(_) => Known::Lost,
                };
                let until = holder_now().max(settle) + SAFE_WITHIN;
                FenceRunner::new(&known, None, Some(settle), policy).run_until_proved(until)
            };
            tell(Input::Safe(op, blocking(work).await));
        });
    }

    pub(super) fn kill(&self, container: ContainerId) {
        let Some(entry) = self.core.containers().get(&container) else { return };
        let (cgroup, policy) = (entry.cgroup.as_deref().map(str::to_owned), self.policy.clone());
        tokio::spawn(async move {
            let name = container.clone();
            if let Err(why) = blocking(move || fence::kill_container(&policy, &container, cgroup)).await {
                tracing::warn!("container {name} could not be killed yet: {why}");
            }
        });
    }

    /// What waited for the table is of an epoch that is over.
    pub(super) fn drop_held(&mut self) {
        self.queue.forget();
        for output in std::mem::take(&mut self.held) {
            if let Output::Reply(request, _) = output {
                self.reply(request, Err("this host is being fenced".into()));
            }
        }
    }
}

/// Whether an output promises what the table has to know first. A refusal promises nothing; nor does a beat, without
/// which the host would be fenced because a disk is full.
pub(super) fn needs_table(output: &Output) -> bool {
    match output {
        Output::Reply(_, answer) => answer.is_ok(),
        Output::Commit { commit, .. } => !commit.puts.iter().all(|(key, _)| matches!(key, Key::Beat(_))),
        Output::Settle { .. } | Output::Mount { .. } | Output::Unmount { .. } | Output::Remove { .. } => true,
        Output::Read { .. }
        | Output::Extend(_)
        | Output::Reset
        | Output::Look { .. }
        | Output::ProveIdle { .. }
        | Output::MakeSafe { .. }
        | Output::Fence { .. }
        | Output::Kill { .. }
        | Output::Limit { .. }
        | Output::Warn(_)
        | Output::Note(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use shared::protocol::Op;
    use shared::record::Token;
    use shared::store::Revision;
    use shared::volume::{Driver, VolumeId, VolumeName};

    use super::*;

    #[test]
    fn what_changes_anything_for_others_waits_for_the_table() {
        let volume = || VolumeId { driver: Driver::new("d").unwrap(), name: VolumeName::new("v").unwrap() };
        let (op, token) = (Op(1), Token(Revision(1)));
        for output in [
            Output::Unmount { op, token, asked: volume(), mounted: None },
            Output::Remove { op, token, asked: volume() },
        ] {
            assert!(needs_table(&output), "{output:?}");
        }
        let proof = Output::ProveIdle { op, volume: volume(), asked: volume(), mounted: None };
        for output in [proof, Output::Extend(None), Output::Note("a line".into())] {
            assert!(!needs_table(&output), "{output:?}");
        }
    }
}
