//! The keeper's socket: connections of isolators, one task each.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::limits::CONNECTIONS_MAX;
use super::{Event, alive};
use crate::wire::{CallLine, read_line};

/// A connection, for as long as the keeper runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Lines for one connection. They are few and small: one per call.
pub type Lines = mpsc::UnboundedSender<String>;

/// Listens at `path`, which only root may connect to from the first moment on.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let fresh = path.with_extension("sock.part");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Whether a process may give orders: one of the host's, and of no container. Root in a container that sees the socket is root's
/// user as well, and may no more than its task.
fn may_order(pid: Option<i32>, cgroup_root: Option<&str>) -> Result<(), String> {
    let pid = pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    let pid = pid.ok_or("its process is of no pid namespace that this keeper sees")?;
    let namespace = |pid: &str| {
        std::fs::read_link(format!("/proc/{pid}/ns/mnt")).map_err(|error| format!("process {pid}: {error}"))
    };
    if cgroup_root.is_some_and(|root| alive::is_below(pid, root)) {
        return Err(format!("process {pid} is in a container of the agent's"));
    }
    let its = namespace(&pid.to_string())?;
    if its != namespace("self")? && namespace("1") != Ok(its) {
        return Err(format!(
            "process {pid} is in a mount namespace that is neither this keeper's nor the host's first process's"
        ));
    }
    Ok(())
}

/// Accepts connections, for ever. `cgroup_root`: the freezer cgroup below which the agent's containers are.
pub async fn serve(
    listener: UnixListener,
    cgroup_root: Option<String>,
    events: mpsc::UnboundedSender<Event>,
) {
    let own = rustix::process::geteuid().as_raw();
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    for id in (1..).map(ConnectionId) {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: some will be given back.
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = stream.peer_cred();
        if let Ok(Err(why)) = peer.as_ref().map(|peer| may_order(peer.pid(), cgroup_root.as_deref())) {
            tracing::warn!("a connection was refused: {why}");
            continue;
        }
        match peer {
            Ok(peer) if peer.uid() == 0 || peer.uid() == own => match Arc::clone(&open).try_acquire_owned() {
                Ok(turn) => {
                    let events = events.clone();
                    tokio::spawn(async move {
                        connection(id, stream, events).await;
                        drop(turn);
                    });
                }
                Err(_) => tracing::warn!(
                    "a connection was refused: process {:?} makes the {}th, and an agent needs one",
                    peer.pid(),
                    CONNECTIONS_MAX + 1
                ),
            },
            Ok(peer) => tracing::warn!("a connection of user {} was refused", peer.uid()),
            Err(error) => tracing::warn!("a connection's user could not be told: {error}"),
        }
    }
}

async fn connection(id: ConnectionId, stream: UnixStream, events: mpsc::UnboundedSender<Event>) {
    let (reader, mut writer) = stream.into_split();
    let (lines, mut to_write) = mpsc::unbounded_channel::<String>();
    if events.send(Event::Connected(id, lines)).is_err() {
        return;
    }
    let write = async {
        while let Some(line) = to_write.recv().await {
            if writer.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut reader = BufReader::new(reader);
        while let Ok(Some(line)) = read_line(&mut reader).await {
            match serde_json::from_str::<CallLine>(&line) {
                Ok(CallLine { id: call_id, call }) => {
                    if events.send(Event::Call(id, call_id, call)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // Not its words: they repeat what stands there, which may be a volume's options.
                    tracing::warn!(
                        "a line of an isolator cannot be read, its connection is closed: {:?} error in column {}",
                        error.classify(),
                        error.column()
                    );
                    return;
                }
            }
        }
    };
    tokio::select! { () = write => {}, () = read => {} }
    let _ = events.send(Event::Disconnected(id));
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn root_only_who_is_of_the_host_and_of_no_container_gives_orders() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(may_order(Some(own), Some("/extvol-no-such-root")), Ok(()));
        for nobody in [None, Some(0)] {
            assert!(may_order(nobody, None).unwrap_err().contains("no pid namespace"));
        }
        assert!(may_order(Some(i32::MAX), None).unwrap_err().contains("process"), "it has ended");
        let mut stranger = Command::new("unshare")
            .args(["--mount", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let its = || std::fs::read_link(format!("/proc/{}/ns/mnt", stranger.id())).unwrap();
        let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
        while its() == own {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let refused = may_order(i32::try_from(stranger.id()).ok(), None);
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        let refused = refused.unwrap_err();
        assert!(refused.contains("mount namespace"), "{refused}");
    }

    /// Connects, says one line, and waits until the other side ends it.
    const CLIENT: &str = "use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; \
                          my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die \"$!\"; \
                          print $s \"no call\\n\"; $s->flush; <$s>; exit 0;";

    #[tokio::test]
    async fn root_a_connection_of_another_mount_namespace_is_ended_before_a_line_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("keeper.sock");
        let (events, mut received) = mpsc::unbounded_channel();
        tokio::spawn(serve(listen(&socket).unwrap(), None, events));
        let client = |program: &str, arguments: &[&str]| {
            let mut command = tokio::process::Command::new(program);
            command.args(arguments).args(["perl", "-e", CLIENT]).arg(&socket);
            async move { assert!(command.status().await.unwrap().success()) }
        };
        client("unshare", &["--mount"]).await;
        // What is of the host comes later, and is the first to be heard of.
        client("env", &[]).await;
        assert!(matches!(received.recv().await, Some(Event::Connected(ConnectionId(2), _))));
    }
}
