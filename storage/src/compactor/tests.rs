use std::{sync::atomic::Ordering, time::Duration};

use proptest::prelude::*;

use super::{
    testing::{CORRUPT, Long, PANIC, Slow, World},
    *,
};

/// Pairs at once, as Tempo would merge them, in windows of an hour.
fn pairs(instance: &str) -> Settings {
    let selection = Selection { max_inputs: 2, small_bytes: 0, patience: Duration::ZERO, ..Selection::default() };
    Settings { selection, instance: instance.to_owned(), ..Settings::default() }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime").block_on(future)
}

#[tokio::test]
async fn blocks_become_one_and_their_inputs_are_deleted_an_hour_later() {
    let mut world = World::new();
    world.ingest_blocks(4).await;
    let process = world.process(pairs("a"));
    process.settle().await;
    world.check("compacted").await;
    world.check_list(&process, "compacted").await;
    let blocks = process.blocklist.blocks(&world.tenant);
    assert_eq!(blocks.iter().map(|meta| (meta.compaction_level, meta.total_objects)).collect::<Vec<_>>(), [(2, 12)]);
    assert_eq!(process.metric("tempodb_compaction_blocks_total"), 6.0);
    assert_eq!(process.metric("tempodb_compaction_objects_written_total"), 24.0);
    assert_eq!(process.metric("tempodb_compaction_outstanding_blocks"), 0.0);

    process.compactor.retain().await.expect("bucket");
    assert_eq!(process.store.listing(&world.tenant).await.expect("list").compacted.len(), 6, "queries may still read them");
    world.advance(3700);
    process.poll(i64::MAX).await.expect("poll");
    process.compactor.retain().await.expect("bucket");
    let names = world.names().await;
    assert!(names.iter().all(|name| name.contains(&blocks[0].block_id.to_string())), "{names:?}");
    assert_eq!(process.metric("tempodb_retention_deleted_total"), 6.0);
    world.check("deleted").await;
}

#[tokio::test]
async fn whoever_watches_is_told_of_the_first_merge_and_the_last() {
    #[derive(Clone, Debug, Default)]
    struct Told(Arc<Mutex<Vec<bool>>>);
    impl Watcher for Told {
        fn merging(&self, any: bool) {
            self.0.lock().push(any);
        }
    }
    let mut world = World::new();
    world.ingest_blocks(4).await;
    let mut process = world.process(Settings { jobs: 2, ..pairs("a") });
    let told = Told::default();
    process.compactor.watcher = Box::new(told.clone());
    process.poll(i64::MAX).await.expect("poll");
    let compactor = &process.compactor;
    let (first, second) = (Begun::new(compactor), Begun::new(compactor));
    drop(first);
    assert_eq!(*told.0.lock(), [true], "one is left");
    drop(second);
    assert_eq!(*told.0.lock(), [true, false]);

    assert_eq!(compactor.cycle().await.compacted, 3);
    let told = told.0.lock().clone();
    assert!(told.len() > 2 && told.chunks(2).all(|pair| pair == [true, false]), "{told:?}");
}

#[tokio::test]
async fn expired_blocks_go_in_two_steps() {
    let mut world = World::new();
    world.ingest(&[1], |meta| meta.end_time -= 4 * 3600).await;
    let process = world.process(Settings { block_retention: Duration::from_secs(5 * 3600), ..pairs("a") });
    process.poll(i64::MAX).await.expect("poll");
    process.compactor.retain().await.expect("bucket");
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 1, "not yet");

    let disabled =
        world.process(pairs("b")).with_overrides(Limits { disabled: true, retention: Some(Duration::from_secs(1)), ..Limits::default() });
    disabled.poll(i64::MAX).await.expect("poll");
    disabled.compactor.retain().await.expect("bucket");
    assert_eq!(disabled.blocklist.blocks(&world.tenant).len(), 1, "this tenant is left alone");

    let process = process.with_overrides(Limits { retention: Some(Duration::from_secs(3 * 3600)), ..Limits::default() });
    process.compactor.retain().await.expect("bucket");
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 0);
    assert_eq!(process.metric("tempodb_retention_marked_for_deletion_total"), 1.0);
    assert_eq!(world.names().await.len(), 3, "data, bloom and meta.compacted.json");
    world.advance(3700);
    process.compactor.retain().await.expect("bucket");
    assert_eq!(world.names().await, [""; 0]);
}

