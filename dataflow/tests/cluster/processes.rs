//! Members that are processes of their own, to be killed and stopped: this executable, started again.
//!
//! They share a directory: manifests, a candidate's file for each (which is gossip that never forgets), and what each one has seen.

use std::{
    env,
    fs::{self, File},
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    thread,
    time::Duration,
};

use dataflow::cluster::{Candidate, Cluster, Metrics, Options, Role};
use serde::{Deserialize, Serialize};
use storage::{
    clock::{Clock, SystemClock},
    tls::Peers,
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::{
    harness::{eventually, settings},
    toy::{self, Manifests, Mischief},
};

const MEMBER: &str = "RUBATO_TEST_MEMBER";

/// What a process wrote down, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Event {
    Formed { epoch: u64, leader: String, members: Vec<String>, reason: String, at: Duration },
    Ended { epoch: u64, cause: String, took: Duration, at: Duration },
    Refused { epoch: u64, newer: u64 },
}

#[derive(Debug)]
struct Process {
    id: String,
    directory: PathBuf,
    child: Child,
}

impl Process {
    fn spawn(directory: &Path, id: &str, incarnation: u64) -> Self {
        let output = File::options().create(true).append(true).open(directory.join(format!("output-{id}"))).expect("file");
        let child = Command::new(env::current_exe().expect("this executable"))
            .args(["processes::a_member", "--exact", "--ignored", "--nocapture"])
            .env(MEMBER, format!("{id}\n{incarnation}\n{}", directory.display()))
            .stdout(output.try_clone().expect("clones"))
            .stderr(output)
            .spawn()
            .expect("process starts");
        Self { id: id.to_owned(), directory: directory.to_owned(), child }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().expect("kill is there");
        assert!(status.success());
    }

    fn kill(&mut self) {
        self.child.kill().expect("kills");
        self.child.wait().expect("is gone");
    }

    fn is_up(&mut self) -> bool {
        self.child.try_wait().expect("can be asked").is_none()
    }

