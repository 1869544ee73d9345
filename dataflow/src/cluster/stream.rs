//! A connection between two processes of one generation, as timely's threads see it: one that never fails.
//!
//! Timely reads messages (a header of 48 bytes and a body) until one of length zero says that there are no more, and panics if the
//! connection ends anywhere else; the panic poisons queues, which makes workers panic while they clean up, which aborts the process. So
//! [`GenStream`] follows the messages, and when the connection ends it says so, waits until no worker is left that could see what comes,
//! and gives the reader the rest of the message in zeros and the last header that it wants.
//!
//! ```text
//!  socket ──bytes──► follower ──whole headers, bodies──► timely's recv thread ──► queues ──► workers
//!    │ end, error, nonsense                                      ▲
//!    └──► lost ──► workers go ──► zeros for the body, a header of zeros, end
//! ```
//!
//! * A header is passed on whole, and only if it is one that timely may see: its workers exist, its length is bounded. So a peer that sends
//!   nonsense ends the generation and nothing else.
//! * The header that ends timely's stream is never taken from the peer: it ends the generation as a broken connection does.
//! * What is written after the loss is dropped and reported as written.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    ops::Range,
    sync::{Arc, OnceLock},
};

use prometheus::IntCounter;
use storage::tls::Duplex;
use timely::communication::allocator::zero_copy::stream::Stream;

use super::{Cause, Lost};

/// Bytes of timely's message header: six big-endian `u64`.
pub const HEADER_BYTES: usize = 48;

/// Longest body of a message: nobody sends one as long, and of a cut one the rest has to be made up.
pub const MAX_BODY_BYTES: u64 = 1 << 30;

/// A connection to another process of the generation. Clones made by timely share the socket.
#[derive(Debug)]
pub struct GenStream {
    shared: Arc<Shared>,
    follower: Follower,
}

#[derive(Debug)]
struct Shared {
    socket: Duplex,
    /// Id of the process at the other end.
    peer: String,
    lost: Lost,
    /// Workers of this process, and of the other.
    targets: Range<u64>,
    sources: Range<u64>,
    /// Counts bytes that were written.
    sent: OnceLock<IntCounter>,
}

/// Where in the stream of messages the reader is.
#[derive(Debug)]
struct Follower {
    /// A header that did not come in one piece.
    header: [u8; HEADER_BYTES],
    /// Bytes of it that came, and that were passed on: none before all came.
    came: usize,
    passed: usize,
    /// Bytes of the body that are still to pass.
    body: u64,
    /// Whether the connection is of no use any more.
    broken: bool,
    /// Bytes of the last header that are still to pass, after the rest of the body.
    last: usize,
}

impl Default for Follower {
    fn default() -> Self {
        Self { header: [0; HEADER_BYTES], came: 0, passed: 0, body: 0, broken: false, last: HEADER_BYTES }
    }
}

impl GenStream {
    /// Wraps a connection between process `index` (this one) and process `other` of a formation. Writes go out at once if the socket is
    /// without delay (`TCP_NODELAY`), as it should be.
    pub fn new(socket: impl Into<Duplex>, peer: &str, index: usize, other: usize, threads: usize, lost: Lost) -> Self {
        let socket = socket.into();
        let workers = |process: usize| (process * threads) as u64..((process + 1) * threads) as u64;
        let shared =
            Shared { socket, peer: peer.to_owned(), lost, targets: workers(index), sources: workers(other), sent: OnceLock::new() };
        Self { shared: Arc::new(shared), follower: Follower::default() }
    }

    /// Counts bytes that are written.
    pub(crate) fn counted_by(self, sent: IntCounter) -> Self {
        // Nobody else does.
        let _ = self.shared.sent.set(sent);
        self
    }

    /// A second handle, to end the connection with.
    pub(crate) fn handle(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), follower: Follower::default() }
    }

    /// Ends the connection in both directions; blocked reads and writes return.
    pub(crate) fn close(&self) {
        // It may be closed from the other end already.
        let _ = self.shared.socket.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn lose(&self, error: String) {
        self.lost.set(Cause::Peer { id: self.peer.clone(), error });
    }

    /// Reads until something comes; `None` when nothing will come any more, which is then known.
    fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match (&self.socket).read(buffer) {
                Ok(0) => self.lose("closed by the peer".to_owned()),
                Ok(read) => return Some(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => self.lose(error.to_string()),
            }
            return None;
        }
    }

    /// The length of the body that follows, if timely may see the header.
    fn check(&self, header: &[u8; HEADER_BYTES]) -> Result<u64, String> {
        let field = |index: usize| header[index * 8..].first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let (source, lower, upper, length) = (field(1), field(2), field(3), field(4));
        if length == 0 {
            return Err("the peer ended the generation".to_owned());
        }
        if length > MAX_BODY_BYTES {
            return Err(format!("message of {length} bytes"));
        }
        if !self.sources.contains(&source) || lower < self.targets.start || upper > self.targets.end || lower >= upper {
            return Err(format!("message from worker {source} to workers {lower}..{upper}"));
        }
        Ok(length)
    }
}

