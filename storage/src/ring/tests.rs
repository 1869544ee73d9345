//! The ring against a model that is slow and plainly right, and against the written oracles.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1_000_000);
const TIMEOUT: Duration = Duration::from_secs(60);

fn instance(id: &str, state: State, tokens: &[u32]) -> Instance {
    Instance {
        id: id.to_owned(),
        addr: format!("{id}:9095"),
        timestamp: NOW.as_secs(),
        state,
        tokens: tokens.to_vec(),
        ..Instance::default()
    }
}

fn settings(replication_factor: usize) -> Settings {
    Settings { replication_factor, heartbeat_timeout: TIMEOUT, ..Settings::default() }
}

fn ids(replicas: &Replicas) -> Vec<&str> {
    replicas.instances.iter().map(|instance| instance.id.as_str()).collect()
}

#[test]
fn hashes_are_those_of_the_oracles() {
    assert_eq!(fnv1_32(b""), 2_166_136_261);
    assert_eq!(fnv1_32(b"a"), 0x050c_5d7e);
    assert_eq!(fnv1a_32(b"a"), 0xe40c_292c);
    assert_eq!(token("a", b""), fnv1_32(b"a"));
    assert_eq!(token("tenant", &[1, 2, 3]), fnv1_32(b"tenant\x01\x02\x03"));
}

#[test]
fn a_key_belongs_to_the_first_token_beyond_it() {
    let ring = Ring::new([instance("a", State::Active, &[10, 30]), instance("b", State::Active, &[20])], settings(1));
    let owner = |key| ids(&ring.replicas(key, Operation::Write, NOW).expect("healthy"))[0].to_owned();
    assert_eq!(owner(9), "a");
    assert_eq!(owner(10), "b", "a key that equals a token goes to the next one");
    assert_eq!(owner(19), "b");
    assert_eq!(owner(20), "a");
    assert_eq!(owner(30), "a", "past the last token the first one follows");
    assert_eq!(owner(u32::MAX), "a");
    let shares = ring.shares();
    assert!((shares[1] - 10.0 / 4_294_967_296.0).abs() < f64::EPSILON, "{shares:?}");
    assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
}

#[test]
fn one_of_three_may_be_dead_but_not_two() {
    let ring_with = |dead: usize| {
        let instances = ["a", "b", "c"].into_iter().enumerate().map(|(index, id)| {
            let mut instance = instance(id, State::Active, &[u32::try_from(index).expect("small") * 100 + 1]);
            instance.timestamp -= if index < dead { TIMEOUT.as_secs() + 1 } else { TIMEOUT.as_secs() };
            instance
        });
        Ring::new(instances, settings(3))
    };
    let replicas = ring_with(0).replicas(0, Operation::Write, NOW).expect("all healthy");
    assert_eq!((ids(&replicas), replicas.max_errors, replicas.min_success()), (vec!["a", "b", "c"], 1, 2));
    let replicas = ring_with(1).replicas(0, Operation::Write, NOW).expect("two healthy");
    assert_eq!((ids(&replicas), replicas.max_errors, replicas.min_success()), (vec!["b", "c"], 0, 2));
    let refused = ring_with(2).replicas(0, Operation::Write, NOW).expect_err("one healthy");
    assert_eq!(
        refused.to_string(),
        "at least 2 live replicas required, could only find 1 - unhealthy instances: a:9095,b:9095",
        "as Tempo says it"
    );
    let all = ring_with(1).all(Operation::Read, NOW).expect("enough");
    assert_eq!((ids(&all), all.max_errors), (vec!["b", "c"], 0));
    assert_eq!(ring_with(2).all(Operation::Read, NOW), Err(RingError::TooManyUnhealthy));
    let ring = ring_with(0);
    assert!(ring.is_covered(|instance| instance.id != "a"), "a majority has it");
    assert!(!ring.is_covered(|instance| instance.id == "a"), "the other two may have acknowledged something");
    let left = ring
        .instances()
        .iter()
        .map(|instance| Instance { state: if instance.id == "a" { State::Active } else { State::Joining }, ..Instance::clone(instance) });
    assert!(Ring::new(left, settings(3)).is_covered(|instance| instance.id == "a"), "who has only begun has nothing");
}

