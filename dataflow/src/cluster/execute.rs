//! Running a formation: timely's allocators and threads, from the first worker to the last socket.
//!
//! What [`timely::execute::execute_from`] does, with an end for everything that may go wrong. The order of the end is what keeps every
//! thread from panicking:
//!
//! 1. the generation is lost, or the workers return by themselves;
//! 2. each worker returns, drops its dataflows, then its queues, on its own thread and not while a panic unwinds it;
//! 3. when all are out, the connections are told ([`Lost`]) and closed, so that timely's threads end in peace ([`super::stream`]);
//! 4. those threads are joined.
//!
//! A worker that does not return is stuck in an operator, and its process cannot take part in anything any more: it is given up
//! ([`Options::when_stuck`]).

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use timely::{
    WorkerConfig,
    communication::{
        Hooks,
        allocator::{
            Allocator, ProcessBuilder,
            zero_copy::{
                allocator::TcpBuilder,
                initialize::{CommsGuard, initialize_networking_from_sockets},
            },
        },
    },
    worker::Worker,
};

use super::{Cause, Formation, GenStream, Lost, lost::End};

/// How long a worker that goes on after its closure returned sleeps at most before it looks whether the generation is lost.
const PARK: Duration = Duration::from_millis(5);

/// How a formation is run.
#[derive(Clone)]
pub struct Options {
    /// Timely's own settings.
    pub worker: WorkerConfig,
    /// How long workers may take to return once the generation is lost.
    pub patience: Duration,
    /// What then happens; by default the process is aborted. If it returns, the wait begins again.
    pub when_stuck: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { worker: WorkerConfig::default(), patience: Duration::from_secs(5), when_stuck: Arc::new(|| std::process::abort()) }
    }
}

/// No thread or connection to be had from the operating system.
#[derive(Debug, thiserror::Error)]
#[error("workers of epoch {epoch} cannot be started")]
pub struct StartError {
    epoch: String,
    #[source]
    source: std::io::Error,
}

/// A formation whose workers run. Dropping it ends them as [`Running::stop`] and [`Running::join`] do.
#[derive(Debug)]
pub struct Running<T> {
    workers: Vec<JoinHandle<Result<T, String>>>,
    connections: Connections,
    lost: Lost,
    options: Options,
    _end: End,
}

/// Sockets and the threads that use them.
struct Connections {
    sockets: Vec<GenStream>,
    threads: Option<CommsGuard>,
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// What became of a generation in this process.
#[derive(Debug)]
pub struct Ended<T> {
    /// What each worker's closure returned, or what its panic said.
    pub results: Vec<Result<T, String>>,
    /// Why it is over.
    pub cause: Cause,
    /// From the loss until nothing of it was left.
    pub took: Duration,
}

/// Runs a formation to its end: [`start`] and [`Running::join`].
///
/// # Errors
/// See [`start`].
pub fn execute<T: Send + 'static>(
    formation: Formation,
    options: Options,
    work: impl Fn(&mut Worker) -> T + Send + Sync + 'static,
) -> Result<Ended<T>, StartError> {
    Ok(start(formation, options, work)?.join())
}

