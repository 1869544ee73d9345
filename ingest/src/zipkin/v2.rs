//! Zipkin's v2 encodings: a JSON array of spans, and `zipkin.proto3.ListOfSpans`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use prost::Message as _;
use serde::Deserialize;

use super::{
    list,
    model::{Annotation, Endpoint, JsonEndpoint, Kind, Malformed, Span, span_id, trace_id},
};
use crate::wire::count_field;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JsonSpan {
    #[serde(default)]
    trace_id: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    parent_id: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    timestamp: Option<u64>,
    #[serde(default)]
    duration: Option<u64>,
    #[serde(default)]
    local_endpoint: Option<JsonEndpoint>,
    #[serde(default)]
    remote_endpoint: Option<JsonEndpoint>,
    #[serde(default)]
    annotations: Option<Vec<JsonAnnotation>>,
    #[serde(default)]
    tags: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct JsonAnnotation {
    #[serde(default)]
    timestamp: u64,
    #[serde(default)]
    value: String,
}

/// Reads a JSON array of spans.
pub(super) fn from_json(body: &[u8]) -> Result<Vec<Span>, Malformed> {
    let spans: Vec<JsonSpan> = list::from_json(body)?;
    spans.into_iter().enumerate().map(|(number, span)| span.into_span(number)).collect()
}

impl JsonSpan {
    fn into_span(self, number: usize) -> Result<Span, Malformed> {
        let wrong = |field: &'static str| move |why: String| Malformed::Field { span: number, field, why };
        let kind = match self.kind.as_deref().unwrap_or_default() {
            "" => Kind::Unspecified,
            "CLIENT" => Kind::Client,
            "SERVER" => Kind::Server,
            "PRODUCER" => Kind::Producer,
            "CONSUMER" => Kind::Consumer,
            // What a newer Zipkin may know is no reason to lose the span.
            _ => Kind::Unspecified,
        };
        let annotation = |JsonAnnotation { timestamp, value }| match timestamp {
            0 => Err(wrong("annotations")("valid annotation timestamp required".to_owned())),
            _ => Ok(Annotation { timestamp, value }),
        };
        Ok(Span {
            trace_id: trace_id(&self.trace_id).map_err(wrong("traceId"))?,
            id: span_id(&self.id).map_err(wrong("id"))?,
            parent_id: self.parent_id.filter(|id| !id.is_empty()).map(|id| span_id(&id)).transpose().map_err(wrong("parentId"))?,
            kind,
            name: self.name.unwrap_or_default(),
            timestamp: self.timestamp.unwrap_or_default(),
            duration: self.duration.unwrap_or_default(),
            local: self.local_endpoint.unwrap_or_default().into_endpoint().map_err(wrong("localEndpoint"))?,
            remote: self.remote_endpoint.unwrap_or_default().into_endpoint().map_err(wrong("remoteEndpoint"))?,
            annotations: self.annotations.unwrap_or_default().into_iter().map(annotation).collect::<Result<_, _>>()?,
            tags: self.tags.unwrap_or_default(),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtoSpans {
    #[prost(message, repeated, tag = "1")]
    spans: Vec<ProtoSpan>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtoSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    parent_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    id: Vec<u8>,
    #[prost(int32, tag = "4")]
    kind: i32,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "6")]
    timestamp: u64,
    #[prost(uint64, tag = "7")]
    duration: u64,
    #[prost(message, optional, tag = "8")]
    local_endpoint: Option<ProtoEndpoint>,
    #[prost(message, optional, tag = "9")]
    remote_endpoint: Option<ProtoEndpoint>,
    #[prost(message, repeated, tag = "10")]
    annotations: Vec<ProtoAnnotation>,
    #[prost(btree_map = "string, string", tag = "11")]
    tags: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtoEndpoint {
    #[prost(string, tag = "1")]
    service_name: String,
    #[prost(bytes = "vec", tag = "2")]
    ipv4: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    ipv6: Vec<u8>,
    #[prost(int32, tag = "4")]
    port: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ProtoAnnotation {
    #[prost(fixed64, tag = "1")]
    timestamp: u64,
    #[prost(string, tag = "2")]
    value: String,
}

/// Reads an encoded `zipkin.proto3.ListOfSpans`.
pub(super) fn from_proto(body: &[u8]) -> Result<Vec<Span>, Malformed> {
    if count_field(body, 1) > list::most_spans(body) {
        return Err(Malformed::Encoding("more spans than the body can hold".to_owned()));
    }
    let spans = ProtoSpans::decode(body).map_err(|error| Malformed::Encoding(error.to_string()))?.spans;
    spans.into_iter().enumerate().map(|(number, span)| span.into_span(number)).collect()
}

impl ProtoSpan {
    fn into_span(self, number: usize) -> Result<Span, Malformed> {
        let wrong = |field: &'static str| move |why: String| Malformed::Field { span: number, field, why };
        let id = |bytes: &[u8]| match <[u8; 8]>::try_from(bytes) {
            Ok([0, 0, 0, 0, 0, 0, 0, 0]) => Err("valid span id required".to_owned()),
            Ok(id) => Ok(id),
            Err(_) => Err(format!("{} bytes where 8 are required", bytes.len())),
        };
        let trace_id = match <[u8; 16]>::try_from(self.trace_id.as_slice()) {
            Ok(id) if id == [0; 16] => Err("valid trace id required".to_owned()),
            Ok(id) => Ok(id),
            Err(_) => Err(format!("{} bytes where 16 are required", self.trace_id.len())),
        };
        let kind = match self.kind {
            1 => Kind::Client,
            2 => Kind::Server,
            3 => Kind::Producer,
            4 => Kind::Consumer,
            _ => Kind::Unspecified,
        };
        let annotation = |ProtoAnnotation { timestamp, value }| match timestamp {
            0 => Err(wrong("annotations")("valid annotation timestamp required".to_owned())),
            _ => Ok(Annotation { timestamp, value }),
        };
        Ok(Span {
            trace_id: trace_id.map_err(wrong("trace_id"))?,
            id: id(&self.id).map_err(wrong("id"))?,
            parent_id: Some(&self.parent_id).filter(|id| !id.is_empty()).map(|bytes| id(bytes)).transpose().map_err(wrong("parent_id"))?,
            kind,
            name: self.name,
            timestamp: self.timestamp,
            duration: self.duration,
            local: self.local_endpoint.unwrap_or_default().into_endpoint().map_err(wrong("local_endpoint"))?,
            remote: self.remote_endpoint.unwrap_or_default().into_endpoint().map_err(wrong("remote_endpoint"))?,
            annotations: self.annotations.into_iter().map(annotation).collect::<Result<_, _>>()?,
            tags: self.tags,
        })
    }
}

impl ProtoEndpoint {
    fn into_endpoint(self) -> Result<Endpoint, String> {
        let address = |bytes: &[u8], wanted: usize| format!("an address of {} bytes where {wanted} are required", bytes.len());
        let ipv4 = Some(self.ipv4.as_slice()).filter(|bytes| !bytes.is_empty());
        let ipv6 = Some(self.ipv6.as_slice()).filter(|bytes| !bytes.is_empty());
        Ok(Endpoint {
            service: self.service_name,
            ipv4: ipv4.map(|bytes| <[u8; 4]>::try_from(bytes).map(Ipv4Addr::from).map_err(|_| address(bytes, 4))).transpose()?,
            ipv6: ipv6.map(|bytes| <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from).map_err(|_| address(bytes, 16))).transpose()?,
            port: u16::try_from(self.port).map_err(|_| format!("port {} is out of range", self.port))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_protobuf_say_the_same() {
        let json = br#"[{"traceId":"1","id":"2","parentId":"a","kind":"CLIENT","name":"get","timestamp":5,"duration":7,"shared":true,"debug":false,
            "localEndpoint":{"serviceName":"front","ipv4":"10.0.0.1","port":80},"remoteEndpoint":{"ipv6":"::1"},
            "annotations":[{"timestamp":6,"value":"ws"}],"tags":{"b":"2","a":"1"}}]"#;
        let proto = ProtoSpans {
            spans: vec![ProtoSpan {
                trace_id: [&[0; 15][..], &[1]].concat(),
                parent_id: vec![0, 0, 0, 0, 0, 0, 0, 10],
                id: vec![0, 0, 0, 0, 0, 0, 0, 2],
                kind: 1,
                name: "get".to_owned(),
                timestamp: 5,
                duration: 7,
                local_endpoint: Some(ProtoEndpoint {
                    service_name: "front".to_owned(),
                    ipv4: vec![10, 0, 0, 1],
                    ipv6: Vec::new(),
                    port: 80,
                }),
                remote_endpoint: Some(ProtoEndpoint { ipv6: Ipv6Addr::LOCALHOST.octets().to_vec(), ..ProtoEndpoint::default() }),
                annotations: vec![ProtoAnnotation { timestamp: 6, value: "ws".to_owned() }],
                tags: [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            }],
        };
        let spans = from_json(json).expect("json");
        assert_eq!(from_proto(&proto.encode_to_vec()).expect("protobuf"), spans);
        assert_eq!((spans[0].trace_id[15], spans[0].id[7], spans[0].kind, spans[0].local.port), (1, 2, Kind::Client, 80));
    }

    #[test]
    fn mistakes_name_span_and_field() {
        for (json, error) in [
            ("{}", "invalid type: map, expected a sequence at line 1 column 0"),
            (r#"[{"traceId":"1","id":"0"}]"#, "span 0: id: valid span id required"),
            (r#"[{"traceId":"1","id":"1"},{"id":"1"}]"#, "span 1: traceId: \"\" is not 1 to 32 hexadecimal digits"),
            (r#"[{"traceId":"g","id":"1"}]"#, "span 0: traceId: \"g\" is not 1 to 32 hexadecimal digits"),
            (r#"[{"traceId":"1","id":"12345678901234567"}]"#, "span 0: id: \"12345678901234567\" is not 1 to 16 hexadecimal digits"),
            (r#"[{"traceId":"1","id":"1","localEndpoint":{"ipv4":"x"}}]"#, "span 0: localEndpoint: \"x\" is not an IPv4 address"),
            (r#"[{"traceId":"1","id":"1","annotations":[{"value":"x"}]}]"#, "span 0: annotations: valid annotation timestamp required"),
        ] {
            assert_eq!(from_json(json.as_bytes()).expect_err(json).to_string(), error);
        }
        let short = ProtoSpans { spans: vec![ProtoSpan { trace_id: vec![1; 8], id: vec![1; 8], ..ProtoSpan::default() }] };
        assert_eq!(from_proto(&short.encode_to_vec()).expect_err("short").to_string(), "span 0: trace_id: 8 bytes where 16 are required");
        assert!(from_proto(b"\xff").is_err());
    }

    #[test]
    fn spans_that_are_next_to_nothing_are_not_a_million() {
        let json = format!("[{}{{}}]", "{},".repeat(1000));
        assert!(from_json(json.as_bytes()).expect_err("json").to_string().starts_with("more spans than the body can hold"));
        assert_eq!(from_proto(&[0x0a, 0].repeat(1000)).expect_err("protobuf").to_string(), "more spans than the body can hold");
    }
}
