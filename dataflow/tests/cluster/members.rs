//! Members in one process.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use dataflow::cluster::{Candidate, Cause, Cluster, Epoch, Formation, Lost, Metrics, Options, Role, Settings, execute, start};
use timely::dataflow::{
    InputHandleVec, ProbeHandle,
    operators::{Exchange, Inspect, Probe, vec::Input},
};

use crate::{
    harness::{Network, Site, eventually, formed, settings},
    toy::{self, Mischief},
};

#[test]
fn members_count_each_word_once_through_joins_and_leaves() {
    let site = Site::new();
    let mut a = site.member("a", 1);
    let alone = formed(&[&a], 0);
    assert_eq!(a.current().expect("runs").reason, "start");
    site.verify_progress(alone.counter, &["a"]);

    let b = site.member("b", 1);
    let c = site.member("c", 1);
    let three = formed(&[&a, &b, &c], alone.counter);
    assert_eq!(*three.leader, *"a");
    site.verify_progress(three.counter, &["a", "b", "c"]);

    // The leader leaves; who is left has heard of it, and forms without the leader though gossip still lists it.
    a.stop();
    assert_eq!(a.seen().last().expect("seen").ended, Some(Cause::Stop));
    let two = formed(&[&b, &c], three.counter);
    assert_eq!(*two.leader, *"b");
    site.verify_progress(two.counter, &["b", "c"]);

    // It comes back at once, with another address; its log is read from where the manifest says.
    let a = site.member("a", 2);
    let again = formed(&[&a, &b, &c], two.counter);
    site.verify_progress(again.counter, &["a", "b", "c"]);
    let metrics = a.registry.gather();
    let value =
        |name: &str| metrics.iter().find(|family| family.name() == name).map(|family| family.get_metric()[0].get_gauge().get_value());
    assert_eq!(value("rubato_dataflow_members"), Some(3.0));
    assert_eq!(value("rubato_dataflow_epoch"), Some(again.counter as f64));
}

#[test]
fn epochs_begin_above_the_newest_manifest() {
    let site = Site::new();
    let epoch = {
        let a = site.member("a", 1);
        let epoch = formed(&[&a], 0);
        site.verify_progress(epoch.counter, &["a"]);
        a.cluster.raise(41);
        let epoch = formed(&[&a], 41);
        assert_eq!(epoch.counter, 42);
        site.verify_progress(epoch.counter, &["a"]);
        epoch
    };
    let a = site.member("a", 2);
    assert!(formed(&[&a], 0) > epoch);
}

#[test]
fn a_raised_epoch_reaches_the_leader() {
    let site = Site::new();
    let (a, b) = (site.member("a", 1), site.member("b", 1));
    let epoch = formed(&[&a, &b], 0);
    b.cluster.raise(epoch.counter + 100);
    let raised = formed(&[&a, &b], epoch.counter + 100);
    site.verify_progress(raised.counter, &["a", "b"]);
}

#[test]
fn a_panic_of_an_operator_ends_one_generation_everywhere() {
    let site = Site::new();
    let members = [site.member("a", 1), site.member("b", 1), site.member("c", 1)];
    let all = [&members[0], &members[1], &members[2]];
    let mut epoch = formed(&all, 0);
    for victim in [0, 2, 1] {
        site.verify_progress(epoch.counter, &["a", "b", "c"]);
        all[victim].mischief.panic.store(true, Ordering::SeqCst);
        let next = formed(&all, epoch.counter);
        assert!(!all[victim].mischief.panic.load(Ordering::SeqCst), "it has happened");
        let seen = all[victim].seen();
        let ended = seen.iter().find(|seen| seen.epoch == epoch).and_then(|seen| seen.ended.clone());
        assert!(matches!(ended, Some(Cause::Panic { message, .. }) if message.contains("as it was asked to")));
        assert_eq!(seen.iter().find(|seen| seen.epoch.counter > epoch.counter).expect("next one").reason, "panic");
        epoch = next;
    }
    site.verify_progress(epoch.counter, &["a", "b", "c"]);
}

