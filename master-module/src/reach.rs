//! Whether something that is asked again and again answers: one line when it stops, one when it
//! does again, and a reminder in between, not one line for each try.

use std::error::Error as StdError;
use std::fmt;

/// Failures in a row between two reminders.
const REMIND_EVERY: u64 = 60;

/// What there is to say about an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It does not answer: the first failure in a row, or one with another reason, or a reminder.
    Lost {
        /// Who does not answer.
        who: &'static str,
        /// Why.
        reason: String,
        /// How many failures in a row there are.
        failures: u64,
    },
    /// It answers, after that many failures; or for the first time.
    Found {
        /// Who answers.
        who: &'static str,
        /// How many failures in a row there were.
        failures: u64,
    },
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost { who, reason, failures: 1 } => {
                write!(f, "no answer from {who}, asking again: {reason}")
            }
            Self::Lost { who, reason, failures } => {
                write!(f, "still no answer from {who} after {failures} tries: {reason}")
            }
            Self::Found { who, failures: 0 } => write!(f, "{who} answers"),
            Self::Found { who, failures } => write!(f, "{who} answers again, after {failures} failed tries"),
        }
    }
}

/// What is known about one that is asked.
#[derive(Debug)]
pub(crate) struct Reach {
    who: &'static str,
    /// Whether it was said that it answers.
    found: bool,
    failures: u64,
    reason: String,
}

impl Reach {
    pub(crate) fn new(who: &'static str) -> Self {
        Self { who, found: false, failures: 0, reason: String::new() }
    }

    /// One that is assumed to answer: that it does is no news until it has not.
    pub(crate) fn assumed(who: &'static str) -> Self {
        Self { found: true, ..Self::new(who) }
    }

    /// Whether it answered when it was last asked.
    pub(crate) fn answers(&self) -> bool {
        self.found && self.failures == 0
    }

    /// It answered.
    #[must_use]
    pub(crate) fn answered(&mut self) -> Option<News> {
        if self.answers() {
            return None;
        }
        self.found = true;
        self.reason.clear();
        Some(News::Found { who: self.who, failures: std::mem::take(&mut self.failures) })
    }

    /// It did not.
    #[must_use]
    pub(crate) fn failed(&mut self, reason: String) -> Option<News> {
        self.failures += 1;
        if reason == self.reason && !self.failures.is_multiple_of(REMIND_EVERY) {
            return None;
        }
        self.reason.clone_from(&reason);
        Some(News::Lost { who: self.who, reason, failures: self.failures })
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_turn_is_told_once_and_a_long_one_again_now_and_then() {
        let mut etcd = Reach::new("etcd");
        let told = |news: Option<News>| news.map(|news| news.to_string());
        assert_eq!(told(etcd.answered()).as_deref(), Some("etcd answers"));
        assert_eq!(etcd.answered(), None);
        let lost = told(etcd.failed("refused".into()));
        assert_eq!(lost.as_deref(), Some("no answer from etcd, asking again: refused"));
        let lines = (0..200).filter_map(|_| etcd.failed("refused".into())).count();
        assert_eq!(lines, 3);
        assert!(told(etcd.failed("timed out".into())).is_some());
        assert_eq!(told(etcd.answered()).as_deref(), Some("etcd answers again, after 202 failed tries"));
        assert_eq!(etcd.answered(), None);
    }
}
