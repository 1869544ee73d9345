//! Answers of jobs that are kept: those that can never change.
//!
//! A job on row groups of a block has the same answer for ever, as long as what it depends on is in its key. A search, a tag query or a metrics
//! query has a time range, which is not in the key, so that a range that moves on finds the answers for older blocks again; hence only blocks
//! that lie within the range, strictly, are cached: of those the range takes nothing away. Jobs about recent data are never cached, nor are
//! those of a search by tags, nor those that leave something out because of what other jobs found.

use std::fmt::{self, Write as _};

use bytes::Bytes;
use storage::{
    block::Meta,
    cache::{Cache, Role},
    id::Tenant,
};

use crate::{
    engine::{Condition, QueryError, TimeRange},
    job::{Answer, BlockPart, Job, Wanted, decode_outcome, encode_outcome},
};

/// Where the answer of a job may be cached; `None` for one that must not be.
pub(crate) fn key(tenant: &Tenant, job: &Job) -> Option<String> {
    let mut hash = Fnv::default();
    let (prefix, part) = match job {
        Job::Candidates(job) => {
            let Condition::TraceQl(query) = &job.search.condition else { return None };
            let part = job.place.block()?;
            // With a floor or known traces the answer is only good for one search.
            if job.floor > 0 || !job.known.is_empty() || !is_within(part, job.search.range?) {
                return None;
            }
            _ = write!(hash, "{query}\0{}", job.limit);
            ("sj", part)
        }
        Job::Tags(job) => {
            let part = job.place.block()?;
            let bounds = job.bounds;
            _ = match &job.wanted {
                Wanted::Names(scope) => write!(hash, "names\0{scope:?}"),
                Wanted::Values(tag) => write!(hash, "values\0{tag:?}"),
            };
            if let Some(filter) = &job.filter {
                _ = write!(hash, "\0{filter}");
            }
            _ = write!(hash, "\0{bounds:?}");
            (if matches!(job.wanted, Wanted::Names(_)) { "st" } else { "stv" }, part)
        }
        // Intervals are part of the answer, so the range is part of the key: that of the block, where the block lies within what was asked for.
        Job::Metrics(job) => {
            let part = job.place.block()?;
            _ = write!(hash, "{}\0{:?}\0{:?}", job.request.query(), job.request.asked(), job.request.limits());
            ("qr", part)
        }
        Job::Trace(_) | Job::ExternalTrace(_) | Job::Examine(_) => return None,
    };
    let groups = part.row_groups.end - part.row_groups.start;
    Some(format!("{prefix}:{}:{:x}:{}:{}:{groups}", tenant.as_str(), hash.0, part.meta.block_id, part.row_groups.start))
}

/// Whether a block lies within a range, so that the range excludes nothing of it.
fn is_within(part: &BlockPart, range: TimeRange) -> bool {
    let meta: &Meta = &part.meta;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    range.start < seconds(meta.start_time) && range.end > seconds(meta.end_time)
}

/// What is cached of a job. It cost nothing this time.
pub(crate) async fn get(cache: &Cache, key: &str) -> Option<Answer> {
    let bytes = cache.get(Role::FrontendSearch, &[key.to_owned()]).await.pop()??;
    let mut answer = decode_outcome(&bytes).ok()?;
    answer.forget_cost();
    Some(answer)
}

/// Caches what came of a job, if it is an answer.
pub(crate) fn put(cache: &Cache, key: String, outcome: &Result<Answer, QueryError>) {
    if outcome.is_ok() {
        cache.put(Role::FrontendSearch, key, Bytes::from(encode_outcome(outcome)));
    }
}

