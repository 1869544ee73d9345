//! The configuration as a whole: defaults, real files, messages.

use storage::blocklist;

use super::*;

fn request() -> Request {
    Request::default()
}

fn load_text(text: &str) -> Result<Config, String> {
    parse(text, &request()).map_err(|problems| render_problems(&problems))
}

fn loaded(text: &str) -> Config {
    load_text(text).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = loaded("");
    assert_eq!(config.to_yaml(Mode::Diff), "{}\n");
    assert_eq!(config.server.http_endpoint, "0.0.0.0:3200");
    assert_eq!(config.storage.backend, Backend::Unknown(String::new()));
    assert_eq!(config.distributor.receivers, Receivers::fallback());
    assert_eq!(config.warnings(), []);
    assert_eq!(config.unused_keys(), [""; 0]);
}

#[test]
fn defaults_are_those_of_the_tables() {
    let yaml = loaded("").to_yaml(Mode::Effective);
    // Indented paths of the rendered text, to compare by dotted path.
    let mut stack: Vec<(usize, String)> = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for line in yaml.lines() {
        let indent = line.len() - line.trim_start().len();
        if line.trim_start().starts_with('-') {
            continue;
        }
        let (key, value) = line.trim_start().split_once(':').expect("a key");
        stack.retain(|(depth, _)| *depth < indent);
        stack.push((indent, key.to_owned()));
        let path: Vec<&str> = stack.iter().map(|(_, key)| key.as_str()).collect();
        seen.insert(path.join("."), value.trim().to_owned());
    }
    for (path, expected) in [
        ("target", "all"),
        ("http_api_prefix", "\"\""),
        ("shutdown_delay", "0s"),
        ("server.http_listen_port", "3200"),
        ("server.grpc_server_max_connection_age", "2562047h47m16.854775807s"),
        ("server.http_server_idle_timeout", "2m0s"),
        ("server.log_level", "info"),
        ("internal_server.http_listen_port", "3101"),
        ("internal_server.grpc_server_keepalive_time", "0s"),
        ("internal_server.register_instrumentation", "false"),
        ("distributor.ring.heartbeat_timeout", "5m0s"),
        ("distributor.ring.kvstore.store", "memberlist"),
        ("distributor.max_attribute_bytes", "2048"),
        ("distributor.receivers", "null"),
        ("ingester.lifecycler.num_tokens", "128"),
        ("ingester.partition_ring.delete_inactive_partition_after", "13h0m0s"),
        ("ingester.trace_idle_period", "5s"),
        ("ingester.max_block_bytes", "524288000"),
        ("ingester.complete_block_timeout", "15m0s"),
        ("ingester_client.pool_config.checkinterval", "15s"),
        ("ingester_client.grpc_client_config.initial_stream_window_size", "63KiB1023B"),
        ("ingester_client.grpc_client_config.backoff_config.max_retries", "10"),
        ("querier.frontend_worker.grpc_client_config.backoff_config.max_retries", "5"),
        ("querier.frontend_worker.grpc_client_config.max_send_msg_size", "16777216"),
        ("querier.frontend_worker.grpc_client_config.initial_stream_window_size", "0B"),
        ("querier.metrics.time_overlap_cutoff", "0.2"),
        ("query_frontend.search.max_duration", "168h0m0s"),
        ("query_frontend.rf1_after", "0001-01-01T00:00:00Z"),
        ("compactor.ring.kvstore.store", "\"\""),
        ("compactor.compaction.block_retention", "336h0m0s"),
        ("metrics_generator.registry.stale_duration", "15m0s"),
        ("metrics_generator.processor.local_blocks.block.version", "vParquet4"),
        ("metrics_generator.storage.remote_write", "[]"),
        ("overrides.per_tenant_override_period", "10s"),
        ("overrides.defaults.ingestion.rate_limit_bytes", "15000000"),
        ("overrides.defaults.ingestion.artificial_delay", "null"),
        ("overrides.defaults.read.max_search_duration", "0s"),
        ("overrides.defaults.metrics_generator.native_histogram_bucket_factor", "1.1"),
        ("memberlist.acquire_writer_timeout", "250ms"),
        ("memberlist.bind_port", "7946"),
        ("storage.trace.blocklist_poll", "5m0s"),
        ("storage.trace.pool.queue_depth", "20000"),
        ("storage.trace.wal.path", "/var/tempo/wal"),
        ("storage.trace.s3.tls_min_version", "VersionTLS12"),
        ("storage.trace.azure.endpoint_suffix", "blob.core.windows.net"),
        ("cache.background.writeback_buffer", "10000"),
        ("block_builder.wal.path", "/var/tempo/block-builder/traces"),
        ("live_store.block_config.version", "\"\""),
        ("backend_worker.backoff.max_period", "1m0s"),
        ("backend_scheduler.provider.compaction.compaction.compaction_window", "1h0m0s"),
        ("rubato.wal.sync", "always"),
    ] {
        assert_eq!(seen.get(path).map(String::as_str), Some(expected), "{path}");
    }
    assert!(!yaml.contains("ingestion_rate_limit_bytes"), "flat keys are never printed");
}

