//! The processes that take spans in, as a querier asks them.
//!
//! ```text
//!  job ─► every address that is known ─► answers, each with (epoch, index, processes)
//!                                          ├─ all indices of one epoch           ─► everything: joined
//!                                          ├─ an index is missing, or two epochs ─► asked again, all of them
//!                                          └─ still so after a while             ─► what there is, said to be incomplete
//! ```
//!
//! Each runs the job on what it has. Processes that work together have shared the traces out among themselves, anew in each epoch, so that the
//! answers of all processes of one epoch are everything there is, whoever else could not be reached, and answers of two epochs must never be
//! put together: a trace would be in both, or in neither. While processes come and go there is a moment without a complete epoch; it passes.
//!
//! One that hangs is waited for, since its answer may be a large one; meanwhile those who have answered are asked again, for they may have begun a new
//! epoch without it.
//!
//! An epoch may lack an ingester: one that was killed, or is cut off. That costs nothing as long as the others have a copy of everything that was
//! acknowledged, which the ring knows; where they may not, the epoch is not complete, however many of its processes answer.
//!
//! Processes that work alone have what nobody else has, so all of them must answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};
use storage::{id::Tenant, recent::Coverage, ring::Rings, tls::Connector};

use super::addresses::{Addresses, cause, channel};
use crate::{
    engine::{QueryError, RecentError},
    job::{Answer, Job, QueryId, Runner, decode_outcome},
    proto::rubato::{RecentJob, recent_client::RecentClient},
};

type Client = RecentClient<tonic::transport::Channel>;

/// How long processes are asked again before an answer is called incomplete.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long nobody answers until those are asked again who have; then twice that, and so on.
const SILENCE: Duration = Duration::from_secs(1);

/// Shortest and longest time between two times of asking.
const WAITS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// See the module documentation.
#[derive(Debug)]
pub struct Ingesters {
    addresses: Addresses,
    connector: Connector,
    /// Where copies are, if that is known.
    rings: Option<Rings>,
    max_message_bytes: usize,
    patience: Duration,
    known: Mutex<BTreeMap<String, Client>>,
    clients: IntGauge,
    asked: IntCounterVec,
}

impl Ingesters {
    /// The processes at these addresses. Messages may be as large as `max_message_bytes`.
    ///
    /// # Errors
    /// A metric of the same name is registered already.
    pub fn new(addresses: Addresses, max_message_bytes: usize, registry: &Registry) -> prometheus::Result<Self> {
        let clients = IntGauge::new("tempo_querier_livestore_clients", "Processes that are asked for recent data.")?;
        let asked = Opts::new(
            "rubato_querier_recent_answers_total",
            "Times that all processes were asked for recent data, by what came of it: complete, again or incomplete.",
        );
        let asked = IntCounterVec::new(asked, &["result"])?;
        registry.register(Box::new(clients.clone()))?;
        registry.register(Box::new(asked.clone()))?;
        let (connector, known) = (Connector::default(), Mutex::default());
        Ok(Self { addresses, connector, rings: None, max_message_bytes, patience: PATIENCE, known, clients, asked })
    }

    /// The same, connected to by `connector` instead of in the clear.
    #[must_use]
    pub fn with_connector(self, connector: Connector) -> Self {
        Self { connector, ..self }
    }

    /// Says who has copies of what: answers that may lack something that was acknowledged are incomplete then.
    #[must_use]
    pub fn with_rings(self, rings: Rings) -> Self {
        Self { rings: Some(rings), ..self }
    }

    /// One client for each address.
    async fn clients(&self) -> Vec<(String, Client)> {
        let mut addresses = self.addresses.clone();
        // They may be found out just now.
        let some = tokio::time::timeout(self.patience, addresses.wait_for(|addresses| !addresses.is_empty())).await;
        let wanted: BTreeSet<String> = match some {
            Ok(Ok(addresses)) => addresses.iter().cloned().collect(),
            // Whoever found them out has gone, and none is known.
            Ok(Err(_)) | Err(_) => BTreeSet::new(),
        };
        let mut known = self.known.lock();
        known.retain(|address, _| wanted.contains(address));
        for address in wanted {
            if known.contains_key(&address) {
                continue;
            }
            match channel(&address, &self.connector) {
                Ok(channel) => {
                    let client = RecentClient::new(channel)
                        .max_decoding_message_size(self.max_message_bytes)
                        .max_encoding_message_size(self.max_message_bytes);
                    known.insert(address, client);
                }
                Err(error) => tracing::warn!(address, %error, "not an address"),
            }
        }
        self.clients.set(i64::try_from(known.len()).unwrap_or(0));
        known.iter().map(|(address, client)| (address.clone(), client.clone())).collect()
    }

