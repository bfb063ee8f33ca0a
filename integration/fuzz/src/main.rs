//! One program for all targets: libFuzzer, with the target that `EXTVOL_FUZZ_TARGET` names.

#![no_main]

mod targets;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("EXTVOL_FUZZ_TARGET").expect("EXTVOL_FUZZ_TARGET names a target");
        let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{name} is no target")).1
    });
    target(bytes);
});