#[test]
fn keys_of_polling_have_their_effect() {
    let defaults = loaded("").storage.blocklist;
    let ours = blocklist::Settings::default();
    assert_eq!(format!("{defaults:?}"), format!("{ours:?}"), "Tempo's defaults are ours");
    let written = loaded(
        "storage: {trace: {blocklist_poll: 30s, blocklist_poll_concurrency: 7, blocklist_poll_tenant_concurrency: 3, \
         blocklist_poll_fallback: false, blocklist_poll_tenant_index_builders: 1, blocklist_poll_stale_tenant_index: 10m, \
         blocklist_poll_jitter_ms: 250, blocklist_poll_tolerate_consecutive_errors: 4, blocklist_poll_tolerate_tenant_failures: 5, \
         empty_tenant_deletion_enabled: true, empty_tenant_deletion_age: 2h}}",
    );
    let expected = blocklist::Settings {
        interval: Duration::from_secs(30),
        concurrency: 7,
        tenant_concurrency: 3,
        fallback: false,
        index_builders: 1,
        stale_index: Duration::from_secs(600),
        jitter: Duration::from_millis(250),
        tolerate_consecutive_errors: 4,
        tolerate_tenant_failures: 5,
        empty_tenant_deletion: Some(Duration::from_secs(7200)),
        ..ours
    };
    assert_eq!(format!("{:?}", written.storage.blocklist), format!("{expected:?}"));
    assert!(!written.unused_keys().iter().any(|key| key.starts_with("storage")), "{:?}", written.unused_keys());
}

#[test]
fn the_printed_defaults_are_a_file_that_means_the_defaults() {
    let defaults = loaded("");
    let again = loaded(&defaults.to_yaml(Mode::Defaults));
    assert_eq!(again.to_yaml(Mode::Diff), "{}\n");
    assert_eq!(again.settings, defaults.settings);
}

const DEPLOYMENT: &str = r#"
multitenancy_enabled: false
stream_over_http_enabled: true
shutdown_delay: 5s
server: {http_listen_port: 3100, grpc_listen_port: 9095, log_level: info, log_format: logfmt}
distributor:
  receivers:
    otlp:
      protocols:
        grpc: { endpoint: "0.0.0.0:4317" }
ingester:
  lifecycler:
    address: ${POD_IP}
    ring: {replication_factor: 3, kvstore: { store: memberlist }}
  max_block_duration: 5m
  max_block_bytes: 104857600
  complete_block_timeout: 6m
  flush_all_on_shutdown: true
metrics_generator:
  ring: { instance_addr: "${POD_IP}", kvstore: { store: memberlist } }
  registry:
    external_labels: { source: tempo, cluster: dev }
  storage:
    path: /var/tempo/generator/wal
    remote_write:
      - url: http://mimir-distributor.mimir.svc.cluster.local:8080/api/v1/push
        send_exemplars: true
        basic_auth: {username: u, password: hunter2}
compactor:
  ring: { instance_addr: "${POD_IP}", kvstore: { store: memberlist } }
  compaction: {block_retention: 3h, compacted_block_retention: 15m, compaction_window: 30m}
querier:
  max_concurrent_queries: 20
  frontend_worker: {frontend_address: "query-frontend-discovery.tempo.svc.cluster.local:9095"}
query_frontend:
  search: { max_duration: 3h }
  metrics: { max_duration: 3h }
memberlist:
  abort_if_cluster_join_fails: false
  advertise_addr: ${POD_IP}
  bind_port: 7946
  join_members: ["dns+gossip-ring.tempo.svc.cluster.local:7946"]
overrides:
  defaults:
    ingestion: {rate_strategy: local, rate_limit_bytes: 15000000, burst_size_bytes: 20000000}
    metrics_generator:
      processors: [service-graphs, span-metrics]
  per_tenant_override_config: /etc/tempo/overrides.yaml
cache:
  caches:
    - roles: [bloom, trace-id-index, parquet-footer, parquet-column-idx, parquet-offset-idx, frontend-search]
      memcached:
        addresses: mcrouter.tempo.svc.cluster.local:5000
        consistent_hash: false
        timeout: 200ms
        max_idle_conns: 100
        max_item_size: 1000000
        ttl: 48h
storage:
  trace:
    backend: s3
    blocklist_poll: 5m
    blocklist_poll_tenant_index_builders: 1
    wal: { path: /var/tempo/wal }
    pool: { max_workers: 400, queue_depth: 20000 }
    s3:
      bucket: tempo
      endpoint: minio.tempo.svc.cluster.local:9000
      insecure: true
      forcepathstyle: true
      access_key: ${S3_ACCESS_KEY}
      secret_key: ${S3_SECRET_KEY}