impl Follower {
    /// Passes on what is left of a header that was put together.
    fn pass_header(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(HEADER_BYTES - self.passed);
        buffer[..count].copy_from_slice(&self.header[self.passed..self.passed + count]);
        self.passed += count;
        if self.passed == HEADER_BYTES {
            (self.came, self.passed) = (0, 0);
        }
        count
    }

    /// Follows what was read straight into the reader's buffer; how much of it may be passed on.
    fn follow(&mut self, read: &[u8], shared: &Shared) -> usize {
        let mut at = 0;
        while at < read.len() {
            let left = &read[at..];
            if self.body > 0 {
                let count = usize::try_from(self.body).unwrap_or(usize::MAX).min(left.len());
                self.body -= count as u64;
                at += count;
            } else if let Some(header) = left.first_chunk() {
                match shared.check(header) {
                    Ok(body) => self.body = body,
                    Err(error) => {
                        self.broken = true;
                        shared.lose(error);
                        return at;
                    }
                }
                at += HEADER_BYTES;
            } else {
                self.header[..left.len()].copy_from_slice(left);
                self.came = left.len();
                return at;
            }
        }
        at
    }

    /// Zeros for what is missing, and then nothing.
    fn end(&mut self, buffer: &mut [u8]) -> usize {
        let count = if self.body > 0 {
            let count = usize::try_from(self.body).unwrap_or(usize::MAX).min(buffer.len());
            self.body -= count as u64;
            count
        } else {
            let count = self.last.min(buffer.len());
            self.last -= count;
            count
        };
        buffer[..count].fill(0);
        count
    }
}

impl Read for GenStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (shared, follower) = (&*self.shared, &mut self.follower);
        while !buffer.is_empty() {
            if follower.came == HEADER_BYTES {
                return Ok(follower.pass_header(buffer));
            }
            if follower.broken || shared.lost.is_gone() {
                follower.broken = true;
                shared.lost.wait_until_gone();
                return Ok(follower.end(buffer));
            }
            if follower.came > 0 {
                match shared.receive(&mut follower.header[follower.came..]) {
                    Some(read) => follower.came += read,
                    None => follower.broken = true,
                }
                if follower.came == HEADER_BYTES {
                    match shared.check(&follower.header) {
                        Ok(body) => follower.body = body,
                        Err(error) => {
                            (follower.broken, follower.came) = (true, 0);
                            shared.lose(error);
                        }
                    }
                }
            } else {
                match shared.receive(buffer) {
                    Some(read) => {
                        let count = follower.follow(&buffer[..read], shared);
                        if count > 0 {
                            return Ok(count);
                        }
                    }
                    None => follower.broken = true,
                }
            }
        }
        Ok(0)
    }
}

