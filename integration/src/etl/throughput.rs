//! Rows per second across the fault, and the pause, from the batches that are in the target.

use serde::{Deserialize, Serialize};

use crate::witness::Moment;

/// A committed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// From which host.
    pub host: String,
    /// When its transaction began.
    pub at: Moment,
    /// Good and bad rows.
    pub rows: u64,
}

/// The longest time between two batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pause {
    /// Seconds since the first batch.
    pub at: f64,
    /// How long.
    pub seconds: f64,
    /// Whose batch is before it.
    pub from: String,
    /// Whose is after it.
    pub to: String,
}

/// One second of the load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since the first batch.
    pub at: u64,
    /// Who loaded.
    pub host: String,
    /// How many rows.
    pub rows: u64,
}

/// How the load went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// From the first batch to the last, in seconds.
    pub took: f64,
    /// The longest.
    pub pause: Pause,
    /// Rows per second before the pause.
    pub before: u64,
    /// And after it.
    pub after: u64,
    /// Seconds in which rows were loaded.
    pub seconds: Vec<Second>,
}

/// Of batches in order, of which there must be three.
#[must_use]
pub fn of(batches: &[Batch]) -> Option<Throughput> {
    let (first, last) = (batches.first()?, batches.last()?);
    let at = |batch: &Batch| batch.at.seconds_since(first.at);
    let gap = |pair: &[Batch]| pair[1].at.seconds_since(pair[0].at);
    let (index, pair) =
        batches.windows(2).enumerate().max_by(|(_, one), (_, other)| gap(one).total_cmp(&gap(other)))?;
    let pause =
        Pause { at: at(&pair[0]), seconds: gap(pair), from: pair[0].host.clone(), to: pair[1].host.clone() };
    let mut seconds: Vec<Second> = Vec::new();
    for batch in batches {
        let second = (batch.at.0 - first.at.0) / 1_000_000_000;
        match seconds.last_mut().filter(|last| last.at == second && last.host == batch.host) {
            Some(last) => last.rows += batch.rows,
            None => seconds.push(Second { at: second, host: batch.host.clone(), rows: batch.rows }),
        }
    }
    let (before, after) = batches.split_at(index + 1);
    Some(Throughput { took: at(last), pause, before: speed(before), after: speed(after), seconds })
}

/// Rows of all but the last batch, over the time to the last's beginning.
fn speed(batches: &[Batch]) -> u64 {
    let [first, .., last] = batches else { return 0 };
    let nanoseconds = last.at.0.saturating_sub(first.at.0).max(1);
    let rows: u64 = batches[..batches.len() - 1].iter().map(|batch| batch.rows).sum();
    u64::try_from(u128::from(rows) * 1_000_000_000 / u128::from(nanoseconds)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_and_the_speeds_around_it_are_those_of_the_batches() {
        let batch = |host: &str, millis: u64| Batch {
            host: host.into(),
            at: Moment(5_000_000_000 + millis * 1_000_000),
            rows: 100,
        };
        let batches = [
            batch("a", 0),
            batch("a", 500),
            batch("a", 1000),
            batch("b", 6000),
            batch("b", 6100),
            batch("b", 6200),
        ];
        let throughput = of(&batches).unwrap();
        let pause = Pause { at: 1.0, seconds: 5.0, from: "a".into(), to: "b".into() };
        assert_eq!((throughput.pause, throughput.before, throughput.after), (pause, 200, 1000));
        let seconds: Vec<_> =
            throughput.seconds.iter().map(|second| (second.at, second.host.as_str(), second.rows)).collect();
        assert_eq!(seconds, [(0, "a", 200), (1, "a", 100), (6, "b", 300)]);
        assert_eq!(of(&batches[..1]), None);
    }
}
