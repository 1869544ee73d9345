//! The dataflow over a real log and an in-memory bucket.

mod cluster;
mod faults;
mod generator;
mod harness;
mod mishaps;

use std::{collections::BTreeMap, time::Duration};

use dataflow::Settings;
use harness::{Harness, Spans, request};
use proptest::prelude::*;
use storage::id::{Tenant, TraceId};

fn settings(workers: usize) -> Settings {
    Settings {
        workers,
        tick: Duration::from_millis(20),
        trace_idle_period: Duration::from_millis(200),
        checkpoint_interval: Duration::from_millis(60),
        ..Settings::default()
    }
}

/// Requests of `traces` traces with `spans` spans each, several traces to a request, several requests to a trace.
fn requests(traces: u64, spans: u64) -> (Vec<Vec<(u64, u64)>>, Spans) {
    let all: Vec<(u64, u64)> = (0..spans).flat_map(|span| (0..traces).map(move |trace| (trace, span))).collect();
    let mut truth = Spans::new();
    for (trace, span) in &all {
        truth.entry(harness::trace_id(*trace)).or_default().push(harness::span_id(*trace, *span));
    }
    truth.values_mut().for_each(|spans| spans.sort_unstable());
    (all.chunks(7).map(<[_]>::to_vec).collect(), truth)
}

