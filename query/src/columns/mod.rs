//! What queries are evaluated on: some whole traces as arrays, one value per span.
//!
//! ```text
//!  row group of a block ─► scan ─► bytes of the leaves that the fields need ─┐
//!                          (pruned: nothing)                                 ├─► Batch ─► vector(field): one value per span
//!  live traces ──────────────────────────────────────────────────────────────┘          trace_offsets(): spans of each trace
//! ```
//!
//! A [`Batch`] holds whole traces, as they stand in one place: spans of one trace are neighbours, in storage order, and a span is known by
//! its number in the batch. Nothing is decoded before somebody asks, and what was decoded is kept for as long as the batch lives.
//!
//! A field has one value per span ([`Vector`]). Strings are numbers of a dictionary, so that a condition on them is asked once per string.
//! Fields of events and links have several values per span ([`Elements`]); as a vector they have the last one that is there.
//!
//! | module | holds |
//! |---|---|
//! | `vector` | arrays of typed values |
//! | `builder` | vectors from values that come one after the other |
//! | `live` | batches of traces in memory |
//! | `block` | batches of row groups: which leaves, their levels, attributes |
//! | `scan`, `prune` | what of a block is fetched, and what is passed over |

mod block;
mod builder;
mod live;
mod prune;
mod scan;
mod vector;

use std::{collections::HashMap, fmt::Debug, sync::Arc};

use parking_lot::Mutex;
use storage::{block::BlockError, id::TraceId};

pub use self::{
    scan::{Batches, Scan, Wanted},
    vector::{Dictionary, NIL, Numbers, Texts, Vector},
};
use crate::traceql::{Field, Scope, Value};

/// Where a batch gets its values from. Asked once for each; the batch keeps them.
pub(crate) trait Source: Debug + Send {
    /// Number of traces.
    fn traces(&self) -> usize;
    /// Ids of the traces.
    fn trace_ids(&mut self) -> Result<Vec<TraceId>, BlockError>;
    /// Where the spans of each trace begin, and where the last ones end.
    fn trace_offsets(&mut self) -> Result<Vec<u32>, BlockError>;
    /// Earliest start and latest end of each trace, Unix nanoseconds.
    fn trace_times_ns(&mut self) -> Result<Vec<(u64, u64)>, BlockError>;
    /// Starts of the spans, Unix nanoseconds.
    fn starts_ns(&mut self) -> Result<Vec<u64>, BlockError>;
    /// Ids of the spans: eight bytes, big-endian.
    fn span_ids(&mut self) -> Result<Vec<u64>, BlockError>;
    /// Names of the spans' services, `""` where there is none or it is no string.
    fn service_names(&mut self) -> Result<Vector, BlockError>;
    /// One value per span; not of fields of events and links.
    fn vector(&mut self, field: &Field) -> Result<Vector, BlockError>;
    /// The values of a field of events or links.
    fn elements(&mut self, field: &Field) -> Result<Elements, BlockError>;
    /// The values of a field as [`Batch::runs`] gives them.
    fn runs(&mut self, field: &Field) -> Result<Runs, BlockError> {
        Ok(Runs { offsets: None, values: self.vector(field)? })
    }
    /// All attributes of a scope, where that is less work than one after the other.
    fn listing(&mut self, _scope: Scope) -> Result<Option<Listing>, BlockError> {
        Ok(None)
    }
    /// Names of the attributes of a scope that occur, each once, in order of appearance.
    fn attribute_names(&mut self, scope: Scope) -> Result<Vec<String>, BlockError>;
    /// Bytes of memory that it holds, about.
    fn bytes(&self) -> usize;
}

/// The values of a field that events or links have.
#[derive(Clone, Debug)]
pub struct Elements {
    /// Where the events (links) of each span begin, and where the last ones end. The same for all fields of events.
    pub offsets: Arc<Vec<u32>>,
    /// One value per event (link).
    pub values: Arc<Vector>,
}