#[tokio::test]
async fn retention_counts_from_ingestion_and_not_from_the_spans_own_times() {
    let mut world = World::new();
    let now = world.now();
    let of = |year_2100: bool| move |meta: &mut Meta| (meta.end_time, meta.created_at) = (i64::from(year_2100) * 4_102_444_800, Some(now));
    world.ingest(&[1], of(false)).await;
    world.ingest(&[2], of(false)).await;
    world.ingest(&[3], of(true)).await;
    let process = world.process(Settings { block_retention: Duration::from_secs(5 * 3600), ..pairs("a") });
    let round = async || {
        process.poll(i64::MAX).await.expect("poll");
        process.compactor.retain().await.expect("bucket");
        process.compactor.cycle().await
    };
    assert_eq!(round().await.compacted, 1, "the two of 1970");
    world.check("just ingested").await;
    assert_eq!(process.metric("rubato_compactor_oldest_level0_age_seconds"), 0.0, "it does not lag by half a century");
    world.advance(5 * 3600);
    round().await;
    world.check("their last second").await;
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 2);
    world.advance(1);
    round().await;
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 0);
    assert_eq!(process.metric("tempodb_retention_marked_for_deletion_total"), 2.0, "that of 2100, and what the two became");
}

#[tokio::test]
async fn a_list_that_does_not_know_the_time_of_ingestion_deletes_nothing() {
    let mut world = World::new();
    let now = world.now();
    let block = world.ingest(&[1], |meta| (meta.end_time, meta.created_at) = (0, Some(now))).await;
    let process = world.process(pairs("a"));
    // As it is found in an index that Tempo built.
    process.blocklist.add(Meta { created_at: None, ..block });
    process.compactor.retain().await.expect("bucket");
    world.check("its folder says when it was ingested").await;
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 1);
}

#[tokio::test]
async fn inputs_stay_for_their_time_however_long_the_merge_took() {
    let mut world = World::new();
    world.ingest(&[1], |_| {}).await;
    world.ingest(&[2], |_| {}).await;
    let mut process = world.process(pairs("a"));
    process.compactor.merge = Box::new(Slow(world.clock.clone()));
    process.poll(i64::MAX).await.expect("poll");
    assert_eq!(process.compactor.cycle().await.compacted, 1);
    process.compactor.retain().await.expect("bucket");
    assert_eq!(process.store.listing(&world.tenant).await.expect("list").compacted.len(), 2, "others may still read them");
}

#[tokio::test]
async fn a_merge_that_takes_longer_than_claims_hold_is_not_given_up_for_lost() {
    let mut world = World::new();
    world.ingest_blocks(2).await;
    let claim_timeout = Duration::from_secs(4);
    let mut process = world.process(Settings { claim_timeout, ..pairs("a") });
    process.compactor.merge = Box::new(Long(world.clock.clone(), claim_timeout));
    process.poll(i64::MAX).await.expect("poll");
    assert_eq!(process.compactor.cycle().await, Cycle { compacted: 1, ..Cycle::default() });
    world.check("compacted").await;
}

#[tokio::test]
async fn a_block_that_is_live_in_its_folder_is_not_deleted_whatever_the_list_says() {
    let mut world = World::new();
    let block = world.ingest(&[1], |_| {}).await;
    let process = world.process(pairs("a"));
    process.poll(i64::MAX).await.expect("poll");
    process.blocklist.replace(&world.tenant, &[block.block_id], Vec::new(), 0);
    process.compactor.retain().await.expect("bucket");
    world.check("it is live").await;
    process.store.mark_compacted(&world.tenant, block.block_id).await.expect("mark");
    process.compactor.retain().await.expect("bucket");
    assert_eq!(world.names().await, [""; 0]);
}

#[tokio::test]
async fn an_input_with_an_unreadable_description_stays_listed_and_is_left_alone() {
    let mut world = World::new();
    let block = world.ingest(&[1], |_| {}).await;
    world.ingest(&[2], |_| {}).await;
    let process = world.process(pairs("a"));
    process.poll(i64::MAX).await.expect("poll");
    process.store.put_named(&world.tenant, block.block_id, "meta.json", "{".into()).await.expect("put");
    assert_eq!(process.compactor.cycle().await, Cycle { failed: 1, ..Cycle::default() });
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 2, "its spans are still served");
}

#[tokio::test]
async fn a_block_that_claims_to_be_made_of_itself_is_not_marked_because_of_it() {
    let mut world = World::new();
    world.ingest(&[1], |meta| meta.compacted_from = vec![meta.block_id]).await;
    world.ingest(&[2], |_| {}).await;
    let process = world.process(pairs("a"));
    process.poll(i64::MAX).await.expect("poll");
    process.compactor.cycle().await;
    world.check("compacted or not").await;
    assert_eq!(process.blocklist.blocks(&world.tenant).iter().map(|meta| meta.total_objects).sum::<u64>(), 2);
}