usage_report:
  reporting_enabled: false
"#;

#[test]
fn a_real_file_verifies_and_comes_back() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("tempo.yaml");
    std::fs::write(&path, DEPLOYMENT).expect("the folder is writable");
    let env = |name: &str| match name {
        "POD_IP" => Some("10.1.2.3".to_owned()),
        "S3_SECRET_KEY" => Some("hush".to_owned()),
        _ => None,
    };
    let request = Request { file: Some(path), expand_env: true, flags: Vec::new() };
    let config = load(&request, &env).expect("the file is right");
    assert_eq!(config.warnings(), []);
    assert_eq!(config.notes, ["line 71: key \"storage.trace.s3.access_key\" has no value, its default is used"]);
    assert_eq!(config.settings.text("ingester.lifecycler.address"), "10.1.2.3");
    let Backend::Store(storage::backend::Settings::S3(s3)) = &config.storage.backend else { panic!("{:?}", config.storage.backend) };
    assert_eq!(s3.secret_key.reveal(), "hush");
    assert_eq!(config.distributor.receivers.otlp_grpc[0].endpoint, "0.0.0.0:4317");
    assert_eq!(config.overrides.defaults.processors, ["service-graphs", "span-metrics"]);
    assert!(config.unused_keys().contains(&"metrics_generator.storage.path".to_owned()));
    assert!(!config.unused_keys().contains(&"storage.trace.blocklist_poll".to_owned()), "written with its default");

    let yaml = config.to_yaml(Mode::Effective);
    assert!(!yaml.contains("hush") && !yaml.contains("hunter2"), "{yaml}");
    let again = loaded(&yaml);
    assert_eq!(again.to_yaml(Mode::Diff), config.to_yaml(Mode::Diff));
    assert!(config.to_yaml(Mode::Diff).contains("secret_key: \"********\"\n"), "{}", config.to_yaml(Mode::Diff));
}

#[test]
fn the_embedded_defaults_stay_on_this_machine() {
    let config = load(&request(), &|_| None).expect("the embedded defaults are right");
    assert_eq!(config.server.http_endpoint, "127.0.0.1:3200");
    assert_eq!(config.storage.backend, Backend::Store(storage::backend::Settings::Local(PathBuf::from("./rubato-data/blocks"))));
    assert_eq!(config.storage.wal.dir, PathBuf::from("./rubato-data/wal"));
    assert_eq!(config.distributor.receivers, Receivers::embedded());
    assert_eq!(config.overrides.defaults.processors, ["service-graphs", "span-metrics"]);
    assert_eq!((config.warnings(), config.unused_keys()), (Vec::new(), Vec::new()));
    // What is shown is what runs.
    let shown = loaded(&config.to_yaml(Mode::Effective));
    assert_eq!(shown.distributor.receivers, Receivers::embedded());
}

#[test]
fn problems_of_all_stages_are_reported_together() {
    let problems = load_text(
        "server:\n  log_format: xml\n  porrt: 1\nhttp_api_prefix: tempo\ndistributor:\n  receivers:\n    otlp: {protocols: {}}\n",
    )
    .expect_err("wrong");
    assert_eq!(
        problems,
        "\n  line 2: server.log_format: \"xml\" is not one of logfmt, json\
         \n  line 3: field porrt not found in type server\
         \n  line 4: http_api_prefix: \"tempo\" must start with /\
         \n  line 7: distributor.receivers.otlp: must specify at least one protocol"
    );
    assert_eq!(load_text("a: 1\na: 2\n").expect_err("wrong"), "\n  line 2: mapping key \"a\" already defined at line 1");
    let error = load(&Request { file: Some(PathBuf::from("/nowhere/x.yaml")), ..request() }, &|_| None).expect_err("no file");
    assert!(error.to_string().starts_with("failed to read configFile /nowhere/x.yaml: "), "{error}");
}

#[test]
fn legacy_overrides_mean_the_same_and_warn() {
    let config =
        loaded("overrides:\n  ingestion_rate_limit_bytes: 5\n  max_bytes_per_trace: 6\n  metrics_generator_processors: [span-metrics]\n");
    assert_eq!((config.overrides.defaults.rate_limit_bytes, config.overrides.defaults.max_bytes_per_trace), (5, 6));
    assert_eq!(config.warnings().len(), 1);
    assert!(config.to_yaml(Mode::Diff).starts_with("overrides:\n    defaults:\n        ingestion:\n            rate_limit_bytes: 5\n"));
}

#[test]
fn flags_go_before_both_spellings_of_limits() {
    let request = Request { flags: vec![("overrides.defaults.ingestion.rate_limit_bytes", Value::Int(9))], ..request() };
    for text in ["overrides: {ingestion_rate_limit_bytes: 5}", "overrides: {defaults: {ingestion: {rate_limit_bytes: 5}}}"] {
        let config = parse(text, &request).unwrap_or_else(|problems| panic!("{}", render_problems(&problems)));
        assert_eq!(config.overrides.defaults.rate_limit_bytes, 9, "{text}");
    }
}

