//! What OTLP's trace messages look like, as far as JSON needs to know: names, numbers and kinds of fields.
//! Source: `opentelemetry/proto/{collector/trace,trace,resource,common}/v1/*.proto`, version 1.

/// A message.
pub(super) struct Message {
    /// Its name, for error messages.
    pub(super) name: &'static str,
    fields: &'static [Field],
}

/// A field of a message.
pub(super) struct Field {
    /// In camelCase.
    pub(super) name: &'static str,
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
    /// Whether presence itself says something, even of an empty value.
    pub(super) oneof: bool,
}

/// How a value is written in JSON and on the wire.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Message(&'static Message),
    Text,
    /// Bytes.
    Base64,
    /// Bytes of this number, in hex.
    Id(usize),
    Int64,
    Uint32,
    Fixed32,
    Fixed64,
    Double,
    Bool,
    /// The names of the values 0, 1, ….
    Enum(&'static [&'static str]),
}

impl Message {
    /// The field of that name, in camelCase or snake_case.
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        let fields = self.fields;
        fields.iter().find(|field| field.name == name).or_else(|| {
            if !name.contains('_') {
                return None;
            }
            fields.iter().find(|field| is_snake_case_of(name, field.name))
        })
    }
}

fn is_snake_case_of(snake: &str, camel: &str) -> bool {
    let mut snake = snake.bytes();
    for expected in camel.bytes() {
        let matches = if expected.is_ascii_uppercase() {
            snake.next() == Some(b'_') && snake.next() == Some(expected.to_ascii_lowercase())
        } else {
            snake.next() == Some(expected)
        };
        if !matches {
            return false;
        }
    }
    snake.next().is_none()
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: false, oneof: false }
}

const fn many(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: true, oneof: false }
}

const fn alternative(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: false, oneof: true }
}

use Kind::{Base64, Bool, Double, Enum, Fixed32, Fixed64, Id, Int64, Text, Uint32};

pub(super) static REQUEST: Message =
    Message { name: "ExportTraceServiceRequest", fields: &[many("resourceSpans", 1, Kind::Message(&RESOURCE_SPANS))] };

static RESOURCE_SPANS: Message = Message {
    name: "ResourceSpans",
    fields: &[one("resource", 1, Kind::Message(&RESOURCE)), many("scopeSpans", 2, Kind::Message(&SCOPE_SPANS)), one("schemaUrl", 3, Text)],
};

static RESOURCE: Message = Message {
    name: "Resource",
    fields: &[
        many("attributes", 1, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", 2, Uint32),
        many("entityRefs", 3, Kind::Message(&ENTITY_REF)),
    ],
};

static ENTITY_REF: Message = Message {
    name: "EntityRef",
    fields: &[one("schemaUrl", 1, Text), one("type", 2, Text), many("idKeys", 3, Text), many("descriptionKeys", 4, Text)],
};

static SCOPE_SPANS: Message = Message {
    name: "ScopeSpans",
    fields: &[one("scope", 1, Kind::Message(&SCOPE)), many("spans", 2, Kind::Message(&SPAN)), one("schemaUrl", 3, Text)],
};

static SCOPE: Message = Message {
    name: "InstrumentationScope",
    fields: &[
        one("name", 1, Text),
        one("version", 2, Text),
        many("attributes", 3, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", 4, Uint32),
    ],
};

static SPAN: Message = Message {
    name: "Span",
    fields: &[
        one("traceId", 1, Id(16)),
        one("spanId", 2, Id(8)),
        one("traceState", 3, Text),
        one("parentSpanId", 4, Id(8)),
        one("name", 5, Text),
        one("kind", 6, Enum(&SPAN_KINDS)),
        one("startTimeUnixNano", 7, Fixed64),
        one("endTimeUnixNano", 8, Fixed64),
        many("attributes", 9, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", 10, Uint32),
        many("events", 11, Kind::Message(&EVENT)),
        one("droppedEventsCount", 12, Uint32),
        many("links", 13, Kind::Message(&LINK)),
        one("droppedLinksCount", 14, Uint32),
        one("status", 15, Kind::Message(&STATUS)),
        one("flags", 16, Fixed32),
    ],
};

static SPAN_KINDS: [&str; 6] =
    ["SPAN_KIND_UNSPECIFIED", "SPAN_KIND_INTERNAL", "SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_PRODUCER", "SPAN_KIND_CONSUMER"];

static EVENT: Message = Message {
    name: "Event",
    fields: &[
        one("timeUnixNano", 1, Fixed64),
        one("name", 2, Text),
        many("attributes", 3, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", 4, Uint32),
    ],
};

static LINK: Message = Message {
    name: "Link",
    fields: &[
        one("traceId", 1, Id(16)),
        one("spanId", 2, Id(8)),
        one("traceState", 3, Text),
        many("attributes", 4, Kind::Message(&KEY_VALUE)),
        one("droppedAttributesCount", 5, Uint32),
        one("flags", 6, Fixed32),
    ],
};

static STATUS: Message = Message {
    name: "Status",
    fields: &[one("message", 2, Text), one("code", 3, Enum(&["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"]))],
};

static KEY_VALUE: Message = Message { name: "KeyValue", fields: &[one("key", 1, Text), one("value", 2, Kind::Message(&ANY_VALUE))] };

static ANY_VALUE: Message = Message {
    name: "AnyValue",
    fields: &[
        alternative("stringValue", 1, Text),
        alternative("boolValue", 2, Bool),
        alternative("intValue", 3, Int64),
        alternative("doubleValue", 4, Double),
        alternative("arrayValue", 5, Kind::Message(&ARRAY_VALUE)),
        alternative("kvlistValue", 6, Kind::Message(&KEY_VALUE_LIST)),
        alternative("bytesValue", 7, Base64),
    ],
};

static ARRAY_VALUE: Message = Message { name: "ArrayValue", fields: &[many("values", 1, Kind::Message(&ANY_VALUE))] };

static KEY_VALUE_LIST: Message = Message { name: "KeyValueList", fields: &[many("values", 1, Kind::Message(&KEY_VALUE))] };
