//! `metrics_generator.storage.remote_write`: where generated series are sent. The keys are those of Prometheus' `remote_write`.
//!
//! A key that Rubato can't honour is a problem with its line, if honouring it decides who may read or write what.

use std::path::PathBuf;

use dataflow::remote_write::{Action, Auth, Credentials, Endpoint, Pem, Protocol, Proxy, Queue, Rule, Tls, TlsVersion};

use super::{Problem, Settings, Value, settings::texts};

const PATH: &str = "metrics_generator.storage.remote_write";

/// Headers that requests have anyway, or that must not be sent.
const RESERVED: &[&str] = &[
    "accept-encoding",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "user-agent",
    "www-authenticate",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-security-token",
    "x-prometheus-remote-read-version",
    "x-prometheus-remote-write-version",
];

/// Keys that ask for something that this version doesn't have.
const UNAVAILABLE: &[(&str, &str)] = &[
    ("oauth2", "authenticate with basic_auth or authorization"),
    ("sigv4", "authenticate with basic_auth or authorization"),
    ("azuread", "authenticate with basic_auth or authorization"),
    ("google_iam", "authenticate with basic_auth or authorization"),
    ("tls_config.server_name", "the certificate must be for the host of the URL"),
    ("proxy_connect_header", "the proxy must not ask for headers of its own"),
    ("http_headers", "write them as headers"),
];

/// The endpoints.
pub(super) fn endpoints(s: &Settings, problems: &mut Vec<Problem>) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for (index, entry) in s.blocks(PATH).into_iter().enumerate() {
        endpoints.push(Entry { s: entry, name: format!("{PATH}[{index}]"), problems }.endpoint());
    }
    endpoints
}

/// What is wrong with the name and the value of a header.
pub(super) fn check_header(name: &str, value: &str) -> Result<(), String> {
    if RESERVED.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!("{name} is a reserved header"));
    }
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("\"{name}\" is no name of a header"));
    }
    if value.bytes().any(|byte| byte != b'\t' && (byte < b' ' || byte == 0x7f)) {
        return Err(format!("the value of {name} is no text of a header"));
    }
    Ok(())
}

/// The first line at or below a key; of the empty key, the first at all.
fn first_line(s: &Settings, key: &str) -> Option<usize> {
    let below = |path: &str| key.is_empty() || path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    s.written_leaves().filter(|leaf| below(&leaf.path)).map(|leaf| s.line(&leaf.path)).min()
}

/// An entry of the list.
struct Entry<'a> {
    s: &'a Settings,
    name: String,
    problems: &'a mut Vec<Problem>,
}

