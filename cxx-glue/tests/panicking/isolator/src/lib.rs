//! The real isolator with bugs: what a task says, anywhere in its configuration, calls one up.
//!
//! | word | what happens |
//! | --- | --- |
//! | `panic-in-<call>` | the call for that container panics: `prepare`, `isolate`, `watch`, `update`, `cleanup`, `recover` |
//! | `drop-in-<call>` | the call's `Done` is dropped: the same ones |
//! | `refuse-in-watch` | the watch fails |
//!
//! Started with a parameter `panic`, the isolator panics at once. The library of these bugs is linked by tests alone:
//! the product has no switch for them.

pub use agent_isolator::{mesos, task};

/// In place of the real isolator's module.
pub mod isolator {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    pub use agent_isolator::isolator::Done;
    use agent_isolator::isolator::Isolator as Real;

    /// The real one, and what the containers' configurations say.
    pub struct Isolator {
        real: Real,
        configs: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    }

    impl Isolator {
        /// Starts the real isolator.
        ///
        /// # Errors
        /// The real one's.
        ///
        /// # Panics
        /// When a parameter `panic` is given.
        pub fn start(
            parameters: &[(String, String)],
            agent_address: fn() -> Option<String>,
        ) -> Result<Self, String> {
            assert!(parameters.iter().all(|(key, _)| key != "panic"), "start panics as it was told");
            Ok(Self { real: Real::start(parameters, agent_address)?, configs: Mutex::default() })
        }

        /// As the real one's.
        pub fn recover(&self, containers: Vec<Vec<u8>>, orphans: Vec<Vec<u8>>, done: Done<()>) {
            let said = containers.concat();
            if let Some(done) = misbehave("recover", &said, done) {
                self.real.recover(containers, orphans, done);
            }
        }

        /// As the real one's.
        pub fn prepare(&self, container: &[u8], config: &[u8], done: Done<Option<Vec<u8>>>) {
            self.configs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(container.to_vec(), config.to_vec());
            if let Some(done) = misbehave("prepare", config, done) {
                self.real.prepare(container, config, done);
            }
        }

        /// As the real one's.
        pub fn isolate(&self, container: &[u8], pid: i32, done: Done<()>) {
            if let Some(done) = misbehave("isolate", &self.config(container), done) {
                self.real.isolate(container, pid, done);
            }
        }

        /// As the real one's.
        pub fn watch(&self, container: &[u8], done: Done<Vec<u8>>) {
            let config = self.config(container);
            if says(&config, "refuse-in-watch") {
                return done(Err("refused as it was told".to_owned()));
            }
            if let Some(done) = misbehave("watch", &config, done) {
                self.real.watch(container, done);
            }
        }

        /// As the real one's.
        pub fn update(&self, container: &[u8], done: Done<()>) {
            if let Some(done) = misbehave("update", &self.config(container), done) {
                self.real.update(container, done);
            }
        }

        /// As the real one's.
        pub fn cleanup(&self, container: &[u8], done: Done<()>) {
            if let Some(done) = misbehave("cleanup", &self.config(container), done) {
                self.real.cleanup(container, done);
            }
        }

        fn config(&self, container: &[u8]) -> Vec<u8> {
            let configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
            configs.get(container).cloned().unwrap_or_default()
        }
    }

    /// `done` again, when the call is to be made.
    fn misbehave<T>(call: &str, said: &[u8], done: Done<T>) -> Option<Done<T>> {
        assert!(!says(said, &format!("panic-in-{call}")), "{call} panics as it was told");
        (!says(said, &format!("drop-in-{call}"))).then_some(done)
    }

    fn says(said: &[u8], word: &str) -> bool {
        said.windows(word.len()).any(|window| window == word.as_bytes())
    }
}
