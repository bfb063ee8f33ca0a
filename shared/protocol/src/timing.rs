//! The protocol's times, and the inequalities between them on which all safety by time rests (L12,
//! L13). They are checked when they are loaded, and again by a reclaimer for the session it judges.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A time that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the parameter `{name}` has the value `{value}`, which {reason}")]
pub struct TimingFault {
    /// Its name, as parameters have it.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What is wrong with it, as the end of the sentence.
    pub reason: String,
}

/// How far the rates of two clocks may differ from true time: one in a thousand, ten times what a
/// crystal does. BOOTTIME and RAW are not slewed (chrony may slew other clocks by 8 %).
pub const RATE_ERROR: u32 = 1_000;

/// The longest T that is accepted: a lease whose session is missing is waited for this long, since
/// nobody knows its T any more.
pub const TTL_MAX: Duration = Duration::from_secs(60);

/// A worker begins to fence this long before the deadman does: two polls, in which it tells why.
pub const LEAD: Duration = Duration::from_millis(100);

/// The times of an epoch, fixed for its life and published in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timing {
    /// T: how long after its last beat a holder may still write.
    pub ttl: Duration,
    /// hb: the pause between beats.
    pub beat: Duration,
    /// R: the longest wait for one answer of etcd.
    pub request: Duration,
    /// E: the slowest change of etcd's leader that must fence nobody.
    pub election: Duration,
    /// F: how long after its last beat a holder begins to fence.
    pub fence: Duration,
    /// K: how long fencing may take.
    pub kill: Duration,
}

/// A named set of times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// T is 5 s: for etcd on fast disks in one place.
    Fast,
    /// T is 10 s.
    Default,
    /// T is 30 s: for an etcd that is slow or far.
    Calm,
}

impl Profile {
    /// The profile of this name.
    ///
    /// # Errors
    /// The end of a sentence about the name.
    pub fn named(name: &str) -> Result<Self, String> {
        match name {
            "fast" => Ok(Self::Fast),
            "default" => Ok(Self::Default),
            "calm" => Ok(Self::Calm),
            _ => Err("is none of fast, default and calm".to_owned()),
        }
    }

    /// Its times.
    #[must_use]
    pub const fn timing(self) -> Timing {
        let [ttl, beat, request, election, fence, kill] = match self {
            Self::Fast => [5_000, 500, 500, 2_000, 3_600, 1_300],
            Self::Default => [10_000, 1_000, 1_000, 3_000, 6_500, 3_000],
            Self::Calm => [30_000, 3_000, 3_000, 5_000, 20_000, 9_000],
        };
        let ms = Duration::from_millis;
        Timing {
            ttl: ms(ttl),
            beat: ms(beat),
            request: ms(request),
            election: ms(election),
            fence: ms(fence),
            kill: ms(kill),
        }
    }
}

impl Timing {
    /// T(1 - 2 rho): from the sending of its last successful beat until here a holder may write.
    #[must_use]
    pub fn write_span(&self) -> Duration {
        self.ttl - self.ttl * 2 / RATE_ERROR
    }

    /// T(1 + 2 rho): this long after its own read returned, a reclaimer may declare dead whoever has not
    /// beaten since.
    #[must_use]
    pub fn reclaim_span(&self) -> Duration {
        self.ttl + self.ttl * 2 / RATE_ERROR
    }

    /// Whether a session with these times can be judged by time at all: whether fencing ends before
    /// the holder's right to write does. A record may hold any times: with ones beyond all bounds it cannot.
    #[must_use]
    pub fn fences_in_time(&self) -> bool {
        let bounded = self.ttl <= TTL_MAX && self.fence <= self.ttl && self.kill <= self.ttl;
        bounded && self.fence + self.kill <= self.write_span()
    }

