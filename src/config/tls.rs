//! TLS: the server's keys (`server.http_tls_config`, `server.grpc_tls_config`), those of receivers (`tls`, as the OpenTelemetry Collector has them),
//! and those of clients (`tls_enabled`, `tls_cert_path` and so on, as Tempo has them): of ingesters, of query-frontends, of gossip, of the dataflow.
//!
//! What is half said is a problem: a connection that was meant to be encrypted must not be open because a key has no certificate beside it.
//! Gossip and the dataflow listen and connect with the same keys. Where they name authorities, both ends must have a certificate of theirs.

use std::path::PathBuf;

use storage::tls::{ClientAuth, ClientTls, HTTP2, Identity, PeerTls, Pem, Protocol, ServerTls};

use super::{Problem, Settings};

const CLIENT_AUTH: &[&str] =
    &["NoClientCert", "RequestClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"];

/// Those below 1.2 mean 1.2.
const VERSIONS: &[&str] = &["", "VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"];

/// The keys of a block. `name` goes before their paths in what is said about them.
struct Keys<'a> {
    s: &'a Settings,
    name: &'a str,
    block: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Keys<'_> {
    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.block)
    }

    fn problem(&mut self, key: &str, why: &str) {
        let path = self.path(key);
        self.problems.push(Problem::new(self.s.line(&path), format!("{}{path}: {why}", self.name)));
    }

    /// A text in PEM, inline or in a file.
    fn pem(&mut self, inline: &str, file: &str) -> Option<Pem> {
        let (text, path) = (self.s.text(&self.path(inline)), self.s.text(&self.path(file)));
        match (text, path) {
            ("", "") => None,
            (text, "") => Some(Pem::Inline(text.to_owned())),
            ("", path) => Some(Pem::File(PathBuf::from(path))),
            _ => {
                self.problem(file, &format!("{inline} is there already"));
                None
            }
        }
    }

    /// Certificate and key; none where neither is there.
    fn identity(&mut self, (cert, cert_file): (&str, &str), (key, key_file): (&str, &str)) -> Option<Identity> {
        let found = (self.pem(cert, cert_file), self.pem(key, key_file));
        self.pair(found, cert_file, key_file)
    }

    /// Both of them; a problem where only one is there.
    fn pair(&mut self, found: (Option<Pem>, Option<Pem>), cert_file: &str, key_file: &str) -> Option<Identity> {
        match found {
            (Some(cert), Some(key)) => Some(Identity { cert, key }),
            (Some(_), None) => {
                self.problem(cert_file, &format!("has no {key_file} beside it"));
                None
            }
            (None, Some(_)) => {
                self.problem(key_file, &format!("has no {cert_file} beside it"));
                None
            }
            (None, None) => None,
        }
    }
}

/// TLS of `{server}.{block}`, where `server` has the versions and suites for all of its listeners.
pub(super) fn of_server(s: &Settings, server: &str, block: &str, problems: &mut Vec<Problem>) -> Option<ServerTls> {
    let version = s.text(&format!("{server}.tls_min_version"));
    let path = format!("{server}.{block}");
    let mut keys = Keys { s, name: "", block: &path, problems };
    if !VERSIONS.contains(&version) {
        let why = format!("{server}.tls_min_version: \"{version}\" is not one of {}", VERSIONS[1..].join(", "));
        keys.problems.push(Problem::new(s.line(&format!("{server}.tls_min_version")), why));
    }
    let cipher_suites = suites(s.text(&format!("{server}.tls_cipher_suites")));
    let identity = keys.identity(("cert", "cert_file"), ("key", "key_file"));
    let authorities = keys.pem("client_ca", "client_ca_file");
    let auth = s.text(&format!("{path}.client_auth_type"));
    if !auth.is_empty() && !CLIENT_AUTH.contains(&auth) {
        keys.problem("client_auth_type", &format!("\"{auth}\" is not one of {}", CLIENT_AUTH.join(", ")));
    }
    let clients = match (auth, authorities) {
        ("" | "NoClientCert", Some(_)) => {
            keys.problem("client_ca_file", "says nothing without client_auth_type");
            ClientAuth::None
        }
        ("RequireAnyClientCert", _) => {
            keys.problem("client_auth_type", "RequireAnyClientCert verifies nothing and is not available: RequireAndVerifyClientCert is");
            ClientAuth::None
        }
        ("VerifyClientCertIfGiven", Some(authorities)) => ClientAuth::IfGiven(authorities),
        ("RequireAndVerifyClientCert", Some(authorities)) => ClientAuth::Required(authorities),
        ("VerifyClientCertIfGiven" | "RequireAndVerifyClientCert", None) => {
            keys.problem("client_auth_type", &format!("{auth} needs a client_ca_file"));
            ClientAuth::None
        }
        // What is asked for and not looked at need not be asked for.
        _ => ClientAuth::None,
    };
    let Some(identity) = identity else {
        if clients != ClientAuth::None {
            keys.problem("client_auth_type", "has no cert_file and key_file beside it");
        }
        return None;
    };
    Some(ServerTls { identity, clients, protocol: Protocol { only_tls13: version == "VersionTLS13", cipher_suites } })
}

