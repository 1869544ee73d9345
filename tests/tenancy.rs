//! Tenants see their own traces and nothing else.

use std::collections::BTreeSet;

use storage::id::TraceId;

use crate::harness::{
    client::{Client, spans},
    eventually,
    otlp::{body, span},
    server::{Config, Server},
};

async fn names(client: &Client, id: TraceId) -> BTreeSet<String> {
    client.trace(id).await.map(|trace| spans(&trace).map(|span| span.name.clone()).collect()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_are_apart_before_and_after_the_cut() {
    let server = Server::start(Config { multitenancy: true, ..Config::default() }).await;
    let id = TraceId([5; 16]);
    let (a, b) = (server.client().with_tenant("team-a"), server.client().with_tenant("team-b"));
    let answer = a.post_protobuf(body("service-a", vec![span(id, 1, "of a")])).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    b.export(body("service-b", vec![span(id, 1, "of b")]), None).await.expect("acknowledged");

    for after_cut in [false, true] {
        if after_cut {
            eventually("blocks of both tenants", || async {
                (server.traces_in_blocks("team-a") == 1 && server.traces_in_blocks("team-b") == 1).then_some(())
            })
            .await;
        }
        for (client, own, service) in [(&a, "of a", "service-a"), (&b, "of b", "service-b")] {
            let found = eventually(own, || async { Some(names(client, id).await).filter(|names| !names.is_empty()) }).await;
            assert_eq!(found, BTreeSet::from([own.to_owned()]));
            let found = eventually(service, || async { Some(client.search("{ }", 10).await).filter(|found| !found.is_empty()) }).await;
            assert_eq!(found.len(), 1);
            assert_eq!(found[0]["rootServiceName"], service);
        }
    }
    let other = server.client().with_tenant("team-c");
    assert!(names(&other, id).await.is_empty());
    assert!(other.search("{ }", 10).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_or_with_a_wrong_tenant_are_refused() {
    let server = Server::start(Config { multitenancy: true, ..Config::without_blocks() }).await;
    let nobody = server.client();
    let message = body("s", vec![span(TraceId([6; 16]), 1, "x")]);

    let answer = nobody.post_protobuf(message.clone()).await.expect("an answer");
    assert!(answer.status >= 400, "{}", answer.status);
    assert!(answer.text().contains("no org id"), "{}", answer.text());
    let status = nobody.export(message.clone(), None).await.expect_err("refused");
    assert!(status.message().contains("no org id"), "{status}");
    for path in ["/api/traces/1", "/api/v2/traces/1", "/api/search", "/api/search/tags", "/api/v2/search/tag/name/values"] {
        let answer = nobody.get(path).await.expect("an answer");
        assert_eq!((answer.status, answer.text().as_str()), (401, "no org id\n"), "{path}");
    }
    for path in ["/api/echo", "/ready", "/metrics", "/api/status/buildinfo"] {
        assert_eq!(nobody.get(path).await.expect("an answer").status, 200, "{path} needs no tenant");
    }

    let wrong = server.client().with_tenant("a/b");
    let answer = wrong.get("/api/search").await.expect("an answer");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("tenant ID 'a/b' contains unsupported character '/'"), "{}", answer.text());
    let answer = wrong.post_protobuf(message.clone()).await.expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.text());
    let status = wrong.export(message.clone(), None).await.expect_err("refused");
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    for evil in ["..", "."] {
        let answer = server.client().with_tenant(evil).post_protobuf(message.clone()).await.expect("an answer");
        assert_eq!(answer.status, 400, "{evil}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_multitenancy_the_header_is_ignored() {
    let server = Server::start(Config::without_blocks()).await;
    let id = TraceId([7; 16]);
    let answer = server.client().with_tenant("somebody").post_protobuf(body("s", vec![span(id, 1, "x")])).await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    for client in [server.client(), server.client().with_tenant("another")] {
        let found = eventually("the span", || async { Some(names(&client, id).await).filter(|names| !names.is_empty()) }).await;
        assert_eq!(found.len(), 1);
    }
}
