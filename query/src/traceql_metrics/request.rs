//! A metrics query, ready to be run: what is counted, when, by what, and within which bounds.

use std::sync::Arc;

use super::{
    error::MetricsError,
    window::{Window, WindowError},
};
use crate::{
    columns::Wanted,
    proto,
    traceql::{Field, Intrinsic, MetricsFunction, Query, Scope, SecondStage, Value},
};

/// Bounds of a query that no client sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsLimits {
    /// Most exemplars that a client can ask for, and what it gets unasked.
    pub max_exemplars: u32,
    /// Most intervals; 0 means any number.
    pub max_intervals: u64,
    /// Most series of an answer; 0 means any number.
    pub max_series: u32,
    /// Most bytes of memory for the series of one partial result. A query that needs more is answered in part, or refused.
    pub max_bytes: usize,
}

impl Default for MetricsLimits {
    fn default() -> Self {
        Self { max_exemplars: 100, max_intervals: 10_000, max_series: 0, max_bytes: 128 << 20 }
    }
}

/// What is kept of the spans of a group in an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// How many there are.
    Count,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
    /// Sum and number of the values.
    Sum,
    /// Number of values by power of two.
    Buckets,
    /// Number of spans by attribute and value.
    Compare,
}

/// A metrics query with its time axis and bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsRequest {
    query: Arc<Query>,
    /// As the client said, Unix nanoseconds: what other processes are told, who widen it themselves.
    asked: Asked,
    window: Window,
    /// Canonical text of the `by` fields.
    keys: Vec<Arc<str>>,
    exemplars: usize,
    limits: MetricsLimits,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Start, Unix nanoseconds.
    pub start: u64,
    /// End, Unix nanoseconds.
    pub end: u64,
    /// Step in nanoseconds; `None` for the default. Of no meaning for an instant query.
    pub step: Option<u64>,
    /// Most exemplars; 0 for the default.
    pub exemplars: u32,
    /// Most series; 0 means no limit of the client's.
    pub max_series: u32,
    /// Whether one value per series is wanted.
    pub instant: bool,
    /// Whether the range is that of a part of a query, which is not widened any more.
    pub aligned: bool,
}

impl MetricsRequest {
    /// Prepares a query.
    ///
    /// # Errors
    /// It has no metrics function, the time axis is impossible, or a single series does not fit into memory.
    pub fn new(query: Arc<Query>, asked: Asked, limits: MetricsLimits) -> Result<Self, MetricsError> {
        let metrics = query.metrics().ok_or(MetricsError::NotMetrics)?;
        let window = if asked.instant {
            Window::instant(asked.start, asked.end)?
        } else {
            if asked.start > asked.end {
                return Err(WindowError::Empty.into());
            }
            let step = asked.step.unwrap_or_else(|| Window::default_step(asked.start, asked.end));
            let window = if asked.aligned { Window::aligned } else { Window::range };
            window(asked.start, asked.end, step, limits.max_intervals)?
        };
        // A single series must fit.
        if window.intervals() > limits.max_bytes / size_of::<u64>() {
            return Err(MetricsError::TooLarge { max_bytes: limits.max_bytes });
        }
        let keys = metrics.by.iter().map(|field| field.to_string().into()).collect();
        let wanted = match query.hint("exemplars") {
            Some(Value::Bool(false)) => 0,
            Some(Value::Int(number)) => u32::try_from(*number).unwrap_or(limits.max_exemplars),
            _ if asked.exemplars == 0 => limits.max_exemplars,
            _ => asked.exemplars,
        };
        // The counts of a comparison are of attributes, not of spans.
        let without = asked.instant || matches!(metrics.function, MetricsFunction::Compare { .. });
        let exemplars = if without { 0 } else { wanted.min(limits.max_exemplars) as usize };
        Ok(Self { asked, window, keys, exemplars, limits, query })
    }

    /// Prepares a query that another process has sent.
    ///
    /// # Errors
    /// As of [`MetricsRequest::new`], or the text is no query.
    pub fn from_proto(message: &proto::QueryRangeRequest, limits: MetricsLimits) -> Result<Self, MetricsError> {
        Self::read_proto(message, limits, message.query_mode == ALIGNED)
    }