/// FNV-1a with 64 bits, as Tempo's keys have it.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use storage::id::{BlockId, TraceId};

    use super::*;
    use crate::{
        engine::SearchRequest,
        job::{CandidatesJob, Place},
        traceql,
        traceql_metrics::{Asked, MetricsLimits, MetricsRequest},
    };

    #[test]
    fn a_range_that_moves_on_asks_old_blocks_the_same() {
        const SECOND: u64 = 1_000_000_000;
        let query = Arc::new(traceql::parse("{} | rate() by (name)").expect("legal"));
        let asked = |query: &Arc<traceql::Query>, start: u64, end: u64, step: u64| {
            let asked = Asked { start: start * SECOND, end: end * SECOND, step: Some(step * SECOND), ..Asked::default() };
            MetricsRequest::new(Arc::clone(query), asked, MetricsLimits::default()).expect("valid")
        };
        let of_block = |request: &MetricsRequest| request.within(10_007 * SECOND, 10_300 * SECOND + 999_999_999);
        let first = of_block(&asked(&query, 9_000, 12_000, 15)).expect("it lies within");
        assert_eq!(of_block(&asked(&query, 9_021, 12_098, 15)).expect("it lies within"), first);
        assert_ne!(of_block(&asked(&query, 9_000, 12_000, 30)).expect("it lies within"), first);
        for (start, end) in [(10_100, 12_000), (9_000, 10_100)] {
            assert_eq!(of_block(&asked(&query, start, end, 15)), None, "of this one the range takes a part");
        }
        let instant = |start: u64, end: u64| {
            let asked = Asked { start: start * SECOND, end: end * SECOND, instant: true, ..Asked::default() };
            MetricsRequest::new(Arc::clone(&query), asked, MetricsLimits::default()).expect("valid")
        };
        let first = of_block(&instant(9_000, 12_000)).expect("it lies within");
        assert_eq!(of_block(&instant(9_021, 12_098)).expect("it lies within"), first);
        assert_eq!(of_block(&instant(10_100, 12_000)), None, "of this one the range takes a part");
        let compare = Arc::new(traceql::parse("{} | compare({ status = error })").expect("legal"));
        assert_eq!(of_block(&asked(&compare, 9_000, 12_000, 15)), None, "what it keeps depends on the number of intervals");
    }

    #[test]
    fn only_what_cannot_change_is_cached() {
        let tenant = Tenant::single();
        let json = format!(
            r#"{{"format":"vParquet4","blockID":"{}","tenantID":"single-tenant","size":10,"totalRecords":1,
                "startTime":"2023-11-14T22:13:20Z","endTime":"2023-11-14T22:13:30Z"}}"#,
            BlockId::from_u128(7)
        );
        let meta = Arc::new(Meta::from_json(json.as_bytes()).expect("a description"));
        let job = |query: &str, start: u64, end: u64, floor: u64, known: &[u8], place: Option<BlockPart>| {
            let search = SearchRequest {
                condition: Condition::TraceQl(traceql::parse(query).expect("legal")),
                range: Some(TimeRange { start, end }),
                limit: 20,
                spans_per_spanset: 3,
            };
            let known: HashSet<_> = known.iter().map(|id| TraceId([*id; 16])).collect();
            let place = place.map_or(Place::Recent, Place::RowGroups);
            key(&tenant, &Job::Candidates(CandidatesJob { search: Arc::new(search), place, known: Arc::new(known), floor, limit: 20 }))
        };
        let whole = || Some(BlockPart::whole(Arc::clone(&meta)));
        let (before, after) = (1_699_999_999, 1_700_000_011);
        let cached = job("{ .a = 1 }", before, after, 0, &[], whole()).expect("it can be cached");
        assert!(
            cached.starts_with("sj:single-tenant:") && cached.ends_with(&format!(":{}:0:{}", BlockId::from_u128(7), u32::MAX)),
            "{cached}"
        );
        assert_eq!(job("{.a=1}", before - 100, after + 5, 0, &[], whole()), Some(cached.clone()), "text and range do not matter");
        assert_ne!(job("{ .a = 2 }", before, after, 0, &[], whole()), Some(cached));
        for (start, end, floor, known, place) in [
            (before + 1, after, 0, &[][..], whole()),
            (before, after - 1, 0, &[], whole()),
            (before, after, 1, &[], whole()),
            (before, after, 0, &[1], whole()),
            (before, after, 0, &[], None),
        ] {
            assert_eq!(job("{ .a = 1 }", start, end, floor, known, place), None);
        }
    }
}
