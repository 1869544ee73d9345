//! The configuration's schema as data: one row per key, in the order in which `/status/config` prints it.
//!
//! ```text
//!  tables of Row (path, kind, default, status) ──build──► Schema (leaves by path, children by block)
//!        │ include("ring.kvstore", KVSTORE): a shared block under a path
//!        └ set("ring.kvstore.store", "")   : another default for a row before
//! ```
//!
//! A row's default is text in the same language as the file, parsed once when the schema is built, so that a default can't be of another
//! type than the key. A key exists iff it has a row; nothing else in the binary knows the set of keys.

mod architecture;
mod common;
mod components;
mod generator;
mod limits;
mod receivers;
mod root;
mod storage;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

pub(crate) use limits::legacy_name;
pub(crate) use receivers::{JAEGER, KAFKA, OTLP, ZIPKIN};
pub(crate) use storage::DEDICATED_COLUMNS;

use super::scalar::{self, Value};

/// What may be written as the value of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// true or false, with YAML 1.1 spellings.
    Bool,
    /// A boolean that may be absent.
    OptionalBool,
    /// A signed integer.
    Int,
    /// An integer that is not negative.
    Uint,
    /// A floating point number.
    Float,
    /// Text.
    Text,
    /// Text that is never shown.
    Secret,
    /// A Go duration, or nanoseconds.
    Duration,
    /// A duration that may be absent.
    OptionalDuration,
    /// A Prometheus duration.
    PromDuration,
    /// Bytes with a base-2 unit.
    Size,
    /// debug, info, warn or error.
    Level,
    /// An RFC 3339 time.
    Time,
    /// A comma-separated string, or a list.
    Csv,
    /// A list of strings.
    Strings,
    /// A list of numbers.
    Floats,
    /// A map from name to text.
    TextMap,
    /// A map from name to boolean.
    BoolMap,
    /// Anything; another schema (or nobody) looks into it.
    Any,
    /// A list of blocks.
    List(&'static [Row]),
    /// The rows of a shared block, placed under the path.
    Include(&'static [Row]),
    /// Not a key: another default for a row before.
    Set,
}

impl Kind {
    /// The name of the kind in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bool | Kind::OptionalBool => "bool",
            Kind::Int => "int",
            Kind::Uint => "uint",
            Kind::Float => "float64",
            Kind::Text | Kind::Secret => "string",
            Kind::Duration | Kind::OptionalDuration => "duration",
            Kind::PromDuration => "prom-duration",
            Kind::Size => "byte-size",
            Kind::Level => "log level",
            Kind::Time => "time",
            Kind::Csv => "list or csv string",
            Kind::Strings => "[]string",
            Kind::Floats => "[]float64",
            Kind::TextMap => "map[string]string",
            Kind::BoolMap => "map[string]bool",
            Kind::Any => "any",
            Kind::List(_) => "list of blocks",
            Kind::Include(_) | Kind::Set => "block",
        }
    }
}

/// How this version treats a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It has its effect.
    Used,
    /// Accepted; has no effect yet.
    Unused,
    /// Belongs to something Rubato doesn't have (the v2 block format, Go's runtime, phoning home, a time at which recent data ends and blocks
    /// begin); accepted and without effect for good.
    Ignored,
    /// A key that only Tempo 3.0 knows; accepted.
    Tempo3,
    /// The flat spelling of an overrides key; translated to the scoped one and never printed.
    Legacy,
}

/// One key, or one shared block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    path: &'static str,
    kind: Kind,
    default: &'static str,
    status: Status,
}

impl Row {
    const fn used(mut self) -> Self {
        self.status = Status::Used;
        self
    }

    const fn ignored(mut self) -> Self {
        self.status = Status::Ignored;
        self
    }

    const fn tempo3(mut self) -> Self {
        self.status = Status::Tempo3;
        self
    }
}

const fn row(path: &'static str, kind: Kind, default: &'static str) -> Row {
    Row { path, kind, default, status: Status::Unused }
}

macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        $(const fn $name(path: &'static str, default: &'static str) -> Row { row(path, Kind::$kind, default) })*
    };
}

constructors! {
    boolean => Bool, opt_bool => OptionalBool, int => Int, uint => Uint, float => Float, text => Text, secret => Secret,
    duration => Duration, opt_duration => OptionalDuration, prom => PromDuration, size => Size, level => Level, time => Time,
    csv => Csv, strings => Strings, floats => Floats, text_map => TextMap, bool_map => BoolMap, any => Any, set => Set,
}

const fn include(path: &'static str, rows: &'static [Row]) -> Row {
    row(path, Kind::Include(rows), "")
}

const fn list(path: &'static str, rows: &'static [Row]) -> Row {
    row(path, Kind::List(rows), "")
}

/// A key of a built schema.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    /// Dotted path from the top of the schema.
    pub(crate) path: String,
    /// What may be written.
    pub(crate) kind: Kind,
    /// Its value when it isn't written.
    pub(crate) default: Value,
    /// Whether it has an effect.
    pub(crate) status: Status,
    /// The schema of an element, for a list of blocks.
    pub(crate) item: Option<Arc<Schema>>,
}