/// The values of a field, each once for all spans of what it belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    /// Where the spans of each resource (scope, trace) begin, and where the last ones end; each span has a value of its own when absent.
    pub(crate) offsets: Option<Arc<Vec<u32>>>,
    pub(crate) values: Vector,
}

/// All attributes of the spans or resources of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    /// At which entry the attributes of each element begin; the last ones end with the entries.
    pub(crate) entries: Vec<u32>,
    /// Pair of each entry; [`NIL`] where there is none that the language sees.
    pub(crate) numbers: Vec<u32>,
    /// Keys, each once.
    pub(crate) keys: Vec<String>,
    /// Keys with their values. The same may stand there twice.
    pub(crate) pairs: Vec<Pair>,
    /// The strings that pairs refer to.
    pub(crate) dictionary: Arc<Dictionary>,
    /// As of [`Runs`].
    pub(crate) offsets: Option<Arc<Vec<u32>>>,
    /// Attributes that may be there and are not in the list.
    pub(crate) own: Vec<String>,
}

/// A key and a value.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The number of the key.
    pub(crate) key: u32,
    pub(crate) value: PairValue,
}

/// The value of a pair.
#[derive(Clone, Debug)]
pub(crate) enum PairValue {
    /// A string, by its number.
    Text(u32),
    /// Any other value; of arrays only that they are arrays.
    Other(Value),
}

/// Some whole traces as arrays. See the module documentation.
///
/// All lists of spans have the same length and order, and so have all lists of traces.
#[derive(Debug)]
pub struct Batch {
    traces: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    source: Box<dyn Source>,
    trace_ids: Option<Arc<Vec<TraceId>>>,
    trace_offsets: Option<Arc<Vec<u32>>>,
    trace_times_ns: Option<Arc<Vec<(u64, u64)>>>,
    starts_ns: Option<Arc<Vec<u64>>>,
    span_ids: Option<Arc<Vec<u64>>>,
    service_names: Option<Arc<Vector>>,
    vectors: HashMap<Field, Arc<Vector>>,
    elements: HashMap<Field, Elements>,
}

/// What is known already, or else what `find` finds.
fn known<T>(slot: &mut Option<Arc<T>>, find: impl FnOnce() -> Result<T, BlockError>) -> Result<Arc<T>, BlockError> {
    if let Some(found) = slot {
        return Ok(Arc::clone(found));
    }
    Ok(Arc::clone(slot.insert(Arc::new(find()?))))
}

impl Batch {
    pub(crate) fn new(source: impl Source + 'static) -> Self {
        let state = State {
            source: Box::new(source),
            trace_ids: None,
            trace_offsets: None,
            trace_times_ns: None,
            starts_ns: None,
            span_ids: None,
            service_names: None,
            vectors: HashMap::new(),
            elements: HashMap::new(),
        };
        Self { traces: state.source.traces(), state: Mutex::new(state) }
    }

    /// A batch of traces in memory.
    pub fn live(traces: Vec<storage::block::Trace>) -> Self {
        Self::new(live::Live::new(traces))
    }

    /// Number of traces.
    pub fn traces(&self) -> usize {
        self.traces
    }

    /// Number of spans.
    ///
    /// # Errors
    /// The block is corrupt; so for all that follow.
    pub fn spans(&self) -> Result<usize, BlockError> {
        if let Some(offsets) = &self.state.lock().trace_offsets {
            return Ok(offsets.last().map_or(0, |&last| last as usize));
        }
        self.starts_ns().map(|starts| starts.len())
    }

