//! The modules of the process by name: what runs, what stops, what failed.
//!
//! ```text
//!  App::spawn / App::started ──► Service (Starting → Running → Stopping → Terminated, or Failed)
//!                                    │
//!                                    └──► /ready, /status/services
//! ```

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// Where a service is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Being built; recovery belongs here.
    Starting,
    /// At work.
    Running,
    /// Asked to end.
    Stopping,
    /// Ended as asked.
    Terminated,
    /// Ended by an error.
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Starting => "Starting",
            State::Running => "Running",
            State::Stopping => "Stopping",
            State::Terminated => "Terminated",
            State::Failed => "Failed",
        }
    }
}

/// The services of the process. A handle: clones share the table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services(Arc<Mutex<BTreeMap<String, (State, String)>>>);

impl Services {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (State, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records where a service is. A failed one stays failed.
    pub(crate) fn set(&self, name: &str, state: State) {
        let mut services = self.lock();
        let entry = services.entry(name.to_owned()).or_insert((state, String::new()));
        if entry.0 != State::Failed {
            *entry = (state, String::new());
        }
    }

    /// Records that a service cannot start yet, and why.
    pub(crate) fn wait(&self, name: &str, why: &str) {
        self.lock().insert(name.to_owned(), (State::Starting, why.to_owned()));
    }

    /// Records that a service failed.
    pub(crate) fn fail(&self, name: &str, why: &str) {
        self.lock().insert(name.to_owned(), (State::Failed, why.to_owned()));
    }

    /// What `/ready` says of services that aren't running; nothing when all are.
    pub(crate) fn not_running(&self) -> Option<String> {
        let mut counts: BTreeMap<State, usize> = BTreeMap::new();
        let mut reasons = String::new();
        for (name, (state, why)) in self.lock().iter() {
            *counts.entry(*state).or_default() += 1;
            if *state == State::Starting && !why.is_empty() {
                _ = writeln!(reasons, "{name}: {why}");
            }
        }
        if counts.keys().all(|state| *state == State::Running) {
            return None;
        }
        let mut out = String::from("Some services are not Running:\n");
        for (state, count) in counts {
            _ = writeln!(out, "{}: {count}", state.name());
        }
        out.push_str(&reasons);
        Some(out)
    }

    /// The rows of `/status/services`: name, state, failure; sorted by name.
    pub(crate) fn rows(&self) -> Vec<[String; 3]> {
        self.lock().iter().map(|(name, (state, why))| [name.clone(), state.name().to_owned(), why.clone()]).collect()
    }
}

/// Told to a service when it should end.
#[derive(Clone, Debug)]
pub(crate) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A switch and what listens to it.
    pub(crate) fn new() -> (watch::Sender<bool>, Shutdown) {
        let (sender, receiver) = watch::channel(false);
        (sender, Shutdown(receiver))
    }

    /// Waits until the switch is thrown, or gone.
    pub(crate) async fn wait(&mut self) {
        // An error means that the switch is gone: nobody could throw it any more.
        _ = self.0.wait_for(|thrown| *thrown).await;
    }

    /// Whether the switch was thrown.
    pub(crate) fn is_thrown(&self) -> bool {
        *self.0.borrow()
    }
}

/// A table of text with borders.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..head.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).chain([head[column].chars().count()]).max().unwrap_or(0))
        .collect();
    let rule = || widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("+");
    let line = |cells: &[&str]| {
        let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:width$} ")).collect();
        format!("|{}|\n", cells.join("|"))
    };
    let mut out = format!("+{}+\n{}+{}+\n", rule(), line(head), rule());
    for row in rows {
        out.push_str(&line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    _ = writeln!(out, "+{}+", rule());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_by_state() {
        let services = Services::default();
        assert_eq!(services.not_running(), None);
        services.set("server", State::Running);
        services.set("wal", State::Starting);
        services.set("dataflow", State::Starting);
        assert_eq!(services.not_running().as_deref(), Some("Some services are not Running:\nStarting: 2\nRunning: 1\n"));
        services.wait("wal", "no disk yet");
        assert_eq!(services.not_running().as_deref(), Some("Some services are not Running:\nStarting: 2\nRunning: 1\nwal: no disk yet\n"));
        services.set("wal", State::Running);
        services.set("dataflow", State::Running);
        assert_eq!(services.not_running(), None);
        services.fail("wal", "disk on fire");
        services.set("wal", State::Terminated);
        assert_eq!(services.rows()[2], ["wal", "Failed", "disk on fire"]);
    }

    #[test]
    fn tables() {
        let text = table(&["a", "bb"], &[vec!["long".to_owned(), "x".to_owned()]]);
        assert_eq!(text, "+------+----+\n| a    | bb |\n+------+----+\n| long | x  |\n+------+----+\n");
    }
}
