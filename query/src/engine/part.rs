//! Engines that answer from a part of all data, for frontends that cut queries themselves, as Tempo's do.
//!
//! ```text
//!  Engine ── about(Part) ──► Engine ─► jobs ─► OfPart ─► Runner
//!              list of blocks that        │
//!              belong to the part         └─ answers jobs outside of the part with nothing
//! ```

use std::{ops::RangeInclusive, sync::Arc};

use async_trait::async_trait;
use prometheus::Registry;
use storage::{
    blocklist::Blocklist,
    id::{BlockId, Tenant},
};

use super::{Engine, QueryError};
use crate::{
    job::{Answer, BlockPart, CandidatesAnswer, Job, MetricsAnswer, Place, QueryId, Runner, TagsAnswer, TraceAnswer},
    metrics::Metrics,
};

/// What a part of a query is about.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// Recent data, and the blocks that it became lately.
    Recent,
    /// Some row groups of one block.
    RowGroups(BlockPart),
    /// All blocks with ids between two.
    Blocks(RangeInclusive<BlockId>),
    /// Those, and recent data.
    RecentAndBlocks(RangeInclusive<BlockId>),
}

impl Engine {
    /// An engine that counts its queries where nobody looks: they are parts of queries that somebody else counts.
    ///
    /// # Errors
    /// None in practice: the registry is new.
    pub(crate) fn uncounted(&self) -> prometheus::Result<Self> {
        Ok(Self { metrics: Arc::new(Metrics::new(&Registry::new())?), ..self.clone() })
    }

    /// An engine that knows nothing but a part of the data.
    pub(crate) fn about(&self, part: Part) -> Self {
        let mut engine = self.clone();
        engine.settings.external_traces = false;
        match &part {
            Part::Recent => engine.blocklist = Blocklist::new(),
            Part::RowGroups(part) => {
                engine.blocklist = Blocklist::new();
                engine.blocklist.add(part.meta.as_ref().clone());
            }
            Part::Blocks(ids) | Part::RecentAndBlocks(ids) => engine.ids = Some(ids.clone()),
        }
        engine.runner = Arc::new(OfPart { part, inner: Arc::clone(&self.runner) });
        engine
    }
}

/// Runs jobs as far as they are about a part.
#[derive(Debug)]
struct OfPart {
    part: Part,
    inner: Arc<dyn Runner>,
}

impl OfPart {
    /// What is left of a job; nothing if it is all outside of the part.
    fn within(&self, mut job: Job) -> Result<Job, Answer> {
        let has_recent = matches!(self.part, Part::Recent | Part::RecentAndBlocks(_));
        if job.is_recent() && !has_recent {
            return Err(nothing(&job));
        }
        if let Part::RowGroups(wanted) = &self.part
            && let Some(Place::RowGroups(part)) = job.place_mut()
        {
            let row_groups = part.row_groups.start.max(wanted.row_groups.start)..part.row_groups.end.min(wanted.row_groups.end);
            if row_groups.is_empty() {
                return Err(nothing(&job));
            }
            part.row_groups = row_groups;
        }
        Ok(job)
    }
}

#[async_trait]
impl Runner for OfPart {
    async fn run(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        match self.within(job) {
            Ok(job) => self.inner.run(query, tenant, job).await,
            Err(nothing) => Ok(nothing),
        }
    }
}

/// The answer of a job that finds nothing.
fn nothing(job: &Job) -> Answer {
    match job {
        Job::Trace(_) | Job::ExternalTrace(_) => Answer::Trace(TraceAnswer::default()),
        Job::Candidates(_) => Answer::Candidates(CandidatesAnswer::default()),
        Job::Examine(_) => Answer::Examined(crate::job::ExaminedAnswer::default()),
        Job::Tags(_) => Answer::Tags(TagsAnswer::default()),
        Job::Metrics(_) => Answer::Metrics(MetricsAnswer::default()),
    }
}
