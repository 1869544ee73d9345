//! The steward: what a process does of what its generation has agreed. One task in each process.
//!
//! ```text
//!  letters ─► Keep ─────► what the ledger holds as of the tick ─► bucket ─► Kept (to the committer)
//!          ─► Committed ─► blocklist ─► snapshot of our series ─► workers drop their copies ─► our log releases files
//!          ─► Flush ─────► our log is taken in ─► Taken
//!          ─► Cut ───────► our workers cut everything ─► all of it is committed ─► Flushed
//! ```
//!
//! A flush has two rounds because a process cuts what others have fed: all logs are taken in before anybody cuts.
//!
//! A block is on the list before any worker of the process lets go of its traces, so that at every moment a span is in one of them.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    thread::Thread,
    time::Duration,
};

use storage::{
    blocklist::Blocklist,
    id::BlockId,
    wal::{Position, Wal},
};
use tokio::{
    sync::{mpsc as queue, oneshot},
    task::JoinSet,
};

use crate::{
    generator::checkpoint::{Contents, Keeper},
    ledger::Ledger,
    letters::{Committed, Json, Kept, Letter, Post, Word},
    manifest::ManifestStore,
    worker::{Request, Shared},
};

/// What a steward is told.
#[derive(Debug)]
pub(crate) enum Order {
    /// By another process, or this one.
    Letter(Letter),
    /// By this process: have everything cut, everywhere.
    Flush(oneshot::Sender<()>),
}

/// The workers of this process.
#[derive(Clone, Debug)]
pub(crate) struct Staff {
    pub(crate) senders: Vec<mpsc::Sender<Request>>,
    pub(crate) threads: Vec<Thread>,
}

impl Staff {
    fn wake(&self) {
        self.threads.iter().for_each(Thread::unpark);
    }

    /// For the first worker. Nothing happens if it is gone.
    pub(crate) fn tell_first(&self, request: Request) {
        let _ = self.senders.first().map(|sender| sender.send(request));
        let _ = self.threads.first().map(Thread::unpark);
    }

    /// Asks every worker; `None` if the generation ends meanwhile.
    pub(crate) async fn ask<T>(&self, request: impl Fn(oneshot::Sender<T>) -> Request) -> Option<Vec<T>> {
        let mut replies = Vec::with_capacity(self.senders.len());
        for sender in &self.senders {
            let (reply, answer) = oneshot::channel();
            sender.send(request(reply)).ok()?;
            replies.push(answer);
        }
        self.wake();
        futures::future::try_join_all(replies).await.ok()
    }
}

/// Where a generator's checkpoints come from and go to.
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) keeper: Keeper,
    /// The tick of the manifest that series were taken up from.
    pub(crate) recovered: Option<u64>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) manifests: ManifestStore,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Steward {
    pub(crate) post: Post,
    pub(crate) staff: Staff,
    pub(crate) shared: Arc<Shared>,
    /// The log that this process feeds.
    pub(crate) wal: Option<Wal>,
    pub(crate) blocklist: Blocklist,
    /// Where there is a generator.
    pub(crate) books: Option<Books>,
    /// In the process that commits: where answers go.
    pub(crate) answers: Option<queue::UnboundedSender<(usize, Result<Kept, String>)>>,
}

/// A flush that this process asked for, and how many processes have come how far with it.
struct Flush {
    taken: usize,
    flushed: usize,
    reply: oneshot::Sender<()>,
}

/// How often a flush looks whether the log has been taken in.
const APPLIED_POLL: Duration = Duration::from_millis(20);

