//! Who is let in: listeners that speak TLS and ask for certificates, and those that ask for a password or a token.

use std::{fs, time::Duration};

use reqwest::{Certificate, Identity, StatusCode, header};
use storage::id::TraceId;
use tonic::Code;

use crate::harness::{
    client::spans,
    eventually,
    otlp::{body, span},
    server::{Config, Server},
};

const CA: &str = include_str!("../dataflow/src/remote_write/tests/tls/ca.pem");
const SERVER: &str = include_str!("../dataflow/src/remote_write/tests/tls/server.pem");
const SERVER_KEY: &str = include_str!("../dataflow/src/remote_write/tests/tls/server.key");
const CLIENT: &str = include_str!("../dataflow/src/remote_write/tests/tls/client.pem");
const CLIENT_KEY: &str = include_str!("../dataflow/src/remote_write/tests/tls/client.key");

fn id(number: u64) -> TraceId {
    TraceId((u128::from(number) << 64 | 0x7157).to_be_bytes())
}

/// A client that trusts the test's authority.
fn https(with_certificate: bool) -> reqwest::Client {
    let authority = Certificate::from_pem(CA.as_bytes()).expect("a certificate");
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([authority]).timeout(Duration::from_secs(30));
    let identity = || Identity::from_pem(format!("{CLIENT}{CLIENT_KEY}").as_bytes()).expect("certificate and key");
    let builder = if with_certificate { builder.identity(identity()) } else { builder };
    builder.build().expect("a client")
}

