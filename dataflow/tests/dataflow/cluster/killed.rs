//! Members that are processes of their own, to be killed and stopped: this executable, started again. They share a folder: the bucket, and
//! a candidate's file for each, which is gossip that never forgets.
//!
//! ```text
//!  test ── command, a line ─► stdin of a member         append, read, flush, shown, metric
//!       ◄── "@" answer, a line ── stdout
//! ```
//!
//! The test plays distributor and querier: it writes each request to two ingesters and repeats it until both have acknowledged it, and puts
//! answers of all ingesters and blocks together.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use dataflow::{
    Components, Dataflow, DataflowError, Mesh, Settings,
    cluster::{self, Candidate, Role},
    generator::{Generator, Snapshots, settings::Common},
    manifest::ManifestStore,
};
use object_store::{ObjectStore, local::LocalFileSystem};
use serde::{Deserialize, Serialize};
use storage::{
    backend::Store,
    block::{self, Reader},
    blocklist::Blocklist,
    clock::{Clock, SystemClock},
    id::{BlockId, Tenant},
    recent::{Coverage, RecentAnswer},
    segment::Segment,
    tls::Peers,
    wal::{self, Wal},
};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch};

use crate::{
    generator::{
        everything, is_excluded,
        reference::{Name, Sums, count, shown},
        request, span, tenants,
    },
    harness::{Spans, span_id, span_ids, spans_of, trace_id},
};

const MEMBER: &str = "RUBATO_TEST_DATAFLOW_MEMBER";
const MANIFESTS: &str = "rubato@test";
/// How long anything may take before the test gives up.
const LIMIT: Duration = Duration::from_secs(90);

fn settings() -> Settings {
    Settings { commit_interval: Duration::from_millis(200), max_block_duration: Duration::from_millis(400), ..crate::settings(1) }
}

