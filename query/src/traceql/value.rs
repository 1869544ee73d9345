//! Values of the language: literals of a query, attributes of a span, results of an aggregate.

use std::fmt;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, any_value};

use super::number::format_duration;

/// The status of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// `error`
    Error,
    /// `ok`
    Ok,
    /// `unset`, also when the span has no status.
    Unset,
}

impl Status {
    /// The keyword.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Ok => "ok",
            Self::Unset => "unset",
        }
    }

    /// The value for an OTLP status code.
    pub fn from_otlp(code: i32) -> Self {
        match code {
            1 => Self::Ok,
            2 => Self::Error,
            _ => Self::Unset,
        }
    }
}

/// The kind of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `unspecified`
    Unspecified,
    /// `internal`
    Internal,
    /// `server`
    Server,
    /// `client`
    Client,
    /// `producer`
    Producer,
    /// `consumer`
    Consumer,
}

impl Kind {
    /// The keyword.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }

    /// The value for an OTLP span kind.
    pub fn from_otlp(kind: i32) -> Self {
        match kind {
            1 => Self::Internal,
            2 => Self::Server,
            3 => Self::Client,
            4 => Self::Producer,
            5 => Self::Consumer,
            _ => Self::Unspecified,
        }
    }
}

/// A typed value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Absent.
    Nil,
    /// 64-bit integer.
    Int(i64),
    /// Double.
    Float(f64),
    /// Text.
    String(String),
    /// `true` or `false`.
    Bool(bool),
    /// Nanoseconds.
    Duration(i64),
    /// Status of a span.
    Status(Status),
    /// Kind of a span.
    Kind(Kind),
    /// At least two values of one type: integer, float, string or boolean. Only attributes have it.
    Array(Vec<Value>),
}

impl Value {
    /// The type.
    pub fn type_of(&self) -> Type {
        match self {
            Self::Nil => Type::Nil,
            Self::Int(_) => Type::Int,
            Self::Float(_) => Type::Float,
            Self::String(_) => Type::String,
            Self::Bool(_) => Type::Bool,
            Self::Duration(_) => Type::Duration,
            Self::Status(_) => Type::Status,
            Self::Kind(_) => Type::Kind,
            Self::Array(_) => Type::Array,
        }
    }

    /// The value as search results show it: durations, enums and nil as text.
    pub fn to_any_value(&self) -> AnyValue {
        let value = match self {
            Self::Nil => any_value::Value::StringValue("nil".to_owned()),
            Self::Int(number) => any_value::Value::IntValue(*number),
            Self::Float(number) => any_value::Value::DoubleValue(*number),
            Self::String(text) => any_value::Value::StringValue(text.clone()),
            Self::Bool(value) => any_value::Value::BoolValue(*value),
            Self::Duration(nanos) => any_value::Value::StringValue(format_duration(*nanos)),
            Self::Status(status) => any_value::Value::StringValue(status.as_str().to_owned()),
            Self::Kind(kind) => any_value::Value::StringValue(kind.as_str().to_owned()),
            Self::Array(values) => any_value::Value::ArrayValue(ArrayValue { values: values.iter().map(Self::to_any_value).collect() }),
        };
        AnyValue { value: Some(value) }
    }
}

/// Type of an expression as far as it is known before the query runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// `nil`
    Nil,
    /// 64-bit integer.
    Int,
    /// Double.
    Float,
    /// Text.
    String,
    /// Boolean.
    Bool,
    /// Nanoseconds.
    Duration,
    /// Status of a span.
    Status,
    /// Kind of a span.
    Kind,
    /// Array of one of the four attribute types.
    Array,
    /// Known only at run time.
    Attribute,
}

impl Type {
    /// Integers, floats and durations.
    pub fn is_numeric(self) -> bool {
        matches!(self, Self::Int | Self::Float | Self::Duration)
    }

    /// The type's name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Int => "int",
            Self::Float => "float",
            Self::String => "string",
            Self::Bool => "boolean",
            Self::Duration => "duration",
            Self::Status => "status",
            Self::Kind => "kind",
            Self::Array => "array",
            Self::Attribute => "attribute",
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
