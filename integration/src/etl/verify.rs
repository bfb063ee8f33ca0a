//! Whether the target is right: it is asked by SQL, the source is asked by SQL that was written apart from the job, and all rows are
//! compared. Nothing of the job's code has a part in it.

use std::path::Path;

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use rusqlite::{Connection, OpenFlags, types::FromSql};

use super::NOW;
use super::orders::Known;
use super::throughput::Batch;
use crate::witness::Moment;

/// The target is wrong, or one of the two databases does not answer.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The source's server.
    #[error("the source does not answer")]
    Source(#[from] postgres::Error),
    /// The target's file.
    #[error("the target cannot be read")]
    Target(#[from] rusqlite::Error),
    /// The target's file is broken.
    #[error("the target's integrity check says: {said}")]
    Integrity {
        /// What SQLite says.
        said: String,
    },
    /// Two things that must be equal are not.
    #[error("{what}: expected {expected}, found {found}")]
    Differs {
        /// What was compared.
        what: &'static str,
        /// What it has to be.
        expected: String,
        /// What it is.
        found: String,
    },
}

type Result<T> = std::result::Result<T, VerifyError>;

/// A target that is right.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Good rows, each of which was found once.
    pub good: u64,
    /// Bad rows, each of which was found with its reason.
    pub bad: u64,
    /// The sum of the good rows.
    pub eur_cents: u64,
    /// The batches in order.
    pub batches: Vec<Batch>,
}

/// What the source says of each row. The rates are those of the shop's books, of which the job has a copy in another unit.
const JUDGED: &str = "
    CREATE TEMP VIEW judged AS
    WITH rates (currency, rate) AS (
        VALUES ('EUR', 1.0), ('USD', 0.921), ('GBP', 1.1683), ('CHF', 1.0472), ('JPY', 0.6125)),
    clean AS (
        SELECT id, amount, placed_at, nullif(upper(btrim(customer)), '') AS customer, upper(btrim(currency)) AS currency
        FROM orders)
    SELECT id, customer, clean.currency, amount, (placed_at::date - date '1970-01-01')::bigint AS day,
        round(amount * rate)::bigint AS eur_cents,
        CASE
            WHEN customer IS NULL THEN 'missing customer'
            WHEN rate IS NULL THEN 'unknown currency'
            WHEN amount IS NULL THEN 'absent amount'
            WHEN amount < 0 THEN 'negative amount'
            WHEN placed_at IS NULL OR placed_at > to_timestamp($NOW) AT TIME ZONE 'UTC' THEN 'date in future'
        END AS reason
    FROM clean LEFT JOIN rates ON rates.currency = clean.currency";

/// Compares the target's file with the source, and the source with what was planted in it.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(source: &mut Client, target: &Path, known: &Known) -> Result<Verified> {
    source.batch_execute(&JUDGED.replace("$NOW", &NOW.to_string()))?;
    planted(source, known)?;
    let target = Connection::open_with_flags(target, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let said: String = target.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if said != "ok" {
        return Err(VerifyError::Integrity { said });
    }
    same_rows(source, &target)?;
    let good = number(&target, "SELECT count(*) FROM orders")?;
    let bad = number(&target, "SELECT count(*) FROM rejected")?;
    equal("good rows in the target", known.good, good)?;
    equal("bad rows in the target", known.all_bad(), bad)?;
    let eur_cents = number(&target, "SELECT coalesce(sum(eur_cents), 0) FROM orders")?;
    equal(
        "the sum of daily totals",
        eur_cents,
        number(&target, "SELECT coalesce(sum(eur_cents), 0) FROM daily")?,
    )?;
    let batches = batches(&target)?;
    equal("rows of all batches", good + bad, batches.iter().map(|batch| batch.rows).sum())?;
    equal("the recorded progress", good + bad, number(&target, "SELECT good + rejected FROM progress")?)?;
    Ok(Verified { good, bad, eur_cents, batches })
}

/// The source holds what the seed has planted, as the source's own SQL sees it.
fn planted(source: &mut Client, known: &Known) -> Result<()> {
    let bad = source
        .query("SELECT reason, count(*) FROM judged WHERE reason IS NOT NULL GROUP BY 1 ORDER BY 1", &[])?;
    let bad: Vec<(String, i64)> = bad.iter().map(|row| (row.get(0), row.get(1))).collect();
    let planted = known.bad.iter();
    equal(
        "bad rows that the source has by reason",
        listed(planted),
        listed(bad.iter().map(|(reason, n)| (reason, n))),
    )?;
    let good = source.query(
        "SELECT currency, sum(amount)::bigint FROM judged WHERE reason IS NULL GROUP BY 1 ORDER BY 1",
        &[],
    )?;
    let good: Vec<(String, i64)> = good.iter().map(|row| (row.get(0), row.get(1))).collect();
    let planted = known.amounts.iter();
    equal(
        "amounts that the source has by currency",
        listed(planted),
        listed(good.iter().map(|(name, n)| (name, n))),
    )
}

