//! No gap and no double: traces move from recent data to a block while queries run.
//!
//! A move has three steps, in this order: recent data says which block the trace is going into; the block is listed; recent data forgets the
//! trace, and from then on its answers name the block. The fake lets each happen before or after any of the reads that a query makes; whatever
//! the moments, the answer must be the one of a world that stands still.

use super::*;

/// Runs a query for all moments at which the steps can happen.
pub(super) async fn at_every_moment(url: &str) {
    let tenant = Tenant::single();
    let still = World::new();
    still.receive(&tenant, shop());
    still.receive(&tenant, vec![service("other", vec![span(7, 7, 0, "other", 30)])]);
    let expected = without_cost(get(&still.router(), url).await.json());

    // Later moments than a query has mean that the step happens after it.
    const MOMENTS: usize = 9;
    for list_at in 0..MOMENTS {
        for (forget_at, going_at) in
            (list_at..MOMENTS).flat_map(|forget_at| [0, list_at / 2, list_at].map(|going_at| (forget_at, going_at)))
        {
            let world = World::new();
            world.receive(&tenant, shop());
            world.receive(&tenant, vec![service("other", vec![span(7, 7, 0, "other", 30)])]);
            let block = world.write_block(&tenant, shop()).await;
            let (blocklist, published) = (world.blocklist.clone(), Arc::clone(&world.recent.published));
            let going = Arc::clone(&world.recent.going);
            let mut moment = 0;
            *world.recent.hook.lock() = Some(Box::new(move |data| {
                if moment == going_at {
                    going.lock().insert(TraceId(SHOP.to_be_bytes()), block.block_id);
                }
                if moment == list_at {
                    blocklist.add(block.clone());
                }
                if moment == forget_at {
                    published.lock().push(Arc::new(block.clone()));
                    data.values_mut().for_each(|traces| drop(traces.remove(&TraceId(SHOP.to_be_bytes()))));
                }
                moment += 1;
            }));
            let router = world.router();
            for attempt in 0..3 {
                let answer = without_cost(get(&router, url).await.json());
                assert_eq!(answer, expected, "attempt {attempt}: going at {going_at}, listed at {list_at}, forgotten at {forget_at}");
            }
        }
    }
}

/// An answer without the counters that tell where it came from.
fn without_cost(mut answer: serde_json::Value) -> serde_json::Value {
    answer.as_object_mut().expect("object").remove("metrics");
    sort_spans(&mut answer);
    answer
}

/// Blocks keep spans, resources and attributes in an order of their own.
fn sort_spans(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(values) => {
            values.iter_mut().for_each(sort_spans);
            values.sort_by_key(ToString::to_string);
        }
        serde_json::Value::Object(members) => members.values_mut().for_each(sort_spans),
        _ => {}
    }
}

#[tokio::test]
async fn a_trace_is_found_whole_and_once_while_it_moves() {
    at_every_moment(&format!("/api/v2/traces/{SHOP_HEX}")).await;
}

#[tokio::test]
async fn a_search_finds_each_trace_once_while_one_moves() {
    at_every_moment(&format!("/api/search?q={}&spss=10", encoded("{ resource.service.name != nil } | count() > 0"))).await;
}

#[tokio::test]
async fn tags_are_complete_while_a_trace_moves() {
    at_every_moment("/api/v2/search/tags").await;
    at_every_moment("/api/v2/search/tag/resource.service.name/values").await;
}

#[tokio::test]
async fn parts_that_overlap_are_counted_once() {
    let world = World::new();
    let tenant = Tenant::single();
    world.receive(&tenant, shop());
    world.receive(&tenant, shop());
    world.cut(&tenant, shop()).await;
    world.cut(&tenant, shop()).await;
    let answer = get(&world.router(), &format!("/api/search?q={}", encoded("{} | count() = 3"))).await.json();
    assert_eq!(answer["traces"].as_array().map(Vec::len), Some(1));
    assert_eq!(answer["traces"][0]["spanSet"]["matched"], 3);
    assert_eq!(answer["traces"][0]["serviceStats"]["shop-backend"]["spanCount"], 2);
}

/// What a search must say of a trace: its id, the spans that match, all its spans, its start.
type Expected = (u64, usize, usize, String);

/// Spans whose every property follows from trace and id, so that the same span is the same wherever it lies.
fn placed(trace: u64, id: u64) -> Span {
    let name = if id.is_multiple_of(3) { "wanted" } else { "other" };
    span(trace.into(), id, if id == 1 { 0 } else { 1 }, name, 100 + (trace * 37 + id * 61) % 3_000)
}

/// The naive answer: every trace whole, in memory.
fn expected(spans: &[(u64, u64, usize)]) -> Vec<Expected> {
    let mut traces: BTreeMap<u64, BTreeMap<u64, Span>> = BTreeMap::new();
    for (trace, id, _) in spans {
        traces.entry(*trace).or_default().insert(*id, placed(*trace, *id));
    }
    let mut found: Vec<Expected> = Vec::new();
    for (trace, spans) in traces {
        let matched = spans.values().filter(|span| span.name == "wanted").count();
        let start = spans.values().map(|span| span.start_time_unix_nano).min().unwrap_or(0);
        if matched > 0 {
            found.push((trace, matched, spans.len(), start.to_string()));
        }
    }
    found.sort_by(|a, b| b.3.cmp(&a.3).then(a.0.cmp(&b.0)));
    found
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    #[test]
    fn where_spans_lie_does_not_matter(spans in proptest::collection::vec((1u64..8, 1u64..12, 0usize..4), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let found = runtime.block_on(async {
            let world = World::new();
            let tenant = Tenant::single();
            for place in 0..4 {
                let here = spans.iter().filter(|(_, _, at)| *at == place);
                let here: Vec<_> = here.map(|(trace, id, _)| service("x", vec![placed(*trace, *id)])).collect();
                match place {
                    0 => world.receive(&tenant, here),
                    _ if here.is_empty() => {}
                    _ => world.cut(&tenant, here).await,
                }
            }
            get(&world.router(), &format!("/api/search?limit=50&q={}", encoded("{ name = \"wanted\" }"))).await.json()
        });
        let none = Vec::new();
        let found: Vec<Expected> = found["traces"].as_array().unwrap_or(&none).iter().map(|trace| {
            let id = u64::from_str_radix(trace["traceID"].as_str().expect("id"), 16).expect("hex");
            let count = |value: &serde_json::Value| value.as_u64().expect("count") as usize;
            let start = trace["startTimeUnixNano"].as_str().expect("start").to_owned();
            (id, count(&trace["spanSet"]["matched"]), count(&trace["serviceStats"]["x"]["spanCount"]), start)
        }).collect();
        proptest::prop_assert_eq!(found, expected(&spans));
    }
}
