//! Who is let in: listeners that speak TLS and ask for certificates, and those that ask for a password or a token.

use std::{fs, time::Duration};

use reqwest::{Certificate, Identity, StatusCode, header};
use storage::id::TraceId;
use tonic::Code;

use crate::harness::{
    client::spans,
    eventually,
    network::{Network, start_all, until_state},
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

/// Certificates of processes that meet as equals, as files.
struct Peers {
    folder: tempfile::TempDir,
}

impl Peers {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in [
            ("ca", include_str!("../storage/tests/tls/ca.pem")),
            ("other-ca", include_str!("../storage/tests/tls/other-ca.pem")),
            ("cert", include_str!("../storage/tests/tls/peer.pem")),
            ("key", include_str!("../storage/tests/tls/peer.key")),
        ] {
            fs::write(folder.path().join(name), text).expect("writable");
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// The keys of a client that believes this authority; they are those of gossip and mesh, too.
    fn client(&self, authority: &str) -> String {
        let (cert, key) = (self.path("cert"), self.path("key"));
        format!("{}, tls_cert_path: {cert}, tls_key_path: {key}", self.nobody(authority))
    }

    /// The same, without a certificate of its own. Gossip has addresses that no certificate names.
    fn nobody(&self, authority: &str) -> String {
        format!("tls_enabled: true, tls_ca_path: {}, tls_server_name: rubato.test", self.path(authority))
    }

    /// The key of a gRPC server that lets in whom the authority knows.
    fn server(&self) -> &'static str {
        let (cert, key, ca) = (self.path("cert"), self.path("key"), self.path("ca"));
        let auth = "client_auth_type: RequireAndVerifyClientCert";
        format!("  grpc_tls_config: {{cert_file: {cert}, key_file: {key}, client_ca_file: {ca}, {auth}}}").leak()
    }

    /// A configuration whose gossip, dataflow and clients of ingesters speak as these say.
    fn speaking(&self, config: Config, gossip: &str, dataflow: &str, ingesters: &str) -> Config {
        let more = config.more.replace("memberlist: {", &format!("memberlist: {{{gossip}, "));
        let more = more.replace("dataflow: {", &format!("dataflow: {{{dataflow}, "));
        let more = more.replace("ingester_client: {", &format!("ingester_client: {{grpc_client_config: {{{ingesters}}}, "));
        Config { server: self.server(), more: more.leak(), ..config }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_encrypts_everything_and_turns_strangers_away() {
    let (network, peers) = (Network::new(), Peers::new());
    let known = peers.client("ca");
    let speaking = |config: Config| peers.speaking(config, &known, &known, &known);
    let mut ingesters = [0, 1].map(|node| Server::prepare(speaking(network.ingester(node, 2, "", ""))));
    let mut distributor = Server::prepare(speaking(network.distributor(2, 2)));
    start_all(ingesters.iter_mut().chain([&mut distributor])).await;
    let bucket = Some(ingesters[0].blocks_path());
    let more = "target: query-frontend\nquery_frontend: {query_end_cutoff: 0s}\n";
    let mut frontend = Server::prepare(Config { server: peers.server(), more, bucket: bucket.clone(), ..Config::default() });
    frontend.spawn();
    let frontend_address = frontend.grpc_address();
    let querier = |node: usize, frontends: &str, ingesters: &str| {
        let worker = format!("frontend_worker: {{frontend_address: \"{}\", grpc_client_config: {{{frontends}}}}}", frontend_address);
        let memberlist = network.memberlist(node, 2, "");
        let more = format!("target: querier\nquerier: {{{worker}}}\n{memberlist}ingester_client: {{remote_timeout: 60s}}\n").leak();
        let ingester = "  lifecycler: {ring: {replication_factor: 3, heartbeat_timeout: 10s}}";
        peers.speaking(Config { more, ingester, bucket: bucket.clone(), ..Config::default() }, &known, &known, ingesters)
    };
    let querier_known = Server::start(querier(3, &known, &known)).await;
    assert!(frontend.wait_until_ready().await, "it has a querier");

    for node in ["ingester-0", "ingester-1"] {
        until_state(&[&distributor, &querier_known], node, Some("ACTIVE")).await;
    }
    for number in 10..20 {
        distributor.client().export(body("shop", vec![span(id(number), number, "sell")]), None).await.expect("both ingesters take it");
    }
    for number in 10..20 {
        let trace = eventually("the trace is found", async || frontend.client().trace(id(number)).await).await;
        assert_eq!(spans(&trace).count(), 1);
    }
    for ingester in &ingesters {
        let members = async || (ingester.client().metric("rubato_dataflow_members", &[]).await > 1.5).then_some(());
        eventually("both run one dataflow", members).await;
    }

    // Clients whom ingesters do not know, or who do not believe them: refused, and told why.
    let nobody = peers.nobody("ca");
    for (node, client, why) in [(4, peers.client("other-ca"), "UnknownIssuer"), (5, nobody.clone(), "CertificateRequired")] {
        let more = network.distributor(node, 2).more.replace("remote_timeout: 60s", "remote_timeout: 10s");
        let config = peers.speaking(Config { more: more.leak(), ..network.distributor(node, 2) }, &known, &known, &client);
        let stranger = Server::start(config).await;
        until_state(&[&stranger], "ingester-0", Some("ACTIVE")).await;
        until_state(&[&stranger], "ingester-1", Some("ACTIVE")).await;
        // A connection that is reset may take the reason with it; the next one brings it.
        eventually("the reason is told", async || {
            let refused = stranger.client().export(body("shop", vec![span(id(30), 1, "steal")]), None).await.expect_err("nobody takes it");
            refused.message().contains(why).then_some(())
        })
        .await;
    }

    // A querier that the frontend does not know.
    let mut stranger = Server::prepare(querier(6, &nobody, &known));
    stranger.spawn();
    eventually("it says why it has no jobs", async || {
        let log = stranger.log();
        (log.contains("no jobs from a query-frontend") && log.contains("CertificateRequired")).then_some(())
    })
    .await;

    // An ingester whose gossip is in the clear, one that believes others, one whose dataflow does.
    let refusals = async || ingesters[0].client().metric("rubato_memberlist_refused_connections_total", &["reason=\"tls\""]).await;
    let before = refusals().await;
    let mut stranger = Server::prepare(network.ingester(7, 2, "", ""));
    stranger.spawn();
    eventually("gossip in the clear is refused", async || (refusals().await > before).then_some(())).await;
    drop(stranger);
    let other = peers.client("other-ca");
    let mut stranger = Server::prepare(peers.speaking(network.ingester(8, 2, "", ""), &other, &known, &known));
    stranger.spawn();
    eventually("it does not believe the others", async || {
        let log = stranger.log();
        (log.contains("member cannot be joined") && log.contains("UnknownIssuer")).then_some(())
    })
    .await;
    drop(stranger);
    let mut stranger = Server::prepare(peers.speaking(network.ingester(9, 2, "", ""), &known, &other, &known));
    stranger.spawn();
    eventually("its dataflow does not believe the others", async || {
        let log = stranger.log();
        (log.contains("no beats to candidate") && log.contains("UnknownIssuer")).then_some(())
    })
    .await;
    assert!(distributor.is_alive() && frontend.is_alive());
}
