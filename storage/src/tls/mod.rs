//! TLS of every listener and client: what certificates there are, whom to believe, and connections that are encrypted or not.
//!
//! ```text
//!  ServerTls ──► Acceptor ──accept(TcpStream)──────► Connection ──► HTTP, gRPC, gossip, mesh
//!  ClientTls ──► Connector ──connect("host:port")──► Connection ──into_blocking──► Duplex: two threads, one connection
//! ```
//!
//! An [`Acceptor`] and a [`Connector`] of nothing are those of connections in the clear, so whoever uses them need not ask. Certificates,
//! keys and a client's authorities are read again when their files have changed, so that they can be renewed under a running process; what
//! cannot be read leaves the old ones in place and says so.
//!
//! Each message of TLS that is refused ends in an [`io::Error`] whose text is the cause (`invalid peer certificate: UnknownIssuer`, `received
//! fatal alert: CertificateRequired`). With TLS 1.3 a client is told that it lacks a certificate only after its handshake, so that a write may
//! be what fails: its error is what the other side has said.

mod client;
mod duplex;
mod server;

use std::{
    fs,
    io::{self, IoSlice},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsStream,
    rustls::{
        self, RootCertStore, SupportedCipherSuite, SupportedProtocolVersion,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        sign::CertifiedKey,
        version,
    },
};

pub use self::{
    client::{ClientTls, Connector},
    duplex::Duplex,
    server::{Acceptor, ClientAuth, ServerTls},
};

/// The protocol that a client of gRPC asks for.
pub const HTTP2: &[u8] = b"h2";

/// Text in PEM: where it is, or itself.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// In a file.
    File(PathBuf),
    /// In the configuration.
    Inline(String),
}

/// Does not show what may be a key.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

/// Why there is no TLS with these settings.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Something else than PEM.
    #[error("{name} is not PEM: {source}")]
    NotPem {
        /// The file, or that it is inline.
        name: String,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// PEM of something else.
    #[error("{0} holds no certificate")]
    NoCertificate(String),
    /// PEM of something else.
    #[error("{name} holds no private key: {source}")]
    NoKey {
        /// The file, or that it is inline.
        name: String,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// A certificate that can sign nothing.
    #[error("{name} holds what is no certificate of an authority: {source}")]
    NoAuthority {
        /// The file, or that it is inline.
        name: String,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The system has none, or they cannot be read.
    #[error("the system's certificate authorities cannot be read: {0}")]
    SystemAuthorities(String),
    /// Two files that do not belong together.
    #[error("{key} is not the key of {cert}: {source}")]
    Mismatch {
        /// The key's name.
        key: String,
        /// The certificate's name.
        cert: String,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// A suite that is not known, or not safe.
    #[error("cipher suite {name} is not one of {known}")]
    CipherSuite {
        /// Its name.
        name: String,
        /// Those that are.
        known: String,
    },
    /// A name that no certificate can have.
    #[error("\"{0}\" is not the name of a server")]
    ServerName(String),
    /// What does not fit together.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    /// Authorities that cannot verify clients.
    #[error("clients cannot be verified: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl Pem {
    fn read(&self) -> Result<Vec<u8>, TlsError> {
        match self {
            Self::File(path) => fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source }),
            Self::Inline(text) => Ok(text.clone().into_bytes()),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline(_) => "the inline text".to_owned(),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates = CertificateDer::pem_slice_iter(&self.read()?).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|source| TlsError::NotPem { name: self.name(), source })?;
        if certificates.is_empty() {
            return Err(TlsError::NoCertificate(self.name()));
        }
        Ok(certificates)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.read()?).map_err(|source| TlsError::NoKey { name: self.name(), source })
    }

    fn authorities(&self) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        for certificate in self.certificates()? {
            store.add(certificate).map_err(|source| TlsError::NoAuthority { name: self.name(), source })?;
        }
        Ok(store)
    }

    fn modified(&self) -> Option<SystemTime> {
        let Self::File(path) = self else { return None };
        modified(path)
    }
}

/// When a file was written last, if it can be seen.
pub fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

/// A certificate, its chain after it, and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub cert: Pem,
    /// Its key.
    pub key: Pem,
}

impl Identity {
    fn certified(&self, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, TlsError> {
        let Self { cert, key } = self;
        let certified = CertifiedKey::from_der(cert.certificates()?, key.private_key()?, provider);
        Ok(Arc::new(certified.map_err(|source| TlsError::Mismatch { key: key.name(), cert: cert.name(), source })?))
    }

    fn stamp(&self) -> [Option<SystemTime>; 2] {
        [self.cert.modified(), self.key.modified()]
    }
}

static NEWEST: &[&SupportedProtocolVersion] = &[&version::TLS13];
static SAFE: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];

