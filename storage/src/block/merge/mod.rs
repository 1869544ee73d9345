//! Several blocks of one version become one, column by column.
//!
//! ```text
//!  input 0 ─ Source ─ windows ─┐  ids   ┌─ Plan: runs of rows, and rows that meet ─┐
//!  input 1 ─ Source ─ windows ─┴───────►┘                                          │ Job, on threads, leaf by leaf
//!                                                                                  ▼
//!  bucket ◄─ Upload: parts of equal size ◄─ FileWriter: drained after every row group ◄─ chunks of one row group
//! ```
//!
//! Trace ids are random, so the rows of two blocks alternate even when no trace is in both; what saves work is that rows are not taken
//! apart. A row that only one input has is copied leaf by leaf: its levels, and its values or dictionary numbers. Nothing becomes a span.
//! Rows of one trace in several inputs are combined (block-format.md §13.3) the same way, by copying the resources, scopes and spans that
//! are kept out of their leaves; only what describes the whole trace is computed. So a merge loses nothing that the version can hold, and
//! one code serves all versions.
//!
//! | module | holds |
//! |---|---|
//! | `budget` | what each of these may hold |
//! | `source` | an input as windows of rows, by ranges |
//! | `plan` | which rows come next |
//! | `roles` | what the leaves of a version are |
//! | `facts`, `combine` | what rows that meet are, and what becomes of them |
//! | `levels`, `leaves` | copying rows of one leaf |
//! | `group` | one row group, all leaves |
//! | `pool` | the threads |
//!
//! Three row groups are under way at a time: one is fetched and planned, one encoded, one uploaded. What they hold is limited by
//! [`Settings::memory_bytes`]: windows by their compressed bytes, row groups by those and by what their largest leaf takes in memory, and
//! decoded dictionaries that wait for the next row group by their bytes. A single row larger than that is taken as it is.
//!
//! Row groups are cut at about [`ROW_GROUP_BYTES`], far below Tempo's estimate, because a look-up reads the ids of one.

mod budget;
mod combine;
mod facts;
mod group;
mod leaves;
mod levels;
mod plan;
mod pool;
mod roles;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _,
    future::{try_join, try_join_all},
    stream,
};

use self::{
    budget::Budget,
    group::{Counts, Encoded, Job},
    leaves::Failure,
    plan::{Cost, Halt, Plan, Queue, extend},
    pool::Pool,
    roles::Roles,
    source::{Allowance, Source, Window},
};
use super::{
    BlockError, DedicatedColumn, Format, Meta, Reader, bloom, chain,
    encode::created_by,
    file::FileWriter,
    pages::ColumnError,
    reader::{DATA, failed},
};
use crate::{
    backend::{CONCURRENCY, Expected, Store, StoreError, Upload},
    id::{BlockId, TraceId},
};

/// Compressed bytes of a row group of the output, about.
pub const ROW_GROUP_BYTES: u64 = 4 << 20;

/// How a merge is written.
#[derive(Clone, Debug)]
pub struct Settings {
    /// False-positive rate and shard size of the bloom filters, and row group size; version and dedicated columns are those of the inputs.
    pub block: super::Settings,
    /// Largest Σ over the rows of one trace (per leaf value 1, plus the length of byte arrays) that is combined; 0: no limit
    /// (block-format.md §13.3).
    pub max_bytes_per_trace: usize,
    /// Resident bytes that the merge may take, about; more if the dictionaries of the inputs' row groups alone take half of them.
    pub memory_bytes: usize,
    /// Threads that encode; fewer if there is too little memory for so many.
    pub threads: usize,
}

/// What a merge did. The output's objects are in the bucket, all but `meta.json`.
#[derive(Clone, Debug)]
pub struct Merged {
    /// Description of the output, to be published.
    pub meta: Meta,
    /// Rows that were combined from several.
    pub objects_combined: u64,
    /// Spans that were dropped because another input had them.
    pub spans_combined: u64,
    /// Spans that were discarded because their trace grew too large.
    pub spans_discarded: u64,
}

