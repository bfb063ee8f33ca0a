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
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Semaphore;

use super::limits::LOOKS_MAX;
use super::mounts::{self, Before, MountCall, Places, Proof, ProofCall, Refusal, Undo};

/// The argument that makes the keeper's program a helper.
pub const PROBE_MODE: &str = "probe";

/// How long a look may take before the answer is that it cannot be told.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
enum Question {
    Before,
    Identify(MountCall, Places),
    Look(MountedVolume, bool, Places),
    Unpin(MountedVolume),
    ProveIdle(ProofCall, Places),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Before(Result<Before, String>),
    Identified(Result<MountedVolume, Refusal>),
    Sight(Sight),
    Unpinned(Result<(), String>),
    Proof(Proof),
}

impl Question {
    fn answer(self) -> Answer {
        match self {
            Self::Before => Answer::Before(
                Before::now().map_err(|error| format!("the mount table could not be read: {error}")),
            ),
            Self::Identify(call, places) => Answer::Identified(mounts::identify(&call, &places)),
            Self::Look(mounted, doubted, places) => Answer::Sight(mounts::look(&mounted, doubted, &places)),
            Self::Unpin(mounted) => Answer::Unpinned(mounts::unpin(&mounted)),
            Self::ProveIdle(call, places) => Answer::Proof(mounts::prove_idle(&call, &places)),
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
    places: Places,
    /// This program.
    program: PathBuf,
    launches: Arc<Semaphore>,
    releases: Arc<Semaphore>,
}

impl Prober {
    pub(super) fn new(places: Places, program: PathBuf) -> Self {
        let looks = || Arc::new(Semaphore::new(LOOKS_MAX));
        Self { places, program, launches: looks(), releases: looks() }
    }

    /// What is there before a driver is called.
    pub(super) async fn before(&self) -> Result<Before, Text> {
        match self.ask(&Question::Before, &self.launches).await {
            Ok(Answer::Before(before)) => before.map_err(Text::from),
            Ok(other) => Err(mismatch(&other)),
            Err(why) => Err(why),
        }
    }

    /// What is mounted where a driver said, and what its call has mounted outside the roots.
    pub(super) async fn identify(
        &self,
        call: MountCall,
    ) -> (Result<MountedVolume, MountFault>, Option<Box<MountedVolume>>) {
        // It is mounted, and cannot be looked at: asked for again until it can.
        let later = |why: Text| (Err(MountFault::Unresolved(why)), None);
        match self.ask(&Question::Identify(call, self.places.clone()), &self.launches).await {
            Ok(Answer::Identified(Ok(mounted))) => (Ok(mounted), None),
            Ok(Answer::Identified(Err(Refusal { why, undo, stray }))) => {
                let why = why.into();
                let fault = match undo {
                    Undo::ByDriver(mounted) => MountFault::Unusable { why, mounted },
                    Undo::Nothing => MountFault::NotItsOwn(why),
                    Undo::Later => MountFault::Unresolved(why),
                };
                (Err(fault), stray)
            }
            Ok(other) => later(mismatch(&other)),
            Err(why) => later(why),
        }
    }

    /// Whether a volume is still mounted where it was, and, where that is in doubt, who else sees it.
    pub(super) async fn look(&self, mounted: MountedVolume, doubted: bool) -> Sight {
        // In doubt all namespaces are read: no launch waits for that.
        let turns = if doubted { &self.releases } else { &self.launches };
        match self.ask(&Question::Look(mounted, doubted, self.places.clone()), turns).await {
            Ok(Answer::Sight(sight)) => sight,
            Ok(other) => Sight::Unknown(mismatch(&other)),
            Err(why) => Sight::Unknown(why),
        }
    }

    /// Takes the keeper's own mount of a volume away.
    pub(super) async fn unpin(&self, mounted: MountedVolume) -> Result<(), Text> {
        match self.ask(&Question::Unpin(mounted), &self.releases).await {
            Ok(Answer::Unpinned(done)) => done.map_err(Text::from),
            Ok(other) => Err(mismatch(&other)),
            Err(why) => Err(why),
        }
    }

    /// Whether a volume is idle.
    pub(super) async fn prove_idle(&self, call: ProofCall) -> Proof {
        let strays = call.strays.clone();
        let unknown =
            |why| Proof { idleness: Idleness::Unknown(why), strays, found: Vec::new(), killed: Vec::new() };
        match self.ask(&Question::ProveIdle(call, self.places.clone()), &self.releases).await {
            Ok(Answer::Proof(proof)) => proof,
            Ok(other) => unknown(mismatch(&other)),
            Err(why) => unknown(why),
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
