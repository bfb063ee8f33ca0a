//! The target: one SQLite file on the external volume. Each batch is one transaction, which also says how far the job is.
//!
//! ```text
//! progress   one row: the last order that is done, and how many were good and were set aside
//! orders     each good order, once
//! rejected   each bad row's id, and why
//! daily      orders and euro cents for each day and customer
//! batches    each transaction: which orders, from which host, when
//! ```
//!
//! A rollback journal that is truncated and synced at each commit (docs/decisions/0014-etl-target.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::witness::Moment;
use rusqlite::{Connection, OpenFlags, params};

use crate::transform::{Order, Reason, Row};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS progress (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        last_id INTEGER NOT NULL, good INTEGER NOT NULL, rejected INTEGER NOT NULL);
    INSERT OR IGNORE INTO progress VALUES (1, 0, 0, 0);
    CREATE TABLE IF NOT EXISTS orders (
        id INTEGER PRIMARY KEY, customer TEXT NOT NULL, day INTEGER NOT NULL, eur_cents INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS rejected (id INTEGER PRIMARY KEY, reason TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS daily (
        day INTEGER NOT NULL, customer TEXT NOT NULL, orders INTEGER NOT NULL, eur_cents INTEGER NOT NULL,
        PRIMARY KEY (day, customer)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS batches (
        number INTEGER PRIMARY KEY, after_id INTEGER NOT NULL, last_id INTEGER NOT NULL,
        good INTEGER NOT NULL, rejected INTEGER NOT NULL, host TEXT NOT NULL, began_ns INTEGER NOT NULL);";

/// The target cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It cannot be opened, or is not what this program made.
    #[error("the target {} cannot be opened", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    /// A transaction failed: nothing of it is there, or all.
    #[error("the batch after order {after} was not committed")]
    Commit {
        after: i64,
        #[source]
        source: rusqlite::Error,
    },
    /// The batch does not go on where the target is.
    #[error("a batch after order {after} was to be committed, but the target is at order {at}")]
    OutOfOrder { after: i64, at: i64 },
}

/// How far the job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) last_id: i64,
    pub(crate) good: i64,
    pub(crate) rejected: i64,
}

/// Transformed rows that are committed together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The order before the first.
    after: i64,
    last: i64,
    good: Vec<(i64, Order)>,
    rejected: Vec<(i64, Reason)>,
}

impl Batch {
    /// Of rows in the order of their ids; none of no rows.
    pub(crate) fn of(after: i64, rows: Vec<Row>) -> Option<Self> {
        let last = rows.last()?.id;
        let (mut good, mut rejected) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            match row.outcome {
                Ok(order) => good.push((row.id, order)),
                Err(reason) => rejected.push((row.id, reason)),
            }
        }
        Some(Self { after, last, good, rejected })
    }

    fn daily(&self) -> BTreeMap<(i64, &str), (i64, i64)> {
        let mut daily = BTreeMap::new();
        for (_, order) in &self.good {
            let (orders, cents) = daily.entry((order.day, order.customer.as_str())).or_insert((0, 0));
            *orders += 1;
            *cents += order.eur_cents;
        }
        daily
    }
}

/// The database on the volume.
#[derive(Debug)]
pub(crate) struct Target {
    connection: Connection,
    done: Done,
    host: String,
}

