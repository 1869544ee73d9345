//! Against a real memcached, which is killed, stopped and started again, and against a server that answers nonsense.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{testing::Memcached, *};
use crate::{
    block::fixtures,
    clock::{ManualClock, SystemClock},
    id::Tenant,
};

/// Far more than anything here needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a memcached answers to a line.
fn say(server: &Memcached, line: &str) -> String {
    let mut stream = TcpStream::connect(server.address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream.write_all(format!("{line}\r\nquit\r\n").as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The description of a block.
pub(crate) fn meta(start_time: i64, compaction_level: u32) -> Meta {
    Meta { start_time, compaction_level, ..fixtures::meta(&Tenant::single(), start_time + 1) }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Pages and blooms in the server; answers may take their time.
fn settings(address: &dyn std::fmt::Display) -> MemcachedSettings {
    MemcachedSettings {
        roles: vec![Role::Bloom, Role::ParquetPage],
        addresses: address.to_string(),
        timeout: Duration::from_secs(20),
        circuit_breaker_timeout: Duration::from_millis(300),
        ..MemcachedSettings::default()
    }
}

/// A cache that keeps nothing in the process, once it knows its servers.
async fn cache(memcached: MemcachedSettings) -> (Cache, Registry) {
    let registry = Registry::new();
    let settings = Settings { local_bytes: 0, memcached: vec![memcached], ..Settings::default() };
    let cache = Cache::start(settings, Arc::new(SystemClock), &registry).expect("the settings are right");
    eventually("servers", || async { cache.0.memcached[0].servers() > 0 }).await;
    (cache, registry)
}

/// A metric with labels as Prometheus writes them; 0 when it is not there.
fn metric(registry: &Registry, line: &str) -> f64 {
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text");
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_default()
}

fn lookups(registry: &Registry, role: &str, found: &str) -> f64 {
    metric(registry, &format!("rubato_cache_lookups_total{{found=\"{found}\",role=\"{role}\"}}"))
}

/// Puts a value until it is there: a write that is dropped is not repeated by the cache.
async fn put(cache: &Cache, role: Role, key: &str, value: &Bytes) {
    eventually("a value is in memcached", || async {
        cache.put(role, key.to_owned(), value.clone());
        for _ in 0..20 {
            if get(cache, role, key).await.is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    })
    .await;
}

async fn get(cache: &Cache, role: Role, key: &str) -> Option<Bytes> {
    cache.get(role, &[key.to_owned()]).await.remove(0)
}

/// Bytes of every kind, line ends and protocol words among them.
fn binary(seed: usize, length: usize) -> Bytes {
    let words = b"END\r\nVALUE x 0 1\r\n\0\xff\xfe";
    (0..length).map(|at| words[(at + seed) % words.len()] ^ (at / 97) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_all_sizes_come_back_as_they_went() {
    let Some(server) = Memcached::start() else { return };
    let (cache, registry) = cache(MemcachedSettings { ttl: Duration::from_secs(48 * 3600), ..settings(&server.address) }).await;
    let keys: Vec<String> = (0..50).map(|n| format!("tenant!-_.*'():{}:data.parquet:{n}:{}", uuid::Uuid::nil(), n * 4111)).collect();
    let values: Vec<Bytes> = (0..50).map(|n| binary(n, n * 4111)).collect();
    for (key, value) in keys.iter().zip(&values).step_by(2) {
        put(&cache, Role::ParquetPage, key, value).await;
    }
    let asked: Vec<String> = keys.iter().chain(&keys[..3]).cloned().collect();
    let found = cache.get(Role::ParquetPage, &asked).await;
    for (n, found) in found.iter().enumerate() {
        let n = n % 50;
        assert_eq!(found.as_ref(), (n % 2 == 0).then_some(&values[n]), "{n}");
    }
    assert!(lookups(&registry, "parquet-page", "memcached") >= 27.0);
    assert!(lookups(&registry, "parquet-page", "none") >= 25.0);
    // The key is exactly that, the flags are 0, and the value expires.
    let answer = say(&server, &format!("gets {}", keys[2]));
    assert!(answer.starts_with(&format!("VALUE {} 0 8222 ", keys[2])), "{answer:?}");
    let ttl: u64 = say(&server, &format!("mg {} t", keys[2])).trim().trim_start_matches("HD t").parse().expect("a time to live");
    assert!((172_000..=172_800).contains(&ttl), "{ttl}");
    assert!(
        metric(
            &registry,
            "tempo_memcache_request_duration_seconds_count{method=\"Memcache.GetMulti\",name=\"bloom|parquet-page\",status_code=\"200\"}"
        ) >= 2.0
    );
    assert!(
        metric(
            &registry,
            "tempo_memcache_request_duration_seconds_count{method=\"Memcache.Put\",name=\"bloom|parquet-page\",status_code=\"200\"}"
        ) >= 25.0
    );
    assert_eq!(metric(&registry, "tempo_memcache_client_servers{name=\"bloom|parquet-page\"}"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_memcached_cannot_take_is_dropped_and_counted() {
    let Some(server) = Memcached::start() else { return };
    let (cache, registry) = cache(MemcachedSettings { max_item_size: 2 << 20, queue_bytes: 8 << 20, ..settings(&server.address) }).await;
    let dropped =
        |reason: &str| metric(&registry, &format!("rubato_cache_dropped_writes_total{{name=\"bloom|parquet-page\",reason=\"{reason}\"}}"));
    for key in ["with space", "with\r\nline", "", &"k".repeat(251)] {
        cache.put(Role::Bloom, key.to_owned(), Bytes::from_static(b"v"));
        assert_eq!(get(&cache, Role::Bloom, key).await, None, "{key:?}");
    }
    assert_eq!(dropped("key"), 4.0);
    put(&cache, Role::Bloom, &"k".repeat(250), &Bytes::from_static(b"v")).await;
    cache.put(Role::Bloom, "large".to_owned(), vec![0; (2 << 20) + 1].into());
    assert_eq!(dropped("item_size"), 1.0);
    assert_eq!(metric(&registry, "tempo_memcache_client_set_skip_total{name=\"bloom|parquet-page\"}"), 1.0);
    cache.put(Role::Bloom, "too-large-for-memcached".to_owned(), vec![0; 2 << 20].into());
    // Memcached's own limit is 1 MiB: it refuses, and what comes after is not disturbed.
    eventually("a refusal", || async { dropped("refused") >= 1.0 }).await;
    put(&cache, Role::Bloom, "after", &Bytes::from_static(b"v")).await;
    // A role that memcached does not have is not asked for there.
    cache.put(Role::ParquetFooter, "footer".to_owned(), Bytes::from_static(b"v"));
    assert_eq!(get(&cache, Role::ParquetFooter, "footer").await, None);
    assert!(cache.outlives_process(Role::Bloom) && !cache.outlives_process(Role::ParquetFooter));
    // More than the queue has room for, while memcached does not take it.
    server.signal("-STOP");
    for n in 0..10 {
        cache.put(Role::Bloom, format!("flood-{n}"), vec![0; 1 << 20].into());
    }
    assert_eq!(dropped("queue_bytes"), 3.0, "seven and their keys are below 8 MiB");
    assert_eq!(metric(&registry, "tempo_cache_dropped_background_writes_total{name=\"bloom|parquet-page\"}"), 3.0);
    server.signal("-CONT");
    eventually("an empty queue", || async { metric(&registry, "tempo_cache_background_queue_length{name=\"bloom|parquet-page\"}") == 0.0 })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_writes_wait_than_are_allowed() {
    let Some(server) = Memcached::start() else { return };
    let (cache, registry) = cache(MemcachedSettings { queue_entries: 5, writers: 2, ..settings(&server.address) }).await;
    server.signal("-STOP");
    for n in 0..100 {
        cache.put(Role::Bloom, format!("flood-{n}"), Bytes::from_static(b"v"));
    }
    let dropped = metric(&registry, "rubato_cache_dropped_writes_total{name=\"bloom|parquet-page\",reason=\"queue_entries\"}");
    // Five wait, and some that are under way.
    assert!((80.0..=95.0).contains(&dropped), "{dropped}");
    assert_eq!(metric(&registry, "tempo_cache_background_queue_length{name=\"bloom|parquet-page\"}"), 100.0 - dropped);
    server.signal("-CONT");
    eventually("an empty queue", || async { metric(&registry, "tempo_cache_background_queue_length{name=\"bloom|parquet-page\"}") == 0.0 })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_expire() {
    let Some(server) = Memcached::start() else { return };
    let (cache, _) = cache(MemcachedSettings { ttl: Duration::from_millis(900), ..settings(&server.address) }).await;
    put(&cache, Role::Bloom, "k", &Bytes::from_static(b"v")).await;
    eventually("the end of its time", || async { get(&cache, Role::Bloom, "k").await.is_none() }).await;
}

/// Nothing fails while memcached is away, whichever way; then it is used again.
#[tokio::test(flavor = "multi_thread")]
async fn killed_stopped_and_started_again() {
    let Some(mut server) = Memcached::start() else { return };
    let (cache, registry) = cache(MemcachedSettings { timeout: Duration::from_secs(2), ..settings(&server.address) }).await;
    let open = || metric(&registry, "rubato_memcache_open_servers{name=\"bloom|parquet-page\"}");
    let skipped = || metric(&registry, "rubato_memcache_failed_lookups_total{name=\"bloom|parquet-page\",reason=\"circuit_open\"}");
    let value = Bytes::from_static(b"value");
    for round in 0..4 {
        put(&cache, Role::Bloom, "k", &value).await;
        assert_eq!(open(), 0.0);
        let hangs = round % 2 == 1;
        if hangs {
            server.signal("-STOP")
        } else {
            server.kill()
        }
        let asks = (0..40).map(|_| get(&cache, Role::Bloom, "k"));
        assert!(futures::future::join_all(asks).await.iter().all(Option::is_none), "round {round}");
        assert_eq!(open(), 1.0, "round {round}");
        // Left alone now: nobody waits for it.
        let before = skipped();
        assert_eq!(get(&cache, Role::Bloom, "k").await, None);
        cache.put(Role::Bloom, "k".to_owned(), value.clone());
        assert_eq!(skipped(), before + 1.0);
        if hangs {
            server.signal("-CONT")
        } else {
            server.start_again()
        }
        eventually("memcached is used again", || async {
            get(&cache, Role::Bloom, "k").await;
            open() == 0.0
        })
        .await;
        // One that was stopped still has it; one that was killed has not, until it is written again.
        assert!(!hangs || get(&cache, Role::Bloom, "k").await == Some(value.clone()), "round {round}");
    }
    put(&cache, Role::Bloom, "k", &value).await;
    assert_eq!(get(&cache, Role::Bloom, "k").await, Some(value));
}

/// A server that is started anew while nobody looks costs nobody a hit: its old connections are tried once and replaced.
#[tokio::test(flavor = "multi_thread")]
async fn started_anew_unnoticed() {
    let Some(mut server) = Memcached::start() else { return };
    let (cache, registry) = cache(settings(&server.address)).await;
    put(&cache, Role::Bloom, "k", &Bytes::from_static(b"v")).await;
    server.kill();
    server.start_again();
    put(&cache, Role::Bloom, "k", &Bytes::from_static(b"v")).await;
    for reason in ["unreachable", "timeout", "circuit_open"] {
        let failed = format!("rubato_memcache_failed_lookups_total{{name=\"bloom|parquet-page\",reason=\"{reason}\"}}");
        assert_eq!(metric(&registry, &failed), 0.0, "{reason}");
    }
}

/// Both ways of placing keys use all servers, and losing one loses only its keys.
#[tokio::test(flavor = "multi_thread")]
async fn several_servers_share_the_keys() {
    let (Some(first), Some(mut second)) = (Memcached::start(), Memcached::start()) else { return };
    for consistent_hash in [false, true] {
        let addresses = format!("{},dns+localhost:{}", first.address, second.address.port());
        let (cache, _) = cache(MemcachedSettings { consistent_hash, ..settings(&addresses) }).await;
        let keys: Vec<String> = (0..40).map(|n| format!("{consistent_hash}:{n}")).collect();
        for key in &keys {
            put(&cache, Role::Bloom, key, &Bytes::copy_from_slice(key.as_bytes())).await;
        }
        let found = cache.get(Role::Bloom, &keys).await;
        assert!(found.iter().zip(&keys).all(|(found, key)| found.as_deref() == Some(key.as_bytes())));
        let of = |server: &Memcached| keys.iter().filter(|key| say(server, &format!("get {key}")).starts_with("VALUE")).count();
        let (in_first, in_second) = (of(&first), of(&second));
        assert!(in_first > 4 && in_second > 4 && in_first + in_second == 40, "{in_first} {in_second}");
        second.kill();
        let found = cache.get(Role::Bloom, &keys).await;
        assert_eq!(found.iter().flatten().count(), in_first);
        second.start_again();
    }
}

/// A server that answers lines by a function, and hangs up when there is no answer.
struct Fake {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Fake {
    /// The answer to `set` is asked for after its value was read.
    fn start(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let (answer, counter) = (Arc::new(answer), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || serve(&stream, &*answer));
            }
        });
        Self { address, connections }
    }
}

fn serve(mut stream: &TcpStream, answer: &dyn Fn(&str) -> Option<Vec<u8>>) {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if !lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            return;
        }
        if line.starts_with("set ") {
            let length: usize = line.trim().rsplit(' ').next().and_then(|length| length.parse().ok()).expect("a length");
            let mut value = vec![0; length + 2];
            if lines.read_exact(&mut value).is_err() {
                return;
            }
        }
        let Some(answer) = answer(line.trim_end()) else { return };
        // Piece by piece.
        for piece in answer.chunks(7) {
            if stream.write_all(piece).is_err() {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_a_miss() {
    let said = Arc::new(Mutex::new(Some(Vec::new())));
    let saying = Arc::clone(&said);
    let fake = Fake::start(move |line| match line {
        "version" => Some(b"VERSION 1\r\n".to_vec()),
        _ => saying.lock().expect("nobody panics here").clone(),
    });
    let short = Duration::from_millis(300);
    let (cache, registry) =
        cache(MemcachedSettings { timeout: short, circuit_breaker_timeout: Duration::from_millis(20), ..settings(&fake.address) }).await;
    let long_line = [b"VALUE ", "x".repeat(5000).as_bytes(), b" 0 1\r\n"].concat();
    let nonsense: Vec<Option<&[u8]>> = vec![
        None,
        Some(b""),
        Some(b"\r\n"),
        Some(b"SERVER_ERROR out of memory\r\n"),
        Some(b"CLIENT_ERROR bad command line format\r\n"),
        Some(b"ERROR\r\n"),
        Some(b"VALUE k 0 5 1\r\nabc\r\nEND\r\n"),
        Some(b"VALUE k 0 2 1\r\nabcdef\r\nEND\r\n"),
        Some(b"VALUE k 0 3 1\r\nabc\r\n"),
        Some(b"VALUE other 0 3 1\r\nabc\r\nEND\r\n"),
        Some(b"VALUE other 0 3\r\nabc\r\nEND\r\n"),
        Some(b"VALUE k 0 -1 1\r\nabc\r\nEND\r\n"),
        Some(b"VALUE k 0 18446744073709551615 1\r\nabc\r\nEND\r\n"),
        Some(b"VALUE k 0 18446744073709551615\r\nabc\r\nEND\r\n"),
        Some(b"VALUE k 0 9223372036854775807\r\nabc\r\nEND\r\n"),
        Some(b"VALUE k 0\r\nabc\r\nEND\r\n"),
        Some(b"VALUE \xff\xfe 0 3 1\r\nabc\r\nEND\r\n"),
        Some(b"STORED\r\n"),
        Some(&long_line),
        Some(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"),
    ];
    let keys = [["k".to_owned()].to_vec(), ["k".to_owned(), "l".to_owned()].to_vec()];
    for answer in nonsense {
        let shown = answer.map(String::from_utf8_lossy);
        *said.lock().expect("nobody panics here") = answer.map(<[u8]>::to_vec);
        for keys in &keys {
            assert!(cache.get(Role::Bloom, keys).await.iter().all(Option::is_none), "{shown:?}");
        }
        cache.put(Role::Bloom, "k".to_owned(), Bytes::from_static(b"v"));
        // A connection that answered nonsense is not used again.
        *said.lock().expect("nobody panics here") = Some(b"VALUE k 0 3\r\nabc\r\nEND\r\n".to_vec());
        eventually(&format!("a value after {shown:?}"), || async { get(&cache, Role::Bloom, "k").await.as_deref() == Some(b"abc") }).await;
    }
    let failed = |reason: &str| {
        metric(&registry, &format!("rubato_memcache_failed_lookups_total{{name=\"bloom|parquet-page\",reason=\"{reason}\"}}"))
    };
    assert!(failed("refused") >= 3.0 && failed("unreachable") >= 8.0 && failed("timeout") >= 1.0);
}

/// A server that answers in drops keeps nobody waiting, and no other server's keys either.
#[tokio::test(flavor = "multi_thread")]
async fn slow_bytes_are_a_miss() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let fake = Fake::start(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(400));
        Some(b"VALUE k 0 3\r\nabc\r\nEND\r\n".to_vec())
    });
    let (cache, registry) = cache(MemcachedSettings {
        timeout: Duration::from_millis(50),
        circuit_breaker_timeout: Duration::from_secs(3600),
        ..settings(&fake.address)
    })
    .await;
    for _ in 0..50 {
        assert_eq!(get(&cache, Role::Bloom, "k").await, None);
    }
    assert_eq!(metric(&registry, "rubato_memcache_open_servers{name=\"bloom|parquet-page\"}"), 1.0);
    let waited = metric(&registry, "rubato_memcache_failed_lookups_total{name=\"bloom|parquet-page\",reason=\"timeout\"}");
    assert_eq!(waited, 3.0, "it costs its time-out as often as it takes to be sure");
    assert!(asked.load(Ordering::SeqCst) <= 3 && fake.connections.load(Ordering::SeqCst) <= 6);
}

fn local_cache(local_bytes: u64) -> (Cache, Registry) {
    let registry = Registry::new();
    let settings = Settings { local_bytes, ..Settings::default() };
    (Cache::start(settings, Arc::new(SystemClock), &registry).expect("the settings are right"), registry)
}

#[tokio::test]
async fn the_process_keeps_no_more_than_its_bytes() {
    for local_bytes in [0, 100, 1 << 20, 100 << 20] {
        let (cache, registry) = local_cache(local_bytes);
        for n in 0..3000usize {
            cache.put(Role::ParquetPage, n.to_string(), vec![0; n * 37 % 60_000].into());
        }
        let bytes = metric(&registry, "rubato_cache_local_bytes");
        assert!(bytes <= local_bytes as f64, "{bytes} of {local_bytes}");
        let found = metric(&registry, "rubato_cache_local_entries");
        assert!(local_bytes < 1 << 20 || found > 20.0, "{found} in {local_bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetches_for_all() {
    let (cache, registry) = local_cache(1 << 20);
    let fetches = AtomicUsize::new(0);
    let fetch = async || {
        tokio::time::sleep(Duration::from_millis(30)).await;
        // The first one fails.
        if fetches.fetch_add(1, Ordering::SeqCst) == 0 { Err("no") } else { Ok(Bytes::from_static(b"v")) }
    };
    let asks = (0..20).map(|_| cache.get_or_fetch(Role::Bloom, "k", |_| true, fetch()));
    let answers = futures::future::join_all(asks).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_err()).count(), 1);
    assert_eq!(answers.iter().flatten().filter(|answer| **answer == "v").count(), 19);
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
    assert_eq!(lookups(&registry, "bloom", "local"), 18.0);
    // One that is given up lets the next one try.
    let never = cache.get_or_fetch(Role::Bloom, "other", |_| true, std::future::pending::<Result<Bytes, ()>>());
    assert!(tokio::time::timeout(Duration::from_millis(10), never).await.is_err());
    let answer = cache.get_or_fetch(Role::Bloom, "other", |_| true, async { Ok::<_, ()>(Bytes::from_static(b"w")) }).await;
    assert_eq!(answer.as_deref(), Ok(b"w".as_slice()));
}

#[tokio::test]
async fn blooms_of_old_and_of_compacted_blocks_may_be_left_out() {
    let takes = |level, age| {
        let settings = Settings { max_bloom_compaction_level: level, max_bloom_block_age: Duration::from_secs(age), ..Settings::default() };
        let clock = Arc::new(ManualClock::new(Duration::from_secs(1000)));
        let cache = Cache::start(settings, clock, &Registry::new()).expect("the settings are right");
        [meta(990, 0), meta(990, 2), meta(990, 3), meta(989, 0), meta(2000, 0)].map(|meta| cache.takes_blooms_of(&meta))
    };
    assert_eq!(takes(0, 0), [true; 5]);
    assert_eq!(takes(2, 0), [true, true, false, true, true]);
    assert_eq!(takes(0, 10), [true, true, true, false, true]);
    assert_eq!(takes(2, 10), [true, true, false, false, true]);
}

#[tokio::test]
async fn wrong_settings_are_named() {
    let start = |memcached| {
        Cache::start(Settings { memcached, ..Settings::default() }, Arc::new(SystemClock), &Registry::new())
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let one = settings(&"localhost:1");
    assert_eq!(start(vec![one.clone(), one]), Err("cache \"bloom|parquet-page\": role bloom is claimed by more than one cache".to_owned()));
    let none = MemcachedSettings { addresses: String::new(), ..settings(&"") };
    assert_eq!(start(vec![none]), Err("cache \"bloom|parquet-page\": memcached has neither addresses nor host".to_owned()));
    assert_eq!(start(vec![]), Ok(()));
    for role in Role::ALL {
        assert_eq!(Role::from_name(role.name()), Some(role));
    }
    assert_eq!(Role::from_name("none"), None);
}