/// Merges blocks of one tenant, version and list of dedicated columns into the block `output`, whose `meta.json` is not written.
///
/// Deterministic: the same inputs in the same order and the same settings give the same bytes.
///
/// # Errors
/// An input cannot be read, or the bucket refused the output; what was written of it stays as garbage without a `meta.json`. Inputs that
/// do not belong together.
pub async fn merge(store: &Store, inputs: &[Arc<Meta>], output: BlockId, settings: &Settings) -> Result<Merged, BlockError> {
    let settings = &Settings { threads: budget::threads(settings), ..settings.clone() };
    let (first, format) = check(inputs, output)?;
    let readers = try_join_all(inputs.iter().map(|meta| Reader::open(store, Arc::clone(meta)))).await?;
    let dedicated_columns = columns_of_all(&readers, output)?;
    let roles = Arc::new(Roles::of(format, &dedicated_columns));
    let expected = Expected {
        bytes: inputs.iter().map(|meta| meta.size).fold(0, u64::saturating_add),
        memory: settings.memory_bytes as u64 / budget::UPLOAD,
    };
    let mut upload = store.upload_of(&first.tenant_id, output, DATA, expected);
    let budget = Budget::new(settings, upload.most(), readers.iter().map(|reader| &**reader.footer()));
    let leaves = roles.schema.leaves.len();
    let allowance = Arc::new(Allowance::new(budget.dictionaries));
    let source = |reader| Source::new(store, reader, leaves, roles.trace_id, budget.window, Arc::clone(&allowance));
    let sources = readers.into_iter().map(source).collect();
    let mut input = Input { sources, queues: inputs.iter().map(|_| Queue::default()).collect(), limit: budget.row_group };
    let mut written = Written {
        format,
        meta: Meta {
            block_id: output,
            start_time: inputs.iter().map(|meta| meta.start_time).filter(|&time| time != Meta::NO_TIME).min().unwrap_or(Meta::NO_TIME),
            end_time: inputs.iter().map(|meta| meta.end_time).max().unwrap_or(Meta::NO_TIME),
            total_objects: 0,
            compaction_level: inputs.iter().map(|meta| meta.compaction_level).max().unwrap_or(0).saturating_add(1),
            index_page_size: 0,
            dedicated_columns,
            compacted_from: inputs.iter().map(|meta| meta.block_id).collect(),
            created_at: Meta::created_at_of_all(inputs.iter().map(Arc::as_ref)),
            ..Meta::clone(first)
        },
        file: FileWriter::new(Arc::clone(&roles.schema)),
        blooms: bloom::Builder::new(
            settings.block.bloom_filter_false_positive,
            settings.block.bloom_filter_shard_size_bytes,
            inputs.iter().map(|meta| meta.total_objects).fold(0, u64::saturating_add),
        ),
        last_ids: Vec::new(),
    };
    let counts = match run(&mut input, &mut written, &mut upload, &roles, settings).await {
        Ok(counts) => counts,
        Err(error) => {
            if let Err(error) = upload.abort().await {
                tracing::warn!(tenant = %first.tenant_id, block = %output, error = chain(&error), "upload of a failed merge was not aborted");
            }
            return Err(error);
        }
    };
    let meta = written.finish(store, upload).await?;
    let Counts { objects_combined, spans_combined, spans_discarded } = counts;
    Ok(Merged { meta, objects_combined, spans_combined, spans_discarded })
}

/// The first input and the version of all.
fn check(inputs: &[Arc<Meta>], output: BlockId) -> Result<(&Arc<Meta>, Format), BlockError> {
    let Some(first) = inputs.first() else {
        let what = "there is no input".to_owned();
        return Err(BlockError::Encode { block: output, tenant: crate::id::Tenant::single(), what });
    };
    let tenant = first.tenant_id.clone();
    let Ok(format) = first.format.parse() else {
        return Err(BlockError::Unsupported { block: first.block_id, tenant, format: first.format.clone() });
    };
    let differs = |meta: &&Arc<Meta>| {
        meta.tenant_id != first.tenant_id || meta.format != first.format || meta.dedicated_columns != first.dedicated_columns
    };
    if let Some(other) = inputs.iter().find(differs) {
        let what = format!("inputs \"{}\" and \"{}\" differ in tenant, version or dedicated columns", first.block_id, other.block_id);
        return Err(BlockError::Encode { block: output, tenant, what });
    }
    Ok((first, format))
}

/// The dedicated columns that the files of all inputs have leaves for. Metas say more than that of blocks of an older release.
fn columns_of_all(readers: &[Reader], output: BlockId) -> Result<Vec<DedicatedColumn>, BlockError> {
    let Some((first, rest)) = readers.split_first() else { return Ok(Vec::new()) };
    if let Some(other) = rest.iter().find(|other| other.dedicated_columns() != first.dedicated_columns()) {
        let (a, b) = (first.meta(), other.meta());
        let what = format!("inputs \"{}\" and \"{}\" have leaves for different dedicated columns", a.block_id, b.block_id);
        return Err(BlockError::Encode { block: output, tenant: a.tenant_id.clone(), what });
    }
    Ok(first.dedicated_columns().to_vec())
}

/// Fetches and plans, encodes, and uploads row groups, each a step behind the other.
async fn run(
    input: &mut Input,
    written: &mut Written,
    upload: &mut Upload,
    roles: &Arc<Roles>,
    settings: &Settings,
) -> Result<Counts, BlockError> {
    let kept = usize::try_from(input.limit.raw).unwrap_or(usize::MAX / 2);
    let pool = Pool::start(settings.threads, kept).map_err(|failure| written.name(failure, &[]))?;
    let mut counts = Counts::default();
    let mut plan = input.next().await?;
    while let Some(current) = plan {
        let job = Arc::new(Job { roles: Arc::clone(roles), plan: current, max_bytes_per_trace: settings.max_bytes_per_trace });
        let bytes = written.file.drain();
        let encode = pool.run(Arc::clone(&job)).map(|done| done.ok_or_else(|| written.failed("a thread that merges panicked")));
        let send = upload.write(&bytes).map_err(|error| written.refused(error));
        let (following, (done, ())) = try_join(input.next(), try_join(encode, send)).await?;
        let Encoded { chunks, counts: counted } = done.map_err(|failure| written.name(failure, &job.plan.parts))?;
        written.row_group(&job.plan.ids, chunks)?;
        counts.add(counted);
        plan = following;
    }
    Ok(counts)
}

