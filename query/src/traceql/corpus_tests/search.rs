//! Search cases of the corpus, run on the fixtures without storage and HTTP.
//!
//! Judged as the corpus describes: traces, root fields, spansets with their spans, counts and attributes, names of spans, and every
//! attribute of a span that the reference shows. Attributes shown beyond those are free.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    sync::Arc,
};

use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value};
use serde::Deserialize;
use serde_json::Value as Json;
use storage::{
    block::{Format, Reader, Trace},
    id::TraceId,
};
use tokio::runtime::Runtime;

use crate::{
    columns::Batch,
    exec::{
        Exec,
        tests::{search_block, write_block},
    },
};

use super::{
    super::{ErrorClass, EvaluateOptions, SpanMatch, Spanset, TraceMatch, TraceView, parse},
    corpus,
    fixture::{any_value as parse_any_value, load},
};

#[derive(Deserialize)]
struct Case {
    id: String,
    kind: String,
    fixture: String,
    query: String,
    #[serde(default)]
    params: Params,
    expect: Json,
    #[serde(default)]
    ordered: bool,
    #[serde(default)]
    quirk: bool,
    #[serde(default)]
    also_accept: Vec<Json>,
}

#[derive(Deserialize, Default)]
struct Params {
    limit: Option<usize>,
    spss: Option<usize>,
    start: Option<u64>,
    end: Option<u64>,
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Refused(ErrorClass),
    Failed(String),
    Traces(Vec<TraceMatch>),
}

fn run(case: &Case, traces: &[Trace]) -> Outcome {
    let query = match parse(&case.query) {
        Ok(query) => query,
        Err(error) => return Outcome::Refused(error.class),
    };
    let mut found = Vec::new();
    for trace in traces {
        let view = TraceView::new(trace);
        if !overlaps(case, &view) {
            continue;
        }
        match query.evaluate(&view, options(case)) {
            Ok(result) => found.extend(result),
            Err(error) => return Outcome::Failed(error.to_string()),
        }
    }
    newest(case, found)
}