/// A message of gRPC.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("it is short");
    [&[0][..], &length.to_be_bytes(), message].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_speak_tls_and_ask_for_certificates() {
    let files = tempfile::tempdir().expect("a folder");
    for (name, text) in [("ca", CA), ("cert", SERVER), ("key", SERVER_KEY)] {
        fs::write(files.path().join(name), text).expect("writable");
    }
    let path = |name: &str| files.path().join(name).display().to_string();
    let mutual = format!(
        "{{cert_file: {}, key_file: {}, client_ca_file: {}, client_auth_type: RequireAndVerifyClientCert}}",
        path("cert"),
        path("key"),
        path("ca")
    );
    let receiver = format!("tls: {{cert_file: {}, key_file: {}, client_ca_file: {}}}", path("cert"), path("key"), path("ca"));
    let mut server = Server::prepare(Config {
        server: format!("  http_tls_config: {mutual}\n  grpc_tls_config: {mutual}").leak(),
        receiver: format!("          {receiver}").leak(),
        ..Config::without_blocks()
    });
    server.spawn();
    let [http, grpc, otlp_grpc, otlp_http] = server.ports().map(|port| format!("https://127.0.0.1:{port}"));
    let known = https(true);
    eventually("the server is ready", || {
        assert!(server.is_alive(), "it ended");
        let ready = known.get(format!("{http}/ready")).send();
        async move { ready.await.ok().filter(|answer| answer.status().is_success()) }
    })
    .await;

    // In the clear, and without a certificate, there is nobody.
    for (url, path) in [(&http, "/ready"), (&grpc, "/"), (&otlp_grpc, "/"), (&otlp_http, "/v1/traces")] {
        let stranger = https(false).get(format!("{url}{path}")).send().await;
        assert!(stranger.is_err(), "{url}: {stranger:?}");
        let clear = reqwest::Client::builder().no_proxy().build().expect("a client");
        let clear = clear.get(format!("{}{path}", url.replace("https", "http"))).send().await;
        assert!(clear.is_err(), "{url}: {clear:?}");
    }

    let sent = known.post(format!("{otlp_http}/v1/traces")).header("content-type", "application/x-protobuf");
    let sent = sent.body(body("shop", vec![span(id(1), 1, "by http")])).send().await.expect("an answer");
    assert_eq!(sent.status(), StatusCode::OK);
    let call = async |url: String, message: Vec<u8>| {
        let answer = known.post(url).header("content-type", "application/grpc").header("te", "trailers").body(framed(&message));
        let answer = answer.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        answer.bytes().await.expect("a body")
    };
    let message = body("shop", vec![span(id(2), 2, "by grpc")]).to_vec();
    call(format!("{otlp_grpc}/opentelemetry.proto.collector.trace.v1.TraceService/Export"), message).await;
    // SERVING.
    assert_eq!(call(format!("{grpc}/grpc.health.v1.Health/Check"), Vec::new()).await[..], [0, 0, 0, 0, 2, 8, 1]);
    for number in [1, 2] {
        let url = format!("{http}/api/traces/{}", id(number).to_hex());
        eventually("the trace is found", async || known.get(&url).send().await.ok().filter(|answer| answer.status() == StatusCode::OK))
            .await;
    }

    // A certificate that is renewed under the process is used, one that is broken is not.
    fs::write(files.path().join("cert"), "no certificate").expect("writable");
    let again = https(true).get(format!("{http}/ready")).send().await.expect("the old one stays");
    assert_eq!(again.status(), StatusCode::OK);
    assert!(server.log().contains("cannot renew the certificate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn those_without_credentials_are_not_let_in() {
    let files = tempfile::tempdir().expect("a folder");
    let (users, tokens) = (files.path().join("users"), files.path().join("tokens"));
    fs::write(&users, "grafana:pass-4711\n").expect("writable");
    fs::write(&tokens, "agent-token\n").expect("writable");
    let more = format!(
        "stream_over_http_enabled: true\nrubato: {{auth: {{basic_users_file: {}, bearer_tokens_file: {}}}}}\n",
        users.display(),
        tokens.display()
    );
    let server = Server::start(Config { more: more.leak(), ..Config::without_blocks() }).await;
    let client = server.client();
    let agent = client.with_authorization("Bearer agent-token");
    // "grafana:pass-4711"
    let grafana = client.with_authorization("Basic Z3JhZmFuYTpwYXNzLTQ3MTE=");

    for path in ["/api/search", "/metrics", "/status/config", "/nowhere"] {
        let answer = client.get(path).await.expect("an answer");
        assert_eq!(answer.status, 401, "{path}");
        assert!(answer.headers[header::WWW_AUTHENTICATE.as_str()].starts_with("Basic realm="), "{path}");
        assert_eq!(client.with_authorization("Bearer pass-4711").get(path).await.expect("an answer").status, 401, "{path}");
    }
    for path in ["/ready", "/live"] {
        assert_eq!(client.get(path).await.expect("an answer").status, 200, "{path}");
    }
    assert_eq!(grafana.get("/metrics").await.expect("an answer").status, 200);

    let message = || body("shop", vec![span(id(3), 3, "sell")]);
    assert_eq!(client.post_protobuf(message()).await.expect("an answer").status, 401);
    assert_eq!(client.export(message(), None).await.expect_err("nobody knows them").code(), Code::Unauthenticated);
    assert_eq!(grafana.trace(id(3)).await, None, "nothing was taken");
    assert_eq!(agent.post_protobuf(message()).await.expect("an answer").status, 200);
    agent.export(message(), None).await.expect("they are known");
    let trace = eventually("the trace is found", || grafana.trace(id(3))).await;
    assert_eq!(spans(&trace).count(), 1);

    // Rotated while the server runs.
    fs::write(&tokens, "another-token\n").expect("writable");
    eventually("the old token is refused", async || {
        let answer = agent.get("/api/search").await.expect("an answer");
        (answer.status == 401).then_some(())
    })
    .await;
    let other = client.with_authorization("Bearer another-token");
    assert_eq!(other.get("/api/search").await.expect("an answer").status, 200);
    for secret in ["pass-4711", "agent-token", "another-token"] {
        assert!(!server.log().contains(secret), "{secret} is in the log");
    }
}