#[test]
fn what_is_acknowledged_is_readable_at_every_moment() {
    let harness = Harness::new(settings(2));
    harness.block_on(async {
        let tenant = Tenant::single();
        let (requests, truth) = requests(20, 10);
        let mut sent = BTreeMap::<TraceId, Vec<u64>>::new();
        for spans in &requests {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
            for (trace, span) in spans {
                sent.entry(harness::trace_id(*trace)).or_default().push(harness::span_id(*trace, *span));
            }
            let (trace, _) = spans[0];
            let trace = harness::trace_id(trace);
            let mut expected = sent[&trace].clone();
            expected.sort_unstable();
            assert_eq!(harness.read(&tenant, trace).await, expected, "acknowledged, so readable");
        }
        // Through cut, upload and commit: whenever one asks, each span is there.
        for _ in 0..100 {
            for (trace, spans) in &truth {
                assert_eq!(&harness.read(&tenant, *trace).await, spans);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, truth);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// What ends up in blocks does not depend on the number of workers, the order of arrival, or how often something is repeated.
    #[test]
    fn blocks_hold_each_span_once(
        workers in 1usize..=4,
        order in any::<u64>(),
        repeats in prop::collection::vec(0usize..60, 0..60),
    ) {
        let (mut requests, truth) = requests(30, 12);
        let again: Vec<_> = repeats.iter().filter_map(|index| requests.get(*index).cloned()).collect();
        requests.extend(again);
        harness::shuffle(&mut requests, order);
        let harness = Harness::new(settings(workers));
        let stored = harness.block_on(async {
            let tenant = Tenant::single();
            for spans in &requests {
                harness.wal().append(&tenant, request(spans)).await.expect("append");
            }
            harness.flush().await;
            harness.stored(&tenant).await
        });
        prop_assert_eq!(stored, truth);
    }
}

#[test]
fn tenants_do_not_mix() {
    let harness = Harness::new(settings(2));
    harness.block_on(async {
        let (a, b) = (Tenant::new("a").expect("valid"), Tenant::new("b").expect("valid"));
        harness.wal().append(&a, request(&[(1, 1), (1, 2)])).await.expect("append");
        harness.wal().append(&b, request(&[(1, 1), (1, 3)])).await.expect("append");
        harness.flush().await;
        let only = |spans: &[u64]| Spans::from([(harness::trace_id(1), spans.iter().map(|span| harness::span_id(1, *span)).collect())]);
        assert_eq!(harness.stored(&a).await, only(&[1, 2]));
        assert_eq!(harness.stored(&b).await, only(&[1, 3]));
        assert_eq!(harness.read(&a, harness::trace_id(1)).await.len(), 2);
    });
}

#[test]
fn a_restart_reads_the_log_again_and_stores_nothing_twice() {
    let mut harness = Harness::new(settings(1));
    let tenant = Tenant::single();
    let (requests, truth) = requests(40, 8);
    let (early, late) = requests.split_at(requests.len() / 2);
    harness.block_on(async {
        for spans in early {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
        }
        harness.flush().await;
        for spans in late {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
        }
    });
    for workers in [3, 2, 1] {
        // Dropped in the middle of whatever it is doing, with another number of workers next time.
        harness.restart(settings(workers));
        harness.block_on(async {
            for (trace, spans) in &truth {
                assert_eq!(&harness.read(&tenant, *trace).await, spans);
            }
        });
    }
    harness.block_on(async {
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, truth);
    });
}

#[test]
fn a_bucket_that_is_away_costs_disk_and_not_memory() {
    let budget = 2 << 20;
    let settings = Settings { resident_bytes: budget, max_block_bytes: 256 << 10, ..settings(2) };
    let harness = Harness::new(settings);
    let tenant = Tenant::single();
    // About ten times the budget.
    let (requests, truth) = requests(2000, 40);
    harness.block_on(async {
        harness.faults().refuse_puts(true);
        for spans in &requests {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
        }
        let mut most = 0;
        for _ in 0..100 {
            most = most.max(harness.gauge("rubato_dataflow_held_bytes"));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // One batch of the reader (1 MiB) may be admitted when almost nothing is left of the budget.
        assert!(most > budget as i64 / 2, "the budget is used: {most}");
        assert!(most < 2 * budget as i64 + (2 << 20), "held {most} bytes with a budget of {budget}");
        assert!(harness.gauge("rubato_dataflow_wal_lag_bytes") > budget as i64);
        let (trace, spans) = truth.last_key_value().expect("not empty");
        assert_eq!(&harness.read(&tenant, *trace).await, spans, "what waits in the log is readable, too");

        harness.faults().refuse_puts(false);
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, truth);
    });
}

/// Blocks are cut soon, without being asked.
fn hasty(workers: usize) -> Settings {
    Settings { max_block_duration: Duration::from_millis(200), ..settings(workers) }
}

#[test]
fn a_crash_between_block_and_manifest_stores_nothing_twice() {
    let mut harness = Harness::new(hasty(1));
    let tenant = Tenant::single();
    let (requests, truth) = requests(30, 6);
    harness.block_on(async {
        harness.faults().refuse_manifests(true);
        for spans in &requests {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
        }
        harness.wait_until("a block is uploaded", |harness| harness.faults().puts() > 0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(harness.stored(&tenant).await, Spans::new(), "without a manifest no block exists");
    });
    harness.restart(hasty(2));
    harness.block_on(async {
        harness.faults().refuse_manifests(false);
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, truth);
    });
}

/// Requests in blocks, and a trace that stays live, so that a restart reads the log from its first record on and the manifest still lists
/// the blocks.
fn committed(tenant: &Tenant) -> (Harness, Spans, Vec<storage::block::Meta>) {
    for _ in 0..20 {
        let harness = Harness::new(hasty(1));
        let (requests, truth) = requests(30, 6);
        let is_held = harness.block_on(async {
            let mut lively = (0..).map(|span| request(&[(1000, span)]));
            let mut go_on = async || harness.wal().append(tenant, lively.next().expect("endless")).await.expect("append");
            let first = go_on().await;
            for spans in &requests {
                harness.wal().append(tenant, request(spans)).await.expect("append");
            }
            while harness.spans_of(tenant, &harness.listed(tenant)).await.len() < truth.len() {
                go_on().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            harness.shutdown().await;
            let manifest = harness.manifests().load().await.expect("manifest");
            manifest.positions.values().all(|positions| positions.held <= first)
        });
        // Else this process had to wait for a processor for so long that the lively trace was over.
        if is_held {
            let blocks = harness.listed(tenant);
            return (harness, truth, blocks);
        }
    }
    panic!("no trace stays live");
}

#[test]
fn a_block_that_was_compacted_stays_so_over_a_restart() {
    let tenant = Tenant::single();
    let (mut harness, truth, blocks) = committed(&tenant);
    harness.block_on(async {
        for block in &blocks {
            harness.store().mark_compacted(&tenant, block.block_id).await.expect("mark");
        }
    });
    harness.restart(hasty(1));
    harness.block_on(async {
        harness.flush().await;
        let stored = harness.stored(&tenant).await;
        for block in &blocks {
            assert_eq!(harness.store().meta(&tenant, block.block_id).await.expect("get"), None, "it came back");
        }
        // Nothing of it is stored again: what it was compacted into has it.
        let in_blocks = harness.spans_of(&tenant, &blocks).await;
        assert!(!in_blocks.is_empty());
        for (trace, spans) in &in_blocks {
            let again = stored.get(trace).map(Vec::as_slice).unwrap_or_default();
            assert!(spans.iter().all(|span| !again.contains(span)), "trace {trace}");
            assert!(truth.get(trace).is_none_or(|truth| spans.iter().all(|span| truth.contains(span))));
        }
    });
    assert_eq!(harness.counter("rubato_dataflow_skipped_blocks_total"), 0);
}

#[test]
fn a_block_that_is_gone_or_corrupt_does_not_hold_up_recovery() {
    for (what, reason) in [("deleted", "gone"), ("overwritten", "corrupt")] {
        let tenant = Tenant::single();
        let (mut harness, truth, blocks) = committed(&tenant);
        harness.block_on(async {
            for block in &blocks {
                if what == "deleted" {
                    harness.store().delete(&tenant, block.block_id).await.expect("delete");
                } else {
                    harness
                        .store()
                        .put_named(&tenant, block.block_id, "data.parquet", vec![0; block.size as usize].into())
                        .await
                        .expect("put");
                    harness.store().mark_compacted(&tenant, block.block_id).await.expect("mark");
                }
            }
        });
        harness.restart(hasty(1));
        harness.block_on(async {
            harness.wait_until("a generation runs", Harness::is_running).await;
            harness.flush().await;
            // The log still had them, and nothing says that they are stored.
            let stored = harness.stored(&tenant).await;
            for (trace, spans) in &truth {
                assert_eq!(stored.get(trace), Some(spans), "{what}");
            }
            for block in &blocks {
                assert_eq!(harness.store().meta(&tenant, block.block_id).await.expect("get"), None, "{what}: it came back");
            }
        });
        assert_eq!(harness.counter("rubato_dataflow_skipped_blocks_total"), blocks.len() as u64, "{reason}");
    }
}

#[test]
fn a_crash_between_manifest_and_meta_json_loses_nothing() {
    let mut harness = Harness::new(hasty(1));
    let tenant = Tenant::single();
    let (requests, truth) = requests(30, 6);
    harness.block_on(async {
        harness.faults().refuse_metas(true);
        for spans in &requests {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
        }
        harness.wait_until("a manifest lists a block", |harness| harness.faults().manifests_with_blocks() > 0).await;
        assert_eq!(harness.stored(&tenant).await, Spans::new());
    });
    harness.faults().refuse_metas(false);
    harness.restart(hasty(1));
    harness.block_on(async {
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, truth);
    });
}
