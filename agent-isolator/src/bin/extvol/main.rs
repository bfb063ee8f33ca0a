//! `extvol`: what an operator sees and does about leases, from any host that reaches etcd.
//!
//! ```text
//! arguments.rs   the command line
//! sources.rs     where the parameters come from when they are not on it
//! records.rs     all that is read from and written to etcd
//! decided.rs     a write that is tried until it is known to be done, or is not
//! leases.rs, volumes.rs, sessions.rs, events.rs, revoke.rs, free.rs, storm.rs, doctor.rs    one command each
//! table.rs       the tables
//! ```
//!
//! It is not part of the protocol: nothing waits for it, and it never writes without comparing what
//! it read (L1). The safety of what it writes does not rest on a clock of this host.

mod arguments;
mod decided;
mod doctor;
mod events;
mod failure;
#[cfg(test)]
mod fixture;
mod free;
mod leases;
mod records;
mod revoke;
mod sessions;
mod sources;
mod storm;
mod table;
mod volumes;

use std::io::{self, Write};
use std::process::ExitCode;

use agent_isolator::parameters::KeeperParameters;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::keys::Keys;
use shared::quote;

use self::arguments::{Action, Arguments, Command};
use self::failure::Failure;
use self::records::Records;

fn main() -> ExitCode {
    let mut out = io::stdout().lock();
    let ended = run(&mut out).and_then(|()| out.flush().map_err(Failure::from));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read this has had enough, as `head` has.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing can be done about a standard error that is closed.
            let _ = writeln!(io::stderr(), "extvol: {}", said(&failure));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// A failure as a line; a wrong command line's may have the usage below it.
fn said(failure: &Failure) -> String {
    let text = failure.to_string();
    match text.strip_suffix(arguments::USAGE) {
        Some(why) => format!("{}\n\n{}", quote::line(why.trim_end()), arguments::USAGE),
        None => quote::line(&text).into_owned(),
    }
}

fn run(out: &mut dyn Write) -> Result<(), Failure> {
    let arguments = match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => return Ok(out.write_all(arguments::USAGE.as_bytes())?),
        Ok(Command::Run(arguments)) => arguments,
        Err(why) => return Err(Failure::Usage(why)),
    };
    let parameters = sources::parameters(&arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(carry_out(out, &arguments, parameters))
}

async fn carry_out(
    out: &mut dyn Write,
    arguments: &Arguments,
    sources::Found { parameters, from }: sources::Found,
) -> Result<(), Failure> {
    let keys = Keys::new(&parameters.etcd_prefix);
    let records = Records::new(store(&parameters)?, keys, parameters.timing.request);
    let output = arguments.output;
    match &arguments.action {
        Action::Leases { all } => leases::run(out, output, &records, *all).await,
        Action::Volumes { driver } => {
            volumes::run(out, output, &records, &parameters.drivers, driver.as_ref()).await
        }
        Action::Sessions => sessions::run(out, output, &records).await,
        Action::Events { follow, limit } => events::run(out, output, &records, *follow, *limit).await,
        Action::Revoke { subject, yes } => revoke::run(out, &records, subject, *yes).await,
        Action::Free { volume, detached_from } => {
            free::run(out, &records, volume, detached_from.as_ref(), parameters.settle_time(&volume.driver))
                .await
        }
        Action::Storm { lift } => storm::run(out, output, &records, *lift).await,
        Action::Doctor { agent, plugins } => {
            // A file is meant for the keeper too; what is on the command line may be of this call alone.
            let compare = arguments.config.is_some() && arguments.parameters.is_empty();
            let host = doctor::Host { parameters: &parameters, from: &from, compare, agent: *agent, plugins };
            doctor::run(out, output, records, &host).await
        }
    }
}

fn store(parameters: &KeeperParameters) -> Result<EtcdStore, Failure> {
    let config = EtcdConfig {
        request_timeout: parameters.timing.request,
        ..EtcdConfig::new(parameters.etcd_endpoints.clone())
    };
    EtcdStore::new(config).map_err(|error| Failure::Usage(error.to_string()))
}
