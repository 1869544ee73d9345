//! TLS of listeners: the server's keys (`server.http_tls_config`, `server.grpc_tls_config`) and those of receivers (`tls`, as the OpenTelemetry
//! Collector has them).
//!
//! What is half said is a problem: a listener that was meant to be encrypted must not be open because a key has no certificate beside it.

use std::path::PathBuf;

use super::{Problem, Settings};
use crate::tls::{ClientAuth, Pem, ServerTls};

const CLIENT_AUTH: &[&str] =
    &["NoClientCert", "RequestClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"];

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
    fn identity(&mut self, (cert, cert_file): (&str, &str), (key, key_file): (&str, &str)) -> Option<(Pem, Pem)> {
        match (self.pem(cert, cert_file), self.pem(key, key_file)) {
            (Some(cert), Some(key)) => Some((cert, key)),
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
    if !matches!(version, "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" | "VersionTLS13") {
        let why = format!("{server}.tls_min_version: \"{version}\" is not one of VersionTLS10, VersionTLS11, VersionTLS12, VersionTLS13");
        keys.problems.push(Problem::new(s.line(&format!("{server}.tls_min_version")), why));
    }
    let cipher_suites = s.text(&format!("{server}.tls_cipher_suites"));
    let cipher_suites = cipher_suites.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
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
    let Some((cert, key)) = identity else {
        if clients != ClientAuth::None {
            keys.problem("client_auth_type", "has no cert_file and key_file beside it");
        }
        return None;
    };
    Some(ServerTls { cert, key, clients, only_tls13: version == "VersionTLS13", cipher_suites })
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
    let Some((cert, key)) = identity else {
        if clients != ClientAuth::None {
            keys.problem("client_ca_file", "has no cert_file and key_file beside it");
        }
        return None;
    };
    Some(ServerTls { cert, key, clients, only_tls13: version == "1.3", cipher_suites })
}

#[cfg(test)]
mod tests {
    use crate::{
        config::{Request, parse},
        tls::{ClientAuth, Pem, ServerTls},
    };

    fn tls(cert: Pem, key: Pem, clients: ClientAuth) -> ServerTls {
        ServerTls { cert, key, clients, only_tls13: false, cipher_suites: Vec::new() }
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
        let modern = |tls| Some(ServerTls { only_tls13: true, cipher_suites: names.to_vec(), ..tls });
        assert_eq!(config.server.http_tls, modern(tls(file("/c"), Pem::Inline("K".to_owned()), ClientAuth::None)));
        assert_eq!(config.server.grpc.tls, modern(tls(file("/c"), file("/k"), ClientAuth::Required(file("/ca")))));
        let receivers = config.distributor.receivers;
        assert_eq!(receivers.otlp_grpc[0].tls, Some(tls(file("/rc"), file("/rk"), ClientAuth::Required(file("/rca")))));
        assert_eq!(receivers.otlp_http[0].0.tls, None);
        assert_eq!(receivers.unused, [""; 0]);
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
        let said = problems("distributor: {receivers: {zipkin: {tls: {client_ca_file: /a}}}}");
        assert_eq!(said, "line 1: distributor.receivers.zipkin.tls.client_ca_file: has no cert_file and key_file beside it");
        let said = problems("server: {tls_min_version: TLS13}");
        assert!(said.contains("line 1: server.tls_min_version: \"TLS13\" is not one of VersionTLS10"), "{said}");
    }
}
