//! The side that connects.

use std::{io, sync::Arc, time::SystemTime};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::{Connection, Identity, Pem, Protocol, Renewed, TlsError};

/// How a client speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// Who it is, to servers that ask.
    pub identity: Option<Identity>,
    /// Whose servers it believes; none are the system's authorities.
    pub authorities: Option<Pem>,
    /// The name that the server's certificate must have; none is the host that is connected to.
    pub server_name: Option<String>,
    /// Believe any server.
    pub insecure_skip_verify: bool,
    /// Versions and suites.
    pub protocol: Protocol,
    /// The protocol to be spoken inside (ALPN); none asks for nothing.
    pub alpn: Option<&'static [u8]>,
}

impl ClientTls {
    fn config(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = self.protocol.provider()?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(self.protocol.versions())?;
        let builder = if self.insecure_skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider.signature_verification_algorithms)))
        } else {
            builder.with_root_certificates(match &self.authorities {
                Some(authorities) => authorities.authorities()?,
                None => system_authorities()?,
            })
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                // Says which file is wrong, where rustls only says what.
                identity.certified(&provider)?;
                builder.with_client_auth_cert(identity.cert.certificates()?, identity.key.private_key()?)?
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// When certificate, key and authorities were written.
    fn stamp(&self) -> [Option<SystemTime>; 3] {
        let [cert, key] = self.identity.as_ref().map(Identity::stamp).unwrap_or_default();
        [cert, key, self.authorities.as_ref().and_then(Pem::modified)]
    }
}

fn system_authorities() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(found.certs);
    if added == 0 {
        let why: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::SystemAuthorities(if why.is_empty() { "there are none".to_owned() } else { why.join("; ") }));
    }
    Ok(store)
}

/// Connects to servers. That of nothing connects in the clear.
#[derive(Clone, Debug, Default)]
pub struct Connector(Option<Arc<Encrypted>>);

#[derive(Debug)]
struct Encrypted {
    tls: ClientTls,
    server_name: Option<ServerName<'static>>,
    current: Renewed<ClientConfig, 3>,
}

impl Connector {
    /// Reads all files once, so that what is wrong with them is said at the start.
    ///
    /// # Errors
    /// A file that cannot be read or that does not hold what it should, a key of another certificate, an unknown suite, a wrong name.
    pub fn new(tls: Option<ClientTls>) -> Result<Self, TlsError> {
        let Some(tls) = tls else { return Ok(Self(None)) };
        let server_name = tls.server_name.as_deref().map(name).transpose()?;
        let current = Renewed::new(tls.stamp(), tls.config()?);
        Ok(Self(Some(Arc::new(Encrypted { tls, server_name, current }))))
    }

    /// Whether connections are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.0.is_some()
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.is_encrypted() { "https" } else { "http" }
    }

    /// Connects to `host:port`. Takes as long as the other side lets it; small writes go out at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// Nobody listens, or the other side is not who it should be; the error's text is the cause.
    pub async fn connect(&self, address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(encrypted) = &self.0 else { return Ok(Connection::Plain(stream)) };
        let name = match &encrypted.server_name {
            Some(name) => name.clone(),
            None => name(address.rsplit_once(':').map_or(address, |(host, _)| host)).map_err(io::Error::other)?,
        };
        let stream = TlsConnector::from(encrypted.config()).connect(name, stream).await?;
        Ok(Connection::Tls(Box::new(stream.into())))
    }
}

fn name(host: &str) -> Result<ServerName<'static>, TlsError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::ServerName(host.to_owned()))
}

impl Encrypted {
    fn config(&self) -> Arc<ClientConfig> {
        let failed = |error| tracing::warn!(%error, "cannot renew the certificates of a client, the old ones stay");
        self.current.get(self.tls.stamp(), || self.tls.config(), failed)
    }
}

/// Believes any certificate, and still only whoever has its key.
#[derive(Debug)]
struct AnyServer(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
