//! `distributor.receivers`: which receivers run and where they listen.
//!
//! The keys are those of the OpenTelemetry Collector, a map from `type` or `type/name` to the receiver's block. A protocol runs iff its key is
//! there, even without a value; Zipkin has one protocol and runs iff it is named. Every known type is checked strictly. `kafka` does not run in this
//! version and is named.

use std::sync::Arc;

use super::{
    check::check,
    document::{Data, Node, Problem},
    scalar::Value,
    schema::{JAEGER, KAFKA, OTLP, Schema, Status, ZIPKIN},
    settings::Settings,
    tls,
};
use storage::tls::ServerTls;

/// gRPC's own limit of a received message when nothing is written.
const DEFAULT_GRPC_MESSAGE_BYTES: usize = 4 << 20;
/// The collector's limit of a request body.
const DEFAULT_HTTP_BODY_BYTES: usize = 20 << 20;

/// A receiver over gRPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grpc {
    /// `host:port` to listen on.
    pub(crate) endpoint: String,
    /// Largest accepted message, after decompression.
    pub(crate) max_message_bytes: usize,
    /// How connections are encrypted; none is in the clear.
    pub(crate) tls: Option<ServerTls>,
}

/// A receiver over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Http {
    /// `host:port` to listen on.
    pub(crate) endpoint: String,
    /// Largest accepted body, compressed and decompressed.
    pub(crate) max_body_bytes: usize,
    /// How connections are encrypted; none is in the clear.
    pub(crate) tls: Option<ServerTls>,
}

/// A receiver of Jaeger's Thrift over UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Udp {
    /// `host:port` to listen on.
    pub(crate) endpoint: String,
    /// Datagrams that may wait.
    pub(crate) queue_size: usize,
    /// Largest datagram, bytes.
    pub(crate) max_packet_size: usize,
    /// Datagrams that are worked on at a time.
    pub(crate) workers: usize,
}

/// The receivers of the distributor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Receivers {
    /// OTLP over gRPC.
    pub(crate) otlp_grpc: Vec<Grpc>,
    /// OTLP over HTTP, and where traces are posted.
    pub(crate) otlp_http: Vec<(Http, String)>,
    /// Jaeger over gRPC.
    pub(crate) jaeger_grpc: Vec<Grpc>,
    /// Jaeger's Thrift over HTTP.
    pub(crate) jaeger_http: Vec<Http>,
    /// Jaeger's Thrift over UDP, compact encoding.
    pub(crate) jaeger_compact: Vec<Udp>,
    /// Jaeger's Thrift over UDP, binary encoding.
    pub(crate) jaeger_binary: Vec<Udp>,
    /// Zipkin, and whether tags that spell a number or a boolean become one.
    pub(crate) zipkin: Vec<(Http, bool)>,
    /// Receivers that this version doesn't run, by name.
    pub(crate) unavailable: Vec<String>,
    /// Keys that are written and have no effect.
    pub(crate) unused: Vec<String>,
}

impl Receivers {
    /// What runs when nothing is written: Jaeger and OTLP/gRPC on localhost.
    pub(crate) fn fallback() -> Self {
        Self {
            otlp_grpc: vec![Grpc::at("localhost:4317")],
            jaeger_grpc: vec![Grpc::at("localhost:14250")],
            jaeger_http: vec![Http::at("localhost:14268")],
            ..Self::default()
        }
    }

    /// What runs without a configuration file: everything, loopback only.
    pub(crate) fn embedded() -> Self {
        Self {
            otlp_grpc: vec![Grpc::at("127.0.0.1:4317")],
            otlp_http: vec![(Http::at("127.0.0.1:4318"), "/v1/traces".to_owned())],
            jaeger_grpc: vec![Grpc::at("127.0.0.1:14250")],
            jaeger_http: vec![Http::at("127.0.0.1:14268")],
            jaeger_compact: vec![Udp::at("127.0.0.1:6831")],
            jaeger_binary: vec![Udp::at("127.0.0.1:6832")],
            zipkin: vec![(Http::at("127.0.0.1:9411"), false)],
            ..Self::default()
        }
    }

