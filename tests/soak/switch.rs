//! Two networks of Linux' own making, for processes each of which has a place of its own in both.
//!
//! ```text
//!  namespace of the test                        namespace of place n
//!    10.67.0.254 ═ bridge `store` ───────────── eth1  10.67.0.n+1     bucket, memcached, Prometheus, clients
//!                  bridge `peers` ───┬───────── eth0  10.66.0.n+1     gossip, gRPC, mesh
//!                  bridge `apart` ───┘ or                             whoever is moved there hears only others who are there
//! ```
//!
//! A cut moves the other end of an interface to another bridge (or to none): nobody is told, packets get lost, connections stand still,
//! as when a cable is pulled. The namespaces end with the processes in them.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Where the bucket, memcached and Prometheus are.
pub(super) const OUTSIDE: &str = "10.67.0.254";

/// How long a namespace may take to be there.
const PATIENCE: Duration = Duration::from_secs(30);

fn run(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program).args(arguments.split_whitespace()).output().map_err(|error| format!("{program}: {error}"))?;
    let text = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {arguments}: {}", text())) }
}

fn ip(arguments: &str) {
    run("ip", arguments).unwrap_or_else(|error| panic!("{error}"));
}

/// The namespace that a process is in.
fn namespace_of(process: &str) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{process}/ns/net")).ok()
}

/// Makes the bridges in the namespace of this process, which is to be one that nobody else uses.
///
/// # Errors
/// The machine has no such thing, or doesn't let us.
pub(super) fn build() -> Result<(), String> {
    for name in ["peers", "apart", "store"] {
        run("ip", &format!("link add {name} type bridge"))?;
        run("ip", &format!("link set {name} up"))?;
    }
    run("ip", "link set lo up")?;
    run("ip", &format!("address add {OUTSIDE}/24 dev store"))
}

/// See the module documentation.
pub(super) struct Place {
    number: usize,
    /// Keeps the namespace while nothing else is in it.
    holder: Child,
}

impl Place {
    pub(super) fn new(number: usize) -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).spawn().expect("unshare runs");
        let place = Self { number, holder };
        let (own, began) = (namespace_of("self"), Instant::now());
        while namespace_of(&place.holder.id().to_string()).is_none_or(|there| Some(there) == own) {
            assert!(began.elapsed() < PATIENCE, "no namespace for place {number}");
            thread::sleep(Duration::from_millis(5));
        }
        let pid = place.holder.id();
        for (bridge, inner, address) in [("peers", "eth0", place.peers()), ("store", "eth1", place.store())] {
            ip(&format!("link add {bridge}{number} type veth peer name {inner} netns {pid}"));
            ip(&format!("link set {bridge}{number} master {bridge} up"));
            place.inside(&format!("address add {address}/24 dev {inner}"));
            place.inside(&format!("link set {inner} up"));
        }
        place.inside("link set lo up");
        place
    }

    /// The address among the processes of the cluster.
    pub(super) fn peers(&self) -> String {
        peers(self.number)
    }

    /// The address for clients.
    pub(super) fn store(&self) -> String {
        format!("10.67.0.{}", self.number + 1)
    }

    fn enter(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.holder.id())
    }

    fn inside(&self, arguments: &str) {
        run("nsenter", &format!("{} ip {arguments}", self.enter())).unwrap_or_else(|error| panic!("{error}"));
    }

    /// A program that will run here. What is spawned is the program itself.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.enter()).arg(program);
        command
    }

    /// Only those who are apart, too, are heard.
    pub(super) fn set_apart(&self) {
        ip(&format!("link set peers{} master apart", self.number));
    }

    /// Nobody is heard, and nothing outside.
    pub(super) fn pull_out(&self) {
        ip(&format!("link set peers{} nomaster", self.number));
        ip(&format!("link set store{} nomaster", self.number));
    }

    /// Everything is as it was.
    pub(super) fn plug_in(&self) {
        ip(&format!("link set peers{} master peers", self.number));
        ip(&format!("link set store{} master store", self.number));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The namespace ends with the test at the latest.
        _ = self.holder.kill();
        _ = self.holder.wait();
    }
}

/// The address of a place among the processes of the cluster.
pub(super) fn peers(number: usize) -> String {
    format!("10.66.0.{}", number + 1)
}
