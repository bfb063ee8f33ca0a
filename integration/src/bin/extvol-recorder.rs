//! Records what happens to leases and sessions in etcd; see `integration::witness::recorder`.
//!
//! `extvol-recorder --etcd URL[,URL...] --out FILE`.

use std::error::Error;
use std::path::Path;

use integration::storage::arguments::Arguments;
use integration::witness::recorder::Recorder;
use shared::etcd::{EtcdConfig, EtcdStore};
use shared::keys::Keys;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1), &["etcd", "out"], &[])?;
    let endpoints = arguments.required("etcd")?.split(',').map(str::to_owned).collect();
    let store = EtcdStore::new(EtcdConfig::new(endpoints))?;
    let recorder = Recorder::open(Path::new(arguments.required("out")?), Keys::default())?;
    match recorder.run(store).await? {}
}
