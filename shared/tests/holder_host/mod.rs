//! A host around the core: a clock, and effects that are carried out as the test says.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "two test programs use it, each a part; a test that unwraps fails with a place and a value"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use shared::holder::{
    BlockDevice, Core, FoundLease, Idleness, Input, LeaseState, Limits, MountedVolume, Op, Output, Request,
    Sight, Table, Wanted,
};
use shared::record::Token;
use shared::store::Revision;
use shared::volume::{ContainerId, Driver, VolumeId, VolumeName};

pub const TIMEOUT: Duration = Duration::from_secs(45);
pub const SETTLE: Duration = Duration::from_secs(120);
pub const LIMITS: Limits = Limits { prepare: TIMEOUT, settle: SETTLE };
pub const AGENT: &str = "10.0.0.1:5051";

pub fn volume(name: &str) -> VolumeId {
    VolumeId { driver: Driver::new("ebs").unwrap(), name: VolumeName::new(name).unwrap() }
}

pub fn wanted(name: &str) -> Wanted {
    Wanted { volume: volume(name), asked: volume(name), create: None }
}

pub fn container(name: &str) -> ContainerId {
    ContainerId::new(name).unwrap()
}

pub fn mount(name: &str) -> MountedVolume {
    MountedVolume {
        mount_point: format!("/mnt/{name}/data"),
        device_number: "7:1".into(),
        source: "/dev/loop1".into(),
        device: Some(BlockDevice { path: "/dev/loop1".into(), number: "7:1".into(), disk_sequence: Some(9) }),
    }
}

pub fn op_of(output: &Output) -> Op {
    match output {
        Output::Acquire { op, .. }
        | Output::Mount { op, .. }
        | Output::Record { op, .. }
        | Output::Unmount { op, .. }
        | Output::Look { op, .. }
        | Output::Find { op, .. }
        | Output::ProveIdle { op, .. }
        | Output::Release { op, .. } => *op,
        other => panic!("{other:?} is no effect"),
    }
}

/// A core with a session, and a clock.
pub struct Host {
    pub core: Core,
    now: Duration,
    requests: u64,
}

impl Host {
    pub fn new() -> Self {
        Self::restored(Table::default(), BTreeMap::new())
    }

    pub fn restored(table: Table, found: BTreeMap<VolumeId, FoundLease>) -> Self {
        let mut host = Self { core: Core::new(table, LIMITS), now: Duration::ZERO, requests: 0 };
        host.give(Input::Opened { found });
        host
    }

    pub fn give(&mut self, input: Input) {
        self.core.handle(self.now, input);
    }

    pub fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    /// The only output that is not a warning.
    pub fn only(&mut self) -> Output {
        let mut outputs = self.outputs();
        outputs.retain(|output| !matches!(output, Output::Warn(_)));
        assert_eq!(outputs.len(), 1, "{outputs:?}");
        outputs.remove(0)
    }

    pub fn prepare(&mut self, name: &str, volumes: &[&str]) -> Request {
        self.requests += 1;
        let request = Request(self.requests);
        let volumes = volumes.iter().map(|v| wanted(v)).collect();
        let (agent, agent_id) = (AGENT.to_owned(), Some("S0".to_owned()));
        self.give(Input::Prepare { request, container: container(name), agent, agent_id, volumes });
        request
    }

    pub fn cleanup(&mut self, name: &str) {
        self.requests += 1;
        let agent = AGENT.to_owned();
        self.give(Input::Cleanup { request: Request(self.requests), agent, container: container(name) });
    }

    /// Prepares a container to its good end.
    pub fn prepared(&mut self, name: &str, volumes: &[&str]) {
        let request = self.prepare(name, volumes);
        let seen = self.until_quiet();
        assert!(seen.iter().any(|o| matches!(o, Output::Reply(r, Ok(_)) if *r == request)), "{seen:?}");
    }

    /// Ends a container, the only user of its volume; answers the announcement that follows.
    pub fn ended(&mut self, name: &str) -> Output {
        self.cleanup(name);
        let mut outputs = self.outputs();
        outputs.retain(|output| matches!(output, Output::Record { state: LeaseState::Detaching, .. }));
        assert_eq!(outputs.len(), 1);
        outputs.remove(0)
    }

    /// Carries an effect out, well.
    pub fn succeed(&mut self, output: Output) {
        match output {
            Output::Acquire { op, .. } => self.give(Input::Acquired(op, Ok(Token(Revision(7))))),
            Output::Mount { op, wanted, .. } => {
                self.give(Input::Mounted(op, Ok(mount(wanted.asked.name.as_str()))));
            }
            Output::Record { op, .. } | Output::Release { op, .. } => self.give(Input::Written(op, Ok(()))),
            Output::Unmount { op, .. } => self.give(Input::Unmounted(op, Ok(()))),
            Output::Look { op, .. } => self.give(Input::Seen(op, Sight::Mounted { elsewhere: None })),
            Output::Find { op, .. } => self.give(Input::Found(op, Ok(None))),
            Output::ProveIdle { op, .. } => self.give(Input::Idle(op, Idleness::Proved)),
            Output::Reply(..) | Output::Limit { .. } | Output::Warn(_) => {}
        }
    }

    /// Carries everything out, well, until nothing more comes; answers what came.
    pub fn until_quiet(&mut self) -> Vec<Output> {
        let mut seen = Vec::new();
        loop {
            let outputs = self.outputs();
            if outputs.is_empty() {
                return seen;
            }
            for output in outputs {
                seen.push(output.clone());
                self.succeed(output);
            }
        }
    }

    pub fn later(&mut self, pause: Duration) {
        self.now += pause;
        self.give(Input::Tick);
    }

    pub fn refusal(&mut self, request: Request) -> String {
        let outputs = self.outputs();
        let reply = |o: &Output| match o {
            Output::Reply(r, Err(why)) if *r == request => Some(why.clone()),
            _ => None,
        };
        outputs.iter().find_map(reply).unwrap_or_else(|| panic!("no refusal in {outputs:?}"))
    }
}