    /// What [`Receivers::embedded`] looks like in a configuration file.
    pub(crate) fn embedded_text() -> Value {
        let map = |entries: Vec<(&str, Value)>| Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect());
        let endpoint = |port: u16| map(vec![("endpoint", Value::Text(format!("127.0.0.1:{port}")))]);
        let protocols = |entries: Vec<(&str, Value)>| map(vec![("protocols", map(entries))]);
        map(vec![
            (
                "jaeger",
                protocols(vec![
                    ("grpc", endpoint(14250)),
                    ("thrift_http", endpoint(14268)),
                    ("thrift_compact", endpoint(6831)),
                    ("thrift_binary", endpoint(6832)),
                ]),
            ),
            ("otlp", protocols(vec![("grpc", endpoint(4317)), ("http", endpoint(4318))])),
            ("zipkin", endpoint(9411)),
        ])
    }
}

impl Grpc {
    fn at(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), max_message_bytes: DEFAULT_GRPC_MESSAGE_BYTES, tls: None }
    }
}

impl Http {
    fn at(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), max_body_bytes: DEFAULT_HTTP_BODY_BYTES, tls: None }
    }
}

impl Udp {
    fn at(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned(), queue_size: 1000, max_packet_size: 65_000, workers: 10 }
    }
}

/// Reads the sub-tree; absent or empty is the fallback.
pub(crate) fn parse(node: Option<&Node>, problems: &mut Vec<Problem>) -> Receivers {
    let Some(node) = node.filter(|node| !node.is_null()) else {
        return Receivers::fallback();
    };
    let Data::Map(entries) = &node.data else {
        problems.push(Problem::new(node.line, format!("cannot unmarshal {} into map (field distributor.receivers)", node.tag())));
        return Receivers::default();
    };
    if entries.is_empty() {
        return Receivers::fallback();
    }
    let mut receivers = Receivers::default();
    for entry in entries {
        let kind = entry.key.split('/').next().unwrap_or_default();
        let rows = match kind {
            "otlp" => OTLP,
            "jaeger" => JAEGER,
            "zipkin" => ZIPKIN,
            "kafka" => KAFKA,
            _ => {
                let gone =
                    if kind == "opencensus" { "removed" } else { "one of otlp, jaeger, zipkin, kafka, optionally followed by /name" };
                problems.push(Problem::new(entry.line, format!("field {} not found in type distributor.receivers ({gone})", entry.key)));
                continue;
            }
        };
        let name = format!("distributor.receivers.{}", entry.key);
        let remote_sampling = kind == "jaeger" && child(&entry.value, "remote_sampling").is_some();
        if remote_sampling {
            problems.push(Problem::new(
                entry.line,
                "remote sampling config detected in the Jaeger receiver; use the `jaegerremotesampling` extension instead",
            ));
            continue;
        }
        let checked = check(&Arc::new(Schema::new(rows)), Some(&entry.value), &name);
        problems.extend(checked.problems);
        let protocols = protocols(&entry.value);
        if matches!(kind, "otlp" | "jaeger") && protocols.is_empty() {
            problems.push(Problem::new(entry.line, format!("{name}: must specify at least one protocol")));
        }
        if kind == "kafka" {
            receivers.unavailable.push(entry.key.clone());
            continue;
        }
        let settings = &checked.settings;
        let unused = settings.written_leaves().filter(|leaf| leaf.status == Status::Unused && settings.differs(&leaf.path));
        receivers.unused.extend(unused.map(|leaf| format!("{name}.{}", leaf.path)));
        let mut written = Written { settings, name: &name, problems };
        match kind {
            "otlp" => written.otlp(&protocols, &mut receivers),
            "jaeger" => written.jaeger(&protocols, &mut receivers),
            _ => {
                let http = written.http("", "localhost:9411");
                receivers.zipkin.push((http, settings.flag("parse_string_tags")));
            }
        }
    }
    receivers
}