    fn events(&self) -> Vec<Event> {
        let lines = fs::read_to_string(self.directory.join(format!("events-{}", self.id))).unwrap_or_default();
        // The last line may not be whole yet.
        lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Epoch, leader and members of what runs, and since when.
    fn current(&self) -> Option<(u64, String, Vec<String>, Duration)> {
        match self.events().pop() {
            Some(Event::Formed { epoch, leader, members, at, .. }) => Some((epoch, leader, members, at)),
            _ => None,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already, perhaps.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One member's whole life, in a process of its own.
#[test]
#[ignore = "is started by the tests that need it"]
fn a_member() {
    let told = env::var(MEMBER).expect("told who it is");
    let mut told = told.lines();
    let mut next = || told.next().expect("told");
    let (id, incarnation, directory) = (next().to_owned(), next().parse().expect("number"), PathBuf::from(next()));
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
    let address = listener.local_addr().expect("has an address");
    let me = Candidate { id: id.clone(), incarnation, address, role: Role::Ingester };
    let own = directory.join(format!("candidate-{id}"));
    fs::write(own.with_extension("new"), serde_json::to_vec(&me).expect("JSON")).expect("writes");
    fs::rename(own.with_extension("new"), own).expect("renames");

    let gossip = watch::Sender::new(listed(&directory));
    let candidates = gossip.subscribe();
    {
        let directory = directory.clone();
        thread::spawn(move || {
            loop {
                gossip.send_replace(listed(&directory));
                thread::sleep(Duration::from_millis(20));
            }
        });
    }
    let manifests = Manifests::new(&directory);
    let metrics = Metrics::new(&prometheus::Registry::new()).expect("metrics");
    let cluster =
        Cluster::start(settings(), me, manifests.newest().epoch, listener, Peers::default(), candidates, metrics).expect("starts");
    let mut events = File::options().create(true).append(true).open(directory.join(format!("events-{id}"))).expect("file");
    let mut tell = |event: Event| {
        let line = serde_json::to_string(&event).expect("JSON") + "\n";
        events.write_all(line.as_bytes()).expect("writes");
    };
    while let Some(formation) = cluster.next() {
        let epoch = formation.epoch.clone();
        tell(Event::Formed {
            epoch: epoch.counter,
            leader: epoch.leader.to_string(),
            members: formation.members.iter().map(|member| member.id.clone()).collect(),
            reason: formation.reason.to_owned(),
            at: SystemClock.now(),
        });
        match toy::run(formation, &manifests, &Mischief::default(), Options::default()) {
            Ok(ended) => {
                tell(Event::Ended { epoch: epoch.counter, cause: ended.cause.to_string(), took: ended.took, at: SystemClock.now() });
            }
            Err(newer) => {
                tell(Event::Refused { epoch: epoch.counter, newer });
                cluster.raise(newer);
            }
        }
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

/// Waits until these run one epoch newer than the given one, and nothing else does; when the last of them began.
fn formed(processes: &[&Process], after: u64) -> (u64, String, Duration) {
    let mut ids: Vec<&str> = processes.iter().map(|process| process.id.as_str()).collect();
    ids.sort_unstable();
    let all = || {
        let current: Option<Vec<_>> = processes.iter().map(|process| process.current()).collect();
        let current = current?;
        let is_one = current.iter().all(|(epoch, _, members, _)| *epoch == current[0].0 && *epoch > after && *members == ids);
        let last = current.iter().map(|(.., at)| *at).max()?;
        is_one.then(|| (current[0].0, current[0].1.clone(), last))
    };
    eventually(&format!("{ids:?} form after {after}"), || all().is_some());
    all().expect("nothing ends it meanwhile")
}

fn verify_progress(directory: &Path, epoch: u64, members: &[&str]) {
    let manifests = Manifests::new(directory);
    let before = manifests.newest();
    let has_moved = |member: &&str| {
        let newest = manifests.newest();
        newest.epoch >= epoch && newest.positions.get(*member) > before.positions.get(*member)
    };
    eventually("all logs are read", || members.iter().all(has_moved));
    manifests.newest().verify();
}

/// No thread of any process ever panicked.
fn assert_peace(directory: &Path) {
    for entry in fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("output-")) {
            let output = fs::read_to_string(&path).expect("is text");
            assert!(!output.contains("panicked") && !output.contains("poisoned"), "{}: {output}", path.display());
        }
    }
}

fn report(what: &str, since: Duration, formed_at: Duration, processes: &[&Process]) {
    let took = |process: &&Process| {
        process.events().iter().rev().find_map(|event| match event {
            Event::Ended { took, .. } => Some(*took),
            _ => None,
        })
    };
    let teardown = processes.iter().filter_map(took).max().unwrap_or_default();
    let line = format!("{what}: formed again after {:?}, taken down in {teardown:?}", formed_at.saturating_sub(since));
    // Figures are for whoever runs it with `--nocapture`.
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn processes_that_are_killed_or_stopped_cost_a_moment_and_nothing_else() {
    let directory = TempDir::new().expect("directory");
    let directory = directory.path();
    let spawn = |id, incarnation| Process::spawn(directory, id, incarnation);
    let (mut a, b, mut c) = (spawn("a", 1), spawn("b", 1), spawn("c", 1));
    let (epoch, leader, _) = formed(&[&a, &b, &c], 0);
    assert_eq!(leader, "a");
    verify_progress(directory, epoch, &["a", "b", "c"]);

    // A member is lost.
    let since = SystemClock.now();
    c.kill();
    let (epoch, _, at) = formed(&[&a, &b], epoch);
    report("kill -9 of a member", since, at, &[&a, &b]);
    verify_progress(directory, epoch, &["a", "b"]);

    // It returns.
    let since = SystemClock.now();
    let c = spawn("c", 2);
    let (epoch, _, at) = formed(&[&a, &b, &c], epoch);
    report("start of a member", since, at, &[&a, &b]);
    verify_progress(directory, epoch, &["a", "b", "c"]);

    // The leader is lost.
    let since = SystemClock.now();
    a.kill();
    let (epoch, leader, at) = formed(&[&b, &c], epoch);
    assert_eq!(leader, "b");
    report("kill -9 of the leader", since, at, &[&b, &c]);
    verify_progress(directory, epoch, &["b", "c"]);

    // It returns, and is at once lost and back again under the same name.
    a = spawn("a", 2);
    let (epoch, leader, _) = formed(&[&a, &b, &c], epoch);
    assert_eq!(leader, "a");
    verify_progress(directory, epoch, &["a", "b", "c"]);
    a.kill();
    let a = spawn("a", 3);
    let (epoch, _, _) = formed(&[&a, &b, &c], epoch);
    verify_progress(directory, epoch, &["a", "b", "c"]);

    // A member hangs, with all its connections open; then it goes on, in an epoch that is over, and comes back.
    let since = SystemClock.now();
    c.signal("STOP");
    let (epoch, _, at) = formed(&[&a, &b], epoch);
    report("SIGSTOP of a member", since, at, &[&a, &b]);
    verify_progress(directory, epoch, &["a", "b"]);
    let since = SystemClock.now();
    c.signal("CONT");
    let (epoch, _, at) = formed(&[&a, &b, &c], epoch);
    report("SIGCONT of it", since, at, &[&a, &b, &c]);
    verify_progress(directory, epoch, &["a", "b", "c"]);

    // So does the leader.
    let since = SystemClock.now();
    a.signal("STOP");
    let (epoch, leader, at) = formed(&[&b, &c], epoch);
    assert_eq!(leader, "b");
    report("SIGSTOP of the leader", since, at, &[&b, &c]);
    verify_progress(directory, epoch, &["b", "c"]);
    a.signal("CONT");
    let (epoch, _, _) = formed(&[&a, &b, &c], epoch);
    verify_progress(directory, epoch, &["a", "b", "c"]);

    for mut process in [a, b, c] {
        assert!(process.is_up(), "{} is up", process.id);
    }
    assert_peace(directory);
}

/// Kills, stops and starts at random, for as many seconds as the environment says, from a seed that it may say, too.
#[test]
#[ignore = "runs for as long as one likes"]
fn soak() {
    let number = |name: &str, default: u64| env::var(name).ok().map_or(default, |value| value.parse().expect("number"));
    let (seconds, mut state) = (number("RUBATO_SOAK_SECONDS", 60), number("RUBATO_SOAK_SEED", SystemClock.now().as_secs()));
    let _ = writeln!(std::io::stderr(), "seed {state}");
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let directory = TempDir::new().expect("directory");
    let directory = directory.path();
    let ids = ["a", "b", "c", "d"];
    let mut processes = ids.map(|id| Process::spawn(directory, id, 1));
    let (mut epoch, ..) = formed(&processes.each_ref(), 0);
    let (end, mut rounds, mut longest) = (SystemClock.now() + Duration::from_secs(seconds), 0, Duration::ZERO);
    while SystemClock.now() < end {
        for incarnation in 0..1 + random(3) {
            let index = random(4) as usize;
            match random(3) {
                0 => {
                    processes[index].kill();
                    thread::sleep(Duration::from_millis(random(400)));
                    processes[index] = Process::spawn(directory, ids[index], 2 + rounds * 4 + incarnation);
                }
                1 => processes[index].signal("STOP"),
                _ => processes[index].signal("CONT"),
            }
            thread::sleep(Duration::from_millis(random(3000)));
        }
        let since = SystemClock.now();
        processes.iter().for_each(|process| process.signal("CONT"));
        (epoch, ..) = formed(&processes.each_ref(), epoch - 1);
        longest = longest.max(SystemClock.now().saturating_sub(since));
        verify_progress(directory, epoch, &ids);
        rounds += 1;
    }
    for process in &mut processes {
        assert!(process.is_up(), "{} is up", process.id);
    }
    assert_peace(directory);
    let _ = writeln!(std::io::stderr(), "{rounds} rounds, epoch {epoch}, all together again after at most {longest:?}");
}

#[test]
fn many_generations_leave_nothing_behind() {
    let output = Command::new(env::current_exe().expect("this executable"))
        .args(["members::many_generations_leave_nothing_behind_in_their_process", "--exact", "--ignored", "--nocapture"])
        .output()
        .expect("process starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    // Operators panic, as they are asked to; no thread of timely does.
    let unasked = |line: &&str| (line.contains("panicked") && !line.contains("toy.rs")) || line.contains("poisoned");
    assert_eq!(text.lines().filter(unasked).collect::<Vec<_>>(), Vec::<&str>::new());
}
