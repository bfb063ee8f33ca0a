//! Where the parameters come from, with a real keeper.

use std::process::{Child, Command, Stdio};

use agent_isolator::keeper::deadman::DEADLINE;
use agent_isolator::keeper::shared_memory::SharedMemory;
use testing::wait_until;

use crate::program::{Installation, extvol, run};

pub(crate) struct Keeper {
    process: Child,
    pub(crate) directory: tempfile::TempDir,
}

impl Keeper {
    /// A keeper of this release, with the holder name `k-1`, whose session is open.
    pub(crate) fn start(installation: &Installation) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let file = format!(
            r#"{{"etcd_endpoints":"{}","holder":"k-1","mount_roots":"{}","run_directory":"{}","state_directory":"{}"}}"#,
            installation.etcd.endpoint(0),
            directory.path().display(),
            path("run").display(),
            path("state").display(),
        );
        std::fs::write(path("keeper.json"), file).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_extvol-keeper"))
            .args(["--config", "keeper.json"])
            .current_dir(directory.path())
            .stderr(std::fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        let keeper = Self { process, directory };
        wait_until("the keeper's session is open", || {
            let listed = installation.run(&["sessions"]);
            listed.out.contains("k-1")
        });
        keeper
    }

    /// Ends both its processes: the deadman first, which would start the worker again.
    pub(crate) fn kill(&mut self) {
        let worker = SharedMemory::open(&self.directory.path().join("run").join(DEADLINE));
        let worker = worker.ok().and_then(|memory| memory.worker());
        let _ended = self.process.kill();
        let _ended = self.process.wait();
        if let Some(worker) = worker {
            worker.kill();
            wait_until("the worker has ended", || !worker.runs());
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    pub(crate) fn run_directory(&self) -> String {
        format!("--run_directory={}", self.directory.path().join("run").display())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn etcd_the_keeper_that_runs_here_tells_the_endpoints_and_so_does_its_file() {
    let installation = Installation::found();
    let keeper = Keeper::start(&installation);
    // ETCDCTL_ENDPOINTS leads nowhere in these tests.
    let listed = run(&[&keeper.run_directory(), "sessions"]);
    assert_eq!(listed.code, 0, "{listed:?}");
    assert!(listed.out.contains("k-1"), "{listed:?}");
    let file = keeper.directory.path().join("keeper.json");
    let listed = run(&["--config", file.to_str().unwrap(), "sessions"]);
    assert!(listed.out.contains("k-1"), "{listed:?}");
    // What the command line gives comes before what the file gives.
    let listed = run(&["--config", file.to_str().unwrap(), "--prefix", "/another", "sessions"]);
    assert_eq!((listed.code, listed.out.contains("k-1")), (0, false), "{listed:?}");
    // Without `--yes` nothing is written.
    let refused = run(&[&keeper.run_directory(), "revoke", "k-1"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    let pipe = extvol().arg(keeper.run_directory()).arg("leases").stdout(Stdio::null()).status().unwrap();
    assert!(pipe.success());
}

#[test]
fn what_is_wrong_on_the_command_line_is_exit_code_2() {
    for (words, expected) in [
        (&[][..], "which command?"),
        (&["leases", "--endpoints", "https://h:1"], "`etcd_endpoints` has the value `https://h:1`"),
        (&["leases", "--endpoints", "h:1", "--prefix", "x"], "`etcd_prefix` has the value `x`"),
        (&["leases", "--endpoints", "h:1", "--colour=red"], "there is no parameter `colour`"),
        (&["leases", "--config", "/nonexistent"], "/nonexistent: No such file"),
        (&["leases", "--run_directory=/nonexistent"], "etcd's endpoints are not known"),
        (&["free", "ebs"], "\"ebs\" is no volume"),
    ] {
        let answer = run(words);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words:?}: {answer:?}");
        assert!(answer.error.contains(expected), "{words:?}: {answer:?}");
    }
    let help = run(&["--help"]);
    assert_eq!((help.code, help.error.as_str()), (0, ""));
    assert!(help.out.starts_with("usage: extvol"));
}
