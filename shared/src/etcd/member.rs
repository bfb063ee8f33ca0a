//! One etcd member and the one connection to it.

use std::sync::OnceLock;
use std::time::Duration;

use etcd_client::{Channel, Client, ClusterClient, ConnectOptions, KvClient, MaintenanceClient, WatchClient};
use futures::FutureExt;
use tonic::transport::Endpoint;

/// Shortest pause without a byte from the member after which the connection is asked for a sign of
/// life (an HTTP/2 ping). One that gives none within a request's time-out is closed.
///
/// etcd closes connections that ask more than twice within 5 s *without getting data in between*. So
/// the pause is at least half of a request's time-out, and an open watch asks for its progress every
/// [`super::PROGRESS_INTERVAL`], which counts as data. Without that etcd 3.4 closes an idle watch
/// after 2 s.
const KEEP_ALIVE_MIN: Duration = Duration::from_millis(500);

/// Largest answer accepted, far above a page of leases; the default of 4 MiB is not.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// HTTP/2 windows that let a page of leases arrive without waiting for the round trip.
const WINDOW_BYTES: u32 = 4 << 20;

/// The clients of one member. All share one connection.
#[derive(Clone)]
pub(super) struct Clients {
    pub(super) kv: KvClient,
    /// Asks etcd to end the stream when the member has lost the leader: a member that is cut off
    /// from the others would otherwise keep a watch open and silent.
    pub(super) watch: WatchClient,
    pub(super) cluster: ClusterClient,
    pub(super) maintenance: MaintenanceClient,
}

/// One member. Its connection is made when it is first used, and made again whenever it breaks.
pub(super) struct Member {
    pub(super) endpoint: String,
    builder: Endpoint,
    clients: OnceLock<Clients>,
}

impl Member {
    pub(super) fn new(endpoint: String, request_timeout: Duration) -> Result<Self, tonic::transport::Error> {
        let builder = Endpoint::from_shared(endpoint.clone())?
            // Half of a request's time-out, so that a host that is off is told from one that is slow:
            // what was never sent is no unknown outcome.
            .connect_timeout(request_timeout / 2)
            .http2_keep_alive_interval(KEEP_ALIVE_MIN.max(request_timeout / 2))
            .keep_alive_timeout(request_timeout)
            // etcd allows no pings on a connection without a request.
            .keep_alive_while_idle(false)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES);
        Ok(Self { endpoint, builder, clients: OnceLock::new() })
    }

    /// The member's clients, bound to the runtime that first asks for them.
    pub(super) fn clients(&self) -> Clients {
        self.clients.get_or_init(|| self.open()).clone()
    }

    fn open(&self) -> Clients {
        let channel = Channel::Tonic(self.builder.connect_lazy());
        let client = |options| {
            Client::from_channel(channel.clone(), Some(options))
                .now_or_never()
                .and_then(Result::ok)
                .expect("without a user's name there is nothing to ask etcd when a client is made")
        };
        let plain = client(ConnectOptions::new());
        let watch = client(ConnectOptions::new().with_require_leader(true)).watch_client();
        Clients {
            kv: plain.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX),
            watch: watch.max_decoding_message_size(ANSWER_BYTES_MAX),
            cluster: plain.cluster_client(),
            maintenance: plain.maintenance_client(),
        }
    }
}
