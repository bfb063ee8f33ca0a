//! The parsers of foreign bytes that are nobody's interface, for the fuzz targets (`integration/fuzz`).
//!
//! Each panics when something does not hold that must hold for any input.

use crate::elements::{Elements, ScanError};
use crate::mesos::{LISTS, MalformedAnswer, agent};

/// The leading master's list of agents: what is taken out of it does not depend on how it arrives, and of a JSON
/// document it is what any parser finds.
pub fn agent_list(bytes: &[u8]) {
    let whole = elements(bytes, bytes.len().max(1));
    assert_eq!(whole, elements(bytes, 1), "byte by byte it is another document");
    let (Ok(found), Ok(document)) = (whole, serde_json::from_slice::<serde_json::Value>(bytes)) else {
        return;
    };
    let mut expected = 0;
    for list in ["slaves", "recovered_slaves"] {
        expected += document.get(list).and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    }
    // A key that is written with escapes, or twice, is another key to the scanner: never one too many of a plain list.
    let times = |key: &[u8]| bytes.windows(key.len()).filter(|at| *at == key).count();
    let plain = !bytes.contains(&b'\\') && times(b"\"slaves\"") <= 1 && times(b"\"recovered_slaves\"") <= 1;
    assert!(!plain || found.len() == expected, "{} elements, and not {expected}", found.len());
}

fn elements(bytes: &[u8], piece: usize) -> Result<Vec<(usize, Vec<u8>)>, ScanError> {
    let mut elements = Elements::new(LISTS);
    let mut found = Vec::new();
    for part in bytes.chunks(piece) {
        elements.feed(part, |list, element| {
            // What it says of an agent is parsed, whatever it is.
            let _refused_or_not: Result<_, MalformedAnswer> = agent(list, element);
            found.push((list, element.to_vec()));
            Ok::<_, ScanError>(())
        })?;
    }
    elements.finish()?;
    Ok(found)
}
