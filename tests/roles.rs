//! Queries over processes: one that takes spans in, a query-frontend, two queriers.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use prost::Message as _;
use storage::id::TraceId;
use tonic::transport::Channel;

use crate::contract::protocols::tempopb::{
    QueryRangeRequest, SearchRequest, TraceByIdResponse, streaming_querier_client::StreamingQuerierClient,
};
use crate::harness::{
    client::{Client, spans},
    eventually, now_ns,
    otlp::{body, span},
    server::{Config, Server},
};

/// The processes. The frontend polls the bucket so seldom that it never hears of a new block by itself.
struct Cluster {
    all: Server,
    frontend: Server,
    queriers: Vec<Server>,
}

/// What the tests change: settings of the frontend and of the queriers, as flow mappings without braces.
#[derive(Clone, Copy, Default)]
struct Changes {
    multitenancy: bool,
    frontend: &'static str,
    querier: &'static str,
}

impl Cluster {
    async fn start(changes: Changes) -> Self {
        let config = Config { multitenancy: changes.multitenancy, ..Config::default() };
        let all = Server::start(config.clone()).await;
        let bucket = Some(all.blocks_path());
        for _ in 0..5 {
            let more = format!("target: query-frontend\nquery_frontend: {{query_end_cutoff: 0s, {}}}\n", changes.frontend).leak();
            let mut frontend = Server::prepare(Config { more, bucket: bucket.clone(), ..config.clone() });
            let worker = format!("frontend_worker: {{frontend_address: \"{}\", dns_lookup_duration: 1s}}", frontend.grpc_address());
            let more = format!(
                "target: querier\nquerier: {{{worker}, {}}}\nrubato: {{querier: {{ingester_address: \"{}\"}}}}\n",
                changes.querier,
                all.grpc_address()
            )
            .leak();
            frontend.spawn();
            let mut queriers = Vec::new();
            for _ in 0..2 {
                queriers.push(Server::start(Config { more, bucket: bucket.clone(), ..config.clone() }).await);
            }
            // Ready means that queriers are connected. It ends early if somebody took its ports.
            if frontend.wait_until_ready().await {
                return Self { all, frontend, queriers };
            }
        }
        panic!("no free ports");
    }

    fn client(&self) -> Client {
        self.frontend.client()
    }

    async fn running(&self) -> f64 {
        let mut running = 0.0;
        for querier in &self.queriers {
            running += querier.client().metric("rubato_querier_running_jobs", &[]).await;
        }
        running
    }
}

