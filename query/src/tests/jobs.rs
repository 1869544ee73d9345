//! However a query is cut into jobs, and wherever they run, its answer is the same.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{
    QueryError, RecentSource, Units,
    engine::Streaming,
    frontend::{self, Frontend},
    job::{self, Answer, Job, Place, QueryId, Runner},
};

/// Sends every job and what became of it through their encodings, and counts them.
#[derive(Debug)]
struct Wire {
    units: Units,
    jobs: AtomicUsize,
}

#[async_trait]
impl Runner for Wire {
    async fn run(&self, query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        self.jobs.fetch_add(1, Ordering::SeqCst);
        let arrived = Job::decode(&job.encode()).expect("a job of this release");
        assert_eq!(arrived, cut_description(job));
        let outcome = self.units.run(query, tenant, arrived).await;
        let there = job::decode_outcome(&job::encode_outcome(&outcome));
        if let (Ok(outcome), Ok(there)) = (&outcome, &there)
            && outcome.recent().is_none_or(|recent| recent.published.is_empty())
        {
            assert_eq!(outcome, there);
        }
        there
    }
}

/// A job without what does not travel: parts of the descriptions of blocks that reading does not need.
fn cut_description(mut job: Job) -> Job {
    let cut = |meta: &Arc<Meta>| {
        let meta = Meta { compaction_level: 0, index_page_size: 0, compacted_from: Vec::new(), created_at: None, ..Meta::clone(meta) };
        Arc::new(meta)
    };
    match &mut job {
        Job::Trace(job) => job.blocks.iter_mut().flatten().for_each(|meta| *meta = cut(meta)),
        Job::Examine(job) => job.blocks.iter_mut().for_each(|meta| *meta = cut(meta)),
        Job::Candidates(job::CandidatesJob { place: Place::RowGroups(part), .. })
        | Job::Tags(job::TagsJob { place: Place::RowGroups(part), .. }) => part.meta = cut(&part.meta),
        _ => {}
    }
    job
}

impl World {
    pub(super) fn units(&self) -> Units {
        let recent: Arc<dyn Recent> = Arc::<FakeRecent>::clone(&self.recent);
        Units::new(&self.settings, self.store.clone(), None, RecentSource::Here(recent), &Registry::new()).expect("metrics are new")
    }

    pub(super) fn engine(&self, runner: Arc<dyn Runner>) -> Arc<Engine> {
        let (blocklist, clock) = (self.blocklist.clone(), Arc::new(self.clock.clone()));
        let engine = Engine::over(runner, self.settings.clone(), blocklist, clock, &Registry::new()).expect("metrics are new");
        Arc::new(engine.with_overrides(Arc::new(self.limits)))
    }
}

/// Traces of one to three spans, in blocks of several row groups and in recent data.
async fn populated(settings: Settings) -> World {
    let mut world = World::new();
    world.settings = settings;
    world.block.row_group_size_bytes = 2_000;
    let tenant = Tenant::single();
    for block in 0..4u128 {
        let spans = (0..40u128).flat_map(|trace| {
            let id = block * 30 + trace;
            (0..=trace as u64 % 3).map(move |span_id| {
                let mut span = span(id + 1, span_id + 1, span_id, &format!("name-{}", id % 7), 100 + (id as u64 * 37) % 900);
                span.attributes = vec![attribute("n", Value::IntValue(id as i64)), attribute(&format!("key-{}", id % 11), text("x"))];
                service(&format!("service-{}", id % 5), vec![span])
            })
        });
        let spans = spans.collect();
        if block == 3 { world.receive(&tenant, spans) } else { world.cut(&tenant, spans).await }
    }
    world
}

