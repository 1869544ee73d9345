//! The fields that a query refers to: what is decoded to evaluate it, and what is shown of the spans that it found.

use super::{
    Query,
    ast::{Expr, Field, MetricsFunction, Node, Pipeline, ScalarExpr, SpansetExpr, Stage},
};

/// The fields that a query refers to, and its conditions: which event a value is taken from depends on them.
#[derive(Debug, Default)]
pub(crate) struct Shown<'q> {
    fields: Vec<&'q Field>,
    /// Fields of `select()`, shown without regard to conditions.
    selected: Vec<&'q Field>,
    /// Fields tested for absence, which is then shown as a value.
    absent: Vec<&'q Field>,
    conditions: Vec<&'q Expr>,
}

impl<'q> Shown<'q> {
    /// Collects what a pipeline refers to.
    pub(crate) fn of(pipeline: &'q Pipeline) -> Self {
        let mut shown = Self::default();
        shown.pipeline(pipeline);
        shown
    }

    /// Adds a field.
    pub(crate) fn add(&mut self, field: &'q Field) {
        if !self.fields.contains(&field) {
            self.fields.push(field);
        }
    }

    /// The fields, each once, in order of appearance.
    pub(crate) fn fields(&self) -> &[&'q Field] {
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

    pub(crate) fn expr(&mut self, expr: &'q Expr) {
        expr.for_each_field(&mut |field| self.add(field));
        self.nil_tests(expr);
    }

    fn nil_tests(&mut self, expr: &'q Expr) {
        match &expr.node {
            Node::IsNil { operand, negated: false, .. } => {
                if let Node::Field(field) | Node::First(field) = &operand.node {
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
            Node::Literal(_) | Node::Field(_) | Node::First(_) => {}
        }
    }

    /// Collects what a query refers to, its metrics function included.
    pub(crate) fn of_query(query: &'q Query) -> Self {
        let mut shown = Self::of(&query.pipeline);
        if let Some(metrics) = &query.metrics {
            metrics.by.iter().chain(metrics.function.argument()).for_each(|field| shown.add(field));
            if let MetricsFunction::Compare { selection, .. } = &metrics.function {
                shown.expr(selection);
            }
        }
        shown
    }

    /// The conditions that say which event or link is meant when this field is shown; none for fields of the span, and those that
    /// `select()` asks for.
    pub(crate) fn conditions_about(&self, field: &'q Field) -> impl Iterator<Item = &'q Expr> {
        let of_element = (field.is_of_event() || field.is_of_link()) && !self.selected.contains(&field);
        let about_field = move |condition: &&Expr| {
            let mut found = false;
            condition.for_each_field(&mut |other| found |= other == field);
            of_element && found
        };
        self.conditions.iter().copied().filter(about_field)
    }

    /// Whether a condition asks for its absence, which is then shown as a value.
    pub(crate) fn is_tested_for_absence(&self, field: &Field) -> bool {
        self.absent.contains(&field)
    }
}
