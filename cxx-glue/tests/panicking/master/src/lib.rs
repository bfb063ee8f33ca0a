//! The real master's module, but with a parameter `panic` its start panics.

/// In place of the real one.
#[derive(Debug)]
pub struct MasterModule {
    _real: master_module::MasterModule,
}

impl MasterModule {
    /// Starts the real module.
    ///
    /// # Errors
    /// The real one's.
    ///
    /// # Panics
    /// When a parameter `panic` is given.
    pub fn start(
        parameters: &[(String, String)],
        own_address: fn() -> Option<String>,
    ) -> Result<Self, String> {
        assert!(parameters.iter().all(|(key, _)| key != "panic"), "start panics as it was told");
        Ok(Self { _real: master_module::MasterModule::start(parameters, own_address)? })
    }
}
