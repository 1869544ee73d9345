//! The walks against `prost`, on messages, on mutilated messages, on hand-made wire and on noise.

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList, any_value::Value as Any},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, Link},
    },
};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use prost::Message;

use super::*;

/// What `prost`'s tree says of a body: none when it is to be refused.
fn reference(body: &[u8]) -> Option<ExportTraceServiceRequest> {
    let absent = |id: &[u8]| id.iter().all(|byte| *byte == 0);
    let request = ExportTraceServiceRequest::decode(body).ok()?;
    for span in request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans) {
        let ids = span.trace_id.len() == 16 && !absent(&span.trace_id) && span.span_id.len() == 8 && !absent(&span.span_id);
        let parent = matches!(span.parent_span_id.len(), 0 | 8);
        let links = span.links.iter().all(|link| matches!(link.trace_id.len(), 0 | 16) && matches!(link.span_id.len(), 0 | 8));
        if !(ids && parent && links) {
            return None;
        }
    }
    Some(request)
}

/// Compares both walks with the reference. Says whether the body was valid.
fn check(body: &[u8]) -> bool {
    let (mut walk, mut indexed) = (Walk::default(), Walk::default());
    let ours = validate(body, 0, &mut walk);
    let theirs = reference(body);
    assert_eq!(ours.is_ok(), theirs.is_some(), "{ours:?}, prost: {:?}", ExportTraceServiceRequest::decode(body).map(drop));
    let index_result = index(body, &mut indexed);
    let Some(request) = theirs else { return false };
    assert_eq!(index_result, Ok(()));
    assert_eq!(indexed.spans, walk.spans);
    let mut entries = walk.spans.iter();
    for resource_spans in &request.resource_spans {
        for scope_spans in &resource_spans.scope_spans {
            for span in &scope_spans.spans {
                let entry = entries.next().expect("as many entries as spans");
                assert_eq!(entry.trace_id.0, span.trace_id[..]);
                assert_eq!(entry.key.span_id.to_be_bytes(), span.span_id[..]);
                assert_eq!(entry.key.kind, span.kind);
                assert_eq!((entry.start_ns, entry.end_ns), (span.start_time_unix_nano, span.end_time_unix_nano));
                check_slice(body, entry.span, Some(span));
                if !walk.needs_normalising {
                    check_slice(body, entry.resource, resource_spans.resource.as_ref());
                    check_slice(body, entry.scope, scope_spans.scope.as_ref());
                }
            }
        }
    }
    assert_eq!(entries.next(), None);
    assert_eq!(walk.needs_normalising, has_repeated_parts(body, &RESOURCE_SPANS, 1));
    if walk.needs_normalising {
        let normal = normalise(body);
        assert_eq!(validate(&normal, 0, &mut walk), Ok(()));
        assert!(!walk.needs_normalising);
        assert_eq!(normal, request.encode_to_vec());
        assert!(check(&normal));
    }
    true
}

/// Which fields of a message are messages, which of them are singular, and which belong to a `oneof`.
struct Shape {
    messages: &'static [(u32, &'static Shape)],
    singular: &'static [u32],
    one_of: bool,
}

const fn shape(messages: &'static [(u32, &'static Shape)], singular: &'static [u32]) -> Shape {
    Shape { messages, singular, one_of: false }
}

static RESOURCE_SPANS: Shape = shape(&[(1, &ATTRIBUTES_1), (2, &SCOPE_SPANS)], &[1]);
static SCOPE_SPANS: Shape = shape(&[(1, &ATTRIBUTES_3), (2, &SPAN)], &[1]);
static SPAN: Shape = shape(&[(9, &KEY_VALUE), (11, &ATTRIBUTES_3), (13, &ATTRIBUTES_4)], &[15]);
static ATTRIBUTES_1: Shape = shape(&[(1, &KEY_VALUE)], &[]);
static ATTRIBUTES_3: Shape = shape(&[(3, &KEY_VALUE)], &[]);
static ATTRIBUTES_4: Shape = shape(&[(4, &KEY_VALUE)], &[]);
static KEY_VALUE: Shape = shape(&[(2, &ANY_VALUE)], &[2]);
static ANY_VALUE: Shape = Shape { messages: &[(5, &ARRAY), (6, &ATTRIBUTES_1)], singular: &[1, 2, 3, 4, 5, 6, 7, 8], one_of: true };
static ARRAY: Shape = shape(&[(1, &ANY_VALUE)], &[]);

