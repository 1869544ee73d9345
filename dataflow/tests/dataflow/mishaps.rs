//! What goes wrong outside of the dataflow: clocks that step, a log that cannot be read for a moment, threads that die.

use std::{fs, time::Duration};

use dataflow::Settings;
use storage::{
    clock::{Clock as _, SystemClock},
    id::Tenant,
};

use crate::{
    harness::{BadClock, Harness, Spans, request},
    hasty, requests, settings,
};

const HOUR: i64 = 3600;

#[test]
fn a_clock_that_steps_back_stops_nothing() {
    let harness = Harness::new(settings(2));
    harness.block_on(async {
        let tenant = Tenant::single();
        harness.wal().append(&tenant, request(&[(1, 1)])).await.expect("append");
        tokio::time::sleep(Duration::from_millis(200)).await;
        harness.clock().step_to(-HOUR);
        harness.wal().append(&tenant, request(&[(1, 2)])).await.expect("append");
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, one_trace(&[1, 2]));
    });
}

#[test]
fn a_clock_that_was_ahead_at_the_start_stops_nothing() {
    let clock = BadClock::default();
    clock.step_to(HOUR);
    let harness = Harness::with_clock(settings(2), clock);
    harness.block_on(async {
        let tenant = Tenant::single();
        harness.wait_until("a generation runs", Harness::is_running).await;
        harness.clock().step_to(0);
        harness.wal().append(&tenant, request(&[(1, 1)])).await.expect("append");
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, one_trace(&[1]));
    });
}

#[test]
fn a_block_says_when_it_was_ingested_whatever_its_spans_say() {
    let harness = Harness::new(settings(2));
    let tenant = Tenant::single();
    let now = || i64::try_from(SystemClock.now().as_secs()).ok();
    let before = now();
    harness.block_on(async {
        harness.wal().append(&tenant, request(&[(1, 1)])).await.expect("append");
        harness.flush().await;
        let blocks = harness.listed(&tenant);
        assert_eq!(blocks.len(), 1);
        assert_eq!(blocks[0].end_time, 1_700_000_000, "its spans are years old");
        assert!(before <= blocks[0].created_at && blocks[0].created_at <= now(), "{:?}", blocks[0].created_at);
        let there = harness.store().meta(&tenant, blocks[0].block_id).await.expect("get");
        assert_eq!(there.and_then(|meta| meta.created_at), blocks[0].created_at);
    });
}

fn one_trace(spans: &[u64]) -> Spans {
    Spans::from([(crate::harness::trace_id(1), spans.iter().map(|span| crate::harness::span_id(1, *span)).collect())])
}

#[test]
fn a_restart_with_a_clock_that_stepped_back_stores_nothing_twice() {
    let mut harness = Harness::new(hasty(1));
    let tenant = Tenant::single();
    // More than the reader reads at once.
    let (requests, mut truth) = requests(500, 40);
    harness.block_on(async {
        harness.faults().refuse_metas(true);
        // A trace that stays live, so that the log must be read from its first record on.
        let lively = 1000;
        let mut spans = 0..;
        let mut go_on = async || {
            let span = spans.next().expect("endless");
            harness.wal().append(&tenant, request(&[(lively, span)])).await.expect("append");
            truth.entry(crate::harness::trace_id(lively)).or_default().push(crate::harness::span_id(lively, span));
        };
        go_on().await;
        for spans in &requests {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
        }
        while harness.faults().manifests_with_blocks() == 0 {
            go_on().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    harness.faults().refuse_metas(false);
    harness.clock().step_to(-HOUR);
    // So little that the log is taken in piece by piece.
    harness.restart(Settings { resident_bytes: 256 << 10, ..hasty(1) });
    harness.block_on(async {
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, truth);
    });
}

#[test]
fn a_log_that_cannot_be_read_for_a_moment_loses_nothing() {
    let mut harness = Harness::new(settings(1));
    let tenant = Tenant::single();
    let (requests, truth) = requests(500, 40);
    harness.block_on(async {
        harness.faults().refuse_puts(true);
        for spans in &requests {
            harness.wal().append(&tenant, request(spans)).await.expect("append");
        }
    });
    let mut hidden = None;
    harness.restart_with(settings(1), |folder| {
        let files = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
        let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "wal")).collect();
        files.sort_unstable();
        let hide = folder.join("hidden");
        fs::rename(&files[1], &hide).expect("there are two files");
        hidden = Some((hide, files.swap_remove(1)));
    });
    harness.block_on(async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (from, to) = hidden.expect("hidden");
        fs::rename(from, to).expect("back");
        harness.faults().refuse_puts(false);
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, truth);
    });
}

/// Lets a thread die and expects that nothing is lost or doubled. `settings` are such that it asks for the time.
fn survives(settings: Settings, thread: &'static str) {
    let harness = Harness::new(settings);
    harness.block_on(async {
        let tenant = Tenant::single();
        harness.wal().append(&tenant, request(&[(1, 1)])).await.expect("append");
        tokio::time::sleep(Duration::from_millis(100)).await;
        harness.clock().panic_in(thread);
        for span in 2..=40 {
            harness.wal().append(&tenant, request(&[(1, span)])).await.expect("append");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        harness.wait_until("it dies", |harness| harness.clock().has_panicked()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, one_trace(&(1..=40).collect::<Vec<_>>()));
    });
}

#[test]
fn a_reader_that_dies_begins_a_new_generation() {
    survives(settings(2), "wal-reader");
}

#[test]
fn a_worker_that_panics_begins_a_new_generation() {
    // The first worker asks for the time when the budget is used up.
    survives(Settings { resident_bytes: 1, ..settings(3) }, "timely");
}

#[test]
fn a_recovery_that_waits_for_the_bucket_can_be_stopped() {
    let mut harness = Harness::new(hasty(1));
    let tenant = Tenant::single();
    harness.block_on(async {
        harness.faults().refuse_metas(true);
        harness.wal().append(&tenant, request(&[(1, 1)])).await.expect("append");
        harness.wait_until("a manifest lists a block", |harness| harness.faults().manifests_with_blocks() > 0).await;
    });
    harness.restart(hasty(1));
    harness.block_on(async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!harness.is_running(), "it waits");
        let stopped = tokio::time::timeout(Duration::from_secs(5), harness.shutdown()).await;
        harness.faults().refuse_metas(false);
        stopped.expect("it stops although the bucket is away");
    });
}

#[test]
fn a_flush_ends_although_the_end_of_the_log_is_damaged() {
    let mut harness = Harness::new(settings(1));
    let tenant = Tenant::single();
    harness.block_on(async {
        harness.faults().refuse_puts(true);
        harness.wal().append(&tenant, request(&[(1, 1)])).await.expect("append");
        harness.wal().append(&tenant, request(&[(1, 2)])).await.expect("append");
    });
    harness.restart_with(settings(1), |folder| {
        let files = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
        let file = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "wal")).expect("a file");
        let mut bytes = fs::read(&file).expect("read");
        *bytes.last_mut().expect("not empty") ^= 0xff;
        fs::write(&file, bytes).expect("write");
    });
    harness.block_on(async {
        harness.faults().refuse_puts(false);
        harness.flush().await;
        assert_eq!(harness.stored(&tenant).await, one_trace(&[1]));
    });
}
