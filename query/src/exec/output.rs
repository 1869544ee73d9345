//! What search shows of the traces that a query found.

use std::collections::BTreeMap;

use super::{
    ExecError,
    rows::{Column, Condition, Subject},
    spansets::Spansets,
};
use crate::{
    columns::{Batch, Vector},
    traceql::{EvaluateOptions, Field, Intrinsic, Query, Scope, ServiceStats, SpanMatch, Spanset, Status, TraceMatch, Value, shown::Shown},
};
use std::sync::Arc;

/// Key of the attribute that names a service.
const SERVICE_NAME: &str = "service.name";

/// Describes the traces of spansets.
pub(super) fn show(query: &Query, batch: &Batch, spansets: &Spansets, options: EvaluateOptions) -> Result<Vec<TraceMatch>, ExecError> {
    if spansets.is_empty() {
        return Ok(Vec::new());
    }
    let output = Output::new(query, batch)?;
    let mut found: Vec<TraceMatch> = Vec::new();
    let mut latest = None;
    for spanset in 0..spansets.len() {
        let trace = spansets.traces[spanset];
        if latest != Some(trace) {
            found.push(output.trace(trace as usize));
            latest = Some(trace);
        }
        if let Some(shown) = found.last_mut() {
            shown.spansets.push(output.spanset(spansets, spanset, options));
        }
    }
    Ok(found)
}

/// A field, where its values are, and how they are shown.
struct Shape<'q> {
    key: &'q str,
    column: Column,
    /// Where its second value is, if it has one.
    beside: Option<Beside>,
    /// The conditions that say which event or link is meant.
    conditions: Vec<Condition<'q>>,
    /// Whether its absence is shown.
    absent: bool,
}

/// The second value of an attribute that has two.
enum Beside {
    /// The resource's that one of the span hides from `.name`.
    Hidden { span: Arc<Vector>, resource: Arc<Vector> },
    /// The empty name of a service whose name is no string.
    Service(Arc<Vector>),
}

impl Beside {
    fn of(batch: &Batch, field: &Field) -> Result<Option<Self>, ExecError> {
        let Field::Attribute { parent: false, scope, name } = field else { return Ok(None) };
        let vector = |scope| batch.vector(&Field::Attribute { parent: false, scope, name: name.clone() });
        Ok(match scope {
            Scope::Any => Some(Self::Hidden { span: vector(Scope::Span)?, resource: vector(Scope::Resource)? }),
            Scope::Resource if name == SERVICE_NAME => Some(Self::Service(vector(Scope::Resource)?)),
            _ => None,
        })
    }

    fn get(&self, span: usize) -> Value {
        match self {
            Self::Hidden { span: hiding, resource } if !hiding.is_nil(span) => resource.value(span),
            Self::Service(names) if !names.is_nil(span) && names.text(span).is_none() => Value::String(String::new()),
            _ => Value::Nil,
        }
    }
}

struct Output<'q> {
    fields: Vec<Shape<'q>>,
    /// Names of the spans, if they are shown.
    names: Option<Arc<Vector>>,
    offsets: Arc<Vec<u32>>,
    trace_ids: Arc<Vec<storage::id::TraceId>>,
    span_ids: Arc<Vec<u64>>,
    starts: Arc<Vec<u64>>,
    durations: Arc<Vector>,
    trace_durations: Arc<Vector>,
    services: Arc<Vector>,
    statuses: Arc<Vector>,
    root_names: Arc<Vector>,
    root_services: Arc<Vector>,
}

