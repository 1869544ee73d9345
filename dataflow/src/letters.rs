//! What the processes of a generation tell each other, inside the dataflow.
//!
//! ```text
//!  any thread ─► Post ─► first worker's input ─► Exchange(first worker of the addressee) ─► its steward
//!                                                     (pointers inside a process, bincode between two)
//! ```
//!
//! Letters have no tick: their input counts by itself, and no operator that moves spans waits for it. They arrive in the order in which
//! one process sent them to another. A letter of a generation cannot arrive in the next one.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error as _, ser::Error as _};
use storage::block::Meta;
use uuid::Uuid;

use crate::{manifest::Positions, steward::Staff, worker::Request};

/// A message from one process to another, by index.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) word: Word,
}

/// What is said.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// To everybody who generates: write what you have come to as of the tick, for the manifest with this number.
    Keep { tick: u64, sequence: u64 },
    /// The answer: names of the objects, or why there are none.
    Kept(Result<Kept, String>),
    /// A manifest is on the bucket and its new blocks are published.
    Committed(Json<Committed>),
    /// The sender holds as many bytes as it may, or no longer.
    Full(bool),
    /// The sender's log has been read again up to where it ended when the generation began.
    Replayed,
    /// Answer when all that the addressee's log holds now has been taken in by whoever owns it.
    Flush(u64),
    /// It has.
    Taken(u64),
    /// Cut everything and answer when all of it is committed.
    Cut(u64),
    /// It is.
    Flushed(u64),
}

/// What a process has written of its part of the collections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Series and halves, as of the tick or unchanged since; `None` where there are none.
    pub(crate) series: Option<String>,
    /// Identities counted since the last time, if any.
    pub(crate) identities: Option<String>,
}

/// What everybody must know of a commit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Committed {
    pub(crate) sequence: u64,
    pub(crate) tick: u64,
    pub(crate) positions: BTreeMap<Uuid, Positions>,
    /// Blocks that are published, and whether they are to be listed: what was compacted meanwhile is not.
    pub(crate) blocks: Vec<(Meta, bool)>,
}

/// Something whose serde form is made for JSON (fields that are left out) and that travels as such between processes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Serialize> Serialize for Json<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::to_string(&self.0).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Json<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        serde_json::from_str(&text).map(Self).map_err(D::Error::custom)
    }
}

/// Sends letters from this process.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    /// This process, and how many there are.
    pub(crate) index: usize,
    pub(crate) processes: usize,
    pub(crate) staff: Staff,
}

impl Post {
    /// To one process; it may be this one. Nothing happens if the generation has ended.
    pub(crate) fn send(&self, to: usize, word: Word) {
        self.staff.tell_first(Request::Send(Letter { from: self.index, to, word }));
    }

    /// To all processes, this one included.
    pub(crate) fn send_all(&self, word: &Word) {
        (0..self.processes).for_each(|to| self.send(to, word.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Debug, sync::Arc};

    use storage::{
        id::{BlockId, SpanKey, Tenant, TraceId},
        otlp::Slice,
        segment::{Segment, SpanRef},
        wal::Position,
    };
    use timely::{ExchangeData, bytes::arc::BytesMut, dataflow::channels::ContainerBytes};

    use super::*;
    use crate::{
        batch::Origin,
        commit::{Mark, Outcome, Ready},
        feed::Arrived,
        generator::{Agg, Buckets, Definition, Exemplar, Family, Layout, Series, Weight},
        records::{Records, place},
    };

    /// As timely carries records from one process to another.
    fn comes_back<T: ExchangeData + Debug>(records: &Vec<T>) {
        let mut bytes = Vec::new();
        records.into_bytes(&mut bytes);
        let mut room = BytesMut::from(bytes);
        let arrived = Vec::<T>::from_bytes(room.extract_to(room.len()));
        assert_eq!(format!("{arrived:?}"), format!("{records:?}"));
    }

    #[test]
    fn whatever_travels_comes_back() {
        let tenant = Tenant::single();
        let trace_id = TraceId([7; 16]);
        let meta = serde_json::json!({"format": "vParquet4", "blockID": BlockId::new_v4(), "tenantID": tenant, "size": 7});
        let meta: Meta = serde_json::from_value(meta).expect("a description");
        let span = SpanRef {
            key: SpanKey { span_id: 1, kind: 1 },
            start_ns: 5,
            resource: Slice { start: 2, end: 4 },
            scope: Slice::default(),
            span: Slice { start: 0, end: 2 },
        };
        let body = bytes::Bytes::from_static(&[1, 2, 3, 4]);
        let segment = Segment { tenant: tenant.clone(), trace_id, position: place(3, Position(9)), body, spans: vec![span] };
        comes_back(&vec![Arrived { segment, at: 3, counted: true }]);
        comes_back(&vec![Mark { log: 1, wal: Uuid::new_v4(), since: 1, until: 2, position: Position(3) }]);
        comes_back(&vec![Ready { tick: 1, changed: true }]);
        let records = Records::of([place(1, Position(2)), place(0, Position(7))]);
        let origin = Origin { records, until: 4 };
        comes_back(&vec![
            Outcome::Held { worker: 1, tick: 2, oldest: None },
            Outcome::Uploaded(Json(meta.clone()), origin),
            Outcome::Held { worker: 1, tick: 2, oldest: Some(1) },
        ]);
        let positions = [(Uuid::new_v4(), Positions::default())].into();
        let words = [
            Word::Keep { tick: 1, sequence: 2 },
            Word::Kept(Ok(Kept::default())),
            Word::Kept(Ok(Kept { series: Some("s".to_owned()), identities: None })),
            Word::Kept(Err("because".to_owned())),
            Word::Committed(Json(Committed { sequence: 1, tick: 2, positions, blocks: vec![(meta, true)] })),
            Word::Full(true),
            Word::Replayed,
            Word::Flush(1),
            Word::Taken(1),
            Word::Cut(1),
            Word::Flushed(1),
        ];
        comes_back(&words.into_iter().map(|word| Letter { from: 0, to: 1, word }).collect::<Vec<_>>());
        let layout = |classic: Option<Arc<[f64]>>, native| Arc::new(Layout { classic, native, ..Layout::COUNTER });
        let series = |layout| {
            let labels = [("service".into(), "a".into())].into_iter().collect();
            Series::new(Definition { tenant: tenant.clone(), family: Family::SpanMetrics, labels, layout })
        };
        let mut classic = Buckets::default();
        classic.add(2, Weight::ONE);
        let counted = Agg::counted(Weight::ONE);
        comes_back(&vec![
            ((series(layout(None, None)), ()), 1_u64, counted.clone()),
            ((series(layout(Some([0.5, 1.0].into()), Some(3))), ()), 2, Agg { classic, ..counted }),
        ]);
        comes_back(&vec![(series(layout(None, None)), Exemplar { bucket: 1, trace_id, nanoseconds: 2, at: 3 })]);
    }
}