/// Whether a singular message of a valid body occurs twice: [`Walk::needs_normalising`], the slow way.
fn has_repeated_parts(body: &[u8], element: &Shape, number: u32) -> bool {
    let inner = |bytes: &[u8], shape: &Shape| {
        let fields: Vec<_> = wire::Fields::new(bytes).map(|field| field.expect("valid")).collect();
        let occurrences = |numbers: &[u32]| fields.iter().filter(|field| numbers.contains(&field.number)).count();
        let repeated =
            if shape.one_of { occurrences(shape.singular) > 1 } else { shape.singular.iter().any(|number| occurrences(&[*number]) > 1) };
        repeated || shape.messages.iter().any(|(number, element)| has_repeated_parts(bytes, element, *number))
    };
    wire::Fields::new(body)
        .map(|field| field.expect("valid"))
        .filter(|field| field.number == number)
        .any(|field| inner(field.value.bytes().expect("a message"), element))
}

/// Compared as bytes, because the trees may hold NaN.
fn check_slice<M: Message + Default>(body: &[u8], slice: Slice, expected: Option<&M>) {
    let found = (slice != Slice::default()).then(|| M::decode(slice.of(body).expect("inside the body")).expect("a message"));
    assert_eq!(found.map(|message| message.encode_to_vec()), expected.map(M::encode_to_vec));
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let leaf = option::of(prop_oneof![
        ".{0,12}".prop_map(Any::StringValue),
        any::<bool>().prop_map(Any::BoolValue),
        any::<i64>().prop_map(Any::IntValue),
        any::<f64>().prop_map(Any::DoubleValue),
        vec(any::<u8>(), 0..6).prop_map(Any::BytesValue),
        any::<i32>().prop_map(Any::StringValueStrindex),
    ])
    .prop_map(|value| AnyValue { value });
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(|values| Any::ArrayValue(ArrayValue { values })),
            vec(("[a-z]{0,3}", option::of(inner)), 0..3).prop_map(|pairs| {
                let values = pairs.into_iter().map(|(key, value)| KeyValue { key, value, ..Default::default() }).collect();
                Any::KvlistValue(KeyValueList { values })
            }),
        ]
        .prop_map(|value| AnyValue { value: Some(value) })
    })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    vec(("[a-zé.]{0,9}", option::of(any_value())), 0..3)
        .prop_map(|pairs| pairs.into_iter().map(|(key, value)| KeyValue { key, value, ..Default::default() }).collect())
}

/// Mostly of length `N`, sometimes absent, rarely wrong.
fn an_id<const N: usize>(absent: u32, wrong: u32) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        60 => vec(1u8.., N),
        absent => Just(Vec::new()),
        absent => Just(vec![0; N]),
        wrong => vec(any::<u8>(), 0..20),
    ]
}

fn span(wrong: u32) -> impl Strategy<Value = Span> {
    let event = (any::<u64>(), ".{0,5}", attributes(), any::<u32>()).prop_map(|(time_unix_nano, name, attributes, dropped)| Event {
        time_unix_nano,
        name,
        attributes,
        dropped_attributes_count: dropped,
    });
    let link = (an_id::<16>(3, wrong), an_id::<8>(3, wrong), ".{0,3}", attributes(), any::<u32>()).prop_map(
        |(trace_id, span_id, trace_state, attributes, flags)| Link {
            trace_id,
            span_id,
            trace_state,
            attributes,
            flags,
            ..Default::default()
        },
    );
    let status = (".{0,5}", -1..4).prop_map(|(message, code)| Status { message, code });
    (
        (an_id::<16>(wrong, wrong), an_id::<8>(wrong, wrong), an_id::<8>(9, wrong), ".{0,9}", ".{0,9}", any::<i32>(), any::<u64>()),
        (any::<u64>(), attributes(), vec(event, 0..2), vec(link, 0..2), option::of(status), any::<u32>(), any::<u32>()),
    )
        .prop_map(
            |(
                (trace_id, span_id, parent_span_id, name, trace_state, kind, start_time_unix_nano),
                (end_time_unix_nano, attributes, events, links, status, flags, dropped),
            )| Span {
                trace_id,
                span_id,
                parent_span_id,
                name,
                trace_state,
                kind,
                start_time_unix_nano,
                end_time_unix_nano,
                attributes,
                events,
                links,
                status,
                flags,
                dropped_attributes_count: dropped,
                dropped_events_count: dropped / 3,
                dropped_links_count: dropped % 2,
            },
        )
}

