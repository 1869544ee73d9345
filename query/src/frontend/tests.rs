//! Retries, cancellation and refusals of the frontend, with a runner that does what tests say.

use std::sync::atomic::{AtomicUsize, Ordering};

use storage::id::TraceId;

use super::*;
use crate::job::{TraceAnswer, TraceJob};

/// Fails so many times for a reason that passes, then answers; or never answers.
#[derive(Debug)]
struct Script {
    failures: AtomicUsize,
    is_stuck: bool,
    runs: AtomicUsize,
    dropped: Arc<AtomicUsize>,
}

impl Script {
    fn new(failures: usize, is_stuck: bool) -> Arc<Self> {
        Arc::new(Self { failures: AtomicUsize::new(failures), is_stuck, runs: AtomicUsize::new(0), dropped: Arc::default() })
    }
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Runner for Script {
    async fn run(&self, _query: QueryId, _tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        if self.is_stuck {
            let _guard = Guard(Arc::clone(&self.dropped));
            std::future::pending::<()>().await;
        }
        if self.failures.load(Ordering::SeqCst) > 0 {
            self.failures.fetch_sub(1, Ordering::SeqCst);
            return Err(QueryError::Transport { cause: "gone".to_owned() });
        }
        match job {
            Job::Trace(_) => Ok(Answer::Trace(TraceAnswer { inspected_bytes: 7, ..TraceAnswer::default() })),
            _ => Err(QueryError::TraceTooLarge { max_bytes: 1 }),
        }
    }
}

fn frontend(settings: Settings) -> Arc<Frontend> {
    Arc::new(Frontend::new(settings, None, &Registry::new()).expect("a new registry"))
}

fn job() -> Job {
    Job::Trace(TraceJob { id: TraceId([1; 16]), blocks: None, max_bytes: 0 })
}

fn work(frontend: &Arc<Frontend>, script: &Arc<Script>) -> tokio::task::JoinHandle<()> {
    let (frontend, script) = (Arc::clone(frontend), Arc::clone(script));
    tokio::spawn(async move { frontend.work(script, 4).await })
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("gave up waiting: {what}"));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_nothing_else() {
    for (failures, max_tries, runs, is_ok) in [(0, 2, 1, true), (1, 2, 2, true), (2, 2, 2, false), (2, 3, 3, true), (1, 0, 1, false)] {
        let (frontend, script) = (frontend(Settings { max_tries, ..Settings::default() }), Script::new(failures, false));
        let _worker = work(&frontend, &script);
        let outcome = frontend.run(QueryId::new(), &Tenant::single(), job()).await;
        assert_eq!((outcome.is_ok(), script.runs.load(Ordering::SeqCst)), (is_ok, runs), "{failures} failures, {max_tries} tries");
    }
}

#[tokio::test]
async fn a_batch_weighs_no_more_than_it_may_and_further_tries_weigh_more() {
    let settings = Settings { max_tries: 3, ..Settings::default() };
    let (frontend, tenant) = (frontend(settings), Tenant::single());
    let _answers: Vec<_> = [3, 3, 3, 9].map(|weight| frontend.enqueue(QueryId::new(), &tenant, job(), weight).expect("room")).into();
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let batch = frontend.next(7).await.expect("jobs wait");
        sizes.push((batch.entries.len(), batch.weight));
    }
    assert_eq!(sizes, [(2, 6), (1, 3), (1, 9)]);

    let asked = {
        let (frontend, tenant) = (Arc::clone(&frontend), tenant.clone());
        tokio::spawn(async move { frontend.run(QueryId::new(), &tenant, job()).await.is_ok() })
    };
    for weight in [2, 3, 4] {
        let batch = frontend.next(7).await.expect("a job waits");
        assert_eq!(batch.weight, weight);
        // Dropped without an answer, as when its worker goes away.
    }
    assert!(!asked.await.expect("no panic"));
}

#[tokio::test]
async fn who_goes_cancels_what_waits_and_what_runs() {
    let (frontend, script) = (frontend(Settings::default()), Script::new(0, true));
    let tenant = Tenant::single();
    let waiting = {
        let (frontend, tenant) = (Arc::clone(&frontend), tenant.clone());
        tokio::spawn(async move { frontend.run(QueryId::new(), &tenant, job()).await.is_ok() })
    };
    until("a job waits", || frontend.metrics.queue_length.with_label_values(&[tenant.as_str()]).get() == 1).await;
    waiting.abort();
    assert!(waiting.await.is_err());
    let worker = work(&frontend, &script);
    let running = {
        let (frontend, tenant) = (Arc::clone(&frontend), tenant.clone());
        tokio::spawn(async move { frontend.run(QueryId::new(), &tenant, job()).await.is_ok() })
    };
    until("the second job runs", || frontend.metrics.running.get() == 1).await;
    assert_eq!(script.runs.load(Ordering::SeqCst), 1, "the first one never ran");
    running.abort();
    until("the running job is dropped", || script.dropped.load(Ordering::SeqCst) == 1 && frontend.metrics.running.get() == 0).await;
    let cancelled = |stage| frontend.metrics.cancelled.with_label_values(&[stage]).get();
    until("both are counted", || (cancelled("queued"), cancelled("running")) == (1, 1)).await;
    frontend.close();
    worker.await.expect("the workers end");
}

#[tokio::test]
async fn a_full_queue_refuses_one_tenant_and_serves_another() {
    let frontend = frontend(Settings { max_outstanding_per_tenant: 3, ..Settings::default() });
    let (flood, other) = (Tenant::new("flood").expect("a tenant"), Tenant::new("other").expect("a tenant"));
    let mut waiting: Vec<_> = (0..3).map(|_| frontend.enqueue(QueryId::new(), &flood, job(), 1).expect("room")).collect();
    let refused = frontend.run(QueryId::new(), &flood, job()).await.expect_err("full");
    assert_eq!((refused.status(), refused.to_string().as_str()), (429, "job queue full"));
    assert_eq!(frontend.metrics.discarded.with_label_values(&["flood"]).get(), 1);
    let script = Script::new(0, false);
    let _worker = work(&frontend, &script);
    frontend.run(QueryId::new(), &other, job()).await.expect("served");
    for answer in &mut waiting {
        answer.await.expect("served").expect("an answer");
    }
}

#[tokio::test]
async fn a_slow_job_is_given_to_a_second_worker() {
    let frontend = frontend(Settings { hedge_after: Some(Duration::from_millis(20)), ..Settings::default() });
    let (stuck, quick) = (Script::new(0, true), Script::new(0, false));
    let first = work(&frontend, &stuck);
    let asked = {
        let frontend = Arc::clone(&frontend);
        tokio::spawn(async move { frontend.run(QueryId::new(), &Tenant::single(), job()).await.is_ok() })
    };
    until("it is stuck", || stuck.runs.load(Ordering::SeqCst) >= 1).await;
    let second = work(&frontend, &quick);
    until("somebody else answers, or it is stuck twice", || asked.is_finished() || stuck.runs.load(Ordering::SeqCst) == 2).await;
    if stuck.runs.load(Ordering::SeqCst) == 1 {
        assert!(asked.await.expect("no panic"));
        until("the stuck one is dropped", || stuck.dropped.load(Ordering::SeqCst) == 1).await;
    }
    first.abort();
    second.abort();
}
