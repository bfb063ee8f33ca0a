//! Parameters as Mesos hands them to a module: pairs of strings, all checked when the module is
//! loaded. Whatever is wrong is refused then, by name and value; nothing is guessed or ignored.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::protocol::timing::{Profile, TTL_MAX, Timing, TimingFault};

/// Why the parameters are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Not a parameter of this module.
    #[error("there is no parameter `{name}` (its value here is `{value}`); the parameters are {known}")]
    Unknown {
        /// Its name.
        name: String,
        /// The value that was given.
        value: String,
        /// All names there are.
        known: String,
    },
    /// It must be given, and is not.
    #[error("the parameter `{name}` is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// It is given twice.
    #[error("the parameter `{name}` is given twice, as `{first}` and as `{second}`")]
    Twice {
        /// Its name.
        name: String,
        /// The value given first.
        first: String,
        /// The value given after it.
        second: String,
    },
    /// Its value cannot be used.
    #[error("the parameter `{name}` has the value `{value}`, which {reason}")]
    Invalid {
        /// Its name.
        name: String,
        /// The value that was given.
        value: String,
        /// What is wrong with it, as the end of the sentence.
        reason: String,
    },
}

impl From<TimingFault> for ParameterError {
    fn from(TimingFault { name, value, reason }: TimingFault) -> Self {
        Self::Invalid { name, value, reason }
    }
}

/// Reads a module's parameters, each by its name, and at last refuses those that nobody asked for.
#[derive(Debug)]
pub struct Parameters {
    given: BTreeMap<String, String>,
    asked: Vec<&'static str>,
}

impl Parameters {
    /// Takes the pairs that Mesos gave.
    ///
    /// # Errors
    /// [`ParameterError::Twice`].
    pub fn new(pairs: &[(String, String)]) -> Result<Self, ParameterError> {
        let mut given = BTreeMap::new();
        for (name, value) in pairs {
            if let Some(first) = given.insert(name.clone(), value.clone()) {
                return Err(ParameterError::Twice { name: name.clone(), first, second: value.clone() });
            }
        }
        Ok(Self { given, asked: Vec::new() })
    }

    /// The value of `name`, if it is given.
    pub fn optional(&mut self, name: &'static str) -> Option<String> {
        self.asked.push(name);
        self.given.remove(name)
    }

    /// The value of `name`.
    ///
    /// # Errors
    /// [`ParameterError::Missing`].
    pub fn required(&mut self, name: &'static str) -> Result<String, ParameterError> {
        self.optional(name).ok_or_else(|| ParameterError::Missing { name: name.to_owned() })
    }

    /// The value of `name`, if it is given, as `parse` reads it. The errors of `parse` are the end of
    /// the sentence "the parameter has the value ..., which ...".
    ///
    /// # Errors
    /// [`ParameterError::Invalid`].
    pub fn parsed<T, E: Display>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ParameterError> {
        let Some(value) = self.optional(name) else { return Ok(None) };
        match parse(&value) {
            Ok(parsed) => Ok(Some(parsed)),
            Err(reason) => {
                Err(ParameterError::Invalid { name: name.to_owned(), value, reason: reason.to_string() })
            }
        }
    }

    /// A duration in Mesos's spelling, `default` when it is not given.
    ///
    /// # Errors
    /// [`ParameterError::Invalid`] when it is no duration, or not within `bounds`.
    pub fn duration(
        &mut self,
        name: &'static str,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Result<Duration, ParameterError> {
        let parse = |text: &str| {
            let duration = duration(text)?;
            if bounds.contains(&duration) {
                return Ok(duration);
            }
            Err(format!("is not from {:?} to {:?}", bounds.start(), bounds.end()))
        };
        Ok(self.parsed(name, parse)?.unwrap_or(default))
    }

    /// A whole number, `default` when it is not given.
    ///
    /// # Errors
    /// [`ParameterError::Invalid`] when it is none, or not within `bounds`.
    pub fn count(
        &mut self,
        name: &'static str,
        default: usize,
        bounds: RangeInclusive<usize>,
    ) -> Result<usize, ParameterError> {
        let parse = |text: &str| match text.parse::<usize>() {
            Ok(count) if bounds.contains(&count) => Ok(count),
            _ => Err(format!("is not a whole number from {} to {}", bounds.start(), bounds.end())),
        };
        Ok(self.parsed(name, parse)?.unwrap_or(default))
    }