#[test]
fn a_minority_does_not_form_and_a_healed_network_unites() {
    let (site, network) = (Site::new(), Network::default());
    // Gossip notices the partition, too, and forgets: that must not make the minority a majority.
    let member = |id: &str| site.member_with(id, 1, settings(), |address| network.front(id, address));
    let (a, b, c) = (member("a"), member("b"), member("c"));
    let three = formed(&[&a, &b, &c], 0);
    site.verify_progress(three.counter, &["a", "b", "c"]);

    network.block("a", "b");
    network.block("a", "c");
    let two = formed(&[&b, &c], three.counter);
    site.verify_progress(two.counter, &["b", "c"]);
    eventually("the cut-off one notices", || a.current().is_none());
    for id in ["b", "c"] {
        site.forget(id);
    }
    // For as long as the majority has formed and worked once more, the minority could have.
    site.verify_progress(two.counter, &["b", "c"]);
    std::thread::sleep(settings().dead_after);
    assert!(a.current().is_none(), "a minority does not form: {:?}", a.current());

    network.heal();
    for member in [&b, &c] {
        site.gossip.send_modify(|all| *all = all.iter().cloned().chain([member.candidate.clone()]).collect());
    }
    let united = formed(&[&a, &b, &c], two.counter);
    site.verify_progress(united.counter, &["a", "b", "c"]);
}

#[test]
fn a_broken_link_between_two_leaves_the_others_running() {
    let (site, network) = (Site::new(), Network::default());
    let member = |id: &str| site.member_with(id, 1, settings(), |address| network.front(id, address));
    let (a, b, c) = (member("a"), member("b"), member("c"));
    let three = formed(&[&a, &b, &c], 0);
    network.block("a", "c");
    let two = formed(&[&a, &b], three.counter);
    site.verify_progress(two.counter, &["a", "b"]);
    network.heal();
    let three = formed(&[&a, &b, &c], two.counter);
    site.verify_progress(three.counter, &["a", "b", "c"]);
}

#[test]
fn only_equal_versions_form_and_the_most_of_them_run() {
    let site = Site::new();
    let newer = Settings { wire: 2, ..settings() };
    let (a, b) = (site.member("a", 1), site.member_with("b", 1, newer.clone(), |address| address));
    let c = site.member("c", 1);
    let old = formed(&[&a, &c], 0);
    site.verify_progress(old.counter, &["a", "c"]);
    assert!(b.seen().iter().all(|seen| seen.members == ["b"]), "never with the others");
    drop(c);
    let c = site.member_with("c", 2, newer, |address| address);
    let new = formed(&[&b, &c], old.counter);
    site.verify_progress(new.counter, &["b", "c"]);
    eventually("the smaller side waits", || a.current().is_none());
}

#[test]
fn only_those_form_whose_settings_are_alike() {
    let site = Site::new();
    let with_tick = |tick: &str| Settings { alike: [("tick".to_owned(), tick.to_owned())].into(), ..settings() };
    let member = |id, incarnation, tick| site.member_with(id, incarnation, with_tick(tick), |address| address);
    let (a, b, c) = (member("a", 1, "250ms"), member("b", 1, "1s"), member("c", 1, "250ms"));
    let most = formed(&[&a, &c], 0);
    site.verify_progress(most.counter, &["a", "c"]);
    assert!(b.seen().iter().all(|seen| seen.members == ["b"]), "never with the others");
    drop(b);
    let b = member("b", 2, "250ms");
    let all = formed(&[&a, &b, &c], most.counter);
    site.verify_progress(all.counter, &["a", "b", "c"]);
}

/// What a listener answers to somebody who dials.
fn dial(to: &Candidate, bytes: &[u8]) -> Option<serde_json::Value> {
    let mut socket = TcpStream::connect(to.address).expect("connects");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("can be set");
    // The other end may have had enough before it has everything.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    answer.get(12..).and_then(|json| serde_json::from_slice(json).ok())
}

