//! The kept inputs of the fuzz targets, without a fuzzer: what once failed, and what reaches most of each parser.

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn every_parser_of_foreign_bytes_takes_the_kept_inputs_of_the_fuzzer() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::TARGETS {
        let inputs =
            std::fs::read_dir(corpora.join(name)).unwrap_or_else(|error| panic!("corpus {name}: {error}"));
        let inputs: Vec<_> = inputs.map(|entry| entry.expect("an entry").path()).collect();
        assert!(!inputs.is_empty(), "{name} has no kept inputs");
        for input in inputs {
            eprintln!("{}", input.display());
            target(&std::fs::read(input).expect("a file"));
        }
    }
    for directory in std::fs::read_dir(&corpora).expect("corpora") {
        let name = directory.expect("an entry").file_name();
        assert!(targets::TARGETS.iter().any(|(known, _)| name == *known), "{name:?} is no target");
    }
}

#[test]
fn every_parser_takes_cut_and_changed_inputs() {
    // Chance with a fixed seed: a fuzzer without coverage, so that something of it runs with every change.
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut seed = 7_u64;
    let mut next = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below.max(1)
    };
    for (name, target) in targets::TARGETS {
        let inputs = std::fs::read_dir(corpora.join(name)).expect("a corpus").take(40);
        for input in inputs {
            let whole = std::fs::read(input.expect("an entry").path()).expect("a file");
            for _ in 0..25 {
                let mut bytes = whole.clone();
                bytes.truncate(next(whole.len() + 1));
                for _ in 0..next(4) {
                    let place = next(bytes.len());
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte = u8::try_from(next(256)).expect("a byte");
                    }
                }
                eprintln!("{name} {bytes:?}");
                target(&bytes);
            }
        }
    }
}
