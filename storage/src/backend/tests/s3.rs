//! The S3 backend against a real server, well and with faults.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::path::Path;
use prometheus::Registry;

use super::{
    super::{Components, Requests, S3, Settings, Store, StoreError, open},
    PART, conformance,
    conformance::{LARGE, noise, tenant},
    server::{ACCESS_KEY, BUCKET, Fault, SECRET_KEY, Server},
};
use crate::id::BlockId;

struct Setup {
    server: Server,
    store: Store,
    registry: Registry,
    _folder: tempfile::TempDir,
}

fn settings(server: &Server) -> S3 {
    S3 {
        bucket: BUCKET.to_owned(),
        endpoint: server.address.to_string(),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.into(),
        insecure: true,
        part_size: PART,
        list_blocks_concurrency: 3,
        requests: Requests {
            attempts: 4,
            backoff_initial: Duration::from_millis(2),
            backoff_max: Duration::from_millis(4),
            ..Requests::default()
        },
        ..S3::default()
    }
}

async fn open_with(settings: S3, registry: &Registry) -> Store {
    let components = Components { registry, seed: 7, env: &|_| None };
    open(&Settings::S3(Box::new(settings)), components).await.expect("open")
}

async fn setup(change: impl FnOnce(&mut S3)) -> Setup {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start(folder.path().to_owned()).await;
    let mut settings = settings(&server);
    change(&mut settings);
    let registry = Registry::new();
    let store = open_with(settings, &registry).await;
    Setup { server, store, registry, _folder: folder }
}

impl Setup {
    /// The value of a counter, or of how often a histogram observed, over all labels that contain a text.
    fn metric(&self, name: &str, label: &str) -> u64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        let matching = metrics.filter(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label));
        matching.map(|metric| metric.get_counter().get_value() as u64 + metric.get_histogram().get_sample_count()).sum()
    }
}

fn cause(error: &StoreError) -> String {
    format!("{:#}", Chain(error))
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        self.0.source().map_or(Ok(()), |source| write!(f, ": {}", Chain(source)))
    }
}

#[tokio::test]
async fn s3_conforms() {
    let setup = setup(|_| {}).await;
    conformance::all(|prefix| Store { prefix: Path::parse(prefix).expect("a prefix"), ..setup.store.clone() }).await;
    assert_eq!(setup.metric("rubato_backend_retries_total", ""), 0);
    assert!(setup.metric("tempodb_backend_request_duration_seconds", "PUT") > 20);
    assert!(setup.metric("tempodb_backend_request_duration_seconds", "404") > 5);
}

#[tokio::test]
async fn a_wrong_key_is_named_and_not_tried_again() {
    for (access, secret) in [(ACCESS_KEY, "wrong-secret"), ("nobody", SECRET_KEY)] {
        let setup = setup(|settings| (settings.access_key, settings.secret_key) = (access.to_owned(), secret.into())).await;
        let error = setup.store.tenants().await.expect_err("refused");
        let text = cause(&error);
        assert!(text.contains("SignatureDoesNotMatch") || text.contains("NotSignedUp"), "{text}");
        assert_eq!(text.matches("403 Forbidden").count(), 1, "said once: {text}");
        assert!(!text.contains(secret) && !format!("{error:?}").contains(secret), "{text}");
        assert_eq!(setup.server.seen().len(), 1, "{:?}", setup.server.seen());
    }
}

#[tokio::test]
async fn a_missing_bucket_is_named() {
    let setup = setup(|settings| settings.bucket = "absent".to_owned()).await;
    let text = cause(&setup.store.tenants().await.expect_err("refused"));
    assert!(text.contains("NoSuchBucket") && text.contains("absent"), "{text}");
}

#[tokio::test]
async fn a_bucket_that_is_away_is_named_and_found_again() {
    let Setup { server, store, _folder: folder, .. } = setup(|_| {}).await;
    let address = server.address.to_string();
    store.tenants().await.expect("it is there");
    server.stop().await;
    let text = cause(&store.tenants().await.expect_err("away"));
    assert!(text.contains(&address) && text.to_lowercase().contains("connect"), "{text}");
    let _server = Server::start_at(folder.path().to_owned(), &address).await;
    store.tenants().await.expect("back");
}