impl<'q> Output<'q> {
    fn new(query: &'q Query, batch: &Batch) -> Result<Self, ExecError> {
        let shown = Shown::of_query(query);
        let intrinsic = |intrinsic| batch.vector(&Field::Intrinsic(intrinsic));
        let mut names = None;
        let mut fields = Vec::new();
        for field in shown.fields() {
            let key = match field {
                Field::Intrinsic(Intrinsic::Name) => {
                    names = Some(intrinsic(Intrinsic::Name)?);
                    continue;
                }
                Field::Intrinsic(
                    Intrinsic::Duration
                    | Intrinsic::TraceDuration
                    | Intrinsic::RootServiceName
                    | Intrinsic::RootName
                    | Intrinsic::TraceId
                    | Intrinsic::SpanId,
                ) => continue,
                Field::Intrinsic(intrinsic) => intrinsic.as_str(),
                Field::Attribute { name, .. } => name,
            };
            let conditions = shown.conditions_about(field).map(|condition| Condition::whole(batch, condition));
            fields.push(Shape {
                key,
                column: Column::new(batch, field)?,
                beside: Beside::of(batch, field)?,
                conditions: conditions.collect::<Result<_, _>>()?,
                absent: shown.is_tested_for_absence(field),
            });
        }
        Ok(Self {
            fields,
            names,
            offsets: batch.trace_offsets()?,
            trace_ids: batch.trace_ids()?,
            span_ids: batch.span_ids()?,
            starts: batch.starts_ns()?,
            durations: intrinsic(Intrinsic::Duration)?,
            trace_durations: intrinsic(Intrinsic::TraceDuration)?,
            services: batch.service_names()?,
            statuses: intrinsic(Intrinsic::Status)?,
            root_names: intrinsic(Intrinsic::RootName)?,
            root_services: intrinsic(Intrinsic::RootServiceName)?,
        })
    }

    /// A trace without its spansets.
    fn trace(&self, trace: usize) -> TraceMatch {
        let (first, end) = (self.offsets[trace] as usize, self.offsets[trace + 1] as usize);
        let mut services: BTreeMap<String, ServiceStats> = BTreeMap::new();
        for span in first..end {
            let service = self.services.text(span).unwrap_or_default();
            let entry = match services.get_mut(service) {
                Some(entry) => entry,
                None => services.entry(service.to_owned()).or_default(),
            };
            entry.spans += 1;
            entry.errors += u32::from(self.statuses.value(span) == Value::Status(Status::Error));
        }
        let text = |vector: &Vector| vector.text(first).unwrap_or_default().to_owned();
        TraceMatch {
            trace_id: self.trace_ids[trace],
            root_service_name: text(&self.root_services),
            root_trace_name: text(&self.root_names),
            start_ns: self.starts[first..end].iter().copied().min().unwrap_or_default(),
            duration_ms: duration(&self.trace_durations, first) / 1_000_000,
            services,
            spansets: Vec::new(),
        }
    }

    fn spanset(&self, spansets: &Spansets, spanset: usize, options: EvaluateOptions) -> Spanset {
        let spans = spansets.spans_of(spanset);
        Spanset {
            matched: spans.len(),
            attributes: spansets.attributes.iter().map(|attribute| (attribute.name.to_string(), attribute.value(spanset))).collect(),
            spans: spans.iter().take(options.spans_per_spanset).map(|&span| self.span(span as usize)).collect(),
        }
    }

    fn span(&self, span: usize) -> SpanMatch {
        let mut attributes = Vec::new();
        for field in &self.fields {
            let beside = field.beside.as_ref().map_or(Value::Nil, |beside| beside.get(span));
            if beside != Value::Nil {
                attributes.push((field.key.to_owned(), beside));
            }
            // The event or link that made a condition on this field true.
            let witness = field.conditions.iter().find_map(|condition| condition.witness(span).ok().flatten());
            let value = field.column.get(witness.unwrap_or(Subject::new(span))).to_value();
            if value != Value::Nil || field.absent {
                attributes.push((field.key.to_owned(), value));
            }
        }
        SpanMatch {
            span_id: self.span_ids[span],
            name: self.names.as_ref().map(|names| names.text(span).unwrap_or_default().to_owned()),
            start_ns: self.starts[span],
            duration_ns: duration(&self.durations, span),
            attributes,
        }
    }
}

/// Nanoseconds; 0 for what ends before it starts.
fn duration(durations: &Vector, span: usize) -> u64 {
    match durations {
        Vector::Duration(numbers) => numbers.get(span).and_then(|nanos| u64::try_from(nanos).ok()).unwrap_or_default(),
        _ => 0,
    }
}
