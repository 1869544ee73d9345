//! The search of old clients: pairs in logfmt (`tags=service.name=shop http.status_code=500`) instead of a TraceQL query.
//!
//! A trace matches when each pair holds for some span or resource of it. Names, service names and the attributes that Tempo gives a string
//! column of their own are compared as substrings, those with an integer column as numbers, everything else exactly and as strings.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, status::StatusCode},
};

use super::combine::spans;

const SUBSTRING: [&str; 18] = [
    "k8s.cluster.name",
    "k8s.namespace.name",
    "k8s.pod.name",
    "k8s.container.name",
    "cluster",
    "namespace",
    "pod",
    "container",
    "http.request.method",
    "url.path",
    "url.route",
    "server.address",
    "http.method",
    "http.url",
    "http.route",
    "service.name",
    "name",
    "root.name",
];
const NUMBER: [&str; 3] = ["http.response.status_code", "server.port", "http.status_code"];

/// The pairs of a `tags` parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LegacyTags(Vec<(String, String)>);

/// Why a `tags` parameter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTags {
    /// A key appears twice.
    #[error("invalid tags: tag {key} has been set twice")]
    Twice {
        /// The key.
        key: String,
    },
    /// It is not logfmt.
    #[error("invalid tags: {what} at pos {position}")]
    Syntax {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from 1.
        position: usize,
    },
}

impl LegacyTags {
    /// Reads logfmt: `key=value` or `key="quoted value"`, separated by spaces.
    ///
    /// # Errors
    /// The text is not logfmt, or a key appears twice.
    pub fn parse(text: &str) -> Result<Self, InvalidTags> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let position = |rest: &str| text.len() - rest.len() + 1;
            let key_end = rest.find(|c: char| c == '=' || c == '"' || c.is_whitespace()).unwrap_or(rest.len());
            let (key, after) = rest.split_at(key_end);
            if key.is_empty() {
                let what = if after.starts_with('=') { "unexpected '='" } else { "unexpected '\"'" };
                return Err(InvalidTags::Syntax { what, position: position(after) });
            }
            if after.starts_with('"') {
                return Err(InvalidTags::Syntax { what: "unexpected '\"'", position: position(after) });
            }
            let (value, after) = match after.strip_prefix('=') {
                None => (String::new(), after),
                Some(quoted) if quoted.starts_with('"') => {
                    let (value, length) = unquote(quoted)
                        .map_err(|at| InvalidTags::Syntax { what: "unterminated quoted value", position: position(quoted) + at })?;
                    (value, &quoted[length..])
                }
                Some(plain) => {
                    let end = plain.find(char::is_whitespace).unwrap_or(plain.len());
                    let (value, after) = plain.split_at(end);
                    if let Some(at) = value.find(['=', '"']) {
                        let what = if value.as_bytes()[at] == b'=' { "unexpected '='" } else { "unexpected '\"'" };
                        return Err(InvalidTags::Syntax { what, position: position(plain) + at });
                    }
                    (value.to_owned(), after)
                }
            };
            if pairs.iter().any(|(known, _)| known == key) {
                return Err(InvalidTags::Twice { key: key.to_owned() });
            }
            pairs.push((key.to_owned(), value));
            rest = after.trim_start();
        }
        Ok(Self(pairs))
    }

    /// Pairs that were parsed before.
    pub(crate) fn from_pairs(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// The pairs, in their order.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Pairs as text that [`Self::parse`] reads.
    pub fn print(pairs: &BTreeMap<String, String>) -> String {
        let quoted = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"");
        pairs.iter().map(|(key, value)| format!("{key}=\"{}\"", quoted(value))).collect::<Vec<_>>().join(" ")
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every pair holds somewhere in the trace, whose root span has the given name and service.
    pub(super) fn matches(&self, trace: &[ResourceSpans], root_name: &str, root_service: &str) -> bool {
        self.0.iter().all(|(key, value)| holds(key, value, trace, root_name, root_service))
    }
}

/// The contents of the quoted text at the beginning of `text` and its length with quotes; or where it breaks off.
fn unquote(text: &str) -> Result<(String, usize), usize> {
    let mut value = String::new();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, at + 1)),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, other)) => value.push(other),
                None => return Err(text.len()),
            },
            other => value.push(other),
        }
    }
    Err(text.len())
}

