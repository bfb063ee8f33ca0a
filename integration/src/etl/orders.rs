//! The data set: orders of a shop over two months, by a seed, about one of two hundred of them bad. What is planted is counted, so
//! that the right answer is known without any of the queries.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::NOW;

const DAY: u64 = 86_400;
/// So long before [`NOW`] is the first order.
const FIRST: u64 = NOW - 60 * DAY;
/// And the last is before this.
const LAST: u64 = NOW - DAY;
const CUSTOMERS: u64 = 2_000;
const CURRENCIES: [&str; 5] = ["EUR", "USD", "GBP", "CHF", "JPY"];
/// Of so many rows, 5 are bad.
const ROWS_WITH_5_BAD: u64 = 1_000;

/// What was planted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Good rows.
    pub good: u64,
    /// Bad rows by reason.
    pub bad: BTreeMap<&'static str, u64>,
    /// The sum of good amounts by currency, in its smallest unit.
    pub amounts: BTreeMap<&'static str, u64>,
}

impl Known {
    /// All bad rows.
    #[must_use]
    pub fn all_bad(&self) -> u64 {
        self.bad.values().sum()
    }
}

/// Writes orders one after the other, in PostgreSQL's text format of COPY.
#[derive(Debug)]
pub struct Orders {
    random: Random,
    rows: u64,
    number: u64,
    id: u64,
    /// What was written so far.
    pub known: Known,
}

impl Orders {
    /// So many, by this seed.
    #[must_use]
    pub fn new(rows: u64, seed: u64) -> Self {
        Self { random: Random::new(seed), rows, number: 0, id: 0, known: Known::default() }
    }

    /// Appends the next row: id, customer, date, currency, amount; false when there are no more.
    pub fn next(&mut self, text: &mut String) -> bool {
        if self.number == self.rows {
            return false;
        }
        // Not every number is there, as after cancelled orders.
        self.id += 1 + self.random.below(3);
        let seconds = FIRST + (LAST - FIRST) * self.number / self.rows;
        self.number += 1;
        let place = self.random.below(CURRENCIES.len() as u64);
        let currency =
            CURRENCIES.iter().zip(0..).find(|(_, at)| *at == place).map_or("EUR", |(name, _)| name);
        let amount = 1 + self.random.below(50_000);
        let mut row = Row {
            customer: format!("C{:05}", 1 + self.random.below(CUSTOMERS)),
            seconds,
            currency: currency.to_owned(),
            amount: amount.to_string(),
        };
        match self.random.below(ROWS_WITH_5_BAD) {
            0 => self.spoil(&mut row, "missing customer"),
            1 => self.spoil(&mut row, "unknown currency"),
            2 => self.spoil(&mut row, "absent amount"),
            3 => self.spoil(&mut row, "negative amount"),
            4 => self.spoil(&mut row, "date in future"),
            chance => {
                self.known.good += 1;
                *self.known.amounts.entry(currency).or_default() += amount;
                match chance % 50 {
                    0 => row.customer = format!(" {} ", row.customer.to_lowercase()),
                    1 => row.currency = format!("{} ", row.currency.to_lowercase()),
                    _ => {}
                }
            }
        }
        let Row { customer, seconds, currency, amount } = row;
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds));
        let _infallible = writeln!(text, "{}\t{customer}\t{at}\t{currency}\t{amount}", self.id);
        true
    }

    fn spoil(&mut self, row: &mut Row, reason: &'static str) {
        *self.known.bad.entry(reason).or_default() += 1;
        let one = self.random.below(2) == 0;
        match reason {
            "missing customer" => row.customer = if one { r"\N".into() } else { "  ".into() },
            "unknown currency" => row.currency = if one { r"\N".into() } else { "XTS".into() },
            "absent amount" => row.amount = r"\N".into(),
            "negative amount" => row.amount = format!("-{}", row.amount),
            _ => row.seconds = NOW + 1 + self.random.below(100 * DAY),
        }
    }
}

struct Row {
    customer: String,
    seconds: u64,
    currency: String,
    amount: String,
}

/// SplitMix64: the same on every machine.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// By a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rows: u64, seed: u64) -> (String, Known) {
        let (mut orders, mut text) = (Orders::new(rows, seed), String::new());
        while orders.next(&mut text) {}
        (text, orders.known)
    }

    #[test]
    fn a_seed_makes_the_same_orders_each_time() {
        assert_eq!(all(1000, 7), all(1000, 7));
        assert_ne!(all(1000, 7).0, all(1000, 8).0);
    }

    #[test]
    fn all_kinds_of_bad_rows_are_planted_and_counted() {
        let (text, known) = all(20_000, 1);
        assert_eq!(text.lines().count(), 20_000);
        assert_eq!(known.good + known.all_bad(), 20_000);
        assert_eq!((known.bad.len(), known.amounts.len()), (5, CURRENCIES.len()));
        assert!((50..200).contains(&known.all_bad()), "{known:?}");
        let fields = |field| text.lines().filter_map(move |line| line.split('\t').nth(field));
        let negative = fields(4).filter(|amount| amount.starts_with('-')).count();
        assert_eq!(Some(negative), known.bad.get("negative amount").and_then(|n| usize::try_from(*n).ok()));
        let ids: Vec<u64> = fields(0).map(|id| id.parse().unwrap()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
    }
}
