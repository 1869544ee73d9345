//! The ends of other members' logs: acknowledged and not yet with the owner of their traces.
//!
//! ```text
//!  question ─► process i ─┬─ the end of its own log ────────────────┐
//!                         └─ Tails::fetch from each other ingester ─┴─ segments of traces that process i owns ─► its workers
//! ```
//!
//! A process answers for the traces that its own workers own. Spans of them also lie in the logs of others, beyond what all operators
//! have taken in; so before it asks its workers it fetches those. What a member leaves out of its end, because all operators have taken it
//! in, is with the workers of whoever asked, since they are among those operators.
//!
//! [`MeshTails`] fetches over the mesh: a connection for each question, on which the question goes as a frame of JSON, and the answer comes
//! as one, followed by the segments, each a length and a [`Journey`]. Both sides have a deadline and bounds for what they take in.

use std::{fmt, sync::Arc, time::Duration};

use prost::Message;
use serde::{Deserialize, Serialize};
use storage::{
    id::{SpanKey, Tenant, TraceId},
    otlp::{self, Slice, Walk},
    segment::{Segment, SpanRef},
    tls::Connection as Connected,
    wal::{Position, Wal},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter},
    runtime::Handle,
    sync::{Semaphore, mpsc},
};

use crate::{
    cluster::{
        Cluster, Epoch, Member,
        wire::{self, WireError, within},
    },
    handle::{Connection, DataflowError, Link},
    records::place,
    worker::hash,
};

/// Records that the end of one log may add to one answer, in bytes. More than this waits only while the bucket is away or a long log is
/// read again.
pub(crate) const MAX_TAIL_BYTES: usize = 256 << 20;
/// How long a fetch, or the answer to one, may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Questions that are answered at the same time.
const MAX_ANSWERS: usize = 16;
/// Longest answer to a fetch that this process takes in: a segment may be longer than its share of a record, by what it shares.
const MAX_ANSWER_BYTES: usize = 2 * MAX_TAIL_BYTES;
/// Segments in such an answer.
const MAX_SEGMENTS: usize = MAX_TAIL_BYTES / 16;

/// What a process asks another one for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TailQuestion {
    /// The generation in which both take part; in any other the question has no answer.
    pub epoch: Epoch,
    /// Whose spans.
    pub tenant: Tenant,
    /// Of which trace; `None` for all.
    pub trace_id: Option<TraceId>,
    /// Index of the process that asks: it wants the traces that its workers own.
    pub owner: usize,
}

/// Reaches other members.
#[async_trait::async_trait]
pub trait Tails: fmt::Debug + Send + Sync {
    /// What the member's log holds beyond what all operators have taken in.
    ///
    /// # Errors
    /// The member cannot be reached, or is not in that generation.
    async fn fetch(&self, member: &Member, question: &TailQuestion) -> Result<Vec<Segment>, Box<dyn std::error::Error + Send + Sync>>;
}

/// The end of this process's own log.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) link: Arc<Link>,
    pub(crate) wal: Option<Wal>,
    pub(crate) runtime: Handle,
}

impl Ends {
    /// For another member of the generation.
    pub(crate) async fn tail(&self, question: &TailQuestion) -> Result<Vec<Arc<Segment>>, DataflowError> {
        let connection = self.link.get().filter(|connection| connection.epoch.as_ref() == Some(&question.epoch));
        let connection = connection.filter(|connection| question.owner < connection.seat.processes());
        let connection = connection.ok_or(DataflowError::Reforming)?;
        self.end(&connection, &question.tenant, question.trace_id, question.owner).await
    }

