//! Tells states apart by 64 bits: of two million states the chance that any two are taken for one is below one in
//! four million.

use std::hash::Hasher;

/// Multiplies each word into a product of 128 bits, and folds that.
#[derive(Clone)]
pub(crate) struct Fingerprint(u64);

/// Odd, and without a pattern: the fraction of the golden ratio.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

impl Default for Fingerprint {
    fn default() -> Self {
        Self(FACTOR)
    }
}

impl Fingerprint {
    fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(FACTOR);
        let folded = (product ^ (product >> 64)) & u128::from(u64::MAX);
        // A state of zero would forget all that came before.
        self.0 = u64::try_from(folded).unwrap_or_default().rotate_left(23).wrapping_add(FACTOR);
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.word(value.into());
    }
    fn write_u32(&mut self, value: u32) {
        self.word(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }
    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }
    fn finish(&self) -> u64 {
        let mut last = self.clone();
        last.word(0);
        last.0
    }
}
