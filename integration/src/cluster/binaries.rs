//! Where the programs are that a cluster runs.

use std::path::{Path, PathBuf};

use super::error::{ClusterError, Doing, Result};

/// The programs of a cluster. What the plain cluster does not need may be missing.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `target/mesos`, which `integration/setup` fills.
    pub mesos: PathBuf,
    /// `extvol-host-init`: guardian, and init of every host.
    pub host_init: PathBuf,
    /// `mesos-executor`, the command executor; without it only tasks with an executor of their own run.
    pub executor: Option<PathBuf>,
    /// `mesos-default-executor`, which runs task groups.
    pub default_executor: Option<PathBuf>,
    /// `extvol-task-executor`, a framework's own executor.
    pub task_executor: Option<PathBuf>,
    /// `extvol-keeper`, which the isolator starts.
    pub keeper: Option<PathBuf>,
    /// `extvol-storage`, the storage's control plane.
    pub storage: Option<PathBuf>,
    /// `extvol-plugin`, a host's Docker volume plugin.
    pub plugin: Option<PathBuf>,
    /// `extvol-writer`, the command of test tasks.
    pub writer: Option<PathBuf>,
    /// `extvol-recorder`, which writes the history of leases down.
    pub recorder: Option<PathBuf>,
    /// `libextvol.so`, if it was built.
    pub modules: Option<PathBuf>,
}

impl Binaries {
    /// Finds what was built: beside the running program first (so that a debug test runs debug programs),
    /// then under `target/release` and `target/debug`.
    ///
    /// # Errors
    /// [`ClusterError::Missing`] when the runtime or the hosts' init was not built.
    pub fn find() -> Result<Self> {
        let target = target_directory();
        let mesos = target.join("mesos");
        let missing = |what, path: &Path, advice| ClusterError::Missing { what, path: path.into(), advice };
        for part in ["mesos-node", "libmesos.so", "stubs/built"] {
            if !mesos.join(part).exists() {
                return Err(missing("the Mesos runtime", &mesos.join(part), "run integration/setup"));
            }
        }
        let program = std::env::current_exe().doing(|| "find the running program".to_owned())?;
        let mut directories: Vec<_> = program.ancestors().skip(1).take(2).map(Path::to_path_buf).collect();
        directories.extend([target.join("release"), target.join("debug")]);
        let built = |name: &str| directories.iter().map(|d| d.join(name)).find(|path| path.is_file());
        let host_init = built("extvol-host-init").ok_or_else(|| {
            missing("extvol-host-init", &target.join("debug"), "run cargo build --package integration")
        })?;
        Ok(Self {
            mesos,
            host_init,
            executor: built("mesos-executor"),
            default_executor: built("mesos-default-executor"),
            task_executor: built("extvol-task-executor"),
            keeper: built("extvol-keeper"),
            storage: built("extvol-storage"),
            plugin: built("extvol-plugin"),
            writer: built("extvol-writer"),
            recorder: built("extvol-recorder"),
            modules: Some(target.join("extvol/libextvol.so")).filter(|path| path.is_file()),
        })
    }

    /// The module library, for whoever cannot do without.
    ///
    /// # Errors
    /// [`ClusterError::Missing`] when it was not built.
    pub fn library(&self) -> Result<PathBuf> {
        self.modules.clone().ok_or_else(|| ClusterError::Missing {
            what: "the module library",
            path: target_directory().join("extvol/libextvol.so"),
            advice: "build it first",
        })
    }

    /// The keeper, for whoever cannot do without.
    pub(super) fn keeper(&self) -> Result<&Path> {
        self.keeper.as_deref().ok_or_else(|| ClusterError::Missing {
            what: "the keeper (extvol-keeper)",
            path: target_directory().join("release"),
            advice: "run make build",
        })
    }

    /// The witness's programs, writer and recorder, for whoever cannot do without.
    pub(crate) fn witness(&self) -> Result<(&Path, &Path)> {
        self.writer.as_deref().zip(self.recorder.as_deref()).ok_or_else(|| ClusterError::Missing {
            what: "the witness (extvol-writer, extvol-recorder)",
            path: target_directory().join("release"),
            advice: "run make build",
        })
    }

    /// The storage stand-in's control plane and plugin, for whoever cannot do without.
    pub(super) fn storage(&self) -> Result<(&Path, &Path)> {
        self.storage.as_deref().zip(self.plugin.as_deref()).ok_or_else(|| ClusterError::Missing {
            what: "the storage (extvol-storage, extvol-plugin)",
            path: target_directory().join("debug"),
            advice: "run cargo build --package integration",
        })
    }
}

/// The workspace's `target`.
#[must_use]
pub fn target_directory() -> PathBuf {
    let integration = Path::new(env!("CARGO_MANIFEST_DIR"));
    integration.parent().unwrap_or(integration).join("target")
}
