//! The part of a process that meets the others: its listener, its connections, and the formations that come of them.
//!
//! ```text
//!            ┌───────────────── thread "mesh", one task each ─────────────────┐
//!  others ──►│ listener ─► serve ─ beats ──► council ◄── tick ── candidates   │
//!            │               └─ sockets ─► filed ─┐  │ form                   │
//!  others ◄──│ dial (beats) ◄── kick ─────────────┼──┤                        │
//!  others ◄──│ dial (generation) ◄────────────────┴─ gather ─► Formation ─────┼─► Cluster::next
//!            └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It has a thread of its own so that beats go out in time however busy the process is. Each process dials each other one for its beats,
//! and in a form the member with the higher index dials the lower. A socket for an epoch that this process has not heard of yet is filed:
//! the form comes in a moment, or the socket is dropped.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use parking_lot::{Condvar, Mutex};
use storage::tls::{Connection, Duplex, Peers};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Notify, Semaphore, mpsc, watch},
    task::AbortHandle,
};

use super::{
    Candidate, Cause, Epoch, Formation, GenStream, Lost, MAX_ID_BYTES, Metrics, Settings,
    council::Council,
    wire::{self, Beat, Form, Hello, within},
};

/// Connections that are answered at the same time, those that carry beats included.
const MAX_CONNECTIONS: usize = 1024;
/// Sockets that wait for their form.
const MAX_FILED: usize = 1024;
/// Connections with questions that wait for whoever answers them.
const MAX_ASKING: usize = 64;
/// How long a stopping process tries to say that it leaves.
const FAREWELL: Duration = Duration::from_millis(500);
/// Refused connections are logged at most this often.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// This process's place among those that run the dataflow. Dropping it stops it.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    me: Candidate,
    peers: Peers,
    metrics: Metrics,
    council: Mutex<Council>,
    slot: Mutex<Slot>,
    /// The slot has changed.
    ready: Condvar,
    /// Something has happened that the council should look at.
    noticed: Arc<Notify>,
    /// Something has happened that others should hear at once.
    kick: watch::Sender<()>,
    is_stopping: AtomicBool,
    /// Sockets of epochs, until their form takes them.
    filed: Mutex<Vec<Filed>>,
    has_filed: Notify,
    connections: AtomicU64,
    /// Connections that bring a question, for whoever answers.
    asking: Mutex<Option<mpsc::Sender<Connection>>>,
    last_refusal: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Slot {
    next: Option<Formation>,
    /// The end of the formation that was made last.
    current: Option<(Epoch, Lost)>,
    /// When the one before ended, and how: until the next is there.
    ended: Option<(Instant, Cause)>,
    is_stopped: bool,
}

#[derive(Debug)]
struct Filed {
    epoch: Epoch,
    id: String,
    incarnation: u64,
    socket: Connection,
    at: Instant,
}

impl Cluster {
    /// A process that is alone and will be: its formations are of one, begin at once, and cost nothing. `newest` is the counter of the
    /// newest manifest's epoch, or 0.
    pub fn alone(settings: Settings, me: Candidate, newest: u64, metrics: Metrics) -> Self {
        Self { shared: Arc::new(Shared::new(settings, me, newest, Peers::default(), metrics)), thread: Mutex::new(None) }
    }

