//! Tokens to a tree, by recursive descent.
//!
//! ```text
//! mod.rs       token stream, limits, the query: pipeline [| metrics] hints
//! stages.rs    stages, spanset expressions, parenthesised pipelines, scalar filters
//! fields.rs    field expressions by precedence climbing
//! metrics.rs   metrics functions, second stages, hints
//! ```
//!
//! Trees are bounded in depth by [`MAX_DEPTH`]: while parsing, by counting how deep the parser is; and for operators grouped to the left,
//! which the parser reads in a loop, by counting what they add. Everything that walks a tree can therefore recurse.

mod fields;
mod metrics;
mod stages;

use super::{
    Query,
    ast::{BinaryOp, Field, Intrinsic, Pipeline, Position, SpansetExpr, Stage},
    error::{Error, quote},
    lexer::{self, Token},
    pattern::PatternBudget,
    types,
    value::{Kind, Status, Value},
};

/// How deep a tree may be.
pub(super) const MAX_DEPTH: u32 = 128;

/// What a parenthesis around stages counts: the parser uses more stack for it than for one in a field expression.
const STAGES_DEPTH: u32 = 4;

/// Words that are never identifiers.
const RESERVED: [&str; 58] = [
    "true",
    "false",
    "nil",
    "ok",
    "error",
    "unset",
    "unspecified",
    "internal",
    "server",
    "client",
    "producer",
    "consumer",
    "duration",
    "childCount",
    "name",
    "status",
    "statusMessage",
    "kind",
    "rootName",
    "rootServiceName",
    "rootService",
    "traceDuration",
    "nestedSetLeft",
    "nestedSetRight",
    "nestedSetParent",
    "id",
    "traceID",
    "spanID",
    "parentID",
    "timeSinceStart",
    "version",
    "parent",
    "count",
    "avg",
    "max",
    "min",
    "sum",
    "by",
    "coalesce",
    "select",
    "rate",
    "count_over_time",
    "min_over_time",
    "max_over_time",
    "avg_over_time",
    "sum_over_time",
    "quantile_over_time",
    "histogram_over_time",
    "compare",
    "topk",
    "bottomk",
    "with",
    "span",
    "resource",
    "event",
    "link",
    "trace",
    "instrumentation",
];

/// Parses and validates.
pub(super) fn parse(text: &str) -> Result<Query, Error> {
    let mut parser = Parser { tokens: lexer::tokenize(text), next: 0, depth: 0, grouped: 0, patterns: PatternBudget::default() };
    let mut query = parser.query()?;
    types::pipeline(&query.pipeline)?;
    if let Some(metrics) = &query.metrics {
        types::metrics(metrics)?;
    }
    query.pipeline.settle_elements();
    query.text = text.into();
    Ok(query)
}

struct Parser {
    tokens: Vec<(Token, Position)>,
    next: usize,
    /// How deep the parser is.
    depth: u32,
    /// Spanset and scalar operators grouped to the left so far, in the whole query.
    grouped: u32,
    /// What regular expressions may still use.
    patterns: PatternBudget,
}

impl Parser {
    fn query(&mut self) -> Result<Query, Error> {
        let (pipeline, metrics) = match self.first_stage()? {
            stages::First::Whole(SpansetExpr::Pipeline(pipeline)) => (pipeline, None),
            stages::First::Whole(expr) => (Pipeline { stages: vec![Stage::Spansets(expr)] }, None),
            stages::First::WholeScalar(filter) => (Pipeline { stages: vec![Stage::Scalar(filter)] }, None),
            stages::First::Stage(stage) => self.rest_of_pipeline(stage)?,
        };
        let hints = self.hints()?;
        match self.peek() {
            Token::End => Ok(Query { pipeline, metrics, hints, text: "".into() }),
            _ => Err(self.unexpected("end of query")),
        }
    }

    /// Stages after the first, and the metrics function.
    fn rest_of_pipeline(&mut self, first: Stage) -> Result<(Pipeline, Option<super::ast::Metrics>), Error> {
        let mut stages = vec![first];
        while self.take("|") {
            if self.at_metrics() {
                return Ok((Pipeline { stages }, Some(self.metrics()?)));
            }
            stages.push(self.later_stage()?);
        }
        Ok((Pipeline { stages }, None))
    }

