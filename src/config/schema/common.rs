//! Blocks that appear in several places: rings' key-value stores, gRPC clients, TLS, blocks and WALs, caches.

use super::{Row, boolean, csv, duration, float, include, int, list, secret, set, size, strings, text, uint};

pub(super) const KVSTORE: &[Row] = &[
    text("store", "memberlist").used(),
    text("prefix", "collectors/"),
    text("consul.host", "localhost:8500"),
    secret("consul.acl_token", ""),
    duration("consul.http_client_timeout", "20s"),
    boolean("consul.consistent_reads", "false"),
    float("consul.watch_rate_limit", "1"),
    int("consul.watch_burst_size", "1"),
    duration("consul.cas_retry_delay", "1s"),
    strings("etcd.endpoints", ""),
    duration("etcd.dial_timeout", "10s"),
    int("etcd.max_retries", "10"),
    boolean("etcd.tls_enabled", "false"),
    include("etcd", TLS_CLIENT),
    text("etcd.username", ""),
    secret("etcd.password", ""),
    text("multi.primary", ""),
    text("multi.secondary", ""),
    boolean("multi.mirror_enabled", "false"),
    duration("multi.mirror_timeout", "2s"),
];

pub(super) const TLS_CLIENT: &[Row] = &[
    text("tls_cert_path", ""),
    text("tls_key_path", ""),
    text("tls_ca_path", ""),
    text("tls_server_name", ""),
    boolean("tls_insecure_skip_verify", "false"),
    text("tls_cipher_suites", ""),
    text("tls_min_version", ""),
];

pub(super) const TLS_SERVER: &[Row] = &[
    text("cert", "").used(),
    secret("key", "").used(),
    text("client_ca", "").used(),
    text("cert_file", "").used(),
    text("key_file", "").used(),
    text("client_ca_file", "").used(),
    text("client_auth_type", "").used(),
];

pub(super) const GRPC_CLIENT: &[Row] = &[
    int("max_recv_msg_size", "104857600"),
    int("max_send_msg_size", "104857600"),
    text("grpc_compression", "snappy"),
    float("rate_limit", "0"),
    int("rate_limit_burst", "0"),
    boolean("backoff_on_ratelimits", "false"),
    duration("backoff_config.min_period", "100ms"),
    duration("backoff_config.max_period", "10s"),
    int("backoff_config.max_retries", "10"),
    size("initial_stream_window_size", "63KiB1023B"),
    size("initial_connection_window_size", "63KiB1023B"),
    boolean("tls_enabled", "false"),
    include("", TLS_CLIENT),
    duration("connect_timeout", "5s"),
    duration("connect_backoff_base_delay", "1s"),
    duration("connect_backoff_max_delay", "5s"),
    text("cluster_validation.label", ""),
];

pub(super) const POOL: &[Row] = &[
    duration("checkinterval", "15s"),
    boolean("healthcheckenabled", "true"),
    duration("healthchecktimeout", "1s"),
    duration("healthcheckgraceperiod", "0s"),
    int("maxconcurrenthealthchecks", "0"),
];

pub(super) const CLIENT: &[Row] =
    &[include("pool_config", POOL), duration("remote_timeout", "5s"), include("grpc_client_config", GRPC_CLIENT)];

/// The keys that every ring of instances has.
pub(super) const INSTANCE_RING: &[Row] = &[
    include("kvstore", KVSTORE),
    duration("heartbeat_period", "5s").used(),
    duration("heartbeat_timeout", "1m").used(),
    text("instance_id", "${HOSTNAME}").used(),
    strings("instance_interface_names", "eth0, en0").used(),
    int("instance_port", "0").used(),
    text("instance_addr", "").used(),
    boolean("enable_inet6", "false"),
];

pub(super) const PARTITION_RING: &[Row] = &[
    include("kvstore", KVSTORE),
    int("min_partition_owners_count", "1"),
    duration("min_partition_owners_duration", "10s"),
    duration("delete_inactive_partition_after", "13h"),
];

pub(super) const COMPACTION: &[Row] = &[
    uint("v2_in_buffer_bytes", "5242880").ignored(),
    uint("v2_out_buffer_bytes", "20971520").ignored(),
    int("v2_prefetch_traces_count", "1000").ignored(),
    duration("compaction_window", "1h"),
    int("max_compaction_objects", "6000000"),
    uint("max_block_bytes", "107374182400"),
    duration("block_retention", "336h"),
    duration("compacted_block_retention", "1h"),
    uint("retention_concurrency", "10"),
    duration("max_time_per_tenant", "5m"),
    duration("compaction_cycle", "30s"),
];

