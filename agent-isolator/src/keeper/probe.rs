//! Looks at mounts and devices, each in a helper process: a file system whose server or disk hangs keeps who looks at
//! it in the kernel, where no signal reaches it. A worker with such a thread could not be killed, and its host not be
//! fenced.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::protocol::Text;
use shared::protocol::holder::{Idleness, MountFault, MountedVolume, Sight};
use shared::volume::VolumeId;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::limits::LOOKS_MAX;
use super::mounts;

/// The argument that makes the keeper's program a helper.
pub const PROBE_MODE: &str = "probe";

/// How long a look may take before the answer is that it cannot be told.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
enum Question {
    Identify { mount_point: String, roots: Vec<PathBuf> },
    Look { mounted: MountedVolume },
    ProveIdle { asked: VolumeId, mounted: Option<MountedVolume>, roots: Vec<PathBuf> },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Identified(Result<MountedVolume, (String, Option<Box<MountedVolume>>)>),
    Sight(Sight),
    Idleness(Idleness),
}

impl Question {
    fn answer(self) -> Answer {
        match self {
            Self::Identify { mount_point, roots } => Answer::Identified(
                mounts::identify(&mount_point, &roots).map_err(|unusable| (unusable.why, unusable.mounted)),
            ),
            Self::Look { mounted } => Answer::Sight(mounts::look(&mounted)),
            Self::ProveIdle { asked, mounted, roots } => {
                Answer::Idleness(mounts::prove_idle(&asked, mounted.as_ref(), &roots))
            }
        }
    }
}

/// The whole life of a helper: a question from its standard input, the answer to its standard output.
#[must_use]
pub fn run_probe() -> ExitCode {
    // Whoever asked is the only one who wants to know.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let answered = serde_json::from_reader::<_, Question>(std::io::stdin().lock())
        .and_then(|question| serde_json::to_writer(std::io::stdout().lock(), &question.answer()));
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("a helper could not answer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Asks helpers. There are never more than `LOOKS_MAX` at once for launches, and as many for releases: what many
/// volumes leave to be proved delays no launch.
#[derive(Clone, Debug)]
pub struct Prober {
    roots: Vec<PathBuf>,
    /// This program.
    program: PathBuf,
    launches: Arc<Semaphore>,
    releases: Arc<Semaphore>,
}

impl Prober {
    pub(super) fn new(roots: Vec<PathBuf>, program: PathBuf) -> Self {
        let looks = || Arc::new(Semaphore::new(LOOKS_MAX));
        Self { roots, program, launches: looks(), releases: looks() }
    }

    /// What is mounted where a driver said.
    pub(super) async fn identify(&self, mount_point: String) -> Result<MountedVolume, MountFault> {
        let question = Question::Identify { mount_point, roots: self.roots.clone() };
        match self.ask(&question, &self.launches).await {
            Ok(Answer::Identified(Ok(mounted))) => Ok(mounted),
            Ok(Answer::Identified(Err((why, mounted)))) => {
                Err(MountFault::Unusable { why: why.into(), mounted })
            }
            Ok(other) => Err(MountFault::Unresolved(mismatch(&other))),
            // It is mounted, and cannot be looked at: asked for again until it can.
            Err(why) => Err(MountFault::Unresolved(why)),
        }
    }

    /// Whether a volume is still mounted where it was, and who else sees it.
    pub(super) async fn look(&self, mounted: MountedVolume) -> Sight {
        match self.ask(&Question::Look { mounted }, &self.launches).await {
            Ok(Answer::Sight(sight)) => sight,
            Ok(other) => Sight::Unknown(mismatch(&other)),
            Err(why) => Sight::Unknown(why),
        }
    }

    /// Whether a volume's device is idle.
    pub(super) async fn prove_idle(&self, asked: VolumeId, mounted: Option<MountedVolume>) -> Idleness {
        let question = Question::ProveIdle { asked, mounted, roots: self.roots.clone() };
        match self.ask(&question, &self.releases).await {
            Ok(Answer::Idleness(idleness)) => idleness,
            Ok(other) => Idleness::Unknown(mismatch(&other)),
            Err(why) => Idleness::Unknown(why),
        }
    }

    async fn ask(&self, question: &Question, turns: &Semaphore) -> Result<Answer, Text> {
        // Nobody closes it. The patience begins with the look.
        let _turn = turns.acquire().await;
        let asked = async {
            let mut helper = Command::new(&self.program)
                .arg(PROBE_MODE)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // It may hang where no kill reaches it: it is left alone then.
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut input) = helper.stdin.take() {
                input.write_all(&serde_json::to_vec(question)?).await?;
            }
            let output = helper.wait_with_output().await?;
            Ok::<Answer, std::io::Error>(serde_json::from_slice(&output.stdout)?)
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!("the mounts could not be looked at: {error}").into()),
            Err(_) => Err(format!("no answer from the mounts within {} s", PATIENCE.as_secs()).into()),
        }
    }
}

fn mismatch(answer: &Answer) -> Text {
    format!("a helper answered another question: {answer:?}").into()
}
