//! Writes a block of every version, and what is in it, for readers that are not ours: `tests/real/parquet_readers.py`.
//!
//! ```text
//!  cargo run -p rubato-storage --example blocks -- FOLDER
//!  FOLDER/vParquet2 … vParquet5/data.parquet, meta.json        FOLDER/expected.ndjson: a trace per line, in order of the ids
//! ```
//!
//! What is expected is counted from the spans that were sent, not from the blocks.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use serde_json::json;
use storage::{
    block::{Format, Settings, TraceSegments, encode},
    id::{BlockId, Tenant, TraceId},
    otlp::{Walk, index},
    segment::Segment,
    synthetic,
    wal::Position,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).context("usage: blocks FOLDER")?);
    let mut traces: BTreeMap<TraceId, Vec<Arc<Segment>>> = BTreeMap::new();
    let mut walk = Walk::default();
    for body in synthetic::requests(11, 400) {
        index(&body, &mut walk)?;
        for segment in Segment::split(&Tenant::single(), Position(0), &body, &walk) {
            traces.entry(segment.trace_id).or_default().push(Arc::new(segment));
        }
    }
    let traces: Vec<_> = traces.into_iter().map(|(trace_id, segments)| TraceSegments { trace_id, segments }).collect();

    let mut expected = String::new();
    for trace in &traces {
        let (mut spans, mut attributes, mut events) = (Vec::new(), 0, 0);
        for segment in &trace.segments {
            let decoded = segment.decode()?;
            for span in decoded.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans) {
                attributes += span.attributes.len();
                events += span.events.len();
                spans.push(json!([
                    hex(&span.span_id),
                    hex(&span.parent_span_id),
                    span.name,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano - span.start_time_unix_nano,
                    span.kind
                ]));
            }
        }
        spans.sort_by_key(ToString::to_string);
        let line = json!({ "trace": hex(&trace.trace_id.0), "spans": spans, "attributes": attributes, "events": events });
        expected.push_str(&line.to_string());
        expected.push('\n');
    }
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("expected.ndjson"), expected)?;
    for version in Format::ALL {
        // Small row groups, so that there are several.
        let settings = Settings { version, row_group_size_bytes: 200_000, ..Settings::default() };
        let block = encode(&settings, &Tenant::single(), BlockId::nil(), &traces)?;
        let folder = folder.join(version.name());
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("data.parquet"), &block.data)?;
        std::fs::write(folder.join("meta.json"), block.meta.to_json()?)?;
    }
    Ok(())
}