#[test]
fn a_leaving_instance_is_replaced_for_writes_and_still_read() {
    let instances =
        [("a", State::Active, 1), ("b", State::Leaving, 2), ("c", State::Active, 3), ("d", State::Active, 4), ("e", State::Active, 5)];
    let ring = Ring::new(instances.map(|(id, state, token)| instance(id, state, &[token])), settings(3));
    let replicas = |operation| ring.replicas(0, operation, NOW).expect("healthy");
    assert_eq!(ids(&replicas(Operation::Write)), ["a", "c", "d"]);
    assert_eq!(replicas(Operation::Write).max_errors, 0, "four were taken, three of them have to succeed");
    assert_eq!(ids(&replicas(Operation::WriteNoExtend)), ["a", "c"]);
    assert_eq!(ids(&replicas(Operation::Read)), ["a", "b", "c"]);
}

#[test]
fn two_copies_are_content_with_one() {
    let mut silent = instance("a", State::Active, &[1]);
    silent.timestamp = 0;
    let ring = Ring::new([silent.clone(), instance("b", State::Active, &[2])], settings(2));
    let replicas = ring.replicas(0, Operation::Write, NOW).expect("one is enough");
    assert_eq!((ids(&replicas), replicas.max_errors), (vec!["b"], 0));
    let ring = Ring::new([silent], settings(2));
    let refused = ring.replicas(0, Operation::Write, NOW).expect_err("nobody");
    assert_eq!(refused.to_string(), "at least 1 live replicas required, could only find 0");
}

#[test]
fn rings_without_instances_or_tokens_say_so() {
    let text = |ring: Ring| ring.replicas(0, Operation::Write, NOW).expect_err("nothing there").to_string();
    assert_eq!(text(Ring::new([], settings(1))), "DoBatch: InstancesCount <= 0");
    assert_eq!(text(Ring::new([instance("a", State::Left, &[1])], settings(1))), "DoBatch: InstancesCount <= 0");
    assert_eq!(text(Ring::new([instance("a", State::Pending, &[])], settings(1))), "empty ring");
}

#[test]
fn zones_get_a_copy_each() {
    let in_zone = |id: &str, zone: &str, token: u32| Instance { zone: zone.to_owned(), ..instance(id, State::Active, &[token]) };
    let instances = [
        in_zone("a1", "a", 1),
        in_zone("a2", "a", 2),
        in_zone("a3", "a", 3),
        in_zone("b1", "b", 4),
        in_zone("c1", "c", 5),
        in_zone("x1", "x", 6),
    ];
    let zoned = Settings { zone_awareness: true, excluded_zones: vec!["x".to_owned()], ..settings(3) };
    let ring = Ring::new(instances.clone(), zoned.clone());
    assert_eq!(ids(&ring.replicas(0, Operation::Write, NOW).expect("healthy")), ["a1", "b1", "c1"]);
    assert_eq!(ids(&ring.replicas(2, Operation::Write, NOW).expect("healthy")), ["a3", "b1", "c1"]);
    let mut silent = instances;
    silent[3].timestamp = 0;
    silent[4].timestamp = 0;
    let refused = Ring::new(silent, zoned).replicas(0, Operation::Write, NOW).expect_err("one zone of three");
    assert_eq!(
        refused.to_string(),
        "at least 2 live replicas required across different zones, could only find 1 - unhealthy instances: b1:9095,c1:9095"
    );
}

#[test]
fn a_shard_is_stable() {
    let instances = |count: u32| {
        (0..count).map(|n| {
            instance(
                &format!("ingester-{n:02}"),
                State::Active,
                &std::array::from_fn::<u32, 16, _>(|t| fnv1a_32(format!("{n}/{t}").as_bytes())),
            )
        })
    };
    let members = |ring: &Ring| ring.instances().iter().map(|instance| instance.id.clone()).collect::<BTreeSet<_>>();
    let (ten, eleven) = (Ring::new(instances(10), settings(3)), Ring::new(instances(11), settings(3)));
    assert_eq!(members(&ten.shard("tenant", 0)).len(), 10);
    assert_eq!(members(&ten.shard("tenant", 10)).len(), 10);
    let mut shards = BTreeSet::new();
    for tenant in 0..50 {
        let tenant = format!("tenant-{tenant}");
        let (before, after) = (members(&ten.shard(&tenant, 4)), members(&eleven.shard(&tenant, 4)));
        assert_eq!(before.len(), 4);
        assert!(before.difference(&after).count() <= 1, "one that joins replaces at most one");
        shards.insert(before);
    }
    assert!(shards.len() > 20, "tenants use different instances, not {} sets", shards.len());
    // Processes of other versions compute the same: a change of these names is a change of the protocol.
    let names: Vec<String> = members(&ten.shard("tenant", 3)).into_iter().collect();
    assert_eq!(names, PINNED_SHARD);
    let read_only = Ring::new(instances(10).map(|i| Instance { read_only: names.contains(&i.id), ..i }), settings(3));
    assert!(members(&read_only.shard("tenant", 3)).iter().all(|id| !names.contains(id)));
}