fn trace(number: u64) -> TraceId {
    TraceId((u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

/// Sends a trace of two spans, each in a request of its own.
async fn send(client: &Client, number: u64) {
    for id in 1..=2 {
        let answer = client.post_protobuf(body("shop", vec![span(trace(number), id, "sell")])).await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

/// Every span of a trace is there, once.
async fn is_whole(client: &Client, number: u64) {
    let found = client.trace(trace(number)).await.unwrap_or_else(|| panic!("trace {number} is not there"));
    let ids: Vec<_> = spans(&found).map(|span| span.span_id.clone()).collect();
    assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (2, 2), "trace {number}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_found_once_at_every_moment_by_other_processes() {
    let cluster = Cluster::start(Changes::default()).await;
    let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    // Blocks are cut every second, meanwhile.
    let sender = {
        let (client, sent, stop) = (cluster.all.client(), Arc::clone(&sent), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let next = sent.load(Ordering::SeqCst);
                send(&client, next).await;
                sent.store(next + 1, Ordering::SeqCst);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
    };
    let (one_process, client) = (cluster.all.client(), cluster.client());
    let mut checked = 0;
    eventually("several blocks while everything is looked at", || {
        checked += 1;
        let (one_process, client, sent, round) = (&one_process, &client, sent.load(Ordering::SeqCst), checked);
        async move {
            for number in (0..sent).rev().take(8).chain((0..sent).step_by(7)) {
                is_whole(client, number).await;
            }
            let found = client.search("{ name = \"sell\" } | count() = 2", 10_000).await;
            let ids: BTreeSet<_> = found.iter().map(|trace| trace["traceID"].as_str().expect("an id").to_owned()).collect();
            assert_eq!(ids.len(), found.len(), "a trace is found twice");
            for number in 0..sent {
                assert!(ids.contains(&trace(number).to_short_hex()), "trace {number} of {sent} is not found");
            }
            if let Some(number) = sent.checked_sub(1) {
                is_whole(one_process, number).await;
            }
            let blocks = one_process.metric("tempo_ingester_blocks_flushed_total", &[]).await;
            (round >= 10 && blocks >= 4.0).then_some(())
        }
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    sender.await.expect("every request is accepted");

    // Both paths say the same.
    let all: Vec<_> = one_process.search("{}", 10_000).await;
    assert_eq!(client.search("{}", 10_000).await, all);
    let tags = async |client: &Client| client.get("/api/v2/search/tag/resource.service.name/values").await.expect("an answer").json();
    assert_eq!(tags(&client).await["tagValues"], tags(&one_process).await["tagValues"]);
    let jobs = [&cluster.queriers[0], &cluster.queriers[1]];
    for querier in jobs {
        assert!(querier.client().metric("tempo_querier_worker_request_executed_total", &[]).await > 0.0, "one querier does nothing");
        // What a frontend of Tempo asks.
        let answer = querier.client().get_as(&format!("/querier/api/v2/traces/{}", trace(0)), "application/protobuf").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let found = TraceByIdResponse::decode(answer.body).expect("a message").trace.expect("a trace");
        let scopes = found.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
        assert_eq!(scopes.map(|scope| scope.spans.len()).sum::<usize>(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_querier_that_dies_costs_a_try_and_a_client_that_goes_costs_nothing() {
    let mut cluster = Cluster::start(Changes { querier: "extra_query_delay: 1s", ..Changes::default() }).await;
    for number in 0..4 {
        send(&cluster.all.client(), number).await;
    }
    let client = cluster.client();
    let expected = cluster.all.client().search("{ name = \"sell\" }", 100).await;
    assert_eq!(expected.len(), 4);

    // Until the one that was killed had a job of the query.
    let mut survivors = std::mem::take(&mut cluster.queriers);
    let mut victim = survivors.pop().expect("two queriers");
    let query = {
        let client = client.clone();
        tokio::spawn(async move { client.search("{ name = \"sell\" }", 100).await })
    };
    let mut others = Vec::new();
    eventually("the victim has a job", || {
        // Several queries, so that both have something to do.
        let client = client.clone();
        others.push(tokio::spawn(async move { client.search("{ name = \"sell\" }", 100).await }));
        let victim = victim.client();
        async move { (victim.metric("rubato_querier_running_jobs", &[]).await > 0.0).then_some(()) }
    })
    .await;
    victim.kill();
    assert_eq!(query.await.expect("an answer"), expected);
    for other in others {
        assert_eq!(other.await.expect("an answer"), expected);
    }
    assert!(client.metric("tempo_query_frontend_retries_sum", &[]).await > 0.0, "no job was tried again");
    cluster.queriers = survivors;

    // A client that goes away while its jobs run.
    let gone = {
        let client = client.clone();
        tokio::spawn(async move { client.search("{ name = \"sell\" }", 100).await })
    };
    eventually("a job runs", || async { (cluster.running().await > 0.0).then_some(()) }).await;
    gone.abort();
    eventually("the job ends everywhere", || async {
        let cancelled = client.metric("rubato_query_frontend_cancelled_jobs_total", &["stage=\"running\""]).await;
        let in_queriers = cluster.queriers[0].client().metric("rubato_querier_cancelled_jobs_total", &[]).await;
        (cancelled > 0.0 && in_queriers > 0.0 && cluster.running().await == 0.0).then_some(())
    })
    .await;
    for number in 0..4 {
        is_whole(&client, number).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_stream_through_the_frontend_also_while_a_querier_goes() {
    let mut cluster = Cluster::start(Changes { querier: "extra_query_delay: 300ms", ..Changes::default() }).await;
    for number in 0..4 {
        send(&cluster.all.client(), number).await;
    }
    let channel = Channel::from_shared(cluster.frontend.grpc_url()).expect("a URL").connect().await.expect("a connection");
    let client = StreamingQuerierClient::new(channel);
    let end = now_ns() / 1_000_000_000 + 60;
    let search = async || {
        let request = SearchRequest { query: "{ name = \"sell\" }".to_owned(), limit: 100, ..SearchRequest::default() };
        let mut stream = client.clone().search(request).await.expect("a stream").into_inner();
        let mut last = None;
        while let Some(message) = stream.message().await.expect("no error") {
            last = Some(message);
        }
        last.expect("a final message, always").traces.len()
    };
    let count = async || {
        let [start, end] = [end - 3600, end].map(|seconds| seconds * 1_000_000_000);
        let query = "{} | count_over_time()".to_owned();
        let request = QueryRangeRequest { query, start, end, step: 60_000_000_000, ..QueryRangeRequest::default() };
        let mut stream = client.clone().metrics_query_range(request).await.expect("a stream").into_inner();
        let mut last = None;
        while let Some(message) = stream.message().await.expect("no error") {
            last = Some(message);
        }
        let last = last.expect("a final message, always");
        last.series.iter().flat_map(|series| &series.samples).map(|sample| sample.value).sum::<f64>()
    };
    assert_eq!((search().await, count().await), (4, 8.0));

    // It says farewell, ends what it has begun and is given nothing any more.
    let mut leaving = cluster.queriers.pop().expect("two queriers");
    let connected = cluster.client().metric("tempo_query_frontend_connected_clients", &[]).await;
    let (found, counted, status) = tokio::join!(search(), count(), leaving.terminate());
    assert_eq!((found, counted), (4, 8.0));
    assert!(status.success(), "{status}");
    let frontend = cluster.client();
    eventually("the frontend knows that it has gone", || async {
        (frontend.metric("tempo_query_frontend_connected_clients", &[]).await < connected).then_some(())
    })
    .await;
    assert_eq!(search().await, 4, "the other goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_floods_is_refused_and_another_is_served() {
    let changes = Changes {
        multitenancy: true,
        frontend: "max_outstanding_per_tenant: 2",
        querier: "extra_query_delay: 100ms, max_concurrent_queries: 1",
    };
    let cluster = Cluster::start(changes).await;
    let (flood, other) = (cluster.client().with_tenant("flood"), cluster.client().with_tenant("other"));
    send(&cluster.all.client().with_tenant("other"), 0).await;
    let mut asked = Vec::new();
    for _ in 0..40 {
        let flood = flood.clone();
        asked.push(tokio::spawn(async move { flood.get("/api/search/tags").await.expect("an answer") }));
    }
    eventually("the flood is refused", || async {
        let refused = cluster.client().metric("tempo_query_frontend_discarded_requests_total", &["user=\"flood\""]).await;
        (refused > 0.0).then_some(())
    })
    .await;
    is_whole(&other, 0).await;
    let mut refused = 0;
    for answer in asked {
        let answer = answer.await.expect("no panic");
        match answer.status {
            200 => {}
            429 => {
                assert_eq!(answer.text(), "job queue full");
                refused += 1;
            }
            status => panic!("{status} {}", answer.text()),
        }
    }
    assert!(refused > 0);
    assert_eq!(cluster.client().metric("tempo_query_frontend_discarded_requests_total", &["user=\"other\""]).await, 0.0);
}