/// Requests whose ids are wrong with a weight of `wrong` in 60.
pub(crate) fn request(wrong: u32) -> impl Strategy<Value = ExportTraceServiceRequest> {
    let scope = ("[a-z]{0,5}", "[0-9]{0,2}", attributes()).prop_map(|(name, version, attributes)| InstrumentationScope {
        name,
        version,
        attributes,
        dropped_attributes_count: 1,
    });
    let entity = ("[a-z]{0,3}", vec("[a-z]{0,3}", 0..2)).prop_map(|(r#type, id_keys)| EntityRef { r#type, id_keys, ..Default::default() });
    let resource =
        (attributes(), vec(entity, 0..2)).prop_map(|(attributes, entity_refs)| Resource { attributes, entity_refs, ..Default::default() });
    let scope_spans = (option::of(scope), vec(span(wrong), 0..4), "[a-z]{0,3}").prop_map(|(scope, spans, schema_url)| ScopeSpans {
        scope,
        spans,
        schema_url,
    });
    let resource_spans = (option::of(resource), vec(scope_spans, 0..3), "[a-z]{0,3}")
        .prop_map(|(resource, scope_spans, schema_url)| ResourceSpans { resource, scope_spans, schema_url });
    vec(resource_spans, 0..3).prop_map(|resource_spans| ExportTraceServiceRequest { resource_spans })
}

/// A damage done to a body.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Remove(Index),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        any::<Index>().prop_map(Damage::Cut),
        any::<Index>().prop_map(Damage::Remove),
        (any::<Index>(), vec(any::<u8>(), 1..4)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        any::<(Index, Index, Index)>().prop_map(|(from, to, at)| Damage::Repeat(from, to, at)),
    ]
}

fn apply(damage: &Damage, body: &mut Vec<u8>) {
    if body.is_empty() {
        return;
    }
    let length = body.len();
    match damage {
        Damage::Flip(at, bits) => body[at.index(length)] ^= bits,
        Damage::Cut(at) => body.truncate(at.index(length)),
        Damage::Remove(at) => drop(body.remove(at.index(length))),
        Damage::Insert(at, bytes) => drop(body.splice(at.index(length)..at.index(length), bytes.iter().copied())),
        Damage::Repeat(from, to, at) => {
            let (from, to) = (from.index(length).min(to.index(length)), from.index(length).max(to.index(length)));
            let piece = body[from..to].to_vec();
            body.splice(at.index(length)..at.index(length), piece);
        }
    }
}

/// Hand-made wire: fields in any order and number, as no encoder would write them.
#[derive(Clone, Debug)]
enum Node {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Text(Vec<u8>),
    Message(Vec<(u32, Node)>),
    Group(Vec<(u32, Node)>),
    Raw(Vec<u8>),
}

fn write(fields: &[(u32, Node)], out: &mut Vec<u8>) {
    use prost::encoding::encode_varint;

    for (number, node) in fields {
        let key = |wire_type: u64| u64::from(*number) << 3 | wire_type;
        match node {
            Node::Varint(value) => {
                encode_varint(key(0), out);
                encode_varint(*value, out);
            }
            Node::Fixed64(value) => {
                encode_varint(key(1), out);
                out.extend(value.to_le_bytes());
            }
            Node::Fixed32(value) => {
                encode_varint(key(5), out);
                out.extend(value.to_le_bytes());
            }
            Node::Text(bytes) => {
                encode_varint(key(2), out);
                encode_varint(bytes.len() as u64, out);
                out.extend(bytes);
            }
            Node::Message(fields) => {
                let mut inner = Vec::new();
                write(fields, &mut inner);
                encode_varint(key(2), out);
                encode_varint(inner.len() as u64, out);
                out.extend(inner);
            }
            Node::Group(fields) => {
                encode_varint(key(3), out);
                write(fields, out);
                encode_varint(key(4), out);
            }
            Node::Raw(bytes) => out.extend(bytes),
        }
    }
}

/// Any field at all, rarely a broken one.
fn stray() -> impl Strategy<Value = (u32, Node)> {
    let scalar = prop_oneof![
        4 => any::<u64>().prop_map(Node::Varint),
        2 => any::<u64>().prop_map(Node::Fixed64),
        2 => any::<u32>().prop_map(Node::Fixed32),
        2 => "[a-z]{0,4}".prop_map(|text| Node::Text(text.into_bytes())),
    ];
    let node = scalar.prop_recursive(3, 6, 2, |inner| {
        vec((1u32..30, inner), 0..3).prop_flat_map(|fields| prop_oneof![Just(Node::Group(fields.clone())), Just(Node::Message(fields))])
    });
    prop_oneof![
        12 => (17u32..40, node.clone()),
        2 => (1u32..17, node),
        1 => (Just(1), vec(any::<u8>(), 0..3).prop_map(Node::Raw)),
    ]
}

fn text(number: u32) -> BoxedStrategy<(u32, Node)> {
    prop_oneof![9 => "[a-zé]{0,9}".prop_map(String::into_bytes), 1 => vec(any::<u8>(), 0..3)]
        .prop_map(move |text| (number, Node::Text(text)))
        .boxed()
}

fn id_field(number: u32, length: usize) -> BoxedStrategy<(u32, Node)> {
    prop_oneof![30 => vec(1u8.., length), 1 => Just(Vec::new())].prop_map(move |id| (number, Node::Text(id))).boxed()
}

fn message(number: u32, fields: Vec<BoxedStrategy<(u32, Node)>>, required: Vec<BoxedStrategy<(u32, Node)>>) -> BoxedStrategy<(u32, Node)> {
    let mut choices: Vec<_> = fields.into_iter().map(|field| (6, field)).collect();
    choices.push((1, stray().boxed()));
    (required, vec(proptest::strategy::Union::new_weighted(choices), 0..4))
        .prop_map(move |(mut fields, more)| {
            fields.extend(more);
            if fields.len() % 2 == 1 {
                fields.reverse();
            }
            (number, Node::Message(fields))
        })
        .boxed()
}

fn varint(number: u32) -> BoxedStrategy<(u32, Node)> {
    any::<u64>().prop_map(move |value| (number, Node::Varint(value))).boxed()
}

fn fixed64(number: u32) -> BoxedStrategy<(u32, Node)> {
    any::<u64>().prop_map(move |value| (number, Node::Fixed64(value))).boxed()
}

fn wire_value(number: u32, levels: u32) -> BoxedStrategy<(u32, Node)> {
    let mut fields = vec![text(1), varint(2), varint(3), fixed64(4), text(7), varint(8)];
    if levels > 0 {
        fields.push(message(5, vec![wire_value(1, levels - 1)], vec![]));
        fields.push(message(6, vec![wire_attribute(1, levels - 1)], vec![]));
    }
    message(number, fields, vec![])
}

fn wire_attribute(number: u32, levels: u32) -> BoxedStrategy<(u32, Node)> {
    message(number, vec![text(1), wire_value(2, levels), varint(3)], vec![])
}

fn wire_request() -> impl Strategy<Value = Vec<u8>> {
    let attribute = |number| wire_attribute(number, 1);
    let fixed32 = |number: u32| any::<u32>().prop_map(move |value| (number, Node::Fixed32(value))).boxed();
    let link = message(13, vec![id_field(1, 16), id_field(2, 8), text(3), attribute(4), varint(5), fixed32(6)], vec![]);
    let event = message(11, vec![fixed64(1), text(2), attribute(3), varint(4)], vec![]);
    let status = message(15, vec![text(2), varint(3)], vec![]);
    let span = message(
        2,
        vec![
            id_field(1, 16),
            id_field(2, 8),
            id_field(4, 8),
            text(3),
            text(5),
            varint(6),
            fixed64(7),
            fixed64(8),
            attribute(9),
            event,
            link,
            status,
            varint(10),
            varint(12),
            varint(14),
            fixed32(16),
        ],
        vec![id_field(1, 16), id_field(2, 8)],
    );
    let scope = message(1, vec![text(1), text(2), attribute(3), varint(4)], vec![]);
    let entity = message(3, vec![text(1), text(2), text(3), text(4)], vec![]);
    let resource = message(1, vec![attribute(1), varint(2), entity], vec![]);
    let scope_spans = message(2, vec![scope, span.clone(), text(3)], vec![span]);
    let resource_spans = message(1, vec![resource, scope_spans.clone(), text(3)], vec![scope_spans]);
    vec(prop_oneof![9 => resource_spans, 1 => stray()], 0..3).prop_map(|fields| {
        let mut body = Vec::new();
        write(&fields, &mut body);
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn messages_agree_with_prost(request in request(1)) {
        check(&request.encode_to_vec());
    }

    #[test]
    fn damaged_messages_agree_with_prost(request in request(0), damages in vec(damage(), 1..4)) {
        let mut body = request.encode_to_vec();
        damages.iter().for_each(|damage| apply(damage, &mut body));
        check(&body);
    }

    #[test]
    fn hand_made_wire_agrees_with_prost(body in wire_request(), damages in vec(damage(), 0..2)) {
        check(&body);
        let mut body = body;
        damages.iter().for_each(|damage| apply(damage, &mut body));
        check(&body);
    }

    #[test]
    fn noise_agrees_with_prost(body in vec(prop_oneof![any::<u8>(), 0u8..0x30], 0..60)) {
        check(&body);
    }

    #[test]
    fn truncation_cuts_what_is_too_long_and_nothing_else(request in request(0), limit in 1usize..8) {
        let body = request.encode_to_vec();
        let mut walk = Walk::default();
        validate(&body, limit, &mut walk).expect("valid");
        let oversized = walk.oversized_attributes;
        let (cut_body, cut) = truncate_attributes(&body, limit);
        prop_assert_eq!(oversized, cut > 0);
        validate(&cut_body, limit, &mut walk).expect("still valid");
        prop_assert!(!walk.oversized_attributes);
        if cut == 0 {
            prop_assert_eq!(body, cut_body);
        }
    }

    #[test]
    fn retained_spans_are_those_kept(request in request(0), keep in vec(any::<bool>(), 30)) {
        let body = request.encode_to_vec();
        let mut walk = Walk::default();
        validate(&body, 0, &mut walk).expect("valid");
        let expected: Vec<&[u8]> = walk.spans.iter().zip(&keep).filter(|(_, keep)| **keep).filter_map(|(span, _)| span.span.of(&body)).collect();
        let mut decisions = keep.iter();
        let kept = retain_spans(&body, |_| *decisions.next().expect("fewer than 30 spans"));
        let mut after = Walk::default();
        validate(&kept, 0, &mut after).expect("still valid");
        let found: Vec<&[u8]> = after.spans.iter().filter_map(|span| span.span.of(&kept)).collect();
        prop_assert_eq!(found, expected);
        let tree = ExportTraceServiceRequest::decode(&kept[..]).expect("decodes");
        prop_assert!(tree.resource_spans.iter().all(|r| !r.scope_spans.is_empty() && r.scope_spans.iter().all(|s| !s.spans.is_empty())));
    }
}

fn one_span(span: Span) -> Vec<u8> {
    let scope_spans = ScopeSpans { spans: vec![span], ..Default::default() };
    let resource_spans = ResourceSpans { scope_spans: vec![scope_spans], ..Default::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }.encode_to_vec()
}

fn valid_span() -> Span {
    Span { trace_id: vec![1; 16], span_id: vec![2; 8], ..Default::default() }
}

fn wire_error(body: &[u8]) -> WireError {
    match validate(body, 0, &mut Walk::default()) {
        Err(Invalid::Wire(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_generators_reach_valid_and_invalid_bodies() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut runner = TestRunner::deterministic();
    let (mut valid, mut merged, cases) = (0, 0, 300);
    for _ in 0..cases {
        let body = wire_request().new_tree(&mut runner).expect("a body").current();
        let mut walk = Walk::default();
        if validate(&body, 0, &mut walk).is_ok() && !walk.spans.is_empty() {
            valid += 1;
            merged += usize::from(walk.needs_normalising);
        }
    }
    assert!(valid > cases / 10 && valid < cases * 9 / 10, "{valid} of {cases} are valid");
    assert!(merged > 5, "{merged} need normalising");
}

#[test]
fn ids_are_checked_as_tempo_does() {
    let check = |span: Span, expected: Result<(), Invalid>| assert_eq!(validate(&one_span(span), 0, &mut Walk::default()), expected);
    let wrong_length = |field, cause| Err(Invalid::Wire(WireError { field, cause }));
    check(valid_span(), Ok(()));
    check(Span { trace_id: vec![], ..valid_span() }, Err(Invalid::TraceId { bits: 0 }));
    check(Span { trace_id: vec![0; 16], ..valid_span() }, Err(Invalid::TraceId { bits: 0 }));
    check(Span { span_id: vec![], ..valid_span() }, Err(Invalid::SpanId { bits: 0 }));
    check(Span { span_id: vec![0; 8], ..valid_span() }, Err(Invalid::SpanId { bits: 0 }));
    check(Span { parent_span_id: vec![0; 8], ..valid_span() }, Ok(()));
    check(
        Span { trace_id: vec![1; 8], ..valid_span() },
        wrong_length("resource_spans.scope_spans.spans.trace_id", "id is neither empty nor 16 bytes long"),
    );
    check(
        Span { span_id: vec![1; 16], ..valid_span() },
        wrong_length("resource_spans.scope_spans.spans.span_id", "id is neither empty nor 8 bytes long"),
    );
    check(
        Span { parent_span_id: vec![1; 7], ..valid_span() },
        wrong_length("resource_spans.scope_spans.spans.parent_span_id", "id is neither empty nor 8 bytes long"),
    );
    let link = Link { trace_id: vec![1; 15], ..Default::default() };
    check(
        Span { links: vec![link], ..valid_span() },
        wrong_length("resource_spans.scope_spans.spans.links.trace_id", "id is neither empty nor 16 bytes long"),
    );
}

#[test]
fn a_body_that_does_not_decode_is_reported_before_its_ids() {
    let mut body = one_span(Span { trace_id: vec![], ..valid_span() });
    body.extend([0x0a, 0x7f]);
    assert_eq!(wire_error(&body), WireError { field: "resource_spans", cause: "ends before its announced length" });
}

#[test]
fn errors_name_the_field() {
    let mut body = one_span(Span { name: "abc".to_owned(), ..valid_span() });
    let last = body.len() - 1;
    body[last] = 0xff;
    assert_eq!(wire_error(&body), WireError { field: "resource_spans.scope_spans.spans.name", cause: "not UTF-8" });
}

#[test]
fn values_nested_deeper_than_prost_allows_are_refused() {
    // Lengths of nested messages, innermost first, built from the inside out by hand because encoding such a tree recurses.
    let nested = |levels: usize| {
        let mut value = vec![0x10, 0x01];
        for _ in 0..levels {
            let mut array = vec![0x0a];
            prost::encoding::encode_varint(value.len() as u64, &mut array);
            array.append(&mut value);
            value.push(0x2a);
            prost::encoding::encode_varint(array.len() as u64, &mut value);
            value.append(&mut array);
        }
        let mut body = Vec::new();
        let mut wrapped = vec![0x12];
        prost::encoding::encode_varint(value.len() as u64, &mut wrapped);
        wrapped.append(&mut value);
        for tag in [0x4a, 0x12, 0x12, 0x0a] {
            if tag == 0x4a {
                body.extend([0x0a, 16]);
                body.extend([1; 16]);
                body.extend([0x12, 8]);
                body.extend([1; 8]);
            }
            body.push(tag);
            prost::encoding::encode_varint(wrapped.len() as u64, &mut body);
            body.append(&mut wrapped);
            wrapped = std::mem::take(&mut body);
        }
        wrapped
    };
    assert!(check(&nested(40)));
    for levels in 41..60 {
        check(&nested(levels));
    }
    assert_eq!(wire_error(&nested(1000)).cause, "nested too deeply");
    // 100,000 levels: quadratic to build in full, so the lengths lie; the walk must stop at its depth all the same.
    let mut lies = vec![0x0a, 0xff, 0xff, 0x3f];
    lies.extend([0x12, 0xff, 0xff, 0x3f, 0x12, 0xff, 0xff, 0x3f, 0x4a, 0xff, 0xff, 0x3f, 0x12, 0xff, 0xff, 0x3f]);
    lies.extend([0x2a, 0xff, 0xff, 0x3f, 0x0a, 0xff, 0xff, 0x3f].repeat(100_000));
    check(&lies);
    // Groups nest without lengths.
    let mut groups = vec![0x9b, 0x06];
    groups.extend([0x9b, 0x06].repeat(100_000));
    check(&groups);
    assert_eq!(wire_error(&groups).cause, "nested too deeply");
}

#[test]
fn a_resource_behind_its_spans_is_theirs() {
    let span = valid_span().encode_to_vec();
    let mut scope_spans = vec![0x12, span.len() as u8];
    scope_spans.extend(&span);
    scope_spans.extend([0x0a, 3, 0x0a, 1, b's']);
    let mut resource_spans = vec![0x12, scope_spans.len() as u8];
    resource_spans.extend(&scope_spans);
    resource_spans.extend([0x0a, 2, 0x10, 7]);
    let mut body = vec![0x0a, resource_spans.len() as u8];
    body.extend(&resource_spans);
    assert!(check(&body));
    let mut walk = Walk::default();
    index(&body, &mut walk).expect("valid");
    assert_eq!(walk.spans[0].resource.of(&body), Some(&[0x10, 7][..]));
    assert_eq!(walk.spans[0].scope.of(&body), Some(&[0x0a, 1, b's'][..]));
    // A second resource: prost merges both, no slice can.
    body.extend([0x0a, 2, 0x10, 9]);
    let length = body.len() - 2;
    body[1] = length as u8;
    validate(&body, 0, &mut walk).expect("valid");
    assert!(walk.needs_normalising);
    assert!(check(&body));
}

#[test]
fn long_strings_are_cut_at_a_character() {
    let attribute =
        |key: &str, value: Any| KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() };
    let nested = Any::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(Any::StringValue("x".repeat(50))) }] });
    let span = Span {
        attributes: vec![
            attribute("a", Any::StringValue("1234567é".to_owned())),
            attribute("0123456789", Any::IntValue(1)),
            attribute("n", nested),
            attribute("b", Any::BytesValue(vec![0; 50])),
        ],
        ..valid_span()
    };
    let mut walk = Walk::default();
    let body = one_span(span);
    validate(&body, 8, &mut walk).expect("valid");
    assert!(walk.oversized_attributes);
    let (body, cut) = truncate_attributes(&body, 8);
    assert_eq!(cut, 2);
    let request = ExportTraceServiceRequest::decode(&body[..]).expect("valid");
    let attributes = &request.resource_spans[0].scope_spans[0].spans[0].attributes;
    assert_eq!(attributes[0], attribute("a", Any::StringValue("1234567".to_owned())));
    assert_eq!(attributes[1], attribute("01234567", Any::IntValue(1)));
    validate(&body, 8, &mut walk).expect("valid");
    assert!(!walk.oversized_attributes);
}

#[test]
fn an_empty_request_has_no_spans() {
    assert!(check(&[]));
    let mut walk = Walk::default();
    validate(&[], 0, &mut walk).expect("valid");
    assert!(walk.spans.is_empty());
}