const PINNED_SHARD: [&str; 3] = ["ingester-02", "ingester-04", "ingester-07"];

/// The walk with sets and maps, from the words of write-path.md §5.2.
fn model(instances: &[Instance], settings: &Settings, key: u32, operation: Operation) -> Vec<String> {
    let members: Vec<&Instance> =
        instances.iter().filter(|i| i.state != State::Left && !settings.excluded_zones.contains(&i.zone)).collect();
    let mut ring: BTreeMap<u32, &Instance> = BTreeMap::new();
    for member in &members {
        for token in &member.tokens {
            let holder = ring.entry(*token).or_insert(member);
            if (member.state == State::Leaving, &member.id) < (holder.state == State::Leaving, &holder.id) {
                *holder = member;
            }
        }
    }
    let zones: BTreeSet<&str> = members.iter().map(|i| i.zone.as_str()).filter(|zone| !zone.is_empty()).collect();
    let order = ring.range(key..).filter(|(token, _)| **token > key).chain(ring.range(..=key));
    let (mut target, mut found): (usize, Vec<&Instance>) = (settings.replication_factor, Vec::new());
    let mut full: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, candidate) in order {
        if found.len() >= target.min(members.len()) {
            break;
        }
        if found.iter().any(|i| i.id == candidate.id) {
            continue;
        }
        let limited = settings.zone_awareness && !candidate.zone.is_empty();
        let count = full.entry(candidate.zone.as_str()).or_default();
        if limited && *count >= (settings.replication_factor / zones.len()).max(1) {
            continue;
        }
        found.push(candidate);
        if operation.extends(candidate.state) {
            target += 1;
        } else {
            *count += 1;
        }
    }
    found.into_iter().map(|i| i.id.clone()).collect()
}

fn states() -> impl Strategy<Value = State> {
    prop_oneof![6 => Just(State::Active), 1 => Just(State::Leaving), 1 => Just(State::Pending), 1 => Just(State::Joining), 1 => Just(State::Left)]
}

fn operations() -> impl Strategy<Value = Operation> {
    prop_oneof![Just(Operation::Write), Just(Operation::WriteNoExtend), Just(Operation::Read), Just(Operation::Reporting)]
}