#[test]
fn sync_of_the_wal_in_both_places() {
    assert_eq!(
        loaded("rubato: {wal: {sync: interval, sync_interval: 50ms, max_bytes: 1GiB}}").storage.wal.sync,
        storage::wal::Sync::Interval(Duration::from_millis(50))
    );
    assert_eq!(loaded("storage: {trace: {wal: {sync: never}}}").storage.wal.sync, storage::wal::Sync::Never);
    assert_eq!(
        load_text("rubato:\n  wal:\n    sync: often").expect_err("wrong"),
        "\n  line 3: rubato.wal.sync: \"often\" is not one of always, interval, never"
    );
}

#[test]
fn warnings_by_key() {
    for (text, start) in [
        ("ingester: {complete_block_timeout: 1m}", "ingester.complete_block_timeout <"),
        ("compactor: {compaction: {block_retention: 1m}}", "compactor.compaction.block_retention <"),
        ("compactor: {compaction: {retention_concurrency: 0}}", "c.Compactor.Compactor.RetentionConcurrency"),
        ("distributor: {log_received_spans: {enabled: true}}", "span logging"),
        ("target: querier\nstorage: {trace: {backend: local}}", "local backend"),
        ("storage: {trace: {block: {v2_index_page_size_bytes: 5}}}", "v2_* settings"),
        (
            "storage: {trace: {block: {parquet_dedicated_columns: [{scope: galaxy, name: x}]}}}",
            "storage.trace.block.parquet_dedicated_columns",
        ),
        ("storage: {trace: {cache: memcached}}", "storage.trace.cache"),
        ("query_frontend: {trace_by_id: {concurrent_shards: 60}}", "query_frontend.trace_by_id.concurrent_shards"),
        ("storage: {trace: {blocklist_poll: 30m}}\ningester: {complete_block_timeout: 1h}", "backend_scheduler.work.prune_age"),
        ("block_builder: {assigned_partitions: {a: [1]}, partitions_per_instance: 2}", "block_builder.assigned_partitions"),
        (
            "storage: {trace: {backend: local, local: {path: /x}}}\noverrides: {user_configurable_overrides: {enabled: true, client: {backend: local, local: {path: /x}}}}",
            "user-configurable overrides",
        ),
    ] {
        let warnings = loaded(text).warnings();
        assert!(warnings.len() == 1 && warnings[0].message.starts_with(start), "{text}: {warnings:?}");
    }
}

#[test]
fn caches_are_checked() {
    for (text, expected) in [
        ("cache: {caches: [{memcached: {}}]}", "configured caches require a valid role"),
        ("cache: {caches: [{roles: [none], memcached: {host: x}}]}", "role none is not a valid role"),
        ("cache: {caches: [{roles: [bloom]}]}", "cache config for role bloom has neither memcached nor redis configs"),
        (
            "cache: {caches: [{roles: [bloom], memcached: {host: x}, redis: {endpoint: y}}]}",
            "cache config for role bloom has both memcached and redis configs",
        ),
        (
            "cache: {caches: [{roles: [bloom], redis: {endpoint: x}}, {roles: [bloom], redis: {endpoint: y}}]}",
            "role bloom is claimed by more than one cache",
        ),
        (
            "{cache: {caches: [{roles: [parquet-footer], memcached: {host: x}}]}, storage: {trace: {cache: redis, search: {cache_control: {footer: true}}}}}",
            "role parquet-footer is claimed by more than one cache",
        ),
        ("storage: {trace: {cache: disk}}", "unknown cache type: disk"),
        (
            "storage: {trace: {search: {cache_control: {footer: true}}}}",
            "storage.trace.search.cache_control is set without storage.trace.cache",
        ),
    ] {
        let problems = load_text(text).expect_err("wrong");
        assert!(problems.ends_with(expected), "{text}: {problems}");
    }
}