#[tokio::test]
async fn what_fails_for_a_while_is_tried_again() {
    const BUSY: &str = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    let patient = setup(|_| {}).await;
    let hasty = setup(|settings| settings.requests.timeout = Duration::from_millis(500)).await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    let mut retries = 0;
    for fault in [
        Fault::Answer(500, ""),
        Fault::Answer(503, BUSY),
        Fault::Answer(429, ""),
        Fault::DoneBut(502),
        Fault::Refuse,
        Fault::LoseAnswer,
        Fault::Silence,
    ] {
        for (method, contains) in [("PUT", "data.parquet"), ("GET", "data.parquet"), ("GET", "list-type"), ("DELETE", "data.parquet")] {
            let silent = matches!(fault, Fault::Silence);
            let setup = if silent { &hasty } else { &patient };
            setup.server.reset();
            setup.server.fault(method, contains, 2, fault);
            setup.store.put_named(&tenant, id, "data.parquet", Bytes::from_static(b"data")).await.expect("put");
            assert_eq!(setup.store.get(&tenant, id, "data.parquet").await.expect("get"), "data");
            assert_eq!(setup.store.listing(&tenant).await.expect("list").objects, 1);
            setup.store.delete_named(&tenant, id, "data.parquet").await.expect("delete");
            let asked = setup.server.count(method, contains);
            // A machine under load may be silent of its own accord.
            assert!(asked == 3 || (silent && asked > 3), "{fault:?} of {method}: {:?}", setup.server.seen());
            retries += if silent { 0 } else { 2 };
        }
    }
    assert_eq!(patient.metric("rubato_backend_retries_total", ""), retries);
    assert!(hasty.metric("rubato_backend_request_failures_total", "timeout") >= 8);
}

#[tokio::test]
async fn what_keeps_failing_is_given_up() {
    let setup = setup(|_| {}).await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    setup.server.fault("PUT", "", usize::MAX, Fault::Answer(500, "out of order"));
    let text = cause(&setup.store.put_named(&tenant, id, "x", Bytes::new()).await.expect_err("broken"));
    assert!(text.starts_with(&format!("put \"a/{id}/x\"")) && text.contains("500") && text.contains("out of order"), "{text}");
    assert_eq!(setup.server.seen().len(), 4, "attempts");
    setup.server.reset();
    setup.server.fault("PUT", "", usize::MAX, Fault::Answer(403, "no"));
    setup.store.put_named(&tenant, id, "x", Bytes::new()).await.expect_err("not allowed");
    assert_eq!(setup.server.seen().len(), 1, "the answer would be the same");
}