/// TLS of a receiver called `name`, whose block of keys is `block`.
pub(super) fn of_receiver(s: &Settings, name: &str, block: &str, problems: &mut Vec<Problem>) -> Option<ServerTls> {
    let name = format!("{name}.");
    let mut keys = Keys { s, name: &name, block, problems };
    let version = s.text(&keys.path("min_version"));
    if !matches!(version, "" | "1.0" | "1.1" | "1.2" | "1.3") {
        keys.problem("min_version", &format!("\"{version}\" is not one of 1.0, 1.1, 1.2, 1.3"));
    }
    let cipher_suites = s.strings(&keys.path("cipher_suites"));
    let clients = match s.text(&keys.path("client_ca_file")) {
        "" => ClientAuth::None,
        file => ClientAuth::Required(Pem::File(PathBuf::from(file))),
    };
    let identity = keys.identity(("cert_pem", "cert_file"), ("key_pem", "key_file"));
    let Some(identity) = identity else {
        if clients != ClientAuth::None {
            keys.problem("client_ca_file", "has no cert_file and key_file beside it");
        }
        return None;
    };
    Some(ServerTls { identity, clients, protocol: Protocol { only_tls13: version == "1.3", cipher_suites } })
}

/// The keys `tls_*` of `block`, if `tls_enabled` is on.
fn client(s: &Settings, block: &str, problems: &mut Vec<Problem>) -> Option<ClientTls> {
    let mut keys = Keys { s, name: "", block, problems };
    if !s.flag(&keys.path("tls_enabled")) {
        return None;
    }
    let some = |key: &str| Some(s.text(key)).filter(|text| !text.is_empty());
    let file = |key: String| some(&key).map(|path| Pem::File(PathBuf::from(path)));
    let found = (file(keys.path("tls_cert_path")), file(keys.path("tls_key_path")));
    let identity = keys.pair(found, "tls_cert_path", "tls_key_path");
    let version = s.text(&keys.path("tls_min_version"));
    if !VERSIONS.contains(&version) {
        keys.problem("tls_min_version", &format!("\"{version}\" is not one of {}", VERSIONS[1..].join(", ")));
    }
    let protocol = Protocol { only_tls13: version == "VersionTLS13", cipher_suites: suites(s.text(&keys.path("tls_cipher_suites"))) };
    Some(ClientTls {
        identity,
        authorities: file(keys.path("tls_ca_path")),
        server_name: some(&keys.path("tls_server_name")).map(str::to_owned),
        insecure_skip_verify: s.flag(&keys.path("tls_insecure_skip_verify")),
        protocol,
        alpn: None,
    })
}

/// TLS of a client of gRPC whose keys are `{block}.tls_*`.
pub(super) fn of_grpc_client(s: &Settings, block: &str, problems: &mut Vec<Problem>) -> Option<ClientTls> {
    client(s, block, problems).map(|tls| ClientTls { alpn: Some(HTTP2), ..tls })
}

/// TLS of processes that meet as equals, whose keys are `{block}.tls_*`.
pub(super) fn of_peers(s: &Settings, block: &str, problems: &mut Vec<Problem>) -> Option<PeerTls> {
    let client = client(s, block, problems)?;
    let Some(identity) = client.identity.clone() else {
        // Unless that was said already.
        if ["tls_cert_path", "tls_key_path"].iter().all(|key| s.text(&format!("{block}.{key}")).is_empty()) {
            let why = "needs tls_cert_path and tls_key_path: the others connect to this process, too";
            Keys { s, name: "", block, problems }.problem("tls_enabled", why);
        }
        return None;
    };
    let clients = client.authorities.clone().map_or(ClientAuth::None, ClientAuth::Required);
    Some(PeerTls { server: ServerTls { identity, clients, protocol: client.protocol.clone() }, client })
}

