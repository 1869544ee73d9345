//! How heavy a job is, so that a querier is not given several heavy ones at once.
//!
//! A job weighs 1, one that puts whole traces together 2. A TraceQL query adds 1 for each of: regular expressions or many conditions; anything
//! that need not hold for a span to match (`||`); structural operators, which need whole traces; and `compare()`, which reads all attributes.

use crate::{
    engine::Condition,
    job::Job,
    traceql::{
        MetricsFunction, Query,
        ast::{LogicalOp, Node, SpansetExpr, Stage},
    },
};

/// How jobs are weighed (`query_frontend.weights`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weights {
    /// Whether jobs weigh differently at all; else each weighs 1 (`request_with_weights`).
    pub requests: bool,
    /// Whether every further try weighs 1 more (`retry_with_weights`).
    pub retries: bool,
    /// Conditions from which on a query has many (`max_traceql_conditions`).
    pub max_conditions: usize,
    /// Regular expressions from which on a query has many (`max_regex_conditions`).
    pub max_regexes: usize,
}

impl Default for Weights {
    fn default() -> Self {
        Self { requests: true, retries: true, max_conditions: 4, max_regexes: 1 }
    }
}

impl Weights {
    /// The weight of a job at its first try.
    pub(super) fn of(&self, job: &Job) -> usize {
        if !self.requests {
            return 1;
        }
        match job {
            Job::Trace(_) | Job::ExternalTrace(_) => 2,
            Job::Examine(job) => 1 + self.of_search(&job.search.condition),
            Job::Candidates(job) => self.of_search(&job.search.condition),
            Job::Tags(_) => 1,
            Job::Metrics(job) => self.of_query(job.request.query()),
        }
    }

    fn of_search(&self, condition: &Condition) -> usize {
        match condition {
            Condition::TraceQl(query) => self.of_query(query),
            Condition::Tags { .. } => 1,
        }
    }

    fn of_query(&self, query: &Query) -> usize {
        let (mut conditions, mut regexes, mut has_or) = (0, 0, false);
        for expr in query.pipeline().conditions() {
            expr.for_each(&mut |node| match node {
                Node::Match { .. } => (conditions, regexes) = (conditions + 1, regexes + 1),
                Node::IsNil { .. } => conditions += 1,
                Node::Binary { op, .. } if !op.is_arithmetic() => conditions += 1,
                Node::Logical { op, .. } => has_or |= *op == LogicalOp::Or,
                _ => {}
            });
        }
        let spansets = query.pipeline().stages.iter().filter_map(|stage| match stage {
            Stage::Spansets(expr) => Some(expr),
            _ => None,
        });
        let mut shape = Shape::default();
        spansets.for_each(|expr| shape.look_at(expr));
        let reads_all = query.metrics().is_some_and(|metrics| matches!(metrics.function, MetricsFunction::Compare { .. }));
        let many = regexes >= self.max_regexes.max(1) || conditions >= self.max_conditions.max(1);
        1 + [many, has_or || shape.has_or, shape.is_structural, reads_all].into_iter().map(usize::from).sum::<usize>()
    }
}

/// How the filters of a query hang together.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    has_or: bool,
    is_structural: bool,
}

impl Shape {
    fn look_at(&mut self, expr: &SpansetExpr) {
        match expr {
            SpansetExpr::Filter(_) => {}
            SpansetExpr::Logical { op, operands } => {
                self.has_or |= *op == LogicalOp::Or;
                operands.iter().for_each(|operand| self.look_at(operand));
            }
            SpansetExpr::Structural { left, right, .. } => {
                self.is_structural = true;
                self.look_at(left);
                self.look_at(right);
            }
            SpansetExpr::Pipeline(pipeline) => {
                for stage in &pipeline.stages {
                    if let Stage::Spansets(expr) = stage {
                        self.look_at(expr);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_weigh_by_what_they_need() {
        let weights = Weights::default();
        for (query, weight) in [
            ("{}", 1),
            ("{ .a = 1 && .b = 2 && .c != nil }", 1),
            ("{ .a = 1 && .b = 2 && .c != nil && .d > 1 }", 2),
            ("{ name =~ \"a.*\" }", 2),
            ("{ .a = 1 || .b = 2 }", 2),
            ("{ .a = 1 } || { .b = 2 }", 2),
            ("{ .a = 1 } >> { .b = 2 }", 2),
            ("({ .a = 1 } >> { .b = 2 }) || { name =~ \"x\" }", 4),
            ("{ .a = 1 } | rate()", 1),
            ("{ .a =~ \"x|y\" } | compare({ status = error })", 3),
        ] {
            assert_eq!(weights.of_query(&crate::traceql::parse(query).expect(query)), weight, "{query}");
        }
        let query = crate::traceql::parse("{ name =~ \"a\" && .a = 1 }").expect("a query");
        assert_eq!(Weights { max_regexes: 2, ..weights }.of_query(&query), 1);
        assert_eq!(Weights { max_regexes: 2, max_conditions: 2, ..weights }.of_query(&query), 2);
    }
}