    /// Asks everybody once, until there is a complete epoch.
    async fn ask(&self, request: &RecentJob) -> Result<Round, QueryError> {
        let ask = |(address, mut client): (String, Client)| async move {
            let again = client.clone();
            let outcome = match client.run(request.clone()).await {
                Ok(answer) => decode_outcome(&answer.into_inner().outcome),
                Err(status) => Err(RecentError { cause: cause(&status) }.into()),
            };
            (address, again, outcome)
        };
        let clients = self.clients().await;
        let mut round = Round { rings: self.rings.clone(), ..Round::default() };
        if clients.is_empty() {
            round.missing.push("no address of a process that takes spans in is known".to_owned());
        }
        let mut asked: FuturesUnordered<_> = clients.into_iter().map(ask).collect();
        let (mut answered, mut silence) = (Vec::new(), SILENCE);
        loop {
            let next = tokio::select! {
                next = asked.next() => next,
                () = tokio::time::sleep(silence), if !answered.is_empty() => {
                    silence *= 2;
                    asked.extend(answered.drain(..).map(ask));
                    continue;
                }
            };
            let Some((address, client, outcome)) = next else { break };
            match outcome {
                Ok(answer) => {
                    round.add(address.clone(), answer);
                    answered.push((address, client));
                }
                Err(error) if error.is_retryable() => round.missing.push(format!("{address}: {error}")),
                // It would be the same anywhere.
                Err(error) => return Err(error),
            }
            if round.complete_epoch().is_some() && round.alone.is_empty() {
                // Whoever has not answered has nothing of this epoch.
                break;
            }
        }
        Ok(round)
    }
}

#[async_trait]
impl Runner for Ingesters {
    async fn run(&self, _query: QueryId, tenant: &Tenant, job: Job) -> Result<Answer, QueryError> {
        let request = RecentJob { tenant: tenant.as_str().to_owned(), job: job.encode() };
        let (began, mut wait) = (Instant::now(), WAITS.0);
        loop {
            let round = self.ask(&request).await?;
            if round.is_complete() {
                self.asked.with_label_values(&["complete"]).inc();
            } else if began.elapsed() + wait < self.patience {
                self.asked.with_label_values(&["again"]).inc();
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(WAITS.1);
                continue;
            } else {
                self.asked.with_label_values(&["incomplete"]).inc();
                tracing::warn!(tenant = tenant.as_str(), why = round.why(), "answer about recent data is incomplete");
            }
            return round.join();
        }
    }
}

/// What came of asking everybody once.
#[derive(Debug, Default)]
struct Round {
    /// Where copies are, if that is known.
    rings: Option<Rings>,
    /// Answers of processes that work together, by epoch and number. A process that has two addresses answers twice, and counts once.
    epochs: BTreeMap<u64, Epoch>,
    /// Answers of those that work alone.
    alone: Vec<Answer>,
    /// Who did not answer, and why.
    missing: Vec<String>,
}

#[derive(Debug, Default)]
struct Epoch {
    processes: u32,
    answers: BTreeMap<u32, Answer>,
    /// Who gave them.
    addresses: BTreeSet<String>,
}

impl Epoch {
    fn is_complete(&self) -> bool {
        self.missing() == 0
    }

    fn missing(&self) -> u32 {
        self.processes.saturating_sub(u32::try_from(self.answers.len()).unwrap_or(u32::MAX))
    }
}

impl Round {
    fn add(&mut self, address: String, answer: Answer) {
        let Coverage { epoch, index, processes } = answer.recent().map(|recent| recent.coverage).unwrap_or_default();
        if epoch == Coverage::ALONE.epoch {
            self.alone.push(answer);
        } else if index < processes {
            let known = self.epochs.entry(epoch).or_default();
            known.processes = processes;
            known.answers.insert(index, answer);
            known.addresses.insert(address);
        }
    }

    fn complete_epoch(&self) -> Option<u64> {
        let is_complete = |epoch: &Epoch| epoch.is_complete() && self.has_copies(epoch);
        self.epochs.iter().rev().find(|(_, epoch)| is_complete(epoch)).map(|(number, _)| *number)
    }

    /// Whether its processes have a copy of everything that was acknowledged.
    fn has_copies(&self, epoch: &Epoch) -> bool {
        let is_covered = |rings: &Rings| rings.borrow().is_covered(|instance| epoch.addresses.contains(&instance.addr));
        self.rings.as_ref().is_none_or(is_covered)
    }

    fn is_complete(&self) -> bool {
        self.complete_epoch().is_some() || self.epochs.is_empty() && self.missing.is_empty()
    }

