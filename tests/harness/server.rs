//! One Rubato process with a folder of its own.

use std::{
    fs::{self, File, OpenOptions},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{PATIENCE, client::Client};

/// What differs from test to test.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) multitenancy: bool,
    pub(crate) trace_idle_period: &'static str,
    pub(crate) max_block_duration: &'static str,
    /// Lines below `server:`, indented by two spaces.
    pub(crate) server: &'static str,
    /// Lines below each protocol of OTLP, indented by ten spaces.
    pub(crate) receiver: &'static str,
    /// Lines below `distributor:`, indented by two spaces.
    pub(crate) distributor: &'static str,
    /// Lines below `ingester:`, indented by two spaces.
    pub(crate) ingester: &'static str,
    /// Lines below `storage.trace:`, indented by four spaces.
    pub(crate) storage: &'static str,
    /// The store and its keys, lines below `storage.trace`, indented by four spaces; empty: a local folder.
    pub(crate) backend: String,
    /// Lines at top level.
    pub(crate) more: &'static str,
    /// The folder of the blocks, if it is not one of its own.
    pub(crate) bucket: Option<PathBuf>,
}

impl Default for Config {
    /// Cuts traces and blocks after some hundred milliseconds.
    fn default() -> Self {
        Self {
            multitenancy: false,
            trace_idle_period: "300ms",
            max_block_duration: "1s",
            server: "",
            receiver: "",
            distributor: "",
            ingester: "",
            storage: "",
            backend: String::new(),
            more: "",
            bucket: None,
        }
    }
}

impl Config {
    /// Keeps traces in memory and in the WAL for the whole test.
    pub(crate) fn without_blocks() -> Self {
        Self { trace_idle_period: "10m", max_block_duration: "1h", ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    http: u16,
    grpc: u16,
    otlp_grpc: u16,
    otlp_http: u16,
}

impl Ports {
    /// Ports that are free now. Another process may take one before the server does: the caller tries again then.
    fn free() -> Self {
        let listeners = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let [http, grpc, otlp_grpc, otlp_http] = listeners.each_ref().map(|listener| listener.local_addr().expect("an address").port());
        Self { http, grpc, otlp_grpc, otlp_http }
    }
}

/// A running server. Killed when dropped; its log is printed if the test fails.
#[derive(Debug)]
pub(crate) struct Server {
    dir: TempDir,
    config: Config,
    ports: Ports,
    process: Option<Child>,
}

impl Server {
    /// Starts a server in a new folder and waits until it is ready.
    pub(crate) async fn start(config: Config) -> Self {
        let mut server = Self::prepare(config);
        server.start_again().await;
        server
    }

    /// A server that has a folder and ports, and does not run yet.
    pub(crate) fn prepare(config: Config) -> Self {
        let dir = tempfile::Builder::new().prefix("rubato-test-").tempdir().expect("a temporary folder");
        Self { dir, config, ports: Ports::free(), process: None }
    }

    /// Starts the server again on what its folder holds, with the same ports if they are still free.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.process.is_none(), "the server runs");
        for _ in 0..5 {
            self.spawn();
            if self.wait_until_ready().await {
                return;
            }
            assert!(self.log().contains("in use"), "the server ended before it was ready");
            self.ports = Ports::free();
        }
        panic!("no free ports");
    }

    /// Starts the process without waiting for it.
    pub(crate) fn spawn(&mut self) {
        let config = self.write_config();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rubato"));
        command.arg(format!("-config.file={}", config.display()));
        self.process = Some(spawn(command, self.dir.path(), &self.log_path()));
    }

    /// Whether it became ready; `false` if it ended instead.
    pub(crate) async fn wait_until_ready(&mut self) -> bool {
        let started = Instant::now();
        loop {
            if self.client().get("/ready").await.is_ok_and(|answer| answer.status == 200) {
                return true;
            }
            let process = self.process.as_mut().expect("spawned");
            if let Some(status) = process.try_wait().expect("a child can be asked") {
                self.process = None;
                assert!(!status.success(), "the server ended by itself, without error, before it was ready");
                return false;
            }
            assert!(started.elapsed() < PATIENCE, "the server does not become ready");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    fn write_config(&self) -> PathBuf {
        let Config { multitenancy, trace_idle_period, max_block_duration, distributor, ingester, storage, backend, more, .. } =
            &self.config;
        let (server, receiver) = (self.config.server, self.config.receiver);
        let local = format!("    backend: local\n    local:\n      path: {}", self.blocks_path().display());
        let backend = if backend.is_empty() { &local } else { backend };
        let Ports { http, grpc, otlp_grpc, otlp_http } = self.ports;
        let text = format!(
            "\
multitenancy_enabled: {multitenancy}
server:
  http_listen_address: 127.0.0.1
  http_listen_port: {http}
  grpc_listen_address: 127.0.0.1
  grpc_listen_port: {grpc}
{server}
distributor:
  receivers:
    otlp:
      protocols:
        grpc:
          endpoint: 127.0.0.1:{otlp_grpc}
{receiver}
        http:
          endpoint: 127.0.0.1:{otlp_http}
{receiver}
{distributor}
ingester:
  trace_idle_period: {trace_idle_period}
  max_block_duration: {max_block_duration}
  flush_check_period: 200ms
{ingester}
storage:
  trace:
{backend}
    wal:
      path: {}
{storage}
{more}
",
            self.wal_path().display(),
        );
        let path = self.dir.path().join("config.yaml");
        fs::write(&path, text).expect("the configuration is written");
        path
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.ports.http, self.ports.otlp_grpc, self.ports.otlp_http)
    }

    /// Where other processes of a cluster connect.
    pub(crate) fn grpc_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.grpc)
    }

