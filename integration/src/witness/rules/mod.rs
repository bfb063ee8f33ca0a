//! The rules, one file each. Each finds what no other finds.

pub(super) mod attachments;
pub(super) mod interleaving;
pub(super) mod records;
pub(super) mod rights;
pub(super) mod tokens;