fn of_mesh() -> cluster::Settings {
    cluster::Settings {
        cluster: "test".to_owned(),
        beat: Duration::from_millis(50),
        dead_after: Duration::from_secs(2),
        mesh_timeout: Duration::from_secs(3),
        alone_after: Duration::from_millis(500),
        ..cluster::Settings::default()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

fn bucket(directory: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(LocalFileSystem::new_with_prefix(directory.join("bucket")).expect("bucket"))
}

/// What a member knows of a trace.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    epoch: String,
    index: usize,
    processes: usize,
    /// Span ids, by the block that they are going into.
    parts: Vec<(Option<BlockId>, Vec<u64>)>,
    published: Vec<block::Meta>,
    live: Vec<block::Meta>,
    compacted: Vec<BlockId>,
}

/// One member's whole life, in a process of its own.
#[test]
#[ignore = "is started by the tests that need it"]
fn a_member() {
    let told = env::var(MEMBER).expect("told who it is");
    let mut told = told.lines();
    let mut next = || told.next().expect("told");
    let (id, incarnation, directory) = (next().to_owned(), next().parse().expect("number"), PathBuf::from(next()));
    let role = if id.starts_with('g') { Role::Generator } else { Role::Ingester };
    let runtime = runtime();
    let registry = prometheus::Registry::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let wal_settings = wal::Settings {
        dir: directory.join(format!("wal-{id}")),
        file_bytes: 64 << 10,
        sync: wal::Sync::Never,
        max_bytes: 1 << 30,
        queue_bytes: 1 << 20,
    };
    let wal = (role == Role::Ingester).then(|| Wal::open(wal_settings, Arc::clone(&clock), &registry).expect("log").0);
    let objects = bucket(&directory);
    let store = Store::new(Arc::clone(&objects), "");
    let blocklist = runtime.block_on(Blocklist::load(&store)).expect("blocklist");
    let snapshots = Snapshots::default();
    let components = Components {
        wal: wal.clone(),
        store,
        block_settings: Arc::new(block::Settings::default()),
        blocklist: blocklist.clone(),
        manifests: ManifestStore::new(objects, MANIFESTS),
        clock,
        generator: Some(Generator { tenants: tenants(everything(), Common::default()), snapshots: snapshots.clone() }),
        runtime: runtime.handle().clone(),
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
    let me = Candidate { id: id.clone(), incarnation, address: listener.local_addr().expect("has an address"), role };
    let own = directory.join(format!("candidate-{id}"));
    fs::write(own.with_extension("new"), serde_json::to_vec(&me).expect("JSON")).expect("writes");
    fs::rename(own.with_extension("new"), own).expect("renames");
    let gossip = watch::Sender::new(listed(&directory));
    let candidates = gossip.subscribe();
    thread::spawn(move || {
        loop {
            gossip.send_replace(listed(&directory));
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mesh = Mesh { settings: of_mesh(), me, listener, peers: Peers::default(), candidates };
    let dataflow = runtime.block_on(Dataflow::join_mesh(settings(), components, mesh, &registry)).expect("joins");

    let tenant = Tenant::single();
    let answer = |command: &str| -> String {
        let mut words = command.split(' ');
        match (words.next().expect("a word"), &wal) {
            ("append", Some(wal)) => {
                let spans: Vec<_> = words.map(Numbers::parse).map(|Numbers(trace, number, shape)| span(trace, number, shape)).collect();
                runtime.block_on(wal.append(&tenant, request(&spans))).map_or_else(|error| format!("error {error}"), |_| "ok".to_owned())
            }
            ("read", _) => {
                let trace = trace_id(words.next().and_then(|word| word.parse().ok()).expect("number"));
                let listed = blocklist.stages(&tenant);
                match runtime.block_on(dataflow.trace(&tenant, trace)) {
                    Ok(RecentAnswer { data, published, coverage: Coverage { epoch, index, processes } }) => {
                        let ids = |segment: &Arc<Segment>| segment.spans.iter().map(|span| span.key.span_id).collect::<Vec<u64>>();
                        let parts =
                            data.iter().map(|part| (part.going, part.segments.iter().flat_map(|s| -> Vec<u64> { ids(s) }).collect()));
                        let answer = Answer {
                            epoch: format!("{epoch:?}"),
                            index: index as usize,
                            processes: processes as usize,
                            parts: parts.collect(),
                            published: published.iter().map(|meta| (**meta).clone()).collect(),
                            live: listed.live.iter().map(|meta| (**meta).clone()).collect(),
                            compacted: listed.compacted.iter().map(|block| block.meta.block_id).collect(),
                        };
                        serde_json::to_string(&answer).expect("JSON")
                    }
                    Err(error) => format!("error {}", block::chain(&error)),
                }
            }
            ("flush", _) => match runtime.block_on(dataflow.flush()) {
                Ok(()) => "ok".to_owned(),
                Err(error @ (DataflowError::Reforming | DataflowError::Stopped)) => format!("error {error}"),
                Err(error) => panic!("{error}"),
            },
            ("shown", _) => format!("{:?}", shown(&snapshots.latest(), &tenant)),
            ("metric", _) => {
                let name = words.next().expect("name");
                let families = registry.gather();
                let family = families.iter().find(|family| family.name() == name);
                let value = |metric: &prometheus::proto::Metric| metric.get_counter().get_value() + metric.get_gauge().get_value();
                family.map_or(0.0, |family| family.get_metric().iter().map(value).sum()).to_string()
            }
            (other, _) => panic!("{other}?"),
        }
    };
    for command in std::io::stdin().lines() {
        let answered = answer(&command.expect("a line"));
        let mut output = std::io::stdout().lock();
        writeln!(output, "@{answered}").and_then(|()| output.flush()).expect("the test listens");
    }
}

fn listed(directory: &Path) -> Arc<[Candidate]> {
    let candidate = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let is_one = path.extension().is_none() && path.file_name()?.to_str()?.starts_with("candidate-");
        is_one.then(|| serde_json::from_slice(&fs::read(path).ok()?).ok()).flatten()
    };
    fs::read_dir(directory).expect("directory").filter_map(candidate).collect()
}

/// Trace, number and shape of a span.
#[derive(Clone, Copy, Debug)]
struct Numbers(u64, u64, u64);

impl Numbers {
    fn parse(word: &str) -> Self {
        let mut numbers = word.split(':').map(|number| number.parse().expect("number"));
        let mut next = || numbers.next().expect("three of them");
        Self(next(), next(), next())
    }
}

struct Process {
    child: Child,
    commands: ChildStdin,
    answers: mpsc::Receiver<String>,
    is_stopped: bool,
}

impl Process {
    fn spawn(directory: &Path, id: &str, incarnation: u64) -> Self {
        let errors = fs::File::options().create(true).append(true).open(directory.join(format!("errors-{id}"))).expect("file");
        let mut child = Command::new(env::current_exe().expect("this executable"))
            .args(["cluster::killed::a_member", "--exact", "--ignored", "--nocapture"])
            .env(MEMBER, format!("{id}\n{incarnation}\n{}", directory.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("process starts");
        let (commands, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The test runner begins its line with the name of the test.
                if let Some((_, answer)) = line.split_once('@')
                    && sender.send(answer.to_owned()).is_err()
                {
                    return;
                }
            }
        });
        Self { child, commands, answers, is_stopped: false }
    }

    fn tell(&mut self, command: &str) {
        // Who was killed hears nothing.
        let _ = writeln!(self.commands, "{command}");
    }

    /// `None` if it is gone.
    fn hear(&self) -> Option<String> {
        match self.answers.recv_timeout(LIMIT) {
            Ok(answer) => Some(answer),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no answer in {LIMIT:?}"),
        }
    }

    fn ask(&mut self, command: &str) -> Option<String> {
        self.tell(command);
        self.hear()
    }

    fn signal(&mut self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().expect("kill is there");
        assert!(status.success());
        self.is_stopped = name == "STOP";
    }

    fn kill(&mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("is gone");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Site {
    directory: TempDir,
    processes: BTreeMap<&'static str, Process>,
    incarnation: u64,
    truth: Spans,
    counted: BTreeMap<Name, Sums>,
    next: u64,
    events: Vec<String>,
    began: Instant,
    runtime: Runtime,
}

const IDS: [&str; 4] = ["a", "b", "c", "g"];

impl Site {
    fn new() -> Self {
        let directory = TempDir::new().expect("directory");
        fs::create_dir(directory.path().join("bucket")).expect("bucket");
        let (truth, counted) = (Spans::new(), BTreeMap::new());
        let (processes, events, began) = (BTreeMap::new(), Vec::new(), Instant::now());
        let mut site = Self { directory, processes, incarnation: 0, truth, counted, next: 0, events, began, runtime: runtime() };
        site.start_all();
        site
    }

    /// Starts whoever does not run.
    fn start_all(&mut self) {
        for id in IDS {
            self.incarnation += 1;
            let (directory, incarnation) = (self.directory.path(), self.incarnation);
            self.processes.entry(id).or_insert_with(|| Process::spawn(directory, id, incarnation));
        }
    }

    fn get(&mut self, id: &str) -> &mut Process {
        self.processes.get_mut(id).expect("runs")
    }

    fn kill(&mut self, id: &str) {
        if let Some(mut process) = self.processes.remove(id) {
            process.kill();
        }
    }

    fn ingesters(&self) -> Vec<&'static str> {
        let can_write = |(id, process): (&&'static str, &Process)| (*id != "g" && !process.is_stopped).then_some(*id);
        self.processes.iter().filter_map(can_write).collect()
    }

    /// Writes new spans to two ingesters, and again until both have them. `victim` is killed meanwhile.
    fn append(&mut self, seed: u64, mut victim: Option<&str>) {
        let number = self.next;
        self.next += 20;
        let numbers: Vec<Numbers> =
            (0..20).map(|index| Numbers((number + index) % 7, number + index, (seed + index * 13) % 1000)).collect();
        let words = numbers.iter().map(|Numbers(trace, number, shape)| format!("{trace}:{number}:{shape}")).collect::<Vec<_>>();
        let command = format!("append {}", words.join(" "));
        for attempt in 0.. {
            let here = self.ingesters();
            let targets: BTreeSet<&str> = (0..2).map(|copy| here[(seed as usize + attempt + copy) % here.len()]).collect();
            targets.iter().for_each(|id| self.get(id).tell(&command));
            if let Some(victim) = victim.take() {
                self.kill(victim);
            }
            let mut acknowledged = 0;
            for id in &targets {
                acknowledged += usize::from(self.processes.get(*id).and_then(Process::hear).is_some_and(|answer| answer == "ok"));
            }
            if acknowledged == 2 {
                self.note(&format!("at {targets:?}, attempt {attempt}"));
                break;
            }
            self.start_all();
        }
        for Numbers(trace, number, shape) in numbers {
            let (resource, span) = span(trace, number, shape);
            if !is_excluded(&span) {
                count(&mut self.counted, &everything(), &resource, &span);
            }
            self.truth.entry(trace_id(trace)).or_default().push(span_id(trace, number));
        }
        self.truth.values_mut().for_each(|spans| spans.sort_unstable());
    }

    fn eventually(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Duration {
        let began = Instant::now();
        while !condition(self) {
            if began.elapsed() > LIMIT {
                let errors: String =
                    IDS.map(|id| fs::read_to_string(self.directory.path().join(format!("errors-{id}"))).unwrap_or_default()).concat();
                panic!("in vain: {what}\n{errors}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        began.elapsed()
    }

    /// Waits until so many run one dataflow.
    fn formed(&mut self, members: usize) -> Duration {
        let all = |site: &mut Self, name: &str| -> Vec<String> {
            let running = site.processes.values_mut().filter(|process| !process.is_stopped);
            running.filter_map(|process| process.ask(&format!("metric {name}"))).collect()
        };
        self.eventually(&format!("{members} form"), |site| {
            let epochs: BTreeSet<_> = all(site, "rubato_dataflow_epoch").into_iter().collect();
            let counts = all(site, "rubato_dataflow_members");
            epochs.len() == 1 && counts.len() == members && counts.iter().all(|count| *count == members.to_string())
        })
    }

    /// The spans of a trace, as a querier finds them. `None` while there are no answers of a whole generation.
    fn try_read(&mut self, trace: u64) -> Option<Vec<u64>> {
        let answers: Vec<Answer> = self
            .ingesters()
            .into_iter()
            .map(|id| self.get(id).ask(&format!("read {trace}")).and_then(|answer| serde_json::from_str(&answer).ok()))
            .collect::<Option<_>>()?;
        let epochs: BTreeSet<_> = answers.iter().map(|answer| &answer.epoch).collect();
        let indexes: BTreeSet<_> = answers.iter().map(|answer| answer.index).collect();
        if epochs.len() != 1 || indexes.len() != answers[0].processes {
            return None;
        }
        // What this querier knows of blocks it has from the first one's list, and from all answers.
        let mut known: BTreeSet<_> = answers[0].compacted.iter().copied().collect();
        let metas = answers[0].live.iter().chain(answers.iter().flat_map(|answer| &answer.published));
        let blocks: Vec<_> = metas.filter(|meta| known.insert(meta.block_id)).cloned().collect();
        let parts = answers.iter().flat_map(|answer| &answer.parts).filter(|(going, _)| going.is_none_or(|block| !known.contains(&block)));
        let mut spans: Vec<u64> = parts.flat_map(|(_, spans)| spans).copied().collect();
        let store = Store::new(bucket(self.directory.path()), "");
        spans.extend(self.runtime.block_on(async {
            let mut found = Vec::new();
            for meta in blocks {
                let reader = Reader::open(&store, Arc::new(meta)).await.expect("block");
                if let Some(trace) = reader.find(trace_id(trace)).await.expect("block") {
                    found.extend(span_ids(&trace.resource_spans));
                }
            }
            found
        }));
        spans.sort_unstable();
        assert!(spans.windows(2).all(|pair| pair[0] < pair[1]), "trace {trace} has spans twice: {spans:x?}");
        Some(spans)
    }

    /// What was acknowledged is readable, each span once.
    fn verify_read(&mut self, trace: u64) {
        let expected = self.truth.get(&trace_id(trace)).cloned().unwrap_or_default();
        let mut found = None;
        self.eventually("a whole generation answers", |site| {
            found = site.try_read(trace);
            found.is_some()
        });
        if found.as_ref() != Some(&expected) {
            thread::sleep(Duration::from_secs(3));
            let later = self.try_read(trace);
            let numbers = |spans: Option<Vec<u64>>| spans.unwrap_or_default().iter().map(|span| span & 0xf_ffff).collect::<BTreeSet<_>>();
            let (found, later, expected) = (numbers(found), numbers(later), numbers(Some(expected)));
            let missing = |there: &BTreeSet<u64>| expected.difference(there).copied().collect::<Vec<_>>();
            panic!("trace {trace} misses {:?}, then {:?}: {:#?}", missing(&found), missing(&later), self.events);
        }
    }

    /// Notes what happens, for whoever looks for the cause of a failure.
    fn note(&mut self, what: &str) {
        self.events.push(format!("{:?} span {}: {what}", self.began.elapsed(), self.next));
    }

    fn flush(&mut self) {
        let flushed =
            |site: &mut Self| site.ingesters().first().is_some_and(|id| site.get(id).ask("flush").is_some_and(|answer| answer == "ok"));
        self.eventually("a flush", flushed);
    }

    /// All members run again, and everything is stored once, counted once and readable.
    fn verify(&mut self) {
        self.processes.values_mut().for_each(|process| process.signal("CONT"));
        self.start_all();
        self.formed(IDS.len());
        self.flush();
        let tenant = Tenant::single();
        let store = Store::new(bucket(self.directory.path()), "");
        let stored = self.runtime.block_on(async { spans_of(&store, &tenant, &store.blocks(&tenant).await.expect("list")).await });
        let of = |spans: &Spans| spans.iter().flat_map(|(id, spans)| spans.iter().map(|span| (*id, *span))).collect::<BTreeSet<_>>();
        let (stored, truth) = (of(&stored), of(&self.truth));
        let missing: Vec<_> = truth.difference(&stored).map(|(_, span)| span & 0xf_ffff).collect();
        assert_eq!((missing, stored.len()), (Vec::new(), truth.len()), "of {} spans: {:#?}", self.next, self.events);
        for trace in 0..7 {
            self.verify_read(trace);
        }
        let expected = format!("{:?}", self.counted);
        let mut last = None;
        let began = Instant::now();
        while last.as_ref() != Some(&expected) {
            assert!(began.elapsed() < LIMIT, "series are {last:?}, not {expected}");
            thread::sleep(Duration::from_millis(50));
            last = self.get("g").ask("shown");
        }
        for id in IDS {
            let errors = fs::read_to_string(self.directory.path().join(format!("errors-{id}"))).expect("is there");
            assert!(!errors.contains("panicked") && !errors.contains("poisoned"), "{id}: {errors}");
        }
    }
}

/// A member that is slow, and not so slow that it is taken for dead: everybody waits for it, the logs take what comes, and nothing is lost or doubled.
#[test]
fn a_slow_member_holds_the_others_up_and_costs_nothing() {
    let mut site = Site::new();
    site.formed(IDS.len());
    for round in 0..16 {
        // Once an ingester, once the generator: it runs a fifth of the time.
        let slow = if round < 8 { "b" } else { "g" };
        site.get(slow).signal("STOP");
        site.append(round * 31, None);
        thread::sleep(Duration::from_millis(400));
        site.get(slow).signal("CONT");
        site.append(round * 37, None);
        site.verify_read(round % 7);
    }
    site.verify();
}

/// Kills, stops and starts members at random, for as many rounds as the environment says, from a seed that it may say, too.
#[test]
fn whoever_is_killed_or_stopped_nothing_is_lost_and_nothing_doubled() {
    let number = |name: &str, default: u64| env::var(name).ok().map_or(default, |value| value.parse().expect("number"));
    let (rounds, mut state) = (number("RUBATO_SOAK_ROUNDS", 6), number("RUBATO_SOAK_SEED", SystemClock.now().as_secs()));
    let _ = writeln!(std::io::stderr(), "seed {state}");
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut site = Site::new();
    site.formed(IDS.len());
    let (mut longest, mut without) = (Duration::ZERO, Duration::ZERO);
    for round in 0..rounds {
        for _ in 0..3 + random(5) {
            site.append(random(1000), None);
            thread::sleep(Duration::from_millis(random(150)));
        }
        site.verify_read(random(7));
        let id = IDS[random(4) as usize];
        site.note(&format!("{id} is to suffer in round {round}"));
        // The first rounds do everything once.
        match if round < 4 { round } else { random(4) } {
            // While it is written to; it comes back with its log.
            0 => site.append(random(1000), Some(id)),
            // It hangs, and goes on when others have taken over.
            1 => {
                site.get(id).signal("STOP");
                longest = longest.max(site.formed(IDS.len() - 1));
                site.append(random(1000), None);
                site.get(id).signal("CONT");
            }
            // It goes for good, with all it had; another one comes under its name.
            2 => {
                let id = ["a", "b", "c"][random(3) as usize];
                if round > 2 {
                    // Of two copies one may be lost until there are two again, or a block.
                    site.flush();
                }
                site.note(&format!("{id} goes for good"));
                site.kill(id);
                without = without.max(site.formed(IDS.len() - 1));
                site.append(random(1000), None);
                site.verify_read(random(7));
                fs::remove_dir_all(site.directory.path().join(format!("wal-{id}"))).expect("removes");
            }
            // It is killed, and so is another one before the rest has formed.
            _ => {
                site.kill(id);
                thread::sleep(Duration::from_millis(random(400)));
                let other = IDS[random(4) as usize];
                site.note(&format!("{other}, too"));
                site.kill(other);
            }
        }
        site.start_all();
        longest = longest.max(site.formed(IDS.len()));
        site.note("all run");
        if round == 3 {
            site.verify();
        }
    }
    site.verify();
    let _ = writeln!(
        std::io::stderr(),
        "{rounds} rounds, {} spans, formed again after at most {longest:?}, after a kill without the lost one {without:?}",
        site.next
    );
}
