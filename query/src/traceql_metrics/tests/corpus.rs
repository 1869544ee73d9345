//! Range and instant queries of the conformance corpus.

use std::{collections::BTreeMap, fs, sync::Arc};

use serde::Deserialize;
use serde_json::Value as Json;
use storage::block::{Format, Reader, Trace};
use tokio::runtime::Runtime;

use super::{
    super::{Asked, MetricsLimits, MetricsRequest, Partial},
    Table, answer, count, count_block, difference, naive, typed,
};
use crate::{
    exec::tests::write_block,
    traceql::{
        self,
        corpus_tests::{corpus, fixture},
    },
};

#[derive(Deserialize)]
struct Case {
    id: String,
    kind: String,
    fixture: String,
    query: String,
    #[serde(default)]
    params: BTreeMap<String, Json>,
    expect: Json,
    #[serde(default)]
    subset: bool,
    #[serde(default)]
    also_accept: Vec<Json>,
}

impl Case {
    fn request(&self) -> MetricsRequest {
        let number = |name: &str| self.params.get(name).map(|text| text.as_str().expect("text").parse().expect("a number"));
        let asked = Asked {
            start: number("start_ns").expect("given"),
            end: number("end_ns").expect("given"),
            step: number("step_ns"),
            instant: self.kind == "instant",
            ..Asked::default()
        };
        let query = traceql::parse(&self.query).unwrap_or_else(|error| panic!("{}: {error}", self.query));
        MetricsRequest::new(Arc::new(query), asked, MetricsLimits::default()).expect("a metrics query")
    }
}

fn expected(json: &Json) -> Table {
    let list = |json: &Json| json.as_array().cloned().unwrap_or_default();
    let label = |label: &Json| {
        let value = fixture::any_value(&label["value"]);
        (label["key"].as_str().expect("key").to_owned(), typed(value.value.as_ref()))
    };
    let sample = |sample: &Json| (sample[0].as_i64().expect("milliseconds"), sample[1].as_f64().expect("a number"));
    list(&json["series"])
        .iter()
        .map(|series| (list(&series["labels"]).iter().map(label).collect(), list(&series["samples"]).iter().map(sample).collect()))
        .collect()
}

fn judge(case: &Case, mut found: Table) -> Option<String> {
    let judge = |json: &Json, found: &mut Table| {
        let expected = expected(json);
        if case.subset {
            found.retain(|labels, _| expected.contains_key(labels));
        }
        difference(&expected, found, 1e-6)
    };
    let wrong = judge(&case.expect, &mut found)?;
    case.also_accept.iter().all(|json| judge(json, &mut found).is_some()).then_some(wrong)
}

#[test]
fn every_metrics_query_of_the_corpus_gives_the_series_that_it_should() {
    let Some(folder) = corpus() else {
        return;
    };
    let text = fs::read_to_string(folder.join("eval.json")).expect("eval.json is readable");
    let cases: Vec<Case> = serde_json::from_str(&text).expect("eval.json is JSON");
    let cases: Vec<&Case> = cases.iter().filter(|case| case.kind != "search").collect();
    assert!(cases.len() >= 180, "the corpus is complete");
    let mut fixtures: BTreeMap<&str, Vec<Trace>> = BTreeMap::new();
    let runtime = Runtime::new().expect("a runtime");
    let mut blocks: BTreeMap<&str, Vec<Arc<Reader>>> = BTreeMap::new();
    let mut failures = Vec::new();
    for case in cases {
        let traces = &*fixtures
            .entry(&case.fixture)
            .or_insert_with(|| fixture::load(&folder.join("fixtures").join(format!("{}.json", case.fixture))));
        let request = case.request();
        let whole = count(&request, traces).expect("evaluates");
        // As it goes through the frontend: a job for each trace, in another order.
        let mut parts = Partial::new(&request);
        for trace in traces.iter().rev() {
            let part = count(&request, std::slice::from_ref(trace)).expect("evaluates").encode();
            parts.merge(&request, &Partial::decode(&request, &part).expect("our own")).expect("fits");
        }
        let split = answer(&request, &parts);
        if split != answer(&request, &whole) {
            failures.push(format!("{} on {}: {}\n    another answer in parts: {split:?}", case.id, case.fixture, case.query));
        }
        let mut found = vec![("live".to_owned(), answer(&request, &whole)), ("reference".to_owned(), naive::evaluate(&request, traces))];
        let blocks = blocks
            .entry(&case.fixture)
            .or_insert_with(|| Format::ALL.into_iter().map(|format| runtime.block_on(write_block(format, 10_000, traces))).collect());
        for reader in blocks {
            let counted = runtime.block_on(count_block(&request, reader)).expect("evaluates");
            found.push((reader.format().to_string(), answer(&request, &counted)));
        }
        for (who, table) in found {
            if let Some(wrong) = judge(case, table) {
                failures.push(format!("{} on {}: {}\n    {who}: {wrong}", case.id, case.fixture, case.query));
            }
        }
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}