/// Kills a process at each operation on the bucket in turn. Whatever it left, readers see each span once, and the next process ends up
/// with the same.
#[test]
fn killed_at_any_operation_nothing_is_lost_and_nothing_doubled() {
    block_on(async {
        for carried_out in [false, true] {
            for cut_at in 0.. {
                let mut world = World::new();
                world.ingest_blocks(5).await;
                let process = world.process_killed_at(pairs("a"), cut_at, carried_out);
                process.work(1).await;
                world.advance(3700);
                process.work(1).await;
                let done = process.operations() <= cut_at;
                let why = format!("killed at operation {cut_at}, carried out: {carried_out}");
                world.check(&why).await;

                // The same instance starts again after half of them, another one comes across it after the others.
                let restarted = world.process(pairs(if cut_at % 2 == 0 { "a" } else { "b" }));
                restarted.settle().await;
                world.check(&why).await;
                world.check_list(&restarted, &why).await;
                world.advance(3 * 3600);
                restarted.settle().await;
                world.check(&why).await;
                let live = restarted.store.listing(&world.tenant).await.expect("list").live;
                assert!(live.len() <= 2, "{why}: {live:?}");
                world.advance(3700);
                restarted.settle().await;
                restarted.compactor.retain().await.expect("bucket");
                world.check(&why).await;
                if done {
                    assert!(cut_at > 100, "the process did something: {cut_at}");
                    break;
                }
            }
        }
    });
}

/// Three compactors at work on one bucket, each taking its turn at random, with lists that are out of date, being killed here and there,
/// and beginning again.
async fn race(seed: u64, kills: [usize; 3], blocks: u64, claim_timeout: Option<u64>) {
    let mut world = World::new();
    world.ingest_blocks(blocks).await;
    let settings = |instance: &str| Settings {
        // Zero: each gives up what the others are working on as soon as it sees it.
        claim_timeout: Duration::from_secs(claim_timeout.unwrap_or(2 * 3600)),
        ..pairs(instance)
    };
    let life = |name: &'static str, number: u64, kill: usize| {
        let (world, settings) = (&world, settings(name));
        async move {
            for life in 0..3 {
                // Different limits, so different jobs over the same blocks.
                let max_inputs = 2 + usize::try_from((seed >> number) % 3).expect("small");
                let selection = Selection { max_inputs, ..settings.selection.clone() };
                let settings = Settings { selection, ..settings.clone() };
                world.process_in_turns(settings, kill * (life + 1), seed ^ (number * 8 + life as u64)).work(3).await;
                // It would wait for a minute after losing a race.
                world.advance(61);
            }
        }
    };
    let reading = async {
        let reader = world.process_in_turns(Settings::default(), usize::MAX, seed ^ 77);
        for round in 0..12 {
            reader.poll(i64::MIN).await.expect("poll");
            world.check_list(&reader, &format!("reader, round {round}")).await;
        }
    };
    let time = async {
        for step in 0..3000 {
            if step % 3 == 0 && claim_timeout.is_some() {
                world.advance(1);
            }
            tokio::task::yield_now().await;
        }
    };
    futures::join!(life("a", 0, kills[0]), life("b", 1, kills[1]), life("c", 2, kills[2]), reading, time);
    world.check("after the race").await;
    world.advance(3 * 3600);
    let last = world.process(pairs("d"));
    last.settle().await;
    world.check("in the end").await;
    last.compactor.retain().await.expect("bucket");
    world.check("after retention").await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn compactors_that_own_the_same_jobs_do_no_harm(
        seed: u64,
        kills in prop::array::uniform3(prop_oneof![Just(usize::MAX / 8), 1usize..150]),
        blocks in 2u64..9,
        impatient: bool,
    ) {
        block_on(race(seed, kills, blocks, impatient.then_some(0)));
    }
}

#[tokio::test]
async fn an_output_that_was_decided_for_is_seen_through_by_whoever_comes_across_it() {
    let mut world = World::new();
    world.ingest_blocks(2).await;
    // Finds the operation after the decision by looking for its traces.
    for cut_at in 0.. {
        let process = world.process_killed_at(pairs("a"), cut_at, false);
        process.work(1).await;
        let names = world.names().await;
        if names.iter().any(|name| name.ends_with("compaction-decision.json")) {
            assert_eq!(names.iter().filter(|name| name.ends_with("/meta.json")).count(), 2, "not published yet");
            break;
        }
    }
    let other = world.process(pairs("b"));
    other.poll(i64::MAX).await.expect("poll");
    let cycle = other.compactor.cycle().await;
    assert_eq!(cycle, Cycle { skipped: 1, ..Cycle::default() });
    world.check_list(&other, "seen through").await;
    assert_eq!(other.blocklist.blocks(&world.tenant).len(), 1);
}

