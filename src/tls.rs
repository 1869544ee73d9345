//! TLS of listeners: certificates, who may connect, and connections that are encrypted or not.
//!
//! ```text
//!  TcpListener ──► Listener ──► plain: as it is accepted
//!                          └──► TLS:   handshakes in tasks of their own, bounded in number and time ──► channel
//! ```
//!
//! A handshake never stands in the way of another, and a client that says nothing is gone after [`HANDSHAKE_TIME`]. Certificates in files are read
//! again when the files have changed, as Tempo does, so that they can be renewed under a running process; what cannot be read leaves the old one
//! in place and says so.

use std::{
    fs,
    io::{self, IoSlice},
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, SupportedProtocolVersion,
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
        sign::CertifiedKey,
        version,
    },
    server::TlsStream,
};
use tonic::transport::server::Connected;

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Handshakes at a time; more wait to be accepted.
const MAX_HANDSHAKES: usize = 256;
/// Connections that may wait between their handshake and the server.
const READY_CONNECTIONS: usize = 16;

/// Text in PEM: where it is, or itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pem {
    /// In a file.
    File(PathBuf),
    /// In the configuration.
    Inline(String),
}

/// What a listener demands of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClientAuth {
    /// Nothing.
    None,
    /// That it be signed by one of these, if there is one.
    IfGiven(Pem),
    /// That there be one, signed by one of these.
    Required(Pem),
}

/// How a listener speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerTls {
    /// The certificate, its chain after it.
    pub(crate) cert: Pem,
    /// Its private key.
    pub(crate) key: Pem,
    /// Who may connect.
    pub(crate) clients: ClientAuth,
    /// 1.3 and nothing older.
    pub(crate) only_tls13: bool,
    /// Suites by their names in the standard; empty is what is safe. TLS 1.3 has its own, always.
    pub(crate) cipher_suites: Vec<String>,
}

impl Pem {
    fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::File(path) => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
            Self::Inline(text) => Ok(text.clone().into_bytes()),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline(_) => "the inline text".to_owned(),
        }
    }

    fn certificates(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let certificates = CertificateDer::pem_slice_iter(&self.read()?).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.with_context(|| format!("{} is not PEM", self.name()))?;
        anyhow::ensure!(!certificates.is_empty(), "{} holds no certificate", self.name());
        Ok(certificates)
    }

    fn modified(&self) -> Option<SystemTime> {
        let Self::File(path) = self else { return None };
        modified(path)
    }
}

/// When a file was written last, if it can be seen.
pub(crate) fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

impl ServerTls {
    /// What rustls needs to accept connections so. HTTP/2 is offered before HTTP/1.1.
    ///
    /// # Errors
    /// A file that cannot be read or that does not hold what it should, a key of another certificate, an unknown suite.
    pub(crate) fn config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let mut provider = aws_lc_rs::default_provider();
        if !self.cipher_suites.is_empty() {
            provider.cipher_suites = suites(&provider, &self.cipher_suites)?;
        }
        let provider = Arc::new(provider);
        let versions: &[&SupportedProtocolVersion] = if self.only_tls13 { &[&version::TLS13] } else { &[&version::TLS13, &version::TLS12] };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions)?;
        let verifier = |roots: &Pem, may_be_absent: bool| verifier(&provider, roots, may_be_absent);
        let builder = match &self.clients {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::IfGiven(roots) => builder.with_client_cert_verifier(verifier(roots, true)?),
            ClientAuth::Required(roots) => builder.with_client_cert_verifier(verifier(roots, false)?),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Renewed::new(self.cert.clone(), self.key.clone(), provider)?));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The suites of these names, and those of TLS 1.3.
fn suites(provider: &CryptoProvider, names: &[String]) -> anyhow::Result<Vec<tokio_rustls::rustls::SupportedCipherSuite>> {
    let name_of = |suite: &tokio_rustls::rustls::SupportedCipherSuite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
    for name in names {
        anyhow::ensure!(
            provider.cipher_suites.iter().any(|suite| name_of(suite) == *name),
            "cipher suite {name} is not one of {}",
            provider.cipher_suites.iter().map(name_of).collect::<Vec<_>>().join(", ")
        );
    }
    let is_wanted = |suite: &&_| -> bool {
        let suite: &tokio_rustls::rustls::SupportedCipherSuite = suite;
        suite.tls13().is_some() || names.contains(&name_of(suite))
    };
    Ok(provider.cipher_suites.iter().filter(is_wanted).copied().collect())
}

