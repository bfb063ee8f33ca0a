//! The module's parameters.

use std::time::Duration;

use shared::etcd::EtcdConfig;
use shared::keys::Keys;
use shared::parameters::{ParameterError, Parameters, endpoint};
use shared::protocol::timing::Timing;

/// The parameters, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) etcd: EtcdConfig,
    pub(crate) keys: Keys,
    pub(crate) poll_interval: Duration,
    /// The same, while a revoke may follow from what the leading master says next.
    pub(crate) hasty_poll_interval: Duration,
    /// Events that are left when older ones are trimmed.
    pub(crate) events_kept: usize,
    /// The URL of a master to ask instead of the one that this module is loaded in.
    pub(crate) master: Option<String>,
    /// `None` when it only looks and tells.
    pub(crate) acting: Option<ActingSettings>,
}

/// How it acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ActingSettings {
    /// The times of the installation.
    pub(crate) timing: Timing,
    /// How often sessions and heartbeats are read.
    pub(crate) read_interval: Duration,
    /// For how long an agent may be disconnected before a volume of its host that another one waits for is revoked.
    pub(crate) reconnect: Duration,
    /// Whether agents of hosts that were declared dead are marked gone.
    pub(crate) mark_gone: bool,
}

impl Settings {
    pub(crate) fn new(pairs: &[(String, String)]) -> Result<Self, ParameterError> {
        let mut parameters = Parameters::new(pairs)?;
        let endpoints = parameters.endpoints("etcd_endpoints")?;
        let prefix = parameters.key_prefix("etcd_prefix", "/extvol/v1")?;
        // Those of the keepers: of a session this module believes what the session says, and takes from here the waits
        // that belong to none.
        let timing = parameters.timing()?;
        let request_timeout = timing.request;
        let read_interval = parameters.duration(
            "read_interval",
            Duration::from_millis(500),
            // The upper bound keeps a reclaim within sight of its ttl; the lower one is a slip of the pen.
            Duration::from_millis(50)..=Duration::from_secs(10),
        )?;
        let reconnect = parameters.duration(
            "agent_reconnect_timeout",
            // An agent is back some seconds after its restart.
            Duration::from_secs(15),
            Duration::ZERO..=Duration::from_secs(600),
        )?;
        let act = parameters.parsed("act", boolean)?.unwrap_or(true);
        let mark_gone = parameters.parsed("mark_gone", boolean)?.unwrap_or(false);
        let poll_interval = parameters.duration(
            "poll_interval",
            Duration::from_secs(5),
            // The lower bound keeps a slip of the pen from keeping the master busy.
            Duration::from_millis(100)..=Duration::from_secs(600),
        )?;
        let hasty_poll_interval = parameters.duration(
            "hasty_poll_interval",
            Duration::from_millis(500),
            Duration::from_millis(100)..=Duration::from_secs(600),
        )?;
        // The lower bound keeps what happened within a minute; the upper one, a start of the module, which
        // reads all events, short.
        let events_kept = parameters.count("events_kept", 10_000, 100..=100_000)?;
        let master = parameters.parsed("master", endpoint)?;
        parameters.finish()?;
        let etcd = EtcdConfig { request_timeout, ..EtcdConfig::new(endpoints) };
        let acting = act.then_some(ActingSettings { timing, read_interval, reconnect, mark_gone });
        let keys = Keys::new(&prefix);
        Ok(Self { etcd, keys, poll_interval, hasty_poll_interval, events_kept, master, acting })
    }

    /// How long the leading master may take for its whole answer, which can be many megabytes.
    pub(crate) fn poll_timeout(&self) -> Duration {
        self.poll_interval.max(self.etcd.request_timeout)
    }
}

fn boolean(text: &str) -> Result<bool, &'static str> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is neither true nor false"),
    }
}

#[cfg(test)]
mod tests {
    use shared::protocol::timing::Profile;

    use super::*;

    fn settings(given: &[(&str, &str)]) -> Result<Settings, String> {
        let pairs: Vec<_> = given.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Settings::new(&pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_endpoints_must_be_given() {
        let settings = settings(&[("etcd_endpoints", "10.0.0.1:2379,http://10.0.0.2:2379")]).unwrap();
        assert_eq!(settings.etcd.endpoints, ["http://10.0.0.1:2379", "http://10.0.0.2:2379"]);
        assert_eq!(settings.keys, Keys::default());
        assert_eq!(settings.events_kept, 10_000);
        assert_eq!((settings.poll_interval, settings.master), (Duration::from_secs(5), None));
        assert_eq!(settings.hasty_poll_interval, Duration::from_millis(500));
        let acting = ActingSettings {
            timing: Profile::Default.timing(),
            read_interval: Duration::from_millis(500),
            reconnect: Duration::from_secs(15),
            mark_gone: false,
        };
        assert_eq!(settings.acting, Some(acting));
    }

    #[test]
    fn the_times_are_those_of_the_profile_but_for_those_that_are_given() {
        let given = settings(&[
            ("etcd_endpoints", "e:1"),
            ("profile", "calm"),
            ("ttl", "40secs"),
            ("request_timeout", "2secs"),
            ("mark_gone", "true"),
        ])
        .unwrap();
        let acting = given.acting.unwrap();
        let (ttl, request) = (Duration::from_secs(40), Duration::from_secs(2));
        assert_eq!(acting.timing, Timing { ttl, request, ..Profile::Calm.timing() });
        assert_eq!((given.etcd.request_timeout, acting.mark_gone), (request, true));
        let only_looks = settings(&[("etcd_endpoints", "e:1"), ("act", "false")]).unwrap();
        assert_eq!(only_looks.acting, None);
    }

    #[test]
    fn each_wrong_parameter_is_refused_by_name_and_value() {
        let good = ("etcd_endpoints", "e:1");
        for (name, value) in [
            ("etcd_endpoints", "e"),
            ("etcd_prefix", "extvol"),
            ("poll_interval", "5"),
            ("poll_interval", "0secs"),
            ("hasty_poll_interval", "1ms"),
            ("request_timeout", "1hrs"),
            ("master", "zk://z:2181/mesos"),
            ("events_kept", "99"),
            ("events_kept", "100001"),
            ("events_kept", "1e4"),
            ("events_kept", "-100"),
            ("pol_interval", "5secs"),
            ("profile", "brave"),
            ("act", "maybe"),
            ("mark_gone", "1"),
            ("read_interval", "20ms"),
            ("ttl", "61secs"),
            ("beat_interval", "0secs"),
            ("fence_after", "7secs"),
        ] {
            let given: &[_] = if name == good.0 { &[(name, value)] } else { &[good, (name, value)] };
            let error = settings(given).unwrap_err();
            let value = value.replace("7secs", "7000ms");
            assert!(error.contains(&format!("`{name}`")) && error.contains(&format!("`{value}`")), "{error}");
        }
        assert_eq!(settings(&[]).unwrap_err(), "the parameter `etcd_endpoints` is missing");
    }
}