/// Names of suites, separated by commas.
fn suites(names: &str) -> Vec<String> {
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Request, parse};

    fn tls(cert: Pem, key: Pem, clients: ClientAuth) -> ServerTls {
        ServerTls { identity: Identity { cert, key }, clients, protocol: Protocol::default() }
    }

    fn file(path: &str) -> Pem {
        Pem::File(path.into())
    }

    #[test]
    fn listeners_are_encrypted_as_they_are_told() {
        let text = "
server:
  tls_min_version: VersionTLS13
  tls_cipher_suites: TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
  http_tls_config: {cert_file: /c, key: K}
  grpc_tls_config: {cert_file: /c, key_file: /k, client_ca_file: /ca, client_auth_type: RequireAndVerifyClientCert}
distributor:
  receivers:
    otlp: {protocols: {grpc: {tls: {cert_file: /rc, key_file: /rk, client_ca_file: /rca}}, http: }}
";
        let config = parse(text, &Request::default()).expect("nothing is wrong with it");
        let names = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"].map(str::to_owned);
        let modern = |tls| Some(ServerTls { protocol: Protocol { only_tls13: true, cipher_suites: names.to_vec() }, ..tls });
        assert_eq!(config.server.http_tls, modern(tls(file("/c"), Pem::Inline("K".to_owned()), ClientAuth::None)));
        assert_eq!(config.server.grpc.tls, modern(tls(file("/c"), file("/k"), ClientAuth::Required(file("/ca")))));
        let receivers = config.distributor.receivers;
        assert_eq!(receivers.otlp_grpc[0].tls, Some(tls(file("/rc"), file("/rk"), ClientAuth::Required(file("/rca")))));
        assert_eq!(receivers.otlp_http[0].0.tls, None);
        assert_eq!(receivers.unused, [""; 0]);
    }

    #[test]
    fn clients_and_peers_are_encrypted_as_they_are_told() {
        let text = "
target: distributor
ingester_client:
  grpc_client_config:
    tls_enabled: true
    tls_cert_path: /c
    tls_key_path: /k
    tls_ca_path: /ca
    tls_server_name: n
    tls_min_version: VersionTLS13
    tls_cipher_suites: TLS_AES_128_GCM_SHA256
querier: {frontend_worker: {grpc_client_config: {tls_enabled: true, tls_insecure_skip_verify: true}}}
memberlist: {tls_enabled: true, tls_cert_path: /c, tls_key_path: /k, tls_ca_path: /ca}
rubato: {dataflow: {tls_enabled: true, tls_cert_path: /c, tls_key_path: /k}}
";
        let config = parse(text, &Request::default()).expect("nothing is wrong with it");
        assert_eq!(config.unused_keys(), [""; 0]);
        let identity = Some(Identity { cert: file("/c"), key: file("/k") });
        let expected = ClientTls {
            identity: identity.clone(),
            authorities: Some(file("/ca")),
            server_name: Some("n".to_owned()),
            insecure_skip_verify: false,
            protocol: Protocol { only_tls13: true, cipher_suites: vec!["TLS_AES_128_GCM_SHA256".to_owned()] },
            alpn: Some(HTTP2),
        };
        assert_eq!(config.ingester_client_tls, Some(expected));
        let trusting = ClientTls { insecure_skip_verify: true, alpn: Some(HTTP2), ..ClientTls::default() };
        assert_eq!(config.querier.frontend_tls, Some(trusting));
        let peers = |authorities: Option<Pem>| PeerTls {
            server: tls(file("/c"), file("/k"), authorities.clone().map_or(ClientAuth::None, ClientAuth::Required)),
            client: ClientTls { identity: identity.clone(), authorities, ..ClientTls::default() },
        };
        assert_eq!(config.cluster.memberlist.tls, Some(peers(Some(file("/ca")))));
        assert_eq!(config.cluster.mesh.tls, Some(peers(None)));
    }

    #[test]
    fn what_is_half_said_is_a_problem() {
        let problems = |text: &str| {
            let problems = parse(text, &Request::default()).map(|_| ()).expect_err(text);
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        for (keys, expected) in [
            ("cert_file: /c", "cert_file: has no key_file beside it"),
            ("key_file: /k", "key_file: has no cert_file beside it"),
            ("cert_file: /c, cert: C, key_file: /k", "cert_file: cert is there already"),
            ("cert_file: /c, key_file: /k, client_ca_file: /a", "client_ca_file: says nothing without client_auth_type"),
            (
                "cert_file: /c, key_file: /k, client_auth_type: VerifyClientCertIfGiven",
                "client_auth_type: VerifyClientCertIfGiven needs a client_ca_file",
            ),
            (
                "client_ca_file: /a, client_auth_type: RequireAndVerifyClientCert",
                "client_auth_type: has no cert_file and key_file beside it",
            ),
            (
                "cert_file: /c, key_file: /k, client_auth_type: Maybe",
                "client_auth_type: \"Maybe\" is not one of NoClientCert, RequestClientCert, ",
            ),
        ] {
            let said = problems(&format!("server: {{http_tls_config: {{{keys}}}}}"));
            assert!(said.contains(&format!("line 1: server.http_tls_config.{expected}")), "{keys}: {said}");
        }
        for (keys, expected) in [
            ("tls_cert_path: /c", "tls_cert_path: has no tls_key_path beside it"),
            ("tls_key_path: /k", "tls_key_path: has no tls_cert_path beside it"),
            ("tls_ca_path: /ca", "tls_enabled: needs tls_cert_path and tls_key_path"),
            ("tls_cert_path: /c, tls_key_path: /k, tls_min_version: '1.3'", "tls_min_version: \"1.3\" is not one of VersionTLS10"),
        ] {
            let said = problems(&format!("rubato: {{dataflow: {{tls_enabled: true, {keys}}}}}"));
            assert!(said.contains(&format!("line 1: rubato.dataflow.{expected}")), "{keys}: {said}");
            assert!(!said.contains(';'), "once: {said}");
        }
        let said = problems("distributor: {receivers: {zipkin: {tls: {client_ca_file: /a}}}}");
        assert_eq!(said, "line 1: distributor.receivers.zipkin.tls.client_ca_file: has no cert_file and key_file beside it");
        let said = problems("server: {tls_min_version: TLS13}");
        assert!(said.contains("line 1: server.tls_min_version: \"TLS13\" is not one of VersionTLS10"), "{said}");
    }
}