#[test]
fn caches_are_what_was_written() {
    use std::time::Duration;
    use storage::cache::Role;
    let config = loaded(DEPLOYMENT).storage.cache;
    assert_eq!(config.unavailable, None);
    let [cache] = config.settings.memcached.as_slice() else { panic!("{config:?}") };
    assert_eq!(cache.roles.len(), 6);
    assert!(!cache.roles.contains(&Role::ParquetPage) && cache.roles.contains(&Role::FrontendSearch));
    assert_eq!((cache.addresses.as_str(), cache.consistent_hash), ("mcrouter.tempo.svc.cluster.local:5000", false));
    assert_eq!((cache.timeout, cache.update_interval), (Duration::from_millis(200), Duration::from_secs(60)));
    assert_eq!((cache.max_idle_conns, cache.max_item_size), (100, 1_000_000));
    assert_eq!(cache.ttl, Duration::from_secs(48 * 3600));
    assert_eq!((cache.writers, cache.queue_entries), (10, 10_000));

    let legacy = "
cache: {background: {writeback_buffer: 5}, caches: [{roles: [parquet-page], memcached: {host: a, service: b, timeout: 0s}}]}
storage:
  trace:
    cache: memcached
    cache_min_compaction_level: 2
    cache_max_block_age: 1h
    search: {read_buffer_size_bytes: 5000, cache_control: {footer: true, offset_index: true}}
    background_cache: {writeback_goroutines: 3}
    memcached:
      host: c
      consistent_hash: true
      circuit_breaker_consecutive_failures: 7
      circuit_breaker_timeout: 8s
      circuit_breaker_interval: 9s
";
    let config = loaded(legacy);
    assert_eq!(config.unused_keys(), loaded("").unused_keys());
    let settings = config.storage.cache.settings;
    assert_eq!((settings.max_page_bytes, settings.max_bloom_compaction_level), (5000, 2));
    assert_eq!(settings.max_bloom_block_age, Duration::from_secs(3600));
    let [page, legacy] = settings.memcached.as_slice() else { panic!("{settings:?}") };
    assert_eq!((page.host.as_str(), page.service.as_str(), page.timeout), ("a", "b", Duration::from_millis(100)));
    assert_eq!((page.writers, page.queue_entries, page.name.as_str()), (10, 5, ""));
    assert_eq!(legacy.roles, [Role::Bloom, Role::TraceIdIndex, Role::ParquetFooter, Role::ParquetOffsetIdx]);
    assert_eq!((legacy.writers, legacy.queue_entries, legacy.name.as_str()), (3, 10_000, "legacy"));
    assert!(legacy.consistent_hash);
    assert_eq!(legacy.circuit_breaker_consecutive_failures, 7);
    assert_eq!((legacy.circuit_breaker_timeout, legacy.circuit_breaker_interval), (Duration::from_secs(8), Duration::from_secs(9)));

    for (text, key) in [
        ("cache: {caches: [{roles: [bloom], redis: {endpoint: x}}]}", "cache.caches[0].redis"),
        ("cache: {caches: [{roles: [bloom], memcached: {host: x, tls_enabled: true}}]}", "cache.caches[0].memcached.tls_enabled"),
        ("storage: {trace: {cache: redis}}", "storage.trace.cache: redis"),
        ("storage: {trace: {cache: memcached, memcached: {tls_enabled: true}}}", "storage.trace.memcached.tls_enabled"),
    ] {
        assert_eq!(loaded(text).storage.cache.unavailable.as_deref(), Some(key), "{text}");
    }
}

#[test]
fn keys_of_tempo_3_are_accepted_and_named() {
    let config = loaded(
        "memory: {automemlimit_enabled: true}\nquery_frontend: {skip_ast_transformations: [all]}\noverrides: {enable_legacy_overrides: true}\n",
    );
    assert_eq!(
        config.tempo3_keys(),
        ["memory.automemlimit_enabled", "overrides.enable_legacy_overrides", "query_frontend.skip_ast_transformations"]
    );
    assert_eq!(config.unused_keys(), loaded("").unused_keys());
}

#[test]
fn remote_write_is_that_of_prometheus() {
    use dataflow::remote_write::{Auth, Credentials, Endpoint, Pem, Protocol, Proxy, Rule, Tls, TlsVersion};
    let config = loaded(
        r#"
multitenancy_enabled: true
metrics_generator:
  instance_id: pod-1
  registry: {external_labels: {cluster: dev}, inject_tenant_id_as: tenant, collection_interval: 5s, stale_duration: 7m}
  storage:
    remote_write_flush_deadline: 9s
    remote_write:
      - url: http://mimir/api/v1/push
        send_exemplars: true
      - url: https://other/push
        name: other
        remote_timeout: 1m
        protobuf_message: io.prometheus.write.v2.Request
        headers: {X-Team: red}
        authorization: {credentials_file: /token}
        tls_config: {ca_file: /ca.pem, cert: C, key: K, min_version: TLS12, insecure_skip_verify: true}
        proxy_url: http://proxy:3128
        follow_redirects: false
        write_relabel_configs: [{regex: __metrics_gen_instance, action: labeldrop}]
        queue_config: {capacity: 5, max_shards: 2, max_samples_per_send: 7, min_backoff: 1s, max_backoff: 2s, retry_on_http_429: false, sample_age_limit: 1h}
        metadata_config: {send: false}
"#,
    );
    let settings = &config.generator.remote_write;
    assert_eq!((settings.instance.as_str(), settings.tenant_label.as_deref()), ("pod-1", Some("tenant")));
    assert_eq!((settings.collection_interval, settings.flush_deadline), (Duration::from_secs(5), Duration::from_secs(9)));
    assert_eq!(config.generator.stale_duration, Duration::from_secs(420));
    assert!(settings.add_org_id_header && settings.external_labels["cluster"] == "dev");
    let [first, second] = settings.endpoints.as_slice() else { panic!("{:?}", settings.endpoints) };
    assert_eq!(*first, Endpoint::new("http://mimir/api/v1/push"));
    let mut expected = Endpoint {
        name: "other".to_owned(),
        timeout: Duration::from_secs(60),
        protocol: Protocol::V2,
        headers: [("X-Team".to_owned(), "red".to_owned())].into(),
        auth: Auth::Header { scheme: "Bearer".to_owned(), credentials: Credentials::File("/token".into()) },
        tls: Tls {
            ca: Some(Pem::File("/ca.pem".into())),
            identity: Some((Pem::Text("C".to_owned().into()), Pem::Text("K".to_owned().into()))),
            insecure_skip_verify: true,
            min_version: Some(TlsVersion::V12),
            max_version: None,
        },
        proxy: Proxy::Url { url: "http://proxy:3128".to_owned(), except: String::new() },
        follow_redirects: false,
        metadata_interval: None,
        ..Endpoint::new("https://other/push")
    };
    let action = dataflow::remote_write::Action::LabelDrop;
    expected.relabel = vec![Rule { regex: "__metrics_gen_instance".to_owned(), action, ..Rule::default() }];
    (expected.queue.capacity, expected.queue.max_shards, expected.queue.max_samples_per_send) = (5, 2, 7);
    (expected.queue.min_backoff, expected.queue.max_backoff) = (Duration::from_secs(1), Duration::from_secs(2));
    (expected.queue.retry_on_429, expected.queue.sample_age_limit) = (false, Some(Duration::from_secs(3600)));
    assert_eq!(*second, expected);
}