/// Starts the workers of a formation, each with `work` on a thread of its own. `work` builds the dataflow and steps the worker until
/// [`Lost::is_set`]; if it returns before, its dataflows go on until they are complete or the generation is lost. A panic in it ends the
/// generation, everywhere.
///
/// # Errors
/// No thread to be had; the formation is over.
pub fn start<T: Send + 'static>(
    mut formation: Formation,
    options: Options,
    work: impl Fn(&mut Worker) -> T + Send + Sync + 'static,
) -> Result<Running<T>, StartError> {
    let epoch = formation.epoch.to_string();
    let failed = |source| StartError { epoch: epoch.clone(), source };
    let (lost, work) = (formation.lost.clone(), Arc::new(work));
    // Threads first: one that the operating system refuses must not leave timely's threads waiting for a worker that never comes.
    let mut builders = Vec::with_capacity(formation.threads);
    let mut workers = Vec::with_capacity(formation.threads);
    for index in 0..formation.threads {
        let (sender, builder) = mpsc::channel();
        let (lost, work, config) = (lost.clone(), Arc::clone(&work), options.worker.clone());
        let global = formation.index * formation.threads + index;
        let body = move || match builder.recv() {
            Ok(builder) => run(global, builder, config, &lost, &*work),
            Err(mpsc::RecvError) => Err("other threads could not be started".to_owned()),
        };
        workers.push(thread::Builder::new().name(format!("timely-{index}")).spawn(body).map_err(failed)?);
        builders.push(sender);
    }
    let hooks = Hooks::default();
    let process = ProcessBuilder::new_typed_vector(formation.threads, hooks.refill.clone(), hooks.spill.clone());
    let sockets: Vec<_> = formation.streams.iter().flatten().map(GenStream::handle).collect();
    let (allocators, threads): (Vec<_>, _) = if sockets.is_empty() {
        (process.into_iter().map(Builder::Alone).collect(), None)
    } else {
        let streams = std::mem::take(&mut formation.streams);
        let (builders, guard) =
            initialize_networking_from_sockets(process, streams, formation.index, formation.threads, hooks).map_err(failed)?;
        (builders.into_iter().map(Builder::Connected).collect(), Some(guard))
    };
    for (sender, allocator) in builders.into_iter().zip(allocators) {
        lost.worker_begins();
        if sender.send(allocator).is_err() {
            // Its thread waits for this, so it cannot be gone.
            lost.worker_ends();
        }
    }
    Ok(Running { workers, connections: Connections { sockets, threads }, lost, options, _end: formation.end })
}

impl<T> Running<T> {
    /// Tells when the generation is over.
    pub fn lost(&self) -> &Lost {
        &self.lost
    }

    /// The workers' threads, in order, to be woken after something was put where they look.
    pub fn threads(&self) -> Vec<Thread> {
        self.workers.iter().map(|worker| worker.thread().clone()).collect()
    }

    /// Has the workers return.
    pub fn stop(&self, cause: Cause) {
        self.lost.set(cause);
    }

    /// Waits until the generation is over and nothing of it is left.
    pub fn join(mut self) -> Ended<T> {
        let results = self.finish();
        let took = self.lost.since().map_or(Duration::ZERO, |since| since.elapsed());
        Ended { results, cause: self.lost.cause().unwrap_or(Cause::Done), took }
    }

    fn finish(&mut self) -> Vec<Result<T, String>> {
        while !self.lost.wait_for_workers(self.options.patience) {
            let cause = self.lost.cause().map(|cause| cause.to_string()).unwrap_or_default();
            tracing::error!(cause, "dataflow worker is stuck in an operator, the process gives up");
            (self.options.when_stuck)();
        }
        let results = self.workers.drain(..).map(|worker| worker.join().unwrap_or_else(|panic| Err(panic_text(panic.as_ref()))));
        let results = results.collect();
        self.lost.workers_gone();
        self.connections.close();
        results
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if !self.workers.is_empty() {
            self.lost.set(Cause::Stop);
            self.finish();
        }
    }
}

impl Connections {
    fn close(&mut self) {
        self.sockets.iter().for_each(GenStream::close);
        // Joins threads, and panics if one of them has.
        let threads = self.threads.take();
        if catch_unwind(AssertUnwindSafe(|| drop(threads))).is_err() {
            tracing::error!("a communication thread of the dataflow panicked");
        }
        self.sockets.clear();
    }
}

/// Timely's allocators, which are built on the thread that uses them.
enum Builder {
    Alone(ProcessBuilder),
    Connected(TcpBuilder),
}

/// One worker's life. Nothing of the worker is left when it returns.
fn run<T>(
    index: usize,
    builder: Builder,
    config: WorkerConfig,
    lost: &Lost,
    work: &(impl Fn(&mut Worker) -> T + ?Sized),
) -> Result<T, String> {
    /// Says that the worker is out, even if dropping it panicked.
    struct Out<'a>(&'a Lost);
    impl Drop for Out<'_> {
        fn drop(&mut self) {
            self.0.worker_ends();
        }
    }
    let _out = Out(lost);
    lost.wake(thread::current());
    let life = || {
        let allocator = match builder {
            Builder::Alone(builder) => Allocator::Process(builder.build()),
            Builder::Connected(builder) => Allocator::Tcp(builder.build()),
        };
        let mut worker = Worker::new(config, allocator, Some(std::time::Instant::now()));
        let result = guarded(index, lost, || {
            let result = work(&mut worker);
            while !lost.is_set() && worker.has_dataflows() {
                worker.step_or_park(Some(PARK));
            }
            result
        });
        // Operators may panic once more while they are dropped; the worker itself must not be dropped by that panic.
        let _ = guarded(index, lost, || worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow)));
        result
    };
    guarded(index, lost, life)?
}