fn holds(key: &str, value: &str, trace: &[ResourceSpans], root_name: &str, root_service: &str) -> bool {
    match key {
        "name" => spans(trace).any(|span| span.name.contains(value)),
        "root.name" => root_name.contains(value),
        "root.service.name" => root_service.contains(value),
        "status.code" => {
            let code = match value {
                "ok" => StatusCode::Ok,
                "error" => StatusCode::Error,
                _ => StatusCode::Unset,
            };
            spans(trace).any(|span| status(span) == code as i32)
        }
        _ if SUBSTRING.contains(&key) => {
            any_attribute(trace, key, |found| matches!(found, Value::StringValue(found) if found.contains(value)))
        }
        _ => {
            let number = NUMBER.contains(&key).then(|| value.parse::<i64>().ok()).flatten();
            any_attribute(trace, key, |found| match (found, number) {
                (Value::IntValue(found), Some(number)) => *found == number,
                (Value::StringValue(found), _) => found == value,
                _ => false,
            })
        }
    }
}

fn status(span: &Span) -> i32 {
    span.status.as_ref().map_or(0, |status| status.code)
}

fn any_attribute(trace: &[ResourceSpans], key: &str, test: impl Fn(&Value) -> bool) -> bool {
    let has = |attributes: &[KeyValue]| {
        let values = attributes.iter().filter(|attribute| attribute.key == key);
        values.filter_map(|attribute| attribute.value.as_ref()?.value.as_ref()).any(&test)
    };
    trace.iter().any(|resource| {
        resource.resource.as_ref().is_some_and(|resource| has(&resource.attributes))
            || resource.scope_spans.iter().flat_map(|scope| &scope.spans).any(|span| has(&span.attributes))
    })
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::AnyValue,
        resource::v1::Resource,
        trace::v1::{ScopeSpans, Status},
    };

    use super::*;

    #[track_caller]
    fn pairs(text: &str) -> Vec<(String, String)> {
        LegacyTags::parse(text).expect("logfmt").0
    }

    #[test]
    fn logfmt_is_read() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(pairs(" a=b  c=\"d e\\\"f\" g "), [pair("a", "b"), pair("c", "d e\"f"), pair("g", "")]);
        assert_eq!(pairs(""), []);
    }

    #[test]
    fn bad_logfmt_is_refused() {
        let text = |tags: &str| LegacyTags::parse(tags).expect_err("bad").to_string();
        assert_eq!(text("a=b a=c"), "invalid tags: tag a has been set twice");
        assert_eq!(text("=b"), "invalid tags: unexpected '=' at pos 1");
        assert_eq!(text("a=b=c"), "invalid tags: unexpected '=' at pos 4");
        assert_eq!(text("a\"b"), "invalid tags: unexpected '\"' at pos 2");
        assert_eq!(text("a=\"b"), "invalid tags: unterminated quoted value at pos 5");
    }

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn trace() -> Vec<ResourceSpans> {
        let span = Span {
            name: "charge card".to_owned(),
            attributes: vec![
                attribute("http.status_code", Value::IntValue(500)),
                attribute("http.url", Value::StringValue("/a/b".to_owned())),
                attribute("user", Value::StringValue("alice".to_owned())),
            ],
            status: Some(Status { code: 2, ..Status::default() }),
            ..Span::default()
        };
        let resource =
            Resource { attributes: vec![attribute("service.name", Value::StringValue("shop-backend".to_owned()))], ..Resource::default() };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
        vec![ResourceSpans { resource: Some(resource), scope_spans, ..ResourceSpans::default() }]
    }

    #[test]
    fn pairs_match_as_tempo_does() {
        let check = |tags: &str, expected: bool| {
            let matched = LegacyTags::parse(tags).expect("logfmt").matches(&trace(), "checkout", "web");
            assert_eq!(matched, expected, "{tags}");
        };
        check("service.name=backend name=charge", true);
        check("service.name=Backend", false);
        check("user=alice", true);
        check("user=ali", false);
        check("http.url=/a", true);
        check("http.status_code=500", true);
        check("http.status_code=50", false);
        check("status.code=error", true);
        check("status.code=ok", false);
        check("root.name=check root.service.name=web", true);
        check("root.name=charge", false);
        check("user=alice missing=x", false);
    }
}
