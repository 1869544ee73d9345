//! A real memcached for tests, here and of the whole process: killed, stopped and started again.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long it may take to listen, on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A memcached of its own for a test. Killed when dropped.
pub(crate) struct Memcached {
    pub(crate) address: SocketAddr,
    process: Option<Child>,
}

impl Memcached {
    /// `None`, with the reason printed, where memcached is not installed; where it must be, that is a failure.
    pub(crate) fn start() -> Option<Self> {
        Self::start_at("127.0.0.1")
    }

    /// At another address of this machine.
    pub(crate) fn start_at(host: &str) -> Option<Self> {
        let installed = Command::new("memcached").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        if !installed {
            assert!(std::env::var_os("CI").is_none(), "memcached is not installed: apt-get install memcached");
            eprintln!("skipped: memcached is not installed");
            return None;
        }
        let listener = TcpListener::bind((host, 0)).expect("a free port");
        let mut memcached = Self { address: listener.local_addr().expect("an address"), process: None };
        drop(listener);
        memcached.start_again();
        Some(memcached)
    }

    /// Starts it after it was killed, with nothing in it, and waits until it listens.
    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new("memcached");
        // It does not run as root without being told to.
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        command.args(["-l", &host, "-U", "0", "-u", "nobody", "-p", &port]);
        self.process = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("memcached starts"));
        let begun = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "memcached does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("a child can be killed");
        process.wait().expect("a child can be waited for");
    }

    pub(crate) fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().expect("kill runs").success());
        // A thread that runs on another core goes on for a moment after it was told to stop, and may still answer.
        while signal == "-STOP" && !stopped(&process) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether all threads of a process are stopped (state `T`, the first field after the name in `stat`, see proc(5)).
fn stopped(process: &str) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    threads.flatten().all(|thread| {
        // A thread that has ended meanwhile answers nobody.
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

impl Drop for Memcached {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