/// A set of keys by dotted path, and the blocks they form.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    leaves: Vec<Leaf>,
    by_path: HashMap<String, usize>,
    children: HashMap<String, Vec<String>>,
}

impl Schema {
    /// Builds a schema from rows.
    ///
    /// # Panics
    /// When a table is wrong in itself (a default of another type, a `set` of an unknown path); a test builds every table.
    pub(crate) fn new(rows: &[Row]) -> Schema {
        let mut schema = Schema::default();
        schema.children.insert(String::new(), Vec::new());
        schema.add("", rows, None);
        schema
    }

    fn add(&mut self, prefix: &str, rows: &[Row], status: Option<Status>) {
        for row in rows {
            let path = join(prefix, row.path);
            let inherited = if row.status == Status::Unused { status.unwrap_or(Status::Unused) } else { row.status };
            match row.kind {
                Kind::Include(rows) => self.add(&path, rows, (inherited != Status::Unused).then_some(inherited)),
                Kind::Set => {
                    let index = *self.by_path.get(&path).unwrap_or_else(|| panic!("schema sets the default of an unknown key: {path}"));
                    let leaf = &mut self.leaves[index];
                    leaf.default = default(leaf.kind, row.default, &path);
                    if row.status != Status::Unused {
                        leaf.status = row.status;
                    }
                }
                kind => {
                    let value = default(kind, row.default, &path);
                    self.add_leaf(path, kind, value, inherited);
                }
            }
        }
    }

    fn add_leaf(&mut self, path: String, kind: Kind, default: Value, status: Status) {
        assert!(!self.by_path.contains_key(&path), "schema has a key twice: {path}");
        let item = match kind {
            Kind::List(rows) => Some(Arc::new(Schema::new(rows))),
            _ => None,
        };
        let mut child = path.as_str();
        loop {
            let parent = child.rsplit_once('.').map_or("", |(parent, _)| parent);
            let siblings = self.children.entry(parent.to_owned()).or_default();
            if siblings.iter().any(|sibling| sibling == child) {
                break;
            }
            siblings.push(child.to_owned());
            if parent.is_empty() {
                break;
            }
            child = parent;
        }
        self.by_path.insert(path.clone(), self.leaves.len());
        self.leaves.push(Leaf { default, path, kind, status, item });
    }

    /// The key of this path.
    pub(crate) fn leaf(&self, path: &str) -> Option<&Leaf> {
        self.by_path.get(path).map(|index| &self.leaves[*index])
    }

    /// Every key, in the order of the tables.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Leaf> {
        self.leaves.iter()
    }

    /// The full paths of a block's keys and blocks; nothing when the path is no block.
    pub(crate) fn children(&self, path: &str) -> Option<&[String]> {
        self.children.get(path).map(Vec::as_slice)
    }

    /// The paths of all blocks, the top being the empty path.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &str> {
        self.children.keys().map(String::as_str)
    }
}

/// `parent.child`, either of which may be empty.
pub(crate) fn join(parent: &str, child: &str) -> String {
    match (parent.is_empty(), child.is_empty()) {
        (true, _) => child.to_owned(),
        (_, true) => parent.to_owned(),
        _ => format!("{parent}.{child}"),
    }
}

fn default(kind: Kind, text: &str, path: &str) -> Value {
    scalar::parse_default(kind, text).unwrap_or_else(|error| panic!("default of {path}: {error}"))
}

/// The schema of the configuration file.
pub(crate) fn file() -> Arc<Schema> {
    static SCHEMA: OnceLock<Arc<Schema>> = OnceLock::new();
    Arc::clone(SCHEMA.get_or_init(|| {
        let mut schema = Schema::new(root::ROOT);
        add_legacy(&mut schema, "overrides");
        Arc::new(schema)
    }))
}

/// The schema of one tenant's entry in the per-tenant overrides file: both spellings.
pub(crate) fn tenant() -> Arc<Schema> {
    static SCHEMA: OnceLock<Arc<Schema>> = OnceLock::new();
    Arc::clone(SCHEMA.get_or_init(|| {
        let mut schema = Schema::new(limits::LIMITS);
        add_legacy(&mut schema, "");
        Arc::new(schema)
    }))
}

/// The keys that a tenant may set for itself by the API.
pub(crate) fn user() -> Arc<Schema> {
    static SCHEMA: OnceLock<Arc<Schema>> = OnceLock::new();
    Arc::clone(SCHEMA.get_or_init(|| {
        let rows: Vec<Row> = limits::LIMITS.iter().filter(|row| limits::is_of_users(row.path)).copied().collect();
        Arc::new(Schema::new(&rows))
    }))
}