#[tokio::test]
async fn a_job_that_is_taken_away_leaves_its_inputs_free() {
    let mut world = World::new();
    world.ingest_blocks(2).await;
    let process = world.process_in_turns(pairs("a"), usize::MAX, 1);
    process.poll(i64::MAX).await.expect("poll");
    // Owned when it was planned, and not when it runs.
    process.owner.patience.store(2, Ordering::SeqCst);
    assert_eq!(process.compactor.cycle().await, Cycle { skipped: 1, ..Cycle::default() });
    world.check("given up").await;
    world.process(pairs("b")).settle().await;
    world.check("done by another").await;
    assert_eq!(process.store.listing(&world.tenant).await.expect("list").live.len(), 1);
}

#[tokio::test]
async fn a_corrupt_block_does_not_hold_up_the_others() {
    let mut world = World::new();
    world.ingest(&[CORRUPT], |meta| (meta.start_time, meta.end_time) = (CORRUPT as i64, meta.end_time)).await;
    world.ingest_blocks(4).await;
    let process = world.process(pairs("a"));
    process.poll(i64::MAX).await.expect("poll");
    let failed = process.compactor.cycle().await;
    assert_eq!(failed.failed, 1, "{failed:?}");
    assert_eq!(process.metric("tempodb_compaction_errors_total"), 1.0);
    let done = process.compactor.cycle().await;
    assert_eq!(failed.compacted + done.compacted, 3, "{failed:?} {done:?}");
    world.check("the corrupt one is where it was").await;
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 2);
}

#[tokio::test]
async fn a_panic_in_a_merge_is_a_failed_job() {
    let mut world = World::new();
    world.ingest(&[PANIC], |_| {}).await;
    world.ingest_blocks(1).await;
    let process = world.process(pairs("a"));
    process.poll(i64::MAX).await.expect("poll");
    assert_eq!(process.compactor.cycle().await, Cycle { failed: 1, ..Cycle::default() });
    assert_eq!(process.compactor.cycle().await, Cycle::default(), "left alone for a minute");
    world.advance(61);
    assert_eq!(process.compactor.cycle().await, Cycle { failed: 1, ..Cycle::default() });
    world.check("as they were").await;
}

#[tokio::test]
async fn what_never_came_to_be_is_cleared_in_time() {
    let mut world = World::new();
    world.ingest_blocks(2).await;
    let tenant = world.tenant.clone();
    let store = world.store();
    // Killed before it committed, and its inputs have been compacted by another since.
    for cut_at in 0.. {
        world.process_killed_at(pairs("a"), cut_at, false).work(1).await;
        if !store.listing(&tenant).await.expect("list").unfinished.is_empty() {
            break;
        }
    }
    world.advance(3 * 3600);
    let process = world.process(pairs("b"));
    process.settle().await;
    assert_eq!(store.listing(&tenant).await.expect("list").unfinished.len(), 1, "the output of the first");
    // An upload that was cut short, or a block that a dataflow has committed to and cannot publish.
    let waiting = world.describe();
    store.put_named(&tenant, waiting.block_id, block::DATA, "data".into()).await.expect("put");

    process.compactor.retain().await.expect("bucket");
    assert_eq!(store.listing(&tenant).await.expect("list").unfinished.len(), 2, "both are young");
    world.advance(25 * 3600);
    process.compactor.retain().await.expect("bucket");
    let left = store.listing(&tenant).await.expect("list").unfinished;
    assert_eq!(left.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [waiting.block_id], "an output that was given up is garbage");
    world.check("garbage").await;
    assert_eq!(publish(&store, &waiting).await.expect("bucket"), Publication::Live, "it can still be published");
    store.delete_named(&tenant, waiting.block_id, "meta.json").await.expect("delete");

    world.advance(15 * 24 * 3600);
    process.compactor.retain().await.expect("bucket");
    world.expect_nothing();
    assert_eq!(store.listing(&tenant).await.expect("list").unfinished, [], "retention would have deleted it by now");
    assert_eq!(process.metric("rubato_compactor_garbage_deleted_total"), 2.0);
    world.check("nothing is left").await;
}

