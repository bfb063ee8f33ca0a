//! What becomes of one extracted row; pure.

/// Of an amount in the smallest unit of a currency, that many millionths of a euro cent. Whole numbers: two machines round alike.
const RATES: [(&str, i64); 5] = [
    ("EUR", 1_000_000),
    ("USD", 921_000),
    ("GBP", 1_168_300),
    ("CHF", 1_047_200),
    // A yen has no smaller unit.
    ("JPY", 612_500),
];

const SECONDS_OF_A_DAY: i64 = 86_400;

/// An order as it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) customer: String,
    /// Days since 1970-01-01.
    pub(crate) day: i64,
    pub(crate) eur_cents: i64,
}

/// Why a row is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    MissingCustomer,
    UnknownCurrency,
    AbsentAmount,
    NegativeAmount,
    DateInFuture,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MissingCustomer => "missing customer",
            Self::UnknownCurrency => "unknown currency",
            Self::AbsentAmount => "absent amount",
            Self::NegativeAmount => "negative amount",
            Self::DateInFuture => "date in future",
        }
    }
}

/// A line that is no row of the extract at all: then the spool is broken, and not the data.
#[derive(Debug, thiserror::Error)]
#[error("{line:?} is no row of the extract")]
pub(crate) struct NotARow {
    line: String,
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) outcome: Result<Order, Reason>,
}

/// Transforms a line in PostgreSQL's text format of COPY: id, customer, seconds since 1970-01-01, currency, amount in the currency's
/// smallest unit. `now` is the moment, in the same seconds, behind which a date is in the future.
pub(crate) fn transform(line: &str, now: i64) -> Result<Row, NotARow> {
    let broken = || NotARow { line: line.to_owned() };
    let mut fields = line.split('\t');
    let mut next = || fields.next().ok_or_else(broken);
    let id = next()?.parse().map_err(|_| broken())?;
    let (customer, seconds, currency, amount) = (next()?, next()?, next()?, next()?);
    if fields.next().is_some() {
        return Err(broken());
    }
    let number = |field: &str| match field {
        r"\N" => Ok(None),
        text => text.parse().map(Some).map_err(|_| broken()),
    };
    let (seconds, amount) = (number(seconds)?, number(amount)?);
    Ok(Row { id, outcome: order(text(customer), seconds, text(currency), amount, now) })
}

fn order(
    customer: String,
    seconds: Option<i64>,
    currency: String,
    amount: Option<i64>,
    now: i64,
) -> Result<Order, Reason> {
    if customer.is_empty() {
        return Err(Reason::MissingCustomer);
    }
    let rate = RATES.iter().find(|(name, _)| *name == currency).map(|(_, rate)| *rate);
    let rate = rate.ok_or(Reason::UnknownCurrency)?;
    let amount = amount.ok_or(Reason::AbsentAmount)?;
    if amount < 0 {
        return Err(Reason::NegativeAmount);
    }
    let seconds = seconds.filter(|seconds| *seconds <= now).ok_or(Reason::DateInFuture)?;
    Ok(Order { customer, day: seconds.div_euclid(SECONDS_OF_A_DAY), eur_cents: euro_cents(amount, rate) })
}

/// Halves are rounded up. In 128 bits, which no amount overflows.
fn euro_cents(amount: i64, rate: i64) -> i64 {
    let cents = (i128::from(amount) * i128::from(rate) + 500_000) / 1_000_000;
    i64::try_from(cents).unwrap_or(i64::MAX)
}

/// A text without the blanks around it, in capitals; an absent one is empty.
fn text(field: &str) -> String {
    if field == r"\N" {
        return String::new();
    }
    let mut plain = String::with_capacity(field.len());
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('t') => plain.push('\t'),
                Some('n') => plain.push('\n'),
                Some('r') => plain.push('\r'),
                Some(other) => plain.push(other),
                None => {}
            },
            other => plain.push(other),
        }
    }
    plain.trim_matches(' ').to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn outcome(line: &str) -> Result<Order, Reason> {
        transform(line, NOW).unwrap().outcome
    }

    #[test]
    fn a_good_row_is_cleaned_and_its_amount_is_in_euro_cents() {
        for (line, customer, day, eur_cents) in [
            ("1\tC00001\t0\tEUR\t1999", "C00001", 0, 1999),
            ("1\t c00001 \t86399\tusd\t1000", "C00001", 0, 921),
            ("1\tC2\t86400\t GBP\t3", "C2", 1, 4),
            ("1\tC2\t1767225600\tJPY\t100000", "C2", 20_454, 61_250),
            ("1\tC2\t-1\tCHF\t0", "C2", -1, 0),
            ("1\tA\\tB\\\\\t0\tEUR\t1", "A\tB\\", 0, 1),
        ] {
            let expected = Order { customer: customer.to_owned(), day, eur_cents };
            assert_eq!(outcome(line), Ok(expected), "{line}");
        }
    }

    #[test]
    fn halves_are_rounded_up() {
        // 0.6125 cents each.
        assert_eq!((1..=4).map(|yen| euro_cents(yen, 612_500)).collect::<Vec<_>>(), [1, 1, 2, 2]);
        assert_eq!(euro_cents(5, 1_500_000), 8);
        assert_eq!(euro_cents(i64::MAX, 1_168_300), i64::MAX);
    }

    #[test]
    fn a_bad_row_is_set_aside_for_the_first_reason() {
        for (line, reason) in [
            ("1\t\\N\t0\tEUR\t1", Reason::MissingCustomer),
            ("1\t  \t0\tXXX\t-1", Reason::MissingCustomer),
            ("1\tC\t0\tXXX\t1", Reason::UnknownCurrency),
            ("1\tC\t0\t\\N\t1", Reason::UnknownCurrency),
            ("1\tC\t0\tEUR\t\\N", Reason::AbsentAmount),
            ("1\tC\t0\tEUR\t-1", Reason::NegativeAmount),
            ("1\tC\t1767225601\tEUR\t1", Reason::DateInFuture),
            ("1\tC\t\\N\tEUR\t1", Reason::DateInFuture),
        ] {
            assert_eq!(outcome(line), Err(reason), "{line}");
        }
    }

    #[test]
    fn what_is_no_row_is_refused() {
        for line in ["", "1", "x\tC\t0\tEUR\t1", "1\tC\t0\tEUR", "1\tC\t0\tEUR\t1\t2", "1\tC\tx\tEUR\t1"] {
            assert!(transform(line, NOW).is_err(), "{line:?}");
        }
    }
}
