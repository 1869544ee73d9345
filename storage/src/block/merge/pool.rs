//! The threads of one merge, which live as long as it does.
//!
//! ```text
//!  merge ─ Pool::run ─ job ─► first thread: Crew ─ errand ─► other threads
//!        ◄──────── chunks ──┘ own Worker        ◄─ results ─┘ a Worker each
//! ```
//!
//! What a leaf takes in memory is freed before the next leaf takes as much, by the thread that took it. An allocator gives it to the next
//! leaf only if the thread is the same: with new threads for every row group each of them starts with memory of its own, and what the one
//! before left is still resident.
//!
//! Nothing waits in a queue: a merge encodes one row group at a time, and an errand goes to a thread that has none.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tokio::sync::oneshot;

use super::{
    group::{Encoded, Job},
    leaves::{Failure, Worker},
    roles::Roles,
};

/// A row group to be encoded, and where it goes.
type Order = (Arc<Job>, oneshot::Sender<Result<Encoded, Failure>>);

/// A part of a row group.
type Errand = Box<dyn FnOnce(&mut Worker) + Send>;

/// The threads of a merge. They end when it is dropped, after the row group that they are at.
#[derive(Debug)]
pub(super) struct Pool {
    orders: mpsc::Sender<Order>,
}

/// The first thread's worker, and the way to the others.
pub(super) struct Crew {
    pub(super) own: Worker,
    others: Vec<mpsc::Sender<Errand>>,
}

impl Pool {
    /// Starts threads: at least one. Each keeps arrays of so many bytes from leaf to leaf, at most.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start(threads: usize, kept: usize) -> Result<Self, Failure> {
        let mut others = Vec::new();
        for _ in 1..threads {
            let mut worker = Worker::new(kept);
            others.push(serve(move |errand: Errand| errand(&mut worker))?);
        }
        let mut crew = Crew { own: Worker::new(kept), others };
        let orders = serve(move |(job, done): Order| {
            let result = job.run(&mut crew);
            drop(job);
            // Nobody waits any more if the merge was given up.
            let _ = done.send(result);
        })?;
        Ok(Self { orders })
    }

    /// Encodes a row group; none if a thread panicked.
    pub(super) async fn run(&self, job: Arc<Job>) -> Option<Result<Encoded, Failure>> {
        let (done, result) = oneshot::channel();
        self.orders.send((job, done)).ok()?;
        result.await.ok()
    }
}

/// Starts a thread that works for as long as somebody can send it something.
fn serve<T: Send + 'static>(mut work: impl FnMut(T) + Send + 'static) -> Result<mpsc::Sender<T>, Failure> {
    let (sender, receiver) = mpsc::channel();
    let serve = move || receiver.into_iter().for_each(&mut work);
    thread::Builder::new().name("merge".to_owned()).spawn(serve).map_err(Failure::Thread)?;
    Ok(sender)
}

impl Crew {
    /// Runs `work` for every leaf, on all threads. The results are in the order of the leaves.
    ///
    /// # Errors
    /// What `work` failed with; the leaves that nobody has begun are left out then.
    pub(super) fn for_leaves<T: Send + 'static>(
        &mut self,
        roles: &Roles,
        work: impl Fn(&mut Worker, usize) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<Vec<T>, Failure> {
        // Leaves of one list one after the other: they share their levels.
        let mut order: Vec<usize> = (0..roles.schema.leaves.len()).collect();
        order.sort_by_key(|&leaf| roles.schema.leaves[leaf].list);
        let next = AtomicUsize::new(0);
        let run = Arc::new(move |worker: &mut Worker| {
            let mut done = Vec::new();
            while let Some(&leaf) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                match work(worker, leaf) {
                    Ok(result) => done.push((leaf, result)),
                    Err(failure) => {
                        next.store(order.len(), Ordering::Relaxed);
                        return Err(failure);
                    }
                }
            }
            worker.forget();
            Ok(done)
        });
        let (results, receiver) = mpsc::channel();
        for other in &self.others {
            let (run, results) = (Arc::clone(&run), results.clone());
            let errand = move |worker: &mut Worker| {
                let done = run(worker);
                // What it holds is to be freed before the next row group begins.
                drop(run);
                let _ = results.send(done);
            };
            // If the thread is gone, its result is missing below.
            let _ = other.send(Box::new(errand));
        }
        drop(results);
        let mut all = run(&mut self.own)?;
        drop(run);
        let mut others = 0;
        for done in receiver {
            all.extend(done?);
            others += 1;
        }
        assert!(others == self.others.len(), "a thread that merges panicked");
        all.sort_unstable_by_key(|(leaf, _)| *leaf);
        Ok(all.into_iter().map(|(_, result)| result).collect())
    }
}
