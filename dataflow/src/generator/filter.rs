//! Filter policies: which spans make span metrics or edges.
//!
//! A span passes when every policy accepts it. A policy accepts when its `include` and `include_any` match (if it has them) and its
//! `exclude` does not. `include_any` matches when one of its attributes does, the others when all do.

use std::borrow::Cow;

use regex::bytes::Regex;

use super::{
    FirstSeen,
    attributes::{self, Any, RESOURCE_ATTRIBUTES, SPAN_ATTRIBUTES},
    settings::{FilterPolicy, MatchAttribute, MatchType, MatchValue, PolicyMatch},
};

/// Why policies cannot be used. The texts name what is wrong with which attribute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Neither `include`, nor `include_any`, nor `exclude`.
    #[error("filter policy has neither include nor include_any nor exclude")]
    Empty,
    /// A key that is neither an intrinsic nor scoped.
    #[error("filter policy attribute \"{0}\" is not kind, status, name, span.<key> or resource.<key>")]
    Key(String),
    /// A value that the attribute never has.
    #[error("filter policy attribute \"{key}\" cannot be {value}")]
    Value {
        /// The attribute.
        key: String,
        /// The value.
        value: String,
    },
    /// Not a regular expression.
    #[error("filter policy attribute \"{key}\" is compared with \"{pattern}\", which is no regular expression: {cause}")]
    Pattern {
        /// The attribute.
        key: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// Compiled policies.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    policies: Vec<Policy>,
}

#[derive(Clone, Debug)]
struct Policy {
    include: Option<Vec<Comparison>>,
    include_any: Option<Vec<Comparison>>,
    exclude: Option<Vec<Comparison>>,
}

#[derive(Clone, Debug)]
struct Comparison {
    key: Key,
    with: With,
}

#[derive(Clone, Debug)]
enum Key {
    Kind,
    Status,
    Name,
    Span(Vec<u8>),
    Resource(Vec<u8>),
}

#[derive(Clone, Debug)]
enum With {
    Value(MatchValue),
    Pattern(Regex),
}

const KINDS: [&str; 6] =
    ["SPAN_KIND_UNSPECIFIED", "SPAN_KIND_INTERNAL", "SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_PRODUCER", "SPAN_KIND_CONSUMER"];
const STATUSES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

/// The name of a span kind; a number for one that OTLP does not know.
pub fn kind_name(kind: i32) -> Cow<'static, str> {
    name_of(&KINDS, kind)
}

/// The name of a status code; a number for one that OTLP does not know.
pub fn status_name(status: i32) -> Cow<'static, str> {
    name_of(&STATUSES, status)
}