#[tokio::test]
async fn a_flagged_block_is_not_compacted_whatever_the_list_says() {
    let mut world = World::new();
    world.ingest_blocks(2).await;
    let process = world.process(pairs("a"));
    process.poll(i64::MAX).await.expect("poll");
    let flagged = process.blocklist.blocks(&world.tenant)[0].block_id;
    process.store.put_named(&world.tenant, flagged, "nocompact.flg", "".into()).await.expect("put");
    assert_eq!(process.compactor.cycle().await, Cycle { skipped: 1, ..Cycle::default() });
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 2);
    process.store.delete_named(&world.tenant, flagged, "nocompact.flg").await.expect("delete");
    world.advance(61);
    assert_eq!(process.compactor.cycle().await.compacted, 1);
}

/// Tempo's compactor knows nothing of claims.
#[tokio::test]
async fn an_input_that_somebody_else_compacts_meanwhile_is_not_compacted_twice() {
    let mut world = World::new();
    world.ingest_blocks(2).await;
    let process = world.process_in_turns(pairs("a"), usize::MAX, 1);
    process.poll(i64::MAX).await.expect("poll");
    let blocks = process.blocklist.blocks(&world.tenant);
    let store = world.store();
    let tempo = async {
        for block in blocks.iter() {
            while !store.exists(&world.tenant, block.block_id, "compaction-0.json").await.expect("bucket") {
                tokio::task::yield_now().await;
            }
        }
        store.mark_compacted(&world.tenant, blocks[0].block_id).await.expect("bucket");
    };
    let (cycle, ()) = futures::join!(process.compactor.cycle(), tempo);
    assert_eq!(cycle, Cycle { skipped: 1, ..Cycle::default() });
    let live = store.listing(&world.tenant).await.expect("list").live;
    assert_eq!(live, [blocks[1].block_id]);
}

#[tokio::test]
async fn a_block_that_is_half_marked_is_marked_and_not_compacted() {
    let mut world = World::new();
    let half = world.ingest(&[1], |_| {}).await;
    world.ingest(&[2], |_| {}).await;
    let process = world.process(pairs("a"));
    process.poll(i64::MAX).await.expect("poll");
    let json = half.to_json().expect("a meta").into();
    process.store.put_named(&world.tenant, half.block_id, "meta.compacted.json", json).await.expect("put");
    assert_eq!(process.compactor.cycle().await, Cycle { skipped: 1, ..Cycle::default() });
    let listing = process.store.listing(&world.tenant).await.expect("list");
    assert_eq!((listing.live.len(), listing.compacted.len()), (1, 1));
    assert_eq!(process.blocklist.blocks(&world.tenant).len(), 1);
}

#[tokio::test]
async fn the_inputs_of_an_input_are_marked_before_it_is_compacted() {
    let mut world = World::new();
    let input = world.ingest(&[1], |_| {}).await;
    let output = world.ingest(&[1], |meta| meta.compacted_from = vec![input.block_id]).await;
    let other = world.ingest(&[2], |_| {}).await;
    let process = world.process(pairs("a"));
    // A list that has not heard of the input.
    process.blocklist.add(output);
    process.blocklist.add(other);
    assert_eq!(process.compactor.cycle().await.compacted, 1);
    let listing = process.store.listing(&world.tenant).await.expect("list");
    assert!(listing.compacted.iter().any(|(block, _)| *block == input.block_id), "{listing:?}");
}

/// An hour of a block every six seconds, a cycle every thirty: the number of blocks that queries see stays small, and nothing waits long.
#[test]
fn compaction_keeps_up_with_an_hour_of_ingest() {
    block_on(async {
        let mut world = World::new();
        let process = world.process(Settings { instance: "a".to_owned(), ..Settings::default() });
        let (mut most, mut longest) = (0, 0.0f64);
        for step in 0..600 {
            world.ingest_blocks(1).await;
            if step % 5 == 4 {
                process.poll(i64::MAX).await.expect("poll");
                process.compactor.cycle().await;
                most = most.max(process.blocklist.blocks(&world.tenant).len());
                longest = longest.max(process.metric("rubato_compactor_oldest_level0_age_seconds"));
                assert_eq!(process.metric("tempodb_compaction_outstanding_blocks"), 0.0, "step {step}");
            }
            if step % 50 == 49 {
                process.compactor.retain().await.expect("bucket");
                world.check_list(&process, "every span once").await;
            }
            world.advance(6);
        }
        world.check("in the end").await;
        let written = process.metric("tempodb_compaction_objects_written_total") / 1800.0;
        eprintln!("blocks at most: {most}; spans written by compaction per span of ingest: {written:.2}");
        assert!(most <= 40 && written < 4.0, "{most} {written}");
        assert_eq!(process.metric("tempodb_compaction_errors_total"), 0.0);
    });
}