    /// A comma list of etcd endpoints: at least one, and none twice.
    ///
    /// # Errors
    /// [`ParameterError::Missing`] and [`ParameterError::Invalid`].
    pub fn endpoints(&mut self, name: &'static str) -> Result<Vec<String>, ParameterError> {
        self.parsed(name, endpoints)?.ok_or_else(|| ParameterError::Missing { name: name.to_owned() })
    }

    /// A prefix of etcd keys, `default` when it is not given.
    ///
    /// # Errors
    /// [`ParameterError::Invalid`].
    pub fn key_prefix(&mut self, name: &'static str, default: &str) -> Result<String, ParameterError> {
        Ok(self.parsed(name, key_prefix)?.unwrap_or_else(|| default.to_owned()))
    }

    /// The protocol's times: `profile` sets them together, and each may be given by itself.
    ///
    /// # Errors
    /// Names a value that cannot be used, or that breaks a rule ([`Timing::check`]).
    pub fn timing(&mut self) -> Result<Timing, ParameterError> {
        let mut timing = self.parsed("profile", Profile::named)?.unwrap_or(Profile::Default).timing();
        let least = Duration::from_millis(50);
        for (name, value, least) in [
            ("ttl", &mut timing.ttl, least),
            ("beat_interval", &mut timing.beat, least),
            ("request_timeout", &mut timing.request, least),
            ("election_time", &mut timing.election, Duration::ZERO),
            ("fence_after", &mut timing.fence, least),
            ("kill_time", &mut timing.kill, least),
        ] {
            *value = self.duration(name, *value, least..=TTL_MAX)?;
        }
        timing.check()?;
        Ok(timing)
    }

    /// Refuses what was given and never asked for. To be called last.
    ///
    /// # Errors
    /// [`ParameterError::Unknown`].
    pub fn finish(self) -> Result<(), ParameterError> {
        match self.given.into_iter().next() {
            None => Ok(()),
            Some((name, value)) => Err(ParameterError::Unknown { name, value, known: self.asked.join(", ") }),
        }
    }
}

/// Nanoseconds of each unit that Mesos knows.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("ms", 1e6),
    ("secs", 1e9),
    ("mins", 60e9),
    ("hrs", 3600e9),
    ("days", 24.0 * 3600e9),
    ("weeks", 7.0 * 24.0 * 3600e9),
];

/// A duration as Mesos spells it: a number and a unit, such as `5secs`, `1.5mins` or `500ms`.
///
/// # Errors
/// The end of a sentence about the value.
pub fn duration(text: &str) -> Result<Duration, String> {
    let malformed = || "is not a number and a unit, such as 5secs or 500ms".to_owned();
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(malformed)?;
    let (number, unit) = text.split_at(unit);
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(|| {
        let units: Vec<_> = UNITS.iter().map(|(name, _)| *name).collect();
        format!("has the unit {unit:?}; Mesos knows {}", units.join(", "))
    })?;
    // f64's own parser would take "inf", signs and exponents as well.
    if number.is_empty() || !number.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return Err(malformed());
    }
    let number: f64 = number.parse().map_err(|_| malformed())?;
    Duration::try_from_secs_f64(number * scale / 1e9).map_err(|_| "is too long".to_owned())
}

/// A comma list of etcd endpoints.
///
/// # Errors
/// The end of a sentence about the list, with the endpoint that is wrong.
pub fn endpoints(text: &str) -> Result<Vec<String>, String> {
    let mut endpoints = Vec::new();
    for part in text.split(',') {
        let checked = endpoint(part.trim()).map_err(|reason| format!("holds {part:?}, which {reason}"))?;
        if endpoints.contains(&checked) {
            return Err(format!("names {checked} twice"));
        }
        endpoints.push(checked);
    }
    Ok(endpoints)
}

