//! What is shown of the spans that a query found.

use std::collections::BTreeMap;

use super::{
    super::{
        ast::{Expr, Field, Intrinsic, Node, Pipeline, ScalarExpr, Scope, SpansetExpr, Stage},
        value::{Status, Value},
    },
    ServiceStats, SpanMatch, Spanset,
    condition::Subject,
    pipeline::Group,
    view::{SERVICE_NAME, TraceView, service_name, span_id},
};

/// The fields that a query refers to, and its conditions: which event a value is taken from depends on them.
#[derive(Debug, Default)]
pub(super) struct Shown<'q> {
    fields: Vec<&'q Field>,
    /// Fields of `select()`, shown without regard to conditions.
    selected: Vec<&'q Field>,
    /// Fields tested for absence, which is then shown as a value.
    absent: Vec<&'q Field>,
    conditions: Vec<&'q Expr>,
}

impl<'q> Shown<'q> {
    /// Collects what a pipeline refers to.
    pub(super) fn of(pipeline: &'q Pipeline) -> Self {
        let mut shown = Self::default();
        shown.pipeline(pipeline);
        shown
    }

    /// Adds a field.
    pub(super) fn add(&mut self, field: &'q Field) {
        if !self.fields.contains(&field) {
            self.fields.push(field);
        }
    }

    /// The fields, each once, in order of appearance.
    pub(super) fn fields(&self) -> &[&'q Field] {
        &self.fields
    }

    fn pipeline(&mut self, pipeline: &'q Pipeline) {
        for stage in &pipeline.stages {
            match stage {
                Stage::Spansets(expr) => self.spansets(expr),
                Stage::Scalar(filter) => {
                    self.scalar(&filter.left);
                    self.scalar(&filter.right);
                }
                Stage::By(key) => self.expr(key),
                Stage::Coalesce => {}
                Stage::Select(fields) => fields.iter().for_each(|selected| {
                    self.add(&selected.item);
                    self.selected.push(&selected.item);
                }),
            }
        }
    }

    fn spansets(&mut self, expr: &'q SpansetExpr) {
        match expr {
            SpansetExpr::Filter(condition) => {
                self.expr(condition);
                self.conditions.push(condition);
            }
            SpansetExpr::Logical { operands, .. } => operands.iter().for_each(|operand| self.spansets(operand)),
            SpansetExpr::Structural { left, right, .. } => {
                self.spansets(left);
                self.spansets(right);
            }
            SpansetExpr::Pipeline(pipeline) => self.pipeline(pipeline),
        }
    }

    fn scalar(&mut self, expr: &'q ScalarExpr) {
        match expr {
            ScalarExpr::Literal(_) => {}
            ScalarExpr::Aggregate(aggregate) => {
                if let Some(argument) = &aggregate.argument {
                    self.expr(argument);
                }
            }
            ScalarExpr::Binary { left, right, .. } => {
                self.scalar(left);
                self.scalar(right);
            }
            ScalarExpr::Pipeline { pipeline, aggregate } => {
                self.pipeline(pipeline);
                if let Some(argument) = &aggregate.argument {
                    self.expr(argument);
                }
            }
        }
    }

    pub(super) fn expr(&mut self, expr: &'q Expr) {
        expr.for_each_field(&mut |field| self.add(field));
        self.nil_tests(expr);
    }

    fn nil_tests(&mut self, expr: &'q Expr) {
        match &expr.node {
            Node::IsNil { operand, negated: false } => {
                if let Node::Field(field) = &operand.node {
                    self.absent.push(field);
                }
            }
            Node::Logical { operands, .. } => operands.iter().for_each(|operand| self.nil_tests(operand)),
            Node::Unary { operand, .. } | Node::IsNil { operand, .. } => self.nil_tests(operand),
            Node::Match { subject, .. } => self.nil_tests(subject),
            Node::Binary { left, right, .. } => {
                self.nil_tests(left);
                self.nil_tests(right);
            }
            Node::Literal(_) | Node::Field(_) => {}
        }
    }

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
        for field in &self.fields {
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
            if value != Value::Nil || self.absent.contains(field) {
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
    fn witness<'v>(&'v self, plain: Subject<'v>, field: &Field) -> Subject<'v> {
        if !field.is_of_event() && !field.is_of_link() || self.selected.contains(&field) {
            return plain;
        }
        let about_field = |condition: &&&Expr| {
            let mut found = false;
            condition.for_each_field(&mut |other| found |= other == field);
            found
        };
        self.conditions.iter().filter(about_field).find_map(|condition| plain.witness(condition).ok().flatten()).unwrap_or(plain)
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

/// Which parts of traces hold these fields.
pub(super) fn projection(fields: &[&Field]) -> storage::block::Projection {
    let mut parts = storage::block::Projection::INTRINSICS;
    for field in fields {
        parts.events |= field.is_of_event();
        parts.links |= field.is_of_link();
        match field {
            Field::Attribute { scope, name, .. } => {
                parts.span_attributes |= matches!(scope, Scope::Any | Scope::Span);
                // The name of the service is always there.
                parts.resource_attributes |= *scope == Scope::Any || *scope == Scope::Resource && name != SERVICE_NAME;
                parts.scopes |= *scope == Scope::Instrumentation;
            }
            Field::Intrinsic(Intrinsic::InstrumentationName | Intrinsic::InstrumentationVersion) => parts.scopes = true,
            Field::Intrinsic(_) => {}
        }
    }
    parts
}
