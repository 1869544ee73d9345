//! TLS between real sockets: who meets, who is refused and told why, certificates that change under a running process, and connections that two
//! threads share.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use storage::tls::{Acceptor, ClientAuth, ClientTls, Connector, Duplex, HTTP2, Identity, PeerTls, Peers, Pem, Protocol, ServerTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

const CA: &str = include_str!("tls/ca.pem");
const PEER: &str = include_str!("tls/peer.pem");
const PEER_KEY: &str = include_str!("tls/peer.key");
const OTHER_CA: &str = include_str!("tls/other-ca.pem");
const STRANGER: &str = include_str!("tls/stranger.pem");
const STRANGER_KEY: &str = include_str!("tls/stranger.key");

fn inline(text: &str) -> Pem {
    Pem::Inline(text.to_owned())
}

fn peer() -> Identity {
    Identity { cert: inline(PEER), key: inline(PEER_KEY) }
}

fn stranger() -> Identity {
    Identity { cert: inline(STRANGER), key: inline(STRANGER_KEY) }
}

fn server(clients: ClientAuth) -> ServerTls {
    ServerTls { identity: peer(), clients, protocol: Protocol::default() }
}

fn trusting(authorities: Pem) -> ClientTls {
    ClientTls { authorities: Some(authorities), ..ClientTls::default() }
}

/// What an echo comes to: of the client, and of the server.
async fn echo(server: Option<&ServerTls>, client: &Connector) -> (Result<String, String>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let acceptor = Acceptor::new(server).expect("right files");
    let (sender, served) = oneshot::channel();
    tokio::spawn(async move {
        let outcome = async {
            let (stream, _) = listener.accept().await?;
            let mut connection = acceptor.accept(stream).await?;
            let mut word = [0; 5];
            connection.read_exact(&mut word).await?;
            connection.write_all(&word).await?;
            connection.flush().await
        };
        sender.send(outcome.await.map_err(|error| error.to_string())).expect("somebody waits");
    });
    let asked = async {
        let mut connection = client.connect(&address).await?;
        connection.write_all(b"hello").await?;
        connection.flush().await?;
        let mut word = [0; 5];
        connection.read_exact(&mut word).await?;
        Ok(String::from_utf8_lossy(&word).into_owned())
    };
    let answer: io::Result<String> = asked.await;
    (answer.map_err(|error| error.to_string()), served.await.expect("no panic"))
}

/// That neither end is content, and why.
async fn refused(server: &ServerTls, client: ClientTls, of_client: &str, of_server: &str) {
    let (client, server) = echo(Some(server), &Connector::new(Some(client)).expect("right files")).await;
    let (client, server) = (client.expect_err("the client is not content"), server.expect_err("the server is not content"));
    assert!(client.contains(of_client), "client: {client}");
    assert!(server.contains(of_server), "server: {server}");
}

#[tokio::test]
async fn those_who_should_meet_do() {
    let mutual = server(ClientAuth::Required(inline(CA)));
    let known = ClientTls { identity: Some(peer()), ..trusting(inline(CA)) };
    let named = ClientTls { server_name: Some("rubato.test".to_owned()), ..trusting(inline(CA)) };
    let credulous = ClientTls { insecure_skip_verify: true, server_name: Some("anybody".to_owned()), ..ClientTls::default() };
    let newest = Protocol { only_tls13: true, cipher_suites: vec!["TLS_AES_256_GCM_SHA384".to_owned()] };
    for (server, client) in [
        (None, None),
        (Some(server(ClientAuth::None)), Some(trusting(inline(CA)))),
        (Some(server(ClientAuth::IfGiven(inline(CA)))), Some(trusting(inline(CA)))),
        (Some(server(ClientAuth::None)), Some(named)),
        (Some(server(ClientAuth::None)), Some(credulous)),
        (Some(mutual.clone()), Some(known.clone())),
        (Some(ServerTls { protocol: newest.clone(), ..mutual }), Some(ClientTls { protocol: newest, alpn: Some(HTTP2), ..known })),
    ] {
        let connector = Connector::new(client.clone()).expect("right files");
        assert_eq!(connector.scheme(), if client.is_some() { "https" } else { "http" });
        assert_eq!(echo(server.as_ref(), &connector).await, (Ok("hello".to_owned()), Ok(())), "{server:?} {client:?}");
    }
}