fn name_of(names: &[&'static str], number: i32) -> Cow<'static, str> {
    let name = usize::try_from(number).ok().and_then(|number| names.get(number));
    name.map_or_else(|| Cow::Owned(number.to_string()), |name| Cow::Borrowed(*name))
}

impl Filter {
    /// Compiles policies.
    ///
    /// # Errors
    /// The first thing that is wrong with them.
    pub fn new(policies: &[FilterPolicy]) -> Result<Self, FilterError> {
        let compile = |policy: &FilterPolicy| {
            let FilterPolicy { include, include_any, exclude } = policy;
            if include.is_none() && include_any.is_none() && exclude.is_none() {
                return Err(FilterError::Empty);
            }
            let compile = |side: &Option<PolicyMatch>| side.as_ref().map(comparisons).transpose();
            Ok(Policy { include: compile(include)?, include_any: compile(include_any)?, exclude: compile(exclude)? })
        };
        Ok(Self { policies: policies.iter().map(compile).collect::<Result<_, _>>()? })
    }

    /// Whether the span passes.
    pub fn accepts(&self, span: &FirstSeen<'_>) -> bool {
        let all = |comparisons: &Vec<Comparison>| comparisons.iter().all(|comparison| comparison.holds(span));
        let any = |comparisons: &Vec<Comparison>| comparisons.iter().any(|comparison| comparison.holds(span));
        self.policies.iter().all(|policy| {
            policy.include.as_ref().is_none_or(all)
                && policy.include_any.as_ref().is_none_or(any)
                && !policy.exclude.as_ref().is_some_and(all)
        })
    }
}

fn comparisons(policy: &PolicyMatch) -> Result<Vec<Comparison>, FilterError> {
    policy.attributes.iter().map(|attribute| comparison(policy.match_type, attribute)).collect()
}

fn comparison(match_type: MatchType, attribute: &MatchAttribute) -> Result<Comparison, FilterError> {
    let scoped = |scope: &str| attribute.key.strip_prefix(scope).filter(|key| !key.is_empty()).map(|key| key.as_bytes().to_vec());
    let key = match attribute.key.as_str() {
        "kind" => Key::Kind,
        "status" => Key::Status,
        "name" => Key::Name,
        _ => match (scoped("span."), scoped("resource.")) {
            (Some(key), _) => Key::Span(key),
            (_, Some(key)) => Key::Resource(key),
            _ => return Err(FilterError::Key(attribute.key.clone())),
        },
    };
    let wrong = || FilterError::Value { key: attribute.key.clone(), value: format!("{:?}", attribute.value) };
    let with =
        match (match_type, &attribute.value) {
            (MatchType::Regex, MatchValue::String(pattern)) => With::Pattern(Regex::new(pattern).map_err(|error| {
                FilterError::Pattern { key: attribute.key.clone(), pattern: pattern.clone(), cause: error.to_string() }
            })?),
            (MatchType::Regex, _) => return Err(wrong()),
            (MatchType::Strict, value) => {
                let known = match (&key, value) {
                    (Key::Kind, MatchValue::String(name)) => KINDS.contains(&name.as_str()),
                    (Key::Status, MatchValue::String(name)) => STATUSES.contains(&name.as_str()),
                    (Key::Name, MatchValue::String(_)) | (Key::Span(_) | Key::Resource(_), _) => true,
                    _ => false,
                };
                if !known {
                    return Err(wrong());
                }
                With::Value(value.clone())
            }
        };
    Ok(Comparison { key, with })
}

impl Comparison {
    fn holds(&self, span: &FirstSeen<'_>) -> bool {
        match &self.key {
            Key::Kind => self.compare(Any::String(kind_name(span.kind).as_bytes())),
            Key::Status => self.compare(Any::String(status_name(span.status).as_bytes())),
            Key::Name => self.compare(Any::String(span.name)),
            Key::Span(key) => attributes::find(span.span, SPAN_ATTRIBUTES, key).is_some_and(|value| self.compare(attributes::any(value))),
            Key::Resource(key) => {
                attributes::find(span.resource, RESOURCE_ATTRIBUTES, key).is_some_and(|value| self.compare(attributes::any(value)))
            }
        }
    }

    /// A value of another type counts as the zero of the wanted type: Tempo's rule.
    fn compare(&self, value: Any<'_>) -> bool {
        let text = if let Any::String(text) = value { text } else { b"" };
        match &self.with {
            With::Pattern(pattern) => pattern.is_match(text),
            With::Value(MatchValue::String(wanted)) => text == wanted.as_bytes(),
            With::Value(MatchValue::Int(wanted)) => *wanted == if let Any::Int(int) = value { int } else { 0 },
            With::Value(MatchValue::Double(wanted)) => *wanted == if let Any::Double(double) = value { double } else { 0.0 },
            With::Value(MatchValue::Bool(wanted)) => *wanted == matches!(value, Any::Bool(true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::{
        common::v1::{AnyValue, KeyValue, any_value::Value},
        resource::v1::Resource,
        trace::v1::Span,
    };
    use prost::Message;
    use storage::id::TraceId;

    use super::*;

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn policy(match_type: MatchType, attributes: &[(&str, MatchValue)]) -> PolicyMatch {
        let attributes = attributes.iter().map(|(key, value)| MatchAttribute { key: (*key).to_owned(), value: value.clone() }).collect();
        PolicyMatch { match_type, attributes }
    }

    fn text(text: &str) -> MatchValue {
        MatchValue::String(text.to_owned())
    }

    /// Whether an `include` of these accepts a server's span with an error, named `GET /x`.
    fn includes(match_type: MatchType, attributes: &[(&str, MatchValue)]) -> Result<bool, FilterError> {
        let resource =
            Resource { attributes: vec![attribute("service.name", Value::StringValue("shop".to_owned()))], ..Resource::default() };
        let attributes_of_span = vec![
            attribute("n", Value::IntValue(7)),
            attribute("n", Value::IntValue(8)),
            attribute("flag", Value::BoolValue(true)),
            attribute("ratio", Value::DoubleValue(0.5)),
        ];
        let span = Span { attributes: attributes_of_span, ..Span::default() };
        let (resource, span) = (resource.encode_to_vec(), span.encode_to_vec());
        let first_seen = FirstSeen {
            trace_id: TraceId([1; 16]),
            span_id: 1,
            parent_span_id: 0,
            kind: 2,
            status: 2,
            start_ns: 0,
            end_ns: 1,
            service: "shop",
            name: b"GET /x",
            resource: &resource,
            span: &span,
            of_resource: &[],
            of_span: &[],
        };
        let include = Some(policy(match_type, attributes));
        let exclude = FilterPolicy { exclude: include.clone(), ..FilterPolicy::default() };
        let each = attributes.iter().map(|attribute| policy(match_type, std::slice::from_ref(attribute)));
        let each = each.map(|each| FilterPolicy { include: Some(each), ..FilterPolicy::default() }).collect::<Vec<_>>();
        let one_of = FilterPolicy { include_any: include.clone(), ..FilterPolicy::default() };
        let accepted = Filter::new(&[FilterPolicy { include, ..FilterPolicy::default() }])?.accepts(&first_seen);
        let mut any = false;
        for one in &each {
            any |= Filter::new(std::slice::from_ref(one))?.accepts(&first_seen);
        }
        assert_eq!(Filter::new(&[one_of])?.accepts(&first_seen), any, "one of them is enough");
        assert_eq!(Filter::new(&each)?.accepts(&first_seen), accepted, "all policies must accept");
        assert_ne!(Filter::new(&[exclude])?.accepts(&first_seen), accepted, "what is not included is not excluded");
        Ok(accepted)
    }

    #[test]
    fn values_compare_as_in_tempo() {
        use MatchType::{Regex, Strict};
        for (expected, match_type, attributes) in [
            (true, Strict, &[("kind", text("SPAN_KIND_SERVER")), ("status", text("STATUS_CODE_ERROR"))][..]),
            (false, Strict, &[("kind", text("SPAN_KIND_SERVER")), ("status", text("STATUS_CODE_OK"))]),
            (true, Strict, &[("resource.service.name", text("shop")), ("span.n", MatchValue::Int(7))]),
            (false, Strict, &[("span.n", MatchValue::Int(8))]),
            (false, Strict, &[("span.absent", MatchValue::Int(0))]),
            (true, Strict, &[("span.flag", MatchValue::Bool(true)), ("span.ratio", MatchValue::Double(0.5))]),
            (true, Strict, &[("span.flag", text("")), ("span.ratio", MatchValue::Int(0))]),
            (true, Regex, &[("name", text("/x")), ("kind", text("^SPAN_KIND_(SERVER|CLIENT)$"))]),
            (true, Regex, &[("resource.service.name", text("ho")), ("span.n", text("^$"))]),
            (false, Regex, &[("name", text("^/x"))]),
            (true, Strict, &[]),
        ] {
            assert_eq!(includes(match_type, attributes), Ok(expected), "{match_type:?} {attributes:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        use MatchType::{Regex, Strict};
        assert_eq!(Filter::new(&[FilterPolicy::default()]).err(), Some(FilterError::Empty));
        for (match_type, key, value) in [
            (Strict, "kind", text("server")),
            (Strict, "status", MatchValue::Int(2)),
            (Strict, ".x", text("y")),
            (Strict, "span.", text("y")),
            (Regex, "name", text("(")),
            (Regex, "span.n", MatchValue::Int(7)),
        ] {
            let error = includes(match_type, &[(key, value)]).expect_err("makes no sense").to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
