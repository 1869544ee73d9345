//! A receiver of remote write in this process, that fails as it is told to and complains of everything that a receiver could refuse.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::remote_write::protocol::{Exemplar, Histogram, Label, Sample, TimeSeries, v1, v2};

/// What happens to a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is written and answered.
    None,
    /// This status, with these headers, and nothing is written.
    Status(u16, &'static str),
    /// The connection is closed before the answer; nothing is written.
    Cut,
    /// It is written, and the connection is closed before the answer.
    CutAfterWriting,
    /// It is written and answered after this long.
    Slow(Duration),
}

/// A series as text: `name{label="value",…}`.
pub(crate) type Key = String;

#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Values by time. A series of native histograms has their counts.
    pub(crate) series: BTreeMap<Key, BTreeMap<i64, f64>>,
    pub(crate) histograms: BTreeMap<Key, Vec<Histogram>>,
    pub(crate) exemplars: Vec<(Key, Exemplar)>,
    pub(crate) metadata: Vec<v1::MetricMetadata>,
    /// When each series began, as every request of protocol 2.0 said.
    pub(crate) began: BTreeMap<Key, Vec<i64>>,
    /// The headers of every request, also of those that failed, names in lower case.
    pub(crate) requests: Vec<BTreeMap<String, String>>,
    /// What a receiver would refuse.
    pub(crate) complaints: Vec<String>,
    /// Why connections did not come about.
    pub(crate) refused_handshakes: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    stored: Mutex<Stored>,
    faults: Mutex<VecDeque<Fault>>,
    /// Whether protocol 2.0 is understood.
    knows_v2: bool,
    /// Whether other protocols are answered by 415, or swallowed.
    is_strict: bool,
}