    /// What the operators have not taken in, of traces that a process owns.
    pub(crate) async fn end(
        &self,
        connection: &Connection,
        tenant: &Tenant,
        trace_id: Option<TraceId>,
        owner: usize,
    ) -> Result<Vec<Arc<Segment>>, DataflowError> {
        let Some(wal) = self.wal.clone().filter(|_| connection.seat.feeds(connection.seat.index)) else { return Ok(Vec::new()) };
        let from = connection.shared.applied();
        let head = *wal.head().borrow();
        if from >= head {
            return Ok(Vec::new());
        }
        let (tenant, log) = (tenant.clone(), connection.seat.index);
        let (owners, owned) = (connection.seat.trace_workers(), connection.seat.workers(owner));
        let is_wanted = move |segment: &Segment| {
            trace_id.is_none_or(|trace_id| trace_id == segment.trace_id)
                && usize::try_from(owners.of(hash(&segment.tenant, segment.trace_id))).is_ok_and(|worker| owned.contains(&worker))
        };
        let scan = self.runtime.spawn_blocking(move || -> Result<Vec<Arc<Segment>>, DataflowError> {
            let mut reader = wal.reader(from)?;
            let (mut found, mut bytes, mut records, mut walk) = (Vec::new(), 0, Vec::new(), Walk::default());
            while reader.position() < head {
                records.clear();
                reader.read(1 << 20, &mut records)?;
                if records.is_empty() {
                    break;
                }
                for record in records.iter().filter(|record| record.tenant == tenant) {
                    if otlp::index(&record.body, &mut walk).is_ok() {
                        let before = found.len();
                        let segments = Segment::split(&record.tenant, place(log, record.position), &record.body, &walk);
                        found.extend(segments.into_iter().filter(&is_wanted).map(Arc::new));
                        bytes += if found.len() > before { record.body.len() } else { 0 };
                        if bytes > MAX_TAIL_BYTES {
                            return Err(DataflowError::Backlog { bytes: head.0 - from.0 });
                        }
                    }
                }
            }
            Ok(found)
        });
        scan.await.map_err(|_| DataflowError::Stopped)?
    }

    /// Answers the members that ask over the mesh, until there is no mesh any more.
    pub(crate) async fn answer_all(self, mut asking: mpsc::Receiver<Connected>) {
        let room = Arc::new(Semaphore::new(MAX_ANSWERS));
        while let Some(socket) = asking.recv().await {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let ends = self.clone();
            tokio::spawn(async move {
                let answered = async {
                    let mut socket = BufWriter::new(socket);
                    ends.answer(&mut socket).await
                };
                if let Err(error) = within(FETCH_TIMEOUT, answered).await {
                    tracing::warn!(%error, "member that asked for the end of the log has no answer");
                }
                drop(permit);
            });
        }
    }

    async fn answer(&self, socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), WireError> {
        let question: TailQuestion = wire::read_frame(socket).await?;
        let (segments, refused) = match self.tail(&question).await {
            Ok(segments) => (segments, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        wire::write_frame(socket, &Answer { refused, segments: segments.len() }).await?;
        for segment in segments {
            wire::write_bytes(socket, &Journey::of(&segment).encode_to_vec()).await?;
        }
        Ok(socket.flush().await?)
    }
}

/// How an answer begins.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    /// Why there is none.
    refused: Option<String>,
    /// How many follow.
    segments: usize,
}

/// A segment on its way from one process to another.
#[derive(Clone, PartialEq, Message)]
struct Journey {
    #[prost(string, tag = "1")]
    tenant: String,
    #[prost(bytes = "vec", tag = "2")]
    trace_id: Vec<u8>,
    /// Its place: see [`crate::records`].
    #[prost(uint64, tag = "3")]
    place: u64,
    #[prost(bytes = "bytes", tag = "4")]
    body: bytes::Bytes,
    #[prost(message, repeated, tag = "5")]
    spans: Vec<Stop>,
}

/// A span of it, with slices of its body as beginnings and ends: resource, scope, span.
#[derive(Clone, PartialEq, Message)]
struct Stop {
    #[prost(fixed64, tag = "1")]
    span_id: u64,
    #[prost(int32, tag = "2")]
    kind: i32,
    #[prost(fixed64, tag = "3")]
    start_ns: u64,
    #[prost(uint32, repeated, tag = "4")]
    slices: Vec<u32>,
}

impl Journey {
    fn of(segment: &Segment) -> Self {
        let Segment { tenant, trace_id, position, body, spans } = segment.compacted();
        let stop = |SpanRef { key, start_ns, resource, scope, span }: SpanRef| Stop {
            span_id: key.span_id,
            kind: key.kind,
            start_ns,
            slices: [resource, scope, span].iter().flat_map(|slice| [slice.start, slice.end]).collect(),
        };
        let spans = spans.into_iter().map(stop).collect();
        Self { tenant: tenant.as_str().to_owned(), trace_id: trace_id.0.to_vec(), place: position.0, body, spans }
    }