/// The URL `http://<host>:<port>` of an etcd member, from that or from `<host>:<port>`. The port must
/// be named: a default would hide a forgotten one.
///
/// # Errors
/// The end of a sentence about the endpoint.
pub fn endpoint(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    let authority = match text.split_once("://") {
        None => text,
        Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some((scheme, _)) => return Err(format!("has the scheme {scheme:?}; only \"http\" is supported")),
    };
    let (host, port) = authority.rsplit_once(':').ok_or("has no port, as in http://10.0.0.1:2379")?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(format!("has the port {port:?}, which is not a number from 1 to 65535"));
    }
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    if !good {
        return Err(format!("has the host {host:?}, which is not a name or an address"));
    }
    Ok(format!("http://{authority}"))
}

/// A prefix of etcd keys: begins with a slash, does not end with one, has no empty segment.
///
/// # Errors
/// The end of a sentence about the prefix.
pub fn key_prefix(text: &str) -> Result<String, String> {
    let Some(segments) = text.strip_prefix('/') else {
        return Err("does not begin with a slash, as /extvol/v1 does".to_owned());
    };
    if segments.split('/').any(str::is_empty) {
        return Err("has an empty segment, or a slash at its end".to_owned());
    }
    if let Some(found) = text.chars().find(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("holds {found:?}, which is not allowed there"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
        given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn durations_are_spelled_as_mesos_spells_them() {
        for (text, millis) in
            [("5secs", 5_000), ("500ms", 500), ("1.5mins", 90_000), ("0secs", 0), ("2hrs", 7_200_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "secs", "-1secs", "5 secs", "5s", "5secs ", "1e3ms", "1.2.3ms", "infms"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration(&format!("{}weeks", "9".repeat(40))).unwrap_err().contains("too long"));
    }

    #[test]
    fn an_endpoint_is_normalized_or_refused_with_what_is_wrong() {
        for (text, url) in [
            ("10.0.0.1:2379", "http://10.0.0.1:2379"),
            ("http://etcd-1.example:2379/", "http://etcd-1.example:2379"),
            ("http://[::1]:2379", "http://[::1]:2379"),
        ] {
            assert_eq!(endpoint(text).as_deref(), Ok(url));
        }
        for (text, wrong) in [
            ("", "empty"),
            ("https://e:2379", "https"),
            ("http://e", "no port"),
            ("e:0", "port"),
            ("e:99999", "port"),
            ("http://e:2379/v3", "port"),
            (":2379", "host"),
            ("a b:2379", "host"),
            ("::1:2379", "host"),
        ] {
            let reason = endpoint(text).unwrap_err();
            assert!(reason.contains(wrong), "{text}: {reason}");
        }
        assert_eq!(endpoints("a:1, b:2"), Ok(vec!["http://a:1".into(), "http://b:2".into()]));
        assert!(endpoints("a:1,http://a:1").unwrap_err().contains("twice"));
        assert!(endpoints("a:1,").unwrap_err().contains("empty"));
    }

    #[test]
    fn what_is_wrong_is_refused_by_name_and_value() {
        let given = pairs(&[("a", "1"), ("interval", "9secs"), ("colour", "red"), ("prefix", "x")]);
        let mut parameters = Parameters::new(&given).unwrap();
        assert_eq!(parameters.optional("a").as_deref(), Some("1"));
        let error = parameters
            .duration("interval", Duration::ZERO, Duration::ZERO..=Duration::from_secs(5))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the parameter `interval` has the value `9secs`, which is not from 0ns to 5s"
        );
        let error = parameters.key_prefix("prefix", "/extvol/v1").unwrap_err();
        assert!(error.to_string().contains("`prefix` has the value `x`"), "{error}");
        let error = parameters.endpoints("endpoints").unwrap_err();
        assert_eq!(error, ParameterError::Missing { name: "endpoints".into() });
        let error = parameters.finish().unwrap_err().to_string();
        assert!(
            error.contains("`colour`") && error.contains("`red`") && error.contains("interval"),
            "{error}"
        );

        let twice = Parameters::new(&pairs(&[("a", "1"), ("a", "2")])).unwrap_err();
        assert!(matches!(twice, ParameterError::Twice { .. }));
    }
}