fn hello(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut hello = serde_json::json!({
        "cluster": "test", "wire": 1, "threads": 2, "to": "a", "epoch": {"counter": 1_000_000, "leader": "z"},
        "from": {"id": "z", "incarnation": 1, "address": "127.0.0.1:1", "role": "ingester"},
    });
    change(&mut hello);
    let json = serde_json::to_vec(&hello).expect("JSON");
    [b"rubato\0\x01".as_slice(), &(json.len() as u32).to_be_bytes(), &json].concat()
}

#[test]
fn strangers_are_refused_and_the_process_stays_up() {
    let site = Site::new();
    let (a, b) = (site.member("a", 1), site.member("b", 1));
    let epoch = formed(&[&a, &b], 0);
    let refused = |bytes: &[u8]| dial(&a.candidate, bytes).and_then(|answer| answer["refused"].as_str().map(str::to_owned));
    let cases: [(Vec<u8>, &str); 7] = [
        (hello(|hello| hello["cluster"] = "other".into()), "this is cluster \"test\", not \"other\""),
        (hello(|hello| hello["to"] = "b".into()), "this is \"a\", not \"b\""),
        (hello(|hello| hello["wire"] = 7.into()), "the wire version is 1, not 7"),
        (hello(|hello| hello["threads"] = 3.into()), "the number of threads is 2, not 3"),
        (hello(|hello| hello["alike"] = serde_json::json!({"slack": "1h"})), "slack is the default here, and there 1h"),
        (hello(|hello| hello["epoch"]["counter"] = 0.into()), "epoch 0@z is over"),
        (hello(|hello| (hello["epoch"], hello["from"]["id"]) = (serde_json::Value::Null, "a".into())), "\"a\" is the name of this process"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refused(&bytes).as_deref(), Some(expected));
    }
    // Nonsense gets no answer at all, however it is cut.
    let long = [b"rubato\0\x01".as_slice(), &u32::MAX.to_be_bytes()].concat();
    let whole = hello(|_| {});
    let garbage: [&[u8]; 5] = [b"GET / HTTP/1.1\r\n\r\n", b"", b"rubato\0\x02\0\0\0\0", &long, &whole[..whole.len() - 1]];
    for bytes in garbage {
        assert_eq!(dial(&a.candidate, bytes), None);
    }
    // A connection for an epoch that never comes is dropped after a while.
    assert_eq!(dial(&a.candidate, &whole).map(|answer| answer["refused"].clone()), Some(serde_json::Value::Null));
    assert_eq!(formed(&[&a, &b], 0), epoch, "nothing of this has disturbed the generation");
    let refusals = a.registry.gather().into_iter().find(|family| family.name() == "rubato_dataflow_refused_connections_total");
    let count = refusals.map(|family| family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum::<f64>());
    assert_eq!(count, Some(12.0));
    site.verify_progress(epoch.counter, &["a", "b"]);
}

#[test]
fn a_worker_that_does_not_return_is_noticed() {
    let site = Site::new();
    let mut a = site.member("a", 1);
    formed(&[&a], 0);
    a.mischief.sleep.store(1500, Ordering::SeqCst);
    a.stop();
    assert!(a.stuck.load(Ordering::SeqCst), "its process would have been given up");
}

fn count_in(directory: &str) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

#[test]
#[ignore = "counts what its process holds, so it is run in one of its own"]
fn many_generations_leave_nothing_behind_in_their_process() {
    let site = Site::new();
    // What fails again and again is repeated ever later, by beats.
    let settings = Settings { beat: Duration::from_millis(10), ..settings() };
    let (a, b) = (site.member_with("a", 1, settings.clone(), |address| address), site.member_with("b", 1, settings, |address| address));
    let mut epoch = formed(&[&a, &b], 0);
    let mut counts = Vec::new();
    for round in 0..40 {
        site.verify_progress(epoch.counter, &["a", "b"]);
        counts.push((count_in("/proc/self/task"), count_in("/proc/self/fd")));
        // Everything that ends a generation, in turn.
        match round % 4 {
            0 => a.cluster.raise(epoch.counter),
            1 => b.cluster.raise(epoch.counter),
            2 => a.mischief.panic.store(true, Ordering::SeqCst),
            _ => b.mischief.panic.store(true, Ordering::SeqCst),
        }
        epoch = formed(&[&a, &b], epoch.counter);
    }
    assert!(a.seen().len() > 40);
    assert!(a.seen().iter().rev().skip(1).all(|seen| seen.ended.is_some()));
    let worst = |counts: &[(usize, usize)]| (counts.iter().map(|count| count.0).max(), counts.iter().map(|count| count.1).max());
    let (early, late) = (worst(&counts[..10]), worst(&counts[10..]));
    // The directory that is listed is open meanwhile, and a thread that has been joined may be listed for a moment.
    assert!(late.0 <= early.0.map(|count| count + 1) && late.1 <= early.1.map(|count| count + 1), "{counts:?}");
    assert!(counts.iter().all(|count| count.0 > 0), "this system tells");
}