#[tokio::test]
async fn those_who_should_not_do_not_and_are_told_why() {
    let open = server(ClientAuth::None);
    let mutual = server(ClientAuth::Required(inline(CA)));
    refused(&open, trusting(inline(OTHER_CA)), "invalid peer certificate: UnknownIssuer", "fatal alert: UnknownCA").await;
    let elsewhere = ClientTls { server_name: Some("elsewhere.test".to_owned()), ..trusting(inline(CA)) };
    refused(&open, elsewhere, "certificate not valid for name \"elsewhere.test\"", "fatal alert").await;
    refused(&mutual, trusting(inline(CA)), "fatal alert: CertificateRequired", "peer sent no certificates").await;
    let unknown = ClientTls { identity: Some(stranger()), ..trusting(inline(CA)) };
    refused(&mutual, unknown, "fatal alert: UnknownCA", "invalid peer certificate: UnknownIssuer").await;
    let (client, server) = echo(Some(&open), &Connector::default()).await;
    assert_ne!(client, Ok("hello".to_owned()), "what comes back is an alert at most");
    assert!(server.expect_err("in the clear").contains("received corrupt message"));
}

#[tokio::test]
async fn a_client_that_only_writes_is_told_why_it_cannot() {
    let acceptor = Acceptor::new(Some(&server(ClientAuth::Required(inline(CA))))).expect("right files");
    let connector = Connector::new(Some(trusting(inline(CA)))).expect("right files");
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let accept = async { acceptor.accept(listener.accept().await.expect("a client").0).await };
        let (refused, connected) = tokio::join!(accept, connector.connect(&address));
        drop(refused.expect_err("it has no certificate"));
        let mut connection = connected.expect("the client's part of the handshake is done");
        let error = loop {
            let written = connection.write_all(&[0; 100]).await;
            if let Err(error) = written.and(connection.flush().await) {
                break error;
            }
        };
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
    }
}

#[test]
fn wrong_files_are_named() {
    let error = |client: ClientTls| Connector::new(Some(client)).map(|_| ()).expect_err("wrong files").to_string();
    let nowhere = Pem::File("/nowhere/ca.pem".into());
    assert!(error(trusting(nowhere)).starts_with("cannot read /nowhere/ca.pem: "));
    assert!(error(trusting(inline("text"))).starts_with("the inline text holds no certificate"));
    let crossed = Identity { cert: inline(PEER), key: inline(STRANGER_KEY) };
    let crossed = ClientTls { identity: Some(crossed), ..trusting(inline(CA)) };
    assert!(error(crossed).starts_with("the inline text is not the key of the inline text: "));
    let suite = Protocol { only_tls13: false, cipher_suites: vec!["TLS_RSA_WITH_RC4_128_SHA".to_owned()] };
    assert!(
        error(ClientTls { protocol: suite, ..trusting(inline(CA)) }).starts_with("cipher suite TLS_RSA_WITH_RC4_128_SHA is not one of ")
    );
    let named = ClientTls { server_name: Some("no name".to_owned()), ..trusting(inline(CA)) };
    assert_eq!(error(named), "\"no name\" is not the name of a server");
    assert_eq!(format!("{:?}", peer()), "Identity { cert: the inline text, key: the inline text }", "a key is not shown");
}

/// Writes a file as of a second of its own, whatever the clock of the file system.
fn write(path: &Path, text: &str, second: u64) {
    fs::write(path, text).expect("writable");
    let file = fs::File::options().write(true).open(path).expect("there");
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).expect("ours");
}

#[tokio::test]
async fn what_is_renewed_in_files_is_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let file = |name: &str| Pem::File(path(name));
    let identity = || Identity { cert: file("cert"), key: file("key") };
    write(&path("ca"), OTHER_CA, 1);
    write(&path("cert"), STRANGER, 1);
    write(&path("key"), STRANGER_KEY, 1);
    let client = Connector::new(Some(ClientTls { identity: Some(identity()), ..trusting(file("ca")) })).expect("right files");
    let mutual = server(ClientAuth::Required(inline(CA)));
    assert!(echo(Some(&mutual), &client).await.0.expect_err("another authority").contains("UnknownIssuer"));
    write(&path("ca"), CA, 2);
    assert!(echo(Some(&mutual), &client).await.0.expect_err("another certificate").contains("UnknownCA"));
    write(&path("cert"), PEER, 2);
    assert!(echo(Some(&mutual), &client).await.0.expect_err("half a pair: the old one stays").contains("UnknownCA"));
    write(&path("key"), PEER_KEY, 2);
    assert_eq!(echo(Some(&mutual), &client).await, (Ok("hello".to_owned()), Ok(())));
    // Of a server, too.
    let renewed = ServerTls { identity: identity(), ..server(ClientAuth::None) };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let acceptor = Acceptor::new(Some(&renewed)).expect("right files");
    let client = Connector::new(Some(trusting(inline(OTHER_CA)))).expect("right files");
    let meet = async || {
        let (accepted, connected) = tokio::join!(async { acceptor.accept(listener.accept().await?.0).await }, client.connect(&address));
        drop(accepted);
        connected.is_ok()
    };
    assert!(!meet().await, "it has the certificate of another authority");
    write(&path("cert"), STRANGER, 3);
    write(&path("key"), STRANGER_KEY, 3);
    assert!(meet().await);
}

