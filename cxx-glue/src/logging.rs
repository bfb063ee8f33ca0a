//! Where the log goes: to stderr, as Mesos's own does, one line per event and one write per line.
//!
//! `EXTVOL_LOG` chooses what is said, e.g. `warn` or `info,agent_isolator=debug`. It is read once, by whichever of
//! the two modules starts first: both may run in one process, and share the subscriber.

use std::sync::Once;

use shared::quote::LineWriter;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

/// Starts logging, if that was not done before.
pub(crate) fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let asked = std::env::var("EXTVOL_LOG").unwrap_or_else(|_| "info".to_owned());
        // Targets instead of EnvFilter: no regular expressions in an agent for the sake of a log level.
        let parsed = asked.parse::<Targets>();
        let broken = parsed.as_ref().err().map(ToString::to_string);
        let filter = parsed.unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));

        // The subscriber is global to this library's copy of `tracing`, where nobody else sets one.
        let _ = tracing_subscriber::registry()
            .with(
                fmt::layer()
                    .with_writer(|| LineWriter(std::io::stderr()))
                    .with_ansi(false)
                    .with_filter(filter),
            )
            .try_init();
        if let Some(error) = broken {
            tracing::warn!(EXTVOL_LOG = asked, error, "the log filter is broken, info is used");
        }
    });
}
