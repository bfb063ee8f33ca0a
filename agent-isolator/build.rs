//! Makes the Rust types of proto/mesos.proto.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto/mesos.proto");
    prost_build::compile_protos(&["proto/mesos.proto"], &["proto"])
}
