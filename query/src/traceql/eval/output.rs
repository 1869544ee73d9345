//! What is shown of the spans that a query found.

use std::collections::BTreeMap;

use super::{
    super::{
        ast::{Field, Intrinsic},
        found::{ServiceStats, SpanMatch, Spanset},
        shown::Shown,
        value::{Status, Value},
    },
    condition::Subject,
    pipeline::Group,
    view::{TraceView, service_name, span_id},
};

impl Shown<'_> {
    /// A spanset as it is returned.
    pub(super) fn spanset(&self, trace: &TraceView<'_>, group: Group, most_spans: usize) -> Spanset {
        Spanset {
            matched: group.spans.len(),
            spans: group.spans.iter().take(most_spans).map(|span| self.span(trace, *span)).collect(),
            attributes: group.attributes,
        }
    }

    fn span(&self, trace: &TraceView<'_>, index: usize) -> SpanMatch {
        let plain = Subject::new(trace, index);
        let view = &trace.spans[index];
        let mut name = None;
        let mut attributes = Vec::new();
        for field in self.fields() {
            let key = match field {
                Field::Intrinsic(Intrinsic::Name) => {
                    name = Some(view.span.name.clone());
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
            let value = self.witness(plain, field).field(field).to_value();
            if let Field::Attribute { parent: false, scope, name } = field {
                let beside = plain.attribute_beside(*scope, name).to_value();
                if beside != Value::Nil {
                    attributes.push((key.to_owned(), beside));
                }
            }
            if value != Value::Nil || self.is_tested_for_absence(field) {
                attributes.push((key.to_owned(), value));
            }
        }
        SpanMatch {
            span_id: span_id(&view.span.span_id),
            name,
            start_ns: view.span.start_time_unix_nano,
            duration_ns: u64::try_from(view.duration_ns()).unwrap_or_default(),
            attributes,
        }
    }

    /// The event or link that made a condition on this field true.
    fn witness<'v>(&'v self, plain: Subject<'v>, field: &'v Field) -> Subject<'v> {
        self.conditions_about(field).find_map(|condition| plain.witness(condition).ok().flatten()).unwrap_or(plain)
    }
}

/// Spans and errors per service.
pub(super) fn service_stats(trace: &TraceView<'_>) -> BTreeMap<String, ServiceStats> {
    let mut stats: BTreeMap<String, ServiceStats> = BTreeMap::new();
    for view in &trace.spans {
        let service = service_name(view.resource);
        let entry = match stats.get_mut(service) {
            Some(entry) => entry,
            None => stats.entry(service.to_owned()).or_default(),
        };
        entry.spans += 1;
        entry.errors += u32::from(view.status() == Status::Error);
    }
    stats
}