#[tokio::test]
async fn a_broken_bucket_is_not_hammered() {
    let setup = setup(|_| {}).await;
    setup.server.fault("", "", usize::MAX, Fault::Answer(503, ""));
    let store = &setup.store;
    let asked = 500;
    let failures =
        futures::stream::iter(0..asked).map(|_| store.tenants()).buffer_unordered(8).filter(|answer| std::future::ready(answer.is_err()));
    assert_eq!(failures.count().await, asked);
    assert_eq!(setup.server.seen().len(), asked + 100, "each was asked once, and a hundred retries were spent");
    assert!(setup.metric("rubato_backend_retries_refused_total", "") > 0);
    setup.server.reset();
    store.tenants().await.expect("well again");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_completed() {
    let setup = setup(|settings| settings.requests.timeout = Duration::from_millis(500)).await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    let content = noise(1 << 20);
    setup.store.put_named(&tenant, id, "data.parquet", content.clone()).await.expect("put");
    let at = [0, 1, 4096, 500_000, (1 << 20) - 1];
    for fault in at.map(Fault::CutBody).into_iter().chain(at.map(Fault::StallBody)) {
        setup.server.reset();
        setup.server.fault("GET", "data.parquet", 2, fault);
        assert_eq!(setup.store.get(&tenant, id, "data.parquet").await.expect("get"), content, "{fault:?}");
        let asked = setup.server.count("GET", "data.parquet");
        assert!(asked >= 2, "{fault:?}: {asked}");
        setup.server.reset();
        setup.server.fault("GET", "data.parquet", 1, fault);
        let got = setup.store.get_ranges(&tenant, id, "data.parquet", &[300_000..900_000, 10..20]).await.expect("ranges");
        assert_eq!((&got[0], &got[1]), (&content.slice(300_000..900_000), &content.slice(10..20)), "{fault:?}");
    }
    setup.server.reset();
    setup.server.fault("GET", "data.parquet", usize::MAX, Fault::StallBody(10));
    let error = setup.store.get(&tenant, id, "data.parquet").await.expect_err("ten bytes at a time are too few");
    assert!(cause(&error).contains("data.parquet"), "{error}");
    let asked = setup.server.count("GET", "data.parquet");
    assert!((4..=16).contains(&asked), "attempts of the body, each with those of its requests: {asked}");
}

#[tokio::test]
async fn a_listing_that_breaks_off_is_asked_again() {
    let setup = setup(|_| {}).await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    setup.store.put_named(&tenant, id, "meta.json", Bytes::from_static(b"{}")).await.expect("put");
    setup.server.fault("GET", "list-type", 2, Fault::CutBody(100));
    assert_eq!(setup.store.listing(&tenant).await.expect("listing").live, [id]);
    assert_eq!(setup.server.count("GET", "list-type"), 3);
}

#[tokio::test]
async fn an_object_replaced_while_it_is_read_is_an_error() {
    let setup = setup(|settings| settings.requests.timeout = Duration::from_millis(300)).await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    setup.store.put_named(&tenant, id, "index", noise(100_000)).await.expect("put");
    setup.server.fault("GET", "index", 1, Fault::StallBody(50_000));
    let path = setup.store.object_path(&tenant, id, "index");
    let mut body = setup.store.objects.get_opts(&path, object_store::GetOptions::default()).await.expect("get").into_stream();
    assert!(body.next().await.expect("a piece").is_ok());
    setup.store.put_named(&tenant, id, "index", noise(100_001)).await.expect("put");
    let rest: Vec<_> = body.collect().await;
    let error = rest.into_iter().find_map(Result::err).expect("half of one and half of the other is neither");
    assert!(error.to_string().contains("replaced"), "{error}");
}

#[tokio::test]
async fn parts_that_fail_are_sent_again() {
    for (method, contains, fault) in [
        ("POST", "uploads", Fault::Answer(500, "")),
        ("PUT", "partNumber=2", Fault::Answer(503, "")),
        ("PUT", "partNumber=1", Fault::LoseAnswer),
        ("PUT", "partNumber=3", Fault::Refuse),
        ("POST", "uploadId", Fault::Answer(500, "")),
        (
            "POST",
            "uploadId",
            Fault::Answer(200, "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"),
        ),
    ] {
        let setup = setup(|_| {}).await;
        let (tenant, id) = (tenant("a"), BlockId::new_v4());
        setup.server.fault(method, contains, 2, fault);
        let mut upload = setup.store.upload(&tenant, id, "data.parquet");
        upload.write(&noise(LARGE)).await.expect("write");
        assert_eq!(upload.finish().await.expect("finish"), LARGE as u64, "{contains} {fault:?}");
        assert_eq!(setup.store.get(&tenant, id, "data.parquet").await.expect("get"), noise(LARGE), "{contains} {fault:?}");
        assert_eq!(setup.server.count(method, contains), 3, "{contains} {fault:?}: {:?}", setup.server.seen());
    }
}

#[tokio::test]
async fn a_torn_upload_leaves_nothing() {
    for (method, contains) in [("PUT", "partNumber=2"), ("POST", "uploadId")] {
        let setup = setup(|_| {}).await;
        let (tenant, id) = (tenant("a"), BlockId::new_v4());
        setup.server.fault(method, contains, usize::MAX, Fault::Answer(500, ""));
        let mut upload = setup.store.upload(&tenant, id, "data.parquet");
        let written = upload.write(&noise(LARGE)).await;
        let failed = match written {
            Ok(()) => upload.finish().await.map(drop),
            Err(error) => Err(error),
        };
        assert!(cause(&failed.expect_err("torn")).contains("data.parquet"));
        assert_eq!(setup.store.listing(&tenant).await.expect("listing").objects, 0, "no half object");
        // Dropped uploads are aborted in the background.
        while setup.server.count("DELETE", "uploadId") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_dropped_upload_is_aborted() {
    let setup = setup(|_| {}).await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    let mut upload = setup.store.upload(&tenant, id, "data.parquet");
    upload.write(&noise(LARGE)).await.expect("write");
    drop(upload);
    while setup.server.count("DELETE", "uploadId") == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn parts_are_equal_and_few_are_under_way() {
    let setup = setup(|_| {}).await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    let mut upload = setup.store.upload(&tenant, id, "data.parquet");
    for piece in noise(3 * PART + 1).chunks(999_999) {
        upload.write(piece).await.expect("write");
    }
    upload.finish().await.expect("finish");
    assert_eq!(setup.server.count("PUT", "partNumber"), 4);
    let head = setup.store.objects.list(None).next().await.expect("one").expect("listed");
    assert_eq!(head.size, 3 * PART as u64 + 1);
}

#[tokio::test]
async fn a_creator_whose_answer_is_lost_knows_that_it_won() {
    for fault in [Fault::LoseAnswer, Fault::DoneBut(500)] {
        let setup = setup(|_| {}).await;
        let (tenant, id) = (tenant("a"), BlockId::new_v4());
        setup.server.fault("PUT", "owner", 1, fault);
        assert!(setup.store.create(&tenant, id, "owner", Bytes::from_static(b"me")).await.expect("create"), "{fault:?}");
        assert!(!setup.store.create(&tenant, id, "owner", Bytes::from_static(b"you")).await.expect("create"));
        setup.server.fault("PUT", "owner", 1, fault);
        assert!(!setup.store.create(&tenant, id, "owner", Bytes::from_static(b"you")).await.expect("create"), "{fault:?}");
        setup.server.fault("PUT", "other", 2, Fault::Answer(503, ""));
        assert!(setup.store.create(&tenant, id, "other", Bytes::from_static(b"you")).await.expect("create"), "was not done before");
    }
}

#[tokio::test]
async fn a_slow_read_is_hedged_and_a_write_is_not() {
    let setup = setup(|settings| {
        settings.requests.hedge_at = Duration::from_millis(50);
        settings.requests.hedge_up_to = 3;
        settings.requests.timeout = Duration::from_secs(60);
    })
    .await;
    let (tenant, id) = (tenant("a"), BlockId::new_v4());
    setup.store.put_named(&tenant, id, "bloom-0", Bytes::from_static(b"bloom")).await.expect("put");
    let before = setup.metric("tempodb_backend_hedged_roundtrips_total", "");
    setup.server.fault("GET", "bloom-0", 2, Fault::Silence);
    assert_eq!(setup.store.get(&tenant, id, "bloom-0").await.expect("the third answers"), "bloom");
    assert_eq!(setup.server.count("GET", "bloom-0"), 3);
    assert_eq!(setup.metric("tempodb_backend_hedged_roundtrips_total", "") - before, 2);

    setup.server.reset();
    setup.server.fault("PUT", "bloom-1", 1, Fault::Silence);
    let write = setup.store.put_named(&tenant, id, "bloom-1", Bytes::from_static(b"x"));
    assert!(tokio::time::timeout(Duration::from_millis(300), write).await.is_err(), "it waits for its only answer");
    assert_eq!(setup.server.count("PUT", "bloom-1"), 1);
}

#[tokio::test]
async fn a_long_listing_goes_on_in_ranges() {
    let setup = setup(|_| {}).await;
    let tenant = tenant("a");
    let folder = setup._folder.path().join(BUCKET).join("a");
    // Written beside the server: thousands of requests would take long.
    let mut expected = Vec::new();
    for number in 0..1400_u128 {
        let id = BlockId::from_u128(number << 117 | 0x4000_8000_0000_0000_0000);
        expected.push(id);
        let block = folder.join(id.to_string());
        std::fs::create_dir_all(&block).expect("a folder");
        for name in ["meta.json", "data.parquet"] {
            std::fs::write(block.join(name), b"{}").expect("a file");
        }
    }
    expected.sort();
    for (ranges, least, most) in [(1, 3, 3), (3, 4, 6), (16, 4, 20)] {
        setup.server.reset();
        let listing = setup.store.clone().with_list_ranges(ranges).listing(&tenant).await.expect("listing");
        assert_eq!(listing.live, expected, "{ranges} ranges");
        let requests = setup.server.count("GET", "list-type");
        assert!((least..=most).contains(&requests), "{ranges} ranges: {requests} requests");
    }
    let few = Arc::new(setup.store.clone());
    setup.server.reset();
    std::fs::remove_dir_all(&folder).expect("removed");
    assert_eq!(few.listing(&tenant).await.expect("listing").objects, 0);
    assert_eq!(setup.server.count("GET", "list-type"), 1, "what fits into one answer is asked once");
}