    /// Where spans go by gRPC.
    pub(crate) fn otlp_grpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.otlp_grpc)
    }

    /// Where spans go by HTTP.
    pub(crate) fn otlp_http_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1/traces", self.ports.otlp_http)
    }

    /// Where queries go by gRPC.
    pub(crate) fn grpc_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.grpc)
    }

    /// Lets the server end, and its folder vanish, when this process ends, however that happens: for servers that are never dropped.
    #[expect(clippy::zombie_processes, reason = "it waits for this process, not the other way round")]
    pub(crate) fn end_with_this_process(&mut self) {
        let pid = self.process.as_ref().expect("the server runs").id().to_string();
        let mut guard = Command::new("sh")
            .args(["-c", "read _; kill -9 \"$0\"; sleep 0.2; rm -rf \"$1\"", &pid])
            .arg(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        // Held open until this process is gone.
        std::mem::forget(guard.stdin.take());
    }

    /// Where queries go.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn wal_path(&self) -> PathBuf {
        self.dir.path().join("wal")
    }

    pub(crate) fn blocks_path(&self) -> PathBuf {
        self.config.bucket.clone().unwrap_or_else(|| self.dir.path().join("blocks"))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("rubato.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Sum of `totalObjects` over the published blocks of a tenant.
    pub(crate) fn traces_in_blocks(&self, tenant: &str) -> u64 {
        let Ok(blocks) = fs::read_dir(self.blocks_path().join(tenant)) else { return 0 };
        let metas = blocks.filter_map(|block| fs::read(block.ok()?.path().join("meta.json")).ok());
        let meta = |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        metas.filter_map(meta).map(|meta| meta["totalObjects"].as_u64().expect("a number of traces")).sum()
    }

    /// Whether the process still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().expect("a child can be asked").is_none())
    }

    /// Largest resident memory so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let pid = self.process.as_ref().expect("the server runs").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux tells about processes");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the server runs");
        process.kill().expect("a child can be killed");
        process.wait().expect("a child can be waited for");
    }

    /// The ports of its configuration.
    pub(crate) fn ports(&self) -> [u16; 4] {
        let Ports { http, grpc, otlp_grpc, otlp_http } = self.ports;
        [http, grpc, otlp_grpc, otlp_http]
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server runs").id()
    }

    /// Sends a signal: `STOP`, `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().expect("kill runs");
        assert!(sent.success(), "SIG{name} cannot be sent");
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        let mut process = self.process.take().expect("the server runs");
        let started = Instant::now();
        loop {
            if let Some(status) = process.try_wait().expect("a child can be asked") {
                return status;
            }
            if started.elapsed() > PATIENCE {
                process.kill().expect("a child can be killed");
                panic!("the server does not end on SIGTERM");
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            print_end("the server's log", &self.log(), 60);
        }
    }
}

/// Starts the binary in a folder, with what it says appended to a log.
pub(crate) fn spawn(mut command: Command, dir: &Path, log: &Path) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(log).expect("a log file");
    command
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("the binary starts")
}

/// Prints the last lines of a log, for whoever looks for the cause of a failure.
pub(crate) fn print_end(of: &str, log: &str, lines: usize) {
    let all: Vec<&str> = log.lines().collect();
    eprintln!("---- last lines of {of} ----");
    all[all.len().saturating_sub(lines)..].iter().for_each(|line| eprintln!("{line}"));
}

/// Runs the binary with arguments in a folder until it ends.
pub(crate) fn run(dir: &Path, arguments: &[&str]) -> std::process::Output {
    let output = File::create(dir.join("stdout")).and_then(|stdout| Ok((stdout, File::create(dir.join("stderr"))?)));
    let (stdout, stderr) = output.expect("files for the output");
    let mut process = Command::new(env!("CARGO_BIN_EXE_rubato"))
        .args(arguments)
        .current_dir(dir)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .expect("the binary starts");
    let started = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait().expect("a child can be asked") {
            break status;
        }
        if started.elapsed() > PATIENCE {
            process.kill().expect("a child can be killed");
            panic!("rubato {arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let read = |name| fs::read(dir.join(name)).expect("the output is a file");
    std::process::Output { status, stdout: read("stdout"), stderr: read("stderr") }
}