/// `parquet_dedicated_columns`.
pub(super) const COLUMN: &[Row] =
    &[text("scope", "span").used(), text("name", "").used(), text("type", "string").used(), strings("options", "").used()];

pub(super) const BLOCK: &[Row] = &[
    float("bloom_filter_false_positive", "0.01"),
    int("bloom_filter_shard_size_bytes", "102400"),
    text("version", "vParquet4"),
    text("search_encoding", "snappy").ignored(),
    int("search_page_size_bytes", "1048576").ignored(),
    int("v2_index_downsample_bytes", "1048576").ignored(),
    int("v2_index_page_size_bytes", "256000").ignored(),
    text("v2_encoding", "zstd").ignored(),
    int("parquet_row_group_size_bytes", "100000000"),
    list("parquet_dedicated_columns", COLUMN),
];

pub(super) const SEARCH: &[Row] = &[
    uint("chunk_size_bytes", "1000000"),
    int("prefetch_trace_count", "1000"),
    int("read_buffer_count", "32"),
    int("read_buffer_size_bytes", "1048576").used(),
    boolean("cache_control.footer", "false").used(),
    boolean("cache_control.column_index", "false").used(),
    boolean("cache_control.offset_index", "false").used(),
];

/// The WAL of a component that isn't ours: same keys, other defaults.
pub(super) const COMPONENT_WAL: &[Row] = &[
    text("path", ""),
    text("v2_encoding", "none").ignored(),
    text("search_encoding", "none").ignored(),
    duration("ingestion_time_range_slack", "2m"),
    text("version", "vParquet4"),
];

pub(super) const BACKOFF: &[Row] = &[duration("min_period", "100ms"), duration("max_period", "10s"), int("max_retries", "0")];

pub(super) const KAFKA_CLIENT: &[Row] = &[
    text("address", "localhost:9092"),
    text("topic", ""),
    text("client_id", ""),
    duration("dial_timeout", "2s"),
    duration("write_timeout", "10s"),
    text("sasl_username", ""),
    secret("sasl_password", ""),
    text("consumer_group", ""),
    duration("consumer_group_offset_commit_interval", "1s"),
    duration("last_produced_offset_retry_timeout", "10s"),
    boolean("auto_create_topic_enabled", "true"),
    int("auto_create_topic_default_partitions", "1000"),
    int("producer_max_record_size_bytes", "15983616"),
    int("producer_max_buffered_bytes", "1073741824"),
    duration("target_consumer_lag_at_startup", "2s"),
    duration("max_consumer_lag_at_startup", "15s"),
    boolean("disable_kafka_telemetry", "false"),
    duration("consumer_group_lag_metric_update_interval", "1m"),
];

pub(super) const MEMCACHED: &[Row] = &[
    text("host", ""),
    text("service", ""),
    text("addresses", ""),
    duration("timeout", "100ms"),
    int("max_idle_conns", "16"),
    int("max_item_size", "0"),
    duration("update_interval", "1m"),
    boolean("consistent_hash", "false"),
    uint("circuit_breaker_consecutive_failures", "0"),
    duration("circuit_breaker_timeout", "0s"),
    duration("circuit_breaker_interval", "0s"),
    duration("ttl", "0s"),
    boolean("tls_enabled", "false"),
    include("", TLS_CLIENT),
];

pub(super) const REDIS: &[Row] = &[
    text("endpoint", ""),
    text("master_name", ""),
    duration("timeout", "100ms"),
    duration("expiration", "0s"),
    int("db", "0"),
    int("pool_size", "0"),
    text("username", ""),
    secret("password", ""),
    text("sentinel_username", ""),
    secret("sentinel_password", ""),
    boolean("tls_enabled", "false"),
    boolean("tls_insecure_skip_verify", "false"),
    duration("idle_timeout", "0s"),
    duration("max_connection_age", "0s"),
    duration("ttl", "0s"),
];

pub(super) const BACKGROUND_CACHE: &[Row] = &[int("writeback_goroutines", "10"), int("writeback_buffer", "10000")];