/// The block of one receiver.
struct Written<'a> {
    settings: &'a Settings,
    name: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl Written<'_> {
    fn otlp(&mut self, protocols: &[&str], receivers: &mut Receivers) {
        if protocols.contains(&"grpc") {
            receivers.otlp_grpc.push(self.grpc("protocols.grpc.", "localhost:4317"));
        }
        if protocols.contains(&"http") {
            let path = self.settings.text("protocols.http.traces_url_path").to_owned();
            receivers.otlp_http.push((self.http("protocols.http.", "localhost:4318"), path));
        }
    }

    fn jaeger(&mut self, protocols: &[&str], receivers: &mut Receivers) {
        if protocols.contains(&"grpc") {
            receivers.jaeger_grpc.push(self.grpc("protocols.grpc.", "localhost:14250"));
        }
        if protocols.contains(&"thrift_http") {
            receivers.jaeger_http.push(self.http("protocols.thrift_http.", "localhost:14268"));
        }
        if protocols.contains(&"thrift_compact") {
            receivers.jaeger_compact.push(self.udp("protocols.thrift_compact.", "localhost:6831"));
        }
        if protocols.contains(&"thrift_binary") {
            receivers.jaeger_binary.push(self.udp("protocols.thrift_binary.", "localhost:6832"));
        }
    }

    fn grpc(&mut self, prefix: &str, default: &str) -> Grpc {
        let max_message_bytes = self.size(&format!("{prefix}max_recv_msg_size_mib"), 1 << 20, DEFAULT_GRPC_MESSAGE_BYTES);
        let tls = self.tls(prefix);
        Grpc { endpoint: self.endpoint(prefix, default), max_message_bytes, tls }
    }

    fn http(&mut self, prefix: &str, default: &str) -> Http {
        let max_body_bytes = self.size(&format!("{prefix}max_request_body_size"), 1, DEFAULT_HTTP_BODY_BYTES);
        let tls = self.tls(prefix);
        Http { endpoint: self.endpoint(prefix, default), max_body_bytes, tls }
    }

    fn tls(&mut self, prefix: &str) -> Option<ServerTls> {
        tls::of_receiver(self.settings, self.name, &format!("{prefix}tls"), self.problems)
    }

    fn udp(&mut self, prefix: &str, default: &str) -> Udp {
        let defaults = Udp::at(default);
        Udp {
            endpoint: self.endpoint(prefix, default),
            queue_size: self.size(&format!("{prefix}queue_size"), 1, defaults.queue_size),
            max_packet_size: self.size(&format!("{prefix}max_packet_size"), 1, defaults.max_packet_size),
            workers: self.size(&format!("{prefix}workers"), 1, defaults.workers),
        }
    }

    fn endpoint(&mut self, prefix: &str, default: &str) -> String {
        let path = format!("{prefix}endpoint");
        let text = Some(self.settings.text(&path)).filter(|text| !text.is_empty()).unwrap_or(default).to_owned();
        if !is_endpoint(&text) {
            let what = format!("{}.{path}: \"{text}\" is not of the form host:port", self.name);
            self.problems.push(Problem::new(self.settings.line(&path), what));
        }
        text
    }

    /// A number of units, or the default where nothing or 0 is written.
    fn size(&self, path: &str, unit: u64, default: usize) -> usize {
        match self.settings.number(path) {
            0 => default,
            written => usize::try_from(written.saturating_mul(unit)).unwrap_or(usize::MAX),
        }
    }
}

/// Whether a text is `host:port`; the host may be empty.
pub(crate) fn is_endpoint(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

fn child<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    let Data::Map(entries) = &node.data else { return None };
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
}