/// Calls `body`; a panic ends the generation.
fn guarded<T>(index: usize, lost: &Lost, body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let message = panic_text(panic.as_ref());
        tracing::error!(worker = index, message, "dataflow worker panicked, the generation ends");
        lost.set(Cause::Panic { worker: index, message: message.clone() });
        message
    })
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without words".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use timely::dataflow::{
        InputHandleVec, ProbeHandle,
        operators::{Exchange, Inspect, Probe, vec::Input},
    };

    use super::*;
    use crate::cluster::{Epoch, Role};

    const THREADS: usize = 2;

    fn member(id: &str) -> crate::cluster::Member {
        crate::cluster::Candidate { id: id.to_owned(), incarnation: 1, address: ([127, 0, 0, 1], 1).into(), role: Role::Ingester }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
        let dialled = TcpStream::connect(listener.local_addr().expect("has an address")).expect("connects");
        (dialled, listener.accept().expect("accepts").0)
    }

    /// Two processes between which the connection is cut after so many bytes of what the second says.
    fn cut_after(cut: usize) -> [Formation; 2] {
        let ((first, mut to_first), (mut from_second, second)) = (pair(), pair());
        let (mut forth_from, mut forth_to) = (to_first.try_clone().expect("clones"), from_second.try_clone().expect("clones"));
        thread::spawn(move || std::io::copy(&mut forth_from, &mut forth_to));
        thread::spawn(move || {
            let mut left = cut;
            let mut buffer = [0; 4096];
            while left > 0 {
                let room = left.min(buffer.len());
                let Ok(read @ 1..) = from_second.read(&mut buffer[..room]) else { break };
                if to_first.write_all(&buffer[..read]).is_err() {
                    break;
                }
                left -= read;
            }
            let _ = to_first.shutdown(std::net::Shutdown::Both);
            let _ = from_second.shutdown(std::net::Shutdown::Both);
        });
        let members = vec![member("a"), member("b")];
        let epoch = Epoch { counter: 1, leader: "a".into() };
        let formation = |index: usize, socket| {
            let lost = Lost::default();
            let stream = GenStream::new(socket, &members[1 - index].id, index, 1 - index, THREADS, lost.clone());
            let mut streams = vec![None, None];
            streams[1 - index] = Some(stream);
            Formation::new(epoch.clone(), index, members.clone(), THREADS, streams, lost, "start")
        };
        [formation(0, first), formation(1, second)]
    }

    #[test]
    fn a_connection_cut_anywhere_ends_a_working_generation_in_peace() {
        let seen = Arc::new(AtomicUsize::new(0));
        for cut in 0..1500 {
            let running = cut_after(cut).map(|formation| {
                let (lost, seen) = (formation.lost.clone(), Arc::clone(&seen));
                start(formation, Options::default(), move |worker| {
                    let (probe, seen) = (ProbeHandle::new(), Arc::clone(&seen));
                    let mut input = worker.dataflow::<u64, _, _>(|scope| {
                        let (input, words): (InputHandleVec<u64, String>, _) = Input::new_input(&scope);
                        words
                            .exchange(|word| word.len() as u64)
                            .inspect(move |word| {
                                // Made-up zeros would not be words.
                                assert!(word.bytes().all(|byte| byte == b'w') && !word.is_empty());
                                seen.fetch_add(1, Ordering::Relaxed);
                            })
                            .probe_with(&probe);
                        input
                    });
                    for tick in 0.. {
                        if lost.is_set() {
                            break;
                        }
                        (1..8).for_each(|length| input.send("w".repeat(length * 3)));
                        input.advance_to(tick + 1);
                        while !lost.is_set() && probe.less_than(&tick) {
                            worker.step_or_park(Some(PARK));
                        }
                    }
                })
                .expect("starts")
            });
            for running in running {
                let ended = running.join();
                assert!(ended.results.iter().all(Result::is_ok), "cut at {cut}: {:?}", ended.results);
                assert!(matches!(ended.cause, Cause::Peer { .. }), "cut at {cut}: {}", ended.cause);
            }
        }
        assert!(seen.load(Ordering::Relaxed) > 10_000, "words were exchanged before the cuts");
    }
}