fn listed<K: std::fmt::Display, N: std::fmt::Display>(pairs: impl Iterator<Item = (K, N)>) -> String {
    pairs.map(|(name, number)| format!("{name} {number}")).collect::<Vec<_>>().join(", ")
}

/// Each row of the one is the row of the other, in order: good rows, bad rows, daily totals.
fn same_rows(source: &mut Client, target: &Connection) -> Result<()> {
    let good =
        "SELECT concat_ws('|', id, customer, day, eur_cents) FROM judged WHERE reason IS NULL ORDER BY id";
    let loaded = "SELECT id || '|' || customer || '|' || day || '|' || eur_cents FROM orders ORDER BY id";
    compare("good rows", source, good, target, loaded)?;
    let bad = "SELECT concat_ws('|', id, reason) FROM judged WHERE reason IS NOT NULL ORDER BY id";
    let rejected = "SELECT id || '|' || reason FROM rejected ORDER BY id";
    compare("bad rows", source, bad, target, rejected)?;
    let totals =
        "SELECT concat_ws('|', day, customer, count(*), sum(eur_cents)) FROM judged WHERE reason IS NULL
                  GROUP BY day, customer ORDER BY day, customer COLLATE \"C\"";
    let daily = "SELECT day || '|' || customer || '|' || orders || '|' || eur_cents FROM daily ORDER BY day, customer";
    compare("daily totals", source, totals, target, daily)
}

fn compare(
    what: &'static str,
    source: &mut Client,
    expected: &str,
    target: &Connection,
    found: &str,
) -> Result<()> {
    let mut expected = source.query_raw(expected, std::iter::empty::<i64>())?;
    let mut statement = target.prepare(found)?;
    let mut found = statement.query([])?;
    loop {
        let expected: Option<String> = expected.next()?.map(|row| row.try_get(0)).transpose()?;
        let found: Option<String> = found.next()?.map(|row| row.get(0)).transpose()?;
        if expected.is_none() && found.is_none() {
            return Ok(());
        }
        let text = |row: Option<String>| row.unwrap_or_else(|| "no further row".to_owned());
        equal(what, text(expected), text(found))?;
    }
}

/// The batches, each of which goes on where the one before has ended.
fn batches(target: &Connection) -> Result<Vec<Batch>> {
    let mut statement = target.prepare(
        "SELECT number, after_id, last_id, good + rejected, host, began_ns FROM batches ORDER BY number",
    )?;
    let mut rows = statement.query([])?;
    let (mut batches, mut last, mut number) = (Vec::<Batch>::new(), 0, 0);
    while let Some(row) = rows.next()? {
        number += 1;
        equal("the number of a batch", number, unsigned(row, 0)?)?;
        equal("where a batch goes on", last, unsigned(row, 1)?)?;
        last = unsigned(row, 2)?;
        let at = Moment(unsigned(row, 5)?);
        if let Some(before) = batches.last().filter(|before| before.at > at) {
            return Err(differs("the time of a batch", format!("after {:?}", before.at), format!("{at:?}")));
        }
        batches.push(Batch { host: row.get(4)?, at, rows: unsigned(row, 3)? });
    }
    Ok(batches)
}

fn unsigned(row: &rusqlite::Row<'_>, index: usize) -> Result<u64> {
    let value = row.get_ref(index)?;
    Ok(u64::column_result(value).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, value.data_type(), Box::new(error))
    })?)
}

fn number(target: &Connection, sql: &str) -> Result<u64> {
    target.query_row(sql, [], |row| Ok(unsigned(row, 0)))?
}

fn equal<T: PartialEq + ToString>(what: &'static str, expected: T, found: T) -> Result<()> {
    if expected == found { Ok(()) } else { Err(differs(what, expected, found)) }
}

fn differs(what: &'static str, expected: impl ToString, found: impl ToString) -> VerifyError {
    VerifyError::Differs { what, expected: expected.to_string(), found: found.to_string() }
}