/// What both ends may ask for of the protocol itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// 1.3 and nothing older.
    pub only_tls13: bool,
    /// Suites by their names in the standard; empty is what is safe. TLS 1.3 has its own, always.
    pub cipher_suites: Vec<String>,
}

impl Protocol {
    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        if self.only_tls13 { NEWEST } else { SAFE }
    }

    fn provider(&self) -> Result<Arc<CryptoProvider>, TlsError> {
        let mut provider = aws_lc_rs::default_provider();
        if !self.cipher_suites.is_empty() {
            let name_of = |suite: &SupportedCipherSuite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
            let known: Vec<String> = provider.cipher_suites.iter().map(name_of).collect();
            if let Some(name) = self.cipher_suites.iter().find(|name| !known.contains(name)) {
                return Err(TlsError::CipherSuite { name: name.clone(), known: known.join(", ") });
            }
            provider.cipher_suites.retain(|suite| suite.tls13().is_some() || self.cipher_suites.contains(&name_of(suite)));
        }
        Ok(Arc::new(provider))
    }
}

/// How processes speak TLS with each other that meet as equals: gossip, the mesh of the dataflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerTls {
    /// To those who come.
    pub server: ServerTls,
    /// To the others.
    pub client: ClientTls,
}

/// Both ends of such a port. By default they are in the clear.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// Of those who come.
    pub acceptor: Acceptor,
    /// To the others.
    pub connector: Connector,
}

impl Peers {
    /// Both ends; in the clear where nothing is said.
    ///
    /// # Errors
    /// As [`ServerTls::config`] and [`Connector::new`].
    pub fn new(tls: Option<&PeerTls>) -> Result<Self, TlsError> {
        Ok(Self { acceptor: Acceptor::new(tls.map(|tls| &tls.server))?, connector: Connector::new(tls.map(|tls| tls.client.clone()))? })
    }
}

/// What was made of files, to be made again when they have changed.
#[derive(Debug)]
struct Renewed<T, const FILES: usize>(Mutex<([Option<SystemTime>; FILES], Arc<T>)>);

impl<T, const FILES: usize> Renewed<T, FILES> {
    fn new(written: [Option<SystemTime>; FILES], made: Arc<T>) -> Self {
        Self(Mutex::new((written, made)))
    }

    /// What comes of the files, which were `written` last at these times; of those before, if nothing comes of these, which `failed` is told once.
    fn get(
        &self,
        written: [Option<SystemTime>; FILES],
        make: impl FnOnce() -> Result<Arc<T>, TlsError>,
        failed: impl FnOnce(TlsError),
    ) -> Arc<T> {
        let mut current = self.0.lock();
        if current.0 != written {
            // Until the files change again, also where reading fails: a half-written pair is followed by a whole one.
            current.0 = written;
            match make() {
                Ok(renewed) => current.1 = renewed,
                Err(error) => failed(error),
            }
        }
        Arc::clone(&current.1)
    }
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub enum Connection {
    /// As it came.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// The same connection for threads that block.
    ///
    /// # Errors
    /// The socket cannot be made to block.
    pub fn into_blocking(self) -> io::Result<Duplex> {
        Duplex::new(self)
    }
}

/// Why a connection cannot be written to: a server may have said so before it closed, and whoever only writes has not read that yet. The runtime
/// need not know that there is something to read, so the socket itself is asked; it does not block.
fn reason(stream: &mut TlsStream<TcpStream>, error: io::Error) -> io::Error {
    let TlsStream::Client(stream) = stream else { return error };
    let (socket, session) = stream.get_mut();
    let Ok(socket) = socket.as_fd().try_clone_to_owned() else { return error };
    let socket = std::net::TcpStream::from(socket);
    while session.read_tls(&mut &socket).is_ok_and(|read| read > 0) {
        if let Err(told) = session.process_new_packets() {
            return io::Error::new(io::ErrorKind::InvalidData, told);
        }
    }
    error
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => {
                let written = Pin::new(&mut *stream).poll_write(cx, buf);
                written.map_err(|error| reason(stream, error))
            }
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => {
                let written = Pin::new(&mut *stream).poll_write_vectored(cx, bufs);
                written.map_err(|error| reason(stream, error))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => {
                let flushed = Pin::new(&mut *stream).poll_flush(cx);
                flushed.map_err(|error| reason(stream, error))
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