    /// Ids of the traces.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn trace_ids(&self) -> Result<Arc<Vec<TraceId>>, BlockError> {
        let State { source, trace_ids, .. } = &mut *self.state.lock();
        known(trace_ids, || source.trace_ids())
    }

    /// Where the spans of each trace begin, and where the last ones end: the spans of trace `t` are `offsets[t]..offsets[t + 1]`.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn trace_offsets(&self) -> Result<Arc<Vec<u32>>, BlockError> {
        let State { source, trace_offsets, .. } = &mut *self.state.lock();
        known(trace_offsets, || source.trace_offsets())
    }

    /// Earliest start and latest end of each trace, of what of it is in the batch; Unix nanoseconds.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn trace_times_ns(&self) -> Result<Arc<Vec<(u64, u64)>>, BlockError> {
        let State { source, trace_times_ns, .. } = &mut *self.state.lock();
        known(trace_times_ns, || source.trace_times_ns())
    }

    /// Starts of the spans, Unix nanoseconds.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn starts_ns(&self) -> Result<Arc<Vec<u64>>, BlockError> {
        let State { source, starts_ns, .. } = &mut *self.state.lock();
        known(starts_ns, || source.starts_ns())
    }

    /// Ids of the spans: eight bytes, big-endian.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn span_ids(&self) -> Result<Arc<Vec<u64>>, BlockError> {
        let State { source, span_ids, .. } = &mut *self.state.lock();
        known(span_ids, || source.span_ids())
    }

    /// Names of the spans' services; `""` where there is none or it is no string.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn service_names(&self) -> Result<Arc<Vector>, BlockError> {
        let State { source, service_names, .. } = &mut *self.state.lock();
        known(service_names, || source.service_names())
    }

    /// One value per span, of any field of the language. Of several events (links) the last one that has the field gives its value.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn vector(&self, field: &Field) -> Result<Arc<Vector>, BlockError> {
        if let Some(vector) = self.state.lock().vectors.get(field) {
            return Ok(Arc::clone(vector));
        }
        let vector = if field.is_of_event() || field.is_of_link() {
            let Elements { offsets, values } = self.elements(field)?;
            values.last_of_each(&offsets)
        } else {
            self.state.lock().source.vector(field)?
        };
        let vector = Arc::new(vector);
        self.state.lock().vectors.insert(field.clone(), Arc::clone(&vector));
        Ok(vector)
    }

    /// The values of a field of events or links, one per event or link.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn elements(&self, field: &Field) -> Result<Elements, BlockError> {
        let State { source, elements, .. } = &mut *self.state.lock();
        if let Some(found) = elements.get(field) {
            return Ok(found.clone());
        }
        let found = source.elements(field)?;
        elements.insert(field.clone(), found.clone());
        Ok(found)
    }

    /// One value per span, of a field of events or links: that of the first event (link) that has it.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub(crate) fn first(&self, field: &Field) -> Result<Arc<Vector>, BlockError> {
        let Elements { offsets, values } = self.elements(field)?;
        Ok(Arc::new(values.first_of_each(&offsets)))
    }

    /// The values of a field of spans, resources, scopes or traces, without repeating them for every span where that can be told. Not kept.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub(crate) fn runs(&self, field: &Field) -> Result<Runs, BlockError> {
        self.state.lock().source.runs(field)
    }

    /// All attributes of a scope at once; none where they have to be asked for one by one. Not kept.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub(crate) fn listing(&self, scope: Scope) -> Result<Option<Listing>, BlockError> {
        self.state.lock().source.listing(scope)
    }

    /// Names of the attributes of a scope that some span has, each once, in order of appearance; of blocks also those whose values the
    /// language does not see. Of [`Scope::Any`]: of spans and resources.
    ///
    /// # Errors
    /// As of [`Batch::spans`].
    pub fn attribute_names(&self, scope: Scope) -> Result<Vec<String>, BlockError> {
        self.state.lock().source.attribute_names(scope)
    }

    /// Bytes of memory that it holds now, about. Grows while fields are asked for.
    pub fn bytes(&self) -> usize {
        let state = self.state.lock();
        let vectors: usize = state.vectors.values().map(|vector| vector.bytes()).sum();
        let elements: usize = state.elements.values().map(|elements| elements.values.bytes()).sum();
        let numbers = state.starts_ns.iter().chain(&state.span_ids).map(|numbers| 8 * numbers.len()).sum::<usize>();
        state.source.bytes() + vectors + elements + numbers
    }
}
