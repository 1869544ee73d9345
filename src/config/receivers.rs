//! `distributor.receivers`: which receivers run and where they listen.
//!
//! The keys are those of the OpenTelemetry Collector, a map from `type` or `type/name` to the receiver's block. A protocol runs iff its key is
//! there, even without a value. Every known type is checked strictly; this version runs OTLP only and names the others.

use std::sync::Arc;

use super::{
    check::check,
    document::{Data, Node, Problem},
    schema::{JAEGER, KAFKA, OTLP, Schema, Status, ZIPKIN},
    settings::Settings,
};

/// gRPC's own limit of a received message when nothing is written.
const DEFAULT_GRPC_MESSAGE_BYTES: usize = 4 << 20;
/// The collector's limit of a request body.
const DEFAULT_HTTP_BODY_BYTES: usize = 20 << 20;

/// An OTLP/gRPC receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtlpGrpc {
    /// `host:port` to listen on.
    pub(crate) endpoint: String,
    /// Largest accepted message, after decompression.
    pub(crate) max_message_bytes: usize,
}

/// An OTLP/HTTP receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtlpHttp {
    /// `host:port` to listen on.
    pub(crate) endpoint: String,
    /// Largest accepted body, compressed and decompressed.
    pub(crate) max_body_bytes: usize,
    /// Where traces are posted.
    pub(crate) traces_path: String,
}

/// The receivers of the distributor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Receivers {
    /// OTLP over gRPC.
    pub(crate) otlp_grpc: Vec<OtlpGrpc>,
    /// OTLP over HTTP.
    pub(crate) otlp_http: Vec<OtlpHttp>,
    /// Receivers that this version doesn't run, by name.
    pub(crate) unavailable: Vec<String>,
    /// Keys that are written and have no effect.
    pub(crate) unused: Vec<String>,
}

impl Receivers {
    /// What runs when nothing is written: Jaeger and OTLP/gRPC on localhost.
    pub(crate) fn fallback() -> Self {
        Self {
            otlp_grpc: vec![grpc("localhost:4317")],
            unavailable: vec!["jaeger/grpc".to_owned(), "jaeger/thrift_http".to_owned()],
            ..Self::default()
        }
    }

    /// What runs without a configuration file: OTLP over both transports, loopback only.
    pub(crate) fn embedded() -> Self {
        Self { otlp_grpc: vec![grpc("127.0.0.1:4317")], otlp_http: vec![http("127.0.0.1:4318")], ..Self::default() }
    }
}

fn grpc(endpoint: &str) -> OtlpGrpc {
    OtlpGrpc { endpoint: endpoint.to_owned(), max_message_bytes: DEFAULT_GRPC_MESSAGE_BYTES }
}

fn http(endpoint: &str) -> OtlpHttp {
    OtlpHttp { endpoint: endpoint.to_owned(), max_body_bytes: DEFAULT_HTTP_BODY_BYTES, traces_path: "/v1/traces".to_owned() }
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
        if kind == "otlp" {
            otlp(&checked.settings, &protocols, &name, problems, &mut receivers);
        } else {
            receivers.unavailable.push(entry.key.clone());
        }
    }
    receivers
}

fn otlp(settings: &Settings, protocols: &[&str], name: &str, problems: &mut Vec<Problem>, receivers: &mut Receivers) {
    let unused = settings.written_leaves().filter(|leaf| leaf.status == Status::Unused && settings.differs(&leaf.path));
    receivers.unused.extend(unused.map(|leaf| format!("{name}.{}", leaf.path)));
    let mut endpoint = |protocol: &str, default: &str| {
        let path = format!("protocols.{protocol}.endpoint");
        let text = Some(settings.text(&path)).filter(|text| !text.is_empty()).unwrap_or(default).to_owned();
        if !is_endpoint(&text) {
            problems.push(Problem::new(settings.line(&path), format!("{name}.{path}: \"{text}\" is not of the form host:port")));
        }
        text
    };
    let bytes = |path: &str, unit: u64, default: usize| match settings.number(path) {
        0 => default,
        written => usize::try_from(written.saturating_mul(unit)).unwrap_or(usize::MAX),
    };
    if protocols.contains(&"grpc") {
        receivers.otlp_grpc.push(OtlpGrpc {
            endpoint: endpoint("grpc", "localhost:4317"),
            max_message_bytes: bytes("protocols.grpc.max_recv_msg_size_mib", 1 << 20, DEFAULT_GRPC_MESSAGE_BYTES),
        });
    }
    if protocols.contains(&"http") {
        receivers.otlp_http.push(OtlpHttp {
            endpoint: endpoint("http", "localhost:4318"),
            max_body_bytes: bytes("protocols.http.max_request_body_size", 1, DEFAULT_HTTP_BODY_BYTES),
            traces_path: settings.text("protocols.http.traces_url_path").to_owned(),
        });
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
        assert_eq!(receivers.otlp_grpc, [grpc("localhost:4317")]);
        assert_eq!(receivers.otlp_http, [OtlpHttp { max_body_bytes: 100, ..http("0.0.0.0:4318") }]);
    }

    #[test]
    fn nothing_written_is_the_fallback() {
        assert_eq!(run("").0, Receivers::fallback());
        assert_eq!(run("{}").0, Receivers::fallback());
    }

    #[test]
    fn other_receivers_are_checked_and_named() {
        let (receivers, problems) = run(
            "jaeger:\n  protocols:\n    thrift_http:\nzipkin:\nkafka/a:\n  brokers: [b:9092]\notlp/two:\n  protocols: {grpc: {tls: {cert_file: x}}}\n",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(receivers.unavailable, ["jaeger", "zipkin", "kafka/a"]);
        assert_eq!(receivers.unused, ["distributor.receivers.otlp/two.protocols.grpc.tls.cert_file"]);
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