/// What the engine answers from live traces.
fn run_live(case: &Case, traces: &[Trace]) -> Outcome {
    let Ok(query) = parse(&case.query) else { return run(case, traces) };
    let touching = |trace: &&Trace| overlaps(case, &TraceView::new(trace));
    let batch = Batch::live(traces.iter().filter(touching).cloned().collect());
    match Exec::new(&query).matches(&batch, options(case)) {
        Ok(found) => newest(case, found),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

/// What the engine answers from a block.
fn run_block(case: &Case, traces: &[Trace], reader: &Arc<Reader>, runtime: &Runtime) -> Outcome {
    let Ok(query) = parse(&case.query) else { return run(case, traces) };
    let touching: Vec<_> = traces.iter().filter(|trace| overlaps(case, &TraceView::new(trace))).map(|trace| trace.trace_id).collect();
    match runtime.block_on(search_block(&query, reader, options(case))).0 {
        Some(mut found) => {
            found.retain(|found| touching.contains(&found.trace_id));
            newest(case, found)
        }
        None => Outcome::Failed("the query fails".to_owned()),
    }
}

fn options(case: &Case) -> EvaluateOptions {
    EvaluateOptions { spans_per_spanset: case.params.spss.unwrap_or(usize::MAX) }
}

fn overlaps(case: &Case, view: &TraceView<'_>) -> bool {
    let second = 1_000_000_000;
    let (from, to) = (case.params.start.unwrap_or(0), case.params.end.unwrap_or(u64::MAX / second));
    view.overlaps(from * second, to * second)
}

fn newest(case: &Case, mut found: Vec<TraceMatch>) -> Outcome {
    found.sort_by_key(|found| std::cmp::Reverse(found.start_ns));
    found.truncate(case.params.limit.unwrap_or(usize::MAX));
    Outcome::Traces(found)
}

/// What is wrong with an answer; `None` when it is right.
fn judge(case: &Case, outcome: &Outcome) -> Option<String> {
    let expected_error = case.expect["error"].as_str();
    match outcome {
        Outcome::Refused(class) => (expected_error != Some(&class.to_string())).then(|| format!("refused: {class}")),
        Outcome::Failed(_) if expected_error == Some("execution") || case.quirk && case.also_accept.is_empty() => None,
        Outcome::Failed(error) => Some(format!("failed: {error}")),
        Outcome::Traces(_) if expected_error.is_some() => Some(format!("no error, expected {expected_error:?}")),
        Outcome::Traces(found) => {
            let wrong = judge_traces(case, found)?;
            let accepted = case.also_accept.iter().any(|alternative| span_ids(found) == alternative_ids(&alternative["traces"]));
            (!accepted).then_some(wrong)
        }
    }
}

fn judge_traces(case: &Case, found: &[TraceMatch]) -> Option<String> {
    let expected: Vec<&Json> = list(&case.expect["traces"]).collect();
    let ids: Vec<TraceId> = expected.iter().map(|trace| trace_id(&trace["traceID"])).collect();
    let found_ids: Vec<TraceId> = found.iter().map(|trace| trace.trace_id).collect();
    let (mut sorted, mut found_sorted) = (ids.clone(), found_ids.clone());
    sorted.sort_unstable();
    found_sorted.sort_unstable();
    if sorted != found_sorted || case.ordered && ids != found_ids {
        return Some(format!("traces: expected {ids:?}, found {:?}", span_ids(found)));
    }
    expected.iter().find_map(|trace| {
        let id = trace_id(&trace["traceID"]);
        let found = found.iter().find(|found| found.trace_id == id)?;
        judge_trace(trace, found).map(|wrong| format!("trace {id}: {wrong}"))
    })
}

fn judge_trace(expected: &Json, found: &TraceMatch) -> Option<String> {
    let text = |key: &str| expected[key].as_str().unwrap_or_default().to_owned();
    let service = if found.root_service_name.is_empty() { "<root span not yet received>" } else { &found.root_service_name };
    let fields = (service.to_owned(), found.root_trace_name.clone(), found.start_ns.to_string(), found.duration_ms);
    let wanted =
        (text("rootServiceName"), text("rootTraceName"), text("startTimeUnixNano"), expected["durationMs"].as_u64().unwrap_or_default());
    if fields != wanted {
        return Some(format!("expected {wanted:?}, found {fields:?}"));
    }
    let mut left: Vec<&Spanset> = found.spansets.iter().collect();
    for spanset in list(&expected["spanSets"]) {
        let wrongs: Vec<Option<String>> = left.iter().map(|candidate| judge_spanset(spanset, candidate)).collect();
        match wrongs.iter().position(Option::is_none) {
            Some(index) => {
                left.remove(index);
            }
            None => return Some(format!("no spanset like {spanset}: {wrongs:?}")),
        }
    }
    (!left.is_empty()).then(|| format!("spansets too many: {left:?}"))
}

fn judge_spanset(expected: &Json, found: &Spanset) -> Option<String> {
    let matched = expected["matched"].as_u64().unwrap_or_default() as usize;
    if matched != found.matched {
        return Some(format!("matched {}", found.matched));
    }
    let wanted = attributes(&expected["attributes"]);
    let shown: Vec<(String, AnyValue)> = found.attributes.iter().map(|(key, value)| (key.clone(), value.to_any_value())).collect();
    if wanted.len() != shown.len() || wanted.iter().any(|attribute| !shown.contains(attribute)) {
        return Some(format!("attributes {shown:?}"));
    }
    if let Some(count) = expected["spanCount"].as_u64() {
        return (count as usize != found.spans.len()).then(|| format!("{} spans", found.spans.len()));
    }
    // Two spans may share an id.
    let mut left: Vec<&SpanMatch> = found.spans.iter().collect();
    for span in list(&expected["spans"]) {
        match left.iter().position(|candidate| judge_span(span, candidate)) {
            Some(index) => {
                left.remove(index);
            }
            None => return Some(format!("no span like {span}; left {left:?}")),
        }
    }
    (!left.is_empty()).then(|| format!("spans too many: {left:?}"))
}

fn judge_span(expected: &Json, found: &SpanMatch) -> bool {
    let shown: Vec<(String, AnyValue)> = found.attributes.iter().map(|(key, value)| (key.clone(), value.to_any_value())).collect();
    // A name may be shown although only a condition that the span does not satisfy asks for it.
    let name_fits = expected["name"].as_str().is_none_or(|name| found.name.as_deref() == Some(name));
    let is_shown = |(key, value): &(String, AnyValue)| shown.iter().any(|(other, shown)| key == other && is_part_of(value, shown));
    span_id(&expected["spanID"]) == found.span_id && name_fits && attributes(&expected["attributes"]).iter().all(is_shown)
}

/// The reference shows only those elements of an array that satisfied a condition, a single one as scalar.
fn is_part_of(expected: &AnyValue, shown: &AnyValue) -> bool {
    match (&expected.value, &shown.value) {
        (Some(any_value::Value::ArrayValue(expected)), Some(any_value::Value::ArrayValue(shown))) => {
            expected.values.iter().all(|element| shown.values.contains(element))
        }
        (_, Some(any_value::Value::ArrayValue(shown))) => shown.values.contains(expected),
        _ => expected == shown,
    }
}

fn attributes(json: &Json) -> Vec<(String, AnyValue)> {
    list(json).map(|attribute| (attribute["key"].as_str().unwrap_or_default().to_owned(), parse_any_value(&attribute["value"]))).collect()
}

fn span_ids(found: &[TraceMatch]) -> BTreeMap<TraceId, Vec<Vec<u64>>> {
    found
        .iter()
        .map(|trace| {
            let ids = |spanset: &Spanset| sorted(spanset.spans.iter().map(|span| span.span_id).collect());
            (trace.trace_id, sorted(trace.spansets.iter().map(ids).collect()))
        })
        .collect()
}

fn alternative_ids(json: &Json) -> BTreeMap<TraceId, Vec<Vec<u64>>> {
    let traces = json.as_object().expect("traces by id");
    traces
        .iter()
        .map(|(id, spansets)| {
            let id = TraceId::from_hex(id).expect("a trace id");
            (id, sorted(list(spansets).map(|spans| sorted(list(spans).map(span_id).collect())).collect()))
        })
        .collect()
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort_unstable();
    items
}

fn list(json: &Json) -> impl Iterator<Item = &Json> {
    json.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn trace_id(json: &Json) -> TraceId {
    TraceId::from_hex(json.as_str().unwrap_or_default()).expect("a trace id")
}

fn span_id(json: &Json) -> u64 {
    u64::from_str_radix(json.as_str().unwrap_or_default(), 16).expect("a span id")
}

/// The trace with one of those spans that have the same id and kind.
fn without_repeated(trace: &Trace) -> Trace {
    let mut known = HashSet::new();
    let mut trace = trace.clone();
    for span in trace.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans) {
        span.spans.retain(|span| known.insert((span.span_id.clone(), span.kind)));
    }
    trace
}

#[test]
fn every_search_of_the_corpus_finds_what_it_should() {
    let Some(folder) = corpus() else {
        return;
    };
    let text = fs::read_to_string(folder.join("eval.json")).expect("eval.json is readable");
    let cases: Vec<Case> = serde_json::from_str(&text).expect("eval.json is JSON");
    let searches: Vec<&Case> = cases.iter().filter(|case| case.kind == "search").collect();
    assert!(searches.len() > 900, "the corpus is complete");
    let mut fixtures: BTreeMap<&str, Vec<Trace>> = BTreeMap::new();
    let runtime = Runtime::new().expect("a runtime");
    let mut blocks: BTreeMap<&str, Vec<Arc<Reader>>> = BTreeMap::new();
    let mut failures = Vec::new();
    for case in searches {
        let traces = fixtures.entry(&case.fixture).or_insert_with(|| load(&folder.join("fixtures").join(format!("{}.json", case.fixture))));
        let wrong = judge(case, &run(case, traces));
        let blocks = blocks
            .entry(&case.fixture)
            .or_insert_with(|| Format::ALL.into_iter().map(|format| runtime.block_on(write_block(format, 1_000_000, traces))).collect());
        let mut places = vec![("live".to_owned(), judge(case, &run_live(case, traces)))];
        // Blocks keep a span once that came more than once.
        let single: Vec<Trace> = traces.iter().map(without_repeated).collect();
        for reader in blocks {
            // The older versions do not keep attributes of scopes.
            let scopes = !case.query.contains("instrumentation.") || matches!(reader.format(), Format::V4 | Format::V5);
            if scopes && judge(case, &run(case, &single)).is_some() == wrong.is_some() {
                places.push((reader.format().to_string(), judge(case, &run_block(case, traces, reader, &runtime))));
            }
        }
        for (place, found) in places {
            if found.is_some() != wrong.is_some() {
                failures.push(format!(
                    "{} on {} in {place}: {}\n    {found:?}, and the evaluator {wrong:?}",
                    case.id, case.fixture, case.query
                ));
            }
        }
        if let Some(wrong) = wrong {
            failures.push(format!("{} on {}: {}\n    {wrong}", case.id, case.fixture, case.query));
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}
