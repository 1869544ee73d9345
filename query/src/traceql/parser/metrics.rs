//! Metrics functions, what follows them, and hints.

use super::{
    super::{
        ast::{Hint, Located, Metrics, MetricsFunction, SecondStage},
        error::Error,
        lexer::Token,
        value::Value,
    },
    Parser, RESERVED,
};

/// Values per attribute that `compare()` keeps when it is not told.
const DEFAULT_COMPARE_TOP_N: i64 = 10;

const FUNCTIONS: [&str; 9] = [
    "rate",
    "count_over_time",
    "min_over_time",
    "max_over_time",
    "avg_over_time",
    "sum_over_time",
    "quantile_over_time",
    "histogram_over_time",
    "compare",
];

impl Parser {
    pub(super) fn at_metrics(&self) -> bool {
        self.peek_word().is_some_and(|word| FUNCTIONS.contains(&word))
    }

    pub(super) fn metrics(&mut self) -> Result<Metrics, Error> {
        let begin = self.at();
        let name = self.peek_word().unwrap_or_default().to_owned();
        self.skip();
        self.expect("(")?;
        let function = self.metrics_function(&name)?;
        self.expect(")")?;
        let by = if self.peek_word() == Some("by") && name != "compare" {
            self.skip();
            self.list(Self::field)?
        } else {
            Vec::new()
        };
        let mut second = Vec::new();
        loop {
            let at = self.at();
            let stage = if self.take("|") {
                self.ranking()?
            } else if let Some(op) = self.take_comparison() {
                let value = match self.take_signed_number() {
                    Some(Value::Int(number)) => number as f64,
                    Some(Value::Float(number)) => number,
                    Some(Value::Duration(nanos)) => nanos as f64 / 1e9,
                    _ => return Err(self.unexpected("a number or a duration")),
                };
                SecondStage::Filter { op, value }
            } else {
                return Ok(Metrics { at: begin, function, by, second });
            };
            second.push(Located { at, item: stage });
        }
    }

    fn metrics_function(&mut self, name: &str) -> Result<MetricsFunction, Error> {
        Ok(match name {
            "rate" => MetricsFunction::Rate,
            "count_over_time" => MetricsFunction::CountOverTime,
            "min_over_time" => MetricsFunction::MinOverTime(self.field()?),
            "max_over_time" => MetricsFunction::MaxOverTime(self.field()?),
            "avg_over_time" => MetricsFunction::AvgOverTime(self.field()?),
            "sum_over_time" => MetricsFunction::SumOverTime(self.field()?),
            "histogram_over_time" => MetricsFunction::HistogramOverTime(self.field()?),
            "quantile_over_time" => {
                let field = self.field()?;
                let mut quantiles = Vec::new();
                self.expect(",")?;
                loop {
                    quantiles.push(match self.peek() {
                        Token::Int(number) => *number as f64,
                        Token::Float(number) => *number,
                        _ => return Err(self.unexpected("a quantile")),
                    });
                    self.skip();
                    if !self.take(",") {
                        return Ok(MetricsFunction::QuantileOverTime(field, quantiles));
                    }
                }
            }
            _ => self.compare()?,
        })
    }

    fn compare(&mut self) -> Result<MetricsFunction, Error> {
        let selection = Box::new(self.span_filter()?);
        let mut top_n = DEFAULT_COMPARE_TOP_N;
        let (mut start_ns, mut end_ns) = (0, 0);
        if self.take(",") {
            top_n = self.integer()?;
            if self.take(",") {
                start_ns = self.integer()?;
                self.expect(",")?;
                end_ns = self.integer()?;
            }
        }
        Ok(MetricsFunction::Compare { selection, top_n, start_ns, end_ns })
    }

    fn integer(&mut self) -> Result<i64, Error> {
        let Token::Int(number) = self.peek() else {
            return Err(self.unexpected("an integer"));
        };
        let number = *number;
        self.skip();
        Ok(number)
    }

    /// `topk(n)` or `bottomk(n)`.
    fn ranking(&mut self) -> Result<SecondStage, Error> {
        let make: fn(u64) -> SecondStage = match self.peek_word() {
            Some("topk") => SecondStage::TopK,
            Some("bottomk") => SecondStage::BottomK,
            _ => return Err(self.unexpected("topk or bottomk")),
        };
        self.skip();
        self.expect("(")?;
        let limit = self.integer()?;
        self.expect(")")?;
        Ok(make(limit.unsigned_abs()))
    }

    /// Any number of `with(…)`; the last one counts.
    pub(super) fn hints(&mut self) -> Result<Vec<Hint>, Error> {
        let mut hints = Vec::new();
        while self.peek_word() == Some("with") {
            self.skip();
            hints = self.list(Self::hint)?;
        }
        Ok(hints)
    }

    fn hint(&mut self) -> Result<Hint, Error> {
        let name = match self.peek_word() {
            Some(word) if !RESERVED.contains(&word) => word.to_owned(),
            _ => return Err(self.unexpected("the name of a hint")),
        };
        self.skip();
        self.expect("=")?;
        let value = self.take_literal().ok_or_else(|| self.unexpected("a literal"))?;
        Ok(Hint { name, value })
    }
}
