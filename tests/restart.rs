//! What was acknowledged survives `kill -9` and SIGTERM, exactly once.

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::harness::{
    eventually,
    ledger::{Ledger, Pace, check, send_load},
    now_ns,
    server::{Config, Server},
};

/// Ten rounds: send, kill at a random moment, start again, look.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_random_moments_loses_nothing_that_was_acknowledged() {
    let seed = std::env::var("RUBATO_TEST_SEED").ok().map_or_else(now_ns, |seed| seed.parse().expect("a number"));
    eprintln!("seed {seed} (set RUBATO_TEST_SEED to repeat)");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Short periods, so that kills hit cuts and uploads as well as appends.
    let mut server = Server::start(Config { trace_idle_period: "200ms", max_block_duration: "700ms", ..Config::default() }).await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    for round in 0..10 {
        let stop = Arc::new(AtomicBool::new(false));
        let client = server.client();
        let load = tokio::spawn(send_load(client, Pace::FAST, seed ^ round, round % 2 == 0, Arc::clone(&ledger), Arc::clone(&stop)));
        tokio::time::sleep(Duration::from_millis(random.random_range(100..2500))).await;
        server.kill();
        stop.store(true, Ordering::Relaxed);
        load.await.expect("the load does not panic");
        // Sometimes it is killed again while it recovers.
        if random.random_range(0..3) == 0 {
            server.start_again().await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
            server.kill();
        }
        server.start_again().await;
        let ledger = ledger.lock().expect("nobody panics here").clone();
        assert!(!ledger.acknowledged.is_empty(), "round {round} tests nothing");
        check(&server.client(), &ledger, &format!("seed {seed}, round {round}")).await;
    }
    let ledger = ledger.lock().expect("nobody panics here").clone();
    // Everything ends in blocks, and is there once, too.
    let traces = ledger.acknowledged.len() as u64;
    eventually("blocks", || async { (server.traces_in_blocks("single-tenant") >= traces).then_some(()) }).await;
    check(&server.client(), &ledger, &format!("seed {seed}, after the rounds")).await;
    eprintln!("{traces} traces survived ten kills");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_nothing_and_ends_well() {
    let mut server = Server::start(Config::default()).await;
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    for round in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let load =
            tokio::spawn(send_load(server.client(), Pace::FAST, 100 + round, round % 2 == 0, Arc::clone(&ledger), Arc::clone(&stop)));
        tokio::time::sleep(Duration::from_millis(700)).await;
        let status = server.terminate().await;
        stop.store(true, Ordering::Relaxed);
        load.await.expect("the load does not panic");
        assert!(status.success(), "SIGTERM ends with {status}");
        server.start_again().await;
        let ledger = ledger.lock().expect("nobody panics here").clone();
        check(&server.client(), &ledger, &format!("round {round}")).await;
    }
}

/// The tool that anyone can run sees the same: it sends while the server is killed under it, and verifies.
#[tokio::test(flavor = "multi_thread")]
async fn load_verifies_across_kills() {
    let mut server = Server::start(Config::default()).await;
    let truth = server.path().join("truth.json");
    let mut load = Command::new(env!("CARGO_BIN_EXE_rubato"))
        .args(["load", "--endpoint", &server.otlp_grpc_url(), "--rate", "2000", "--duration", "8s", "--batch", "100", "--seed", "5"])
        .args(["--retry-for", "80s", "--verify", &server.url(), "--verify-traces", "0", "--verify-for", "80s"])
        .arg("--truth")
        .arg(&truth)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        server.kill();
        server.start_again().await;
    }
    eventually("the end of the load", || {
        let ended = load.try_wait().expect("a child can be asked").is_some();
        async move { ended.then_some(()) }
    })
    .await;
    let output = load.wait_with_output().expect("the output");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("0 missing, 0 doubled, 0 never sent"), "{printed}");
    let truth: serde_json::Value = serde_json::from_slice(&std::fs::read(truth).expect("the truth")).expect("JSON");
    let acknowledged = truth["acknowledged"]["spans"].as_u64().expect("a count");
    assert!(acknowledged >= 2000 * 7, "{acknowledged}");
    let by_trace: u64 =
        truth["traces"].as_object().expect("traces").values().map(|trace| trace["acknowledged"].as_u64().expect("a count")).sum();
    assert_eq!(by_trace, acknowledged);
}