/// The node at a path of keys.
pub(crate) fn find<'a>(node: Option<&'a Node>, path: &[&str]) -> Option<&'a Node> {
    path.iter().try_fold(node?, |node, key| child(node, key))
}

/// The names below `protocols`.
fn protocols(node: &Node) -> Vec<&str> {
    match child(node, "protocols").map(|node| &node.data) {
        Some(Data::Map(entries)) => entries.iter().map(|entry| entry.key.as_str()).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::document;

    fn run(text: &str) -> (Receivers, Vec<String>) {
        let node = document::parse(text).expect("the text is YAML");
        let mut problems = Vec::new();
        let receivers = parse(node.as_ref(), &mut problems);
        (receivers, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_protocol_runs_when_its_key_is_there() {
        let (receivers, problems) =
            run("otlp:\n  protocols:\n    grpc:\n    http: {endpoint: '0.0.0.0:4318', max_request_body_size: 100}\n");
        assert_eq!(problems, [""; 0]);
        assert_eq!(receivers.otlp_grpc, [Grpc::at("localhost:4317")]);
        assert_eq!(receivers.otlp_http, [(Http { max_body_bytes: 100, ..Http::at("0.0.0.0:4318") }, "/v1/traces".to_owned())]);
    }

    #[test]
    fn nothing_written_is_the_fallback() {
        assert_eq!(run("").0, Receivers::fallback());
        assert_eq!(run("{}").0, Receivers::fallback());
    }

    #[test]
    fn jaeger_and_zipkin_run_when_they_are_named() {
        let (receivers, problems) = run(
            "jaeger:\n  protocols:\n    grpc: {endpoint: '0.0.0.0:1', max_recv_msg_size_mib: 2}\n    thrift_http:\n    thrift_compact: {queue_size: 5}\n    thrift_binary:\nzipkin:\n  parse_string_tags: true\nzipkin/b:\n",
        );
        assert_eq!(problems, [""; 0]);
        let expected = Receivers {
            jaeger_grpc: vec![Grpc { endpoint: "0.0.0.0:1".to_owned(), max_message_bytes: 2 << 20, tls: None }],
            jaeger_http: vec![Http::at("localhost:14268")],
            jaeger_compact: vec![Udp { queue_size: 5, ..Udp::at("localhost:6831") }],
            jaeger_binary: vec![Udp::at("localhost:6832")],
            zipkin: vec![(Http::at("localhost:9411"), true), (Http::at("localhost:9411"), false)],
            ..Receivers::default()
        };
        assert_eq!(receivers, expected);
    }

    #[test]
    fn what_does_not_run_is_named() {
        let (receivers, problems) =
            run("kafka/a:\n  brokers: [b:9092]\notlp/two:\n  protocols: {grpc: {tls: {ca_file: x}}}\nzipkin: {cors: {max_age: 1}}\n");
        assert_eq!(problems, [""; 0]);
        assert_eq!(receivers.unavailable, ["kafka/a"]);
        assert_eq!(
            receivers.unused,
            ["distributor.receivers.otlp/two.protocols.grpc.tls.ca_file", "distributor.receivers.zipkin.cors.max_age"]
        );
    }

    #[test]
    fn mistakes_have_lines() {
        let (_, problems) = run(
            "otlp:\n  protocols:\n    grpc:\n      endpont: x\n    http:\n      endpoint: nowhere\nopencensus:\njaeger:\n  remote_sampling: {}\n",
        );
        assert_eq!(
            problems,
            [
                "line 4: field endpont not found in type distributor.receivers.otlp.protocols.grpc (did you mean \"endpoint\"?)",
                "line 6: distributor.receivers.otlp.protocols.http.endpoint: \"nowhere\" is not of the form host:port",
                "line 7: field opencensus not found in type distributor.receivers (removed)",
                "line 8: remote sampling config detected in the Jaeger receiver; use the `jaegerremotesampling` extension instead",
            ]
        );
    }
}