    /// Prepares a part of a query that Tempo has cut: its range is made of whole steps already.
    ///
    /// # Errors
    /// As of [`MetricsRequest::from_proto`].
    pub fn part_from_proto(message: &proto::QueryRangeRequest, limits: MetricsLimits) -> Result<Self, MetricsError> {
        Self::read_proto(message, limits, true)
    }

    fn read_proto(message: &proto::QueryRangeRequest, limits: MetricsLimits, aligned: bool) -> Result<Self, MetricsError> {
        let asked = Asked {
            start: message.start,
            end: message.end,
            step: (message.step != 0).then_some(message.step),
            exemplars: message.exemplars,
            max_series: message.max_series,
            instant: message.instant.unwrap_or(false),
            aligned,
        };
        Self::new(Arc::new(crate::traceql::parse(&message.query)?), asked, limits)
    }

    /// The query for another process, as text and numbers.
    pub fn to_proto(&self) -> proto::QueryRangeRequest {
        proto::QueryRangeRequest {
            query: self.query.text().to_owned(),
            start: self.asked.start,
            end: self.asked.end,
            step: self.asked.step.unwrap_or(0),
            exemplars: self.asked.exemplars,
            max_series: self.asked.max_series,
            instant: self.asked.instant.then_some(true),
            query_mode: if self.asked.aligned { ALIGNED.to_owned() } else { String::new() },
            ..proto::QueryRangeRequest::default()
        }
    }

    /// The query.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// What was asked for.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// The intervals.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Whether spans that started between two times, both Unix nanoseconds and included, may count.
    pub fn overlaps(&self, start: u64, end: u64) -> bool {
        let (low, high) = self.window.bounds();
        start <= high && end > low
    }

    /// The same query for spans that start between two times, both Unix nanoseconds and included, over no more intervals than these: what
    /// it counts there does not depend on the range of this query. Of an instant query that is its one interval, as short as they are apart.
    /// `None` unless they lie within that range, and for queries whose bounds depend on the number of intervals.
    pub fn within(&self, start: u64, end: u64) -> Option<Self> {
        let (low, high) = self.window.bounds();
        if self.shape() == Shape::Compare || start <= low || end > high || start > end {
            return None;
        }
        let asked = if self.asked.instant {
            // The left edge of an interval does not belong to it.
            Asked { start: start - 1, end, ..self.asked }
        } else {
            Asked { start, end, step: Some(self.window.step()), aligned: false, ..self.asked }
        };
        let part = Self::new(Arc::clone(&self.query), asked, self.limits).ok()?;
        self.offset_of(&part).map(|_| part)
    }

    /// In which interval of this query the first interval of a part of it lies.
    pub(super) fn offset_of(&self, part: &Self) -> Option<u32> {
        let (low, high) = self.window.bounds();
        let (part_low, part_high) = part.window.bounds();
        let before = part_low.checked_sub(low).filter(|_| part_high <= high)?;
        if self.asked.instant {
            // One interval within another.
            return part.asked.instant.then_some(0);
        }
        let fits = self.window.step() == part.window.step() && before % self.window.step() == 0;
        u32::try_from(before / self.window.step()).ok().filter(|_| fits)
    }

    /// Whether a sample depends on the spans of its interval alone, and so do the series that are shown.
    pub fn is_per_interval(&self) -> bool {
        self.shape() != Shape::Compare && self.second().next().is_none()
    }

    /// What is read of a block.
    pub fn wanted(&self) -> Wanted {
        let (low, high) = self.window.bounds();
        let wanted = Wanted::of(&self.query).starting(low.saturating_add(1), high);
        if self.shape() != Shape::Compare {
            return wanted;
        }
        let wanted = wanted.and_fields(COMPARED.map(Field::Intrinsic)).and_fields([service_name()]);
        COMPARED_SCOPES.into_iter().fold(wanted, Wanted::and_all_of)
    }

    /// Most exemplars.
    pub(super) fn exemplars(&self) -> usize {
        self.exemplars
    }

    /// Bounds that no client sets.
    pub fn limits(&self) -> &MetricsLimits {
        &self.limits
    }