#[test]
fn mistakes_of_the_generator_are_named() {
    let text = r#"
metrics_generator:
  limiter_type: entities
  metrics_ingestion_time_range_slack: 10s
  registry: {external_labels: {a-b: x}, collection_interval: 0s}
  processor:
    span_metrics:
      histogram_buckets: [1, 1]
      filter_policies: [{include: {match_type: regex, attributes: [{key: kind, value: "("}]}}, {exclude: {match_type: exact}}]
  storage:
    remote_write:
      - url: mimir/push
        basic_auth: {username: u, password: p, password_file: f}
        bearer_token: t
      - remote_timeout: 0s
        headers: {Authorization: x, "bad name": y}
        write_relabel_configs:
          - {action: hashmod, target_label: a}
          - {action: keeep}
        sigv4: {}
        queue_config: {max_samples_per_send: 0}
        protobuf_message: prometheus.WriteRequestV2
        tls_config: {cert_file: c, max_version: TLS11}
overrides:
  defaults:
    metrics_generator:
      trace_id_label_name: trace-id
      remote_write_headers: {Host: x}
      processor: {service_graphs: {histogram_buckets: [2, .inf]}}
"#;
    let error = load_text(text).expect_err("full of mistakes");
    let expected = [
        "line 3: metrics_generator.limiter_type: \"entities\" is not one of series, entity",
        "line 5: metrics_generator.registry.collection_interval: must be greater than 0",
        "line 5: metrics_generator.registry.external_labels: \"a-b\" is not a valid label name",
        "line 8: metrics_generator.processor.span_metrics.histogram_buckets: must be strictly increasing",
        "line 9: metrics_generator.processor.span_metrics.filter_policies: [0]: filter policy attribute \"kind\" is compared with \"(\", which is no regular expression",
        "line 9: metrics_generator.processor.span_metrics.filter_policies: [1]: exclude.match_type: \"exact\" is not one of strict, regex",
        "line 12: metrics_generator.storage.remote_write[0].url: \"mimir/push\" does not begin with http:// or https://",
        "line 14: metrics_generator.storage.remote_write[0].bearer_token: at most one of basic_auth, authorization, bearer_token, bearer_token_file may be configured",
        "line 15: metrics_generator.storage.remote_write[1].url: url for remote_write is empty",
        "line 15: metrics_generator.storage.remote_write[1].remote_timeout: must be greater than 0",
        "line 16: metrics_generator.storage.remote_write[1].headers: \"bad name\" is no name of a header",
        "line 16: metrics_generator.storage.remote_write[1].headers: Authorization is a reserved header",
        "line 18: metrics_generator.storage.remote_write[1].write_relabel_configs[0]: action hashmod requires a modulus above 0",
        "line 19: metrics_generator.storage.remote_write[1].write_relabel_configs[1]: unknown relabel action \"keeep\"",
        "line 20: metrics_generator.storage.remote_write[1].sigv4: is not available in this version of Rubato: authenticate with basic_auth or authorization",
        "line 21: metrics_generator.storage.remote_write[1].queue_config.max_samples_per_send: must be greater than 0",
        "line 22: metrics_generator.storage.remote_write[1].protobuf_message: \"prometheus.WriteRequestV2\" is not one of prometheus.WriteRequest, io.prometheus.write.v2.Request",
        "line 23: metrics_generator.storage.remote_write[1].tls_config: cert and key go together",
        "line 23: metrics_generator.storage.remote_write[1].tls_config.max_version: \"TLS11\" is not one of TLS12, TLS13",
        "line 27: overrides.defaults.metrics_generator.trace_id_label_name: \"trace-id\" is not a valid label name",
        "line 28: overrides.defaults.metrics_generator.remote_write_headers: Host is a reserved header",
        "line 29: overrides.defaults.metrics_generator.processor.service_graphs.histogram_buckets: must be finite",
    ];
    for expected in expected {
        assert!(error.contains(expected), "{expected}\nis missing from{error}");
    }
    assert_eq!(error.lines().filter(|line| line.contains("metrics_generator")).count(), expected.len(), "{error}");
}