impl Entry<'_> {
    /// A problem of a key or a block; of one that isn't written it is one of the entry.
    fn problem(&mut self, key: &str, why: &str) {
        let line = [key, ""].into_iter().find_map(|block| first_line(self.s, block)).unwrap_or_default();
        self.problems.push(Problem::new(line, format!("{}.{key}: {why}", self.name)));
    }

    fn some(&self, key: &str) -> Option<&str> {
        Some(self.s.text(key)).filter(|text| !text.is_empty())
    }

    fn endpoint(mut self) -> Endpoint {
        for (key, instead) in UNAVAILABLE {
            let written = self.s.any_written(key) && !matches!(self.s.written(key), Some(Value::Null));
            if written && !matches!(self.s.written(key), Some(Value::Text(text)) if text.is_empty()) {
                self.problem(key, &format!("is not available in this version of Rubato: {instead}"));
            }
        }
        let url = self.s.text("url").to_owned();
        if url.is_empty() {
            self.problem("url", "url for remote_write is empty");
        } else if !["http://", "https://"].iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty())) {
            self.problem("url", &format!("\"{url}\" does not begin with http:// or https://"));
        }
        let headers = texts(self.s.get("headers"));
        for (name, value) in &headers {
            if let Err(why) = check_header(name, value) {
                self.problem("headers", &why);
            }
        }
        for key in ["queue_config.capacity", "queue_config.max_shards", "queue_config.max_samples_per_send"] {
            if self.s.number(key) == 0 {
                self.problem(key, "must be greater than 0");
            }
        }
        if self.s.duration("remote_timeout").is_zero() {
            self.problem("remote_timeout", "must be greater than 0");
        }
        let protocol = match self.s.text("protobuf_message") {
            "" | "prometheus.WriteRequest" => Protocol::V1,
            "io.prometheus.write.v2.Request" => Protocol::V2,
            other => {
                let why = format!("\"{other}\" is not one of prometheus.WriteRequest, io.prometheus.write.v2.Request");
                self.problem("protobuf_message", &why);
                Protocol::V1
            }
        };
        let sends_metadata = self.s.flag("metadata_config.send");
        Endpoint {
            url,
            name: self.s.text("name").to_owned(),
            timeout: self.s.duration("remote_timeout"),
            headers,
            relabel: self.relabel(),
            protocol,
            auth: self.auth(),
            tls: self.tls(),
            proxy: self.proxy(),
            follow_redirects: self.s.flag("follow_redirects"),
            queue: Queue {
                capacity: self.s.count("queue_config.capacity"),
                max_shards: self.s.count("queue_config.max_shards"),
                max_samples_per_send: self.s.count("queue_config.max_samples_per_send"),
                min_backoff: self.s.duration("queue_config.min_backoff"),
                max_backoff: self.s.duration("queue_config.max_backoff"),
                // Values are cumulative and what waits is bounded, so that trying again costs nothing.
                retry_on_429: !matches!(self.s.get("queue_config.retry_on_http_429"), Value::Bool(false)),
                sample_age_limit: self.s.nonzero("queue_config.sample_age_limit"),
            },
            metadata_interval: self.s.nonzero("metadata_config.send_interval").filter(|_| sends_metadata),
        }
    }

    fn relabel(&mut self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (index, block) in self.s.blocks("write_relabel_configs").into_iter().enumerate() {
            let name = block.text("action");
            let action = Action::from_name(name);
            let rule = Rule {
                source_labels: block.strings("source_labels"),
                separator: block.text("separator").to_owned(),
                target_label: block.text("target_label").to_owned(),
                regex: block.text("regex").to_owned(),
                modulus: block.number("modulus"),
                replacement: block.text("replacement").to_owned(),
                action: action.unwrap_or(Action::Replace),
            };
            let check = action.ok_or_else(|| format!("unknown relabel action \"{name}\"")).and_then(|_| rule.check());
            if let Err(why) = check {
                let line = first_line(block, "").unwrap_or_else(|| self.s.line("write_relabel_configs"));
                self.problems.push(Problem::new(line, format!("{}.write_relabel_configs[{index}]: {why}", self.name)));
            }
            rules.push(rule);
        }
        rules
    }

    fn auth(&mut self) -> Auth {
        let ways = ["basic_auth", "authorization", "bearer_token", "bearer_token_file"];
        let written: Vec<&str> = ways.into_iter().filter(|key| self.s.any_written(key)).collect();
        let [way] = written.as_slice() else {
            if let [_, second, ..] = written.as_slice() {
                self.problem(second, &format!("at most one of {} may be configured", ways.join(", ")));
            }
            return Auth::None;
        };
        match *way {
            "basic_auth" => {
                let username = match self.some("basic_auth.username_file").map(PathBuf::from) {
                    None => self.s.text("basic_auth.username").to_owned(),
                    Some(path) => std::fs::read_to_string(&path).map(|text| text.trim().to_owned()).unwrap_or_else(|error| {
                        self.problem("basic_auth.username_file", &format!("failed to read {}: {error}", path.display()));
                        String::new()
                    }),
                };
                Auth::Basic { username, password: self.credentials("basic_auth.password") }
            }
            "authorization" => {
                let scheme = self.s.text("authorization.type").to_owned();
                if scheme.eq_ignore_ascii_case("basic") {
                    self.problem("authorization.type", "Basic: write basic_auth instead");
                }
                Auth::Header { scheme, credentials: self.credentials("authorization.credentials") }
            }
            _ => Auth::Header { scheme: "Bearer".to_owned(), credentials: self.credentials("bearer_token") },
        }
    }

    /// A key, or the key that names a file.
    fn credentials(&mut self, key: &str) -> Credentials {
        let file = format!("{key}_file");
        match (self.some(key), self.some(&file)) {
            (Some(_), Some(_)) => self.problem(&file, &format!("at most one of {key} and {file} may be configured")),
            (None, Some(path)) => return Credentials::File(PathBuf::from(path)),
            _ => {}
        }
        Credentials::Text(self.s.text(key).to_owned().into())
    }

    fn tls(&mut self) -> Tls {
        let mut pem = |key: &str| {
            let file = format!("{key}_file");
            match (self.some(key), self.some(&file)) {
                (Some(_), Some(_)) => {
                    self.problem(&file, &format!("at most one of {key} and {file} may be configured"));
                    None
                }
                (Some(text), None) => Some(Pem::Text(text.to_owned().into())),
                (None, Some(path)) => Some(Pem::File(PathBuf::from(path))),
                (None, None) => None,
            }
        };
        let (ca, cert, key) = (pem("tls_config.ca"), pem("tls_config.cert"), pem("tls_config.key"));
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                self.problem("tls_config", "cert and key go together");
                None
            }
        };
        let mut version = |key: &str| match self.s.text(key) {
            "" => None,
            "TLS10" | "TLS11" if key == "tls_config.min_version" => None,
            "TLS12" => Some(TlsVersion::V12),
            "TLS13" => Some(TlsVersion::V13),
            other => {
                let why = format!("\"{other}\" is not one of TLS12, TLS13");
                self.problem(key, &why);
                None
            }
        };
        let (min_version, max_version) = (version("tls_config.min_version"), version("tls_config.max_version"));
        Tls { ca, identity, insecure_skip_verify: self.s.flag("tls_config.insecure_skip_verify"), min_version, max_version }
    }

    fn proxy(&mut self) -> Proxy {
        match (self.some("proxy_url"), self.s.flag("proxy_from_environment")) {
            (Some(_), true) => {
                self.problem("proxy_url", "at most one of proxy_url and proxy_from_environment may be configured");
                Proxy::None
            }
            (Some(url), false) => Proxy::Url { url: url.to_owned(), except: self.s.text("no_proxy").to_owned() },
            (None, true) => Proxy::Environment,
            (None, false) => Proxy::None,
        }
    }
}