async fn answers(router: &Router) -> Vec<serde_json::Value> {
    let mut answers = Vec::new();
    for url in [
        format!("/api/search?limit=30&spss=5&q={}", encoded("{ name =~ \"name-[1-5]\" } | count() > 1")),
        format!("/api/search?limit=500&q={}", encoded("{ span.n > 20 } | by(resource.service.name)")),
        format!("/api/search?limit=7&q={}", encoded("{ } | count() < 2")),
        "/api/search?tags=service.name%3Dservice-2&limit=9".to_owned(),
        "/api/v2/search/tags".to_owned(),
        "/api/v2/search/tags?limit=4".to_owned(),
        "/api/v2/search/tag/span.n/values?limit=17".to_owned(),
        format!("/api/v2/search/tag/name/values?q={}", encoded("{ resource.service.name = \"service-1\" && span.n < 90 }")),
        "/api/v2/traces/21".to_owned(),
        "/api/v2/traces/ffff".to_owned(),
    ] {
        let mut answer = get(router, &url).await.json();
        answer.as_object_mut().expect("an object").remove("metrics");
        answers.push(answer);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn however_queries_are_cut_and_wherever_jobs_run_the_answers_are_the_same() {
    let whole = populated(Settings { target_bytes_per_job: 0, ..Settings::default() }).await;
    let expected = answers(&whole.router()).await;
    assert!(expected[0]["traces"].as_array().is_some_and(|traces| traces.len() == 30), "{}", expected[0]);
    for (target_bytes_per_job, concurrent_jobs, trace_shards) in [(1, 1, 2), (1, 1000, 50), (5_000, 3, 3)] {
        let settings = Settings { target_bytes_per_job, concurrent_jobs, trace_shards, ..Settings::default() };
        let world = populated(settings).await;
        assert_eq!(answers(&world.router()).await, expected, "here, {target_bytes_per_job} bytes");

        let wire = Arc::new(Wire { units: world.units(), jobs: AtomicUsize::new(0) });
        let frontend = Arc::new(Frontend::new(frontend::Settings::default(), None, &Registry::new()).expect("metrics are new"));
        let worker = {
            let (frontend, wire) = (Arc::clone(&frontend), Arc::<Wire>::clone(&wire));
            tokio::spawn(async move { frontend.work(wire, 8).await })
        };
        let router = router(world.engine(Arc::<Frontend>::clone(&frontend) as Arc<dyn Runner>), world.api.clone());
        assert_eq!(answers(&router).await, expected, "over the wire, {target_bytes_per_job} bytes");
        assert!(wire.jobs.load(Ordering::SeqCst) > 30, "blocks of several row groups make several jobs");
        frontend.close();
        worker.await.expect("workers end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_streamed_ends_with_the_whole_answer() {
    use futures::StreamExt as _;

    async fn collect<T>(stream: Streaming<T>) -> Vec<T>
    where
        T: Send + 'static,
    {
        stream.map(|message| message.expect("an answer")).collect().await
    }

    let world = populated(Settings { target_bytes_per_job: 1, ..Settings::default() }).await;
    let engine = world.engine(Arc::new(world.units()));
    let tenants = vec![Tenant::single()];
    let request = crate::engine::SearchRequest {
        condition: crate::engine::Condition::TraceQl(crate::traceql::parse("{ name != \"name-3\" }").expect("legal")),
        range: None,
        limit: 40,
        spans_per_spanset: 3,
    };
    let expected = engine.search(&tenants, request.clone()).await.expect("an answer");
    let mut messages = collect(engine.search_stream(tenants.clone(), request, Duration::ZERO)).await;
    let last = messages.pop().expect("a last message");
    assert_eq!(last.traces, expected.traces);
    let mut seen = std::collections::HashSet::new();
    for trace in messages.iter().flat_map(|message| &message.traces) {
        assert!(seen.insert(trace.trace_id.clone()), "a trace comes once before the last message");
        if let Some(same) = expected.traces.iter().find(|same| same.trace_id == trace.trace_id) {
            assert_eq!(same, trace, "what is said of a trace is final");
        }
    }
    assert!(!seen.is_empty(), "something came before the end");

    let request = crate::engine::NamesRequest { scope: None, filter: None, range: None, max_per_scope: 0, max_stale: 0 };
    let expected = engine.tag_names(&tenants, request.clone()).await.expect("an answer");
    let mut messages = collect(engine.tag_names_stream(tenants, request, Duration::ZERO)).await;
    assert_eq!(messages.pop().expect("a last message"), expected);
}