pub(super) const SERVER: &[Row] = &[
    text("http_listen_network", "tcp"),
    text("http_listen_address", "").used(),
    int("http_listen_port", "3200").used(),
    int("http_listen_conn_limit", "0").used(),
    text("grpc_listen_network", "tcp"),
    text("grpc_listen_address", "").used(),
    int("grpc_listen_port", "9095").used(),
    int("grpc_listen_conn_limit", "0").used(),
    boolean("grpc_collect_max_streams_by_conn", "true").ignored(),
    boolean("proxy_protocol_enabled", "false"),
    text("tls_cipher_suites", "").used(),
    text("tls_min_version", "").used(),
    include("http_tls_config", TLS_SERVER),
    include("grpc_tls_config", TLS_SERVER),
    boolean("register_instrumentation", "true").used(),
    boolean("report_grpc_codes_in_instrumentation_label_enabled", "false"),
    duration("graceful_shutdown_timeout", "30s").used(),
    duration("http_server_read_timeout", "30s").used(),
    duration("http_server_read_header_timeout", "0s").used(),
    duration("http_server_write_timeout", "30s").used(),
    duration("http_server_idle_timeout", "2m").used(),
    boolean("http_log_closed_connections_without_response_enabled", "false"),
    int("grpc_server_max_recv_msg_size", "16777216").used(),
    int("grpc_server_max_send_msg_size", "16777216").used(),
    uint("grpc_server_max_concurrent_streams", "100").used(),
    duration("grpc_server_max_connection_idle", "infinite"),
    duration("grpc_server_max_connection_age", "infinite").used(),
    duration("grpc_server_max_connection_age_grace", "infinite").used(),
    duration("grpc_server_keepalive_time", "2h").used(),
    duration("grpc_server_keepalive_timeout", "20s").used(),
    duration("grpc_server_min_time_between_pings", "10s").ignored(),
    boolean("grpc_server_ping_without_stream_allowed", "true").ignored(),
    int("grpc_server_num_workers", "0").ignored(),
    boolean("grpc_server_stats_tracking_enabled", "true").ignored(),
    boolean("grpc_server_recv_buffer_pools_enabled", "false").ignored(),
    int("grpc_server_read_buffer_size", "32768"),
    int("grpc_server_write_buffer_size", "32768"),
    text("log_format", "logfmt").used(),
    super::level("log_level", "info").used(),
    boolean("log_source_ips_enabled", "false"),
    boolean("log_source_ips_full", "false"),
    text("log_source_ips_header", ""),
    text("log_source_ips_regex", ""),
    boolean("log_request_headers", "false"),
    boolean("log_request_at_info_level_enabled", "false").used(),
    csv("log_request_exclude_headers_list", ""),
    boolean("trace_request_headers", "false"),
    csv("trace_request_exclude_headers_list", ""),
    text("http_path_prefix", ""),
    text("cluster_validation.label", ""),
    csv("cluster_validation.additional_labels", ""),
    boolean("cluster_validation.grpc.enabled", "false"),
    boolean("cluster_validation.grpc.soft_validation", "false"),
    boolean("cluster_validation.http.enabled", "false"),
    boolean("cluster_validation.http.soft_validation", "false"),
    csv("cluster_validation.http.excluded_paths", ""),
    csv("cluster_validation.http.excluded_user_agents", ""),
    boolean("create_new_traces", "false"),
];

/// `internal_server`: the server's keys with nothing on the gRPC side.
pub(super) const INTERNAL_SERVER: &[Row] = &[
    include("", SERVER),
    set("http_listen_port", "3101"),
    set("grpc_listen_network", ""),
    set("grpc_listen_port", "0"),
    set("grpc_collect_max_streams_by_conn", "false"),
    set("register_instrumentation", "false"),
    set("grpc_server_max_recv_msg_size", "0"),
    set("grpc_server_max_send_msg_size", "0"),
    set("grpc_server_max_concurrent_streams", "0"),
    set("grpc_server_max_connection_idle", "0s"),
    set("grpc_server_max_connection_age", "0s"),
    set("grpc_server_max_connection_age_grace", "0s"),
    set("grpc_server_keepalive_time", "0s"),
    set("grpc_server_keepalive_timeout", "0s"),
    set("grpc_server_min_time_between_pings", "0s"),
    set("grpc_server_ping_without_stream_allowed", "false"),
    set("grpc_server_stats_tracking_enabled", "false"),
    set("grpc_server_read_buffer_size", "0"),
    set("grpc_server_write_buffer_size", "0"),
    boolean("enable", "false").used(),
];
