//! `storage.trace` and `rubato.wal`: the bucket, the write-ahead log, the shape of blocks, how they are listed and read through caches.

use std::{fmt, path::PathBuf, time::Duration};

use storage::blocklist;

use super::{
    Cache, Problem, Settings, bucket, cache,
    columns::{DedicatedColumn, dedicated_columns},
};

/// Where blocks live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A store, and how to reach it.
    Store(storage::backend::Settings),
    /// Nothing sensible was written.
    Unknown(String),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(settings) => settings.fmt(f),
            Self::Unknown(name) => f.write_str(name),
        }
    }
}

/// The shape of blocks.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// vParquet2, 3, 4 or 5.
    pub(crate) version: String,
    /// Chance of a false positive of the bloom filter.
    pub(crate) bloom_filter_false_positive: f64,
    /// Bytes of a bloom filter's shard.
    pub(crate) bloom_filter_shard_bytes: u64,
    /// Bytes of a row group.
    pub(crate) row_group_bytes: u64,
    /// Columns of their own.
    pub(crate) dedicated_columns: Vec<DedicatedColumn>,
}

/// The write-ahead log.
#[derive(Clone, Debug)]
pub(crate) struct Wal {
    /// Its folder.
    pub(crate) dir: PathBuf,
    /// When records are fsynced.
    pub(crate) sync: storage::wal::Sync,
    /// Largest log; none is decided by the disk.
    pub(crate) max_bytes: Option<u64>,
    /// Size of one file of the log.
    pub(crate) file_bytes: u64,
}

/// Everything on disk and in the bucket.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    /// Where blocks live.
    pub(crate) backend: Backend,
    /// The write-ahead log.
    pub(crate) wal: Wal,
    /// The shape of blocks.
    pub(crate) block: Block,
    /// How the bucket is polled.
    pub(crate) blocklist: blocklist::Settings,
    /// What is read through.
    pub(crate) cache: Cache,
}

/// Reads them.
pub(super) fn storage(s: &Settings, problems: &mut Vec<Problem>) -> Storage {
    let backend = bucket::backend(s, "storage.trace", problems);
    let sync = wal_sync(s).unwrap_or_else(|problem| {
        problems.push(problem);
        storage::wal::Sync::Always
    });
    Storage {
        backend,
        wal: Wal {
            dir: PathBuf::from(s.text("storage.trace.wal.path")),
            sync,
            max_bytes: Some(s.number("rubato.wal.max_bytes")).filter(|bytes| *bytes > 0),
            file_bytes: s.number("rubato.wal.file_bytes"),
        },
        block: Block {
            version: s.text("storage.trace.block.version").to_owned(),
            bloom_filter_false_positive: s.float("storage.trace.block.bloom_filter_false_positive"),
            bloom_filter_shard_bytes: s.number("storage.trace.block.bloom_filter_shard_size_bytes"),
            row_group_bytes: s.number("storage.trace.block.parquet_row_group_size_bytes"),
            dedicated_columns: dedicated_columns(s),
        },
        blocklist: blocklist(s),
        cache: cache::cache(s),
    }
}

/// `rubato.wal.sync`, or Rubato's `sync` below Tempo's `storage.trace.wal`.
fn wal_sync(s: &Settings) -> Result<storage::wal::Sync, Problem> {
    let tempo = "storage.trace.wal.sync";
    let path = if s.text(tempo).is_empty() { "rubato.wal.sync" } else { tempo };
    match s.text(path) {
        "always" => Ok(storage::wal::Sync::Always),
        "interval" => Ok(storage::wal::Sync::Interval(s.duration("rubato.wal.sync_interval"))),
        "never" => Ok(storage::wal::Sync::Never),
        other => Err(Problem::new(s.line(path), format!("{path}: \"{other}\" is not one of always, interval, never"))),
    }
}

/// The keys `storage.trace.blocklist_poll*` and `storage.trace.empty_tenant_deletion_*`.
fn blocklist(s: &Settings) -> blocklist::Settings {
    let path = |key: &str| format!("storage.trace.{key}");
    let count = |key: &str| s.count(&path(key));
    blocklist::Settings {
        interval: s.duration(&path("blocklist_poll")),
        concurrency: count("blocklist_poll_concurrency"),
        tenant_concurrency: count("blocklist_poll_tenant_concurrency"),
        fallback: s.flag(&path("blocklist_poll_fallback")),
        index_builders: count("blocklist_poll_tenant_index_builders"),
        stale_index: s.duration(&path("blocklist_poll_stale_tenant_index")),
        jitter: Duration::from_millis(s.number(&path("blocklist_poll_jitter_ms"))),
        tolerate_consecutive_errors: count("blocklist_poll_tolerate_consecutive_errors"),
        tolerate_tenant_failures: count("blocklist_poll_tolerate_tenant_failures"),
        empty_tenant_deletion: s.flag(&path("empty_tenant_deletion_enabled")).then(|| s.duration(&path("empty_tenant_deletion_age"))),
        ..blocklist::Settings::default()
    }
}