    fn end(self) -> Result<Segment, String> {
        let stop = |Stop { span_id, kind, start_ns, slices }: Stop| {
            let [a, b, c, d, e, f] = <[u32; 6]>::try_from(slices).map_err(|slices| format!("{} ends of slices", slices.len()))?;
            let slice = |start, end| Slice { start, end };
            Ok(SpanRef { key: SpanKey { span_id, kind }, start_ns, resource: slice(a, b), scope: slice(c, d), span: slice(e, f) })
        };
        let segment = Segment {
            tenant: Tenant::new(&self.tenant).map_err(|error| error.to_string())?,
            trace_id: TraceId(self.trace_id.try_into().map_err(|_| "trace id is not 16 bytes")?),
            position: Position(self.place),
            body: self.body,
            spans: self.spans.into_iter().map(stop).collect::<Result<_, String>>()?,
        };
        Ok(segment.checked()?)
    }
}

/// Why a member's answer is none.
#[derive(Debug, thiserror::Error)]
enum TailError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("it refused: {0}")]
    Refused(String),
    #[error("its answer is not understood: {0}")]
    Answer(String),
}

/// Fetches over the mesh; the other side answers by itself.
#[derive(Debug)]
pub(crate) struct MeshTails(pub(crate) Arc<Cluster>);

#[async_trait::async_trait]
impl Tails for MeshTails {
    async fn fetch(&self, member: &Member, question: &TailQuestion) -> Result<Vec<Segment>, Box<dyn std::error::Error + Send + Sync>> {
        let fetched = async {
            let mut socket = self.0.ask(member).await?;
            wire::write_frame(&mut socket, question).await?;
            Ok::<_, WireError>(read_answer(&mut BufReader::new(socket)).await)
        };
        Ok(within(FETCH_TIMEOUT, fetched).await.map_err(TailError::from)??)
    }
}

async fn read_answer(socket: &mut (impl AsyncRead + Unpin)) -> Result<Vec<Segment>, TailError> {
    let answer: Answer = wire::read_frame(socket).await?;
    if let Some(refused) = answer.refused {
        return Err(TailError::Refused(refused));
    }
    if answer.segments > MAX_SEGMENTS {
        return Err(TailError::Answer(format!("{} segments are too many", answer.segments)));
    }
    let (mut segments, mut left) = (Vec::new(), MAX_ANSWER_BYTES);
    for _ in 0..answer.segments {
        let bytes = wire::read_bytes(socket, left).await?;
        left -= bytes.len();
        let journey = Journey::decode(bytes::Bytes::from(bytes)).map_err(|error| TailError::Answer(error.to_string()))?;
        segments.push(journey.end().map_err(TailError::Answer)?);
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn segment() -> Segment {
        let slice = |start, end| Slice { start, end };
        let span =
            |id, span| SpanRef { key: SpanKey { span_id: id, kind: 2 }, start_ns: 5, resource: slice(4, 6), scope: Slice::default(), span };
        let spans = vec![span(1, slice(0, 4)), span(2, slice(6, 9))];
        let (tenant, trace_id) = (Tenant::new("a-tenant").expect("valid"), TraceId([3; 16]));
        Segment { tenant, trace_id, position: place(5, Position(77)), body: Bytes::from_static(b"spanRSxyz"), spans }
    }

    #[test]
    fn a_segment_arrives_as_it_left() {
        let bytes = Journey::of(&segment()).encode_to_vec();
        assert_eq!(Journey::decode(&bytes[..]).expect("decodes").end().expect("is one"), segment());
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        let answer = async |header: Answer, segments: &[&[u8]]| {
            let mut bytes = Vec::new();
            wire::write_frame(&mut bytes, &header).await.expect("writes");
            for segment in segments {
                wire::write_bytes(&mut bytes, segment).await.expect("writes");
            }
            read_answer(&mut &bytes[..]).await
        };
        let header = |segments| Answer { refused: None, segments };
        let sound = Journey::of(&segment()).encode_to_vec();
        assert_eq!(answer(header(1), &[&sound]).await.expect("one"), [segment()]);
        assert!(matches!(answer(Answer { refused: Some("no".to_owned()), segments: 0 }, &[]).await, Err(TailError::Refused(_))));
        assert!(matches!(answer(header(2), &[&sound]).await, Err(TailError::Wire(_))), "the second is missing");
        assert!(matches!(answer(header(usize::MAX), &[&sound]).await, Err(TailError::Answer(_))));
        let mut outside = Journey::of(&segment());
        outside.body.truncate(3);
        assert!(matches!(answer(header(1), &[&outside.encode_to_vec()]).await, Err(TailError::Answer(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(at in 0_usize..200, with in any::<u8>(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut changed = Journey::of(&segment()).encode_to_vec();
            let at = at % changed.len();
            changed[at] = with;
            for bytes in [changed, bytes] {
                if let Ok(Ok(segment)) = Journey::decode(&bytes[..]).map(Journey::end) {
                    segment.spans.iter().for_each(|span| assert!(span.span.of(&segment.body).is_some()));
                }
            }
        }
    }
}
