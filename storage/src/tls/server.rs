//! The side that is connected to.

use std::{io, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::CryptoProvider,
        server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
        sign::CertifiedKey,
    },
};

use super::{Connection, HTTP2, Identity, Pem, Protocol, Renewed, TlsError};

/// What a listener demands of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Nothing.
    None,
    /// That it be signed by one of these, if there is one.
    IfGiven(Pem),
    /// That there be one, signed by one of these.
    Required(Pem),
}

/// How a listener speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Who it is.
    pub identity: Identity,
    /// Who may connect.
    pub clients: ClientAuth,
    /// Versions and suites.
    pub protocol: Protocol,
}

impl ServerTls {
    /// What rustls needs to accept connections so. HTTP/2 is offered before HTTP/1.1, to those who ask.
    ///
    /// # Errors
    /// A file that cannot be read or that does not hold what it should, a key of another certificate, an unknown suite.
    pub fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = self.protocol.provider()?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(self.protocol.versions())?;
        let verifier = |roots: &Pem| {
            Ok::<_, TlsError>(WebPkiClientVerifier::builder_with_provider(Arc::new(roots.authorities()?), Arc::clone(&provider)))
        };
        let builder = match &self.clients {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::IfGiven(roots) => builder.with_client_cert_verifier(verifier(roots)?.allow_unauthenticated().build()?),
            ClientAuth::Required(roots) => builder.with_client_cert_verifier(verifier(roots)?.build()?),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Certificate::new(self.identity.clone(), provider)?));
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// Makes of those who come [`Connection`]s. That of nothing leaves them as they are.
#[derive(Clone, Default)]
pub struct Acceptor(Option<TlsAcceptor>);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("is_encrypted", &self.is_encrypted()).finish()
    }
}

impl Acceptor {
    /// # Errors
    /// As [`ServerTls::config`].
    pub fn new(tls: Option<&ServerTls>) -> Result<Self, TlsError> {
        Ok(Self(tls.map(ServerTls::config).transpose()?.map(TlsAcceptor::from)))
    }

    /// Whether connections are encrypted: then accepting takes as long as the client lets it.
    pub fn is_encrypted(&self) -> bool {
        self.0.is_some()
    }

    /// # Errors
    /// The client does not speak TLS, or is not let in; the error's text is the cause.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Connection> {
        match &self.0 {
            None => Ok(Connection::Plain(stream)),
            Some(acceptor) => Ok(Connection::Tls(Box::new(acceptor.accept(stream).await?.into()))),
        }
    }
}

/// A certificate and its key, read again when their files have changed.
#[derive(Debug)]
struct Certificate {
    identity: Identity,
    provider: Arc<CryptoProvider>,
    current: Renewed<CertifiedKey, 2>,
}

impl Certificate {
    fn new(identity: Identity, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let current = Renewed::new(identity.stamp(), identity.certified(&provider)?);
        Ok(Self { identity, provider, current })
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let failed = |error| tracing::warn!(%error, "cannot renew the certificate, the old one stays");
        Some(self.current.get(self.identity.stamp(), || self.identity.certified(&self.provider), failed))
    }
}