    pub(super) fn keys(&self) -> &[Arc<str>] {
        &self.keys
    }

    pub(super) fn by(&self) -> &[Field] {
        self.query.metrics().map_or(&[], |metrics| &metrics.by)
    }

    pub(super) fn second(&self) -> impl Iterator<Item = &SecondStage> {
        self.query.metrics().into_iter().flat_map(|metrics| metrics.second.iter().map(|stage| &stage.item))
    }

    pub(super) fn function(&self) -> &MetricsFunction {
        // A request is made of queries that have one.
        self.query.metrics().map_or(&MetricsFunction::Rate, |metrics| &metrics.function)
    }

    pub(super) fn shape(&self) -> Shape {
        match self.function() {
            MetricsFunction::Rate | MetricsFunction::CountOverTime => Shape::Count,
            MetricsFunction::MinOverTime(_) => Shape::Min,
            MetricsFunction::MaxOverTime(_) => Shape::Max,
            MetricsFunction::SumOverTime(_) | MetricsFunction::AvgOverTime(_) => Shape::Sum,
            MetricsFunction::HistogramOverTime(_) | MetricsFunction::QuantileOverTime(..) => Shape::Buckets,
            MetricsFunction::Compare { .. } => Shape::Compare,
        }
    }

    /// What a value is divided by when it is shown: nanoseconds become seconds, but not all of them, as in Tempo.
    pub(super) fn unit(&self) -> f64 {
        let is_duration = match self.function().argument() {
            Some(Field::Intrinsic(Intrinsic::Duration)) => true,
            Some(Field::Intrinsic(Intrinsic::TraceDuration | Intrinsic::EventTimeSinceStart)) => self.shape() == Shape::Buckets,
            _ => false,
        };
        if is_duration { 1e9 } else { 1.0 }
    }

    /// Most series of the answer; 0 means any number.
    pub(super) fn max_series(&self) -> usize {
        let limits = [self.asked.max_series, self.limits.max_series];
        limits.into_iter().filter(|limit| *limit > 0).min().unwrap_or(0) as usize
    }

    /// Whether the first series, in the order of the answer, are an answer: not if a second stage has yet to choose.
    pub(super) fn may_be_cut(&self) -> bool {
        self.second().next().is_none()
    }

    /// Whether a filter before `compare()` has a condition on an attribute with this canonical text.
    pub(super) fn conditions_ask_for(&self, attribute: &str) -> bool {
        let is_it = |field: &Field| {
            let scoped = matches!(field, Field::Attribute { scope, .. } if *scope != Scope::Any);
            scoped && field.to_string() == attribute
        };
        self.query.pipeline().conditions().into_iter().any(|condition| {
            let mut found = false;
            condition.for_each_field(&mut |field| found |= is_it(field));
            found
        })
    }

    /// Distinct values that `compare()` counts of one attribute. An attribute with more is told by its total only.
    pub(super) fn max_values(&self) -> usize {
        const BYTES_PER_ATTRIBUTE: usize = 16 << 20;
        let bytes_per_value = 128 + 16 * self.window.intervals();
        (BYTES_PER_ATTRIBUTE / bytes_per_value).clamp(1, 20_000)
    }
}

/// How a request says between our processes that its range is not widened.
const ALIGNED: &str = "aligned";

/// Intrinsics that `compare()` counts besides attributes.
pub(super) const COMPARED: [Intrinsic; 9] = [
    Intrinsic::Name,
    Intrinsic::Status,
    Intrinsic::StatusMessage,
    Intrinsic::Kind,
    Intrinsic::ChildCount,
    Intrinsic::RootName,
    Intrinsic::RootServiceName,
    Intrinsic::InstrumentationName,
    Intrinsic::InstrumentationVersion,
];

/// The attribute that every resource has.
pub(super) fn service_name() -> Field {
    Field::Attribute { parent: false, scope: Scope::Resource, name: SERVICE_NAME.to_owned() }
}

pub(super) const SERVICE_NAME: &str = "service.name";

/// Scopes whose attributes `compare()` counts.
pub(super) const COMPARED_SCOPES: [Scope; 3] = [Scope::Span, Scope::Resource, Scope::Instrumentation];