/// The inputs, and the rows of them that are at hand.
struct Input {
    sources: Vec<Source>,
    queues: Vec<Queue<Arc<Window>>>,
    limit: Cost,
}

impl Input {
    /// The next row group; none at the end of all inputs.
    async fn next(&mut self) -> Result<Option<Plan<Arc<Window>>>, BlockError> {
        let mut plan = Plan::default();
        loop {
            let starved = self.sources.iter_mut().zip(&mut self.queues).filter(|(_, queue)| queue.is_starved());
            try_join_all(starved.map(|(source, queue)| async {
                match source.next().await? {
                    Some(part) => queue.push(part),
                    None => queue.finished = true,
                }
                Ok(())
            }))
            .await?;
            match extend(&mut self.queues, &mut plan, self.limit) {
                Halt::Starved => {}
                Halt::Full => return Ok(Some(plan)),
                Halt::Finished => return Ok((!plan.ids.is_empty()).then_some(plan)),
            }
        }
    }
}

/// The output so far.
struct Written {
    format: Format,
    meta: Meta,
    file: FileWriter,
    blooms: bloom::Builder,
    /// Last id of every row group.
    last_ids: Vec<String>,
}

impl Written {
    fn failed(&self, what: impl Into<String>) -> BlockError {
        BlockError::Encode { block: self.meta.block_id, tenant: self.meta.tenant_id.clone(), what: what.into() }
    }

    fn refused(&self, source: StoreError) -> BlockError {
        failed(&self.meta, source)
    }

    fn column(&self, error: &ColumnError) -> BlockError {
        self.failed(chain(error))
    }

    /// The failure of a row group of these parts.
    fn name(&self, failure: Failure, parts: &[Arc<Window>]) -> BlockError {
        match failure {
            Failure::Part(part, what) => match parts.get(part as usize) {
                Some(window) => window.corrupt(what),
                None => self.failed(what),
            },
            Failure::Write(error) => self.column(&error),
            Failure::Thread(error) => self.failed(format!("thread: {error}")),
        }
    }

    /// Adds a row group.
    fn row_group(&mut self, ids: &[TraceId], chunks: Vec<super::pages::Chunk>) -> Result<(), BlockError> {
        self.file.reserve(chunks.iter().map(|chunk| chunk.dictionary.len() + chunk.data.len()).sum());
        let added = self.file.row_group(ids.len(), chunks.into_iter().map(Ok));
        added.map_err(|error| self.column(&error))?;
        self.meta.total_objects += ids.len() as u64;
        ids.iter().for_each(|&id| self.blooms.add(id));
        self.last_ids.extend(ids.last().map(|id| STANDARD.encode(id.0)));
        Ok(())
    }

    /// Ends the file and writes what comes behind it.
    async fn finish(self, store: &Store, mut upload: Upload) -> Result<Meta, BlockError> {
        let Self { format, mut meta, file, blooms, last_ids } = self;
        let encode = |meta: &Meta, error: &ColumnError| BlockError::Encode {
            block: meta.block_id,
            tenant: meta.tenant_id.clone(),
            what: chain(error),
        };
        let file = file.finish(&created_by(format)).map_err(|error| encode(&meta, &error))?;
        upload.write(&file.bytes).await.map_err(|error| failed(&meta, error))?;
        upload.finish().await.map_err(|error| failed(&meta, error))?;
        let blooms = blooms.finish();
        meta.size = file.size;
        meta.footer_size = file.footer as u32;
        meta.total_records = file.row_groups as u32;
        meta.bloom_shards = blooms.len() as u32;
        let put = |name: String, bytes: Bytes| {
            let meta = &meta;
            async move { store.put_named(&meta.tenant_id, meta.block_id, &name, bytes).await.map_err(|error| failed(meta, error)) }
        };
        // Collected first: a lazy closure over borrowed shards would keep callers from spawning this future.
        let blooms: Vec<_> = blooms.into_iter().enumerate().map(|(shard, bytes)| put(format!("bloom-{shard}"), bytes.into())).collect();
        stream::iter(blooms).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        let index = serde_json::json!({ "rowGroups": last_ids }).to_string();
        put("index".to_owned(), index.into()).await?;
        Ok(meta)
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.objects_combined += other.objects_combined;
        self.spans_combined += other.spans_combined;
        self.spans_discarded += other.spans_discarded;
    }
}
