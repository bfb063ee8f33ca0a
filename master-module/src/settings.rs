//! The module's parameters.

use std::time::Duration;

use shared::etcd::EtcdConfig;
use shared::keys::Keys;
use shared::parameters::{ParameterError, Parameters, endpoint};

/// The parameters, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) etcd: EtcdConfig,
    pub(crate) keys: Keys,
    pub(crate) poll_interval: Duration,
    /// Events that are left when older ones are trimmed.
    pub(crate) events_kept: usize,
    /// The URL of a master to ask instead of the one that this module is loaded in.
    pub(crate) master: Option<String>,
}

impl Settings {
    pub(crate) fn new(pairs: &[(String, String)]) -> Result<Self, ParameterError> {
        let mut parameters = Parameters::new(pairs)?;
        let endpoints = parameters.endpoints("etcd_endpoints")?;
        let prefix = parameters.key_prefix("etcd_prefix", "/extvol/v1")?;
        let request_timeout = parameters.duration(
            "request_timeout",
            Duration::from_secs(1),
            Duration::from_millis(50)..=Duration::from_secs(60),
        )?;
        let poll_interval = parameters.duration(
            "poll_interval",
            Duration::from_secs(5),
            // The lower bound keeps a slip of the pen from keeping the master busy.
            Duration::from_millis(100)..=Duration::from_secs(600),
        )?;
        // The lower bound keeps what happened within a minute; the upper one, a start of the module, which
        // reads all events, short.
        let events_kept = parameters.count("events_kept", 10_000, 100..=100_000)?;
        let master = parameters.parsed("master", endpoint)?;
        parameters.finish()?;
        let etcd = EtcdConfig { request_timeout, ..EtcdConfig::new(endpoints) };
        Ok(Self { etcd, keys: Keys::new(&prefix), poll_interval, events_kept, master })
    }

    /// How long the leading master may take for its whole answer, which can be many megabytes.
    pub(crate) fn poll_timeout(&self) -> Duration {
        self.poll_interval.max(self.etcd.request_timeout)
    }
}

#[cfg(test)]
mod tests {
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
    }

    #[test]
    fn each_wrong_parameter_is_refused_by_name_and_value() {
        let good = ("etcd_endpoints", "e:1");
        for (name, value) in [
            ("etcd_endpoints", "e"),
            ("etcd_prefix", "extvol"),
            ("poll_interval", "5"),
            ("poll_interval", "0secs"),
            ("request_timeout", "1hrs"),
            ("master", "zk://z:2181/mesos"),
            ("events_kept", "99"),
            ("events_kept", "100001"),
            ("events_kept", "1e4"),
            ("events_kept", "-100"),
            ("pol_interval", "5secs"),
        ] {
            let given: &[_] = if name == good.0 { &[(name, value)] } else { &[good, (name, value)] };
            let error = settings(given).unwrap_err();
            assert!(error.contains(&format!("`{name}`")) && error.contains(&format!("`{value}`")), "{error}");
        }
        assert_eq!(settings(&[]).unwrap_err(), "the parameter `etcd_endpoints` is missing");
    }
}
