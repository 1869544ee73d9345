//! Queries of the whole language, about what the random traces have.

use proptest::{prelude::*, sample::select};

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(vec![".a", "span.a", "resource.a", ".b", "span.b", "resource.b", ".http.method", "span.http.method"]),
        2 => select(vec!["resource.service.name", ".service.name", "span.http.status_code", ".http.status_code", "resource.pod", ".dedicated", "resource.dedicated", "span.number"]),
        2 => select(vec!["event.a", "event.b", "link.a", "instrumentation.a", "event:name", "event:timeSinceStart", "link:spanID", "link:traceID"]),
        3 => select(vec!["name", "status", "kind", "duration", "statusMessage", "span:id", "span:parentID", "span:childCount"]),
        2 => select(vec!["rootName", "rootServiceName", "traceDuration", "trace:id", "nestedSetLeft", "nestedSetRight", "nestedSetParent"]),
        1 => select(vec!["instrumentation:name", "instrumentation:version"]),
    ]
    .prop_map(str::to_owned)
}

fn literal() -> impl Strategy<Value = String> {
    select(vec![
        "1",
        "2",
        "0",
        "-1",
        "500",
        "1.5",
        "2.0",
        "`x`",
        "`y`",
        "``",
        "`shop`",
        "`GET`",
        "`1`",
        "true",
        "false",
        "ok",
        "error",
        "unset",
        "server",
        "client",
        "10ns",
        "1us",
        "0s",
        "`0000000000000002`",
        "`a101`",
    ])
    .prop_map(str::to_owned)
}

fn comparison() -> impl Strategy<Value = String> {
    let op = || select(vec!["=", "!=", "<", "<=", ">", ">="]);
    prop_oneof![
        6 => (field(), op(), literal()).prop_map(|(field, op, literal)| format!("{field} {op} {literal}")),
        1 => (literal(), op(), field()).prop_map(|(literal, op, field)| format!("{literal} {op} {field}")),
        1 => (field(), op(), field()).prop_map(|(left, op, right)| format!("{left} {op} {right}")),
        2 => (field(), select(vec!["=~", "!~"]), select(vec!["x|y", ".*", "", "[a-z]+", "GET.*", ".*2"])).prop_map(|(field, op, pattern)| format!("{field} {op} `{pattern}`")),
        1 => (field(), select(vec!["= nil", "!= nil"])).prop_map(|(field, test)| format!("{field} {test}")),
        1 => field().prop_map(|field| format!("nil = {field}")),
        1 => (field(), select(vec!["+", "-", "*", "/", "%", "^"]), prop_oneof![field(), literal()], op(), literal()).prop_map(|(left, arithmetic, right, op, literal)| format!("{left} {arithmetic} {right} {op} {literal}")),
        1 => (field(), op(), literal()).prop_map(|(field, op, literal)| format!("-{field} {op} {literal}")),
    ]
}

fn condition() -> impl Strategy<Value = String> {
    prop_oneof![8 => comparison(), 1 => field(), 1 => Just("true".to_owned())].prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 2..4).prop_map(|all| all.join(" && ")),
            3 => prop::collection::vec(inner.clone(), 2..4).prop_map(|all| all.join(" || ")),
            1 => inner.clone().prop_map(|inner| format!("!({inner})")),
            1 => inner.clone().prop_map(|inner| format!("({inner})")),
            1 => (inner.clone(), inner).prop_map(|(left, right)| format!("({left}) != ({right})")),
        ]
    })
}

fn spansets() -> impl Strategy<Value = String> {
    prop_oneof![1 => Just("{}".to_owned()), 5 => condition().prop_map(|condition| format!("{{ {condition} }}"))].prop_recursive(
        3,
        6,
        3,
        |inner| {
            let operator =
                select(vec!["&&", "||", ">", ">>", "<", "<<", "~", "!>", "!>>", "!<", "!<<", "!~", "&>", "&>>", "&<", "&<<", "&~"]);
            (inner.clone(), operator, inner).prop_map(|(left, op, right)| format!("({left}) {op} ({right})"))
        },
    )
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![6 => field(), 1 => comparison(), 1 => field().prop_map(|field| format!("{field} + 1"))]
}

fn stage() -> impl Strategy<Value = String> {
    let op = select(vec![">", ">=", "<", "=", "!="]);
    prop_oneof![
        3 => spansets(),
        3 => key().prop_map(|key| format!("by({key})")),
        1 => Just("coalesce()".to_owned()),
        1 => prop::collection::vec(field(), 1..3).prop_map(|fields| format!("select({})", fields.join(", "))),
        2 => (op.clone(), 0..4).prop_map(|(op, number)| format!("count() {op} {number}")),
        2 => (select(vec!["min", "max", "avg", "sum"]), key(), op, literal()).prop_map(|(function, key, op, literal)| format!("{function}({key}) {op} {literal}")),
    ]
}

fn pipeline() -> impl Strategy<Value = String> {
    (prop_oneof![4 => spansets(), 1 => stage()], prop::collection::vec(stage(), 0..4))
        .prop_map(|(first, later)| std::iter::once(first).chain(later).collect::<Vec<_>>().join(" | "))
}

/// A query, which may be illegal.
pub(super) fn query() -> impl Strategy<Value = String> {
    let joined = prop::collection::vec(pipeline(), 2..4);
    let operator = select(vec!["&&", "||", ">", ">>", "<<", "~", "!>", "&>>"]);
    prop_oneof![
        9 => pipeline(),
        1 => (joined, operator).prop_map(|(parts, op)| parts.iter().map(|part| format!("({part} | coalesce())")).collect::<Vec<_>>().join(&format!(" {op} "))),
        1 => (pipeline(), pipeline(), select(vec![">", "&&", "||"])).prop_map(|(left, right, op)| format!("({left} | by(name)) {op} ({right} | by(.a))")),
    ]
}
