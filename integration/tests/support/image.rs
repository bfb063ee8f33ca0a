//! A Docker image for tests that need one.

use std::path::Path;
use std::process::Command;

/// An image in the layout of an old `docker save` with one static program, which creates the file it is told.
pub(crate) fn make(registry: &Path) {
    let script = r#"
        cd "$1"
        mkdir -p layer/bin image/0
        printf '%s\n' '#include <fcntl.h>' \
          'int main(int c, char **v) { return c != 2 || open(v[1], O_CREAT | O_WRONLY, 0644) < 0; }' >busy.c
        cc -static -o layer/bin/busy busy.c
        tar -C layer -cf image/0/layer.tar .
        echo 1.0 >image/0/VERSION
        echo '{"id":"0","config":{"Env":["PATH=/bin"]},"architecture":"amd64","os":"linux"}' >image/0/json
        echo '{"busy":{"latest":"0"}}' >image/repositories
        tar -C image -cf busy.tar .
    "#;
    let made = Command::new("sh").args(["-ec", script, "sh"]).arg(registry).status().expect("a shell");
    assert!(made.success());
}
