//! `server` and `internal_server`: where the process listens, how its connections are encrypted and bounded, and how it logs.

use std::{path::PathBuf, time::Duration};

use storage::tls::ServerTls;

use super::{Problem, Settings, tls};
use crate::auth::AuthFiles;

/// Where the server listens and how it logs.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// `host:port` of the HTTP server.
    pub(crate) http_endpoint: String,
    /// How the HTTP server's connections are encrypted; none is in the clear.
    pub(crate) http_tls: Option<ServerTls>,
    /// Who may use HTTP server and receivers; no files are everybody.
    pub(crate) auth: AuthFiles,
    /// Connections of HTTP at a time; 0 is unlimited.
    pub(crate) max_http_connections: usize,
    /// Connections of gRPC at a time; 0 is unlimited.
    pub(crate) max_grpc_connections: usize,
    /// The gRPC server.
    pub(crate) grpc: GrpcServer,
    /// Whether the HTTP port takes gRPC, too.
    pub(crate) grpc_over_http: bool,
    /// debug, info, warn or error.
    pub(crate) log_level: String,
    /// JSON instead of logfmt.
    pub(crate) log_json: bool,
    /// Requests are logged at info instead of debug.
    pub(crate) log_requests_at_info: bool,
    /// Whether requests are counted and timed.
    pub(crate) instrument: bool,
    /// How long open requests may take at shutdown.
    pub(crate) graceful_shutdown_timeout: Duration,
    /// Times that clients are given.
    pub(crate) http_timeouts: HttpTimeouts,
    /// `host:port` of the internal server, which answers `/ready` only.
    pub(crate) internal_endpoint: Option<String>,
    /// How its connections are encrypted; none is in the clear.
    pub(crate) internal_tls: Option<ServerTls>,
}

/// How long the HTTP server waits for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpTimeouts {
    /// For the next request of a connection and its head.
    pub(crate) idle: Option<Duration>,
    /// For the whole of a request, once its head is there.
    pub(crate) read: Option<Duration>,
    /// For a client that does not take any of its answer.
    pub(crate) write: Option<Duration>,
}

/// The gRPC server.
#[derive(Clone, Debug)]
pub(crate) struct GrpcServer {
    /// `host:port`.
    pub(crate) endpoint: String,
    /// Largest message that is taken.
    pub(crate) max_receive_bytes: usize,
    /// Largest message that is sent.
    pub(crate) max_send_bytes: usize,
    /// Calls of one connection at the same time; none is unlimited.
    pub(crate) max_concurrent_streams: Option<u32>,
    /// A connection is asked to end after this time; none is never.
    pub(crate) max_connection_age: Option<Duration>,
    /// How long its calls may take then; none is for ever.
    pub(crate) max_connection_age_grace: Option<Duration>,
    /// A silent connection is pinged after this time.
    pub(crate) keepalive_time: Duration,
    /// How long the answer to a ping may take.
    pub(crate) keepalive_timeout: Duration,
    /// How connections are encrypted; none is in the clear.
    pub(crate) tls: Option<ServerTls>,
}

/// Reads them, and `rubato.auth`.
pub(super) fn server(s: &Settings, problems: &mut Vec<Problem>) -> Server {
    // `infinite` is the largest number.
    let finite = |path: &str| s.nonzero(path).filter(|duration| duration.as_nanos() < i64::MAX as u128);
    let path = |key: &str| Some(s.text(key)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let http_tls = tls::of_server(s, "server", "http_tls_config", problems);
    let grpc_tls = tls::of_server(s, "server", "grpc_tls_config", problems);
    let internal_tls = tls::of_server(s, "internal_server", "http_tls_config", problems);
    Server {
        http_endpoint: endpoint(s, "server", "http"),
        http_tls,
        auth: AuthFiles { basic_users: path("rubato.auth.basic_users_file"), bearer_tokens: path("rubato.auth.bearer_tokens_file") },
        max_http_connections: s.count("server.http_listen_conn_limit"),
        max_grpc_connections: s.count("server.grpc_listen_conn_limit"),
        grpc: GrpcServer {
            endpoint: endpoint(s, "server", "grpc"),
            max_receive_bytes: s.count("server.grpc_server_max_recv_msg_size"),
            max_send_bytes: s.count("server.grpc_server_max_send_msg_size"),
            max_concurrent_streams: u32::try_from(s.number("server.grpc_server_max_concurrent_streams"))
                .ok()
                .filter(|streams| *streams > 0),
            max_connection_age: finite("server.grpc_server_max_connection_age"),
            max_connection_age_grace: finite("server.grpc_server_max_connection_age_grace"),
            keepalive_time: s.duration("server.grpc_server_keepalive_time"),
            keepalive_timeout: s.duration("server.grpc_server_keepalive_timeout"),
            tls: grpc_tls,
        },
        grpc_over_http: s.flag("stream_over_http_enabled"),
        http_timeouts: HttpTimeouts {
            // One time for both, since nobody can tell a client that has not begun from one that is slow.
            idle: ["read_header", "idle", "read"].iter().find_map(|key| s.nonzero(&format!("server.http_server_{key}_timeout"))),
            read: s.nonzero("server.http_server_read_timeout"),
            write: s.nonzero("server.http_server_write_timeout"),
        },
        log_level: s.text("server.log_level").to_owned(),
        log_json: s.text("server.log_format") == "json",
        log_requests_at_info: s.flag("server.log_request_at_info_level_enabled"),
        instrument: s.flag("server.register_instrumentation"),
        graceful_shutdown_timeout: s.duration("server.graceful_shutdown_timeout"),
        internal_endpoint: s.flag("internal_server.enable").then(|| endpoint(s, "internal_server", "http")),
        internal_tls,
    }
}

/// `host:port` of a listener.
fn endpoint(s: &Settings, block: &str, kind: &str) -> String {
    let host = s.text(&format!("{block}.{kind}_listen_address"));
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    let port = s.number(&format!("{block}.{kind}_listen_port"));
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