fn instances() -> impl Strategy<Value = Vec<Instance>> {
    // Few tokens from a small range, so that they are claimed twice.
    let one = (states(), prop::collection::vec(0u32..200, 0..6), 0usize..5, any::<bool>(), any::<bool>());
    prop::collection::vec(one, 0..9).prop_map(|members| {
        let instances = members.into_iter().enumerate().map(|(index, (state, tokens, zone, silent, read_only))| Instance {
            timestamp: if silent { NOW.as_secs() - TIMEOUT.as_secs() - 1 } else { NOW.as_secs() },
            zone: ["", "a", "b", "c", "x"][zone].to_owned(),
            read_only,
            ..instance(&format!("i{index}"), state, &tokens)
        });
        instances.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(
        instances in instances(),
        key in 0u32..220,
        operation in operations(),
        replication_factor in 1usize..=5,
        zone_awareness in any::<bool>(),
        exclude in any::<bool>(),
    ) {
        let excluded_zones = if exclude { vec!["x".to_owned()] } else { Vec::new() };
        let settings = Settings { zone_awareness, excluded_zones, ..settings(replication_factor) };
        let walked = model(&instances, &settings, key, operation);
        let by_id: BTreeMap<&str, &Instance> = instances.iter().map(|i| (i.id.as_str(), i)).collect();
        let is_healthy = |id: &&String| {
            let instance = by_id[id.as_str()];
            let admitted = match operation {
                Operation::Write | Operation::WriteNoExtend => instance.state == State::Active,
                Operation::Read => matches!(instance.state, State::Active | State::Pending | State::Leaving),
                Operation::Reporting => true,
            };
            admitted && NOW.as_secs() - instance.timestamp <= TIMEOUT.as_secs()
        };
        let healthy: Vec<&String> = walked.iter().filter(is_healthy).collect();
        let required = if replication_factor == 2 { 1 } else { replication_factor.max(walked.len()) / 2 + 1 };

        let shuffled = Ring::new(instances.iter().rev().cloned(), settings);
        match shuffled.replicas(key, operation, NOW) {
            Ok(replicas) => {
                prop_assert_eq!(ids(&replicas), healthy.iter().map(|id| id.as_str()).collect::<Vec<_>>());
                prop_assert_eq!(replicas.max_errors, healthy.len() - required);
                prop_assert!(replicas.min_success() >= 1);
            }
            Err(RingError::TooFewReplicas { required: asked, found, .. }) => {
                prop_assert!(healthy.len() < required);
                prop_assert_eq!((asked, found), (required, healthy.len()));
            }
            Err(RingError::NoInstances) => prop_assert!(shuffled.instances().is_empty()),
            Err(RingError::Empty) => prop_assert!(shuffled.instances().iter().all(|i| i.tokens.is_empty())),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn the_newest_news_of_an_id_counts(news in prop::collection::vec((0u64..4, states(), 0u32..100), 1..6)) {
        let described = |(timestamp, state, token): &(u64, State, u32)| Instance { timestamp: *timestamp, ..instance("a", *state, &[*token]) };
        let ring = Ring::new(news.iter().map(described), settings(1));
        let newest = news.iter().map(|(timestamp, ..)| *timestamp).max().expect("not empty");
        let of_then: Vec<_> = news.iter().filter(|(timestamp, ..)| *timestamp == newest).collect();
        if of_then.iter().any(|(_, state, _)| *state == State::Left) {
            prop_assert!(ring.instances().is_empty());
        } else {
            prop_assert_eq!(ring.instances()[0].as_ref(), &described(of_then[0]), "the first of equally new ones stays");
        }
    }

    #[test]
    fn shards_hold_what_was_asked_for(instances in instances(), size in 1usize..10, zone_awareness in any::<bool>(), tenant in "[a-c]{0,2}") {
        let ring = Ring::new(instances, Settings { zone_awareness, ..settings(3) });
        let shard = ring.shard(&tenant, size);
        let again = ring.shard(&tenant, size);
        prop_assert_eq!(again.instances(), shard.instances());
        if size >= ring.instances().len() {
            prop_assert_eq!(shard.instances(), ring.instances());
            return Ok(());
        }
        prop_assert!(shard.instances().iter().all(|i| !i.read_only && ring.instances().contains(i)));
        let owns = |i: &&Arc<Instance>| !i.read_only && (0..256).any(|key| ring.clockwise(key).next().is_some_and(|p| ring.instances()[p].id == i.id));
        let mut expected = 0;
        let zones: BTreeSet<&str> = ring.instances().iter().map(|i| i.zone.as_str()).collect();
        for zone in &zones {
            let able = ring.instances().iter().filter(owns).filter(|i| i.zone == *zone).count();
            expected += if zone_awareness { able.min(size.div_ceil(zones.len())) } else { able };
        }
        prop_assert_eq!(shard.instances().len(), if zone_awareness { expected } else { expected.min(size) });
    }

    #[test]
    fn shares_count_keys(instances in instances()) {
        let ring = Ring::new(instances, settings(1));
        prop_assume!(ring.tokens() > 0);
        let shares = ring.shares();
        prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // All tokens are below 200: whoever has the least one owns all but some of these keys.
        let first = ring.clockwise(u32::MAX).next().expect("a token");
        for (place, share) in shares.iter().enumerate() {
            let counted = (0..200u32).filter(|key| ring.clockwise(*key).next() == Some(place)).count();
            let beyond = if place == first { 4_294_967_296.0 - 200.0 } else { 0.0 };
            prop_assert!((share * 4_294_967_296.0 - counted as f64 - beyond).abs() < 1e-3);
        }
    }
}
