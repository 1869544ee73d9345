//! A connection that one thread reads and another writes, both of them blocking.
//!
//! ```text
//!  reader: socket ──► incoming ──┐ lock ┌──► plaintext        never waits for the writer
//!                                ├──────┤
//!  writer: bytes ────────────────┘      └──► outgoing ──► socket
//! ```
//!
//! The session of TLS is one for both directions, so a lock is around it, held while bytes are encrypted and decrypted and never while the
//! socket is waited for. Two more locks keep the order of what is read and what is written; one thread for each direction never waits for them.
//! What the session itself wants to say (tickets, a change of keys) goes out with what is written next: the reader writes nothing, or two
//! readers with full sockets would wait for each other for ever.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
};

use parking_lot::Mutex;
use tokio_rustls::{TlsStream, rustls};

use super::Connection;

/// Bytes that are read from the socket at a time: a record of TLS and a little.
const READ_BYTES: usize = 32 << 10;

/// See the module documentation.
#[derive(Debug)]
pub struct Duplex {
    socket: TcpStream,
    tls: Option<Box<Session>>,
}

#[derive(Debug)]
struct Session {
    session: Mutex<rustls::Connection>,
    incoming: Mutex<Incoming>,
    /// Ciphertext on its way to the socket.
    outgoing: Mutex<Vec<u8>>,
}

/// Ciphertext that was read from the socket and that the session has not taken yet.
#[derive(Debug)]
struct Incoming {
    bytes: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Duplex {
    pub(super) fn new(connection: Connection) -> io::Result<Self> {
        let (stream, session) = match connection {
            Connection::Plain(stream) => (stream, None),
            Connection::Tls(stream) => match *stream {
                TlsStream::Client(stream) => {
                    let (stream, session) = stream.into_inner();
                    (stream, Some(session.into()))
                }
                TlsStream::Server(stream) => {
                    let (stream, session) = stream.into_inner();
                    (stream, Some(session.into()))
                }
            },
        };
        let socket = stream.into_std()?;
        socket.set_nonblocking(false)?;
        let tls = session.map(|session: rustls::Connection| {
            let incoming = Incoming { bytes: vec![0; READ_BYTES].into(), begin: 0, end: 0 };
            Box::new(Session { session: Mutex::new(session), incoming: Mutex::new(incoming), outgoing: Mutex::default() })
        });
        Ok(Self { socket, tls })
    }

    /// Ends one direction or both, as seen from the socket; blocked reads and writes return.
    ///
    /// # Errors
    /// It has ended already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }
}

/// A socket in the clear.
impl From<TcpStream> for Duplex {
    fn from(socket: TcpStream) -> Self {
        Self { socket, tls: None }
    }
}

impl Session {
    /// What is decrypted already; `None` if that is nothing.
    fn plaintext(session: &mut rustls::Connection, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        match session.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            read => Some(read),
        }
    }

    fn read(&self, socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = self.incoming.lock();
        loop {
            {
                let session = &mut *self.session.lock();
                loop {
                    if let Some(read) = Self::plaintext(session, buffer) {
                        return read;
                    }
                    let Incoming { bytes, begin, end } = &mut *incoming;
                    if begin == end {
                        break;
                    }
                    *begin += session.read_tls(&mut &bytes[*begin..*end])?;
                    session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                }
            }
            incoming.begin = 0;
            incoming.end = 0;
            incoming.end = (&*socket).read(&mut incoming.bytes)?;
            if incoming.end == 0 {
                return Ok(0);
            }
        }
    }

    fn write(&self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let mut outgoing = self.outgoing.lock();
        outgoing.clear();
        let written = {
            let session = &mut *self.session.lock();
            let written = session.writer().write(bytes)?;
            while session.wants_write() {
                session.write_tls(&mut *outgoing)?;
            }
            written
        };
        (&*socket).write_all(&outgoing)?;
        Ok(written)
    }
}

impl Read for &Duplex {
    /// # Errors
    /// The socket's, and bytes that are not the session's. An interrupted read of an encrypted connection can be tried again.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.socket).read(buffer),
            Some(tls) => tls.read(&self.socket, buffer),
        }
    }
}

impl Write for &Duplex {
    /// # Errors
    /// The socket's; one of an encrypted connection is the end of it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.socket).write(bytes),
            Some(tls) => tls.write(&self.socket, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