#[test]
fn tenants_override_the_generator() {
    use dataflow::generator::{Parts, settings::Histograms};
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("overrides.yaml");
    let entries = r"
overrides:
  all:
    metrics_generator:
      processors: [span-metrics, span-metrics-count, service-graphs, host-info]
      max_active_series: 7
      collection_interval: 30s
      generate_native_histograms: both
      trace_id_label_name: trace_id
      remote_write_headers: {X-Team: red}
      ingestion_time_range_slack: 2m
      native_histogram_max_bucket_number: 9
      processor:
        service_graphs: {dimensions: [], enable_client_server_prefix: false, enable_virtual_node_label: true, peer_attributes: [peer]}
        span_metrics:
          histogram_buckets: [1, 2]
          intrinsic_dimensions: {span_name: false, status_message: true}
          dimension_mappings: [{name: where, source_labels: [a, b], join: /}]
          enable_target_info: false
        host_info: {metric_name: hosts}
  part:
    metrics_generator_processors: [span-metrics-count, span-metrics-latency]
    metrics_generator_processor_span_metrics_histogram_buckets: [1, 2]
  none: {}
  blocks: {metrics_generator: {processors: [local-blocks]}}
";
    std::fs::write(&path, entries).expect("writable");
    let config = loaded(&format!(
        r"
metrics_generator:
  processor:
    service_graphs: {{dimensions: [x], enable_client_server_prefix: true, wait: 3s, max_items: 4}}
    span_metrics: {{dimensions: [y], enable_target_info: true, histogram_buckets: [5]}}
overrides:
  defaults: {{metrics_generator: {{processors: [span-metrics], max_active_entities: 5}}}}
  per_tenant_override_config: {}
",
        path.display()
    ));
    let overrides = Overrides::new(config.overrides, &prometheus::Registry::new()).expect("right overrides");
    let of = |tenant: &str| overrides.limits(tenant).generator.clone();

    let all = of("all").processors.expect("processors");
    let spans = all.span_metrics.as_ref().expect("span metrics");
    assert_eq!((spans.parts, &*spans.buckets, spans.dimensions.as_slice()), (Parts::ALL, &[1.0, 2.0][..], &["y".to_owned()][..]));
    let intrinsic = spans.intrinsic_dimensions;
    assert!(intrinsic.service && !intrinsic.span_name && intrinsic.span_kind && intrinsic.status_code && intrinsic.status_message);
    assert!(!spans.enable_target_info && spans.enable_instance_label && spans.dimension_mappings[0].join == "/");
    let graphs = all.service_graphs.as_ref().expect("service graphs");
    assert_eq!((graphs.dimensions.len(), graphs.wait, graphs.max_items), (0, Duration::from_secs(3), 4));
    assert!(graphs.enable_client_server_prefix && graphs.enable_virtual_node_label, "a prefix can only be switched on");
    assert_eq!(graphs.peer_attributes, ["peer"]);
    assert_eq!(all.host_info.as_ref().map(|of| of.metric_name.as_str()), Some("hosts"));
    assert_eq!((all.common.max_active_series, all.common.max_active_entities, all.common.slack), (7, 0, Duration::from_secs(120)));
    assert_eq!((all.common.histograms, all.common.native_histogram_bucket_factor), (Histograms::Both, 1.1));
    let sent = of("all").remote_write;
    assert_eq!((sent.collection_interval, sent.trace_id_label.as_str()), (Some(Duration::from_secs(30)), "trace_id"));
    assert_eq!((sent.native_histogram_max_buckets, sent.host_info_metric.as_str(), sent.headers["X-Team"].as_str()), (9, "hosts", "red"));

    let part = of("part").processors.expect("processors");
    let spans = part.span_metrics.as_ref().expect("span metrics");
    assert_eq!(spans.parts, Parts { count: true, latency: true, size: false });
    assert_eq!(spans.buckets.len(), 14, "the default buckets, whatever is written");
    assert!(part.service_graphs.is_none() && spans.enable_target_info);
    assert!(of("none").processors.is_none() && of("blocks").processors.is_none());
    let default = of("anybody").processors.expect("processors");
    assert_eq!(default.span_metrics.as_ref().map(|of| of.buckets.to_vec()), Some(vec![5.0]));
    // The limiter counts series unless told otherwise.
    assert_eq!(default.common.max_active_entities, 0);
    assert_eq!(of("anybody").remote_write.trace_id_label, "traceID");
}

