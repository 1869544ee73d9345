//! Properties of the parser and the printer on generated text.

use std::thread;

use proptest::{prelude::*, strategy::ValueTree};

use super::{ErrorClass, parse, parser::MAX_DEPTH, tag_filter};

/// Stack of the threads that hostile queries are tried on: half of what a worker thread has.
const SMALL_STACK: usize = 1 << 20;

fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..1000_i64).prop_map(|number| number.to_string()),
        (0..1000_u32).prop_map(|number| format!("{}.5", number)),
        (1..100_000_u32).prop_map(|number| format!("{number}ms")),
        "[a-z.*]{0,5}".prop_map(|text| format!("`{text}`")),
        prop::sample::select(vec!["true", "false", "ok", "error", "server", "minInt", "maxInt"]).prop_map(str::to_owned),
    ]
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            ".a",
            ".b-c",
            "span.x",
            "resource.service.name",
            "event.m",
            "link.k",
            "instrumentation.lang",
            ".\"a b\"",
            "span.\"{}\"",
        ]),
        prop::sample::select(vec![
            "duration",
            "name",
            "status",
            "kind",
            "rootName",
            "traceDuration",
            "trace:id",
            "span:childCount",
            "nestedSetLeft",
            "event:name",
            "event:timeSinceStart",
            "link:spanID",
            "instrumentation:name",
        ]),
    ]
    .prop_map(str::to_owned)
}

fn expr() -> impl Strategy<Value = String> {
    prop_oneof![literal(), field()].prop_recursive(6, 24, 2, |inner| {
        let operator = prop::sample::select(vec!["&&", "||", "=", "!=", "<", ">=", "=~", "!~", "+", "-", "*", "/", "%", "^"]);
        prop_oneof![
            4 => (inner.clone(), operator, inner.clone()).prop_map(|(left, op, right)| format!("{left} {op} {right}")),
            1 => inner.clone().prop_map(|inner| format!("({inner})")),
            1 => inner.clone().prop_map(|inner| format!("-{inner}")),
            1 => inner.clone().prop_map(|inner| format!("!{inner}")),
            1 => inner.prop_map(|inner| format!("{inner} != nil")),
        ]
    })
}

/// An expression that is legal as a filter.
fn condition() -> impl Strategy<Value = String> {
    expr().prop_map(|expr| {
        let alternatives = [expr.clone(), format!("({expr}) = .b"), format!("span.c < ({expr})")];
        alternatives.into_iter().find(|expr| parse(&format!("{{ {expr} }}")).is_ok()).unwrap_or_else(|| ".a = 1".to_owned())
    })
}

fn spansets() -> impl Strategy<Value = String> {
    condition().prop_map(|condition| format!("{{ {condition} }}")).prop_recursive(3, 8, 2, |inner| {
        let operator = prop::sample::select(vec!["&&", "||", ">", ">>", "<", "<<", "~", "!>", "!~", "&>>", "&~"]);
        prop_oneof![
            (inner.clone(), operator, inner.clone()).prop_map(|(left, op, right)| format!("{left} {op} {right}")),
            inner.prop_map(|inner| format!("({inner})")),
        ]
    })
}

fn query() -> impl Strategy<Value = String> {
    let stage = prop_oneof![
        spansets(),
        field().prop_map(|key| format!("by({key})")),
        expr().prop_map(|key| format!("by({key})")),
        field().prop_map(|field| format!("select({field}, name)")),
        field().prop_map(|field| format!("max({field}) > -3")),
        Just("count() > 2".to_owned()),
        Just("coalesce()".to_owned()),
    ];
    let metrics = prop_oneof![
        4 => Just(String::new()),
        1 => Just(" | rate() by (name, .a) > 1.5 | topk(3)".to_owned()),
        1 => Just(" | quantile_over_time(duration, 0, .5, 1)".to_owned()),
        1 => condition().prop_map(|condition| format!(" | compare({{ {condition} }}, 5, 10, 20)")),
    ];
    let hints = prop_oneof![Just(""), Just(" with(most_recent=true, a=`x`)")];
    (spansets(), prop::collection::vec(stage, 0..3), metrics, hints).prop_map(|(first, later, metrics, hints)| {
        let stages: Vec<String> = std::iter::once(first).chain(later).collect();
        format!("{}{metrics}{hints}", stages.join(" | "))
    })
}

fn soup() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "{",
        "}",
        "(",
        ")",
        "|",
        "||",
        "&&",
        "&",
        "!",
        "=",
        "!=",
        "=~",
        "!~",
        ">",
        ">>",
        "<",
        "<<",
        "~",
        "&>>",
        "!<",
        "+",
        "-",
        "*",
        "/",
        "%",
        "^",
        ",",
        ".a",
        ".\"a b\"",
        "span.x",
        "resource.",
        "parent.span.a",
        "event:name",
        "span:",
        "name",
        "duration",
        "nil",
        "true",
        "1",
        "1.5",
        "017",
        "08",
        "1h30m",
        "1M",
        "9223372036854775808",
        "\"x\"",
        "\"\\d\"",
        "`[`",
        "'a'",
        "count()",
        "avg(",
        "by(",
        "coalesce()",
        "select(",
        "rate()",
        "topk(1)",
        "compare({})",
        "with(a=1)",
        "minInt",
        "foo",
        "//",
        "/*",
        "é",
        "\u{0}",
        "\n",
    ]);
    prop::collection::vec((token, prop::sample::select(vec!["", " "])), 0..40)
        .prop_map(|tokens| tokens.into_iter().flat_map(|(token, blank)| [token, blank]).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn canonical_text_parses_to_the_same_tree(query in query()) {
        if let Ok(parsed) = parse(&query) {
            let text = parsed.to_string();
            // Infinities and the smallest integer have no literal.
            prop_assume!(!text.contains("Inf") && !text.contains("NaN") && !text.contains("-9223372036854775808"));
            let again = parse(&text);
            prop_assert_eq!(again.as_ref(), Ok(&parsed), "{} prints as {}", query, text);
            prop_assert_eq!(again.map(|again| again.to_string()), Ok(text));
        }
    }

    #[test]
    fn token_soup_never_panics(query in soup()) {
        if let Err(error) = parse(&query) {
            prop_assert!(error.at.line > 0 && error.at.column > 0);
            prop_assert!(!error.to_string().is_empty());
        }
        let _ = tag_filter(&query);
    }

    #[test]
    fn any_text_never_panics(query in any::<String>()) {
        let _ = parse(&query);
        let _ = tag_filter(&format!("{{{query}"));
    }
}

