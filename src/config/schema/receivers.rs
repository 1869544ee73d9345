//! The sub-trees of `distributor.receivers`, by receiver type: the OpenTelemetry Collector's keys for it.

use super::{Row, any, boolean, duration, include, int, list, secret, strings, text, text_map, uint};

const TLS: &[Row] = &[
    text("ca_file", ""),
    text("ca_pem", ""),
    boolean("include_system_ca_certs_pool", "false"),
    text("cert_file", "").used(),
    text("cert_pem", "").used(),
    text("key_file", "").used(),
    secret("key_pem", "").used(),
    text("min_version", "").used(),
    text("max_version", ""),
    strings("cipher_suites", "").used(),
    strings("curve_preferences", ""),
    duration("reload_interval", "0s").used(),
    text("client_ca_file", "").used(),
    boolean("client_ca_file_reload", "false"),
];

const GRPC: &[Row] = &[
    text("endpoint", "").used(),
    text("transport", "tcp"),
    text("dialer.timeout", ""),
    include("tls", TLS),
    int("max_recv_msg_size_mib", "0").used(),
    uint("max_concurrent_streams", "0"),
    int("read_buffer_size", "524288"),
    int("write_buffer_size", "0"),
    duration("keepalive.server_parameters.max_connection_idle", "0s"),
    duration("keepalive.server_parameters.max_connection_age", "0s"),
    duration("keepalive.server_parameters.max_connection_age_grace", "0s"),
    duration("keepalive.server_parameters.time", "0s"),
    duration("keepalive.server_parameters.timeout", "0s"),
    duration("keepalive.enforcement_policy.min_time", "0s"),
    boolean("keepalive.enforcement_policy.permit_without_stream", "false"),
    any("auth", ""),
    boolean("include_metadata", "false").ignored(),
    any("middlewares", ""),
];

const HTTP: &[Row] = &[
    text("endpoint", "").used(),
    text("transport", "tcp"),
    include("tls", TLS),
    strings("cors.allowed_origins", ""),
    strings("cors.allowed_headers", ""),
    strings("cors.exposed_headers", ""),
    int("cors.max_age", "0"),
    any("auth", ""),
    int("max_request_body_size", "0").used(),
    boolean("include_metadata", "false").ignored(),
    text_map("response_headers", ""),
    strings("compression_algorithms", ""),
    duration("read_timeout", "0s"),
    duration("read_header_timeout", "0s"),
    duration("write_timeout", "0s"),
    duration("idle_timeout", "0s"),
    boolean("keep_alives_enabled", "true"),
    any("middlewares", ""),
];

/// `otlp`.
pub(crate) const OTLP: &[Row] = &[
    include("protocols.grpc", GRPC),
    include("protocols.http", HTTP),
    text("protocols.http.traces_url_path", "/v1/traces").used(),
    text("protocols.http.metrics_url_path", "/v1/metrics").ignored(),
    text("protocols.http.logs_url_path", "/v1/logs").ignored(),
];

const UDP: &[Row] = &[
    text("endpoint", "").used(),
    int("queue_size", "1000").used(),
    int("max_packet_size", "65000").used(),
    int("workers", "10").used(),
    int("socket_buffer_size", "0"),
];

/// `jaeger`.
pub(crate) const JAEGER: &[Row] = &[
    include("protocols.grpc", GRPC),
    include("protocols.thrift_http", HTTP),
    include("protocols.thrift_compact", UDP),
    include("protocols.thrift_binary", UDP),
];

/// `zipkin`.
pub(crate) const ZIPKIN: &[Row] = &[include("", HTTP), boolean("parse_string_tags", "false").used(), any("protocols", "").ignored()];

const HEADER: &[Row] = &[text("key", "")];

/// `kafka`.
pub(crate) const KAFKA: &[Row] = &[
    strings("brokers", "localhost:9092"),
    boolean("resolve_canonical_bootstrap_servers_only", "false"),
    text("protocol_version", ""),
    boolean("use_leader_epoch", "true"),
    duration("conn_idle_timeout", "9m"),
    text("client_id", "otel-collector"),
    text("group_id", "otel-collector"),
    text("topic", ""),
    text("encoding", ""),
    strings("traces.topics", "otlp_spans"),
    text("traces.topic", ""),
    text("traces.encoding", "otlp_proto"),
    strings("traces.exclude_topics", ""),
    text("initial_offset", "latest"),
    duration("session_timeout", "10s"),
    duration("heartbeat_interval", "3s"),
    boolean("autocommit.enable", "true"),
    duration("autocommit.interval", "1s"),
    int("min_fetch_size", "1"),
    int("max_fetch_size", "1048576"),
    int("default_fetch_size", "1048576"),
    int("max_partition_fetch_size", "1048576"),
    duration("max_fetch_wait", "250ms"),
    text("group_rebalance_strategy", ""),
    text("group_instance_id", ""),
    text("rack_id", ""),
    boolean("header_extraction.extract_headers", "false"),
    strings("header_extraction.headers", ""),
    boolean("metadata.full", "true"),
    duration("metadata.refresh_interval", "10m"),
    int("metadata.retry.max", "3"),
    duration("metadata.retry.backoff", "250ms"),
    boolean("message_marking.after", "false"),
    boolean("message_marking.on_error", "false"),
    boolean("message_marking.on_permanent_error", "false"),
    any("error_backoff", ""),
    any("telemetry", ""),
    list("headers", HEADER),
    text("auth.sasl.mechanism", ""),
    text("auth.sasl.username", ""),
    secret("auth.sasl.password", ""),
    int("auth.sasl.version", "0"),
    text("auth.sasl.aws_msk.region", ""),
    text("auth.sasl.aws_msk.broker_addr", ""),
    any("auth.plain_text", ""),
    include("auth.tls", TLS),
    boolean("auth.tls.insecure", "false"),
    boolean("auth.tls.insecure_skip_verify", "false"),
    text("auth.tls.server_name_override", ""),
    any("auth.kerberos", ""),
    include("tls", TLS),
    boolean("tls.insecure", "false"),
    boolean("tls.insecure_skip_verify", "false"),
    text("tls.server_name_override", ""),
];
