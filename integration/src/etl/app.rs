//! The app as a user writes it, `apps/etl.json`, and what a run adds: where the witness wants to be told, and another pace.

use std::fs;
use std::path::PathBuf;

use super::{EtlError, Result, TARGET};
use crate::cluster::{Cluster, target_directory};
use crate::scheduler::{App, HostPath, VolumeMode};
use crate::witness::collect;

/// The app's id.
pub(super) const ID: &str = "etl";
/// Where the container finds the witness's journals.
const JOURNALS: &str = "/witness";

/// The folder of the image's archive, which must be there.
pub(super) fn images() -> Result<PathBuf> {
    let images = target_directory().join("images");
    let archive = images.join("etl.tar");
    if archive.is_file() { Ok(images) } else { Err(EtlError::Missing { path: archive }) }
}

/// The app for this cluster.
pub(super) fn read(cluster: &Cluster, rows_per_second: Option<u32>) -> Result<App> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("apps/etl.json");
    let failed = |path: PathBuf| |source| EtlError::File { path, source };
    let mut app = App::from_json(&fs::read_to_string(&path).map_err(failed(path))?)?;
    // The last of two values of an argument counts.
    if let Some(rows) = rows_per_second {
        app.args.extend(["--rows-per-second".to_owned(), rows.to_string()]);
    }
    let journals = collect::writers_directory(cluster);
    fs::create_dir_all(&journals).map_err(failed(journals.clone()))?;
    app.args.extend(["--journals", JOURNALS, "--volume", TARGET.1].map(str::to_owned));
    app.container.get_or_insert_default().host_paths.push(HostPath {
        container_path: JOURNALS.to_owned(),
        host_path: journals.display().to_string(),
        mode: VolumeMode::ReadWrite,
    });
    Ok(app)
}