    /// Checks the times against each other.
    ///
    /// # Errors
    /// With the name and value of the time that breaks a rule.
    pub fn check(&self) -> Result<(), TimingFault> {
        let Self { ttl, beat, request, election, fence, kill } = *self;
        let refuse = |name: &str, value: Duration, reason: String| {
            Err(TimingFault { name: name.to_owned(), value: Show(value).to_string(), reason })
        };
        for (name, value) in [("beat_interval", beat), ("request_timeout", request), ("kill_time", kill)] {
            if value.is_zero() {
                return refuse(name, value, "must be more than nothing".to_owned());
            }
        }
        if ttl > TTL_MAX {
            return refuse("ttl", ttl, format!("is more than {}", Show(TTL_MAX)));
        }
        if !self.fences_in_time() {
            let span = self.write_span();
            let reason = format!(
                "with kill_time {} ends after {}, when others may write (ttl {} less the clocks' error)",
                Show(kill),
                Show(span),
                Show(ttl)
            );
            return refuse("fence_after", fence, reason);
        }
        let needed =
            beat.saturating_add(request.saturating_mul(2)).saturating_add(election).saturating_add(LEAD);
        if needed > fence {
            let reason = format!(
                "is less than {}: beat_interval {}, twice request_timeout {}, election_time {} and {}, so that a \
                 change of etcd's leader would fence hosts",
                Show(needed),
                Show(beat),
                Show(request),
                Show(election),
                Show(LEAD)
            );
            return refuse("fence_after", fence, reason);
        }
        Ok(())
    }
}

/// A duration as Mesos spells it.
struct Show(Duration);

impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_keeps_the_rules() {
        for profile in [Profile::Fast, Profile::Default, Profile::Calm] {
            assert_eq!(profile.timing().check(), Ok(()), "{profile:?}");
        }
        assert_eq!(Profile::named("calm"), Ok(Profile::Calm));
        assert!(Profile::named("brave").is_err());
    }

    #[test]
    fn times_beyond_all_bounds_in_a_record_are_refused_and_nothing_overflows() {
        let good = Profile::Default.timing();
        let endless = Duration::from_secs(u64::MAX);
        let changes: [fn(&mut Timing, Duration); 6] = [
            |timing, time| timing.ttl = time,
            |timing, time| timing.fence = time,
            |timing, time| timing.kill = time,
            |timing, time| timing.beat = time,
            |timing, time| timing.request = time,
            |timing, time| timing.election = time,
        ];
        for (place, change) in changes.iter().enumerate() {
            for time in [endless, Duration::from_secs(1 << 63)] {
                let mut timing = good;
                change(&mut timing, time);
                assert!(timing.check().is_err(), "{timing:?}");
                assert!(place > 2 || !timing.fences_in_time(), "{timing:?}");
            }
        }
    }

    #[test]
    fn a_holder_stops_before_a_reclaimer_starts_whatever_their_clocks_do() {
        for profile in [Profile::Fast, Profile::Default, Profile::Calm] {
            let timing = profile.timing();
            // The slowest holder against the fastest reclaimer, in true time.
            let rate = f64::from(RATE_ERROR);
            let holder = timing.write_span().as_secs_f64() / (1.0 - 1.0 / rate);
            let reclaimer = timing.reclaim_span().as_secs_f64() / (1.0 + 1.0 / rate);
            assert!(holder < reclaimer, "{profile:?}: {holder} {reclaimer}");
        }
    }

    #[test]
    fn times_that_break_a_rule_are_refused_by_name_and_value() {
        let good = Profile::Default.timing();
        let seconds = Duration::from_secs;
        for (bad, name, value) in [
            (Timing { kill: seconds(4), ..good }, "fence_after", "6500ms"),
            (Timing { fence: seconds(7), ..good }, "fence_after", "7000ms"),
            (Timing { fence: seconds(6), ..good }, "fence_after", "6000ms"),
            (Timing { ttl: seconds(61), ..good }, "ttl", "61000ms"),
            (Timing { beat: seconds(0), ..good }, "beat_interval", "0ms"),
            (Timing { kill: seconds(0), ..good }, "kill_time", "0ms"),
        ] {
            match bad.check() {
                Err(TimingFault { name: n, value: v, .. }) => {
                    assert_eq!((n.as_str(), v.as_str()), (name, value))
                }
                other => panic!("{bad:?}: {other:?}"),
            }
        }
        // Without the drift bound F + K would just fit.
        let exact = Timing { fence: seconds(7), kill: seconds(3), ..good };
        assert!(!exact.fences_in_time());
    }
}