    /// Joins the others. `candidates` is gossip's list, which must not forget a process merely because it is silent; this process need not
    /// be in it. Start it when gossip has heard of the others, or formations of one come first. `newest` is the counter of the newest
    /// manifest's epoch, or 0. All connections, in both directions, are those of `peers`.
    ///
    /// # Errors
    /// No thread, or no sockets to be had; a name of the process or the cluster that is empty or too long.
    pub fn start(
        settings: Settings,
        me: Candidate,
        newest: u64,
        listener: TcpListener,
        peers: Peers,
        candidates: watch::Receiver<Arc<[Candidate]>>,
        metrics: Metrics,
    ) -> io::Result<Self> {
        for name in [&me.id, &settings.cluster] {
            if name.len() > MAX_ID_BYTES || me.id.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("name {name:?} is empty or longer than {MAX_ID_BYTES} bytes"),
                ));
            }
        }
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared::new(settings, me, newest, peers, metrics));
        let thread = {
            let shared = Arc::clone(&shared);
            let body = move || {
                runtime.block_on(async {
                    match tokio::net::TcpListener::from_std(listener) {
                        Ok(listener) => shared.run(listener, candidates).await,
                        Err(error) => tracing::error!(%error, "mesh cannot listen"),
                    }
                });
            };
            thread::Builder::new().name("mesh".to_owned()).spawn(body)?
        };
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Connections over which other members ask something. Whoever calls this last gets them; while nobody does, they are refused.
    /// They are of use only as long as the mesh runs, whose thread watches over their sockets.
    pub(crate) fn asking(&self) -> mpsc::Receiver<Connection> {
        let (sender, receiver) = mpsc::channel(MAX_ASKING);
        *self.shared.asking.lock() = Some(sender);
        receiver
    }

    /// A connection over which a question can be asked.
    pub(crate) async fn ask(&self, member: &Candidate) -> Result<Connection, wire::WireError> {
        let asks = Hello { asks: true, ..self.shared.hello(&member.id, None) };
        within(self.shared.settings.handshake_timeout, self.shared.connect(member.address, &asks)).await
    }

    /// Waits for the next formation; `None` when it was stopped. Ask again when the one before is over and nothing of it is left. Blocks.
    pub fn next(&self) -> Option<Formation> {
        let mut slot = self.shared.slot.lock();
        loop {
            if slot.is_stopped {
                return None;
            }
            if let Some(formation) = slot.next.take() {
                return Some(formation);
            }
            if self.thread.lock().is_none() {
                return Some(self.shared.form_alone(&mut slot));
            }
            self.shared.ready.wait(&mut slot);
        }
    }

    /// A manifest with this counter, which is not of the present epoch, is there: nothing with this or a lower one can commit. Ends the
    /// generation if it is one of those.
    pub fn raise(&self, counter: u64) {
        self.shared.council.lock().raise(counter);
        let slot = self.shared.slot.lock();
        if let Some((epoch, lost)) = &slot.current
            && epoch.counter <= counter
        {
            lost.set(Cause::Failed { error: format!("a manifest of epoch {counter} is there") });
        }
        drop(slot);
        self.shared.noticed.notify_one();
    }

    /// Ends the generation and says farewell to the others, who go on without this process. Blocks for a moment.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        let next = {
            let mut slot = self.shared.slot.lock();
            slot.is_stopped = true;
            if let Some((_, lost)) = &slot.current {
                lost.set(Cause::Stop);
            }
            slot.next.take()
        };
        drop(next);
        self.shared.ready.notify_all();
        self.shared.noticed.notify_one();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("mesh panicked");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn new(settings: Settings, me: Candidate, newest: u64, peers: Peers, metrics: Metrics) -> Self {
        Self {
            council: Mutex::new(Council::new(settings.clone(), me.clone(), newest, Instant::now())),
            settings,
            me,
            peers,
            metrics,
            slot: Mutex::default(),
            ready: Condvar::new(),
            noticed: Arc::default(),
            kick: watch::Sender::new(()),
            is_stopping: AtomicBool::new(false),
            filed: Mutex::default(),
            has_filed: Notify::new(),
            connections: AtomicU64::new(0),
            asking: Mutex::default(),
            last_refusal: Mutex::default(),
        }
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// The next formation of a process that has no mesh.
    fn form_alone(&self, slot: &mut Slot) -> Formation {
        let now = Instant::now();
        let mut council = self.council.lock();
        if let Some((epoch, lost)) = slot.current.take() {
            self.note_end(slot, &epoch, &lost, now);
        }
        let form = council.alone(now);
        self.formation(slot, &form, 0, vec![None], Lost::default(), now)
    }

    /// Tells of the end of a generation, once.
    fn note_end(&self, slot: &mut Slot, epoch: &Epoch, lost: &Lost, now: Instant) {
        let cause = lost.cause().unwrap_or(Cause::Done);
        tracing::info!(%epoch, %cause, "generation of the dataflow is over");
        self.metrics.losses.with_label_values(&[cause.label()]).inc();
        self.metrics.epoch.set(0);
        self.metrics.members.set(0);
        slot.ended = Some((now, cause));
    }

    fn formation(
        &self,
        slot: &mut Slot,
        form: &Form,
        index: usize,
        streams: Vec<Option<GenStream>>,
        lost: Lost,
        now: Instant,
    ) -> Formation {
        let mut reason = form.why.label();
        let mut pause = None;
        if let Some((at, cause)) = slot.ended.take() {
            let since = now.saturating_duration_since(at);
            self.metrics.reform_seconds.observe(since.as_secs_f64());
            pause = Some(since);
            if let Cause::Panic { .. } | Cause::Failed { .. } = cause {
                reason = cause.label();
            }
        }
        let members: Vec<_> = form.members.iter().map(|member| member.id.as_str()).collect();
        tracing::info!(epoch = %form.epoch, index, ?members, reason, ?pause, "generation of the dataflow is formed");
        self.metrics.epoch.set(i64::try_from(form.epoch.counter).unwrap_or(i64::MAX));
        self.metrics.members.set(i64::try_from(members.len()).unwrap_or(i64::MAX));
        slot.current = Some((form.epoch.clone(), lost.clone()));
        Formation::new(form.epoch.clone(), index, form.members.clone(), form.threads, streams, lost, reason)
    }

    async fn run(self: Arc<Self>, listener: tokio::net::TcpListener, candidates: watch::Receiver<Arc<[Candidate]>>) {
        tokio::spawn(Arc::clone(&self).listen(listener));
        let mut dialers: HashMap<String, (Candidate, AbortHandle)> = HashMap::new();
        let mut gathering: Option<AbortHandle> = None;
        let mut last = Instant::now();
        while !self.is_stopping() {
            let now = Instant::now();
            let form = {
                let list = Arc::clone(&candidates.borrow());
                let mut council = self.council.lock();
                if now.saturating_duration_since(last) > self.settings.dead_after / 2 {
                    council.paused(now);
                }
                council.list(&list, now);
                if let Some(error) = council.expired(now)
                    && let Some((_, lost)) = &self.slot.lock().current
                {
                    lost.set(Cause::Failed { error });
                }
                if let Some(epoch) = self.end_of_current(now) {
                    council.ends(&epoch, now);
                    self.kick.send_replace(());
                }
                self.metrics.candidates.set(i64::try_from(council.counted(now)).unwrap_or(i64::MAX));
                council.decide(now)
            };
            self.dial_all(&mut dialers);
            self.filed.lock().retain(|filed| now.saturating_duration_since(filed.at) < self.settings.mesh_timeout * 2);
            if let Some(form) = form {
                if let Some(gathering) = gathering.take() {
                    gathering.abort();
                }
                self.supersede(&form.epoch, now);
                gathering = Some(tokio::spawn(Arc::clone(&self).gather(form)).abort_handle());
                self.kick.send_replace(());
            }
            last = now;
            let _ = tokio::time::timeout(self.settings.beat / 2, self.noticed.notified()).await;
        }
        // The dialers say farewell and end.
        self.kick.send_replace(());
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline && dialers.values().any(|(_, dialer)| !dialer.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The epoch of the present formation, if it has just ended.
    fn end_of_current(&self, now: Instant) -> Option<Epoch> {
        let mut slot = self.slot.lock();
        let (epoch, lost) = slot.current.take_if(|(_, lost)| lost.is_set())?;
        self.note_end(&mut slot, &epoch, &lost, now);
        Some(epoch)
    }

    /// Ends the present formation for a newer one.
    fn supersede(&self, by: &Epoch, now: Instant) {
        let next = {
            let mut slot = self.slot.lock();
            if let Some((epoch, lost)) = slot.current.take() {
                lost.set(Cause::Superseded { by: by.clone() });
                self.note_end(&mut slot, &epoch, &lost, now);
            }
            slot.next.take()
        };
        drop(next);
    }

    fn dial_all(self: &Arc<Self>, dialers: &mut HashMap<String, (Candidate, AbortHandle)>) {
        let wanted: HashMap<String, Candidate> =
            self.council.lock().addresses().into_iter().map(|candidate| (candidate.id.clone(), candidate)).collect();
        dialers.retain(|id, (dialled, dialer)| {
            let is_wanted = wanted.get(id).is_some_and(|candidate| candidate.address == dialled.address);
            if !is_wanted {
                dialer.abort();
            }
            is_wanted
        });
        for (id, candidate) in wanted {
            dialers.entry(id).or_insert_with(|| {
                let dialer = tokio::spawn(Arc::clone(self).dial(candidate.id.clone(), candidate.address)).abort_handle();
                (candidate, dialer)
            });
        }
    }

    fn hello(&self, to: &str, epoch: Option<Epoch>) -> Hello {
        let Settings { cluster, wire, threads, alike, .. } = self.settings.clone();
        Hello { cluster, wire, threads, alike, from: self.me.clone(), to: to.to_owned(), epoch, asks: false }
    }

    async fn connect(&self, address: SocketAddr, hello: &Hello) -> Result<Connection, wire::WireError> {
        let mut socket = self.peers.connector.connect(&address.to_string()).await?;
        wire::introduce(&mut socket, hello).await?;
        Ok(socket)
    }

    /// Sends beats to a process for as long as it is a candidate.
    async fn dial(self: Arc<Self>, id: String, address: SocketAddr) {
        let mut said = String::new();
        while !self.is_stopping() {
            let error = match self.beat(&id, address).await {
                Ok(()) => return,
                Err(error) => error.to_string(),
            };
            // Once for each thing that is wrong, not for each attempt.
            if said != error {
                tracing::warn!(id, %address, error, "no beats to candidate");
                said = error;
            }
            tokio::time::sleep(self.settings.beat).await;
        }
    }

    /// Sends beats over one connection, until it fails or there is nothing more to say.
    async fn beat(&self, id: &str, address: SocketAddr) -> Result<(), wire::WireError> {
        let mut kick = self.kick.subscribe();
        let connected = within(self.settings.handshake_timeout, self.connect(address, &self.hello(id, None))).await?;
        let (mut reading, mut writing) = tokio::io::split(connected);
        tracing::debug!(id, %address, "beats to candidate");
        loop {
            kick.mark_unchanged();
            let is_leaving = self.is_stopping();
            let beat = if is_leaving { Beat { leaving: true, ..Beat::default() } } else { self.council.lock().beat(id, Instant::now()) };
            within(self.settings.dead_after, wire::write_frame(&mut writing, &beat)).await?;
            if is_leaving {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings.beat) => {}
                _ = kick.changed() => {}
                // Nothing is ever sent in this direction.
                read = reading.read_u8() => return Err(read.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()).into()),
            }
        }
    }

    async fn listen(self: Arc<Self>, listener: tokio::net::TcpListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            match listener.accept().await {
                Ok((socket, from)) => {
                    let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                        self.refuse("connections", from, "too many connections");
                        continue;
                    };
                    let shared = Arc::clone(&self);
                    tokio::spawn(async move {
                        shared.serve(socket, from).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    self.refuse("accept", self.me.address, &error.to_string());
                    tokio::time::sleep(self.settings.beat).await;
                }
            }
        }
    }

    /// Counts and logs a connection that is not accepted: anybody can make many.
    fn refuse(&self, reason: &str, from: SocketAddr, error: &str) {
        self.metrics.refused.with_label_values(&[reason]).inc();
        let now = Instant::now();
        let mut last = self.last_refusal.lock();
        if last.is_none_or(|last| now.saturating_duration_since(last) >= LOG_INTERVAL) {
            *last = Some(now);
            tracing::warn!(%from, error, "connection to the mesh refused");
        }
    }

    async fn serve(&self, socket: TcpStream, from: SocketAddr) {
        let begun = async {
            socket.set_nodelay(true)?;
            let mut socket = self.peers.acceptor.accept(socket).await?;
            let hello = wire::read_hello(&mut socket).await?;
            Ok::<_, wire::WireError>((socket, hello))
        };
        let (mut socket, hello) = match within(self.settings.handshake_timeout, begun).await {
            Ok(begun) => begun,
            Err(error) => return self.refuse("handshake", from, &error.to_string()),
        };
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let outcome = self.check(&hello).and_then(|()| match &hello.epoch {
            None if hello.asks => Ok(()),
            None => self.council.lock().connect(&hello, connection, Instant::now()).map_err(|error| ("name", error)),
            Some(_) => Ok(()),
        });
        let refused = outcome.err().map(|(reason, error)| {
            let who = format!("{:?}, incarnation {}: {error}", hello.from.id, hello.from.incarnation);
            self.refuse(reason, from, &who);
            error
        });
        let is_refused = refused.is_some();
        if let (None, false, false, Some((_, difference))) = (&hello.epoch, hello.asks, is_refused, hello.difference(&self.settings)) {
            tracing::warn!(id = hello.from.id, difference, "candidate cannot be in one dataflow with this process");
        }
        let answered = within(self.settings.handshake_timeout, wire::answer(&mut socket, refused)).await;
        match (hello.epoch, answered) {
            _ if is_refused => {}
            (Some(epoch), Ok(())) => {
                self.file(Filed { epoch, id: hello.from.id, incarnation: hello.from.incarnation, socket, at: Instant::now() })
            }
            (Some(_), Err(_)) => {}
            (None, answered) if hello.asks => {
                let passed_on = answered.map_err(|error| error.to_string()).and_then(|()| self.pass_on(socket));
                if let Err(error) = passed_on {
                    self.refuse("question", from, &error);
                }
            }
            (None, answered) => {
                let ended = match answered {
                    Ok(()) => self.listen_to(&hello.from.id, connection, &mut socket).await,
                    Err(error) => error.to_string(),
                };
                self.council.lock().disconnect(&hello.from.id, connection);
                self.noticed.notify_one();
                tracing::debug!(id = hello.from.id, ended, "beats of candidate end");
            }
        }
    }

    /// Whether whoever dials may: the metric's reason and the text if not.
    fn check(&self, hello: &Hello) -> Result<(), (&'static str, String)> {
        let cluster = &self.settings.cluster;
        if hello.cluster != *cluster {
            return Err(("cluster", format!("this is cluster {cluster:?}, not {:?}", hello.cluster)));
        }
        if hello.to != self.me.id {
            return Err(("name", format!("this is {:?}, not {:?}", self.me.id, hello.to)));
        }
        let Some(epoch) = &hello.epoch else { return Ok(()) };
        if let Some(difference) = hello.difference(&self.settings) {
            return Err(difference);
        }
        if !self.council.lock().is_current(epoch) {
            return Err(("epoch", format!("epoch {epoch} is over")));
        }
        Ok(())
    }

    /// Takes in beats until there are no more; why.
    async fn listen_to(&self, id: &str, connection: u64, socket: &mut Connection) -> String {
        loop {
            // Who is silent for longer may come back with a new connection.
            let beat: Beat = match within(self.settings.dead_after * 8, wire::read_frame(socket)).await {
                Ok(beat) => beat,
                Err(error) => return error.to_string(),
            };
            let is_leaving = beat.leaving;
            if !self.council.lock().hear(id, connection, beat, Instant::now()) {
                return "another connection has taken its place".to_owned();
            }
            self.noticed.notify_one();
            if is_leaving {
                tracing::info!(id, "candidate leaves");
            }
        }
    }

    /// Hands a connection that brings a question to whoever answers.
    fn pass_on(&self, socket: Connection) -> Result<(), String> {
        let asking = self.asking.lock().clone().ok_or("nobody answers questions")?;
        asking.try_send(socket).map_err(|error| error.to_string())
    }

    fn file(&self, filed: Filed) {
        let mut all = self.filed.lock();
        all.retain(|other| other.epoch != filed.epoch || other.id != filed.id);
        if all.len() < MAX_FILED {
            all.push(filed);
            self.has_filed.notify_one();
        }
    }

    /// Connects to the other members of a form and makes it a formation.
    async fn gather(self: Arc<Self>, form: Form) {
        let gathered = match tokio::time::timeout(self.settings.mesh_timeout, self.sockets(&form)).await {
            Ok(gathered) => gathered,
            Err(_) => Err(format!("not all members connected in {:?}", self.settings.mesh_timeout)),
        };
        let lost = Lost::noticed_by(Arc::clone(&self.noticed));
        let formed = gathered.and_then(|(index, sockets)| {
            let streams = sockets.into_iter().zip(&form.members).enumerate().map(|(other, (socket, member))| {
                let wrap = |socket: Duplex| {
                    let stream = GenStream::new(socket, &member.id, index, other, form.threads, lost.clone());
                    stream.counted_by(self.metrics.sent_bytes.clone())
                };
                Ok(socket.map(Connection::into_blocking).transpose()?.map(wrap))
            });
            streams.collect::<io::Result<Vec<_>>>().map(|streams| (index, streams)).map_err(|error| error.to_string())
        });
        let now = Instant::now();
        match formed {
            Ok((index, streams)) => {
                {
                    let mut slot = self.slot.lock();
                    if slot.is_stopped {
                        return;
                    }
                    slot.next = Some(self.formation(&mut slot, &form, index, streams, lost, now));
                }
                self.ready.notify_all();
                self.council.lock().runs(&form.epoch, now);
            }
            Err(error) => {
                tracing::warn!(epoch = %form.epoch, error, "form of the dataflow does not come about");
                self.metrics.failed_forms.with_label_values(&["connections"]).inc();
                self.council.lock().ends(&form.epoch, now);
            }
        }
        self.kick.send_replace(());
        self.noticed.notify_one();
    }

    /// This process's index, and a socket to each other member.
    async fn sockets(&self, form: &Form) -> Result<(usize, Vec<Option<Connection>>), String> {
        let index = form.members.iter().position(|member| member.id == self.me.id).ok_or("not a member")?;
        let lower = try_join_all(form.members[..index].iter().map(async |member| {
            let socket = self.connect(member.address, &self.hello(&member.id, Some(form.epoch.clone()))).await;
            socket.map(Some).map_err(|error| format!("member {:?} at {}: {error}", member.id, member.address))
        }));
        let higher = async {
            let mut sockets: Vec<Option<Connection>> = form.members[index + 1..].iter().map(|_| None).collect();
            loop {
                for (member, socket) in form.members[index + 1..].iter().zip(&mut sockets) {
                    let mut filed = self.filed.lock();
                    let is_it =
                        |filed: &Filed| (&filed.epoch, &filed.id, filed.incarnation) == (&form.epoch, &member.id, member.incarnation);
                    if let Some(found) = filed.iter().position(is_it) {
                        *socket = Some(filed.swap_remove(found).socket);
                    }
                }
                if sockets.iter().all(Option::is_some) {
                    return Ok(sockets);
                }
                self.has_filed.notified().await;
            }
        };
        let (mut sockets, higher) = futures::try_join!(lower, higher)?;
        sockets.push(None);
        sockets.extend(higher);
        Ok((index, sockets))
    }
}