#[test]
fn alone_there_is_nothing_but_workers() {
    let registry = prometheus::Registry::new();
    let me = Candidate { id: "a".to_owned(), incarnation: 1, address: ([127, 0, 0, 1], 1).into(), role: Role::Ingester };
    let cluster = Arc::new(Cluster::alone(settings(), me, 7, Metrics::new(&registry).expect("metrics")));
    let site = Site::new();
    for counter in 8..12 {
        let formation = cluster.next().expect("runs");
        assert_eq!((formation.epoch.counter, formation.members.len(), formation.index), (counter, 1, 0));
        assert!(formation.streams.iter().all(Option::is_none));
        let lost = formation.lost.clone();
        let manifests = site.manifests();
        let running = std::thread::spawn(move || toy::run(formation, &manifests, &Mischief::default(), Options::default()));
        eventually("it commits", || site.manifests().newest().epoch == counter);
        lost.set(Cause::Failed { error: "as it was asked to".to_owned() });
        let ended = running.join().expect("does not panic").expect("no newer manifest");
        assert_eq!(ended.results.len(), settings().threads);
        site.manifests().newest().verify();
    }
    let waiting = {
        let cluster = Arc::clone(&cluster);
        let formation = cluster.next().expect("runs");
        let lost = formation.lost.clone();
        std::thread::spawn(move || {
            let until_lost = move |_: &mut _| eventually("it is stopped", || lost.is_set());
            (execute(formation, Options::default(), until_lost).expect("runs").cause, cluster.next().is_none())
        })
    };
    cluster.stop();
    let (cause, is_over) = waiting.join().expect("does not panic");
    assert_eq!((cause, is_over), (Cause::Stop, true));
}

#[test]
fn formations_over_loopback_run_a_dataflow_to_its_end() {
    let epoch = Epoch { counter: 1, leader: "a".into() };
    let member = |id: &str| Candidate { id: id.to_owned(), incarnation: 1, address: ([127, 0, 0, 1], 1).into(), role: Role::Generator };
    let members = [member("a"), member("b"), member("c")];
    let formations = Formation::loopback(&epoch, &members, 2).expect("sockets");
    let losts: Vec<Lost> = formations.iter().map(|formation| formation.lost.clone()).collect();
    let begin = |formation| {
        start(formation, Options::default(), |worker| {
            let probe = ProbeHandle::new();
            let seen = std::rc::Rc::new(std::cell::Cell::new(0_u64));
            let counter = std::rc::Rc::clone(&seen);
            let mut input = worker.dataflow::<u64, _, _>(|scope| {
                let (input, numbers): (InputHandleVec<u64, u64>, _) = Input::new_input(&scope);
                numbers.exchange(|number| *number).inspect(move |_| counter.set(counter.get() + 1)).probe_with(&probe);
                input
            });
            (0..600).for_each(|number| input.send(number));
            input.advance_to(1);
            while probe.less_than(&1) {
                worker.step();
            }
            seen.get()
        })
        .expect("starts")
    };
    let running: Vec<_> = formations.into_iter().map(begin).collect();
    assert_eq!(running[1].threads().len(), 2);
    for (running, lost) in running.into_iter().zip(losts) {
        let ended = running.join();
        assert_eq!(ended.results.iter().map(|result| *result.as_ref().expect("no panic")).collect::<Vec<_>>(), [600, 600]);
        assert!(lost.is_set());
    }
}