fn verifier(provider: &Arc<CryptoProvider>, roots: &Pem, may_be_absent: bool) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut store = RootCertStore::empty();
    for certificate in roots.certificates()? {
        store.add(certificate).with_context(|| format!("{} holds what is no certificate of an authority", roots.name()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    let builder = if may_be_absent { builder.allow_unauthenticated() } else { builder };
    Ok(builder.build()?)
}

/// A certificate and its key, read again when their files have changed.
#[derive(Debug)]
struct Renewed {
    cert: Pem,
    key: Pem,
    provider: Arc<CryptoProvider>,
    current: Mutex<(Stamp, Arc<CertifiedKey>)>,
}

/// When the files of certificate and key were written.
type Stamp = (Option<SystemTime>, Option<SystemTime>);

impl Renewed {
    fn new(cert: Pem, key: Pem, provider: Arc<CryptoProvider>) -> anyhow::Result<Self> {
        let stamp = (cert.modified(), key.modified());
        let current = Mutex::new((stamp, certified(&cert, &key, &provider)?));
        Ok(Self { cert, key, provider, current })
    }
}

fn certified(cert: &Pem, key: &Pem, provider: &CryptoProvider) -> anyhow::Result<Arc<CertifiedKey>> {
    let private = PrivateKeyDer::from_pem_slice(&key.read()?).with_context(|| format!("{} holds no private key", key.name()))?;
    let certified = CertifiedKey::from_der(cert.certificates()?, private, provider);
    Ok(Arc::new(certified.with_context(|| format!("{} is not the key of {}", key.name(), cert.name()))?))
}

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let stamp = (self.cert.modified(), self.key.modified());
        let mut current = self.current.lock();
        if current.0 != stamp {
            // Until the files change again, also where reading fails: a half-written pair is followed by a whole one.
            current.0 = stamp;
            match certified(&self.cert, &self.key, &self.provider) {
                Ok(renewed) => current.1 = renewed,
                Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot renew the certificate, the old one stays"),
            }
        }
        Some(Arc::clone(&current.1))
    }
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub(crate) enum Connection {
    /// As it came.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Accepts connections; see the module documentation.
#[derive(Debug)]
pub(crate) enum Listener {
    /// In the clear.
    Plain(TcpListener),
    /// Encrypted: connections whose handshakes are done.
    Tls(mpsc::Receiver<(Connection, SocketAddr)>),
}

impl Listener {
    /// Takes a listener over. Must be called inside a runtime.
    ///
    /// # Errors
    /// As [`ServerTls::config`].
    pub(crate) fn new(listener: TcpListener, tls: Option<&ServerTls>) -> anyhow::Result<Self> {
        let Some(tls) = tls else { return Ok(Self::Plain(listener)) };
        let acceptor = TlsAcceptor::from(tls.config()?);
        let (sender, ready) = mpsc::channel(READY_CONNECTIONS);
        tokio::spawn(handshakes(listener, acceptor, sender));
        Ok(Self::Tls(ready))
    }

    /// The next connection. Never fails: what goes wrong with one is its own affair.
    pub(crate) async fn next(&mut self) -> Option<(Connection, SocketAddr)> {
        match self {
            Self::Plain(listener) => {
                let (stream, peer) = accept(listener).await;
                Some((Connection::Plain(stream), peer))
            }
            Self::Tls(ready) => ready.recv().await,
        }
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Answers go out when they are written.
                _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) => {
                // Out of file descriptors, most likely; there will be some again when connections close.
                tracing::warn!(%error, "cannot accept connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Ends when nobody takes connections any more.
async fn handshakes(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<(Connection, SocketAddr)>) {
    let slots = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let next = async {
            // Never closed: it lives as long as this function.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, accept(&listener).await)
        };
        let (slot, (stream, peer)) = tokio::select! {
            () = ready.closed() => return,
            next = next => next,
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
                // Nobody there any more: the connection closes.
                Ok(Ok(stream)) => _ = ready.send((Connection::Tls(Box::new(stream)), peer)).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_elapsed) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
            drop(slot);
        });
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
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
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
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
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