impl Write for GenStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let shared = &*self.shared;
        while !shared.lost.is_set() {
            match (&shared.socket).write(bytes) {
                Ok(0) if !bytes.is_empty() => shared.lose("nothing more can be written".to_owned()),
                Ok(written) => {
                    if let Some(sent) = shared.sent.get() {
                        sent.inc_by(written as u64);
                    }
                    return Ok(written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => shared.lose(error.to_string()),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for GenStream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(self.handle())
    }

    /// It blocks already.
    fn set_nonblocking(&self, _nonblocking: bool) -> io::Result<()> {
        Ok(())
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // Timely says with this that it has no more to send, and panics if it cannot.
        let _ = self.shared.socket.shutdown(how);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        sync::mpsc,
        thread,
    };

    use timely::communication::{
        Hooks,
        allocator::zero_copy::{
            bytes_exchange::{BytesPull, MergeQueue},
            tcp::recv_loop,
        },
        buzzer::Buzzer,
        networking::MessageHeader,
    };

    use super::*;

    /// Workers of a process, and the process that listens and that speaks.
    const THREADS: usize = 2;
    const ME: usize = 0;
    const OTHER: usize = 1;

    fn connection() -> (GenStream, TcpStream, Lost) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
        let dialled = TcpStream::connect(listener.local_addr().expect("has an address")).expect("connects");
        let (accepted, _) = listener.accept().expect("accepts");
        let lost = Lost::default();
        (GenStream::new(accepted, "other", ME, OTHER, THREADS, lost.clone()), dialled, lost)
    }

    fn header(lower: usize, upper: usize, length: usize) -> MessageHeader {
        MessageHeader { channel: 7, source: 2, target_lower: lower, target_upper: upper, length, seqno: 9 }
    }

    fn message(lower: usize, upper: usize, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(lower, upper, body.len()).write_to(&mut bytes).expect("writes");
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn timelys_header_is_laid_out_as_we_read_it() {
        let header =
            MessageHeader { channel: 0x0101, source: 0x0202, target_lower: 0x0303, target_upper: 0x0404, length: 0x0505, seqno: 0x0606 };
        assert_eq!(header.header_bytes(), HEADER_BYTES);
        let mut bytes = Vec::new();
        header.write_to(&mut bytes).expect("writes");
        let expected: Vec<u8> = [0x0101_u64, 0x0202, 0x0303, 0x0404, 0x0505, 0x0606].iter().flat_map(|field| field.to_be_bytes()).collect();
        assert_eq!(bytes, expected);
    }

    /// Runs timely's own receiving thread over what arrives, with queues of workers as they would be; what the workers got before the end.
    fn receive(arrives: &[u8], chunk: usize) -> Vec<u8> {
        let (stream, mut peer, lost) = connection();
        let (mut senders, mut receivers, mut queues) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..THREADS {
            let (sender, receiver) = mpsc::channel();
            let (writer, reader) = MergeQueue::new_pair(Buzzer::default(), None, None);
            sender.send(writer).expect("sends");
            senders.push(sender);
            receivers.push(receiver);
            queues.push(reader);
        }
        let receiving = thread::spawn(move || recv_loop(stream, receivers, ME * THREADS, ME, OTHER, Hooks::default().refill, None));
        for bytes in arrives.chunks(chunk) {
            peer.write_all(bytes).expect("writes");
        }
        drop(peer);
        lost.wake(thread::current());
        while !lost.is_set() {
            thread::park();
        }
        assert!(!receiving.is_finished(), "waits until the workers are gone");
        let mut got = Vec::new();
        queues.first_mut().expect("first worker").drain_into(&mut got);
        drop(queues);
        lost.workers_gone();
        receiving.join().expect("timely's thread does not panic");
        got.iter().flat_map(|bytes| bytes.to_vec()).collect()
    }

    #[test]
    fn a_connection_that_ends_anywhere_ends_timely_in_peace() {
        let mut recorded = Vec::new();
        for (index, size) in [1_usize, 5, 47, 48, 49, 300].into_iter().enumerate() {
            recorded.extend(message(index % 2, 1 + index % 2, &vec![0xab; size]));
            recorded.extend(message(0, 2, &[0xcd; 3]));
        }
        // What the first worker is due, of the messages that came whole.
        let due = |cut: usize| {
            let (mut at, mut due) = (0, Vec::new());
            while let Some(header) = MessageHeader::try_read(&recorded[at..cut]) {
                let end = at + header.required_bytes();
                if header.target_lower == 0 {
                    due.extend_from_slice(&recorded[at..end]);
                }
                at = end;
            }
            due
        };
        for cut in 0..=recorded.len() {
            for chunk in [1 << 20, 31] {
                let got = receive(&recorded[..cut], chunk);
                assert!(due(cut).starts_with(&got), "cut at {cut}: the worker sees only what was sent");
            }
        }
    }

    #[test]
    fn nonsense_is_kept_from_timely() {
        let before = message(0, 1, b"sense");
        let nonsense = [
            header(0, 1, usize::MAX),
            header(0, 1, MAX_BODY_BYTES as usize + 1),
            header(0, 3, 1),
            header(2, 3, 1),
            header(1, 1, 1),
            MessageHeader { source: 0, ..header(0, 1, 1) },
            MessageHeader { source: usize::MAX, ..header(0, 1, 1) },
            header(0, 0, 0),
        ];
        for header in nonsense {
            let mut arrives = before.clone();
            header.write_to(&mut arrives).expect("writes");
            arrives.extend_from_slice(&[0xee; 100]);
            for chunk in [1 << 20, 31] {
                let got = receive(&arrives, chunk);
                assert!(before.starts_with(&got), "{header:?}");
            }
        }
    }

    #[test]
    fn what_is_written_after_the_loss_is_dropped() {
        let (mut stream, peer, lost) = connection();
        stream.write_all(b"before").expect("writes");
        drop(peer);
        // The first writes may still be taken by the operating system.
        while !lost.is_set() {
            stream.write_all(&[0; 4096]).expect("never fails");
        }
        stream.write_all(&[0; 4096]).expect("never fails");
        stream.flush().expect("never fails");
        Stream::shutdown(&stream, Shutdown::Write).expect("never fails");
        assert!(matches!(lost.cause(), Some(Cause::Peer { id, .. }) if id == "other"));
    }
}
