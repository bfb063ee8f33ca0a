//! The log of this process. One test at a time: they all write to it.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use testing::wait_until;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log, for one test alone.
pub(crate) struct Log {
    buffer: Buffer,
    _alone: MutexGuard<'static, ()>,
}

impl Log {
    pub(crate) fn begin() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        static BUFFER: OnceLock<Buffer> = OnceLock::new();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = BUFFER.get_or_init(|| {
            let buffer = Buffer::default();
            let writer = buffer.clone();
            tracing_subscriber::fmt()
                .with_ansi(false)
                .with_max_level(tracing::Level::INFO)
                .with_writer(move || writer.clone())
                .init();
            buffer
        });
        buffer.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Self { buffer: buffer.clone(), _alone: alone }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// How many lines hold `text`.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.text().lines().filter(|line| line.contains(text)).count()
    }

    /// Waits for a line with `text`.
    pub(crate) fn wait_for(&self, text: &str) {
        let found = std::panic::catch_unwind(|| wait_until(text, || self.count(text) > 0));
        assert!(found.is_ok(), "no line with {text:?} in:\n{}", self.text());
    }
}
