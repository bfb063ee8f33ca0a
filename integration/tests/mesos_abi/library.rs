//! Builds module libraries with one defect each, by the product's own scripts: an object of `broken/` is linked before
//! the archive, so that what it defines wins. The Rust half has no switch for a defect, so a panic needs a crate of its
//! own: `cxx-glue/tests/panicking`.

use std::path::{Path, PathBuf};
use std::process::Command;

use integration::cluster::target_directory;
use tempfile::TempDir;

/// The flags that `integration/sanitize` compiles with.
const SANITIZERS: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

/// A built library, gone with this.
pub(crate) struct Library {
    folder: TempDir,
}

impl Library {
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("libextvol.so")
    }

    /// The product with a file of `broken/` in place of its own definitions.
    pub(crate) fn with(source: &str, flags: &[&str]) -> Library {
        Self::made_of(&broken(source), flags, "libcxx_glue.a")
    }

    /// The product with a file of its own in place of itself, compiled with other flags.
    pub(crate) fn recompiled(source: &str, flags: &[&str]) -> Library {
        Self::made_of(&glue().join("src").join(source), flags, "libcxx_glue.a")
    }

    fn made_of(source: &Path, flags: &[&str], archive: &str) -> Library {
        let library = Library::empty();
        let object = library.compile(source, flags);
        let object = object.to_str().expect("a path in UTF-8");
        library.link(&["--object", object], &target_directory().join("release").join(archive));
        library
    }

    /// The glue as it is, around an isolator and a master's module that panic when they are told to.
    pub(crate) fn panicking() -> Library {
        let library = Library::empty();
        library.link(&[], &target_directory().join("release/libpanicking_glue.a"));
        library
    }

    /// The sanitized library with an instrumented file of `broken/`.
    pub(crate) fn sanitized_with(source: &str, flags: &[&str]) -> Library {
        let library = Library::empty();
        let object = library.compile(&broken(source), &[flags, &SANITIZERS].concat());
        let object = object.to_str().expect("a path in UTF-8");
        let shims = target_directory().join("extvol-sanitized/shims.a");
        let shims = shims.to_str().expect("a path in UTF-8");
        let options = ["--sanitized", "--object", object, "--object", shims];
        library.link(&options, &target_directory().join("release/libcxx_glue.a"));
        library
    }

    fn empty() -> Library {
        Library { folder: tempfile::tempdir().expect("a temporary directory") }
    }

    fn compile(&self, source: &Path, flags: &[&str]) -> PathBuf {
        let object = self.folder.path().join("broken.o");
        run(Command::new(glue().join("compile")).arg(source).arg(&object).args(flags));
        object
    }

    fn link(&self, options: &[&str], archive: &Path) {
        run(Command::new(glue().join("link")).args(options).arg(archive).arg(self.path()));
    }
}

/// `cxx-glue`.
pub(crate) fn glue() -> PathBuf {
    let integration = Path::new(env!("CARGO_MANIFEST_DIR"));
    integration.parent().expect("the workspace").join("cxx-glue")
}

/// The folder of the sources of defects, or one of them.
pub(crate) fn broken(source: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mesos_abi/broken").join(source)
}

fn run(command: &mut Command) {
    let output = command.output().expect("a script of the product starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