/// See the module documentation. Listens until dropped.
#[derive(Debug)]
pub(crate) struct Receiver {
    state: Arc<State>,
    pub(crate) url: String,
    task: JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        Self::of(State { knows_v2: true, is_strict: true, ..State::default() }, None).await
    }

    /// One that speaks TLS and only with clients that have a certificate.
    pub(crate) async fn of_tls() -> Self {
        Self::of(State { knows_v2: true, is_strict: true, ..State::default() }, Some(acceptor())).await
    }

    /// One that knows only protocol 1.0, and says so or not.
    pub(crate) async fn of_v1(is_strict: bool) -> Self {
        Self::of(State { is_strict, ..State::default() }, None).await
    }

    async fn of(state: State, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/api/v1/push", listener.local_addr().expect("bound"));
        let state = Arc::new(state);
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => state.serve(stream).await,
                        // A client that refuses us, or that we refuse, goes away.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => state.serve(stream).await,
                            Err(error) => state.stored.lock().refused_handshakes.push(error.to_string()),
                        },
                    }
                });
            }
        });
        Self { state, url, task }
    }

    /// The next requests fail so.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().extend(faults);
    }

    /// The faults that are left are taken back.
    pub(crate) fn fail_no_more(&self) {
        self.state.faults.lock().clear();
    }

    pub(crate) fn faults_left(&self) -> usize {
        self.state.faults.lock().len()
    }

    pub(crate) fn stored<T>(&self, look: impl FnOnce(&Stored) -> T) -> T {
        look(&self.state.stored.lock())
    }

    /// The values of a series in the order of time.
    pub(crate) fn values(&self, key: &str) -> Vec<f64> {
        self.stored(|stored| stored.series.get(key).map(|series| series.values().copied().collect()).unwrap_or_default())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl State {
    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut stream = BufReader::new(stream);
        while let Some((headers, body)) = read_request(&mut stream).await {
            let fault = self.faults.lock().pop_front().unwrap_or(Fault::None);
            self.stored.lock().requests.push(headers.clone());
            let answer = match fault {
                Fault::Cut => return,
                Fault::Status(status, headers) => format!("HTTP/1.1 {status} Whatever\r\n{headers}Content-Length: 4\r\n\r\nnope"),
                Fault::CutAfterWriting => {
                    self.write(&headers, &body);
                    return;
                }
                Fault::Slow(pause) => {
                    tokio::time::sleep(pause).await;
                    self.write(&headers, &body)
                }
                Fault::None => self.write(&headers, &body),
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// Takes a request in; returns the answer.
    fn write(&self, headers: &BTreeMap<String, String>, body: &[u8]) -> String {
        let stored = &mut *self.stored.lock();
        let content_type = headers.get("content-type").map_or("", String::as_str);
        let is_v2 = content_type.ends_with("proto=io.prometheus.write.v2.Request");
        let message = snap::raw::Decoder::new().decompress_vec(body).expect("snappy");
        if is_v2 && !self.knows_v2 {
            if self.is_strict {
                return "HTTP/1.1 415 Unsupported Media Type\r\nContent-Length: 0\r\n\r\n".to_owned();
            }
            // The messages share no field: what is read is empty.
            assert_eq!(v1::WriteRequest::decode(message.as_slice()).expect("a message").timeseries, []);
            return "HTTP/1.1 204 No Content\r\n\r\n".to_owned();
        }
        let version = headers.get("x-prometheus-remote-write-version").map(String::as_str);
        assert_eq!(version, Some(if is_v2 { "2.0.0" } else { "0.1.0" }));
        let series = if is_v2 {
            let request = v2::Request::decode(message.as_slice()).expect("a message");
            assert_eq!(request.symbols.first().map(|text| text.len()), Some(0), "symbols begin with the empty text");
            request.timeseries.iter().map(|series| stored.desymbolize(&request.symbols, series)).collect()
        } else {
            let request = v1::WriteRequest::decode(message.as_slice()).expect("a message");
            stored.metadata.extend(request.metadata);
            let says_it = |series: &TimeSeries| series.samples.iter().any(|sample| sample.start_timestamp != 0);
            assert!(!request.timeseries.iter().any(says_it), "protocol 1.0 does not know when a series began");
            request.timeseries
        };
        let mut counts = [0, 0, 0];
        for series in series {
            counts[0] += series.samples.len();
            counts[1] += series.histograms.len();
            counts[2] += series.exemplars.len();
            stored.add(series);
        }
        let [samples, histograms, exemplars] = counts;
        let told = if is_v2 {
            format!(
                "X-Prometheus-Remote-Write-Samples-Written: {samples}\r\nX-Prometheus-Remote-Write-Histograms-Written: {histograms}\r\n\
                 X-Prometheus-Remote-Write-Exemplars-Written: {exemplars}\r\n"
            )
        } else {
            String::new()
        };
        format!("HTTP/1.1 204 No Content\r\n{told}\r\n")
    }
}

impl Stored {
    /// A series in the form of protocol 1.0. What it says of its beginning is noted.
    fn desymbolize(&mut self, symbols: &[bytes::Bytes], series: &v2::TimeSeries) -> TimeSeries {
        let plain = desymbolized(symbols, series);
        let samples = plain.samples.iter().map(|sample| sample.start_timestamp);
        let began = samples.chain(plain.histograms.iter().map(|histogram| histogram.start_timestamp));
        assert!(began.eq([series.created_timestamp]), "receivers old and new are told the same");
        self.began.entry(key(&plain.labels)).or_default().push(series.created_timestamp);
        plain
    }

    fn add(&mut self, series: TimeSeries) {
        let key = key(&series.labels);
        let names: Vec<&[u8]> = series.labels.iter().map(|label| &*label.name).collect();
        if !names.is_sorted_by(|a, b| a < b) || series.labels.iter().any(|label| label.value.is_empty()) {
            self.complaints.push(format!("labels of {key} are not sorted, repeated or empty"));
        }
        if series.samples.len() + series.histograms.len() != 1 {
            self.complaints.push(format!("{} samples of {key} in one request", series.samples.len() + series.histograms.len()));
        }
        for Sample { timestamp, value, .. } in series.samples {
            self.put(&key, timestamp, value);
        }
        for histogram in series.histograms {
            self.put(&key, histogram.timestamp, histogram.count_int.unwrap_or_default() as f64);
            self.histograms.entry(key.clone()).or_default().push(histogram);
        }
        self.exemplars.extend(series.exemplars.into_iter().map(|exemplar| (key.clone(), exemplar)));
    }

    fn put(&mut self, key: &str, timestamp: i64, value: f64) {
        let series = self.series.entry(key.to_owned()).or_default();
        match series.last_key_value() {
            // What was written and not answered is sent again.
            Some((last, same)) if *last == timestamp && same.to_bits() == value.to_bits() => {}
            Some((last, _)) if *last >= timestamp => self.complaints.push(format!("{key}: {timestamp} comes after {last}")),
            _ => drop(series.insert(timestamp, value)),
        }
    }
}

/// The server's side of the certificates beside this file, which one authority has signed for tests.
fn acceptor() -> TlsAcceptor {
    let certificates = |pem: &[u8]| CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().expect("certificates");
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(include_bytes!("tls/ca.pem")));
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("an authority");
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).expect("a key");
    let config = ServerConfig::builder().with_client_cert_verifier(verifier);
    let config = config.with_single_cert(certificates(include_bytes!("tls/server.pem")), key).expect("they belong together");
    TlsAcceptor::from(Arc::new(config))
}

fn desymbolized(symbols: &[bytes::Bytes], series: &v2::TimeSeries) -> TimeSeries {
    let labels = |refs: &[u32]| {
        let pair = |pair: &[u32]| Label { name: symbols[pair[0] as usize].clone(), value: symbols[pair[1] as usize].clone() };
        refs.chunks_exact(2).map(pair).collect::<Vec<_>>()
    };
    let exemplar =
        |exemplar: &v2::Exemplar| Exemplar { labels: labels(&exemplar.labels_refs), value: exemplar.value, timestamp: exemplar.timestamp };
    assert!(series.metadata.is_some_and(|metadata| metadata.r#type > 0 && !symbols[metadata.help_ref as usize].is_empty()));
    TimeSeries {
        labels: labels(&series.labels_refs),
        samples: series.samples.clone(),
        exemplars: series.exemplars.iter().map(exemplar).collect(),
        histograms: series.histograms.clone(),
    }
}

pub(crate) fn key(labels: &[Label]) -> Key {
    let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).expect("text");
    let name = labels.iter().find(|label| label.name == "__name__").map(|label| text(&label.value)).unwrap_or_default();
    let pairs: Vec<String> = labels
        .iter()
        .filter(|label| label.name != "__name__")
        .map(|label| format!("{}=\"{}\"", text(&label.name), text(&label.value)))
        .collect();
    format!("{name}{{{}}}", pairs.join(","))
}

async fn read_request(stream: &mut BufReader<impl AsyncRead + Unpin>) -> Option<(BTreeMap<String, String>, Vec<u8>)> {
    let mut headers = BTreeMap::new();
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
    assert!(line.starts_with("POST /api/v1/push HTTP/1.1"), "{line}");
    loop {
        line.clear();
        stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length")?.parse().expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((headers, body))
}