/// Adds the flat spelling of every limit below `prefix`.
fn add_legacy(schema: &mut Schema, prefix: &str) {
    for leaf in Schema::new(limits::LIMITS).leaves() {
        let path = join(prefix, &legacy_name(&leaf.path));
        if schema.leaf(&path).is_none() {
            schema.add_leaf(path, leaf.kind, leaf.default.clone(), Status::Legacy);
        }
    }
}

/// The scoped paths of all limits with their flat names.
pub(crate) fn limit_paths() -> &'static [(String, String)] {
    static PATHS: OnceLock<Vec<(String, String)>> = OnceLock::new();
    PATHS.get_or_init(|| Schema::new(limits::LIMITS).leaves().map(|leaf| (leaf.path.clone(), legacy_name(&leaf.path))).collect())
}

/// Where keys of earlier releases went: full path, and what to say.
pub(crate) const MOVED: &[(&str, &str)] = &[
    ("search_enabled", "removed: search is always on"),
    ("metrics_generator_enabled", "removed: the metrics-generator runs for tenants that have processors"),
    ("use_otel_tracer", "removed: self-tracing is configured by OTEL_* environment variables"),
    ("autocomplete_filtering_enabled", "removed: always on"),
    ("receivers", "moved to \"distributor.receivers\""),
    ("distributor.receivers.opencensus", "removed"),
    ("distributor.search_tags_deny_list", "removed"),
    ("compactor.compaction.chunk_size_bytes", "moved to \"compactor.compaction.v2_in_buffer_bytes\""),
    ("compactor.compaction.flush_size_bytes", "moved to \"compactor.compaction.v2_out_buffer_bytes\""),
    ("compactor.compaction.iterator_buffer_size", "moved to \"compactor.compaction.v2_prefetch_traces_count\""),
    ("compactor.compaction.max_objects_per_block", "moved to \"compactor.compaction.max_compaction_objects\""),
    ("querier.query_timeout", "moved to \"querier.search.query_timeout\" and \"querier.trace_by_id.query_timeout\""),
    ("querier.search_query_timeout", "moved to \"querier.search.query_timeout\""),
    ("querier.search.prefer_self", "removed with external search endpoints"),
    ("querier.search.external_endpoints", "removed with external search endpoints"),
    ("querier.search.external_backend", "removed with external search endpoints"),
    ("querier.search.external_hedge_requests_at", "removed with external search endpoints"),
    ("querier.search.external_hedge_requests_up_to", "removed with external search endpoints"),
    ("query_frontend.query_shards", "moved to \"query_frontend.trace_by_id.query_shards\""),
    ("query_frontend.tolerate_failed_blocks", "removed"),
    ("query_frontend.search.max_concurrent_jobs", "moved to \"query_frontend.search.concurrent_jobs\""),
    ("query_frontend.trace_by_id.hedge_requests_at", "removed"),
    ("query_frontend.trace_by_id.hedge_requests_up_to", "removed"),
    ("storage.trace.wal.encoding", "moved to \"storage.trace.wal.v2_encoding\""),
    ("storage.trace.wal.completedfilepath", "removed"),
    ("storage.trace.wal.bloom_filter_false_positive", "moved to \"storage.trace.block.bloom_filter_false_positive\""),
    ("storage.trace.wal.index_downsample", "moved to \"storage.trace.block.v2_index_downsample_bytes\""),
    ("storage.trace.block.encoding", "moved to \"storage.trace.block.v2_encoding\""),
    ("storage.trace.block.index_downsample_bytes", "moved to \"storage.trace.block.v2_index_downsample_bytes\""),
    ("storage.trace.block.index_page_size_bytes", "moved to \"storage.trace.block.v2_index_page_size_bytes\""),
    ("storage.trace.block.row_group_size_bytes", "moved to \"storage.trace.block.parquet_row_group_size_bytes\""),
    ("storage.trace.block.dedicated_columns", "moved to \"storage.trace.block.parquet_dedicated_columns\""),
    ("metrics_generator.storage.remote_write_queue", "moved to \"queue_config\" of a remote_write entry"),
    ("metrics_generator.registry.max_active_series", "moved to \"overrides.defaults.metrics_generator.max_active_series\""),
    ("server.register_signal_handler", "removed"),
    ("mem_ballast_size_mbs", "removed in 3.0: the flag -mem-ballast-size-mbs is accepted and ignored"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_builds_and_the_order_is_that_of_the_tables() {
        let schema = file();
        assert!(schema.leaves().count() > 600, "{}", schema.leaves().count());
        let top = schema.children("").expect("the top is a block");
        assert_eq!(top.first().map(String::as_str), Some("target"));
        assert_eq!(tenant().leaf("ingestion_rate_limit_bytes").map(|leaf| leaf.status), Some(Status::Legacy));
        for table in [OTLP, JAEGER, ZIPKIN, KAFKA] {
            assert!(Schema::new(table).leaves().count() > 0);
        }
    }

    #[test]
    fn no_moved_key_still_exists() {
        for (path, _) in MOVED {
            assert!(file().leaf(path).is_none() && file().children(path).is_none(), "{path}");
        }
    }
}