    fn peek(&self) -> &Token {
        // The last token is never passed.
        &self.tokens[self.next.min(self.tokens.len() - 1)].0
    }

    fn peek_second(&self) -> &Token {
        &self.tokens[(self.next + 1).min(self.tokens.len() - 1)].0
    }

    fn at(&self) -> Position {
        self.tokens[self.next.min(self.tokens.len() - 1)].1
    }

    fn skip(&mut self) {
        self.next = (self.next + 1).min(self.tokens.len() - 1);
    }

    fn peek_word(&self) -> Option<&str> {
        match self.peek() {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }

    /// Takes a symbol if it is next.
    fn take(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(next) if *next == symbol);
        if found {
            self.skip();
        }
        found
    }

    fn is_next(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(next) if *next == symbol)
    }

    fn expect(&mut self, symbol: &str) -> Result<(), Error> {
        if self.take(symbol) { Ok(()) } else { Err(self.unexpected(&format!("\"{symbol}\""))) }
    }

    fn unexpected(&self, expected: &str) -> Error {
        let message = match self.peek() {
            Token::Invalid(reason) => format!("{}, expecting {expected}", quote(reason)),
            Token::Word(word) if !RESERVED.contains(&word.as_str()) && expected == fields::EXPECTED => {
                format!("unknown identifier: {}", quote(word))
            }
            token => format!("unexpected {}, expecting {expected}", quote(token)),
        };
        Error::parse(self.at(), message)
    }

    /// Runs `inner` some levels deeper.
    fn nested<T>(&mut self, levels: u32, inner: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.depth += levels;
        self.check_depth(0)?;
        let result = inner(self);
        self.depth -= levels;
        result
    }

    /// Refuses a tree that is `more` levels high at this place.
    fn check_depth(&self, more: u32) -> Result<(), Error> {
        if self.depth + more > MAX_DEPTH {
            return Err(Error::parse(self.at(), format!("expression is nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }

    /// Counts an operator outside of field expressions that makes a tree higher by one level.
    fn count_grouped(&mut self) -> Result<(), Error> {
        self.grouped += 1;
        if self.grouped > MAX_DEPTH {
            return Err(Error::parse(self.at(), format!("query has more than {MAX_DEPTH} structural or arithmetic operators")));
        }
        Ok(())
    }

    /// A comparison operator of scalar filters and second stages.
    fn take_comparison(&mut self) -> Option<BinaryOp> {
        let Token::Symbol(symbol) = self.peek() else {
            return None;
        };
        let op = match *symbol {
            "=" => BinaryOp::Equal,
            "!=" => BinaryOp::NotEqual,
            "<" => BinaryOp::Less,
            "<=" => BinaryOp::LessEqual,
            ">" => BinaryOp::Greater,
            ">=" => BinaryOp::GreaterEqual,
            _ => return None,
        };
        self.skip();
        Some(op)
    }

    /// A literal without sign.
    fn take_literal(&mut self) -> Option<Value> {
        let value = match self.peek() {
            Token::Int(number) => Value::Int(*number),
            Token::Float(number) => Value::Float(*number),
            Token::Duration(nanos) => Value::Duration(*nanos),
            Token::String(text) => Value::String(text.clone()),
            Token::Word(word) => keyword_value(word)?,
            _ => return None,
        };
        self.skip();
        Some(value)
    }

    /// A number or duration, with sign.
    fn take_signed_number(&mut self) -> Option<Value> {
        let negative = self.is_next("-");
        let token = if negative { self.peek_second() } else { self.peek() };
        let value = match (token, negative) {
            (Token::Int(number), false) => Value::Int(*number),
            (Token::Int(number), true) => Value::Int(-number),
            (Token::Float(number), false) => Value::Float(*number),
            (Token::Float(number), true) => Value::Float(-number),
            (Token::Duration(nanos), false) => Value::Duration(*nanos),
            (Token::Duration(nanos), true) => Value::Duration(-nanos),
            _ => return None,
        };
        self.skip();
        if negative {
            self.skip();
        }
        Some(value)
    }

    /// An attribute or intrinsic.
    fn take_field(&mut self) -> Result<Option<Field>, Error> {
        let intrinsic = match self.peek() {
            Token::Attribute(field) => {
                let field = field.clone();
                self.skip();
                return Ok(Some(field));
            }
            Token::Word(word) => bare_intrinsic(word),
            Token::IntrinsicScope(scope) => {
                let found = match self.peek_second() {
                    Token::Word(word) => scoped_intrinsic(scope, word),
                    _ => None,
                };
                self.skip();
                if found.is_none() {
                    return Err(self.unexpected("the name of an intrinsic"));
                }
                found
            }
            _ => None,
        };
        if intrinsic.is_some() {
            self.skip();
        }
        Ok(intrinsic.map(Field::Intrinsic))
    }

    fn field(&mut self) -> Result<Field, Error> {
        self.take_field()?.ok_or_else(|| self.unexpected("an attribute or intrinsic"))
    }

    /// `( item , item … )` with at least one item.
    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Error>) -> Result<Vec<T>, Error> {
        self.expect("(")?;
        let mut items = vec![item(self)?];
        while self.take(",") {
            items.push(item(self)?);
        }
        self.expect(")")?;
        Ok(items)
    }
}

fn keyword_value(word: &str) -> Option<Value> {
    Some(match word {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "ok" => Value::Status(Status::Ok),
        "error" => Value::Status(Status::Error),
        "unset" => Value::Status(Status::Unset),
        "unspecified" => Value::Kind(Kind::Unspecified),
        "internal" => Value::Kind(Kind::Internal),
        "server" => Value::Kind(Kind::Server),
        "client" => Value::Kind(Kind::Client),
        "producer" => Value::Kind(Kind::Producer),
        "consumer" => Value::Kind(Kind::Consumer),
        "minInt" => Value::Int(i64::MIN),
        "maxInt" => Value::Int(i64::MAX),
        _ => return None,
    })
}

fn bare_intrinsic(word: &str) -> Option<Intrinsic> {
    Some(match word {
        "duration" => Intrinsic::Duration,
        "name" => Intrinsic::Name,
        "status" => Intrinsic::Status,
        "statusMessage" => Intrinsic::StatusMessage,
        "kind" => Intrinsic::Kind,
        "rootName" => Intrinsic::RootName,
        "rootServiceName" => Intrinsic::RootServiceName,
        "traceDuration" => Intrinsic::TraceDuration,
        "nestedSetLeft" => Intrinsic::NestedSetLeft,
        "nestedSetRight" => Intrinsic::NestedSetRight,
        "nestedSetParent" => Intrinsic::NestedSetParent,
        "parent" => Intrinsic::Parent,
        _ => return None,
    })
}

fn scoped_intrinsic(scope: &str, word: &str) -> Option<Intrinsic> {
    Some(match (scope, word) {
        ("span", "duration") => Intrinsic::Duration,
        ("span", "name") => Intrinsic::Name,
        ("span", "status") => Intrinsic::Status,
        ("span", "statusMessage") => Intrinsic::StatusMessage,
        ("span", "kind") => Intrinsic::Kind,
        ("span", "id") => Intrinsic::SpanId,
        ("span", "parentID") => Intrinsic::SpanParentId,
        ("span", "childCount") => Intrinsic::ChildCount,
        ("trace", "rootName") => Intrinsic::RootName,
        ("trace", "rootService") => Intrinsic::RootServiceName,
        ("trace", "duration") => Intrinsic::TraceDuration,
        ("trace", "id") => Intrinsic::TraceId,
        ("event", "name") => Intrinsic::EventName,
        ("event", "timeSinceStart") => Intrinsic::EventTimeSinceStart,
        ("link", "traceID") => Intrinsic::LinkTraceId,
        ("link", "spanID") => Intrinsic::LinkSpanId,
        ("instrumentation", "name") => Intrinsic::InstrumentationName,
        ("instrumentation", "version") => Intrinsic::InstrumentationVersion,
        _ => return None,
    })
}
