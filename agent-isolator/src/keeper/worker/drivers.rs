//! Calls of drivers, in their turns, and the looks before and behind them.

use shared::clock::holder_now;
use shared::protocol::holder::{Input, MountFault, Output, Phase, UnmountFault, Wanted};
use shared::protocol::{Op, Text};
use shared::record::Token;
use shared::store::LeaseStore;
use shared::volume::{ContainerId, VolumeId};

use super::{Event, Worker};
use crate::keeper::driver::VolumeDriver;
use crate::keeper::limits::Turn;
use crate::keeper::mounts::{Before, MountCall, Others};

impl<S: LeaseStore, D: VolumeDriver + Clone + Send + Sync + 'static> Worker<S, D> {
    /// Notes a call of a driver. Answers whether it has to be looked first what is there.
    pub(super) fn begin_call(&mut self, asked: &VolumeId, token: Token, again: bool) -> bool {
        let rows = self.core.volumes();
        self.calls.forget(rows.values().map(|row| &row.wanted.asked));
        self.queue.forget_users(rows.values().map(|row| &row.wanted.asked));
        self.calls.begin(asked, token, again)
    }

    /// Looks at what a driver has mounted, beside what this host's other volumes have by now.
    pub(super) fn identify(&self, op: Op, wanted: Wanted, mount_point: String) {
        let settings = self.parameters.drivers.of(&wanted.volume.driver);
        let call = MountCall {
            others: self.others(&wanted.volume),
            before: self.calls.of(&wanted.asked).before,
            suid_dev: settings.suid_dev,
            storage: settings.storage,
            directories: settings.directories,
            owner: wanted.owner,
            asked: wanted.asked.name.clone(),
            read_only: wanted.read_only,
            volume: wanted.volume,
            mount_point,
        };
        let (prober, events) = (self.prober.clone(), self.events.clone());
        tokio::spawn(async move {
            let (result, stray) = prober.identify(call).await;
            let _ = events.send(Event::Identified(op, wanted.asked, result, stray));
        });
    }

    /// What this host's other volumes have mounted.
    pub(super) fn others(&self, volume: &VolumeId) -> Others {
        let others = || self.core.volumes().iter().filter(|(id, _)| *id != volume);
        let is_mounting = |phase: &Phase| matches!(phase, Phase::Mounting { .. } | Phase::Settling { .. });
        let mounting = others().filter(|(_, row)| is_mounting(&row.phase));
        let mounting = mounting.map(|(_, row)| row.wanted.asked.clone()).collect();
        let mounted = others().filter_map(|(id, row)| Some((id.clone(), row.mounted()?.clone()))).collect();
        Others { mounted, mounting }
    }

    /// A call of a driver: it is made at once, or when that driver has ended others.
    pub(super) fn queue_call(&mut self, call: Output) {
        let asked = match &call {
            Output::Mount { wanted, .. } => &wanted.asked,
            Output::Settle { asked, .. } | Output::Unmount { asked, .. } | Output::Remove { asked, .. } => {
                asked
            }
            _ => return,
        };
        let (driver, user) = self.parameters.drivers.canonical(asked).map_or_else(
            |_| (asked.driver.clone(), None),
            |volume| (volume.driver.clone(), self.user_of(&volume)),
        );
        let caller = self.queue.caller(asked, user);
        self.queue.add(driver, caller, call);
        self.call_drivers();
    }

    pub(super) fn user_of(&self, volume: &VolumeId) -> Option<ContainerId> {
        self.core.volumes().get(volume)?.users.first().cloned()
    }

    pub(super) fn call_drivers(&mut self) {
        while let Some((turn, call)) = self.queue.next() {
            self.call_driver(turn, call);
        }
    }

    pub(super) fn call_driver(&mut self, turn: Turn, call: Output) {
        let (Output::Settle { op, .. }
        | Output::Mount { op, .. }
        | Output::Unmount { op, .. }
        | Output::Remove { op, .. }) = call
        else {
            return;
        };
        if !self.may_call(op) {
            self.queue.ended(&turn);
            return self.core.handle(holder_now(), Input::NotMade(op));
        }
        let looks_first = match &call {
            // Of a row of an earlier life the take-away may have been made before.
            Output::Settle { token, asked, .. } => {
                let again = self.restored.get(asked) == Some(token);
                self.begin_call(asked, *token, again)
            }
            Output::Mount { token, wanted, again, .. } => self.begin_call(&wanted.asked, *token, *again),
            _ => false,
        };
        if !looks_first {
            return self.make_call(turn, call);
        }
        let (prober, events) = (self.prober.clone(), self.events.clone());
        tokio::spawn(async move {
            let before = prober.before().await;
            // The receiver lives as long as the worker runs.
            let _ = events.send(Event::Before(turn, Box::new(call), before));
        });
    }

    /// The first call of a driver under a lease, when it is known what is there before.
    pub(super) fn call_first(&mut self, turn: Turn, call: Output, before: Result<Before, Text>) {
        let (Output::Settle { op, token, asked, .. }
        | Output::Mount { op, token, wanted: Wanted { asked, .. }, .. }) = &call
        else {
            return;
        };
        let op = *op;
        // No driver was called.
        let input = match before {
            Ok(before) => {
                self.calls.found_before(asked, *token, before);
                if self.may_call(op) {
                    return self.make_call(turn, call);
                }
                Input::NotMade(op)
            }
            Err(why) if matches!(call, Output::Settle { .. }) => {
                Input::Settled(op, Err(MountFault::Unreachable(why)))
            }
            Err(why) => Input::Mounted(op, Err(MountFault::Unreachable(why))),
        };
        self.queue.ended(&turn);
        self.core.handle(holder_now(), input);
        self.call_drivers();
    }

    pub(super) fn make_call(&self, turn: Turn, call: Output) {
        let (Output::Settle { op, .. }
        | Output::Mount { op, .. }
        | Output::Unmount { op, .. }
        | Output::Remove { op, .. }) = call
        else {
            return;
        };
        let events = self.events.clone();
        let (driver, prober) = (self.driver.clone(), self.prober.clone());
        let settle = self.parameters.settle_time(turn.driver());
        // The receiver lives as long as the worker runs.
        let send = move |event| drop(events.send(event));
        tokio::spawn(async move {
            let (event, unanswered) = match call {
                Output::Settle { token, asked, .. } => {
                    let result = driver.take_away(&asked, token).await;
                    let unanswered = matches!(result, Err(MountFault::Unresolved(_))).then_some(asked);
                    (Event::Core(Input::Settled(op, result)), unanswered)
                }
                Output::Mount { token, wanted, .. } => {
                    let mounted = driver.mount(&wanted.asked, wanted.create.as_ref(), token).await;
                    let unanswered = matches!(mounted, Err(MountFault::Unresolved(_)));
                    let unanswered = unanswered.then(|| wanted.asked.clone());
                    (Event::DriverMounted(op, Box::new(wanted), mounted), unanswered)
                }
                Output::Unmount { token, asked, mounted, .. } => {
                    // Else the driver would detach a disk that is mounted.
                    let unpinned = match mounted.filter(|mounted| mounted.pin.is_some()) {
                        Some(mounted) => prober.unpin(mounted).await,
                        None => Ok(()),
                    };
                    let result = match unpinned {
                        Ok(()) => driver.unmount(&asked, token).await,
                        Err(why) => Err(UnmountFault::Unreachable(why)),
                    };
                    let unanswered = matches!(result, Err(UnmountFault::Unresolved(_))).then_some(asked);
                    (Event::Core(Input::Unmounted(op, result)), unanswered)
                }
                Output::Remove { asked, .. } => {
                    tracing::info!("volume {asked} is removed, as its task asked");
                    let result = driver.remove(&asked).await;
                    let unanswered = matches!(result, Err(UnmountFault::Unresolved(_))).then_some(asked);
                    (Event::Core(Input::Removed(op, result)), unanswered)
                }
                _ => return,
            };
            // RexRay has one queue for all calls of a service: what it gave no answer for stands there, and delays, and is
            // delayed by, whatever else is asked of it.
            let Some(asked) = unanswered else {
                send(Event::CallEnded(turn));
                return send(event);
            };
            send(Event::CallUnanswered(turn.clone(), asked.clone()));
            send(event);
            tokio::time::sleep(settle).await;
            send(Event::CallSettled(turn, asked));
        });
    }

    /// The last look before a driver is called: time passed while the table was stored, and while others were called.
    pub(super) fn may_call(&self, op: Op) -> bool {
        !self.memory.read().fenced && self.core.may_call_driver(holder_now(), op)
    }
}