    /// What is missing, for people.
    fn why(&self) -> String {
        let epochs = self.epochs.iter().map(|(number, epoch)| {
            if epoch.is_complete() {
                format!("the {} processes of epoch {number} may lack what others of the ring have", epoch.processes)
            } else {
                format!("{} of {} processes of epoch {number} did not answer", epoch.missing(), epoch.processes)
            }
        });
        epochs.chain(self.missing.iter().cloned()).collect::<Vec<_>>().join("; ")
    }

    /// The answer: of a complete epoch if there is one, else of the one of which most is there, the newest of several.
    fn join(mut self) -> Result<Answer, QueryError> {
        let (is_complete, why) = (self.is_complete(), self.why());
        let best =
            self.epochs.iter().min_by_key(|(number, epoch)| (epoch.missing(), std::cmp::Reverse(**number))).map(|(number, _)| *number);
        let best = self.complete_epoch().or(best).and_then(|number| self.epochs.remove(&number));
        let answers = best.into_iter().flat_map(|epoch| epoch.answers.into_values()).chain(self.alone);
        let joined = answers.reduce(|mut all, answer| {
            all.join(answer);
            all
        });
        let mut answer = joined.ok_or(RecentError { cause: why })?;
        if !is_complete {
            answer.lacks_recent();
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::SocketAddr,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use storage::{
        id::TraceId,
        ring::{self, Instance, Ring, State},
    };
    use tokio::{net::TcpListener, sync::watch};

    use super::*;
    use crate::{
        job::{Recency, TagsAnswer, TraceJob},
        querier::RecentService,
    };

    /// A process that answers with the next of its coverages, the last of them for ever; `None` fails, and an index that no process has hangs.
    #[derive(Debug)]
    struct Process {
        name: &'static str,
        coverages: Vec<Said>,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Runner for Process {
        async fn run(&self, _query: QueryId, _tenant: &Tenant, _job: Job) -> Result<Answer, QueryError> {
            let at = self.asked.fetch_add(1, Ordering::SeqCst).min(self.coverages.len() - 1);
            let Some((epoch, index, processes)) = self.coverages[at] else {
                return Err(RecentError { cause: "the dataflow is re-forming".to_owned() }.into());
            };
            if index > processes {
                std::future::pending::<()>().await;
            }
            let recent = Recency { coverage: Coverage { epoch, index, processes }, ..Recency::default() };
            // Which moment it is about is seen in the answer.
            Ok(Answer::Tags(TagsAnswer { found: vec![("span", format!("{}@{epoch}", self.name))], recent, ..TagsAnswer::default() }))
        }
    }

    async fn serve(process: Process) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let service = RecentService::new(Arc::new(process)).into_server(1 << 20, 1 << 20);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        address
    }

    /// Epoch, number and processes of an answer.
    type Said = Option<(u64, u32, u32)>;

    /// What processes say together, sorted, and whether it is said to be incomplete.
    async fn ask(processes: &[(&'static str, &[Said])], patience: Duration) -> Result<(Vec<String>, bool), QueryError> {
        ask_with(processes, patience, None).await
    }

    /// The same where each of them is in a ring, one that does not run besides, with so many copies of everything.
    async fn ask_with(
        processes: &[(&'static str, &[Said])],
        patience: Duration,
        copies: Option<usize>,
    ) -> Result<(Vec<String>, bool), QueryError> {
        let mut addresses = Vec::new();
        for (name, coverages) in processes {
            let process = Process { name, coverages: coverages.to_vec(), asked: AtomicUsize::new(0) };
            addresses.push(serve(process).await.to_string());
        }
        let (sender, known) = watch::channel(Arc::from([]));
        let ingesters = Ingesters { patience, ..Ingesters::new(known, 1 << 20, &Registry::new()).expect("an empty registry") };
        let ingesters = match copies {
            Some(replication_factor) => {
                let of = |(number, addr): (u32, &str)| {
                    let (id, addr, tokens) = (format!("ingester-{number}"), addr.to_owned(), vec![number]);
                    Instance { id, addr, tokens, state: State::Active, ..Instance::default() }
                };
                let all = addresses.iter().map(String::as_str).chain(["127.0.0.1:1"]);
                let ring = Ring::new((0..).zip(all).map(of), ring::Settings { replication_factor, ..ring::Settings::default() });
                ingesters.with_rings(watch::channel(Arc::new(ring)).1)
            }
            None => ingesters,
        };
        // They become known while somebody asks.
        let tell = async {
            tokio::task::yield_now().await;
            sender.send_replace(addresses.into());
        };
        let job = Job::Trace(TraceJob { id: TraceId([1; 16]), blocks: None, max_bytes: 0 });
        let tenant = Tenant::single();
        let (answer, ()) = tokio::join!(ingesters.run(QueryId::new(), &tenant, job), tell);
        let Answer::Tags(answer) = answer? else { panic!("tags") };
        let mut found: Vec<_> = answer.found.into_iter().map(|(_, text)| text).collect();
        found.sort_unstable();
        Ok((found, answer.recent.incomplete))
    }

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn all_processes_of_an_epoch_are_everything() {
        let (a, b, c) = (Some((7, 0, 3)), Some((7, 1, 3)), Some((7, 2, 3)));
        let answer = ask(&[("a", &[a]), ("b", &[b]), ("c", &[c])], LONG).await.expect("an answer");
        assert_eq!(answer, (vec!["a@7".to_owned(), "b@7".to_owned(), "c@7".to_owned()], false));
        // One that is gone for good, and one that is known by two addresses.
        let answer = ask(&[("a", &[a]), ("b", &[b]), ("c", &[c]), ("gone", &[None]), ("c", &[c])], LONG).await.expect("an answer");
        assert_eq!(answer, (vec!["a@7".to_owned(), "b@7".to_owned(), "c@7".to_owned()], false));
    }

    #[tokio::test]
    async fn answers_of_two_epochs_are_never_put_together() {
        // The third begins later, and then all are in the new epoch.
        let (a, b, c) = ([Some((7, 0, 2)), Some((8, 0, 3))], [None, Some((8, 1, 3))], [Some((8, 2, 3))]);
        let answer = ask(&[("a", &a), ("b", &b), ("c", &c)], LONG).await.expect("an answer");
        assert_eq!(answer, (vec!["a@8".to_owned(), "b@8".to_owned(), "c@8".to_owned()], false));
        // They never agree: what is said is of one epoch, and said to be incomplete.
        let answer =
            ask(&[("a", &[Some((7, 0, 2))]), ("b", &[Some((8, 1, 3))]), ("c", &[Some((8, 2, 3))])], SHORT).await.expect("an answer");
        assert_eq!(answer, (vec!["b@8".to_owned(), "c@8".to_owned()], true));
    }

    #[tokio::test]
    async fn an_epoch_without_one_is_everything_as_long_as_the_others_have_copies() {
        let (a, b) = (Some((7, 0, 2)), Some((7, 1, 2)));
        let two = vec!["a@7".to_owned(), "b@7".to_owned()];
        for (copies, is_incomplete) in [(1, true), (2, false), (3, false)] {
            let patience = if is_incomplete { SHORT } else { LONG };
            let answer = ask_with(&[("a", &[a]), ("b", &[b])], patience, Some(copies)).await.expect("an answer");
            assert_eq!(answer, (two.clone(), is_incomplete), "{copies} copies");
        }
        // Two are missing: what was acknowledged by those two may be nowhere else.
        let answer = ask_with(&[("a", &[Some((7, 0, 1))]), ("b", &[None])], SHORT, Some(3)).await.expect("an answer");
        assert_eq!(answer, (vec!["a@7".to_owned()], true));
    }

    #[tokio::test]
    async fn who_hangs_holds_nobody_up_once_the_others_are_in_a_new_epoch() {
        let hangs = Some((7, 9, 3));
        let (a, b) = ([Some((7, 0, 3)), Some((8, 0, 2))], [Some((7, 1, 3)), Some((8, 1, 2))]);
        let answer = ask_with(&[("a", &a), ("b", &b), ("c", &[hangs])], LONG, None).await.expect("an answer");
        assert_eq!(answer, (vec!["a@8".to_owned(), "b@8".to_owned()], false));
    }

    #[tokio::test]
    async fn whoever_works_alone_must_answer() {
        let alone = Some((0, 0, 1));
        let answer = ask(&[("a", &[alone]), ("b", &[None, None, alone])], LONG).await.expect("an answer");
        assert_eq!(answer, (vec!["a@0".to_owned(), "b@0".to_owned()], false));
        let answer = ask(&[("a", &[alone]), ("b", &[None])], SHORT).await.expect("an answer");
        assert_eq!(answer, (vec!["a@0".to_owned()], true));
    }

    #[tokio::test]
    async fn nobody_is_an_error() {
        let error = ask(&[("a", &[None])], SHORT).await.expect_err("nobody answers");
        assert!(error.is_retryable() && error.to_string().contains("the dataflow is re-forming"), "{error}");
        let error = ask(&[], SHORT).await.expect_err("nobody is there");
        assert!(error.to_string().contains("no address"), "{error}");
    }
}