impl Steward {
    /// Follows orders until the generation ends.
    pub(crate) async fn run(self, mut orders: queue::UnboundedReceiver<Order>) {
        let mut before: Option<Kept> = None;
        let mut contents = Contents::default();
        let mut flushes: HashMap<u64, Flush> = HashMap::new();
        let (mut next_flush, mut cutting) = (0, JoinSet::new());
        while let Some(order) = orders.recv().await {
            while cutting.try_join_next().is_some() {}
            match order {
                Order::Flush(reply) => {
                    next_flush += 1;
                    flushes.insert(next_flush, Flush { taken: 0, flushed: 0, reply });
                    self.post.send_all(&Word::Flush(next_flush));
                }
                Order::Letter(Letter { from, word, .. }) => match word {
                    Word::Keep { tick, sequence } => {
                        let kept = self.keep(tick, sequence, &mut before, &mut contents).await;
                        self.post.send(from, Word::Kept(kept));
                    }
                    Word::Kept(kept) => {
                        let _ = self.answers.as_ref().map(|answers| answers.send((from, kept)));
                    }
                    Word::Committed(Json(committed)) => self.committed(&committed, &contents),
                    Word::Flush(number) => {
                        let (shared, post) = (Arc::clone(&self.shared), self.post.clone());
                        let head = self.wal.as_ref().map_or_else(Position::default, |wal| *wal.head().borrow());
                        cutting.spawn(async move {
                            while shared.applied() < head {
                                tokio::time::sleep(APPLIED_POLL).await;
                            }
                            post.send(from, Word::Taken(number));
                        });
                    }
                    Word::Taken(number) => {
                        if let Some(Flush { taken, .. }) = flushes.get_mut(&number) {
                            *taken += 1;
                            if *taken == self.post.processes {
                                self.post.send_all(&Word::Cut(number));
                            }
                        }
                    }
                    Word::Cut(number) => {
                        let (staff, post) = (self.staff.clone(), self.post.clone());
                        cutting.spawn(async move {
                            if staff.ask(|reply| Request::Flush { reply }).await.is_some() {
                                post.send(from, Word::Flushed(number));
                            }
                        });
                    }
                    Word::Flushed(number) => {
                        if let Some(Flush { flushed, .. }) = flushes.get_mut(&number) {
                            *flushed += 1;
                            if *flushed == self.post.processes {
                                // Whoever asked may have gone.
                                let _ = flushes.remove(&number).map(|flush| flush.reply.send(()));
                            }
                        }
                    }
                    // The worker that receives letters has seen to them.
                    Word::Full(_) | Word::Replayed => {}
                },
            }
        }
    }

    /// Writes what our workers had come to as of the tick.
    async fn keep(&self, tick: u64, sequence: u64, before: &mut Option<Kept>, contents: &mut Contents) -> Result<Kept, String> {
        let Some(Books { keeper, ledger, manifests, .. }) = &self.books else { return Ok(Kept::default()) };
        let Some(generated) = ledger.take(tick) else { return Err(format!("nothing is known of tick {tick}")) };
        let kept = keeper.write(manifests, sequence, tick, &generated, before.as_ref()).await?;
        *contents = generated.contents;
        *before = Some(kept.clone());
        Ok(kept)
    }

    fn committed(&self, committed: &Committed, contents: &Contents) {
        for (meta, _) in committed.blocks.iter().filter(|(_, is_live)| *is_live) {
            self.blocklist.add(meta.clone());
        }
        if let Some(Books { keeper, recovered, .. }) = &self.books {
            keeper.publish(committed.sequence, committed.tick, *recovered, &contents.series);
        }
        let ids: Arc<[BlockId]> = committed.blocks.iter().map(|(meta, _)| meta.block_id).collect();
        for sender in &self.staff.senders {
            // A worker that is gone needs no news.
            let _ = sender.send(Request::Committed(Arc::clone(&ids)));
        }
        self.staff.wake();
        let held = self.wal.as_ref().and_then(|wal| Some((wal, committed.positions.get(&wal.id())?.held)));
        if let Some((wal, held)) = held
            && let Err(error) = wal.release(held)
        {
            tracing::warn!(%error, "write-ahead log files could not be released");
        }
    }
}
