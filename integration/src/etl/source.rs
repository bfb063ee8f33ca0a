//! The source: a PostgreSQL server on the hub, with a table of orders.

use std::io::{self, Write};
use std::path::PathBuf;

use postgres::{Client, NoTls};

use super::Result;
use super::orders::{Known, Orders};
use crate::cluster::{ClusterConfig, HUB, ServiceSpec};

/// Who owns the table; the job comes as `etl`, who may only read.
const OWNER: &str = "postgres";

/// Adds the server to the hub's services.
pub fn add_to(config: &mut ClusterConfig) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("etl/source").display().to_string();
    let argv = [&script, "{cluster}/source", "{hub}"];
    let ready = ["sh", "-c", "exec /usr/lib/postgresql/*/bin/pg_isready --quiet --host {hub}"];
    config.hub_services.push(ServiceSpec::new("source", argv).ready_when(ready));
}

/// Connects; the caller's thread is in the hub's network.
///
/// # Errors
/// When the server does not answer.
pub fn connect() -> Result<Client> {
    Ok(Client::connect(&format!("postgres://{OWNER}@{HUB}/postgres"), NoTls)?)
}

/// Makes the table, with the orders of this seed; what was planted.
///
/// # Errors
/// When the server refuses.
pub fn fill(client: &mut Client, rows: u64, seed: u64) -> Result<Known> {
    client.batch_execute(
        "CREATE ROLE etl LOGIN;
         CREATE UNLOGGED TABLE orders (
             id bigint PRIMARY KEY, customer text, placed_at timestamp, currency text, amount bigint);
         GRANT SELECT ON orders TO etl;",
    )?;
    let mut copy = client.copy_in("COPY orders FROM STDIN")?;
    let (mut orders, mut text) = (Orders::new(rows, seed), String::new());
    let mut write = |text: &mut String| -> io::Result<()> {
        copy.write_all(text.as_bytes())?;
        text.clear();
        Ok(())
    };
    let failed = |source| super::EtlError::File { path: "COPY to the source".into(), source };
    while orders.next(&mut text) {
        if text.len() > 1 << 16 {
            write(&mut text).map_err(failed)?;
        }
    }
    write(&mut text).map_err(failed)?;
    copy.finish()?;
    client.batch_execute("VACUUM ANALYZE orders")?;
    Ok(orders.known)
}
