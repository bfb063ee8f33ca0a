//! The master's module, as C++ holds it: started when Mesos creates it, and never called again.

use master_module::MasterModule;

use crate::guard::{self, Guarded};
use crate::{logging, own_address, parameters};

/// What C++ owns of the master's module.
#[expect(dead_code, reason = "kept for its drop: Mesos calls nothing on an anonymous module")]
pub(crate) struct MasterHandle(Guarded<MasterModule>);

/// Starts the master's module; the error is the sentence to refuse loading with.
///
/// Runs on the master's main thread before the master's actor exists, so nothing here may ask the master.
pub(crate) fn start_master_module(parameters: &[u8]) -> Result<Box<MasterHandle>, String> {
    guard::install_panic_hook();
    let module = guard::catch("start", || {
        logging::start();
        MasterModule::start(&parameters::decode(parameters)?, own_address)
    })
    .flatten()?;
    Ok(Box::new(MasterHandle(Guarded::new(module))))
}
