//! The link to the keeper: a task that connects, says hello, and connects again whenever the
//! connection breaks. It knows no calls, only lines, and never holds up who reads its news
//! (`connection`): what is written waits in a queue, however long the keeper reads nothing.

use std::io;
use std::sync::Weak;
use std::time::Duration;

use shared::retry::Retry;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::starter::Starter;
use crate::parameters::IsolatorParameters;
use crate::wire::{self, Call, CallLine, KeeperLine, line, read_line};

/// For the first words over a new connection.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// The first and the longest wait before the next try to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// News that wait for their reader; a keeper that sends more is not read until they are.
const NEWS: usize = 64;
/// No call has this id: calls begin with 1.
const HELLO: u64 = 0;

/// Lines to write, in order. One whose call has ended meanwhile is gone, and is not written.
pub(super) type Queue = mpsc::UnboundedSender<Weak<String>>;

/// What the link tells.
pub(super) enum News {
    /// The keeper has accepted this module, and takes lines.
    Up(Queue),
    /// The keeper said something.
    Line(KeeperLine),
    /// The keeper refuses this module, with a sentence.
    Refused(String),
    /// There is no connection, and why.
    Down(String),
}

/// Starts the link; it ends when nobody reads its news.
pub(super) fn start(parameters: &IsolatorParameters) -> mpsc::Receiver<News> {
    let (sender, news) = mpsc::channel(NEWS);
    let parameters = parameters.clone();
    tokio::spawn(async move {
        loop {
            let link = Link { starter: Starter::new(parameters.clone()), parameters: parameters.clone() };
            if tokio::spawn(link.keep(sender.clone())).await.is_ok() {
                return;
            }
            let bug = "a bug: the link to it panicked".to_owned();
            if sender.send(News::Down(bug)).await.is_err() {
                return;
            }
            sleep(RETRY.1).await;
        }
    });
    news
}

struct Link {
    parameters: IsolatorParameters,
    starter: Starter,
}

impl Link {
    async fn keep(mut self, news: mpsc::Sender<News>) {
        let mut retry = Retry::new(RETRY.0, RETRY.1);
        loop {
            let began = Instant::now();
            let end = match self.connect(&news).await {
                Ok((reader, writer)) => News::Down(talk(reader, writer, &news).await),
                Err(end) => end,
            };
            if news.send(end).await.is_err() {
                return;
            }
            // A keeper that takes connections and drops them is not asked ever faster.
            if began.elapsed() > RETRY.1 {
                retry.reset();
            }
            tokio::select! {
                () = sleep(retry.next_delay()) => {}
                started = self.starter.ended() => if started { retry.reset() },
                () = news.closed() => return,
            }
        }
    }

    async fn connect(
        &mut self,
        news: &mpsc::Sender<News>,
    ) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf), News> {
        let stream = UnixStream::connect(self.parameters.keeper.socket()).await.map_err(|error| {
            News::Down(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    self.starter.nobody_answers(&error)
                }
                _ => error.to_string(),
            })
        })?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        match timeout(HELLO_TIMEOUT, self.hello(&mut reader, &mut writer, news)).await {
            Ok(Ok(())) => {
                self.starter.answered();
                Ok((reader, writer))
            }
            Ok(Err(end)) => Err(end),
            Err(_) => Err(News::Down("it takes the connection and does not answer".into())),
        }
    }

    async fn hello(
        &self,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
        news: &mpsc::Sender<News>,
    ) -> Result<(), News> {
        let parameters = self.parameters.keeper.given.clone();
        let hello = CallLine { id: HELLO, call: Call::Hello { version: wire::VERSION, parameters } };
        writer.write_all(line(&hello).as_bytes()).await.map_err(broken)?;
        loop {
            match next(reader).await.map_err(News::Down)? {
                KeeperLine::Answer { id: HELLO, .. } => return Ok(()),
                KeeperLine::Refused { id: HELLO, refused } => return Err(News::Refused(refused)),
                other => news.send(News::Line(other)).await.map_err(|_| News::Down(String::new()))?,
            }
        }
    }
}

fn broken(error: io::Error) -> News {
    News::Down(format!("the connection to it broke: {error}"))
}

async fn next(reader: &mut BufReader<OwnedReadHalf>) -> Result<KeeperLine, String> {
    match read_line(reader).await {
        Ok(Some(text)) => {
            serde_json::from_str(&text).map_err(|error| format!("it speaks otherwise: {error}"))
        }
        Ok(None) => Err("it closed the connection".into()),
        Err(error) => Err(format!("the connection to it broke: {error}")),
    }
}

/// Writes and reads, each at its own pace, until the connection breaks; answers why.
async fn talk(
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    news: &mpsc::Sender<News>,
) -> String {
    let gone = || "the isolator is gone".to_owned();
    let (queue, mut lines) = mpsc::unbounded_channel::<Weak<String>>();
    if news.send(News::Up(queue)).await.is_err() {
        return gone();
    }
    let write = async {
        while let Some(line) = lines.recv().await {
            let Some(line) = line.upgrade() else { continue };
            if let Err(error) = writer.write_all(line.as_bytes()).await {
                return format!("the connection to it broke: {error}");
            }
        }
        gone()
    };
    let read = async {
        loop {
            match next(&mut reader).await {
                Ok(line) => {
                    if news.send(News::Line(line)).await.is_err() {
                        return gone();
                    }
                }
                Err(why) => return why,
            }
        }
    };
    tokio::select! { why = write => why, why = read => why }
}
