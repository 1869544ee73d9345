//! Filters of tag queries: read while somebody is still typing.
//!
//! A query that does not parse is repaired before it is given up: its first filter is cut into the parts between `&&` and `||`, and parts that do
//! not parse by themselves (`.a =`) are left out together with the operator that joins them. Only the first stage of a query counts,
//! and only when it is one filter.

use super::{
    ast::{Expr, LogicalOp, Node, SpansetExpr, Stage},
    filter::Filter,
    parser,
};

/// The condition of a tag query; `None` when there is nothing to filter by.
pub(super) fn tag_filter(query: &str) -> Option<Filter> {
    let parsed = match parser::parse(query) {
        Ok(parsed) => parsed,
        Err(_) => parser::parse(&repair(query)?).ok()?,
    };
    let text = parsed.text;
    match parsed.pipeline.stages.into_iter().next() {
        Some(Stage::Spansets(SpansetExpr::Filter(condition))) if is_effective(&condition) => Some(Filter { condition, text }),
        _ => None,
    }
}

/// Whether every alternative compares something.
fn is_effective(condition: &Expr) -> bool {
    match &condition.node {
        Node::Literal(_) | Node::Field(_) | Node::First(_) => false,
        Node::Unary { operand, .. } => is_effective(operand),
        Node::Binary { op, .. } => !op.is_arithmetic(),
        Node::Logical { op: LogicalOp::And, operands } => operands.iter().any(is_effective),
        Node::Logical { op: LogicalOp::Or, operands } => operands.iter().all(is_effective),
        Node::IsNil { .. } | Node::Match { .. } => true,
    }
}

/// The first filter without the parts that do not parse.
fn repair(query: &str) -> Option<String> {
    let body = query.trim_start().strip_prefix('{')?;
    let mut repaired = String::new();
    for (operator, part) in parts(body) {
        if parser::parse(&format!("{{{part} }}")).is_err() || part.trim().is_empty() {
            continue;
        }
        if !repaired.is_empty() {
            repaired.push_str(operator);
        }
        repaired.push_str(part);
    }
    (!repaired.is_empty()).then(|| format!("{{{repaired} }}"))
}

/// Cuts the inside of a filter at its `&&` and `||`, up to the closing brace, a pipe, or the end. Each part comes with the operator before
/// it. What stands in quotes or parentheses is not cut.
fn parts(body: &str) -> Vec<(&'static str, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut operator) = (0, "");
    let mut quote = None;
    let mut depth = 0_u32;
    let mut end = body.len();
    let mut characters = body.char_indices().peekable();
    while let Some((index, c)) = characters.next() {
        match (quote, c) {
            (Some('"'), '\\') => {
                characters.next();
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '`') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, '&' | '|') if depth == 0 => {
                let doubled = characters.next_if(|(_, next)| *next == c).is_some();
                if doubled {
                    parts.push((operator, &body[start..index]));
                    start = index + 2;
                    operator = if c == '&' { " && " } else { " || " };
                } else if c == '|' {
                    end = index;
                    break;
                }
            }
            (None, '}') => {
                end = index;
                break;
            }
            (None, _) => {}
        }
    }
    parts.push((operator, body.get(start..end).unwrap_or_default()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(query: &str) -> Option<String> {
        tag_filter(query).map(|filter| filter.condition.to_string())
    }

    #[test]
    fn incomplete_comparisons_are_left_out() {
        assert_eq!(filter("{ .a = 1 && .b = }").as_deref(), Some(".a = 1"));
        assert_eq!(filter("{ .b = && .a = 1 }").as_deref(), Some(".a = 1"));
        assert_eq!(filter("{ .a = `x && y` && resource.").as_deref(), Some(".a = `x && y`"));
        assert_eq!(filter("{ .a = 1 && ( | rate()").as_deref(), Some(".a = 1"));
        assert_eq!(filter("{ .a = 1 || .b = 2 && .c = }").as_deref(), Some("(.a = 1) || (.b = 2)"));
    }

    #[test]
    fn filters_without_comparison_do_not_filter() {
        for query in
            ["", "{}", "{ true }", "{ .a }", "{ .a = 1 || true }", "{ .a = }", "nonsense", "{ name = 1 }", "{.a=1} && {.b=1}", "{ .a ="]
        {
            assert_eq!(filter(query), None, "{query}");
        }
        assert_eq!(filter("{ .a = 1 } | count() > 2").as_deref(), Some(".a = 1"));
        assert_eq!(filter("{ .a = nil }").as_deref(), Some(".a = nil"));
    }
}