impl Target {
    /// Opens or makes it. What a killed job left half-way, SQLite takes back here.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(Duration::ZERO)?;
            connection.query_row("PRAGMA journal_mode = TRUNCATE", [], |_| Ok(()))?;
            connection.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
            connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;")?;
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
            let done = connection.query_row("SELECT last_id, good, rejected FROM progress", [], |row| {
                Ok(Done { last_id: row.get(0)?, good: row.get(1)?, rejected: row.get(2)? })
            })?;
            Ok((connection, done))
        };
        let (connection, done) =
            open().map_err(|source| LoadError::Open { path: path.to_owned(), source })?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self { connection, done, host })
    }

    pub(crate) fn done(&self) -> Done {
        self.done
    }

    /// One transaction. `at` is when the writing began, by the witness's clock.
    pub(crate) fn commit(&mut self, batch: &Batch, at: Moment) -> Result<(), LoadError> {
        let (after, at_id) = (batch.after, self.done.last_id);
        if after != at_id {
            return Err(LoadError::OutOfOrder { after, at: at_id });
        }
        self.done = self.transaction(batch, at).map_err(|source| LoadError::Commit { after, source })?;
        Ok(())
    }

    fn transaction(&mut self, batch: &Batch, at: Moment) -> rusqlite::Result<Done> {
        let transaction = self.connection.transaction()?;
        let statement = |sql| transaction.prepare_cached(sql);
        // An order that is there already is an error, never replaced.
        let mut order = statement("INSERT INTO orders VALUES (?1, ?2, ?3, ?4)")?;
        for (id, row) in &batch.good {
            order.execute(params![id, row.customer, row.day, row.eur_cents])?;
        }
        let mut bad = statement("INSERT INTO rejected VALUES (?1, ?2)")?;
        for (id, reason) in &batch.rejected {
            bad.execute(params![id, reason.name()])?;
        }
        let mut daily = statement(
            "INSERT INTO daily VALUES (?1, ?2, ?3, ?4) ON CONFLICT (day, customer)
             DO UPDATE SET orders = orders + excluded.orders, eur_cents = eur_cents + excluded.eur_cents",
        )?;
        for ((day, customer), (orders, cents)) in batch.daily() {
            daily.execute(params![day, customer, orders, cents])?;
        }
        let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        let (good, rejected) = (count(batch.good.len()), count(batch.rejected.len()));
        statement(
            "INSERT INTO batches (after_id, last_id, good, rejected, host, began_ns)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            batch.after,
            batch.last,
            good,
            rejected,
            self.host,
            i64::try_from(at.0).ok()
        ])?;
        let done = Done {
            last_id: batch.last,
            good: self.done.good + good,
            rejected: self.done.rejected + rejected,
        };
        statement("UPDATE progress SET last_id = ?1, good = ?2, rejected = ?3")?.execute(params![
            done.last_id,
            done.good,
            done.rejected
        ])?;
        drop((order, bad, daily));
        transaction.commit()?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::transform;

    fn batch(after: i64, lines: &[&str]) -> Batch {
        let rows = lines.iter().map(|line| transform(line, 1_000_000).unwrap()).collect();
        Batch::of(after, rows).unwrap()
    }

    fn number(target: &Target, sql: &str) -> i64 {
        target.connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_job_goes_on_where_the_last_committed_batch_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.db");
        let mut target = Target::open(&path).unwrap();
        let first = batch(0, &["1\tA\t0\tEUR\t5", "2\tA\t9\tEUR\t7", "3\tB\t0\tXXX\t7"]);
        target.commit(&first, Moment(1)).unwrap();
        drop(target);
        let mut target = Target::open(&path).unwrap();
        assert_eq!(target.done(), Done { last_id: 3, good: 2, rejected: 1 });
        assert!(matches!(target.commit(&first, Moment(2)), Err(LoadError::OutOfOrder { after: 0, at: 3 })));
        target.commit(&batch(3, &["5\tA\t1\tEUR\t1"]), Moment(3)).unwrap();
        assert_eq!(number(&target, "SELECT eur_cents FROM daily WHERE customer = 'A'"), 13);
        assert_eq!(number(&target, "SELECT count(*) FROM batches"), 2);
    }

    #[test]
    fn of_a_batch_with_an_order_that_is_there_nothing_is_committed() {
        let directory = tempfile::tempdir().unwrap();
        let mut target = Target::open(&directory.path().join("shop.db")).unwrap();
        target.commit(&batch(0, &["1\tA\t0\tEUR\t5"]), Moment(1)).unwrap();
        let again = batch(1, &["2\tA\t0\tEUR\t5", "1\tA\t0\tEUR\t5"]);
        assert!(matches!(target.commit(&again, Moment(2)), Err(LoadError::Commit { after: 1, .. })));
        assert_eq!(number(&target, "SELECT count(*) FROM orders"), 1);
        assert_eq!(target.done(), Done { last_id: 1, good: 1, rejected: 0 });
    }
}