#[test]
fn the_generator_has_what_tempo_3_adds() {
    use dataflow::generator::settings::{MatchType, SpanNames};
    let component = loaded(
        r#"
metrics_generator:
  processor:
    service_graphs:
      enable_tracestate_span_multiplier: true
      filter_policies: [{include_any: {match_type: strict, attributes: [{key: span.a, value: 1}, {key: kind, value: SPAN_KIND_SERVER}]}}]
overrides:
  defaults:
    metrics_generator:
      processors: [span-metrics, service-graphs]
      span_name_sanitization: enabled
      processor: {span_metrics: {enable_tracestate_span_multiplier: true}}
"#,
    );
    assert_eq!(component.tempo3_keys(), [""; 0]);
    let overrides = Overrides::new(component.overrides, &prometheus::Registry::new()).expect("right overrides");
    let of = overrides.limits("anybody").generator.processors.clone().expect("processors");
    let (graphs, spans) = (of.service_graphs.as_ref().expect("service graphs"), of.span_metrics.as_ref().expect("span metrics"));
    assert_eq!(of.common.span_names, SpanNames::Patterns);
    assert!(graphs.enable_tracestate_span_multiplier && spans.enable_tracestate_span_multiplier);
    let [policy] = graphs.filter_policies.as_slice() else { panic!("one policy: {:?}", graphs.filter_policies) };
    let any = policy.include_any.as_ref().expect("it is written");
    assert_eq!((any.match_type, any.attributes.len(), policy.include.is_none()), (MatchType::Strict, 2, true));

    for (text, why) in [
        ("overrides: {defaults: {metrics_generator: {span_name_sanitization: cluster}}}", "\"cluster\" is not one of dry_run, enabled"),
        (
            "metrics_generator: {processor: {service_graphs: {filter_policies: [{}]}}}",
            "[0]: filter policy has neither include nor include_any nor exclude",
        ),
    ] {
        let error = load_text(text).expect_err("a mistake");
        assert!(error.contains(why), "{error}");
    }
}

/// What language models are told of the configuration.
const TOLD: [&str; 2] =
    [include_str!("../../query/src/api/mcp/docs/config-overview.md"), include_str!("../../query/src/api/mcp/docs/config-reference.md")];

#[test]
fn language_models_are_told_files_that_load_and_true_defaults() {
    let files = TOLD.iter().flat_map(|text| text.split("```yaml\n").skip(1)).filter_map(|rest| rest.split("```").next());
    assert_eq!(files.map(loaded).count(), 2);
    let mut defaults = 0;
    for line in TOLD.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with('|')) {
        let mut parts = line.split('`').skip(1);
        while let (Some(key), Some(rest)) = (parts.next(), parts.next()) {
            let Some((default, _)) = rest.strip_prefix(" (").and_then(|rest| rest.split_once(')')) else { continue };
            let path: Vec<&str> = key.split('.').collect();
            let file = format!("{}: {default}{}", path.join(": {"), "}".repeat(path.len() - 1));
            assert_eq!(loaded(&file).to_yaml(Mode::Diff), "{}\n", "{file}");
            defaults += 1;
        }
    }
    assert!(defaults > 20, "{defaults} keys");
}

#[test]
fn what_is_told_of_usage_external_traces_and_weights_is_heard() {
    let config = loaded(
        "distributor: {usage: {cost_attribution: {enabled: true, max_cardinality: 5, stale_duration: 1m}}}
query_frontend: {mcp_server: {enabled: true}, trace_by_id: {external_enabled: true}, weights: {request_with_weights: false, max_regex_conditions: 2}}
querier: {trace_by_id: {external: {endpoint: \"http://other:3200\", timeout: 3s}}}
overrides: {defaults: {cost_attribution: {max_cardinality: 7, dimensions: {team: owner}}}}
",
    );
    let usage = ingest::UsageSettings { max_cardinality: 5, stale_duration: Duration::from_secs(60) };
    assert_eq!(config.distributor.usage, Some(usage));
    assert_eq!(loaded("").distributor.usage, None);
    assert!(config.query.mcp_enabled && config.query_frontend.external_traces);
    assert_eq!((config.querier.external_endpoint.as_str(), config.querier.external_timeout), ("http://other:3200", Duration::from_secs(3)));
    let weights = query::frontend::Weights { requests: false, max_regexes: 2, ..query::frontend::Weights::default() };
    assert_eq!(config.query_frontend.settings.weights, weights);
    assert_eq!(config.unused_keys(), [""; 0]);
}
