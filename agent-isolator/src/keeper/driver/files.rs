//! Reading what others have written: files of a bounded size, and nothing but files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// The longest file that is read here: descriptions of plugins, and certificates.
pub(super) const BYTES_MAX: u64 = 1 << 20;

/// A whole file, which may not be longer than [`BYTES_MAX`]. A pipe or a device in its place is not waited for.
///
/// # Errors
/// As of reading; never with anything of what was read.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_no_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("whole"), vec![b'x'; 1 << 20]).unwrap();
        std::fs::write(at("long"), vec![b'x'; (1 << 20) + 1]).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(read(&at("whole")).unwrap().len(), 1 << 20);
        for (name, why) in [("long", "longer than 1 MiB"), ("pipe", "no file"), (".", "no file")] {
            assert!(read(&at(name)).unwrap_err().to_string().contains(why), "{name}");
        }
        assert_eq!(read(&at("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
