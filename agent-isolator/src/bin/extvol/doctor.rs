//! `extvol doctor`: whether etcd, the installation and this host are as they have to be.
//!
//! It changes nothing, neither in etcd nor on the host. What cannot be told from here is a note that says
//! with what to compare it, and never counts as good.

mod drivers;
mod etcd;
mod host;
mod installation;

use std::io::Write;
use std::time::Duration;

use agent_isolator::parameters::KeeperParameters;
use serde::Serialize;
use shared::etcd::EtcdStore;
use shared::quote;
use shared::volume::Driver;

use crate::arguments::Output;
use crate::failure::Failure;
use crate::leases::json;
use crate::records::Records;

/// etcd's members were asked one by one before: who does not answer then is not waited for again.
const PATIENCE: Duration = Duration::from_secs(2);

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    /// It cannot be told from here, or is for information.
    Note,
    Warning,
    Fail,
}

/// What was found about one thing. The field names of its JSON stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    level: Level,
    what: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Check {
    fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), advice: None }
    }

    fn note(what: impl Into<String>) -> Self {
        Self { level: Level::Note, what: what.into(), advice: None }
    }

    fn warning(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warning, what: what.into(), advice: Some(advice.into()) }
    }

    fn fail(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Fail, what: what.into(), advice: Some(advice.into()) }
    }
}

/// This host, as it was told.
#[derive(Debug)]
pub(crate) struct Host<'p> {
    pub(crate) parameters: &'p KeeperParameters,
    /// Where the parameters were found.
    pub(crate) from: &'p str,
    /// Whether the keeper that runs has to have been given the same ones.
    pub(crate) compare: bool,
    /// Whether this is an agent's host even though no keeper was ever started on it.
    pub(crate) agent: bool,
    /// Plugins that have to work here, beside those of the drivers that it serves.
    pub(crate) plugins: &'p [Driver],
}

/// Checks everything, and prints what was found.
///
/// # Errors
/// [`Failure::Refused`] when something fails.
pub(crate) async fn run(
    out: &mut dyn Write,
    output: Output,
    records: Records<EtcdStore>,
    host: &Host<'_>,
) -> Result<(), Failure> {
    let records = records.with_patience(PATIENCE);
    let mut checks = vec![Check::ok(format!(
        "parameters from {}: etcd at {}, prefix {}, holder {}",
        host.from,
        host.parameters.etcd_endpoints.join(","),
        host.parameters.etcd_prefix,
        host.parameters.holder
    ))];
    checks.extend(etcd::checks(records.store()).await);
    let everything = match records.everything().await {
        Ok(everything) => Some(everything),
        Err(failure) => {
            let advice = "mend etcd first; what rests on the records is not checked";
            checks.push(Check::fail(format!("the records cannot be read: {failure}"), advice));
            None
        }
    };
    let is_agent = host::is_agent(host);
    if let Some(everything) = &everything {
        checks.extend(installation::checks(everything, host.parameters, is_agent));
    }
    checks.extend(host::checks(host, is_agent, everything.as_ref()));
    checks.extend(drivers::checks(host, is_agent, everything.as_ref()).await);
    print(out, output, &checks)?;
    let count = |level| checks.iter().filter(|check| check.level == level).count();
    match count(Level::Fail) {
        0 => Ok(()),
        failed => Err(Failure::Refused(format!(
            "{failed} checks failed, and {} are warnings, of {}",
            count(Level::Warning),
            checks.len()
        ))),
    }
}

fn print(out: &mut dyn Write, output: Output, checks: &[Check]) -> Result<(), Failure> {
    if output == Output::Json {
        return json(out, &checks);
    }
    for Check { level, what, advice } in checks {
        let level = match level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Fail => "FAIL",
        };
        let advice = advice.as_ref().map(|advice| format!(" - {advice}")).unwrap_or_default();
        writeln!(out, "{level:<8} {}", quote::line(&format!("{what}{advice}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_is_a_line_with_what_to_do() {
        let checks =
            [Check::ok("a"), Check::note("b"), Check::warning("c", "mend c"), Check::fail("d\ne", "mend d")];
        let mut out = Vec::new();
        print(&mut out, Output::Table, &checks).unwrap();
        let expected = "ok       a\nnote     b\nwarning  c - mend c\nFAIL     d\\ne - mend d\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        print(&mut out, Output::Json, &checks[2..3]).unwrap();
        let expected =
            "[\n  {\n    \"level\": \"warning\",\n    \"what\": \"c\",\n    \"advice\": \"mend c\"\n  }\n]\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
