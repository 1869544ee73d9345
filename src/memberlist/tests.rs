use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use dataflow::cluster::{Candidate, Role};
use prometheus::Registry;
use proptest::prelude::*;
use storage::{
    clock::{Clock, ManualClock, SystemClock},
    ring::{Instance, Settings as RingSettings, State},
    tls::Peers,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::{
    Gossip, Liveness, Settings, Store,
    entry::{Entry, MAX_VALUE_BYTES, instance_key, member_key},
    seeds::Seed,
    wire::{self, Hello, MAX_FRAME_BYTES, Message, PROTOCOL},
};
use crate::services::Shutdown;

const NOW: Duration = Duration::from_secs(1_000_000);
const NOW_MILLIS: u64 = 1_000_000_000;

fn store_at(now: Duration) -> (Store, ManualClock) {
    let clock = ManualClock::new(now);
    (Store::of_one(Arc::new(clock.clone())), clock)
}

fn instance(id: &str, state: State) -> Instance {
    Instance { id: id.to_owned(), addr: format!("{id}:1"), timestamp: NOW.as_secs(), state, tokens: vec![1, 2], ..Instance::default() }
}

fn said(key: String, version: u64, value: &str) -> Entry {
    Entry { key, version, value: value.to_owned() }
}

const MEMBER: &str = r#"{"address":"127.0.0.1:1"}"#;

#[test]
fn what_cannot_be_right_is_refused() {
    let (store, _) = store_at(NOW);
    let day = 24 * 3600 * 1000;
    let refused = store.merge(vec![
        said(member_key("late"), NOW_MILLIS + day + 1, MEMBER),
        said(member_key("just in time"), NOW_MILLIS + day, MEMBER),
        said(member_key("no address"), NOW_MILLIS, "{}"),
        said("ring/a".to_owned() + "/", NOW_MILLIS, "{}"),
        said(instance_key("ring", "x"), NOW_MILLIS, r#"{"addr":"","timestamp":1,"state":"ASLEEP"}"#),
        said(member_key(&"n".repeat(600)), NOW_MILLIS, MEMBER),
        said("later/versions".to_owned(), NOW_MILLIS, &" ".repeat(MAX_VALUE_BYTES + 1)),
        said("later/versions".to_owned(), NOW_MILLIS, "whatever"),
    ]);
    assert_eq!(refused.news, 2);
    assert_eq!(refused.refused, BTreeMap::from([("from_the_future", 1), ("malformed", 3), ("too_large", 2)]));
    assert_eq!(store.versions().keys().collect::<Vec<_>>(), ["later/versions", "member/just in time"]);
    let many = (0..30_000).map(|n| said(member_key(&n.to_string()), NOW_MILLIS, MEMBER)).collect();
    assert!(store.merge(many).refused.contains_key("too_many"));
    assert_eq!(store.versions().len(), 20_000);
}

#[test]
fn who_has_left_is_forgotten_in_time_and_not_told_of_again() {
    let (store, clock) = store_at(NOW);
    let rings = store.rings("ring", RingSettings::default());
    store.set_instance("ring", &instance("a", State::Active));
    store.set_instance("ring", &instance("b", State::Active));
    assert!(store.forget("ring", "a"));
    assert!(!store.forget("ring", "nobody"));
    let (everything, _) = store.compare(&BTreeMap::new());
    assert_eq!(everything.len(), 2, "LEFT is told of");
    clock.advance(Duration::from_secs(301));
    store.expire();
    assert_eq!(store.versions().keys().collect::<Vec<_>>(), ["ring/ring/b"], "an instance stays until it leaves, however silent");
    assert_eq!(store.merge(everything).news, 0, "old news");
    assert_eq!(rings.borrow().instances().len(), 1);
}

#[test]
fn candidates_are_those_of_the_living_and_the_newest_of_an_id() {
    let (store, _) = store_at(NOW);
    let candidates = store.candidates();
    let address: SocketAddr = "127.0.0.1:7947".parse().expect("an address");
    let candidate = |id: &str, incarnation| Candidate { id: id.to_owned(), incarnation, address, role: Role::Ingester };
    let entry = |name: &str, version, left, candidate: Candidate| {
        let value = serde_json::json!({"address": "127.0.0.1:1", "left": left, "candidate": candidate}).to_string();
        said(member_key(name), version, &value)
    };
    store.merge(vec![
        entry("old", NOW_MILLIS, false, candidate("a", 1)),
        entry("new", NOW_MILLIS, false, candidate("a", 2)),
        entry("other", NOW_MILLIS, false, candidate("b", 1)),
        entry("gone", NOW_MILLIS, true, candidate("c", 1)),
    ]);
    assert_eq!(candidates.borrow().as_ref(), [candidate("a", 2), candidate("b", 1)]);
    store.merge(vec![entry("other", NOW_MILLIS + 1, true, candidate("b", 1))]);
    assert_eq!(candidates.borrow().as_ref(), [candidate("a", 2)]);
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let one = (0..3usize, 0..4u64, 0..5usize, any::<bool>()).prop_map(|(id, version, state, is_member)| {
        let id = ["a", "b", "c"][id];
        if is_member {
            return said(member_key(id), NOW_MILLIS + version, &format!(r#"{{"address":"127.0.0.{state}:1"}}"#));
        }
        let state = State::ALL[state];
        said(instance_key("ring", id), NOW_MILLIS + version, &super::entry::describe(&instance(id, state)))
    });
    prop::collection::vec(one, 0..12)
}

proptest! {
    #[test]
    fn everybody_ends_with_the_same_whatever_the_order(first in entries(), second in entries()) {
        let ends_with = |batches: &[&[Entry]]| {
            let (store, _) = store_at(NOW);
            let rings = store.rings("ring", RingSettings::default());
            for batch in batches {
                store.merge(batch.to_vec());
            }
            let ring = rings.borrow().instances().to_vec();
            (store.compare(&BTreeMap::new()).0, ring)
        };
        let backwards: Vec<Entry> = first.iter().rev().cloned().collect();
        let expected = ends_with(&[&first, &second]);
        prop_assert_eq!(&ends_with(&[&second, &first]), &expected);
        prop_assert_eq!(&ends_with(&[&second, &backwards, &second, &first]), &expected);
        // Two that exchange are level: what `compare` says is all that is missing.
        let ((left, _), (right, _)) = (store_at(NOW), store_at(NOW));
        left.merge(first);
        right.merge(second);
        let (newer, wanted) = right.compare(&left.versions());
        left.merge(newer);
        right.merge(left.entries(&wanted));
        prop_assert_eq!(left.versions(), right.versions());
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0u32..300) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        for bytes in [&bytes, &framed] {
            // Whatever it is, it is an answer.
            _ = runtime.block_on(wire::read::<Message>(&mut bytes.as_slice()));
        }
        _ = said(String::from_utf8_lossy(&bytes).into_owned(), 1, "{}").meaning();
        _ = said("ring/a/b".to_owned(), 1, &String::from_utf8_lossy(&bytes)).meaning();
    }
}

#[tokio::test]
async fn frames() {
    let message = Message::Delta { entries: vec![said("k".to_owned(), 7, "v")], wanted: vec!["w".to_owned()] };
    let mut bytes = Vec::new();
    wire::write(&mut bytes, &message).await.expect("written");
    assert_eq!(wire::read(&mut bytes.as_slice()).await.expect("read"), Some(message));
    assert_eq!(wire::read::<Message>(&mut [].as_slice()).await.expect("the end"), None);
    for torn in 1..bytes.len() {
        assert!(wire::read::<Message>(&mut &bytes[..torn]).await.is_err(), "{torn} of {} bytes", bytes.len());
    }
    let large = u32::try_from(MAX_FRAME_BYTES + 1).expect("small enough").to_be_bytes();
    let refused = wire::read::<Message>(&mut large.as_slice()).await.expect_err("too large");
    assert_eq!(refused.to_string(), "a frame of 16777217 bytes is too large");
}

/// A member in this process.
struct Node {
    gossip: Arc<Gossip>,
    address: SocketAddr,
    stop: tokio::sync::watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

async fn node(name: &str, label: &str, seeds: &[SocketAddr]) -> Node {
    let (gossip, address) = bound(name, label, seeds, |_| {}).await;
    gossip.fast_join().await.expect("nobody is needed");
    let (stop, shutdown) = Shutdown::new();
    let task = tokio::spawn(Arc::clone(&gossip).run(shutdown));
    Node { gossip, address, stop, task }
}

async fn bound(name: &str, label: &str, seeds: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> (Arc<Gossip>, SocketAddr) {
    // The port must be known before it is told to others.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let mut settings = Settings {
        name: name.to_owned(),
        listen: vec![address],
        advertise: address,
        label: label.to_owned(),
        accept_any_label: false,
        join: seeds.iter().map(|seed| Seed::Host(seed.to_string())).collect(),
        rejoin: Vec::new(),
        rejoin_interval: None,
        min_join_backoff: Duration::from_millis(50),
        max_join_backoff: Duration::from_millis(200),
        max_join_retries: 3,
        abort_if_join_fails: false,
        fast_join_min_nodes: None,
        interval: Duration::from_millis(50),
        fanout: 2,
        dead_time: Duration::from_secs(30),
        leave_timeout: Duration::from_secs(5),
        dial_timeout: Duration::from_secs(5),
        exchange_timeout: Duration::from_secs(5),
    };
    change(&mut settings);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let store = Store::new(clock, Duration::from_secs(300), Duration::from_secs(20));
    (Gossip::bind(settings, store, Peers::default(), 1, &Registry::new()).await.expect("the port is free"), address)
}

impl Node {
    fn sees(&self) -> BTreeMap<String, Liveness> {
        self.gossip.store().members().into_iter().map(|member| (member.name, member.liveness)).collect()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {:?}", self.sees());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn members_meet_talk_and_part() {
    let first = node("first", "", &[]).await;
    let second = node("second", "", &[first.address]).await;
    let third = node("third", "", &[second.address]).await;
    let stranger = node("stranger", "other", &[first.address, second.address]).await;
    for member in [&first, &second, &third] {
        member.until("all three", |node| node.sees().len() == 3).await;
    }
    // Bytes of somebody who speaks another language.
    let mut confused = TcpStream::connect(first.address).await.expect("it listens");
    confused.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    // Closed, by an end or by a reset.
    _ = confused.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");
    // And of somebody who speaks a later version of ours.
    let mut newer = TcpStream::connect(first.address).await.expect("it listens");
    let hello = Hello { protocol: PROTOCOL + 1, label: String::new(), name: "newer".to_owned() };
    wire::write(&mut newer, &hello).await.expect("sent");
    _ = newer.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");

    let rings = third.gossip.store().rings("ring", RingSettings::default());
    first.gossip.store().set_instance("ring", &instance("a", State::Active));
    third.until("the instance of the first", |_| rings.borrow().instance("a").is_some()).await;
    // Somebody else says that it has left.
    second.gossip.store().forget("ring", "a");
    third.until("it is forgotten", |_| rings.borrow().instance("a").is_none()).await;

    first.stop.send(true).expect("it listens");
    first.task.await.expect("no panic").expect("no error");
    for member in [&second, &third] {
        assert_eq!(member.sees().get("first"), Some(&Liveness::Left), "everybody was told before it ended");
    }
    assert_eq!(stranger.sees().keys().collect::<Vec<_>>(), ["stranger"]);
    assert!(!second.sees().contains_key("stranger"));
}

#[tokio::test]
async fn nobody_to_join_is_an_error_where_that_is_asked_for() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("an address");
    drop(nobody);
    let (strict, _) = bound("strict", "", &[address], |settings| settings.fast_join_min_nodes = Some(1)).await;
    let refused = strict.fast_join().await.expect_err("nobody answers");
    assert_eq!(refused.to_string(), "failed to join the memberlist cluster on startup: 0 of at least 1 members answered");
    let (strict, _) = bound("strict", "", &[address], |settings| settings.abort_if_join_fails = true).await;
    let (_stop, shutdown) = Shutdown::new();
    let refused = strict.run(shutdown).await.expect_err("nobody answers");
    assert_eq!(refused.to_string(), "joining the memberlist cluster failed: nobody answered in 3 attempts");
}

#[tokio::test]
async fn who_was_alone_finds_somebody_who_comes_later() {
    let (late, address) = bound("late", "", &[], |_| {}).await;
    let early = node("early", "", &[address]).await;
    assert_eq!(early.sees().len(), 1);
    let (stop, shutdown) = Shutdown::new();
    let task = tokio::spawn(late.run(shutdown));
    early.until("the late one", |node| node.sees().len() == 2).await;
    stop.send(true).expect("it listens");
    task.await.expect("no panic").expect("no error");
}