/// Bytes that depend on where they are, so that none can be lost, repeated or swapped.
fn pattern(from: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| from.wrapping_add((at / 251) as u8).wrapping_mul(31).wrapping_add(at as u8)).collect()
}

/// Both ends of a connection for threads that block.
async fn duplexes(encrypted: bool) -> [Duplex; 2] {
    let (server, client) = (server(ClientAuth::Required(inline(CA))), ClientTls { identity: Some(peer()), ..trusting(inline(CA)) });
    let tls = encrypted.then_some(PeerTls { server, client });
    let Peers { acceptor, connector } = Peers::new(tls.as_ref()).expect("right files");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let accept = async { acceptor.accept(listener.accept().await?.0).await };
    let (accepted, connected) = tokio::try_join!(accept, connector.connect(&address)).expect("they know each other");
    [accepted, connected].map(|connection| connection.into_blocking().expect("blocks"))
}

#[tokio::test]
async fn two_threads_read_and_write_one_connection() {
    // Far more than the sockets hold, so that writers wait for the other side's readers.
    const BYTES: usize = 24 << 20;
    for encrypted in [false, true] {
        let ends = duplexes(encrypted).await;
        thread::scope(|scope| {
            for (index, end) in ends.iter().enumerate() {
                scope.spawn(move || {
                    let bytes = pattern(index as u8, BYTES);
                    let (mut rest, mut piece) = (&bytes[..], 1);
                    while !rest.is_empty() {
                        let (now, later) = rest.split_at(piece.min(rest.len()));
                        (&*end).write_all(now).expect("the other reads");
                        rest = later;
                        piece = piece * 7 % 100_003;
                    }
                });
                scope.spawn(move || {
                    let expected = pattern(1 - index as u8, BYTES);
                    let (mut at, mut piece, mut buffer) = (0, 1, vec![0; 70_000]);
                    while at < BYTES {
                        let read = (&*end).read(&mut buffer[..piece]).expect("the other writes");
                        assert!(read > 0, "not before its end");
                        assert!(buffer[..read] == expected[at..at + read], "at {at}");
                        at += read;
                        piece = piece * 13 % 69_997;
                    }
                });
            }
        });
        let [one, other] = &ends;
        thread::scope(|scope| {
            let blocked = scope.spawn(|| { one }.read(&mut [0; 16]));
            one.shutdown(Shutdown::Both).expect("open");
            assert_eq!(blocked.join().expect("no panic").expect("an end"), 0, "a blocked read returns");
        });
        assert_eq!({ other }.read(&mut [0; 16]).expect("an end"), 0);
    }
}

#[tokio::test]
async fn bytes_that_are_not_the_sessions_end_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let between = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
    let (of_listener, of_between) = (address(&listener), address(&between));
    let (met, have_met) = oneshot::channel();
    // Passes on what both say until they have met, and then says something itself.
    let meddler = tokio::spawn(async move {
        let (mut client, _) = between.accept().await.expect("a client");
        let mut server = TcpStream::connect(of_listener).await.expect("it listens");
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = have_met => {}
        }
        server.write_all(&[0x17, 3, 3, 0, 5, 1, 2, 3, 4, 5]).await.expect("written");
        (client, server)
    });
    let acceptor = Acceptor::new(Some(&server(ClientAuth::None))).expect("right files");
    let connector = Connector::new(Some(trusting(inline(CA)))).expect("right files");
    let accept = async { acceptor.accept(listener.accept().await?.0).await };
    let (accepted, _connected) = tokio::try_join!(accept, connector.connect(&of_between)).expect("they know each other");
    met.send(()).expect("it waits");
    let _open = meddler.await.expect("no panic");
    let accepted = accepted.into_blocking().expect("blocks");
    let error = { &accepted }.read(&mut [0; 16]).expect_err("nobody encrypted this");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
}