#[test]
fn generated_queries_are_mostly_legal() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let legal = (0..200).filter(|_| {
        let tree = query().new_tree(&mut runner).expect("a query");
        parse(&tree.current()).is_ok()
    });
    assert!(legal.count() > 60, "the printer's property sees too few legal queries");
}

#[test]
fn hostile_queries_do_not_exhaust_the_stack() {
    let deep = 40_000;
    let queries = [
        format!("{{ {}.a{} }}", "(".repeat(deep), ")".repeat(deep)),
        format!("{{ {}.a }}", "!".repeat(deep)),
        format!("{{ {}.a }}", "-".repeat(deep)),
        format!("{{ .a{} = 1 }}", " + .a".repeat(deep)),
        format!("{{ .a{} = 1 }}", " ^ .a".repeat(deep)),
        format!("{{ .a{} }}", " = nil".repeat(deep)),
        format!("{{ {}.a }}", "nil = ".repeat(deep)),
        format!("{{ .a{} }}", " && .a || .a".repeat(deep)),
        format!("{}{{}}{}", "(".repeat(deep), ")".repeat(deep)),
        format!("{{}}{}", " > {}".repeat(deep)),
        format!("{{}}{}", " && {} || {}".repeat(deep)),
        format!("count(){} > 1", " + count()".repeat(deep)),
        format!("{}{{}} | {{}}{}", "(".repeat(deep), ")".repeat(deep)),
        format!("{{ .a =~ `{}` }}", "(".repeat(deep)),
    ];
    for query in queries {
        let start: String = query.chars().take(20).collect();
        let handle = thread::Builder::new().stack_size(SMALL_STACK).spawn(move || parse(&query).map(drop)).expect("a thread");
        assert!(handle.join().expect("no overflow").is_err(), "{start}");
    }
}

/// Whether a query parses, prints, and parses again, on a small stack.
fn round_trip(query: String) -> Result<bool, String> {
    let check = move || parse(&query).map(|parsed| parse(&parsed.to_string()).is_ok_and(|again| again == parsed));
    let handle = thread::Builder::new().stack_size(SMALL_STACK).spawn(check).expect("a thread");
    handle.join().expect("no overflow").map_err(|error| error.to_string())
}

#[test]
fn deep_legal_trees_are_fine() {
    let levels = MAX_DEPTH as usize / 2 - 4;
    for query in [
        format!("{{ {}.a = 1{} }}", "!(".repeat(levels), ")".repeat(levels)),
        format!("{}{{}} > {{}}{}", "(".repeat(levels / 3), " > {})".repeat(levels / 3)),
        format!("{{ .a{} = 1 }}", " + .a".repeat(levels)),
    ] {
        assert_eq!(round_trip(query.clone()), Ok(true), "{query}");
    }
}

#[test]
fn long_alternatives_are_legal() {
    for query in [format!("{{ .a = 1{} }}", " || .a = 1".repeat(8_000)), format!("{{}}{}", " || {}".repeat(8_000))] {
        // Their canonical text is nested deeper than the parser goes.
        assert_eq!(round_trip(query), Ok(false));
    }
}

#[test]
fn errors_say_where_and_what() {
    for (query, class, text) in [
        ("{ .a = }", ErrorClass::Parse, "parse error at line 1, col 8: syntax error: unexpected }, expecting an attribute"),
        ("{ .a = 1", ErrorClass::Parse, "parse error at line 1, col 9: syntax error: unexpected end of query, expecting \"}\""),
        ("{ foo = 1 }", ErrorClass::Parse, "parse error at line 1, col 3: syntax error: unknown identifier: foo"),
        ("{ .a =~ \"\\d\" }", ErrorClass::Parse, "unknown escape \\d"),
        ("{ name = 1 }", ErrorClass::Validation, "binary operations must operate on the same type, found string and int"),
        ("{ .a =~ `[` }", ErrorClass::Validation, "invalid regular expression \"[\""),
        ("{ parent.a }", ErrorClass::Unsupported, "\"parent.a\" is not yet supported"),
        ("{}\n| count() = count()", ErrorClass::Unsupported, "not yet supported (line 2, col 11)"),
    ] {
        let error = parse(query).expect_err(query);
        assert_eq!(error.class, class, "{query}");
        assert!(error.to_string().contains(text), "{query}: {error}");
    }
}

#[test]
fn metrics_queries_are_refused_by_name() {
    let refused = parse("{} | rate() by (name)").expect("legal").metrics_error();
    assert_eq!((refused.class, refused.message.as_str()), (ErrorClass::Unsupported, "evaluating rate() is not yet supported"));
    assert_eq!(parse("{}").expect("legal").metrics_error().message, "not a metrics query");
}
