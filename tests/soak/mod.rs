//! A whole cluster that suffers: for some rounds members are killed, stopped, cut off from each other or from everything, and restarted, at
//! random, while spans are sent and read. At the end every acknowledged span is in the answers once, every series is what was sent, and no
//! process has ended by itself. Meanwhile no answer hides what was acknowledged before it was asked for.
//!
//! ```text
//!  soak ── unshare: namespaces for network and processes ──► this executable again: `inside` ──► bridges, twelve places, six roles
//! ```
//!
//! `RUBATO_SOAK_ROUNDS` says how many rounds, `RUBATO_SOAK_SEED` which; `RUBATO_SOAK_BINARY` which binary (a release build, that is); logs are
//! kept in `RUBATO_SOAK_LOGS`. Skips, with the reason printed, where Linux does not let us have namespaces.

mod site;
mod switch;
mod truth;

use std::{
    env,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use storage::clock::{Clock as _, SystemClock};

use self::{
    site::{Node, Outside, Site},
    truth::Load,
};

/// Set for whoever runs in namespaces of its own.
const INSIDE: &str = "RUBATO_SOAK_INSIDE";

#[test]
#[ignore = "wants a machine for itself: .ci/run starts it alone"]
fn whatever_a_cluster_suffers_nothing_is_lost_doubled_or_hidden() {
    let namespaces = ["--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];
    // Who is root needs no other names for it.
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let namespaces = &namespaces[if is_root { 2 } else { 0 }..];
    let possible = Command::new("unshare").args(namespaces).args(["ip", "link", "set", "lo", "up"]).stdin(Stdio::null()).output();
    match possible {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!("skipped: there are no namespaces to be had: {}", String::from_utf8_lossy(&output.stderr).trim());
            return;
        }
        Err(error) => {
            assert!(env::var_os("CI").is_none(), "unshare cannot be started: {error}: apt-get install util-linux");
            eprintln!("skipped: unshare cannot be started: {error}");
            return;
        }
    }
    let status = Command::new("unshare")
        .args(namespaces)
        .arg(env::current_exe().expect("this executable"))
        .args(["soak::inside", "--exact", "--ignored", "--nocapture"])
        .env(INSIDE, "yes")
        .stdin(Stdio::null())
        .status()
        .expect("unshare runs");
    assert!(status.success(), "{status}");
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn time(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// What happens to a member.
#[derive(Clone, Copy, Debug)]
enum Misfortune {
    /// `kill -9`; it is started again later.
    Killed,
    /// SIGSTOP and SIGCONT.
    Stopped,
    /// It and some others hear only each other, the bucket and clients.
    Apart,
    /// It hears nobody.
    PulledOut,
    /// SIGTERM; it is started again later.
    Restarted,
}

const MISFORTUNES: [Misfortune; 5] =
    [Misfortune::Killed, Misfortune::Stopped, Misfortune::Apart, Misfortune::PulledOut, Misfortune::Restarted];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by the soak, in namespaces of its own"]
async fn inside() {
    if env::var_os(INSIDE).is_none() {
        eprintln!("skipped: is started by the soak");
        return;
    }
    if let Err(why) = switch::build() {
        eprintln!("skipped: this machine builds no networks: {why}");
        return;
    }
    let Some(outside) = Outside::start().await else { return };
    let number = |name: &str, default: u64| env::var(name).ok().map_or(default, |value| value.parse().expect("a number"));
    let (rounds, seed) = (number("RUBATO_SOAK_ROUNDS", 8), number("RUBATO_SOAK_SEED", SystemClock.now().as_secs()));
    eprintln!("soak of {rounds} rounds, RUBATO_SOAK_SEED={seed}");
    let mut random = Random(seed);
    let began = Instant::now();
    let mut site = Site::start(outside).await;
    eprintln!("{:?}: all run", began.elapsed());
    let load = Load::start(&site, seed);
    load.goes_on("in peace").await;
    for round in 0..rounds {
        // The first rounds bring one of each.
        let misfortune = MISFORTUNES.get(round as usize).copied().unwrap_or_else(|| MISFORTUNES[random.below(5) as usize]);
        // Those who have spans and series suffer most.
        let candidates = if random.below(3) == 0 { site.nodes.len() as u64 } else { 5 };
        let victim = random.below(candidates) as usize;
        suffer(&mut site, &load, &mut random, misfortune, victim, began).await;
        // Sometimes the next one comes before all have recovered.
        if random.below(3) > 0 {
            site.is_whole().await;
            eprintln!("{:?}: all is well", began.elapsed());
        }
    }
    site.is_whole().await;
    load.goes_on("at the end").await;
    eprintln!("{:?}: verifying", began.elapsed());
    load.finish(&site).await;
    for node in &mut site.nodes {
        node.assert_alive();
        let log = node.log();
        let bad: Vec<&str> = log.lines().filter(|line| line.contains("panicked") || line.contains("poisoned")).collect();
        assert!(bad.is_empty(), "{}: {bad:#?}", node.name);
    }
    eprintln!("{:?}: nothing is lost, doubled or hidden", began.elapsed());
}

/// One misfortune, from its beginning to its end. With one member missing the load goes on.
async fn suffer(site: &mut Site, load: &Load, random: &mut Random, misfortune: Misfortune, victim: usize, began: Instant) {
    let at = now_text();
    eprintln!("{:?} ({at}): {} is {misfortune:?}", began.elapsed(), site.nodes[victim].name);
    let node = &mut site.nodes[victim];
    match misfortune {
        Misfortune::Killed => {
            node.kill();
            // Sometimes another one before the rest has formed.
            let also = random.below(site.nodes.len() as u64) as usize;
            if random.below(3) == 0 && site.nodes[also].is_running() {
                tokio::time::sleep(random.time(0, 600)).await;
                eprintln!("  and {} with it", site.nodes[also].name);
                site.nodes[also].kill();
                tokio::time::sleep(random.time(0, 4000)).await;
            } else {
                load.goes_on("after a kill").await;
                tokio::time::sleep(random.time(0, 8000)).await;
            }
            site.nodes.iter_mut().filter(|node| !node.is_running()).for_each(Node::start);
        }
        Misfortune::Stopped => {
            node.signal("STOP");
            tokio::time::sleep(random.time(200, 6000)).await;
            load.goes_on("while one hangs").await;
            site.nodes[victim].signal("CONT");
        }
        Misfortune::Apart => {
            let mut apart = vec![victim];
            for _ in 0..random.below(3) {
                apart.push(random.below(site.nodes.len() as u64) as usize);
            }
            for &member in &apart {
                eprintln!("  apart: {}", site.nodes[member].name);
                site.nodes[member].place.set_apart();
            }
            tokio::time::sleep(random.time(1000, 8000)).await;
            apart.iter().for_each(|&member| site.nodes[member].place.plug_in());
        }
        Misfortune::PulledOut => {
            node.place.pull_out();
            tokio::time::sleep(random.time(500, 8000)).await;
            load.goes_on("while one is cut off").await;
            site.nodes[victim].place.plug_in();
        }
        Misfortune::Restarted => {
            node.terminate().await;
            load.goes_on("without one").await;
            site.nodes[victim].start();
        }
    }
}

/// The time of day as logs have it, for whoever looks for the cause of a failure.
fn now_text() -> String {
    let seconds = SystemClock.now().as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}
